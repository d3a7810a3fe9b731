"""Following master: fetch, and the catalog that shows its tip and the outbox over it."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace

from annoris.catalog import Catalog, Row
from annoris.errors import DiskFull, DocumentRefused, MasterShrunk, RemoteRefused, StorageError
from annoris.layout import id_in
from annoris.master import Master
from annoris.model import Deadline, Entry, Meta, ProjectFile, Session
from annoris.outbox import Outbox

Said = tuple[Meta, str, bytes]  # what a document says of itself, its true etag, its body

_REBUILD_SECONDS = 600.0  # one process makes a catalog anew, the others wait for it


class Follower:
    def __init__(self, master: Master, catalog: Catalog, outbox: Outbox) -> None:
        self.master = master
        self.catalog = catalog
        self.outbox = outbox

    def fetch(self, deadline: Deadline, *, force: bool = False) -> None:
        """Make the clone know master's tip. The caller holds the lock.

        Raises MasterShrunk, with nothing changed, when master lost more than a fifth of its
        sessions and ``force`` is not set; ScopeMismatch or KeyProblem when this machine does not
        fit what master is now; RemoteRefused and RemoteUnreachable as git says.
        """
        before = self.master.tip()
        self.must_be_ours(before)
        found = self.master.fetch(deadline)
        if not (found or before or self.master.embedded):
            found = self._first(deadline)
        self.take(found, force=force)

    def take(self, found: str, *, force: bool = False) -> None:
        """Work from the tip that master was just found to have. The caller holds the lock.

        Raises MasterShrunk as ``fetch`` does.
        """
        before = self.master.tip()
        if found != before:
            if found:
                self.master.must_fit(found)
            if before and not force:
                self._guard(before, found)
            self.master.accept(found)
        self.mark_checked()

    def mark_checked(self) -> None:
        """Remember that this very master was asked just now, and that the clone is of it."""
        try:
            with open(self._checked_path(), "w", encoding="ascii"):
                pass
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull("the disk is full", hint="free some space; annoris sync") from error
        self.master.claim()

    def checked(self) -> float:
        """When master was last asked, in seconds since the epoch; 0 for never."""
        if self.master.embedded:
            return time.time()
        try:
            return os.stat(self._checked_path()).st_mtime if self.master.claimed() else 0.0
        except FileNotFoundError:
            return 0.0

    def position(self, *, anew: bool = False) -> int:
        """How far the tip is in the history of master: orders revisions in the caches.

        It goes on from what was counted last, unless all is to be counted ``anew``.
        """
        tip, path = self.master.tip(), f"{self.master.folder}.position"
        commit, position = "", 0
        if not tip:
            return 0
        with suppress(OSError, ValueError), open("" if anew else path, encoding="ascii") as file:
            found, number = file.read().split(" ")
            commit, position = found, int(number)
        if commit == tip:
            return position
        counted = self.master.count(tip, commit, position)
        temporary = f"{path}.{os.getpid()}"
        with suppress(OSError):
            with open(temporary, "w", encoding="ascii") as file:
                file.write(f"{tip} {counted}")
            os.replace(temporary, path)
        return counted

    def refresh(self) -> None:
        """Make the catalog show the tip that this machine knows, and the outbox over it.

        Raises as ``catch_up`` does.
        """
        self.catch_up()
        waiting, catalog = self.outbox.waiting(), self.catalog
        if catalog.overlay_keys() != waiting or (waiting and catalog.overlaid != catalog.commit):
            self.overlay()

    def catch_up(self) -> None:
        """Make layer 0 of the catalog show the tip that this machine knows.

        Raises ScopeMismatch or KeyProblem when this machine does not fit that tip.
        """
        identity = self.master.identity
        while (self.catalog.commit, self.catalog.master) != (tip := self.master.tip(), identity):
            self.show(tip)

    def show(self, tip: str) -> None:
        """Make layer 0 of the catalog show a commit, if no other process is at it."""
        shown, fresh = self.catalog.commit, self.catalog.master != self.master.identity
        if tip and (fresh or self.master.layout.sealed):
            self.master.must_fit(tip)
        self._project(shown, tip, fresh=fresh)

    def wanted(self, path: str) -> bool:
        """Whether the catalog shows a file on master: a session, or a project's."""
        return self.master.included(path) or self.master.layout.is_project(path)

    def rebuild(self) -> None:
        """Make the whole catalog anew, whatever it says that it shows."""
        self._project(self.catalog.commit, self.master.tip(), fresh=True)
        self.overlay()

    def _checked_path(self) -> str:
        return f"{self.master.folder}.checked"

    def must_be_ours(self, tip: str) -> None:
        """Refuse to mix what another master gave this machine with the one it is told to use."""
        if tip and not self.master.embedded and self.master.claimed() is False:
            raise RemoteRefused(
                f"what this machine holds was not saved to {self.master.remote} "
                f"({self.master.branch}); nothing was changed",
                hint=f"to take it there: annoris init --remote {self.master.remote} --move",
            )

    def _first(self, deadline: Deadline) -> str:
        """The tip of a branch that was not there: it is made only in a repository that has none."""
        branches, default = self.master.branches(deadline)
        if self.master.branch in branches:  # another machine has made it this very moment
            return self.master.fetch(deadline)
        if branches:
            raise RemoteRefused(
                f"{self.master.remote} has no branch {self.master.branch}; it has "
                f"{', '.join(sorted(branches)[:5])}",
                hint=f"annoris init --remote {self.master.remote} --branch {default or 'NAME'}",
            )
        return ""

    def _guard(self, before: str, found: str) -> None:
        from annoris import plan  # noqa: PLC0415

        changes = self.master.diff(before, found) if found else []
        if found and all(change.oid for change in changes):
            return
        have = self.master.tree(before)
        changes = changes if found else plan.changes(have, {})
        if not plan.shrinks(len(have), plan.vanishing(have, changes, set())):
            return
        deliberate = self.master.deliberate(before, found) if found else set()
        lost = plan.vanishing(have, changes, deliberate)
        if plan.shrinks(len(have), lost):
            gone = (
                f"has no branch {self.master.branch} any more"
                if not found
                else (f"lost {lost} of {len(have)} sessions")
            )
            raise MasterShrunk(
                f"{self.master.remote} {gone}; nothing here was changed",
                hint="if that is meant, accept it with: annoris sync --force; if not, give it "
                f"back with: git --git-dir={self.master.folder} push --force "
                f"{self.master.remote} {self.master.branch}",
                details={"lost": lost, "of": len(have)},
            )

    def _project(self, shown: str, tip: str, *, fresh: bool) -> None:
        """Bring layer 0 of the catalog from the commit it shows to ``tip``, or make it anew.

        Nothing happens when another process brings it elsewhere meanwhile.
        """
        from annoris import plan  # noqa: PLC0415

        layout = self.master.layout

        identity, known = self.master.identity, "" if fresh else shown
        try:
            # Times that only git knows are told anew by another history.
            known = known if known and tip and self.master.descends(tip, known) else ""
            changes = self.master.diff(known, tip, self.wanted) if known else []
        except StorageError:  # a clone that was made anew may never have seen that commit
            known = ""
        if not (known and tip):
            changes = plan.changes({}, self.master.tree(tip, self.wanted))
        there = [Entry(change.path, change.oid) for change in changes if change.oid]
        files = [entry for entry in there if layout.is_project(entry.path)]
        # What does not open any more is shown no more; a project's file may be none any more.
        filed = {entry.path for entry in files}
        gone = [i.path for i in changes if layout.sealed or not i.oid or i.path in filed]
        self.catalog.apply(
            after=shown,
            patience=5.0 if known and tip else _REBUILD_SECONDS,
            commit=tip,
            master=identity,
            replace_all=not (known and tip),
            upserts=self._rows((entry for entry in there if entry.path not in filed), tip, known),
            removals=gone,
            projects=self._project_files(files),
        )

    def _project_files(self, files: list[Entry]) -> list[ProjectFile]:
        """What projects' files say; what does not open is as if it were not there."""
        read = self.master.blobs(files, bad=lambda *_: None)
        return [file for entry, data in read if (file := project_file(entry.path, data))]

    def _rows(self, entries: Iterable[Entry], tip: str, since: str) -> Iterator[Row]:
        """Rows for files, those whose time only git knows (edited by hand) in groups.

        What does not open has none: ``upkeep.unreadable`` tells of it.
        """
        by_hand: dict[str, Row] = {}
        times: dict[str, str] = {}
        with closing(self.master.changed_at(tip, since)) as walk:  # one, however many groups
            for entry, data in self.master.blobs(entries, bad=lambda *_: None):
                row = make_row(entry.path, entry.oid, data)
                if row.session.saved:
                    yield row
                    continue
                by_hand[entry.path] = row
                if len(by_hand) >= 2000:
                    yield from _dated(by_hand, walk, times)
                    by_hand = {}
            yield from _dated(by_hand, walk, times)

    def overlay(self) -> None:
        """Show what is only here (waiting, or set aside) over what master holds.

        What was set aside shows no more once master has another revision than it was made from.
        """
        rows, deleted = [], []
        waiting, _ = self.outbox.read()
        aside = {draft.key: draft for draft, _ in self.outbox.aside()}
        held: dict[str, set[str]] = {}  # etags that an edit set aside may have been made from
        for draft in (*aside.values(), *waiting):
            if draft.key in aside and draft.id not in held:
                base = self.catalog.base(draft.id)
                held[draft.id] = {base.etag if base else ""}
            if draft.op == "attach" or (draft.key in aside and draft.base not in held[draft.id]):
                deleted.append(("", draft.key))  # it hides nothing
            elif draft.op == "delete":
                deleted.append((draft.id, draft.key))
            else:
                row = make_row(draft.path, "", draft.data)
                session = replace(row.session, id=draft.id, pending=draft.key)
                rows.append(replace(row, session=session))
                held.setdefault(draft.id, set()).add(session.etag)
        self.catalog.overlay(rows, deleted)


def _dated(
    rows: Mapping[str, Row], walk: Iterator[tuple[str, str]], times: dict[str, str]
) -> Iterator[Row]:
    """Rows with their times, for which the walk goes on as far as it must; it is kept in times."""
    left = rows.keys() - times.keys()
    while left and (told := next(walk, None)):
        left.discard(told[0])
        times.setdefault(*told)
    for path, row in rows.items():
        when = times.get(path, "1970-01-01T00:00:00Z")
        created = row.session.created or when
        yield replace(row, session=replace(row.session, saved=when, created=created))


def make_row(path: str, oid: str, data: bytes, said: Said | None = None) -> Row:
    """A file on master as a catalog row. ``saved`` is empty when only git knows the time.

    Where the path says an id, as those of a sealed master do, that is the id. ``said``: what
    ``document.read`` gave for these bytes, where that is known.
    """
    from annoris import document  # noqa: PLC0415 - nothing new on master, nothing to read

    meta, etag, body = said or document.read(data)
    told = id_in(path)
    fallback = told or id_of(path)
    session = Session(
        id=told or meta.id or fallback,
        path=path,
        oid=oid,
        project=meta.project or _project_of(path),
        name=meta.name,
        title=meta.title,
        status=meta.status,
        priority=meta.priority,
        created=meta.created,
        saved=meta.saved if meta.etag == etag else "",
        size=len(data),
        etag=etag,
        literal=meta.etag,
        body_md5=document.body_md5(body),
    )
    return Row(session=session, fallback=fallback, text=body.decode(errors="replace"))


def project_file(path: str, data: bytes) -> ProjectFile | None:
    """A project's file as the catalog keeps it; None when it is none."""
    from annoris import projects  # noqa: PLC0415 - as below

    try:
        project = projects.parse(path, data)
    except DocumentRefused as error:
        return ProjectFile(path, None, error.message)
    return ProjectFile(path, project) if project else None


def id_of(path: str) -> str:
    """The UUIDv5 of a path, whose name need not be UTF-8: the id of a file that says none."""
    import hashlib  # noqa: PLC0415

    name = uuid.NAMESPACE_URL.bytes + f"annoris:{path}".encode(errors="surrogateescape")
    digest = hashlib.sha1(name, usedforsecurity=False).digest()
    return str(uuid.UUID(bytes=digest[:16], version=5))


def _project_of(path: str) -> str:
    """The project of a file that names none: its folder below sessions/, else its top folder."""
    parts = path.removeprefix("sessions/").split("/")
    return parts[0] if len(parts) > 1 and not id_in(path) else "default"
