"""From the outbox to master: the one loop that writes, and the catalog that follows.

Whoever holds the clone's lock publishes everything that waits, others' drafts included, in one
push (group commit), and leaves the receipts for their owners. Each round builds on the tip that
this machine knows and lets the push compare and swap; only a lost race, or a decision that
needs master's newest word, costs a fetch.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from annoris import document, plan
from annoris.catalog import Catalog, Row
from annoris.errors import (
    AnnorisError,
    MasterShrunk,
    PolicyRefused,
    RemoteRefused,
    RemoteUnreachable,
    StorageError,
)
from annoris.gitcmd import LostRace
from annoris.master import FOUNDATION, Commit, Master, now
from annoris.model import Deadline, Draft, Receipt, Session
from annoris.outbox import Outbox

_TRIES = 3  # for a server that does not answer; a lost race is tried until the deadline


@dataclass(slots=True)
class Outcome:
    """What a flush did: a receipt for each draft it met, and what stopped it, if anything."""

    receipts: dict[str, Receipt] = field(default_factory=dict)
    error: AnnorisError | None = None
    damaged: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Settled:
    """Drafts turned into commits, rows and receipts; nothing of it has happened yet."""

    commits: dict[str, dict[str, bytes | None]] = field(default_factory=dict)
    rows: dict[str, Row | None] = field(default_factory=dict)  # by path; None: removed
    view: dict[str, Session | None] = field(default_factory=dict)  # by id, as of this round
    bytes_of: dict[str, bytes] = field(default_factory=dict)  # by path, what this round wrote
    copies: dict[tuple[str, str], Session] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)


class _AskFirst(Exception):
    """A decision needs master's newest tip."""


class Publisher:
    def __init__(self, master: Master, catalog: Catalog, outbox: Outbox) -> None:
        self.master = master
        self.catalog = catalog
        self.outbox = outbox

    # --- following master --------------------------------------------------------------------

    def fetch(self, deadline: Deadline, *, force: bool = False) -> None:
        """Make the clone know master's tip. The caller holds the lock.

        Raises MasterShrunk, with nothing changed, when master lost more than a fifth of its
        sessions and ``force`` is not set; RemoteRefused and RemoteUnreachable as git says.
        """
        before = self.master.tip()
        self._must_follow(before)
        found = self.master.fetch(deadline)
        if found != before:
            if before and not force:
                self._guard(before, found)
            self.master.accept(found)
        self.mark_checked()

    def mark_checked(self) -> None:
        """Remember that this very master was asked just now, and that the clone is of it."""
        with open(self._checked_path(), "w", encoding="ascii"):
            pass
        self.master.claim()

    def checked(self) -> float:
        """When master was last asked, in seconds since the epoch; 0 for never."""
        if self.master.embedded:
            return time.time()
        try:
            return os.stat(self._checked_path()).st_mtime if self.master.claimed() else 0.0
        except FileNotFoundError:
            return 0.0

    def refresh(self) -> None:
        """Make the catalog show the tip that this machine knows, and the outbox over it."""
        tip, identity = self.master.tip(), self.master.identity
        known = self.catalog.commit if self.catalog.master == identity else ""
        if known != tip or self.catalog.master != identity:
            self._project(known, tip)
        if self.catalog.overlay_keys() != self.outbox.waiting():
            self.overlay()

    def _checked_path(self) -> str:
        return f"{self.master.folder}.checked"

    def _must_follow(self, tip: str) -> None:
        if tip and not self.master.embedded and self.master.claimed() is False:
            raise RemoteRefused(
                f"what this machine holds was not saved to {self.master.remote} "
                f"({self.master.branch}); nothing was changed",
                hint=f"to take it there: annoris init --remote {self.master.remote} --move",
            )

    def _guard(self, before: str, found: str) -> None:
        have = self.master.tree(before)
        changes = self.master.diff(before, found) if found else plan.changes(have, {})
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

    def _project(self, known: str, tip: str) -> None:
        """Bring layer 0 of the catalog from one commit to another."""
        identity = self.master.identity
        try:
            changes = self.master.diff(known, tip) if known and tip else []
        except StorageError:  # a clone that was made anew may never have seen that commit
            known = ""
        if not (known and tip):
            changes = plan.changes({}, self.master.tree(tip))
        wanted: dict[str, list[str]] = {}
        for change in changes:
            if change.oid:
                wanted.setdefault(change.oid, []).append(change.path)
        self.catalog.apply(
            commit=tip,
            master=identity,
            replace_all=not (known and tip),
            upserts=self._rows(wanted, known),
            removals=[change.path for change in changes if not change.oid],
        )

    def _rows(self, wanted: dict[str, list[str]], since: str) -> Iterator[Row]:
        """Rows for blobs, those whose time only git knows (edited by hand) in groups."""
        by_hand: dict[str, Row] = {}
        for oid, data in self.master.blobs(wanted):
            for path in wanted[oid]:
                row = make_row(path, oid, data)
                if row.session.saved:
                    yield row
                    continue
                by_hand[path] = row
                if len(by_hand) >= 2000:
                    yield from self._dated(by_hand, since)
                    by_hand = {}
        yield from self._dated(by_hand, since)

    def _dated(self, rows: dict[str, Row], since: str) -> Iterator[Row]:
        times = self.master.changed_at(rows, since)
        for path, row in rows.items():
            when = times.get(path, "1970-01-01T00:00:00Z")
            created = row.session.created or when
            yield replace(row, session=replace(row.session, saved=when, created=created))

    def overlay(self) -> None:
        """Show what is only here (waiting, or set aside) over what master holds."""
        rows, deleted = [], []
        waiting, _ = self.outbox.read()
        for draft in [draft for draft, _ in self.outbox.aside()] + waiting:
            if draft.op == "delete":
                deleted.append((draft.id, draft.key))
                continue
            row = make_row(draft.path, "", draft.data)
            rows.append(replace(row, session=replace(row.session, id=draft.id, pending=draft.key)))
        self.catalog.overlay(rows, deleted)

    # --- writing master ----------------------------------------------------------------------

    def flush(self, deadline: Deadline, *, mine: Iterable[str] = ()) -> Outcome:
        """Publish what waits. What stopped it, if anything, is in the outcome's ``error``.

        Raises Locked when another process holds the lock until the deadline, StorageError when
        this machine can't write.
        """
        self.master.create()
        own = set(mine)
        with self.master.lock(deadline):
            self.outbox.tidy()
            drafts, damaged = self.outbox.read()
            outcome = Outcome(damaged=damaged)
            if drafts:
                self._publish(drafts, own, deadline, outcome)
                self.overlay()
        for key in own - outcome.receipts.keys():
            if receipt := self.outbox.answered(key):
                outcome.receipts[key] = receipt
        self.master.maintain()
        return outcome

    def _publish(
        self, drafts: list[Draft], own: set[str], deadline: Deadline, outcome: Outcome
    ) -> None:
        """Push groups of drafts; a refused group is cut in two until the culprit is alone."""
        groups = [drafts]
        refused: list[tuple[Draft, PolicyRefused]] = []
        while groups:
            group = groups.pop(0)
            try:
                settled = self._push(group, deadline)
            except PolicyRefused as error:
                if error.about == "branch" or not self._split(group, error, groups, refused):
                    outcome.error = error
                    break
                if len(refused) >= 3 and not outcome.receipts and error.about == "unknown":
                    outcome.error = error  # everything is refused: no document is to blame
                    refused.clear()
                    break
            except (AnnorisError, LostRace) as error:
                outcome.error = error
                break
            else:
                self._acknowledge(group, settled.receipts, own, outcome)
        for draft, cause in refused:
            receipt = _receipt(draft, "refused", draft.path, reason=cause.message)
            self.outbox.set_aside(draft, cause.message)
            self._answer(draft, receipt, own, outcome)

    def _split(
        self,
        group: list[Draft],
        error: PolicyRefused,
        groups: list[list[Draft]],
        refused: list[tuple[Draft, PolicyRefused]],
    ) -> bool:
        """Find who is to blame; False when the rule may as well be about the whole branch."""
        blamed = plan.isolate(group, self._paths, error.paths)
        if blamed or (len(group) == 1 and (error.about == "content" or refused or groups)):
            blamed = blamed or group
            refused += [(draft, error) for draft in blamed]
            rest = [draft for draft in group if draft not in blamed]
            groups[:0] = [rest] if rest else []
            return True
        if len(group) == 1:
            return False
        middle = len(group) // 2
        groups[:0] = [group[:middle], group[middle:]]
        return True

    def _push(self, drafts: list[Draft], deadline: Deadline) -> _Settled:
        """Bring one group to master, however often others are faster."""
        fresh = self.master.embedded
        silent = races = 0
        self._must_follow(self.master.tip())
        if not self.master.tip():
            self.fetch(deadline)
            fresh = True
        while True:
            self.refresh()
            tip = self.master.tip()
            try:
                settled = self._settle(drafts, fresh)
                if settled.commits:
                    self._write(settled, drafts, tip, deadline)
            except _AskFirst:
                self.fetch(deadline)
                fresh = True
            except LostRace:
                races += 1
                if deadline.over:
                    raise RemoteUnreachable(
                        f"{self.master.remote} is busy: others were faster {races} times",
                        hint="annoris sync delivers what waits",
                    ) from None
                time.sleep(deadline.left(random.uniform(0, min(2.0, 0.05 * 2**races))))  # noqa: S311 - jitter
                self.fetch(deadline)
                fresh = True
            except RemoteUnreachable:
                silent += 1
                if silent >= _TRIES or deadline.over:
                    raise
                time.sleep(deadline.left(random.uniform(0, 0.2 * 2**silent)))  # noqa: S311 - jitter
            else:
                return settled

    def _write(self, settled: _Settled, drafts: list[Draft], tip: str, deadline: Deadline) -> None:
        by_batch: dict[str, list[Draft]] = {}
        for draft in drafts:
            by_batch.setdefault(draft.batch, []).append(draft)
        commits = [
            Commit(files, _message(by_batch[batch]), by_batch[batch][-1].at, batch)
            for batch, files in settled.commits.items()
        ]
        commit = self.master.commit(tip, commits)
        self.master.push(commit, tip, deadline)
        self.mark_checked()
        rows = {path: row for path, row in settled.rows.items() if self.master.included(path)}
        self.catalog.apply(
            commit=commit,
            master=self.master.identity,
            upserts=[row for row in rows.values() if row],
            removals=[path for path, row in rows.items() if row is None],
        )
        for key, receipt in settled.receipts.items():
            if receipt.state in ("master", "conflict") and not receipt.commit:
                settled.receipts[key] = replace(receipt, commit=commit)

    def _acknowledge(
        self, group: list[Draft], receipts: dict[str, Receipt], own: set[str], outcome: Outcome
    ) -> None:
        for draft in group:
            self._answer(draft, receipts[draft.key], own, outcome)
        self.outbox.remove(group)

    def _answer(self, draft: Draft, receipt: Receipt, own: set[str], outcome: Outcome) -> None:
        if draft.key not in own:
            self.outbox.answer(draft.key, receipt)
        outcome.receipts[draft.key] = receipt

    def join(self, here: str, deadline: Deadline) -> int:
        """Bring the history of this machine, ``here``, to a master that is new to it.

        Answers how many sessions were brought. One that both have with other bytes goes
        through the outbox, where master keeps its own and ours becomes a copy.
        """
        self.master.create()
        with self.master.lock(deadline):
            while True:
                try:
                    brought = self._joined(here, deadline)
                    self._found(deadline)
                except LostRace:
                    if deadline.over:
                        raise RemoteUnreachable(
                            f"{self.master.remote} is busy: others were faster",
                            hint="try again",
                        ) from None
                else:
                    self.mark_checked()
                    return brought

    def _joined(self, here: str, deadline: Deadline) -> int:
        if self.master.claimed():
            self.fetch(deadline)  # there is nothing of our own in the clone
            return 0
        there = self.master.fetch(deadline)
        ours = self.master.tree(here)
        theirs = self.master.tree(there)
        if here and not there:
            self.master.push(here, "", deadline)
            return len(ours)
        if not here or self.master.descends(there, here):
            self.master.accept(there)
            return 0
        if self.master.descends(here, there):
            self.master.push(here, there, deadline)
            return len(ours.keys() - theirs.keys())
        only = {path: oid for path, oid in ours.items() if path not in theirs}
        files = {path: self.master.blob(oid) for path, oid in only.items()}
        joined = self.master.merge(there, here, files)
        both = {path: ours[path] for path in ours.keys() & theirs.keys()}
        self._requeue({path: oid for path, oid in both.items() if oid != theirs[path]})
        self.master.push(joined, there, deadline)
        return len(only)

    def _found(self, deadline: Deadline) -> None:
        """Say in the repository that Annoris keeps sessions here, once."""
        tip = self.master.tip()
        if not tip or not self.master.founded(tip):
            files = FOUNDATION if tip else {}
            commits = [Commit(files, "Make room for sessions", now())] if tip else []
            self.master.push(self.master.commit(tip, commits), tip, deadline)

    def _requeue(self, entries: dict[str, str]) -> None:
        drafts = []
        for path, oid in entries.items():
            data = self.master.blob(oid)
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
            self.outbox.add(drafts)

    # --- deciding ----------------------------------------------------------------------------

    def _settle(self, drafts: list[Draft], fresh: bool) -> _Settled:
        settled = _Settled()
        self._paths: dict[str, str] = {}
        for draft in drafts:
            self._settle_one(draft, settled, fresh)
            self._paths[draft.key] = settled.receipts[draft.key].path
        return settled

    def _settle_one(self, draft: Draft, settled: _Settled, fresh: bool) -> None:
        if copy := settled.copies.get((draft.id, draft.base)):
            self._go_on(draft, copy, settled)
            return
        row = self._standing(draft.id, settled)
        etag = document.etag(draft.data) if draft.op == "save" else ""
        verdict = plan.settle(draft, etag, row)
        if verdict in ("contested", "vanished", "edited") and not fresh:
            raise _AskFirst
        if verdict == "write":
            self._put(draft, row, settled)
        elif verdict == "vanished":
            self._vanished(draft, settled)
        elif row is None or verdict == "present":
            state = "master" if draft.op == "delete" or row is None else "unchanged"
            path, oid = (row.path, row.oid) if row else (draft.path, "")
            settled.receipts[draft.key] = _receipt(draft, state, path, oid=oid)
        elif verdict == "remove":
            self._remove(draft, row, settled)
        elif self.master.applied(draft.batch, row.path):
            settled.receipts[draft.key] = _receipt(draft, "master", row.path, oid=row.oid)
        elif verdict == "edited":
            self._keep(draft, self._bytes(row, settled), settled, theirs=row)
            self._remove(replace(draft, key=""), row, settled)
        elif same_text(draft.data, self._bytes(row, settled)):
            settled.receipts[draft.key] = _receipt(draft, "unchanged", row.path, oid=row.oid)
        else:
            self._keep(draft, draft.data, settled)

    def _standing(self, id: str, settled: _Settled) -> Session | None:
        return settled.view[id] if id in settled.view else self.catalog.base(id)

    def _bytes(self, row: Session, settled: _Settled) -> bytes:
        return settled.bytes_of.get(row.path) or self.master.blob(row.oid)

    def _put(self, draft: Draft, row: Session | None, settled: _Settled) -> None:
        if row is None and draft.name and self._name_taken(draft, settled):
            self._keep(draft, draft.data, settled)
            return
        path = row.path if row else draft.path
        session = self._place(draft.batch, path, draft.data, settled)
        settled.receipts[draft.key] = _receipt(draft, "master", path, oid=session.oid)

    def _name_taken(self, draft: Draft, settled: _Settled) -> bool:
        taken = [row for row in self.catalog.named(draft.project, draft.name) if not row.pending]
        taken += [
            row
            for row in settled.view.values()
            if row and (row.project, row.name) == (draft.project, draft.name)
        ]
        return any(row.id != draft.id for row in taken)

    def _vanished(self, draft: Draft, settled: _Settled) -> None:
        """Its base isn't on master: deleted there (the text survives as a copy) or never was."""
        removed = self.master.once(f":(glob)**/*-{draft.id[-8:]}.md") or self.master.once(
            f":(literal){draft.path}"
        )
        if not removed:
            self._put(draft, None, settled)
        elif any(self.master.applied(draft.batch, path) for path in removed):
            settled.receipts[draft.key] = _receipt(draft, "master", draft.path)
        else:
            self._keep(draft, draft.data, settled)

    def _keep(
        self, draft: Draft, data: bytes, settled: _Settled, theirs: Session | None = None
    ) -> None:
        """Keep the losing text as a session of its own, named from its content."""
        etag = document.etag(data)
        id = str(uuid.uuid5(uuid.UUID(draft.id), etag))
        copy = _as_copy(data, id, draft.id)
        meta = document.inspect(data)
        path = document.path_for(
            meta.project or draft.project, meta.title, meta.created or draft.at, id
        )
        session = self._standing(id, settled)
        ours = session is None or self.master.applied(draft.batch, session.path)
        if session is None:
            session = self._place(draft.batch, path, copy, settled)
        if theirs is None and (ours or session.etag == document.etag(copy)):
            settled.copies[draft.id, etag] = session
        settled.receipts[draft.key] = _kept(draft, session, deleted=theirs is not None)

    def _go_on(self, draft: Draft, copy: Session, settled: _Settled) -> None:
        """An edit of a text that has just become a copy goes on in that copy."""
        if draft.op == "delete":
            self._remove(draft, copy, settled)
            return
        if not self.master.applied(draft.batch, copy.path):
            data = _as_copy(draft.data, copy.id, draft.id)
            copy = self._place(draft.batch, copy.path, data, settled)
        settled.copies[draft.id, document.etag(draft.data)] = copy
        settled.receipts[draft.key] = _kept(draft, copy)

    def _place(self, batch: str, path: str, data: bytes, settled: _Settled) -> Session:
        row = make_row(path, oid_of(data), data)
        settled.commits.setdefault(batch, {})[path] = data
        settled.rows[path] = row
        settled.bytes_of[path] = data
        settled.view[row.session.id] = row.session
        return row.session

    def _remove(self, draft: Draft, row: Session, settled: _Settled) -> None:
        settled.commits.setdefault(draft.batch, {})[row.path] = None
        settled.rows[row.path] = None
        settled.view[row.id] = None
        if draft.key:
            settled.receipts[draft.key] = _receipt(draft, "master", row.path)


def make_row(path: str, oid: str, data: bytes) -> Row:
    """A file on master as a catalog row. ``saved`` is empty when only git knows the time."""
    meta = document.inspect(data)
    etag = document.etag(data)
    body = document.split(data)[1]
    fallback = id_of(path)
    session = Session(
        id=meta.id or fallback,
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


def id_of(path: str) -> str:
    """The UUIDv5 of a path, whose name need not be UTF-8: the id of a file that says none."""
    name = uuid.NAMESPACE_URL.bytes + f"annoris:{path}".encode(errors="surrogateescape")
    digest = hashlib.sha1(name, usedforsecurity=False).digest()
    return str(uuid.UUID(bytes=digest[:16], version=5))


def oid_of(data: bytes) -> str:
    """The git blob id of bytes."""
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest()


def _as_copy(data: bytes, id: str, origin: str) -> bytes:
    return document.stamp(document.parse(data), {"id": id, "name": "", "conflict-of": origin})


def same_text(one: bytes, other: bytes) -> bool:
    """Equal but for when they were saved."""

    def bare(data: bytes) -> bytes:
        return document.stamp(document.parse(data), {"saved": ""})

    return document.split(one)[1] == document.split(other)[1] and bare(one) == bare(other)


def _project_of(path: str) -> str:
    """The project of a file that names none: its folder below sessions/, else its top folder."""
    parts = path.removeprefix("sessions/").split("/")
    return parts[0] if len(parts) > 1 else "default"


def _message(drafts: list[Draft]) -> str:
    first = drafts[0]
    verb = "Save" if first.op == "save" else "Delete"
    what = first.title or first.name or first.path
    if len(drafts) > 1:
        return f"{verb} {len(drafts)} sessions, {what[:40]} first"
    return f"{verb} {' '.join(what.split())[:60]}"


def _receipt(draft: Draft, state: str, path: str, *, oid: str = "", reason: str = "") -> Receipt:
    return Receipt(
        state=state,  # type: ignore[arg-type]
        id=draft.id,
        path=path,
        project=draft.project,
        title=draft.title,
        name=draft.name,
        oid=oid,
        reason=reason,
        op=draft.op,
        size=len(draft.data),
        checksum=hashlib.md5(draft.data, usedforsecurity=False).hexdigest() if draft.data else "",
    )


def _kept(draft: Draft, copy: Session, *, deleted: bool = False) -> Receipt:
    """The receipt for a text that lives on in a copy."""
    return replace(
        _receipt(draft, "conflict", copy.path, oid=copy.oid),
        id=copy.id,
        conflict_of=draft.id,
        reason="it was changed on master before it was deleted here"
        if deleted
        else "it changed on master after it was loaded here",
    )
