"""annoris sandbox"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from annoris.commands import Json, Quiet, speak

if TYPE_CHECKING:
    from annoris.console import Output
    from annoris.sandbox.world import Standing

app = typer.Typer(rich_markup_mode=None, add_completion=False)
_TRY = """\
try    annoris --sandbox list --all
       annoris --sandbox load shop/webhook-retries
       annoris sandbox break hot      and the same load again
       annoris sandbox heal           everything runs again
       annoris sandbox shell          annoris without --sandbox, in a shell
       annoris sandbox down           the end: nothing stays
       {url}      in a browser: the dashboard"""


@app.callback()
def sandbox() -> None:
    """Try a whole Annoris on this machine. All tiers real, nothing of yours touched.

    \b
    annoris sandbox up
    annoris --sandbox load
    annoris sandbox down
    """


@app.command()
def up(json: Json = False, quiet: Quiet = False) -> None:
    """Start it: GitHub's part, PostgreSQL, Redis's part, the server, sample sessions.

    \b
    annoris sandbox up
    """
    from annoris.sandbox import world

    output = speak(json, quiet)
    with output.working("starting the sandbox") as tell:
        there = world.up(lambda what: tell(what, 0, 0))
    if not there.new:
        output.note("it runs already" if there.whole else "it is there already")
    _show(output, there)
    if there.new and not json:
        output.note("\n" + _TRY.format(url=there.url))


@app.command()
def status(json: Json = False, quiet: Quiet = False) -> None:
    """Show what runs where.

    \b
    annoris sandbox status
    """
    from annoris.sandbox import world

    _show(speak(json, quiet), world.standing())


@app.command()
def shell(json: Json = False, quiet: Quiet = False) -> None:
    """Open a shell in which annoris uses the sandbox.

    \b
    annoris sandbox shell
    echo 'annoris list --all' | annoris sandbox shell
    """
    from annoris.sandbox import world

    words, environment, folder = world.shell(os.environ)
    speak(json, quiet).note("annoris here is the sandbox's; exit leaves it")
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(folder)
    os.execve(words[0], words, environment)  # noqa: S606 - the shell that was asked for


@app.command("break")
def break_(
    tier: Annotated[str, typer.Argument(metavar="hot|emergency|master")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take a tier away, to see the others step in.

    \b
    annoris sandbox break hot
    annoris sandbox break master
    """
    from annoris.sandbox import world

    output = speak(json, quiet)
    _show(output, world.break_(tier))


@app.command()
def heal(json: Json = False, quiet: Quiet = False) -> None:
    """Start again what does not run.

    \b
    annoris sandbox heal
    """
    from annoris.sandbox import world

    output = speak(json, quiet)
    with output.working("starting what is down"):
        there, healed = world.heal()
    if not healed:
        output.note("everything runs")
    _show(output, there, healed=healed)


@app.command()
def down(json: Json = False, quiet: Quiet = False) -> None:
    """End it. No process and no file of it stays.

    \b
    annoris sandbox down
    """
    from annoris.sandbox import world

    output = speak(json, quiet)
    with output.working("ending the sandbox"):
        was = world.down()
    if json:
        output.emit(removed=was)
    else:
        output.note("the sandbox is gone" if was else "there is no sandbox")


def _show(output: Output, there: Standing, **more: object) -> None:
    """The parts and their states."""
    if output.json:
        output.emit(sandbox=asdict(there), **more)
        return
    if output.quiet:
        return
    rows = [(part.name, "runs" if part.pid else "down", part.what, part.at) for part in there.parts]
    output.table(("part", "state", "is", "at"), rows)
    if not there.whole:
        output.note("next: annoris sandbox heal")
