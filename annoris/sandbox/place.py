"""Where the sandbox of this user lies, and how a command steps into it.

Its place follows from the home folder alone, so that no configuration of the person's is read to
find it. A command that has stepped in sees nothing of what the environment says of other archives.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from annoris.errors import ConfigError, UsageError
from annoris.settings import INSIDE, default_data_dir

_NULL = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
_OTHERS = ("ANNORIS_", "GIT_", "PG")  # of libpq too: PGOPTIONS counts beside a URL
_NAMES = {"DATABASE_URL", "REDIS_URL", "PORT"}
# These write where the person's own programs look; hooks may not deliver their spool elsewhere.
_REFUSED = ("init", "install", "schedule", "uninstall")


def folder() -> str:
    """The folder that holds all of it."""
    return os.path.abspath(
        os.path.join(os.path.expanduser(default_data_dir(os.environ)), "sandbox")
    )


def within(name: str) -> str:
    return os.path.join(folder(), name)


def isolated(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without what it says of archives, databases, git and proxies."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(_OTHERS)
        and name not in _NAMES
        and not name.lower().endswith("_proxy")
    }
    return kept | _NULL


def enter(command: str) -> str:
    """Make this process one of the sandbox's, for ``command``; answers the configuration.

    Raises ConfigError when there is no sandbox, UsageError for what would change things outside.
    """
    if command in _REFUSED:
        raise UsageError(
            f"annoris {command} changes this machine and not the sandbox; nothing was done",
            hint=f"run it without --sandbox, and with {INSIDE} unset",
        )
    config = within("config.toml")
    if not os.path.exists(config):
        raise ConfigError("there is no sandbox here", hint="annoris sandbox up")
    here = isolated(os.environ) | {INSIDE: "1", "ANNORIS_DATA_DIR": within("data")}
    os.environ.clear()
    os.environ.update(here)
    return config
