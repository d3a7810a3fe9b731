"""Keeping up with master: sync, where one stands, what is wrong with this installation."""

from __future__ import annotations

import os
import time

from annoris import condition
from annoris.archive import Archive
from annoris.errors import (
    AnnorisError,
    KeyProblem,
    Locked,
    Queued,
    RemoteRefused,
    RemoteUnreachable,
    ScopeMismatch,
    StorageError,
)
from annoris.layout import is_sealed
from annoris.model import Ailment, Deadline, Entry, Report, Standing
from annoris.settings import Settings


def sync(archive: Archive, *, force: bool = False) -> Report:
    """Flush the outbox, fetch, and make the catalog show master.

    Raises Locked, MasterShrunk, RemoteRefused, StorageError; Queued when master can't be
    reached and something waits here, else RemoteUnreachable.
    """
    started = time.monotonic()
    archive.master.create()
    limits = archive.settings.master
    before = archive.master.tip()
    try:
        with archive.master.lock(Deadline(1.0)):
            archive.follower.fetch(Deadline(limits.push_seconds), force=force)
            count = archive.catalog.count()
            archive.follower.refresh()
    except RemoteUnreachable as error:
        archive.remember(error)
        raise _undelivered(archive, error) from error
    outcome = archive.flush(patient=True)
    receipts = list(outcome.receipts.values())
    if isinstance(outcome.error, RemoteUnreachable):
        raise _undelivered(archive, outcome.error)
    if isinstance(outcome.error, (Locked, RemoteRefused, StorageError, ScopeMismatch, KeyProblem)):
        raise outcome.error
    sealed = archive.master.layout.sealed
    hot = archive.caches.project(
        lambda: {row.id: row for row in archive.catalog.settled()},
        archive.master.blobs,
        archive.master.tip(),
        archive.follower.position(),
        archive.master.identity,
        lambda: archive.catalog.filed()[0],
    )
    return Report(
        hot=hot,
        problems=(*archive.catalog.filed()[1], *(unreadable(archive) if sealed else ())),
        pushed=sum(item.state in ("master", "conflict") for item in receipts),
        queued=len(archive.outbox.read()[0]),
        conflicts=tuple({i.id: i for i in receipts if i.state == "conflict"}.values()),
        set_aside=tuple(item for item in receipts if item.state == "refused"),
        before=before,
        after=archive.master.tip(),
        removed=max(0, count - archive.catalog.count()),
        sessions=archive.catalog.count(),
        milliseconds=round((time.monotonic() - started) * 1000),
    )


def unreadable(archive: Archive) -> list[str]:
    """Files on master that have not the form of this master, or do not open, and why.

    They are not shown and stop nothing. The catalog shows the tip.
    """
    master, tip = archive.master, archive.master.tip()
    found = [
        f"{path} is not shown: it does not have the form of this master"
        for path in master.tree(tip, master.layout.stray)
    ]
    if master.layout.sealed:
        shown = archive.catalog.entries()
        tree = master.tree(tip, is_sealed).items()
        late = [Entry(path, oid) for path, oid in tree if shown.get(path) != oid]
        for _ in master.blobs(late, bad=lambda e, error: found.append(_not_shown(e, error))):
            pass
    return found


def _not_shown(entry: Entry, error: KeyProblem) -> str:
    return f"{entry.path} is not shown: {error.message}"


def _undelivered(archive: Archive, error: RemoteUnreachable) -> AnnorisError:
    waiting = len(archive.outbox.read()[0])
    if not waiting:
        return error
    return Queued(f"{error.message}; {waiting} waiting here, safe", hint=error.hint)


def status(archive: Archive) -> Standing:
    """Where one stands, without waiting for master any longer than a load would."""
    stale = archive.look()
    drafts, _ = archive.outbox.read()
    project = archive.default_project()
    return Standing(
        project=project,
        newest=archive.catalog.newest(project),
        sessions=archive.catalog.count(),
        projects=len(archive.catalog.projects()),
        master=archive.master.remote or archive.master.folder,
        branch=archive.master.branch,
        tip=archive.master.tip(),
        checked=archive.checked(),
        stale=stale,
        waiting=len(drafts),
        oldest_waiting=drafts[0].at if drafts else "",
        aside=len(archive.outbox.aside()),
        data=archive.settings.data_dir,
        config=archive.settings.source,
        key=condition.key_id(archive.settings),
        tiers=condition.tiers(archive),
    )


def _about_form(archive: Archive) -> list[Ailment]:
    """What is wrong with the form of master's files, or with the key that opens them."""
    master, tip = archive.master, archive.master.tip()
    if not tip:
        return []
    try:
        master.must_fit(tip)
        archive.follower.refresh()
    except (ScopeMismatch, KeyProblem) as error:
        return [Ailment(error.message, error.hint)]
    except StorageError:  # a damaged clone, which is told of by itself
        return []
    mend = "see where it comes from: annoris history PATH"
    return [Ailment(problem, mend) for problem in unreadable(archive)]


def ailments(archive: Archive) -> list[Ailment]:
    """What is wrong with this installation."""
    found = []
    drafts, damaged = archive.outbox.read()
    found += [
        Ailment(f"{path} is damaged", "look at it: its text is readable; then remove it")
        for path in damaged
    ]
    found += _readable(archive.settings)
    found += _about_form(archive)
    if archive.master.exists() and (broken := archive.master.check()):
        found.append(
            Ailment(f"the clone is damaged: {broken.splitlines()[0]}", archive.master.mend)
        )
    if not archive.master.embedded:
        try:
            tips, default = archive.master.branches(Deadline(10))
            if tips and archive.master.branch not in tips:
                found.append(
                    Ailment(
                        f"{archive.master.remote} has no branch {archive.master.branch}",
                        f"annoris init --remote {archive.master.remote} --branch {default}",
                    )
                )
        except AnnorisError as error:
            found.append(Ailment(error.message, error.hint))
    problems = archive.catalog.filed()[1]
    found += [Ailment(problem, "mend that file on master") for problem in problems]
    if drafts:
        found.append(Ailment(f"{len(drafts)} documents are not on master yet", "annoris sync"))
    found += condition.ailments(archive)
    found += [
        Ailment(
            f"{draft.title or draft.path} was refused: {reason}",
            f"annoris outbox retry {draft.key}",
        )
        for draft, reason in archive.outbox.aside()
    ]
    return found


def _readable(settings: Settings) -> list[Ailment]:
    """A configuration with a secret in it that others may read."""
    path = settings.source
    secret = path and (settings.master.token or settings.alerts.urls)
    if not (secret and os.stat(path).st_mode & 0o077):
        return []
    return [Ailment(f"{path} may be read by others", f"chmod 600 {path}")]
