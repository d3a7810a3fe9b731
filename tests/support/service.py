"""A server of a test: ``annoris serve`` as a process on loopback, and a client for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.machine import Machine
from tests.support.zygote import MEASURED

_SECONDS = 60.0  # to start, and to end


class Service:
    """``annoris serve`` on ``machine``, on a port that nobody else has."""

    def __init__(self, machine: Machine, *arguments: str, token: str = "", **env: str) -> None:
        self.machine = machine
        self.token = token
        self.log = machine.folder / f"serve-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "annoris.cli", "serve", "--port", "0", *arguments],
                cwd=machine.desk,
                env={**machine.environment, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.url = self._address()
        self.client = self.as_(token)

    def as_(self, token: str) -> httpx.Client:
        """A client of its own, with that token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def _address(self) -> str:
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            for line in self.lines("serving"):
                return str(line["at"])
            time.sleep(0.02)
        self.process.kill()
        self.process.wait()
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()}")

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """What the log says, of one event or of all."""
        whole = [
            line for line in self.log.read_text().splitlines(keepends=True) if line[-1] == "\n"
        ]
        return [line for line in map(json.loads, whole) if event in ("", line["event"])]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """The lines of an event, once there are so many."""
        end = time.monotonic() + _SECONDS
        while len(found := self.lines(event)) < count:
            assert time.monotonic() < end, f"{event}: {self.log.read_text()}"
            time.sleep(0.02)
        return found

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; answers its exit code."""
        self.process.send_signal(how)
        return self.process.wait(_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        if self.process.poll() is None:  # a killed one would take what was measured with it
            self.process.send_signal(signal.SIGTERM if MEASURED else signal.SIGKILL)
        self.process.wait()
        bugs = [line for line in self.lines() if "traceback" in line]
        assert not bugs, bugs[0]["traceback"]


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for something that a server does by itself."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def save(client: httpx.Client, text: bytes | str, **query: str) -> httpx.Response:
    """Create a session from raw Markdown."""
    headers = {"Content-Type": "text/markdown"}
    return client.post("/api/v1/sessions", content=text, params=query, headers=headers)


def on_master(remote: Path) -> dict[str, bytes]:
    """Every session that lies on master: path → bytes."""
    git = ["git", "--git-dir", str(remote)]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", "main"], capture_output=True, check=False, text=True
    )
    paths = [path for path in listed.stdout.splitlines() if path.endswith(".md")]
    return {path: subprocess.check_output([*git, "show", f"main:{path}"]) for path in paths}
