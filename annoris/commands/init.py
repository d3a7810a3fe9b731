"""annoris init"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer

from annoris import commands
from annoris.commands import Json, Quiet, speak


def init(
    remote: Annotated[
        str, typer.Option(metavar="URL", help="The repository that becomes master.")
    ] = "",
    branch: Annotated[
        str, typer.Option(metavar="NAME", help="Its branch; default: the remote's own.")
    ] = "",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Which files are sessions, e.g. 'notes/**/*.md'."),
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Take everything along from another master.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Set up this machine or its remote. What was saved here before goes there too.

    \b
    annoris init --remote git@github.com:me/sessions.git
    annoris init --remote https://github.com/me/notes --include '**/*.md'
    """
    from annoris.bootstrap import set_up
    from annoris.settings import default_path

    settings = commands.settings()
    path = settings.source or commands.config_file or default_path(os.environ)
    output = speak(json, quiet)
    with output.working("talking to the remote"):
        done = set_up(
            settings, path, remote=remote, branch=branch, include=tuple(include or ()), move=move
        )
    if json:
        output.emit(init=asdict(done))
        return
    output.note(f"master: {done.master} ({done.branch}), {done.sessions} sessions")
    if done.others:
        output.note(
            f"{done.others} Markdown files there are not sessions; to adopt them: "
            f"annoris init --remote {done.master} --include '**/*.md'"
        )
    output.note("next: annoris save FILE")
