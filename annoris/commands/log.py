"""annoris log"""

from __future__ import annotations

from typing import Annotated

import typer

from annoris.commands import Json, Quiet, archive, speak


def log(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="How many.")] = 20,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="Only these: sync, verify, dump and the like.")
    ] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show past runs. Of all machines where there is a hot cache, else of this one.

    \b
    annoris log
    annoris log --kind verify -n 5
    """
    from annoris import upkeep

    runs, where = upkeep.log(archive(), limit, kind)
    speak(json, quiet).runs(runs, where)
