"""Dumps of the hot cache: on a branch of their own beside master, drilled, and brought back.

The branch holds one commit without a past: a folder for each dump and, once a drill found it
whole, a file beside it that says when. Every change replaces that commit under a lease, so that
two machines never undo each other's, and what is dropped is gone from the remote at its next
clean-up. It comes here into a repository of its own; without a remote, the clone has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from annoris import dumpfile, envelope, lock
from annoris.archive import Archive
from annoris.dataclass import dataclass, field
from annoris.dumpfile import MANIFEST, NAME, Line, Manifest, Source
from annoris.envelope import KeyRing
from annoris.errors import (
    Ambiguous,
    FindingsFound,
    KeyProblem,
    NotFound,
    PolicyRefused,
    RemoteRefused,
    RemoteUnreachable,
    StorageError,
    UsageError,
    WrongKey,
)
from annoris.gitcmd import LostRace
from annoris.hot import VERSION, Hot
from annoris.master import Master, now
from annoris.model import Deadline, Drilled, Dumped, Restored, Run, Shelved, counted
from annoris.settings import Settings

T = TypeVar("T")
Tree = Mapping[str, str]  # path on the branch → blob id

_NO_RUN = (UsageError, NotFound, Ambiguous)  # nothing was begun
_OF_DUMP = re.compile(rf"({NAME})(?:/|\.verified$)")


@dataclass(slots=True)
class _Task:
    """A dump, drill or restore under way, and what the log will say of it."""

    hot: Hot
    deadline: Deadline
    status: str = "ok"  # empty: nothing to log
    details: dict[str, object] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def milliseconds(self) -> int:
        return round((time.monotonic() - self._started) * 1000)


def dump(archive: Archive, to: str = "", *, force: bool = False, source: str = "") -> Dumped:
    """Put the tables as they are on the branch, and into the file ``to`` if one is named.

    Adds nothing when the newest dump says the same. Raises UsageError when there is nothing to
    dump, or ``to`` exists and ``force`` is not set; TierDown; Locked; RemoteUnreachable and
    RemoteRefused when it could not be pushed, and then ``to`` is whole.
    """
    to = _writable(to, force=force) if to else ""
    with _task(archive, "dump", source) as task:
        store = _store(archive)
        made, files = _export(task.hot, store)
        if to:
            dumpfile.write_tar(to, _source(store, to, files))
        with _pushing(to):
            done = _add(archive, store, files, made, task.deadline)
        task.details |= {"dump": done.name, "pushed": done.pushed, "rows": made.rows()}
        with suppress(StorageError):
            store.forget(task.deadline)
    return replace(done, file=to, milliseconds=task.milliseconds())


def drill(archive: Archive) -> Drilled:
    """Fetch the newest dump anew, restore it where nobody sees it, and compare every row.

    Marks it verified on the branch. Raises FindingsFound when anything differs or does not
    open, WrongKey, NotFound when there is no dump, and what ``dump`` raises.
    """
    with _task(archive, "drill") as task, _fresh_store(archive) as store:
        tree = store.tree(_fetched_anew(store, task.deadline))
        name = _chosen(_names(tree), "latest")
        source = _source(store, name, _files(tree, name))
        made = _verified(source)
        opened = _open_all(source, made, _ring(archive.settings, made))
        lines = partial(dumpfile.lines_of, source, made)
        if wrong := dumpfile.compare(lines(), task.hot.rehearse(lines())):
            raise FindingsFound(
                f"the dump {name} does not come back as it was: "
                f"{counted(wrong.gone, 'row')} missing, "
                f"{wrong.changed} different, {wrong.new} too many",
                hint="please report it; annoris dump makes another one",
            )
        live = task.hot.export() if task.hot.state().version else iter(())
        drift = dumpfile.compare(_telling(lines()), _telling(live))
        _mark(store, name, task.deadline)
        task.details |= {"dump": name, "rows": made.rows(), "opened": opened}
    return Drilled(
        name=name,
        made=dumpfile.made_at(name),
        rows=made.rows(),
        opened=opened,
        new=drift.new,
        changed=drift.changed,
        gone=drift.gone,
        milliseconds=task.milliseconds(),
    )


def restore(
    archive: Archive, which: str, *, force: bool = False, dry_run: bool = False
) -> Restored:
    """Make the hot cache what a dump says: a file, one of the branch, or its ``latest``.

    Everything is checked before anything is touched, and it is done whole or not at all. Raises
    FindingsFound for a damaged dump; unless ``force`` is set UsageError when there are rows
    already, and WrongKey when no key here opens its contents; NotFound, Ambiguous, TierDown.
    """
    before: dict[str, int] = {}

    def accept(held: dict[str, int]) -> None:
        before.update(held)
        if any(held.values()) and not force:
            there = ", ".join(f"{count} {name}" for name, count in held.items())
            raise UsageError(
                f"the hot cache is not empty ({there} rows); nothing was changed",
                hint="to put the dump in their place: --force; sync_log keeps what it has",
            )

    with _task(archive, "restore") as task, _opened(archive, which, task) as (source, stale):
        made = _verified(source)
        if not force:
            _ring(archive.settings, made)
        if task.hot.state().version:
            accept(task.hot.census())
        if dry_run:
            task.status = ""
        else:
            task.hot.prepare()
            task.hot.restore(dumpfile.lines_of(source, made), accept)
        task.details |= {"dump": source.name, "rows": made.rows(), "before": dict(before)}
    return Restored(
        name=source.name,
        newest=made.newest,
        rows=made.rows(),
        before=before,
        dry_run=dry_run,
        stale=stale,
        milliseconds=task.milliseconds(),
    )


def listing(archive: Archive) -> tuple[list[Shelved], str]:
    """The dumps that there are, newest first, and why there may be others."""
    store = _store(archive)
    tip, stale = _known(store, Deadline(archive.settings.master.fetch_seconds))
    tree = store.tree(tip)
    return [_shelved(store, tree, name) for name in reversed(_names(tree))], stale


def _file(store: Master, tree: Tree, path: str) -> bytes:
    return store.blob(tree[path], path)


def _shelved(store: Master, tree: Tree, name: str) -> Shelved:
    try:
        made = Manifest.decoded(_file(store, tree, f"{name}/{MANIFEST}"))
    except ValueError:
        made = Manifest(0, "", (), {})  # a drill or a restore says what is wrong with it
    marker = tree.get(f"{name}.verified")
    return Shelved(
        name=name,
        made=dumpfile.made_at(name),
        rows=made.rows(),
        bytes=made.bytes(),
        keys=made.keys,
        verified=store.blob(marker, f"{name}.verified").decode().strip() if marker else "",
    )


# --- one run -------------------------------------------------------------------------------------


@contextmanager
def _task(archive: Archive, kind: str, source: str = "") -> Iterator[_Task]:
    """One run at a time on this machine, noted in the log whether it works or not."""
    settings, started = archive.settings, now()
    if not settings.hot.url:
        raise UsageError(
            "no hot cache is configured, so there is nothing to dump or restore",
            hint="master is git: clone it for a copy. A hot cache is set by DATABASE_URL",
        )
    hot = Hot(settings.hot.url, schema=settings.hot.schema, seconds=settings.hot.seconds)
    task = _Task(hot, Deadline(settings.dump.seconds))
    busy = "another dump, drill or restore is running on this machine"
    with lock.hold(settings.at("dump.lock"), Deadline(1.0), busy):
        try:
            hot.ping()  # one that is dead takes no longer than it may
            with hot.within(task.deadline):
                yield task
        except BaseException as error:
            task.status = "" if isinstance(error, _NO_RUN) else "failed"
            task.details["error"] = getattr(error, "message", type(error).__name__)
            raise
        finally:
            hot.close()
            if task.status:
                task.details["milliseconds"] = task.milliseconds()
                host = socket.gethostname()
                run = Run(kind, task.status, started, now(), source, host, task.details)
                archive.record(run)


def _writable(to: str, *, force: bool) -> str:
    """Where a copy goes. Raises UsageError when nothing may be written there."""
    path = os.path.abspath(to)
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder; nothing was dumped", hint="name a file in it")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists; nothing was dumped", hint="name another file, or --force")
    if not os.path.isdir(os.path.dirname(path)):
        raise UsageError(f"{path}: there is no such folder; nothing was dumped", hint="make it")
    return path


def _export(hot: Hot, store: Master) -> tuple[Manifest, dict[str, str]]:
    """The tables as blobs of the store: the manifest, and all files with it → blob id."""
    if not hot.state().version:
        raise UsageError("the hot cache holds nothing yet", hint="annoris sync fills it")
    tally, files = dumpfile.Tally(), {}
    for name, data in dumpfile.split(hot.export()):
        tally.add(name, data)
        files[name] = store.store(data)
    made = tally.manifest()
    return made, {MANIFEST: store.store(made.encoded()), **files}


# --- the branch ----------------------------------------------------------------------------------


def _store(archive: Archive, folder: str = "dumps.git") -> Master:
    """The branch of dumps, and where it comes to on this machine."""
    master, settings = archive.master, archive.settings
    own = replace(settings.master, branch=settings.dump.branch, include=("**",))
    if master.embedded:
        master.create()
        return Master(master.folder, own)
    store = Master(settings.at(folder), own)
    store.create()
    return store


@contextmanager
def _fresh_store(archive: Archive) -> Iterator[Master]:
    """The same without anything that this machine had before; the clone itself, if that is it."""
    place = archive.settings.at("drill.git")
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield _store(archive, "drill.git")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _fetched_anew(store: Master, deadline: Deadline) -> str:
    """The commit of the branch. A remote that answers but can't give it has lost some of it."""
    try:
        return _fetch(store, deadline)
    except RemoteUnreachable as error:
        store.branches(deadline)
        raise FindingsFound(
            f"{store.remote} answers, but does not give its dumps: {error.message}",
            hint="look at it with: git fsck; annoris dump --to FILE makes one elsewhere",
        ) from error


def _fetch(store: Master, deadline: Deadline) -> str:
    """The commit that the branch is at, here too; empty when there is none."""
    tip = store.fetch(deadline)
    if not store.embedded:
        store.accept(tip)
        store.claim()
    return tip


def _known(store: Master, deadline: Deadline) -> tuple[str, str]:
    """The commit of the branch, and why there may be a newer one."""
    try:
        with store.lock(deadline):
            return _fetch(store, deadline), ""
    except (RemoteUnreachable, RemoteRefused) as error:
        if not (store.tip() and store.claimed()):
            raise
        return store.tip(), error.message


def _change(
    store: Master,
    deadline: Deadline,
    message: str,
    change: Callable[[Tree], tuple[Tree | None, T]],
) -> T:
    """Replace what the branch holds by what ``change`` makes of it, if that is anything.

    It is asked again when another machine was faster.
    """
    races = 0
    while True:
        try:
            with store.lock(deadline):
                tip = _fetch(store, deadline)
                tree, answer = change(store.tree(tip))
                if tree is not None:
                    store.push(store.gather(tree, message), tip, deadline)
                return answer
        except LostRace:
            races += 1
            if deadline.over:
                raise RemoteUnreachable(
                    f"{store.remote} is busy: others were faster {races} times"
                ) from None
            time.sleep(deadline.left(random.uniform(0, min(2.0, 0.1 * 2**races))))  # noqa: S311 - jitter


def _add(
    archive: Archive, store: Master, files: Tree, made: Manifest, deadline: Deadline
) -> Dumped:
    """Bring a dump to the branch, unless its newest one says the same."""
    limits = archive.settings.dump
    done = Dumped(name="", pushed=False, rows=made.rows(), bytes=made.bytes())

    def change(tree: Tree) -> tuple[Tree | None, Dumped]:
        names = _names(tree)
        if not names:
            _must_have_master(archive, store, deadline)
        elif _says(store, tree, names[-1]) == made.tells():
            return None, replace(done, name=names[-1])
        at = max([now(), *(_after(dumpfile.made_at(name)) for name in names[-1:])])
        name = dumpfile.name_of(made.encoded(), at)
        proven = [one for one in names if f"{one}.verified" in tree]
        keep = dumpfile.kept(
            [*names, name],
            proven,
            daily=limits.daily,
            weekly=limits.weekly,
            monthly=limits.monthly,
        )
        new = {path: oid for path, oid in tree.items() if _owner(path) in {"", *keep}}
        new |= {f"{name}/{file}": oid for file, oid in files.items()}
        dropped = tuple(one for one in names if one not in keep)
        return new, replace(done, name=name, pushed=True, dropped=dropped)

    return _change(store, deadline, "Keep what the hot cache holds", change)


def _mark(store: Master, name: str, deadline: Deadline) -> None:
    """Note on the branch that a dump was found whole, if it is still there."""
    marker = store.store(f"{now()}\n".encode())

    def change(tree: Tree) -> tuple[Tree | None, None]:
        here = f"{name}/{MANIFEST}" in tree
        return {**tree, f"{name}.verified": marker} if here else None, None

    _change(store, deadline, f"Note that {name} is whole", change)


def _must_have_master(archive: Archive, store: Master, deadline: Deadline) -> None:
    """The first branch of a repository becomes its default: that one must be master."""
    master = archive.master
    there = master.tip() if master.embedded else master.branch in store.branches(deadline)[0]
    if not there:
        raise UsageError(
            f"{master.remote or master.folder} has no branch {master.branch} yet, so there is "
            "nothing to dump",
            hint="save something first: annoris save FILE",
        )


def _says(store: Master, tree: Tree, name: str) -> object:
    """What a dump holds, as its manifest says; nothing when that can't be read."""
    with suppress(ValueError):
        return Manifest.decoded(_file(store, tree, f"{name}/{MANIFEST}")).tells()
    return None


def _after(moment: str) -> str:
    """A second later: names stay in order when a clock went wrong."""
    return (datetime.fromisoformat(moment) + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _owner(path: str) -> str:
    """The dump that a path belongs to; empty for what is not ours."""
    found = _OF_DUMP.match(path)
    return found[1] if found else ""


def _names(tree: Tree) -> list[str]:
    """Dumps, oldest first."""
    return sorted({owner for path in tree if "/" in path and (owner := _owner(path))})


def _files(tree: Tree, name: str) -> dict[str, str]:
    folder = f"{name}/"
    return {path.removeprefix(folder): oid for path, oid in tree.items() if path.startswith(folder)}


def _chosen(names: list[str], which: str) -> str:
    """The dump that is meant: the latest, or the one whose name begins so."""
    if not names:
        raise NotFound("there is no dump yet", hint="annoris dump makes one")
    if which == "latest":
        return names[-1]
    fit = [name for name in names if name.startswith(which)]
    if len(fit) == 1:
        return fit[0]
    if fit:
        raise Ambiguous(
            f"{which!r} fits {len(fit)} dumps: {', '.join(fit[:5])}", hint="give more of the name"
        )
    raise NotFound(f"no dump and no file {which!r}", hint="see them: annoris dump list")


@contextmanager
def _pushing(to: str) -> Iterator[None]:
    """Errors of a push, in words about a dump."""
    try:
        yield
    except (RemoteUnreachable, RemoteRefused) as error:
        hint = error.hint
        if isinstance(error, RemoteUnreachable):
            hint = "run annoris dump again when it answers"
        elif isinstance(error, PolicyRefused):
            hint = "let this user push to that branch and replace what it holds (force push)"
        kind = RemoteRefused if isinstance(error, RemoteRefused) else RemoteUnreachable
        raise kind(
            f"the dump was not pushed: {error.message}",
            hint=f"{to} holds it, whole; {hint}" if to else hint,
        ) from error


# --- one dump ------------------------------------------------------------------------------------


def _source(store: Master, name: str, files: Tree) -> Source:
    def read(file: str) -> bytes:
        try:
            return _file(store, files, file)
        except StorageError as error:
            raise FindingsFound(
                f"the dump {name} is damaged: {file} can't be read: {error.message}",
                hint=f"if only the copy here is: move {store.folder} away, then try again",
            ) from error

    return Source(name, sorted(files), read)


@contextmanager
def _opened(archive: Archive, which: str, task: _Task) -> Iterator[tuple[Source, str]]:
    """The dump that is meant, and why there may be a newer one."""
    if os.path.isfile(which):
        with dumpfile.open_tar(which) as source:
            yield source, ""
        return
    store = _store(archive)
    tip, stale = _known(store, task.deadline)
    tree = store.tree(tip)
    name = _chosen(_names(tree), which)
    yield _source(store, name, _files(tree, name)), stale


def _verified(source: Source) -> Manifest:
    made = dumpfile.verify(source)
    if made.schema > VERSION:
        raise dumpfile.newer(source.name)
    return made


def _ring(settings: Settings, made: Manifest) -> KeyRing | None:
    """The keys here, if they open what the dump holds; None when nothing in it is sealed."""
    if not made.keys:
        return None
    try:
        ring = envelope.load_ring(settings.at("key"), settings.key)
        here = f"here is {', '.join(key.id for key in ring.keys)}"
        lacking = [key for key in made.keys if not ring.find(key)]
    except KeyProblem as error:
        here, lacking = error.message, list(made.keys)
    if lacking:
        raise WrongKey(
            f"the dump is sealed with key {', '.join(lacking)}; {here}; nothing was changed",
            hint="bring it: annoris key import. Without it no content opens; to restore the rest "
            "all the same: --force",
            details={"needed": lacking},
        )
    return ring


def _open_all(source: Source, made: Manifest, ring: KeyRing | None) -> int:
    """How many contents there are. Raises FindingsFound for those that are not as saved."""
    opened, wrong = 0, []
    for table, line in dumpfile.lines_of(source, made):
        row = json.loads(line) if table == "sessions" else {}
        if row.get("content"):
            opened += 1
            if not _opens(row, ring):
                wrong.append(row["id"])
    if wrong:
        raise FindingsFound(
            f"in the dump {source.name}, {counted(len(wrong), 'content')} did not open, or "
            f"differed from what was saved: {', '.join(wrong[:3])}",
            hint="annoris sync --full mends the hot cache; then make another dump",
            details={"sessions": wrong},
        )
    return opened


def _opens(row: dict[str, str], ring: KeyRing | None) -> bool:
    try:
        data = ring and envelope.open_(
            row["content"], ring=ring, session=row["id"], oid=row["github_sha"]
        )
    except KeyProblem:
        return False
    md5 = hashlib.md5(data or b"", usedforsecurity=False).hexdigest()
    return data is not None and md5 == row["checksum"]


def _telling(lines: Iterable[Line]) -> Iterator[Line]:
    """Without the log of dumps, which is another one after each."""
    return (line for line in lines if line[0] != "dump_log")
