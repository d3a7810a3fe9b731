"""annoris dump"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from annoris.commands import Json, Quiet, alerting, archive, speak
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
    from annoris import dumps, events

    output, where = speak(json, quiet), archive()
    if drill:
        with output.working("drilling"):
            told = partial(events.of_run, "drill")
            found = alerting(output, where, told, lambda: dumps.drill(where))
        output.drilled(found)
    else:
        with output.working("dumping"):
            told = partial(events.of_run, "dump")
            done = alerting(output, where, told, lambda: dumps.dump(where, to, force=force))
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
