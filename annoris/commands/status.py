"""annoris status, and what annoris alone answers"""

from __future__ import annotations

import os
from dataclasses import asdict

from annoris.commands import Json, Quiet, archive, settings, speak


def status(json: Json = False, quiet: Quiet = False) -> None:
    """Show where one stands. Project, master, newest session, what waits, each tier.

    \b
    annoris status
    annoris status --json
    """
    from annoris import upkeep
    from annoris.console import ago
    from annoris.model import counted

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
            ("sessions", f"{found.sessions} in {counted(found.projects, 'project')}"),
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


def glance() -> None:
    """Where one stands by what this machine knows; on a new one, how to begin."""
    output, known = speak(json=False, quiet=False), settings()
    if not os.path.isdir(known.data_dir) and not known.master.remote:
        output.beginning()
        return
    from annoris import upkeep

    output.glance(upkeep.glance(archive()))
