"""annoris delete"""

from __future__ import annotations

import typer

from annoris.commands import WHAT, InProject, Json, Quiet, archive, exit_code, speak


def delete(
    selector: WHAT, project: InProject = "", json: Json = False, quiet: Quiet = False
) -> None:
    """Remove a session from master. Git keeps it: annoris history PATH finds it again.

    \b
    annoris delete 3f2a9c1e
    """
    output = speak(json, quiet)
    with output.working("deleting"):
        where = archive()
        receipt = where.delete(selector, project)
    output.receipts([receipt])
    output.complain(where.caches.complaints)
    raise typer.Exit(exit_code([receipt]))
