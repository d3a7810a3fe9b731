"""Imports: transcripts and exports of other tools, and all that is wrong with them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import resource
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annoris import document, markdown
from annoris.archive import Archive
from annoris.assistant import importers, sources
from annoris.assistant.importers import Importer, Wish, session_id
from annoris.assistant.page import clean, page
from annoris.assistant.sources import folder_key, objects, records
from annoris.assistant.transcripts import ChatGPT, ClaudeCode, Codex, Item, Reader
from annoris.model import LeftOut
from tests.support.fuzz import examples
from tests.support.machine import Machine

if sys.version_info >= (3, 14):
    from compression.zstd import compress
else:
    from zstandard import compress

FULL = os.environ.get("ANNORIS_FULL")  # before a test takes it away
TOKEN = "ghp_" + "a1B2" * 9
TALK = "11111111-2222-4333-8444-555555555555"


class Claude:
    """Writes a transcript as Claude Code does, a record after the other."""

    def __init__(self, cwd: str = "/home/me/shop", session: str = TALK) -> None:
        self.cwd, self.session = cwd, session
        self.lines: list[bytes] = []
        self._last: str | None = None

    def add(self, kind: str, **fields: Any) -> dict[str, Any]:
        number = len(self.lines)
        record = {
            "type": kind,
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.session}{number}")),
            "parentUuid": self._last,
            "sessionId": self.session,
            "timestamp": f"2026-11-20T{number // 60 % 24:02}:{number % 60:02}:05.123Z",
            "cwd": self.cwd,
            "gitBranch": "main",
            "version": "2.1.42",
            "isSidechain": False,
            "userType": "external",
            **fields,
        }
        self._last = record["uuid"]
        self.lines.append(json.dumps(record).encode() + b"\n")
        return record

    def user(self, content: Any, **fields: Any) -> dict[str, Any]:
        return self.add("user", message={"role": "user", "content": content}, **fields)

    def assistant(self, *blocks: Any, **fields: Any) -> dict[str, Any]:
        message = {"id": "msg_1", "role": "assistant", "model": "m", "content": list(blocks)}
        return self.add("assistant", message=message, **fields)

    @property
    def data(self) -> bytes:
        return b"".join(self.lines)


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def call(name: str, id: str = "t1", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": given}


def answer(content: Any, id: str = "t1", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


def whole_talk() -> Claude:
    """A transcript with a record of every kind that is known."""
    talk = Claude()
    talk.add("file-history-snapshot", messageId="m", snapshot={})
    talk.add("queue-operation", operation="enqueue", content="later")
    talk.add("permission-mode", permissionMode="plan")
    talk.user("Why do webhooks retry?")
    talk.user("<command-name>/clear</command-name><command-args></command-args>")
    talk.user("Caveat: the messages below …", isMeta=True)
    talk.assistant({"type": "thinking", "thinking": "secret thoughts", "signature": "x"})
    talk.assistant(said("I look at the log."))
    talk.assistant(call("Bash", command="git log --oneline", description="see"))
    talk.user([answer("abc123 Fix\n" + "line\n" * 400)], toolUseResult={"stdout": "…"})
    talk.assistant(call("Read", "t2", file_path="/home/me/shop/app.py"))
    talk.user([answer([said("def run(): ...")], "t2", is_error=True)])
    talk.user([said("See this"), {"type": "image", "source": {"data": "AAAA"}}])
    talk.add("progress", data={"type": "hook_progress"})
    talk.add("attachment", attachment={"type": "queued_command", "prompt": "and mind the tests"})
    talk.add("attachment", attachment={"type": "todo_reminder", "content": []})
    talk.add("system", subtype="stop_hook_summary", hookCount=1)
    talk.add(
        "system", subtype="local_command", content="<local-command-stdout>ok</local-command-stdout>"
    )
    talk.add("system", subtype="compact_boundary", content="Conversation compacted",
             compactMetadata={"trigger": "auto", "preTokens": 155000})  # fmt: skip
    talk.user("We found the retry loop in app.py.", isCompactSummary=True)
    talk.user("Search the docs", isSidechain=True)
    talk.assistant(said("The docs say 3 tries."), isSidechain=True)
    talk.assistant(said("# Result\n\nIt retries because of `app.py`.\n\n```py\nx = 1\n```"))
    talk.add("summary", summary="Another talk", leafUuid=str(uuid.uuid4()))
    talk.add("ai-title", aiTitle="Webhook retries for the shop")
    talk.add("hologram", content="from the future")
    talk.assistant({"type": "hologram"})
    return talk


@pytest.fixture
def here(machine: Callable[..., Machine], remote: Path) -> Machine:
    return machine("laptop", remote)


def put(machine: Machine, talk: Claude, name: str = "", folder: str = "-home-me-shop") -> Path:
    """Where Claude Code keeps it."""
    file = machine.folder / ".claude" / "projects" / folder / f"{name or talk.session}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(talk.data)
    return file


def imported(machine: Machine, *arguments: str, code: int = 0) -> dict[str, Any]:
    ran = machine.run("import", *arguments, "--json")
    assert ran.code == code, ran.err + ran.text
    done: dict[str, Any] = ran.json["imported"]
    return done


def text_of(machine: Machine, key: str = TALK, source: str = "claude-code") -> str:
    return machine.load(session_id(source, key)).decode()


def commits(remote: Path, machine: Machine) -> int:
    archive = machine.archive()
    try:
        archive.look(fresh=True)
        return archive.follower.position()
    finally:
        archive.close()


# --- what becomes of a conversation --------------------------------------------------------------


def test_a_transcript_with_every_known_record_becomes_one_readable_session(here: Machine) -> None:
    """Title, project and date are told, each message stands in it, tools are a line each."""
    put(here, whole_talk())
    done = imported(here, "claude-code")
    assert [receipt["state"] for receipt in done["receipts"]] == ["master"]
    assert done["receipts"][0]["project"] == "shop"
    assert done["receipts"][0]["id"] == session_id("claude-code", TALK)
    text = text_of(here)
    meta = document.inspect(text.encode())
    assert (meta.title, meta.status) == ("Webhook retries for the shop", "captured")
    assert meta.created == "2026-11-20T00:00:05Z"
    for words in (
        "Why do webhooks retry?", "I look at the log.", "We found the retry loop in app.py.",
        "and mind the tests", "# Result\n\nIt retries", "The docs say 3 tries.", "Search the docs",
        "`Bash`: `git log --oneline`", "`Read` answered: `failed: def run(): ...`", "[image]",
        "The context was compacted here (auto, 155000 tokens before)",
        "## Summary at compaction, 2026-11-20 00:19", "branch: `main`",
    ):  # fmt: skip
        assert words in text
    assert "secret thoughts" not in text
    assert "line " * 80 not in text
    assert len(text) < 4000


def test_nothing_is_left_out_silently(here: Machine) -> None:
    """The report counts each kind of record that stands in no document, unknown ones by name."""
    put(here, whole_talk())
    assert imported(here, "claude-code")["ignored"] == {
        "file-history-snapshot": 1, "queue-operation": 1, "permission-mode": 1, "progress": 1,
        "thinking": 1, "message of the client's own": 1, "attachment todo_reminder": 1,
        "system record stop_hook_summary": 1, "summary of another conversation": 1,
        "unknown record 'hologram'": 1, "unknown content 'hologram'": 1,
    }  # fmt: skip


def test_a_document_of_an_import_has_a_sound_structure(here: Machine) -> None:
    """Whatever was said in it: only turns are headings, and no fence stays open."""
    talk = Claude()
    talk.user("```\nnever closed\n\n# no heading\n")
    talk.assistant(
        said("# Title\n\nSetext\n======\n\n~~~\nopen"), call("Bash", command="a `b` ``c``")
    )
    talk.user("<!-- never closed\n\n[x]: http://example.com\n")
    talk.user("---\nstatus: done\n---\n")
    put(here, talk)
    imported(here, "claude-code")
    parsed = document.parse(text_of(here).encode())
    assert markdown.check(parsed) == ()
    headings = [
        raw.split(",")[0] for _, level, raw in document.outline(parsed.body.decode()) if level
    ]
    assert headings[1:] == ["User", "Assistant", "User", "User"]


def test_an_import_is_never_what_a_bare_load_brings(here: Machine) -> None:
    """A session that somebody wrote goes before, however new the import is."""
    written = here.save(b"# Written\n\nby hand\n", project="shop")[0]
    talk = Claude()
    talk.user("later")
    put(here, talk)
    imported(here, "claude-code", "--project", "shop")
    loaded = here.run("load", "-p", "shop", "--json").json
    assert loaded["session"]["id"] == written.id
    saved = here.run("load", session_id("claude-code", TALK), "--json").json["session"]["saved"]
    assert saved == "2026-11-20T00:00:05Z"  # when it was held, not when it was imported


def test_sub_agents_files_belong_to_the_conversation_that_sent_them(here: Machine) -> None:
    """In the folder beside it as of today, or as a sibling named agent- as before."""
    main = Claude()
    main.user("do it")
    file = put(here, main)
    for place in ("agent-0aaa.jsonl", f"{TALK}/subagents/agent-0bbb.jsonl"):
        agent = Claude()
        agent.user(f"task in {place}", isSidechain=True, uuid=str(uuid.uuid4()))
        agent.assistant(said(f"done {place}"), isSidechain=True, uuid=str(uuid.uuid4()))
        path = file.parent / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(agent.data)
    done = imported(here, "claude-code")
    assert len(done["receipts"]) == done["found"] == 1
    for place in ("agent-0aaa.jsonl", f"{TALK}/subagents/agent-0bbb.jsonl"):
        assert f"task in {place}" in text_of(here)
        assert f"done {place}" in text_of(here)


def test_broken_transcripts_give_what_can_be_read_of_them(here: Machine) -> None:
    """Cut lines, bytes that are no UTF-8, broken chains, repeated records: counted, not fatal."""
    talk = Claude()
    first = talk.user("first")
    talk.lines.append(json.dumps(first).encode() + b"\n")
    talk.assistant(said("second"), parentUuid="never-existed")
    talk.lines.append(b'{"type": "user", "mess\n')
    talk.lines.append(b"[1, 2]\n\n")
    talk.user("th\udce9ird")  # a lone surrogate
    talk.lines.append(talk.lines[-1].replace(b"\\udce9", b"\xe9").replace(b'"uuid"', b'"other"'))
    talk.lines.append(b'{"type": "assistant", "message": {"content": [{"type": "te')
    put(here, talk)
    done = imported(here, "claude-code")
    assert done["ignored"] == {
        "repeated record": 1, "line that is not JSON": 1, "line that is no record": 1,
        "byte sequence that is not UTF-8 (replaced)": 1, "last line, which is cut": 1,
    }  # fmt: skip
    text = text_of(here)
    assert text.count("first") == 2  # as title and as message
    assert "second" in text
    assert text.count("th\ufffdird") == 2


def test_a_transcript_in_which_nothing_was_said_is_left_out(here: Machine) -> None:
    talk = Claude()
    talk.add("file-history-snapshot")
    file = put(here, talk)
    done = imported(here, "claude-code")
    assert done["left_out"] == [{"where": str(file), "why": "nothing was said in it", "code": ""}]


# --- once, and again -----------------------------------------------------------------------------


def test_a_second_import_does_nothing(here: Machine, remote: Path) -> None:
    """With the note of the first one, and without it: no commit either way."""
    put(here, whole_talk())
    imported(here, "claude-code")
    before = commits(remote, here)
    done = imported(here, "claude-code")
    assert (done["unchanged"], done["receipts"]) == (1, [])
    (here.data / "imports.json").unlink()
    done = imported(here, "claude-code")
    assert (done["unchanged"], done["receipts"]) == (1, [])
    assert commits(remote, here) == before


def test_a_grown_transcript_is_a_revision_of_the_same_session(here: Machine) -> None:
    talk = whole_talk()
    put(here, talk)
    imported(here, "claude-code")
    talk.user("One thing more.")
    put(here, talk)
    done = imported(here, "claude-code")
    assert [item["id"] for item in done["receipts"]] == [session_id("claude-code", TALK)]
    assert "One thing more." in text_of(here)
    assert (
        len(here.run("history", session_id("claude-code", TALK), "--json").json["revisions"]) == 2
    )


def test_two_machines_make_one_session_of_one_transcript(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """The second one changes nothing; an older copy there never replaces what has grown."""
    one, two = machine("one", remote), machine("two", remote)
    talk = whole_talk()
    older = put(two, talk).read_bytes()
    put(one, talk)
    imported(one, "claude-code")
    before = commits(remote, one)
    assert imported(two, "claude-code")["unchanged"] == 1
    assert commits(remote, two) == before
    talk.user("One thing more.")
    put(one, talk)
    imported(one, "claude-code")
    (two.folder / ".claude/projects/-home-me-shop" / f"{TALK}.jsonl").write_bytes(older)
    done = imported(two, "claude-code", "--again")
    assert "later copy" in done["left_out"][0]["why"]
    assert "One thing more." in text_of(two)


def test_what_a_person_edited_stays_as_it_is(here: Machine) -> None:
    """An edited body is left alone and reported; an edited front matter is carried on."""
    talk = whole_talk()
    put(here, talk)
    imported(here, "claude-code")
    id = session_id("claude-code", TALK)
    front = here.load(id).replace(b"status: captured", b"status: done\nmood: good")
    assert here.run("save", "-", stdin=front).code == 0
    talk.user("One thing more.")
    put(here, talk)
    assert imported(here, "claude-code")["receipts"][0]["state"] == "master"
    text = text_of(here)
    assert "status: done\n" in text
    assert "mood: good\n" in text
    assert "One thing more." in text
    assert here.run("save", "-", stdin=text.encode() + b"\nMy own remark.\n").code == 0
    talk.user("And more.")
    put(here, talk)
    done = imported(here, "claude-code")
    assert "was edited since" in done["left_out"][0]["why"]
    assert "My own remark." in text_of(here)


def test_what_was_deleted_comes_back_only_when_asked_for(here: Machine) -> None:
    talk = whole_talk()
    put(here, talk)
    imported(here, "claude-code")
    assert here.run("delete", session_id("claude-code", TALK)).code == 0
    assert imported(here, "claude-code")["receipts"] == []
    talk.user("grown")
    put(here, talk)
    assert "--again" in imported(here, "claude-code")["left_out"][0]["why"]
    assert imported(here, "claude-code", "--again")["receipts"][0]["state"] == "master"


def test_an_import_without_master_is_queued_and_not_done_again(
    machine: Callable[..., Machine],
) -> None:
    here = machine("laptop", "http://127.0.0.1:1/nowhere.git")
    put(here, whole_talk())
    done = imported(here, "claude-code", code=75)
    assert done["receipts"][0]["state"] == "queued"
    done = imported(here, "claude-code")
    assert (done["receipts"], done["unchanged"]) == ([], 1)


def test_an_import_that_was_stopped_goes_on_where_it_was(
    here: Machine, monkeypatch: pytest.MonkeyPatch, remote: Path
) -> None:
    """After each push it is noted what is done; nothing is pushed twice."""
    for number in range(5):
        talk = Claude(session=f"{number}" * 8 + TALK[8:])
        talk.user(f"talk {number}")
        put(here, talk)
    monkeypatch.setattr(importers, "_BATCH", 2)
    plain, calls = Archive.save, []

    def dying(self: Archive, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, *given)

    monkeypatch.setattr(Archive, "save", dying)
    archive = here.archive()
    found = list(sources.find("claude-code", "", here.environment))
    with pytest.raises(KeyboardInterrupt):
        Importer(archive, Wish()).run("claude-code", found, lambda *_: None)
    archive.close()
    done = imported(here, "claude-code")
    assert (len(done["receipts"]), done["unchanged"]) == (3, 2)


def test_many_conversations_are_one_push(here: Machine, remote: Path) -> None:
    for number in range(30):
        talk = Claude(session=f"{number:08}" + TALK[8:])
        talk.user(f"talk {number}")
        put(here, talk)
    before = commits(remote, here)
    assert len(imported(here, "claude-code")["receipts"]) == 30
    assert commits(remote, here) <= before + 2  # the first one begins a home for sessions


def test_a_conversation_that_lies_in_two_places_is_one_session(here: Machine) -> None:
    """The later copy is taken, the other one reported."""
    talk = whole_talk()
    old = put(here, talk, folder="-old-place")
    os.utime(old, (1, 1))
    talk.user("grown")
    put(here, talk)
    done = imported(here, "claude-code")
    assert len(done["receipts"]) == 1
    assert done["left_out"][0]["where"] == str(old)
    assert "grown" in text_of(here)


# --- credentials ---------------------------------------------------------------------------------


def test_a_conversation_with_a_credential_is_left_out_and_reported(here: Machine) -> None:
    """The others are imported; exit 7 says that somebody must look; nothing of it is pushed."""
    talk = whole_talk()
    talk.assistant(call("Bash", command=f"curl -H 'Authorization: token {TOKEN}' x"))
    put(here, talk)
    other = Claude(session="9" * 8 + TALK[8:])
    other.user("harmless")
    put(here, other)
    done = imported(here, "claude-code", code=7)
    assert [item["title"] for item in done["receipts"]] == ["harmless"]
    assert "github-token" in done["left_out"][0]["why"]
    assert TOKEN not in json.dumps(done)
    ran = here.run("import", "claude-code", "--quiet")
    assert ran.code == 7
    assert ran.out == b""
    assert TOKEN not in ran.err


def test_redact_masks_credentials_wherever_they_stand(here: Machine) -> None:
    """In a message, a call, an answer, a title; also one at the edge of what is shown."""
    talk = Claude()
    talk.user(f"My token is {TOKEN}")
    for length in (200, 215, 225, 235, 300, 310):
        talk.assistant(call("Bash", command="x" * 9 + " y" * (length // 2) + " " + TOKEN))
        talk.user([answer("out " * (length // 4) + TOKEN)])
    put(here, talk)
    would = imported(here, "claude-code", "--redact", "--dry-run")
    assert TOKEN[:10] not in json.dumps(would)
    done = imported(here, "claude-code", "--redact")
    assert done["redacted"] == 1
    text = text_of(here)
    assert "[redacted: github-token]" in text
    assert TOKEN[:10] not in text


# --- sizes ---------------------------------------------------------------------------------------


def test_a_long_conversation_is_folded_until_it_fits_and_says_so(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Answers go first, then the ends of long texts, then the middle; begin and end stay."""
    here = machine("laptop", remote, save_max_bytes="60000")
    told = ("tools answered is left out", "long texts are cut", "so is the middle")
    sizes = ((10, 300, 150), (20_000, 10, 4), (3_000, 10, 40))
    for number, (length, times, count) in enumerate(sizes):
        talk = Claude(session=f"{number}" * 8 + TALK[8:])
        talk.user("The very first words.")
        for step in range(count):
            talk.user([answer("word " * times)])
            talk.user(f"message {step} " + "word " * (length // 5))
        talk.user("The very last words.")
        put(here, talk)
    done = imported(here, "claude-code")
    assert [item["state"] for item in done["receipts"]] == ["master"] * 3
    for number, words in enumerate(told):
        text = text_of(here, f"{number}" * 8 + TALK[8:])
        assert len(text.encode()) <= 60_000
        assert words in text
        assert "The very first words." in text
        assert "The very last words." in text


@pytest.mark.parametrize("megabytes", [3, pytest.param(100, id="100 MB")])
def test_a_huge_transcript_takes_little_memory(here: Machine, megabytes: int) -> None:
    """A line at a time: memory does not grow with the file."""
    if megabytes == 100 and not FULL:
        pytest.skip("ANNORIS_FULL=1 runs it")
    talk = Claude()
    talk.user("begin")
    talk.assistant(call("Bash", command="make"))
    talk.user([answer("output line\n" * 8000)])
    line = talk.lines.pop()
    file = put(here, talk)
    with file.open("ab") as out:
        for number in range(megabytes * 10):
            out.write(line.replace(b'"uuid": "', b'"uuid": "%d-' % number))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (found,) = sources.find("claude-code", "", here.environment)
    assert isinstance(found, sources.Conversation)
    assert found.items
    made = page(found.items, "Claude Code", 20 * 1024 * 1024)
    assert made.counts == {"messages": 1, "calls": 1}
    assert len(made.body) < 2 * 1024 * 1024
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150 * 1024  # KiB
    assert imported(here, "claude-code")["receipts"][0]["state"] == "master"


def test_a_line_beyond_reason_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 1000)
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": "' + b"x" * 5000 + b'"}\n{"b": 1}\n')
    assert list(records(str(file))) == ["line of more than 0 MiB", {"b": 1}]


# --- the other sources ---------------------------------------------------------------------------


def codex(*payloads: tuple[str, dict[str, Any]]) -> bytes:
    lines = [
        {"timestamp": f"2026-10-29T00:59:{number:02}.317Z", "type": kind, "payload": payload}
        for number, (kind, payload) in enumerate(payloads)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def of_codex(role: str, text: str) -> tuple[str, dict[str, Any]]:
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text}]
    return "response_item", {"type": "message", "role": role, "content": content}


def test_codex_rollouts_become_sessions(here: Machine) -> None:
    """Every kind of record; what a message repeats as an event is not said twice."""
    data = codex(
        ("session_meta", {"id": TALK, "cwd": "/gone", "cli_version": "0.46.0",
                          "git": {"repository_url": "git@host.invalid:me/shop.git"}}),
        of_codex("developer", "be nice"),
        of_codex("user", "<environment_context>…</environment_context>"),
        of_codex("user", "what is 2+2?"),
        ("event_msg", {"type": "user_message", "message": "what is 2+2?"}),
        ("turn_context", {"cwd": "/gone", "model": "m"}),
        ("response_item", {"type": "reasoning", "encrypted_content": "x"}),
        ("response_item", {"type": "function_call", "name": "shell", "call_id": "c",
                           "arguments": json.dumps({"command": ["bash", "-lc", "echo 4"]})}),
        ("response_item", {"type": "function_call_output", "call_id": "c", "output": "4"}),
        ("response_item", {"type": "custom_tool_call", "name": "apply_patch", "call_id": "d",
                           "input": "*** Begin Patch"}),
        ("response_item", {"type": "custom_tool_call_output", "call_id": "d", "output": "Done"}),
        ("response_item", {"type": "web_search_call", "action": {"query": "sums"}}),
        ("response_item", {"type": "ghost_snapshot"}),
        ("compacted", {"message": "They asked for a sum."}),
        of_codex("assistant", "It is 4."),
        ("event_msg", {"type": "token_count", "info": None}),
        ("hologram", {}),
    )  # fmt: skip
    folder = here.folder / ".codex/sessions/2026/10/29"
    folder.mkdir(parents=True)
    (folder / f"rollout-2026-10-29T00-59-38-{TALK}.jsonl").write_bytes(data)
    done = imported(here, "codex")
    assert done["receipts"][0]["project"] == "shop"
    assert done["receipts"][0]["title"] == "what is 2+2?"
    assert done["ignored"] == {
        "message of the role developer": 1, "message of the client's own": 1, "thinking": 1,
        "event user_message": 1, "event token_count": 1, "ghost_snapshot": 1,
        "unknown record 'hologram'": 1,
    }  # fmt: skip
    text = text_of(here, source="codex")
    for words in ("`shell`: `bash -lc echo 4`", "`shell` answered: `4`", "`apply_patch`: `***",
                  "`web search`: `sums`", "They asked for a sum.", "It is 4."):  # fmt: skip
        assert words in text


def test_rollouts_that_codex_has_packed_are_read_as_they_were(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several frames, cut, or no zstd at all; without a reader it is said what helps."""
    folder = here.folder / ".codex/archived_sessions"
    folder.mkdir(parents=True)
    (folder.parent / "sessions").mkdir()
    whole = codex(*[of_codex("user", f"question {n} " + os.urandom(3000).hex()) for n in range(99)])
    lines = whole.splitlines(keepends=True)

    def rollout(number: int, data: bytes) -> str:
        file = folder / f"rollout-2026-10-29T00-59-38-{number}{TALK[1:]}.jsonl.zst"
        file.write_bytes(data)
        return str(file)

    two = rollout(1, compress(b"".join(lines[:50])) + compress(b"".join(lines[50:])))
    cut, none = rollout(2, compress(whole)[:-4000]), rollout(3, whole)
    assert [len(list(records(file))) for file in (two, none)] == [99, 1]
    assert list(records(none)) == ["rest of a packed file, which is damaged"]
    told = [record for record in records(cut) if isinstance(record, str)]
    assert told in (["last line, which is cut"], ["rest of a packed file, which is damaged"])
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    blind = list(sources.find("codex", str(folder)))
    assert all(isinstance(one, LeftOut) and "annoris[assistant]" in one.why for one in blind)
    monkeypatch.undo()
    done = imported(here, "codex")
    assert (len(done["receipts"]), [item["where"] for item in done["left_out"]]) == (2, [none])
    assert "question 98" in text_of(here, "1" + TALK[1:], "codex")
    (folder.parent / f"sessions/rollout-2026-10-29T00-59-38-1{TALK[1:]}.jsonl").write_bytes(whole)
    assert not imported(here, "codex")["receipts"]


def test_rollouts_of_the_first_form_are_read_too() -> None:
    """Before the records had a wrapper."""
    lines: list[dict[str, Any]] = [
        {"id": TALK, "timestamp": "2025-07-01T10:00:00Z", "instructions": None},
        {"record_type": "state"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    ]
    reader = Codex()
    items = [item for line in lines for item in reader.read(line)]
    assert Item("said", "User", "hello") in items
    assert Item("fact", "id", TALK) in items
    assert Item("left", "state of the client") in items


def node(id: str, parent: str | None, role: str, content: Any, **more: Any) -> dict[str, Any]:
    message = {"id": id, "author": {"role": role}, "create_time": 1_760_000_000 + int(id, 16),
               "content": content, "recipient": "all", **more}  # fmt: skip
    return {"id": id, "parent": parent, "children": [], "message": message}


def exported(id: str = TALK, title: str = "Bread", more: str = "") -> dict[str, Any]:
    def texts(*parts: Any) -> dict[str, Any]:
        return {"content_type": "text", "parts": list(parts)}

    hidden = {"is_visually_hidden_from_conversation": True}
    code = {"content_type": "code", "text": "print(40)"}
    nodes = [
        {"id": "0", "parent": None, "children": ["1"], "message": None},
        node("1", "0", "system", texts("")),
        node("2", "1", "user", {"content_type": "multimodal_text", "parts": [
            {"content_type": "image_asset_pointer"}, "How long does it bake?"]}),
        node("3", "2", "assistant", texts("An answer that was regenerated.")),
        node("4", "2", "assistant", {"content_type": "thoughts", "thoughts": []}),
        node("5", "4", "assistant", code, recipient="python"),
        node("6", "5", "tool", {"content_type": "execution_output", "text": "40"}),
        node("7", "6", "user", texts("hidden"), metadata=hidden),
        node("8", "7", "assistant", texts(f"Forty minutes.{more}")),
    ]  # fmt: skip
    return {"title": title, "create_time": 1_760_000_000.5, "update_time": 1_760_000_100.5,
            "mapping": {item["id"]: item for item in nodes}, "current_node": "8",
            "conversation_id": id}  # fmt: skip


def test_an_export_of_chatgpt_becomes_a_session_for_each_conversation(
    here: Machine, tmp_path: Path
) -> None:
    """From the zip, or the file alone; the current branch is told, the others are counted."""
    other = "2" * 8 + TALK[8:]
    plain = here.write("conversations.json", json.dumps([exported(), exported(other, "Cake")]))
    with zipfile.ZipFile(here.desk / "export.zip", "w") as archive:
        archive.write(plain, "export/conversations.json")
        archive.writestr("export/user.json", "{}")
    done = imported(here, "chatgpt", "export.zip", "--project", "kitchen")
    assert [item["title"] for item in done["receipts"]] == ["Bread", "Cake"]
    assert done["ignored"]["message on another branch"] == 2
    text = text_of(here, source="chatgpt")
    for words in ("How long does it bake?", "[image]", "`python`: `print(40)`", "Forty minutes."):
        assert words in text
    assert "regenerated" not in text
    assert "hidden" not in text.replace("not in it", "")
    assert imported(here, "chatgpt", "conversations.json", "--project", "kitchen")["unchanged"] == 2
    here.write("conversations.json", json.dumps([exported(more=" Or more."), exported(other)]))
    done = imported(here, "chatgpt", "conversations.json")
    assert "Or more." in text_of(here, source="chatgpt")


def test_a_cut_export_gives_what_came_before_the_cut(here: Machine) -> None:
    whole = json.dumps([exported(), exported("2" * 8 + TALK[8:])])
    here.write("conversations.json", whole[: len(whole) - 200])
    done = imported(here, "chatgpt", "conversations.json")
    assert len(done["receipts"]) == 1
    assert "cut, after 1 conversations" in done["left_out"][0]["why"]


def test_a_branch_that_runs_in_a_circle_ends() -> None:
    """A parent that is its own child, and a current node that is not there."""
    talk = exported()
    talk["mapping"]["2"]["parent"] = "8"
    talk["current_node"] = "no such"
    items = list(ChatGPT().read(talk))
    assert any(item.text == "Forty minutes." for item in items)


def test_specstory_files_become_sessions_of_their_folder(here: Machine) -> None:
    here.write(
        ".specstory/history/2026-01-25_16-28Z-fix.md",
        f"<!-- Generated by SpecStory -->\n\n# Fix (2026-01-25 16:28Z)\n\n"
        f"<!-- Claude Code Session {TALK} (2026-01-25 16:28Z) -->\n\n_**User**_\n\nhello\n\n---\n",
    )
    done = imported(here, "specstory")
    assert done["receipts"][0]["id"] == session_id("specstory", TALK)
    assert done["receipts"][0]["project"] == "desk"
    assert text_of(here, source="specstory").endswith("hello\n\n---\n")


def test_a_folder_of_markdown_is_taken_as_it_is(here: Machine) -> None:
    """Bodies byte for byte, front matter kept; no session of ours, no other and hidden files."""
    here.write("notes/a.md", b"---\r\ntags: [x]\r\n---\r\n# A\r\n\r\ntext\r\n")
    here.write("notes/sub/b.md", "# B\n\nother text\n")
    here.write("notes/.git/c.md", "# C\n\nhidden\n")
    here.write("notes/d.txt", "no Markdown")
    here.write("notes/e.md", b"\xff\xfebad")
    here.write(os.fsdecode(b"notes/\xe9.md"), "# E\n\nodd name\n")
    here.write("notes/f.md", here.load(here.save(b"# Mine\n\ntext\n")[0].id))
    done = imported(here, "folder", "notes", code=6)
    assert sorted(item["title"] for item in done["receipts"]) == ["A", "B", "E"]
    assert sorted(Path(item["where"]).name for item in done["left_out"]) == ["e.md", "f.md"]
    id = session_id("folder", folder_key(str(here.desk / "notes"), "a.md"))
    data = here.load(id)
    assert data.endswith(b"---\r\n# A\r\n\r\ntext\r\n")
    assert b"tags: [x]" in data
    here.write("notes/a.md", "# A\n\nnew text\n")
    assert len(imported(here, "folder", "notes", code=6)["receipts"]) == 1
    assert here.load(id).endswith(b"# A\n\nnew text\n")


def test_folders_of_one_name_and_layout_share_no_session(here: Machine) -> None:
    """By the same path, through a link and from a folder above, a file is the same again."""
    for shop in ("one", "two"):
        here.write(f"{shop}/notes/a.md", f"# A of {shop}\n\ntext\n")
    first, second = (imported(here, "folder", f"{shop}/notes") for shop in ("one", "two"))
    ids = [done["receipts"][0]["id"] for done in (first, second)]
    assert len(set(ids)) == 2
    assert [here.load(id).splitlines()[-3] for id in ids] == [b"# A of one", b"# A of two"]
    (here.desk / "link").symlink_to("one")
    for path in ("one/notes", "two/notes", "one/notes/a.md", "link/notes", "one"):
        assert not imported(here, "folder", path, "--again")["receipts"], path


@pytest.mark.parametrize("state", ["kept", "lost"])
def test_what_was_imported_before_folders_were_told_apart_makes_no_doubles(
    here: Machine, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """The folder that it was made of goes on with it, even if most of it has changed since."""
    for shop in ("one", "two"):
        for name in ("a", "b"):
            here.write(f"{shop}/notes/{name}.md", f"# {name} of {shop}\n\ntext\n")
    conversation = sources.Conversation
    with monkeypatch.context() as before:
        before.setattr(
            sources,
            "Conversation",
            lambda *given, **more: dataclasses.replace(
                conversation(*given, **more), key=given[6], former=""
            ),
        )
        with contextlib.closing(here.archive()) as archive:
            found = list(sources.find("folder", str(here.desk / "one/notes")))
            old = Importer(archive, Wish()).run("folder", found, lambda *_: None)
    assert {item.id for item in old.receipts} == {
        session_id("folder", f"notes/{name}.md") for name in ("a", "b")
    }
    if state == "lost":
        (here.data / "imports.json").unlink()
    here.write("one/notes/a.md", "# a of one\n\nnew text\n")
    here.write("one/notes/c.md", "# c of one\n\ntext\n")
    other = imported(here, "folder", "two/notes")
    grown = imported(here, "folder", "one/notes")
    made = {item["title"]: item["id"] for item in grown["receipts"]}
    assert made["a of one"] == session_id("folder", "notes/a.md")
    assert set(made) == {"a of one", "c of one"}
    assert not {item["id"] for item in other["receipts"]} & {item.id for item in old.receipts}
    assert b"new text" in here.load(made["a of one"])
    for name in ("a", "b", "c"):  # all at once: who goes on is remembered
        here.write(f"one/notes/{name}.md", f"# {name} of one\n\nlast text\n")
    assert len(imported(here, "folder", "one/notes")["receipts"]) == 3
    assert len(here.run("list", "--all", "--json").json["sessions"]) == 5


# --- options -------------------------------------------------------------------------------------


def test_since_limit_and_dry_run_choose_what_is_imported(here: Machine) -> None:
    for number in range(4):
        talk = Claude(session=f"{number}" * 8 + TALK[8:])
        talk.user(f"talk {number}")
        file = put(here, talk)
        os.utime(file, (1_760_000_000 + number * 86400,) * 2)
    done = imported(here, "claude-code", "--dry-run", "--since", "2025-10-10")
    assert [title for _, title in done["planned"]] == ["talk 1", "talk 2", "talk 3"]
    assert not (here.data / "imports.json").exists()
    assert here.run("list", "--all", "--json").json["sessions"] == []
    done = imported(here, "claude-code", "--limit", "1")
    assert [item["title"] for item in done["receipts"]] == ["talk 3"]
    done = imported(here, "claude-code", "--limit", "2")
    assert [item["title"] for item in done["receipts"]] == ["talk 1", "talk 2"]


def test_the_project_is_that_of_the_folders_git_remote(here: Machine) -> None:
    work = here.desk / "checkout"
    (work / ".git").mkdir(parents=True)
    (work / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (work / ".git" / "objects").mkdir()
    (work / ".git" / "refs").mkdir()
    (work / ".git" / "config").write_text(
        '[remote "origin"]\nurl = https://example.com/me/real.git\n'
    )
    talk = Claude(cwd=str(work / "src"))
    talk.user("hello")
    put(here, talk)
    assert imported(here, "claude-code")["receipts"][0]["project"] == "real"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("claude-code",), 2, "nothing of Claude Code is there"),
        (("codex", "no/such"), 2, "no such file or folder"),
        (("chatgpt",), 2, "where is the export?"),
        (("folder",), 2, "which folder?"),
        (("gemini",), 2, "claude-code"),
        (("claude-code", "--since", "yesterday"), 2, "is not a moment"),
    ],
)
def test_a_wrong_call_says_what_to_do(
    here: Machine, arguments: tuple[str, ...], code: int, words: str
) -> None:
    if "--since" in arguments:
        put(here, whole_talk())
    ran = here.run("import", *arguments)
    assert ran.code == code
    assert words in ran.err


# --- anything at all -----------------------------------------------------------------------------

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_KEYS = [
    "type", "message", "content", "text", "uuid", "timestamp", "cwd", "payload", "role", "mapping",
    "parent", "id", "name", "input", "tool_use_id", "attachment", "prompt", "subtype",
    "current_node", "author", "parts", "create_time",
]  # fmt: skip
_WORDS = [
    "user", "assistant", "text", "tool_use", "tool_result", "system", "attachment", "summary",
    "response_item", "session_meta", "message", "compacted", "queued_command", "tool",
]  # fmt: skip
_JSON = st.recursive(
    _LEAVES,
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(st.sampled_from(_KEYS), below | st.sampled_from(_WORDS), max_size=6)
    ),
    max_leaves=25,
)
_EASY = settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@_EASY
@given(found=st.lists(_JSON, max_size=6), reader=st.sampled_from([ClaudeCode, Codex, ChatGPT]))
def test_no_record_is_too_odd(found: list[Any], reader: Callable[[], Reader]) -> None:
    """Whatever stands in the records: a sound document, or none."""
    taking = reader()
    items = [item for record in found if isinstance(record, dict) for item in taking.read(record)]
    made = page(lambda: items, "a test", 100_000)
    if made.body:
        document.parse(made.body.encode())


@_EASY
@given(lines=st.lists(st.binary(max_size=60), max_size=20))
def test_no_file_is_too_odd(lines: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"\n".join(lines))
    for found in records(str(file)):
        assert isinstance(found, (str, dict))
    with file.open(encoding="utf-8", errors="replace") as text, contextlib.suppress(ValueError):
        assert all(isinstance(item, dict) for item in objects(text))


_TEXT = st.text(st.characters(), min_size=1, max_size=60) | st.sampled_from(
    [
        "```",
        "~~~\nx",
        "# h",
        "a\n===",
        "<!--",
        "<pre>",
        "- `x",
        "---\na: b\n---",
        "[a]: b",
        "\t x",
        "````\n```",
    ]
)


@_EASY
@given(texts=st.lists(_TEXT, min_size=1, max_size=8))
def test_every_message_stands_in_the_document_and_ends_where_it_ends(texts: list[str]) -> None:
    """Verbatim but for controls; each under a heading of its own, which is a heading."""
    talk = ClaudeCode()
    items = [
        item for text in texts for item in talk.read({"type": "user", "message": {"content": text}})
    ]
    made = page(lambda: items, "a test", 1_000_000)
    spoken = [
        text for text in texts if text.strip() and not re.match(r"\s*<(command|local|bash)-", text)
    ]
    assert made.counts["messages"] == len(spoken)
    for text in spoken:
        assert clean(text).strip() in made.body
    if made.body:
        parsed = document.parse(made.body.encode())
        wrong = {problem.rule for problem in markdown.check(parsed)}
        assert wrong <= {"mojibake", "conflict-marker"}
        headings = [level for _, level, _ in document.outline(made.body) if level]
        assert headings == [1] + [2] * len(spoken)


def test_objects_of_an_array_are_read_one_by_one(tmp_path: Path) -> None:
    """In pieces smaller than one of them."""

    class Small:
        def __init__(self, text: str) -> None:
            self.text = text

        def read(self, _: int) -> str:
            piece, self.text = self.text[:7], self.text[7:]
            return piece

    def read(text: str) -> Iterator[dict[str, Any]]:
        return objects(Small(text))  # type: ignore[arg-type]

    wanted = [{"a": "b, [c]"}, {"d": [1, {"e": '\\"'}]}]
    assert list(read(json.dumps(wanted))) == wanted
    assert list(read(json.dumps(wanted[0]))) == wanted[:1]
    assert list(read("[]")) == []


def test_the_ids_of_imported_sessions_never_change() -> None:
    """Another value here would make every import anew."""
    assert session_id("claude-code", TALK) == "1f82ec44-a121-5c45-b52e-e560c5ee3017"
