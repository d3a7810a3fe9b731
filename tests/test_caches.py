"""The three tiers together: real PostgreSQL, a real Redis-compatible server, real git."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import psycopg
import pytest
import redis

from annoris import caches
from annoris.emergency import Emergency
from annoris.envelope import new_key, read_ring, seal
from annoris.hot import Hot
from tests.support.machine import Machine
from tests.support.servers import Postgres, Valkey
from tests.support.tiers import Tiers, forget_failures

CANARY = "canary-7319-zeisig"
BODY = f"# Notes\n\nThe word is {CANARY}.\n".encode()


@dataclass(frozen=True)
class State:
    """Which tiers are up, and what is known of the sessions saved before and since."""

    hot: bool
    emergency: bool
    master: bool
    first: str  # the id of what was saved while all were up
    next: str  # the id of what was saved since

    @property
    def cache(self) -> str:
        """The cache that takes a save now."""
        return "hot" if self.hot else "emergency" if self.emergency else ""


def load_next(here: Machine, state: State) -> None:
    """The newest one: by the cache that took it, or from here."""
    ran = here.run("load", "next", "--json")
    assert ran.code == 0
    assert ran.json["text"].endswith("# Next\n\nmore\n")
    assert ran.json["tier"] == ((state.cache or "clone") if state.master else "outbox")


def load_first(here: Machine, state: State) -> None:
    """The older one: where it was put, else from the clone, which says whether it may be old."""
    ran = here.run("load", state.first, "--json")
    assert ran.code == 0
    assert ran.json["text"].encode().endswith(BODY)
    assert ran.json["tier"] == ("hot" if state.hot else "clone")
    assert bool(ran.json["stale"]) == (not state.hot and not state.master)


def list_both(here: Machine, state: State) -> None:
    """Both, from this machine, whatever is down; said to be old where master is."""
    ran = here.run("list", "--json")
    assert ran.code == 0
    assert [row["id"] for row in ran.json["sessions"]] == [state.next, state.first]
    assert bool(ran.json["sessions"][0]["pending"]) == (not state.master)
    assert bool(ran.json["stale"]) == (not state.master)


# What each command promises in each of the eight states; a new command is one more row.
COMMANDS: tuple[Callable[[Machine, State], None], ...] = (load_next, load_first, list_both)


@pytest.mark.parametrize("up", list(itertools.product((True, False), repeat=3)))
def test_each_state_of_the_tiers_answers_as_promised(
    make: Callable[..., Machine], tiers: Tiers, up: tuple[bool, bool, bool]
) -> None:
    """Saves, loads and lists go on with any of the tiers down; the answer names the tier."""
    hot, emergency, master = up
    here = make()
    saved = here.run("save", "-", "--json", stdin=BODY)
    assert saved.code == 0, saved.err
    assert saved.json["receipts"][0]["cached"] == "hot"
    tiers.set(hot=hot, emergency=emergency, master=master)

    again = here.run("save", "-", "--json", "--name", "next", stdin=b"# Next\n\nmore\n")
    receipt = again.json["receipts"][0]
    state = State(hot, emergency, master, saved.json["receipts"][0]["id"], receipt["id"])
    assert again.code == (0 if master else 10)
    assert receipt["cached"] == (state.cache if master else "")
    for command in COMMANDS:
        command(here, state)

    assert here.sync().code == (0 if master else 10)
    verified = here.run("verify", "--json")
    told = {item["where"] for item in verified.json["audit"]["findings"]}
    names = ("hot", "emergency", "master")
    assert told == {tier for tier, is_up in zip(names, up, strict=True) if not is_up}
    assert verified.code == (5 if told else 0)

    tiers.set()
    forget_failures(here)
    assert here.sync().code == 0
    assert here.run("verify").code == 0
    other = make("other")
    assert other.run("load", "next", "--json").json["tier"] == "hot"


def test_a_blank_machine_is_answered_by_the_hot_cache_alone(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """With master and Redis down, a machine without a clone loads what another saved."""
    make().save(BODY)
    tiers.set(master=False, emergency=False)
    loaded = make("blank").run("load")
    assert loaded.code == 0
    assert loaded.out.endswith(BODY)
    assert "[hot]" in loaded.err


def test_a_blank_machine_is_answered_by_the_emergency_cache_alone(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """What was saved while PostgreSQL was down comes back from Redis, with a word of warning."""
    tiers.set(hot=False)
    saved = make().run("save", "-", "--json", stdin=BODY)
    assert saved.json["receipts"][0]["cached"] == "emergency"
    tiers.set(hot=False, master=False)
    loaded = make("blank").run("load", "--json")
    assert loaded.json["tier"] == "emergency"
    assert loaded.json["text"].encode().endswith(BODY)
    assert loaded.json["stale"]


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
def test_case_17_a_dead_hot_cache_costs_one_command_its_limit_and_the_next_ones_nothing(
    make: Callable[..., Machine], tiers: Tiers, mode: str
) -> None:
    """The breaker is remembered across processes: the second command does not even connect."""
    here = make(hot_seconds="3", hot_load_seconds="1")
    here.save(BODY)
    tiers.hot.mode = mode  # type: ignore[assignment]
    first = here.run("load")
    assert first.code == 0
    assert "PostgreSQL" in first.err
    before = tiers.hot.connections
    second = here.run("load")
    assert second.code == 0
    assert "PostgreSQL" not in second.err
    assert here.run("save", "-", stdin=b"# Two\n").code == 0
    assert tiers.hot.connections == before


def test_case_17_recovery_brings_the_hot_cache_up_to_date(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """Sessions saved during the outage are in the hot cache after one sync, deletions too."""
    here = make()
    kept, gone = here.save(BODY, b"# Gone\n\nsoon\n")
    tiers.set(hot=False)
    later = here.save(b"# Later\n\nsaved in the dark\n")[0]
    assert here.run("delete", gone.id).code == 0
    tiers.set()
    forget_failures(here)
    assert here.sync().code == 0
    hot = Hot(tiers.direct)
    held = {id: row for id, row in hot.entries().items() if not row.deleted}
    hot.close()
    assert held.keys() == {kept.id, later.id}


def test_a_row_that_is_behind_this_machine_is_not_served(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """An older revision in the cache never answers where a newer one is known."""
    here = make()
    id = here.save(BODY)[0].id
    text = here.load(id)
    tiers.set(hot=False, emergency=False)
    assert here.run("save", "-", stdin=text.replace(b"word", b"password-free word")).code == 0
    tiers.set()
    forget_failures(here)
    loaded = here.run("load", id, "--json")
    assert "password-free" in loaded.json["text"]
    assert loaded.json["tier"] == "clone"
    assert here.run("load", id, "--json").json["tier"] == "hot", "the load has healed the cache"


def test_a_deleted_session_does_not_come_back_from_a_cache(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """Deleted while the cache was down: the cached row is no answer."""
    here = make()
    id = here.save(BODY, b"# Other\n")[0].id
    tiers.set(hot=False, emergency=False)
    assert here.run("delete", id).code == 0
    tiers.set()
    forget_failures(here)
    assert here.run("load", id).code == 3


def test_case_20_a_bad_row_is_a_miss_that_heals(make: Callable[..., Machine], tiers: Tiers) -> None:
    """Content that was changed, or taken from another row, is reported and never shown."""
    here = make()
    one, two = here.save(BODY, b"# Two\n\nanother text\n")
    with psycopg.connect(tiers.direct) as db:
        db.execute(
            "UPDATE annoris.sessions SET content = "
            "(SELECT content FROM annoris.sessions WHERE id = %s) WHERE id = %s",
            [two.id, one.id],
        )
        db.execute(
            "UPDATE annoris.sessions SET content = left(content, 60) WHERE id = %s", [two.id]
        )
    for receipt, body in ((one, BODY), (two, b"# Two\n\nanother text\n")):
        loaded = here.run("load", receipt.id)
        assert loaded.code == 0
        assert loaded.out.endswith(body)
        assert "can't be read" in loaded.err


def test_case_21_a_wrong_key_is_seen_before_anything_is_written(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """A machine with another key saves and loads through master, and leaves the cache alone."""
    make().save(BODY)
    other = make("other")
    other.environment["ANNORIS_KEY"] = new_key().text()
    saved = other.run("save", "-", "--json", stdin=b"# Mine\n")
    assert saved.code == 0
    assert saved.json["receipts"][0]["cached"] == "emergency"
    assert "key" in saved.err
    hot = Hot(tiers.direct)
    assert hot.count() == 1
    hot.close()
    loaded = other.run("load", "--json")
    assert loaded.code == 0
    assert loaded.json["tier"] == "clone"


def test_p5_the_hot_cache_is_rebuilt_from_master_alone(
    make: Callable[..., Machine], tiers: Tiers, postgres: Postgres
) -> None:
    """Schema dropped, Redis flushed, catalog deleted: one sync brings every session back."""
    here = make()
    receipts = here.save(*(b"# Note %d\n\ntext %d\n" % (n, n) for n in range(80)))
    with psycopg.connect(tiers.direct) as db:
        db.execute("DROP SCHEMA annoris CASCADE")
    (here.data / "catalog.sqlite").unlink()
    assert here.sync().code == 0
    tiers.set(emergency=False, master=False)
    blank = make("blank")
    assert [blank.load(receipt.id).split(b"---\n")[-1] for receipt in receipts[::10]] == [
        b"# Note %d\n\ntext %d\n" % (n, n) for n in range(0, 80, 10)
    ]


def test_p7_no_plaintext_in_the_caches(
    make: Callable[..., Machine], tiers: Tiers, valkey: Valkey
) -> None:
    """Neither PostgreSQL nor Redis holds a word of the body."""
    here = make()
    here.save(BODY)
    tiers.set(hot=False)
    forget_failures(here)
    here.save(b"# During\n\n" + CANARY.encode() + b"\n")
    tiers.set()
    with psycopg.connect(tiers.direct) as db:
        rows = db.execute("SELECT to_jsonb(sessions)::text FROM annoris.sessions").fetchall()
    assert rows
    assert not any(CANARY in row for (row,) in rows)
    with redis.Redis.from_url(valkey.url) as client:
        held = [client.dump(key) for key in client.scan_iter()]
    assert held
    assert not any(CANARY.encode() in (value or b"") for value in held)


def test_a_load_that_the_caches_answer_asks_master_nothing(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """A hit is one connection to PostgreSQL and no git at all."""
    make().save(BODY)
    blank = make("blank")
    assert blank.run("load").code == 0
    assert not (blank.data / "clone.git").exists()


def test_case_20_what_opens_but_is_not_masters_text_is_a_miss(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """An envelope under the right key, id and blob id that holds other bytes is never shown."""
    here = make()
    receipt = here.save(BODY)[0]
    key = read_ring(here.environment["ANNORIS_KEY"]).current
    forged = seal(b"# Forged\n", key=key, session=receipt.id, oid=receipt.oid)
    with psycopg.connect(tiers.direct) as db:
        db.execute("UPDATE annoris.sessions SET content = %s", [forged])
    loaded = here.run("load")
    assert loaded.code == 0
    assert loaded.out.endswith(BODY)
    assert "is not what master holds" in loaded.err


def test_a_save_that_is_all_that_changed_leaves_sync_nothing_to_do(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """And where another machine's document came along, that one is brought by the next sync."""
    here, other = make(), make("other")
    here.save(BODY)
    assert here.sync().code == 0
    here.save(b"# Two\n")
    with closing(Hot(tiers.direct)) as hot:
        tip = hot.state().commit
    assert here.sync("--json").json["report"]["hot"] == 0
    with closing(here.archive()) as archive:
        assert tip == archive.master.tip()
    other.environment["ANNORIS_HOT_URL"] = ""
    third = other.save(b"# Three\n")[0]
    here.save(b"# Four\n")
    with closing(Hot(tiers.direct)) as hot:
        assert hot.state().commit == tip, "Three is not there"
        assert here.sync("--json").json["report"]["hot"] == 1
        assert third.id in hot.entries()
        tip = hot.state().commit
        here.save(b"# Five\n", project="another")
        assert hot.state().commit == tip, "the file of its project has come along"


def test_state_is_not_moved_from_where_it_is_not(hot_url: str) -> None:
    """A writer that has seen another state than the one there leaves it: rows may be missing."""
    with closing(Hot(hot_url, seconds=20)) as hot:
        hot.put([], commit="c3", position=3, since="c1")
        assert hot.state().commit == ""
        hot.put([], commit="c3", position=3, since="")
        hot.put([], commit="c4", position=4, since="c3")
        assert hot.state().commit == "c4"


def test_both_caches_dead_cost_a_load_one_limit(make: Callable[..., Machine], tiers: Tiers) -> None:
    """The emergency cache gets its share of the time, not the same again."""
    here = make(hot_load_seconds="3")
    here.save(BODY)
    tiers.hot.mode = tiers.emergency.mode = "blackhole"
    with closing(here.archive()) as archive:
        started = time.monotonic()
        rows, tier = archive.caches.find("newest", "demo", "")
        took = time.monotonic() - started
    assert (rows, tier) == ([], None)
    assert took < 5
    assert len(archive.caches.complaints) == 2


def test_a_full_redis_is_a_miss_and_no_failure(
    make: Callable[..., Machine], tiers: Tiers, valkey: Valkey
) -> None:
    """A save says nothing of it, and what it took before is read on."""
    here = make()
    tiers.set(hot=False)
    first = here.save(BODY)[0]
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory", "1")
        try:
            saved = here.run("save", "-", "--json", stdin=b"# Two\n")
            loaded = here.run("load", first.id, "--json")
        finally:
            client.config_set("maxmemory", "0")
    assert (saved.code, saved.json["receipts"][0]["cached"]) == (0, "")
    assert "Redis" not in saved.err
    assert loaded.json["tier"] == "emergency"


def test_the_emergency_cache_takes_the_last_documents_of_a_large_save(
    make: Callable[..., Machine], tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_MOST", 3)
    here = make()
    tiers.set(hot=False)
    receipts = here.save(*(b"# Note %d\n" % number for number in range(5)))
    assert {receipt.cached for receipt in receipts} == {""}
    with closing(Emergency(tiers.emergency_url, seconds=20)) as emergency:
        assert emergency.entries().keys() == {receipt.id for receipt in receipts[2:]}
