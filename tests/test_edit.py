"""A file on master that is no session is edited by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from annoris.errors import RemoteRefused
from tests.support.machine import Machine

PATH = "projects/a b.toml"


def _append(line: bytes) -> Callable[[bytes | None], bytes]:
    return lambda before: (before or b"") + line


def test_two_machines_that_edit_one_file_both_see_the_others_line(
    machine: Callable[..., Machine], remote: Path
) -> None:
    with (
        closing(machine("one", remote=remote).archive()) as one,
        closing(machine("two", remote=remote).archive()) as two,
    ):
        assert one.edit(PATH, _append(b"1\n"), "One")
        assert two.edit(PATH, _append(b"2\n"), "Two")
        assert one.edit(PATH, _append(b"3\n"), "Three")
        assert one.master.file(one.master.tip(), PATH) == b"1\n2\n3\n"


def test_an_edit_that_lost_the_race_is_asked_again_with_the_newer_bytes(
    machine: Callable[..., Machine], remote: Path
) -> None:
    asked: list[bytes | None] = []
    with (
        closing(machine("one", remote=remote).archive()) as one,
        closing(machine("two", remote=remote).archive()) as two,
    ):

        def late(before: bytes | None) -> bytes:
            asked.append(before)
            if before is None:
                two.edit(PATH, _append(b"2\n"), "Two")
            return (before or b"") + b"1\n"

        assert one.edit(PATH, late, "One")
        assert asked == [None, b"2\n"]
        assert one.master.file(one.master.tip(), PATH) == b"2\n1\n"


def test_an_edit_that_changes_nothing_makes_no_commit_and_none_removes(
    machine: Callable[..., Machine],
) -> None:
    with closing(machine().archive()) as archive:
        archive.edit(PATH, _append(b"1\n"), "One")
        before = archive.master.tip()
        assert not archive.edit(PATH, lambda data: data, "Nothing")
        assert archive.master.tip() == before
        assert archive.edit(PATH, lambda _: None, "Gone")
        assert archive.master.file(archive.master.tip(), PATH) is None
        assert archive.master.file(archive.master.tip(), "projects") is None


def test_an_edit_without_master_says_so_and_leaves_nothing_behind(
    machine: Callable[..., Machine], remote: Path
) -> None:
    with closing(machine(remote=remote).archive()) as archive:
        archive.edit(PATH, _append(b"1\n"), "One")
        remote.rename(remote.with_name("away"))
        with pytest.raises(RemoteRefused):
            archive.edit(PATH, _append(b"2\n"), "Two")
        remote.with_name("away").rename(remote)
        assert archive.master.file(archive.master.tip(), PATH) == b"1\n"
