"""Loads within one process, from each tier: what a server or an assistant's client waits for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from annoris.archive import Archive
from annoris.bootstrap import open_archive
from annoris.model import Tier
from annoris.settings import load

LIMITS: dict[Tier, float] = {"emergency": 2.0, "hot": 10.0, "master": 100.0}  # milliseconds, p99
_LOADS = 300


def loads(
    env: Mapping[str, str], hot_url: str, emergency_url: str, size: int
) -> Iterator[dict[str, object]]:
    """A row for each tier; master is asked at every load."""
    urls = {"ANNORIS_HOT_URL": hot_url, "ANNORIS_EMERGENCY_URL": emergency_url}
    Path(env["ANNORIS_DATA_DIR"], "breaker.json").unlink(missing_ok=True)  # hooks met a silent one
    archive = open_archive(load(environ={**env, **urls}), here=False)
    try:
        archive.look(fresh=True)
        rows = archive.sessions(limit=20, everything=True)[0]
        position = archive.follower.position()
        documents = [(row, archive.load(row.id, source="clone").data) for row in rows]
        sealed = [archive.caches.sealed(row, data, position) for row, data in documents]
        archive.caches.store(documents, position)
        archive.caches.emergency(lambda cache: [cache.put(row) for row in sealed])
        for tier, limit in LIMITS.items():
            taken = _taken(archive, tier, [row.id for row in rows])
            percents = statistics.quantiles(taken, n=100)
            yield {
                "what": f"load in process, {tier}: p99", "n": size, "unit": "ms",
                "value": percents[98], "target": limit, "most": True,
                "note": f"median {percents[49]:.1f} ms",
            }  # fmt: skip
    finally:
        archive.close()


def _taken(archive: Archive, tier: Tier, ids: list[str]) -> list[float]:
    """Milliseconds of many loads, after a warm-up."""
    for id in ids:
        archive.load(id, source=tier)
    taken = []
    for number in range(_LOADS):
        started = time.perf_counter()
        archive.load(ids[number % len(ids)], source=tier)
        taken.append(1000 * (time.perf_counter() - started))
    return taken
