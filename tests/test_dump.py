"""Dumps with real parts: made, drilled, refused, restored; with any tier down; killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annoris import dumpfile, dumps
from annoris.archive import Archive
from annoris.dumpfile import MANIFEST, Line, Tally
from annoris.envelope import new_key
from annoris.hot import Hot
from annoris.master import Master
from annoris.model import Cached, Deadline, Dumped, Run
from annoris.settings import MasterSettings
from tests.support import crash
from tests.support.githttp import GitServer, delete_branch, files, force_push, head
from tests.support.machine import Machine, Ran
from tests.support.servers import Postgres
from tests.support.tiers import Tiers
from tests.test_hot import cached

Make = Callable[..., Machine]
BRANCH = "annoris-dumps"
CANARY = "canary-5519-kiebitz"
BODIES = (f"# One\n\nThe word is {CANARY}.\n".encode(), "# Zwei 😀\n\nB\\n\r\n".encode())
STEPS = 10_000 if os.environ.get("ANNORIS_FULL") else 3


@contextlib.contextmanager
def opened(machine: Machine) -> Iterator[Archive]:
    with contextlib.closing(machine.archive()) as archive:
        yield archive


def dump(machine: Machine, to: str = "") -> Dumped:
    with opened(machine) as archive:
        return dumps.dump(archive, to)


def run(machine: Machine, *arguments: str | Path) -> Ran:
    """The command in a fork of this process: no Python to start."""
    return crash.run(machine, *map(str, arguments))


def rows(url: str, *, log: bool = True) -> list[Line]:
    """What is in the database; without the log, which every run adds to."""
    with contextlib.closing(Hot(url, seconds=30)) as hot:
        return [line for line in hot.export() if log or not line[0].endswith("_log")]


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True, options="-c search_path=annoris") as db:
        cursor = db.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def sync_log(url: str) -> list[tuple[Any, ...]]:
    return ask(
        url, "SELECT started_at, finished_at, kind, status, details FROM sync_log ORDER BY id"
    )


def shelve(remote: Path, lines: list[Line], at: str = "2030-01-01T00:00:00Z") -> str:
    """Put a dump of these rows on the branch, as a newer machine would; answers its name."""
    tally, made = Tally(), dict(dumpfile.split(lines))
    for name, data in made.items():
        tally.add(name, data)
    manifest = tally.manifest().encoded()
    name = dumpfile.name_of(manifest, at)
    there = files(remote, BRANCH)
    new = {f"{name}/{file}": data for file, data in {MANIFEST: manifest, **made}.items()}
    force_push(remote, {**there, **new}, branch=BRANCH)
    return name


@pytest.fixture
def here(make: Make, tiers: Tiers) -> Machine:
    """A machine with two sessions in all tiers, one of them evicted, and a deleted one."""
    laptop = make()
    receipts = laptop.save(*BODIES, b"# Gone\n\nsoon\n")
    with opened(laptop) as archive:
        archive.delete(receipts[2].id, "")
    ask(tiers.direct, f"UPDATE sessions SET content = NULL WHERE id = '{receipts[1].id}'")
    with contextlib.closing(Hot(tiers.direct)) as hot:
        hot.log(Run("sync", "ok", "2026-11-01T10:00:00Z", details={"text": "a\\b\n\t\0😀'\""}))
        hot.log(Run("sync", "ok", "2026-11-02T10:00:00Z", "2026-11-02T10:00:01Z", "cron", "here"))
    return laptop


# --- the same data, the same bytes ---------------------------------------------------------------


def test_two_databases_with_equal_data_give_the_same_bytes(
    here: Machine, tiers: Tiers, postgres: Postgres, tmp_path: Path
) -> None:
    """Whatever the order in which their rows lie on disk, and the time zone of the server."""
    before = list(dumpfile.split(rows(tiers.direct)))
    name = f"hot-{uuid.uuid4().hex[:8]}"
    other = postgres.create_database(name, tiers.direct.rpartition("/")[2])
    for table in ("sessions", "sync_log"):
        ask(other, f"CREATE TABLE kept AS SELECT * FROM {table} ORDER BY id DESC")
        ask(other, f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept")
    ask(other, f"ALTER DATABASE \"{name}\" SET timezone TO 'Asia/Kathmandu'")
    ask(other, f"ALTER DATABASE \"{name}\" SET datestyle TO 'SQL, DMY'")
    assert list(dumpfile.split(rows(other))) == before


@pytest.fixture
def scratch(hot_url: str) -> Iterator[Hot]:
    with contextlib.closing(Hot(hot_url, seconds=30)) as hot:
        yield hot


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(), st.text(), st.text(st.characters(codec="utf-8")))
def test_odd_text_comes_back_as_it_was(scratch: Hot, title: str, name: str, detail: str) -> None:
    """Backslashes, line breaks, NULs, lone surrogates, emoji; empty or NULL stay what they are."""
    id = str(uuid.uuid4())
    scratch.put([cached(id, title=title, name=name, content=""), cached(status=title)])
    scratch.log(Run("sync", title, "2026-11-01T10:00:00Z", details={detail: [title, None]}))
    made = list(scratch.export())
    assert list(scratch.rehearse(made)) == made
    assert sum(json.loads(line).get("id") == id for _, line in made) == 1


def test_every_table_is_in_a_dump_or_known_to_be_left_out(here: Machine, tiers: Tiers) -> None:
    """Left out is what may be lost: which alerts people were told."""
    dump(here)
    here.run("sync")
    tables = {name for (name,) in ask(tiers.direct, "SELECT tablename::text FROM pg_tables "
              "WHERE schemaname = 'annoris'")}  # fmt: skip
    dumped = {table for table, _ in rows(tiers.direct)}
    assert dumped - {"dump_log"} == tables - {"alerts"}


# --- dump ----------------------------------------------------------------------------------------


def test_a_dump_that_would_say_the_same_adds_nothing_and_says_so(
    here: Machine, remote: Path
) -> None:
    first = run(here, "dump")
    assert (first.code, first.err) == (0, "")
    name = first.text.split()[2].rstrip(":")
    assert "2 runs" in first.text
    tip = head(remote, BRANCH)
    again = run(here, "dump", "--json")
    assert (again.code, again.json["dump"]["pushed"]) == (0, False)
    assert again.json["dump"]["name"] == name
    assert head(remote, BRANCH) == tip
    assert run(here, "dump", "--quiet").out == b""
    here.save(b"# Three\n\nnew\n")
    assert run(here, "dump", "--json").json["dump"]["pushed"] is True


def test_no_text_of_a_session_stands_in_a_dump(here: Machine, remote: Path) -> None:
    dump(here, str(here.desk / "copy.tar"))
    whole = b"".join(files(remote, BRANCH).values()) + (here.desk / "copy.tar").read_bytes()
    assert b"Zwei" in whole  # titles are metadata
    assert CANARY.encode() not in whole
    assert b"annoris1.zA256GCM." in whole


def test_a_clone_of_master_does_not_carry_the_dumps(
    here: Machine, make: Make, remote: Path
) -> None:
    """Not the one here, nor another machine's, nor what they know of the remote."""
    dump(here)
    other = make("other")
    assert other.sync().code == 0
    oids = {f"{head(remote, BRANCH)}^{{tree}}", head(remote, BRANCH)}
    for laptop in (here, other):
        clone = laptop.data / "clone.git"
        refs = subprocess.check_output(["git", "-C", clone, "for-each-ref"], text=True)
        assert BRANCH not in refs
        for oid in oids:
            command = ["git", "-C", str(clone), "cat-file", "-e", oid]
            assert subprocess.run(command, capture_output=True, check=False).returncode != 0
        assert len(other.loads([row.id for row in _sessions(other)])) == 2
    assert set(files(remote)) & set(files(remote, BRANCH)) == set()


def _sessions(machine: Machine) -> list[Any]:
    with opened(machine) as archive:
        return archive.sessions(everything=True)[0]


def test_what_retention_drops_leaves_branch_and_machine(here: Machine, remote: Path) -> None:
    """The newest verified one stays, old as it is; what is not ours on the branch too."""
    lines = [("state", '{"one": true, "version": 1}')]
    names = [shelve(remote, lines, f"2020-01-{day:02}T03:00:00Z") for day in (5, 6, 7)]
    there = files(remote, BRANCH)
    there |= {"README.md": b"mine\n", f"{names[0]}.verified": b"2020-01-05T04:00:00Z\n"}
    force_push(remote, there, branch=BRANCH)
    here.environment |= {f"ANNORIS_DUMP_{unit}": "1" for unit in ("DAILY", "WEEKLY", "MONTHLY")}
    ran = run(here, "dump", "--json").json["dump"]
    assert ran["dropped"] == names[1:]
    left = files(remote, BRANCH)
    assert {path.partition("/")[0] for path in left} == {
        "README.md", names[0], f"{names[0]}.verified", ran["name"],
    }  # fmt: skip
    store = str(here.data / "dumps.git")
    commits = subprocess.check_output(["git", "-C", store, "rev-list", "--all", "--reflog"])
    assert commits.split() == [head(remote, BRANCH).encode()]


def test_dumps_stay_in_order_when_a_clock_went_wrong(here: Machine, remote: Path) -> None:
    future = shelve(remote, [("state", '{"one": true, "version": 1}')], "2099-12-31T23:59:59Z")
    assert dumpfile.made_at(dump(here).name) > dumpfile.made_at(future)
    assert run(here, "dump", "list").text.split()[0] > future


def test_two_machines_that_dump_at_once_both_succeed(
    here: Machine, make: Make, tiers: Tiers, remote: Path, postgres: Postgres
) -> None:
    """Each looks after a database of its own here, so that both have something to add."""
    other = make("other")
    other.environment["ANNORIS_HOT_URL"] = postgres.create_database(
        f"hot-{uuid.uuid4().hex[:8]}", tiers.direct.rpartition("/")[2]
    )
    ask(other.environment["ANNORIS_HOT_URL"], "UPDATE sessions SET title = 'other'")
    running = [laptop.start("dump", "--json") for laptop in (here, other)]
    answers = [json.loads(process.communicate(timeout=60)[0])["dump"] for process in running]
    assert [answer["pushed"] for answer in answers] == [True, True]
    left = {path.partition("/")[0] for path in files(remote, BRANCH)}
    # Both are of one day, of which the last one stays.
    assert max(answer["name"] for answer in answers) in left


def test_a_change_of_the_branch_meanwhile_is_built_upon(here: Machine, remote: Path) -> None:
    dump(here)
    with opened(here) as archive:
        store = dumps._store(archive)
        asked = []

        def change(tree: dumps.Tree) -> tuple[dumps.Tree, int]:
            asked.append(len(tree))
            if len(asked) == 1:
                force_push(remote, {**files(remote, BRANCH), "theirs": b"x"}, branch=BRANCH)
            return {**tree, "ours": store.store(b"y")}, len(asked)

        assert dumps._change(store, Deadline(60), "change", change) == 2
    assert asked[1] == asked[0] + 1
    assert {"ours", "theirs"} <= files(remote, BRANCH).keys()


def test_a_lost_acknowledgement_makes_no_second_dump(
    server: GitServer, machine: Make, hot_url: str
) -> None:
    laptop = machine(remote=server.url, hot_url=hot_url, hot_seconds="20")
    laptop.save(*BODIES)
    server.lose_ack = 1
    ran = run(laptop, "dump")
    assert (ran.code, server.lose_ack) == (0, 0)
    assert len(run(laptop, "dump", "list").text.splitlines()) == 1
    assert run(laptop, "dump", "--drill").code == 0
    server.status = 503
    ran = run(laptop, "dump")
    assert (ran.code, "was not pushed" in ran.err) == (5, True)
    assert run(laptop, "dump", "--drill").code == 5


# --- drill ---------------------------------------------------------------------------------------


def test_a_drill_marks_the_newest_dump_for_every_machine(
    here: Machine, make: Make, tiers: Tiers
) -> None:
    """It says how old the dump is, how long it took, and what is otherwise by now."""
    dump(here)
    here.save(b"# Three\n\nnew\n")
    before = rows(tiers.direct, log=False)
    ran = run(here, "dump", "--drill")
    assert (ran.code, ran.err) == (0, "")
    assert "came back as they were, 1 content opened" in ran.text
    assert "got 1 row" in ran.text
    assert rows(tiers.direct, log=False) == before
    schemas = ask(tiers.direct, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'annoris%'")
    assert schemas == [("annoris",)]
    assert not (here.data / "drill.git").exists()
    (listed,) = run(make("other"), "dump", "list", "--json").json["dumps"]
    assert listed["verified"]
    assert run(here, "dump", "--drill", "--quiet").out == b""


def test_a_drill_fetches_what_is_there_and_finds_a_flipped_row(
    here: Machine, tiers: Tiers, remote: Path
) -> None:
    """A restore of it is refused too, before anything is touched."""
    name = dump(here).name
    there = files(remote, BRANCH)
    path = f"{name}/sessions.0001.jsonl"
    force_push(remote, {**there, path: there[path].replace(b"Zwei", b"Drei")}, branch=BRANCH)
    ran = run(here, "dump", "--drill")
    assert ran.code == 9
    assert "sessions.0001.jsonl is damaged" in ran.err
    before = rows(tiers.direct, log=False)
    ran = run(here, "restore", "latest", "--force")
    assert ran.code == 9
    assert "nothing was changed" in ran.err
    assert rows(tiers.direct, log=False) == before
    with opened(here) as archive:
        assert [run.status for run in archive.runs.recent(2)] == ["failed", "failed"]


def test_a_drill_finds_a_row_that_does_not_come_back_as_it_was(
    here: Machine, tiers: Tiers, remote: Path
) -> None:
    dump(here)
    name, line = rows(tiers.direct)[-1]
    odd = line.replace('"2026-11-02T10:00:00+00:00"', '"2026-11-02T11:00:00+01:00"')
    assert odd != line
    shelve(remote, [*rows(tiers.direct)[:-1], (name, odd)])
    ran = run(here, "dump", "--drill")
    assert ran.code == 9
    assert "0 rows missing, 1 different" in ran.err


def test_a_drill_finds_content_that_does_not_open(here: Machine, tiers: Tiers) -> None:
    ask(tiers.direct, "UPDATE sessions SET content = overlay(content PLACING 'XXXX' FROM 60 FOR 4)")
    dump(here)
    ran = run(here, "dump", "--drill")
    assert ran.code == 9
    assert "1 content" in ran.err


def test_a_drill_finds_a_broken_object_of_the_remote(here: Machine, remote: Path) -> None:
    """The copy that this machine has does not hide it."""
    name = dump(here).name
    oid = subprocess.check_output(
        ["git", "-C", str(remote), "rev-parse", f"{BRANCH}:{name}/sessions.0001.jsonl"], text=True
    ).strip()
    path = remote / "objects" / oid[:2] / oid[2:]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-20])
    ran = run(here, "dump", "--drill")
    assert ran.code == 9
    assert "does not give its dumps" in ran.err
    assert run(here, "dump", "list", "--json").json["dumps"][0]["verified"] == ""


# --- restore -------------------------------------------------------------------------------------


def test_a_lost_database_comes_back_whole(
    here: Machine, make: Make, tiers: Tiers, postgres: Postgres
) -> None:
    """dump, dropdb, createdb, restore, sync, verify: log, tombstones, evicted rows included."""
    before, log = rows(tiers.direct), sync_log(tiers.direct)
    dump(here)
    name = tiers.direct.rpartition("/")[2]
    with psycopg.connect(postgres.dsn(), autocommit=True) as db:
        db.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    assert postgres.create_database(name) == tiers.direct
    laptop = make("new")
    ran = run(laptop, "restore", "latest")
    assert (ran.code, ran.err) == (0, "")
    assert "annoris sync" in ran.text
    assert rows(tiers.direct)[1:] == before  # but for the row that says so
    assert sync_log(tiers.direct)[:-1] == log
    assert laptop.sync().code == 0
    verified = run(laptop, "verify", "--json")
    assert (verified.json["audit"]["findings"], verified.code) == ([], 0)
    (one,) = [row for row in _sessions(laptop) if row.title == "One"]
    assert run(laptop, "load", one.id, "--from", "hot").out.endswith(BODIES[0])
    with contextlib.closing(Hot(tiers.direct)) as hot:
        assert {row.deleted for row in hot.entries().values()} == {True, False}


def test_a_database_with_rows_is_replaced_only_by_force_and_its_log_stays(
    here: Machine, tiers: Tiers, postgres: Postgres
) -> None:
    """Runs that are there already are not doubled; others keep their place, under any id."""
    dump(here)
    with contextlib.closing(Hot(tiers.direct)) as hot:
        hot.put([Cached(cached(title="Late").session, 9, "c" * 32)])
        hot.log(Run("sync", "ok", "2026-11-03T10:00:00Z"))
    log = sync_log(tiers.direct)
    ran = run(here, "restore", "latest")
    assert ran.code == 2
    assert "4 sessions, 0 projects, 4 sync_log rows" in ran.err
    dry = run(here, "restore", "latest", "--force", "--dry-run", "--json")
    assert (dry.code, dry.json["restore"]["before"]["sessions"]) == (0, 4)
    assert ask(tiers.direct, "SELECT count(*) FROM sessions") == [(4,)]
    for _ in range(2):
        assert run(here, "restore", "latest", "--force").code == 0
        assert ask(tiers.direct, "SELECT count(*) FROM sessions") == [(3,)]
        assert sync_log(tiers.direct)[: len(log)] == log
    assert ask(tiers.direct, "SELECT count(*) FROM sync_log WHERE kind = 'sync'") == [(3,)]
    other = postgres.create_database(f"hot-{uuid.uuid4().hex[:8]}", "hot")
    with contextlib.closing(Hot(other)) as hot:  # its ids begin with 1, too
        hot.log(Run("verify", "ok", "2026-12-01T10:00:00Z"))
    here.environment["ANNORIS_HOT_URL"] = other
    assert run(here, "restore", "latest", "--force").code == 0
    kinds = ask(other, "SELECT kind FROM sync_log ORDER BY id")
    assert sorted(kind for (kind,) in kinds) == ["restore", "sync", "sync", "verify"]
    with contextlib.closing(Hot(other)) as hot:
        assert hot.log(Run("sync", "ok", "2026-12-01T10:00:00Z")) > len(kinds)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "no uuid", "name": "x"}', "uuid"),
        ('{"id": "01900000-0000-7000-8000-000000000009", "no_column": 1}', "no_column"),
    ],
)
def test_a_row_that_does_not_fit_leaves_the_database_as_it_was(
    here: Machine, tiers: Tiers, remote: Path, line: str, says: str
) -> None:
    """All or nothing, even when the dump is whole."""
    before = rows(tiers.direct, log=False)
    shelve(
        remote, [("projects", line), *[row for row in rows(tiers.direct) if row[0] > "projects"]]
    )
    ran = run(here, "restore", "latest", "--force")
    assert ran.code == 74
    assert says in ran.err
    assert rows(tiers.direct, log=False) == before


def test_a_dump_of_older_tables_is_restored_and_of_newer_ones_is_not(
    here: Machine, tiers: Tiers, remote: Path
) -> None:
    def of(version: int) -> Iterator[Line]:
        for table, line in rows(tiers.direct):
            row = json.loads(line) | ({"version": version} if table == "state" else {})
            yield table, json.dumps({key: row[key] for key in row if key != "literal"})

    before = rows(tiers.direct, log=False)
    shelve(remote, list(of(0)))
    assert run(here, "dump", "--drill").code == 0
    assert run(here, "restore", "latest", "--force").code == 0
    expected = [json.loads(line) | {"literal": ""} for _, line in before]
    after = [json.loads(line) | {"literal": ""} for _, line in rows(tiers.direct, log=False)]
    assert after == expected
    shelve(remote, list(of(99)), "2030-01-02T00:00:00Z")
    for command in (("restore", "latest", "--force"), ("dump", "--drill")):
        ran = run(here, *command)
        assert ran.code == 2
        assert "newer Annoris" in ran.err


def test_a_machine_without_the_key_is_told_before_anything_is_done(
    here: Machine, make: Make, tiers: Tiers
) -> None:
    dump(here, str(here.desk / "copy.tar"))
    before = rows(tiers.direct, log=False)
    stranger = make("stranger")
    for key in (new_key().text(), ""):
        stranger.environment["ANNORIS_KEY"] = key
        for command in (("restore", str(here.desk / "copy.tar")), ("dump", "--drill")):
            ran = run(stranger, *command)
            assert ran.code == 8
            assert "is sealed with key" in ran.err
    assert rows(tiers.direct, log=False) == before
    ran = run(stranger, "restore", str(here.desk / "copy.tar"), "--force")
    assert ran.code == 0


# --- tiers that are down, wrong use --------------------------------------------------------------


def test_without_a_hot_cache_there_is_nothing_to_dump(machine: Make) -> None:
    laptop = machine()
    laptop.save(BODIES[0])
    for command in (("dump",), ("dump", "--drill"), ("restore", "latest")):
        ran = run(laptop, *command)
        assert ran.code == 2
        assert "no hot cache is configured" in ran.err
    ran = run(laptop, "dump", "list")
    assert (ran.code, ran.out) == (0, b"")


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
def test_a_hot_cache_that_is_down_is_5(here: Machine, tiers: Tiers, mode: str) -> None:
    """And told within its limit, not that of a dump; what is on the branch is still listed."""
    dump(here)
    here.environment["ANNORIS_HOT_SECONDS"] = "0.7"
    tiers.hot.mode = mode  # type: ignore[assignment]
    for command in (("dump",), ("dump", "--drill"), ("restore", "latest")):
        ran = run(here, *command)
        assert ran.code == 5
        assert "PostgreSQL" in ran.err
    assert len(run(here, "dump", "list").text.splitlines()) == 1


def test_a_remote_that_is_down_is_5_and_the_copy_is_whole(
    here: Machine, make: Make, tiers: Tiers
) -> None:
    """What this machine knows of the branch can still be restored; it says that it may be old."""
    dump(here)
    here.save(b"# Three\n\nnew\n")
    tiers.set(master=False)
    copy = here.desk / "copy.tar"
    ran = run(here, "dump", "--to", copy)
    assert ran.code in (5, 10)
    assert "was not pushed" in ran.err
    assert str(copy) in ran.err
    ran = run(here, "restore", copy, "--force", "--json")
    assert (ran.code, ran.json["restore"]["rows"]["sessions"]) == (0, 4)
    listed = run(here, "dump", "list")
    assert listed.code == 0
    assert "there may be newer ones" in listed.err
    ran = run(here, "restore", "latest", "--force")
    assert ran.code == 0
    assert "there may be a newer dump" in ran.err
    for command in (("dump", "list"), ("restore", "latest", "--force")):
        assert run(make("blank"), *command).code in (5, 10)


def test_a_protected_branch_is_10_and_says_what_to_allow(here: Machine, remote: Path) -> None:
    hook = remote / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'error: GH006: Protected branch update failed' >&2\nexit 1\n")
    hook.chmod(0o755)
    ran = run(here, "dump")
    assert ran.code == 10
    assert "replace what it holds (force push)" in ran.err


def test_without_a_remote_the_branch_lies_in_the_clone(hot_url: str, machine: Make) -> None:
    laptop = machine(hot_url=hot_url, hot_seconds="20")
    ran = run(laptop, "dump")
    assert (ran.code, "nothing to dump" in ran.err) == (2, True)
    laptop.save(*BODIES)
    clone = laptop.data / "clone.git"
    name = dump(laptop).name
    assert head(clone, BRANCH)
    tip = head(clone)
    assert run(laptop, "dump", "--drill").code == 0
    assert clone.exists()
    laptop.save(b"# Three\n")
    dump(laptop)
    assert len(run(laptop, "dump", "list").text.splitlines()) == 2
    assert run(laptop, "restore", name, "--force").code == 0
    assert head(clone) != tip
    assert run(laptop, "list", "--all").text.count("\n") == 3
    assert run(laptop, "doctor").code == 0


def test_the_first_branch_of_a_repository_is_never_that_of_dumps(
    here: Machine, remote: Path
) -> None:
    """GitHub would make it the default one."""
    delete_branch(remote)
    ran = run(here, "dump")
    assert ran.code == 2
    assert "has no branch main yet" in ran.err
    assert head(remote, BRANCH) == ""


WRONG = {
    "dump --drill --to x.tar": (2, "--drill makes no dump"),
    "dump --to there.tar": (2, "there.tar exists"),
    "dump --to no/folder/x.tar": (2, "there is no such folder"),
    "dump --to . --force": (2, "is a folder"),
    "dump --drill": (3, "there is no dump yet"),
    "restore": (2, "missing argument"),
    "restore latest": (3, "there is no dump yet"),
    "restore nowhere.tar": (3, "there is no dump yet"),
    "restore there.tar": (9, "there.tar is damaged"),
    "restore .": (3, "there is no dump yet"),
}


def test_wrong_use_is_one_clear_message_and_changes_nothing(here: Machine, remote: Path) -> None:
    here.write("there.tar", b"precious")
    for arguments, (code, says) in WRONG.items():
        ran = run(here, *arguments.split())
        assert (ran.code, says in ran.err) == (code, True), ran
        assert "bug" not in ran.err
    assert (here.desk / "there.tar").read_bytes() == b"precious"
    assert head(remote, BRANCH) == ""


def test_a_dump_is_named_by_the_start_of_its_name(here: Machine, remote: Path) -> None:
    lines = [("state", '{"one": true, "version": 1}')]
    for day in (5, 6):
        shelve(remote, lines, f"2020-01-{day:02}T03:00:00Z")
    assert run(here, "restore", "2020-01-0").code == 3
    assert run(here, "restore", "2020-01-06", "--force", "--dry-run").code == 0
    ran = run(here, "restore", "2021")
    assert (ran.code, "annoris dump list" in ran.err) == (3, True)


def test_dumps_do_not_overlap_on_one_machine(here: Machine) -> None:
    with (here.data / "dump.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for command in (("dump",), ("dump", "--drill"), ("restore", "latest")):
            assert run(here, *command).code == 11
        here.save(b"# Meanwhile\n")


def test_the_branch_of_dumps_can_not_be_masters(machine: Make) -> None:
    laptop = machine(dump_branch="main")
    ran = run(laptop, "status")
    assert (ran.code, "a branch of their own" in ran.err) == (2, True)


def test_blobs_without_a_past_make_one_commit(tmp_path: Path) -> None:
    store = Master(str(tmp_path / "dumps.git"), MasterSettings(branch="dumps", include=("**",)))
    store.create()
    oid = store.store(b"x\0\r\n")
    for number in range(2):
        commit = store.gather({f"a b/\\{number}": oid, "ü\n": oid}, "Keep")
        store.accept(commit)
    assert store.tree(store.tip()) == {"a b/\\1": oid, "ü\n": oid}
    assert store.count(store.tip()) == 1
    assert store.blob(oid, "ü\n") == b"x\0\r\n"
    store.forget(Deadline(60))
    assert (tmp_path / "dumps.git" / "packed-refs").exists()


# --- kill -9 -------------------------------------------------------------------------------------


def sampled(count: int, seed: str) -> list[int]:
    if count <= STEPS:
        return list(range(count))
    start = sum(seed.encode())
    return [*((start + number * count // STEPS) % count for number in range(STEPS - 1)), count - 1]


@pytest.mark.parametrize("what", ["dump --to copy.tar --force", "dump --drill", "restore"])
def test_case_03_killed_at_any_step_a_dump_or_restore_just_runs_again(
    what: str, here: Machine, tiers: Tiers, remote: Path
) -> None:
    """Nothing is half done, nothing is left over, and no command needs a step by hand."""
    dump(here)
    command = [*what.split(), *(["latest", "--force"] if what == "restore" else [])]
    before = rows(tiers.direct, log=False)
    steps, ran = crash.events(here, *command)
    assert ran.code == 0, ran
    missed = crash.PASSED[what] - set(steps)
    assert not missed
    for number in sampled(len(steps), what):
        delete_branch(remote, BRANCH)
        dump(here)
        ask(tiers.direct, "UPDATE projects SET updated_at = now()")
        killed = crash.run(here, *command, kill_at=number)
        assert killed.code in (-9, 0), killed
        again = crash.run(here, *command)
        assert again.code == 0, f"{what} after step {number}, {steps[number]}: {again}"
        assert crash.run(here, "restore", "latest", "--force").code == 0
        assert rows(tiers.direct, log=False) == before
        assert [path for path in here.data.rglob("drill.git") if path.is_dir()] == []
        assert list(here.desk.glob("*.part")) == []
    schemas = ask(tiers.direct, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'annoris%'")
    assert schemas == [("annoris",)]
