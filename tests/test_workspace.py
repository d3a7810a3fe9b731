"""What a save notes of the user's work tree, and what a load says changed since."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from annoris import document
from annoris.archive import drift_here
from annoris.workspace import MOST_PATHS, Drift, Workspace, look, read
from tests.support.machine import Machine

Machines = Callable[..., Machine]
TEXT = b"# Work\n\n- done [verified: ran the tests]\n- maybe [unverified]\n- [verified: by eye]\n"
URL = "https://github.com/me/shop.git"


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", *who, "-C", folder, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(folder: Path, message: str = "step") -> None:
    git(folder, "commit", "-q", "--allow-empty", "-m", message)


@pytest.fixture
def here(machine: Machines) -> Machine:
    """A machine whose desk is a work tree with a remote, a commit and a changed file."""
    made = machine()
    git(made.desk, "init", "-q", "-b", "main")
    git(made.desk, "remote", "add", "origin", URL)
    made.write("kept.py", "1\n")
    git(made.desk, "add", "kept.py")
    commit(made.desk)
    made.write("kept.py", "2\n")
    return made


def noted(here: Machine) -> Workspace | None:
    return read(document.inspect(here.load()).workspace)


def save(here: Machine, **options: str) -> str:
    """Save as the command does, in this process; answers the id."""
    found = look(str(here.desk))
    (receipt,) = here.save(TEXT, workspace=found.text() if found else "", **options)
    assert receipt.state == "master"
    return receipt.id


def drift(here: Machine) -> Drift:
    with contextlib.closing(here.archive()) as archive, contextlib.chdir(here.desk):
        found = drift_here(archive.load())
    assert found
    return found


def test_a_save_notes_remote_branch_commit_and_dirty_paths(here: Machine) -> None:
    here.write("new note.md", "x")
    assert here.run("save", "-", stdin=TEXT).code == 0
    assert noted(here) == Workspace(
        URL, "main", git(here.desk, "rev-parse", "HEAD"), ("kept.py", "new note.md")
    )


def test_a_credential_in_the_remote_is_not_noted(here: Machine) -> None:
    token = "ghp_" + "a1B2" * 9
    git(here.desk, "remote", "set-url", "origin", f"https://me:{token}@github.com/me/shop.git")
    save(here)
    assert token.encode() not in here.load()
    found = noted(here)
    assert found
    assert found.remote == URL


def test_a_path_that_looks_like_a_credential_leaves_the_line_out(here: Machine) -> None:
    here.write("ghp_" + "a1B2" * 9, "x")
    save(here)
    assert b"workspace" not in here.load()


def test_no_workspace_notes_nothing_and_compares_nothing(here: Machine) -> None:
    assert here.run("save", "--no-workspace", "-", stdin=TEXT).code == 0
    assert b"workspace" not in here.load()
    assert here.run("save", "--name", "with", "-", stdin=TEXT).code == 0
    assert here.run("load", "with", "--json").json["drift"] is not None
    assert here.run("load", "with", "--json", "--no-workspace").json["drift"] is None


def test_outside_a_work_tree_nothing_is_noted(machine: Machines) -> None:
    here = machine()
    assert here.run("save", "-", stdin=TEXT).code == 0
    assert b"workspace" not in here.load()


def test_a_broken_repository_leaves_only_the_line_out(here: Machine) -> None:
    (here.desk / ".git" / "HEAD").write_text("garbage")
    assert here.run("save", "-p", "shop", "-", stdin=TEXT).code == 0
    assert b"workspace" not in here.load(project="shop")


def test_a_git_that_hangs_leaves_only_the_line_out(here: Machine) -> None:
    real = shutil.which("git")
    slow = here.write(
        "bin/git", f'#!/bin/sh\ncase "$*" in *porcelain*) sleep 60;; esac\n{real} "$@"\n'
    )
    slow.chmod(0o755)
    path = f"{slow.parent}{os.pathsep}{here.environment['PATH']}"
    assert here.run("save", "-", stdin=TEXT, env={"PATH": path}, timeout=30).code == 0
    assert b"workspace" not in here.load()


def test_many_paths_are_counted_not_listed(here: Machine) -> None:
    for number in range(MOST_PATHS + 20):
        here.write(f"n{number:03}", "x")
    save(here)
    found = noted(here)
    assert found
    assert (len(found.dirty), found.more) == (MOST_PATHS, 21)


def test_an_unchanged_tree_has_not_drifted(here: Machine) -> None:
    save(here)
    assert drift(here).sentences == []


def test_load_says_what_changed_since(here: Machine) -> None:
    here.write("lost.py", "x")
    assert here.run("save", "-", stdin=TEXT).code == 0
    (here.desk / "lost.py").unlink()
    soon = time.time() + 60
    os.utime(here.desk / "kept.py", (soon, soon))
    git(here.desk, "checkout", "-q", "-b", "topic")
    commit(here.desk)
    commit(here.desk)
    found = here.run("load", "--json").json["drift"]
    assert found["told"] == [
        "the branch is topic, it was main",
        "2 new commits",
        "gone: lost.py",
        "changed: kept.py",
    ]
    assert found["days"] == 0
    said = here.run("load").err
    assert "since it was saved: 2 new commits" in said
    assert "lines marked: 2 verified, 1 unverified" in said


def test_a_file_that_was_removed_before_the_save_is_not_told_as_gone(here: Machine) -> None:
    (here.desk / "kept.py").unlink()
    save(here)
    found = noted(here)
    assert found
    assert found.removed == ("kept.py",)
    assert drift(here).sentences == []


def test_rewritten_history_is_told(here: Machine) -> None:
    save(here)
    git(here.desk, "checkout", "-q", "--orphan", "other")
    commit(here.desk, "anew")
    git(here.desk, "branch", "-q", "-D", "main")
    git(here.desk, "branch", "-q", "-m", "main")
    assert drift(here).sentences == ["1 new commit", "1 commit of then not in the branch"]
    git(here.desk, "reflog", "expire", "--expire=now", "--all")
    git(here.desk, "gc", "-q", "--prune=now")
    assert drift(here).sentences == [
        "the commit that was checked out then is not in this repository"
    ]


def test_another_repository_is_not_compared(here: Machine) -> None:
    id = save(here)
    git(here.desk, "remote", "set-url", "origin", "git@github.com:me/shop.git")
    assert drift(here).sentences == [], "the same, reached by ssh"
    git(here.desk, "remote", "set-url", "origin", "https://github.com/me/other.git")
    assert here.run("load", id, "--json").json["drift"] is None


def test_saving_what_load_printed_is_no_new_revision_wherever_the_tree_is(here: Machine) -> None:
    save(here)
    loaded = here.load()
    here.write("another.py", "x")
    commit(here.desk)
    again = here.run("save", "-", "--json", stdin=loaded)
    assert again.json["receipts"][0]["state"] == "unchanged"
    assert here.load() == loaded


def test_the_users_repository_is_not_touched(here: Machine) -> None:
    """Not even its index, which git would refresh; and no program of its configuration runs."""
    trap = here.write("trap.sh", '#!/bin/sh\ntouch "$HOME/ran"\n')
    trap.chmod(0o755)
    git(here.desk, "config", "core.fsmonitor", str(trap))
    soon = time.time() + 60
    os.utime(here.desk / "kept.py", (soon, soon))
    before = _state(here.desk / ".git")
    assert here.run("save", "-", stdin=TEXT, env={"GIT_DIR": "/nowhere"}).code == 0
    assert here.run("load").code == 0
    assert noted(here)
    assert _state(here.desk / ".git") == before
    assert not (here.folder / "ran").exists()


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_foreign_workspace_key_is_left_alone(here: Machine) -> None:
    text = b"---\nworkspace: my desk\n---\n# Mine\n\ntext\n"
    assert here.run("save", "-", stdin=text).code == 0
    front = here.load().split(b"---\n")[1]
    assert b"workspace: my desk\n" in front
    assert b"annoris-workspace: " in front
    assert noted(here)


_WORDS = st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), min_size=1)


@given(
    remote=_WORDS | st.just(""),
    branch=_WORDS | st.just(""),
    dirty=st.lists(_WORDS, max_size=4),
    removed=st.lists(_WORDS, max_size=2),
    more=st.integers(0, 99),
)
@example(remote="", branch="", dirty=["\ufeff", "a\uffff"], removed=["\ufeff"], more=3)
def test_what_is_written_reads_back(
    remote: str, branch: str, dirty: list[str], removed: list[str], more: int
) -> None:
    """Whatever a path or a branch is called, through the front matter of a document."""
    space = Workspace(remote, branch, "a" * 40, tuple(dirty), tuple(removed), more)
    line = space.text()
    if line:
        stamped = document.stamp(document.parse(b"# T\n\ntext\n"), {"workspace": line})
        assert read(document.inspect(stamped).workspace) == space


def test_a_path_that_is_not_utf8_reads_back() -> None:
    space = Workspace("", "", "b" * 40, ("caf\udce9 x", "-dash", "+2", "100%"))
    assert read(space.text()) == space
