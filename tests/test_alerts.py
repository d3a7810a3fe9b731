"""Alerts: what is decided, what arrives at a server that speaks Telegram's Bot API."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annoris import alerts as module
from annoris.alerts import Alerts, Memory, due, noted, parts, quiet, settled
from annoris.envelope import new_key
from annoris.errors import AuthRefused, ConfigError, Locked, Queued, RemoteUnreachable
from annoris.events import of_key, of_outbox, of_run, of_sync, of_tier, of_verify
from annoris.hot import Hot
from annoris.model import Alert, Draft, Finding, Level, Receipt, Report
from annoris.settings import AlertSettings, Settings, load
from tests.support.machine import Machine
from tests.support.telegram import CHAT, LIMIT, TOKEN, Telegram, shown
from tests.support.tiers import Tiers

Make = Callable[..., Machine]

MONDAY = 1_795_521_600.0  # 12:00 UTC
DOWN = Alert("tier:hot", "warning", "down", "why")
UP = Alert("tier:hot", over=True)
BODY = b"# Notes\n\ntext\n"


class Desk:
    """The memory of a target, a clock that a test moves, and what was heard there."""

    def __init__(self, **settings: Any) -> None:
        self.settings = AlertSettings(**{"digest_seconds": 1.0, **settings})
        self.memory = Memory()
        self.now = MONDAY
        self.heard: list[str] = []

    def run(self, *alerts: Alert, missed: bool = False, after: float = 60.0) -> list[str]:
        """A command that raises alerts, a minute later; answers what is told, over as ``/key``."""
        self.now += after
        self.memory = noted(self.memory, alerts, self.now, self.settings)
        batch = due(self.memory, self.now, self.settings)
        if missed or not batch:
            return []
        self.memory = settled(self.memory, batch, self.now, self.settings)
        self.memory = replace(self.memory, last=self.now)
        told = [_name(item.alert) for item in batch.values()]
        self.heard += told
        return told


def _name(alert: Alert) -> str:
    return f"/{alert.key}" if alert.over else alert.key


# --- deciding --------------------------------------------------------------------------------


def test_a_trouble_is_told_once_reminded_of_and_called_over_once() -> None:
    """Each run sees it; people hear of it, of a reminder a day later, and of its end."""
    desk = Desk(repeat_seconds=600.0)
    assert desk.run(DOWN) == ["tier:hot"]
    assert [desk.run(DOWN) for _ in range(9)] == [[]] * 9
    assert desk.run(DOWN) == ["tier:hot"]
    assert desk.run(UP) == ["/tier:hot"]
    assert desk.run(UP) == []


def test_nobody_hears_of_the_end_of_what_they_never_heard_of() -> None:
    assert Desk().run(UP) == []


def test_a_trouble_and_its_end_that_could_not_be_told_are_told_together() -> None:
    """It is over by the time that a message gets through: the message says both."""
    desk = Desk()
    desk.run(DOWN, missed=True)
    desk.run(DOWN, missed=True)
    assert desk.run(UP) == ["/tier:hot"]
    assert desk.memory.waiting == {}


def test_a_tier_that_flaps_is_no_storm() -> None:
    """Down again soon after its end is kept until ``repeat_seconds`` have passed."""
    desk = Desk(repeat_seconds=600.0)
    assert [desk.run(one) for one in (DOWN, UP, DOWN, UP, DOWN, UP, DOWN)] == [
        ["tier:hot"], ["/tier:hot"], [], [], [], [], [],
    ]  # fmt: skip
    (item,) = desk.memory.waiting.values()
    assert item.times == 3
    assert desk.run(after=300) == ["tier:hot"]


def test_a_trouble_that_is_back_before_its_end_was_told_is_no_news() -> None:
    """Its end waited for the morning, and in the morning it is not over."""
    desk = Desk()
    desk.run(DOWN)
    desk.settings = replace(desk.settings, quiet_hours="11:00-13:00 UTC")
    assert desk.run(UP) == []
    desk.run(DOWN)
    assert desk.memory.waiting == {}


def test_the_end_of_the_general_ends_the_particular_and_no_more() -> None:
    desk = Desk()
    keys = ("sync", "sync:refused", "sync:storage", "synchrotron")
    desk.run(*(Alert(key, "error", key) for key in keys))
    assert sorted(desk.run(Alert("sync", over=True))) == ["/sync", "/sync:refused", "/sync:storage"]


def test_what_is_below_the_level_is_not_kept() -> None:
    desk = Desk(level="error")
    assert desk.run(DOWN, Alert("sync:refused", "error", "failed")) == ["sync:refused"]
    assert desk.memory.waiting == {}


def test_a_storm_becomes_a_digest() -> None:
    """After a message the next one waits ``digest_seconds``, and then brings all at once."""
    desk = Desk(digest_seconds=300.0)
    assert desk.run(Alert("first", "error", "x")) == ["first"]
    assert [desk.run(Alert(f"k{n}", "error", "x")) for n in range(4)] == [[]] * 4
    assert desk.run(Alert("k4", "error", "x")) == ["k0", "k1", "k2", "k3", "k4"]


def test_in_quiet_hours_errors_go_through_and_the_rest_waits() -> None:
    desk = Desk(quiet_hours="11:00-13:00 UTC")
    assert desk.run(DOWN, Alert("verify:x", "error", "bad")) == ["verify:x"]
    assert desk.run(Alert("verify", over=True)) == []
    assert desk.run(after=3600) == ["tier:hot", "/verify:x"]


@pytest.mark.parametrize(
    ("hours", "clock", "expected"),
    [
        ("", "03:00", False),
        ("22:00-07:00 UTC", "21:59", False), ("22:00-07:00 UTC", "22:00", True),
        ("22:00-07:00 UTC", "00:00", True), ("22:00-07:00 UTC", "06:59", True),
        ("22:00-07:00 UTC", "07:00", False), ("12:00-13:30 UTC", "13:29", True),
        ("12:00-13:30 UTC", "13:30", False), ("22:00-07:00 Asia/Tokyo", "13:00", True),
        ("22:00-07:00 Asia/Tokyo", "23:00", False),
    ],
)  # fmt: skip
def test_quiet_hours_may_span_midnight_in_any_zone(hours: str, clock: str, expected: bool) -> None:
    moment = datetime.fromisoformat(f"2026-11-23T{clock}:00+00:00").timestamp()
    assert quiet(hours, moment) == expected


def test_the_time_to_the_next_alert_counts_from_the_last_one_not_from_its_end() -> None:
    desk = Desk(repeat_seconds=600.0)
    desk.run(DOWN)
    assert desk.run(UP, after=500) == ["/tier:hot"]
    assert desk.run(DOWN, after=110) == ["tier:hot"]


def test_a_clock_that_was_set_back_holds_nothing_back() -> None:
    desk = Desk(digest_seconds=300.0)
    desk.run(DOWN)
    assert desk.run(Alert("other", "error", "x"), after=-86_400) == ["other"]


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["raise", "end", "end all", "wait"]),
        st.sampled_from(["t:a", "t:b", "u"]),
        st.sampled_from(["info", "warning", "error"]),
        st.booleans(),
        st.sampled_from([1.0, 30.0, 90.0, 400.0]),
    ),
    max_size=40,
)


@given(steps=_STEPS, hours=st.sampled_from(["", "12:05-12:10 UTC"]))
def test_no_alert_is_lost_or_told_twice_or_over_too_early(
    steps: list[tuple[str, str, Level, bool, float]], hours: str
) -> None:
    """Whatever happens and fails: each is told, once in ``repeat_seconds``, and then over."""
    desk = Desk(repeat_seconds=100.0, digest_seconds=20.0, quiet_hours=hours)
    is_over: dict[str, bool] = {}
    told_at: dict[str, float] = {}
    for verb, key, level, missed, after in steps:
        ended = "t" if verb == "end all" else key
        alerts = {"raise": [Alert(key, level, key)], "wait": []}.get(
            verb, [Alert(ended, over=True)]
        )
        if verb == "raise" and level != "info":
            is_over[key] = False
        if verb.startswith("end"):
            is_over |= {one: True for one in is_over if f"{one}:".startswith(f"{ended}:")}
        for told in desk.run(*alerts, missed=missed, after=after):
            if not told.startswith("/"):
                assert desk.now - told_at.get(told, 0) >= 100, "told twice too soon"
                told_at[told] = desk.now
    for _ in range(3):
        desk.run(after=600)
    assert desk.memory.waiting == {}, "something waits for ever"
    believed = {name.removeprefix("/"): name.startswith("/") for name in desk.heard}
    assert believed == is_over, "something was lost, or people believe what is not so"


# --- wording ---------------------------------------------------------------------------------


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])), max_size=8),
    st.integers(100, 400),
)
def test_parts_fit_and_hold_everything(text: list[str], limit: int) -> None:
    """Up to five messages lose nothing; a longer digest says that there is more."""
    made = parts(text, limit)
    assert all(module._cost(part) <= limit for part in made)
    whole = "".join(text)
    if len(made) < module._PARTS:
        assert "".join(made).replace("\n", "") == whole
    else:
        assert whole.startswith("".join(made).replace("\n", "").removesuffix(module._MORE))


def test_a_message_is_cut_between_alerts_then_lines_then_words() -> None:
    assert parts(["one " * 10, "two " * 10], 100) == ["one " * 10, "two " * 10]
    assert parts(["a" * 50 + "\n" + "b" * 50], 100) == ["a" * 50 + "\n", "b" * 50]
    assert all(part.endswith(" ") for part in parts(["words " * 40], 100))


# --- what happened ---------------------------------------------------------------------------


_ID = "01890000-0000-7000-8000-0000cafe0001"
CONFLICT = Receipt("conflict", _ID, "sessions/x.md", "shop", "Title", conflict_of=_ID)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Report(), ["/sync", "/tier:master"]),
        (Report(conflicts=(CONFLICT,)), ["/sync", "/tier:master", f"conflict:{CONFLICT.id}"]),
        (AuthRefused("no", hint="do this"), ["sync:refused-auth"]),
        (RemoteUnreachable("silent"), ["tier:master"]),
        (Queued("silent; 2 waiting"), ["tier:master"]),
        (Locked("busy"), []),
        (OSError(28, "No space left on device"), ["sync:storage"]),
        (ZeroDivisionError("token=abc"), ["sync:bug"]),
    ],
)  # fmt: skip
def test_what_a_sync_answers_or_raises_becomes_alerts(
    outcome: Report | Exception, expected: list[str]
) -> None:
    assert [_name(alert) for alert in of_sync(outcome)] == expected


def test_a_bug_is_told_by_its_kind_alone() -> None:
    """Its message may hold anything, a document's text for one."""
    (alert,) = of_run("dump", ZeroDivisionError("content"))
    assert (alert.title, alert.text) == ("dump failed", "ZeroDivisionError")


def test_findings_are_told_by_kind_and_healed_ones_are_not() -> None:
    bad = [
        Finding("checksum", "hot", str(n), f"row {n} is wrong", "annoris sync") for n in range(7)
    ]
    healed = Finding("missing", "catalog", "x", "was missing", healed=True)
    (alert,) = of_verify([*bad, healed])
    assert (alert.key, alert.level) == ("verify:checksum", "error")
    assert "row 0 is wrong" in alert.text
    assert "7 of them" in alert.text
    assert alert.text.endswith("annoris sync")
    assert of_verify([healed]) == of_verify([]) == [Alert("verify", over=True)]
    assert [alert.key for alert in of_verify(AuthRefused("no"))] == ["verify:refused-auth"]


def _draft(at: str, key: str = "k") -> Draft:
    return Draft(key, "save", "id", "sessions/x.md", "", "shop", "", "Title", "", at)


def test_an_outbox_is_told_of_when_its_oldest_is_too_old() -> None:
    at = datetime.fromtimestamp(MONDAY - 100, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    waiting = [_draft(at), _draft(at)]
    assert [_name(a) for a in of_outbox(waiting, [], MONDAY, 101)] == ["/outbox", "/aside"]
    old, _ = of_outbox(waiting, [], MONDAY, 99)
    assert (old.key, old.over) == ("outbox", False)
    assert at in old.text
    told = of_outbox([], [(_draft(at, "k1"), "GH013"), (_draft(at, "k2"), "GH001")], MONDAY, 1)
    assert [_name(alert) for alert in told] == ["/outbox", "aside:k1", "aside:k2"]
    assert "GH013" in told[1].text


def test_a_key_that_was_not_tried_says_nothing() -> None:
    assert of_key(None) == []
    assert [_name(*of_key(problem)) for problem in ("", "wrong")] == ["/key", "key"]


# --- sending ---------------------------------------------------------------------------------


@pytest.fixture
def telegram(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telegram]:
    """Telegram, for this process: Apprise's own plugin speaks to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from apprise.plugins.telegram import NotifyTelegram  # noqa: PLC0415
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Telegram() as running:
        monkeypatch.setattr(NotifyTelegram, "notify_url", f"{running.address}/bot")
        yield running


class Watch:
    """A clock that stands until it is told to move."""

    def __init__(self) -> None:
        self.now = MONDAY

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def at(tmp_path: Path, telegram: Telegram, watch: Watch) -> Callable[..., Alerts]:
    """Alerts of a machine whose target is that Telegram."""

    def make(name: str = "laptop", *, claim: module.Claim | None = None, **more: Any) -> Alerts:
        settings = Settings(
            data_dir=str(tmp_path / name),
            alerts=AlertSettings(**{"urls": (telegram.url,), **more}),
        )
        return Alerts(settings, claim=claim, clock=watch)

    return make


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The loggers of which a program that logs would hear."""
    names: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names.append(record.name)

    listener = Listener()
    logging.getLogger().addHandler(listener)
    yield names
    logging.getLogger().removeHandler(listener)


def test_an_alert_arrives_at_telegram_as_it_was_written(
    at: Callable[..., Alerts], telegram: Telegram
) -> None:
    """Whatever looks like markup in a title or a text is text."""
    title, text = "<b>&_*[]()~`>#+-=|{}.! &amp; \\", "line <i>one</i> & \\*two\\*\n<script> [x](y)"
    assert at().raise_([Alert("x", "error", title, text)]) == []
    (arrived,) = telegram.texts
    head, _, rest = arrived.partition("\n")
    assert head.endswith(f": {title}")
    assert rest == f"{text}\nproject default"
    assert telegram.payloads[0]["text"].startswith("<b>")


def test_a_digest_is_split_at_telegrams_limit_and_nothing_is_missing(
    at: Callable[..., Alerts], telegram: Telegram
) -> None:
    """The server refuses a message over 4,096 characters, a cut entity and an open tag."""
    many = [Alert(f"k{n}", "warning", f"title {n} <&>", f"text {n} & <b> " * 30) for n in range(20)]
    assert at().raise_(many) == []
    assert 1 < len(telegram.texts) <= module._PARTS
    assert all(len(payload["text"]) <= LIMIT for payload in telegram.payloads)
    whole = "\n".join(telegram.texts)
    for alert in many:
        assert alert.title in whole
        assert alert.text.strip() in whole
    assert f"({len(telegram.texts)}/{len(telegram.texts)})" in telegram.texts[-1]


def test_a_digest_that_telegram_stops_halfway_comes_again_whole(
    at: Callable[..., Alerts], telegram: Telegram
) -> None:
    """Its "retry after 7" is longer than an alert may take, so the next run tells it."""
    many = [Alert(f"k{n}", "warning", f"title {n}", "text " * 100) for n in range(20)]
    here, telegram.room = at(), 1
    (complaint,) = here.raise_(many)
    assert "retry after 7" in complaint
    assert "it is kept for the next run" in complaint
    assert here.condition().startswith("20 waiting")
    telegram.room = 1000
    telegram.payloads.clear()
    assert here.raise_([]) == []
    whole = "\n".join(telegram.texts)
    assert all(alert.title in whole for alert in many)
    assert here.condition() == "none waits"


def test_what_no_message_can_hold_is_said_to_be_left_out(
    at: Callable[..., Alerts], telegram: Telegram
) -> None:
    at().raise_([Alert(f"k{n}", "warning", f"title {n}", "& " * 500) for n in range(99)])
    assert len(telegram.texts) == module._PARTS
    assert telegram.texts[-1].endswith("and more: annoris alerts")


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("flood", "Too Many Requests"), ("unauthorized", "Unauthorized"),
        ("entities", "can't parse entities"), ("drop", "connection error"),
        ("hang", "did not answer in time"),
    ],
)  # fmt: skip
def test_an_alert_that_does_not_arrive_is_kept_and_told_at_the_next_run(
    at: Callable[..., Alerts], telegram: Telegram, log: list[str], mode: str, reason: str
) -> None:
    """The complaint says why, and nothing that is kept, said or logged holds the token."""
    here = at(seconds=0.5 if mode == "hang" else 10.0)
    telegram.mode = mode  # type: ignore[assignment]
    (complaint,) = here.raise_([DOWN])
    assert reason in complaint
    assert reason in here.condition()
    telegram.mode = "ok"
    assert here.raise_([]) == []
    assert [text.split(": ")[-1] for text in telegram.texts] == ["down\nwhy\nproject default"]
    assert here.condition() == "none waits"
    assert here.raise_([DOWN]) == []
    assert len(telegram.texts) == 1
    said = complaint + Path(here._path).read_text()
    assert "apprise" not in log
    assert not any(secret in said for secret in (TOKEN, TOKEN.partition(":")[2], CHAT))


def test_one_broken_target_does_not_keep_the_other_from_hearing(
    at: Callable[..., Alerts], telegram: Telegram
) -> None:
    """Neither a URL that is none nor a port where nobody listens."""
    here = at(urls=("nonsense://token123456", telegram.url, "json://127.0.0.1:9/secret99"))
    complaints = here.raise_([DOWN])
    assert len(telegram.texts) == 1
    assert [text.split(":")[0] for text in complaints] == [
        "an alert did not arrive at target 1 (nonsense)",
        "an alert did not arrive at target 3 (json)",
    ]
    assert not any("token123456" in text or "secret99" in text for text in complaints)


def test_what_one_target_missed_waits_for_that_one_alone(
    at: Callable[..., Alerts], telegram: Telegram, watch: Watch
) -> None:
    """The others do not hear it twice, and each hears all; one that is new hears what is new."""
    with Telegram() as second:
        urls = (telegram.url, second.plain_url)
        second.mode = "drop"
        assert len(at(urls=urls).raise_([DOWN])) == 1
        assert len(at(urls=urls).raise_([UP])) == 1
        second.mode = "ok"
        watch.now += 400
        at(urls=urls).raise_([])
        assert ["over" in text for text in telegram.texts] == [False, True]
        assert second.texts == [telegram.texts[1].replace("\nsince", "\nwhy\nsince")]
        assert len(at(urls=urls[1:]).memory()) == 1
        at().raise_([])
        assert len(telegram.texts) == 2


def test_a_second_run_soon_after_a_message_is_part_of_the_next_digest(
    at: Callable[..., Alerts], telegram: Telegram, watch: Watch
) -> None:
    """A message that did not arrive holds nothing back."""
    telegram.mode = "drop"
    at().raise_([DOWN])
    telegram.mode = "ok"
    at().raise_([])
    at().raise_([Alert("other", "error", "other")])
    assert len(telegram.texts) == 1
    watch.now += 301
    at().raise_([])
    assert "other" in telegram.texts[1]


def test_one_alert_of_many_threads_arrives_once(
    at: Callable[..., Alerts], telegram: Telegram
) -> None:
    """As of many processes: who does not hold the sending lock leaves it to the one that does."""
    ready = threading.Barrier(8)

    def run(_: int) -> list[str]:
        here = at()
        ready.wait()
        return here.raise_([DOWN])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [[]] * 8
    assert len(telegram.texts) == 1
    assert at().condition() == "none waits"


def test_what_is_noted_while_another_one_sends_is_not_lost(
    at: Callable[..., Alerts], telegram: Telegram, watch: Watch
) -> None:
    """The sender puts aside what it told, and nothing that came meanwhile."""
    here, other = at(), at()

    def meanwhile(alerts: list[tuple[str, bool]], holder: str, seconds: float) -> set[str]:
        other.note([Alert("late", "error", "late"), UP])
        assert other.raise_([DOWN, UP]) == []
        return {key for key, _ in alerts}

    here._claim = meanwhile
    here.raise_([replace(DOWN, shared=True)])
    assert len(telegram.texts) == 1
    watch.now += 400
    here.raise_([])
    assert "late" in telegram.texts[1]
    assert "over: down" in telegram.texts[1]


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "{}", '{"MARK": 3}', '{"MARK": {}}', '"warning"', '"waiting"']
)
def test_a_damaged_memory_is_begun_anew(
    at: Callable[..., Alerts], telegram: Telegram, damage: str
) -> None:
    """A file that is no JSON, is of another shape, or has another word where one was."""
    here = at()
    here.raise_([DOWN])
    (mark,) = here.memory()
    memory = Path(here._path)
    is_word = damage.startswith('"')
    memory.write_text(
        memory.read_text().replace(damage, '"x"') if is_word else damage.replace("MARK", mark)
    )
    assert list(here.memory().values()) == [Memory()]
    assert here.raise_([DOWN]) == []
    assert len(telegram.texts) == 2


def test_a_disk_that_refuses_does_not_silence_the_alert_about_it(
    at: Callable[..., Alerts], telegram: Telegram, tmp_path: Path
) -> None:
    (tmp_path / "laptop").write_text("a file, where the data folder would be")
    (complaint, *_) = at().raise_([Alert("sync:storage", "error", "sync failed", "disk full")])
    assert "alerts.json" in complaint
    assert "disk full" in telegram.texts[0]


def test_alerts_never_raise(at: Callable[..., Alerts], telegram: Telegram) -> None:
    """A bug in here is a complaint; the command goes on."""

    def broken(alerts: list[tuple[str, bool]], holder: str, seconds: float) -> set[str]:
        raise RuntimeError("secret")

    assert at(claim=broken).raise_([replace(DOWN, shared=True)]) == [
        "alerts are out of order: RuntimeError"
    ]


def test_credentials_in_the_words_of_an_error_do_not_leave_the_machine(
    telegram: Telegram, tmp_path: Path, watch: Watch
) -> None:
    """They are struck out before anything is kept or sent."""
    password, token = "hunter2" + "hunter3", "ghp_" + "a1B2" * 9
    settings = load(
        environ={
            "HOME": str(tmp_path),
            "ANNORIS_MASTER_TOKEN": token,
            "ANNORIS_HOT_URL": f"postgresql://me:{password}@db.example/x",
            "ANNORIS_ALERTS_URLS": telegram.url,
        }
    )
    here = Alerts(settings, clock=watch)
    text = f"git said {token} and {settings.hot.url}\nhttps://u:{'other' * 3}@x.example {password}"
    here.note([Alert("a", "error", f"about {token}", text)])
    here.raise_([])
    for said in (telegram.texts[0], Path(here._path).read_text()):
        assert not any(secret in said for secret in (token, password, "other" * 3))
    assert TOKEN not in repr(settings)


# --- several machines ------------------------------------------------------------------------


def test_of_two_machines_one_claims_a_trouble_and_the_first_claims_its_end(hot_url: str) -> None:
    hot = Hot(hot_url, seconds=30)
    try:
        assert hot.claim([("a", False), ("b", False)], "one", 60) == {"a", "b"}
        assert hot.claim([("a", False), ("c", False)], "two", 60) == {"c"}
        assert hot.claim([("a", False)], "one", 60) == {"a"}, "who could not send tries again"
        assert hot.claim([("a", True)], "two", 60) == {"a"}
        assert hot.claim([("a", True)], "one", 60) == set()
        assert hot.claim([("a", False)], "one", 60) == set(), "told lately"
        assert hot.claim([("a", False)], "one", 1e-6) == {"a"}
        assert hot.claim([("unheard", True)], "one", 60) == {"unheard"}
        assert hot.claim([("unheard", False)], "two", 60) == {"unheard"}
        assert hot.claim([], "one", 60) == set()
    finally:
        hot.close()


def test_an_older_hot_cache_gets_the_table_of_claims(hot_url: str) -> None:
    """As the version before left it: without that table."""
    with psycopg.connect(hot_url) as db:
        db.execute("DROP TABLE annoris.alerts")
        db.execute("UPDATE annoris.state SET version = 1")
    hot = Hot(hot_url, seconds=30)
    hot.prepare()
    assert hot.claim([("a", False)], "one", 60) == {"a"}
    hot.close()


def test_machines_that_share_a_hot_cache_tell_of_a_shared_trouble_once(
    at: Callable[..., Alerts], telegram: Telegram, hot_url: str, watch: Watch
) -> None:
    """And once of its end, whoever sees that first; of what is its own each tells itself."""
    hots = [Hot(hot_url, seconds=30) for _ in range(2)]
    one, two = (at(name, claim=hot.claim) for name, hot in zip(("one", "two"), hots, strict=True))
    trouble = of_tier("emergency", "refused")
    own = Alert("outbox", "warning", "own")
    for here in (one, two, one):
        assert here.raise_([trouble, own]) == []
        watch.now += 400
    assert sum("emergency cache" in text for text in telegram.texts) == 1
    assert sum("own" in text for text in telegram.texts) == 2
    watch.now += 400
    assert two.condition() == "none waits"
    for here in (two, one):
        assert here.raise_([of_tier("emergency", "")]) == []
        assert here.condition() == "none waits"
    assert sum("over: the emergency" in text for text in telegram.texts) == 1
    for hot in hots:
        hot.close()


def test_without_a_word_from_the_others_each_machine_tells(
    at: Callable[..., Alerts], telegram: Telegram
) -> None:
    """The hot cache is down: better twice than never."""
    for name in ("one", "two"):
        at(name, claim=lambda alerts, holder, seconds: None).raise_([of_tier("hot", "refused")])
    assert len(telegram.texts) == 2


# --- settings --------------------------------------------------------------------------------


def test_urls_from_the_environment_may_hold_commas(tmp_path: Path) -> None:
    urls = "tgram://t/1/2,mailto://u:p@example.com?to=a,b json://x\nntfys://topic"
    found = load(environ={"HOME": str(tmp_path), "ANNORIS_ALERTS_URLS": urls}).alerts.urls
    assert found == (
        "tgram://t/1/2", "mailto://u:p@example.com?to=a,b", "json://x", "ntfys://topic",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("level", "loud", "info, warning or error"), ("quiet_hours", "22-7", "22:00-07:00"),
        ("quiet_hours", "24:00-07:00", "22:00-07:00"),
        ("quiet_hours", "07:00-07:00", "22:00-07:00"),
        ("quiet_hours", "22:00-07:00 Middle/Earth", "Europe/Berlin"),
        ("quiet_hours", "22:00-07:00 ../../etc/passwd", "Europe/Berlin"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_with_what_is_expected(
    tmp_path: Path, key: str, value: str, said: str
) -> None:
    environ = {"HOME": str(tmp_path), f"ANNORIS_ALERTS_{key.upper()}": value}
    with pytest.raises(ConfigError) as caught:
        load(environ=environ)
    assert f"alerts.{key}" in caught.value.message
    assert said in caught.value.message + caught.value.hint


def test_a_secret_of_the_wrong_type_is_not_shown(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[alerts]\nurls = "tgram://{TOKEN}/1"\n')
    with pytest.raises(ConfigError) as caught:
        load(str(config), environ={"HOME": str(tmp_path)})
    assert "a list of texts" in caught.value.message
    assert TOKEN not in caught.value.message


# --- the command line ------------------------------------------------------------------------


@pytest.fixture
def phone() -> Iterator[Telegram]:
    """A server that the processes of a machine speak to, when the machine ``hears``."""
    with Telegram() as running:
        yield running


def hears(machine: Machine, phone: Telegram, **settings: str) -> Machine:
    """Have the alerts of a machine go to a phone, without waiting for a digest."""
    settings = {"urls": phone.plain_url, "digest_seconds": "0.001", **settings}
    machine.environment |= {f"ANNORIS_ALERTS_{key}".upper(): val for key, val in settings.items()}
    machine.environment["NO_PROXY"] = "127.0.0.1"
    return machine


def test_alerts_test_says_for_each_target_whether_it_arrived(
    machine: Make, phone: Telegram
) -> None:
    here = hears(machine(), phone)
    here.environment |= phone.point_processes(here.folder / "site")
    ran = here.run("alerts", "test")
    assert (ran.code, ran.text) == (0, "target 1 (tgram): arrived\n")
    assert "a test" in phone.texts[0]
    here.environment["ANNORIS_ALERTS_URLS"] = f"{phone.url},json://127.0.0.1:9"
    ran = here.run("alerts", "test", "--json")
    first, second = ran.json["targets"]
    assert ran.code == 0
    assert first == {"target": "target 1 (tgram)", "failure": ""}
    assert second["failure"]
    phone.mode = "unauthorized"
    ran = here.run("alerts", "test", "--quiet")
    assert (ran.code, ran.text) == (5, "")
    first_line, second_line = ran.err.splitlines()
    assert first_line.endswith("Unauthorized, error=401")
    assert second_line.startswith("annoris: target 2 (json): did not arrive")


def test_alerts_without_a_target_say_how_to_name_one(machine: Make) -> None:
    here = machine()
    assert "ANNORIS_ALERTS_URLS" in here.run("alerts").text
    ran = here.run("alerts", "test")
    assert ran.code == 2
    assert "ANNORIS_ALERTS_URLS" in ran.err


def test_a_tier_that_goes_down_is_told_once_and_once_when_it_is_back(
    make: Make, tiers: Tiers, phone: Telegram
) -> None:
    """A load and a save only note it: the next sync is the one that speaks to Telegram."""
    here = hears(make(), phone)
    here.environment |= phone.point_processes(here.folder / "site")
    here.save(BODY)
    tiers.set(hot=False)
    assert here.run("load").code == 0
    assert here.run("save", "-", stdin=b"# Two\n").code == 0
    assert phone.requests == 0
    assert "1 waiting" in here.run("status").text
    assert here.sync("--quiet").err == ""
    assert here.sync().code == 0
    assert [text.splitlines()[0].split(": ")[-1] for text in phone.texts] == [
        "the hot cache (PostgreSQL) does not answer"
    ]
    (target,) = here.run("alerts", "--json").json["targets"]
    assert [(item["state"], item["key"]) for item in target["alerts"]] == [("told", "tier:hot")]
    tiers.set()
    # The pause of the breaker is over; nothing else is forgotten.
    memory = json.loads((here.data / "breaker.json").read_text())
    memory["hot"]["until"] = time.time() - 1
    (here.data / "breaker.json").write_text(json.dumps(memory))
    assert here.sync().code == 0
    assert here.sync().code == 0
    assert len(phone.texts) == 2
    assert "over: the hot cache" in phone.texts[1]


def test_a_telegram_that_hangs_changes_nothing_about_a_sync(machine: Make, phone: Telegram) -> None:
    """The exit code is the same, the alert is kept and arrives at the next run."""
    here = hears(machine(remote="http://127.0.0.1:9/x.git", master_push_seconds="3"), phone)
    here.environment["ANNORIS_ALERTS_SECONDS"] = "0.5"
    phone.mode = "hang"
    assert here.run("save", "-", stdin=BODY).code == 75
    ran = here.sync()
    assert ran.code == 75
    assert "did not answer in time" in ran.err
    assert "Traceback" not in ran.err
    assert "did not answer in time" in here.run("status", "--json").json["status"]["alerts"]
    phone.mode = "ok"
    here.environment["ANNORIS_ALERTS_SECONDS"] = "10"
    assert here.sync().code == 75
    assert "master does not answer" in phone.texts[0]


def test_what_a_sync_finds_wrong_on_this_machine_is_told(
    make: Make, tiers: Tiers, phone: Telegram, server: Any
) -> None:
    """An old outbox, a document set aside, a key that is not the hot cache's."""
    make("other").save(BODY)
    here = hears(make(), phone, outbox_age_seconds="0.001")
    here.environment["ANNORIS_KEY"] = new_key().text()
    here.environment["ANNORIS_MASTER_REMOTE"] = server.url
    server.refuse_content(b"poison")
    assert here.run("save", "-", stdin=b"# Bad\n\npoison\n").code == 10
    assert here.sync().code == 0
    (text,) = phone.texts
    assert "refused by master: Bad" in text
    assert "this machine's key is not the hot cache's" in text
    server.protect()
    here.run("save", "-", stdin=b"# Good\n")
    assert here.sync().code == 10
    assert "saves are not on master yet" in phone.texts[1]
    assert "sync failed" in phone.texts[1]


def test_apprise_is_imported_only_to_send(machine: Make, phone: Telegram) -> None:
    """Not by a load that notes nothing, nor by a sync that has nothing to say."""
    here = machine(alerts_urls=phone.url)
    here.save(BODY)
    probe = (
        "import sys\n"
        "from annoris import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print(*[name for name in ('apprise', 'annoris.alerts') if name in sys.modules])\n"
    )
    for arguments, imported in (
        (["load"], ""),
        (["sync", "-q"], "annoris.alerts"),
        (["alerts", "test"], "apprise annoris.alerts"),
    ):
        env = here.environment | {"NO_PROXY": "*", "ANNORIS_ALERTS_SECONDS": "0.01"}
        done = subprocess.run(
            [sys.executable, "-c", probe, *arguments],
            cwd=here.desk, env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == imported


def test_the_server_of_these_tests_is_as_strict_as_the_real_one(telegram: Telegram) -> None:
    """So that what arrives there would have arrived."""
    path = f"/bot{TOKEN}/sendMessage"
    base = {"chat_id": CHAT, "parse_mode": "HTML"}
    for text in ("a < b", "a & b", "<b>open", "<div>x</div>", "<b><i>x</b></i>", "x" * 4097, " "):
        assert telegram.answer(path, base | {"text": text})[0] == 400, text
    assert telegram.answer(path, base | {"text": "&lt;" * 4096})[0] == 200
    assert telegram.answer("/botother/sendMessage", base | {"text": "x"})[0] == 404
    assert shown(telegram.payloads[0]["text"]) == "<" * 4096
