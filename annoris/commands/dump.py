"""annoris dump"""

from __future__ import annotations

from typing import Annotated

import typer

from annoris.commands import Json, Quiet, archive, speak
from annoris.errors import UsageError

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def dump(
    context: typer.Context,
    to: Annotated[str, typer.Option(metavar="FILE", help="Write a copy there as well.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    drill: Annotated[
        bool, typer.Option("--drill", help="Try the newest dump instead of making one.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Dump the hot cache to a branch beside master. Content stays sealed.

    \b
    annoris dump
    annoris dump --to /mnt/usb/annoris.tar
    annoris dump --drill     fetch the newest one back, restore it aside, compare every row
    annoris dump list
    """
    if context.invoked_subcommand is not None:
        return
    if drill and (to or force):
        raise UsageError("--drill makes no dump", hint="leave out --to and --force")
    from annoris import dumps

    output, where = speak(json, quiet), archive()
    with output.working("drilling" if drill else "dumping"):
        drilled = dumps.drill(where) if drill else None
        done = None if drill else dumps.dump(where, to, force=force)
    if drilled:
        output.drilled(drilled)
    if done:
        output.dumped(done)
    output.complain(where.caches.complaints)


@app.command("list")
def list_(json: Json = False, quiet: Quiet = False) -> None:
    """List the dumps that there are, newest first.

    \b
    annoris dump list
    """
    from annoris import dumps

    speak(json, quiet).dumps(*dumps.listing(archive()))
