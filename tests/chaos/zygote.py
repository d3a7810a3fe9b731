"""A warm parent: each line of its input is a command, which runs in a fork of this process.

A fork is a real process that can be killed, without the second that Python takes to start on
a busy machine. The answers, a line of JSON each, are its pid and then how it ended.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any

_WARM = (
    "annoris.commands.delete", "annoris.commands.dump", "annoris.commands.key",
    "annoris.commands.list", "annoris.commands.load", "annoris.commands.outbox",
    "annoris.commands.projects", "annoris.commands.save", "annoris.commands.search",
    "annoris.commands.sync", "annoris.commands.verify", "annoris.alerts", "annoris.bootstrap",
    "annoris.condition", "annoris.console", "annoris.dumps", "annoris.emergency",
    "annoris.events", "annoris.hot", "annoris.intake", "annoris.keys", "annoris.limit",
    "annoris.mirror", "annoris.projects", "annoris.publish", "annoris.retry", "annoris.sync",
    "annoris.verify", "annoris.workspace", "git", "psycopg", "redis", "tenacity", "yaml",
)  # fmt: skip


class Zygote:
    """The parent of one person's commands, as whoever types them sees it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote"],
            cwd=Path(__file__).parents[2],
            env={**environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # an answer in a buffer would not wake whoever waits for it
            start_new_session=True,  # Ctrl-C is for whoever runs the campaign
        )
        assert self._process.stdin
        assert self._process.stdout
        self._to: IO[bytes] = self._process.stdin
        self.answers: IO[bytes] = self._process.stdout
        self.pid = self._process.pid

    def warm(self) -> None:
        """Wait until everything is imported."""
        self._answer()

    def begin(self, command: Mapping[str, object]) -> int:
        """Start a command; answers its pid."""
        self._to.write(json.dumps(command).encode() + b"\n")
        self._to.flush()
        return int(self._answer()["pid"])

    def end(self) -> int:
        """Wait for the command; answers its exit code, negative for a signal."""
        return int(self._answer()["code"])

    def close(self) -> None:
        self._to.close()
        self._process.wait(30)
        self.answers.close()

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            raise RuntimeError(f"the parent of the commands ended: {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    from tests.support.crash import Command, become  # noqa: PLC0415

    for name in _WARM:
        import_module(name)
    gc.freeze()
    print("{}", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(Command(**json.loads(line)))
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
