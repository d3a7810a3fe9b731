"""Giving master the other form (sealed or plain), or another key, in one commit on its tip.

History before that commit stays as it was: git forgets nothing. The lease of the push makes it
safe against other machines: what they saved meanwhile is in the next attempt.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

from annoris import document, projects
from annoris.catalog import Catalog
from annoris.errors import DocumentRefused, RemoteUnreachable
from annoris.follow import Follower
from annoris.gitcmd import LostRace
from annoris.layout import Layout, Sealed, is_sealed, transcript_of
from annoris.master import Master
from annoris.model import Deadline, Document, Entry, Session
from annoris.settings import MasterSettings

T = TypeVar("T")


@contextmanager
def reading(follower: Follower, settings: MasterSettings, layout: Layout) -> Iterator[Follower]:
    """The same clone, followed in the form of ``layout``, with a catalog that lasts as long."""
    folder = follower.master.folder
    with tempfile.TemporaryDirectory(prefix="convert-", dir=os.path.dirname(folder)) as place:
        catalog = Catalog(os.path.join(place, "catalog.sqlite"), text=False)
        with closing(catalog):
            yield Follower(Master(folder, settings, layout), catalog, follower.outbox)


def converted(old: Follower, master: Master, tip: str) -> str:
    """A commit on ``tip``, whose form ``old`` reads, with its sessions in the form of ``master``.

    The documents stay as they are, but for those of which only the path or git said the id,
    the project or the time: these then say it themselves. What does not open stays where it is.
    """
    master.layout.begin()
    old.show(tip)
    files: dict[str, bytes | None] = dict.fromkeys(old.master.layout.foundation_paths)
    rows = {row.path: row for row in old.catalog.settled()}
    entries = [Entry(row.path, row.oid) for row in rows.values()]
    for entry, data in old.master.blobs(entries):
        row = rows[entry.path]
        files[entry.path] = None
        created = row.created or row.saved
        path = master.layout.path_for(row.project, row.title, created, row.id)
        files[path] = _telling(row, data)
    files |= _projects(old.master, master, tip)
    files |= _transcripts(old.master, master, tip)
    return master.rewrite(tip, files, "Keep sessions in another form")


def here(follower: Follower, old: Follower, deadline: Deadline) -> bool:
    """Convert the master that this machine follows; False when it needs no conversion.

    Raises Locked, and what a fetch and a push raise; then nothing has changed.
    """
    master = follower.master

    def attempt() -> bool:
        found = master.fetch(deadline)
        if master.scope(found) in (None, master.layout.scope):
            return False
        old.fetch(deadline)
        tip = master.tip()
        master.push(converted(old, master, tip), tip, deadline)
        follower.mark_checked()
        return True

    with master.lock(deadline):
        return racing(attempt, master.remote, deadline)


def reseal(follower: Follower, deadline: Deadline) -> int:
    """Seal master's tip again under this machine's current key; answers how many files.

    What does not open stays as it is. Raises as ``here`` does.
    """
    master = follower.master
    layout = master.layout
    assert isinstance(layout, Sealed)  # noqa: S101 - as the callers know

    def attempt() -> int:
        follower.fetch(deadline)
        tip = master.tip()
        if not tip:
            return 0
        master.must_fit(tip)
        entries = [Entry(path, oid) for path, oid in master.tree(tip, is_sealed).items()]
        files = {e.path: data for e, data in master.blobs(entries, bad=lambda *_: None)}
        layout.turn()
        master.push(master.rewrite(tip, dict(files), "Seal under another key"), tip, deadline)
        follower.mark_checked()
        return len(files)

    with master.lock(deadline):
        return racing(attempt, master.remote, deadline)


def racing(attempt: Callable[[], T], remote: str, deadline: Deadline) -> T:
    """What ``attempt`` answers, made again whenever another machine was faster."""
    while True:
        try:
            return attempt()
        except LostRace:
            if deadline.over:
                raise RemoteUnreachable(
                    f"{remote} is busy: others were faster", hint="try again"
                ) from None


def _projects(old: Master, master: Master, tip: str) -> dict[str, bytes | None]:
    """Projects' files where the form of ``master`` has them; one without a name stays."""
    files: dict[str, bytes | None] = {}
    tree = old.tree(tip, old.layout.is_project).items()
    for entry, data in old.blobs((Entry(*item) for item in tree), bad=lambda *_: None):
        try:
            project = projects.parse(entry.path, data)
        except DocumentRefused:  # a person mends it, in this form or in that
            project = None
        if project is None:
            continue
        path = master.layout.project_path(project.name)
        if files.get(path):
            path = master.layout.project_path(project.name, project.id)
        files[entry.path] = None
        files[path] = projects.edited(data, {"name": project.name}, project)
    return files


def _transcripts(old: Master, master: Master, tip: str) -> dict[str, bytes | None]:
    """Transcripts where the form of ``master`` has them."""
    files: dict[str, bytes | None] = {}
    tree = old.tree(tip, lambda path: bool(transcript_of(path))).items()
    for entry, data in old.blobs((Entry(*item) for item in tree), bad=lambda *_: None):
        files[entry.path] = None
        files[master.layout.transcript_path(transcript_of(entry.path))] = data
    return files


def _telling(row: Session, data: bytes) -> bytes:
    """A document that says itself what its place on master said of it."""
    said = document.inspect(data)
    if (said.id, said.project, said.saved) == (row.id, row.project, row.saved):
        return data
    front, body = document.split(data)
    fields = {"id": row.id, "project": row.project, "created": row.created, "saved": row.saved}
    try:
        return document.stamp(Document(front, body, said), fields)
    except DocumentRefused:  # its front matter is full
        return data
