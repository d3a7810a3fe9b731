"""The archive: save, load, list, search, history, delete. Every edge goes through it."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from annoris.breaker import Breaker
from annoris.caches import Caches, Step
from annoris.catalog import Catalog
from annoris.dataclass import dataclass
from annoris.errors import (
    Ambiguous,
    AnnorisError,
    DiskFull,
    KeyProblem,
    Locked,
    NotFound,
    Queued,
    RemoteRefused,
    RemoteUnreachable,
    ScopeMismatch,
    StorageError,
    Unavailable,
    UsageError,
)
from annoris.follow import Follower, make_row
from annoris.master import Master, now, oid_of
from annoris.model import (
    Cached,
    Deadline,
    Document,
    Draft,
    Hit,
    Loaded,
    Project,
    Receipt,
    Revision,
    Run,
    Session,
    State,
    Tier,
)
from annoris.notes import Noted, Notes
from annoris.outbox import Outbox
from annoris.runs import Runs
from annoris.settings import Settings

if TYPE_CHECKING:
    from annoris.intake import Intake, SaveOptions, Source
    from annoris.publish import Outcome
    from annoris.workspace import Drift

_MASTER: Tier = "master"
_ON_MASTER = ("master", "unchanged", "conflict")
_ID = r"[0-9a-fA-F-]{4,36}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A document that was taken in: its draft in the outbox, or the receipt where all is done.

    ``new``: the draft is its own, not one that waited with the same text.
    """

    source: Source
    document: Document
    item: Draft | Receipt
    new: bool
    transcript: Draft | None = None


class Archive:
    """One thread at a time. ``here``: the folder that one stands in may name the project."""

    def __init__(
        self,
        settings: Settings,
        master: Master,
        catalog: Catalog,
        outbox: Outbox,
        breaker: Breaker,
        *,
        here: bool = True,
    ) -> None:
        self.here = here
        self.settings = settings
        self.master = master
        self.catalog = catalog
        self.outbox = outbox
        self.breaker = breaker
        self.caches = Caches(settings, breaker)
        self.notes = Notes(settings.at("seen"))
        self.runs = Runs(settings.at("runs.jsonl"))
        self.follower = Follower(master, catalog, outbox)
        self._asked_at = 0.0  # master last was, by the monotonic clock
        self._no_answer = ""  # why it did not answer then

    def close(self) -> None:
        """Close what was opened."""
        self.catalog.close()
        self.caches.close()

    # --- saving ------------------------------------------------------------------------------

    def save(self, sources: Iterable[Source], options: SaveOptions) -> list[Receipt]:
        """Put documents on master, all in one push; one receipt for each, in order, and then one
        for each transcript.

        Raises DocumentRefused, CredentialFound, UsageError, NotFound or Ambiguous before
        anything is kept, and StorageError when this machine can't keep it. What happens after
        that is in the receipts: on master, unchanged, conflict, queued or refused.
        """
        accepted = self.accept(sources, options)
        drafts = [one.item for one in accepted if isinstance(one.item, Draft)]
        transcripts = [one.transcript for one in accepted if one.transcript]
        delivered = iter(self.deliver([*drafts, *transcripts]))
        receipts, intake = [], self._intake()
        for one in accepted:
            receipt = one.item if isinstance(one.item, Receipt) else next(delivered)
            receipts.append(
                replace(receipt, source=one.source.name, problems=one.document.problems)
            )
            own = one.item if one.new and isinstance(one.item, Draft) else None
            kept = own if self._is_kept(own, receipt) else None
            intake.note(one.source, one.document, receipt, kept)
        return [*receipts, *delivered]

    def accept(self, sources: Iterable[Source], options: SaveOptions) -> list[Accepted]:
        """Check documents and keep them in the outbox, durable when this returns.

        Nothing is asked of master yet. Raises as ``save`` does.
        """
        self._settle_catalog()
        self.must_fit()
        made = self._intake().drafts(sources, options, self.default_project())
        new = [draft for _, _, draft in made if isinstance(draft, Draft)]
        beside = [
            _transcript(
                source.transcript, self.outbox.find(item) if isinstance(item, str) else item
            )
            for source, _, item in made
            if source.transcript
        ]
        added = self.outbox.add([*new, *beside]) if new or beside else []
        kept, attached = iter(added), iter(added[len(new) :])
        accepted = []
        for source, parsed, item in made:
            found = (
                next(kept)
                if isinstance(item, Draft)
                else self.outbox.find(item)
                if isinstance(item, str)
                else item
            )
            transcript = next(attached) if source.transcript else None
            accepted.append(Accepted(source, parsed, found, isinstance(item, Draft), transcript))
        return accepted

    def _intake(self) -> Intake:
        from annoris.intake import Intake  # noqa: PLC0415

        return Intake(self.settings.save, self.master, self.catalog, self.notes, self._find_surely)

    def delete(self, selector: str, project: str) -> Receipt:
        """Remove a session from master; git keeps its history."""
        return self.deliver([self.give_up(selector, project)])[0]

    def give_up(self, selector: str, project: str = "") -> Draft:
        """Keep in the outbox that a session is to be removed; ``deliver`` removes it."""
        since = time.monotonic()
        self.look()
        self.must_fit()
        row = self._find_surely(selector, project, since)
        draft = Draft(
            key="",
            op="delete",
            id=row.id,
            path=row.path,
            base=row.etag,
            project=row.project,
            name=row.name,
            title=row.title,
            body_md5="",
            at=now(),
        )
        return self.outbox.add([draft])[0]

    def deliver(self, drafts: list[Draft], *, exact: Collection[str] = ()) -> list[Receipt]:
        """Flush the outbox and say what became of each of these drafts.

        ``exact``: keys of those that are not to become copies where master moved on.
        """
        outcome = self.flush([draft.key for draft in drafts], exact=exact)
        if isinstance(outcome.error, (KeyProblem, ScopeMismatch)):
            raise _kept(outcome.error, len(self.outbox.read()[0]))
        receipts = [self._receipt(draft, outcome) for draft in drafts]
        return self._cached(drafts, receipts) if self.caches.configured else receipts

    def _cached(self, drafts: list[Draft], receipts: list[Receipt]) -> list[Receipt]:
        """Bring to the caches what is now on master."""
        position = self.follower.position()
        rows = [
            self.catalog.base(receipt.id)
            if receipt.state in _ON_MASTER and receipt.op != "attach"
            else None
            for receipt in receipts
        ]
        documents = [
            (row, draft.data if oid_of(draft.data) == row.oid else self._blob(row))
            for row, draft in zip(rows, drafts, strict=True)
            if row
        ]
        step = self._step(documents, position)
        tier = self.caches.store(documents, position, step=step) if documents else None
        gone = [
            (draft.id, position)
            for draft in drafts
            if draft.op == "delete" and not self.catalog.base(draft.id)
        ]
        if gone:
            self.caches.forget(gone)
        return [
            replace(receipt, cached=tier or "") if row else receipt
            for receipt, row in zip(receipts, rows, strict=True)
        ]

    def _step(self, documents: list[tuple[Session, bytes]], position: int) -> Step:
        """Where master is with these documents; others' may have come along."""
        tip, layout = self.master.tip(), self.master.layout
        ours = {(row.path, row.oid) for row, _ in documents}

        def shown(path: str) -> bool:
            return layout.included(path) or layout.is_project(path)

        def whole(since: str) -> bool:
            touched = self.master.wrote(since, tip)
            if touched is not None:
                return set(filter(shown, touched)) <= {path for path, _ in ours}
            try:
                changes = self.master.diff(since, tip, shown)
            except StorageError:  # a commit that this clone has never seen
                return False
            return all((change.path, change.oid) in ours for change in changes)

        return Step(tip, position, self.master.identity, whole)

    def _is_kept(self, draft: Draft | None, receipt: Receipt) -> bool:
        """Whether its text is on master or on the way there."""
        return draft is not None and (
            receipt.state != "refused" or draft.batch in self.outbox.batches()
        )

    def _find_surely(self, selector: str, project: str, since: float = math.inf) -> Session:
        """Find a session. Master is asked before it is said not to be there, pause or not.

        Not once more when it was asked ``since`` that moment of the monotonic clock. Raises
        Unavailable when a session is not known here and master did not answer.
        """
        try:
            return self.find(selector, project)
        except NotFound as missing:
            if self.master.embedded:
                raise
            if self._asked_at < since:
                self._ask(fresh=False, insist=True)
                self._settle_catalog()
            try:
                return self.find(selector, project)
            except NotFound:
                if not self._no_answer:
                    raise
                raise Unavailable(
                    f"{missing.message} as far as is known here; master can't be asked: "
                    f"{self._no_answer}",
                    hint="try again later; what is known here: annoris list --all",
                ) from missing

    def _receipt(self, draft: Draft, outcome: Outcome) -> Receipt:
        if receipt := outcome.receipts.get(draft.key) or self.outbox.answered(draft.key):
            return receipt
        state, reason = self._fate(draft, outcome.error)
        return Receipt(
            state=state,
            id=draft.id,
            path=draft.path,
            project=draft.project,
            title=draft.title,
            name=draft.name,
            size=len(draft.data),
            reason=reason,
            op=draft.op,
        )

    def _fate(self, draft: Draft, error: AnnorisError | None) -> tuple[State, str]:
        """What became of a draft that this flush did not settle, and why."""
        refused = {other.key: reason for other, reason in self.outbox.aside()}
        if draft.key in refused:
            return "refused", refused[draft.key]
        if draft.key not in self.outbox.waiting():
            return "master", ""  # another process delivered it
        state: State = "refused" if isinstance(error, RemoteRefused) else "queued"
        return state, error.message if error else "another annoris is writing"

    def fate(self, key: str) -> Receipt:
        """What became of a draft by now, as the outbox says, or master's history anywhere.

        Raises NotFound for a key that nobody knows.
        """
        from annoris.publish import Outcome  # noqa: PLC0415

        try:
            draft = self.outbox.find(key)
        except NotFound:
            return self.outbox.answered(key) or self._brought(key)
        return self._receipt(draft, Outcome(error=Queued("it waits here for master")))

    def _brought(self, key: str) -> Receipt:
        self.look()
        commit, paths = self.master.saved_by(key.rpartition(".")[0])
        if not commit:
            raise NotFound(f"no receipt {key}", hint="annoris outbox lists what waits")
        rows = [row for path in paths if (row := self.catalog.at(path))]
        if not rows:  # it was removed, by this draft or since
            return Receipt(state="master", id="", path=paths[0], project="", commit=commit)
        known = ("id", "path", "project", "title", "name", "oid", "size")
        values = {name: getattr(rows[0], name) for name in known}
        return Receipt(state="master", commit=commit, **values)

    def flush(
        self, mine: Iterable[str] = (), *, patient: bool = False, exact: Collection[str] = ()
    ) -> Outcome:
        """Deliver what waits; ``mine`` are the drafts whose receipts are wanted.

        Where master did not answer a moment ago it is asked first, and no longer than a load
        would, unless ``patient``.
        """
        from annoris.publish import Outcome, Publisher  # noqa: PLC0415

        limits = self.settings.master
        silent = not (patient or self.master.embedded) and self.breaker.blocked(_MASTER)
        seconds = min(limits.push_seconds, limits.load_seconds) if silent else limits.push_seconds
        deadline = Deadline(seconds)
        try:
            publisher = Publisher(self.follower)
            outcome = publisher.flush(deadline, mine=mine, ask_first=silent, exact=exact)
        except AnnorisError as error:  # whatever it is, the drafts are kept
            outcome = Outcome(error=error)
            for key in mine:
                if receipt := self.outbox.answered(key):
                    outcome.receipts[key] = receipt
        self.remember(outcome.error)
        return outcome

    def remember(self, error: AnnorisError | None) -> None:
        """Note whether master answered, so that the next load need not wait to find out."""
        if isinstance(error, RemoteUnreachable):
            self.breaker.failed(_MASTER, error.message)
        elif error is None and not self.master.embedded:
            self.breaker.succeeded(_MASTER)

    def edit(self, path: str, change: Callable[[bytes | None], bytes | None], message: str) -> bool:
        """Change a file on master that is no session; see Publisher.edit."""
        from annoris.publish import Publisher  # noqa: PLC0415

        deadline = Deadline(self.settings.master.push_seconds)
        return Publisher(self.follower).edit(path, change, message, deadline)

    def record(self, run: Run, *, shared: bool = True) -> None:
        """Note a run here and, where there is a hot cache that works, in its sync_log.

        Not there when it is not to be ``shared`` now; a full sync brings it there later.
        """
        noted = replace(run, key=run.key or os.urandom(12).hex())
        self.runs.add(noted)
        if shared:
            self.caches.log([noted])

    # --- loading -----------------------------------------------------------------------------

    def load(
        self,
        selector: str = "",
        project: str = "",
        *,
        fresh: bool = False,
        rev: str = "",
        at: str = "",
        source: Tier | None = None,
    ) -> Loaded:
        """The bytes of a session, from whatever still works, or from ``source`` alone.

        ``fresh`` insists on asking master. Raises NotFound, Ambiguous, Unavailable.
        """
        if source:
            return self._load_from(source, selector, project)
        if not (fresh or rev or at) and (cached := self._from_caches(selector, project)):
            return cached
        since = time.monotonic()
        stale = self.look(fresh=fresh)
        if rev or at:
            return self._load_revision(selector, project, rev, at, stale)
        session = self._find_surely(selector, project, since)
        data, tier = self._content(session)
        if self.caches.configured and not session.pending and self._shows_tip():
            self.caches.store([(session, data)], self.follower.position(), loaded=True)
        self.notes.keep(session.id, _noted(session))
        return Loaded(session, data, tier, checked=self.checked(), stale=stale)

    def transcript(self, selector: str = "", project: str = "") -> tuple[Session, bytes]:
        """A session and the packed transcript beside it. Raises NotFound, Ambiguous."""
        self.look()
        session, tip = self.find(selector, project), self.master.tip()
        waiting = [
            draft.data
            for draft in self.outbox.read()[0]
            if draft.op == "attach" and draft.id == session.id
        ]
        there = (
            self.master.file(tip, self.master.layout.transcript_path(session.id)) if tip else None
        )
        data = waiting[-1] if waiting else there
        if data is None:
            raise NotFound(
                f"session {session.short} has no transcript",
                hint="one is kept by: annoris save FILE --transcript TRANSCRIPT",
            )
        return session, data

    def attach(self, id: str, transcript: bytes) -> Draft:
        """Keep a packed transcript for a session in the outbox, durable when this returns.

        Raises NotFound, StorageError.
        """
        self.look()
        (kept,) = self.outbox.add([_transcript(transcript, self.find(id))])
        return kept

    def _load_from(self, tier: Tier, selector: str, project: str) -> Loaded:
        """What one tier answers. Raises Unavailable, which says why it does not."""
        if tier in ("hot", "emergency"):
            loaded = self._from_caches(selector, project, only=tier)
            if loaded is None:
                raise Unavailable(
                    f"the {tier} cache {self.caches.why_not(tier)}", hint="leave out --from"
                )
            return loaded
        if tier == "master":
            why = self.look(fresh=True)
        else:
            why = "" if self.master.exists() else "there is no clone on this machine yet"
            self._settle_catalog()
        if why:
            raise Unavailable(why, hint="run annoris sync")
        found = self.find(selector, project)
        session = self.catalog.base(found.id)
        if session is None:
            raise Unavailable(f"{found.path} is not on master yet", hint="run annoris sync")
        stale = "a newer text waits here, not yet on master" if found.pending else ""
        data, _ = self._content(session)
        self.notes.keep(session.id, _noted(session))
        return Loaded(session, data, tier, checked=self.checked(), stale=stale)

    def look(self, *, fresh: bool = False) -> str:
        """Ask master for news when that is due; answers why the answer may be old, or nothing."""
        master = self.settings.master
        age = time.time() - self.follower.checked()
        stale = ""
        if self.master.embedded:
            self.master.create()
        elif fresh or not 0 <= age < master.fresh_seconds:
            stale = self._ask(fresh)
        if full := self._full():
            if fresh or not self.catalog.commit:
                raise full
            stale = stale or full.message
        return stale

    def _ask(self, fresh: bool, *, insist: bool = False) -> str:
        if not (fresh or insist) and self.breaker.blocked(_MASTER):
            return "master did not answer a moment ago"
        self._asked_at, self._no_answer = time.monotonic(), ""
        try:
            self._fetch(fresh)
        except Locked:
            self._no_answer = "another annoris is talking to master right now"
        except (RemoteRefused, RemoteUnreachable) as error:
            self.remember(error)
            if fresh:
                raise Unavailable(error.message, hint=error.hint) from error
            self._no_answer = error.message
        except DiskFull as full:
            if fresh:
                raise
            self._no_answer = full.message
        else:
            self.breaker.succeeded(_MASTER)
        return self._no_answer

    def _fetch(self, fresh: bool) -> None:
        limits = self.settings.master
        first = not self.master.exists()
        deadline = Deadline(limits.fetch_seconds if fresh or first else limits.load_seconds)
        self.master.create()
        with self.master.lock(Deadline(deadline.left(limits.load_seconds / 2))):
            self.follower.fetch(deadline)

    def _from_caches(self, selector: str, project: str, only: Tier | None = None) -> Loaded | None:
        """What a cache answers, when it is right and not older than what this machine knows."""
        if not self.caches.configured or selector.count("/") > 1 or self._full():
            return None  # an old catalog can't tell an old row
        owner, _, name = selector.rpartition("/")
        project = self._project(project)
        whose = self._project(owner or project)
        rows, tier = list[Cached](), None
        whole = len(selector) == 36 and bool(re.fullmatch(_ID, selector))
        if not whole or self.catalog.named(whose, name):  # an id costs no question about names
            rows, tier = self.caches.find("named" if selector else "newest", whose, name, only)
        by_name = bool(rows)
        if not rows and re.fullmatch(_ID, selector):
            rows, tier = self.caches.find("get" if whole else "prefixed", "", selector, only)
        if len(rows) != 1 or tier is None:
            return None
        if self._outdated(rows[0], project if not selector else ""):
            return None
        data = self.caches.open(rows[0])
        if data is None:
            return None
        session = self.caches.revealed(rows[0].session, data)
        local = self.catalog.get(session.id)
        known = local is not None and local.oid == session.oid
        session = local if local and known else session  # what nobody changed on the way
        session = replace(session, project=self.catalog.canonical(session.project))
        if known and by_name and (session.project, selector and session.name) != (whose, name):
            return None
        self.notes.keep(session.id, _noted(session))
        stale = "the hot cache does not answer"
        if tier == only == "emergency":
            stale = "the emergency cache holds only what was saved while the hot cache failed"
        elif tier == "hot":
            stale = ""
        return Loaded(session, data, tier, checked=self.checked(), stale=stale)

    def _outdated(self, row: Cached, newest_of: str) -> bool:
        """Whether this machine knows better: a newer revision, a deletion, a newer session.

        The catalog shows all that happened up to its position, so a row that is not beyond it
        must agree with it.
        """
        local = self.catalog.get(row.session.id)
        newest = self.catalog.newest(newest_of) if newest_of else None
        if newest and newest.id != row.session.id and newest.rank >= row.session.rank:
            return True
        if local is not None and (local.pending or local.oid == row.session.oid):
            return bool(local.pending)
        if row.position <= self.follower.position():
            if local is not None:
                self.caches.replace(row)
            return True
        if forged := self.master.holds(row.session.oid):  # seen before, so it is not beyond
            self.caches.distrust(row)
        return forged

    def _content(self, session: Session) -> tuple[bytes, Tier]:
        if session.pending:
            return self.outbox.find(session.pending).data, "outbox"
        return self._blob(session), "master" if self.master.embedded else "clone"

    def _blob(self, of: Session | Revision) -> bytes:
        return self.master.blob(of.oid, of.path)

    def _load_revision(self, selector: str, project: str, rev: str, at: str, stale: str) -> Loaded:
        session, revisions = self.history(selector, project)
        chosen = revision_of(revisions, rev) if rev else revision_at(revisions, at)
        data = self._blob(chosen)
        old = replace(session, oid=chosen.oid, path=chosen.path, size=len(data), pending="")
        tier: Tier = "master" if self.master.embedded else "clone"
        return Loaded(old, data, tier, self.checked(), stale, revision=chosen.commit)

    # --- finding -----------------------------------------------------------------------------

    def find(self, selector: str, project: str = "") -> Session:
        """The session that a selector names: nothing (newest), name, project/name, id, path."""
        project = self._project(project)
        if not selector:
            newest = self.catalog.newest(project)
            if newest is None:
                raise NotFound(
                    f"project {project} has no session yet",
                    hint="save one: annoris save FILE"
                    if not self.catalog.count()
                    else "look at the others: annoris list --all",
                )
            return newest
        matches = self._matches(selector, project)
        if len(matches) == 1:
            return matches[0]
        if matches:
            lines = [
                f"  {row.short}  {row.project}  {row.title or row.name}" for row in matches[:9]
            ]
            raise Ambiguous(
                f"{selector!r} fits {len(matches)} sessions:\n" + "\n".join(lines),
                hint="give more characters of the id",
                details={"candidates": [row.id for row in matches]},
            )
        near = self.catalog.near(selector, project)
        raise NotFound(
            f"no session {selector!r}",
            hint=f"did you mean {', '.join(near)}?" if near else "see them: annoris list --all",
            details={"near": near},
        )

    def _matches(self, selector: str, project: str) -> list[Session]:
        owner, _, name = selector.rpartition("/")
        found = self.catalog.named(project, selector)
        if not found and owner:
            found = self.catalog.named(self._project(owner), name)
        if not found and "/" in selector:
            found = [row for row in [self.catalog.at(selector)] if row]
        if not found and re.fullmatch(_ID, selector):
            found = self.catalog.prefixed(selector.lower())
        return found

    def default_project(self) -> str:
        """This folder's git remote, else the configured default."""
        here = self.here and project_at(os.getcwd())
        return self.catalog.canonical(here or self.settings.project)

    def _project(self, name: str) -> str:
        """The project that is meant, by the name that it has now."""
        return self.catalog.canonical(name) if name else self.default_project()

    def sessions(
        self,
        *,
        project: str = "",
        status: str = "",
        since: str = "",
        limit: int | None = 20,
        everything: bool = False,
        before: tuple[str, str] | None = None,
    ) -> tuple[list[Session], str]:
        """Sessions, newest first, and why the list may be old.

        ``before`` is the (saved, id) of the last session of the page before.
        """
        stale = self.look()
        chosen = None if everything else self._project(project)
        moment = parse_moment(since, end=False) if since else None
        return self.catalog.list(
            project=chosen, status=status or None, since=moment, limit=limit, before=before
        ), stale

    def search(self, text: str, *, project: str = "", limit: int = 20) -> tuple[list[Hit], str]:
        """Sessions that hold every word, best first."""
        stale = self.look()
        chosen = self._project(project) if project else None
        return self.catalog.search(text, project=chosen, limit=limit), stale

    def projects(self) -> list[Project]:
        """All projects by name, those without a file included."""
        self.look()
        return self.catalog.projects()

    def project(self, name: str) -> Project:
        """A project by its name, present or former; nothing: this folder's. Raises NotFound."""
        known = self.projects()
        name = self._project(name)
        for project in known:
            if project.name == name:
                return project
        from difflib import get_close_matches  # noqa: PLC0415

        near = get_close_matches(name, [project.name for project in known], 3)
        raise NotFound(
            f"no project {name!r}",
            hint=f"did you mean {', '.join(near)}?" if near else "see them: annoris projects",
            details={"near": near},
        )

    def set_project(self, name: str, changes: Mapping[str, str]) -> bool:
        """Change what a project's file on master says, or make one; whether anything changed.

        ``changes``: keys of the file; an empty value takes one away, ``name`` is another name.
        Raises UsageError, NotFound for a rename of what is not there, DocumentRefused for a
        file that can't be read, and what ``edit`` raises.
        """
        from annoris import projects  # noqa: PLC0415
        from annoris.publish import new_project  # noqa: PLC0415

        wanted = projects.checked(changes)
        self.look()
        if other := wanted.get("name"):
            self._must_be_free(other, name)
        name = self._project(name)
        project = self.catalog.project(name) or new_project(
            self.catalog, self.master, projects.named(name)
        )
        told = " ".join(f"Set project {name}".split())[:60]
        return self.edit(project.path, lambda data: projects.edited(data, wanted, project), told)

    def _must_be_free(self, other: str, name: str) -> None:
        """Refuse another name that a project has or had, other than the one that gets it."""
        known = self.project(name)
        holder = self.catalog.project(other)
        if holder and holder.path != known.path:
            raise UsageError(
                f"there is a project {other!r} already", hint=f"annoris projects show {other!r}"
            )

    def history(self, selector: str, project: str = "") -> tuple[Session, list[Revision]]:
        """Revisions of a session, newest first, through moves made by hand.

        A deleted session is found by its path.
        """
        self.look()
        try:
            session = self.find(selector, project)
            path = self._path_on_master(session)
        except NotFound:
            session, path = _former(selector), selector
            if "/" not in selector or not self.master.log(selector):
                raise
        revisions = [item for item in self.master.log(path) if item.oid]
        while revisions and (origin := self._moved_from(session.id, revisions[-1])):
            older = [item for item in self.master.log(origin) if item.oid]
            revisions += [item for item in older if item not in revisions]
        if not revisions:
            raise NotFound(
                f"{session.short or path} is not on master yet, so it has no revisions",
                hint="annoris sync delivers it; annoris load shows it as it is",
            )
        return session, revisions

    def diff(
        self, selector: str, project: str = "", *, old: str = "", new: str = "", other: str = ""
    ) -> list[str]:
        """A unified diff of two revisions (default: the last two), or of two sessions."""
        if other:
            pair = [self.load(one, project).data for one in (selector, other)]
            names = [selector or "newest", other]
        else:
            _, revisions = self.history(selector, project)
            after = revision_of(revisions, new) if new else revisions[0]
            earlier = revisions[revisions.index(after) + 1 :]
            if old:
                earlier = [revision_of(revisions, old)]
            pair = [self._blob(item) for item in (*earlier[:1], after)]
            names = [f"{item.oid[:8]} {item.at}" for item in (*earlier[:1], after)]
            if not earlier:
                pair, names = [b"", *pair], ["nothing", *names]
        import difflib  # noqa: PLC0415

        texts = [data.decode(errors="replace").splitlines(keepends=True) for data in pair]
        return [
            line if line.endswith("\n") else f"{line}\n"
            for line in difflib.unified_diff(texts[0], texts[1], names[0], names[1])
        ]

    def _path_on_master(self, session: Session) -> str:
        row = self.catalog.base(session.id)
        return row.path if row else session.path

    def _moved_from(self, id: str, first: Revision) -> str:
        """Where a session lay before the commit that is its path's first."""
        removed = self.master.removed_with(first.commit)
        likely = [entry for entry in removed if id[-8:] in entry.path] or removed
        for entry, data in self.master.blobs(likely, bad=lambda *_: None):
            row = make_row(entry.path, entry.oid, data)
            if id in (row.session.id, row.fallback):
                return entry.path
        return ""

    def checked(self) -> str:
        """When master was last asked, as a time; empty for never."""
        moment = self.follower.checked()
        return iso(moment) if moment else ""

    def _settle_catalog(self) -> None:
        """Make the catalog true; a damaged one is made anew once."""
        try:
            self.follower.refresh()
        except StorageError:
            self.catalog.reopen()
            self.follower.refresh()
        except ScopeMismatch:
            if self.master.embedded:
                raise
            self._ask(fresh=False)  # master may have been converted, and the setting followed
            self.follower.refresh()

    def _full(self) -> DiskFull | None:
        """Make the catalog true, unless the disk is full: it then shows what it showed."""
        try:
            self._settle_catalog()
        except DiskFull as full:
            return full
        return None

    def _shows_tip(self) -> bool:
        """Whether the catalog shows what the clone knows; a full disk may keep it behind."""
        return self.catalog.commit == self.master.tip()

    def must_fit(self) -> None:
        """Try the key on a sealed master that is known here. Raises ScopeMismatch, KeyProblem."""
        tip = self.master.tip()
        if tip and self.master.layout.sealed:
            self.master.must_fit(tip)


def _transcript(data: bytes, of: Draft | Receipt | Session) -> Draft:
    """What is to be kept beside a session; the publisher knows the place."""
    return Draft(
        key="",
        op="attach",
        id=of.id,
        path=f"transcripts/{of.id}",
        base="",
        project=of.project,
        name="",
        title=f"transcript of {of.title or of.name or of.id[-8:]}",
        body_md5="",
        at=now(),
        data=data,
    )


def revision_of(revisions: list[Revision], rev: str) -> Revision:
    """The revision whose blob or commit begins with ``rev``."""
    rev = rev.lower()
    found = [item for item in revisions if item.oid.startswith(rev) or item.commit.startswith(rev)]
    if len(rev) >= 4 and found and len({item.oid for item in found}) == 1:
        return found[0]
    kind = Ambiguous if len(rev) >= 4 and found else NotFound
    raise kind(
        f"no one revision {rev!r} among {len(revisions)}", hint="see them: annoris history SEL"
    )


def revision_at(revisions: list[Revision], at: str) -> Revision:
    """The revision that was the newest at a moment."""
    moment = parse_moment(at)
    for item in revisions:
        if item.at <= moment:
            return item
    oldest = f"; the first is of {revisions[-1].at}" if revisions else ""
    raise NotFound(f"there was no revision yet at {moment}{oldest}")


def parse_moment(text: str, *, end: bool = True) -> str:
    """A moment as ISO in UTC, from a date, a time, or a distance back such as 90m, 12h, 3d, 2w.

    A date alone is its last second, so that ``--at`` a day shows what the day left; its
    first one when ``end`` is not set.
    """
    units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    if back := re.fullmatch(r"(\d{1,5})\s*([mhdw])", text.strip()):
        distance = timedelta(**{units[back[2]]: int(back[1])})
        return (datetime.now(UTC) - distance).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(
            f"{text!r} is not a moment",
            hint="write 2026-11-24, 2026-11-24T15:00 or a distance back like 3d or 12h",
        ) from None
    if end and re.fullmatch(r"\d{4}-\d\d-\d\d", text.strip()):
        moment = moment.replace(hour=23, minute=59, second=59)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _kept(error: AnnorisError, waiting: int) -> AnnorisError:
    """The same error, and that nothing was lost by it."""
    return type(error)(
        f"{error.message}; {waiting} waiting here, safe", hint=error.hint, details=error.details
    )


def _former(path: str) -> Session:
    """A session that only history knows."""
    return Session(
        id="",
        path=path,
        oid="",
        project="",
        name="",
        title=path,
        status="",
        priority="",
        created="",
        saved="",
        size=0,
        etag="",
        literal="",
        body_md5="",
    )


def project_at(folder: str) -> str:
    """The name of the repository that a folder's git remote points to; empty without one."""
    while not os.path.exists(os.path.join(folder, ".git")):
        folder, below = os.path.dirname(folder), folder
        if folder == below:
            return ""
    from annoris import gitcmd  # noqa: PLC0415

    result = gitcmd.run(["git", "-C", folder, "config", "--get", "remote.origin.url"], Deadline(5))
    url = gitcmd.text(result.output).strip()
    name = re.split(r"[/:\\]", os.path.normpath(url) if url else "")[-1].removesuffix(".git")
    return "" if name in (".", "..") else name


def _noted(session: Session) -> Noted:
    return Noted(session.literal, session.etag, session.oid)


def iso(moment: float) -> str:
    """A moment of the Unix clock as text."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def drift_here(loaded: Loaded) -> Drift | None:
    """How the work tree that this process stands in differs from what the session notes of it."""
    if b"workspace:" not in loaded.data[:65536]:  # as much as front matter may have
        return None
    from annoris import document, workspace  # noqa: PLC0415

    meta = document.inspect(loaded.data)
    return workspace.drift(meta.workspace, meta.saved, os.getcwd()) if meta.workspace else None


def excerpt(data: bytes, *, body: bool = False, section: str = "", max_chars: int = 0) -> bytes:
    """The part of a document that was asked for; the exact bytes when nothing was.

    Raises NotFound, with the headings, when there is no such section.
    """
    if not (body or section or max_chars):
        return data
    from annoris import document, markdown  # noqa: PLC0415

    part = document.split(data)[1] if body or section else data
    if section or max_chars:
        text = part.decode()
        text = markdown.section(text, section) if section else text
        part = (markdown.clip(text, max_chars) if max_chars else text).encode()
    return part
