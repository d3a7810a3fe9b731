"""What will be done, and what will go wrong, from a seed alone: the same seed, the same plan.

Which document a step meets, and what state a fault finds, depends on how fast the machines are;
the order of steps, their choices among what there is, the deaths and the faults do not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# What people do, and how often in so many steps.
STEPS = {
    "load": 400, "save": 190, "edit": 220, "delete": 40, "sync": 60, "list": 20, "search": 10,
    "project": 15, "hook": 15, "dump": 8, "drill": 2, "rotate": 4, "verify": 6, "status": 10,
}  # fmt: skip

# What goes wrong: how often in so many faults, and for how many seconds (0: at once and over).
FAULTS = {
    "master-refuse": (5, 6), "master-blackhole": (4, 6), "master-drip": (2, 5),
    "master-cut": (4, 4), "master-slow": (4, 5), "master-status": (5, 4), "master-hang": (3, 5),
    "master-lose-ack": (8, 0), "master-cut-answer": (6, 0),
    "master-protected": (4, 4), "master-content": (5, 6),
    "hot-refuse": (4, 6), "hot-blackhole": (4, 5), "hot-drip": (2, 5), "hot-cut": (4, 4),
    "hot-slow": (4, 5), "hot-killed": (4, 3), "hot-restarted": (3, 0), "hot-dropped": (2, 0),
    "emergency-refuse": (3, 5), "emergency-blackhole": (3, 4), "emergency-drip": (1, 4),
    "emergency-cut": (2, 4), "emergency-killed": (3, 3), "emergency-flushed": (2, 0),
    "disk-full": (5, 4), "clock": (6, 8),
    "hand-edit": (14, 0), "hand-add": (5, 0), "hand-rename": (6, 0), "hand-delete": (3, 0),
    "force-push": (3, 0), "squash": (1, 0),
    "catalog-lost": (3, 0), "breaker-forgotten": (16, 0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Death:
    """SIGKILL after ``seconds``, or before event number ``point`` of the command."""

    how: Literal["time", "point"]
    seconds: float = 0.0
    point: int = -1


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a person does. ``pick`` chooses among what there is, from 0 to below 1."""

    kind: str
    pick: float
    size: int  # of a text: which kind of bytes
    several: int  # documents at once
    death: Death | None


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, ``after`` so many seconds, for so many; ``pick`` as in a step."""

    kind: str
    after: float
    seconds: float
    pick: float


def steps(seed: int, hand: int) -> Iterator[Step]:
    """What one person does, for ever."""
    chance = random.Random(f"{seed}/hand/{hand}")
    kinds, weights = list(STEPS), list(STEPS.values())
    while True:
        yield Step(
            kind=chance.choices(kinds, weights)[0],
            pick=chance.random(),
            size=chance.randrange(12),
            several=chance.choice((1, 1, 1, 1, 2, 3)),
            death=_death(chance),
        )


def _death(chance: random.Random) -> Death | None:
    which, seconds = chance.random(), chance.expovariate(1 / 0.15)
    point = int(chance.expovariate(1 / 14))
    if which > 0.14:
        return None
    return Death("time", seconds=seconds) if which < 0.06 else Death("point", point=point)


def faults(seed: int, *, pause: float) -> Iterator[Fault]:
    """What goes wrong, for ever, with ``pause`` seconds between two on average."""
    chance = random.Random(f"{seed}/faults")
    kinds, weights = list(FAULTS), [often for often, _ in FAULTS.values()]
    while True:
        kind = chance.choices(kinds, weights)[0]
        longest = FAULTS[kind][1]
        yield Fault(
            kind=kind,
            after=chance.uniform(0.2, 1.8) * pause,
            seconds=longest * chance.uniform(0.3, 1.0),
            pick=chance.random(),
        )
