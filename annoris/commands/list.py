"""annoris list"""

from typing import Annotated

import typer

from annoris.commands import InProject, Json, Quiet, archive, speak


def list_(
    project: InProject = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Of every project.")] = False,
    status: Annotated[str, typer.Option(metavar="TEXT", help="Only with this status.")] = "",
    since: Annotated[
        str, typer.Option(metavar="DATE", help="Saved since 2026-11-24, 3d, 12h.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="How many.")] = 20,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List sessions, newest first.

    \b
    annoris list
    annoris list --all --since 7d
    """
    where = archive()
    rows, stale = where.sessions(
        project=project, status=status, since=since, limit=limit, everything=everything
    )
    empty = (
        "no session here yet: annoris save FILE makes the first; annoris list --all shows others"
    )
    speak(json, quiet).sessions(rows, stale, empty)
