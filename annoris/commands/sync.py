"""annoris sync"""

from typing import Annotated

import typer

from annoris.commands import Json, Quiet, alerting, archive, exit_code, speak


def sync(
    full: Annotated[
        bool, typer.Option("--full", help="Believe nothing: compare everything, heal, tidy up.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Accept that master lost many sessions.")
    ] = False,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="End by then, whatever hangs.")
    ] = 840,
    source: Annotated[str, typer.Option(hidden=True)] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Deliver what waits and follow master. The caches follow too.

    \b
    annoris sync
    annoris sync --dry-run
    */15 * * * *  annoris sync --full --quiet      # in a crontab
    """
    import sys

    from annoris import events, limit, sync
    from annoris.model import Deadline

    output = speak(json, quiet)
    where = archive()
    until = Deadline(deadline)
    with limit.ends_by(deadline, "sync"), output.working("syncing"):
        if dry_run:
            report = sync.dry_run(where, until)
        else:
            who = source or ("person" if sys.stderr.isatty() else "cron")
            report = alerting(
                output,
                where,
                events.of_sync,
                lambda: sync.sync(where, force=force, full=full, source=who, deadline=until),
            )
    output.report(report)
    output.complain(where.caches.complaints)
    kinds = {item.kind for item in report.findings}
    refused = any(item.state == "refused" for item in report.projections)
    trouble = 10 if refused else 9 if "outbox-damaged" in kinds else 0
    raise typer.Exit(exit_code([*report.conflicts, *report.set_aside]) or trouble)
