"""How the tiers answer, over time: measured by the clock, and more often while somebody looks.

What was measured is lost with the process; past syncs in the log say how it was before.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from annoris import condition
from annoris.model import TierStanding
from annoris.server.charts import Point
from annoris.server.logs import logger
from annoris.server.pool import Pool

_KEPT = 2880  # two days of them, once a minute
_WATCHED = 6  # times as often while somebody looks


@dataclass(frozen=True, slots=True)
class Sample:
    """How the tiers were at a moment, in seconds of the epoch."""

    at: float
    tiers: tuple[TierStanding, ...]


class Sampler(threading.Thread):
    def __init__(self, pool: Pool, seconds: float) -> None:
        super().__init__(name="sampler", daemon=True)
        self._pool = pool
        self._seconds = seconds
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._turn = threading.Condition()
        self._measuring = threading.Lock()
        self._wanted = False
        self._stopping = False

    def look(self) -> list[Sample]:
        """What was measured, oldest first; one that is due soon is measured for the next look."""
        if not self._samples:
            with self._measuring:
                self._measure()
        with self._turn:
            if time.time() - self._samples[-1].at > self._seconds / _WATCHED:
                self._wanted = True
                self._turn.notify()
            return list(self._samples)

    def stop(self, seconds: float) -> None:
        """End after the measuring under way."""
        with self._turn:
            self._stopping = True
            self._turn.notify()
        self.join(seconds)

    def run(self) -> None:
        while self._waited():
            try:
                with self._measuring:
                    self._measure()
            except Exception:  # noqa: BLE001 - the thread must live
                logger.exception("measuring the tiers failed")

    def _waited(self) -> bool:
        """Whether to go on, once it is time or somebody looks."""
        with self._turn:
            if not (self._wanted or self._stopping):
                self._turn.wait(self._seconds)
            self._wanted = False
            return not self._stopping

    def _measure(self) -> None:
        with self._pool.lend() as archive:
            archive.look()
            found = condition.tiers(archive)
        with self._turn:
            self._samples.append(Sample(time.time(), found))


def latency(samples: list[Sample], tier: str) -> list[Point]:
    """A tier's milliseconds over time; None where it did not answer."""
    return [
        (sample.at, one.milliseconds if one.up else None)
        for sample in samples
        for one in sample.tiers
        if one.tier == tier
    ]
