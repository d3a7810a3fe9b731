"""From the outbox to master: the one loop that writes.

Whoever holds the clone's lock publishes everything that waits, others' drafts included, in one
push (group commit), and leaves the receipts for their owners. Each round builds on the tip that
this machine knows and lets the push compare and swap; only a lost race, or a decision that
needs master's newest word, costs a fetch.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TypeVar

from annoris import document, plan, projects
from annoris.catalog import Catalog, Row
from annoris.dataclass import dataclass, field
from annoris.errors import (
    AnnorisError,
    PolicyRefused,
    RemoteUnreachable,
)
from annoris.follow import Follower, Said, make_row, project_file
from annoris.gitcmd import LostRace
from annoris.layout import id_in, places
from annoris.master import Commit, Master, now
from annoris.model import Deadline, Document, Draft, Project, Receipt, Session

T = TypeVar("T")


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
    projects: dict[str, bytes] = field(default_factory=dict)  # by path, those that are new


class _AskFirst(Exception):
    """A decision needs master's newest tip."""


class Publisher:
    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.master = follower.master
        self.catalog = follower.catalog
        self.outbox = follower.outbox
        self._exact: frozenset[str] = frozenset()

    # --- writing master ----------------------------------------------------------------------

    def flush(
        self,
        deadline: Deadline,
        *,
        mine: Iterable[str] = (),
        ask_first: bool = False,
        exact: Collection[str] = (),
    ) -> Outcome:
        """Publish what waits. What stopped it, if anything, is in the outcome's ``error``.

        ``ask_first``: find out whether master answers before anything is made for it. ``exact``:
        drafts that go on with their own base or not at all; they stay, ``outdated``.

        Raises Locked when another process holds the lock until the deadline, StorageError when
        this machine can't write.
        """
        self.master.create()
        own, self._exact = set(mine), frozenset(exact)
        with self.master.lock(deadline):
            self.outbox.tidy()
            drafts, damaged = self.outbox.read()
            outcome = Outcome(damaged=damaged)
            if drafts:
                outcome.error = self._unanswered(deadline) if ask_first else None
                if outcome.error is None:
                    self._publish(drafts, own, deadline, outcome)
                self.follower.catch_up()
                self.follower.overlay()
        for key in own - outcome.receipts.keys():
            if receipt := self.outbox.answered(key):
                outcome.receipts[key] = receipt
        self.master.maintain()
        return outcome

    def _unanswered(self, deadline: Deadline) -> AnnorisError | None:
        try:
            self.follower.fetch(deadline)
        except AnnorisError as error:
            return error
        return None

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

    def edit(
        self,
        path: str,
        change: Callable[[bytes | None], bytes | None],
        message: str,
        deadline: Deadline,
    ) -> bool:
        """Bring a file that is no session to master; False when ``change`` leaves it as it is.

        ``change`` gets the newest bytes (None: no such file) and answers the new ones (None: to
        be removed); it is asked again when another machine was faster. Nothing of it waits in
        the outbox: it raises Locked, RemoteRefused or RemoteUnreachable, and nothing was done.
        """

        def attempt(tip: str, fresh: bool) -> bool:
            if not fresh:
                raise _AskFirst
            self._fit(tip)
            before = self.master.file(tip, path) if tip else None
            after = change(before)
            if after == before:
                return False
            words = self.master.layout.words(message)
            made = self.master.commit(tip, [Commit({path: after}, words, now())])
            self.master.push(made, tip, deadline)
            self.follower.mark_checked()
            return True

        self.master.create()
        with self.master.lock(deadline):
            changed = self._swap(attempt, deadline)
            self.follower.refresh()
        return changed

    def _push(self, drafts: list[Draft], deadline: Deadline) -> _Settled:
        """Bring one group to master."""

        def attempt(tip: str, fresh: bool) -> _Settled:
            self._fit(tip)
            settled = self._settle([self._placed(draft) for draft in drafts], fresh)
            if settled.commits:
                self._write(settled, drafts, tip, deadline)
            return settled

        return self._swap(attempt, deadline)

    def _fit(self, tip: str) -> None:
        """A sealed master is written under its own key, and under no other."""
        if self.master.layout.sealed:
            self.master.must_fit(tip)

    def _placed(self, draft: Draft) -> Draft:
        """A draft of before master was converted goes where new ones go."""
        layout = self.master.layout
        if draft.op == "attach":
            return replace(draft, path=layout.transcript_path(draft.id))
        if bool(id_in(draft.path)) == layout.sealed:
            return draft
        created = document.inspect(draft.data).created or draft.at
        return replace(draft, path=layout.path_for(draft.project, draft.title, created, draft.id))

    def _swap(self, attempt: Callable[[str, bool], T], deadline: Deadline) -> T:
        """Make ``attempt`` on master's tip, however often others are faster until the deadline.

        It is told the tip, and whether master itself gave it just now.
        """
        fresh = self.master.embedded
        races = 0
        self.follower.must_be_ours(self.master.tip())
        if not self.master.tip():
            self.follower.fetch(deadline)
            fresh = True
        while True:
            self.follower.catch_up()  # what waits is laid over it once, when it is known what does
            try:
                return attempt(self.master.tip(), fresh)
            except _AskFirst:
                self.follower.fetch(deadline)
                fresh = True
            except LostRace:
                races += 1
                if deadline.over:
                    raise RemoteUnreachable(
                        f"{self.master.remote} is busy: others were faster {races} times",
                        hint="annoris sync delivers what waits",
                    ) from None
                import random  # noqa: PLC0415

                time.sleep(deadline.left(random.uniform(0, min(2.0, 0.05 * 2**races))))  # noqa: S311 - jitter
                self.follower.fetch(deadline)
                fresh = True

    def _write(self, settled: _Settled, drafts: list[Draft], tip: str, deadline: Deadline) -> None:
        by_batch: dict[str, list[Draft]] = {}
        for draft in drafts:
            by_batch.setdefault(draft.batch, []).append(draft)
        commits = [
            Commit(
                files, self.master.layout.message(by_batch[batch]), by_batch[batch][-1].at, batch
            )
            for batch, files in settled.commits.items()
        ]
        commit = self.master.commit(tip, commits)
        self.master.push(commit, tip, deadline)
        self.follower.mark_checked()
        rows = {path: row for path, row in settled.rows.items() if self.master.included(path)}
        self.catalog.apply(
            after=tip,  # else a reader is at it, and the next refresh brings it here
            commit=commit,
            master=self.master.identity,
            upserts=[row for row in rows.values() if row],
            removals=[path for path, row in rows.items() if row is None],
            projects=[
                made
                for path, data in settled.projects.items()
                if (made := project_file(path, data))
            ],
        )
        for key, receipt in settled.receipts.items():
            if receipt.state in ("master", "conflict") and not receipt.commit:
                settled.receipts[key] = replace(receipt, commit=commit)

    def _acknowledge(
        self, group: list[Draft], receipts: dict[str, Receipt], own: set[str], outcome: Outcome
    ) -> None:
        for draft in group:
            self._answer(draft, receipts[draft.key], own, outcome)
        self.outbox.remove([one for one in group if receipts[one.key].state != "outdated"])

    def _answer(self, draft: Draft, receipt: Receipt, own: set[str], outcome: Outcome) -> None:
        if draft.key not in own:
            self.outbox.answer(draft.key, receipt)
        outcome.receipts[draft.key] = receipt

    # --- deciding ----------------------------------------------------------------------------

    def _settle(self, drafts: list[Draft], fresh: bool) -> _Settled:
        settled = _Settled()
        self._paths: dict[str, str] = {}
        for draft in drafts:
            if draft.op == "attach":
                self._attach(draft, settled)
            else:
                self._settle_one(draft, settled, fresh)
            self._paths[draft.key] = settled.receipts[draft.key].path
        self._begin_projects(settled)
        return settled

    def _begin_projects(self, settled: _Settled) -> None:
        """A file for each project that has none, in the commit of its first session."""
        looked: set[str] = set()  # by names as documents say them, and as projects have them
        for files in settled.commits.values():
            for row in [settled.rows.get(path) for path in files]:
                stated = row.session.project if row else ""
                if not stated or stated in looked:
                    continue
                name = self.catalog.canonical(stated)
                known = name in looked or self.catalog.project(name)
                looked |= {stated, name}
                if known:
                    continue
                project = new_project(self.catalog, self.master, name)
                if project.path in settled.projects:  # names that only Unicode tells apart
                    project = replace(project, path=self.master.project_path(name, project.id))
                if self.catalog.project_at(project.path) != "":  # a broken one may be its own
                    made = projects.new(project)
                    settled.projects[project.path] = files[project.path] = made

    def _settle_one(self, draft: Draft, settled: _Settled, fresh: bool) -> None:
        if copy := settled.copies.get((draft.id, draft.base)):
            self._go_on(draft, copy, settled)
            return
        row = self._standing(draft.id, settled)
        said = document.read(draft.data) if draft.op == "save" else None
        verdict = plan.settle(draft, said[1] if said else "", row)
        if verdict in ("contested", "vanished", "edited") and not fresh:
            raise _AskFirst
        if verdict == "write":
            self._put(draft, row, settled, said)
        elif verdict == "vanished":
            self._vanished(draft, settled)
        elif row is None or verdict == "present":
            state = "master" if draft.op == "delete" or row is None else "unchanged"
            path, oid = (row.path, row.oid) if row else (draft.path, "")
            settled.receipts[draft.key] = _receipt(draft, state, path, oid=oid)
        elif verdict == "remove":
            self._remove(draft, row, settled)
        else:
            self._contested(draft, row, settled)

    def _contested(self, draft: Draft, row: Session, settled: _Settled) -> None:
        """Master moved on since the draft's base: unless it is applied already, both are kept."""
        if self.master.applied(draft.batch, row.path):
            settled.receipts[draft.key] = _receipt(draft, "master", row.path, oid=row.oid)
        elif draft.op == "save" and same_text(
            draft.data, self._bytes(row, settled), retried=not draft.base
        ):
            settled.receipts[draft.key] = _receipt(draft, "unchanged", row.path, oid=row.oid)
        elif draft.op == "save" or draft.key in self._exact:
            self._keep(draft, draft.data, settled)
        else:
            self._keep(draft, self._bytes(row, settled), settled, theirs=row)
            self._remove(replace(draft, key=""), row, settled)

    def _attach(self, draft: Draft, settled: _Settled) -> None:
        """Put a transcript beside its session, or beside the copy that its text became."""
        kept = [item for item in settled.receipts.values() if item.conflict_of == draft.id]
        path = self.master.layout.transcript_path(kept[-1].id if kept else draft.id)
        tip = self.master.tip()
        there = self.master.file(tip, path) if tip else None
        if there != draft.data and not self.master.applied(draft.batch, path):
            settled.commits.setdefault(draft.batch, {})[path] = draft.data
        settled.receipts[draft.key] = _receipt(draft, "master", path)

    def _standing(self, id: str, settled: _Settled) -> Session | None:
        return settled.view[id] if id in settled.view else self.catalog.base(id)

    def _bytes(self, row: Session, settled: _Settled) -> bytes:
        return settled.bytes_of.get(row.path) or self.master.blob(row.oid, row.path)

    def _put(
        self, draft: Draft, row: Session | None, settled: _Settled, said: Said | None = None
    ) -> None:
        if row is None and draft.name and self._name_taken(draft, settled):
            self._keep(draft, draft.data, settled)
            return
        path = row.path if row else draft.path
        session = self._place(draft.batch, path, draft.data, settled, said)
        settled.receipts[draft.key] = _receipt(draft, "master", path, oid=session.oid)

    def _name_taken(self, draft: Draft, settled: _Settled) -> bool:
        canonical = self.catalog.canonical
        project = canonical(draft.project)  # it may have waited while the project was renamed
        taken = self.catalog.holders(project, draft.name)
        taken += [
            row
            for row in settled.view.values()
            if row and (canonical(row.project), row.name) == (project, draft.name)
        ]
        return any(row.id != draft.id for row in taken)

    def _vanished(self, draft: Draft, settled: _Settled) -> None:
        """Its base isn't on master: deleted there (the text survives as a copy) or never was."""
        removed = self.master.once(*places(draft.id), f":(literal){draft.path}")
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
        if draft.key in self._exact:
            settled.receipts[draft.key] = _receipt(draft, "outdated", draft.path)
            return
        etag = document.etag(data)
        # Not by when it was saved: the same text, saved again, is the same copy.
        id = str(uuid.uuid5(uuid.UUID(draft.id), document.etag(_stamped(data, {"saved": ""}))))
        copy = _as_copy(data, id, draft.id)
        meta = document.inspect(data)
        path = self.master.layout.path_for(
            meta.project or draft.project, meta.title, meta.created or draft.at, id
        )
        session = self._standing(id, settled)
        ours = session is None or self.master.applied(draft.batch, session.path)
        if session is None:
            session = self._place(draft.batch, path, copy, settled)
        if theirs is None and (ours or same_text(copy, self._bytes(session, settled))):
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

    def _place(
        self, batch: str, path: str, data: bytes, settled: _Settled, said: Said | None = None
    ) -> Session:
        row = make_row(path, self.master.oid(path, data), data, said)
        settled.commits.setdefault(batch, {})[path] = data
        settled.rows[path] = row
        settled.bytes_of[path] = data
        settled.view[row.session.id] = row.session
        return row.session

    def _remove(self, draft: Draft, row: Session, settled: _Settled) -> None:
        files = settled.commits.setdefault(draft.batch, {})
        files[row.path] = None
        transcript = self.master.layout.transcript_path(row.id)
        if self.master.file(self.master.tip(), transcript) is not None:
            files[transcript] = None
        settled.rows[row.path] = None
        settled.view[row.id] = None
        if draft.key:
            settled.receipts[draft.key] = _receipt(draft, "master", row.path)


def new_project(catalog: Catalog, master: Master, name: str) -> Project:
    """A project that has no file yet, with the place where that goes."""
    id = str(uuid.uuid4())
    taken = catalog.project_at(master.project_path(name))  # by one that had this name, or whose
    # name differs only in Unicode's normal form; not by a broken one, which a person must mend
    return Project(name, id, created=now(), path=master.project_path(name, id if taken else ""))


def _as_copy(data: bytes, id: str, origin: str) -> bytes:
    return _stamped(data, {"id": id, "name": "", "conflict-of": origin})


def _stamped(data: bytes, fields: dict[str, str]) -> bytes:
    """With other fields, whatever the body is: a person may have put anything on master."""
    front, body = document.split(data)
    return document.stamp(Document(front, body, document.inspect(data)), fields)


def same_text(one: bytes, other: bytes, *, retried: bool = False) -> bool:
    """Equal but for when and where they were saved; ``retried``: and for when we made them."""
    if document.split(one)[1] != document.split(other)[1]:
        return False
    unsaved = {"saved": "", "workspace": "", **({"created": ""} if retried else {})}
    return _stamped(one, unsaved) == _stamped(other, unsaved)


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
