"""What a dump is: the same rows the same bytes, and no damage that is not found."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annoris import dumpfile
from annoris.dumpfile import MANIFEST, Difference, Line, Manifest, Source, Tally
from annoris.errors import FindingsFound, UsageError

MUTATIONS = 1000 if os.environ.get("ANNORIS_FULL") else 150
ENVELOPE = "annoris1.A256GCM.0123abcd." + "n" * 16 + "." + "x" * 40 + "."


def session(number: int, **known: Any) -> Line:
    fields = {
        "id": f"01900000-0000-7000-8000-{number:012}",
        "title": f"Title {number}",
        "content": ENVELOPE,
        "synced_at": f"2026-11-24T10:00:{number % 60:02}.25+00:00",
    }
    return "sessions", json.dumps(fields | known)


def run(number: int, kind: str = "sync", table: str = "sync_log") -> Line:
    started = "2026-11-20T10:00:00+00:00"
    return table, json.dumps({"id": number, "kind": kind, "started_at": started})


STATE: Line = ("state", json.dumps({"one": True, "version": 1, "proof": ""}))
LINES = [run(3, "dump", "dump_log"), *map(session, range(5)), STATE, run(1), run(2), run(10)]


def files_of(lines: list[Line], limit: int = 400) -> dict[str, bytes]:
    """A dump in memory: file → content."""
    tally, files = Tally(), dict(dumpfile.split(lines, limit))
    for name, data in files.items():
        tally.add(name, data)
    return {MANIFEST: tally.manifest().encoded(), **files}


def source(files: dict[str, bytes], name: str = "dump") -> Source:
    return Source(name, sorted(files), files.__getitem__)


def test_a_dump_gives_back_its_rows_and_says_what_it_holds() -> None:
    files = files_of(LINES)
    manifest = dumpfile.verify(source(files))
    assert list(dumpfile.lines_of(source(files), manifest)) == LINES
    assert manifest.rows() == {"dump_log": 1, "sessions": 5, "state": 1, "sync_log": 3}
    assert (manifest.schema, manifest.keys) == (1, ("0123abcd",))
    assert manifest.newest == "2026-11-24T10:00:04Z"
    assert len([name for name in files if name.startswith("sessions.")]) > 1
    assert max(len(data) for name, data in files.items() if name != MANIFEST) <= 400


@given(st.lists(st.text(), max_size=12), st.integers(50, 2000))
def test_any_text_goes_through_whatever_the_size_of_the_files(texts: list[str], limit: int) -> None:
    """Line breaks of every kind, escapes, NULs, emoji: a row stays one line and itself."""
    lines = [session(number, title=text) for number, text in enumerate(texts)]
    files = files_of(lines, limit)
    manifest = dumpfile.verify(source(files))
    assert list(dumpfile.lines_of(source(files), manifest)) == lines


def test_what_dumps_say_of_themselves_makes_no_dump_another() -> None:
    later = [run(4, "drill", "dump_log"), *LINES[1:]]
    one, other = (Manifest.decoded(files_of(lines)[MANIFEST]) for lines in (LINES, later))
    assert one != other
    assert one.tells() == other.tells()
    assert one.tells() != Manifest.decoded(files_of(LINES[:-1])[MANIFEST]).tells()


# --- damage --------------------------------------------------------------------------------------


def resealed(files: dict[str, bytes], name: str, data: bytes) -> dict[str, bytes]:
    """With the SHA-256 in the manifest set right, as somebody who knows would do."""
    manifest = Manifest.decoded(files[MANIFEST])
    part = dumpfile.Part(data.count(b"\n"), len(data), sha256(data).hexdigest())
    changed = replace(manifest, files={**manifest.files, name: part})
    return {**files, name: data, MANIFEST: changed.encoded()}


def edited(held: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    return {**held, MANIFEST: replace(Manifest.decoded(held[MANIFEST]), **changes).encoded()}  # type: ignore[arg-type]


FIRST = "sessions.0001.jsonl"
Files = dict[str, bytes]
DAMAGE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "a bit flips": (
        lambda files: {**files, FIRST: files[FIRST].replace(b"Title", b"Tible", 1)},
        f"{FIRST} is damaged",
    ),
    "a file is cut": (lambda files: {**files, FIRST: files[FIRST][:-9]}, f"{FIRST} is damaged"),
    "a file is empty": (lambda files: {**files, FIRST: b""}, f"{FIRST} is damaged"),
    "a file is missing": (
        lambda files: {name: data for name, data in files.items() if name != FIRST},
        f"{FIRST} is missing",
    ),
    "a file too many": (
        lambda files: {**files, "sessions.0099.jsonl": files[FIRST]},
        "sessions.0099.jsonl does not belong there",
    ),
    "a row too many": (
        lambda files: {**files, FIRST: files[FIRST] + session(9)[1].encode() + b"\n"},
        f"{FIRST} is damaged",
    ),
    "a row twice, with its sum": (
        lambda files: resealed(files, FIRST, files[FIRST] * 2),
        "stands twice",
    ),
    "no row but text, with its sum": (
        lambda files: resealed(files, FIRST, files[FIRST] + b"no row\n"),
        "line 2",
    ),
    "a list for a row, with its sum": (
        lambda files: resealed(files, FIRST, b"[]\n"), "line 1",
    ),
    "no end of the last line, with its sum": (
        lambda files: resealed(files, FIRST, files[FIRST] + b"{}"), "has no end",
    ),
    "no manifest": (
        lambda files: {name: data for name, data in files.items() if name != MANIFEST},
        f"{MANIFEST} is missing",
    ),
    "a manifest of nothing": (lambda files: {**files, MANIFEST: b"{}"}, f"{MANIFEST} is damaged"),
    "a manifest of noise": (lambda files: {**files, MANIFEST: b"\xff"}, f"{MANIFEST} is damaged"),
    "a manifest with a strange name": (
        lambda files: edited(files, files={"../../x": dumpfile.Part(1, 1, "0")}),
        f"{MANIFEST} is damaged",
    ),
    "another number of rows": (
        lambda files: edited(
            files,
            files={
                name: replace(part, rows=part.rows + 1)
                for name, part in Manifest.decoded(files[MANIFEST]).files.items()
            },
        ),
        f"{MANIFEST} was changed",
    ),
    "another key": (lambda files: edited(files, keys=("ffffffff",)), f"{MANIFEST} was changed"),
    "another time": (lambda files: edited(files, newest=""), f"{MANIFEST} was changed"),
    "another version of the tables": (
        lambda files: edited(files, schema=0), f"{MANIFEST} was changed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_named(kind: str) -> None:
    damage, says = DAMAGE[kind]
    with pytest.raises(FindingsFound) as caught:
        dumpfile.verify(source(damage(files_of(LINES))))
    assert any(says in found for found in caught.value.details["damage"])  # type: ignore[attr-defined]
    assert "the dump dump is damaged" in caught.value.message


def test_a_dump_that_was_changed_as_a_whole_does_not_fit_its_name() -> None:
    files = files_of(LINES)
    name = dumpfile.name_of(files[MANIFEST], "2026-11-24T10:00:00Z")
    dumpfile.verify(source(files, name))
    with pytest.raises(FindingsFound, match="was changed"):
        dumpfile.verify(source(files_of(LINES[:-1]), name))


def test_a_dump_of_a_later_format_asks_for_an_upgrade() -> None:
    files = files_of(LINES)
    files[MANIFEST] = files[MANIFEST].replace(b'"format": 1', b'"format": 2')
    with pytest.raises(UsageError, match="newer Annoris"):
        dumpfile.verify(source(files))


def mutated(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    match chance.randrange(4):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]
        case _:
            return data[:at] + data[at : at + 1024] + data[at:]


def test_case_19_no_mutation_of_a_dump_passes(tmp_path: Path) -> None:
    """Flipped, cut, emptied, doubled anywhere in the file: found, or what is read is the same."""
    files, path, chance = files_of(LINES), tmp_path / "dump.tar", random.Random(19)
    dumpfile.write_tar(str(path), source(files))
    whole, found = path.read_bytes(), 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(whole, chance))
        try:
            with dumpfile.open_tar(str(path)) as read:
                manifest = dumpfile.verify(read)
                assert list(dumpfile.lines_of(read, manifest)) == LINES  # it hit the padding
        except FindingsFound:
            found += 1
    assert found > MUTATIONS / 4


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"x" * 10240, bytes(10240)])
def test_a_file_that_is_no_dump_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(FindingsFound), dumpfile.open_tar(str(path)) as read:
        dumpfile.verify(read)


def test_a_tar_file_says_nothing_of_who_made_it_or_when(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.tar", "b.tar")]
    for path in paths:
        dumpfile.write_tar(str(path), source(files_of(LINES), path.name))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.glob("*tar*")) == paths


def test_a_tar_file_that_could_not_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"precious")
    nothing: dict[str, bytes] = {}
    with pytest.raises(KeyError):
        dumpfile.write_tar(str(path), Source("x", ["missing"], nothing.__getitem__))
    assert [item.read_bytes() for item in tmp_path.glob("*tar*")] == [b"precious"]


# --- two sets of rows ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ([], [], Difference()),
        (LINES, LINES, Difference()),
        ([], LINES, Difference(new=10)),
        (LINES, [], Difference(gone=10)),
        (LINES, [*LINES[:2], session(1, title="x"), *LINES[3:]], Difference(changed=1)),
        ([session(1), session(3)], [session(2), session(3)], Difference(new=1, gone=1)),
        ([run(2)], [run(2), run(10)], Difference(new=1)),
        ([session(1), run(1)], [STATE, run(1)], Difference(new=1, gone=1)),
        ([session(1)], [session(1, later="column")], Difference()),
        ([session(1, later="column")], [session(1)], Difference(changed=1)),
        ([("state", '{"one": true, "version": 0}')],
         [("state", '{"one": true, "version": 2, "more": 1}')], Difference()),
    ],
)  # fmt: skip
def test_rows_are_told_apart(before: list[Line], after: list[Line], difference: Difference) -> None:
    """A row of older tables, which says less, is the same when what it says is."""
    assert dumpfile.compare(before, after) == difference


# --- which dumps stay ----------------------------------------------------------------------------


def named(*dates: str) -> list[str]:
    return [f"{date}T030000Z-00000000" if "T" not in date else f"{date}-00000000" for date in dates]


DAYS = named(*(f"2026-11-{day:02}" for day in range(1, 25)))


@pytest.mark.parametrize(
    ("names", "verified", "policy", "kept"),
    [
        ([], [], (7, 4, 12), []),
        (DAYS[-1:], [], (1, 1, 1), ["2026-11-24"]),
        (DAYS, [], (3, 1, 1), ["2026-11-22", "2026-11-23", "2026-11-24"]),
        # Weeks end on Sunday: 22, 15, 8 November 2026.
        (DAYS, [], (1, 4, 1), ["2026-11-08", "2026-11-15", "2026-11-22", "2026-11-24"]),
        (DAYS, named("2026-11-03"), (1, 1, 1), ["2026-11-03", "2026-11-24"]),
        (DAYS, named("2026-11-03", "2026-11-05"), (1, 1, 1), ["2026-11-05", "2026-11-24"]),
        # Of one day the last one stays; the year counts for weeks and months.
        (named("2026-01-01T010000Z", "2026-01-01T230000Z"), [], (7, 4, 12),
         ["2026-01-01T230000Z"]),
        (named("2025-12-31", "2026-01-02"), [], (1, 1, 2), ["2025-12-31", "2026-01-02"]),
        (named("2025-01-01", "2026-01-01"), [], (1, 1, 2), ["2025-01-01", "2026-01-01"]),
        # Days without a dump don't count.
        (named("2024-02-29", "2025-06-01", "2026-11-24"), [], (3, 1, 1),
         ["2024-02-29", "2025-06-01", "2026-11-24"]),
    ],
)  # fmt: skip
def test_what_retention_keeps(
    names: list[str], verified: list[str], policy: tuple[int, int, int], kept: list[str]
) -> None:
    daily, weekly, monthly = policy
    found = dumpfile.kept(names, verified, daily=daily, weekly=weekly, monthly=monthly)
    assert sorted(found) == named(*kept)


def test_a_name_tells_when_a_dump_was_made() -> None:
    name = dumpfile.name_of(b"manifest", "2026-11-24T05:00:09+02:00")
    assert name.startswith("2026-11-24T030009Z-")
    assert dumpfile.made_at(name) == "2026-11-24T03:00:09Z"
