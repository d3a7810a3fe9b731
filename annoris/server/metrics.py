"""Prometheus metrics. Counters are of this process; what lies on disk is read at each scrape."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import datetime

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from annoris.archive import Archive
from annoris.model import Receipt, Tier
from annoris.server.guard import READ
from annoris.server.pool import Pool
from annoris.server.problems import documented

router = APIRouter()

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600)
_KINDS = ("sync", "verify", "dump")


class Metrics:
    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        for own in (ProcessCollector, PlatformCollector, GCCollector):
            own(registry=self.registry)
        self._requests = self._counter("http_requests", "Requests", "method", "route", "status")
        self._seconds = self._histogram(
            "http_request_seconds", "How long they took", _SLOW, "route"
        )
        self._asked = self._counter("tier_requests", "Questions to a tier", "tier", "outcome")
        self._tier_seconds = self._histogram("tier_seconds", "Length of a question", _FAST, "tier")
        self._loads = self._counter("loads", "Loads by the tier that answered", "tier")
        self._saves = self._counter("saves", "Saves and removals by what became of them", "state")
        self._deliveries = self._counter("deliveries", "Deliveries to master, one push each")
        self._runs = self._counter("runs", "Syncs and the like", "kind", "outcome")
        self._webhooks = self._counter("webhooks", "Webhooks by what was done", "outcome")
        self._last = Gauge(
            "annoris_last_success_timestamp_seconds", "When a run last ended well",
            ["kind"], registry=self.registry,
        )  # fmt: skip

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"annoris_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(
            f"annoris_{name}", text, labels, buckets=tuple(buckets), registry=self.registry
        )

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def asked(self, tier: Tier, seconds: float, answered: bool) -> None:
        self._asked.labels(tier, "ok" if answered else "error").inc()
        self._tier_seconds.labels(tier).observe(seconds)

    def loaded(self, tier: Tier) -> None:
        self._loads.labels(tier).inc()

    def delivered(self, receipts: list[Receipt], seconds: float) -> None:
        for receipt in receipts:
            self._saves.labels(receipt.state).inc()
        if receipts:
            self._deliveries.inc()
            self.asked("master", seconds, all(item.state != "queued" for item in receipts))

    def ran(self, kind: str, well: bool, seconds: float) -> None:
        self._runs.labels(kind, "ok" if well else "error").inc()
        self.asked("master", seconds, well)
        if well:
            self._last.labels(kind).set_to_current_time()

    def ran_elsewhere(self, kind: str, moment: float) -> None:
        """Another replica did it at that time, in seconds since the epoch."""
        self._last.labels(kind).set(moment)

    def hooked(self, outcome: str) -> None:
        self._webhooks.labels(outcome).inc()

    def follow(self, pool: Pool) -> None:
        """Read what lies on disk at each scrape, and what the log of runs knows from before."""
        self.registry.register(_OnDisk(pool))
        with pool.lend() as archive:
            for kind in _KINDS:
                good = [run for run in archive.runs.recent(50, kind) if run.status == "ok"]
                if good:
                    moment = good[0].finished or good[0].started
                    self._last.labels(kind).set(datetime.fromisoformat(moment).timestamp())


class _OnDisk(Collector):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._pool.lend() as archive:
            yield from _queue(archive)
            checked = archive.follower.checked()
            lag = time.time() - checked if checked else float("nan")
            yield _gauge("sync_lag_seconds", "Since master was last asked", lag)
            down = archive.breaker.state()
        states = GaugeMetricFamily(
            "annoris_breaker_open", "Whether a tier is left out for now", labels=["tier"]
        )
        for tier in ("hot", "emergency", "master"):
            states.add_metric([tier], float(tier in down))
        yield states


def _queue(archive: Archive) -> Iterator[Metric]:
    drafts, damaged = archive.outbox.read()
    oldest = datetime.fromisoformat(drafts[0].at).timestamp() if drafts else time.time()
    yield _gauge("outbox_documents", "Waiting for master", len(drafts))
    yield _gauge("outbox_oldest_seconds", "Age of the oldest of them", time.time() - oldest)
    yield _gauge(
        "outbox_aside", "Set aside because master refuses them", len(archive.outbox.aside())
    )
    yield _gauge("outbox_damaged", "Files of the outbox with damage", len(damaged))


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"annoris_{name}", text, value=value)


@router.get(
    "/metrics", tags=["operation"], summary="Metrics for Prometheus", response_class=Response,
    dependencies=[READ],
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(),
    },
)  # fmt: skip
def metrics(request: Request) -> Response:
    found: Metrics = request.app.state.metrics
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)
