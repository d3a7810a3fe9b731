"""Hard cases 1, 2, 5, 6, 7, 8: writers that race, acknowledgements that are lost, edits that meet.

Real processes, real clones, real remotes. Set ANNORIS_FULL=1 for the size of the campaign.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from annoris import document
from tests.support import githttp
from tests.support.githttp import GitServer
from tests.support.invariant import holds
from tests.support.machine import Machine, Ran

FULL = os.environ.get("ANNORIS_FULL") == "1"
SAVES = 10 if FULL else 3  # by each writer that saves one document after another

Machines = Callable[..., Machine]

# Saves documents through the library, all at once (one thread each, as that many commands would)
# or one after another, and prints a receipt for each. It starts when its first line arrives.
_DRIVER = """
import json, sys, threading
from dataclasses import asdict
from annoris.intake import SaveOptions, Source
from annoris.bootstrap import open_archive
from annoris.settings import load

receipts = {}

def save(number):
    archive = open_archive(load())
    body = f"# {sys.argv[1]} {number}\\n\\n{sys.argv[1]}, document {number}.\\n"
    (receipt,) = archive.save([Source("-", body.encode())], SaveOptions())
    receipts[body] = asdict(receipt)
    archive.catalog.close()

sys.stdin.readline()
numbers = range(int(sys.argv[2]))
if sys.argv[3] == "at once":
    threads = [threading.Thread(target=save, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
else:
    for number in numbers:
        save(number)
print(json.dumps(receipts))
"""


def drive(
    writers: list[tuple[Machine, str]], saves: int, how: str = "one after another"
) -> tuple[dict[str, bytes], list[str]]:
    """Let every writer save as many documents at the same time: id → body, and all states."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _DRIVER, name, str(saves), how],
            cwd=machine.desk,
            env={**machine.environment, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for machine, name in writers
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
    bodies, states = {}, []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err.decode()
        assert not err, err.decode()
        receipts: dict[str, dict[str, Any]] = json.loads(out)
        assert len(receipts) == saves
        bodies.update({receipt["id"]: body.encode() for body, receipt in receipts.items()})
        states += [receipt["state"] for receipt in receipts.values()]
    return bodies, states


def touched(repo: Path) -> list[list[str]]:
    """The paths of every commit on main, oldest first, without the one that founded the place."""
    out = _git(repo, "log", "--reverse", "--name-only", "--format=%x01", "main")
    commits = [commit.decode().split() for commit in out.split(b"\x01")[1:]]
    return [paths for paths in commits if ".annoris/format.toml" not in paths]


def every_blob(repo: Path) -> bytes:
    return _git(repo, "cat-file", "--batch-all-objects", "--batch")


def _git(repo: Path, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", f"--git-dir={repo}", *arguments], capture_output=True, check=True, timeout=60
    ).stdout


def sessions(repo: Path) -> dict[str, bytes]:
    """path → body of every session on master."""
    return {
        path: document.split(data)[1]
        for path, data in githttp.files(repo).items()
        if path.endswith(".md")
    }


def first(machine: Machine, text: str = "zero") -> tuple[str, str]:
    """A session on master to begin with: its id and path."""
    (receipt,) = machine.save(body(text))
    assert receipt.state == "master"
    return receipt.id, receipt.path


def body(text: str) -> bytes:
    return f"# The queue\n\n{text}\n".encode()


def edit(machine: Machine, id: str, old: str, new: str) -> Ran:
    """Load, change, save: three things that a person does."""
    loaded = machine.run("load", id)
    assert loaded.code == 0, loaded.err
    assert old.encode() in loaded.out
    return machine.run("save", "-", "--json", stdin=loaded.out.replace(old.encode(), new.encode()))


def receipt(ran: Ran) -> dict[str, Any]:
    found: dict[str, Any] = ran.json["receipts"][0]
    return found


@contextmanager
def offline(server: GitServer) -> Iterator[None]:
    server.status = 503
    try:
        yield
    finally:
        server.status = None


def at_once(*machines: Machine) -> list[int]:
    """Sync machines at the same time; their exit codes."""
    processes = [machine.start("sync") for machine in machines]
    for process in processes:
        process.communicate(timeout=120)
    return [process.returncode for process in processes]


def in_turn(*machines: Machine) -> list[int]:
    return [machine.sync().code for machine in machines]


# --- case 1, 2: many writers -----------------------------------------------------------------


def test_case_01_ten_clones_saving_ten_documents_at_once_need_few_pushes(
    server: GitServer, machine: Machines
) -> None:
    """100 documents arrive, none is refused, and those that wait together share a push."""
    machines = [machine(f"m{number}", server.url) for number in range(10)]
    bodies, states = drive([(m, m.folder.name) for m in machines], 10, "at once")
    assert len(bodies) == 100
    assert set(states) <= {"master", "queued"}
    pushes = server.pushes
    holds(machines, server.repo, bodies, exactly=True)
    assert sorted(sessions(server.repo).values()) == sorted(bodies.values())
    assert pushes < 100 * 2 // 3


def test_case_01_writers_that_save_one_after_another_all_get_through(
    remote: Path, machine: Machines
) -> None:
    """Ten clones that race for every single push lose no document and repeat none."""
    machines = [machine(f"m{number}", remote) for number in range(10)]
    bodies, states = drive([(m, m.folder.name) for m in machines], SAVES)
    assert set(states) <= {"master", "queued"}
    holds(machines, remote, bodies, exactly=True)
    assert len(touched(remote)) == len(bodies) == 10 * SAVES


@pytest.mark.parametrize("embedded", [True, False])
def test_case_02_eight_processes_on_one_clone_never_touch_each_others_files(
    remote: Path, machine: Machines, embedded: bool
) -> None:
    """Every save succeeds, every commit has one path, no path comes twice, no lock is left.

    The first one brings the project's file too.
    """
    laptop = machine("laptop", "" if embedded else remote)
    bodies, states = drive([(laptop, f"p{number}") for number in range(8)], 10)
    assert states == ["master"] * 80
    repo = laptop.data / "clone.git" if embedded else remote
    commits = touched(repo)
    assert [len(paths) for paths in commits] == [2] + [1] * 79
    touched_paths = {path for paths in commits for path in paths}
    assert touched_paths - sessions(repo).keys() == {"projects/default.toml"}
    holds([laptop], None if embedded else remote, bodies, exactly=True)


# --- case 5: the push landed, the answer did not ----------------------------------------------


def lose_ack_and_go_down(server: GitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next push is applied, its answer is lost, and nothing is answered after it."""
    take = server.take

    def taken(fault: Any) -> bool:
        due = take(fault)
        if due and fault == "lose_ack":
            server.status = 503
        return due

    monkeypatch.setattr(server, "take", taken)
    server.lose_ack = 1


@pytest.mark.parametrize("losses", [1, 2])
def test_case_05_a_lost_acknowledgement_makes_no_second_commit(
    server: GitServer, machine: Machines, losses: int
) -> None:
    """The retry finds the document on master and answers 0."""
    laptop = machine("laptop", server.url)
    laptop.save(body("earlier"))
    before = server.commits()
    server.lose_ack = losses
    ran = laptop.run("save", "-", "--json", stdin=body("once"))
    assert ran.code == 0, ran.err
    assert server.lose_ack == losses - 1
    server.lose_ack = 0
    assert server.commits() == before + 1
    assert sorted(sessions(server.repo).values()) == sorted([body("earlier"), body("once")])
    holds([laptop], server.repo, {receipt(ran)["id"]: body("once")})


@pytest.mark.parametrize("new", [True, False])
def test_case_05_an_edit_elsewhere_before_the_retry_is_no_conflict(
    server: GitServer, machine: Machines, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    """What the lost push brought was edited since: the retry repeats nothing over it."""
    laptop, phone = machine("laptop", server.url), machine("phone", server.url)
    id, _ = first(laptop) if not new else ("", "")
    lose_ack_and_go_down(server, monkeypatch)
    ran = (
        laptop.run("save", "-", "--json", stdin=body("one"))
        if new
        else edit(laptop, id, "zero", "one")
    )
    assert ran.code == 75
    server.status = None
    id = receipt(ran)["id"]
    assert edit(phone, id, "one", "two").code == 0
    commits = server.commits()
    assert laptop.sync().code == 0
    assert server.commits() == commits
    holds([laptop, phone], server.repo, {id: body("two")}, exactly=True)


def test_case_05_a_chain_of_offline_edits_whose_push_landed_is_not_repeated(
    server: GitServer, machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several drafts of one session the last stands, as the lost push left it."""
    laptop = machine("laptop", server.url)
    id, _ = first(laptop)
    with offline(server):
        for old, new in (("zero", "one"), ("one", "two"), ("two", "three")):
            assert edit(laptop, id, old, new).code == 75
    lose_ack_and_go_down(server, monkeypatch)
    assert laptop.sync().code != 0
    server.status = None
    commits = server.commits()
    assert laptop.sync().code == 0
    assert server.commits() == commits
    holds([laptop], server.repo, {id: body("three")}, exactly=True)


def test_case_05_a_conflict_copy_whose_push_landed_is_not_made_twice(
    server: GitServer, machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of a losing chain is whole after the lost push; the retry adds nothing."""
    laptop, phone = machine("laptop", server.url), machine("phone", server.url)
    id, _ = first(laptop)
    assert phone.sync().code == 0
    assert edit(laptop, id, "zero", "won").code == 0
    with offline(server):
        assert edit(phone, id, "zero", "lost 1").code == 75
        assert edit(phone, id, "lost 1", "lost 2").code == 75
    lose_ack_and_go_down(server, monkeypatch)
    assert phone.sync().code not in (0, 4)
    server.status = None
    commits = server.commits()
    assert phone.sync().code == 4
    assert server.commits() == commits
    assert len(sessions(server.repo)) == 2
    holds([laptop, phone], server.repo, {id: body("won")}, anywhere=[body("lost 2")])


@pytest.mark.parametrize("down", [False, True])
def test_case_05_a_delete_whose_acknowledgement_is_lost_is_done(
    server: GitServer, machine: Machines, monkeypatch: pytest.MonkeyPatch, down: bool
) -> None:
    """The retry finds the session gone, as it wanted, and makes no commit."""
    laptop = machine("laptop", server.url)
    id, path = first(laptop)
    before = server.commits()
    if down:
        lose_ack_and_go_down(server, monkeypatch)
        assert laptop.run("delete", id).code == 75
        server.status = None
        assert laptop.sync().code == 0
    else:
        server.lose_ack = 1
        assert laptop.run("delete", id).code == 0
    assert path not in server.files()
    assert server.commits() == before + 1
    holds([laptop], server.repo, {}, exactly=True)


@pytest.mark.parametrize("op", ["new", "edit", "delete"])
def test_case_05_a_client_killed_right_after_its_push_landed_repeats_nothing(
    remote: Path, machine: Machines, op: str
) -> None:
    """After kill -9 between the server's write and its answer one sync settles everything."""
    laptop = machine("laptop", remote)
    id, _ = first(laptop)
    before = githttp.head(remote), githttp.commits(remote)
    hold = remote / "hold"
    hold.touch()
    hook = remote / "hooks" / "post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nwhile [ -e hold ]; do sleep 0.05; done\n")
    hook.chmod(0o755)
    edited = laptop.write("s.md", laptop.load(id).replace(b"zero", b"one"))
    new = laptop.write("new.md", body("new"))
    command, what = {"new": ("save", new), "edit": ("save", edited), "delete": ("delete", id)}[op]
    process = laptop.start(command, str(what))
    deadline = time.monotonic() + 60
    while githttp.head(remote) == before[0]:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    hold.unlink()
    assert laptop.sync().code == 0
    assert githttp.commits(remote) == before[1] + 1
    wanted = {"new": [body("new"), body("zero")], "edit": [body("one")], "delete": []}[op]
    assert sorted(sessions(remote).values()) == wanted
    holds([laptop], remote, {}, anywhere=wanted)


# --- case 6: two edits of one session ---------------------------------------------------------


@pytest.mark.parametrize("sync", [in_turn, at_once])
def test_case_06_two_edits_offline_keep_masters_bytes_and_one_copy(
    server: GitServer, machine: Machines, sync: Callable[..., list[int]]
) -> None:
    """One edit is the session, the other one copy of it; both machines agree; no markers."""
    laptop, phone = machine("laptop", server.url), machine("phone", server.url)
    id, path = first(laptop)
    assert phone.sync().code == 0
    with offline(server):
        assert edit(laptop, id, "zero", "laptop's").code == 75
        assert edit(phone, id, "zero", "phone's").code == 75
    codes = sync(laptop, phone)
    assert sorted(codes) == [0, 4]
    winner, loser = ("laptop's", "phone's") if codes[0] == 0 else ("phone's", "laptop's")
    bodies = sessions(server.repo)
    assert bodies.pop(path) == body(winner)
    assert list(bodies.values()) == [body(loser)]
    (copy,) = bodies
    data = server.files()[copy]
    assert f"conflict-of: {id}".encode() in data
    assert b"<<<<<<<" not in every_blob(server.repo)
    head = server.head()
    holds(
        [laptop, phone],
        server.repo,
        {id: body(winner), document.inspect(data).id: body(loser)},
        exactly=True,
    )
    assert server.head() == head


@pytest.mark.parametrize(("how", "sync"), [("load and pipe", in_turn), ("one file", at_once)])
def test_case_06_three_edits_in_a_row_lose_as_one_copy(
    server: GitServer, machine: Machines, how: str, sync: Callable[..., list[int]]
) -> None:
    """The copy holds the last text and has the earlier ones in its history."""
    laptop, phone = machine("laptop", server.url), machine("phone", server.url)
    id, path = first(laptop)
    loaded = phone.load(id)
    with offline(server):
        for old, new in (("zero", "phone 1"), ("phone 1", "phone 2"), ("phone 2", "phone 3")):
            if how == "one file":
                file = phone.write("s.md", loaded.replace(b"zero", new.encode()))
                assert phone.run("save", file).code == 75
            else:
                assert edit(phone, id, old, new).code == 75
    assert edit(laptop, id, "zero", "a").code == 0
    assert 4 in sync(phone, laptop)
    bodies = sessions(server.repo)
    assert bodies.pop(path) == body("a")
    assert list(bodies.values()) == [body("phone 3")]
    (copy,) = bodies
    archive = phone.archive()
    _, revisions = archive.history(copy)
    texts = [
        document.split(archive.master.blob(revision.oid, revision.path))[1]
        for revision in revisions
    ]
    archive.catalog.close()
    assert texts == [body("phone 3"), body("phone 2"), body("phone 1")]
    copy_id = document.inspect(server.files()[copy]).id
    holds([laptop, phone], server.repo, {id: body("a"), copy_id: body("phone 3")}, exactly=True)


def test_case_06_a_sync_names_a_copy_once_however_many_edits_it_has(
    server: GitServer, machine: Machines
) -> None:
    """One conflict is one line for a person to read."""
    laptop, phone = machine("laptop", server.url), machine("phone", server.url)
    id, _ = first(laptop)
    assert phone.sync().code == 0
    assert edit(laptop, id, "zero", "a").code == 0
    with offline(server):
        assert edit(phone, id, "zero", "phone 1").code == 75
        assert edit(phone, id, "phone 1", "phone 2").code == 75
    ran = phone.sync()
    assert ran.code == 4
    assert ran.text.count("conflict ") == 1
    holds([laptop, phone], server.repo, {id: body("a")}, anywhere=[body("phone 2")])


@pytest.mark.parametrize("sync", [in_turn, at_once])
def test_case_06_the_same_edit_on_both_machines_makes_no_copy(
    server: GitServer, machine: Machines, sync: Callable[..., list[int]]
) -> None:
    """Equal texts, though saved at different seconds, are one session."""
    laptop, phone = machine("laptop", server.url), machine("phone", server.url)
    id, path = first(laptop)
    assert phone.sync().code == 0
    with offline(server):
        assert edit(laptop, id, "zero", "same").code == 75
        time.sleep(1.1)
        assert edit(phone, id, "zero", "same").code == 75
    assert sync(laptop, phone) == [0, 0]
    assert sessions(server.repo) == {path: body("same")}
    assert edit(laptop, id, "same", "more").code == 0
    assert edit(phone, id, "same", "most").code == 4, "the phone still shows what it knew"
    holds([laptop, phone], server.repo, {id: body("more")}, anywhere=[body("most")])


def test_case_06_a_file_that_lost_goes_on_as_its_copy(remote: Path, machine: Machines) -> None:
    """Saving the file again adds to the one copy; it neither makes another nor overwrites."""
    laptop, phone = machine("laptop", remote), machine("phone", remote)
    id, path = first(laptop)
    loaded = phone.load(id)
    assert edit(laptop, id, "zero", "won").code == 0
    for text, code in ((b"lost 1", 4), (b"lost 2", 0), (b"lost 3", 0)):
        file = phone.write("s.md", loaded.replace(b"zero", text))
        assert phone.run("save", file).code == code
    bodies = sessions(remote)
    assert bodies.pop(path) == body("won")
    assert list(bodies.values()) == [body("lost 3")]
    holds([laptop, phone], remote, {id: body("won")}, anywhere=[body("lost 3")])


# --- case 7: edits and deletes ----------------------------------------------------------------


@pytest.mark.parametrize("waiting", [False, True])
def test_case_07_an_edit_of_what_was_deleted_survives_as_a_copy(
    server: GitServer, machine: Machines, waiting: bool
) -> None:
    """The path stays deleted, the edit is a session of its own, a second sync does nothing."""
    laptop, phone = machine("laptop", server.url), machine("phone", server.url)
    id, path = first(laptop)
    assert phone.sync().code == 0
    loaded = phone.load(id)
    changed = loaded.replace(b"zero", b"edited")
    if waiting:
        with offline(server):
            assert phone.run("save", "-", stdin=changed).code == 75
        assert laptop.run("delete", id).code == 0
        assert phone.sync().code == 4
    else:
        assert laptop.run("delete", id).code == 0
        assert phone.run("save", "-", stdin=changed).code == 4
    assert list(sessions(server.repo).values()) == [body("edited")]
    assert path not in server.files()
    _nothing_more(server, laptop, phone)
    holds([laptop, phone], server.repo, {}, anywhere=[body("edited")])


@pytest.mark.parametrize("waiting", [False, True])
def test_case_07_a_delete_of_what_was_edited_keeps_the_edit_as_a_copy(
    server: GitServer, machine: Machines, waiting: bool
) -> None:
    """The path is deleted, the unseen edit is a session of its own, a second sync does nothing."""
    laptop, phone = machine("laptop", server.url), machine("phone", server.url)
    id, path = first(laptop)
    assert phone.sync().code == 0
    if waiting:
        with offline(server):
            assert phone.run("delete", id).code == 75
        assert edit(laptop, id, "zero", "edited").code == 0
        assert phone.sync().code == 4
    else:
        assert edit(laptop, id, "zero", "edited").code == 0
        assert phone.run("delete", id).code == 4
    assert list(sessions(server.repo).values()) == [body("edited")]
    assert path not in server.files()
    _nothing_more(server, laptop, phone)
    holds([laptop, phone], server.repo, {}, anywhere=[body("edited")])


@pytest.mark.parametrize("sync", [in_turn, at_once])
def test_case_07_a_delete_on_both_machines_is_one_delete(
    server: GitServer, machine: Machines, sync: Callable[..., list[int]]
) -> None:
    """Whoever comes second finds it done."""
    laptop, phone = machine("laptop", server.url), machine("phone", server.url)
    id, _ = first(laptop)
    assert phone.sync().code == 0
    with offline(server):
        assert laptop.run("delete", id).code == 75
        assert phone.run("delete", id).code == 75
    before = server.commits()
    assert sync(laptop, phone) == [0, 0]
    assert server.commits() == before + 1
    holds([laptop, phone], server.repo, {}, exactly=True)


def _nothing_more(server: GitServer, *machines: Machine) -> None:
    head = server.head()
    assert in_turn(*machines) == [0] * len(machines)
    assert server.head() == head


# --- case 8: far behind -----------------------------------------------------------------------


def test_case_08_a_machine_that_is_fifty_sessions_behind_removes_none(
    remote: Path, machine: Machines
) -> None:
    """It saves on the newest tip, whatever it knew."""
    laptop, phone = machine("laptop", remote), machine("phone", remote)
    id, _ = first(phone)
    others = [f"# Other {number}\n\ntext {number}\n".encode() for number in range(45)]
    receipts = laptop.save(*others)
    hand = {f"sessions/inbox/note-{number}.md": b"# By hand %d\n" % number for number in range(5)}
    githttp.commit(remote, hand)
    ran = phone.run("save", "-", "--json", stdin=body("late"))
    assert ran.code == 0, ran.err
    expected = [*others, *hand.values(), body("zero"), body("late")]
    assert sorted(sessions(remote).values()) == sorted(expected)
    bodies = {item.id: text for item, text in zip(receipts, others, strict=True)}
    bodies |= {id: body("zero"), receipt(ran)["id"]: body("late")}
    holds([laptop, phone], remote, bodies, anywhere=hand.values())


# --- edits by hand on master's pages -----------------------------------------------------------


def by_hand(remote: Path, path: str, old: str, new: str) -> None:
    data = githttp.files(remote)[path]
    githttp.commit(remote, {path: data.replace(old.encode(), new.encode())})


@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("how", ["pipe", "file", "body"])
def test_case_06_a_text_loaded_before_an_edit_by_hand_never_replaces_it(
    remote: Path, machine: Machines, how: str, synced: bool
) -> None:
    """Exit 4, both are kept, whether or not the catalog has heard of the edit meanwhile."""
    laptop = machine("laptop", remote)
    id, path = first(laptop)
    flags = ["--body"] if how == "body" else []
    loaded = laptop.run("load", id, *flags).out
    by_hand(remote, path, "zero", "by hand")
    if synced:
        assert laptop.sync().code == 0
    changed = loaded.replace(b"zero", b"mine")
    if how == "file":
        ran = laptop.run("save", laptop.write("s.md", changed))
    else:
        ran = laptop.run("save", "-", *(["--update", id] if how == "body" else []), stdin=changed)
    assert ran.code == 4, ran
    bodies = sessions(remote)
    assert bodies.pop(path) == body("by hand")
    assert list(bodies.values()) == [body("mine")]
    holds([laptop], remote, {id: body("by hand")}, anywhere=[body("mine")])


@pytest.mark.parametrize("how", ["pipe", "body"])
def test_case_06_a_text_loaded_after_an_edit_by_hand_replaces_it(
    remote: Path, machine: Machines, how: str
) -> None:
    """Exit 0, although the file still carries the etag from before the edit; and again."""
    laptop = machine("laptop", remote)
    id, path = first(laptop)
    for old, hand, new in (("zero", "hand 1", "mine 1"), ("mine 1", "hand 2", "mine 2")):
        laptop.run("load", id)
        by_hand(remote, path, old, hand)
        loaded = laptop.run("load", id, "--fresh", *(["--body"] if how == "body" else [])).out
        ran = laptop.run(
            "save",
            "-",
            *(["--update", id] if how == "body" else []),
            stdin=loaded.replace(hand.encode(), new.encode()),
        )
        assert ran.code == 0, ran
    assert sessions(remote) == {path: body("mine 2")}
    holds([laptop], remote, {id: body("mine 2")}, exactly=True)


@pytest.mark.parametrize("how", ["pipe", "body"])
def test_case_06_a_look_at_an_edit_by_hand_does_not_make_the_first_copy_newer(
    remote: Path, machine: Machines, how: str
) -> None:
    """Loaded before and after the edit under one etag: the text tells which of them it was."""
    laptop = machine("laptop", remote)
    flags = ["--body"] if how == "body" else []
    start = "# Plan\n\nAsk Anna about the keys, then write the letter.\n\nzero\n"
    laptop.run("save", "-", stdin=start.encode())
    ((path, _),) = sessions(remote).items()
    id = laptop.run("list", "--json").json["sessions"][0]["id"]
    before = laptop.run("load", id, *flags).out
    by_hand(remote, path, "Anna", "Boris, who has them,")
    after = laptop.run("load", id, "--fresh", *flags).out
    assert b"Boris" in after

    def save(data: bytes) -> int:
        which = ["--update", id] if how == "body" else []
        return laptop.run("save", "-", *which, stdin=data.replace(b"zero", b"mine")).code

    assert save(before) == 4
    kept = sessions(remote)
    assert b"Boris" in kept.pop(path)
    (copy,) = kept.values()
    assert copy == start.replace("zero", "mine").encode()
    assert save(after) == 0
    assert sessions(remote)[path] == document.split(after)[1].replace(b"zero", b"mine")


def test_case_06_a_file_saved_again_and_again_goes_on_from_its_own_last_save(
    remote: Path, machine: Machines
) -> None:
    """No conflict with oneself; one with an edit by hand that came between."""
    laptop = machine("laptop", remote)
    id, path = first(laptop)
    loaded = laptop.load(id)
    for text in (b"one", b"two", b"two", b"three"):
        ran = laptop.run("save", laptop.write("s.md", loaded.replace(b"zero", text)))
        assert ran.code == 0, ran
    assert sessions(remote) == {path: body("three")}
    by_hand(remote, path, "three", "by hand")
    assert laptop.run("load", id, "--fresh").out.count(b"by hand") == 1
    ran = laptop.run("save", laptop.write("s.md", loaded.replace(b"zero", b"four")))
    assert ran.code == 4
    holds([laptop], remote, {id: body("by hand")}, anywhere=[body("four")])


def test_case_06_another_file_of_the_same_revision_conflicts(
    remote: Path, machine: Machines
) -> None:
    """Two windows on one machine that loaded the same revision don't replace each other."""
    laptop = machine("laptop", remote)
    id, _ = first(laptop)
    loaded = laptop.load(id)
    files = [
        laptop.write(f"{text}.md", loaded.replace(b"zero", text.encode()))
        for text in ("left", "right")
    ]
    assert [laptop.run("save", file).code for file in files] == [0, 4]
    holds([laptop], remote, {id: body("left")}, anywhere=[body("right")])


@pytest.mark.parametrize("knows", ["nothing", "the first revision", "the newest by sync"])
def test_case_06_a_name_on_a_machine_that_has_not_seen_the_newest_never_replaces_it(
    remote: Path, machine: Machines, knows: str
) -> None:
    """The text under a name is only replaced by who has seen what stands there."""
    laptop, phone = machine("laptop", remote), machine("phone", remote)
    if knows == "nothing":
        phone.save(b"# Else\n\nelse\n")
    (one,) = laptop.save(body("v1"), name="plan")
    if knows != "nothing":
        assert phone.run("load", "plan").code == 0
    (two,) = laptop.save(body("v2"), name="plan")
    assert (one.id, two.state) == (two.id, "master")
    if knows == "the newest by sync":
        assert phone.sync().code == 0
    ran = phone.run("save", "-", "--name", "plan", stdin=body("phone's"))
    assert ran.code == 4, ran
    holds([laptop, phone], remote, {one.id: body("v2")}, anywhere=[body("phone's")])
    assert phone.run("load", "plan", "--body").out == body("v2")
    assert phone.run("save", "-", "--name", "plan", stdin=body("v3")).code == 0
    holds([laptop, phone], remote, {one.id: body("v3")}, anywhere=[body("phone's")])


def test_many_first_loads_at_once_make_one_catalog(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Processes that meet a new clone together all answer; the catalog equals master."""
    machine("writer", remote).save(*(b"# Note %d\n\ntext\n" % number for number in range(150)))
    blank = machine("blank", remote)
    running = [blank.start("list", "--all", "--json", "-n", "500") for _ in range(6)]
    listed = []
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        listed.append({row["id"] for row in json.loads(out)["sessions"]})
    assert {len(ids) for ids in listed} == {150}
