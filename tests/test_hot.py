"""The hot cache against a real PostgreSQL, and through a proxy that fails."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from annoris import hot as module
from annoris.errors import ConfigError, Locked, StorageError, TierDown
from annoris.hot import Hot, HotState, Stock
from annoris.model import Cached, Deadline, Held, Project, Run, Session, _idle
from tests.support.proxy import Proxy
from tests.support.servers import Postgres


def session(id: str = "", **known: object) -> Session:
    """A session as the catalog would list it."""
    id = id or str(uuid.uuid4())
    fields: dict[str, object] = {
        "path": f"sessions/demo/2026/11/{id[-8:]}.md",
        "oid": "a" * 40,
        "project": "demo",
        "name": "",
        "title": "A title",
        "status": "active",
        "priority": "high",
        "created": "2026-11-01T10:00:00Z",
        "saved": "2026-11-02T10:00:00Z",
        "size": 12,
        "etag": "e" * 16,
        "literal": "l" * 16,
        "body_md5": "b" * 32,
    }
    return Session(id=id, **(fields | known))  # type: ignore[arg-type]


def cached(id: str = "", position: int = 1, content: str = "sealed", **known: object) -> Cached:
    return Cached(session(id, **known), position, "c" * 32, content)


@pytest.fixture
def hot(hot_url: str) -> Iterator[Hot]:
    hot = Hot(hot_url, seconds=20)
    yield hot
    hot.close()


def ask(url: str, statement: str, *values: object) -> list[tuple[object, ...]]:
    """What a person at psql would see."""
    with psycopg.connect(url, autocommit=True, options="-c search_path=annoris") as db:
        cursor = db.execute(statement, values or None)
        return list(cursor.fetchall()) if cursor.description else []


@contextmanager
def opened(url: str, **options: object) -> Iterator[Hot]:
    hot = Hot(url, **options)  # type: ignore[arg-type]
    try:
        yield hot
    finally:
        hot.close()


# --- the schema --------------------------------------------------------------------------------


def test_preparing_twice_keeps_what_is_there(hot: Hot) -> None:
    row = cached()
    hot.put([row])
    hot.prepare()
    assert hot.get(row.session.id) == [row]


def test_an_empty_database_has_no_state_and_says_how_to_get_one(postgres: Postgres) -> None:
    with opened(postgres.create_database("empty")) as hot:
        assert hot.state() == HotState()
        with pytest.raises(StorageError, match="missing") as caught:
            hot.newest("demo")
        assert "annoris sync makes" in caught.value.hint


def test_two_at_once_prepare_one_schema(postgres: Postgres) -> None:
    url = postgres.create_database("at-once")
    errors: list[Exception] = []

    def prepare() -> None:
        try:
            with opened(url, seconds=20) as hot:
                hot.prepare()
        except Exception as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert ask(url, "SELECT version FROM state") == [(module.VERSION,)]


def test_another_version_is_made_anew_and_the_log_stays(hot: Hot, hot_url: str) -> None:
    hot.put([cached()])
    hot.log(Run(kind="sync", status="done", started="2026-11-24T10:00:00Z"))
    ask(hot_url, "UPDATE state SET version = -1")
    ask(hot_url, "ALTER TABLE sessions DROP COLUMN etag")
    with pytest.raises(StorageError, match="another version"):
        hot.put([cached()])
    hot.prepare()
    assert hot.count() == 0
    assert hot.put([cached()]) == 1
    assert [run.kind for run in hot.runs()] == ["sync"]


def test_tables_of_a_newer_annoris_are_left_alone(hot: Hot, hot_url: str) -> None:
    hot.put([cached()])
    ask(hot_url, "UPDATE state SET version = version + 1")
    with pytest.raises(StorageError, match="newer"):
        hot.prepare()
    assert ask(hot_url, "SELECT count(*) FROM sessions") == [(1,)]


def test_a_table_that_is_not_ours_is_never_dropped(postgres: Postgres) -> None:
    url = postgres.create_database("theirs")
    ask(url, "CREATE TABLE public.sessions AS SELECT 'precious' AS x")
    with opened(url, schema="public") as hot, pytest.raises(StorageError, match="exists") as caught:
        hot.prepare()
    assert "schema of its own" in caught.value.hint
    assert ask(url, "SELECT x FROM public.sessions") == [("precious",)]


def role_url(postgres: Postgres, url: str, role: str) -> str:
    if not ask(url, "SELECT 1 FROM pg_roles WHERE rolname = %s", role):
        ask(url, f"CREATE ROLE {role} LOGIN")
    return url.replace("postgres@", f"{role}@")


def test_a_role_that_owns_only_its_schema_needs_nothing_else(postgres: Postgres) -> None:
    url = postgres.create_database("owned")
    owner = role_url(postgres, url, "owner_only")
    ask(url, 'CREATE SCHEMA "mine; own" AUTHORIZATION owner_only')
    ask(url, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    with opened(owner, schema="mine; own", seconds=20) as hot:
        hot.prepare()
        assert hot.put([cached() for _ in range(60)]) == 60
        assert hot.count() == len(hot.entries()) == 60


def test_a_missing_permission_names_the_grant(postgres: Postgres) -> None:
    url = postgres.create_database("poor")
    poor = role_url(postgres, url, "poor")
    with opened(poor) as hot:
        with pytest.raises(StorageError) as caught:
            hot.prepare()
        assert 'GRANT CREATE, TEMPORARY ON DATABASE "poor" TO "poor"' in caught.value.hint
    ask(url, "CREATE SCHEMA annoris")
    with opened(poor) as hot:
        with pytest.raises(StorageError) as caught:
            hot.prepare()
        assert 'GRANT USAGE, CREATE ON SCHEMA "annoris" TO "poor"' in caught.value.hint
    with opened(url) as rich:
        rich.prepare()
    ask(url, "GRANT USAGE ON SCHEMA annoris TO poor")
    ask(url, "GRANT SELECT ON ALL TABLES IN SCHEMA annoris TO poor")
    with opened(poor) as hot:
        assert hot.count() == 0
        with pytest.raises(StorageError, match="permission denied") as caught:
            hot.put([cached()])
        assert "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES" in caught.value.hint


def test_the_tables_are_the_ones_that_were_asked_for(hot: Hot, hot_url: str) -> None:
    hot.put([row := cached()])
    columns = "id, project, file_path, content, checksum, github_sha, priority, status"
    [found] = ask(hot_url, f"SELECT {columns}, created_at::date::text FROM sessions")
    one = row.session
    assert found[:6] == (uuid.UUID(one.id), "demo", one.path, "sealed", "c" * 32, one.oid)
    assert found[6:] == ("high", "active", "2026-11-01")
    indexes = "".join(str(line) for line in ask(hot_url, "SELECT indexdef FROM pg_indexes"))
    for index in ("sessions USING btree (project", "(updated_at)", "(status, priority)"):
        assert index in indexes
    assert "projects USING btree (name)" in indexes
    assert "sync_log USING btree (started_at DESC)" in indexes


# --- writing and reading -----------------------------------------------------------------------


def test_what_is_put_is_what_is_found(hot: Hot) -> None:
    row = cached(name="auth", content="sealed é 語")
    assert hot.put([row]) == 1
    id = row.session.id
    for found in (
        hot.get(id),
        hot.newest("demo"),
        hot.named("demo", "auth"),
        hot.prefixed(id[:9]),
        hot.prefixed(id[-8:].upper()),
        hot.prefixed(id),
        list(hot.contents([id, str(uuid.uuid4())])),
    ):
        assert found == [row]
    assert hot.count() == 1
    assert hot.entries() == {id: Held(row.session.path, row.session.oid, 1, True, False)}
    for missed in (
        hot.get(str(uuid.uuid4())),
        hot.newest("other"),
        hot.named("demo", ""),
        hot.named("other", "auth"),
        hot.prefixed(id[:8] + "f-"),
        hot.prefixed("xyz"),
        hot.prefixed("%"),
    ):
        assert missed == []


def test_the_newest_is_the_one_saved_last_and_an_unknown_time_is_older(hot: Hot) -> None:
    old = cached(saved="2020-01-01T00:00:00Z")
    never = cached(saved="", created="")
    new = cached(saved="2026-11-24T23:59:59Z")
    hot.put([new, old, never])
    assert hot.newest("demo") == [new]
    assert hot.get(never.session.id) == [never]
    assert hot.put([], removed=[(new.session.id, 5)]) == 1
    assert hot.newest("demo") == [old]


def test_at_most_ten_are_found_newest_first(hot: Hot) -> None:
    rows = [cached(name="n", saved=f"2026-11-{day:02}T00:00:00Z") for day in range(1, 16)]
    hot.put(rows)
    assert hot.named("demo", "n") == rows[:-11:-1]


@pytest.mark.parametrize("others", [0, 80])
def test_an_older_revision_never_overwrites_a_newer_one(hot: Hot, others: int) -> None:
    """By one statement and by COPY alike."""
    crowd = [cached() for _ in range(others)]
    new = cached(position=7, oid="7" * 40, content="seven")
    id = new.session.id
    assert hot.put([new, *crowd]) == 1 + others
    assert hot.put([cached(id, 6, "six", oid="6" * 40), *crowd]) == 0
    assert hot.put([cached(id, 7, "other", oid="8" * 40), *crowd]) == 0
    assert hot.get(id) == [new]
    newer = cached(id, 8, "eight", oid="8" * 40)
    assert hot.put([newer, *crowd]) == 1
    assert hot.get(id) == [newer]
    assert hot.put([new, *crowd], force=True) == 1 + others
    assert hot.get(id) == [new]


def test_the_last_of_one_batch_is_the_highest_position(hot: Hot) -> None:
    rows = [cached(str(uuid.UUID(int=1)), position, str(position)) for position in (1, 3, 2)]
    assert hot.put(rows) == 1
    assert hot.get(rows[0].session.id) == [rows[1]]


def test_a_late_writer_does_not_bring_back_what_was_removed(hot: Hot) -> None:
    known, unknown = cached(position=3), cached(position=3)
    hot.put([known])
    gone = [(known.session.id, 4), (unknown.session.id, 4)]
    assert hot.put([], removed=gone) == 2
    assert hot.put([known, unknown]) == 0
    assert hot.count() == 0
    assert list(hot.contents(hot.entries())) == []
    held = hot.entries()[known.session.id]
    assert held == Held(known.session.path, known.session.oid, 4, False, True)
    assert hot.put([], removed=gone) == 0
    assert hot.put([replace(known, position=5)]) == 1
    assert hot.put([], removed=gone) == 0
    assert hot.get(known.session.id) == [replace(known, position=5)]


def test_content_is_evicted_after_its_days_and_comes_back(hot: Hot, hot_url: str) -> None:
    old = cached(saved="2020-01-01T00:00:00Z")
    read = cached(saved="2020-01-01T00:00:00Z")
    fresh = cached(saved=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    unknown = cached(saved="")
    hot.put([old, read, fresh, unknown])
    assert hot.get(read.session.id) == [read]
    assert hot.evict(30) == 1
    bare = replace(old, content="")
    assert list(hot.contents([old.session.id])) == [bare]
    assert hot.entries()[old.session.id].has_content is False
    assert hot.put([bare]) == 0
    assert hot.put([old], loaded=True) == 1
    assert hot.evict(30) == 0
    assert hot.get(old.session.id) == [old]


def test_a_row_without_content_keeps_that_of_its_own_revision_only(hot: Hot) -> None:
    row = cached()
    hot.put([row])
    moved = Cached(replace(row.session, path="sessions/x.md"), 1, row.checksum)
    assert hot.put([moved]) == 1
    assert hot.get(row.session.id) == [replace(moved, content="sealed")]
    other = Cached(replace(row.session, oid="f" * 40), 2, row.checksum)
    hot.put([other])
    assert hot.get(row.session.id) == [other]


def test_a_read_notes_the_day_and_no_more(hot: Hot, hot_url: str) -> None:
    row = cached()
    hot.put([row])
    noted = "SELECT accessed_at, xmin::text FROM sessions"
    assert ask(hot_url, "SELECT accessed_at FROM sessions") == [(None,)]
    hot.get(row.session.id)
    first = ask(hot_url, noted)
    hot.get(row.session.id)
    assert first[0][0] is not None
    assert ask(hot_url, noted) == first
    ask(hot_url, "UPDATE sessions SET accessed_at = now() - interval '25 hours'")
    hot.newest("demo")
    assert ask(hot_url, "SELECT accessed_at > now() - interval '1 hour' FROM sessions") == [(True,)]


def test_a_read_works_where_nothing_can_be_written(hot: Hot, hot_url: str) -> None:
    row = cached()
    hot.put([row])
    hot.close()
    name = urlsplit(hot_url).path[1:]
    ask(hot_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    assert hot.get(row.session.id) == [row]
    with pytest.raises(TierDown, match="read-only"):
        hot.put([row], force=True)


def test_a_read_does_not_wait_for_a_writer(hot: Hot, hot_url: str) -> None:
    row = cached()
    hot.put([row])
    with psycopg.connect(hot_url) as other:
        other.execute("UPDATE annoris.sessions SET title = 'in between'")
        with hot.within(Deadline(5)):
            assert hot.get(row.session.id) == [row]


def test_state_advances_and_never_goes_back(hot: Hot) -> None:
    hot.put([], commit="c5", position=5, master="origin")
    hot.put([], commit="c4", position=4)
    assert hot.state() == HotState(module.VERSION, "c5", 5, "", "origin")
    hot.put([], commit="c1", position=1, force=True)
    assert (hot.state().commit, hot.state().position) == ("c1", 1)


def test_rows_and_state_are_written_together_or_not_at_all(hot: Hot) -> None:
    bad = cached(created="not a time")
    with pytest.raises(StorageError, match="not a time"):
        hot.put([cached(), bad], commit="c", position=1)
    assert (hot.count(), hot.state().commit) == (0, "")

    def rows() -> Iterator[Cached]:
        yield from (cached() for _ in range(100))
        raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        hot.put(rows(), commit="c", position=1)
    assert (hot.count(), hot.state().commit) == (0, "")


def test_rows_are_taken_one_by_one(hot: Hot) -> None:
    """So that memory stays flat, whatever their number."""
    alive = most = 0

    class Content(str):
        __slots__ = ()

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Iterator[Cached]:
        nonlocal alive, most
        for _ in range(2000):
            alive += 1
            most = max(most, alive)
            yield cached(content=Content("x" * 8000))

    assert hot.put(rows()) == 2000
    assert most < 100


def test_large_contents_come_some_at_a_time_and_each_once(hot: Hot) -> None:
    sizes = (3_000_000, 0, 3_000_000, 1, 0, 5_000_000, 0, 2)
    rows = [
        cached(str(uuid.UUID(int=number)), content="x" * size) for number, size in enumerate(sizes)
    ]
    hot.put(rows)
    ids = [row.session.id for row in rows]
    assert list(hot.contents([*reversed(ids), str(uuid.uuid4())])) == rows


def test_reseal_replaces_the_envelope_that_it_was_made_from_and_no_other(hot: Hot) -> None:
    """A row that was written or evicted meanwhile keeps what it has; an empty envelope evicts."""
    same, newer, evicted, damaged = (str(uuid.uuid4()) for _ in range(4))
    hot.put(cached(id, content=f"old-{id}") for id in (same, newer, evicted, damaged))
    hot.put([cached(newer, 2, "newer", oid="b" * 40)])
    hot.reseal([(evicted, f"old-{evicted}", "")])
    swaps = [(id, f"old-{id}", f"new-{id}") for id in (same, newer, evicted)]
    assert hot.reseal([*swaps, (damaged, f"old-{damaged}", "")]) == 2
    held = {row.session.id: row.content for row in hot.contents([same, newer, evicted, damaged])}
    assert held == {same: f"new-{same}", newer: "newer", evicted: "", damaged: ""}
    assert hot.reseal([]) == 0


def test_a_row_is_discarded_only_as_it_was_seen(hot: Hot) -> None:
    row, empty = cached(position=3), cached(content="")
    hot.put([row, empty])
    for other in (replace(row, position=4), replace(row, checksum="d" * 32), cached(position=3)):
        assert hot.discard(other) == 0
    assert hot.discard(replace(row, content="other")) == 0
    assert hot.discard(row) == hot.discard(empty) == 1
    assert hot.entries() == {}
    assert hot.put([replace(row, position=1)]) == 1


def test_stock_names_what_was_saved_last_of_all_projects(hot: Hot) -> None:
    assert hot.stock() == Stock(0)
    never = cached(saved="", title="Never")
    hot.put([never, cached(title="Old")])
    newest = cached(project="other", title="Back\\slash", saved="2026-11-24T00:00:00Z")
    hot.put([newest], removed=[(never.session.id, 9)])
    assert hot.stock() == Stock(2, "Back\\slash", "2026-11-24T00:00:00Z")


def test_contents_are_counted_by_their_key(hot: Hot) -> None:
    hot.put([
        cached(content="annoris1.A256GCM.0a1b2c3d.nonce.text."),
        cached(content="annoris1.zA256GCM.0a1b2c3d." + "n" * 90),
        cached(content="annoris1.zA256GCM.ffffffff.0a1b2c3d.x."),
        cached(content=""),
    ])  # fmt: skip
    assert [hot.sealed_by(id) for id in ("0a1b2c3d", "ffffffff", "00000000")] == [2, 1, 0]


def test_a_trial_writes_nothing(hot: Hot, hot_url: str, postgres: Postgres) -> None:
    hot.put([row := cached()])
    hot.try_writing()
    assert hot.get(row.session.id) == [row]
    ask(hot_url, "UPDATE state SET version = -1")
    hot.prepare(trial=True)
    assert ask(hot_url, "SELECT version FROM state") == [(-1,)]
    with opened(postgres.create_database(f"trial-{uuid.uuid4().hex[:8]}")) as blank:
        blank.prepare(trial=True)
        assert blank.state() == HotState()
        assert abs(blank.clock()) < 30


def test_the_first_key_proof_is_the_one_that_counts(hot: Hot) -> None:
    assert hot.prove("one") == "one"
    assert hot.prove("two") == "one"
    assert hot.state().proof == "one"
    assert hot.prove("two", replacing="one") == "two"


ODD = [
    "back\\slash \\u0041",
    "nul\0",
    "\udcff\ud800",
    "语言 🎉",
    "'; DROP TABLE sessions; --",
    "%s",
]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("others", [0, 80])
def test_any_text_comes_back_as_it_was(hot: Hot, text: str, others: int) -> None:
    row = cached(path=text, project=text, name=text, title=text, status=text, priority=text)
    hot.put([row, *(cached() for _ in range(others))])
    assert hot.newest(text) == hot.named(text, text) == [row]
    assert hot.entries()[row.session.id].path == text


def test_long_words_fit_and_stay_apart(hot: Hot) -> None:
    one, two = (
        cached(project="p" * 300 + tail, name="n" * 9000 + tail, status="s" * 70_000)
        for tail in "ab"
    )
    hot.put([one, two])
    assert [row.session.id for row in hot.newest("p" * 300 + "a")] == [one.session.id]
    assert [row.session.id for row in hot.named("p" * 300 + "b", "n" * 9000 + "b")] == [
        two.session.id
    ]


def test_projects_are_written_by_name_and_keep_their_id(hot: Hot, hot_url: str) -> None:
    one = Project("one", target_revenue="1234.50", status="active")
    assert hot.projects([one, Project("two", id=str(uuid.UUID(int=2)))]) == 2
    [(first,)] = ask(hot_url, "SELECT id FROM projects WHERE name = 'one'")
    assert hot.projects([one]) == 0
    assert hot.projects([replace(one, status="done"), Project("zwei", str(uuid.UUID(int=2)))]) == 2
    assert ask(
        hot_url, "SELECT name, id, status, target_revenue::text FROM projects ORDER BY 1"
    ) == [
        ("one", first, "done", "1234.50"),
        ("zwei", uuid.UUID(int=2), "", None),
    ]
    with pytest.raises(StorageError, match="numeric"):
        hot.projects([Project("one", target_revenue="12345678901.00")])


def test_the_log_keeps_runs_newest_first(hot: Hot) -> None:
    odd = {"paths": ["\udcff", "nul\0", "\\u0000"], "n": 1}
    late = Run("sync", "done", "2026-11-24T10:00:00Z", "2026-11-24T10:00:01Z", "cron", "box", odd)
    early = Run("dump", "failed", "2026-11-23T10:00:00Z")
    assert hot.log(late) < hot.log(early)
    first, second = hot.runs()
    assert replace(second, id=0) == early
    assert replace(first, id=0) == replace(
        late, details={"paths": ["?", "nul\ufffd", "\\u0000"], "n": 1}
    )
    assert hot.runs(1) == [first]
    assert hot.runs(before=first) == [second]
    assert hot.runs(before=second) == []


def test_each_query_is_served_by_an_index_at_100_000_rows(
    hot: Hot, hot_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was really asked, the plan."""
    ask(
        hot_url,
        """
        INSERT INTO sessions (id, project, file_path, content, name, updated_at, synced_at,
            position, deleted_at)
        SELECT md5(n::text)::uuid, 'p' || n % 100, n::text, repeat('x', 300), 'n' || n,
            now() - n * interval '1 minute', now(), n, CASE WHEN n % 50 = 0 THEN now() END
        FROM generate_series(1, 100000) AS n
        """,
    )
    ask(
        hot_url,
        "INSERT INTO sync_log (started_at, kind, status, source, host, details) SELECT "
        "now() - n * interval '1 minute', '', '', '', '', '{}' FROM generate_series(1, 9999) n",
    )
    ask(hot_url, "VACUUM ANALYZE")
    asked: list[module.Statement] = []
    run = Hot._run

    def noting(self: Hot, *statements: module.Statement, check: bool = True) -> object:
        asked.extend(statements)
        return run(self, *statements, check=check)

    monkeypatch.setattr(Hot, "_run", noting)
    id = str(uuid.UUID(ask(hot_url, "SELECT md5('7')")[0][0]))  # type: ignore[arg-type]
    assert [row.session.path for row in hot.get(id)] == ["7"]
    assert [row.session.path for row in hot.newest("p7")] == ["7"]
    assert [row.session.path for row in hot.named("p7", "n7")] == ["7"]
    assert [row.session.path for row in hot.prefixed(id[:9])] == ["7"]
    assert [row.session.path for row in hot.prefixed(id[-8:])] == ["7"]
    assert len(list(hot.contents([id]))) == 1
    assert set(hot.near([id], ["9"], 99_999, days=30)) == {
        str(uuid.UUID(found[0]))  # type: ignore[arg-type]
        for n in ("7", "9", "100000")
        for found in ask(hot_url, f"SELECT md5('{n}')")
    }
    assert hot.count() == 98_000
    assert len(hot.runs(20)) == 20
    hot.put([cached(id)], removed=[(id, 1)])
    assert hot.evict(69) > 500
    hot.discard(cached(id))
    for statement, values in asked:
        plan = "\n".join(str(line) for (line,) in _plan(hot_url, statement, values))
        assert not re.search(r"Seq Scan on (sessions|sync_log)", plan), f"{statement}\n{plan}"


def _plan(url: str, statement: str, values: Any) -> list[tuple[object, ...]]:
    with psycopg.connect(url, options="-c search_path=annoris") as db:
        return list(db.execute("EXPLAIN " + statement, values))


# --- time limits and failures ------------------------------------------------------------------


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", postgres.port)) as proxy:
        yield proxy


@pytest.fixture
def far(postgres: Postgres, proxy: Proxy, hot_url: str) -> Iterator[Hot]:
    """A hot cache behind the proxy."""
    name = urlsplit(hot_url).path[1:]
    url = postgres.dsn(name, port=proxy.port).replace("postgres@", "postgres:secr3t@")
    with opened(url, seconds=0.6) as hot:
        yield hot


def ends(call: Callable[[], object], within: float = 0.6) -> TierDown:
    """The TierDown that a call ends with by its limit."""
    started = time.monotonic()
    with pytest.raises(TierDown) as caught:
        call()
    assert time.monotonic() - started < within + 0.5
    chain: BaseException | None = caught.value
    while chain:
        assert "secr3t" not in f"{chain} {chain!r}"
        chain = chain.__cause__
    return caught.value


def test_a_refusing_server_is_down_at_once_and_back_at_once(far: Hot, proxy: Proxy) -> None:
    proxy.mode = "refuse"
    assert "refused" in ends(far.count, within=0).message
    proxy.mode = "pass"
    assert far.count() == 0
    proxy.mode = "refuse"
    ends(far.count, within=0)
    proxy.mode = "pass"
    assert far.count() == 0


@pytest.mark.parametrize("mode", ["blackhole", "drip"])
@pytest.mark.parametrize("connected", [False, True])
def test_a_silent_server_costs_the_limit_once(
    far: Hot, proxy: Proxy, mode: str, connected: bool
) -> None:
    if connected:
        far.count()
    proxy.mode = mode  # type: ignore[assignment]
    assert "in time" in ends(far.count).message
    assert "in time" in ends(lambda: far.put([cached()]), within=-0.45).message
    proxy.mode = "pass"
    ends(far.count, within=-0.45)
    far.close()
    assert far.count() == 0


def test_a_shared_deadline_holds_for_all_calls_together(far: Hot, proxy: Proxy) -> None:
    with opened(far._url, seconds=60) as hot:
        hot.count()
        proxy.mode = "blackhole"

        def both() -> None:
            with hot.within(Deadline(0.3)):
                with pytest.raises(TierDown):
                    hot.count()
                hot.ping()

        ends(both, within=0.3)


@pytest.mark.parametrize("after", [0, 1, 30, 200])
def test_an_answer_that_is_cut_is_an_error_and_the_next_call_works(
    far: Hot, proxy: Proxy, after: int
) -> None:
    far.put([row := cached(content="x" * 10_000)])
    proxy.cut_after = after
    proxy.mode = "cut"
    ends(lambda: far.get(row.session.id))
    ends(far.entries)
    ends(lambda: list(far.contents([row.session.id])))
    ends(lambda: far.put([cached() for _ in range(100)]))
    proxy.mode = "pass"
    assert far.get(row.session.id) == [row]


def test_bulk_writing_into_a_black_hole_ends_too(far: Hot, proxy: Proxy) -> None:
    far.count()

    def rows() -> Iterator[Cached]:
        for n in range(3000):
            if n == 200:
                proxy.mode = "blackhole"
            yield cached(content="x" * 8000)

    ends(lambda: far.put(rows()), within=0.8)
    proxy.mode = "pass"
    far.close()
    assert far.count() == 0


def test_waiting_for_a_lock_ends_by_the_limit(far: Hot, hot_url: str) -> None:
    far.put([row := cached()])
    with psycopg.connect(hot_url) as other:
        other.execute("LOCK TABLE annoris.sessions")
        for call in (far.count, far.entries, lambda: far.put([row], force=True)):
            far.close()
            ends(call)
    far.close()
    assert far.get(row.session.id) == [row]


def test_the_server_itself_gives_up_what_nobody_waits_for(far: Hot, hot_url: str) -> None:
    far.count()
    with psycopg.connect(hot_url, autocommit=True) as other, other.transaction():
        other.execute("LOCK TABLE annoris.sessions")
        ends(far.count)
        time.sleep(0.2)
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )
        assert other.execute(waiting).fetchone() == (0,)


def test_a_server_that_is_killed_during_a_query_is_down(postgres: Postgres, hot_url: str) -> None:
    with opened(hot_url, seconds=20) as hot, psycopg.connect(hot_url) as other:
        hot.put([row := cached()])
        other.execute("LOCK TABLE annoris.sessions")
        killing = threading.Timer(0.2, postgres.kill)
        killing.start()
        ends(lambda: hot.get(row.session.id), within=5)
        killing.join()
        ends(hot.count, within=0)
        other.close()
        postgres.start()
        assert hot.get(row.session.id) == [row]


def test_an_administrator_ends_the_connection_and_the_next_call_opens_one(
    far: Hot, hot_url: str
) -> None:
    far.count()
    ask(hot_url, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE application_name = 'annoris' AND datname = current_database()")  # fmt: skip
    ends(far.count)
    assert far.count() == 0


def test_a_full_house_is_down(far: Hot, hot_url: str) -> None:
    name = urlsplit(hot_url).path[1:]
    ask(hot_url, f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
    ask(hot_url, "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'guest') THEN "
        "CREATE ROLE guest LOGIN; END IF; END $$")  # fmt: skip
    with opened(hot_url.replace("postgres@", "guest@")) as hot:
        assert "too many connections" in ends(hot.count, within=1).message


def test_a_call_is_one_round_trip(far: Hot, proxy: Proxy) -> None:
    """With an answer delayed by 0.2 s, each call takes one delay and not two."""
    far.put([row := cached(name="n")])
    far._seconds = 10
    proxy.delay = 0.2
    id = row.session.id
    for call in (
        lambda: far.get(id),
        lambda: far.newest("demo"),
        lambda: far.named("demo", "n"),
        lambda: far.prefixed(id[:8]),
        lambda: far.put([cached() for _ in range(50)], removed=[(id, 9)], commit="c", position=1),
        far.state,
        far.count,
    ):
        started = time.monotonic()
        call()
        assert time.monotonic() - started < 0.39


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secr3t/1@host:5432/x",
        "host=x password=secr3t port",
        "postgresql://u:a@secr3t@host/x",
        "postgresql://u:secr3t%zz@host/x",
    ],
)
def test_a_url_that_is_none_says_so_without_its_password(url: str) -> None:
    with opened(url, seconds=2) as hot, pytest.raises(ConfigError, match="URL") as caught:
        hot.count()
    assert "secr3t" not in f"{caught.value!r} {caught.value.__cause__!r} {hot!r}"


def test_the_environment_says_where_when_no_url_does(
    hot_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(hot_url)
    for name, value in (
        ("HOST", parts.hostname),
        ("PORT", parts.port),
        ("USER", parts.username),
        ("DATABASE", parts.path[1:]),
    ):
        monkeypatch.setenv(f"PG{name}", str(value))
    with opened("") as hot:
        assert hot.count() == 0
        assert 0 < hot.ping() < 5


def test_nothing_is_left_behind_by_cut_calls(far: Hot, proxy: Proxy) -> None:
    proxy.mode = "blackhole"
    ends(far.count)
    far.close()
    proxy.mode = "pass"
    far.count()
    far.close()
    deadline = Deadline(5)

    def busy() -> bool:
        names = [thread.name for thread in threading.enumerate()]
        return any("Timer" in n for n in names) or sum("_serve" in n for n in names) > len(_idle)

    while busy():
        assert not deadline.over
        time.sleep(0.02)


def test_an_exclusive_lock_is_waited_for_and_gone_with_its_holder(hot_url: str) -> None:
    """Of two machines the second waits, at most its limit; another thing is not locked."""
    one, two = Hot(hot_url, seconds=20), Hot(hot_url, seconds=0.5)
    with one.exclusive("sync"):
        with pytest.raises(TierDown), two.exclusive("sync"):
            pass
        two.close()
        with pytest.raises(Locked), Hot(hot_url, seconds=20).exclusive("sync", wait=False):
            pass
        with Hot(hot_url, seconds=20).exclusive("dump"):
            pass
    with Hot(hot_url, seconds=20).exclusive("sync", wait=False):
        pass
