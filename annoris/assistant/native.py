"""Transcripts as their client wrote them: kept packed beside a session, and given back to it."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from annoris import leaks
from annoris.assistant.sources import claude_folders
from annoris.errors import CredentialFound, DocumentRefused, NotFound, StorageError
from annoris.settings import SaveSettings

MAX_BYTES = 256 * 1024 * 1024  # of a transcript, unpacked
_LONG = 200  # characters of a folder's name, after which Claude Code cuts it


def packed(data: bytes, where: str, limits: SaveSettings, *, redact: bool) -> bytes:
    """A transcript as it is kept. The same bytes give the same.

    Raises CredentialFound, unless ``redact`` masks them, and DocumentRefused for one that is no
    transcript, or too large.
    """
    if not any(isinstance(record, dict) for _, record in _records(data)):
        raise DocumentRefused(
            f"{where}: there is no line of JSON in it", hint="name the client's .jsonl file"
        )
    if limits.scan:
        data = _masked(data, where, limits, redact=redact)
    small = gzip.compress(data, 6, mtime=0)
    if len(small) > limits.max_bytes or len(data) > MAX_BYTES:
        raise DocumentRefused(
            f"{where}: {len(small):,} bytes when packed; at most {limits.max_bytes:,} are kept",
            hint="leave out --transcript, or raise save.max_bytes in the configuration",
        )
    return small


def _masked(data: bytes, where: str, limits: SaveSettings, *, redact: bool) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    found = leaks.scan(text, allow=limits.allow_secrets)
    if not found:
        return data
    if not redact:
        told = [f"{where}:{leak.line}: looks like a credential ({leak.rule})" for leak in found]
        raise CredentialFound(
            "\n".join([*told[:20], *([f"and {len(told) - 20} more"] if len(told) > 20 else [])]),
            hint="--redact masks them in the transcript",
            details={"fingerprints": [leak.fingerprint for leak in found]},
        )
    return leaks.redact(text, found).encode("utf-8", "surrogateescape")


def unpacked(data: bytes) -> bytes:
    """The transcript that was packed. Raises StorageError for what is none."""
    reader = zlib.decompressobj(wbits=31)
    try:
        found = reader.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise StorageError(f"the transcript on master is damaged: {error}") from error
    if not reader.eof:
        raise StorageError("the transcript on master is cut, or larger than any that is kept")
    return found


def for_claude_code(data: bytes, folder: str, env: Mapping[str, str]) -> tuple[str, str, bytes]:
    """(session id, file, bytes) by which Claude Code on this machine goes on in ``folder``.

    Lines stay as they are but for the folder that the conversation was held in. Raises NotFound
    for a transcript that is not Claude Code's.
    """
    id, was = "", ""
    for _, record in _records(data):
        id = id or _said(record, "sessionId")
        was = was or _said(record, "cwd")
    if not re.fullmatch(r"[0-9A-Za-z-]{8,64}", id):
        raise NotFound("the transcript names no session of Claude Code")
    moved = b"".join(_moved(line, record, was, folder) for line, record in _records(data))
    file = os.path.join(claude_folders(env)[0], "projects", folder_name(folder), f"{id}.jsonl")
    return id, file, moved


def _records(data: bytes) -> Iterator[tuple[bytes, Any]]:
    """Each line, and what it holds; None for one that can't be read."""
    for line in data.splitlines(keepends=True):
        try:
            yield line, json.loads(line)
        except (ValueError, RecursionError):
            yield line, None


def _said(record: object, key: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, str) else ""


def _moved(line: bytes, record: Any, was: str, folder: str) -> bytes:
    here = _said(record, "cwd")
    if not was or was == folder or not (here == was or here.startswith(f"{was}/")):
        return line
    record["cwd"] = folder + here[len(was) :]
    return json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def folder_name(path: str) -> str:
    """The name of the folder in which Claude Code keeps the sessions of a folder.

    Every UTF-16 unit but ASCII letters and digits is a dash; a long name is cut, and ends with
    the hash of JavaScript programs: 31 times that of what goes before, in 32 bits.
    """
    raw = path.encode("utf-16-le", "surrogatepass")
    units = [int.from_bytes(raw[at : at + 2], "little") for at in range(0, len(raw), 2)]
    name = "".join(chr(unit) if _is_plain(unit) else "-" for unit in units)
    if len(name) <= _LONG:
        return name
    value = 0
    for unit in units:
        value = (value * 31 + unit) & 0xFFFFFFFF
    return f"{name[:_LONG]}-{_base36(abs(value - (1 << 32) if value >> 31 else value))}"


def _is_plain(unit: int) -> bool:
    return unit < 128 and chr(unit).isalnum()


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits or "0"
