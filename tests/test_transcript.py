"""The client's own transcript: kept beside a session, and given back so that the client goes on."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annoris.assistant.native import folder_name, packed, unpacked
from annoris.envelope import new_key
from annoris.errors import DocumentRefused, StorageError
from annoris.layout import Plain
from annoris.settings import SaveSettings
from tests.support import crash
from tests.support.machine import Machine
from tests.test_import import FULL, TALK, TOKEN, Claude, put, whole_talk
from tests.test_sealed import everything_in

LIMITS = SaveSettings()
transcript_path = Plain(()).transcript_path


@pytest.fixture
def here(machine: Callable[..., Machine], remote: Path) -> Machine:
    return machine("laptop", remote)


def keep(machine: Machine, data: bytes, body: bytes = b"# Work\n\ntext\n", *more: str) -> Any:
    file = machine.write("talk.jsonl", data)
    return machine.run("save", "-", "--json", "--transcript", file, *more, stdin=body)


def on_master(machine: Machine, id: str) -> bytes | None:
    archive = machine.archive()
    try:
        archive.look(fresh=True)
        path = archive.master.layout.transcript_path(id)
        return archive.master.file(archive.master.tip(), path)
    finally:
        archive.close()


def test_a_transcript_goes_to_master_with_its_session(here: Machine) -> None:
    """In the same commit, packed, and never as a session."""
    data = whole_talk().data
    ran = keep(here, data)
    assert ran.code == 0, ran.err
    saved, kept = ran.json["receipts"]
    assert (saved["state"], kept["state"], kept["op"]) == ("master", "master", "attach")
    assert saved["commit"] == kept["commit"]
    assert kept["path"] == transcript_path(saved["id"])
    found = on_master(here, saved["id"])
    assert found is not None
    assert unpacked(found) == data
    assert len(here.run("list", "--all", "--json").json["sessions"]) == 1
    assert here.sync().code == 0
    again = keep(here, data, here.load(saved["id"]))
    assert [item["state"] for item in again.json["receipts"]] == ["unchanged", "master"]


def test_a_transcript_waits_with_its_session_while_master_is_away(
    here: Machine, remote: Path
) -> None:
    """It is in the outbox, given back from there, hides nothing, and is delivered by a sync."""
    id = here.save(b"# Work\n\ntext\n")[0].id
    text = here.load(id).replace(b"text", b"new text")
    away = remote.rename(remote.with_name("away.git"))
    assert keep(here, whole_talk().data, text).code == 10
    assert b"new text" in here.load(id)
    assert here.run("load", id, "--as", "claude-code").code == 0
    assert len(here.run("list", "--all", "--json").json["sessions"]) == 1
    away.rename(remote)
    assert here.sync().code == 0
    assert on_master(here, id) is not None


def test_a_transcript_survives_a_kill_before_each_effect(here: Machine) -> None:
    """Whenever the save dies: the next sync leaves both on master, or neither."""
    file = here.write("talk.jsonl", whole_talk().data)
    here.write("work.md", "# Work\n\ntext\n")
    log, ran = crash.events(here, "save", "work.md", "--name", "n0", "--transcript", str(file))
    assert ran.code == 0
    step = 1 if FULL else max(1, len(log) // 4)
    both = 0
    for number in range(0, len(log), step):
        here.write("work.md", f"# Work {number}\n\ntext\n")
        name = f"n{number + 1}"
        crash.run(
            here, "save", "work.md", "--name", name, "--transcript", str(file), kill_at=number
        )
        assert here.sync().code == 0
        found = here.run("load", name, "--json")
        if found.code == 0:
            assert on_master(here, found.json["session"]["id"]) is not None
            both += 1
    assert both >= 2


def test_the_transcript_of_a_text_that_lost_goes_with_its_copy(
    machine: Callable[..., Machine], remote: Path
) -> None:
    one, two = machine("one", remote), machine("two", remote)
    id = one.save(b"# Work\n\ntext\n")[0].id
    texts = [machine_.load(id) for machine_ in (one, two)]
    first, second = whole_talk(), whole_talk()
    second.user("the other one")
    keep(one, first.data, texts[0].replace(b"text", b"mine"))
    ran = keep(two, second.data, texts[1].replace(b"text", b"yours"))
    assert ran.code == 4
    copy = ran.json["receipts"][0]["id"]
    assert copy != id
    assert unpacked(on_master(two, copy) or b"") == second.data
    assert unpacked(on_master(two, id) or b"") == first.data


def test_a_transcript_goes_when_its_session_is_deleted(here: Machine) -> None:
    id = keep(here, whole_talk().data).json["receipts"][0]["id"]
    assert here.run("delete", id).code == 0
    assert on_master(here, id) is None


def test_on_a_sealed_master_a_transcript_is_sealed_too(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """No word of it is there; another machine with the key gets it back, before and after a
    conversion to the plain form."""
    settings = {"encryption_scope": "everything", "key": new_key().text()}
    one, two = (machine(name, remote, **settings) for name in ("one", "two"))
    talk = whole_talk()
    id = keep(one, talk.data).json["receipts"][0]["id"]
    assert b"webhooks" not in everything_in(remote)
    assert gzip.compress(talk.data, 6, mtime=0) not in everything_in(remote)
    assert two.run("load", id, "--as", "claude-code").code == 0
    two.environment["ANNORIS_ENCRYPTION_SCOPE"] = "caches"
    ran = two.run("init", "--remote", str(remote), "--scope", "caches", "--convert")
    assert ran.code == 0, ran.err
    assert unpacked(on_master(two, id) or b"") == talk.data
    assert two.run("load", id, "--as", "claude-code", "--force").code == 0


def test_transcripts_go_along_to_a_remote(machine: Callable[..., Machine], remote: Path) -> None:
    """To one that is empty, and to one that has sessions of its own."""
    machine("other", remote).save(b"# Other\n\ntext\n")
    here = machine("laptop")
    id = keep(here, whole_talk().data).json["receipts"][0]["id"]
    assert here.run("init", "--remote", str(remote)).code == 0
    assert on_master(machine("third", remote), id) is not None


def test_a_credential_in_a_transcript_is_refused_or_masked(here: Machine) -> None:
    """Nothing is saved at exit 7; with --redact every line is still a record."""
    talk = whole_talk()
    talk.user(f"export GH={TOKEN}\n" + "-" * 5)
    ran = keep(here, talk.data)
    assert ran.code == 7
    assert TOKEN not in ran.text + ran.err
    assert here.run("list", "--all", "--json").json["sessions"] == []
    ran = keep(here, talk.data, b"# Work\n\ntext\n", "--redact")
    assert ran.code == 0, ran.err
    found = unpacked(on_master(here, ran.json["receipts"][0]["id"]) or b"")
    assert TOKEN.encode() not in found
    assert len([json.loads(line) for line in found.splitlines()]) == len(talk.lines)


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "no line of JSON"), (b"# no transcript\n", "no line of JSON")]
)
def test_what_is_no_transcript_is_refused(here: Machine, data: bytes, words: str) -> None:
    ran = keep(here, data)
    assert ran.code == 6
    assert words in ran.text
    assert here.run("list", "--all", "--json").json["sessions"] == []


def test_a_transcript_too_large_for_master_is_refused() -> None:
    noise = b"".join(b'{"a": "%s"}\n' % os.urandom(30).hex().encode() for _ in range(100))
    with pytest.raises(DocumentRefused, match="when packed"):
        packed(noise, "x.jsonl", SaveSettings(max_bytes=1000), redact=False)


def test_packing_is_the_same_at_any_time() -> None:
    """So that saving it again is no change on master."""
    first = packed(b"{}\n", "x", LIMITS, redact=False)
    time.sleep(1.1)
    assert packed(b"{}\n", "x", LIMITS, redact=False) == first


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", packed(b"{}\n" * 999, "x", LIMITS, redact=False)[:-9]]
)
def test_a_damaged_transcript_is_said_to_be(data: bytes) -> None:
    with pytest.raises(StorageError, match="transcript"):
        unpacked(data)


def test_load_as_gives_the_client_its_file_back_on_another_machine(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Under the folder of that machine, with its paths; lines that can't be read stay."""
    one, two = machine("one", remote), machine("two", remote)
    talk = Claude(cwd="/home/me/shop")
    talk.user("hello")
    talk.user("deeper", cwd="/home/me/shop/src")
    talk.user("elsewhere", cwd="/home/me/shopping")
    talk.lines.append(b'{"cut": "li')
    id = keep(one, talk.data).json["receipts"][0]["id"]
    ran = two.run("load", id, "--as", "claude-code")
    assert ran.code == 0, ran.err
    assert ran.text == f"claude --resume {TALK}\n"
    here = os.path.realpath(two.desk)
    file = two.folder / ".claude/projects" / folder_name(here) / f"{TALK}.jsonl"
    lines = file.read_bytes().splitlines()
    assert lines[-1] == b'{"cut": "li'
    records = [json.loads(line) for line in lines[:-1]]
    assert [record["cwd"] for record in records] == [here, f"{here}/src", "/home/me/shopping"]
    for record, line in zip(records, talk.lines, strict=False):
        assert record | {"cwd": ""} == json.loads(line) | {"cwd": ""}
    assert two.run("load", id, "--as", "claude-code").code == 0  # the same: nothing to do
    file.write_bytes(b"gone on\n")
    ran = two.run("load", id, "--as", "claude-code")
    assert ran.code == 2
    assert "--force" in ran.err
    assert file.read_bytes() == b"gone on\n"
    assert two.run("load", id, "--as", "claude-code", "--force").code == 0
    assert two.run("import", "claude-code", "--json").json["imported"]["found"] == 1


def test_a_session_without_a_transcript_says_so(here: Machine) -> None:
    id = here.save(b"# Work\n\ntext\n")[0].id
    ran = here.run("load", id, "--as", "claude-code")
    assert ran.code == 3
    assert "has no transcript" in ran.err
    keep(here, b'{"type": "session_meta"}\n', here.load(id))
    ran = here.run("load", id, "--as", "claude-code")
    assert ran.code == 3
    assert "names no session of Claude Code" in ran.err


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/my_shop.git", "-home-me-my-shop-git"),
        ("/a b/Ünï/😀", "-a-b--n----"),
        ("/" + "x" * 199, "-" + "x" * 199),
        ("/" + "x" * 200, "-" + "x" * 199 + "-d0i18x"),
    ],
)
def test_folders_are_named_as_claude_code_names_them(path: str, name: str) -> None:
    """A dash for each UTF-16 unit that is no ASCII letter or digit; long names end with a hash."""
    assert folder_name(path) == name


def test_put_and_kept_are_the_same_transcript(here: Machine) -> None:
    """A transcript can be named where its client keeps it."""
    file = put(here, whole_talk())
    ran = here.run("save", "-", "--json", "--transcript", file, stdin=b"# W\n\nx\n")
    assert unpacked(on_master(here, ran.json["receipts"][0]["id"]) or b"") == file.read_bytes()
