"""From documents to drafts: what is checked, which session it is, what it was made from."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache

from annoris import document, encoding, leaks, markdown
from annoris.catalog import Catalog
from annoris.dataclass import dataclass
from annoris.errors import (
    CredentialFound,
    DocumentRefused,
    KeyProblem,
    StorageError,
    UsageError,
)
from annoris.master import Master, now
from annoris.model import Document, Draft, Problem, Receipt, Session
from annoris.notes import Noted, Notes, file_key
from annoris.publish import same_text
from annoris.settings import SaveSettings


@dataclass(frozen=True, slots=True)
class Source:
    """A document to save, and where it came from (for messages).

    ``file`` is the absolute path of a file on this machine that may be saved again. ``at``:
    when it was written, where that is not now. ``transcript``: the packed one to keep beside it.
    """

    name: str
    data: bytes
    file: str = ""
    at: str = ""
    transcript: bytes = b""


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How to save. ``base`` is the etag that an edit was made from, where a caller knows it;
    ``id`` that of a new session whose document names none."""

    project: str = ""
    name: str = ""
    update: str = ""
    priority: str = ""
    status: str = ""
    base: str = ""
    id: str = ""
    validate: bool = True
    strict: bool = False
    allow_secrets: tuple[str, ...] = ()
    fix_encoding: bool = False
    workspace: str = ""  # what workspace.look found; nothing leaves what the document says


class Intake:
    """Turns documents into drafts. ``find`` resolves a selector within a project."""

    def __init__(
        self,
        limits: SaveSettings,
        master: Master,
        catalog: Catalog,
        notes: Notes,
        find: Callable[[str, str], Session],
    ) -> None:
        self._limits = limits
        self._master = master
        self._catalog = catalog
        self._notes = notes
        self._find = find
        self._canonical = lru_cache(catalog.canonical)

    def drafts(
        self, sources: Iterable[Source], options: SaveOptions, project: str
    ) -> list[tuple[Source, Document, Draft | Receipt | str]]:
        """Each document with its draft; or a receipt when master holds this very text; or the
        key of the draft that waits with it.

        ``project`` is that of documents that name none. Raises DocumentRefused,
        CredentialFound, UsageError, NotFound, Ambiguous; all that is wrong with the documents
        is said at once.
        """
        documents = self._checked(list(sources), options)
        if options.name and len(documents) > 1:
            raise UsageError("--name names one session, not several", hint="save them one by one")
        if options.update and len(documents) > 1:
            raise UsageError("--update takes one document", hint="save them one by one")
        at = now()
        made: list[tuple[Source, Document, Draft | Receipt | str]] = []
        taken: set[str] = set()
        for source, parsed in documents:
            continued = self._continued(source, parsed, options)
            result = self._draft(*continued, at, project, source.at or at)
            if isinstance(result, Draft) and result.id in taken:
                raise UsageError(
                    f"two of the documents are the same session {result.id[-8:]}",
                    hint="save them one after the other",
                )
            taken |= {result.id} if isinstance(result, Draft) else set()
            made.append((source, parsed, result))
        return made

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
        limits = self._limits
        data = source.data
        if options.fix_encoding:
            data = encoding.fix_encoding(data)
        parsed = document.parse(data, where=source.name, max_bytes=limits.max_bytes)
        if options.validate:
            problems = markdown.check(parsed, required=limits.required_sections)
            if problems and (options.strict or limits.strict):
                raise DocumentRefused(
                    "\n".join(_told(source.name, problem) for problem in problems),
                    hint="mend the document, or save without --strict",
                )
            parsed = replace(parsed, problems=problems) if problems else parsed
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
        self, parsed: Document, options: SaveOptions, at: str, default: str, saved: str
    ) -> Draft | Receipt | str:
        meta = parsed.meta
        # A document goes on to say the former name of its project: that alone is no edit of it.
        stated = self._canonical(options.project) or meta.project or default
        project, name = self._canonical(stated), options.name or meta.name
        body_md5 = document.body_md5(parsed.body)
        row = self._target(parsed, options, project, name)
        if row and options.update:  # a bare text stays what it is a revision of
            name = name or row.name
            if not (options.project or meta.project):
                stated = project = row.project
        if row is None and not (meta.id or options.id):
            twin = None if options.name else self._catalog.twin(project, body_md5)
            if twin and not (options.status or options.priority):
                return twin.pending or _unchanged(twin)
        id = row.id if row else meta.id or options.id or _uuid7()
        created = meta.created or (row.created if row else at)
        data = document.stamp(
            parsed,
            {
                "id": id,
                "project": stated,
                "name": name,
                "created": created,
                "saved": saved,
                **({"status": options.status} if options.status else {}),
                **({"priority": options.priority} if options.priority else {}),
                **({"workspace": options.workspace} if options.workspace else {}),
            },
        )
        same_body = row and not row.pending and body_md5 == row.body_md5
        if row and same_body and same_text(data, self._master.blob(row.oid, row.path)):
            return _unchanged(row)
        title = parsed.meta.title  # neither it nor the body is touched by a stamp
        path = row.path if row else self._master.layout.path_for(project, title, created, id)
        return Draft(
            key="",
            op="save",
            id=id,
            path=path,
            base=self._base(parsed, options, row),
            project=project,
            name=name,
            title=title,
            body_md5=body_md5,
            at=at,
            data=data,
        )

    def _target(
        self, parsed: Document, options: SaveOptions, project: str, name: str
    ) -> Session | None:
        """The session that a document is a revision of, as far as this machine knows."""
        if options.update:
            return self._find(options.update, project)
        if parsed.meta.id:
            return self._catalog.get(parsed.meta.id)
        named = self._catalog.named(project, name) if name else []
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
        noted = self._notes.find(row.id if row else meta.id)
        seen = [one for one in noted if written in ("", one.written)]
        if len(seen) > 1:
            return self._closest(parsed, seen, row.path if row else "").true
        return seen[0].true if seen else written or (row.etag if row else "")

    def _closest(self, parsed: Document, seen: list[Noted], path: str) -> Noted:
        """Of several revisions loaded here, which the etag can't tell apart, the one that shares
        the most words with the document; the newest where these don't tell either."""
        words = Counter(parsed.data.split())

        def likeness(one: Noted) -> float:
            try:
                its = Counter(self._master.blob(one.oid, path).split())
            except (StorageError, KeyProblem):  # this clone never had it
                return -1
            return (words & its).total() / max(words.total(), its.total(), 1)

        return max(reversed(seen), key=likeness)

    def _continued(
        self, source: Source, parsed: Document, options: SaveOptions
    ) -> tuple[Document, SaveOptions]:
        """A file that was saved before goes on from what that save made of it.

        The file itself still carries the id and the etag of the revision that it was loaded as.
        """
        meta = parsed.meta
        noted = self._notes.find(file_key(source.file)) if meta.id and meta.etag else []
        if not noted or options.base or noted[-1].written != f"{meta.id}:{meta.etag}":
            return parsed, options
        id, _, etag = noted[-1].true.partition(":")
        if id != meta.id:  # it lost against another edit: it lives on as a copy
            fields = {"id": id, "name": "", "conflict-of": meta.id}
            parsed = replace(
                document.parse(document.stamp(parsed, fields)), problems=parsed.problems
            )
        return parsed, replace(options, base=etag)

    def note(self, source: Source, parsed: Document, receipt: Receipt, draft: Draft | None) -> None:
        """Remember which revision the text just saved is now: its own, or the equal one there.

        ``draft`` is None when nothing of the text is kept, here or there.
        """
        if receipt.state in ("conflict", "unchanged") and receipt.oid:
            data = self._master.blob(receipt.oid, receipt.path)
        elif draft:
            data = draft.data
        else:
            return
        literal, etag = document.etags(data)
        if receipt.state != "conflict":
            self._notes.keep(receipt.id, Noted(literal, etag, receipt.oid), alone=True)
        if parsed.meta.id and parsed.meta.etag:
            written = f"{parsed.meta.id}:{parsed.meta.etag}"
            true = f"{receipt.id}:{etag}"
            self._notes.keep(file_key(source.file), Noted(written, true), alone=True)


def _told(where: str, problem: Problem) -> str:
    line = f":{problem.line}" if problem.line else ""
    return f"{where}{line}: {problem.message}"


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


def _uuid7() -> str:
    """A UUID version 7 (RFC 9562): milliseconds, their fraction in 12 bits, 62 random bits.

    With the fraction, documents of one save sort in the order in which they were given.
    """
    whole, rest = divmod(time.time_ns(), 1_000_000)
    value = whole << 80 | 0x7 << 76 | (rest << 12) // 1_000_000 << 64
    value |= 0x2 << 62 | int.from_bytes(os.urandom(8), "big") >> 2
    return str(uuid.UUID(int=value))
