"""A project's file on master: where it lies, what it says, and how a command edits it.

Pure. The name inside is the project's; the file's own name only follows it once, when it is
made, so that a rename keeps path and id. Revenues are exact: they are read as decimals and
never become binary fractions. TOML and decimals are imported where there is a file to read.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from annoris import document, naming
from annoris.errors import DocumentRefused, UsageError
from annoris.model import Project

if TYPE_CHECKING:
    from decimal import Decimal

REVENUES = ("target_revenue", "current_revenue")
_TEXTS = ("name", "status", "priority")
_KEYS = ("id", *_TEXTS, *REVENUES, "created", "was")
_WIDTH = 255  # of the columns in PostgreSQL
_NUMBER = r"[+-]?[0-9][0-9_]*(\.[0-9_]+)?([eE][+-]?[0-9]{1,4})?"
_MOST = 10**10  # NUMERIC(12, 2) holds ten digits before the point
_FILE = r"projects/([^/]+)\.toml"


def file_for(name: str, id: str = "") -> str:
    """Where the file of a new project goes; with ``id`` when that place is taken."""
    return f"projects/{naming.folder(name)}{f'-{id[-8:]}' if id else ''}.toml"


def is_file(path: str) -> bool:
    """Whether a file on master is where a project's lies."""
    return bool(re.fullmatch(_FILE, path, re.DOTALL))


def parse(path: str, data: bytes) -> Project | None:
    """The project of a file; None when it says nothing that a project's file would.

    Raises DocumentRefused with the path, the line and what is expected there.
    """
    values = _values(path, data)
    if not any(key in values for key in _KEYS):
        return None
    stem = document.usable("name", re.sub(_FILE, r"\1", path, flags=re.DOTALL))
    texts = {key: _text(path, data, values, key) for key in (*_TEXTS, "id", "created")}
    if not (texts["name"] or stem):
        raise _wrong(path, data, "name", "must be said here, the file's own being none")
    return Project(
        name=texts["name"] or stem,
        id=_id(path, data, texts["id"]),
        status=texts["status"],
        priority=texts["priority"],
        target_revenue=_money(path, data, values, "target_revenue"),
        current_revenue=_money(path, data, values, "current_revenue"),
        created=document.usable("created", texts["created"]),
        path=path,
        was=_was(path, data, values),
    )


def new(project: Project) -> bytes:
    """The file of a project that has none yet."""
    return edited(None, {}, project)


def edited(data: bytes | None, changes: Mapping[str, str], known: Project) -> bytes:
    """A project's file with other values; comments, order and foreign keys stay.

    An empty value takes its key away. A file that was none of a project begins with what is
    ``known`` of it. A name that gives way to another goes on to select the project. Raises
    DocumentRefused when the file can't be read as it is.
    """
    import tomlkit  # noqa: PLC0415

    before = parse(known.path, data) if data else None
    try:
        table: Any = tomlkit.parse(data.decode("utf-8-sig") if data else "")
    except tomlkit.exceptions.TOMLKitError as error:  # stricter than what reads
        raise _broken(known.path, 1, f"can't be edited: {error}") from error
    begun = {"id": known.id, "name": known.name, "created": known.created}
    for key, value in {**({"id": before.id} if before else begun), **changes}.items():
        if value:
            table[key] = tomlkit.value(value) if key in REVENUES else value
        else:
            table.pop(key, None)
    origin, name = before or known, changes.get("name", "")
    if name not in ("", origin.name):
        was = [item for item in (*origin.was, origin.name) if item != name]
        table["was"] = list(dict.fromkeys(was))
    return bytes(tomlkit.dumps(table).encode())


def share(project: Project) -> str:
    """How much of the target is reached, in per cent with one decimal; empty where unknown."""
    from decimal import Decimal  # noqa: PLC0415

    if not (project.current_revenue and project.target_revenue):
        return ""
    target = Decimal(project.target_revenue)
    return f"{Decimal(project.current_revenue) * 100 / target:.1f}" if target else ""


def checked(changes: Mapping[str, str]) -> dict[str, str]:
    """What a person asks for, as it goes into the file. Raises UsageError with the option."""
    found = {}
    for key, value in changes.items():
        option = f"--{key.replace('_', '-')}"
        try:
            made = revenue(value) if key in REVENUES and value else _line(value)
        except ValueError as error:
            raise UsageError(f"{option}: {error}", hint=_example(key)) from None
        found[key] = made
    return found


def revenue(text: str) -> str:
    """An amount in its one form, such as 1200.50. Raises ValueError that says what is wrong."""
    from decimal import Decimal  # noqa: PLC0415

    text = text.strip()
    if re.fullmatch(r"[+-]?(nan|inf|infinity)", text, re.IGNORECASE | re.ASCII):
        raise ValueError(f"{text} is no amount")
    if not re.fullmatch(_NUMBER, text):
        raise ValueError(f"{text!r} is not a number")
    return _amount(Decimal(text), text)


def _amount(value: Decimal, text: str) -> str:
    if value < 0:
        raise ValueError(f"{text} is below zero")
    if value >= _MOST:
        raise ValueError(f"{text} has more than ten digits before the point")
    exact = f"{abs(value):.2f}"
    if type(value)(exact) != value:
        raise ValueError(f"{text} has more than two decimals")
    return exact


def named(name: str) -> str:
    """A name that a new project may have. Raises UsageError."""
    try:
        return _line(name)
    except ValueError as error:
        raise UsageError(f"the project's name: {error}", hint="write one short line") from None


def _line(text: str) -> str:
    if len(text) > _WIDTH:
        raise ValueError(f"{len(text)} characters are more than {_WIDTH}")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError("is not UTF-8")
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("has a line break or a control character in it")
    return document.usable("name", text)


def _example(key: str) -> str:
    return "write an amount such as 1200.50" if key in REVENUES else "write one short line"


# --- reading -------------------------------------------------------------------------------------


def _values(path: str, data: bytes) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415
    from decimal import Decimal  # noqa: PLC0415

    try:
        return tomllib.loads(data.decode("utf-8-sig"), parse_float=Decimal)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _broken(path, line, "is not UTF-8", "save the file as UTF-8") from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place[1]) if place else data.count(b"\n") + 1
        why = re.sub(r" \(at .*\)$", "", str(error))
        if not isinstance(error, ValueError):
            why = "a number is too long, or it is nested too deeply"
        raise _broken(path, line, f"is not TOML: {why}") from error


def _text(path: str, data: bytes, values: dict[str, Any], key: str) -> str:
    value = values.get(key, "")
    if key == "created" and hasattr(value, "isoformat"):  # TOML has times of its own
        value = value.isoformat()
    if key == "priority" and type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise _wrong(path, data, key, f"must be text, not {value!r}")
    return document.usable("name", value)


def _money(path: str, data: bytes, values: dict[str, Any], key: str) -> str:
    from decimal import Decimal  # noqa: PLC0415

    value = values.get(key, "")
    if value == "":
        return ""
    try:
        if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
            return revenue(str(value))
        if isinstance(value, str):
            return revenue(value)
    except ValueError as error:
        raise _wrong(path, data, key, str(error)) from error
    raise _wrong(path, data, key, f"must be an amount, not {value!r}")


def _id(path: str, data: bytes, text: str) -> str:
    """Its id; one made from the path where it says none."""
    if text and not document.usable("id", text):
        raise _wrong(path, data, "id", f"{text!r} is not a UUID")
    name = f"annoris:{path}".encode(errors="surrogateescape").decode(errors="replace")
    return document.usable("id", text) or str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def _was(path: str, data: bytes, values: dict[str, Any]) -> tuple[str, ...]:
    value = values.get("was", [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(path, data, "was", 'must be a list of names, such as ["shop"]')
    return tuple(filter(None, map(document.usable, ["name"] * len(value), value)))


def _wrong(path: str, data: bytes, key: str, what: str) -> DocumentRefused:
    place = re.search(rb"^[ \t]*[\"']?%b[\"']?[ \t]*=" % key.encode(), data, re.MULTILINE)
    line = data[: place.start()].count(b"\n") + 1 if place else 1
    return _broken(path, line, f"{key} {what}" if what.startswith("must") else f"{key}: {what}")


def _broken(path: str, line: int, what: str, hint: str = "") -> DocumentRefused:
    return DocumentRefused(
        f"{path}:{line}: {what}", hint=hint or f"mend {path} on master, for example on GitHub"
    )
