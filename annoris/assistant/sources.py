"""Where the conversations of other tools lie on this machine, and how their files are read.

Files are read a line, or a conversation, at a time. What can't be read is counted, not raised;
only OSError passes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, Any

from annoris.assistant import zst
from annoris.assistant.transcripts import ChatGPT, ClaudeCode, Codex, Item, Reader
from annoris.dataclass import dataclass
from annoris.errors import UsageError
from annoris.model import LeftOut

MAX_LINE = 64 * 1024 * 1024  # bytes; one image in a transcript may take megabytes
_CHUNK = 1024 * 1024
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


Found = Iterator["Conversation | LeftOut"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation that may be imported; ``items`` or ``document`` says what is in it."""

    source: str
    key: str  # what it is called on every machine
    where: str  # the file, for people
    changed: float  # when, in seconds since the epoch
    stamp: str  # another one when it may hold something else
    folder: str = ""  # where it was held, as far as that does not stand in it
    former: str = ""  # what it was called before folders of one name were told apart
    items: Callable[[], Iterable[Item]] | None = None
    document: Callable[[], bytes] | None = None


def find(source: str, path: str, env: Mapping[str, str] = os.environ) -> Found:
    """The conversations of a source, by default where its client keeps them; what is unreadable.

    Raises UsageError for a place that is not there, or where one must be named.
    """
    if path and not os.path.exists(path):
        raise UsageError(f"{path}: no such file or folder", hint="check the path")
    return SOURCES[source](os.path.abspath(path) if path else "", env)


# --- files of lines ------------------------------------------------------------------------------


def _claude_code(path: str, env: Mapping[str, str]) -> Found:
    files: dict[str, list[str]] = {}
    folders = [path] if path else [os.path.join(root, "projects") for root in claude_folders(env)]
    for file in _files(folders, r".*\.jsonl", "Claude Code", "CLAUDE_CONFIG_DIR"):
        files.setdefault(_claude_key(file), []).append(file)
    for key, group in files.items():
        mains = [file for file in group if _stem(file) == key]
        agents = sorted(file for file in group if _stem(file) != key)
        for main in mains or [""]:  # one that was moved may be there twice
            parts = [main, *agents] if main else agents
            yield _of_lines("claude-code", key, parts, ClaudeCode)


def claude_folders(env: Mapping[str, str]) -> list[str]:
    """Claude Code's own folders, the one that it writes to first."""
    if chosen := env.get("CLAUDE_CONFIG_DIR"):
        return [chosen]
    home = os.path.expanduser(env.get("HOME") or "~")
    return [os.path.join(home, ".claude"), os.path.join(home, ".config", "claude")]


def _claude_key(file: str) -> str:
    """The session that a file belongs to; a sub-agent's to the one that it worked for."""
    folder, name = os.path.split(file)
    if os.path.basename(folder) == "subagents":
        return os.path.basename(os.path.dirname(folder))
    if name.startswith("agent-"):
        with suppress(OSError):
            first = next(records(file), "")
            if isinstance(first, dict) and isinstance(first.get("sessionId"), str):
                return str(first["sessionId"])
    return _stem(file)


def _codex(path: str, env: Mapping[str, str]) -> Found:
    home = os.path.expanduser(env.get("HOME") or "~")
    root = env.get("CODEX_HOME") or os.path.join(home, ".codex")
    folders = [path] if path else [os.path.join(root, "sessions")]
    if not path and os.path.isdir(os.path.join(root, "archived_sessions")):
        folders.append(os.path.join(root, "archived_sessions"))
    for file in _files(folders, r"rollout-.*\.jsonl(?:\.zst)?", "Codex", "CODEX_HOME"):
        if file.endswith(".zst") and not zst.readable():
            yield LeftOut(file, "packed with zstd; to read it: pipx install 'annoris[assistant]'")
            continue
        name = _stem(file.removesuffix(".zst"))
        named = re.search(rf"{_UUID}\Z", name)
        yield _of_lines("codex", named[0] if named else name, [file], Codex)


def _of_lines(
    source: str, key: str, files: Sequence[str], reader: Callable[[], Reader]
) -> Conversation | LeftOut:
    try:
        known = [os.stat(file) for file in files]
    except OSError as error:
        return LeftOut(files[0], error.strerror or "unreadable")
    return Conversation(
        source,
        key,
        files[0],
        max(item.st_mtime for item in known),
        " ".join(f"{item.st_size}.{item.st_mtime_ns}" for item in known),
        items=partial(_read_lines, key, files, reader),
    )


def _read_lines(key: str, files: Sequence[str], reader: Callable[[], Reader]) -> Iterator[Item]:
    yield Item("fact", "id", key)
    taking = reader()
    for file in files:
        for record in records(file):
            if isinstance(record, str):
                yield Item("left", record)
            else:
                yield from taking.read(record)


def records(file: str) -> Iterator[dict[str, Any] | str]:
    """The JSON objects of a file of lines; for a line that is none, what is wrong with it."""
    try:
        with zst.opened(file) if file.endswith(".zst") else open(file, "rb") as lines:
            yield from _records(lines)
    except zst.Damaged:
        yield "rest of a packed file, which is damaged"


def _records(lines: io.BufferedIOBase) -> Iterator[dict[str, Any] | str]:
    while line := lines.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = lines.readline(_CHUNK)
            yield f"line of more than {MAX_LINE >> 20} MiB"
        elif line.strip():
            yield from _record(line)


def _record(line: bytes) -> Iterator[dict[str, Any] | str]:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = line.decode(errors="replace")
        yield "byte sequence that is not UTF-8 (replaced)"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        yield "line that is not JSON" if line.endswith(b"\n") else "last line, which is cut"
        return
    yield found if isinstance(found, dict) else "line that is no record"


# --- an export -----------------------------------------------------------------------------------


def _chatgpt(path: str, _: Mapping[str, str]) -> Found:
    if not path:
        raise UsageError(
            "where is the export?", hint="annoris import chatgpt FILE.zip, or conversations.json"
        )
    for name, open_file in _exported(path):
        where = f"{path}: {name}" if name else path
        changed = os.stat(path).st_mtime
        try:
            with open_file() as file:
                for number, raw in enumerate(objects(file), 1):
                    yield _of_export(raw, where, number, changed)
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            yield LeftOut(where, str(error))


def _of_export(raw: dict[str, Any], where: str, number: int, changed: float) -> Conversation:
    text = json.dumps(raw, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    said = [raw.get(key) for key in ("conversation_id", "id")]
    key = next((id for id in said if isinstance(id, str) and id), digest)
    updated = raw.get("update_time")
    when = float(updated) if isinstance(updated, (int, float)) and updated > 0 else changed
    return Conversation(
        "chatgpt",
        key,
        f"{where}, conversation {number}",
        when,
        digest,
        items=partial(_read_export, key, zlib.compress(text.encode(), 1)),
    )


def _read_export(key: str, packed: bytes) -> Iterator[Item]:
    yield Item("fact", "id", key)
    yield from ChatGPT().read(json.loads(zlib.decompress(packed)))


def _exported(path: str) -> Iterator[tuple[str, Callable[[], IO[str]]]]:
    """The files of conversations in an export: a zip, a folder, or the file itself."""
    if os.path.isdir(path):
        for file in _files([path], _EXPORT, "ChatGPT", ""):
            yield (
                os.path.relpath(file, path),
                partial(open, file, encoding="utf-8", errors="replace"),
            )
        return
    if not zipfile.is_zipfile(path):
        yield "", partial(open, path, encoding="utf-8-sig", errors="replace")
        return
    with zipfile.ZipFile(path) as archive:
        names = [
            name for name in archive.namelist() if re.fullmatch(_EXPORT, os.path.basename(name))
        ]
        if not names:
            raise UsageError(
                f"{path}: there is no conversations.json in it",
                hint="take the zip that ChatGPT sent, as it is",
            )
        for name in sorted(names):
            yield name, partial(_unzipped, archive, name)


_EXPORT = r"conversations.*\.json"


def _unzipped(archive: zipfile.ZipFile, name: str) -> IO[str]:
    return io.TextIOWrapper(archive.open(name), encoding="utf-8-sig", errors="replace")


def objects(file: IO[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, one after the other; an object alone is one.

    No more of the file is in memory than the object that is read, unless it is cut. Raises
    ValueError where it is, or where it is no JSON.
    """
    decode, skip = json.JSONDecoder().raw_decode, re.compile(r"[\[,\s]*").match
    text, at, size, number = "", 0, _CHUNK, 0
    while True:
        apart = skip(text, at)
        at = apart.end() if apart else at
        try:
            found, at = decode(text, at)
        except (ValueError, RecursionError):
            more = file.read(size)
            if not more:
                break
            text, at, size = text[at:] + more, 0, size * 2
            continue
        number, size = number + 1, _CHUNK
        if isinstance(found, dict):
            yield found
    if text[at:].strip("] \t\r\n") or not (number or text):
        raise ValueError(f"it is no JSON, or cut, after {number} conversations")


# --- documents -----------------------------------------------------------------------------------


def _specstory(path: str, _: Mapping[str, str]) -> Found:
    here = path or os.path.join(os.getcwd(), ".specstory", "history")
    inside = os.path.join(here, ".specstory", "history")
    here = inside if os.path.isdir(inside) else here
    for file in _files([here], r".*\.md", "SpecStory", ""):
        project = here.partition(f"{os.sep}.specstory")[0]
        yield _of_markdown("specstory", _specstory_key(file), file, project)


def _specstory_key(file: str) -> str:
    """The conversation that the file's head names, else the file's name."""
    with suppress(OSError), open(file, "rb") as text:
        head = text.read(4096).decode("latin-1")
        if told := re.search(rf"(?i)<!--[^>\n]*session ({_UUID})", head):
            return told[1].lower()
    return _stem(file)


def _folder(path: str, _: Mapping[str, str]) -> Found:
    if not path:
        raise UsageError("which folder?", hint="annoris import folder PATH")
    top = path if os.path.isdir(path) else os.path.dirname(path)
    for file in _files([path], r".*\.(?:md|markdown)", "Markdown", ""):
        inside = os.path.relpath(file, top).replace(os.sep, "/")
        former = f"{os.path.basename(top)}/{inside}".encode(errors="replace").decode()
        yield _of_markdown("folder", folder_key(top, inside), file, top, former)


def folder_key(top: str, inside: str) -> str:
    """What a file of a folder is called: another folder of the same name has other files."""
    place = os.path.join(os.path.realpath(top), *inside.split("/"))
    return hashlib.sha256(os.fsencode(place)).hexdigest()[:32]


def _of_markdown(
    source: str, key: str, file: str, folder: str, former: str = ""
) -> Conversation | LeftOut:
    try:
        known = os.stat(file)
    except OSError as error:
        return LeftOut(file, error.strerror or "unreadable")
    stamp = f"{known.st_size}.{known.st_mtime_ns}"
    return Conversation(
        source, key, file, known.st_mtime, stamp, folder, former, document=partial(_bytes, file)
    )


def _bytes(file: str) -> bytes:
    with open(file, "rb") as opened:
        return opened.read()


SOURCES: dict[str, Callable[[str, Mapping[str, str]], Found]] = {
    "claude-code": _claude_code,
    "codex": _codex,
    "chatgpt": _chatgpt,
    "specstory": _specstory,
    "folder": _folder,
}
CLIENTS = {
    "claude-code": "Claude Code", "codex": "Codex", "chatgpt": "ChatGPT",
    "specstory": "SpecStory", "folder": "a folder",
}  # fmt: skip


def _stem(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0]


def _files(places: Sequence[str], pattern: str, client: str, variable: str) -> Iterator[str]:
    """Files below folders whose names fit, in order; hidden folders are passed over.

    Raises UsageError when none of the places is there.
    """
    there = [place for place in places if os.path.exists(place)]
    if not there:
        more = f", or set {variable}" if variable else ""
        raise UsageError(f"{places[0]}: nothing of {client} is there", hint=f"name the place{more}")
    for place in there:
        if os.path.isfile(place):
            yield place
            continue
        for folder, below, names in os.walk(place):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                if re.fullmatch(pattern, name):
                    yield os.path.join(folder, name)
