"""A server and 50 clients: how many saves one push carries, and reads beside a bare route."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from annoris.envelope import new_key
from benchmarks.floors import ROUTE
from benchmarks.load import pushes, tiers
from tests.support.machine import Machine
from tests.support.service import Service

CLIENTS, _SECONDS = 50, 10.0


def measured(folder: Path) -> Iterator[dict[str, object]]:
    """Creates answered for each push, and the p99 of reads as a ratio to a bare FastAPI route."""
    folder.mkdir()
    with tiers(folder) as parts:
        settings = {
            "hot_url": parts.hot_url, "emergency_url": parts.emergency_url,
            "key": new_key().text(),
        }  # fmt: skip
        machine = Machine(folder / "machine", str(parts.remote), settings)
        with Service(machine) as service:
            made = answered([f"{service.url}/api/v1/sessions"], _SECONDS, saves=True)
            yield {
                "what": f"creates answered for each push, {CLIENTS} clients", "n": len(made),
                "unit": "", "value": len(made) / pushes(service), "target": 20.0, "most": False,
                "note": f"{len(made) / _SECONDS:.0f} a second",
            }  # fmt: skip
            known = service.client.get("/api/v1/sessions").json()["sessions"][0]["id"]
            ours = _p99(f"{service.url}/api/v1/sessions/{known}")
            with _bare(parts.hot_url) as bare:
                least = _p99(f"{bare}/{known}")
            yield {
                "what": f"reads, {CLIENTS} clients: p99 over that of a bare route", "n": 1,
                "unit": "×", "value": ours / least, "target": 3.0, "most": True,
                "note": f"{ours:.0f} ms over {least:.0f} ms",
            }  # fmt: skip


def _p99(url: str) -> float:
    return statistics.quantiles(answered([url], _SECONDS), n=100)[98]


def answered(urls: Sequence[str], seconds: float, *, saves: bool = False) -> list[float]:
    """Milliseconds of each answer, while all clients read, or save, without pause.

    They share the addresses.
    """
    taken: list[float] = []

    async def client(url: str, until: float) -> None:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            while (started := time.monotonic()) < until:
                text = {"text": f"# Load\n\n{os.urandom(8).hex()} {'words of a note ' * 200}\n"}
                answer = await (http.post(url, json=text) if saves else http.get(url))
                answer.raise_for_status()
                taken.append(1000 * (time.monotonic() - started))

    async def run() -> None:
        until = time.monotonic() + seconds
        shared = itertools.islice(itertools.cycle(urls), CLIENTS)
        await asyncio.gather(*(client(url, until) for url in shared))

    asyncio.run(run())
    return taken


@contextmanager
def _bare(hot_url: str) -> Iterator[str]:
    """The address of a FastAPI route that does one SELECT and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", ROUTE, hot_url, str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ)) as process:
        try:
            end = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < end:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
