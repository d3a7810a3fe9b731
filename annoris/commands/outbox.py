"""annoris outbox"""

from __future__ import annotations

from typing import Annotated

import typer

from annoris.commands import Json, Quiet, archive, speak

app = typer.Typer(rich_markup_mode=None, add_completion=False)
Key = Annotated[str, typer.Argument(metavar="KEY", help="As annoris outbox shows it.")]


@app.callback(invoke_without_command=True)
def outbox(context: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """Show what is only on this machine. It waits, or is set aside with the reason.

    \b
    annoris outbox
    annoris outbox retry KEY
    """
    if context.invoked_subcommand is None:
        box = archive().outbox
        speak(json, quiet).outbox(box.read()[0], box.aside())


@app.command()
def retry(key: Key, json: Json = False, quiet: Quiet = False) -> None:
    """Put a document that was set aside back into the queue and deliver."""
    where = archive()
    from annoris import upkeep

    where.outbox.retry(where.outbox.find(key))
    output = speak(json, quiet)
    with output.working("delivering"):
        report = upkeep.sync(where)
    output.report(report)


@app.command()
def drop(key: Key, json: Json = False, quiet: Quiet = False) -> None:
    """Forget a document that is only here. There is no way back."""
    where = archive()
    draft = where.outbox.find(key)
    where.outbox.drop(draft)
    where.follower.overlay()
    output = speak(json, quiet)
    if json:
        output.emit(dropped=key)
    output.note(f"dropped {draft.title or draft.path}")
