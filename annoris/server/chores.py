"""What a server does beside answering: sync when a webhook says so or the time has come.

One thread, one chore at a time, and by a lock in the hot cache one replica at a time. Any
number of deliveries before or during a run are one run more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from annoris import events, upkeep
from annoris.alerts import tell
from annoris.archive import Archive
from annoris.errors import AnnorisError
from annoris.model import Alert
from annoris.server.logs import logger, say, warn
from annoris.server.pool import Pool

_AGAIN_SECONDS = (5.0, 300.0)  # the first and the longest pause after a failure


@dataclass(frozen=True, slots=True)
class Chore:
    """``every``: seconds between runs of the schedule. ``events``: what people must hear of what
    ``run`` answered or raised.
    """

    kind: str
    every: float
    run: Callable[[Archive], Any]
    events: Callable[[Any], Iterable[Alert]]


SCHEDULE = (Chore("sync", 900.0, upkeep.sync, events.of_sync),)


class Chores(threading.Thread):
    """``scheduled``: run by the clock too, not only when woken."""

    def __init__(
        self, pool: Pool, watch: Callable[[str, bool, float], None], *, scheduled: bool
    ) -> None:
        super().__init__(name="chores", daemon=True)
        self._pool = pool
        self._watch = watch
        self._scheduled = scheduled
        self._turn = threading.Condition()
        self._due = {
            chore.kind: time.monotonic() if scheduled else float("inf") for chore in SCHEDULE
        }
        self._failures = dict.fromkeys(self._due, 0)
        self._stopping = False

    def wake(self, kind: str) -> None:
        """Have it run soon; also once more when it is running now."""
        with self._turn:
            self._due[kind] = 0.0
            self._turn.notify()

    def stop(self, seconds: float) -> None:
        """End after the chore under way."""
        with self._turn:
            self._stopping = True
            self._turn.notify()
        self.join(seconds)

    def run(self) -> None:
        while chore := self._next():
            self._do(chore)

    def _next(self) -> Chore | None:
        """Wait for the first that is due; None at the end."""
        with self._turn:
            while not self._stopping:
                chore = min(SCHEDULE, key=lambda chore: self._due[chore.kind])
                left = self._due[chore.kind] - time.monotonic()
                if left <= 0:
                    self._due[chore.kind] = float("inf")
                    return chore
                self._turn.wait(None if left == float("inf") else left)
        return None

    def _do(self, chore: Chore) -> None:
        started = time.monotonic()
        try:
            with self._pool.lend() as archive, archive.caches.alone(chore.kind):
                answer = _told(archive, chore)
        except AnnorisError as error:
            warn(f"{chore.kind} failed", why=error.message, code=error.code)
            ended = False
        except Exception:  # noqa: BLE001 - the thread must live
            logger.exception("%s failed", chore.kind)
            ended = False
        else:
            say(f"{chore.kind} done", **_facts(answer))
            ended = True
        self._watch(chore.kind, ended, time.monotonic() - started)
        self._plan(chore, ended)

    def _plan(self, chore: Chore, ended: bool) -> None:
        """Failed runs come again soon: GitHub delivers no webhook twice."""
        kind = chore.kind
        self._failures[kind] = 0 if ended else self._failures[kind] + 1
        first, longest = _AGAIN_SECONDS
        after = chore.every if self._scheduled else float("inf")
        if not ended:
            after = min(first * 2.0 ** min(self._failures[kind] - 1, 20), longest)
        with self._turn:
            self._due[kind] = min(self._due[kind], time.monotonic() + after)


def _told(archive: Archive, chore: Chore) -> Any:
    """Run it and tell people what they must hear."""
    outcome: Any = None
    try:
        outcome = chore.run(archive)
    except Exception as error:
        outcome = error
        raise
    finally:
        for complaint in tell(archive, chore.events(outcome)):
            warn("alert not told", why=complaint)
    return outcome


def _facts(answer: Any) -> dict[str, object]:
    """What a report says in numbers and words."""
    return {key: value for key, value in asdict(answer).items() if not isinstance(value, tuple)}
