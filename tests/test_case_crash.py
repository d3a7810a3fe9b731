"""Cases 3 and 4: kill -9 at any step, then the same command again. Nothing lost, nothing twice.

Each command of the table below runs once unharmed, which tells its steps; then once for each
step, killed there. After each death the person types the same command again, then ``sync``.
By default the steps are sampled evenly; ANNORIS_FULL=1 takes them all.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from annoris import document
from tests.support import crash
from tests.support.githttp import bare, commit, files
from tests.support.invariant import holds
from tests.support.machine import Machine

FULL = bool(os.environ.get("ANNORIS_FULL"))
STEPS = 10_000 if FULL else 6  # of each command
BASE = b"# Base\n\nwas there before\n"
A, B, C = (f"# {name}\n\ntext of {name}\r\n".encode() for name in "ABC")
POISON = b"# Poison\n\nPOISON\n"
_REFUSING = """#!/bin/sh
while read old new ref; do
    if git log -p --format= "$new" | grep -q POISON; then
        echo "error: GH013: Repository rule violations found: Push cannot contain secrets" >&2
        exit 1
    fi
done
"""


class Plan(NamedTuple):
    """A command, what it may answer the second time, and all that must be there in the end."""

    arguments: tuple[str, ...]
    bodies: list[bytes]
    again: tuple[int, ...] = (0,)
    sync: int = 0
    pause: float = 0.0  # seconds before the second time


class World:
    """One folder with a machine and its remote, put back as it was before each death."""

    def __init__(self, folder: Path, *, embedded: bool = False) -> None:
        self.folder = folder / "world"
        self.folder.mkdir()
        self.remote = bare(self.folder / "remote.git")
        self.machine = Machine(self.folder / "laptop", "" if embedded else str(self.remote), {})
        (self.machine.folder / "tmp").mkdir()
        self.machine.environment["TMPDIR"] = str(self.machine.folder / "tmp")

    def keep(self) -> None:
        shutil.copytree(self.folder, self.folder.with_name("kept"), symlinks=True)

    def back(self) -> None:
        for _ in range(20):  # a git that was left alone may still be writing
            with contextlib.suppress(OSError):
                shutil.rmtree(self.folder)
                break
            time.sleep(0.05)
        shutil.copytree(self.folder.with_name("kept"), self.folder, symlinks=True)

    def write(self, **documents: bytes) -> None:
        for name, data in documents.items():
            self.machine.write(f"{name}.md", data)

    @contextlib.contextmanager
    def offline(self) -> Iterator[None]:
        away = self.remote.with_name("away")
        self.remote.rename(away)
        yield
        away.rename(self.remote)


def save(world: World) -> Plan:
    world.machine.save(BASE)
    world.write(a=A)
    return Plan(("save", "a.md"), [BASE, A])


def save_first(world: World) -> Plan:
    """On a machine that has never seen anything, to a remote that is empty."""
    world.write(a=A)
    return Plan(("save", "a.md"), [A])


def save_several(world: World) -> Plan:
    world.machine.save(BASE)
    world.write(a=A, b=B, c=C)
    return Plan(("save", "a.md", "b.md", "c.md"), [BASE, A, B, C])


def save_revision(world: World) -> Plan:
    world.machine.save(BASE)
    world.write(doc=world.machine.load().replace(b"before", b"after"))
    return Plan(("save", "doc.md"), [BASE.replace(b"before", b"after")])


def save_conflict(world: World) -> Plan:
    """Somebody else changed the session on master: both texts stay, each once."""
    (receipt,) = world.machine.save(BASE)
    loaded = world.machine.load()
    commit(world.remote, {receipt.path: loaded.replace(b"before", b"theirs")})
    world.write(doc=loaded.replace(b"before", b"ours"))
    both = [BASE.replace(b"before", word) for word in (b"theirs", b"ours")]
    return Plan(("save", "doc.md"), both, again=(0, 4))


def save_conflict_late(world: World) -> Plan:
    """The same, and the person tries again only in another second."""
    plan = save_conflict(world)
    return plan._replace(pause=1.1)


def save_refused(world: World) -> Plan:
    """The remote refuses one of three: it is set aside, once, and the others go through."""
    world.machine.save(BASE)
    refuse(world.remote)
    world.write(a=A, b=POISON, c=C)
    return Plan(("save", "a.md", "b.md", "c.md"), [BASE, A, POISON, C], again=(10,))


def delete(world: World) -> Plan:
    world.machine.save(BASE, A)
    (receipt,) = world.machine.save(B)
    return Plan(("delete", receipt.id), [BASE, A], again=(0, 3))


def sync(world: World) -> Plan:
    """Three saves wait here while master got a session by hand."""
    world.machine.save(BASE)
    with world.offline():
        for data in (A, B, C):
            world.machine.save(data)
    commit(world.remote, {"sessions/shop/by-hand.md": b"# By hand\n"})
    return Plan(("sync",), [BASE, A, B, C, b"# By hand\n"])


def sync_full(world: World) -> Plan:
    """The same with a file in the outbox that nobody can read."""
    plan = sync(world)
    damaged = world.machine.data / "outbox" / "000000000099-ffffffffffffffff.drafts"
    damaged.write_bytes(b"annoris-outbox 1\nnonsense")
    return plan._replace(arguments=("sync", "--full"), again=(0, 9))


def repair(world: World) -> Plan:
    """A clone and a catalog that are damaged."""
    world.machine.save(BASE, A, B)
    data = world.machine.data
    for path in [path for path in (data / "clone.git" / "objects").rglob("*") if path.is_file()]:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-9])
    with sqlite3.connect(data / "catalog.sqlite") as db:
        db.execute("UPDATE sessions SET oid = '' WHERE title = 'A'")
    db.close()
    return Plan(("verify", "--repair"), [BASE, A, B], again=(0,))


def repair_embedded(world: World) -> Plan:
    """A branch that names no commit, where no remote has another."""
    world.machine.save(BASE, A)
    (world.machine.data / "clone.git" / "refs" / "heads" / "main").write_bytes(b"")
    return Plan(("verify", "--repair"), [BASE, A])


def load(world: World) -> Plan:
    world.machine.save(BASE)
    (world.machine.data / "clone.git.checked").unlink()
    commit(world.remote, {"sessions/default/by-hand.md": b"# By hand\n"})
    return Plan(("load", "--project", "default"), [BASE, b"# By hand\n"])


def retry(world: World) -> Plan:
    key = poisoned(world)
    (world.remote / "hooks" / "pre-receive").unlink()
    return Plan(("outbox", "retry", key), [BASE, POISON], again=(0, 3))


def drop(world: World) -> Plan:
    return Plan(("outbox", "drop", poisoned(world)), [BASE], again=(0, 3))


def init(world: World) -> Plan:
    """What was saved without a remote goes to one that has sessions already."""
    world.machine.save(A, B)
    commit(world.remote, {"sessions/default/by-hand.md": b"# By hand\n"})
    return Plan(("init", "--remote", str(world.remote)), [A, B, b"# By hand\n"])


def poisoned(world: World) -> str:
    """A document that the remote refused; its key in the outbox."""
    world.machine.save(BASE)
    refuse(world.remote)
    world.machine.save(POISON)
    archive = world.machine.archive()
    ((draft, _),) = archive.outbox.aside()
    archive.catalog.close()
    return draft.key


def refuse(remote: Path) -> None:
    hook = remote / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(_REFUSING)
    hook.chmod(0o755)


COMMANDS: dict[str, tuple[Callable[[World], Plan], bool]] = {
    "save": (save, False),
    "save, embedded": (save, True),
    "save, the first": (save_first, False),
    "save, the first, embedded": (save_first, True),
    "save of several": (save_several, False),
    "save of a revision": (save_revision, False),
    "save in conflict": (save_conflict, False),
    "save in conflict, later": (save_conflict_late, False),
    "save, one refused": (save_refused, False),
    "delete": (delete, False),
    "delete, embedded": (delete, True),
    "sync": (sync, False),
    "sync --full": (sync_full, False),
    "verify --repair": (repair, False),
    "verify --repair, embedded": (repair_embedded, True),
    "load": (load, False),
    "outbox retry": (retry, False),
    "outbox drop": (drop, False),
    "init": (init, True),
}


def sampled(count: int, seed: str) -> list[int]:
    """At most STEPS of so many steps, evenly, the last one always; each command its own."""
    if count <= STEPS:
        return list(range(count))
    stride = count / STEPS
    offset = sum(seed.encode()) % max(1, int(stride))
    return [*(int(number * stride) + offset for number in range(STEPS - 1)), count - 1]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_case_03_killed_at_any_step_nothing_is_lost_or_doubled(name: str, tmp_path: Path) -> None:
    """The second run and one sync complete it, with no step by hand and nothing left over."""
    prepare, embedded = COMMANDS[name]
    world = World(tmp_path, embedded=embedded)
    plan = prepare(world)
    world.keep()
    steps, unharmed = crash.events(world.machine, *plan.arguments)
    assert unharmed.err.count("Traceback") == 0
    missed = crash.PASSED.get(name, set()) - set(steps)
    assert not missed
    ended(world, plan, f"{name}, unharmed")
    for number in sampled(len(steps), name):
        world.back()
        what = f"{name}, killed before step {number}: {steps[number]}"
        ran = crash.run(world.machine, *plan.arguments, kill_at=number)
        assert ran.code == -9, f"{what}: {ran}"
        time.sleep(plan.pause)
        again = crash.run(world.machine, *plan.arguments)
        assert again.code in plan.again, f"{what}: then {again}"
        ended(world, plan, what)


def ended(world: World, plan: Plan, what: str) -> None:
    for leftover in world.machine.data.rglob(".tmp-*"):
        os.utime(leftover, (0, 0))  # as if an hour had passed
    synced = crash.run(world.machine, "sync")
    assert synced.code == plan.sync, f"{what}: then {synced}"
    remote = world.remote if files(world.remote) else None
    found = holds([world.machine], remote, {})
    assert sorted(found.values()) == sorted(plan.bodies), what
    rest = [path for path in world.machine.folder.rglob("*tmp*") if path.is_file()]
    assert [path for path in rest if not re.search("/clone.git[./]", str(path))] == [], what


def test_case_03_every_public_effect_has_a_step() -> None:
    """A new function there must be reviewed: does it change something, and what kills it there?"""
    assert crash.public() == crash.EFFECTS | crash.READS
    assert not crash.EFFECTS & crash.READS
    passed = set().union(*crash.PASSED.values())
    assert passed | crash.PASSED_BY_NOBODY.keys() == crash.EFFECTS
    assert not passed & crash.PASSED_BY_NOBODY.keys()


LOCKS = ("refs/heads/main", "refs/annoris/next", "refs/annoris/fetched", "HEAD", "packed-refs")


@pytest.mark.parametrize(
    ("place", "ref"),
    [("clone", ref) for ref in LOCKS] + [("remote", ref) for ref in LOCKS if "annoris" not in ref],
)
def test_case_03_a_lock_that_a_killed_git_left_stops_nothing(
    place: str, ref: str, tmp_path: Path
) -> None:
    """Also in a remote that is a folder of this machine, where nobody else would remove it."""
    world = World(tmp_path)
    world.machine.save(BASE)
    commit(world.remote, {"sessions/default/by-hand.md": b"# By hand\n"})
    repo = world.remote if place == "remote" else world.machine.data / "clone.git"
    lock = repo / f"{ref}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_bytes(b"")
    os.utime(lock, (time.time() - 10,) * 2)
    world.write(a=A)
    ran = crash.run(world.machine, "save", "a.md")
    assert ran.code == 0, ran
    if ref in ("HEAD", "packed-refs"):
        lock.unlink(missing_ok=True)  # in nobody's way: no command of ours writes these
    found = holds([world.machine], world.remote, {})
    assert sorted(found.values()) == sorted([BASE, A, b"# By hand\n"])


class Call(NamedTuple):
    pid: int
    what: str  # process, fsync or rename
    path: str  # of a process: its command line
    target: str


@functools.cache
def shim() -> str:
    """The library that notes every fsync; made once."""
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("a C compiler on Linux is needed")
    folder = tempfile.mkdtemp(prefix="fsyncs")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source, target = Path(__file__).parent / "support" / "fsyncs.c", f"{folder}/fsyncs.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, str(source), "-ldl"], check=True)
    return target


def watched(world: World, *arguments: str) -> list[Call]:
    """The calls that a command and its children made, in order."""
    log = world.folder / "calls"
    ran = world.machine.run(*arguments, env={"LD_PRELOAD": shim(), "FSYNCS": str(log)})
    assert ran.code == 0, ran
    calls = [line.split("\t") for line in log.read_text().splitlines()]
    return [Call(int(pid), what, path, target) for pid, what, path, target in calls]


def test_case_04_a_save_is_on_disk_before_git_hears_of_it(tmp_path: Path) -> None:
    """The outbox file is fsynced, then gets its name, then its folder is fsynced, then git."""
    world = World(tmp_path)
    world.write(a=A)
    calls = watched(world, "save", "a.md")
    outbox = str(world.machine.data / "outbox")
    named = next(n for n, call in enumerate(calls) if call.target.endswith(".drafts"))
    temporary = calls[named].path
    assert os.path.dirname(temporary) == outbox
    before = [(call.what, call.path) for call in calls[:named]]
    assert ("fsync", temporary) in before
    assert ("fsync", str(world.machine.data)) in before, "the outbox folder is new itself"
    commit = next(n for n, call in enumerate(calls) if " fast-import " in call.path)
    assert ("fsync", outbox) in [(call.what, call.path) for call in calls[named:commit]]


@pytest.mark.parametrize("embedded", [True, False])
def test_case_04_git_syncs_objects_and_refs_of_clone_and_remote(
    embedded: bool, tmp_path: Path
) -> None:
    """By default git would leave both to the operating system."""
    world = World(tmp_path, embedded=embedded)
    world.machine.save(BASE)
    world.write(a=A)
    synced = [call.path for call in watched(world, "save", "a.md") if call.what == "fsync"]
    repos = [world.machine.data / "clone.git", *([] if embedded else [world.remote])]
    for repo in repos:
        inside = [path.removeprefix(f"{repo}/") for path in synced if path.startswith(f"{repo}/")]
        assert [path for path in inside if path.startswith("objects/")], f"objects of {repo}"
        assert "refs/heads/main.lock" in inside, f"the ref of {repo}"


@pytest.mark.parametrize("broken", [b"", b"\n", b"\xff\n", b"a\0b\n"])
def test_case_07_a_delete_keeps_what_a_person_made_of_the_session_meanwhile(
    broken: bytes, tmp_path: Path
) -> None:
    """Also when no save would accept it; and nothing that waits behind it is held up."""
    world = World(tmp_path)
    (receipt,) = world.machine.save(BASE)
    front = document.split(world.machine.load())[0]
    commit(world.remote, {receipt.path: front + broken})
    archive = world.machine.archive()
    gone = archive.delete(receipt.id, "")
    archive.catalog.close()
    assert gone.state == "conflict"
    (after,) = world.machine.save(A)
    assert after.state == "master"
    holds([world.machine], world.remote, {gone.id: broken, after.id: A})
