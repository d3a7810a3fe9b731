"""The documentation is true: what it says to type is typed here, and answers as it shows."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.main import get_command

from annoris import cli, settings
from tests.support.machine import Machine

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md")), TOP / ".github/CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What is another at each run, and which words stand for it.
VARIES = (
    (r"\b[0-9a-f]{8}\b", "ID"), (r"\b\d+(\.\d+)? (ms|s)\b(?! ago)", "TIME"),
    (r"\bjust now\b|\b\d+ (s|min|h|d) ago\b", "AGO"), (r"\s+", " "),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "MOMENT"),
)  # fmt: skip


@dataclass
class Step:
    """A command of a page and the lines below it; a line … stands for any number of others."""

    command: str
    shown: list[str] = field(default_factory=list)


def blocks(page: Path, kind: str) -> list[str]:
    return [body for name, body in BLOCK.findall(page.read_text()) if name == kind]


def steps(page: Path) -> list[Step]:
    found: list[Step] = []
    for line in "".join(blocks(page, "console")).splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:]))
        elif line.startswith("> "):
            found[-1].command += f"\n{line[2:]}"
        elif line.strip():
            found[-1].shown.append(line)
    return found


@pytest.mark.parametrize("page", [*filter(steps, PAGES)], ids=lambda page: page.name)
def test_what_a_page_shows_in_a_terminal_is_what_comes(page: Path, tmp_path: Path) -> None:
    """One shell for each page, in a git repository named shop in which a session.md lies."""
    told = steps(page)
    desk = tmp_path / "shop"
    desk.mkdir()
    shutil.copy(TOP / "examples/sessions/webhook-retries.md", desk / "session.md")
    subprocess.run(["git", "init", "-q", desk], check=True)
    subprocess.run(["git", "-C", desk, "remote", "add", "origin", "git@h:me/shop.git"], check=True)
    for step, (code, lines) in zip(told, typed(told, desk, tmp_path), strict=True):
        assert code == 0, (step.command, lines)
        wanted = [plain(line, tmp_path) for line in step.shown]
        came = [plain(line, tmp_path) for line in lines]
        missing = [line for line in wanted if line != "…" and line not in came]
        assert not missing, (step.command, came)
        if wanted and "…" not in wanted:
            assert sorted(came) == sorted(wanted), step.command


def typed(told: list[Step], desk: Path, home: Path) -> Iterator[tuple[int, list[str]]]:
    """Each command's exit code and lines, those of stdout as on a terminal of 100 columns."""
    script = "".join(
        f"{{ {step.command}\n}} 2>'{home}/err'; printf '\\036%s\\036' $?; cat '{home}/err'; "
        "printf '\\036'\n"
        for step in told
    )
    environment = {
        "HOME": str(home), "COLUMNS": "100", "TERM": "dumb", "GIT_CONFIG_NOSYSTEM": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    master, slave = pty.openpty()
    with subprocess.Popen(
        ["bash", "-c", script], cwd=desk, env=environment, stdin=subprocess.DEVNULL,
        stdout=slave, stderr=slave,
    ):  # fmt: skip
        os.close(slave)
        written = b""
        with contextlib.suppress(OSError):  # Linux says so when the last writer has gone
            while select.select([master], [], [], 60)[0] and (piece := os.read(master, 65536)):
                written += piece
    os.close(master)
    parts = written.decode().replace("\r", "").split("\x1e")
    for out, code, err in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        yield int(code), [line for line in (out + err).splitlines() if line.strip()]


def plain(line: str, home: Path) -> str:
    line = line.replace(str(home), "~")
    for pattern, word in VARIES:
        line = re.sub(pattern, word, line)
    return line.strip()


# --- commands that can't be run here -------------------------------------------------------------


def mentioned(page: Path) -> Iterator[str]:
    """Every annoris command line of a page: of its shell blocks and of its running text."""
    text = page.read_text()
    yield from (step.command for step in steps(page))
    for body in blocks(page, "sh"):
        yield from body.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`(annoris [^`]+)`", BLOCK.sub("", text))


def words_of(line: str) -> Iterator[list[str]]:
    """The words of each annoris in a line, after its name."""
    for part in re.split(r"[|;&()]+|\$\(|[<>] *\S+", line.partition(" #")[0]):
        words = shlex.split(part)
        while words and re.match(r"(\w+=|sudo$|exec$|then$|else$|do$|\$$|time$)", words[0]):
            words.pop(0)
        if words and words[0] == "annoris":
            yield words[1:]


def unknown(words: list[str]) -> list[str]:
    """What annoris would not understand of a command's words."""
    command: Any = get_command(cli.app)
    rest = iter(words)
    wrong = []
    for word in rest:
        if word == "--":
            break
        if word.startswith("-") and word != "-":
            flag, given, _ = word.partition("=")
            options = {name: item for item in command.params for name in item.opts}
            if flag in ("--help", "-h"):
                continue
            if flag not in options:
                wrong.append(flag)
            elif not options[flag].is_flag and not given:
                next(rest, None)
        elif hasattr(command, "get_command"):
            if (child := command.get_command(None, word)) is None:
                return [word] if word.isascii() and word.islower() else wrong
            command = child
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_exists_with_its_options(page: Path) -> None:
    wrong = {
        line: strange
        for line in mentioned(page)
        for words in words_of(line)
        if (strange := unknown(words))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("line", "strange"),
    [
        ("annoris save a.md", []), ("annoris lod", ["lod"]), ("annoris load --frsh", ["--frsh"]),
        ("x=$(annoris save --jsn a.md | cat)", ["--jsn"]), ("annoris key xport > f", ["xport"]),
        ("pbpaste | annoris save --name=x -", []), ("annoris load -o --body", []),
        ("annoris --config f.toml sync --ful", ["--ful"]),
    ],
)  # fmt: skip
def test_a_mistyped_command_would_be_noticed(line: str, strange: list[str]) -> None:
    assert [word for words in words_of(line) for word in unknown(words)] == strange


# --- the site ------------------------------------------------------------------------------------


_SITE = ("--config-file", "docs/_site/mkdocs.yml")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; every link on it was followed by MkDocs."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", f"--site-dir={folder}", *_SITE],
        cwd=TOP,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(site: Path) -> None:
    """No script, style, font or picture comes from another place than the site itself; the
    reference has every command, setting and code.
    """
    outside = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//"""
        r"""|<link(?![^>]*rel=["']?canonical)[^>]+href=["']?(?:https?:)?//"""
        r"""|@import\s+["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
    )
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > 20
    assert not [path for path in files if outside.search(path.read_text())]
    pages = {path.stem: path.read_text() for path in (site / "reference").glob("*.html")}
    assert all(f'id="annoris-{name}"' in pages["commands"] for name in cli._COMMANDS)
    assert all(f">{code}</code>" in pages["errors"] for code in cli.EXIT)
    assert all(f'id="{name}"' in pages["configuration"] for name in settings._SECTIONS)
    assert "ANNORIS_HOT_LOAD_SECONDS" in pages["configuration"]
    assert "/v1/sessions" in pages["rest"]


def test_answers_are_as_their_schema_says(site: Path, machine: Any) -> None:
    here: Machine = machine()
    here.write("a.md", "# Title\n\n**Status:** open\n\ntext\n")
    known = json.loads((site / "reference/answers.schema.json").read_text())
    runs = ("save a.md", "load", "list", "history", "projects", "sync", "verify", "log", "status")
    for words in runs:
        schema = {"$defs": known["$defs"], **known["answers"][words.split()[0]]}
        for made in schema["$defs"].values():
            made["additionalProperties"] = False
        jsonschema.validate(here.run(*words.split(), "--json").json, schema)
