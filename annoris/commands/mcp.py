"""annoris mcp"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from annoris.commands import settings
from annoris.errors import AnnorisError, ConfigError

if TYPE_CHECKING:
    from annoris.archive import Archive


def mcp(
    client: Annotated[str, typer.Option(metavar="NAME", help="Which client starts it.")] = "",
) -> None:
    """Serve assistants by MCP on stdin and stdout, until stdin ends. Their client starts this.

    \b
    annoris install claude-code       sets it up
    annoris mcp --client claude-code  what its client then runs
    """
    from annoris.assistant.spool import Spool

    try:
        from annoris.assistant.mcp import make_server
    except ModuleNotFoundError as error:
        Spool().answered(client, "mcp", f"the package {error.name} is missing")
        raise ConfigError(
            f"the MCP server needs the package {error.name}",
            hint="install annoris with it: pipx install 'annoris[assistant]'",
        ) from error
    make_server(lambda: closing(_opened(client))).run("stdio")


def _opened(client: str) -> Archive:
    """An archive for one request, and a note that the client was answered."""
    from annoris.assistant.spool import Spool
    from annoris.bootstrap import open_archive

    try:
        archive = open_archive(settings())
    except AnnorisError as error:
        Spool().answered(client, "mcp", error.message)
        raise
    Spool().answered(client, "mcp")
    return archive
