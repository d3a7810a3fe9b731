"""sync: deliver what waits here, follow master, and bring every projection in step with it.

A run holds a lock of its own, and the clone's only while it changes the clone. So a second run
is told at once that one is under way, and a server that hangs keeps nobody from saving.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import starmap

from annoris import lock, plan
from annoris.archive import Archive
from annoris.errors import (
    AnnorisError,
    DocumentRefused,
    KeyProblem,
    Locked,
    OutOfTime,
    Queued,
    RemoteRefused,
    RemoteUnreachable,
    ScopeMismatch,
    StorageError,
)
from annoris.follow import Follower
from annoris.layout import is_sealed, transcript_of
from annoris.master import now, tidy
from annoris.mirror import Mirror
from annoris.model import Change, Deadline, Entry, Finding, Projected, Receipt, Report, Run

SECONDS = 840.0  # a cron job that starts every 15 minutes has ended before the next one

_FIRST = 5  # times as long as any other may take the fetch that brings all of master
_LOCK_SECONDS = 10.0  # a save that is under way is waited for
_FATAL = (Locked, RemoteRefused, StorageError, ScopeMismatch, KeyProblem)
_MOST_TOLD = 50  # paths of one kind in a report and in the log
_MOST_READ = 500  # new documents that are looked at; verify looks at all
_LOGGED = 300  # runs of this machine that the shared log is asked about
_OLD = 3600.0  # seconds after which nobody is at what carries a passing name
_PASSING = (
    r"runs\.jsonl\.\d+|imports\.json\.[0-9a-f]{12}|convert-.*|clone\.git\.position\.\d+"
    r"|clone\.git\.[0-9a-f]{8}|\.tmp-.*"
)
_NOTED = 90 * 86400.0  # seconds after which nobody comes back to a file that was loaded here


def sync(
    archive: Archive,
    *,
    force: bool = False,
    full: bool = False,
    source: str = "",
    deadline: Deadline | None = None,
) -> Report:
    """Flush the outbox, fetch, and make every projection show master.

    ``full`` compares everything, and tidies. Raises Locked, MasterShrunk, RemoteRefused,
    StorageError; Queued when master can't be reached and something waits here, else
    RemoteUnreachable. What happened is noted, whether it went well or not.
    """
    started, clock = now(), time.monotonic()
    with running(archive):
        run = Run("sync", "failed", started, source=source, host=platform.node())
        try:
            report = _run(archive, _Steps(), deadline or Deadline(SECONDS), force, full)
        except (AnnorisError, OSError) as error:
            failed = _ended(run, {"error": str(error), "full": full})
            archive.record(failed, shared=not isinstance(error, OutOfTime))
            raise
        report = replace(report, milliseconds=round((time.monotonic() - clock) * 1000))
        status = "ok" if in_step(report) else "partial"
        archive.record(_ended(replace(run, status=status), _details(report)))
        return report


def running(archive: Archive) -> contextlib.AbstractContextManager[None]:
    """One run at a time on this machine. Raises Locked when another one is under way."""
    path = archive.settings.at("sync.lock")
    return lock.hold(path, Deadline(0.3), "another sync is running on this machine")


def in_step(report: Report) -> bool:
    """Whether every projection shows master now and nothing needs a person."""
    return not report.findings and all(item.state == "in step" for item in report.projections)


def dry_run(archive: Archive, deadline: Deadline | None = None) -> Report:
    """What a sync would do. Nothing is changed but for objects that the clone fetches."""
    started = time.monotonic()
    deadline = deadline or Deadline(SECONDS)
    archive.master.create()
    before = archive.master.tip()
    archive.follower.must_be_ours(before)
    after = archive.master.peek(Deadline(deadline.left(archive.settings.master.fetch_seconds)))
    tree = archive.master.tree(after)
    drafts, damaged = archive.outbox.read()
    changes = plan.changes(archive.master.tree(before), tree)
    seen = _would(plan.changes(_shown(archive), tree), "catalog")
    hot = _hot_would(archive, tree, deadline)
    return Report(
        pushed=len(drafts),
        before=before,
        after=after,
        changed=len(changes),
        removed=plan.counted(changes)[2],
        sessions=len(tree),
        milliseconds=round((time.monotonic() - started) * 1000),
        dry=True,
        projections=(seen, *([hot] if hot else [])),
        findings=tuple(map(outbox_damage, damaged)),
        incoming=tuple(change.path for change in changes[:_MOST_TOLD]),
        outgoing=tuple(draft.title or draft.path for draft in drafts[:_MOST_TOLD]),
    )


def mirror(archive: Archive, deadline: Deadline) -> Mirror:
    """The caches of an archive, compared with what it knows of master."""
    ask = asking(archive, deadline, archive.follower)
    return Mirror(archive.caches, archive.follower, archive.settings.hot, ask)


def asking(archive: Archive, deadline: Deadline, follower: Follower) -> Callable[[], None]:
    """A function that asks master for its newest tip and makes ``follower`` show it."""

    def ask() -> None:
        if not archive.master.embedded:
            follow(archive, deadline)
        follower.refresh()

    return ask


def outbox_damage(path: str) -> Finding:
    return Finding(
        "outbox-damaged", path, os.path.basename(path).removesuffix(".drafts"),
        "a document that was saved here can't be read any more in full",
        "look at the file, its text is readable; save that again; then remove the file",
    )  # fmt: skip


def document_problem(path: str, data: bytes, most: int) -> str:
    """What is wrong with a document on master, which no save would have let through."""
    from annoris import document  # noqa: PLC0415

    try:
        document.parse(data, where=path, max_bytes=most)
    except DocumentRefused as error:
        return error.message
    return ""


def _ignored(*_: object) -> None:
    """What does not open is told of by ``unreadable``."""


def unopened(archive: Archive, tree: Mapping[str, str]) -> dict[str, str]:
    """Files of a sealed master's tree that are not shown, because they do not open: path → why."""
    master, why = archive.master, dict[str, str]()
    if not master.layout.sealed:
        return why
    shown = archive.catalog.entries()
    late = [Entry(path, oid) for path, oid in tree.items() if shown.get(path) != oid]

    def note(entry: Entry, error: KeyProblem) -> None:
        why[entry.path] = f"{entry.path} is not shown: {error.message}"

    for _ in master.blobs(late, bad=note):
        pass
    return why


def unreadable(archive: Archive) -> list[str]:
    """Files on master that have not the form of this master, or do not open, and why.

    They are not shown and stop nothing. The catalog shows the tip.
    """
    master, tip = archive.master, archive.master.tip()
    stray = [
        f"{path} is not shown: it does not have the form of this master"
        for path in master.tree(tip, master.layout.stray)
    ]
    shown = master.tree(tip, lambda path: is_sealed(path) and not transcript_of(path))
    return stray + list(unopened(archive, shown).values())


def unfit(path: str, problem: str) -> Finding:
    return Finding(
        "document-unreadable", "master", path, problem, "mend the file on master and push it"
    )


# --- the run -----------------------------------------------------------------------------------


class _Steps:
    """How long each step took, in milliseconds."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.taken[name] = round((time.monotonic() - started) * 1000)


def _run(archive: Archive, step: _Steps, deadline: Deadline, force: bool, full: bool) -> Report:
    archive.master.create()
    before = archive.master.tip()
    shown = _shown(archive) if full or not _stands(archive, before) else None
    with step("master"):
        receipts = _deliver(archive, deadline, force)
    with step("catalog"):
        catalog = _catalog(archive, before, shown, full)
    done = [replace(catalog, milliseconds=step.taken["catalog"])]
    caches = mirror(archive, deadline)
    if archive.settings.hot.url:
        archive.follower.position(anew=full)
        done.append(caches.bring(deadline, full=full, force=force))
    if full and archive.settings.emergency.url:
        done.append(caches.sweep())
    after, sealed = archive.master.tip(), archive.master.layout.sealed
    changes = archive.master.diff(before, after) if before and after else []
    findings = [*_outbox(archive, full), *_new_documents(archive, changes)]
    if full:
        _tidy(archive)
    waiting = archive.outbox.read()[0]
    return Report(
        pushed=sum(item.state in ("master", "conflict") for item in receipts),
        queued=len(waiting),
        conflicts=tuple({i.id: i for i in receipts if i.state == "conflict"}.values()),
        set_aside=tuple(item for item in receipts if item.state == "refused"),
        before=before,
        after=after,
        changed=len(changes),
        removed=catalog.removed,
        sessions=archive.catalog.count(),
        hot=next((_touched(item) for item in done if item.tier == "hot"), None),
        full=full,
        projections=tuple(done),
        findings=tuple(findings),
        problems=(*archive.catalog.filed()[1], *(unreadable(archive) if sealed else ())),
        incoming=tuple(change.path for change in changes[:_MOST_TOLD]),
        outgoing=tuple(item.path for item in receipts[:_MOST_TOLD]),
        timings=step.taken,
    )


def _deliver(archive: Archive, deadline: Deadline, force: bool) -> list[Receipt]:
    """Master first: what it has comes here, what waits here goes there."""
    try:
        follow(archive, deadline, force=force)
    except RemoteUnreachable as error:
        archive.remember(error)
        raise _undelivered(archive, error) from error
    outcome = archive.flush(patient=True)
    if isinstance(outcome.error, RemoteUnreachable):
        raise _undelivered(archive, outcome.error)
    if isinstance(outcome.error, _FATAL):
        raise outcome.error
    return list(outcome.receipts.values())


def follow(archive: Archive, deadline: Deadline, *, force: bool = False) -> None:
    """Make the clone know master's tip; the lock is not held while master is asked.

    When somebody else moved the tip meanwhile, master is asked once more under the lock, so
    that nothing goes back.
    """
    master, follower = archive.master, archive.follower
    before = master.tip()
    seconds = archive.settings.master.push_seconds * (1 if before else _FIRST)
    wait = Deadline(deadline.left(seconds))
    follower.must_be_ours(before)
    found = "" if master.embedded else master.peek(wait)
    with master.lock(Deadline(deadline.left(_LOCK_SECONDS))):
        if found and master.tip() == before:
            follower.take(found, force=force)
        else:
            follower.fetch(wait, force=force)


def _undelivered(archive: Archive, error: RemoteUnreachable) -> AnnorisError:
    waiting = len(archive.outbox.read()[0])
    if not waiting:
        return error
    return Queued(f"{error.message}; {waiting} waiting here, safe", hint=error.hint)


def _shown(archive: Archive) -> dict[str, str]:
    """What the catalog shows of master; nothing when it was damaged, and is empty now."""
    try:
        return archive.catalog.entries()
    except StorageError:
        archive.catalog.reopen()
        return {}


def _stands(archive: Archive, tip: str) -> bool:
    """Whether the catalog says that it shows this tip: what changes is then told by two commits."""
    try:
        told = archive.catalog.commit, archive.catalog.master
    except StorageError:
        return False
    return bool(tip) and not archive.master.layout.sealed and told == (tip, archive.master.identity)


def _catalog(archive: Archive, before: str, shown: dict[str, str] | None, full: bool) -> Projected:
    """The catalog shows the tip; ``full`` does not believe it but looks.

    ``shown``: what it showed at first, or None when that is what master held ``before``.
    """
    healed = 0
    try:
        archive.follower.refresh()
    except StorageError:  # it was damaged, and is empty now
        archive.catalog.reopen()
        archive.follower.refresh()
    tip = archive.master.tip()
    if shown is None:
        return _would(archive.master.diff(before, tip), "catalog")
    tree = archive.master.tree(tip)
    for path in unopened(archive, tree):
        del tree[path]
    if full and (wrong := plan.changes(archive.catalog.entries(), tree)):
        archive.follower.rebuild()
        healed = len(wrong)
    return replace(_would(plan.changes(shown, tree), "catalog"), healed=healed)


def _would(changes: list[Change], tier: str) -> Projected:
    added, changed, removed = plan.counted(changes)
    return Projected(tier, added=added, changed=changed, removed=removed)


def _hot_would(archive: Archive, tree: dict[str, str], deadline: Deadline) -> Projected | None:
    if not archive.settings.hot.url:
        return None
    from annoris.hot import VERSION  # noqa: PLC0415

    held = archive.caches.survey(
        lambda hot: hot.entries() if hot.state().version == VERSION else {},
        deadline.left(archive.settings.hot.sync_seconds),
    )
    if held is None:
        return Projected("hot", "left out", why=archive.caches.why_not("hot"))
    shown = {row.path: row.oid for row in held.values() if not row.deleted}
    return _would(plan.changes(shown, tree), "hot")


def _touched(item: Projected) -> int | None:
    return None if item.state == "left out" else item.added + item.changed + item.removed


def _outbox(archive: Archive, full: bool) -> list[Finding]:
    """Damaged files of the outbox; ``full`` puts them where they are in nobody's way."""
    _, damaged = archive.outbox.read()
    if full:
        damaged = [archive.outbox.put_away(path) for path in damaged]
    return [outbox_damage(path) for path in damaged]


def _new_documents(archive: Archive, changes: list[Change]) -> Iterator[Finding]:
    """Documents that came with this run and that a person should look at. They are kept."""
    new = {change.path: change.oid for change in changes[:_MOST_READ] if change.oid}
    most = archive.settings.save.max_bytes
    for entry, data in archive.master.blobs(starmap(Entry, new.items()), bad=_ignored):
        if problem := document_problem(entry.path, data, most):
            yield unfit(entry.path, problem)
    for path, id in archive.catalog.doubles().items():
        if path in new:
            yield double(path, id)


def double(path: str, id: str) -> Finding:
    return Finding(
        "document-id-twice", "master", path,
        f"asks for the id {id}, which another file keeps; it has one made from its path",
        "give it an id of its own, or remove the line from its front matter",
    )  # fmt: skip


def _tidy(archive: Archive) -> None:
    """What killed processes left in the data folder, old notes, runs that the shared log lacks."""
    for entry in os.scandir(archive.settings.data_dir):
        if entry.name.endswith(".git"):
            tidy(entry.path, _OLD)
        with contextlib.suppress(OSError):
            if not re.fullmatch(_PASSING, entry.name) or time.time() < entry.stat().st_mtime + _OLD:
                continue
            if entry.is_dir():
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
    archive.notes.prune(_NOTED)
    archive.caches.log(run for run in archive.runs.recent(_LOGGED) if run.key)


def _ended(run: Run, details: dict[str, object]) -> Run:
    return replace(run, finished=now(), details=details)


def _details(report: Report) -> dict[str, object]:
    """What the log keeps of a run."""
    return {
        "from": report.before,
        "to": report.after,
        "full": report.full,
        "pushed": report.pushed,
        "queued": report.queued,
        "conflicts": [item.path for item in report.conflicts[:_MOST_TOLD]],
        "set_aside": {item.path: item.reason for item in report.set_aside[:_MOST_TOLD]},
        "changed": report.changed,
        "sessions": report.sessions,
        "tiers": {item.tier: asdict(item) for item in report.projections},
        "findings": [asdict(item) for item in report.findings[:_MOST_TOLD]],
        "milliseconds": {**report.timings, "all": report.milliseconds},
    }
