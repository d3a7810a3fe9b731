"""The emergency cache against a real server, alone and as a cluster, and through a proxy."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from annoris.emergency import MAX_VALUE, Emergency
from annoris.errors import ConfigError, StorageError, TierDown
from annoris.model import Cached, Session
from tests.support.machine import Machine
from tests.support.proxy import Proxy
from tests.support.servers import Valkey


def cached(id: str = "", position: int = 1, content: str = "sealed", **known: object) -> Cached:
    id = id or str(uuid.uuid4())
    fields: dict[str, object] = {
        "path": f"sessions/demo/{id[-8:]}.md",
        "oid": f"{position:040}",
        "project": "demo",
        "name": "",
        "title": "A title",
        "status": "",
        "priority": "",
        "created": "2026-11-01T10:00:00Z",
        "saved": "2026-11-02T10:00:00Z",
        "size": 12,
        "etag": "e" * 16,
        "literal": "",
        "body_md5": "b" * 32,
    }
    session = Session(id=id, **(fields | known))  # type: ignore[arg-type]
    return Cached(session, position, "c" * 32, content)


@contextmanager
def opened(url: str, **options: object) -> Iterator[Emergency]:
    emergency = Emergency(url, **options)  # type: ignore[arg-type]
    try:
        yield emergency
    finally:
        emergency.close()


class Cluster(Valkey):
    """A cluster of one node, which refuses what a larger one would: keys of several slots."""

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            bus = probe.getsockname()[1]
        config = self.folder / "cluster.conf"
        config.write_text(
            f'bind 127.0.0.1\nport {self.port}\nsave ""\ndir "{self.folder}"\n'
            f"cluster-enabled yes\ncluster-port {bus}\ncluster-require-full-coverage no\n"
        )
        self._run([self._program, str(config)], self._answers)
        client: Any
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                time.sleep(0.01)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(params=["alone", "cluster"])
def emergency(request: pytest.FixtureRequest) -> Iterator[Emergency]:
    alone = request.param == "alone"
    server = request.getfixturevalue("valkey" if alone else "cluster")
    name = uuid.uuid4().hex
    with opened(server.url, seconds=10, namespace=name, cluster=not alone) as emergency:
        yield emergency


@pytest.fixture
def client(valkey: Valkey) -> Iterator[redis.Redis]:
    """What a person at redis-cli would see."""
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        client.flushall()
        yield client


def test_what_is_put_is_what_is_found(emergency: Emergency) -> None:
    row = cached(name="auth")
    assert emergency.put(row)
    assert emergency.get(row.session.id) == row
    assert emergency.newest("demo") == row
    assert emergency.named("demo", "auth") == row
    assert emergency.entries() == {row.session.id: (row.session.oid, 1)}
    assert emergency.count() == 1
    assert emergency.get(str(uuid.uuid4())) is None
    assert emergency.newest("other") is None
    assert emergency.named("demo", "") is None
    assert emergency.ping() > 0


def test_an_older_revision_never_replaces_a_newer_one(emergency: Emergency) -> None:
    new = cached(position=10, content="ten")
    id = new.session.id
    assert emergency.put(new)
    assert not emergency.put(cached(id, 9, "nine"))
    assert not emergency.put(cached(id, 10, "other", oid="f" * 40))
    assert emergency.get(id) == new
    assert emergency.put(new)
    newer = cached(id, 11, "eleven")
    assert emergency.put(newer)
    assert emergency.get(id) == newer


def test_a_late_writer_does_not_bring_back_what_was_removed(emergency: Emergency) -> None:
    row = cached(position=3, name="n")
    id = row.session.id
    emergency.put(row)
    assert emergency.remove(id, 3)
    assert not emergency.put(row)
    assert emergency.get(id) is emergency.newest("demo") is emergency.named("demo", "n") is None
    assert emergency.count() == 0
    assert not emergency.remove(id, 2)
    assert emergency.put(replace(row, position=4))
    assert not emergency.remove(id, 3)
    assert emergency.get(id) == replace(row, position=4)


def test_the_newest_of_a_project_is_the_one_saved_last(emergency: Emergency) -> None:
    new = cached(saved="2026-11-24T10:00:00Z")
    old = cached(saved="2026-11-23T10:00:00Z", position=9)
    emergency.put(new)
    emergency.put(old)
    assert emergency.newest("demo") == new
    moved = replace(new, session=replace(new.session, project="elsewhere"), position=2)
    emergency.put(moved)
    assert emergency.newest("elsewhere") == moved
    assert emergency.newest("demo") is None


def test_a_value_that_is_too_big_is_told_and_hides_the_older_one(emergency: Emergency) -> None:
    row = cached()
    emergency.put(row)
    big = cached(row.session.id, 2, "x" * (MAX_VALUE + 1))
    assert not emergency.put(big)
    assert emergency.get(row.session.id) == replace(big, content="")
    most = cached(row.session.id, 3, "x" * MAX_VALUE)
    assert emergency.put(most)
    assert emergency.get(row.session.id) == most


@pytest.mark.parametrize("text", ["語 🎉", "\udcff", "nul\0", "{x}", "a\nb", "*", '"'])
def test_any_text_comes_back_as_it_was(emergency: Emergency, text: str) -> None:
    row = cached(project=text, name=text, path=text, title=text)
    emergency.put(row)
    assert emergency.newest(text) == emergency.named(text, text) == row


def test_many_are_listed(emergency: Emergency) -> None:
    rows = [cached() for _ in range(300)]
    for row in rows:
        emergency.put(row)
    assert emergency.entries() == {row.session.id: (row.session.oid, 1) for row in rows}


def test_every_key_ends_and_old_values_go_at_once(valkey: Valkey, client: redis.Redis) -> None:
    with opened(valkey.url, ttl=60) as emergency:
        for position in (1, 2, 3):
            emergency.put(cached(str(uuid.UUID(int=1)), position, name="n"))
        emergency.remove(str(uuid.UUID(int=2)), 1)
        keys = sorted(str(key) for key in client.scan_iter())
        assert len(keys) == 5
        assert [key for key in keys if key.endswith(f"{3:040}")]
        assert all(0 < client.ttl(key) <= 60 for key in keys)
    with opened(valkey.url, ttl=1) as brief:
        brief.put(row := cached())
        time.sleep(1.2)
        assert brief.get(row.session.id) is None
        assert row.session.id not in brief.entries()


def test_namespaces_know_nothing_of_each_other(valkey: Valkey, client: redis.Redis) -> None:
    with opened(valkey.url, namespace="a") as a, opened(valkey.url, namespace="b") as b:
        a.put(row := cached())
        assert b.get(row.session.id) is b.newest("demo") is None
        assert (a.count(), b.count()) == (1, 0)


def test_what_is_unreadable_is_an_error_and_can_be_written_over(
    valkey: Valkey, client: redis.Redis
) -> None:
    with opened(valkey.url) as emergency:
        emergency.put(row := cached())
        for wrong in ("", "{", "[]", '{"session": {}}', '{"session": {"id": 1}, "checksum": ""}'):
            client.hset(f"annoris:{{{row.session.id}}}:head", "meta", wrong)
            with pytest.raises(StorageError, match=row.session.id):
                emergency.get(row.session.id)
        assert emergency.put(row)
        assert emergency.get(row.session.id) == row


# --- time limits and failures ------------------------------------------------------------------


@pytest.fixture
def proxy(valkey: Valkey) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", valkey.port)) as proxy:
        yield proxy


@pytest.fixture
def far(valkey: Valkey, proxy: Proxy) -> Iterator[Emergency]:
    """An emergency cache behind the proxy."""
    with opened(valkey.url_at(proxy.port), namespace=uuid.uuid4().hex) as emergency:
        yield emergency


def ends(call: Callable[[], object], within: float = 0.3) -> TierDown:
    """The TierDown that a call ends with by its limit."""
    started = time.monotonic()
    with pytest.raises(TierDown) as caught:
        call()
    assert time.monotonic() - started < within + 0.3
    chain: BaseException | None = caught.value
    while chain:
        assert "pass w" not in f"{chain} {chain!r}"
        chain = chain.__cause__
    return caught.value


def test_a_refusing_server_is_down_at_once_and_back_at_once(far: Emergency, proxy: Proxy) -> None:
    far.ping()
    proxy.mode = "refuse"
    ends(far.count)
    assert "refused" in ends(far.count).message
    proxy.mode = "pass"
    assert far.count() == 0


@pytest.mark.parametrize("mode", ["blackhole", "drip"])
@pytest.mark.parametrize("connected", [False, True])
def test_a_silent_server_costs_the_limit_once(
    far: Emergency, proxy: Proxy, mode: str, connected: bool
) -> None:
    if connected:
        far.ping()
    proxy.mode = mode  # type: ignore[assignment]
    assert "in time" in ends(lambda: far.put(cached())).message
    ends(far.count, within=-0.2)
    proxy.mode = "pass"
    ends(far.count, within=-0.2)
    far.close()
    assert far.ping() > 0


def test_an_answer_that_is_cut_is_an_error_and_the_next_call_works(
    far: Emergency, proxy: Proxy
) -> None:
    far.put(row := cached(content="x" * 10_000))
    proxy.cut_after = 30
    proxy.mode = "cut"
    ends(lambda: far.get(row.session.id))
    proxy.mode = "pass"
    assert far.get(row.session.id) == row


def test_a_slow_drip_does_not_outlast_the_limit(far: Emergency, proxy: Proxy) -> None:
    """Although each byte comes before the socket's own timeout."""
    far._seconds = 5
    far.put(row := cached(content="x" * 10_000))
    far._seconds = 0.6
    proxy.delay = 0.2
    proxy.mode = "drip"
    ends(lambda: far.get(row.session.id), within=0.6)


def test_a_put_is_one_round_trip(valkey: Valkey, proxy: Proxy) -> None:
    """With an answer delayed by 0.2 s it takes one delay and not two."""
    with opened(valkey.url_at(proxy.port), seconds=10) as far:
        far.ping()
        proxy.delay = 0.2
        for call in (lambda: far.put(cached(name="n")), lambda: far.get(str(uuid.uuid4()))):
            started = time.monotonic()
            call()
            assert time.monotonic() - started < 0.39


def test_a_server_that_dies_is_down_and_comes_back_empty(tmp_path: Path) -> None:
    with Valkey(tmp_path / "mortal") as mortal, opened(mortal.url) as emergency:
        emergency.put(cached())
        mortal.kill()
        ends(emergency.count)
        mortal.start()
        assert emergency.count() == 0


def test_a_full_server_takes_nothing_and_keeps_no_older_revision(tmp_path: Path) -> None:
    """It is no failure; what is there is read on, and removed."""
    old, other = cached(name="old"), cached(name="other")
    with Valkey(tmp_path / "full") as full, opened(full.url, seconds=5) as emergency:
        emergency.put(old)
        emergency.put(other)
        with redis.Redis.from_url(full.url) as client:
            client.config_set("maxmemory", "1")
            assert (emergency.memory().most, emergency.memory().policy) == (1, "noeviction")
            assert not emergency.put(cached(name="new"))
            assert not emergency.put(cached(old.session.id, 2))
            assert emergency.get(old.session.id) is emergency.named("demo", "new") is None
            assert emergency.get(other.session.id) == other
            assert not emergency.remove(other.session.id, 2)
            assert emergency.get(other.session.id) is None
            client.config_set("maxmemory", "0")
            assert emergency.put(newer := cached(old.session.id, 3))
            assert emergency.get(old.session.id) == newer


def test_a_wrong_password_is_named_by_no_error(valkey: Valkey) -> None:
    with opened(f"redis://:pass%20wrong@127.0.0.1:{valkey.port}/0") as emergency:
        message = ends(emergency.count).message
        assert "password" in message
        assert "pass wrong" not in message


def test_a_cluster_that_is_not_there_is_down() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}"
        with opened(url, cluster=True) as emergency:
            ends(emergency.count)


@pytest.mark.parametrize(
    "url", ["http://:pass w@x", "redis://:pass w/1@x:6379", "redis://x:pass w"]
)
def test_a_url_that_is_none_says_so_without_its_password(url: str) -> None:
    with opened(url) as emergency, pytest.raises(ConfigError, match="URL") as caught:
        emergency.ping()
    assert "pass w" not in f"{caught.value!r} {caught.value.__cause__!r} {emergency!r}"


def test_a_cluster_bridges_an_outage_by_setting(
    machine: Callable[..., Machine], cluster: Valkey, remote: Path
) -> None:
    """With emergency.cluster a save while the hot cache fails is loaded from there, and doctor
    understands what the nodes say."""
    dead = "postgresql://127.0.0.1:9/none"
    here = machine(
        remote=remote, hot_url=dead, emergency_url=cluster.url, emergency_cluster="true",
        hot_seconds="20", hot_load_seconds="20",
    )  # fmt: skip
    text = b"# In a cluster\n\n**Status:** open\n\ntext\n"
    assert here.run("save", "-", "--name", "here", stdin=text).code == 0
    loaded = here.run("load", "here", "--from", "emergency", "--body")
    assert (loaded.code, loaded.out) == (0, text)
    told = here.run("doctor")
    assert "bug" not in told.err + told.text
    assert "PostgreSQL" in told.text + told.err
