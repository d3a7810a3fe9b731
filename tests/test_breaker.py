from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annoris.breaker import MAX_PAUSE, PROBE_SECONDS, Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 1_795_500_000.123

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def path(folder: Path) -> str:
    return str(folder / "breaker.json")


@pytest.fixture
def breaker(path: str, clock: Clock) -> Breaker:
    return Breaker(path, clock=clock)


def test_nothing_is_blocked_at_first(breaker: Breaker) -> None:
    assert not breaker.blocked("hot")
    assert breaker.state() == {}


def test_a_failure_blocks_its_tier_only_and_in_every_process(
    breaker: Breaker, path: str, clock: Clock
) -> None:
    assert breaker.failed("hot", "connection refused")
    other = Breaker(path, clock=clock)
    assert other.blocked("hot")
    assert not other.blocked("emergency")


def test_the_state_tells_since_when_until_when_how_often_and_why(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.failed("hot", "connection refused", pause=20)
    state = breaker.state()["hot"]
    assert (state.since, state.failures, state.why) == (clock.now, 1, "connection refused")
    assert state.until == pytest.approx(clock.now + 20)


def test_after_the_pause_one_caller_probes_and_the_others_go_on_skipping(
    breaker: Breaker, path: str, clock: Clock
) -> None:
    breaker.failed("hot", "timeout", pause=30)
    clock.now += 29
    assert breaker.blocked("hot")
    clock.now += 2
    assert not breaker.blocked("hot")
    assert breaker.blocked("hot")
    assert Breaker(path, clock=clock).blocked("hot")


def test_a_probe_that_never_reports_is_replaced(breaker: Breaker, clock: Clock) -> None:
    breaker.failed("hot", "timeout")
    clock.now += 31
    assert not breaker.blocked("hot")
    clock.now += PROBE_SECONDS + 1
    assert not breaker.blocked("hot")
    assert breaker.blocked("hot")


def test_the_pause_doubles_with_each_failed_probe_up_to_its_limit(
    breaker: Breaker, clock: Clock
) -> None:
    pauses = []
    for _ in range(7):
        breaker.failed("hot", "timeout", pause=30)
        pauses.append(round(breaker.state()["hot"].until - clock.now))
        assert breaker.blocked("hot")
        clock.now += pauses[-1] + 1
        assert not breaker.blocked("hot")
    assert pauses == [30, 60, 120, 240, 300, 300, 300]


def test_failures_of_one_outage_count_and_write_once(
    breaker: Breaker, path: str, clock: Clock
) -> None:
    assert breaker.failed("hot", "timeout")
    written = os.stat(path).st_mtime_ns
    assert not any(breaker.failed("hot", "timeout") for _ in range(20))
    assert os.stat(path).st_mtime_ns == written
    state = breaker.state()["hot"]
    assert state.failures == 1
    assert state.until == pytest.approx(clock.now + 30)


def test_a_failure_after_the_pause_counts_even_if_nobody_asked(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.failed("hot", "timeout")
    clock.now += 31
    assert not breaker.failed("hot", "refused")
    state = breaker.state()["hot"]
    assert (state.failures, state.why) == (2, "refused")
    assert state.since == clock.now - 31


def test_success_unblocks_and_is_a_transition_once(breaker: Breaker) -> None:
    breaker.failed("hot", "timeout")
    breaker.failed("emergency", "timeout")
    assert breaker.succeeded("hot")
    assert not breaker.succeeded("hot")
    assert not breaker.blocked("hot")
    assert breaker.blocked("emergency")
    assert breaker.failed("hot", "timeout")


def test_success_of_a_tier_that_was_up_writes_nothing(breaker: Breaker, folder: Path) -> None:
    assert not breaker.succeeded("hot")
    assert os.listdir(folder) == []


def test_no_file_of_its_own_remains_beside_the_memory(breaker: Breaker, folder: Path) -> None:
    breaker.failed("hot", "timeout")
    assert sorted(os.listdir(folder)) == ["breaker.json", "breaker.json.lock"]
    breaker.succeeded("hot")
    assert os.listdir(folder) == ["breaker.json.lock"]


def test_a_deadline_from_before_the_clock_moved_back_is_ignored(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.failed("hot", "timeout")
    clock.now -= 7200
    assert not breaker.blocked("hot")
    assert breaker.blocked("hot")
    assert breaker.state()["hot"].until == pytest.approx(clock.now + PROBE_SECONDS)


def test_a_pause_is_cut_to_the_longest_and_survives_a_clock_that_is_set_right(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.failed("hot", "timeout", pause=MAX_PAUSE * 3)
    assert breaker.state()["hot"].until == pytest.approx(clock.now + MAX_PAUSE)
    clock.now -= 0.5
    assert breaker.blocked("hot")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"hot": 1}',
        b'{"hot": {"since": 1}}',
        b'{"hot": {"since": 1, "until": "x", "failures": 1, "why": ""}}',
        b'{"hot": {"since": 1, "until": 2, "failures": 1e999, "why": ""}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_damaged_memory_is_an_empty_one_and_is_replaced(
    breaker: Breaker, path: str, content: bytes
) -> None:
    Path(path).write_bytes(content)
    assert breaker.state() == {}
    assert not breaker.blocked("hot")
    assert not breaker.succeeded("hot")
    assert breaker.failed("hot", "timeout")
    assert breaker.blocked("hot")


_NUMBERS = st.integers() | st.floats()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(since=_NUMBERS, until=_NUMBERS, failures=_NUMBERS)
def test_no_number_in_the_memory_blocks_for_longer_than_the_longest_pause(
    tmp_path: Path, since: float, until: float, failures: float
) -> None:
    path, clock = str(tmp_path / "numbers.json"), Clock()
    fields = {"since": since, "until": until, "failures": failures, "why": ""}
    Path(path).write_text(json.dumps({"hot": fields}), encoding="utf-8")
    breaker = Breaker(path, clock=clock)
    breaker.blocked("hot")
    breaker.failed("hot", "timeout")
    clock.now += MAX_PAUSE + 2
    assert not breaker.blocked("hot")


def test_a_folder_that_does_not_exist_means_no_memory_and_no_failure(tmp_path: Path) -> None:
    breaker = Breaker(str(tmp_path / "gone" / "breaker.json"))
    assert not breaker.failed("hot", "timeout")
    assert not breaker.blocked("hot")
    assert not breaker.succeeded("hot")


def test_a_memory_that_can_not_be_written_blocks_nobody_and_repeats_no_transition(
    breaker: Breaker, folder: Path, clock: Clock
) -> None:
    """The lock's place is taken by a folder, so that root is refused too."""
    breaker.failed("hot", "timeout")
    os.unlink(folder / "breaker.json.lock")
    os.mkdir(folder / "breaker.json.lock")
    assert breaker.blocked("hot")
    clock.now += 31
    assert not breaker.blocked("hot")
    assert not breaker.succeeded("hot")
    assert not breaker.failed("hot", "timeout")


def test_a_stopped_process_that_holds_the_lock_delays_nobody_for_long(
    breaker: Breaker, path: str
) -> None:
    code = f"""
        import fcntl, os, sys
        fcntl.flock(os.open({path + ".lock"!r}, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
        print("locked", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert not breaker.failed("hot", "timeout")
        holder.communicate()
    assert breaker.failed("hot", "timeout")


def _together(code: str, count: int = 6) -> list[str]:
    """What ``count`` processes print that all begin once the last of them is ready."""
    wait = "import sys, annoris.breaker\n"
    wait += "annoris.breaker._LOCK_SECONDS = 60  # however busy this machine is\n"
    wait += "print('ready', flush=True); sys.stdin.readline()\n"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code).replace("WAIT", wait)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate()[0].strip() for process in running]


def test_of_many_processes_one_sees_the_tier_go_down_one_probes_and_one_sees_it_come_back(
    breaker: Breaker, path: str, clock: Clock
) -> None:
    head = f"from annoris.breaker import Breaker\nbreaker = Breaker({path!r}, clock=lambda: NOW)\n"

    def run(call: str, now: float) -> list[str]:
        return _together(head.replace("NOW", repr(now)) + f"WAIT\nprint({call})")

    assert sorted(run("breaker.failed('hot', 'timeout')", clock.now)) == ["False"] * 5 + ["True"]
    assert run("breaker.blocked('hot')", clock.now + 1) == ["True"] * 6
    assert sorted(run("breaker.blocked('hot')", clock.now + 31)) == ["False"] + ["True"] * 5
    assert sorted(run("breaker.succeeded('hot')", clock.now + 32)) == ["False"] * 5 + ["True"]
    assert breaker.state() == {}


def test_processes_that_write_at_once_lose_nothing(breaker: Breaker, path: str) -> None:
    code = f"""
        import os
        from annoris.breaker import Breaker
        breaker = Breaker({path!r}, clock=lambda: 1000.0)
        WAIT
        print(all([breaker.failed(f"{{os.getpid()}} {{n}}", "x") for n in range(20)]))
    """
    assert _together(textwrap.dedent(code), 4) == ["True"] * 4
    assert len(breaker.state()) == 80
