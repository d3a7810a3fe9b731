"""annoris status"""

from __future__ import annotations

from dataclasses import asdict

from annoris.commands import Json, Quiet, archive, speak


def status(json: Json = False, quiet: Quiet = False) -> None:
    """Show where one stands. Project, master, newest session, what waits, each tier.

    \b
    annoris status
    annoris status --json
    """
    from annoris import upkeep
    from annoris.console import ago

    where = archive()
    found = upkeep.status(where)
    waiting = f"{found.waiting} waiting" + (f", {found.aside} set aside" if found.aside else "")
    newest = f"{found.newest.title} ({ago(found.newest.saved)})" if found.newest else "none yet"
    alerts = []
    if where.settings.alerts.urls:
        from annoris.alerts import Alerts

        alerts = [("alerts", Alerts(where.settings).condition())]
    output = speak(json, quiet)
    output.facts(
        [
            ("project", found.project),
            ("newest", newest),
            ("sessions", f"{found.sessions} in {found.projects} projects"),
            ("master", f"{found.master} ({found.branch})"),
            ("state", found.stale or f"in step, checked {ago(found.checked)}"),
            ("last sync", ago(found.last_sync) + (f"; {found.trouble}" if found.trouble else "")),
            ("outbox", waiting if found.waiting or found.aside else "empty"),
            *alerts,
            ("key", found.key or "none"),
            ("data", found.data),
            ("config", found.config or "none: defaults"),
        ],
        status=asdict(found) | dict(alerts),
    )
    if not json:
        output.tiers(found.tiers)
