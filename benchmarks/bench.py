"""Times of the verbs, as ratios to floors measured in the same run.

A floor is the least that the work needs: Python with typer, plus git's own commands, plus one
query. Each verb runs in turn with its floor, so that a machine whose speed drifts does so for both.
Nothing here passes or fails: figures are for people.

    python benchmarks/bench.py [--sizes 100,1000] [--verbs list,load] [--runs 9] [--json]
                               [--write docs/performance.md] [--peers pass,nb]

Loads within one process, a server under load and, with ``--peers``, other tools on the same texts
have tables of their own. On a busy machine trust the ratio of processor time (of the processes, not
of servers), on a quiet one that of the medians.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import fcntl
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import corpus, inside, others, report, service
from benchmarks.floors import BULK, CHECK, HOT, SEARCH, UPSERT
from tests.support.servers import Postgres, Valkey

# A process of its own, small: what it starts has the memory of who starts it to begin with.
LAUNCH = """
import os, sys, time
started = time.perf_counter()
_, status, used = os.wait4(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
taken = time.perf_counter() - started
with open(sys.argv[1], "w") as told:
    print(status, taken, used.ru_utime + used.ru_stime, used.ru_maxrss, file=told)
"""
PYTHON = sys.executable
ANNORIS = str(Path(PYTHON).with_name("annoris"))


class Step(NamedTuple):
    """A process to run to its end, and what it reads."""

    command: list[str]
    stdin: bytes = b""


class Took(NamedTuple):
    seconds: float
    cpu: float
    kilobytes: int


class Verb(NamedTuple):
    """A verb and its floor. ``before`` puts everything where both start from."""

    name: str
    target: float
    steps: Callable[[], list[Step]]
    floor: Callable[[], list[Step]]
    tiers: str = "clone"
    before: Callable[[], object] = lambda: None
    slow: bool = False  # proportional to N, or followed by a long wait: fewer runs
    env: Mapping[str, str] = {}


class Bench:
    """One machine of so many sessions, its remote, and bare git beside it for the floors."""

    def __init__(
        self,
        folder: Path,
        size: int,
        hot_url: str,
        fill: Callable[[Path, int], None] = corpus.fill,
    ) -> None:
        """``fill`` puts so many sessions into a bare repository."""
        self.folder, self.size, self.hot_url, self.count = folder, size, hot_url, 0
        self.filled = -1
        self.deaf = socket.create_server(("127.0.0.1", 0))  # takes connections, never answers
        folder.mkdir()
        self.remote = folder / "remote.git"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANNORIS_", "PYTHON"))}
        self.env = {
            **kept, "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1",
            "ANNORIS_DATA_DIR": str(folder / "data"), "ANNORIS_MASTER_REMOTE": str(self.remote),
        }  # fmt: skip
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.remote))
        self.run([Step([ANNORIS, "save", "--quiet", "-"], b"# First\n\ntext\n")])
        fill(self.remote, size)
        shutil.rmtree(folder / "data")
        self.joined = self.run([Step([ANNORIS, "sync", "--quiet", "--deadline", "3600"])])
        self.newest = json.loads(self.output(ANNORIS, "list", "--json", "-n", "1"))["sessions"][0]

    @cached_property
    def clone(self) -> Path:
        """A clone of a copy of the remote, for the floors."""
        plain, clone = self.folder / "plain.git", self.folder / "floor.git"
        shutil.copytree(self.remote, plain)
        self.git("clone", "--quiet", "--bare", str(plain), str(clone))
        return clone

    def git(self, *arguments: str) -> None:
        self.run([Step(["git", *arguments])])

    def output(self, *command: str) -> str:
        out = self.folder / "out"
        with out.open("wb") as file:
            self.run([Step(list(command))], out=file.fileno())
        return out.read_text()

    def run(
        self, steps: list[Step], more: Mapping[str, str] | None = None, out: int | None = None
    ) -> Took:
        """Run steps one after the other; their time, and the most memory that one took."""
        env = {**self.env, **(more or {})}
        took = [self._step(step, env, out) for step in steps]
        seconds, cpu, kilobytes = zip(*took, strict=True)
        return Took(sum(seconds), sum(cpu), max(kilobytes))

    def _step(self, step: Step, env: Mapping[str, str], out: int | None) -> Took:
        told, said = self.folder / "told", self.folder / "stderr"
        program = shutil.which(step.command[0]) or step.command[0]
        command = [PYTHON, "-I", "-S", "-c", LAUNCH, str(told), program, *step.command[1:]]
        with tempfile.TemporaryFile() as stdin, said.open("wb") as errors:
            stdin.write(step.stdin)
            stdin.seek(0)
            subprocess.run(
                command, env=env, check=True, stdin=stdin, stderr=errors,
                stdout=subprocess.DEVNULL if out is None else out,
            )  # fmt: skip
        status, seconds, cpu, kilobytes = told.read_text().split()
        if status != "0":
            raise SystemExit(f"{step.command[:3]} ended with {status}: {said.read_text()}")
        return Took(float(seconds), float(cpu), int(kilobytes))

    # --- verbs -------------------------------------------------------------------------------

    def verbs(self) -> list[Verb]:
        typer = Step([PYTHON, "-c", "import typer"])
        typer_sqlite = Step([PYTHON, "-c", "import typer, sqlite3"])
        fetch = Step(["git", "-C", str(self.clone), "fetch", "--quiet", "origin"])
        fsck = Step(["git", "-C", str(self.clone), "fsck", "--no-dangling", "--no-progress"])
        catalog = str(self.folder / "data" / "catalog.sqlite")
        newest = self.newest["id"]
        hot = {"ANNORIS_HOT_URL": self.hot_url}
        deaf = {"ANNORIS_HOT_URL": f"postgresql://a@127.0.0.1:{self.deaf.getsockname()[1]}/a"}
        return [
            Verb("help", 1.3, lambda: [self.annoris("--help")], lambda: [typer]),
            Verb("list", 1.3, lambda: [self.annoris("list")], lambda: [typer_sqlite]),
            Verb("load", 1.3, lambda: [self.annoris("load")], lambda: [typer_sqlite]),
            Verb(
                "search", 1.4, lambda: [self.annoris("search", "webhook")],
                lambda: [Step([PYTHON, "-c", SEARCH, catalog])],
            ),
            Verb("save", 1.5, self.save, lambda: [typer, *self.plumbing(1)]),
            Verb("sync, nothing new", 1.5, lambda: [self.annoris("sync")], lambda: [typer, fetch]),
            Verb(
                "sync --full into an empty hot cache", 1.5,
                lambda: [self.annoris("sync", "--full")],
                lambda: [fetch, Step([PYTHON, "-c", BULK, str(self.clone), self.hot_url])],
                "hot, clone", self.empty, slow=True, env=hot,
            ),
            Verb(
                "load from the hot cache", 1.25, lambda: [self.annoris("load", newest)],
                lambda: [Step([PYTHON, "-c", HOT, self.hot_url, newest])],
                "hot", self.full, env=hot,
            ),
            Verb(
                "verify", 1.5, lambda: [self.annoris("verify")],
                lambda: [fetch, fsck, Step([PYTHON, "-c", CHECK, str(self.clone), self.hot_url])],
                "hot, clone", self.full, slow=True, env=hot,
            ),
            *(
                Verb(
                    f"hook {event}", 1.5, lambda event=event: [self.hook(event)],  # type: ignore[misc]
                    lambda: [typer], "hot silent", self.calm, slow=True, env=deaf,
                )
                for event in ("stop", "session-end")
            ),
            Verb(  # the last, so that the others see N sessions
                "save of 1,000", 1.6, self.save_many, self.bulk, before=self.calm, slow=True,
            ),
        ]  # fmt: skip

    def annoris(self, *arguments: str) -> Step:
        return Step([ANNORIS, *arguments])

    def save(self) -> list[Step]:
        self.count += 1
        (self.folder / "one.md").write_text(f"# One\n\nversion {self.count}\n")
        return [self.annoris("save", "--name", "one", str(self.folder / "one.md"))]

    def hook(self, event: str) -> Step:
        self.count += 1
        said = {"session_id": f"bench-{self.count}", "cwd": str(self.folder)}
        said["last_assistant_message"] = next(corpus.documents(1, seed=self.count))
        command = [ANNORIS, "hook", event, "--client", "claude-code"]
        return Step(command, json.dumps(said).encode())

    def calm(self) -> None:
        """Wait until nobody delivers any more what hooks have captured."""
        time.sleep(0.5)  # a process that was just sent off has not begun
        spool = self.folder / "data" / "hooks"
        if spool.exists():
            with (spool / "lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)

    def save_many(self) -> list[Step]:
        self.count += 1
        notes = self.folder / f"notes-{self.count}"
        notes.mkdir()
        for number, text in enumerate(corpus.documents(1000, seed=self.count)):
            (notes / f"{number:04}.md").write_text(text)
        return [self.annoris("save", "--quiet", *map(str, sorted(notes.iterdir())))]

    def plumbing(self, count: int) -> list[Step]:
        """What git needs to bring so many new files to a remote, and to the disk there."""
        self.count += 1
        texts = enumerate(corpus.documents(count, seed=self.count))
        named = ((f"sessions/bench/{self.count}-{n}.md", text.encode()) for n, text in texts)
        git = ["git", "-c", "core.fsync=all", "-C", str(self.clone)]
        there = "--receive-pack=git -c core.fsync=all receive-pack"
        return [
            Step([*git, "fast-import", "--quiet", "--force"], corpus.commit(named, parent=True)),
            Step([*git, "push", "--quiet", there, "origin", "main:main"]),
        ]

    def bulk(self) -> list[Step]:
        """The same for 1,000 files, read and put into a full-text index."""
        notes = sorted(str(note) for note in (self.folder / f"notes-{self.count}").iterdir())
        index = str(self.folder / "floor.sqlite")
        return [Step([PYTHON, "-c", UPSERT, index, *notes]), *self.plumbing(1000)]

    def empty(self) -> None:
        """An empty database, for Annoris and for the floor."""
        import psycopg  # noqa: PLC0415

        with psycopg.connect(self.hot_url, autocommit=True) as db:
            db.execute("DROP SCHEMA IF EXISTS annoris CASCADE; DROP TABLE IF EXISTS floor")

    def full(self) -> None:
        """All of master in the hot cache and in the floor's table, once."""
        if self.filled != self.count:
            self.run([self.annoris("sync", "--full")], {"ANNORIS_HOT_URL": self.hot_url})
            self.run([Step([PYTHON, "-c", BULK, str(self.clone), self.hot_url])])
            self.filled = self.count

    def measured(self, verb: Verb, runs: int) -> dict[str, object]:
        """One row: medians and minima of both, run in turn after a warm-up."""
        pairs = []
        for number in range((min(runs, 3) if verb.slow else runs) + 1):
            verb.before()
            verb_took = self.run(verb.steps(), verb.env)
            pair = verb_took, self.run(verb.floor())
            pairs += [pair] if number else []
        ours, floors = ([took.seconds for took in side] for side in zip(*pairs, strict=True))
        cpu, least = (min(took.cpu for took in side) for side in zip(*pairs, strict=True))
        return {
            "verb": verb.name, "n": self.size, "tiers": verb.tiers, "target": verb.target,
            "median": statistics.median(ours), "floor": statistics.median(floors),
            "ratio": statistics.median(ours) / statistics.median(floors),
            "cpu": cpu / least,
            "memory": max(took.kilobytes for took, _ in pairs) // 1024,
        }  # fmt: skip


def rows(
    sizes: list[int], names: list[str], runs: int, peers: list[str]
) -> Iterator[dict[str, object]]:
    compileall.compile_dir(Path(__file__).resolve().parent.parent / "annoris", quiet=1)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),  # in no repository: that one would name the project
        Postgres(Path(folder) / "postgres") as server,
        Valkey(Path(folder) / "valkey") as valkey,
    ):
        for size in sizes:
            bench = Bench(Path(folder) / str(size), size, server.create_database(f"n{size}"))
            for verb in bench.verbs():
                if not names or verb.name.replace(",", "") in names:
                    yield bench.measured(verb, runs)
            if not names or "in process" in names:
                yield from inside.loads(bench.env, bench.hot_url, valkey.url, size)
            for peer in peers:
                yield from others.measured(peer, Path(folder) / f"{peer}-{size}", size, runs)
            bench.calm()
        if not names or "server" in names:
            yield from service.measured(Path(folder) / "server")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="100,1000,10000")
    parser.add_argument(
        "--verbs", default="", help="some of them by name without commas; in process; server"
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", default="", metavar="FILE", help="put the table in this page")
    parser.add_argument("--peers", default="", help=f"of {', '.join(others.PEERS)}")
    asked = parser.parse_args()
    found = []
    page = Path(asked.write).resolve() if asked.write else None
    names = [name.strip() for name in asked.verbs.split(",") if name.strip()]
    peers = [name.strip() for name in asked.peers.split(",") if name.strip()]
    if unknown := set(peers) - others.PEERS.keys():
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    for row in rows([int(size) for size in asked.sizes.split(",")], names, asked.runs, peers):
        found.append(row)
        print(report.line(row), file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"schema_version": 1, "rows": found}))
    if page:
        report.write(page, found)


if __name__ == "__main__":
    main()
