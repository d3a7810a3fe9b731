"""Bytes to a ``Document`` and back: front matter and metadata, all that every save needs.

Pure: no files, no clock, no network. The only user of yaml.

A session's file is an optional front matter block and then the body, verbatim. The block
begins in the file's first line (``---``, after an optional BOM) and ends at the next line
that is ``---`` or ``...``. What stands between must be a YAML block mapping, or nothing.
Anything else that begins with a rule is body, as a reader of Markdown would take it: a
blank line after the rule, prose, a heading, a list, no second rule within ``MAX_FRONT``.

Annoris owns a few keys of the block and reads them as plain text; YAML is walked as events,
so nothing is constructed and no alias expands. Where a foreign tool uses one of these names
for something else (``id: 17``, ``status: [a, b]``), that entry is left alone and ours is
called ``annoris-<key>``.

Patterns are kept as text: re compiles them on first use and keeps them, so that a command that
reads no document pays nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from annoris.errors import DocumentRefused
from annoris.model import Document, Meta

MAX_FRONT = 64 * 1024
MAX_DEPTH = 20
MAX_ALIASES = 50

# ---------------------------------------------------------------- front matter

_WRITTEN = (
    "id", "project", "name", "status", "priority", "created", "saved", "workspace", "conflict-of",
)  # fmt: skip
_NULLS = ("~", "null", "Null", "NULL")
# Plain words that YAML 1.1 readers of other tools take for something else than text.
_WORDS = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n"))

# What may not stand on one line of YAML: breaks, controls, lone surrogates, BOMs. (A class of
# what may would take re 15 ms to compile.)
_ODD = "\ud800-\udfff\ufeff\ufffe\uffff"
_CONTROL = f"\0-\x1f\x7f-\x9f\u2028\u2029{_ODD}"
_UNFIT = f"[{_CONTROL}]"
_UNREADABLE = f"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f{_ODD}]"
_BREAK = "\r\n|[\n\r\x85\u2028\u2029]"

_OPEN = rb"(?:\xef\xbb\xbf)?---[ \t]*\r?\n"
_CLOSE = rb"(?m)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)"
_BLANK = rb"[ \t]*\r?\n"

# The form that ``stamp`` writes: it is read without importing yaml (25 ms).
_PLAIN = r"\w(?>(?:[\w ./@+,()-]++|:(?=[\w./@+,()-]))*)(?<! )"
_SIMPLE = (
    rf"([A-Za-z][A-Za-z0-9_-]{{0,63}}): "
    rf'(?:({_PLAIN})|"((?>(?:[^"\\{_CONTROL}]++|\\["\\])*))")\r?\n'
)
# A broken block is an error when its first line has the look of a key, else it is prose.
_KEY_LINE = (
    r"(?:[ \t]*(?:#[^\n]*)?\r?\n)*[ \t]*"
    r"(?:\"[^\"\n]*\"|'[^'\n]*'|[\w$<][\w$<./-]*(?: [\w./-]+){0,2})[ \t]*:(?:\s|$)"
)

_UUID = r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ETAG = r"[0-9a-f]{16}"
_WORKSPACE = r"\S+ \S+ (?:-|[0-9a-f]{40,64})(?: \S+)*"
_ISO = (
    r"(?ai)(\d{4}-\d\d-\d\d)(?!\d)"
    r"(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.\d+)?(?: ?(Z|UTC|[+-]\d\d:?\d\d))?)?"
)
_DOTTED = r"(?a)(\d{1,2})\.(\d{1,2})\.(\d{4})(?!\d)"


class _Entry(NamedTuple):
    """A top-level key of a block. Offsets count characters of the block's inner text."""

    start: int  # its first line
    end: int  # after its last line
    left: int  # its value
    right: int
    value: str | None  # None: not plain text (a list, a mapping, an alias, an anchor, a tag)


def _is_blank(entry: _Entry) -> bool:
    return entry.value is not None and not _clean(entry.value)


class _Block(NamedTuple):
    """A front matter block, read: ``head + inner + tail`` is its text."""

    head: str
    inner: str
    tail: str
    entries: dict[str, _Entry]
    indent: str
    size: int  # bytes

    def home(self, key: str) -> str:
        """The name under which ``key`` is, or would be, ours in this block."""
        entry = self.entries.get(key)
        foreign = entry and not usable(key, entry.value) and not _is_blank(entry)
        return f"annoris-{key}" if foreign or f"annoris-{key}" in self.entries else key

    def says(self, key: str) -> str:
        """The usable value of ``key``, or nothing."""
        for name in (f"annoris-{key}", key):
            entry = self.entries.get(name)
            if entry and (value := usable(key, entry.value)):
                return value
        return ""


class _Broken(Exception):
    """A block that YAML's rules or our bounds refuse; ``line`` counts from 0 inside it."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def split(data: bytes) -> tuple[bytes, bytes]:
    """(the front matter block with its delimiters and the newline after, the body).

    A broken block counts as body, as it does for ``inspect``.
    """
    block = _lenient(data)
    size = block.size if block else 0
    return data[:size], data[size:]


def etag(data: bytes) -> str:
    """16 hex of SHA-256 over the bytes without the front matter's own etag line.

    So it is the same before and after it is stamped in.
    """
    return _etag(_lenient(data), data)


def etags(data: bytes) -> tuple[str, str]:
    """The etag that a document carries, empty for none, and the true one."""
    block = _lenient(data)
    return block.says("etag") if block else "", _etag(block, data)


def _etag(block: _Block | None, data: bytes) -> str:
    own = block.entries.get(block.home("etag")) if block else None
    if not block or not own:
        return _digest(data)
    bare = _edited(block.inner, [(own.start, own.end, "")])
    return _digest(_encoded(block.head, bare, block.tail) + data[block.size :])


def claims(data: bytes) -> tuple[int, int]:
    """How many lines say that they were checked, ``[verified: how]``, and that they were not."""
    checked = re.findall(rb"(?m)^.*?\[verified:.*$", data)
    unchecked = re.findall(rb"(?m)^.*?\[unverified\].*$", data)
    return len(checked), len(unchecked)


def body_md5(body: bytes) -> str:
    """The MD5 of a body, to find the same text under another front matter; no protection."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def stamp(document: Document, fields: Mapping[str, str]) -> bytes:
    """The document with our keys set to ``fields``; an empty value removes a key.

    Foreign lines and the body stay as they are, byte for byte; values that already say the
    same stay as they are written. The etag is computed again and closes the block. Without
    front matter a block is put before the body (and before a BOM, which is the body's).

    Raises ValueError for a key that Annoris does not write or a value that its key can't
    hold, DocumentRefused for a block that would grow beyond ``MAX_FRONT``.
    """
    block = _block(document.front) if document.front else _Block("---\n", "", "---\n", {}, "", 0)
    if block is None:
        raise ValueError("document.front is not a front matter block")
    newline = "\r\n" if block.head.endswith("\r\n") else "\n"
    home = block.home("etag")
    edits = list(_edits(block, {key: _field(key, fields[key]) for key in fields}, newline))
    if own := block.entries.get(home):
        edits.append((own.start, own.end, ""))
    # A blank first line would turn the block into body.
    inner = re.sub(r"\A(?:[ \t]*\r?\n)+", "", _edited(block.inner, edits))
    mark = _digest(_encoded(block.head, inner, block.tail) + document.body)
    inner += f"{block.indent}{home}: {mark}{newline}"
    front = _encoded(block.head, inner, block.tail)
    if len(front) > MAX_FRONT:
        raise DocumentRefused(
            f"the front matter would have {len(front)} bytes; at most {MAX_FRONT} are read",
            hint="shorten the front matter",
        )
    return front + document.body


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _encoded(*texts: str) -> bytes:
    return "".join(texts).encode("utf-8", "surrogateescape")


def _edits(block: _Block, fields: dict[str, str], newline: str) -> Iterator[tuple[int, int, str]]:
    """What must change in the inner text: (start, end, replacement), never overlapping."""
    homes = {key: block.home(key) for key in _WRITTEN}
    kept = [
        block.entries[homes[key]]
        for key in _WRITTEN
        if homes[key] in block.entries and fields.get(key) != ""
    ]
    at = kept[0].start if kept else len(block.inner)  # a new key goes after its forerunner
    for key in _WRITTEN:
        entry, value = block.entries.get(homes[key]), fields.get(key)
        if value == "":
            yield from _removals(block, key)
        elif entry is None:
            if value:
                yield at, at, f"{block.indent}{homes[key]}: {_scalar(value)}{newline}"
        else:
            at = entry.end
            if value and value != usable(key, entry.value):
                yield _replacement(block, homes[key], value, newline)


def _removals(block: _Block, key: str) -> Iterator[tuple[int, int, str]]:
    ours, bare = block.entries.get(f"annoris-{key}"), block.entries.get(key)
    if ours:
        yield ours.start, ours.end, ""
    if bare and usable(key, bare.value):
        yield bare.start, bare.end, ""


def _replacement(block: _Block, name: str, value: str, newline: str) -> tuple[int, int, str]:
    entry = block.entries[name]
    if entry.value is None:
        line = f"{block.indent}{name}: {_scalar(value)}{newline}"
        return entry.start, entry.end, line
    gap = " " if block.inner[entry.left - 1] == ":" else ""
    return entry.left, entry.right, gap + _scalar(value)


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    parts, at = [], 0
    for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
        parts += [text[at:start], new]
        at = end
    return "".join((*parts, text[at:]))


def _field(key: str, value: str) -> str:
    if key not in _WRITTEN:
        raise ValueError(f"{key!r} is not a key that Annoris writes")
    read = usable(key, value)
    if _clean(value) and not read:
        raise ValueError(f"{value!r} is not a value for {key!r}")
    return read


def _scalar(value: str) -> str:
    if re.fullmatch(_PLAIN, value) and value.casefold() not in _WORDS:
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _clean(text: str) -> str:
    return re.sub(_UNFIT, " ", text).strip()


def usable(key: str, value: str | None) -> str:
    """A scalar as Annoris reads it, normalised; empty when the key can't hold it."""
    value = _clean(value) if value else ""
    if key == "id":
        return value.lower() if re.fullmatch(_UUID, value) else ""
    if key in ("created", "saved"):
        return _moment(re.fullmatch(_ISO, value))
    if key == "etag":
        return value if re.fullmatch(_ETAG, value) else ""
    if key == "workspace":
        return value if re.fullmatch(_WORKSPACE, value) else ""
    return value


def _moment(match: re.Match[str] | None) -> str:
    if match is None:
        return ""
    day, clock, zone = match.groups("")
    zone = "Z" if zone.upper() in ("", "UTC") else zone.upper()
    try:
        at = datetime.fromisoformat(f"{day}T{clock or '00:00'}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):  # 31 February; the year 0
        return ""
    return at.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _lenient(data: bytes) -> _Block | None:
    try:
        return _block(data)
    except DocumentRefused:
        return None


def _block(data: bytes, where: str = "") -> _Block | None:
    """The front matter, if there is any; raises DocumentRefused when it is broken."""
    opening = re.match(_OPEN, data)
    if not opening or re.compile(_BLANK).match(data, opening.end()):
        return None
    closing = re.compile(_CLOSE).search(data, opening.end(), MAX_FRONT)
    if not closing or (not closing[0].endswith(b"\n") and closing.end() < len(data)):
        return None
    # Bytes that are not UTF-8 become lone surrogates, one each, so that offsets stay true.
    head, inner, tail = (
        part.decode("utf-8", "surrogateescape")
        for part in (opening[0], data[opening.end() : closing.start()], closing[0])
    )
    entries = _simple(inner)
    indent = ""
    if entries is None:
        try:
            found = _walked(re.sub(_UNREADABLE, "\ufffd", inner))
        except _Broken as broken:
            raise _refused(
                where,
                f"the front matter is not usable: {broken}",
                line=broken.line + 2,
                hint="correct it; if it is no front matter, leave a blank line after the first ---",
            ) from broken
        if found is None:
            return None
        entries, indent = found
    return _Block(head, inner, tail, entries, indent, closing.end())


def _simple(inner: str) -> dict[str, _Entry] | None:
    """The entries of a block in the form that ``stamp`` writes; None for any other."""
    entries: dict[str, _Entry] = {}
    match_at = re.compile(_SIMPLE).match
    at = 0
    while at < len(inner):
        line = match_at(inner, at)
        if line is None or line[1] in entries:
            return None
        value = line[2]
        if value is None:
            value = re.sub(r"\\(.)", r"\1", line[3])
            left, right = line.start(3) - 1, line.end(3) + 1
        else:
            left, right = line.span(2)
            value = "" if value in _NULLS else value
        entries[line[1]] = _Entry(at, line.end(), left, right, value)
        at = line.end()
    return entries


def _walked(inner: str) -> tuple[dict[str, _Entry], str] | None:
    """Entries and indent of a YAML block mapping; None for what is not meant as one."""
    import yaml  # noqa: PLC0415

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    events = yaml.parse(inner, Loader=loader)
    try:
        root = next(islice(events, 2, None), None)
        if not isinstance(root, yaml.MappingStartEvent) or root.flow_style:
            return None
        return _entries(inner, events)
    except yaml.YAMLError as error:
        if not re.match(_KEY_LINE, inner):
            return None
        mark = getattr(error, "problem_mark", None)
        raise _Broken(mark.line if mark else 0, getattr(error, "problem", "no YAML")) from error


# The stubs say that an event may lack its marks. The parser's events have them: so Any.
def _entries(inner: str, events: Iterator[Any]) -> tuple[dict[str, _Entry], str]:
    nodes = _nodes(events)
    entries: dict[str, _Entry] = {}
    indent = 0
    for number, ((key, _), (value, last)) in enumerate(zip(nodes, nodes, strict=True)):
        start = key.start_mark.index - key.start_mark.column
        if number == 0:
            line = inner[start : key.start_mark.index]
            indent = len(line) - len(line.lstrip(" "))
        name = getattr(key, "value", None)
        if name is None:
            continue
        if name in entries:
            raise _Broken(key.start_mark.line, f"the key {name!r} is there twice")
        left, right = value.start_mark.index, last.end_mark.index
        right = left + len(inner[left:right].rstrip())  # a block scalar's end is the next key
        end = re.compile(_BREAK).search(inner, right)
        text = None if _adorned(key) else _text_of(value, inner)
        entries[name] = _Entry(start, end.end() if end else len(inner), left, right, text)
    return entries, " " * indent


def _nodes(events: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """The nodes right under the root, keys and values in turn: first and last event of each."""
    import yaml  # noqa: PLC0415

    first: Any = None
    for depth, event in _bounded(events):
        if depth != 1:
            continue
        if isinstance(event, yaml.CollectionStartEvent):
            first = event
        elif isinstance(event, yaml.CollectionEndEvent):
            yield first, event
        else:
            yield event, event


def _bounded(events: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    """The events of nodes, each with the depth that it stands at, as far as they are allowed."""
    import yaml  # noqa: PLC0415

    depth, aliases = 1, 0
    for event in events:
        line = event.start_mark.line
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, (yaml.NodeEvent, yaml.CollectionEndEvent)):
            yield depth, event
        depth += isinstance(event, yaml.CollectionStartEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if isinstance(event, yaml.DocumentStartEvent):
            raise _Broken(line, "a second YAML document begins here")
        if aliases > MAX_ALIASES:
            raise _Broken(line, f"more than {MAX_ALIASES} aliases")
        if depth > MAX_DEPTH:
            raise _Broken(line, f"nested more than {MAX_DEPTH} deep")


def _adorned(event: Any) -> bool:
    return bool(event.anchor or event.tag)


def _text_of(event: Any, inner: str) -> str | None:
    """A scalar's text; None where an edit of it would break the block or its meaning."""
    value: str | None = getattr(event, "value", None)
    start = event.start_mark.index
    if value is None or _adorned(event):
        return None
    if start == event.end_mark.index and inner[start - 1 : start] != ":":
        return None  # "? key" without a value: there is no place for one
    return "" if event.style in (None, "") and value in _NULLS else value


# ---------------------------------------------------------------- reading

_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"PK\x03\x04": "a zip archive (docx, xlsx, odt are such)",
    b"%PDF-": "a PDF",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"SQLite format 3": "an SQLite database",
    b"\x7fELF": "a program",
}
UTF16 = (b"\xff\xfe", b"\xfe\xff")
_CONTROLS = bytes(sorted({*range(32)} - {*b"\t\n\f\r\x1b"}))
_REPAIR = "save it again with --fix-encoding, or as UTF-8 from your editor"

# Labels of lines like "**Status:** done", by what they tell.
_LABELS = {
    label: key
    for key, labels in {
        "status": "status статус состояние стан zustand statut état estado stato 状态 状態",
        "priority": "priority prio приоритет пріоритет priorität priorité prioridad prioridade "
        "priorità priorytet 优先级 優先度",
        "created": "date created дата создано створено datum stand erstellt créé fecha creado data "
        "日期 日付",
    }.items()
    for label in labels.split()
}
_FIELD = r"[\W_]*([^\W\d_]+)[\s*_`]*[:\uff1a][*_`]{0,3}\s*(\S.*)"
# "**Date:** … | **Status:** …" is two fields.
_FIELDS = r"\s+[|·•]\s+(?=[\W_]*\*\*)"
_HEAD_LINES = 60
_LINE_LIMIT = 300  # characters of a line that are read for metadata: some have megabytes

# Anchored at a newline, which re finds faster than the beginning of a line.
_HIDDEN = (
    r"(?s)\n {0,3}(`{3,}(?=[^`\n]*(?:\n|\Z))|~{3,})"
    r"(?:.*?\n {0,3}\1[`~]*[ \t]*(?=\n|\Z)|.*)"
    r"|<!--(?:.*?-->|.*)"
)
_MARKERS = r"^[ \t]*(?:(?:>|[-*+][ \t]|#{1,6}[ \t])[ \t]*)*"
_INLINE = r"""(?xi)
      \\(?P<escaped>[!-/:-@\[-`{-~])
    | (?P<ticks>`+)(?P<code>.+?)(?P=ticks)(?!`)
    | <(?:(?P<address>[a-z][a-z0-9+.-]*:[^\s<>]*)|/?[a-z][^<>]*|!--.*?--)>
    | !?\[(?P<label>(?>(?:[^\[\]]|\[[^\[\]]*\](?:\([^()]*\))?)*))\]
      (?:\((?>(?:[^()]|\([^()]*\))*)\)|\[[^\[\]]*\])
    | (?P<star>\*{1,3}|~~)(?=\S)(?P<starred>.+?)(?<=\S)(?P=star)
    | (?<!\w)(?P<line>_{1,3})(?=\S)(?P<lined>.+?)(?<=\S)(?P=line)(?!\w)
"""


def parse(data: bytes, *, where: str = "", max_bytes: int = 20 * 1024 * 1024) -> Document:
    """The document that these bytes are.

    Raises DocumentRefused, its message beginning with ``where:`` or ``where:line:``, for what
    is empty, too large, not UTF-8 text, or has broken front matter. A BOM is kept. Warnings
    about structure are ``markdown.check``'s.
    """
    if len(data) > max_bytes:
        raise _refused(
            where,
            f"the document has {len(data):,} bytes; at most {max_bytes:,} are accepted",
            hint="split it, or move logs and attachments elsewhere",
        )
    _must_be_text(data, where)
    block = _block(data, where)
    size = block.size if block else 0
    text = data[size:].decode()
    if not text.removeprefix("\ufeff").strip():
        what = "has nothing below its front matter" if block else "is empty"
        raise _refused(where, f"the document {what}", hint="write the session's text into it")
    return Document(data[:size], data[size:], _meta(block, text))


def inspect(data: bytes) -> Meta:
    """What a document says of itself; never raises.

    Bytes that are not UTF-8 are read as replacement characters, broken front matter as body.
    """
    return read(data)[0]


def read(data: bytes) -> tuple[Meta, str, bytes]:
    """What a document says of itself, its true etag, and its body; as ``inspect`` takes it."""
    block = _lenient(data)
    body = data[block.size if block else 0 :]
    return _meta(block, body.decode("utf-8", "replace")), _etag(block, data), body


def _refused(
    where: str, text: str, *, hint: str, line: int = 0, offset: int | None = None
) -> DocumentRefused:
    place = f"{where or 'document'}:{line}" if line else where or "document"
    details: dict[str, object] = {"file": where, "line": line}
    if offset is not None:
        details["offset"] = offset
    return DocumentRefused(f"{place}: {text}", hint=hint, details=details)


def _must_be_text(data: bytes, where: str) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise _not_text(data, error.start, where) from error
    if b"\0" in data:
        raise _not_text(data, data.index(0), where)


def _not_text(data: bytes, offset: int, where: str) -> DocumentRefused:
    """Why bytes that are not UTF-8, or have a NUL, are refused; the first cause counts."""
    nul = data.find(0, 0, offset)
    offset = offset if nul < 0 else nul
    line = newlines(data[:offset]) + 1
    sample = data[:4096]
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), "")
    if data.startswith(UTF16):
        text, hint = "this is UTF-16 text, not UTF-8", _REPAIR
    elif kind or controls > 8 + 0.05 * len(sample):
        text = f"this is not text: it looks like {kind or 'binary data'}"
        hint = "save Markdown text; attach nothing"
    elif data[offset] == 0:
        text, hint = f"a NUL byte at offset {offset}", "remove it: text has no NUL bytes"
    else:
        text, hint = f"the byte 0x{data[offset]:02X} at offset {offset} is not UTF-8", _REPAIR
    return _refused(where, text, line=line, hint=hint, offset=offset)


def newlines(data: bytes) -> int:
    """How many lines end in these bytes, by LF, CR or CR LF."""
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


def _meta(block: _Block | None, body: str) -> Meta:
    said = {key: block.says(key) if block else "" for key in Meta.__dataclass_fields__}
    body = lined(body)
    if not (said["status"] and said["priority"] and said["created"]):
        for key, value in _body_fields(body):
            said[key] = said[key] or value
    said["title"] = said["title"] or _title(body)
    return Meta(**said)


def lined(text: str) -> str:
    """A body as Markdown sees it: no BOM, and every line end a newline."""
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _title(body: str) -> str:
    for _, level, raw in outline(body):
        if level == 1 and (title := plain(raw)):
            return title
    for line in _top(body):
        text = plain(re.sub(_MARKERS, "", line, count=1))
        if text.strip("-*_=+|: "):
            return text[:120].rstrip()
    return ""


def _top(body: str) -> list[str]:
    """The body's first lines, without what fences and comments hide."""
    lines = [line[:_LINE_LIMIT] for line in body.split("\n", _HEAD_LINES)[:_HEAD_LINES]]
    text = "\n".join(lines)
    if not ("```" in text or "~~~" in text or "<!--" in text):
        return lines
    return re.sub(_HIDDEN, "", "\n" + text).split("\n")


def _body_fields(body: str) -> Iterator[tuple[str, str]]:
    for line in _top(body):
        for part in re.split(_FIELDS, line) if ":" in line or "\uff1a" in line else ():
            match = re.match(_FIELD, part)
            key = _LABELS.get(match[1].casefold()) if match else None
            if match and key:
                value = plain(match[2]).strip(" *\\")
                yield key, _date(value) if key == "created" else value[:80].rstrip()


def _date(value: str) -> str:
    value = re.sub(_DOTTED, lambda m: f"{m[3]}-{int(m[2]):02}-{int(m[1]):02}", value, count=1)
    return _moment(re.match(_ISO, value))


def plain(raw: str) -> str:
    """A line of Markdown as plain text."""
    text = re.sub(_INLINE, _bare, raw[:_LINE_LIMIT])
    if "&" in text:
        from html import unescape  # noqa: PLC0415

        text = unescape(text)
    return " ".join(re.sub(_UNFIT, " ", text).split())


def _bare(match: re.Match[str]) -> str:
    for kind in ("escaped", "code", "address"):
        if match[kind]:
            return match[kind]
    inner = match["label"] or match["starred"] or match["lined"] or ""
    return re.sub(_INLINE, _bare, inner)


# ---------------------------------------------------------------- outline

Mark = tuple[int, int, str]  # line, level, raw text; level 0 is a fence that nothing closes

_MARK = (
    r"(?m)^ {0,3}(?:(?P<atx>#{1,6})(?P<text>[ \t][^\n]*|)$"
    r"|(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)$"
    r"|(?P<underline>=++|-++)[ \t]*+$"
    r"|(?P<comment><!--))"
)
_NOT_PARAGRAPH = r" {4}| {0,3}(?:\t|>|[-*+][ \t]|\d{1,9}[.)][ \t])"


def outline(text: str) -> Iterator[Mark]:
    """Headings and the unclosed fence of a text, by a scan of its lines; linear in its size."""
    search = re.compile(_MARK).search
    line, counted, floor, at = 1, 0, 0, 0
    while mark := search(text, at):
        start, at = mark.start(), mark.end()
        line += text.count("\n", counted, start)
        counted = start
        if mark["atx"]:
            yield line, len(mark["atx"]), without_closing(mark["text"])
        elif mark["underline"]:
            above = _paragraph(text[floor:start])
            if above:
                yield line - len(above), 1 if "=" in mark[0] else 2, " ".join(above)
        elif mark["comment"]:
            end = text.find("-->", at)
            at = end + 3 if end >= 0 else len(text)
        elif "`" in mark["info"] and "`" in mark["fence"]:
            continue  # a code span
        else:
            fence = mark["fence"]
            closing = re.compile(rf"(?m)^ {{0,3}}{fence[0]}{{{len(fence)},}}[ \t]*$")
            end_of_fence = closing.search(text, at)
            if end_of_fence is None:
                yield line, 0, ""
                return
            at = end_of_fence.end()
        floor = at


def without_closing(text: str) -> str:
    """A heading's text without the row of # at its end."""
    text = text.strip()
    bare = text.rstrip("#")
    return bare.rstrip() if bare != text and bare[-1:] in ("", " ", "\t") else text


def _paragraph(text: str) -> list[str]:
    """The lines of the paragraph that ends here; none if what stands here is not one."""
    lines = text.split("\n")[:-1]
    start = len(lines)
    while start and lines[start - 1].strip():
        start -= 1
    found = lines[start:]
    return [] if found and re.match(_NOT_PARAGRAPH, found[0]) else found
