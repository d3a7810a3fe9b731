"""annoris projects"""

from __future__ import annotations

import typer

from annoris.commands import Json, Quiet, archive, speak

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def projects(context: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """List projects. With the number of sessions, newest first.

    \b
    annoris projects
    """
    if context.invoked_subcommand is None:
        speak(json, quiet).projects(archive().projects())
