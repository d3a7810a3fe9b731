"""Cheap dataclasses behave as the standard ones: the same source is made with both."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from annoris import dataclass as ours

_SOURCE = '''
@dataclass(frozen=True, slots=True)
class Thing:
    """A thing."""

    name: str
    size: int = 0
    secret: str = field(default="", repr=False)
    old: bool = field(default=False, compare=False)
    more: dict[str, int] = field(default_factory=dict)

    @property
    def double(self) -> int:
        return self.size * 2


@dataclass(slots=True)
class Tally:
    counts: list[int] = field(default_factory=list)
    total: int = 0

    def __post_init__(self) -> None:
        self.total += sum(self.counts)
'''


def _made(how: Any) -> dict[str, Any]:
    space: dict[str, Any] = {"dataclass": how.dataclass, "field": how.field, "__name__": __name__}
    exec(_SOURCE, space)
    return space


OURS, THEIRS = _made(ours), _made(dataclasses)
Thing = OURS["Thing"]
_ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("a",), {}), (("a", 3), {"secret": "hidden"}), ((), {"name": "a", "more": {"x": 1}}),
    ((), {}), (("a",), {"name": "b"}), (("a",), {"other": 1}), (("a", 1, "s", True, {}, 6), {}),
]  # fmt: skip


def _told(cls: Any, values: tuple[Any, ...], named: dict[str, Any]) -> Any:
    try:
        made = cls(*values, **named)
    except TypeError as error:
        return str(error)
    return repr(made), dataclasses.asdict(made), made.double, made == cls(*values, **named)


@pytest.mark.parametrize(("values", "named"), _ARGUMENTS)
def test_the_first_and_the_hundredth_instance_are_what_the_standard_library_makes(
    values: tuple[Any, ...], named: dict[str, Any]
) -> None:
    fresh = _made(ours)["Thing"]  # none was made yet
    for _ in range(100):
        said = _told(fresh, values, named)
        wanted = _told(THEIRS["Thing"], values, named)
        if isinstance(wanted, str):
            assert isinstance(said, str)
        else:
            assert said == wanted


def test_they_are_frozen_hashed_compared_replaced_and_copied_as_the_standard_ones() -> None:
    one = Thing("a", 1, "s")
    assert one == Thing("a", 1, "s", old=True)
    assert one != Thing("a", 2, "s")
    assert one != ("a", 1, "s", False, {})
    assert dataclasses.replace(one, size=5) == Thing("a", 5, "s")
    assert [item.name for item in dataclasses.fields(one)] == list(Thing.__match_args__)
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.size = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.size
    assert not hasattr(one, "__dict__")
    assert Thing("a").more is not Thing("a").more
    with pytest.raises(TypeError):
        hash(one)  # its dict has none
    tally = OURS["Tally"]([1, 2])
    tally.total += 1
    assert (tally.total, repr(tally)) == (4, "Tally(counts=[1, 2], total=4)")
    with pytest.raises(TypeError):
        hash(tally)
