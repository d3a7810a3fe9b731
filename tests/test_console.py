"""What people and machines see: one line for each thing, nothing that drives a terminal."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.cells import cell_len

from annoris.console import Output, ago, fail, safe
from annoris.errors import NotFound
from annoris.model import (
    Draft,
    Glance,
    Hit,
    Loaded,
    Problem,
    Receipt,
    Report,
    Session,
    State,
    counted,
)

EVIL = "a\x1b[2Jb\x07c\u202ed\te\nf\x9bg"


def session(**fields: str) -> Session:
    values = {
        "id": "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "path": "sessions/x/a.md", "oid": "0" * 40,
        "project": "shop", "name": "one", "title": "Заголовок", "status": "open", "priority": "",
        "created": "2026-11-24T10:00:00Z", "saved": "2026-11-24T10:00:00Z", "etag": "e",
        "literal": "e", "body_md5": "m", "pending": "", **fields,
    }  # fmt: skip
    return Session(size=7, **values)


def receipt(state: State, reason: str = "", conflict_of: str = "") -> Receipt:
    place = ("0190-4a5b", "sessions/x/a.md", "shop", "Title")
    return Receipt(state, *place, reason=reason, conflict_of=conflict_of)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Ёж 🔥 \u200b", "plain Ёж 🔥 \u200b"),
        ("\x1b[31mred\x1b[0m", "\ufffd[31mred\ufffd[0m"),
        ("a\u202eb\u2066c\u2069", "a\ufffdb\ufffdc\ufffd"),
        ("\x00\x07\x08\x7f\x85\x9b", "\ufffd" * 6),
        ("tab\tline\n", "tab\tline\n"),
        ("\r", "\ufffd"),
    ],
)
def test_safe_shows_control_characters_and_keeps_the_rest(text: str, shown: str) -> None:
    assert safe(text) == shown


@pytest.mark.parametrize(
    ("back", "words"),
    [
        (0.1, "just now"), (-100, "just now"), (5, "5 s ago"), (59, "59 s ago"), (61, "1 min ago"),
        (3599, "59 min ago"), (3601, "1 h ago"), (86399, "23 h ago"), (86401, "1 d ago"),
        (86400 * 400, "400 d ago"),
    ],
)  # fmt: skip
def test_ago_is_the_largest_unit_that_fits(back: float, words: str) -> None:
    moment = datetime.now(UTC) - timedelta(seconds=back)
    assert ago(moment.isoformat()) == words


def test_ago_of_no_time_and_of_nonsense() -> None:
    assert (ago(""), ago("someday")) == ("never", "someday")


STATES: dict[State, tuple[str, ...]] = {
    "master": ("saved",),
    "unchanged": ("unchanged",),
    "queued": ("queued", "not on master yet: why", "annoris sync"),
    "conflict": ("conflict", "both are kept", "sessions/x/a.md", "annoris diff", "--with"),
    "refused": ("refused", "why", "annoris outbox"),
}


@pytest.mark.parametrize("state", STATES)
def test_a_receipt_says_what_is_true_and_what_to_do_next(
    state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    Output().receipts([receipt(state, reason="why", conflict_of="0190-77777777")])
    out, err = capsys.readouterr()
    assert err == ""
    assert all(words in out for words in STATES[state])
    assert ("saved" in out.split()) == (state == "master"), "only what is on master is saved"


def test_a_delete_is_not_called_a_save(capsys: pytest.CaptureFixture[str]) -> None:
    Output().receipts([Receipt("master", "0190-4a5b", "p", "shop", "Title", op="delete")])
    assert capsys.readouterr().out.startswith("deleted ")


@pytest.mark.parametrize(("state", "quiet"), [("master", True), ("unchanged", True)])
def test_quiet_leaves_out_the_good(
    state: State, quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Output(quiet=quiet).receipts([receipt(state), receipt("queued", reason="why")])
    assert capsys.readouterr().out.splitlines()[0].startswith("queued")


def test_several_receipts_are_counted_by_state(capsys: pytest.CaptureFixture[str]) -> None:
    states: list[State] = ["master", "queued", "master", "conflict"]
    Output().receipts([receipt(state) for state in states])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "4 sessions: 2 on master, 1 queued, 1 in conflict"


def test_warnings_of_structure_name_file_and_line_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    problems = (Problem("x", "no heading"), Problem("y", "open fence", 3))
    Output().receipts([Receipt("master", "i", "p", "s", source="a.md", problems=problems)])
    assert capsys.readouterr().err == "a.md: no heading\na.md:3: open fence\n"


def test_a_table_in_a_pipe_is_one_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    """A title with tabs, line ends and escapes can't make columns, rows or colours."""
    Output().sessions([session(title=EVIL), session(status="a\tb")], "", "none")
    lines = capsys.readouterr().out.split("\n")
    assert lines.pop() == ""
    assert [line.count("\t") for line in lines] == [5, 5]
    assert not any(character in "".join(lines) for character in "\x1b\x07\u202e\x9b\r")


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_on_a_terminal_fits_it_with_ids_whole_and_columns_straight(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is long, wide, right to left or empty: nothing wraps, nothing collapses."""
    rows = [
        session(title="很长的标题" * 30, project="p" * 60, name="n" * 60, status="s" * 60),
        session(title="עברית וعربي", project="倉庫", name="", status="進行中"),
        session(title="e\u0301" * 9 + EVIL, project="x", name="💳💳"),
    ]
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("annoris.console._terminal", lambda: True)
    Output().sessions(rows, "", "none")
    head, *lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= width for line in (head, *lines))
    assert all(line.startswith(f"{rows[0].short}  ") for line in lines)
    titles = [
        cell_len(line[: line.index(word)])
        for line, word in zip((head, *lines), ("title", "很", "עברית", "e\u0301"), strict=True)
    ]
    assert len(set(titles)) == 1
    assert width - titles[0] >= width // 3, "the title has most of the room"


def test_a_column_without_anything_is_not_shown_and_numbers_end_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annoris.console._terminal", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    Output().table(("name", "empty", "n", "what"), [("a", "", "1", "x"), ("b", "", "1000", "y")])
    assert capsys.readouterr().out == "name     n  what\na        1  x\nb     1000  y\n"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, ["none yet", "annoris save FILE"]),
        ({"sessions": 3}, ["3 in 1 project\n", "annoris list --all"]),
        ({"newest": session()}, ["Заголовок", "annoris load"]),
        ({"newest": session(), "waiting": 2}, ["2 waiting", "annoris sync"]),
        ({"waiting": 2, "aside": 1}, ["2 waiting for master, 1 set aside", "annoris outbox"]),
        ({"down": {"hot": "refused"}}, ["hot       down when last asked: refused"]),
    ],
)
def test_a_glance_says_where_one_stands_and_what_comes_next(
    found: dict[str, Any], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    nothing: dict[str, Any] = {"newest": None, "sessions": 0, "waiting": 0, "aside": 0, "down": {}}
    Output().glance(
        Glance(project="shop", projects=1, tiers=("hot", "clone"), checked="", **nothing | found)
    )
    out, err = capsys.readouterr()
    assert all(words in out + err for words in told)


@pytest.mark.parametrize(("number", "words"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs")])
def test_one_thing_is_not_many(number: int, words: str) -> None:
    assert counted(number, "run") == words


def test_nothing_to_list_is_a_note_and_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    Output().sessions([], "", "none yet")
    assert capsys.readouterr() == ("", "none yet\n")


def test_an_old_list_says_so_even_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Output(quiet=True).sessions([session()], "no network", "none")
    assert capsys.readouterr().err == "annoris: may be old: no network\n"


def test_hits_in_a_pipe_have_no_colours_and_one_line_of_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output().hits([Hit(session(), f"a \x02word\x03 {EVIL}", 1.0)], "", "word")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "a word" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_a_document_goes_out_byte_for_byte(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    data = b"\xef\xbb\xbf# T\r\n\x1b[2J\r\xc3\xa9\n\n"
    loaded = Loaded(session(), data, "clone", "2026-11-24T10:00:00Z")
    Output().loaded(loaded, data, render=True)
    out, err = capfdbinary.readouterr()
    assert out == data
    assert b"shop  2e3f4a5b" in err or b"3f4a5b" in err
    assert b"clone, checked" in err


def test_an_old_document_is_announced_even_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = Loaded(session(), b"x", "clone", "", stale="no network")
    Output(quiet=True).loaded(loaded, b"x", render=False)
    assert capsys.readouterr().err == "annoris: may be old: no network\n"


def test_json_is_one_line_with_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Text that JSON or a line can't hold as it is comes back equal."""
    loaded = Loaded(session(title=EVIL), EVIL.encode(), "master", "", stale="why", revision="c")
    Output(json=True).loaded(loaded, EVIL.encode(), render=True)
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (err, out.count("\n")) == ("", 1)
    assert (found["schema_version"], found["text"], found["stale"]) == (1, EVIL, "why")
    assert found["session"]["title"] == EVIL
    assert found["session"]["short"] == "2e3f4a5b"


def test_a_draft_as_json_has_its_size_and_not_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    draft = Draft("k.0", "save", "i", "p", "", "shop", "", EVIL, "m", "", data=b"12345")
    Output(json=True).outbox([draft], [(draft, "why")])
    found = json.loads(capsys.readouterr().out)
    assert (found["waiting"][0]["size"], "data" in found["waiting"][0]) == (5, False)
    assert found["aside"][0]["reason"] == "why"


def test_a_sync_that_needs_nobody_is_silent_under_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(quiet=True).report(Report(pushed=3))
    assert capsys.readouterr() == ("", "")
    Output(quiet=True).report(Report(conflicts=(receipt("conflict", reason="why"),)))
    assert capsys.readouterr().out.startswith("conflict ")


def test_an_error_is_its_message_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    error = NotFound(f"no session {EVIL}", hint="annoris list", details={"near": ["a"]})
    fail(error, as_json=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert err.endswith("\n  annoris list\n")
    fail(error, as_json=True)
    found = json.loads(capsys.readouterr().out)["error"]
    assert (found["code"], found["message"]) == ("not-found", f"no session {EVIL}")
    assert (found["hint"], found["near"]) == ("annoris list", ["a"])
