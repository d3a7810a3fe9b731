"""annoris sync"""

from __future__ import annotations

from typing import Annotated

import typer

from annoris.commands import Json, Quiet, alerting, archive, exit_code, speak


def sync(
    force: Annotated[
        bool, typer.Option("--force", help="Accept that master lost many sessions.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Deliver what waits and follow master. A configured hot cache follows too.

    \b
    annoris sync
    """
    from annoris import events, upkeep

    output = speak(json, quiet)
    with output.working("syncing"):
        where = archive()
        report = alerting(output, where, events.of_sync, lambda: upkeep.sync(where, force=force))
    output.report(report)
    output.complain(where.caches.complaints)
    raise typer.Exit(exit_code([*report.conflicts, *report.set_aside]))
