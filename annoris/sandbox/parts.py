"""The four processes of a sandbox: how each is started, known again, and ended.

A process is known by its number and its start, which ``launch`` notes before the program runs.
Nothing else is ever ended.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from annoris.errors import StorageError
from annoris.model import Deadline
from annoris.sandbox import launch

SECONDS = 60.0  # to start, and to end
_PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Part:
    """One of the processes. ``ready`` says whether it answers.

    ``at``: where it is, without its password. ``stale``: a file of the last run that must go.
    """

    name: str
    what: str
    at: str
    command: tuple[str, ...]
    ready: Callable[[], bool]
    stale: str = ""
    uid: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where processes leave their notes and logs; ``environment`` is what they get."""

    folder: str
    environment: Mapping[str, str] = field(repr=False)

    def record(self, name: str) -> str:
        return os.path.join(self.folder, "run", f"{name}.json")

    def log(self, name: str) -> str:
        return os.path.join(self.folder, "run", f"{name}.log")

    def names(self) -> list[str]:
        """Whatever was ever started here and not ended by us since."""
        with contextlib.suppress(FileNotFoundError):
            noted = os.listdir(os.path.join(self.folder, "run"))
            return sorted(name[:-5] for name in noted if name.endswith(".json"))
        return []


def alive(place: Place, name: str) -> int:
    """The number of the process that was started under this name, while it lives; else 0."""
    try:
        with open(place.record(name), encoding="utf-8") as file:
            noted = json.load(file)
    except (OSError, ValueError):
        return 0
    lives = noted["started"] and launch.identity(noted["pid"]) == noted["started"]
    return int(noted["pid"]) if lives else 0


def start(place: Place, part: Part) -> None:
    """Run it until it answers. Raises StorageError, with what it said, when it does not."""
    os.makedirs(os.path.join(place.folder, "run"), mode=0o700, exist_ok=True)
    if part.stale:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part.stale)
    child = spawn(place, part.name, part.command, part.uid)
    deadline = Deadline(SECONDS)
    while not part.ready():
        if ended(child) is not None or deadline.over:
            end(place, part.name)
            raise StorageError(
                f"{part.what} did not start: {_last_words(place, part.name)}",
                hint="annoris sandbox down, then annoris sandbox up",
            )
        time.sleep(_PAUSE)


def spawn(place: Place, name: str, command: Sequence[str], uid: int = 0) -> int:
    """Start a program by way of ``launch``; answers the child's number."""
    noted = (place.record(name), place.log(name), place.folder, str(uid))
    words = [sys.executable, "-I", "-S", launch.__file__, *noted, *command]
    return os.posix_spawn(sys.executable, words, place.environment)


def finish(place: Place, name: str, command: Sequence[str], uid: int = 0) -> None:
    """Run a program to its end. Raises StorageError, with what it said, when it fails."""
    os.makedirs(os.path.join(place.folder, "run"), mode=0o700, exist_ok=True)
    child, deadline = spawn(place, name, command, uid), Deadline(SECONDS)
    while (code := ended(child)) is None and not deadline.over:
        time.sleep(_PAUSE)
    if code != 0:
        end(place, name)
        raise StorageError(f"{command[0]} failed: {_last_words(place, name)}")
    os.unlink(place.record(name))


def ended(child: int) -> int | None:
    """The exit code of a child of this process, None while it runs."""
    with contextlib.suppress(ChildProcessError):
        pid, status = os.waitpid(child, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    return 0


def end(place: Place, name: str, how: signal.Signals = signal.SIGTERM) -> bool:
    """End what was started under this name, and forget it; whether it ran."""
    pid = alive(place, name)
    if pid:
        _signal(pid, how)
        deadline = Deadline(SECONDS)
        while alive(place, name) and not deadline.over:
            ended(pid)  # where it is a child of ours
            time.sleep(_PAUSE)
        if alive(place, name):
            _signal(pid, signal.SIGKILL)
        ended(pid)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place.record(name))
    return bool(pid)


def _signal(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def _last_words(place: Place, name: str) -> str:
    with (
        contextlib.suppress(OSError),
        open(place.log(name), encoding="utf-8", errors="replace") as file,
    ):
        lines = [line.strip() for line in file if line.strip()]
        return " / ".join(lines[-3:]) or "it said nothing"
    return "it said nothing"


# --- whether they answer -------------------------------------------------------------------------


def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        return True
    return False


def pongs(port: int) -> bool:
    """Whether a server that speaks Redis is there, whoever may use it."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=2) as connection,
    ):
        connection.sendall(b"PING\r\n")
        return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
    return False


def postmaster_ready(pid_file: str) -> bool:
    """Line 8 of ``postmaster.pid`` is PostgreSQL's state."""
    with contextlib.suppress(OSError), open(pid_file, encoding="ascii", errors="replace") as file:
        lines = file.read().splitlines()
        return len(lines) > 7 and lines[7].strip() == "ready"
    return False


def serves(port: int) -> bool:
    """Whether ``annoris serve`` takes requests."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False
