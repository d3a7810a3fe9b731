"""annoris restore"""

from __future__ import annotations

from typing import Annotated

import typer

from annoris.commands import Json, Quiet, archive, speak


def restore(
    dump: Annotated[
        str,
        typer.Argument(metavar="DUMP", help="latest, a name of annoris dump list, or a file."),
    ],
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace what is there; go on without the key."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, change nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring the hot cache back from a dump. All of it, or nothing is changed.

    \b
    annoris restore latest
    annoris restore /mnt/usb/annoris.tar --dry-run
    """
    from annoris import dumps

    output, where = speak(json, quiet), archive()
    with output.working("restoring"):
        done = dumps.restore(where, dump, force=force, dry_run=dry_run)
    output.restored(done)
    output.complain(where.caches.complaints)
