"""Hooks: spooled first, delivered apart, told at the next start; the assistant never fails."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annoris.assistant import capture
from annoris.assistant.hooks import EVENTS, SPOOLED
from annoris.model import Loaded, Session
from tests.support.machine import Machine, Ran
from tests.support.tiers import Tiers, forget_failures

Machines = Callable[..., Machine]
ID = "11111111-2222-3333-4444-555555555555"
NAME = f"captured-{ID}"


def hook(here: Machine, event: str, **payload: Any) -> Ran:
    """Run a hook as a client does; it must be silent and fine, whatever happens."""
    known = {"session_id": ID, "cwd": str(here.desk), "hook_event_name": event, **payload}
    ran = here.run("hook", event, "--client", "claude-code", stdin=json.dumps(known).encode())
    assert (ran.code, ran.err) == (0, "")
    return ran


def spool(here: Machine) -> Path:
    return here.data / "hooks"


def settled(here: Machine) -> None:
    """Wait until every process that delivers is done."""
    deadline = time.monotonic() + 60
    with open(spool(here) / "lock", "wb") as lock:
        while True:
            assert time.monotonic() < deadline, "the spool is never delivered"
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
                continue
            fcntl.flock(lock, fcntl.LOCK_UN)
            if not list(spool(here).glob("*.json")):
                return
            time.sleep(0.05)


def killed(here: Machine, where: str, *arguments: str, stdin: bytes = b"") -> None:
    """Run a command that dies by kill -9 instead of calling ``where``."""
    code = (
        f"import os, sys\nfrom annoris import cli\nfrom annoris.assistant.spool import Spool\n"
        f"{where} = lambda *_: os.kill(os.getpid(), 9)\n"
        f"sys.argv = ['annoris', *{list(arguments)!r}]\ncli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here.desk, env=here.environment, input=stdin, check=False
    )
    assert done.returncode == -9


def said(message: str) -> bytes:
    return json.dumps(
        {"session_id": ID, "cwd": "/nowhere", "last_assistant_message": message}
    ).encode()


# --- capturing -----------------------------------------------------------------------------------


def test_a_stop_is_captured_marked_and_fenced(machine: Machines) -> None:
    here = machine()
    assert hook(here, "stop", last_assistant_message="# All done\n\n```\nx\n```\n").out == b""
    settled(here)
    text = here.load(NAME).decode()
    front, body = text.split("---\n")[1:]
    assert "captured: true\n" in front
    assert "status: captured\n" in front
    assert f"conversation: {ID}\n" in front
    assert "````markdown\n# All done\n\n```\nx\n```\n````\n" in body


def test_a_summary_stays_when_more_is_said_and_summed_up(machine: Machines) -> None:
    """Every summary of a conversation is kept, and the last message; the same twice is once."""
    here = machine()
    for event, payload in (
        ("post-compact", {"compact_summary": "first summary"}),
        ("stop", {"last_assistant_message": "earlier words"}),
        ("post-compact", {"compact_summary": "second summary"}),
        ("post-compact", {"compact_summary": "second summary"}),
        ("stop", {"last_assistant_message": "last words"}),
        ("session-end", {"reason": "exit"}),
    ):
        hook(here, event, **payload)
    settled(here)
    text = here.load(NAME).decode()
    for words in ("first summary", "second summary", "last words"):
        assert text.count(words) == 1
    assert "earlier words" not in text


def test_files_that_had_changed_are_listed(machine: Machines) -> None:
    here = machine()
    subprocess.run(["git", "init", "-q", here.desk], check=True)
    here.write("work.py", "x")
    hook(here, "stop", last_assistant_message="see work.py")
    settled(here)
    assert b"- `work.py`\n" in here.load(NAME)


@pytest.mark.parametrize("event", ["pre-compact", "session-end"])
def test_where_nothing_was_said_nothing_is_saved(event: str, machine: Machines) -> None:
    here = machine()
    hook(here, event)
    settled(here)
    assert here.run("list", "--all").out == b""


def test_a_credential_never_reaches_master(machine: Machines) -> None:
    here = machine()
    token = "ghp_" + "a1B2" * 9
    hook(here, "stop", last_assistant_message=f"the key is {token}, used twice: {token}")
    hook(here, "post-compact", compact_summary=f"key {token}")
    settled(here)
    text = here.load(NAME).decode()
    assert text.count("[redacted: github-token]") == 3
    assert token not in text


def test_while_a_conversation_goes_on_it_is_delivered_once_a_minute(machine: Machines) -> None:
    """One push for each answer would be too many; the end of it waits for nothing."""
    here = machine()
    hook(here, "stop", last_assistant_message="one")
    settled(here)
    hook(here, "stop", last_assistant_message="two")
    assert len(list(spool(here).glob("*.json"))) == 1
    hook(here, "session-end")
    settled(here)
    assert b"two" in here.load(NAME)


def test_conversations_that_end_at_once_are_all_captured(machine: Machines) -> None:
    here = machine()
    running = []
    for number in range(4):
        child = subprocess.Popen(
            [sys.executable, "-m", "annoris.cli", "hook", "stop"],
            cwd=here.desk, env=here.environment, stdin=subprocess.PIPE,
        )  # fmt: skip
        text = {"session_id": f"talk-{number}", "last_assistant_message": f"words {number}"}
        assert child.stdin
        child.stdin.write(json.dumps(text).encode())
        child.stdin.close()
        running.append(child)
    assert [child.wait(60) for child in running] == [0] * 4
    settled(here)
    found = here.run("list", "--all", "--json").json["sessions"]
    assert {row["name"] for row in found} == {f"captured-talk-{number}" for number in range(4)}


def test_what_a_person_made_of_a_captured_session_is_not_replaced(machine: Machines) -> None:
    here = machine()
    hook(here, "post-compact", compact_summary="first")
    settled(here)
    edited = (
        here.load(NAME)
        .replace(b"first", b"first, and mine")
        .replace(b"status: captured", b"status: open")
    )
    assert here.run("save", "-", stdin=edited).code == 0
    for words in ("second", "third"):
        hook(here, "post-compact", compact_summary=words)
        settled(here)
    assert b"first, and mine" in here.load(NAME)
    later = here.load(f"{NAME}-2")
    assert b"second" in later
    assert b"third" in later
    assert len(here.run("list", "--all", "--json").json["sessions"]) == 2


# --- nothing is lost -----------------------------------------------------------------------------


def test_a_kill_after_the_spool_loses_nothing(machine: Machines) -> None:
    here = machine()
    killed(here, "os.fork", "hook", "stop", stdin=said("survives"))
    assert here.run("list", "--all").out == b""
    hook(here, "session-start")
    settled(here)
    assert b"survives" in here.load(NAME)


@pytest.mark.parametrize("where", ["Spool.keep_talk", "Spool.drop"])
def test_a_kill_after_the_save_doubles_nothing(where: str, machine: Machines) -> None:
    here = machine()
    killed(here, "os.fork", "hook", "stop", stdin=said("once"))
    killed(here, where, "hook", "flush")
    assert here.run("hook", "flush").code == 0
    assert not list(spool(here).glob("*.json"))
    assert len(here.run("list", "--all", "--json").json["sessions"]) == 1
    assert len(here.run("history", NAME, "--json").json["revisions"]) == 1


def test_a_broken_configuration_loses_nothing_and_is_told_once(machine: Machines) -> None:
    here = machine()
    broken = {"ANNORIS_SAVE_MAX_BYTES": "many"}
    ran = here.run("hook", "stop", stdin=said("kept"), env=broken)
    assert ran.code == 0
    deadline = time.monotonic() + 60
    while not (spool(here) / "failure").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "ANNORIS_SAVE_MAX_BYTES" in hook(here, "session-start").text
    settled(here)
    assert b"kept" in here.load(NAME)
    assert "ANNORIS_SAVE_MAX_BYTES" not in hook(here, "session-start").text


def test_offline_it_waits_in_the_outbox(machine: Machines) -> None:
    here = machine(remote="http://127.0.0.1:9/none.git", master_push_seconds="1")
    for words in ("one", "two"):
        hook(here, "post-compact", compact_summary=words)
        settled(here)
    waiting = here.run("outbox", "--json").json["waiting"]
    assert {draft["name"] for draft in waiting} == {NAME}
    assert b"one" in here.load(NAME)
    assert b"two" in here.load(NAME)


def test_a_folder_that_is_gone_by_then_loses_nothing(machine: Machines) -> None:
    here = machine()
    gone = here.desk / "worktree"
    gone.mkdir()
    killed(here, "os.fork", "hook", "stop", stdin=said("from nowhere \0"))
    code = f"cd {gone}; rmdir {gone}; exec {sys.executable} -m annoris.cli hook flush"
    subprocess.run(["sh", "-c", code], env=here.environment, check=True)
    assert "from nowhere \ufffd" in here.load(NAME, project="default").decode()


def test_a_damaged_event_does_not_hold_up_the_others(machine: Machines) -> None:
    here = machine()
    killed(here, "os.fork", "hook", "stop", stdin=said("whole"))
    (spool(here) / "00000000000000000001-dead.json").write_text("{cut")
    assert here.run("hook", "flush").code == 0
    assert b"whole" in here.load(NAME)
    assert len(list((spool(here) / "refused").iterdir())) == 1


# --- the assistant is never failed or delayed ----------------------------------------------------


@pytest.mark.parametrize(
    "stdin", [b"", b"garbage", b"[1]", b'"text"', b"{}", b'{"session_id": null}', b"\xff\xfe{"]
)
def test_garbage_is_no_failure_and_is_told(stdin: bytes, machine: Machines) -> None:
    here = machine()
    ran = here.run("hook", "stop", stdin=stdin)
    assert (ran.code, ran.out, ran.err) == (0, b"", "")
    assert (spool(here) / "failure").exists()


def test_an_event_of_a_later_client_is_no_failure(machine: Machines) -> None:
    assert hook(machine(), "model-switched").out == b""


def test_a_folder_that_can_not_be_written_is_no_failure(machine: Machines) -> None:
    here = machine()
    here.data.write_text("in the way")
    assert hook(here, "stop", last_assistant_message="x").out == b""
    assert hook(here, "session-start").out == b""


def test_a_hook_waits_for_nothing_that_delivers(machine: Machines) -> None:
    """git hangs for as long as the test likes; the hook has answered long before."""
    here = machine()
    hold = here.write("hold", "")
    slow = here.write("bin/git", f'#!/bin/sh\nwhile [ -e "{hold}" ]; do sleep 0.1; done\nexit 1\n')
    slow.chmod(0o755)
    path = f"{slow.parent}{os.pathsep}{here.environment['PATH']}"
    try:
        here.run("hook", "session-end", stdin=said("x"), env={"PATH": path}, timeout=60)
    finally:
        hold.unlink()


def test_case_17_a_black_holed_postgres_does_not_reach_the_hook(
    make: Machines, tiers: Tiers
) -> None:
    here = make(hot_seconds="0.5", hot_load_seconds="0.5")
    here.save(b"# State\n\nwritten\n")
    tiers.hot.mode = "blackhole"
    hook(here, "stop", last_assistant_message="in the dark")
    assert b"# State" in hook(here, "session-start").out
    settled(here)
    assert b"in the dark" in here.load(NAME)


_PROBE = """
import os, sys
os.fork = lambda: 1
sys.argv = ["annoris", "hook", "stop"]
from annoris import cli
try:
    cli.main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print(*sorted(sys.modules))
"""


def test_a_hook_imports_nothing_that_talks_to_anything(machine: Machines) -> None:
    here = machine()
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        cwd=here.desk, env=here.unmeasured, input=said("x"), capture_output=True, check=True,
    )  # fmt: skip
    heavy = {
        "sqlite3", "psycopg", "redis", "git", "yaml", "tomllib", "cryptography",
        "rich", "dotenv", "annoris.archive", "annoris.document", "annoris.leaks",
    }  # fmt: skip
    assert heavy & set(done.stdout.decode().split()) == set()


# --- the start -----------------------------------------------------------------------------------


def test_a_start_without_anything_saved_says_nothing(machine: Machines) -> None:
    assert hook(machine(), "session-start", source="startup").out == b""


def test_a_start_tells_the_state_with_age_and_drift(machine: Machines) -> None:
    here = machine()
    subprocess.run(["git", "init", "-q", "-b", "main", here.desk], check=True)
    subprocess.run(["git", "-C", here.desk, "remote", "add", "origin", "x:shop"], check=True)
    here.write("lost.py", "x")
    here.run("save", "-", stdin=b"# State\n\n- fact [verified: by eye]\n")
    (here.desk / "lost.py").unlink()
    for source in ("startup", "compact"):
        told = hook(here, "session-start", source=source).text
        assert "project shop" in told
        assert "not an instruction" in told
        assert "That was " in told
        assert "Since then: gone: lost.py." in told
        assert "Lines marked: 1 verified, 0 unverified." in told
        assert "```markdown\n# State\n" in told


def test_what_somebody_wrote_goes_before_what_was_captured_later(
    make: Machines, tiers: Tiers
) -> None:
    """In the catalog, in the hot cache and in the emergency cache; the later one is named."""
    here = make()
    here.save(b"# Written\n\nby hand\n")
    tiers.hot.mode = "refuse"
    forget_failures(here)
    later = here.save(b"# Also written\n\nin the dark\n")[0]
    hook(here, "stop", last_assistant_message="captured later")
    settled(here)
    assert here.run("load", "--json").json["session"]["id"] == later.id
    assert here.run("load", "--from", "emergency", "--json").json["session"]["id"] == later.id
    tiers.hot.mode = "pass"
    forget_failures(here)
    assert here.sync().code == 0
    blank = make("blank")
    assert blank.run("load", "--from", "hot", "--json").json["session"]["id"] == later.id
    told = hook(here, "session-start", session_id="another").text
    assert "# Also written" in told
    assert "only captured: annoris load " in told
    assert "only captured" not in hook(here, "session-start").text, "it is this conversation"


def test_what_was_captured_is_told_where_nothing_else_is(make: Machines, tiers: Tiers) -> None:
    here = make()
    hook(here, "stop", last_assistant_message="only this")
    settled(here)
    told = hook(here, "session-start").text
    assert "nobody wrote it as a session" in told
    assert "only this" in told
    assert b"only this" in make("blank").load()


def _loaded(text: str) -> Loaded:
    row = Session(
        id="0" * 28 + "12345678", path="p", oid="", project="shop", name="", title="T" * 300,
        status="", priority="", created="", saved="2026-11-24T12:00:00Z", size=1, etag="",
        literal="", body_md5="",
    )  # fmt: skip
    return Loaded(row, text.encode(), "clone", checked="")


@pytest.mark.parametrize(
    "text",
    [
        "x" * 30_000, "# T\n\n" + "\U0001f600" * 9_000, "`" * 4_000 + "\n" + "a b\n" * 9_000,
        "# T\n\n" + "line\n" * 3_000 + "## Next steps\n\nthis first\n",
    ],
)  # fmt: skip
def test_a_start_is_never_longer_than_a_client_takes(text: str) -> None:
    told = capture.opening(_loaded(text), text, ["f" * 5_000] * 3, ["Next steps"])
    assert len(told.encode("utf-16-le")) // 2 <= capture.MOST_CHARACTERS
    fence = told.rstrip("\n").rpartition("\n")[2]
    assert set(fence) == {"`"}
    assert told.count(f"\n{fence}") == 2, "the text can't end its fence"
    if "this first" in text:
        assert "\n## Next steps\n\nthis first\n" in told


def test_every_event_is_either_told_or_kept() -> None:
    assert set(EVENTS) == {"session-start", "flush", *SPOOLED}
