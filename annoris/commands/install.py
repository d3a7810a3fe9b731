"""annoris install"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from annoris import commands
from annoris.commands import Json, Quiet, settings, speak
from annoris.errors import UsageError

if TYPE_CHECKING:
    from annoris.assistant.clients import Client

CLIENT = Annotated[
    str,
    typer.Argument(metavar="CLIENT", help="claude-code, codex, cursor, claude-desktop or vscode."),
]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")]


def install(
    client: CLIENT, dry_run: DRY_RUN = False, json: Json = False, quiet: Quiet = False
) -> None:
    """Set up an assistant's client. An MCP entry, hooks and a skill in its own files.

    \b
    annoris install claude-code --dry-run
    annoris install claude-code
    """
    change(client, remove=False, dry_run=dry_run, json=json, quiet=quiet)


def change(name: str, *, remove: bool, dry_run: bool, json: bool, quiet: bool) -> None:
    """Put Annoris into a client's files, or take it out."""
    from annoris.assistant.install import Record, carry_out, plan

    output, found = speak(json, quiet), named(name)
    record = Record(settings().at("installed.json"))
    steps = plan(found, record, remove=remove)
    if not dry_run:
        carry_out(found, steps, record)
    if json:
        files = [
            {"file": step.file, "changed": step.changes, "diff": "".join(step.diff)}
            for step in steps
        ]
        output.emit(client=name, dry_run=dry_run, files=files)
        return
    for step in steps:
        if dry_run:
            output.diff(step.diff)
        else:
            output.note(f"{'changed' if step.changes else 'as it was'}: {step.file} {step.kept}")
    if not remove and not dry_run and any(step.changes for step in steps):
        output.note(f"next: {found.then}")


def named(name: str) -> Client:
    """A client by its name, started as this command was. Raises UsageError."""
    from annoris.assistant import clients
    from annoris.assistant.install import command

    try:
        return clients.client(name, command(commands.config_file), os.environ, sys.platform)
    except KeyError:
        raise UsageError(
            f"there is no client {name!r}", hint=f"one of {', '.join(clients.NAMES)}"
        ) from None
