"""annoris schedule"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from annoris import commands
from annoris.commands import Json, Quiet, speak
from annoris.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from annoris.console import Output
    from annoris.schedule import Edit, Job, Kind

app = typer.Typer(rich_markup_mode=None, add_completion=False)
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, change nothing.")]


@app.callback()
def schedule() -> None:
    """Run sync, verify and dump regularly. By systemd's user timers or by cron.

    \b
    annoris schedule install
    annoris schedule show
    """


@app.command()
def install(
    cron: Annotated[bool, typer.Option("--cron", help="In the crontab.")] = False,
    systemd: Annotated[bool, typer.Option("--systemd", help="As systemd user timers.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sync every 15 minutes, verify and dump at night, drill on Sundays. Twice is once.

    \b
    annoris schedule install
    annoris schedule install --cron --dry-run
    """
    from annoris import schedule as core
    from annoris.settings import default_path, outside

    if cron and systemd:
        raise UsageError("--cron and --systemd are two ways", hint="give one of them, or none")
    wanted, start, folder = _wanted()
    try:
        kind: Kind = "cron" if cron else "systemd" if systemd else core.usual()
    except ConfigError as error:
        block = core.block(wanted, start).decode(errors="replace")
        raise ConfigError(
            error.message, hint=f"give these lines to what runs things here:\n{block}"
        ) from error
    changes = core.edits(kind, wanted, start, folder)
    if not dry_run:
        core.apply(kind, changes, wanted)
    where = "by systemd" if kind == "systemd" else "in the crontab"
    output = speak(json, quiet)
    _answer(output, changes, f"scheduled {where}", dry_run)
    if hidden := outside(os.environ):
        config = commands.settings().source or default_path(os.environ)
        output.warn(
            f"scheduled runs will not see what is set only here: {', '.join(hidden)}\n"
            f"  write it into {config} and chmod 600 that"
        )
    if kind == "systemd" and not dry_run:
        output.note("to run while you are logged out too: loginctl enable-linger")


@app.command()
def show(json: Json = False, quiet: Quiet = False) -> None:
    """Show what is scheduled, and how the last runs ended.

    \b
    annoris schedule show
    """
    from annoris import schedule as core

    settings = commands.settings()
    found = core.present(*_wanted(), settings.at("schedule.log"))
    output = speak(json, quiet)
    facts = [
        ("by", found.kind or "nothing is scheduled"),
        *(("line", line) for line in found.lines),
        *((words, how) for words, how in found.last.items()),
        ("log", found.log if found.last else "empty: no run yet"),
    ]
    output.facts(facts, schedule=asdict(found))
    if found.kind and not found.current:
        output.note("install would write other lines now: annoris schedule install")
    elif not found.kind:
        output.note("next: annoris schedule install")


@app.command()
def remove(dry_run: DryRun = False, json: Json = False, quiet: Quiet = False) -> None:
    """Take our lines and units away. Everything else stays as it is.

    \b
    annoris schedule remove
    """
    from annoris import schedule as core

    wanted, start, folder = _wanted()
    changes = core.edits(None, wanted, start, folder)
    if not dry_run:
        core.apply(None, changes, wanted)
    _answer(speak(json, quiet), changes, "not scheduled any more", dry_run)


@app.command(hidden=True)
def run(
    words: Annotated[list[str], typer.Argument(metavar="COMMAND...")],
    seconds: Annotated[int, typer.Option(min=1, help="How long it may take.")] = 840,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a command with a lock, a deadline and a log, as the scheduled lines do.

    \b
    annoris schedule run --seconds 840 -- sync --full --quiet
    """
    from annoris import schedule as core

    settings = commands.settings()
    code, said = core.run(words, seconds, settings.data_dir, settings.source)
    output = speak(json, quiet)
    if json:
        output.emit(run={"code": code, "said": said})
    elif code not in core.PASSING:
        output.warn(said.rstrip("\n"))  # cron mails it, systemd keeps it in its journal
    raise typer.Exit(code)


def _answer(output: Output, changes: list[Edit], done: str, dry_run: bool) -> None:
    from annoris.schedule import diff

    if output.json:
        places = [edit.path or "crontab" for edit in changes]
        output.emit(changed=places, dry_run=dry_run, diff="".join(diff(changes)))
    elif dry_run:
        output.diff(diff(changes))
    if not changes:
        output.note("nothing to change")
    elif not dry_run:
        output.note(done)


def _wanted() -> tuple[tuple[Job, ...], tuple[str, ...], str]:
    """What is to run on this machine, how it is started, where its units lie."""
    from annoris import schedule as core
    from annoris.settings import default_path, load

    settings = commands.settings()
    home = {"HOME": os.path.expanduser("~"), "ANNORIS_DATA_DIR": ""}  # what cron knows
    config = os.path.abspath(settings.source) if settings.source else ""
    usual = config in ("", default_path(home))
    plain = load(config or None, environ=home).data_dir
    folders = [os.path.dirname(path) for name in ("git", "ssh") if (path := shutil.which(name))]
    start = core.command(
        sys.executable,
        folders,
        "" if plain == settings.data_dir else os.path.abspath(settings.data_dir),
        "" if usual else config,
    )
    wanted = core.jobs(f"{platform.node()} {os.getuid()}", hot=bool(settings.hot.url))
    return wanted, start, core.unit_folder(os.environ)
