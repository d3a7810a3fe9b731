"""Archives for threads: each is used by one at a time, and opened when none is free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from annoris.archive import Archive
from annoris.bootstrap import open_archive
from annoris.model import Tier
from annoris.server.logs import say
from annoris.settings import Settings


class Pool:
    """``watch`` is told of every question to a cache: tier, seconds, whether it answered."""

    def __init__(self, settings: Settings, watch: Callable[[Tier, float, bool], None]) -> None:
        self.settings = settings
        self._watch = watch
        self._free: list[Archive] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(self) -> Iterator[Archive]:
        """An archive of one's own for as long as the block lasts."""
        with self._lock:
            archive = self._free.pop() if self._free else None
        archive = archive or self._open()
        try:
            yield archive
        finally:
            for complaint in archive.caches.complaints:
                say("cache left out", why=complaint)
            archive.caches.complaints.clear()
            with self._lock:
                self._free.append(archive)

    def close(self) -> None:
        """Close those that nobody uses: all, once the requests are over."""
        with self._lock:
            archives, self._free = self._free, []
        for archive in archives:
            archive.close()

    def _open(self) -> Archive:
        archive = open_archive(self.settings, here=False)
        archive.caches.watch = self._watch
        return archive
