"""annoris projects"""

from __future__ import annotations

from typing import Annotated

import typer

from annoris.commands import Json, Quiet, archive, speak
from annoris.errors import UsageError

app = typer.Typer(rich_markup_mode=None, add_completion=False)
Name = Annotated[str, typer.Argument(metavar="[NAME]", help="Default: this folder's project.")]
Amount = typer.Option(metavar="AMOUNT", help='Such as 1200.50; "" takes it away.')


@app.callback(invoke_without_command=True)
def projects(context: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """List projects, show one, change what is kept of it.

    \b
    annoris projects
    annoris projects show shop
    annoris projects set shop --status active --target-revenue 50000
    """
    if context.invoked_subcommand is None:
        list_(json, quiet)


@app.command("list")
def list_(json: Json = False, quiet: Quiet = False) -> None:
    """List projects with sessions, newest, status, priority, revenues."""
    where = archive()
    output = speak(json, quiet)
    output.projects(where.projects())
    if not json:
        output.complain(where.catalog.filed()[1])


@app.command()
def show(name: Name = "", json: Json = False, quiet: Quiet = False) -> None:
    """Show one project.

    \b
    annoris projects show shop
    """
    speak(json, quiet).project(archive().project(name))


@app.command("set")
def set_(
    name: Name = "",
    status: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Any words; "" takes it away.')
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Any words; "" takes it away.')
    ] = None,
    target_revenue: Annotated[str | None, Amount] = None,
    current_revenue: Annotated[str | None, Amount] = None,
    rename: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another name; sessions and the old name follow it."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Change a project on master, or make one. At once, or not at all.

    \b
    annoris projects set shop --status active --priority high
    annoris projects set shop --current-revenue 1200.50
    annoris projects set shop --rename "web shop"
    """
    given = {
        "status": status,
        "priority": priority,
        "target_revenue": target_revenue,
        "current_revenue": current_revenue,
        "name": rename,
    }
    if rename is not None and not rename.strip():
        raise UsageError("--rename: a project needs a name", hint="annoris projects set -h")
    where = archive()
    output = speak(json, quiet)
    with output.working("setting"):
        changes = {key: value for key, value in given.items() if value is not None}
        changed = where.set_project(name, changes)
    project = where.project(rename or name)
    if json or not quiet:
        output.project(project, changed=changed)
