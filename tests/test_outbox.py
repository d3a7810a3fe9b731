"""The outbox: what it has answered is on disk, whole, in order, whatever happens to it later."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from annoris.errors import NotFound, StorageError
from annoris.model import Draft, Problem, Receipt
from annoris.outbox import Outbox
from tests import corpus


def draft(number: int = 1, data: bytes = b"# One\n\ntext\n") -> Draft:
    """A draft as ``Archive`` makes it: without key and batch."""
    return Draft(
        key="",
        op="save",
        id=f"0190a1b2-c3d4-7e5f-8a9b-{number:012x}",
        path=f"sessions/default/2026/11/2026-11-24-one-{number:08x}.md",
        base="",
        project="default",
        name="имя \u2028 с \n переводом",
        title="Заголовок 👩‍👩‍👧",
        body_md5="0" * 32,
        at="2026-11-24T00:00:00Z",
        data=data,
    )


def receipt(key: str) -> Receipt:
    problems = (Problem("heading", "no heading", 3), Problem("fence", "open fence", 9, True))
    return Receipt("conflict", key, "sessions/x.md", "default", problems=problems, reason="why")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def outbox(folder: Path) -> Outbox:
    return Outbox(str(folder))


def left(folder: Path) -> list[str]:
    """Files in the outbox, however deep."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- order and content ---------------------------------------------------------------------------


def test_an_outbox_that_was_never_used_is_empty_and_makes_no_folder(
    outbox: Outbox, folder: Path
) -> None:
    assert (outbox.batches(), outbox.waiting(), outbox.aside()) == ([], set(), [])
    assert outbox.read() == ([], [])
    outbox.tidy()
    assert not folder.exists()


def test_what_is_added_is_read_back_equal_by_another_process(outbox: Outbox, folder: Path) -> None:
    data = [data for _, data in corpus.documents(60)] + [b"", b"\n", b"\0\xff", b"1 2 3\n"]
    kept = outbox.add(draft(number, item) for number, item in enumerate(data))
    assert Outbox(str(folder)).read() == (kept, [])
    assert [item.data for item in kept] == data


def test_a_key_and_a_batch_are_all_that_add_changes(outbox: Outbox) -> None:
    kept = outbox.add([draft(1), draft(2)])
    assert [replace(item, key="", batch="") for item in kept] == [draft(1), draft(2)]
    assert [item.key for item in kept] == [f"{kept[0].batch}.0", f"{kept[0].batch}.1"]


def test_drafts_are_read_in_the_order_of_saving_beyond_ten(outbox: Outbox) -> None:
    for number in range(25):
        outbox.add([draft(number)])
    found, _ = outbox.read()
    assert [item.id for item in found] == [draft(number).id for number in range(25)]


def test_the_order_does_not_depend_on_the_clock(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, moment in enumerate((2e9, 1e9, 3e9, 0.0)):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        outbox.add([draft(number)])
    assert [item.id for item in outbox.read()[0]] == [draft(number).id for number in range(4)]


def test_two_commands_at_the_same_instant_both_stay(outbox: Outbox, folder: Path) -> None:
    """Both see the same counter; the random part of the name keeps them apart."""
    other = Outbox(str(folder))
    other.batches = outbox.batches  # type: ignore[method-assign]
    seen = outbox.batches()
    outbox.batches = other.batches = lambda: seen  # type: ignore[method-assign]
    outbox.add([draft(1)])
    other.add([draft(2)])
    found, _ = Outbox(str(folder)).read()
    assert {item.id for item in found} == {draft(1).id, draft(2).id}


def test_the_order_holds_while_one_draft_leaves_and_others_come(outbox: Outbox) -> None:
    first, second = outbox.add([draft(1)]), outbox.add([draft(2)])
    outbox.remove(first)
    third = outbox.add([draft(3)])
    assert outbox.read()[0] == second + third


def test_folders_and_drafts_are_for_their_owner_alone(outbox: Outbox, folder: Path) -> None:
    kept = outbox.add([draft(1), draft(2)])
    outbox.set_aside(kept[0], "no")
    outbox.answer("key", receipt("key"))
    private = [path for path in (folder, *folder.rglob("*")) if path.suffix != ".json"]
    assert len(private) == 5
    for path in private:
        assert path.stat().st_mode & 0o077 == 0, path


# --- leaving -------------------------------------------------------------------------------------


def test_the_others_of_a_command_stay_when_one_is_removed(outbox: Outbox) -> None:
    kept = outbox.add([draft(1), draft(2), draft(3)])
    outbox.remove([kept[1]])
    assert outbox.read() == ([kept[0], kept[2]], [])
    assert outbox.waiting() == {kept[0].key, kept[2].key}


def test_nothing_is_left_when_all_are_removed(outbox: Outbox, folder: Path) -> None:
    one, two = outbox.add([draft(1), draft(2)]), outbox.add([draft(3)])
    outbox.remove(one + two)
    outbox.remove(one + two)
    assert outbox.read() == ([], [])
    assert left(folder) == []


def test_find_answers_a_draft_that_waits_or_was_set_aside_and_no_other(outbox: Outbox) -> None:
    kept = outbox.add([draft(1), draft(2)])
    outbox.set_aside(kept[0], "no")
    assert [outbox.find(item.key) for item in kept] == kept
    outbox.remove([kept[1]])
    for key in (kept[1].key, "", "../../etc/passwd", "000000000001-00.0"):
        with pytest.raises(NotFound):
            outbox.find(key)


def test_a_refused_draft_leaves_the_queue_with_its_reason_and_comes_back_on_retry(
    outbox: Outbox, folder: Path
) -> None:
    kept = outbox.add([draft(1), draft(2)])
    outbox.set_aside(kept[0], "GH013: a secret ☠")
    assert outbox.read()[0] == [kept[1]]
    assert outbox.aside() == [(kept[0], "GH013: a secret ☠")]
    assert outbox.waiting() == {item.key for item in kept}
    outbox.retry(kept[0])
    assert outbox.aside() == []
    assert [item.data for item in outbox.read()[0]] == [kept[1].data, kept[0].data]
    assert left(folder / "aside") == []


def test_drop_forgets_one_draft_wherever_it_is(outbox: Outbox, folder: Path) -> None:
    kept = outbox.add([draft(1), draft(2), draft(3)])
    outbox.set_aside(kept[0], "no")
    outbox.drop(kept[0])
    outbox.drop(kept[1])
    assert (outbox.read()[0], outbox.aside()) == ([kept[2]], [])


# --- answers -------------------------------------------------------------------------------------


def test_an_answer_is_taken_once_and_is_equal(outbox: Outbox) -> None:
    outbox.answer("a.0", receipt("a.0"))
    assert outbox.answered("a.0") == receipt("a.0")
    assert outbox.answered("a.0") is None
    assert outbox.answered("never") is None


def test_a_damaged_answer_counts_as_none(outbox: Outbox, folder: Path) -> None:
    outbox.answer("a.0", receipt("a.0"))
    path = folder / "done" / "a.0.json"
    path.write_bytes(path.read_bytes()[:20])
    assert outbox.answered("a.0") is None


def test_tidy_removes_old_leftovers_and_nothing_that_is_needed(
    outbox: Outbox, folder: Path
) -> None:
    kept = outbox.add([draft(1), draft(2)])
    outbox.set_aside(kept[0], "no")
    for key in ("old.0", "new.0"):
        outbox.answer(key, receipt(key))
    for place in (folder, folder / "aside", folder / "done"):
        (place / ".tmp-old").write_bytes(b"half")
        (place / ".tmp-new").write_bytes(b"half")
    week_ago = time.time() - 7 * 86400
    for path in folder.rglob("*"):
        if path.is_file() and "new" not in path.name:
            os.utime(path, (week_ago, week_ago))
    outbox.tidy()
    assert (outbox.read()[0], outbox.aside()) == ([kept[1]], [(kept[0], "no")])
    assert outbox.answered("old.0") is None
    assert outbox.answered("new.0") == receipt("new.0")
    assert [name for name in left(folder) if name.startswith(".tmp")] == [".tmp-new"] * 3


# --- damage --------------------------------------------------------------------------------------


def damaged(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Each byte flipped, each prefix, a byte more: (where the damage begins, bytes)."""
    for position in range(len(content)):
        flipped = bytes([content[position] ^ 0x20])
        yield position, content[:position] + flipped + content[position + 1 :]
        yield position, content[:position]
        yield position, content[:position] + b"7" + content[position:]


def test_case_19_damage_at_any_byte_never_yields_a_wrong_draft(
    outbox: Outbox, folder: Path
) -> None:
    """Drafts that are whole before the damage are still read; the file is named."""
    kept = outbox.add(draft(number, b"text %d\n" % number) for number in range(3))
    path = folder / f"{kept[0].batch}.drafts"
    content = path.read_bytes()
    ends = [0]
    for item in kept:
        ends.append(content.index(item.data, ends[-1]) + len(item.data) + 1)
    for position, wrong in damaged(content):
        path.write_bytes(wrong)
        found, bad = outbox.read()
        assert found == kept[: len(found)], f"wrong draft after damage at {position}"
        whole = sum(end <= position for end in ends[1:])
        assert len(found) >= whole, f"whole drafts are lost after damage at {position}"
        # A byte that only separates does no harm; the draft is whole then.
        assert bad == [str(path)] or found == kept, f"unseen at {position}"


def test_a_damaged_file_stays_for_a_person_and_does_not_stop_the_others(
    outbox: Outbox, folder: Path
) -> None:
    first, second = outbox.add([draft(1)]), outbox.add([draft(2)])
    path = folder / f"{first[0].batch}.drafts"
    path.write_bytes(path.read_bytes()[:-9])
    assert outbox.read() == (second, [str(path)])
    outbox.remove(first + second)
    assert path.exists()
    assert outbox.read() == ([], [str(path)])


def test_a_newer_format_is_not_read_as_ours(outbox: Outbox, folder: Path) -> None:
    kept = outbox.add([draft()])
    path = folder / f"{kept[0].batch}.drafts"
    path.write_bytes(path.read_bytes().replace(b"annoris-outbox 1", b"annoris-outbox 2"))
    assert outbox.read() == ([], [str(path)])


def test_a_damaged_file_set_aside_does_not_hide_the_others(outbox: Outbox, folder: Path) -> None:
    kept = outbox.add([draft(1), draft(2)])
    for item in kept:
        outbox.set_aside(item, "no")
    path = folder / "aside" / f"{kept[0].key}.drafts"
    path.write_bytes(path.read_bytes()[:-9])
    assert outbox.aside() == [(kept[1], "no")]


# --- a disk that refuses -------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_case_18_an_error_of_the_disk_is_clear_and_leaves_nothing(
    call: str, outbox: Outbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = outbox.add([draft(1)])

    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        monkeypatch.setattr("annoris.outbox._record", full)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        outbox.add([draft(2)])
    assert caught.value.hint
    assert (outbox.read()[0], left(folder)) == (kept, [f"{kept[0].batch}.drafts"])


def test_case_18_removing_one_of_several_on_a_full_disk_keeps_them_all(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = outbox.add([draft(1), draft(2)])

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        outbox.remove([kept[0]])
    assert outbox.read()[0] == kept


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 256 KiB, where this user may mount one."""
    place = tmp_path / "tiny"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs"]
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a tmpfs can't be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_case_18_a_disk_that_is_really_full_keeps_what_was_there(tiny: Path) -> None:
    outbox = Outbox(str(tiny / "outbox"))
    kept: list[Draft] = []

    def fill() -> None:
        for number in range(100):
            kept.extend(outbox.add([draft(number, b"x" * 20_000)]))

    with pytest.raises(StorageError, match="No space left on device"):
        fill()
    assert 5 < len(kept) < 20
    assert outbox.read() == (kept, [])
    assert not list((tiny / "outbox").glob(".tmp-*"))
    outbox.remove(kept[:2])
    kept = kept[2:] + outbox.add([draft(0, b"x" * 20_000)])
    assert outbox.read() == (kept, [])


def test_a_place_that_is_no_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="outbox"):
        Outbox(str(tmp_path / "file" / "outbox")).add([draft()])
