"""A whole Annoris on this machine: GitHub, PostgreSQL, Valkey and the server, seeded.

Each part is a process of its own that no other process looks after: what runs is what the notes
in ``run`` say and the machine confirms. So nothing has to be told that a part was broken, and
``down`` ends whatever a crash left.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from annoris import envelope, lock
from annoris.errors import ConfigError, UsageError
from annoris.model import Deadline
from annoris.sandbox import parts, place, programs
from annoris.sandbox.parts import Part, Place
from annoris.settings import INSIDE

NAMES = ("master", "hot", "emergency", "server")
TIERS = NAMES[:3]
_PYTHON = (sys.executable, "-P", "-m")
_STOP = {"hot": signal.SIGINT}  # "fast": clients are thrown out
_MACHINES = ("data", "server")  # the data folders of the command line and of the server


@dataclass(frozen=True, slots=True)
class Running:
    """A part as a person sees it; ``pid`` is 0 while it does not run."""

    name: str
    what: str
    at: str
    pid: int


@dataclass(frozen=True, slots=True)
class Standing:
    """The sandbox. ``new``: it was made just now."""

    folder: str
    config: str
    url: str
    parts: tuple[Running, ...]
    new: bool = False

    @property
    def whole(self) -> bool:
        return all(part.pid for part in self.parts)


def up(working: Callable[[str], None] = lambda _: None) -> Standing:
    """Make it, or see that it is there already.

    Raises ConfigError for what is not installed, Locked while another process makes or ends it.
    What fails half-way leaves nothing.
    """
    programs.check()
    with _alone():
        if _made():
            return standing()
        _clear()  # what an up that was killed has left
        try:
            _make(working)
        except BaseException:
            _remove()
            raise
        return replace(standing(), new=True)


def standing() -> Standing:
    """What runs now. Raises ConfigError when there is no sandbox."""
    _must_be_made()
    where = _where()
    found = tuple(
        Running(part.name, part.what, part.at, parts.alive(where, part.name)) for part in _parts()
    )
    return Standing(place.folder(), place.within("config.toml"), found[-1].at, found)


def break_(tier: str) -> Standing:
    """End one tier. Raises UsageError for what is none."""
    if tier not in TIERS:
        raise UsageError(f"{tier!r} is no tier", hint=f"one of {', '.join(TIERS)}")
    _must_be_made()
    with _alone():
        parts.end(_where(), tier, _STOP.get(tier, signal.SIGTERM))
        return standing()


def heal() -> tuple[Standing, list[str]]:
    """Start what does not run, and forget that it was down; answers also what was started."""
    _must_be_made()
    with _alone():
        where, healed = _where(), []
        for part in _parts():
            if not parts.alive(where, part.name):
                parts.start(where, part)
                healed.append(part.name)
        for name in _MACHINES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place.within(os.path.join(name, "breaker.json")))
        return standing(), healed


def down() -> bool:
    """End everything and remove it; whether there was anything."""
    if not os.path.lexists(place.folder()):
        return False
    with _alone():
        _remove()
    return True


def shell(environ: Mapping[str, str]) -> tuple[list[str], dict[str, str], str]:
    """The words that start a shell inside, its environment and its folder."""
    _must_be_made()
    found = environ.get("SHELL") or "/bin/sh"
    program = found if os.access(found, os.X_OK) else "/bin/sh"
    path = os.pathsep.join([os.path.dirname(sys.executable), environ.get("PATH", os.defpath)])
    return [program], {**environ, INSIDE: "1", "PATH": path}, place.within("desk")


# --- making and ending -------------------------------------------------------------------------


@contextmanager
def _alone() -> Iterator[None]:
    """One of up, break, heal and down at a time."""
    with lock.hold(place.within("lock"), Deadline(0), "the sandbox is being changed just now"):
        yield


def _made() -> bool:
    """Whether it was made to the end: its configuration is put in place last."""
    return os.path.exists(place.within("config.toml"))


def _must_be_made() -> None:
    if not _made():
        raise ConfigError("there is no sandbox here", hint="annoris sandbox up")


def _where() -> Place:
    return Place(place.folder(), place.isolated(os.environ))


def _make(working: Callable[[str], None]) -> None:
    where, who = _where(), programs.someone()
    password = secrets.token_hex(16)
    _write_down(who.uid, password)
    working("making the repository and the database")
    repository = place.within("github/sessions.git")
    os.mkdir(place.within("github"))
    parts.finish(where, "git", ["git", "init", "--bare", "--initial-branch=main", repository])
    with open(os.path.join(repository, "config"), "a", encoding="ascii") as config:
        config.write(
            "[gc]\n\tauto = 0\n[receive]\n\tautogc = false\n[http]\n\treceivepack = true\n"
        )
    _make_database(where, who, password)
    for part in _parts():
        working(f"starting {part.what}")
        parts.start(where, part)
    working("saving sample sessions")
    unfinished = place.within("config.new")
    parts.finish(where, "samples", [*_PYTHON, "annoris.sandbox.samples", unfinished])
    os.mkdir(place.within("desk"))
    _write("desk/session.md", "# My first session\n\n**Status:** in progress\n**Next:** save it\n")
    os.replace(unfinished, place.within("config.toml"))


def _write_down(uid: int, password: str) -> None:
    """Choose ports and secrets, and write every file that the parts read."""
    folder = place.within("postgres")
    if uid:  # who can't enter our folders gets one where anybody can
        folder = tempfile.mktemp(prefix="annoris-sandbox-")  # noqa: S306 - made by mkdir, later
    ports = _free_ports()
    _write("facts.json", json.dumps(_Facts(ports, folder)._asdict()))
    token, secret, login = (secrets.token_hex(16) for _ in range(3))
    settings: dict[str, dict[str, object]] = {
        "": {"project": "shop", "key": envelope.new_key().text()},
        "master": {
            "remote": f"http://127.0.0.1:{ports['master']}/sessions.git",
            "token": token,
            "author": "Sandbox <sandbox@example.org>",
            "fresh_seconds": 1.0,  # so that an edit on "GitHub" is seen at once
        },
        "hot": {
            "url": f"postgresql://postgres:{password}@127.0.0.1:{ports['hot']}/postgres"
            "?sslmode=disable"
        },
        "emergency": {"url": f"redis://:{login}@127.0.0.1:{ports['emergency']}/0"},
        "server": {"webhook_secret": secret},
    }
    for name, machine in zip(("config.new", "server.toml"), _MACHINES, strict=True):
        settings[""]["data_dir"] = place.within(machine)
        _write(name, _toml(settings))
    hosted = {
        "repo": place.within("github/sessions.git"),
        "port": ports["master"],
        "token": token,
        "hook": f"http://127.0.0.1:{ports['server']}/webhooks/github",
        "secret": secret,
    }
    _write("github.json", json.dumps(hosted))
    lines = ["bind 127.0.0.1", f"port {ports['emergency']}", 'save ""', "appendonly no",
             f"requirepass {login}", "maxmemory 64mb", "maxmemory-policy volatile-ttl"]  # fmt: skip
    _write("valkey.conf", "\n".join([*lines, ""]))


def _make_database(where: Place, who: programs.Someone, password: str) -> None:
    folder = _facts().postgres
    os.mkdir(folder, 0o700)
    secret = os.path.join(folder, "password")
    _put(secret, password)
    if who.uid:
        os.chown(secret, who.uid, who.uid)
        os.chown(folder, who.uid, who.uid)
    command = [*who.prefix, programs.program("initdb"), "--no-sync", "-D", f"{folder}/data",
               "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
               "--encoding=UTF8", "--username=postgres", "--auth=scram-sha-256",
               f"--pwfile={secret}"]  # fmt: skip
    parts.finish(where, "initdb", command, who.uid)
    os.unlink(secret)


def _parts() -> tuple[Part, ...]:
    """The four processes, in the order in which they start."""
    facts, who = _facts(), programs.someone()
    ports, data = facts.ports, os.path.join(facts.postgres, "data")
    options = {
        "listen_addresses": "127.0.0.1", "port": ports["hot"], "unix_socket_directories": "",
        "fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB",
        "dynamic_shared_memory_type": "mmap",  # in the folder: nothing stays in memory
    }  # fmt: skip
    postgres = [*who.prefix, programs.program("postgres"), "-D", data]
    postgres += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    pid_file = os.path.join(data, "postmaster.pid")
    serve = ("annoris.cli", "--config", place.within("server.toml"), "serve", "--quiet")
    where = ("--host", "127.0.0.1", "--port", str(ports["server"]), "--schedule")
    return (
        Part("master", "GitHub's part",
             f"http://127.0.0.1:{ports['master']}/sessions.git",
             (*_PYTHON, "annoris.sandbox.githttp", place.within("github.json")),
             lambda: parts.listens(ports["master"])),
        Part("hot", "PostgreSQL", f"127.0.0.1:{ports['hot']}", tuple(postgres),
             lambda: parts.postmaster_ready(pid_file), stale=pid_file, uid=who.uid),
        Part("emergency", "Valkey (Redis)", f"127.0.0.1:{ports['emergency']}",
             (programs.program("valkey-server"), place.within("valkey.conf")),
             lambda: parts.pongs(ports["emergency"])),
        Part("server", "annoris serve", f"http://127.0.0.1:{ports['server']}",
             (*_PYTHON, *serve, *where), lambda: parts.serves(ports["server"])),
    )  # fmt: skip


def _clear() -> None:
    """End everything and remove all but the lock, which is held."""
    where = _where()
    for name in [*(set(where.names()) - set(NAMES)), *reversed(NAMES)]:
        parts.end(where, name, _STOP.get(name, signal.SIGTERM))
    with contextlib.suppress(OSError, ValueError, TypeError):  # it was not written to its end
        shutil.rmtree(_facts().postgres, ignore_errors=True)
    for entry in list(os.scandir(place.folder())):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name != "lock":
            os.unlink(entry.path)


def _remove() -> None:
    """End everything and remove it, the folder of Annoris too where nothing else is in it."""
    _clear()
    with contextlib.suppress(OSError):
        os.unlink(place.within("lock"))
        os.rmdir(place.folder())
        os.rmdir(os.path.dirname(place.folder()))


# --- files ---------------------------------------------------------------------------------------


class _Facts(NamedTuple):
    """What was chosen when it was made: the ports, and PostgreSQL's folder."""

    ports: dict[str, int]
    postgres: str


def _facts() -> _Facts:
    with open(place.within("facts.json"), encoding="utf-8") as file:
        return _Facts(**json.load(file))


def _free_ports() -> dict[str, int]:
    with ExitStack() as held:
        found = {}
        for name in NAMES:
            hold = held.enter_context(socket.socket())
            hold.bind(("127.0.0.1", 0))
            found[name] = int(hold.getsockname()[1])
        return found


def _write(name: str, text: str) -> None:
    _put(place.within(name), text)


def _put(path: str, text: str) -> None:
    """A file of ours that nobody else reads."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        file.write(text)


def _toml(sections: Mapping[str, Mapping[str, object]]) -> str:
    """Texts and numbers as TOML, in which they are written as in JSON."""
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]"] if section else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([*lines, ""])
