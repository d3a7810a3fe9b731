"""A moment by which this process ends, whatever hangs.

For commands that cron starts: one that hangs would make every later one wait or be skipped. An
alarm comes first: it breaks off what the main thread waits for, so that processes are ended,
transactions rolled back and the run is noted. What does not even hear an alarm (a disk that
hangs) is ended by a thread, without a further word to anybody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from annoris import gitcmd
from annoris.errors import OutOfTime

EXIT = 5
_GRACE = 5.0  # seconds for the clean end


@contextlib.contextmanager
def ends_by(seconds: float, what: str) -> Iterator[None]:
    """Raise OutOfTime in the block shortly before ``seconds``, and end the process then.

    In the main thread only, which is the one that hears an alarm.
    """
    grace = min(_GRACE, seconds / 3)
    message = f"{what} did not end within {seconds:g} s"

    def alarm(*_: object) -> None:
        raise OutOfTime(
            f"{message} and was broken off; nothing is half done",
            hint="run it again, with a longer --deadline if there is much to do",
        )

    last = threading.Timer(seconds, _end, (message,))
    last.daemon = True
    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds - grace)
    last.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        last.cancel()


def _end(message: str) -> None:
    gitcmd.kill_all()
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"annoris: {message} and was killed\n".encode())
    os._exit(EXIT)
