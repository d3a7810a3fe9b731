"""Trying again what failed for a moment: one policy for git, PostgreSQL and Redis.

Three tries within the deadline of the whole command. The pauses between them double, and each
is drawn at random from nothing to its full length, so that those who failed together do not
come back together. Only an error that calls itself ``transient`` is tried again: a refusal, a
wrong password or key, a rule, or a limit that is used up would be the same the next time. The
only tenacity, and imported only once something has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from annoris.errors import AnnorisError
from annoris.model import Deadline

T = TypeVar("T")

TRIES = 3


def patiently(work: Callable[[], T], deadline: Deadline, *, pause: float = 0.1) -> T:
    """What ``work`` answers at one of its tries, or the error of the last one.

    ``pause`` is how many seconds at most lie before the second try; before the third lies twice
    as much. No try begins after the deadline.
    """
    try:
        return work()
    except AnnorisError as error:
        if not error.transient or deadline.over:
            raise
        return _again(work, error, deadline, pause)


def _again(work: Callable[[], T], failure: AnnorisError, deadline: Deadline, pause: float) -> T:
    """Go on after the first try, which ended with ``failure``."""
    from tenacity import (  # noqa: PLC0415
        RetryCallState,
        Retrying,
        retry_if_exception,
        wait_random_exponential,
    )

    made = [failure]

    def next_try() -> T:
        if made:
            raise made.pop()
        return work()

    def enough(state: RetryCallState) -> bool:
        return state.attempt_number >= TRIES or state.upcoming_sleep >= deadline.left()

    return Retrying(
        reraise=True,
        retry=retry_if_exception(lambda error: getattr(error, "transient", False)),
        stop=enough,
        wait=wait_random_exponential(multiplier=pause),
    )(next_try)
