"""A server under load on loopback: milliseconds per route, with every tier up and with each down.

Each of the clients creates, reads, lists and searches without pause. Nothing here passes or
fails: figures are for people, and those of a busy machine are worth little.

    PYTHONPATH=. python benchmarks/load.py [--clients 50] [--seconds 30]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from annoris.envelope import new_key
from tests.support.githttp import bare
from tests.support.machine import Machine
from tests.support.proxy import Proxy
from tests.support.servers import Postgres, Valkey
from tests.support.service import Service
from tests.support.tiers import Tiers, forget_failures

ROUTES = ("create", "read", "list", "search")
DOWN: dict[str, dict[str, bool]] = {
    "all up": {}, "no hot": {"hot": False}, "no emergency": {"emergency": False},
    "no master": {"master": False},
}  # fmt: skip
Taken = dict[str, list[tuple[int, float]]]  # route → (status, seconds)


@contextmanager
def tiers(folder: Path) -> Iterator[Tiers]:
    """A remote, PostgreSQL and Valkey of our own, each of which can be taken away."""
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        valkey = stack.enter_context(Valkey(folder / "valkey"))
        direct = postgres.create_database("load")
        hot = Proxy(("127.0.0.1", postgres.port))
        stack.callback(hot.close)
        emergency = Proxy(("127.0.0.1", urlsplit(valkey.url).port or 0))
        stack.callback(emergency.close)
        through = direct.replace(f":{postgres.port}/", f":{hot.port}/")
        remote = bare(folder / "remote.git")
        yield Tiers(remote, hot, emergency, through, valkey.url_at(emergency.port), direct)


async def client(url: str, name: str, until: float, taken: Taken) -> None:
    """One client: mostly reads of what it made, as people have it."""
    chance = random.Random(name)  # noqa: S311 - no secret
    made: list[str] = []
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=90, trust_env=False) as http:
        while time.monotonic() < until:
            route = chance.choices(ROUTES, (1, 4, 1, 1))[0] if made else "create"
            started = time.monotonic()
            if route == "create":
                text = f"# Load {name}\n\n{chance.random()} {'words of a note ' * 200}\n"
                answer = await http.post("/sessions", json={"text": text})
                made += [answer.json()["id"]] if answer.status_code in (201, 202) else []
            else:
                path = {
                    "read": f"/sessions/{made[-1]}",
                    "list": "/sessions",
                    "search": "/search?q=note",
                }
                answer = await http.get(path[route])
            taken[route].append((answer.status_code, time.monotonic() - started))


def load(url: str, phase: str, clients: int, seconds: float) -> Taken:
    taken: Taken = defaultdict(list)

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(url, f"{phase} {n}", until, taken) for n in range(clients)))

    asyncio.run(run())
    return taken


def pushes(service: Service) -> float:
    """How many deliveries there were, one push each."""
    text = service.client.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("annoris_deliveries_total ")]
    return float(lines[0].split()[1])


def rows(name: str, taken: Taken, delivered: float, seconds: float) -> Iterator[str]:
    for route in ROUTES:
        times = [1000 * spent for _, spent in taken[route]]
        if len(times) < 2:
            continue
        percent = statistics.quantiles(times, n=100)
        errors = sum(status >= 400 for status, _ in taken[route])
        share = f"{len(times) / delivered:.1f}" if route == "create" and delivered else ""
        numbers = " | ".join(f"{percent[at - 1]:.0f}" for at in (50, 95, 99))
        yield f"| {name} | {route} | {len(times) / seconds:.0f} | {numbers} | {errors} | {share} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, tiers(Path(scratch)) as parts:
        settings = {
            "hot_url": parts.hot_url, "emergency_url": parts.emergency_url,
            "key": new_key().text(),
        }  # fmt: skip
        machine = Machine(Path(scratch) / "server", str(parts.remote), settings)
        with Service(machine) as service:
            print(f"{given.clients} clients, {given.seconds:.0f} s each")
            print("| tiers | route | a second | p50 | p95 | p99 | errors | creates per push |")
            print("|---|---|---|---|---|---|---|---|")
            for name, down in DOWN.items():
                parts.set(**down)
                forget_failures(machine)
                before = pushes(service)
                taken = load(service.url, name, given.clients, given.seconds)
                for row in rows(name, taken, pushes(service) - before, given.seconds):
                    print(row, flush=True)
            parts.set()
            service.stop()
        count = ["git", "--git-dir", str(parts.remote), "rev-list", "--count", "main"]
        print(f"commits on master: {subprocess.check_output(count, text=True).strip()}")


if __name__ == "__main__":
    main()
