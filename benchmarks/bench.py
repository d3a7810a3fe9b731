"""Whole-process times of the verbs, as ratios to a floor measured in the same run.

Each verb runs interleaved with its floor, so that a machine whose speed drifts does so for both;
medians are printed. Nothing here passes or fails: figures are for people.

    python benchmarks/bench.py [--sizes 100,1000] [--runs 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WORDS = (
    "retry", "queue", "index", "webhook", "ledger", "migration", "decision", "branch", "deploy",
    "session", "таблица", "решение", "очередь", "возврат", "📌", "refactor", "cache", "tier",
)  # fmt: skip
FLOOR = [sys.executable, "-c", "import typer, sqlite3"]


def documents(count: int, seed: int = 7) -> Iterator[str]:
    """Markdown notes of 4 KB in the median, with a long tail; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - not a secret
    for number in range(count):
        size = int(chance.lognormvariate(8.3, 0.6))
        lines = [f"# Note {number}", "", f"**Status:** {chance.choice(WORDS)}", ""]
        while sum(map(len, lines)) < size:
            lines.append(" ".join(chance.choices(WORDS, k=12)))
            if chance.random() < 0.1:
                lines += ["", f"## {chance.choice(WORDS)}", "", "```python", "x = 1", "```", ""]
        yield "\n".join(lines) + "\n"


def seconds(command: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def pairs(command: list[str], env: dict[str, str], runs: int) -> tuple[float, float]:
    """Medians of the command and of the floor, run in turn after one warm-up."""
    seconds(command, env)
    taken = [(seconds(command, env), seconds(FLOOR, env)) for _ in range(runs)]
    return statistics.median(a for a, _ in taken), statistics.median(b for _, b in taken)


def measure(size: int, runs: int, folder: Path) -> Iterator[dict[str, object]]:
    annoris = [str(Path(sys.executable).with_name("annoris"))]
    env = {**os.environ, "ANNORIS_DATA_DIR": str(folder / "data"), "HOME": str(folder)}
    notes = folder / "notes"
    notes.mkdir()
    for number, text in enumerate(documents(size)):
        (notes / f"{number:06d}.md").write_text(text, encoding="utf-8")
    batch = seconds([*annoris, "save", "--quiet", *map(str, sorted(notes.iterdir()))], env)
    yield {"verb": f"save of {size} at once", "n": size, "median": batch, "floor": 0.0}
    one = folder / "one.md"
    for verb in (["--help"], ["list"], ["load"], ["search", "webhook"], ["save", str(one)]):
        one.write_text("# One\n\nthe same text, saved again\n", encoding="utf-8")
        median, floor = pairs([*annoris, *verb], env, runs)
        yield {"verb": verb[0], "n": size, "median": median, "floor": floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="100,1000")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = []
    for size in map(int, asked.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            rows += list(measure(size, asked.runs, Path(folder)))
    if asked.json:
        print(json.dumps({"schema_version": 1, "rows": rows}))
        return
    print(f"{'verb':24} {'n':>7} {'median ms':>10} {'floor ms':>9} {'ratio':>6}")
    for row in rows:
        median, floor = float(str(row["median"])), float(str(row["floor"]))
        ratio = f"{median / floor:6.2f}" if floor else "     -"
        print(f"{row['verb']:24} {row['n']:7} {median * 1000:10.1f} {floor * 1000:9.1f} {ratio}")


if __name__ == "__main__":
    main()
