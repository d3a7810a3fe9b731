"""annoris doctor"""

from __future__ import annotations

from dataclasses import asdict

import typer

from annoris.commands import Json, Quiet, archive, speak


def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Find what is misconfigured. With the command that mends it; exit 9 then.

    \b
    annoris doctor
    """
    from annoris import upkeep

    output = speak(json, quiet)
    with output.working("looking"):
        ailments = upkeep.ailments(archive())
    if json:
        output.emit(findings=[asdict(ailment) for ailment in ailments])
    else:
        for ailment in ailments:
            output.warn(f"{ailment.what}\n  {ailment.mend}")
    if not ailments:
        output.note("all is well")
    raise typer.Exit(9 if ailments else 0)
