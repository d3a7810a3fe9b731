"""The command line: every outcome has its exit code and one clear line, never a traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from annoris.cli import EXIT
from annoris.commands import exit_code
from annoris.errors import AnnorisError, TierDown
from annoris.gitcmd import LostRace
from annoris.model import Receipt, State
from tests.support.githttp import GitServer, bare
from tests.support.machine import Machine, Ran

Machines = Callable[..., Machine]
COMMANDS = (
    "save", "load", "list", "search", "history", "diff", "delete",
    "sync", "verify", "log", "outbox", "projects", "dump", "restore",
    "status", "doctor", "alerts", "key", "schedule", "init",
    "install", "uninstall", "import", "mcp", "hook", "serve", "token", "webhook", "sandbox",
)  # fmt: skip
GOOD = b"# Good\n\n**Status:** open\n\ntext\n"
RUSSIAN = "# Отчёт о складе\n\n**Статус:** в работе\n\nтекст\n".encode()


def calm(ran: Ran) -> None:
    """Whatever went wrong: no traceback, nothing called a bug, and few lines."""
    assert "Traceback" not in ran.err
    assert "this is a bug" not in ran.err
    assert len(ran.err.splitlines()) <= 8, ran.err


# --- bad input -----------------------------------------------------------------------------------


class Bad(NamedTuple):
    arguments: str
    code: int
    says: str  # a pattern for what stderr says
    stdin: bytes = b""
    env: dict[str, str] | None = None


ID = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
FILES: dict[str, bytes] = {
    "good.md": GOOD,
    "image.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "latin.md": "# Größe\n\ntext\n".encode("latin-1"),
    "utf16.md": "# Größe\n".encode("utf-16"),
    "empty.md": b"",
    "blank.md": b" \n\n",
    "front.md": b"---\ntitle: [a\n---\n# T\n",
    "only-front.md": b"---\ntitle: a\n---\n",
    "one.md": f"---\nid: {ID}\n---\n# One\n".encode(),
    "two.md": f"---\nid: {ID}\n---\n# Two\n".encode(),
    "secret.md": b"# S\n\ntoken ghp_" + b"a1B2c3D4e5F6g7H8i9" * 2 + b"\n",
    "there.txt": b"something else",
    "unknown.toml": b"[master]\nbranhc = 'x'\n",
    "type.toml": b"[save]\nmax_bytes = 'many'\n",
    "broken.toml": b"project = \n",
    "koi8.toml": "project = 'Ёж'\n".encode("koi8-r"),
}
BAD = {
    "a missing file": Bad("save none.md", 2, r"none\.md: No such file.*\n  "),
    "a folder": Bad("save folder", 2, r"folder: is a folder\n  .*folder/\*\.md"),
    "a binary file": Bad("save image.png", 6, r"image\.png:1: .*PNG image\n  "),
    "another encoding": Bad("save latin.md", 6, r"latin\.md:1: .*0xF6 at offset 4.*\n.*--fix"),
    "utf-16": Bad("save utf16.md", 6, r"utf16\.md:1: .*UTF-16.*\n  "),
    "a huge file": Bad("save huge.md", 6, r"huge\.md: 209,715,200 bytes are more than.*\n  "),
    "an empty file": Bad("save empty.md", 6, r"empty\.md: the document is empty\n  "),
    "only blanks": Bad("save blank.md", 6, r"blank\.md: the document is empty\n  "),
    "broken front matter": Bad("save front.md", 6, r"front\.md:\d: the front matter.*\n  "),
    "nothing below it": Bad("save only-front.md", 6, r"only-front\.md: .*nothing below.*\n  "),
    "a credential": Bad("save secret.md", 7, r"secret\.md:3: .*credential.*\n.*--allow-secret"),
    "one bad of two": Bad("save good.md latin.md", 6, r"latin\.md:1: "),
    "two bad of three": Bad("save empty.md good.md latin.md", 6, r"2 of 3 .*nothing was saved"),
    "bad in two ways": Bad("save secret.md latin.md", 7, r"(?s)secret\.md.*latin\.md"),
    "one session twice": Bad("save one.md two.md", 2, r"the same session.*\n  "),
    "an empty stdin": Bad("save -", 6, r"stdin: the document is empty\n  "),
    "a name for two": Bad("save --name x good.md one.md", 2, r"--name names one.*\n  "),
    "an update of two": Bad("save --update x good.md one.md", 2, r"--update takes one.*\n  "),
    "an update of nothing": Bad("save --update nothing good.md", 3, r"no session 'nothing'.*\n  "),
    "a pipe nobody fills": Bad("save fifo", 6, r"fifo: the document is empty|fifo: .*not a file"),
    "an unknown selector": Bad("load nonsense", 3, r"no session 'nonsense'\n  .*annoris list"),
    "a near miss": Bad("load auth-refcator", 3, r"no session.*\n  did you mean auth-refactor"),
    "an ambiguous id": Bad("load 0190", 3, r"'0190' fits 2 sessions:\n  .*\n  .*\n  give more"),
    "a revision of nothing": Bad("load auth-refactor --rev ffff", 3, r"no one revision.*\n  "),
    "a short revision": Bad("load auth-refactor --rev f", 3, r"no one revision 'f'.*\n  "),
    "a nonsense date": Bad("load auth-refactor --at someday", 2, r"'someday' is not a mom.*\n  "),
    "a date before": Bad("load auth-refactor --at 1999-01-01", 3, r"no revision yet at 1999"),
    "a huge distance": Bad("load auth-refactor --at 99999w", 3, r"no revision yet|moment"),
    "both of them": Bad("load --rev abcd --at 3d", 2, r"exclude each other\n  "),
    "no such section": Bad("load auth-refactor --section Zzz", 3, r"(?i)zzz.*\n  .*"),
    "an existing output": Bad("load auth-refactor -o there.txt", 2, r"there\.txt: exists.*\n.*--f"),
    "a missing folder": Bad("load auth-refactor -o no/x.md", 74, r"no/x\.md: No such file.*\n  "),
    "a folder as output": Bad("load auth-refactor -o folder --force", 74, r"folder: Is a di.*\n  "),
    "a bad since": Bad("list --since whenever", 2, r"'whenever' is not a moment\n  "),
    "no letters to find": Bad("search !!!", 2, r"!!!|letter.*\n  "),
    "delete of nothing": Bad("delete nothing", 3, r"no session 'nothing'\n  "),
    "history of nothing": Bad("history nothing", 3, r"no session 'nothing'\n  "),
    "diff of nothing": Bad("diff nothing", 3, r"no session 'nothing'\n  "),
    "retry of nothing": Bad("outbox retry 7", 3, r"no draft 7"),
    "drop of nothing": Bad("outbox drop ../x", 3, r"no draft \.\./x"),
    "an unknown option": Bad("load --fresch", 2, r"no such option.*--fresch.*\n  .*load --help"),
    "an option without its value": Bad("load --rev", 2, r"requires an argument\n  .*load --help"),
    "a remote that is away": Bad(
        "init --remote http://127.0.0.1:9/x.git", 5, r"nothing was changed\n  check the address",
    ),
    "an unknown command": Bad("lod", 2, r"no such command 'lod'.*load.*\n  .* --help"),
    "a missing argument": Bad("delete", 2, r"missing argument.*SEL.*\n  .*delete --help"),
    "a missing command": Bad("schedule", 2, r"missing command\n  .*schedule --help"),
    "no number": Bad("list -n many", 2, r"(?i)invalid value.*many"),
    "a limit of nothing": Bad("list -n 0", 2, r"(?i)invalid value.*0"),
    "a missing config": Bad("--config none.toml list", 2, r"none\.toml: no such file\n  "),
    "an unknown key": Bad("--config unknown.toml list", 2, r"toml: master\.branhc: .*\n.*branch"),
    "a wrong type": Bad("--config type.toml list", 2, r"max_bytes: must be a whole number"),
    "broken TOML": Bad("--config broken.toml list", 2, r"broken\.toml: is not TOML.*line 1"),
    "a config in KOI8-R": Bad("--config koi8.toml list", 2, r"koi8\.toml: is not UTF-8.*\n  "),
    "a folder as config": Bad("--config folder list", 2, r"folder: can't be read"),
    "a wrong variable": Bad("list", 2, r"ANNORIS_SAVE_SCAN", env={"ANNORIS_SAVE_SCAN": "maybe"}),
    "a password in a URL": Bad("init --remote https://a:b@x.org/r", 2, r"credential.*\n.*TOKEN"),
    "an option as a URL": Bad("init --remote=--upload-pack=x", 2, r"is not a repository"),
    "a data folder below a file": Bad(
        "save good.md", 74, r"there\.txt/data.*\n.*ANNORIS_DATA_DIR",
        env={"ANNORIS_DATA_DIR": "there.txt/data"},
    ),
    "a data folder in /proc": Bad(
        "save good.md", 74, r"/proc/annoris.*\n.*ANNORIS_DATA_DIR",
        env={"ANNORIS_DATA_DIR": "/proc/annoris"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """One machine with a few sessions, and files of every bad kind."""
    machine = Machine(tmp_path_factory.mktemp("cli") / "laptop", "", {})
    for name, data in FILES.items():
        machine.write(name, data)
    (machine.desk / "folder").mkdir()
    os.mkfifo(machine.desk / "fifo")
    with (machine.desk / "huge.md").open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    machine.save(GOOD, name="auth-refactor")
    for number in (1, 2):
        machine.save(f"---\nid: {ID[:-1]}{number}\n---\n# Number {number}\n".encode())
    return machine


def held(machine: Machine) -> tuple[str, list[str], list[str]]:
    """Master's tip, what waits, and what lies on the desk."""
    tip = (machine.data / "clone.git" / "refs" / "heads" / "main").read_text()
    waiting = [str(path) for path in (machine.data / "outbox").rglob("*") if path.is_file()]
    return tip, waiting, sorted(path.name for path in machine.desk.rglob("*"))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_message_and_nothing_half_done(
    name: str, furnished: Machine
) -> None:
    """What, where, what to do; the code of its kind; nothing on stdout; nothing saved."""
    bad = BAD[name]
    before = held(furnished)
    ran = furnished.run(*bad.arguments.split(), stdin=bad.stdin, env=bad.env, timeout=30)
    calm(ran)
    assert ran.code == bad.code, ran
    assert re.search(bad.says, ran.err), ran.err
    assert ran.out == b""
    assert held(furnished) == before


def test_an_unreadable_file_is_named(machine: Machines) -> None:
    laptop = machine()
    path = laptop.write("a.md", GOOD)
    path.chmod(0)
    with contextlib.suppress(PermissionError), path.open("rb"):
        pytest.skip("this user reads every file")
    ran = laptop.run("save", "a.md")
    assert ran.code == 2
    assert "a.md: Permission denied" in ran.err


def test_an_error_as_json_is_one_object_on_stdout(furnished: Machine) -> None:
    ran = furnished.run("load", "auth-refcator", "--json")
    assert (ran.code, ran.err) == (3, "")
    error = ran.json["error"]
    assert ran.json["schema_version"] == 1
    assert (error["code"], error["near"]) == ("not-found", ["auth-refactor"])


def test_misuse_as_json_is_an_error_like_others(machine: Machines) -> None:
    ran = machine().run("list", "--json", "--limit", "many")
    assert (ran.code, ran.err) == (2, "")
    error = ran.json["error"]
    assert error["code"] == "usage"
    assert "'many'" in error["message"]
    assert error["hint"].endswith("list --help")


def test_every_error_has_an_exit_code() -> None:
    """A lost race and a cache that is down never leave the core; the root is never raised."""

    def below(cls: type[AnnorisError]) -> set[type[AnnorisError]]:
        return {cls}.union(*(below(child) for child in cls.__subclasses__()))

    codes = {cls.code for cls in below(AnnorisError) - {AnnorisError, LostRace, TierDown}}
    assert codes <= EXIT.keys()
    assert not {0, 1, 130} & set(EXIT.values())


# --- remotes -------------------------------------------------------------------------------------


def test_a_remote_that_does_not_exist_is_named_and_the_text_is_kept(machine: Machines) -> None:
    laptop = machine(remote="/nowhere/sessions.git")
    laptop.write("a.md", GOOD)
    ran = laptop.run("save", "a.md")
    calm(ran)
    assert ran.code == 10
    assert "/nowhere/sessions.git" in ran.text
    assert laptop.run("load", "--body").out == GOOD
    assert laptop.run("sync").code == 10


@pytest.mark.parametrize(("status", "code"), [(401, 10), (403, 10), (404, 10), (500, 75)])
def test_a_remote_that_says_no_is_10_and_one_that_fails_is_75(
    status: int, code: int, machine: Machines, server: GitServer
) -> None:
    laptop = machine(remote=server.url, master_push_seconds="5")
    laptop.write("a.md", GOOD)
    server.status = status
    ran = laptop.run("save", "a.md")
    calm(ran)
    assert ran.code == code, ran
    server.status = None
    assert laptop.run("sync").code == 0
    assert laptop.run("load", "--body").out == GOOD


def test_a_remote_that_hangs_ends_by_the_deadline_with_75(
    machine: Machines, server: GitServer
) -> None:
    laptop = machine(remote=server.url, master_push_seconds="1", master_load_seconds="1")
    laptop.write("a.md", GOOD)
    server.hang = "accept"
    ran = laptop.run("save", "a.md", timeout=30)
    calm(ran)
    assert ran.code == 75
    assert "annoris sync" in ran.text
    loaded = laptop.run("load", "--body", timeout=30)
    assert (loaded.code, loaded.out) == (0, GOOD)
    assert laptop.run("sync", timeout=30).code == 75


def test_without_git_a_save_waits_and_says_why(machine: Machines) -> None:
    laptop = machine()
    laptop.write("a.md", GOOD)
    ran = laptop.run("save", "a.md", env={"PATH": "/"})
    calm(ran)
    assert ran.code == 75
    assert "git isn't installed" in ran.text
    assert laptop.run("sync").code == 0
    assert laptop.run("load", "--body").out == GOOD


def test_a_wrong_branch_is_named_by_doctor_with_the_right_one(
    machine: Machines, remote: Path
) -> None:
    machine(remote=remote).save(GOOD)
    other = machine("other", remote=remote, master_branch="mian")
    ran = other.run("doctor")
    calm(ran)
    assert ran.code == 9
    assert re.search(r"has no branch mian\n.*--branch main", ran.err)


# --- signals and pipes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_save_ends_quietly_and_its_text_waits(
    number: signal.Signals, code: int, machine: Machines, server: GitServer
) -> None:
    laptop = machine(remote=server.url)
    laptop.write("a.md", GOOD)
    server.hang = "accept"
    running = laptop.start("save", "a.md")
    for _ in range(600):
        if server.requests:
            break
        time.sleep(0.05)
    assert server.requests == 1
    running.send_signal(number)
    out, err = running.communicate(timeout=30)
    calm(Ran(running.returncode, out, err.decode()))
    assert running.returncode == code
    server.hang = ""
    assert laptop.run("sync").code == 0
    assert laptop.run("load", "--body").out == GOOD


def test_a_closed_stdout_is_no_error_to_talk_about(furnished: Machine) -> None:
    """As in ``annoris load | head``."""
    furnished.save(b"# Big\n\n" + b"word word word\n" * 100_000, name="big")
    for arguments in (("load", "big"), ("list", "--all"), ("load", "big", "--json")):
        reader, writer = os.pipe()
        os.close(reader)
        with subprocess.Popen(
            [sys.executable, "-m", "annoris.cli", *arguments],
            cwd=furnished.desk,
            env=furnished.environment,
            stdout=writer,
            stderr=subprocess.PIPE,
        ) as running:
            os.close(writer)
            _, err = running.communicate(timeout=60)
        assert b"Traceback" not in err
        assert b"Broken pipe" not in err
        assert b"bug" not in err
        assert running.returncode in (0, 141), arguments


def test_a_full_device_as_stdout_is_an_error(furnished: Machine) -> None:
    """Exit 0 from load means that the text went out."""
    with (
        open("/dev/full", "wb") as full,
        subprocess.Popen(
            [sys.executable, "-m", "annoris.cli", "load", "auth-refactor"],
            cwd=furnished.desk,
            env=furnished.environment,
            stdout=full,
            stderr=subprocess.PIPE,
        ) as running,
    ):
        _, err = running.communicate(timeout=60)
    calm(Ran(running.returncode, b"", err.decode()))
    assert running.returncode == 74
    assert os.strerror(errno.ENOSPC) in err.decode()


# --- help and completion -------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_an_example(command: str, furnished: Machine) -> None:
    ran = furnished.run(command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert re.search(rf"^ +(.*\| )?annoris {command}", ran.text, re.MULTILINE)
    assert furnished.run(command, "-h").out == ran.out


def test_alone_it_says_where_one_stands_and_how_to_begin(machine: Machines) -> None:
    """On a machine where nothing is yet it shows the first three commands, and makes nothing."""
    laptop = machine()
    ran = laptop.run()
    assert (ran.code, ran.err, laptop.data.exists()) == (0, "", False)
    assert re.findall(r"^  annoris (\w+)", ran.text, re.MULTILINE) == ["save", "load", "init"]
    laptop.save(GOOD)
    ran = laptop.run()
    assert ran.code == 0
    assert re.search(r"^newest +Good  \w{8}$", ran.text, re.MULTILINE)
    assert "annoris load" in ran.err


def test_help_lists_every_command(furnished: Machine) -> None:
    ran = furnished.run("--help")
    assert ran.code == 0
    listed = re.findall(r"^  ([a-z]+)  +\S", ran.text.partition("Commands:")[2], re.MULTILINE)
    assert tuple(listed) == COMMANDS
    assert re.fullmatch(r"annoris \d\S*\n", furnished.run("--version").text)


def test_completion_answers_a_shell(furnished: Machine) -> None:
    script = Path(sys.executable).with_name("annoris")
    if not script.exists():
        pytest.skip("the script is not installed here")
    words = {"COMP_WORDS": "annoris loa", "COMP_CWORD": "1"}
    env = {**furnished.environment, "_ANNORIS_COMPLETE": "complete_bash", **words}
    done = subprocess.run([script], env=env, capture_output=True, check=False, timeout=60)
    assert done.stdout.decode().split() == ["load"], done.stderr


# --- machines ------------------------------------------------------------------------------------


def test_json_of_every_command_is_one_object_with_its_version(machine: Machines) -> None:
    laptop = machine()
    laptop.write("a.md", RUSSIAN)
    remote = bare(laptop.folder / "remote.git")
    keys = {
        ("save", "a.md"): "receipts",
        ("load",): "session",
        ("list",): "sessions",
        ("search", "отчёт"): "hits",
        ("history",): "revisions",
        ("diff",): "diff",
        ("sync",): "report",
        ("verify",): "audit",
        ("log",): "runs",
        ("outbox",): "waiting",
        ("projects",): "projects",
        ("status",): "status",
        ("doctor",): "findings",
        ("init", "--remote", str(remote)): "init",
        ("delete", "no"): "error",
        ("key", "new"): "key",
        ("schedule", "show"): "schedule",
        ("alerts",): "targets",
        ("dump",): "error",
        ("restore", "latest"): "error",
        ("import", "folder", "."): "imported",
        ("install", "cursor"): "files",
        ("uninstall", "cursor"): "files",
        ("sandbox", "status"): "error",
        ("serve", "--port", "99999"): "error",
        ("token",): "tokens",
        ("webhook", "setup", "https://sessions.example.com"): "webhook",
    }
    theirs = {"mcp", "hook"}  # speak as their clients want it
    assert {arguments[0] for arguments in keys} == set(COMMANDS) - theirs
    for arguments, key in keys.items():
        ran = laptop.run(*arguments, "--json")
        assert ran.err == "", arguments
        assert ran.out.count(b"\n") == 1
        assert (ran.json["schema_version"], key in ran.json) == (1, True), arguments
    receipt = laptop.run("save", "a.md", "--json").json["receipts"][0]
    assert laptop.run("delete", receipt["id"], "--json").json["receipts"][0]["op"] == "delete"


@pytest.mark.parametrize("encoding", ["ascii", "koi8-r", "utf-8"])
def test_json_is_whole_in_any_encoding_of_the_terminal(encoding: str, furnished: Machine) -> None:
    furnished.save(RUSSIAN + "🔥 é\n".encode(), name="russian")
    ran = furnished.run("load", "russian", "--json", env={"PYTHONIOENCODING": encoding})
    assert json.loads(ran.out.decode(encoding))["text"].endswith("🔥 é\n")


def test_quiet_says_nothing_when_all_is_well_and_everything_else_when_not(
    machine: Machines, remote: Path
) -> None:
    laptop = machine(remote=remote)
    laptop.write("a.md", GOOD)
    for arguments in (("save", "a.md"), ("sync",), ("doctor",)):
        ran = laptop.run(*arguments, "--quiet")
        assert ran == Ran(0, b"", ""), arguments
    loaded = laptop.run("load", "--quiet", "--body")
    assert loaded == Ran(0, GOOD, "")
    remote.rename(remote.with_name("away"))
    laptop.write("b.md", GOOD + b"more\n")
    ran = laptop.run("save", "b.md", "--quiet")
    assert ran.code == 10
    assert str(remote) in ran.text


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ("master", 0), ("unchanged", 0), ("", 0), ("queued", 75), ("conflict", 4), ("refused", 10),
        ("master unchanged", 0), ("master queued", 75), ("master conflict", 4),
        ("master refused", 10), ("conflict queued", 75), ("queued refused master", 10),
        ("conflict refused", 10), ("unchanged conflict master", 4),
    ],
)  # fmt: skip
def test_of_mixed_receipts_the_worst_decides(states: str, code: int) -> None:
    """Refused before queued before conflict before done."""
    names: dict[str, State] = {
        "master": "master", "unchanged": "unchanged", "queued": "queued",
        "conflict": "conflict", "refused": "refused",
    }  # fmt: skip
    assert exit_code([Receipt(names[name], "id", "p", "x") for name in states.split()]) == code


def test_lists_in_a_pipe_are_one_tab_separated_line_each(machine: Machines) -> None:
    laptop = machine()
    laptop.save(b"# Tab\tin \x1b[31mtitle\n\ntext\n", name="one")
    laptop.save(RUSSIAN, status="open\tdone", project="Склад № 1")
    rows = laptop.run("list", "--all").text.splitlines()
    assert [len(row.split("\t")) for row in rows] == [6, 6]
    assert "\x1b" not in "".join(rows)
    projects = laptop.run("projects").text.splitlines()
    assert {row.split("\t")[0] for row in projects} == {"default", "Склад № 1"}
    history = laptop.run("history", "one").text.splitlines()
    assert [len(row.split("\t")) for row in history] == [4]


def test_russian_is_readable_in_the_c_locale(machine: Machines) -> None:
    laptop = machine()
    laptop.write("a.md", RUSSIAN)
    for env in ({"LANG": "C"}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}):
        assert "Отчёт о складе" in laptop.run("save", "a.md", env=env).text
        assert "Отчёт о складе" in laptop.run("list", env=env).text
        ran = laptop.run("load", "--section", "Нет такого", env=env)
        assert "Нет такого" in ran.err


# --- terminals -----------------------------------------------------------------------------------

EVIL = (
    "# Title \x1b]0;owned\x07\x1b[2J\u202etxt\n\n**Status:** \x1b[5mopen\n\n"
    "text \x1b[2J\x1b]8;;http://evil\x07 \x9b2J more \x08\x08 \u202eltr\n\n"
    "```\ncode \x1b[2J\x1b]0;owned\x07\n```\n"
).encode()


def on_terminal(machine: Machine, *arguments: str, env: dict[str, str] | None = None) -> str:
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    environment = {**machine.environment, "TERM": "xterm-256color", "COLUMNS": "100", **(env or {})}
    with subprocess.Popen(
        [sys.executable, "-m", "annoris.cli", *arguments],
        cwd=machine.desk,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    ) as running:
        os.close(slave)
        written = b""
        with contextlib.suppress(OSError):  # Linux says so when the last writer has gone
            while select.select([master], [], [], 60)[0] and (piece := os.read(master, 65536)):
                written += piece
        assert running.wait(60) == 0, written
    os.close(master)
    return written.decode()


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    machine = Machine(tmp_path_factory.mktemp("evil") / "laptop", "", {})
    machine.save(EVIL, name="evil")
    (first,) = machine.save(machine.load("evil") + b"\x1b[2J more\n")
    assert first.state == "master"
    return machine


@pytest.mark.parametrize(
    "arguments",
    ["load evil", "list", "search text", "history evil", "diff evil", "status", "load --raw evil"],
)
def test_a_document_cannot_drive_the_terminal(arguments: str, evil: Machine) -> None:
    """Its control sequences are shown as replacement characters; --raw is the person's word."""
    written = on_terminal(evil, *arguments.split())
    harmful = [item for item in ("\x1b[2J", "\x1b]", "\x9b", "\x07", "\u202e") if item in written]
    assert bool(harmful) == ("--raw" in arguments), harmful


def test_load_renders_on_a_terminal_and_writes_exact_bytes_in_a_pipe(evil: Machine) -> None:
    assert "\x1b[1m" in on_terminal(evil, "load", "evil")
    assert evil.run("load", "evil").out == evil.load("evil")


@pytest.mark.parametrize("arguments", ["load evil", "search text", "diff evil", "list"])
def test_no_color_means_no_colour(arguments: str, evil: Machine) -> None:
    plain = on_terminal(evil, *arguments.split(), env={"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-7]|38|9[0-7])[;m]", plain)


# --- start-up ------------------------------------------------------------------------------------

HEAVY = {
    "rich", "psycopg", "redis", "git", "markdown_it", "tenacity", "dotenv", "asyncio",
    "importlib.metadata", "fastapi", "pydantic", "ftfy", "anyascii", "tomlkit", "cryptography",
    "apprise", "httpx", "mcp", "uvicorn", "yaml", "ssl", "hashlib", "json", "random", "tempfile",
}  # fmt: skip
_PROBE = """
import sys
sys.argv = ["annoris", *sys.argv[1:]]
from annoris import cli
try:
    cli.main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print("\\nimported:", *sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ("--help", set[str]()), ("", set[str]()), ("list", set[str]()),
        ("load auth-refactor", set[str]()), ("search token", set[str]()),
        ("save good.md", {"markdown_it", "hashlib", "json"}),
        ("save new.md", {"markdown_it", "hashlib", "json"}), ("sync", {"hashlib", "json"}),
        ("verify", {"markdown_it", "hashlib", "json", "random", "tempfile"}),
    ],
)  # fmt: skip
def test_a_command_imports_nothing_heavy_that_it_does_not_use(
    arguments: str, allowed: set[str], machine: Machines, remote: Path
) -> None:
    """GitPython only makes the clone, which stands already here. Master is asked each time."""
    here = machine("laptop", remote, master_fresh_seconds="0.001")
    here.write("good.md", GOOD)
    here.save(GOOD, name="auth-refactor")
    here.write("new.md", "# New\n\ntext\n")
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments.split()],
        cwd=here.desk,
        env=here.environment,
        capture_output=True,
        check=True,
        timeout=60,
    )
    loaded = set(done.stderr.decode().rpartition("imported:")[2].split())
    assert "typer" in loaded
    assert loaded & HEAVY <= allowed


@pytest.mark.parametrize(
    ("remote", "project"),
    [
        ("git@github.com:me/shop.git", "shop"),
        ("https://github.com/me/shop/", "shop"),
        ("/srv/git/shop.git/.", "shop"),
        (".", "default"),
        ("..", "default"),
    ],
)
def test_the_project_is_named_after_the_remote_of_this_folder(
    machine: Callable[..., Machine], remote: str, project: str
) -> None:
    """A path is read as it resolves; one that names nothing leaves the configured default."""
    here = machine()
    subprocess.run(["git", "init", "-q", here.desk], check=True)
    subprocess.run(["git", "-C", here.desk, "remote", "add", "origin", remote], check=True)
    assert here.run("status", "--json").json["status"]["project"] == project


@pytest.mark.parametrize(
    "arguments", ["history", "diff", "load --rev abcd", "load --at 2030-01-01"]
)
def test_what_only_waits_here_has_no_revisions_and_says_so(
    arguments: str, machine: Machines
) -> None:
    here = machine(remote="http://127.0.0.1:9/none.git", master_push_seconds="3")
    assert here.run("save", "-", stdin=GOOD).code == 75
    ran = here.run(*arguments.split())
    assert ran.code == 3
    calm(ran)
    assert "is not on master yet" in ran.err
