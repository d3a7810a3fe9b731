"""Bringing what is on this machine to a master that is new to it."""

from __future__ import annotations

from dataclasses import replace

from annoris.convert import converted, racing
from annoris.dataclass import dataclass
from annoris.errors import ScopeMismatch
from annoris.follow import Follower, make_row
from annoris.layout import SETTING, mismatch, transcript_of
from annoris.master import Commit, Master, now
from annoris.model import Deadline, Draft, Entry


@dataclass(frozen=True, slots=True)
class Joined:
    """How many sessions were brought, and whether the history of this machine came along."""

    brought: int = 0
    history: bool = True
    converted: bool = False


def join(
    follower: Follower, here: str, deadline: Deadline, *, old: Follower | None = None
) -> Joined:
    """Bring the history of this machine, ``here``, to a master that is new to it.

    A session that both have with other bytes goes through the outbox, where master keeps its
    own and ours becomes a copy. A sealed master takes no history with plain sessions in it:
    then only the newest revisions go there. ``old`` reads the other form, where what is here
    or there has it and is to be converted. Raises ScopeMismatch without it.
    """
    master = follower.master
    master.create()
    with master.lock(deadline):
        joined = racing(lambda: _attempt(follower, here, deadline, old), master.remote, deadline)
        follower.mark_checked()
        return joined


def _attempt(follower: Follower, here: str, deadline: Deadline, old: Follower | None) -> Joined:
    master = follower.master
    there = master.fetch(deadline)
    here = "" if master.claimed() else here  # else there is nothing of our own in the clone
    if not old:
        _refuse_other_form(master, here, there)
    base = _fitting(master, there, old)
    if base:
        master.must_fit(base)
    ours = _fitting(master, here, old)
    if base == there and master.claimed():
        follower.fetch(deadline)
        joined = Joined()
    else:
        joined = _joined(follower, ours, base, there, deadline)
    _found(master, deadline)
    return replace(joined, converted=old is not None and (base, ours) != (there, here))


def _joined(follower: Follower, here: str, base: str, there: str, deadline: Deadline) -> Joined:
    """Push what makes ``here`` part of ``base``, which is ``there`` in master's form."""
    master = follower.master
    if not here or (base and master.descends(base, here)):
        _take(master, base, there, deadline)
        return Joined()

    def beside(path: str) -> bool:
        return master.layout.is_project(path) or bool(transcript_of(path))

    history = not (master.layout.sealed and master.ever_plain(here))
    ours, theirs = master.tree(here), master.tree(base)
    if history and (not base or master.descends(here, base)):
        master.push(here, there, deadline)
        return Joined(len(ours.keys() - theirs.keys()))
    only = [Entry(path, oid) for path, oid in ours.items() if path not in theirs]
    known = master.tree(base, beside)
    filed = [Entry(*item) for item in master.tree(here, beside).items() if item[0] not in known]
    files = {entry.path: data for entry, data in master.blobs([*only, *filed])}
    both = [Entry(path, ours[path]) for path in ours.keys() & theirs.keys()]
    _requeue(follower, [entry for entry in both if entry.oid != theirs[entry.path]])
    if history:
        base = master.merge(base, here, files)
    elif files:
        base = master.commit(base, [Commit(files, "Bring what was saved elsewhere", now())])
    _take(master, base, there, deadline)
    return Joined(len(only), history)


def _take(master: Master, commit: str, there: str, deadline: Deadline) -> None:
    if commit == there:
        master.accept(there)
    else:
        master.push(commit, there, deadline)


def _fitting(master: Master, tip: str, old: Follower | None) -> str:
    """``tip`` in master's form: itself, or a commit on it that is not pushed yet."""
    scope = master.scope(tip)
    if old and scope not in (None, master.layout.scope):
        return converted(old, master, tip)
    if scope is None and tip and master.layout.sealed:  # no proof of the key, no writing
        return master.rewrite(tip, {}, "Make room for sessions")
    return tip


def _refuse_other_form(master: Master, here: str, there: str) -> None:
    for tip, ours in ((there, False), (here, True)):
        scope = master.scope(tip)
        if scope in (None, master.layout.scope):
            continue
        if not ours:
            raise mismatch(scope, master.remote)
        raise ScopeMismatch(
            f"what was saved on this machine is {scope}, but encryption.scope is "
            f"{SETTING[master.layout.scope]}; nothing was written",
            hint="to take it there in the other form, add --convert",
        )


def _found(master: Master, deadline: Deadline) -> None:
    """Say in the repository that Annoris keeps sessions here, once."""
    tip = master.tip()
    if not tip:
        master.push(master.commit(tip, []), tip, deadline)
    elif not master.founded(tip):
        master.push(master.rewrite(tip, {}, "Make room for sessions"), tip, deadline)


def _requeue(follower: Follower, entries: list[Entry]) -> None:
    drafts = []
    for entry, data in follower.master.blobs(entries):
        row = make_row(entry.path, entry.oid, data).session
        drafts.append(
            Draft(
                key="",
                op="save",
                id=row.id,
                path=entry.path,
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
