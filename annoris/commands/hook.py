"""annoris hook"""

from __future__ import annotations

from typing import Annotated

import typer

from annoris.commands import settings, speak


def hook(
    event: Annotated[
        str,
        typer.Argument(
            metavar="EVENT",
            help="session-start, stop, pre-compact, post-compact, session-end; "
            "or flush, which delivers what waits.",
        ),
    ],
    client: Annotated[str, typer.Option(metavar="NAME", help="Which client calls.")] = "",
) -> None:
    """Answer an assistant's hook; its client runs this. Always exit 0.

    \b
    annoris install claude-code       sets the hooks up
    annoris hook flush                delivers now what hooks have captured
    """
    from annoris.assistant.hooks import run

    told = run(event, client, settings)
    if told:
        speak(json=False, quiet=False).line(told)
