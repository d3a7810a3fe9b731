"""The archive: save, load, list, search, history, delete. Every edge goes through it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from annoris import document, leaks
from annoris.breaker import Breaker
from annoris.catalog import Catalog
from annoris.errors import (
    Ambiguous,
    AnnorisError,
    CredentialFound,
    DocumentRefused,
    Locked,
    NotFound,
    Queued,
    RemoteRefused,
    RemoteUnreachable,
    StorageError,
    Unavailable,
    UsageError,
)
from annoris.master import Master, now
from annoris.model import (
    Ailment,
    Deadline,
    Document,
    Draft,
    Hit,
    Loaded,
    Problem,
    Project,
    Receipt,
    Report,
    Revision,
    Session,
    Standing,
    State,
    Tier,
)
from annoris.outbox import Outbox
from annoris.publish import Outcome, Publisher, oid_of, same_text
from annoris.settings import Settings

_MASTER: Tier = "master"


@dataclass(frozen=True, slots=True)
class Source:
    """A document to save, and where it came from (for messages).

    ``file`` is the absolute path of a file on this machine that may be saved again.
    """

    name: str
    data: bytes
    file: str = ""


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How to save. ``base`` is the etag that an edit was made from, where a caller knows it."""

    project: str = ""
    name: str = ""
    update: str = ""
    priority: str = ""
    status: str = ""
    base: str = ""
    validate: bool = True
    strict: bool = False
    allow_secrets: tuple[str, ...] = ()
    fix_encoding: bool = False


class Archive:
    def __init__(
        self, settings: Settings, master: Master, catalog: Catalog, outbox: Outbox, breaker: Breaker
    ) -> None:
        self.settings = settings
        self.master = master
        self.catalog = catalog
        self.outbox = outbox
        self.breaker = breaker
        self.publisher = Publisher(master, catalog, outbox)

    # --- saving ------------------------------------------------------------------------------

    def save(self, sources: Iterable[Source], options: SaveOptions) -> list[Receipt]:
        """Put documents on master, all in one push; one receipt for each, in order.

        Raises DocumentRefused, CredentialFound, UsageError, NotFound or Ambiguous before
        anything is kept, and StorageError when this machine can't keep it. What happens after
        that is in the receipts: on master, unchanged, conflict, queued or refused.
        """
        documents = self._checked(list(sources), options)
        self._settle_catalog()
        if options.name and len(documents) > 1:
            raise UsageError("--name names one session, not several", hint="save them one by one")
        if options.update and len(documents) > 1:
            raise UsageError("--update takes one document", hint="save them one by one")
        at = now()
        drafts: list[Draft] = []
        known: list[Receipt | str] = []
        for source, parsed in documents:
            made = self._draft(*self._continued(source, parsed, options), at, drafts)
            if isinstance(made, Draft):
                drafts.append(made)
                known.append(f"#{len(drafts) - 1}")
            else:
                known.append(made)
        kept = self.outbox.add(drafts) if drafts else []
        keys = [_key(item, kept) for item in known]
        by_key = {draft.key: draft for draft in kept}
        twins = {key: self.outbox.find(key) for key in keys if key and key not in by_key}
        outcome = self._flush([key for key in keys if key])
        receipts = []
        for item, key, (source, parsed) in zip(known, keys, documents, strict=True):
            receipt = (
                item if isinstance(item, Receipt) else self._receipt(key, by_key | twins, outcome)
            )
            receipts.append(replace(receipt, source=source.name, problems=parsed.problems))
            self._note_saved(source, parsed, receipt, by_key.get(key))
        return receipts

    def delete(self, selector: str, project: str) -> Receipt:
        """Remove a session from master; git keeps its history."""
        self.look()
        row = self.find(selector, project)
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
        kept = self.outbox.add([draft])
        outcome = self._flush([kept[0].key])
        return self._receipt(kept[0].key, {kept[0].key: kept[0]}, outcome)

    def _checked(
        self, sources: list[Source], options: SaveOptions
    ) -> list[tuple[Source, Document]]:
        """Every document parsed, checked and scanned; all that is wrong is said at once."""
        documents, errors = [], []
        for source in sources:
            try:
                documents.append((source, self._check(source, options)))
            except (DocumentRefused, CredentialFound) as error:
                errors.append(error)
        if len(errors) > 1:
            kind = type(errors[0])
            raise kind(
                f"{len(errors)} of {len(sources)} documents are refused; nothing was saved\n"
                + "\n".join(error.message for error in errors),
                hint=errors[0].hint,
                details=errors[0].details,
            )
        if errors:
            raise errors[0]
        return documents

    def _check(self, source: Source, options: SaveOptions) -> Document:
        limits = self.settings.save
        data = source.data
        if options.fix_encoding:
            data = document.fix_encoding(data)
        parsed = document.parse(data, where=source.name, max_bytes=limits.max_bytes)
        if options.validate:
            problems = document.check(parsed, required=limits.required_sections)
            if problems and (options.strict or limits.strict):
                raise DocumentRefused(
                    "\n".join(_told(source.name, problem) for problem in problems),
                    hint="mend the document, or save without --strict",
                )
            parsed = replace(parsed, problems=problems)
        if limits.scan:
            allow = {*limits.allow_secrets, *options.allow_secrets}
            found = leaks.scan(data.decode(), allow=allow)
            if found:
                flags = " ".join(f"--allow-secret {leak.fingerprint}" for leak in found)
                raise CredentialFound(
                    "\n".join(
                        f"{source.name}:{leak.line}: looks like a credential "
                        f"({leak.rule}: {leak.excerpt})"
                        for leak in found
                    ),
                    hint=f"take it out (git history is for ever), or if it is none: {flags}",
                    details={"fingerprints": [leak.fingerprint for leak in found]},
                )
        return parsed

    def _draft(
        self, parsed: Document, options: SaveOptions, at: str, earlier: list[Draft]
    ) -> Draft | Receipt | str:
        """A draft; or a receipt when master holds this very text; or the key that waits with it."""
        meta = parsed.meta
        project = options.project or meta.project or self.default_project()
        name = options.name or meta.name
        row = self._target(parsed, options, project, name)
        if row is None and not meta.id:
            body_md5 = document.body_md5(parsed.body)
            twin = None if options.name else self.catalog.twin(project, body_md5)
            if twin and not (options.status or options.priority):
                return twin.pending or _unchanged(twin)
        id = row.id if row else meta.id or _uuid7()
        created = meta.created or (row.created if row else at)
        data = document.stamp(
            parsed,
            {
                "id": id,
                "project": project,
                "name": name,
                "created": created,
                "saved": at,
                **({"status": options.status} if options.status else {}),
                **({"priority": options.priority} if options.priority else {}),
            },
        )
        same_body = row and not row.pending and document.body_md5(parsed.body) == row.body_md5
        if row and same_body and same_text(data, self.master.blob(row.oid)):
            return _unchanged(row)
        title = document.inspect(data).title
        path = row.path if row else document.path_for(project, title, created, id)
        if any(draft.id == id for draft in earlier):
            raise UsageError(
                f"two of the documents are the same session {id[-8:]}",
                hint="save them one after the other",
            )
        return Draft(
            key="",
            op="save",
            id=id,
            path=path,
            base=self._base(parsed, options, row),
            project=project,
            name=name,
            title=title,
            body_md5=document.body_md5(parsed.body),
            at=at,
            data=data,
        )

    def _target(
        self, parsed: Document, options: SaveOptions, project: str, name: str
    ) -> Session | None:
        """The session that a document is a revision of, as far as this machine knows."""
        if options.update:
            try:
                return self.find(options.update, project)
            except NotFound:
                self.look()
                return self.find(options.update, project)
        if parsed.meta.id:
            return self.catalog.get(parsed.meta.id)
        named = self.catalog.named(project, name) if name else []
        return named[0] if named else None

    def _base(self, parsed: Document, options: SaveOptions, row: Session | None) -> str:
        """The etag of the revision that a document was made from.

        The document carries it. Where it carries none (a body alone, a file written by hand),
        or one that an edit by hand made untrue, the record of the last load stands in.
        """
        meta = parsed.meta
        if options.base:
            return options.base
        written = meta.etag if row is None or meta.id == row.id else ""
        seen = self._noted(row.id if row else meta.id)
        if seen and written in ("", seen[0]):
            return seen[1]
        return written or (row.etag if row else "")

    def _receipt(self, key: str, drafts: dict[str, Draft], outcome: Outcome) -> Receipt:
        if receipt := outcome.receipts.get(key) or self.outbox.answered(key):
            return receipt
        draft = drafts[key]
        state, reason = self._fate(key, outcome.error)
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

    def _fate(self, key: str, error: AnnorisError | None) -> tuple[State, str]:
        """What became of a draft that this flush did not settle, and why."""
        refused = {draft.key: reason for draft, reason in self.outbox.aside()}
        if key in refused:
            return "refused", refused[key]
        if key not in self.outbox.waiting():
            return "master", ""  # another process delivered it
        state: State = "refused" if isinstance(error, RemoteRefused) else "queued"
        return state, error.message if error else "another annoris is writing"

    def _flush(self, mine: list[str]) -> Outcome:
        deadline = Deadline(self.settings.master.push_seconds)
        try:
            outcome = self.publisher.flush(deadline, mine=mine)
        except (Locked, StorageError) as error:
            outcome = Outcome(error=error)
            for key in mine:
                if receipt := self.outbox.answered(key):
                    outcome.receipts[key] = receipt
        self._remember(outcome.error)
        return outcome

    def _remember(self, error: AnnorisError | None) -> None:
        if isinstance(error, RemoteUnreachable):
            self.breaker.failed(_MASTER, error.message)
        elif error is None and not self.master.embedded:
            self.breaker.succeeded(_MASTER)

    # --- loading -----------------------------------------------------------------------------

    def load(
        self,
        selector: str = "",
        project: str = "",
        *,
        fresh: bool = False,
        rev: str = "",
        at: str = "",
    ) -> Loaded:
        """The bytes of a session, from whatever still works.

        ``fresh`` insists on asking master. Raises NotFound, Ambiguous, Unavailable.
        """
        stale = self.look(fresh=fresh)
        if rev or at:
            return self._load_revision(selector, project, rev, at, stale)
        session = self.find(selector, project)
        data, tier = self._content(session)
        self._note(session.id, session.literal, session.etag)
        return Loaded(session, data, tier, checked=self.checked(), stale=stale)

    def look(self, *, fresh: bool = False) -> str:
        """Ask master for news when that is due; answers why the answer may be old, or nothing."""
        master = self.settings.master
        age = time.time() - self.publisher.checked()
        stale = ""
        if self.master.embedded:
            self.master.create()
        elif fresh or not 0 <= age < master.fresh_seconds:
            stale = self._ask(fresh)
        self._settle_catalog()
        return stale

    def _ask(self, fresh: bool) -> str:
        limits = self.settings.master
        if not fresh and self.breaker.blocked(_MASTER):
            return "master did not answer a moment ago"
        first = not self.master.exists()
        deadline = Deadline(limits.fetch_seconds if fresh or first else limits.load_seconds)
        try:
            self.master.create()
            with self.master.lock(Deadline(deadline.left(limits.load_seconds / 2))):
                self.publisher.fetch(deadline)
        except Locked:
            return "another annoris is talking to master right now"
        except (RemoteRefused, RemoteUnreachable) as error:
            self._remember(error)
            if fresh:
                raise Unavailable(error.message, hint=error.hint) from error
            return error.message
        self.breaker.succeeded(_MASTER)
        return ""

    def _content(self, session: Session) -> tuple[bytes, Tier]:
        if session.pending:
            return self.outbox.find(session.pending).data, "outbox"
        data = self.master.blob(session.oid)
        if oid_of(data) != session.oid:
            raise Unavailable(
                f"the clone's copy of {session.path} is damaged",
                hint=f"move {self.master.folder} away; annoris sync makes it anew from master",
            )
        return data, "master" if self.master.embedded else "clone"

    def _load_revision(self, selector: str, project: str, rev: str, at: str, stale: str) -> Loaded:
        session, revisions = self.history(selector, project)
        chosen = revision_of(revisions, rev) if rev else revision_at(revisions, at)
        data = self.master.blob(chosen.oid)
        old = replace(session, oid=chosen.oid, path=chosen.path, size=len(data), pending="")
        tier: Tier = "master" if self.master.embedded else "clone"
        return Loaded(old, data, tier, self.checked(), stale, revision=chosen.commit)

    # --- finding -----------------------------------------------------------------------------

    def find(self, selector: str, project: str = "") -> Session:
        """The session that a selector names: nothing (newest), name, project/name, id, path."""
        project = project or self.default_project()
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
            found = self.catalog.named(owner, name)
        if not found and "/" in selector:
            found = [row for row in [self.catalog.at(selector)] if row]
        if not found and re.fullmatch(r"[0-9a-fA-F-]{4,36}", selector):
            found = self.catalog.prefixed(selector.lower())
        return found

    def default_project(self) -> str:
        """This folder's git remote, else the configured default."""
        return _project_here() or self.settings.project

    def sessions(
        self,
        *,
        project: str = "",
        status: str = "",
        since: str = "",
        limit: int | None = 20,
        everything: bool = False,
    ) -> tuple[list[Session], str]:
        """Sessions, newest first, and why the list may be old."""
        stale = self.look()
        chosen = None if everything else project or self.default_project()
        moment = parse_moment(since, end=False) if since else None
        return self.catalog.list(
            project=chosen, status=status or None, since=moment, limit=limit
        ), stale

    def search(self, text: str, *, project: str = "", limit: int = 20) -> tuple[list[Hit], str]:
        """Sessions that hold every word, best first."""
        stale = self.look()
        return self.catalog.search(text, project=project or None, limit=limit), stale

    def projects(self) -> list[Project]:
        self.look()
        return self.catalog.projects()

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
            pair = [self.master.blob(item.oid) for item in (*earlier[:1], after)]
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
        for path in self.master.removed_with(first.commit):
            log = self.master.log(path)
            before = next((item for item in log if item.oid), None)
            if before and document.inspect(self.master.blob(before.oid)).id == id:
                return path
        return ""

    # --- keeping up --------------------------------------------------------------------------

    def sync(self, *, force: bool = False) -> Report:
        """Flush the outbox, fetch, and make the catalog show master.

        Raises Locked, MasterShrunk, RemoteRefused, StorageError; Queued when master can't be
        reached and something waits here, else RemoteUnreachable.
        """
        started = time.monotonic()
        self.master.create()
        limits = self.settings.master
        before = self.master.tip()
        try:
            with self.master.lock(Deadline(1.0)):
                self.publisher.fetch(Deadline(limits.push_seconds), force=force)
                count = self.catalog.count()
                self.publisher.refresh()
        except RemoteUnreachable as error:
            self._remember(error)
            raise self._undelivered(error) from error
        outcome = self.publisher.flush(Deadline(limits.push_seconds))
        self._remember(outcome.error)
        receipts = list(outcome.receipts.values())
        if isinstance(outcome.error, RemoteUnreachable):
            raise self._undelivered(outcome.error)
        if isinstance(outcome.error, (RemoteRefused, StorageError)):
            raise outcome.error
        return Report(
            pushed=sum(item.state in ("master", "conflict") for item in receipts),
            queued=len(self.outbox.read()[0]),
            conflicts=tuple({i.id: i for i in receipts if i.state == "conflict"}.values()),
            set_aside=tuple(item for item in receipts if item.state == "refused"),
            before=before,
            after=self.master.tip(),
            changed=0,
            removed=max(0, count - self.catalog.count()),
            sessions=self.catalog.count(),
            milliseconds=round((time.monotonic() - started) * 1000),
        )

    def _undelivered(self, error: RemoteUnreachable) -> AnnorisError:
        waiting = len(self.outbox.read()[0])
        if not waiting:
            return error
        return Queued(f"{error.message}; {waiting} waiting here, safe", hint=error.hint)

    def status(self) -> Standing:
        """Where one stands, without waiting for master any longer than a load would."""
        stale = self.look()
        drafts, _ = self.outbox.read()
        project = self.default_project()
        return Standing(
            project=project,
            newest=self.catalog.newest(project),
            sessions=self.catalog.count(),
            projects=len(self.catalog.projects()),
            master=self.master.remote or self.master.folder,
            branch=self.master.branch,
            tip=self.master.tip(),
            checked=self.checked(),
            stale=stale,
            waiting=len(drafts),
            oldest_waiting=drafts[0].at if drafts else "",
            aside=len(self.outbox.aside()),
            data=self.settings.data_dir,
            config=self.settings.source,
        )

    def ailments(self) -> list[Ailment]:
        """What is wrong with this installation."""
        found = []
        drafts, damaged = self.outbox.read()
        found += [
            Ailment(f"{path} is damaged", "look at it: its text is readable; then remove it")
            for path in damaged
        ]
        if self.settings.source and self.settings.master.token:
            mode = os.stat(self.settings.source).st_mode
            if mode & 0o077:
                found.append(
                    Ailment(
                        f"{self.settings.source} may be read by others",
                        f"chmod 600 {self.settings.source}",
                    )
                )
        if self.master.exists() and (broken := self.master.check()):
            found.append(
                Ailment(f"the clone is damaged: {broken.splitlines()[0]}", self.master.mend)
            )
        if not self.master.embedded:
            try:
                tips, default = self.master.branches(Deadline(10))
                if tips and self.master.branch not in tips:
                    found.append(
                        Ailment(
                            f"{self.master.remote} has no branch {self.master.branch}",
                            f"annoris init --remote {self.master.remote} --branch {default}",
                        )
                    )
            except AnnorisError as error:
                found.append(Ailment(error.message, error.hint))
        if drafts:
            found.append(Ailment(f"{len(drafts)} documents are not on master yet", "annoris sync"))
        found += [
            Ailment(
                f"{draft.title or draft.path} was refused: {reason}",
                f"annoris outbox retry {draft.key}",
            )
            for draft, reason in self.outbox.aside()
        ]
        return found

    def checked(self) -> str:
        """When master was last asked, as a time; empty for never."""
        moment = self.publisher.checked()
        return _iso(moment) if moment else ""

    def _settle_catalog(self) -> None:
        """Make the catalog true; a damaged one is made anew once."""
        try:
            self.publisher.refresh()
        except StorageError:
            self.catalog.reopen()
            self.publisher.refresh()

    # --- what was loaded and saved here, for documents that don't carry the newest etag ----------

    def _continued(
        self, source: Source, parsed: Document, options: SaveOptions
    ) -> tuple[Document, SaveOptions]:
        """A file that was saved before goes on from what that save made of it.

        The file itself still carries the id and the etag of the revision that it was loaded as.
        """
        meta = parsed.meta
        noted = self._noted(_file_key(source)) if meta.id and meta.etag else None
        if not noted or options.base or noted[0] != f"{meta.id}:{meta.etag}":
            return parsed, options
        id, _, etag = noted[1].partition(":")
        if id != meta.id:  # it lost against another edit: it lives on as a copy
            fields = {"id": id, "name": "", "conflict-of": meta.id}
            parsed = replace(
                document.parse(document.stamp(parsed, fields)), problems=parsed.problems
            )
        return parsed, replace(options, base=etag)

    def _note_saved(
        self, source: Source, parsed: Document, receipt: Receipt, draft: Draft | None
    ) -> None:
        """Remember which revision the text just saved is now: its own, or the equal one there."""
        if receipt.state in ("conflict", "unchanged") and receipt.oid:
            data = self.master.blob(receipt.oid)
        elif draft and (receipt.state != "refused" or draft.batch in self.outbox.batches()):
            data = draft.data
        else:
            return
        meta, etag = document.inspect(data), document.etag(data)
        if receipt.state != "conflict":
            self._note(receipt.id, meta.etag, etag)
        if parsed.meta.id and parsed.meta.etag:
            written = f"{parsed.meta.id}:{parsed.meta.etag}"
            self._note(_file_key(source), written, f"{receipt.id}:{etag}")

    def _note(self, key: str, written: str, etag: str) -> None:
        if not key:
            return
        with contextlib.suppress(OSError):
            os.makedirs(self.settings.at("seen"), mode=0o700, exist_ok=True)
            with open(os.path.join(self.settings.at("seen"), key), "w", encoding="ascii") as file:
                file.write(f"{written or '-'} {etag}")

    def _noted(self, key: str) -> tuple[str, str] | None:
        """The etag as written and the true one: of the revision that was last seen here."""
        if not key:
            return None
        try:
            with open(os.path.join(self.settings.at("seen"), key), encoding="ascii") as file:
                written, etag = file.read().split(" ")
        except (OSError, ValueError):
            return None
        return ("" if written == "-" else written), etag


def _file_key(source: Source) -> str:
    """The key of a file in the notes; none for what was piped in."""
    return hashlib.sha256(os.fsencode(source.file)).hexdigest() if source.file else ""


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


def _told(where: str, problem: Problem) -> str:
    line = f":{problem.line}" if problem.line else ""
    return f"{where}{line}: {problem.message}"


def _key(item: Receipt | str, kept: list[Draft]) -> str:
    if isinstance(item, Receipt):
        return ""
    return kept[int(item[1:])].key if item.startswith("#") else item


def _unchanged(row: Session) -> Receipt:
    return Receipt(
        state="unchanged",
        id=row.id,
        path=row.path,
        project=row.project,
        title=row.title,
        name=row.name,
        oid=row.oid,
        size=row.size,
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


def _project_here() -> str:
    """The name of the repository that this folder's git remote points to."""
    folder = os.getcwd()
    while not os.path.exists(os.path.join(folder, ".git")):
        folder, below = os.path.dirname(folder), folder
        if folder == below:
            return ""
    from annoris import gitcmd  # noqa: PLC0415

    result = gitcmd.run(["git", "-C", folder, "config", "--get", "remote.origin.url"], Deadline(5))
    url = gitcmd.text(result.output).strip().rstrip("/")
    return re.split(r"[/:\\]", url)[-1].removesuffix(".git")


def _uuid7() -> str:
    """A UUID version 7 (RFC 9562): 48 bits of milliseconds, the rest random."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def excerpt(data: bytes, *, body: bool = False, section: str = "", max_chars: int = 0) -> bytes:
    """The part of a document that was asked for; the exact bytes when nothing was.

    Raises NotFound, with the headings, when there is no such section.
    """
    if not (body or section or max_chars):
        return data
    part = document.split(data)[1] if body or section else data
    if section or max_chars:
        text = part.decode()
        text = document.section(text, section) if section else text
        part = (document.clip(text, max_chars) if max_chars else text).encode()
    return part
