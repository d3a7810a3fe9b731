"""Putting Annoris into a client's own files, and taking out exactly that again.

Decide, then do: ``plan`` reads and answers what every file is to become; ``carry_out`` writes,
each file whole or not at all. What was put in is noted beside the data (``installed.json``), as
the change that takes it back: an untouched file becomes what it was, byte for byte; in one that
has changed since, only our entries go.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from annoris.assistant import edit
from annoris.assistant.clients import Client, Entry, Part
from annoris.dataclass import dataclass, field
from annoris.errors import StorageError, UsageError


@dataclass(frozen=True, slots=True)
class Note:
    """What was done to a file: ``undo`` fits the text whose digest is ``digest``."""

    digest: str
    undo: edit.Change = field(default_factory=list)
    made: tuple[edit.Path, ...] = ()  # containers that were not there
    created: bool = False  # the file was not there
    folders: tuple[str, ...] = ()  # nor were these

    def as_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "undo": [list(splice) for splice in self.undo],
            "made": [list(path) for path in self.made],
            "created": self.created,
            "folders": list(self.folders),
        }


@dataclass(frozen=True, slots=True)
class Step:
    """What a file is to become; ``after`` is None for one that goes."""

    file: str
    before: str | None
    after: str | None
    note: Note | None  # None: nothing of ours is in it any more
    folders: tuple[str, ...] = ()  # that go with it, when nothing else is in them
    kept: str = ""  # why something of ours stays

    @property
    def changes(self) -> bool:
        return self.before != self.after

    @property
    def diff(self) -> list[str]:
        """A unified diff, one line around each change: there may be other secrets nearby."""
        before, after = (
            (text or "").splitlines(keepends=True) for text in (self.before, self.after)
        )
        return list(difflib.unified_diff(before, after, self.file, self.file, n=1))


class Record:
    """What is installed where, by client and file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
            self._known = dict(json.load(file))

    def find(self, client: str, file: str) -> Note | None:
        try:
            raw = self._known[client][file]
            return Note(
                digest=raw["digest"],
                undo=[edit.Splice(*splice) for splice in raw["undo"]],
                made=tuple(tuple(path) for path in raw["made"]),
                created=raw["created"],
                folders=tuple(raw["folders"]),
            )
        except (KeyError, TypeError):
            return None

    def keep(self, client: str, file: str, note: Note | None) -> None:
        files = self._known.setdefault(client, {})
        files.pop(file, None)
        if note:
            files[file] = note.as_json()
        if not files:
            del self._known[client]
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        _write(self._path, json.dumps(self._known, indent=1), 0o600)


def command(config: str = "") -> list[str]:
    """How a client starts annoris, from whatever folder and with whatever PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "annoris")
    found = beside if os.access(beside, os.X_OK) else shutil.which("annoris")
    start = [os.path.abspath(found)] if found else [sys.executable, "-m", "annoris.cli"]
    return [*start, *(["--config", os.path.abspath(config)] if config else [])]


def plan(client: Client, record: Record, *, remove: bool = False) -> list[Step]:
    """What is to be done to each file of a client. Nothing is changed.

    Raises UsageError for a file that is not what it should be or holds an entry of our name that
    is not ours, StorageError for one that can't be read.
    """
    steps = []
    for part in client.parts:
        text, note = _read(part.file), record.find(client.name, part.file)
        try:
            steps.append((_without if remove else _with)(part, text, note, client.name))
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{part.file}: {error}; nothing was changed",
                hint=f"correct the file, then run annoris install {client.name} again",
            ) from error
    return steps


def carry_out(client: Client, steps: Iterable[Step], record: Record) -> None:
    """Write what is planned. Raises StorageError, with nothing written, for a read-only file."""
    steps = list(steps)
    for step in steps:
        if step.changes:
            _must_be_writable(step)
    for step in steps:
        if step.changes:
            _put(step)
        record.keep(client.name, step.file, step.note)
        for folder in step.folders if step.after is None else ():
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def installed(part: Part, client: str) -> bool:
    """Whether all of ours is in a file of a client as it would be put there now."""
    try:
        text = _read(part.file)
        return text is not None and not _with(part, text, None, client).changes
    except (ValueError, RecursionError, UsageError, StorageError):
        return False


# --- deciding ------------------------------------------------------------------------------------


def _with(part: Part, text: str | None, note: Note | None, client: str) -> Step:
    if part.format == "whole":
        return _with_whole(part, text, note)
    before = text or ""
    ours = any(True for entry in part.entries for _ in _dropping(part, before, entry, client))
    note = note if ours else None  # else it was taken out by hand
    exact = not ours or (note is not None and note.digest == _digest(before))
    after, undo, made = before, list[edit.Splice](), list(note.made if note else ())
    for entry in part.entries:
        made += [path for path in _missing(_value(part, after), entry.path) if path not in made]
        for change in _putting(part, after, entry, client):
            after, back = edit.applied(after, change)
            undo = back + undo
    if after == before:
        return Step(part.file, text, text, note or Note(digest=""))
    note = note or Note("", created=text is None, folders=_missing_folders(part.file))
    digest = _digest(after) if exact else ""
    return Step(
        part.file, text, after,
        replace(note, digest=digest, undo=undo + note.undo, made=tuple(made)),
    )  # fmt: skip


def _putting(part: Part, text: str, entry: Entry, client: str) -> Iterator[edit.Change]:
    """The changes that bring an entry in: none where it is, an update where it is outdated."""
    if entry.path[-1]:
        known = _at(_value(part, text), entry.path)
        if known is None:
            yield _put_change(part, text, entry.path, entry.value)
            return
        if not _is_our_server(known, client):
            raise ValueError(f"{'.'.join(entry.path)} is an entry that Annoris did not write")
        stale = {key: value for key, value in entry.value.items() if known.get(key) != value}
        if stale and part.format == "toml":
            yield edit.put_toml(text, entry.path, stale)
            return
        for key, value in stale.items():
            change = _put_change(part, text, (*entry.path, key), value)
            text = edit.applied(text, change)[0]
            yield change
        return
    known = _at(_value(part, text), entry.path[:-1])
    if [item for item in _listed(known) if _is_our_hook(item, client)] == [entry.value]:
        return
    for change in _dropping(part, text, entry, client):
        text = edit.applied(text, change)[0]
        yield change
    yield _put_change(part, text, entry.path, entry.value)


def _without(part: Part, text: str | None, note: Note | None, client: str) -> Step:
    if text is None:
        return Step(part.file, None, None, None)
    folders = note.folders if note else ()
    if part.format == "whole":
        if text == part.text or (note and note.digest == _digest(text)):
            return Step(part.file, text, None, None, folders)
        return Step(part.file, text, text, None, kept="was changed since, so it stays")
    exact = note is not None and note.digest == _digest(text)
    after = _taken_back(text, note) if note and exact else _cut(part, text, note, client)
    empty = not after if exact else not _value(part, after)
    gone = note is not None and note.created and empty
    return Step(part.file, text, None if gone else after, None, folders)


def _taken_back(text: str, note: Note) -> str:
    for splice in note.undo:
        text = splice.apply(text)
    return text


def _cut(part: Part, text: str, note: Note | None, client: str) -> str:
    """A text without our entries, and without the containers that were made for them."""
    for entry in part.entries:
        for change in _dropping(part, text, entry, client):
            text = edit.applied(text, change)[0]
    for path in reversed(note.made if note else ()):
        if _at(_value(part, text), path) in ({}, []):
            text = edit.applied(text, _drop_change(part, text, path))[0]
    return text


def _dropping(part: Part, text: str, entry: Entry, client: str) -> Iterator[edit.Change]:
    if entry.path[-1]:
        known = _at(_value(part, text), entry.path)
        if known is not None and _is_our_server(known, client):
            yield _drop_change(part, text, entry.path)
        return
    path = entry.path[:-1]
    known = _at(_value(part, text), path)
    for index in reversed(range(len(_listed(known)))):
        if _is_our_hook(known[index], client):
            change = edit.drop_json(text, path, index, comments=part.format == "jsonc")
            text = edit.applied(text, change)[0]
            yield change


def _with_whole(part: Part, text: str | None, note: Note | None) -> Step:
    if text is not None and text != part.text and not (note and note.digest == _digest(text)):
        raise ValueError("is a file that Annoris did not write")
    folders = note.folders if note else _missing_folders(part.file)
    wanted = Note(_digest(part.text), created=True, folders=folders)
    return Step(part.file, text, part.text, wanted)


def _is_our_server(value: Any, client: str) -> bool:
    arguments = value.get("args") if isinstance(value, dict) else None
    return _listed(arguments)[-3:] == ["mcp", "--client", client]


def _is_our_hook(value: Any, client: str) -> bool:
    hooks = _listed(value.get("hooks") if isinstance(value, dict) else None)
    if len(hooks) != 1 or not isinstance(hooks[0], dict):
        return False
    return bool(re.search(rf"annoris\S*( .*)? hook [a-z-]+ --client {client}$", _command(hooks[0])))


def _command(hook: dict[str, Any]) -> str:
    return str(hook.get("command", ""))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _value(part: Part, text: str) -> Any:
    if part.format == "toml":
        return edit.read_toml(text)
    return edit.read_json(text, comments=part.format == "jsonc")


def _at(value: Any, path: edit.Path) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _missing(value: Any, path: edit.Path) -> list[edit.Path]:
    """The containers above a path that are not there yet, the outermost first."""
    above = [path[:depth] for depth in range(1, len(path))]
    return [place for place in above if _at(value, place) is None]


def _put_change(part: Part, text: str, path: edit.Path, value: Any) -> edit.Change:
    if part.format == "toml":
        return edit.put_toml(text, path, value)
    return edit.put_json(text, path, value, comments=part.format == "jsonc")


def _drop_change(part: Part, text: str, path: edit.Path) -> edit.Change:
    if part.format == "toml":
        return edit.drop_toml(text, path)
    return edit.drop_json(text, path, comments=part.format == "jsonc")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _missing_folders(file: str) -> tuple[str, ...]:
    """The folders above a file that are not there, the innermost first."""
    found = []
    while not os.path.exists(folder := os.path.dirname(file)):
        found.append(folder)
        file = folder
    return tuple(found)


# --- doing ---------------------------------------------------------------------------------------


def _read(file: str) -> str | None:
    """The text of a file with its line ends as they are; None when there is none."""
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            return opened.read()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: is not UTF-8 text", hint="correct the file") from None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}", hint="make it readable for you") from error


def _must_be_writable(step: Step) -> None:
    """Not by permission alone, which root always has: read-only is what its owner made it."""
    file = os.path.realpath(step.file)
    if step.before is not None and not (os.stat(file).st_mode & 0o222 and os.access(file, os.W_OK)):
        raise StorageError(
            f"{step.file}: is read-only; nothing was changed", hint=f"chmod u+w {step.file}"
        )


def _put(step: Step) -> None:
    """Make a file what is planned, unless somebody wrote it meanwhile. A link stays a link."""
    file = os.path.realpath(step.file)
    if _read(file) != step.before:
        raise UsageError(f"{step.file}: was written just now", hint="run the same command again")
    try:
        if step.after is None:
            os.unlink(step.file)
            return
        os.makedirs(os.path.dirname(file), exist_ok=True)
        mode = 0o600 if step.before is None else stat.S_IMODE(os.stat(file).st_mode)
        _write(file, step.after, mode)
    except OSError as error:
        raise StorageError(
            f"{step.file}: {error.strerror}", hint="make it and its folder writable for you"
        ) from error


def _write(path: str, text: str, mode: int) -> None:
    temporary = os.path.join(os.path.dirname(path), f".annoris-{secrets.token_hex(6)}")
    try:
        with open(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode),
            "w", encoding="utf-8", newline="",
        ) as file:  # fmt: skip
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
