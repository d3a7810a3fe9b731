"""The log of what was run on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from annoris.model import Run
from annoris.runs import Runs


def _run(number: int, kind: str = "sync") -> Run:
    return Run(kind, "ok", started=f"2026-01-01T00:00:{number % 60:02}Z", details={"n": number})


def test_the_newest_run_comes_first_and_kinds_can_be_told_apart(tmp_path: Path) -> None:
    runs = Runs(str(tmp_path / "data" / "runs.jsonl"))
    assert runs.recent() == []
    for number in range(4):
        runs.add(_run(number, "sync" if number % 2 else "verify"))
    assert [run.details["n"] for run in runs.recent(3)] == [3, 2, 1]
    assert [run.details["n"] for run in runs.recent(kind="verify")] == [2, 0]


def test_pages_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    """In the order of the file: a long run ends after shorter ones that began later."""
    runs = Runs(str(tmp_path / "runs.jsonl"))
    for number in (1, 3, 2):
        runs.add(replace(_run(number), key=str(number)))
    assert [run.key for run in runs.recent(before=_run(2))] == ["1"]  # another machine's
    known = runs.recent(1)[0]
    assert known.key == "2"
    assert [run.key for run in runs.recent(before=known)] == ["3", "1"]


def test_a_line_that_a_crash_cut_hides_no_other(tmp_path: Path) -> None:
    runs = Runs(str(tmp_path / "runs.jsonl"))
    runs.add(_run(1))
    with open(tmp_path / "runs.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "sy\n')
    runs.add(_run(2))
    assert [run.details["n"] for run in runs.recent()] == [2, 1]


def test_the_file_stays_small_and_keeps_the_newest(tmp_path: Path) -> None:
    runs = Runs(str(tmp_path / "runs.jsonl"))
    for number in range(30):
        runs.add(Run("sync", "ok", started="", details={"n": number, "text": "x" * 90_000}))
    assert (tmp_path / "runs.jsonl").stat().st_size < 1_200_000
    assert runs.recent(1)[0].details["n"] == 29
