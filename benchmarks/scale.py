"""What grows with the number of sessions, and what with that of servers: curves for the manual.

An archive that ten years of saves have filled: ``corpus.keep``. Each figure is of one process
from its start to its end; slow verbs run once, the others three times. Servers have 50 clients,
which take their part of the same cores.

    python benchmarks/scale.py [--sizes 1000,10000,100000] [--servers 10000] [--seconds 10]
                               [--rows FILE] [--write docs/scaling.md]

``--rows`` keeps the figures of several runs in one file, so that a size can be measured alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import corpus, report
from benchmarks.bench import Bench, Step, Took
from benchmarks.load import pushes
from benchmarks.report import Row
from benchmarks.service import CLIENTS, answered
from tests.support.machine import Machine
from tests.support.servers import Postgres
from tests.support.service import Service

LIMIT = 900.0  # seconds of a verb; one that takes longer is said to
_MANY = 100_000  # sessions; beyond, each commit brings several, or the making would take an hour
_WORKERS = (1, 2, 4, 8)
_HEADS = (
    "| sessions | servers | threads | reads/s | p50, p99 ms | cpu ms | saves/s | p50, p99 ms"
    " | cpu ms | saves/push |"
)


def keep(repository: Path, count: int) -> None:
    corpus.keep(repository, count, each=max(1, count // _MANY))


def verbs(bench: Bench) -> Iterator[Row]:
    """A row for each verb: seconds and MiB, None for one that did not end well in time."""
    bench.env["ANNORIS_PROJECT"] = "p0"  # a tenth of all
    url = {"ANNORIS_HOT_URL": bench.hot_url}
    deadline = ["--deadline", f"{LIMIT:.0f}"]
    yield _row(bench, "first sync", [bench.joined])
    for name, words in (
        ("list", ["list"]), ("load", ["load"]),
        ("projects", ["projects"]), ("search, one text in 1,300", ["search", corpus.RARE]),
        ("search, one text in 12", ["search", corpus.FREQUENT]),
        ("sync, nothing new", ["sync"]),
    ):  # fmt: skip
        yield _row(bench, name, [bench.run([bench.annoris(*words)]) for _ in range(3)])
    yield _row(bench, "sync, one new session", [_news(bench, seed) for seed in range(3)])
    yield _row(bench, "save", [bench.run(bench.save()) for _ in range(3)])
    for name, words in (
        ("sync --full, empty PostgreSQL", ["sync", "--full", *deadline]),
        ("sync --full, nothing new", ["sync", "--full", *deadline]),
        ("verify, the first", ["verify", *deadline]), ("verify", ["verify", *deadline]),
    ):  # fmt: skip
        with contextlib.suppress(SystemExit):
            yield _row(bench, name, [bench.run([bench.annoris(*words)], url)])
            continue
        yield _row(bench, name, [])
    yield _row(bench, "save, hot", [bench.run(bench.save(), url) for _ in range(3)])
    hot = bench.annoris("load", bench.newest["id"])
    yield _row(bench, "load, hot", [bench.run([hot], url) for _ in range(3)])


def _news(bench: Bench, seed: int) -> Took:
    """A sync of what another machine has just saved."""
    text = next(corpus.documents(1, seed)).encode()
    new = corpus.commit(iter([(f"sessions/p0/{seed}.md", text)]), parent=True)
    bench.run([Step(["git", "-C", str(bench.remote), "fast-import", "--quiet"], new)])
    return bench.run([bench.annoris("sync")])


def _row(bench: Bench, verb: str, took: Sequence[Took]) -> Row:
    """The least of each, which a busy machine disturbs least, but of memory the most."""
    return {
        "verb": verb, "n": bench.size,
        "seconds": min((one.seconds for one in took), default=None),
        "cpu": min((one.cpu for one in took), default=None),
        "memory": max((one.kilobytes // 1024 for one in took), default=None),
    }  # fmt: skip


def sizes(bench: Bench) -> Iterator[Row]:
    """What lies on disk, in MB."""
    import psycopg  # noqa: PLC0415

    data = bench.folder / "data"
    for what, place in (
        ("master", bench.remote), ("its clone", data / "clone.git"),
        ("the catalog", data / "catalog.sqlite"),
    ):  # fmt: skip
        said = subprocess.run(["du", "-sk", place], check=True, capture_output=True, text=True)
        yield {"size": what, "n": bench.size, "mb": int(said.stdout.split()[0]) / 1024}
    with psycopg.connect(bench.hot_url) as db:
        found = db.execute("SELECT pg_database_size(current_database())").fetchone()
        yield {"size": "PostgreSQL", "n": bench.size, "mb": found[0] / 2**20 if found else 0}


def served(bench: Bench, servers: int, threads: int, seconds: float) -> Row:
    """Servers on copies of the machine, of which clients first read one session, then save."""
    with ExitStack() as stack:
        running = []
        for number in range(servers):
            folder = bench.folder / f"server-{number}"
            settings = {"hot_url": bench.hot_url, "server_threads": str(threads)}
            machine = Machine(folder, str(bench.remote), settings)
            shutil.copytree(bench.folder / "data", machine.data)
            stack.callback(shutil.rmtree, folder)
            running.append(stack.enter_context(Service(machine)))
        urls = [f"{service.url}/api/v1/sessions" for service in running]
        reads = [f"{url}/{bench.newest['id']}" for url in urls]
        answered(reads, 1.0)  # as the first question to each costs more
        before = _processor(running)
        read = answered(reads, seconds)
        between, pushed = _processor(running), sum(map(pushes, running))
        saved = answered(urls, seconds, saves=True)
        return {
            "servers": servers, "threads": threads, "n": bench.size,
            "reads": _rate(read, between - before, seconds),
            "saves": _rate(saved, _processor(running) - between, seconds)
            | {"each": len(saved) / (sum(map(pushes, running)) - pushed)},
        }  # fmt: skip


def _rate(taken: Sequence[float], processor: float, seconds: float) -> dict[str, float]:
    percent = statistics.quantiles(taken, n=100)
    return {
        "second": len(taken) / seconds, "p50": percent[49], "p99": percent[98],
        "processor": 1000 * processor / len(taken),
    }  # fmt: skip


def _processor(running: Sequence[Service]) -> float:
    """Seconds of processor time that servers and what they started have used."""
    ticks = 0
    for service in running:
        stat = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, stat[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def rows(asked: Sequence[int], many: int, seconds: float) -> Iterator[Row]:
    """Everything for each number of sessions; at ``many``, several servers too."""
    for size in asked:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),  # in no repository: that one would name the project
            Postgres(Path(folder) / "postgres") as postgres,
        ):
            bench = Bench(Path(folder) / "bench", size, postgres.create_database("scale"), keep)
            yield from verbs(bench)
            yield from sizes(bench)
            yield served(bench, 1, 16, seconds)
            for workers in _WORKERS if size == many else ():
                yield served(bench, 1, workers, seconds)
                yield served(bench, workers, 16, seconds)


# --- the page ------------------------------------------------------------------------------------


def told(found: Sequence[Row]) -> Iterator[str]:
    """Tables of what was found."""
    verbs, sizes = ([row for row in found if key in row] for key in ("verb", "size"))
    counts = sorted({row["n"] for row in verbs})
    for what, cell, some in (
        ("seconds · of a processor · MiB", _cost, verbs),
        ("MB on disk", _megabytes, sizes),
    ):
        by = {(row.get("verb") or row["size"], row["n"]): cell(row) for row in some}
        yield "\n".join(
            [
                f"| {what} | {' | '.join(f'{count:,}' for count in counts)} |",
                f"|---{'|--:' * len(counts)}|",
                *(
                    f"| {name} | {' | '.join(by.get((name, count), '–') for count in counts)} |"
                    for name in dict.fromkeys(name for name, _ in by)
                ),
            ]
        )
        if some is verbs:
            yield "![Processor time of each verb over the number of sessions](scaling.svg)"
    yield "\n".join(
        [
            _HEADS,
            f"|{'--:|' * 10}",
            *(_service(row) for row in found if "servers" in row),
        ]
    )
    yield "![Processor time of a read and of a save over servers and threads](servers.svg)"


def _cost(row: Row) -> str:
    if row["seconds"] is None:
        return f"over {LIMIT / 60:.0f} min"
    times = " · ".join(f"{row[key]:.{2 if row[key] < 10 else 0}f}" for key in ("seconds", "cpu"))
    return f"{times} · {row['memory']:,}"


def _megabytes(row: Row) -> str:
    return f"{row['mb']:,.0f}"


def _service(row: Row) -> str:
    cells = [f"{row['n']:,}", row["servers"], row["threads"]]
    for kind in ("reads", "saves"):
        one = row[kind]
        cells += [
            f"{one['second']:,.0f}", f"{one['p50']:.0f}, {one['p99']:.0f}",
            f"{one['processor']:.1f}",
        ]  # fmt: skip
    cells.append(f"{row['saves']['each']:.1f}")
    return f"| {' | '.join(map(str, cells))} |"


def pictures(found: Sequence[Row]) -> dict[str, str]:
    """Curves as SVG, by the name of their file."""
    verbs = [(row["verb"], row["n"], row["cpu"]) for row in found if row.get("cpu")]
    several = [row for row in found if "servers" in row]
    several = [row for row in several if sum(row["n"] == one["n"] for one in several) > 1]
    costs = [
        (f"{kind}, {many}", row[many], row[kind]["processor"])
        for many, other, fixed in (("servers", "threads", 16), ("threads", "servers", 1))
        for kind in ("reads", "saves")
        for row in several
        if row[other] == fixed and row[many] in _WORKERS
    ]
    made = {
        "scaling.svg": report.curves(verbs, "Seconds of a processor over the number of sessions"),
    }
    if costs:
        made["servers.svg"] = report.curves(
            costs, "Milliseconds of a processor for each, over servers or threads of one"
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1000,10000,100000", help="none: only write")
    parser.add_argument("--servers", type=int, default=10_000, help="the size for several servers")
    parser.add_argument("--seconds", type=float, default=10.0, help="of reads and of saves")
    parser.add_argument("--rows", default="", metavar="FILE", help="figures to add to")
    parser.add_argument("--write", default="", metavar="FILE", help="put the tables in this page")
    given = parser.parse_args()
    kept = Path(given.rows).resolve() if given.rows else None
    page = Path(given.write).resolve() if given.write else None
    found: list[Row] = json.loads(kept.read_text()) if kept and kept.exists() else []
    wanted = [int(size) for size in given.sizes.split(",") if size != "none"]
    for row in rows(wanted, given.servers, given.seconds):
        found.append(row)
        print(json.dumps(row), flush=True)
        if kept:
            kept.write_text(json.dumps(found, indent=1))
    if page:
        found.sort(key=lambda row: (row["n"], row.get("servers", 0), row.get("threads", 0)))
        report.put(page, [f"Measured on {report.machine()}, {CLIENTS} clients.", *told(found)])
        for name, picture in pictures(found).items():
            page.with_name(name).write_text(picture)


if __name__ == "__main__":
    main()
