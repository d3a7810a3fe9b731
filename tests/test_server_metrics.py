"""Metrics and what is built on them: the dashboard, the alerts; health."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from annoris.model import Run
from tests.support.machine import Machine
from tests.support.service import Service, save
from tests.support.tiers import Tiers

DEPLOY = Path(__file__).parent.parent / "deploy"
Samples = dict[tuple[str, ...], float]


def _samples(service: Service) -> Samples:
    text = service.client.get("/metrics").text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_tell_what_happened(make: Callable[..., Machine], tiers: Tiers) -> None:
    """A save, a load, a sync, a dead tier and a document that waits each move what they should."""
    here = make("server", master_push_seconds="3")
    archive = here.archive()
    for kind in ("verify", "dump"):  # so that neither is due
        archive.record(Run(kind, "ok", "2026-11-24T10:00:00Z", source="schedule"))
    archive.close()
    ages = {f"ANNORIS_SERVER_SCHEDULE_{kind}_SECONDS": "1e10" for kind in ("VERIFY", "DUMP")}
    with Service(here, "--schedule", **ages) as service:
        service.wait_for("dump not due")
        service.wait_for("sync done")
        made = save(service.client, "# One\n\ntext\n").json()
        service.client.get(f"/api/v1/sessions/{made['id']}")
        good = _samples(service)
        assert good["annoris_loads_total", "hot"] == 1
        assert good["annoris_saves_total", "master"] == 1
        assert good["annoris_deliveries_total",] == 1
        assert good["annoris_runs_total", "ok", "sync"] == 1
        assert good["annoris_tier_requests_total", "hot", "ok"] >= 2
        assert good["annoris_tier_seconds_count", "hot"] >= 2
        assert good["annoris_breaker_open", "hot"] == 0
        assert good["annoris_outbox_documents",] == 0
        assert 0 <= good["annoris_sync_lag_seconds",] < 3600
        assert good["annoris_last_success_timestamp_seconds", "sync"] > 1.7e9
        verified = good["annoris_last_success_timestamp_seconds", "verify"]
        assert abs(verified - 1795514400) < 1
        path = ("annoris_http_requests_total", "/api/v1/sessions", "201", "POST")
        assert good[path] == 1

        tiers.set(hot=False, master=False)
        save(service.client, "# Two\n\ntext\n")
        service.client.get(f"/api/v1/sessions/{made['id']}")
        bad = _samples(service)
        assert bad["annoris_tier_requests_total", "error", "hot"] == 1
        assert bad["annoris_breaker_open", "hot"] == 1
        assert bad["annoris_outbox_documents",] == 1
        assert bad["annoris_outbox_oldest_seconds",] >= 0
        assert service.client.get("/livez").status_code == 200
        assert service.client.get("/readyz").status_code == 200


def _expressions() -> list[str]:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    rules: Any = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text())
    return [
        *(target["expr"] for panel in board["panels"] for target in panel["targets"]),
        *(rule["expr"] for group in rules["groups"] for rule in group["rules"]),
    ]


def test_dashboard_and_alerts_use_metrics_that_exist(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Every metric and label that they name is one of ours."""
    with Service(machine("server", remote)) as service:
        text = service.client.get("/metrics").text
    known = {family.name for family in text_string_to_metric_families(text)}
    found = {name for expr in _expressions() for name in re.findall(r"annoris_\w+", expr)}
    assert len(found) > 10
    assert {re.sub("_(total|bucket)$", "", name) for name in found} <= known


def test_alerts_say_what_to_do() -> None:
    rules: Any = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert rule["alert"].startswith("Annoris")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
