"""Hard case 24: git hooks, odd configurations, odd folders, odd clocks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from annoris import document
from tests.support import githttp
from tests.support.githttp import GitServer
from tests.support.invariant import holds
from tests.support.machine import Machine

Machines = Callable[..., Machine]

BODY = b"# In between\n\nWhat was done here.\n"
CRLF = b"# In between\r\n\r\nWhat was done here.\r\n"
WHO = ("-c", "user.name=A Person", "-c", "user.email=person@example.org")


def user_git(folder: Path, *arguments: str, env: dict[str, str]) -> str:
    """Git as the user runs it in a work tree."""
    done = subprocess.run(
        ["git", *WHO, *arguments], cwd=folder, env=env, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def work_trees(tmp_path: Path, env: dict[str, str]) -> tuple[Path, Path]:
    """A repository of the user with a linked work tree, some work staged in both."""
    main, linked = tmp_path / "project", tmp_path / "linked"
    main.mkdir()
    user_git(main, "init", "--quiet", "--initial-branch=main", env=env)
    (main / "code.py").write_text("print(1)\n")
    user_git(main, "add", ".", env=env)
    user_git(main, "commit", "--quiet", "-m", "Begin", env=env)
    user_git(main, "worktree", "add", "--quiet", str(linked), env=env)
    for folder in (main, linked):
        (folder / "staged.py").write_text("print(2)\n")
        user_git(folder, "add", ".", env=env)
    return main, linked


def snapshot(*folders: Path) -> dict[str, str]:
    """Every file of the folders with the hash of its bytes."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


_HOOK = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys
sys.path[:0] = {sys.path!r}
from tests.test_case_surroundings import snapshot
folders = [pathlib.Path(name) for name in os.environ["WATCHED"].split(os.pathsep)]
before = snapshot(*folders)
done = subprocess.run(
    [sys.executable, "-m", "annoris.cli", "save", "-"], input={BODY!r}, capture_output=True
)
with open(os.environ["REPORT"], "w") as file:
    json.dump([done.returncode, done.stderr.decode(), before == snapshot(*folders),
               sorted(name for name in os.environ if name.startswith("GIT_"))], file)
"""


def test_case_24_a_hook_of_a_linked_work_tree_saves_and_leaves_the_repository_alone(
    machine: Machines, remote: Path, tmp_path: Path
) -> None:
    """A post-commit hook runs annoris save: the document is on master, no byte there differs."""
    import json  # noqa: PLC0415

    here = machine("here", remote=remote)
    env = dict(here.environment)
    main, linked = work_trees(tmp_path, env)
    hook = main / ".git" / "hooks" / "post-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(_HOOK)
    hook.chmod(0o755)
    report = tmp_path / "report.json"
    env |= {"WATCHED": f"{main}{os.pathsep}{linked}", "REPORT": str(report)}
    user_git(linked, "commit", "--quiet", "-m", "Work", env=env)
    code, errors, untouched, variables = json.loads(report.read_text())
    assert code == 0, errors
    assert untouched
    assert "GIT_DIR" in variables, "the hook was not told of its repository: nothing was tested"
    assert "GIT_INDEX_FILE" in variables
    (session,) = here.run("list", "--all", "--json").json["sessions"]
    holds([here], remote, {session["id"]: BODY}, exactly=True)
    assert user_git(linked, "status", "--porcelain", env=env) == ""


def test_case_24_no_variable_of_git_leads_into_another_repository(
    machine: Machines, remote: Path, tmp_path: Path
) -> None:
    """With every variable that git has for a repository set, only ours is written."""
    here = machine("here", remote=remote)
    main, linked = work_trees(tmp_path, dict(here.environment))
    dot = main / ".git"
    env = {
        "GIT_DIR": str(dot / "worktrees" / "linked"),
        "GIT_COMMON_DIR": str(dot),
        "GIT_WORK_TREE": str(linked),
        "GIT_INDEX_FILE": str(dot / "worktrees" / "linked" / "index"),
        "GIT_OBJECT_DIRECTORY": str(dot / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(dot / "objects"),
        "GIT_PREFIX": "sub/",
        "GIT_NAMESPACE": "other",
        "GIT_GRAFT_FILE": str(dot / "grafts"),
        "GIT_SHALLOW_FILE": str(dot / "shallow"),
        "GIT_CONFIG": str(dot / "config"),
        "GIT_CONFIG_PARAMETERS": "'core.bare=false'",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.worktree",
        "GIT_CONFIG_VALUE_0": str(linked),
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_QUARANTINE_PATH": str(dot),
        "GIT_REFLOG_ACTION": "commit",
        "GIT_TRACE": "1",
        "GIT_EDITOR": "false",
    }
    before = snapshot(main, linked)
    for code, *arguments in ((0, "save", "-"), (0, "load", "--project", "default"), (0, "sync")):
        ran = here.run(*map(str, arguments), stdin=BODY, env=env, cwd=linked)
        assert ran.code == code or (arguments[0] == "load" and ran.code in (0, 3)), ran.err
    assert snapshot(main, linked) == before
    (session,) = here.run("list", "--all", "--json").json["sessions"]
    holds([here], remote, {session["id"]: BODY}, exactly=True)


CONFIG = """
[user]
    name = Пользователь
    email = user@example.org
[init]
    defaultBranch = trunk
[core]
    autocrlf = true
    eol = crlf
    safecrlf = true
    hooksPath = {hooks}
    attributesFile = {attributes}
    fsmonitor = true
    pager = false
    quotePath = true
[commit]
    gpgSign = true
[tag]
    gpgSign = true
[push]
    gpgSign = if-asked
    default = nothing
    followTags = true
[gpg]
    program = false
[filter "shout"]
    clean = tr a-z A-Z
    smudge = tr a-z A-Z
    required = true
[log]
    showSignature = true
    showRoot = false
    follow = true
    date = relative
    decorate = full
[color]
    ui = always
[diff]
    renames = copies
    noprefix = true
    external = false
    orderFile = /nonexistent
[safe]
    bareRepository = explicit
[fetch]
    prune = true
    pruneTags = true
    writeCommitGraph = true
[gc]
    auto = 1
[transfer]
    fsckObjects = true
[url "{real}"]
    insteadOf = https://github.com/me/sessions.git
"""


def test_case_24_the_users_configuration_changes_no_byte_and_stops_nothing(
    machine: Machines, server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line ends, filters, failing hooks, signing and aliases leave saves as they are."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("pre-push", "pre-commit", "commit-msg", "reference-transaction", "post-commit",
                 "post-checkout", "pre-auto-gc", "post-merge", "pre-receive"):  # fmt: skip
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    attributes = tmp_path / "attributes"
    attributes.write_text("*.md filter=shout text eol=crlf\n* text=auto\n")
    here = machine("here")
    (here.folder / ".gitconfig").write_text(
        CONFIG.format(hooks=hooks, attributes=attributes, real=server.url)
    )
    done = here.run("init", "--remote", "https://github.com/me/sessions.git")
    assert done.code == 0, done.err
    saved = here.run("save", here.write("a.md", BODY), here.write("b.md", CRLF), "--json")
    assert saved.code == 0, saved.err + saved.text
    one, two = saved.json["receipts"]
    edited = here.run("load", one["id"]).out.replace(b"was done", b"is done")
    assert here.run("save", "-", stdin=edited).code == 0
    history = here.run("history", one["id"], "--json").json["revisions"]
    assert len(history) == 2
    assert history[0]["author"] == "Пользователь"
    assert here.run("delete", two["id"]).code == 0
    assert CRLF not in b"".join(server.files().values())
    again = here.run("save", "-", "--json", stdin=CRLF).json["receipts"][0]
    bodies = {one["id"]: BODY.replace(b"was done", b"is done"), again["id"]: CRLF}
    assert {document.split(data)[1] for path, data in server.files().items() if "sessions" in path
            and path.endswith(".md")} == set(bodies.values())  # fmt: skip
    server.commit({"sessions/default/by-hand.md": b"# By hand\n"})
    monkeypatch.setenv("HOME", str(here.folder))  # the library here and now, configured as there
    holds([here], server.repo, bodies, anywhere=[b"# By hand\n"])


@pytest.mark.parametrize(
    "language", [{"LANG": "ru_RU.UTF-8", "LANGUAGE": "ru"}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}],
    ids=lambda language: "-".join(language.values()),
)  # fmt: skip
def test_case_24_folders_with_odd_names_and_any_language(
    language: dict[str, str], machine: Machines, tmp_path: Path
) -> None:
    """Data, temporary files, configuration and master in folders with spaces and Cyrillic."""
    odd = tmp_path / "мои данные 'и' \"прочее\""
    odd.mkdir()
    (tmp_path / "link to tmp").symlink_to(odd)
    remote = githttp.bare(odd / "мастер $HOME.git")
    here = machine("here", data_dir=str(odd / "данные"))
    here.data = odd / "данные"
    here.environment |= language | {
        "TMPDIR": str(tmp_path / "link to tmp"),
        "XDG_CONFIG_HOME": str(odd / "настройки"),
    }
    done = here.run("init", "--remote", str(remote))
    assert done.code == 0, done.err
    text = "# Привет\n\nТекст сессии.\n".encode()
    saved = here.run("save", here.write("файл с пробелом.md", text), "--json")
    assert saved.code == 0, saved.err
    (receipt,) = saved.json["receipts"]
    assert here.run("load", receipt["id"], "--body").out == text
    remote.rename(odd / "away")
    failed = here.sync()
    assert failed.code == 10
    assert "not a repository" in failed.err, "git's words were not understood in this language"
    (odd / "away").rename(remote)
    here.environment["ANNORIS_CONFIG"] = str(odd / "настройки" / "annoris" / "config.toml")
    holds([here], remote, {receipt["id"]: text}, exactly=True)


@pytest.mark.parametrize("hours", [-2, 2])
def test_case_24_a_wrong_clock_decides_nothing(
    hours: int, machine: Machines, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine two hours off edits what another saved, before and after: the edit counts."""
    real = time.time
    here, there = machine("here", remote=remote), machine("there", remote=remote)
    first = here.save(BODY)[0]
    there.sync()
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    edited = there.load(first.id).replace(b"was done", b"is done")
    assert there.save(edited)[0].state == "master"
    new = there.save(CRLF)[0]
    assert new.state == "master"
    monkeypatch.setattr(time, "time", real)
    assert there.load(first.id) == there.load(first.id)
    newer = here.run("load", first.id, "--fresh").out.replace(b"is done", b"will be done")
    assert here.save(newer)[0].state == "master"
    bodies = {first.id: BODY.replace(b"was done", b"will be done"), new.id: CRLF}
    holds([here, there], remote, bodies, exactly=True)


def test_case_24_without_git_one_line_says_so(machine: Machines, tmp_path: Path) -> None:
    """No git on PATH: the text is safe here, and one line says what keeps it from master."""
    here = machine("here")
    ran = here.run("save", "-", stdin=BODY, env={"PATH": str(tmp_path)})
    assert ran.code == 75
    assert ran.text.count("git isn't installed") == 1
    assert "Traceback" not in ran.err
    assert here.run("load").code == 0
    assert here.sync().code == 0
