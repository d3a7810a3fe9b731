"""Bringing what is on this machine to a master that is new to it."""

from __future__ import annotations

from annoris.errors import RemoteUnreachable
from annoris.follow import Follower, make_row
from annoris.gitcmd import LostRace
from annoris.master import FOUNDATION, Commit, Master, now
from annoris.model import Deadline, Draft
from annoris.projects import is_file


def join(follower: Follower, here: str, deadline: Deadline) -> int:
    """Bring the history of this machine, ``here``, to a master that is new to it.

    Answers how many sessions were brought. One that both have with other bytes goes
    through the outbox, where master keeps its own and ours becomes a copy.
    """
    master = follower.master
    master.create()
    with master.lock(deadline):
        while True:
            try:
                brought = _joined(follower, here, deadline)
                _found(master, deadline)
            except LostRace:
                if deadline.over:
                    raise RemoteUnreachable(
                        f"{master.remote} is busy: others were faster",
                        hint="try again",
                    ) from None
            else:
                follower.mark_checked()
                return brought


def _joined(follower: Follower, here: str, deadline: Deadline) -> int:
    master = follower.master
    if master.claimed():
        follower.fetch(deadline)  # there is nothing of our own in the clone
        return 0
    there = master.fetch(deadline)
    ours = master.tree(here)
    theirs = master.tree(there)
    if here and not there:
        master.push(here, "", deadline)
        return len(ours)
    if not here or master.descends(there, here):
        master.accept(there)
        return 0
    if master.descends(here, there):
        master.push(here, there, deadline)
        return len(ours.keys() - theirs.keys())
    only = {path: oid for path, oid in ours.items() if path not in theirs}
    known = master.tree(there, is_file)
    projects = {path: oid for path, oid in master.tree(here, is_file).items() if path not in known}
    files = {path: master.blob(oid) for path, oid in (only | projects).items()}
    joined = master.merge(there, here, files)
    both = {path: ours[path] for path in ours.keys() & theirs.keys()}
    _requeue(follower, {path: oid for path, oid in both.items() if oid != theirs[path]})
    master.push(joined, there, deadline)
    return len(only)


def _found(master: Master, deadline: Deadline) -> None:
    """Say in the repository that Annoris keeps sessions here, once."""
    tip = master.tip()
    if not tip or not master.founded(tip):
        files = FOUNDATION if tip else {}
        commits = [Commit(files, "Make room for sessions", now())] if tip else []
        master.push(master.commit(tip, commits), tip, deadline)


def _requeue(follower: Follower, entries: dict[str, str]) -> None:
    drafts = []
    for path, oid in entries.items():
        data = follower.master.blob(oid)
        row = make_row(path, oid, data).session
        drafts.append(
            Draft(
                key="",
                op="save",
                id=row.id,
                path=path,
                base="unknown",
                project=row.project,
                name=row.name,
                title=row.title,
                body_md5=row.body_md5,
                at=row.saved or now(),
                data=data,
            )
        )
    if drafts:
        follower.outbox.add(drafts)
