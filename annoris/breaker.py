"""Which tier failed a moment ago, remembered across processes.

A command that finds a tier dead says so here, and the next ones skip it at once instead of
waiting for it again. When the pause is over, one of them tries it and the others go on
skipping until that one has answered. The memory is a small JSON file. It is a convenience:
where it can't be read nothing is blocked, and where it can't be written nothing is remembered
and nothing counts as a transition, so that no alert is repeated by every command.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from annoris.dataclass import dataclass
from annoris.model import Deadline

MAX_PAUSE = 300.0
PROBE_SECONDS = 10.0  # longer than any attempt at a tier may take

_LOCK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class TierState:
    """A tier that is down. ``since`` and ``until`` are seconds of the Unix clock."""

    since: float
    until: float  # callers skip the tier before this
    failures: int  # the first one and the probes that failed since
    why: str
    probing: bool = False  # a process has been let through to try it


class Breaker:
    """``path`` is the file to remember in; ``clock`` gives seconds of the Unix clock.

    ``changed`` hears of each transition: the tier, and why it is down or nothing.
    """

    def __init__(
        self,
        path: str,
        *,
        clock: Callable[[], float] = time.time,
        changed: Callable[[str, str], object] | None = None,
    ) -> None:
        self._path = path
        self._clock = clock
        self._changed = changed

    def blocked(self, tier: str) -> bool:
        """Whether to skip the tier. Whoever gets False for a tier that is down is its probe.

        A probe that never reports is replaced after PROBE_SECONDS.
        """

        def claim(states: dict[str, TierState]) -> bool:
            state = states.get(tier)
            if state is None or self._pausing(state):
                return state is not None
            until = self._clock() + PROBE_SECONDS
            states[tier] = replace(state, until=until, probing=True)
            return False

        state = self.state().get(tier)
        return state is not None and (self._pausing(state) or self._change(claim))

    def failed(self, tier: str, why: str, *, pause: float = 30.0) -> bool:
        """Block the tier for ``pause`` seconds, doubled with each failed probe up to MAX_PAUSE.

        True when it was up before. A failure within the pause comes from a call that began
        before it, so it is the same outage and changes nothing: twenty requests that time out
        together are one failure.
        """

        def trip(states: dict[str, TierState]) -> bool:
            now = self._clock()
            state = states.get(tier)
            if state is None:
                states[tier] = TierState(now, now + min(pause, MAX_PAUSE), 1, why)
            elif state.probing or not self._pausing(state):
                longer = min(pause * 2.0 ** min(state.failures, 30), MAX_PAUSE)
                failures = state.failures + 1
                states[tier] = TierState(state.since, now + longer, failures, why)
            return state is None

        is_news = self._change(trip)
        if is_news and self._changed:
            self._changed(tier, why)
        return is_news

    def succeeded(self, tier: str) -> bool:
        """Let everyone through again. True when the tier was down; costs one read when not."""
        if tier not in self.state():
            return False
        is_news = self._change(lambda states: states.pop(tier, None) is not None)
        if is_news and self._changed:
            self._changed(tier, "")
        return is_news

    def state(self) -> dict[str, TierState]:
        """The tiers that are down. A file that is missing or damaged knows of none."""
        try:
            with open(self._path, encoding="utf-8") as file:
                import json  # noqa: PLC0415 - not for the file that is nearly never there

                raw = json.load(file)
            return {tier: _tier_state(**fields) for tier, fields in raw.items()}
        except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return {}

    def _pausing(self, state: TierState) -> bool:
        """A deadline beyond the longest pause is void: the clock moved back by more than a tick."""
        return 0 < state.until - self._clock() <= MAX_PAUSE + 1

    def _change(self, decide: Callable[[dict[str, TierState]], bool]) -> bool:
        """Read, decide and write in one step that no other process interrupts."""
        try:
            with locked(f"{self._path}.lock", _LOCK_SECONDS):
                states = self.state()
                before = dict(states)
                answer = decide(states)
                if states != before:
                    self._write(states)
                return answer
        except OSError:
            return False

    def _write(self, states: dict[str, TierState]) -> None:
        import json  # noqa: PLC0415

        if not states:
            os.unlink(self._path)  # works on a full disk too
            return
        temporary = f"{self._path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({tier: asdict(state) for tier, state in states.items()}, file)
        os.replace(temporary, self._path)


@contextmanager
def locked(path: str, seconds: float) -> Iterator[None]:
    """Hold a lock file that one process has at a time. Raises OSError when that takes longer."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = Deadline(seconds)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.over:
                    raise
                time.sleep(0.002)
        yield
    finally:
        os.close(handle)


def _tier_state(
    since: float, until: float, failures: int, why: str, probing: bool = False
) -> TierState:
    """A state from JSON. Raises TypeError or ValueError where that is not one."""
    return TierState(float(since), float(until), max(int(failures), 1), str(why), bool(probing))
