"""annoris doctor"""

from __future__ import annotations

from dataclasses import asdict

import typer

from annoris.assistant.clients import NAMES
from annoris.commands import Json, Quiet, archive, speak
from annoris.commands.install import named


def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Find what is misconfigured. With the command that mends it; exit 9 then.

    Also says which assistants are set up, and when each was last answered.

    \b
    annoris doctor
    """
    from annoris import upkeep
    from annoris.assistant import health

    output = speak(json, quiet)
    with output.working("looking"):
        assistants = health.look([named(name) for name in NAMES])
        ailments = [*upkeep.ailments(archive()), *health.ailments(assistants)]
    if json:
        output.emit(
            findings=[asdict(ailment) for ailment in ailments],
            assistants=[asdict(assistant) for assistant in assistants],
        )
    else:
        for assistant in assistants:
            output.note(f"{assistant.name} is set up; {health.last_answer(assistant)}")
        for ailment in ailments:
            output.warn(f"{ailment.what}\n  {ailment.mend}")
    if not ailments:
        output.note("all is well")
    raise typer.Exit(9 if ailments else 0)
