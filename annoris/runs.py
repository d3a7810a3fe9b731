"""What was run on this machine (sync, verify, dump, restore), one JSON line each, oldest first.

PostgreSQL's ``sync_log`` is the log that all machines share; this one is there without it. A
line that was cut by a crash is skipped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice

from annoris.model import Run

_MOST = 1024 * 1024  # bytes; above it the older half goes


class Runs:
    def __init__(self, path: str) -> None:
        self._path = path

    def add(self, run: Run) -> None:
        """Note a run. Raises OSError when the disk refuses."""
        import json  # noqa: PLC0415

        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        line = json.dumps(asdict(run), ensure_ascii=True) + "\n"
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, line.encode())
            size = os.fstat(handle).st_size
        finally:
            os.close(handle)
        if size > _MOST:
            lines = self._lines()
            self._rewrite(lines[len(lines) // 2 :])

    def recent(self, limit: int = 20, kind: str = "", before: Run | None = None) -> list[Run]:
        """The last runs, newest first, of one kind or of all.

        Those ``before`` one, if it is named; where it is not of this log, those that began before.
        """
        runs: Iterable[Run] = self._backwards()
        if before:
            runs = list(runs)
            keys = [run.key for run in runs]
            runs = (
                runs[keys.index(before.key) + 1 :]
                if before.key in keys
                else [run for run in runs if run.started < before.started]
            )
        return list(islice((run for run in runs if kind in ("", run.kind)), limit))

    def _backwards(self) -> Iterator[Run]:
        import json  # noqa: PLC0415

        for line in reversed(self._lines()):
            with contextlib.suppress(ValueError, TypeError):
                yield Run(**json.loads(line))

    def _lines(self) -> list[str]:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def _rewrite(self, lines: Iterable[str]) -> None:
        temporary = f"{self._path}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.replace(temporary, self._path)
