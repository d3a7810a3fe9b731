"""Regular runs: a crontab and a folder of units in which only our own part ever changes."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annoris import schedule
from annoris.errors import ConfigError
from tests.support.machine import Machine

Machines = Callable[..., Machine]

START = schedule.command("/opt/annoris/bin/python", ["/usr/bin"])
JOBS = schedule.jobs("laptop 1000", hot=True)
BLOCK = schedule.block(JOBS, START)

# What cron programs do with a file, as far as anybody sees it; systemctl only writes down.
CRONTAB = """#!/bin/sh
file="$HOME/crontab"
case "$1" in
-l) [ -f "$file" ] || { echo "no crontab for me" >&2; exit 1; }; cat "$file" ;;
-r) rm "$file" ;;
-) cat > "$file" ;;
esac
"""
SYSTEMCTL = """#!/bin/sh
[ -e "$HOME/no-systemd" ] && { echo "Failed to connect to bus" >&2; exit 1; }
[ "$2" = show-environment ] || echo "$*" >> "$HOME/systemctl"
"""


@pytest.fixture
def laptop(machine: Machines) -> Machine:
    """A machine with a cron and a systemd that keep to its own home."""
    here = machine(remote="")
    tools = here.folder / "tools"
    tools.mkdir()
    for name, text in (("crontab", CRONTAB), ("systemctl", SYSTEMCTL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    here.environment["PATH"] = f"{tools}{os.pathsep}{here.environment['PATH']}"
    (here.folder / "no-systemd").touch()
    return here


def crontab(machine: Machine) -> Path:
    return machine.folder / "crontab"


def units(machine: Machine) -> Path:
    return machine.folder / ".config" / "systemd" / "user"


# --- text ----------------------------------------------------------------------------------------

lines = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"\r\n",
            b"\n",
            b"MAILTO=ann@example.org\n",
            b"# end\n",
            b"0 5 * * 1 tar \\%d\n",
            b"\xff\n",
        ]
    ),
).filter(lambda line: b"# annoris" not in line)  # a person who writes our marks is told so


@settings(deadline=None)
@given(st.lists(lines, max_size=6).map(b"".join))
def test_any_crontab_comes_back_byte_for_byte(before: bytes) -> None:
    """Without a final newline, with CRLF, NUL or Latin-1 in it: installed, again, removed."""
    once = schedule.with_block(before, BLOCK)
    assert once.startswith(before)
    assert schedule.with_block(once, BLOCK) == once
    assert schedule.without_block(once) == before
    assert schedule.without_block(before) == before


@settings(deadline=None)
@given(st.lists(lines, max_size=4).map(b"".join), st.lists(lines, max_size=4).map(b"".join))
def test_a_block_is_renewed_where_it_stands(before: bytes, after: bytes) -> None:
    old = schedule.with_block(before, schedule.block(JOBS[:1], START))
    new = schedule.with_block(old + after, BLOCK)
    assert new.startswith(before)
    assert new == schedule.with_block(before, BLOCK) + after


@pytest.mark.parametrize("mend", [
    lambda text: text.replace(b"# annoris end\n", b""),
    lambda text: text.replace(b"# annoris begin\n", b""),
    lambda text: text + text,
    lambda text: b"# annoris end\n" + text,
])  # fmt: skip
def test_marks_that_are_no_pair_are_left_to_the_person(mend: Callable[[bytes], bytes]) -> None:
    broken = mend(b"1 2 * * * x\n" + BLOCK)
    for change in (schedule.without_block, lambda text: schedule.with_block(text, BLOCK)):
        with pytest.raises(ConfigError, match="no pair"):
            change(broken)


def as_cron_reads(line: str) -> tuple[list[str], list[str]]:
    """The five fields of a line and the words that its command becomes, as crontab(5) says."""
    *fields, command = line.split(" ", 5)
    text, stop = "", False
    while command and not stop:
        if command.startswith("\\%"):
            text, command = text + "%", command[2:]
        elif command.startswith("%"):
            stop = True
        else:
            text, command = text + command[0], command[1:]
    out = subprocess.run(
        ["/bin/sh", "-c", f"printf '%s\\0' {text}"], capture_output=True, check=True
    ).stdout
    return fields, os.fsdecode(out).split("\0")[:-1]


@pytest.mark.parametrize(
    "path", ["/a b/c", "/50%/%Y", '/it\'s "so"', "/$HOME/`x`", "/Zürich", "/\udcff"]
)
def test_cron_reads_the_words_that_were_meant(path: str) -> None:
    """Spaces, quotes, dollars, percent signs and bytes in a path reach the command as they are."""
    start = schedule.command(f"{path}/python", [path], path, f"{path}/config.toml")
    block = schedule.block(JOBS, start)
    for job, line in zip(JOBS, block.splitlines()[1:-1], strict=True):
        fields, words = as_cron_reads(os.fsdecode(line))
        assert words == [*start, str(job.seconds), "--", *job.words]
        minutes, hours, *rest = fields
        assert all(0 <= int(minute) < 60 for minute in minutes.split(","))
        assert hours == "*" or 0 <= int(hours) < 24
        assert rest == ["*", "*", "0" if job.sundays else "*"]


@pytest.mark.parametrize("path", ["/back\\slash", "/line\nbreak"])
def test_a_path_that_cron_cant_hold_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="crontab"):
        schedule.block(JOBS, schedule.command(path, []))


@pytest.mark.parametrize("machine", ["", "laptop 0", "\udcff", *map(str, range(60))])
def test_the_minutes_are_a_machines_own_and_never_meet(machine: str) -> None:
    """Sync comes every 15 minutes and ends before its next start; nothing starts beside it."""
    sync, verify, dump, drill = schedule.jobs(machine, hot=True)
    assert schedule.jobs(machine, hot=False) == (sync, verify), "there is nothing to dump"
    assert [minute - sync.minutes[0] for minute in sync.minutes] == [0, 15, 30, 45]
    assert sync.seconds < 15 * 60
    assert not {*sync.minutes} & {*verify.minutes, *dump.minutes}
    assert verify.hour is not None
    assert dump.hour == verify.hour + 1
    assert drill.hour == verify.hour + 2
    assert drill.minutes == dump.minutes
    assert verify.seconds < 3600


def test_machines_do_not_all_start_at_once() -> None:
    assert (
        len({schedule.jobs(f"host-{number}", hot=True)[0].minutes for number in range(100)}) == 15
    )


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_itself_takes_the_units(tmp_path: Path) -> None:
    start = schedule.command(sys.executable, ["/usr/bin"], "/a b/100%/$x")
    for name, text in schedule.units(JOBS, start).items():
        (tmp_path / name).write_bytes(text)
    names = [str(tmp_path / f"annoris-{job.name}.timer") for job in JOBS]
    calendars = ["systemd-analyze", "calendar", *(job.calendar for job in JOBS)]
    for words in (["systemd-analyze", "verify", "--user", "--man=no", *names], calendars):
        env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_units_quote_what_systemd_would_read_otherwise() -> None:
    start = schedule.command("/opt/python", [], '/a b/50%/$x/"q"/\\')
    text = schedule.units(JOBS, start)["annoris-dump.service"].decode()
    assert '"ANNORIS_DATA_DIR=/a b/50%%/$$x/\\"q\\"/\\\\"' in text
    with pytest.raises(ConfigError, match="not plain text"):
        schedule.units(JOBS, schedule.command("/\udcff", []))


# --- the command with cron -----------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, b"MAILTO=ann\n1 2 3 4 5 \xe9t\xe9\r\n", b"# no newline"])
def test_install_twice_and_remove_leave_other_lines_alone(
    laptop: Machine, before: bytes | None
) -> None:
    if before is not None:
        crontab(laptop).write_bytes(before)
    dry = laptop.run("schedule", "install", "--dry-run")
    assert "sync --full --quiet" in dry.text
    assert crontab(laptop).exists() == (before is not None)
    assert laptop.run("schedule", "install").code == 0
    text = crontab(laptop).read_bytes()
    assert text.startswith(before or b"")
    for words in (b"sync --full --quiet", b"verify --quiet"):
        assert text.count(words) == 1
    assert b"dump" not in text, "without a hot cache there is nothing to dump"
    again = laptop.run("schedule", "install")
    assert "nothing to change" in again.err
    assert crontab(laptop).read_bytes() == text
    assert laptop.run("schedule", "remove", "--dry-run").text.count("\n-") >= 4
    assert laptop.run("schedule", "remove").code == 0
    assert (crontab(laptop).read_bytes() if before else b"") == (before or b"")
    assert "nothing to change" in laptop.run("schedule", "remove").err


def test_a_line_of_the_crontab_works_as_cron_starts_it(laptop: Machine) -> None:
    """With no variable but HOME, from any folder: same data, same configuration; silent."""
    config = laptop.write("my config 100%.toml", "project = 'from the file'\n")
    laptop.run("--config", config, "save", "-", stdin=b"# One\n\ntext\n")
    installed = laptop.run("--config", config, "schedule", "install", "--cron")
    assert installed.code == 0, installed.err
    line = crontab(laptop).read_text().splitlines()[1]
    _, words = as_cron_reads(line)
    assert words[words.index("--config") + 1] == str(config)
    listing = [*words[: words.index("--")], "--", "list"]
    done = subprocess.run(
        listing, cwd="/", env={"HOME": str(laptop.folder)}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    log = (laptop.data / "schedule.log").read_text()
    assert "list: exit 0" in log
    assert "from the file" in log
    shown = laptop.run("--config", config, "schedule", "show", "--json").json["schedule"]
    assert (shown["kind"], shown["current"], list(shown["last"])) == ("cron", True, ["list"])
    assert not laptop.run("schedule", "show", "--json").json["schedule"]["current"]


def test_what_only_this_shell_knows_is_named(laptop: Machine) -> None:
    laptop.write(".env", "ANNORIS_PROJECT=x\n")
    ran = laptop.run("schedule", "install", env={"ANNORIS_MASTER_TOKEN": "t", "REDIS_URL": ""})
    assert "set only here: ANNORIS_MASTER_TOKEN, ANNORIS_PROJECT\n" in ran.err


def test_without_cron_and_systemd_the_lines_are_there_to_paste(laptop: Machine) -> None:
    (laptop.folder / "tools" / "crontab").unlink()
    path = laptop.environment["PATH"].split(os.pathsep)
    only = laptop.folder / "only"
    only.mkdir()
    (only / "git").symlink_to(shutil.which("git") or "")
    here = [folder for folder in path if not (Path(folder) / "crontab").exists()]
    laptop.environment["PATH"] = os.pathsep.join([*here, str(only)])
    ran = laptop.run("schedule", "install")
    assert ran.code == 2
    assert "neither systemd for users nor crontab" in ran.err
    assert "# annoris begin\n" in ran.err
    assert ran.err.count("schedule run") == 2
    assert laptop.run("schedule", "install", "--cron").code == 2
    assert laptop.run("schedule", "install", "--systemd").code == 2
    assert laptop.run("schedule", "install", "--systemd", "--cron").code == 2
    assert laptop.run("schedule", "remove").code == 0


def test_a_crontab_that_is_not_allowed_is_an_error(laptop: Machine) -> None:
    tool = laptop.folder / "tools" / "crontab"
    tool.write_text("#!/bin/sh\necho 'You (ann) are not allowed to use this program' >&2; exit 1\n")
    ran = laptop.run("schedule", "install", "--cron")
    assert ran.code == 2
    assert "not allowed" in ran.err


# --- the command with systemd --------------------------------------------------------------------


def test_systemd_is_taken_where_it_answers_and_replaces_cron(laptop: Machine) -> None:
    crontab(laptop).write_bytes(b"# mine\n")
    assert laptop.run("schedule", "install").code == 0
    assert b"annoris" in crontab(laptop).read_bytes()
    (laptop.folder / "no-systemd").unlink()
    ran = laptop.run("schedule", "install")
    assert ran.code == 0, ran.err
    assert "enable-linger" in ran.err
    assert crontab(laptop).read_bytes() == b"# mine\n"
    assert len(list(units(laptop).iterdir())) == 4
    calls = (laptop.folder / "systemctl").read_text().splitlines()
    timers = "annoris-sync.timer annoris-verify.timer"
    assert calls == ["--user daemon-reload", f"--user enable --now {timers}"]
    assert laptop.run("schedule", "show", "--json").json["schedule"]["kind"] == "systemd"
    assert "nothing to change" in laptop.run("schedule", "install").err


def test_dumps_are_scheduled_while_there_is_a_hot_cache(laptop: Machine) -> None:
    (laptop.folder / "no-systemd").unlink()
    hot = {"ANNORIS_HOT_URL": "postgresql://127.0.0.1:9/x"}
    assert laptop.run("schedule", "install", env=hot).code == 0
    assert len(list(units(laptop).iterdir())) == 8
    assert "OnCalendar=Sun *-*-*" in (units(laptop) / "annoris-drill.timer").read_text()
    assert not laptop.run("schedule", "show", "--json").json["schedule"]["current"]
    assert laptop.run("schedule", "install").code == 0
    assert len(list(units(laptop).iterdir())) == 4
    calls = (laptop.folder / "systemctl").read_text().splitlines()
    assert "--user disable --now annoris-dump.timer annoris-drill.timer" in calls


def test_removing_leaves_other_units_alone(laptop: Machine) -> None:
    (laptop.folder / "no-systemd").unlink()
    units(laptop).mkdir(parents=True)
    other = units(laptop) / "other.timer"
    other.write_text("[Timer]\n")
    laptop.run("schedule", "install", "--systemd")
    (laptop.folder / "systemctl").unlink()
    assert laptop.run("schedule", "remove").code == 0
    assert list(units(laptop).iterdir()) == [other]
    calls = (laptop.folder / "systemctl").read_text().splitlines()
    assert calls[0].startswith("--user disable --now annoris-sync.timer ")


def test_a_unit_of_that_name_that_is_not_ours_is_refused(laptop: Machine) -> None:
    (laptop.folder / "no-systemd").unlink()
    units(laptop).mkdir(parents=True)
    mine = units(laptop) / "annoris-sync.timer"
    mine.write_text("[Timer]\nOnCalendar=daily\n")
    ran = laptop.run("schedule", "install")
    assert ran.code == 2
    assert "was not made by annoris" in ran.err
    assert list(units(laptop).iterdir()) == [mine]


# --- a run ---------------------------------------------------------------------------------------


def test_a_second_run_of_the_same_command_does_not_start(laptop: Machine) -> None:
    laptop.data.mkdir(parents=True)
    with (laptop.data / "schedule-list.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = laptop.run("schedule", "run", "--", "list")
        assert ran.code == 11
        assert laptop.run("schedule", "run", "--", "status").code == 0
    assert laptop.run("schedule", "run", "--", "list").code == 0


def test_a_late_run_is_ended_with_all_that_it_started(laptop: Machine) -> None:
    """A git that hangs for ever costs the run its time, and is gone after it."""
    pid = laptop.folder / "pid"
    git = laptop.folder / "tools" / "git"
    git.write_text(f"#!/bin/sh\necho $$ > {shlex.quote(str(pid))}\nexec sleep 600\n")
    git.chmod(0o755)
    env = {"ANNORIS_MASTER_REMOTE": str(laptop.folder / "remote.git")}
    ran = laptop.run("schedule", "run", "--seconds", "3", "--", "sync", env=env)
    assert ran.code == schedule.LATE
    assert "sync: stopped after" in ran.err
    while _lives(int(pid.read_text())):  # the test's own time limit ends this
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_mends_itself_is_logged_and_not_said(laptop: Machine) -> None:
    """An unknown remote is said; one that does not answer is only in the log."""
    env = {"ANNORIS_MASTER_REMOTE": "http://127.0.0.1:9/x.git"}
    ran = laptop.run("schedule", "run", "--", "sync", env=env)
    assert (ran.code, ran.out, ran.err) == (5, b"", "")
    assert "can't be reached" in (laptop.data / "schedule.log").read_text()
    env = {"ANNORIS_MASTER_REMOTE": str(laptop.folder / "nothing.git")}
    ran = laptop.run("schedule", "run", "--", "sync", env=env)
    assert ran.code == 10
    assert "nothing.git" in ran.err


def test_the_log_keeps_its_newest_half(laptop: Machine) -> None:
    log = laptop.data / "schedule.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"2026-01-01T00:00:00Z old: exit 0, {n} s\n" for n in range(30_000)))
    assert laptop.run("schedule", "run", "--", "list").code == 0
    text = log.read_text()
    assert len(text) < 600_000
    assert text.startswith("2026-01-01T00:00:00Z old: ")
    last = laptop.run("schedule", "show", "--json").json["schedule"]["last"]
    assert last["old"].endswith("exit 0, 29999 s")
    assert last["list"].endswith("s")
