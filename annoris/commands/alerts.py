"""annoris alerts"""

from __future__ import annotations

import typer

from annoris.commands import Json, Quiet, settings, speak

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def alerts(context: typer.Context, json: Json = False, quiet: Quiet = False) -> None:
    """Show where alerts go, what waits, and what was told.

    \b
    annoris alerts
    annoris alerts test
    """
    if context.invoked_subcommand is not None:
        return
    from annoris.alerts import Alerts

    known = settings()
    here = Alerts(known)
    speak(json, quiet).alerts(here.targets, known.alerts, list(here.memory().values()))


@app.command("test")
def send(json: Json = False, quiet: Quiet = False) -> None:
    """Send one alert to each target now. Exit 5 when none arrived.

    \b
    annoris alerts test
    """
    from annoris.alerts import Alerts
    from annoris.errors import ConfigError

    here = Alerts(settings())
    if not here.targets:
        raise ConfigError(
            "alerts.urls names no target",
            hint="set ANNORIS_ALERTS_URLS=tgram://TOKEN/CHAT; see docs/alerts.md",
        )
    output = speak(json, quiet)
    with output.working("sending"):
        sent = here.test()
    output.sent(sent)
    raise typer.Exit(5 if all(reason for _, reason in sent) else 0)
