"""Dataclasses that cost a start little: as the standard ones, but made when first used.

``dataclasses.dataclass(frozen=True, slots=True)`` compiles seven functions for each class, about
a millisecond, in every process; a load imports dozens of classes and makes instances of few. Here
six of the seven are shared, and ``__init__`` is compiled for classes with more than a few
instances. ``replace``, ``asdict`` and ``fields`` of ``dataclasses`` work on them. No inheritance,
no keyword-only fields.

To a type checker these are the standard ones.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, Field, FrozenInstanceError, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass

__all__ = ["dataclass", "field"]

_FEW = 3  # instances that cost as much as to compile


class _Plain:  # noqa: PLW1641 - it can change, so it has no hash
    """What all of them share."""

    __slots__ = ()
    __dataclass_fields__: dict[str, Field[Any]]
    _compared: attrgetter[Any]  # the fields that make two of them equal

    _made = 0

    def __init__(self, *values: object, **named: object) -> None:
        cls = type(self)
        cls._made += 1
        given = {**dict(zip(cls.__dataclass_fields__, values, strict=False)), **named}
        if cls._made > _FEW or not _filled(self, given, len(values) + len(named)):
            cls.__init__ = _compiled(cls)  # type: ignore[method-assign]
            cls.__init__(self, *values, **named)  # which says what is wrong, if anything is

    def __repr__(self) -> str:
        told = (item.name for item in self.__dataclass_fields__.values() if item.repr)
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in told)
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(self._compared(self) == self._compared(other))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__)


class _Frozen(_Plain):
    """What those share that never change, so that they can be keys."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(self._compared(self))

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")


def _made(cls: type, base: type) -> type:
    """The class again, with slots for its fields."""
    space = {
        name: item for name, item in vars(cls).items() if name not in ("__dict__", "__weakref__")
    }
    known = {}
    for name, kind in cls.__annotations__.items():
        default = space.pop(name, MISSING)
        item: Any = default if isinstance(default, Field) else field(default=default)
        item.name, item.type = name, kind
        item._field_type = dataclasses._FIELD  # type: ignore[attr-defined]  # what fields() asks for
        known[name] = item
    space["__slots__"] = space["__match_args__"] = tuple(known)
    space["__dataclass_fields__"] = known
    space["_compared"] = attrgetter(*(item.name for item in known.values() if item.compare))
    return type(cls.__name__, (base,), space)


def _filled(self: _Plain, given: dict[str, object], count: int) -> bool:
    """Set every field; False for arguments that do not fit, or when some are missing."""
    fields = self.__dataclass_fields__
    if len(given) != count or not given.keys() <= fields.keys():
        return False
    for name, item in fields.items():
        value = given.get(name, item.default)
        if value is MISSING and item.default_factory is not MISSING:
            value = item.default_factory()
        if value is MISSING:
            return False
        object.__setattr__(self, name, value)
    if hasattr(self, "__post_init__"):
        self.__post_init__()
    return True


def _compiled(cls: type[_Plain]) -> Any:
    """The ``__init__`` of a class; it sets each slot by the slot's own means."""
    names: dict[str, object] = {"_MISSING": MISSING}
    heads, lines = [], []
    for name, item in cls.__dataclass_fields__.items():
        names[f"_set_{name}"] = vars(cls)[name].__set__
        head = value = name
        if item.default_factory is not MISSING:
            names[f"_make_{name}"] = item.default_factory
            head, value = f"{name}=_MISSING", f"_make_{name}() if {name} is _MISSING else {name}"
        elif item.default is not MISSING:
            names[f"_else_{name}"] = item.default
            head = f"{name}=_else_{name}"
        heads.append(head)
        lines.append(f" _set_{name}(self, {value})\n")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()\n")
    exec(f"def __init__(self, {', '.join(heads)}):\n{''.join(lines)}", names)  # noqa: S102
    return names["__init__"]


if not TYPE_CHECKING:

    def dataclass(*, slots: bool, frozen: bool = False) -> Any:
        """A decorator, as ``dataclasses.dataclass`` with these arguments."""
        assert slots  # noqa: S101 - one with a __dict__ is the standard library's work
        return lambda cls: _made(cls, _Frozen if frozen else _Plain)
