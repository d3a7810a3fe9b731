"""What hooks were told, durable on this machine before anything else happens.

One fsynced JSON file per event, whose names sort by time. The folder is where the environment
or the XDG default puts it, whatever the configuration says: a hook reads none, so that a broken
one loses nothing. Beside the events lie what is known of each conversation (``talks``), what
was refused, the last failure, and when each client was last answered (``clients``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from annoris.settings import default_data_dir

Event = dict[str, Any]

_LOG_BYTES = 100_000
_TALK_SECONDS = 30 * 86400.0  # as long as a client keeps its own transcripts


class Spool:
    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        data = os.path.expanduser(env.get("ANNORIS_DATA_DIR") or default_data_dir(env))
        self._folder = os.path.join(data, "hooks")
        self.log = self._path("log")
        self.untold = self._path("failure")

    def add(self, event: Event) -> None:
        """Keep an event; it is on disk when this returns."""
        name = f"{time.time_ns():020d}-{os.urandom(4).hex()}.json"
        self._write(name, event, durable=True)

    def waiting(self) -> list[str]:
        """Names of the events that are not on their way to master yet, oldest first."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name.endswith(".json"))

    def overdue(self, seconds: float) -> int:
        """How many events have waited for longer than that."""
        return sum(time.time() - self._at(name) > seconds for name in self.waiting())

    def read(self, name: str) -> Event | None:
        """An event; None for one that is damaged or gone."""
        return self._read(name)

    def drop(self, names: Iterable[str]) -> None:
        """Forget events of which everything is kept elsewhere."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(name))

    def refuse(self, names: Iterable[str]) -> None:
        """Take events out of the way of the others; they stay on this machine."""
        os.makedirs(self._path("refused"), mode=0o700, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._path(name), self._path(f"refused/{name}"))

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether this process is the one that delivers now; nobody waits for it."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        with open(self._path("lock"), "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
            self._touch("flushed")

    def rested(self, seconds: float) -> bool:
        """Whether the last delivery is longer ago than that."""
        return not 0 <= time.time() - self._at("flushed") < seconds

    def refused(self) -> tuple[str, int]:
        """Where what was refused lies, and how much that is."""
        folder = self._path("refused")
        try:
            return folder, len(os.listdir(folder))
        except FileNotFoundError:
            return folder, 0

    # --- what is known of a conversation -----------------------------------------------------

    def talk(self, id: str) -> Event:
        return self._read(f"talks/{id}") or {}

    def keep_talk(self, id: str, talk: Event) -> None:
        """Keep what is known of a conversation, and forget those that are long over."""
        self._write(f"talks/{id}", talk, durable=True)
        with os.scandir(self._path("talks")) as entries:
            for entry in entries:
                if time.time() - entry.stat().st_mtime > _TALK_SECONDS:
                    os.unlink(entry.path)

    # --- what went wrong, and what did not ---------------------------------------------------

    def fail(self, what: str) -> None:
        """Note a failure in the log, and for the next start."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {what}\n"
        with contextlib.suppress(OSError):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.log).st_size > _LOG_BYTES:
                    os.replace(self.log, f"{self.log}.old")
            with open(self.log, "a", encoding="utf-8", errors="replace") as file:
                file.write(line)
            with open(self.untold, "w", encoding="utf-8", errors="replace") as file:
                file.write(what)

    def failure(self, *, tell: bool = False) -> str:
        """The last failure that no conversation was told of; with ``tell`` one is, now."""
        try:
            with open(self.untold, encoding="utf-8") as file:
                what = file.read()
            if tell:
                os.unlink(self.untold)
        except OSError:
            return ""
        return what

    def answered(self, client: str, part: str, error: str = "") -> None:
        """Note that a client's hook or MCP server ran just now, and how it ended."""
        if re.fullmatch(r"[a-z-]{1,32}", client):
            with contextlib.suppress(OSError):
                self._write(f"clients/{client}.{part}", {"error": error})

    def last_answer(self, client: str, part: str) -> tuple[float, str] | None:
        """When that was, in seconds since the epoch, and the error; None for never."""
        name = f"clients/{client}.{part}"
        known = self._read(name)
        return (self._at(name), str(known.get("error", ""))) if known is not None else None

    # --- files -------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _at(self, name: str) -> float:
        try:
            return os.stat(self._path(name)).st_mtime
        except OSError:
            return 0.0

    def _touch(self, name: str) -> None:
        with open(self._path(name), "wb"):
            pass

    def _read(self, name: str) -> Event | None:
        try:
            with open(self._path(name), encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, value: Event, *, durable: bool = False) -> None:
        path = self._path(name)
        folder = os.path.dirname(path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        temporary = os.path.join(folder, f".{os.urandom(6).hex()}")
        with open(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as file:
            json.dump(value, file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
