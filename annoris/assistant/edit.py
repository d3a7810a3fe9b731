"""One entry in, one entry out, of a text that somebody else owns: JSON, JSON with comments, TOML.

Pure. A change is a few splices; everything around them stays as it is written. Raises
ValueError, with the line, for what is not that format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from annoris.dataclass import dataclass

Path = tuple[str, ...]
Change = list["Splice"]  # the last place first, so that each is where it says

_GAP = r"(?:[ \t\r\n]|//[^\n]*|/\*[\s\S]*?\*/)*"


class Splice(NamedTuple):
    """``text[start:end]`` becomes ``new``."""

    start: int
    end: int
    new: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]

    def undo(self, text: str) -> Splice:
        """What takes it back, in the text that it made of ``text``."""
        return Splice(self.start, self.start + len(self.new), text[self.start : self.end])


def applied(text: str, change: Iterable[Splice]) -> tuple[str, Change]:
    """The text after a change, and the change that takes it back."""
    undo: Change = []
    for splice in change:
        undo.insert(0, splice.undo(text))
        text = splice.apply(text)
    return text, undo


@dataclass(frozen=True, slots=True)
class _Node:
    """A value in a text. ``items`` are its members: key (None in an array), start, value."""

    start: int
    end: int
    value: Any
    items: tuple[tuple[str | None, int, _Node], ...] = ()

    def member(self, key: str) -> _Node | None:
        return next((node for name, _, node in reversed(self.items) if name == key), None)

    def at(self, key: str) -> _Node:
        found = self.member(key)
        if found is None:
            raise KeyError(key)
        return found


# ---------------------------------------------------------------- JSON


def read_json(text: str, *, comments: bool = False) -> Any:
    """The value of a text; an empty object for a blank one."""
    return _parsed(text, _gap(comments)).value


def put_json(text: str, path: Path, value: Any, *, comments: bool = False) -> Change:
    """Set a key of an object, or with the last of ``path`` empty add to a list.

    Objects and lists on the way are made. Raises ValueError where one of them is something else.
    """
    gap = _gap(comments)
    node = _parsed(text, gap)
    if node.start == node.end:  # a blank text
        whole = _shown(_nested(path, value), "  ", "\n") + "\n"
        return [Splice(node.start, len(text), whole)]
    depth = 0
    while depth < len(path) - 1 and (below := node.member(path[depth])):
        node, depth = below, depth + 1
    key = path[depth] or None
    if not isinstance(node.value, dict if key else list):
        kind = "an object" if key else "a list"
        raise _wrong(text, node.start, f"{'.'.join(path[:depth])} is not {kind}")
    new = _nested(path[depth + 1 :], value)
    old = node.member(key) if key else None
    if old:
        return [Splice(old.start, old.end, _inner(text, old.start, new))]
    return _added(text, node, key, new, gap)


def drop_json(text: str, path: Path, index: int = -1, *, comments: bool = False) -> Change:
    """Take a key out of its object, or the item ``index`` out of the list at ``path``."""
    gap = _gap(comments)
    node = _parsed(text, gap)
    for key in path if index >= 0 else path[:-1]:
        node = node.at(key)
    place = index if index >= 0 else [key for key, _, _ in node.items].index(path[-1])
    _, start, item = node.items[place]
    lead = len(text[:start].rstrip(" \t\r\n"))
    after = _skip(gap, text, item.end)
    if text[after] == ",":
        return [Splice(lead, after + 1, "")]
    if place:
        comma = _skip(gap, text, node.items[place - 1][2].end)
        return [Splice(max(lead, comma + 1), item.end, ""), Splice(comma, comma + 1, "")]
    if not text[node.start + 1 : lead] and not text[item.end : node.end - 1].strip():
        return [Splice(node.start + 1, node.end - 1, "")]
    return [Splice(lead, item.end, "")]


def _nested(path: Sequence[str], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value} if key else [value]
    return value


def _added(text: str, node: _Node, key: str | None, value: Any, gap: re.Pattern[str]) -> Change:
    """A new last member; on a line of its own where the others have one, or there are none."""
    if not node.items:
        newline = _newline(text)
        outer = _indent(text, node.start)
        lead = f"{newline}{outer}{_unit(text)}"
        shown = _keyed(key, _shown(value, _unit(text), lead))
        close = "" if "\n" in text[node.start : node.end] else newline + outer
        return [Splice(node.start + 1, node.start + 1, f"{lead}{shown}{close}")]
    _, first, _ = node.items[0]
    last = node.items[-1][2].end
    own_line = re.search(r"\r?\n[ \t]*\Z", text[:first])
    lead = own_line[0] if own_line else " "
    shown = _keyed(key, _inner(text, first, value) if own_line else json.dumps(value))
    comma = _skip(gap, text, last)
    there = text[comma] == ","
    at = comma + 1 if there else last
    noted = re.compile(r"[ \t]*(?://[^\n]*|/\*[^\n]*?\*/)").match(text, at)
    at = len(text[: noted.end()].rstrip()) if noted and own_line else at
    new = Splice(at, at, f"{lead}{shown}")
    return [new] if there else [new, Splice(last, last, ",")]


def _keyed(key: str | None, shown: str) -> str:
    return shown if key is None else f"{json.dumps(key)}: {shown}"


def _inner(text: str, at: int, value: Any) -> str:
    return _shown(value, _unit(text), _newline(text) + _indent(text, at))


def _shown(value: Any, unit: str, gap: str) -> str:
    return json.dumps(value, indent=unit, ensure_ascii=False).replace("\n", gap)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(text: str) -> str:
    found = re.search(r"\n([ \t]+)\S", text)
    return found[1] if found else "  "


def _gap(comments: bool) -> re.Pattern[str]:
    return re.compile(_GAP if comments else r"[ \t\r\n]*")


def _parsed(text: str, gap: re.Pattern[str]) -> _Node:
    at = _skip(gap, text, 1 if text.startswith("\ufeff") else 0)
    if at == len(text):
        return _Node(at, at, {})
    node = _value(text, at, gap)
    if _skip(gap, text, node.end) < len(text):
        raise _wrong(text, _skip(gap, text, node.end), "nothing more was expected")
    if not isinstance(node.value, dict):
        raise _wrong(text, at, "an object was expected")
    return node


def _value(text: str, at: int, gap: re.Pattern[str]) -> _Node:
    if text[at : at + 1] in ("{", "["):
        return _container(text, at, gap)
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except ValueError:
        raise _wrong(text, at, "a value was expected") from None
    return _Node(at, end, value)


def _container(text: str, start: int, gap: re.Pattern[str]) -> _Node:
    is_list, close = text[start] == "[", {"[": "]", "{": "}"}[text[start]]
    items: list[tuple[str | None, int, _Node]] = []
    at = _skip(gap, text, start + 1)
    while text[at : at + 1] != close:
        if items:
            if text[at : at + 1] != ",":
                raise _wrong(text, at, f"a comma or {close} was expected")
            at = _skip(gap, text, at + 1)
            if gap.pattern == _GAP and text[at : at + 1] == close:
                break
        first, key = at, None
        if not is_list:
            name = _value(text, at, gap)
            colon = _skip(gap, text, name.end)
            if not isinstance(name.value, str) or text[colon : colon + 1] != ":":
                raise _wrong(text, at, 'a "key": was expected')
            key, at = name.value, _skip(gap, text, colon + 1)
        node = _value(text, at, gap)
        items.append((key, first, node))
        at = _skip(gap, text, node.end)
    values = [node.value for _, _, node in items]
    made = values if is_list else dict(zip((key for key, _, _ in items), values, strict=True))
    return _Node(start, at + 1, made, tuple(items))


def _skip(gap: re.Pattern[str], text: str, at: int) -> int:
    found = gap.match(text, at)
    return found.end() if found else at


def _wrong(text: str, at: int, what: str) -> ValueError:
    return ValueError(f"line {text.count(chr(10), 0, at) + 1}: {what}")


# ---------------------------------------------------------------- TOML


def read_toml(text: str) -> Any:
    """The value of a text. Raises ValueError."""
    import tomlkit  # noqa: PLC0415
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    try:
        return tomlkit.parse(text).unwrap()
    except TOMLKitError as error:
        raise ValueError(str(error)) from error


def put_toml(text: str, path: Path, value: dict[str, Any]) -> Change:
    """Set keys of a table, which is added at the end where there is none."""
    known: Any = read_toml(text)
    for key in path:
        known = known.get(key) if isinstance(known, dict) else None
    if known is not None:
        return _retabled(text, path, value)
    newline = _newline(text)
    lead = newline if text else ""
    lead += newline if text and not text.endswith("\n") else ""
    lines = [f"[{'.'.join(path)}]", *(f"{key} = {_toml(item)}" for key, item in value.items())]
    change = [Splice(len(text), len(text), lead + newline.join([*lines, ""]))]
    try:
        read_toml(applied(text, change)[0])
    except ValueError:
        raise ValueError(f"{path[0]} is written in a form that can't be added to") from None
    return change


def drop_toml(text: str, path: Path) -> Change:
    """Take a table out."""
    return _retabled(text, path, None)


def _retabled(text: str, path: Path, value: dict[str, Any] | None) -> Change:
    import tomlkit  # noqa: PLC0415

    document: Any = tomlkit.parse(text)
    table = document
    for key in path[:-1]:
        table = table[key]
    if value is None:
        del table[path[-1]]
    else:
        table[path[-1]].update(value)
    return _difference(text, tomlkit.dumps(document))


def _difference(before: str, after: str) -> Change:
    start = _shared(before, after)
    rest = _shared(before[start:][::-1], after[start:][::-1])
    return [Splice(start, len(before) - rest, after[start : len(after) - rest])]


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their start."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # texts and lists of them are written alike
