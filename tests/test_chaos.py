"""The campaign of faults in its short form; ``make chaos`` runs it for longer."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from tests.chaos import plan
from tests.chaos.campaign import Campaign, Size
from tests.chaos.model import Change, Model, Text
from tests.chaos.report import figures, table

FULL = bool(os.environ.get("ANNORIS_FULL"))
SHORT = Size(seconds=8, pause=8, machines=2, people=1, fault_pause=0.4)
LONG = Size(seconds=120)


@pytest.mark.timeout(900)
def test_a_campaign_of_faults_breaks_no_promise(tmp_path: Path) -> None:
    """Nothing is lost, wrong, stale without a word or left over; the figures say how much was."""
    campaign = Campaign(tmp_path / "chaos", 20261124, LONG if FULL else SHORT)
    campaign.run()
    found = figures(campaign, 1)
    assert campaign.model.violations == [], json.dumps(found["violations"], indent=1)
    assert found["acknowledged saves"] > 0
    assert found["faults"] > 0
    assert "| lost | 0 |" in table(found)


def test_a_seed_is_a_plan() -> None:
    """The same steps, deaths and faults for the same seed, others for another one."""

    def planned(seed: int) -> list[plan.Step | plan.Fault]:
        steps = itertools.islice(plan.steps(seed, 0), 3000)
        return [*steps, *itertools.islice(plan.faults(seed, pause=1), 3000)]

    assert planned(1) == planned(1)
    assert planned(1) != planned(2)
    assert {item.kind for item in planned(1)} == plan.STEPS.keys() | plan.FAULTS.keys()


def saved(model: Model, parent: int = 0, answer: str = "master", id: str = "a") -> Text:
    text = model.write("somebody", parent=parent)
    model.answered(text, answer, "laptop", id)
    return text


def kinds(model: Model) -> list[str]:
    return [violation.kind for violation in model.violations]


def test_the_model_sees_an_acknowledged_text_that_is_nowhere() -> None:
    model = Model()
    kept, killed = saved(model), saved(model, answer="killed")
    model.judge([Change("c", "p", 0, kept.number, by_hand=False)], {})
    assert kinds(model) == []
    model.judge([Change("c", "p", 0, killed.number, by_hand=False)], {})
    assert kinds(model) == ["lost"]


@pytest.mark.parametrize("state", ["queued", "conflict", "unchanged"])
def test_the_model_holds_each_answer_to_its_word(state: str) -> None:
    model = Model()
    saved(model, answer=state)
    model.judge([], {})
    assert kinds(model) == ["lost"]


def test_the_model_sees_a_text_that_another_one_replaced() -> None:
    """Only what was made from it may stand in its place, or what a person put there by hand."""
    model = Model()
    first, stranger = saved(model), saved(model)
    child = saved(model, parent=first.number)
    for new, by_hand in ((child, False), (stranger, True), (stranger, False)):
        was = [Change("b", "p", 0, text.number, by_hand=False) for text in (first, child, stranger)]
        model.judge([*was, Change("c", "p", first.number, new.number, by_hand)], {})
    assert kinds(model) == ["lost"]


def test_the_model_sees_a_removal_that_nobody_asked_for() -> None:
    model = Model()
    text = saved(model)
    gone = [
        Change("b", "p", 0, text.number, by_hand=False),
        Change("c", "p", text.number, 0, by_hand=False),
    ]
    model.judge(gone, {})
    assert kinds(model) == ["lost"]
    model.remove("a")
    model.removed("a")
    model.judge(gone, {})
    assert kinds(model) == ["lost"]


def test_the_model_sees_an_older_text_that_is_shown_without_a_word() -> None:
    """And one that is not what anybody wrote, and one that was said not to be saved."""
    model = Model()
    old = saved(model)
    new = saved(model, parent=old.number)
    later = new.ended + 1
    model.loaded("laptop", "a", old.body, stale="master is away", began=later)
    model.loaded("desktop", "a", old.body, stale="", began=later)
    assert kinds(model) == []
    model.loaded("laptop", "a", old.body, stale="", began=later)
    model.loaded("laptop", "a", old.body + b"!", stale="", began=later)
    assert kinds(model) == ["stale", "wrong bytes"]
    unsaved = saved(model, answer="not saved")
    model.judge(
        [Change("c", "p", 0, text.number, by_hand=False) for text in (old, new, unsaved)], {}
    )
    assert kinds(model)[2:] == ["untrue"]
