"""annoris serve"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from annoris.commands import Json, Quiet, settings, speak
from annoris.errors import ConfigError


def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; :: is every address.")
    ] = "",
    port: Annotated[int | None, typer.Option(metavar="N", help="0 takes a free one.")] = None,
    schedule: Annotated[
        bool, typer.Option("--schedule", help="Sync every 15 minutes, verify and dump daily.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let anybody in while there is no token.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer HTTP requests. REST API with its manual at /docs, MCP at /mcp, webhooks, metrics.

    Listens on 127.0.0.1:8080, or with PORT set on every address and that port. Logs are JSON
    lines on stderr, with --quiet only warnings; --json prints the address once it is open.
    SIGTERM ends it once the requests under way are answered.

    \b
    annoris serve
    annoris token new --scope write && annoris serve --host :: --schedule
    """
    known, output = settings(), speak(json, quiet)

    def tell(where: str) -> None:
        if json:
            output.emit(serving=where)
            sys.stdout.flush()

    given = os.environ.get("PORT", "")
    if given and not given.isdecimal():
        raise ConfigError(f"PORT: must be a number, not {given!r}")
    try:
        from annoris.server import app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the server's parts are not installed ({error.name})",
            hint="pipx install 'annoris[server]'",
        ) from None
    app.serve(
        known,
        host or ("::" if given else known.server.host),
        int(given or known.server.port) if port is None else port,
        insecure=insecure,
        scheduled=schedule,
        quiet=quiet,
        tell=tell,
    )
