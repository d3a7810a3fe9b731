"""Other tools that keep notes, on the same texts, where they are installed. None is required."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import corpus


class Peer(NamedTuple):
    """How a tool shows one note and lists all. ``fill`` puts texts where it looks for them."""

    programs: tuple[str, ...]
    fill: Callable[[Path, int, dict[str, str]], None]
    verbs: dict[str, list[str]]


def measured(name: str, folder: Path, size: int, runs: int) -> Iterator[dict[str, object]]:
    """Milliseconds of each verb of a tool, the median of whole processes."""
    peer = PEERS[name]
    if missing := [program for program in peer.programs if not shutil.which(program)]:
        print(f"{name} is left out: {', '.join(missing)} is not on PATH", file=sys.stderr)
        return
    folder.mkdir(mode=0o700)
    env = {**os.environ, "HOME": str(folder), "GNUPGHOME": str(folder / "gpg")}
    peer.fill(folder, size, env)
    for verb, command in peer.verbs.items():
        taken = []
        for _ in range(runs):
            started = time.perf_counter()
            subprocess.run(
                command, env=env, check=True, stdin=subprocess.DEVNULL, capture_output=True
            )
            taken.append(1000 * (time.perf_counter() - started))
        yield {
            "what": f"{name}: {verb}", "n": size, "unit": "ms", "value": statistics.median(taken),
            "target": None, "most": True, "note": "",
        }  # fmt: skip


def _pass(folder: Path, size: int, env: dict[str, str]) -> None:
    """A password store. Sealing each text would take hours: one is, and stands for all."""
    (folder / "gpg").mkdir(mode=0o700)
    key = ["gpg", "--batch", "--passphrase", "", "--quick-gen-key", "bench@example.org"]
    subprocess.run(key, env=env, check=True, capture_output=True)
    subprocess.run(["pass", "init", "bench@example.org"], env=env, check=True, capture_output=True)
    insert = ["pass", "insert", "--multiline", "note-0"]
    text = next(corpus.documents(1)).encode()
    subprocess.run(insert, env=env, input=text, check=True, capture_output=True)
    store = folder / ".password-store"
    sealed = (store / "note-0.gpg").read_bytes()
    for number in range(1, size):
        (store / f"note-{number}.gpg").write_bytes(sealed)


def _nb(folder: Path, size: int, env: dict[str, str]) -> None:
    """A notebook; ``nb`` indexes what it finds in one."""
    subprocess.run(["nb", "notebooks"], env=env, check=True, capture_output=True)
    home = folder / ".nb" / "home"
    for number, text in enumerate(corpus.documents(size)):
        (home / f"note-{number}.md").write_text(text)
    subprocess.run(["nb", "index", "reconcile"], env=env, check=True, capture_output=True)


PEERS = {
    "pass": Peer(
        ("pass", "gpg"), _pass, {"show": ["pass", "show", "note-0"], "list": ["pass", "ls"]}
    ),
    "nb": Peer(
        ("nb",), _nb,
        {
            "show": ["nb", "show", "note-0.md", "--print"], "list": ["nb", "list", "--limit", "20"],
            "search": ["nb", "search", "webhook", "--list"],
        },
    ),
}  # fmt: skip
