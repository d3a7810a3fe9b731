"""What a server does beside answering: sync when a webhook says so, and what the time brings.

Each thread does one chore at a time, and by a lock in the hot cache one replica at a time. Any
number of deliveries before or during a run are one run more. What the clock brings is left out
where the log of runs says that another replica did it within the period.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any

from annoris import dumps, events, sync, upkeep, verify
from annoris.alerts import tell
from annoris.archive import Archive
from annoris.errors import AnnorisError, Locked, UsageError
from annoris.model import Alert, Audit, Run
from annoris.server.logs import logger, say, warn
from annoris.server.metrics import Metrics
from annoris.server.pool import Pool
from annoris.settings import Settings

WEBHOOK, CLOCK = "webhook", "schedule"  # what starts a run, as the log has it

_AGAIN_SECONDS = (5.0, 300.0)  # the first and the longest pause after a failure
_NEVER = float("inf")
_LONG = 3600.0  # no lock can be waited for without end
_READ = 500  # runs of a kind that are looked at: webhooks may have started many


@dataclass(frozen=True, slots=True, eq=False)
class Chore:
    """``every``: seconds between runs by the clock. ``events``: what people must hear of what
    ``run`` answered or raised.
    """

    kind: str
    run: Callable[[Archive], Any]
    events: Callable[[Any], Iterable[Alert]]
    source: str = CLOCK
    every: float = _NEVER


def frequent(settings: Settings, *, scheduled: bool) -> list[Chore]:
    """The syncs: quick ones for webhooks and, if ``scheduled``, full ones by the clock."""
    found = [Chore("sync", partial(sync.sync, source=WEBHOOK), events.of_sync, WEBHOOK)]
    if scheduled:
        full = partial(sync.sync, full=True, source=CLOCK)
        every = settings.server.schedule_sync_seconds
        found.append(Chore("sync", full, events.of_sync, every=every))
    return found


def daily(settings: Settings) -> list[Chore]:
    """What takes long, so that it has a thread of its own and no webhook waits for it."""
    limits = settings.server
    check = partial(verify.verify, scope=verify.Scope(), source=CLOCK)
    found = [Chore("verify", check, _of_audit, every=limits.schedule_verify_seconds)]
    if settings.hot.url:  # else there is nothing to dump
        run = partial(dumps.dump, source=CLOCK)
        told = partial(events.of_run, "dump")
        found.append(Chore("dump", run, told, every=limits.schedule_dump_seconds))
    return found


def _of_audit(outcome: Any) -> list[Alert]:
    return events.of_verify(outcome.findings if isinstance(outcome, Audit) else outcome)


def due_in(runs: Iterable[Run], every: float, now: float) -> float:
    """Seconds until a chore is due, by the log of its runs; 0: it is now.

    The clock of who ran it may be wrong, but a run of the far future is not believed.
    """
    ages = (
        now - datetime.fromisoformat(run.started).timestamp()
        for run in runs
        if run.source == CLOCK and run.status != "failed"
    )
    return max((every - max(age, 0.0) for age in ages if -every < age < every), default=0.0)


class Chores(threading.Thread):
    """``metrics`` are told of each run."""

    def __init__(self, pool: Pool, metrics: Metrics, chores: Iterable[Chore]) -> None:
        super().__init__(name="chores", daemon=True)
        self._pool = pool
        self._metrics = metrics
        self._turn = threading.Condition()
        start = time.monotonic()
        self._due = {chore: start if chore.every < _NEVER else _NEVER for chore in chores}
        self._failures = dict.fromkeys(self._due, 0)
        self._stopping = False

    def wake(self, kind: str) -> None:
        """Have what webhooks ask for run soon; also once more when it is running now."""
        with self._turn:
            for chore in self._due:
                if (chore.kind, chore.source) == (kind, WEBHOOK):
                    self._due[chore] = 0.0
            self._turn.notify()

    def stop(self, seconds: float) -> None:
        """End after the chore under way."""
        with self._turn:
            self._stopping = True
            self._turn.notify()
        self.join(seconds)

    def run(self) -> None:
        while chore := self._next():
            self._plan(chore, self._done(chore))

    def _next(self) -> Chore | None:
        """Wait for the first that is due; None at the end."""
        with self._turn:
            while not self._stopping:
                chore = min(self._due, key=lambda chore: self._due[chore], default=None)
                left = self._due[chore] - time.monotonic() if chore else _NEVER
                if chore and left <= 0:
                    self._due[chore] = _NEVER
                    return chore
                self._turn.wait(min(left, _LONG))
        return None

    def _done(self, chore: Chore) -> float | None:
        """Do it; answers in how many seconds it is due again, None when it failed."""
        started, by_clock = time.monotonic(), chore.source == CLOCK
        try:
            with (
                self._pool.lend() as archive,
                archive.caches.alone(chore.kind, wait=not by_clock),
            ):
                if by_clock and (left := _left(archive, chore)):
                    self._leave_out(archive, chore, left)
                    return left
                answer = _told(archive, chore)
        except AnnorisError as error:
            if by_clock and isinstance(error, (Locked, UsageError)):
                # Another replica is at it, soon the log will have it; or there is nothing yet.
                say(f"{chore.kind} left out", why=error.message)
                return min(60.0, chore.every / 10)
            warn(f"{chore.kind} failed", why=error.message, code=error.code)
        except Exception:  # noqa: BLE001 - the thread must live
            logger.exception("%s failed", chore.kind)
        else:
            say(f"{chore.kind} done", source=chore.source, **_facts(answer))
            self._metrics.ran(chore.kind, True, time.monotonic() - started)
            return chore.every
        self._metrics.ran(chore.kind, False, time.monotonic() - started)
        return None

    def _leave_out(self, archive: Archive, chore: Chore, left: float) -> None:
        """Another replica did it, or this server before it was started anew."""
        say(f"{chore.kind} not due", again_in=round(left))
        archive.look()  # what was brought to master there is seen here too
        self._metrics.ran_elsewhere(chore.kind, time.time() + left - chore.every)

    def _plan(self, chore: Chore, after: float | None) -> None:
        """Failed runs come again soon: GitHub delivers no webhook twice."""
        self._failures[chore] = 0 if after is not None else self._failures[chore] + 1
        first, longest = _AGAIN_SECONDS
        if after is None:
            after = min(first * 2.0 ** min(self._failures[chore] - 1, 20), longest)
        with self._turn:
            self._due[chore] = min(self._due[chore], time.monotonic() + after)


def _left(archive: Archive, chore: Chore) -> float:
    return due_in(upkeep.log(archive, _READ, chore.kind)[0], chore.every, time.time())


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
