"""annoris diff"""

from __future__ import annotations

from typing import Annotated

import typer

from annoris.commands import InProject, Json, Quiet, Selector, archive, speak


def diff(
    selector: Selector = "",
    old: Annotated[str, typer.Argument(metavar="[REV]", help="Default: the one before.")] = "",
    new: Annotated[str, typer.Argument(metavar="[REV]", help="Default: the newest.")] = "",
    other: Annotated[
        str, typer.Option("--with", metavar="SEL", help="Compare with another session.")
    ] = "",
    project: InProject = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what changed between revisions. Or, with --with, between two sessions.

    \b
    annoris diff auth-refactor
    annoris diff auth-refactor 1f3e5c7a
    annoris diff auth-refactor --with 3f2a9c1e
    """
    speak(json, quiet).diff(archive().diff(selector, project, old=old, new=new, other=other))
