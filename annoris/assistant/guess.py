"""What models mean by an argument. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_NOTHING = ("", "null", "none", "undefined", "nil")
_NEWEST = ("latest", "newest", "last", "current", "most recent", "recent")


def text(value: object) -> object:
    """A text where null, "null", a number or a boolean may stand for one."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        bare = value.strip()
        return "" if bare.casefold() in _NOTHING else bare
    return value


def number(least: int, most: int, default: int) -> Callable[[object], object]:
    """A whole number within bounds, where a text, a fraction or null may stand for one."""

    def bounded(value: object) -> object:
        if value is None or (isinstance(value, str) and value.strip().casefold() in _NOTHING):
            return default
        if not isinstance(value, (str, int, float)):
            return value
        try:
            found = float(str(value).strip().replace(",", "").replace("_", ""))
        except ValueError:
            return value
        return int(max(least, min(most, found))) if found == found else default  # noqa: PLR0124

    return bounded


def switch(value: object) -> object:
    """Off where null may stand for it."""
    nothing = isinstance(value, str) and value.strip().casefold() in _NOTHING
    return False if value is None or nothing else value


def selector(value: str) -> str:
    """A selector as the archive knows it: without quotes, a resource's scheme, ``latest``."""
    bare = value.strip().strip("\"'`").removeprefix("session://").removeprefix("#").strip()
    return "" if bare.casefold() in (*_NOTHING, *_NEWEST) else bare


def handle(name: str) -> tuple[str, str]:
    """(project, name) of a name that may carry its project, or end like a file."""
    owner, _, bare = name.strip().strip("/").rpartition("/")
    return owner, re.sub(r"(?i)\.(md|markdown)$", "", bare)


def titled(wanted: str, known: Iterable[tuple[str, str, str]]) -> str:
    """The id of the first of (id, title, name), newest first, that ``wanted`` is the title of.

    Case and punctuation do not count; neither does a project before the name or .md after it.
    """
    bare = handle(wanted)[1]
    keys = {_folded(key) for key in (wanted, bare) if _folded(key)}
    return next(
        (
            id
            for id, title, name in known
            if _folded(title) in keys or (name and _folded(name) in keys)
        ),
        "",
    )


def _folded(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
