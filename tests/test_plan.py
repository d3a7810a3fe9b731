"""Decisions without their effects: each line of a table is one that a save or a sync rests on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annoris import plan
from annoris.model import Change, Draft, Held, Session

ROW = Session(
    id="i", path="a.md", oid="1", project="shop", name="", title="T", status="", priority="",
    created="", saved="", size=1, etag="theirs", literal="", body_md5="",
)  # fmt: skip
HELD = Held("a.md", "1", position=5, has_content=True, deleted=False, mark="T")
DRAFT = Draft("k.0", "save", "i", "a.md", "base", "shop", "", "T", "", "")
ENTRIES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("123"))


@given(ENTRIES, ENTRIES)
def test_changes_applied_make_a_projection_masters(
    have: dict[str, str], want: dict[str, str]
) -> None:
    """No path twice, removals first, each kind counted; equal ones are left alone."""
    found = plan.changes(have, want)
    made = dict(have)
    for change in found:
        assert change.added == (change.path not in made)
        assert change.oid == want.get(change.path, "")
        if change.oid:
            assert made.get(change.path) != change.oid
            made[change.path] = change.oid
        else:
            del made[change.path]
    assert made == want
    assert found == sorted(found, key=lambda change: (bool(change.oid), change.path))
    new, gone = want.keys() - have.keys(), have.keys() - want.keys()
    assert plan.counted(iter(found)) == (len(new), len(found) - len(new) - len(gone), len(gone))


@pytest.mark.parametrize(
    ("held", "session", "kind"),
    [
        (HELD, ROW, ""),
        (None, ROW, "missing"),
        (replace(HELD, deleted=True), ROW, "missing"),
        (replace(HELD, path="b.md"), ROW, "stale"),
        (replace(HELD, oid="2"), ROW, "stale"),
        (replace(HELD, mark="other"), ROW, "wrong"),
        (replace(HELD, has_content=False), ROW, "bare"),
        (replace(HELD, has_content=False, old=True), ROW, ""),
        (replace(HELD, position=4), ROW, ""),
        (replace(HELD, position=6), ROW, "ahead"),
        (replace(HELD, position=6), None, "ahead"),
        (HELD, None, "surplus"),
        (replace(HELD, has_content=False), None, "surplus"),
        (replace(HELD, deleted=True), None, "surplus"),  # a tombstone that kept its content
        (replace(HELD, deleted=True, has_content=False), None, ""),
    ],
)
def test_how_a_row_differs_from_master(
    held: Held | None, session: Session | None, kind: str
) -> None:
    have = {"i": held} if held else {}
    want = {"i": session} if session else {}
    found = plan.drift(have, want, 5, lambda session: session.title)
    assert [*map(tuple, found)] == ([(kind, "i", held, session)] if kind else [])


def test_drift_is_told_of_both_sides_by_id() -> None:
    found = plan.drift({"c": HELD, "a": HELD}, {"b": ROW, "d": ROW}, 5, lambda _: "T")
    assert [drift.id for drift in found] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("draft", "row", "verdict"),
    [
        (replace(DRAFT, base=""), None, "write"),
        (DRAFT, None, "vanished"),
        (DRAFT, replace(ROW, etag="mine"), "present"),
        (DRAFT, replace(ROW, etag="base"), "write"),
        (DRAFT, ROW, "contested"),
        (replace(DRAFT, base=""), ROW, "contested"),
        (replace(DRAFT, op="delete"), None, "present"),
        (replace(DRAFT, op="delete"), replace(ROW, etag="base"), "remove"),
        (replace(DRAFT, op="delete"), ROW, "edited"),
        (replace(DRAFT, op="delete"), replace(ROW, etag="mine"), "edited"),
    ],
)
def test_what_a_draft_means_for_what_master_holds(
    draft: Draft, row: Session | None, verdict: str
) -> None:
    assert plan.settle(draft, "mine", row) == verdict


def test_only_what_is_nowhere_any_more_and_was_not_deleted_vanishes() -> None:
    before = {"a": "1", "moved": "2", "ours": "3", "edited": "4", "b": "5"}
    gone = [Change(path, "") for path in ("a", "moved", "ours", "b", "never-shown")]
    after = [*gone, Change("elsewhere", "2"), Change("edited", "6")]
    assert plan.vanishing(before, iter(after), {"ours"}) == 2


@pytest.mark.parametrize(
    ("total", "lost", "asks"),
    [
        (0, 0, False),
        (0, 1, False),
        (10, 2, False),
        (10, 3, True),
        (1, 1, True),
        (1, 0, False),
        (100, 20, False),
    ],
)
def test_more_than_a_fifth_is_not_taken_away_unasked(total: int, lost: int, asks: bool) -> None:
    assert plan.shrinks(total, lost) is asks


def test_a_refusal_blames_the_drafts_whose_paths_it_names() -> None:
    drafts = [replace(DRAFT, key=key) for key in ("1", "2", "3")]
    found = plan.isolate(drafts, {"1": "a.md", "2": "b.md"}, iter(["b.md", "c.md", "a.md"]))
    assert [draft.key for draft in found] == ["1", "2"]
    assert plan.isolate(drafts, {"1": "a.md"}, []) == []
