"""One process at a time, by a lock on a file that its end releases, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from annoris.errors import Locked, StorageError
from annoris.model import Deadline


@contextmanager
def hold(path: str, deadline: Deadline, busy: str) -> Iterator[None]:
    """Hold the lock ``path``. Raises Locked, saying that ``busy``, at the deadline."""
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror}",
            hint="set ANNORIS_DATA_DIR to a folder that can be written",
        ) from error
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if deadline.over:
                    raise Locked(busy, hint="wait for it to end, then try again") from None
                import random  # noqa: PLC0415

                time.sleep(deadline.left(random.uniform(0.005, 0.025)))  # noqa: S311 - jitter
        yield
    finally:
        os.close(handle)
