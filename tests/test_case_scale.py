"""Case 26: with many sessions a verb costs about what it costs with few.

Counted, because counts are the same on every machine: git processes, the bytes that they answer,
steps of SQLite's machine. ANNORIS_FULL=1 compares 1,000 sessions with 100,000.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from annoris.intake import SaveOptions, Source
from annoris.sync import sync
from tests.support import githttp
from tests.support.machine import Machine

FEW, MANY = (1_000, 100_000) if os.environ.get("ANNORIS_FULL") else (40, 1_200)
_STEP = 100  # of SQLite's machine, between two counts


class Cost(NamedTuple):
    """What one verb cost."""

    processes: int
    answered: int
    steps: int


def _sessions(count: int) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for number in range(count):
        id = uuid.UUID(int=(0x0190 << 112) | (7 << 76) | (2 << 62) | number)
        saved = f"2026-{1 + number % 12:02}-{1 + number % 28:02}T10:{number % 60:02}:00Z"
        name = f"sessions/p{number % 7}/2026/{1 + number % 12:02}/n-{number:06}.md"
        words = f"# Note {number}\n\nThe quay and the crane, number {number}.\n"
        head = f"id: {id}\nproject: p{number % 7}\ncreated: {saved}\nsaved: {saved}\n"
        found[name] = f"---\n{head}---\n{words}".encode()
    return found


def _costs(here: Machine, log: Path) -> dict[str, Cost]:
    """Each verb once, on a machine that is in step with master."""
    with contextlib.closing(here.archive()) as archive:
        sync(archive)
        archive.save([Source("first.md", b"# First\n\nzebra\n")], SaveOptions(project="p1"))
        steps = [0]

        def step() -> int:
            steps[0] += 1
            return 0

        archive.catalog._db.set_progress_handler(step, _STEP)
        verbs: dict[str, Callable[[], object]] = {
            "load": lambda: archive.load("sessions/p0/2026/08/n-000007.md"),
            "load the newest": lambda: archive.load("", "p1"),
            "list": archive.sessions,
            "search": lambda: archive.search("zebra"),
            "sync": lambda: sync(archive),
            "save": lambda: archive.save(
                [Source("second.md", b"# Second\n\ntext\n")], SaveOptions(project="p1")
            ),
        }
        costs = {}
        for verb, work in verbs.items():
            log.write_text("")
            steps[0] = 0
            work()
            lines = log.read_text().split()
            costs[verb] = Cost(
                lines.count("git"), sum(map(int, filter(str.isdigit, lines))), steps[0]
            )
    return costs


def test_case_26_with_thirty_times_the_sessions_a_verb_costs_about_the_same(
    machine: Callable[..., Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git, log, programs = shutil.which("git"), tmp_path / "log", tmp_path / "programs"
    programs.mkdir()
    (programs / "git").write_text(
        "#!/bin/bash\n"
        f"echo git >> '{log}'\n"
        f"'{git}' \"$@\" > >(tee >(wc -c >> '{log}'))\n"
        "code=$?\nwait\nexit $code\n"
    )
    (programs / "git").chmod(0o755)
    found = {}
    for count in (FEW, MANY):
        remote = githttp.bare(tmp_path / f"{count}.git")
        githttp.commit(remote, _sessions(count))
        here = machine(f"with {count}", remote, master_fresh_seconds="0.000001")
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
            found[count] = _costs(here, log)
    for verb, few in found[FEW].items():
        many = found[MANY][verb]
        assert many.processes == few.processes, verb
        assert many.answered <= 1.5 * few.answered + 1000, verb
        assert many.steps <= 1.5 * few.steps + 50, verb
