"""Where one stands, what was run, what is wrong with this installation."""

from __future__ import annotations

import os

from annoris import condition
from annoris.archive import Archive
from annoris.errors import AnnorisError, KeyProblem, ScopeMismatch, StorageError
from annoris.model import Ailment, Deadline, Glance, Run, Standing, counted
from annoris.settings import Settings
from annoris.sync import sync, unreadable

__all__ = ["ailments", "glance", "log", "status", "sync", "unreadable"]


def status(archive: Archive) -> Standing:
    """Where one stands, without waiting for master any longer than a load would."""
    stale = archive.look()
    drafts, _ = archive.outbox.read()
    project = archive.default_project()
    syncs = archive.runs.recent(50, "sync")
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
        last_sync=next((run.finished for run in syncs if run.status != "failed"), ""),
        trouble=str(syncs[0].details.get("error", "")) if syncs else "",
    )


def glance(archive: Archive) -> Glance:
    """Where one stands by what this machine knows: no server is asked."""
    archive.follower.refresh()
    project, known = archive.default_project(), archive.settings
    tiers = {"hot": known.hot.url, "emergency": known.emergency.url, "master": known.master.remote}
    return Glance(
        project=project,
        newest=archive.catalog.newest(project),
        sessions=archive.catalog.count(),
        projects=len(archive.catalog.projects()),
        waiting=len(archive.outbox.read()[0]),
        aside=len(archive.outbox.aside()),
        tiers=(*(tier for tier, where in tiers.items() if where), "clone"),
        down={tier: state.why for tier, state in archive.breaker.state().items()},
        checked=archive.checked(),
    )


def log(
    archive: Archive, limit: int = 20, kind: str = "", before: Run | None = None
) -> tuple[list[Run], str]:
    """The last runs, newest first, and which log told: the shared one, or this machine's.

    ``before``: go on after that one, of which only ``started``, ``id`` and ``key`` count.
    """
    shared = archive.caches.runs(limit, kind, before)
    if shared is not None:
        return shared, "hot"
    return archive.runs.recent(limit, kind, before), "here"


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
        found.append(
            Ailment(f"not on master yet: {counted(len(drafts), 'document')}", "annoris sync")
        )
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
