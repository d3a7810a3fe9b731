"""A warm parent from which command lines are forked, for tests that run hundreds of them.

A fork is a process like any other (its own environment, folder, streams, exit code), without the
fraction of a second that Python and its imports take on a busy machine. What is about that start
itself is tested with ``Machine.start``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

# What a run with coverage has its children know; nothing in any other.
MEASURED = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
_ENVIRONMENT = {"PYTHONWARNINGS": "error", **MEASURED}  # of the parent, hence of every child
_COMMANDS = Path(__file__).parents[2] / "annoris" / "commands"
_WARM = (
    *(f"annoris.commands.{path.stem}" for path in sorted(_COMMANDS.glob("[!_]*.py"))),
    "annoris.alerts", "annoris.bootstrap", "annoris.condition", "annoris.console",
    "annoris.convert", "annoris.dumps", "annoris.emergency", "annoris.envelope", "annoris.events",
    "annoris.hot", "annoris.intake", "annoris.join", "annoris.keys", "annoris.leaks",
    "annoris.limit", "annoris.markdown", "annoris.mirror", "annoris.projects", "annoris.publish",
    "annoris.retry", "annoris.schedule", "annoris.sync", "annoris.upkeep", "annoris.verify",
    "annoris.workspace", "anyascii", "dotenv", "ftfy", "git", "psycopg", "redis", "rich.markdown",
    "rich.progress", "rich.table", "sqlite3", "tenacity", "tomlkit", "yaml",
)  # fmt: skip


def fits(environment: Mapping[str, str]) -> bool:
    """Whether a fork is the same as a new interpreter, which reads these variables as it starts."""
    own = {
        name: value
        for name, value in environment.items()
        if name.startswith(("PYTHON", "LD_", "DYLD_", "LC_", "LANG", "COVERAGE"))
    }
    return own == _ENVIRONMENT


def run(
    arguments: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    stdin: bytes,
    timeout: float,
) -> tuple[int, bytes, bytes]:
    """Run a command line to its end; answers exit code, stdout and stderr.

    Raises subprocess.TimeoutExpired, the command being killed, after ``timeout`` seconds.
    """
    request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(environment)}
    mine, theirs = socket.socketpair()
    with mine, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with theirs, tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            _parent().ask(request, [file.fileno() for file in (given, out, err, theirs)])
        code = _ended(mine, timeout, arguments)
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def _ended(keeper: socket.socket, timeout: float, arguments: Sequence[str]) -> int:
    (pid,) = struct.unpack("i", _exactly(keeper, 4))
    keeper.settimeout(timeout)
    try:
        (status,) = struct.unpack("i", _exactly(keeper, 4))
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise subprocess.TimeoutExpired(list(arguments), timeout) from None
    return os.waitstatus_to_exitcode(status)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class _Parent:
    def __init__(self) -> None:
        self._end, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[2],
                env=_ENVIRONMENT | {"PATH": os.environ["PATH"]},
                stdin=subprocess.DEVNULL,
            )
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any], handles: list[int]) -> None:
        data = json.dumps(request).encode()
        with self._lock:
            socket.send_fds(self._end, [struct.pack("i", len(data))], handles)
            self._end.sendall(data)

    def close(self) -> None:
        self._end.close()
        self._process.wait(60)


@functools.cache
def _parent() -> _Parent:
    parent = _Parent()
    atexit.register(parent.close)
    return parent


# --- in the parent -------------------------------------------------------------------------------


def main(handle: int) -> None:
    """Fork a keeper for each request; the keeper forks the command, and tells how it ended."""
    for name in _WARM:
        import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for the keepers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever runs the tests closes the socket
    with socket.socket(fileno=handle) as requests:
        while True:
            head, handles, _, _ = socket.recv_fds(requests, 4, 4)
            if not head:
                return
            request = json.loads(_exactly(requests, *struct.unpack("i", head)))
            if os.fork() == 0:
                requests.close()
                _keep(request, handles)
            for each in handles:
                os.close(each)


def _keep(request: Mapping[str, Any], handles: list[int]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, answer = handles
    child = os.fork()
    if child == 0:
        os.close(answer)
        _become(request, streams)
    with contextlib.suppress(OSError):  # nobody waits for it
        os.write(answer, struct.pack("i", child))
        _, status = os.waitpid(child, 0)
        os.write(answer, struct.pack("i", status))
    os._exit(0)


def _become(request: Mapping[str, Any], streams: list[int]) -> NoReturn:
    from annoris import cli, commands  # noqa: PLC0415

    code = 70
    try:
        for number, handle in enumerate(streams):
            os.dup2(handle, number)
            os.close(handle)
        _open_streams()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        time.tzset()
        tempfile.tempdir = None
        commands.config_file = ""
        sys.argv = [cli.__file__, *request["arguments"]]
        warnings.simplefilter("error")
        cli.main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - a child must never go on as the parent
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _open_streams() -> None:
    """What Python itself opens on the three handles where no locale is set."""
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            open(handle, f"{mode}b", closefd=False),  # noqa: SIM115
            encoding="utf-8",
            errors="backslashreplace" if handle == 2 else "surrogateescape",
            line_buffering=handle == 2,
        )
        for handle, mode in ((0, "r"), (1, "w"), (2, "w"))
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
