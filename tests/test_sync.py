"""sync: every projection shows master, whatever happened since the last one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from annoris import sync as syncing
from annoris.hot import Hot, mark
from annoris.model import Report, Run
from annoris.verify import Scope, verify
from tests.support import githttp
from tests.support.githttp import GitServer
from tests.support.machine import Machine
from tests.support.servers import Valkey
from tests.support.tiers import Tiers, forget_failures

Machines = Callable[..., Machine]
MANY = bool(os.environ.get("ANNORIS_FULL"))


def doc(number: int) -> bytes:
    return b"# Note %d\n\nWhat was said of %d.\n" % (number, number)


@contextlib.contextmanager
def hot(tiers: Tiers) -> Iterator[Hot]:
    opened = Hot(tiers.direct, seconds=20)
    try:
        yield opened
    finally:
        opened.close()


def alive(tiers: Tiers) -> dict[str, str]:
    """What the hot cache holds: path → blob id."""
    with hot(tiers) as opened:
        return {row.path: row.oid for row in opened.entries().values() if not row.deleted}


def on_master(remote: Path) -> dict[str, str]:
    """What master holds: path → blob id."""
    done = subprocess.run(
        ["git", f"--git-dir={remote}", "ls-tree", "-r", "-z", "main", "sessions"],
        capture_output=True,
        check=True,
    )
    lines = [line.split("\t") for line in done.stdout.decode().split("\0") if line]
    return {path: head.split()[2] for head, path in lines if path.endswith(".md")}


def in_step(machine: Machine, tiers: Tiers) -> None:
    """Hot cache and catalog are master's tree, and verify has nothing to say."""
    want = on_master(tiers.remote)
    assert alive(tiers) == want
    archive = machine.archive()
    with contextlib.closing(archive):
        assert archive.catalog.entries() == want
        assert verify(archive, Scope()).findings == ()


def synced(machine: Machine, *, full: bool = False) -> Report:
    """A sync through the library."""
    with contextlib.closing(machine.archive()) as archive:
        return syncing.sync(archive, full=full)


def report(machine: Machine, *arguments: str) -> Any:
    ran = machine.sync("--json", *arguments)
    assert ran.code == 0, ran
    return ran.json["report"]


def row_of(found: Any, tier: str) -> Any:
    """What a report says of one tier."""
    return next(item for item in found["projections"] if item["tier"] == tier)


# --- what changed ----------------------------------------------------------------------------


def test_each_way_a_session_can_change_reaches_the_caches(make: Machines, tiers: Tiers) -> None:
    """Edited, moved, deleted, added by hand, and an id handed from one file to another."""
    here = make()
    saved = here.save(*map(doc, range(8)))
    files = githttp.files(tiers.remote)
    twin = files[saved[5].path]
    githttp.commit(
        tiers.remote,
        {
            saved[0].path: files[saved[0].path].replace(b"said", b"thought"),
            saved[1].path: None,
            "sessions/other/moved.md": files[saved[1].path],
            saved[2].path: None,
            "sessions/shop/by-hand.md": b"# By hand\n",
            "sessions/a-twin.md": twin,  # the smallest path keeps the id
        },
    )
    found = report(here)
    row = row_of(found, "hot")
    assert row["removed"] == 1
    assert row["added"] == 2
    assert alive(tiers) == on_master(tiers.remote)
    githttp.commit(tiers.remote, {"sessions/a-twin.md": None})
    assert report(here)["changed"] == 1
    in_step(here, tiers)


def test_an_ordinary_sync_asks_the_hot_cache_only_for_what_changed(
    make: Machines, tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No listing of all rows, however many there are; after a rewritten history there is one."""
    here = make()
    saved = here.save(*map(doc, range(6)))
    synced(here)
    listings = []
    plain = Hot.entries

    def noting(self: Hot, *, days: int = 0) -> Any:
        listings.append(1)
        return plain(self, days=days)

    monkeypatch.setattr(Hot, "entries", noting)
    githttp.commit(tiers.remote, {"sessions/x.md": b"# X\n"})
    archive = here.archive()
    with contextlib.closing(archive):
        syncing.sync(archive)
        assert listings == []
        files = githttp.files(tiers.remote)
        del files[saved[0].path]
        githttp.force_push(tiers.remote, files)
        syncing.sync(archive)
        assert listings == [1]
    monkeypatch.undo()
    in_step(here, tiers)


def test_case_09_another_masters_hot_cache_is_not_emptied(
    make: Machines, tiers: Tiers, tmp_path: Path
) -> None:
    """A machine with the wrong remote refuses to make the shared cache show it, until told to."""
    make().save(*map(doc, range(5)))
    other = githttp.bare(tmp_path / "other.git")
    stray = make("stray", master_remote=str(other))
    stray.save(doc(9))
    before = alive(tiers)
    ran = stray.sync("--quiet")
    assert ran.code == 10
    assert "would lose 5 of 6 sessions" in ran.err
    assert "sync --force" in ran.err
    assert alive(tiers) == before
    assert stray.sync("--force").code == 0
    assert alive(tiers).keys() == on_master(other).keys()


def test_case_10_a_rewritten_master_wins_over_newer_rows(make: Machines, tiers: Tiers) -> None:
    """Also on a machine that never saw what was rewritten away, and positions go back."""
    here, there = make(), make("there")
    saved = here.save(*map(doc, range(20)))
    synced(there)
    start = githttp.head(tiers.remote)
    for number in range(20, 24):
        here.save(doc(number))
    githttp.commit(tiers.remote, {"sessions/after.md": b"# After\n"}, parent=start)
    synced(there)
    assert alive(tiers) == on_master(tiers.remote)
    with hot(tiers) as opened:
        rows = opened.entries()
        gone = {row.path for row in rows.values()} - on_master(tiers.remote).keys()
        assert len(gone) == 4
        assert all(row.deleted for row in rows.values() if row.path in gone)
    synced(here)
    in_step(here, tiers)
    assert here.load(saved[0].id).endswith(doc(0))


def test_the_position_of_a_tip_is_the_number_of_its_commits_however_it_came_about(
    machine: Machines, remote: Path
) -> None:
    """Own saves, others' commits, a rewritten history, a note that can't be read."""
    here = machine("laptop", remote)
    note = here.data / "clone.git.position"

    def told() -> tuple[int, int]:
        here.run("sync", "--force")
        with contextlib.closing(here.archive()) as archive:
            return archive.follower.position(), githttp.commits(remote)

    here.save(b"# First\n\ntext\n")
    found = [told()]
    here.save(b"# Second\n\ntext\n")
    found.append(told())
    for number in range(3):
        githttp.commit(remote, {f"sessions/default/{number}.md": b"# By hand\n"})
    found.append(told())
    githttp.force_push(remote, {"sessions/default/anew.md": b"# Anew\n"})
    found.append(told())
    note.write_text("0123456789 7")
    found.append(told())
    note.write_text("7")
    found.append(told())
    assert [position for position, _ in found] == [commits for _, commits in found]
    assert len({position for position, _ in found}) == 4


def test_case_12_a_day_of_missed_changes_is_healed_by_one_sync(
    make: Machines, tiers: Tiers
) -> None:
    """Meanwhile status says how far behind the hot cache is."""
    here = make()
    saved = here.save(*map(doc, range(30)))
    synced(here)
    for number in range(20):
        files: dict[str, bytes | None] = {f"sessions/day/{number}.md": doc(100 + number)}
        if number < 5:
            files[saved[number].path] = None
            files[saved[29 - number].path] = doc(200 + number)
        githttp.commit(tiers.remote, files)
    tiers_now = here.run("status", "--json").json["status"]["tiers"]
    assert {tier["tier"]: tier["behind"] for tier in tiers_now}["hot"] == 20
    synced(here)
    assert "behind" not in here.run("status").text
    in_step(here, tiers)


def test_case_13_a_push_of_many_commits_and_a_commit_of_many_files(
    make: Machines, tiers: Tiers
) -> None:
    """2,100 commits and 3,500 files with ANNORIS_FULL=1, a tenth of both otherwise."""
    commits, files = (2100, 3500) if MANY else (210, 350)
    here = make()
    here.save(doc(0))
    tip = githttp.head(tiers.remote)
    stream = b"".join(
        b"commit refs/heads/main\ncommitter A <a@b> %d +0000\ndata 1\n.\n%b"
        b"M 100644 inline sessions/one/%d.md\ndata %d\n%b\n"
        % (1_750_000_000 + n, b"from %b\n" % tip.encode() if n == 0 else b"", n % 50, len(d), d)
        for n, d in ((n, doc(n)) for n in range(commits))
    )
    subprocess.run(
        ["git", f"--git-dir={tiers.remote}", "fast-import", "--quiet"], input=stream, check=True
    )
    synced(here)
    in_step(here, tiers)
    githttp.commit(tiers.remote, {f"sessions/all/{n}.md": doc(n) for n in range(files)})
    synced(here)
    in_step(here, tiers)


def test_documents_that_no_save_would_accept_are_told_kept_and_block_nothing(
    make: Machines, tiers: Tiers
) -> None:
    here = make()
    saved = here.save(doc(1))[0]
    own = githttp.files(tiers.remote)[saved.path]
    githttp.commit(
        tiers.remote,
        {
            "sessions/nul.md": b"# N\0UL\n",
            "sessions/latin.md": b"# caf\xe9\n",
            "sessions/front.md": b"---\nid: [1\n---\n# Broken\n",
            "sessions/zz-copy.md": own,
            "sessions/good.md": b"# Good\n",
        },
    )
    ran = here.sync("--quiet")
    assert ran.code == 0
    assert ran.out == b""
    for name in ("nul", "latin", "front"):
        assert f"document-unreadable: master sessions/{name}.md" in ran.err
    assert "document-id-twice: master sessions/zz-copy.md" in ran.err
    assert alive(tiers) == on_master(tiers.remote)
    assert here.sync("--quiet").err == "", "it is told when it comes, not every 15 minutes"


# --- --full ----------------------------------------------------------------------------------


def test_p5_everything_is_rebuilt_from_master_alone(
    make: Machines, tiers: Tiers, valkey: Valkey
) -> None:
    """Schema dropped, Redis flushed, catalog deleted: `sync --full`, then verify is content."""
    here = make()
    receipts = here.save(*map(doc, range(40)))
    synced(here)
    with psycopg.connect(tiers.direct) as db:
        db.execute("DROP SCHEMA annoris CASCADE")
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    (here.data / "catalog.sqlite").unlink()
    assert here.sync("--full", "--quiet").code == 0
    in_step(here, tiers)
    assert here.load(receipts[7].id).endswith(doc(7))


def test_full_heals_what_an_ordinary_sync_has_no_reason_to_look_at(
    make: Machines, tiers: Tiers
) -> None:
    """Rows edited, removed, invented and emptied behind its back; then nothing is left to do."""
    here = make()
    a, b, c, d, e, f = here.save(*map(doc, range(6)))
    synced(here)
    with psycopg.connect(tiers.direct, options="-c search_path=annoris") as db:
        db.execute("UPDATE sessions SET title = 'Forged' WHERE id = %s", [a.id])
        db.execute("DELETE FROM sessions WHERE id = %s", [b.id])
        db.execute("UPDATE sessions SET github_sha = repeat('0', 40) WHERE id = %s", [c.id])
        db.execute("UPDATE sessions SET content = NULL WHERE id = %s", [d.id])
        db.execute("UPDATE sessions SET deleted_at = now() WHERE id = %s", [e.id])
        db.execute("UPDATE sessions SET position = 999999 WHERE id = %s", [f.id])
        db.execute(
            "INSERT INTO sessions (id, file_path, position, synced_at) "
            "VALUES (gen_random_uuid(), 'sessions/none.md', 1, now())"
        )
    found = report(here, "--full")
    row = row_of(found, "hot")
    counts = {key: row[key] for key in ("added", "changed", "removed", "healed")}
    assert counts == {"added": 2, "changed": 1, "removed": 1, "healed": 3}
    again = report(here, "--full")
    row = row_of(again, "hot")
    assert not any(row[key] for key in counts)
    in_step(here, tiers)


def test_full_counts_master_anew_which_a_save_only_goes_on_with(
    make: Machines, tiers: Tiers
) -> None:
    """What is kept of the position is not believed for ever."""
    here = make()
    here.save(doc(0))
    kept = here.data / "clone.git.position"
    commit, position = kept.read_text().split()
    kept.write_text(f"{commit} {int(position) + 500}")
    here.save(doc(1))
    assert kept.read_text().endswith(f" {int(position) + 501}")
    synced(here, full=True)
    assert kept.read_text().endswith(f" {int(position) + 1}")
    in_step(here, tiers)


def test_full_clears_away_what_killed_runs_left_and_notes_of_long_ago(
    machine: Machines, remote: Path
) -> None:
    """What a run may still be at stays, and so does a note that was used since."""
    here = machine("laptop", remote)
    used, unused = here.save(doc(0), doc(1))
    left = [here.data / name for name in ("convert-abcd1234", "imports.json.0123456789ab")]
    current = here.data / "convert-efgh5678"
    for path in (left[0], current):
        path.mkdir(mode=0o700)
    (left[0] / "catalog.sqlite").write_bytes(b"half")
    left[1].write_bytes(b"{")
    notes = {receipt.id: here.data / "seen" / receipt.id for receipt in (used, unused)}
    for path in (*left, *notes.values()):
        os.utime(path, (time.time() - 91 * 86400,) * 2)
    here.load(used.id)
    assert here.sync().code == 0
    assert all(path.exists() for path in (*left, *notes.values()))
    assert here.sync("--full").code == 0
    kept = [path for path in (*left, current, *notes.values()) if path.exists()]
    assert kept == [current, notes[used.id]]


def test_full_puts_damaged_outbox_files_aside_and_delivers_the_rest(
    make: Machines, tiers: Tiers
) -> None:
    here = make()
    here.save(doc(0))
    tiers.set(master=False)
    here.save(doc(1))
    here.save(doc(2))
    tiers.set()
    bad, _ = sorted((here.data / "outbox").glob("*.drafts"))
    bad.write_bytes(bad.read_bytes()[:-30])
    ran = here.sync("--full", "--quiet")
    assert ran.code == 9
    assert "outbox-damaged" in ran.err
    moved = here.data / "outbox" / "damaged" / bad.name
    assert str(moved) in ran.err
    assert b"# Not" in moved.read_bytes()
    assert any(data.endswith(doc(2)) for data in githttp.files(tiers.remote).values())
    assert here.sync("--full", "--quiet").code == 0
    assert here.run("verify", "--quick").code == 9, "verify says it until a person removed it"


def test_full_sweeps_what_redis_holds_of_other_revisions(
    make: Machines, tiers: Tiers, valkey: Valkey
) -> None:
    here = make()
    one, two, three = here.save(*map(doc, range(3)))
    tiers.set(hot=False)
    forget_failures(here)
    here.load(one.id)
    here.load(two.id)
    here.load(three.id)
    files = githttp.files(tiers.remote)
    githttp.commit(tiers.remote, {one.path: files[one.path] + b"more\n", two.path: None})
    tiers.set()
    forget_failures(here)
    assert here.sync("--force", "--full").code == 0
    with redis.Redis.from_url(valkey.url) as client:
        heads = [key.decode() for key in client.scan_iter(match="annoris:*:head")]
        values = [
            key.decode() for key in client.scan_iter(match="annoris:{*") if b"head" not in key
        ]
    assert [three.id in key for key in heads] == [True]
    assert len(values) == 1


def test_old_sessions_come_without_content_and_that_is_no_drift(
    make: Machines, tiers: Tiers
) -> None:
    """A rebuilt hot cache does not fetch for 30 days what it would evict at once."""
    here = make()
    old = b"---\nid: 018f0000-0000-7000-8000-000000000001\n---\n# Old\n"
    githttp.commit(tiers.remote, {"sessions/old.md": old}, at=1_600_000_000)
    synced(here, full=True)
    with hot(tiers) as opened:
        (row,) = opened.entries(days=30).values()
    assert (row.has_content, row.old) == (False, True)
    in_step(here, tiers)
    assert here.load("018f0000-0000-7000-8000-000000000001").endswith(b"# Old\n")
    synced(here, full=True)
    with hot(tiers) as opened:
        assert next(opened.contents(opened.entries())).content, "it was loaded just now"
    in_step(here, tiers)


# --- dry run, log, lock, deadline -----------------------------------------------------------------


def test_a_dry_run_tells_everything_and_changes_nothing(make: Machines, tiers: Tiers) -> None:
    here = make()
    saved = here.save(*map(doc, range(4)))
    tiers.set(master=False)
    here.save(b"# Waits\n")
    tiers.set()
    files = githttp.files(tiers.remote)
    githttp.commit(
        tiers.remote, {saved[0].path: files[saved[0].path] + b"more\n", "sessions/new.md": b"# N\n"}
    )
    rows, head = alive(tiers), githttp.head(tiers.remote)
    known = here.run("list", "--all", "--json", env={"ANNORIS_MASTER_FRESH_SECONDS": "999"}).json
    found = report(here, "--dry-run")
    assert (found["pushed"], found["outgoing"]) == (1, ["Waits"])
    assert sorted(found["incoming"]) == sorted([saved[0].path, "sessions/new.md"])
    counts = {
        item["tier"]: (item["added"], item["changed"], item["removed"])
        for item in found["projections"]
    }
    assert counts == {"catalog": (1, 1, 0), "hot": (1, 1, 0)}
    assert (alive(tiers), githttp.head(tiers.remote)) == (rows, head)
    again = here.run("list", "--all", "--json", env={"ANNORIS_MASTER_FRESH_SECONDS": "999"}).json
    assert again["sessions"] == known["sessions"]
    assert here.run("log", "--json").json["runs"] == [], "a dry run is no run"
    text = here.sync("--dry-run").text
    assert "would deliver 1" in text


def test_a_dry_run_makes_no_tables(make: Machines, tiers: Tiers) -> None:
    here = make()
    with psycopg.connect(tiers.direct) as db:
        db.execute("DROP SCHEMA annoris CASCADE")
    assert here.sync("--dry-run").code == 0
    with psycopg.connect(tiers.direct) as db:
        assert db.execute("SELECT to_regnamespace('annoris')").fetchone() == (None,)


def test_runs_that_the_shared_log_missed_are_brought_there_once(
    make: Machines, tiers: Tiers
) -> None:
    here = make()
    here.save(doc(0))
    tiers.set(hot=False)
    assert here.sync("--source", "webhook").code == 0
    assert here.run("log", "--json").json["log"] == "here"
    tiers.set()
    forget_failures(here)
    for _ in range(3):
        assert here.sync("--full").code == 0
    with psycopg.connect(tiers.direct) as db:
        rows = db.execute(
            "SELECT source, details FROM annoris.sync_log ORDER BY started_at, id"
        ).fetchall()
    assert [source for source, _ in rows] == ["webhook", "cron", "cron", "cron"]
    assert rows[0][1]["tiers"]["hot"]["state"] == "left out"
    assert rows[1][1]["milliseconds"]["master"] >= 0
    told = here.run("log", "--json", "--limit", "2").json
    assert told["log"] == "hot"
    assert [run["kind"] for run in told["runs"]] == ["sync", "sync"]


def test_a_sync_that_failed_is_in_the_log_with_its_reason(make: Machines, tiers: Tiers) -> None:
    here = make()
    here.save(doc(0))
    tiers.set(master=False)
    assert here.sync().code == 10
    (run,) = here.run("log", "--json").json["runs"]
    assert run["status"] == "failed"
    assert "not a repository" in run["details"]["error"]
    assert "not a repository" in here.run("status").text


def test_case_29_a_second_sync_is_told_at_once_and_saves_go_on(
    make: Machines, tiers: Tiers
) -> None:
    """One hangs at the hot cache; it ends by its deadline, and its lock with it."""
    here = make(hot_load_seconds="0.3")
    here.save(doc(0))
    githttp.commit(tiers.remote, {"sessions/x.md": b"# X\n"})
    tiers.hot.mode = "blackhole"
    first = here.start("sync", "--deadline", "12", env={"ANNORIS_HOT_SYNC_SECONDS": "600"})
    try:
        lock = here.data / "sync.lock"
        while not lock.exists() or here.sync("--quiet").code != 11:
            assert first.poll() is None
        second = here.sync()
        assert second.code == 11
        assert "another sync is running" in second.err
        forget_failures(here)
        saved = here.run("save", "-", stdin=b"# During\n", env={"ANNORIS_HOT_SECONDS": "0.3"})
        assert saved.code == 0, saved
        assert first.wait(60) == 5
    finally:
        first.kill()
        _, err = first.communicate()
    assert b"did not end within 12 s" in err
    tiers.hot.mode = "pass"
    forget_failures(here)
    synced(here)
    in_step(here, tiers)


@pytest.mark.parametrize("what", ["accept", "drip"])
def test_case_29_a_sync_that_hangs_at_master_ends_by_its_deadline_with_its_children(
    machine: Machines, server: GitServer, what: str
) -> None:
    here = machine("here", remote=server.url)
    here.save(doc(0))
    server.hang = what  # type: ignore[assignment]
    mark = f"ANNORIS_TEST_MARK={time.monotonic_ns()}"
    env = dict([mark.split("=")]) | {"ANNORIS_MASTER_PUSH_SECONDS": "600"}
    ran = here.run("sync", "--deadline", "3", "--quiet", env=env, timeout=60)
    assert ran.code in (5, 75), ran
    assert not _left(mark)


def test_case_29_what_does_not_even_hear_an_alarm_is_ended_too(tmp_path: Path) -> None:
    """A main thread in a call that no signal breaks off, and a child that ignores everything."""
    program = tmp_path / "hang.py"
    program.write_text(
        "import signal, sys\n"
        "from annoris import gitcmd, limit\n"
        "from annoris.model import Deadline\n"
        "with limit.ends_by(1.5, 'sync'):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "    gitcmd.run(['sh', '-c', 'trap \"\" TERM; sleep 300'], Deadline(300))\n"
    )
    mark = f"ANNORIS_TEST_MARK={time.monotonic_ns()}"
    ran = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, **dict([mark.split("=")])},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 5
    assert b"was killed" in ran.stderr
    deadline = time.monotonic() + 10
    while _left(mark):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _left(mark: str) -> list[str]:
    """Processes that carry the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
    return found


def test_an_interrupted_sync_leaves_nothing_half_done(make: Machines, tiers: Tiers) -> None:
    """Ctrl-C while the hot cache hangs: 130, and the next one completes it."""
    here = make()
    here.save(doc(0))
    githttp.commit(tiers.remote, {"sessions/x.md": b"# X\n"})
    tiers.hot.mode = "blackhole"
    before = tiers.hot.connections
    running = here.start("sync")
    try:
        while tiers.hot.connections == before:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    finally:
        running.kill()
        running.communicate()
    tiers.hot.mode = "pass"
    forget_failures(here)
    synced(here)
    in_step(here, tiers)


# --- parts -----------------------------------------------------------------------------------


def test_a_rows_mark_is_that_of_its_session(make: Machines, tiers: Tiers) -> None:
    """PostgreSQL digests a row's metadata as Python does, whatever stands in it."""
    here = make()
    odd = "---\nproject: 'ein \"Projekt\" \\\\ mit'\nstatus: \U0001f600\nname: ' x '\n---\n# Ünï\n"
    here.save(odd.encode(), b"# Plain\n")
    githttp.commit(tiers.remote, {"sessions/caf\udce9 \t.md": b"---\nid: 17\n---\n# Odd\n"})
    synced(here)
    archive = here.archive()
    with contextlib.closing(archive), hot(tiers) as opened:
        rows = opened.entries()
        marks = {session.id: mark(session) for session in archive.catalog.settled()}
    assert {id: row.mark for id, row in rows.items()} == marks
    assert len(marks) == 3


def test_a_run_is_logged_once_however_often_it_is_brought(tiers: Tiers) -> None:
    run = Run("sync", "ok", "2026-01-01T00:00:00Z", details={"n": 1}, key="abc")
    with hot(tiers) as opened:
        assert opened.log(run) > 0
        assert opened.log(run) == 0
        assert opened.unlogged(["abc", "def"]) == {"def"}
        assert [found.key for found in opened.runs(kind="sync")] == ["abc"]
        assert opened.runs(kind="dump") == []


def test_json_of_the_log_keeps_what_a_run_noted(make: Machines, tiers: Tiers) -> None:
    here = make()
    here.save(doc(0))
    here.sync()
    (run,) = here.run("log", "--json").json["runs"]
    assert json.loads(json.dumps(run))["details"]["to"] == githttp.head(tiers.remote)
    assert run["host"]
