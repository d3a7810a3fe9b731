"""annoris verify"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from annoris.commands import Json, Quiet, alerting, archive, speak

if TYPE_CHECKING:
    from annoris.model import Audit


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Bring what differs in step with master.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare ids only; open and read nothing.")
    ] = False,
    sample: Annotated[
        str, typer.Option(metavar="PERCENT", help="Open so many of the documents, by chance.")
    ] = "100%",
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Choose the same ones as a run before.")
    ] = 0,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="End by then, whatever hangs.")
    ] = 3000,
    source: Annotated[str, typer.Option(hidden=True)] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that every tier holds what master holds. Exit 9 when one does not.

    \b
    annoris verify
    annoris verify --repair
    annoris verify --sample 5%
    """
    import secrets
    import sys

    from annoris import events, limit, verify
    from annoris.model import Audit, Deadline

    output = speak(json, quiet)
    where = archive()
    scope = verify.Scope(quick, _percent(sample), seed or secrets.randbelow(10**6) + 1)
    with limit.ends_by(deadline, "verify"), output.working("verifying") as tell:
        audit = alerting(
            output,
            where,
            lambda end: events.of_verify(end.findings if isinstance(end, Audit) else end),
            lambda: verify.verify(
                where,
                scope,
                repair=repair,
                source=source or ("person" if sys.stderr.isatty() else "cron"),
                deadline=Deadline(deadline),
                tell=tell,
            ),
        )
    output.audit(audit, repaired=repair)
    raise typer.Exit(exit_code(audit))


def exit_code(audit: Audit) -> int:
    """0 when nothing is left, 5 when nothing but a tier that did not answer, else 9."""
    kinds = {item.kind for item in audit.findings if not item.healed}
    return 0 if not kinds else 5 if kinds == {"tier-down"} else 9


def _percent(text: str) -> float:
    from annoris.errors import UsageError

    try:
        found = float(text.removesuffix("%"))
    except ValueError:
        found = 0.0
    if not 0 < found <= 100:
        raise UsageError(f"--sample {text!r} is no percentage", hint="write --sample 5%")
    return found
