"""What a dump is: rows as lines of JSON, in files, under a manifest. Nothing here has effects
but ``write_tar``.

The same rows give the same bytes. The manifest holds nothing that its files do not say, so a
dump is whole when the manifest is the one that its files give: a bit that flipped anywhere, a
row, a file or a line too many or too few, all are found by making it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from annoris import envelope
from annoris.dataclass import dataclass, field
from annoris.errors import FindingsFound, KeyProblem, UsageError

FORMAT = 1
MANIFEST = "manifest.json"
NAME = r"\d{4}-\d\d-\d\dT\d{6}Z-[0-9a-f]{8}"  # of a dump: when it was made, and of what

_FILE_BYTES = 40 * 1000 * 1000  # GitHub warns of a file above 50 MB
_FILE = re.compile(r"([a-z_]+)\.(\d{4,})\.jsonl")
_TIMES = {"sessions": "synced_at", "projects": "updated_at", "sync_log": "started_at"}
_FOLDER = "annoris-dump"  # inside a tar file
_TAKE_ANOTHER = "take another one: annoris dump list"

Line = tuple[str, str]  # table, one row as JSON


class NewerDump(ValueError):
    """A manifest of a later format."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a dump."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    schema: int  # version of the tables
    newest: str  # when the newest row was written; empty without rows
    keys: tuple[str, ...]  # ids of the keys that its envelopes need
    files: Mapping[str, Part]

    def encoded(self) -> bytes:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True)
        return text.encode() + b"\n"

    @classmethod
    def decoded(cls, data: bytes) -> Manifest:
        """What ``encoded`` made. Raises ValueError."""
        try:
            raw = json.loads(data)
            if raw.pop("format") > FORMAT:
                raise NewerDump
            files = {name: Part(**part) for name, part in raw.pop("files").items()}
            _ = [_table(name) for name in files]
            return cls(files=files, keys=tuple(raw.pop("keys")), **raw)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it can't be read: {error}") from error

    def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        counts: Counter[str] = Counter()
        for name, part in self.files.items():
            counts[_table(name)] += part.rows
        return dict(counts)

    def bytes(self) -> int:
        return sum(part.bytes for part in self.files.values())

    def tells(self) -> dict[str, Part]:
        """The files that count when two dumps are compared: all but the log of dumps."""
        return {name: part for name, part in self.files.items() if _table(name) != "dump_log"}


@dataclass(frozen=True, slots=True)
class Source:
    """A dump to read: the names of its files, and how to get one."""

    name: str
    files: Sequence[str]
    read: Callable[[str], bytes]


def split(lines: Iterable[Line], limit: int = _FILE_BYTES) -> Iterator[tuple[str, bytes]]:
    """Rows as files of at most ``limit`` bytes, one row excepted: (name, content)."""
    table, number, held, size = "", 1, list[bytes](), 0
    for name, line in lines:
        data = line.encode() + b"\n"
        if held and (name != table or size + len(data) > limit):
            yield f"{table}.{number:04}.jsonl", b"".join(held)
            number, held, size = number + 1 if name == table else 1, [], 0
        table = name
        held.append(data)
        size += len(data)
    if held:
        yield f"{table}.{number:04}.jsonl", b"".join(held)


@dataclass(slots=True)
class Tally:
    """Files on their way to a manifest. ``add`` raises ValueError for what is no file of a dump."""

    _files: dict[str, Part] = field(default_factory=dict)
    _keys: set[str] = field(default_factory=set)
    _newest: str = ""
    _schema: int = 0
    _last: dict[str, Any] = field(default_factory=dict)  # the key of each table's last row

    def add(self, name: str, data: bytes) -> None:
        table, lines = _table(name), data.splitlines(keepends=True)
        if not data.endswith(b"\n"):
            raise ValueError("its last line has no end")
        for number, line in enumerate(lines, 1):
            try:
                self._row(table, json.loads(line))
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from None
        self._files[name] = Part(len(lines), len(data), hashlib.sha256(data).hexdigest())

    def manifest(self) -> Manifest:
        newest = re.sub(r"(\.\d+)?\+00:00$", "Z", self._newest)
        return Manifest(self._schema, newest, tuple(sorted(self._keys)), self._files)

    def _row(self, table: str, row: dict[str, Any]) -> None:
        key, last = key_of(table, row), self._last.get(table)
        if key is None or (last is not None and not last < key):
            raise ValueError("a row that stands twice, or out of order")
        self._last[table] = key
        self._newest = max(self._newest, row.get(_TIMES.get(table, ""), ""))
        if table == "state":
            self._schema = row["version"]
        for sealed in (row.get("content"), row.get("proof")):
            with suppress(KeyProblem):  # one that is damaged names no key
                self._keys |= {envelope.sealed_by(sealed)} if sealed else set()


def _table(name: str) -> str:
    if not (found := _FILE.fullmatch(name)):
        raise ValueError(f"{name} is no file of a dump")
    return found[1]


def key_of(table: str, row: dict[str, Any]) -> Any:
    """What tells the rows of a table apart, and orders them."""
    return row.get("one" if table == "state" else "id")


def lines_of(source: Source, manifest: Manifest) -> Iterator[Line]:
    """The rows of a dump, as they were exported."""
    for name in sorted(manifest.files):
        table = _table(name)
        for line in source.read(name).splitlines():
            yield table, line.decode()


def verify(source: Source) -> Manifest:
    """The manifest of a dump whose files are all as they were written.

    Raises FindingsFound, with every damage in ``details``, and UsageError for a dump of a newer
    Annoris.
    """
    given = _given(source)
    found = [f"{name} is missing" for name in given if name not in source.files]
    found += [
        f"{name} does not belong there"
        for name in source.files
        if name not in given and name != MANIFEST
    ]
    tally = Tally()
    for name in sorted(name for name in given if name in source.files):
        data = source.read(name)
        if hashlib.sha256(data).hexdigest() != given[name].sha256:
            found.append(f"{name} is damaged: its SHA-256 differs")
            continue
        try:
            tally.add(name, data)
        except ValueError as error:
            found.append(f"{name} is damaged: {error}")
    made = tally.manifest()
    encoded = source.read(MANIFEST)
    named = re.fullmatch(NAME, source.name)
    if not found and (
        encoded != made.encoded() or (named and not source.name.endswith(mark(encoded)))
    ):
        found.append(f"{MANIFEST} was changed: its files say something else")
    if found:
        raise damaged(source.name, found)
    return made


def mark(manifest: bytes) -> str:
    """The end of a dump's name: the start of its manifest's SHA-256."""
    return hashlib.sha256(manifest).hexdigest()[:8]


def damaged(name: str, found: Sequence[str]) -> FindingsFound:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return FindingsFound(
        f"the dump {name} is damaged: {found[0]}{more}; nothing was changed",
        hint=_TAKE_ANOTHER,
        details={"damage": list(found)},
    )


def newer(name: str) -> UsageError:
    return UsageError(
        f"the dump {name} was made by a newer Annoris", hint="upgrade Annoris on this machine"
    )


def _given(source: Source) -> Mapping[str, Part]:
    """The files that the manifest names."""
    if MANIFEST not in source.files:
        raise damaged(source.name, [f"{MANIFEST} is missing"])
    try:
        return Manifest.decoded(source.read(MANIFEST)).files
    except NewerDump:
        raise newer(source.name) from None
    except ValueError as error:
        raise damaged(source.name, [f"{MANIFEST} is damaged: {error}"]) from None


# --- two sets of rows ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """How many rows of a second set are new, other or missing against the first."""

    new: int = 0
    changed: int = 0
    gone: int = 0

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.gone)


def compare(before: Iterable[Line], after: Iterable[Line]) -> Difference:
    """Two exports, row by row, both in their order; columns that only ``after`` has don't count."""
    counts: Counter[str] = Counter()
    old, new = _keyed(before), _keyed(after)
    one, other = next(old, None), next(new, None)
    while one or other:
        if other is None or (one is not None and one[0] < other[0]):
            counts["gone"] += 1
            one = next(old, None)
        elif one is None or other[0] < one[0]:
            counts["new"] += 1
            other = next(new, None)
        else:
            counts["changed"] += one[1] != other[1] and not _fits(one, other)
            one, other = next(old, None), next(new, None)
    return Difference(**counts)


def _keyed(lines: Iterable[Line]) -> Iterator[tuple[tuple[str, Any], str]]:
    for table, line in lines:
        yield (table, key_of(table, json.loads(line))), line


def _fits(one: tuple[tuple[str, Any], str], other: tuple[tuple[str, Any], str]) -> bool:
    """Whether a row of older tables says the same, as far as it says something."""
    old, new = json.loads(one[1]), json.loads(other[1])
    if one[0][0] == "state":
        old.pop("version", None)
    return old.keys() <= new.keys() and all(new[name] == value for name, value in old.items())


# --- which dumps stay ------------------------------------------------------------------------


def made_at(name: str) -> str:
    """When a dump was made, as a time, from its name."""
    return datetime.strptime(name[:18], "%Y-%m-%dT%H%M%SZ").strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: DTZ007


def name_of(manifest: bytes, at: str) -> str:
    """The name of a dump that is made at a time."""
    moment = datetime.fromisoformat(at).astimezone(UTC)
    return f"{moment:%Y-%m-%dT%H%M%SZ}-{mark(manifest)}"


def kept(
    names: Iterable[str], verified: Iterable[str], *, daily: int, weekly: int, monthly: int
) -> set[str]:
    """The dumps that stay: the last of each of so many days, weeks and months that have one.

    The newest one and the newest of the verified ones always stay.
    """
    newest_first = sorted(names, reverse=True)
    keep = {*newest_first[:1], *sorted(verified)[-1:]}
    for count, period in ((daily, "%Y-%m-%d"), (weekly, "%G-W%V"), (monthly, "%Y-%m")):
        last: dict[str, str] = {}
        for name in newest_first:
            last.setdefault(datetime.fromisoformat(made_at(name)).strftime(period), name)
        keep |= set(list(last.values())[:count])
    return keep


# --- one file --------------------------------------------------------------------------------


def write_tar(path: str, source: Source) -> None:
    """A dump as one file, private, with nothing in it of who made it or when.

    It appears whole under its name, or not at all.
    """
    partial = f"{path}.part"
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
                for name in sorted(source.files):
                    data = source.read(name)
                    info = tarfile.TarInfo(f"{_FOLDER}/{name}")
                    info.size = len(data)
                    tar.addfile(info, BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


@contextmanager
def open_tar(path: str) -> Iterator[Source]:
    """A dump in one file. Raises FindingsFound for a file that is none, or is cut."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = {member.name.removeprefix(f"{_FOLDER}/"): member for member in tar}
            plain = all(member.isreg() and not member.issparse() for member in members.values())
            if not plain or len(members) != len(tar.getmembers()):
                raise damaged(path, ["it holds what no dump holds"])

            def read(name: str) -> bytes:
                file = tar.extractfile(members[name])
                return file.read() if file else b""

            yield Source(path, sorted(members), read)
    except tarfile.TarError as error:
        raise damaged(path, [f"it can't be read: {error}"]) from error
