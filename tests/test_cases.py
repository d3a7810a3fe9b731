"""The table of hard cases in docs/reliability.md is what the tests are."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
PROMISES = TESTS.parent / "docs" / "promises.md"


def _named() -> dict[int, set[str]]:
    """The files that hold tests of a case, by its number."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                numbered := re.match(r"test_case_(\d\d)_", node.name)
            ):
                found[int(numbered[1])].add(path.name)
    return found


def test_every_hard_case_has_tests_of_its_number_in_the_files_that_the_table_names() -> None:
    rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    table = {int(number): set(re.findall(r"`([\w.]+)`", files)) for number, files in rows}
    assert table == _named()
    assert table.keys() == set(range(1, 31))


def test_the_files_that_the_promises_name_are_there() -> None:
    named = set(re.findall(r"`((?:support/)?\w+\.py)`", PROMISES.read_text()))
    assert len(named) > 10
    assert [name for name in named if not (TESTS / name).exists()] == []
