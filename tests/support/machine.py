"""A machine: a home of its own, on which annoris runs as a process or as a library."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annoris.archive import Archive
from annoris.bootstrap import open_archive
from annoris.intake import SaveOptions, Source
from annoris.model import Receipt
from annoris.settings import load
from tests.support import zygote


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Machine:
    def __init__(self, folder: Path, remote: str, settings: dict[str, str]) -> None:
        self.folder = folder
        self.desk = folder / "desk"
        self.desk.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self.environment = {
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "ANNORIS_DATA_DIR": str(self.data),
            "GIT_CONFIG_NOSYSTEM": "1",
            "PYTHONWARNINGS": "error",
            **zygote.MEASURED,
            **({"ANNORIS_MASTER_REMOTE": remote} if remote else {}),
            **{f"ANNORIS_{key}".upper(): value for key, value in settings.items()},
        }

    def write(self, name: str, data: bytes | str) -> Path:
        """A file on this machine's desk."""
        path = self.desk / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    @property
    def unmeasured(self) -> dict[str, str]:
        """The environment without coverage, for tests of what a start imports."""
        return {key: value for key, value in self.environment.items() if key not in zygote.MEASURED}

    def start(
        self, *arguments: str | Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """The command as a process that the test ends itself."""
        return subprocess.Popen(
            [sys.executable, "-m", "annoris.cli", *map(str, arguments)],
            cwd=self.desk,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A shell that runs the tests in the background has Ctrl-C ignored in all of them.
            preexec_fn=_interruptible,  # noqa: PLW1509 - nothing but a system call
        )

    def run(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> Ran:
        """The command to its end."""
        words, environment = [str(word) for word in arguments], {**self.environment, **(env or {})}
        if zygote.fits(environment):
            code, out, err = zygote.run(
                words,
                cwd=cwd or self.desk,
                environment=environment,
                stdin=stdin,
                timeout=timeout,
            )
            return Ran(code, out, err.decode())
        done = subprocess.run(
            [sys.executable, "-m", "annoris.cli", *words],
            cwd=cwd or self.desk,
            env=environment,
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr.decode())

    def archive(self) -> Archive:
        """The library on this machine, in this process. The caller closes the catalog."""
        return open_archive(load(environ=self.environment))

    def save(self, *documents: bytes, **options: Any) -> list[Receipt]:
        """Save through the library."""
        archive = self.archive()
        with contextlib.closing(archive), contextlib.chdir(self.desk):
            sources = [Source(f"{number}.md", data) for number, data in enumerate(documents, 1)]
            return archive.save(sources, SaveOptions(**options))

    def load(self, selector: str = "", **options: Any) -> bytes:
        archive = self.archive()
        with contextlib.closing(archive), contextlib.chdir(self.desk):
            return archive.load(selector, **options).data

    def sync(self, *arguments: str) -> Ran:
        return self.run("sync", *arguments)

    def loads(self, ids: Sequence[str]) -> list[bytes]:
        """Bodies of many sessions, in order."""
        archive = self.archive()
        with contextlib.closing(archive), contextlib.chdir(self.desk):
            return [archive.load(id).data for id in ids]
