"""Conversations of other tools to sessions: new ones, grown ones, and none of them twice.

The id of an imported session comes from the conversation, so every machine makes the same. Its
front matter says what was made of it: ``imported: <source> <last moment> <MD5 of the body>``. By
that a later import tells its own text, which it may replace, from one that a person has edited,
which it leaves alone. The status is ``captured``: no import is ever the newest of a project.

What was imported is noted in ``imports.json`` of the data folder, after each batch: an import
that was stopped goes on where it was. Without that file everything is read again, and what is on
master already stays as it is.

Files of a folder were once called by the folder's name and the path in it, so that two folders
of one name shared sessions. Of those that have such sessions one goes on with them: the one that
they were made of, which a file that is as it was then tells.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

from annoris import document, leaks
from annoris.archive import Archive, parse_moment, project_at
from annoris.assistant.page import Page, page
from annoris.assistant.sources import CLIENTS, Conversation, folder_key
from annoris.dataclass import dataclass
from annoris.errors import DocumentRefused, Unavailable
from annoris.intake import SaveOptions, Source
from annoris.model import CAPTURED, Document, Imported, LeftOut, Meta, Session

_BATCH = 100  # documents of one push
_BATCH_BYTES = 16 * 1024 * 1024
_SPACE = uuid.UUID("5f0a3c52-6c7e-5d0b-9a57-0d6c1c0f7b1e")  # never to be changed: it makes ids
_MARK = rb"(?m)^imported: ([a-z-]+) (\S+) ([0-9a-f]{32})[ \t]*\r?$"
_OWN = rb"(?m)^(?:imported: [a-z-]+ \S+ [0-9a-f]{32}|(?:annoris-)?etag: [0-9a-f]{16})[ \t]*\r?\n"
_KEPT = ("master", "unchanged", "conflict", "queued")


@dataclass(frozen=True, slots=True)
class Wish:
    """What to import. ``since`` is as ``archive.parse_moment`` takes it."""

    project: str = ""
    since: str = ""
    limit: int = 0  # the newest ones; 0: all
    redact: bool = False
    again: bool = False  # what is noted as imported, too
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Ready:
    """A document that may be saved."""

    conversation: Conversation
    source: Source
    title: str


Progress = Callable[[str, int, int], None]


def session_id(source: str, key: str) -> str:
    """The id of the session that a conversation becomes, on every machine."""
    return str(uuid.uuid5(_SPACE, f"{source}:{key}"))


class Importer:
    def __init__(self, archive: Archive, wish: Wish) -> None:
        self._archive = archive
        self._wish = wish
        self._state = _State(archive.settings.at("imports.json"))
        self._remote = cache(project_at)
        self._has_looked = False

    def run(
        self, source: str, found: Iterable[Conversation | LeftOut], progress: Progress
    ) -> Imported:
        """Import what is new. Raises StorageError when this machine can't keep it."""
        result = Imported(source)
        chosen = self._chosen(self._called(list(found)), result)
        if chosen:
            self._look()
        batch: list[_Ready] = []
        for number, conversation in enumerate(chosen):
            progress(f"importing {CLIENTS[source]}", number, len(chosen))
            ready = self._ready(conversation, result)
            batch += [ready] if ready else []
            if len(batch) == _BATCH or sum(len(item.source.data) for item in batch) > _BATCH_BYTES:
                self._save(batch, result)
                batch = []
        self._save(batch, result)
        if chosen and not self._wish.dry_run:
            self._state.write()
        return result

    def _look(self) -> None:
        """Learn what other machines have imported; without master, what this one knows must do."""
        if self._has_looked:
            return
        self._has_looked = True
        try:
            self._archive.look(fresh=True)
        except Unavailable:
            self._archive.look()

    def _called(self, found: list[Conversation | LeftOut]) -> list[Conversation | LeftOut]:
        """The same, each conversation under the key that its session was made under."""
        files = [item for item in found if isinstance(item, Conversation) and item.former]
        if not files or not self._goes_on(files):
            return found
        return [self._as_it_was(item) if isinstance(item, Conversation) else item for item in found]

    def _goes_on(self, files: list[Conversation]) -> bool:
        """Whether a folder goes on with the sessions of its name."""
        name = files[0].former.partition("/")[0]
        place = folder_key(files[0].folder, "")
        if name in self._state.owners or any(map(self._state.had, files)):
            return self._state.owners.get(name) == place
        if not any(self._state.knows(_once(item)) for item in files):
            self._look()
            if not any(map(self._holds, files)):
                return False
        self._state.owners[name] = place
        if not self._wish.dry_run:
            self._state.write()
        return True

    def _as_it_was(self, item: Conversation) -> Conversation:
        """Under its former key, where there is or was a session under that."""
        is_known = self._state.had(_once(item)) or self._former(item)
        return _once(item) if is_known else item

    def _former(self, item: Conversation) -> Session | None:
        return self._archive.catalog.get(session_id(item.source, item.former))

    def _holds(self, item: Conversation) -> bool:
        """Whether the session under the former key is of what the file says now."""
        row = self._former(item)
        if not row or not item.document:
            return False
        with suppress(OSError):
            return row.body_md5 == document.body_md5(document.split(item.document())[1])
        return False

    def _chosen(
        self, found: Iterable[Conversation | LeftOut], result: Imported
    ) -> list[Conversation]:
        """What is to be looked at, oldest first."""
        since = parse_moment(self._wish.since, end=False) if self._wish.since else ""
        newest: dict[str, Conversation] = {}
        for item in found:
            if isinstance(item, LeftOut):
                result.left_out.append(item)
                continue
            result.found += 1
            other = newest.setdefault(item.key, item)
            if other is not item:
                old, new = sorted((other, item), key=lambda one: one.changed)
                result.left_out.append(LeftOut(old.where, f"{new.where} is a later copy of it"))
                newest[item.key] = new
        fresh = [item for item in newest.values() if _moment(item.changed) >= since]
        if not self._wish.again:
            fresh = [item for item in fresh if not self._state.knows(item)]
        result.unchanged += len(newest) - len(fresh)
        fresh.sort(key=lambda item: (item.changed, item.key))
        return fresh[-self._wish.limit :] if self._wish.limit else fresh

    def _save(self, batch: list[_Ready], result: Imported) -> None:
        """Bring a batch to master in one push, and note what became of it."""
        if self._wish.dry_run:
            result.planned += [(item.source.name, item.title) for item in batch]
            return
        if not batch:
            return
        options = SaveOptions(validate=False)
        receipts = self._archive.save([item.source for item in batch], options)
        result.receipts += receipts
        for item, receipt in zip(batch, receipts, strict=True):
            if receipt.state in _KEPT:
                self._state.note(item.conversation)
        self._state.write()

    # --- one conversation --------------------------------------------------------------------

    def _ready(self, conversation: Conversation, result: Imported) -> _Ready | None:
        """The document of a conversation, unless there is a reason to leave it out."""
        try:
            made = self._document(conversation, result)
        except _Left as left:
            result.left_out.append(LeftOut(conversation.where, str(left), left.code))
        except DocumentRefused as error:
            result.left_out.append(LeftOut(conversation.where, error.message, error.code))
        except OSError as error:
            result.left_out.append(LeftOut(conversation.where, error.strerror or str(error)))
        else:
            if made is None:
                result.unchanged += 1
                if not self._wish.dry_run:
                    self._state.note(conversation)
            return made
        return None

    def _document(self, conversation: Conversation, result: Imported) -> _Ready | None:
        id = session_id(conversation.source, conversation.key)
        row = self._archive.catalog.get(id)
        if row is None and self._state.had(conversation):
            if not self._wish.again:
                raise _Left("it was deleted since it was imported; --again brings it back")
            self._archive.notes.forget(id)  # or it would be an edit of what was deleted
        if conversation.document:
            front, body, last = self._adopted(conversation, id)
        else:
            made = self._page(conversation, result)
            front, body, last = self._front(conversation, id, made), made.body.encode(), made.last
        body = self._without_credentials(front, body, result)
        mark = _mark(conversation, body, last)
        data = self._over(row, body, mark, last) if row else _marked(front, mark) + body
        if data is None:
            return None
        meta = document.parse(data, max_bytes=self._archive.settings.save.max_bytes).meta
        return _Ready(conversation, Source(conversation.where, data, at=last), meta.title)

    def _page(self, conversation: Conversation, result: Imported) -> Page:
        assert conversation.items is not None  # noqa: S101 - or it is a document
        room = self._archive.settings.save.max_bytes - 4096
        made = page(conversation.items, CLIENTS[conversation.source], room)
        for kind, count in made.left.items():
            result.ignored[kind] = result.ignored.get(kind, 0) + count
        if not made.body:
            raise _Left("nothing was said in it")
        return made

    def _front(self, conversation: Conversation, id: str, made: Page) -> bytes:
        fields = {
            "id": id,
            "project": self._project(made.facts.get("cwd", ""), made.facts.get("remote", "")),
            "status": CAPTURED,
            "created": made.first or _moment(conversation.changed),
        }
        empty = Document(b"", b"", Meta())
        return document.stamp(empty, fields)

    def _adopted(self, conversation: Conversation, id: str) -> tuple[bytes, bytes, str]:
        """A Markdown file as it is, with our keys in its front matter; when it was changed."""
        assert conversation.document is not None  # noqa: S101 - the caller looked
        data = conversation.document()
        most = self._archive.settings.save.max_bytes
        parsed = document.parse(data, where=conversation.where, max_bytes=most)
        if parsed.meta.id and parsed.meta.etag:
            raise _Left(f"it is a session already: annoris save {conversation.where}")
        fields = {
            "id": id,
            "project": self._wish.project
            or parsed.meta.project
            or self._project(conversation.folder, ""),
            "status": CAPTURED,
        }
        front = document.split(document.stamp(parsed, fields))[0]
        return front, parsed.body, _moment(conversation.changed)

    def _project(self, folder: str, remote: str) -> str:
        """The name of the repository, of the folder, or the one that a save here would take."""
        if self._wish.project:
            return self._wish.project
        named = self._remote(folder) if os.path.isabs(folder) else ""
        told = re.split(r"[/:\\]", remote.rstrip("/"))[-1].removesuffix(".git")
        own = re.split(r"[/\\]", folder.rstrip("/\\"))[-1]
        home = folder in ("", os.path.expanduser("~"))
        return named or told or ("" if home else own) or self._archive.default_project()

    def _without_credentials(self, front: bytes, body: bytes, result: Imported) -> bytes:
        limits = self._archive.settings.save
        if not limits.scan:
            return body
        text = body.decode()
        if found := leaks.scan(front.decode(), allow=limits.allow_secrets):
            raise _Left(f"its front matter holds a credential ({found[0].rule})", "credential")
        found = leaks.scan(text, allow=limits.allow_secrets)
        if not found:
            return body
        if not self._wish.redact:
            listed = sorted({leak.rule for leak in found})
            raise _Left(
                f"{len(found)} credentials in it ({', '.join(listed)}); --redact masks them",
                "credential",
            )
        result.redacted += 1
        return leaks.redact(text, found).encode()

    def _over(self, row: Session, body: bytes, mark: str, last: str) -> bytes | None:
        """The next revision of an imported session; None where it would say the same."""
        front, old = document.split(self._archive.load(row.id).data)
        said = re.search(_MARK, front)
        if not said or said[3].decode() != document.body_md5(old):
            raise _Left(f"session {row.short} was edited since it was imported; it stays as it is")
        if said[3].decode() == document.body_md5(body):
            return None
        if said[2].decode() > last and said[2] != b"-":
            raise _Left(f"session {row.short} is of a later copy of it")
        return re.sub(_MARK, lambda _: mark.encode(), front, count=1) + body


class _Left(Exception):
    """Why a conversation is left out."""

    def __init__(self, why: str, code: str = "") -> None:
        super().__init__(why)
        self.code = code


def _once(item: Conversation) -> Conversation:
    """A file as it was called once."""
    return replace(item, key=item.former)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(max(0.0, seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _mark(conversation: Conversation, body: bytes, last: str) -> str:
    return f"imported: {conversation.source} {last or '-'} {document.body_md5(body)}"


def _marked(front: bytes, mark: str) -> bytes:
    """Front matter with the mark as its first line, and no etag: it was made from no revision."""
    opening, newline, rest = front.partition(b"\n")
    end = b"\r\n" if opening.endswith(b"\r") else b"\n"
    return opening + newline + mark.encode() + end + re.sub(_OWN, b"", rest)


class _State:
    """Which conversations were imported, and what they looked like then."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        self.owners: dict[str, str] = {}  # the folder that goes on with the sessions of a name
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            self._known = {str(key): str(stamp) for key, stamp in found["imported"].items()}
            self.owners = {str(key): str(place) for key, place in found.get("owners", {}).items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass  # ids are stable: what is on master is found there

    def knows(self, conversation: Conversation) -> bool:
        """Whether it was imported as it is now."""
        return self._known.get(_key(conversation)) == conversation.stamp

    def had(self, conversation: Conversation) -> bool:
        """Whether it was ever imported from here."""
        return _key(conversation) in self._known

    def note(self, conversation: Conversation) -> None:
        self._known[_key(conversation)] = conversation.stamp

    def write(self) -> None:
        """Keep what was noted, whole or not at all."""
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        temporary = f"{self._path}.{secrets.token_hex(6)}"
        with open(temporary, "w", encoding="utf-8") as file:
            kept = {"version": 1, "imported": self._known, "owners": self.owners}
            json.dump(kept, file)
        os.replace(temporary, self._path)


def _key(conversation: Conversation) -> str:
    return f"{conversation.source}:{conversation.key}"
