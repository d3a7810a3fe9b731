"""What failed for a moment is tried again, by one rule; on real servers that fail for a moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from annoris.breaker import Breaker
from annoris.caches import Caches
from annoris.errors import (
    AnnorisError,
    AuthRefused,
    ConfigError,
    RemoteUnreachable,
    StorageError,
    TierDown,
    WrongKey,
)
from annoris.hot import Hot
from annoris.master import Master
from annoris.model import Deadline
from annoris.retry import TRIES, patiently
from annoris.settings import EmergencySettings, HotSettings, MasterSettings, Settings
from tests.support.githttp import GitServer
from tests.support.proxy import Proxy
from tests.support.servers import Postgres, Valkey
from tests.test_hot import cached


class Failing:
    """Work that raises these errors in turn, then answers."""

    def __init__(self, *errors: AnnorisError) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


DOWN = TierDown("is down for a moment", transient=True)


def test_what_fails_twice_for_a_moment_is_answered_at_the_third_try() -> None:
    work = Failing(RemoteUnreachable("one"), DOWN)
    assert patiently(work, Deadline(20), pause=0.01) == "answer"
    assert work.calls == TRIES == 3


def test_what_fails_three_times_is_the_last_error_itself() -> None:
    last = RemoteUnreachable("three")
    work = Failing(DOWN, DOWN, last, DOWN)
    with pytest.raises(RemoteUnreachable) as caught:
        patiently(work, Deadline(20), pause=0.01)
    assert caught.value is last
    assert work.calls == 3


@pytest.mark.parametrize(
    "error",
    [AuthRefused("x"), WrongKey("x"), StorageError("x"), ConfigError("x"), TierDown("in time")],
)
def test_what_would_fail_again_is_not_tried_again(error: AnnorisError) -> None:
    """At the first try, and after one that failed for a moment."""
    for errors in ((error,), (DOWN, error)):
        work = Failing(*errors, DOWN)
        with pytest.raises(type(error)):
            patiently(work, Deadline(20), pause=0.01)
        assert work.calls == len(errors)


def test_no_try_begins_after_the_deadline() -> None:
    """One that is over allows none; one that the pause would outlast allows none either."""
    for deadline, pause in ((Deadline(0), 0.01), (Deadline(0.05), 1e6)):
        work = Failing(DOWN, DOWN)
        with pytest.raises(TierDown):
            patiently(work, deadline, pause=pause)
        assert work.calls == 1


def test_pauses_are_drawn_from_nothing_to_twice_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: the first within ``pause``, the second within twice that; not all alike."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    for _ in range(200):
        patiently(Failing(DOWN, DOWN), Deadline(60), pause=0.5)
    first, second = slept[::2], slept[1::2]
    assert max(first) <= 0.5 < max(second) <= 1.0
    assert min(slept) < 0.05
    assert len(set(slept)) > 300


def test_what_works_at_once_imports_nothing_for_the_case_that_it_had_not() -> None:
    program = (
        "import sys; from annoris.model import Deadline; from annoris.retry import patiently; "
        "patiently(int, Deadline(1)); sys.exit('tenacity' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- git -----------------------------------------------------------------------------------------


def after(server: GitServer, requests: int, then: Callable[[], None]) -> threading.Thread:
    """Do something once a server has been asked so often."""
    until = server.requests + requests

    def wait() -> None:
        deadline = Deadline(20)
        while server.requests < until and not deadline.over:
            time.sleep(0.001)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_fetch_from_a_server_that_errs_once_is_answered(
    tmp_path: Path, server: GitServer
) -> None:
    master = Master(str(tmp_path / "clone.git"), MasterSettings(remote=server.url))
    master.create()

    def heal() -> None:
        server.status = None

    server.status = 503
    healing = after(server, 1, heal)
    assert master.fetch(Deadline(20)) == ""
    healing.join()


def test_a_server_that_refuses_is_asked_once(tmp_path: Path, server: GitServer) -> None:
    master = Master(str(tmp_path / "clone.git"), MasterSettings(remote=server.url))
    master.create()
    for status, error, times in ((401, AuthRefused, 1), (503, RemoteUnreachable, 3)):
        server.status, before = status, server.requests
        with pytest.raises(error):
            master.fetch(Deadline(20))
        assert server.requests == before + times


# --- the caches ----------------------------------------------------------------------------------


@pytest.fixture
def near(hot_url: str, tmp_path: Path) -> Iterator[Caches]:
    """The hot cache alone, with time enough."""
    settings = Settings(data_dir=str(tmp_path), hot=HotSettings(url=hot_url))
    with closing(Caches(settings, Breaker(str(tmp_path / "breaker.json")))) as caches:
        yield caches


def end_all(url: str) -> None:
    """As an administrator does, or a server that is restarted."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'annoris' AND datname = current_database()"
        )


def test_a_connection_that_was_ended_is_opened_again_and_nobody_hears_of_it(
    near: Caches, hot_url: str
) -> None:
    assert near.ask_hot(lambda hot: hot.put([cached()]), 20) == 1
    end_all(hot_url)
    assert near.ask_hot(lambda hot: hot.put([cached()]), 20) == 1
    assert near.ask_hot(lambda hot: hot.count(), 20) == 2
    assert near.complaints == []


def test_a_server_that_is_restarted_meanwhile_is_waited_for(
    near: Caches, postgres: Postgres
) -> None:
    assert near.ask_hot(lambda hot: hot.count(), 20) == 0
    postgres.restart()
    assert near.ask_hot(lambda hot: hot.count(), 20) == 0
    assert near.complaints == []


def test_the_loser_of_a_deadlock_goes_again(near: Caches, hot_url: str) -> None:
    """Another client locks two rows the other way round; both writes are done in the end."""
    one, two = sorted((cached(), cached()), key=lambda row: row.session.id)
    near.ask_hot(lambda hot: hot.put([one, two]), 20)
    tried: list[int] = []

    def write(hot: Hot) -> int:
        tried.append(1)
        return hot.put([one, two], force=True)

    touch = "UPDATE annoris.sessions SET title = title WHERE id = %s"
    with psycopg.connect(hot_url) as other:
        other.execute("SET deadlock_timeout = '60s'")  # so that the victim is never this one
        other.execute(touch, [two.session.id])
        answers: list[int | None] = []
        writing = threading.Thread(target=lambda: answers.append(near.ask_hot(write, 60)))
        writing.start()
        _until_waiting(hot_url)
        other.execute(touch, [one.session.id])  # waits, until the victim is chosen
        other.commit()
        writing.join()
    assert answers == [2]
    assert len(tried) == 2
    assert near.complaints == []


def _until_waiting(url: str) -> None:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        "AND datname = current_database()"
    )
    deadline = Deadline(20)
    with psycopg.connect(url, autocommit=True) as db:
        while db.execute(waiting).fetchone() == (0,) and not deadline.over:
            time.sleep(0.01)


def test_a_wrong_password_and_a_lack_of_time_are_tried_once(
    postgres: Postgres, hot_url: str, tmp_path: Path
) -> None:
    """What would be the same the next time: the server sees one connection."""
    with Proxy(("127.0.0.1", postgres.port)) as proxy:
        for url, mode in (
            (postgres.dsn("postgres", port=proxy.port).replace("postgres@", "nobody@"), "pass"),
            (postgres.dsn("nosuch", port=proxy.port), "pass"),
            (postgres.dsn("postgres", port=proxy.port), "blackhole"),
        ):
            proxy.mode = mode  # type: ignore[assignment]
            before = proxy.connections
            breaker = Breaker(str(tmp_path / f"breaker-{before}.json"))
            settings = Settings(data_dir=str(tmp_path), hot=HotSettings(url=url))
            with closing(Caches(settings, breaker)) as caches:
                assert caches.ask_hot(lambda hot: hot.count(), 1.5) is None
            assert proxy.connections == before + 1


def test_an_emergency_cache_that_hangs_up_once_is_asked_again(
    valkey: Valkey, tmp_path: Path
) -> None:
    with Proxy(("127.0.0.1", valkey.port)) as proxy:
        settings = Settings(
            data_dir=str(tmp_path), emergency=EmergencySettings(url=valkey.url_at(proxy.port))
        )
        with closing(Caches(settings, Breaker(str(tmp_path / "breaker.json")))) as caches:
            assert caches.ask_emergency(lambda cache: cache.put(cached()), Deadline(20))
            proxy.mode = "refuse"
            proxy.mode = "pass"
            assert caches.ask_emergency(lambda cache: cache.put(cached()), Deadline(20))
            assert caches.complaints == []


def test_work_that_hangs_is_left_and_the_next_is_done_by_another_thread() -> None:
    """Its late answer is discarded; a thread that is free again is taken anew."""
    late, done, discarded = threading.Event(), threading.Event(), list[int]()

    def discard(answer: int) -> None:
        discarded.append(answer)
        done.set()

    with pytest.raises(TimeoutError):
        Deadline(0.05).run(lambda: late.wait(60) + 1, discard)
    threads = {Deadline(60).run(threading.get_ident) for _ in range(20)}
    assert len(threads) <= 10
    assert threading.get_ident() not in threads
    late.set()
    assert done.wait(60)
    assert discarded == [2]
    with pytest.raises(ZeroDivisionError):
        Deadline(60).run(lambda: 1 // 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that fork leaves threads behind
def test_a_forked_process_waits_for_no_thread_of_its_parent() -> None:
    assert Deadline(60).run(lambda: 1) == 1
    child = os.fork()
    if not child:
        try:
            answer = Deadline(20).run(lambda: 7)
        finally:
            os._exit(0 if "answer" in locals() and answer == 7 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
