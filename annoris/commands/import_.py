"""annoris import"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from annoris.commands import Json, Quiet, archive, exit_code, speak

if TYPE_CHECKING:
    from annoris.model import Imported


def import_(
    source: Annotated[
        Literal["claude-code", "codex", "chatgpt", "specstory", "folder"],
        typer.Argument(
            metavar="SOURCE",
            help="claude-code, codex, chatgpt, specstory, or folder (of Markdown).",
        ),
    ],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Where they are; default: where they are kept.")
    ] = "",
    project: Annotated[
        str,
        typer.Option(
            "--project", "-p", metavar="NAME", help="Of all; default: the folder of each one's."
        ),
    ] = "",
    since: Annotated[
        str, typer.Option(metavar="DATE", help="Changed since: 2026-11-24, 3d, 12h.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The newest N alone.")
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="Mask credentials; else what has one is left out.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Read what was imported before, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a session of each conversation that another tool keeps.

    What was imported before is passed over; what has grown becomes a new revision. Imported
    sessions never are what a bare annoris load brings.

    \b
    annoris import claude-code --since 30d
    annoris import codex --dry-run
    annoris import chatgpt export.zip --project chats --redact
    annoris import specstory
    annoris import folder ~/notes
    """
    from annoris.assistant.importers import Importer, Wish
    from annoris.assistant.sources import find

    wish = Wish(project, since, limit or 0, redact, again, dry_run)
    output, where = speak(json, quiet), archive()
    with output.working("looking for conversations") as progress:
        done = Importer(where, wish).run(source, find(source, path), progress)
    output.imported(done)
    output.complain(where.caches.complaints)
    raise typer.Exit(_code(done))


def _code(done: Imported) -> int:
    """What the receipts mean, else the first reason that needs a person."""
    left = {item.code for item in done.left_out}
    reasons = (("credential", 7), ("document", 6))
    told = next((code for name, code in reasons if name in left), 0)
    return exit_code(done.receipts) or told
