"""What a server does by the clock: real servers with a short day."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from annoris.model import Run
from annoris.server.chores import due_in
from tests.support.machine import Machine
from tests.support.service import Service, wait_until
from tests.support.tiers import Tiers

NOW = 1_800_000_000.0
SHORT = {
    "ANNORIS_SERVER_SCHEDULE_SYNC_SECONDS": "4",
    "ANNORIS_SERVER_SCHEDULE_VERIFY_SECONDS": "300",
    "ANNORIS_SERVER_SCHEDULE_DUMP_SECONDS": "300",
}


def ran(ago: float, source: str = "schedule", status: str = "ok") -> Run:
    return Run("sync", status, datetime.fromtimestamp(NOW - ago, UTC).isoformat(), source=source)


@pytest.mark.parametrize(
    ("runs", "left"),
    [
        ([], 0.0),
        ([ran(10)], 90.0),
        ([ran(99), ran(150)], 1.0),
        ([ran(100)], 0.0),
        ([ran(10, status="failed")], 0.0),
        ([ran(10, source="webhook"), ran(10, source="cron"), ran(10, source="person")], 0.0),
        ([ran(10, status="partial")], 90.0),
        ([ran(-5)], 100.0),  # its clock is ahead of ours
        ([ran(-5000)], 0.0),  # or was plainly wrong
    ],
)
def test_the_log_says_when_a_chore_is_due(runs: list[Run], left: float) -> None:
    """Counted from the last run by a clock that did not fail, whoever's."""
    assert due_in(runs, 100.0, NOW) == left


def logged(url: str) -> dict[str, list[datetime]]:
    """When the clock started what, by the shared log."""
    found: dict[str, list[datetime]] = {}
    with psycopg.connect(url) as db:
        query = "SELECT kind, started_at FROM annoris.sync_log WHERE source = 'schedule' ORDER BY 2"
        for kind, started in db.execute(query):
            found.setdefault(kind, []).append(started)
    return found


def done(services: list[Service], kind: str) -> list[dict[str, Any]]:
    lines = [line for service in services for line in service.lines(f"{kind} done")]
    return [line for line in lines if line["source"] == "schedule"]


def heard(services: list[Service], kind: str) -> int:
    """How many of them did it or found that the other one had."""
    events = (f"{kind} done", f"{kind} not due")
    return sum(any(service.lines(event) for event in events) for service in services)


def test_two_servers_share_one_schedule(make: Callable[..., Machine], tiers: Tiers) -> None:
    """On one PostgreSQL each chore is done by one of them in each period, and by the other when
    that one is gone.
    """
    make("laptop").save(b"# Shared\n\ntext\n")
    with (
        Service(make("one"), "--schedule", **SHORT) as one,
        Service(make("two"), "--schedule", **SHORT) as two,
    ):
        both = [one, two]
        wait_until(lambda: all(heard(both, kind) >= 2 for kind in ("verify", "dump")))
        wait_until(lambda: len(done(both, "sync")) >= 3)
        assert one.stop() == 0
        two.wait_for("sync done", len(two.lines("sync done")) + 2)
        assert two.stop() == 0
        found = logged(tiers.direct)
        for kind in ("sync", "verify", "dump"):
            assert len(found[kind]) == len(done(both, kind)), kind
        assert (len(found["verify"]), len(found["dump"])) == (1, 1)
        pauses = [(later - earlier).seconds for earlier, later in pairwise(found["sync"])]
        assert min(pauses) >= 3  # of four: the log counts whole seconds
        assert {line["full"] for line in done(both, "sync")} == {True}
        assert not [line for service in both for line in service.lines("dump failed")]


def test_without_a_hot_cache_the_servers_own_log_says_what_is_due(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """A server that is started anew does not verify again; there is nothing to dump."""
    here = machine("server", remote)
    with Service(here, "--schedule") as service:
        service.wait_for("sync done")
        service.wait_for("verify done")
        assert service.stop() == 0
    with Service(here, "--schedule") as service:
        service.wait_for("sync not due")
        service.wait_for("verify not due")
        assert not service.lines("verify done")
        assert not service.lines("dump failed")
        shown = service.client.get("/metrics").text
        assert 'annoris_last_success_timestamp_seconds{kind="verify"}' in shown
