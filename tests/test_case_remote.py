"""Hard cases 9, 10, 14, 15, 16: a master that lost, refuses, hangs or ran ahead, and set-up.

Set ANNORIS_FULL=1 for the size of the campaign.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from annoris import cli, document, upkeep
from annoris.envelope import new_key
from annoris.errors import NotFound, Unavailable
from annoris.settings import MasterSettings
from tests.support import githttp
from tests.support.githttp import GitServer
from tests.support.invariant import holds
from tests.support.machine import Machine

FULL = bool(os.environ.get("ANNORIS_FULL"))
OFFLINE_SAVES = 500 if FULL else 40
ARCHIVES = 25 if FULL else 6  # each one is a restart
COMMITS_AHEAD = 300
ADOPTED = 300

Machines = Callable[..., Machine]

FRESH = {"master_fresh_seconds": "0.001"}  # every load asks master


def doc(number: int, more: str = "") -> bytes:
    return f"# Step {number}\n\nWhat was done in step {number}. {more}\n".encode()


def git(repo: Path, *arguments: str) -> str:
    """What git says of a repository."""
    return subprocess.run(
        ["git", f"--git-dir={repo}", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"},
    ).stdout.decode(errors="surrogateescape")


def listed(machine: Machine) -> list[str]:
    """Ids that a machine lists, without waiting for anybody."""
    ran = machine.run("list", "--all", "--limit", "100000", "--json")
    assert ran.code == 0, ran.err
    return sorted(session["id"] for session in ran.json["sessions"])


def waiting(machine: Machine) -> dict[str, Any]:
    answer: dict[str, Any] = machine.run("outbox", "--json").json
    return answer


def follows(machine: Machine, repo: Path) -> None:
    """The catalog shows master's tree, path for path and blob for blob."""
    archive = machine.archive()
    try:
        upkeep.sync(archive)
        assert archive.catalog.entries() == tree(repo)
    finally:
        archive.catalog.close()


def tree(repo: Path) -> dict[str, str]:
    lines = git(repo, "ls-tree", "-r", "-z", "main", "--", "sessions").split("\0")
    entries = [line.split("\t") for line in lines if line.endswith(".md")]
    return {path: head.split()[2] for head, path in entries}


# --- case 9: master looks empty --------------------------------------------------------------


def branch_gone(repo: Path) -> None:
    githttp.delete_branch(repo)


def mirror_replaced(repo: Path) -> None:
    shutil.rmtree(repo)
    githttp.bare(repo)


def history_without_sessions(repo: Path) -> None:
    githttp.force_push(repo, {"README.md": b"# Nothing here\n"})


def all_deleted_by_hand(repo: Path) -> None:
    githttp.commit(repo, dict.fromkeys(githttp.files(repo)))


LOSSES = (branch_gone, mirror_replaced, history_without_sessions, all_deleted_by_hand)


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_case_09_a_master_that_looks_empty_empties_nothing(
    lose: Callable[[Path], None], machine: Machines, remote: Path
) -> None:
    """Sync, save and load keep what is known and say why; only --force accepts the loss."""
    here = machine("here", remote=remote, **FRESH)
    saved = here.save(*map(doc, range(5)))
    before, oids = listed(here), [receipt.oid for receipt in saved]
    lose(remote)

    synced = here.sync()
    assert synced.code == 10
    assert "nothing here was changed" in synced.err
    assert "annoris sync --force" in synced.err
    kept = here.run("save", here.write("kept.md", doc(9)), "--json")
    assert kept.code == 10
    receipt = kept.json["receipts"][0]
    assert "nothing here was changed" in receipt["reason"]
    assert [draft["id"] for draft in waiting(here)["waiting"]] == [receipt["id"]]
    assert listed(here) == sorted([*before, receipt["id"]])
    loaded = here.run("load", saved[2].id)
    assert document.split(loaded.out)[1] == doc(2)
    assert "may be old" in loaded.err
    assert "nothing here was changed" in loaded.err

    assert here.sync("--force").code == 0
    holds([here, machine("there", remote=remote)], remote, {receipt["id"]: doc(9)}, exactly=True)
    known = git(here.data / "clone.git", "rev-list", "--reflog", "--objects")
    assert all(oid in known for oid in oids), "what master lost can't be recovered from git"


def test_case_09_sessions_that_annoris_deleted_elsewhere_are_no_loss(
    machine: Machines, remote: Path
) -> None:
    """Three of four sessions deleted on another machine vanish here without a question."""
    here, there = machine("here", remote=remote), machine("there", remote=remote)
    saved = here.save(*map(doc, range(4)))
    for receipt in saved[:3]:
        assert there.run("delete", receipt.id).code == 0
    assert here.sync().code == 0
    holds([here, there], remote, {saved[3].id: doc(3)}, exactly=True)


def test_case_09_moving_every_session_by_hand_is_no_loss(machine: Machines, remote: Path) -> None:
    """A folder renamed on master takes its sessions along: same ids, same bytes, no question."""
    here = machine("here", remote=remote)
    saved = here.save(*map(doc, range(6)))
    moved: dict[str, bytes | None] = {}
    for path, data in githttp.files(remote).items():
        if path.endswith(".md"):
            moved |= {path: None, path.replace("/default/", "/shop/"): data}
    githttp.commit(remote, moved)
    assert here.sync().code == 0
    bodies = {receipt.id: doc(number) for number, receipt in enumerate(saved)}
    holds([here], remote, bodies, exactly=True)


# --- case 10: history rewritten --------------------------------------------------------------


def test_case_10_a_time_that_only_git_knows_is_that_of_the_new_history(
    machine: Machines, remote: Path
) -> None:
    """A machine that saw the old history shows the same as one that never did."""
    here, there = machine("here", remote=remote), machine("there", remote=remote)
    here.save(doc(0))
    githttp.commit(remote, {"sessions/hand.md": doc(1)}, at=1_600_000_000)
    before = saved_at(here)
    assert "2020-09-13T12:26:40Z" in before.values()
    githttp.force_push(remote, githttp.files(remote))
    assert here.sync().code == 0
    after = saved_at(there)
    assert after != before
    assert saved_at(here) == after


def saved_at(machine: Machine) -> dict[str, str]:
    rows = machine.run("list", "--all", "--json", env={"ANNORIS_MASTER_FRESH_SECONDS": "0.001"})
    return {row["id"]: row["saved"] for row in rows.json["sessions"]}


def test_case_10_after_a_force_push_the_catalog_is_the_new_tree(
    machine: Machines, remote: Path
) -> None:
    """A rewritten master wins; what vanished is in git; an edit of it is kept as a copy."""
    here = machine("here", remote=remote)
    saved = here.save(*map(doc, range(10)))
    mine = here.write("mine.md", here.load(saved[0].id).replace(b"What was", b"Here was"))
    files = githttp.files(remote)
    gone = files.pop(saved[4].path)
    files[saved[0].path] = files[saved[0].path].replace(b"What was", b"There was")
    githttp.force_push(remote, files)

    follows(here, remote)
    assert saved[4].id not in listed(here)
    assert here.run("load", saved[4].id).code == 3
    known = git(here.data / "clone.git", "rev-list", "--reflog", "--objects")
    assert saved[4].oid in known
    clone = here.data / "clone.git"
    assert git(clone, "cat-file", "blob", saved[4].oid).encode() == gone
    assert here.run("save", mine).code == 4
    bodies = {
        receipt.id: doc(number) for number, receipt in enumerate(saved) if number not in (0, 4)
    }
    bodies[saved[0].id] = doc(0).replace(b"What was", b"There was")
    lost = doc(0).replace(b"What was", b"Here was")
    holds([here, machine("there", remote=remote)], remote, bodies, anywhere=[lost])


def test_case_10_a_rewind_does_not_undo_a_save(machine: Machines, remote: Path) -> None:
    """A save on a tip that master was rewound from asks first, and keeps both."""
    here = machine("here", remote=remote)
    saved = here.save(*map(doc, range(10)))
    start = githttp.head(remote)
    here.save(doc(10))
    githttp.commit(remote, {"notes.md": b"# After\n"}, parent=start)
    new = here.save(doc(11))[0]
    assert new.state == "master"
    bodies = {receipt.id: doc(number) for number, receipt in enumerate(saved)}
    holds([here], remote, bodies | {new.id: doc(11)}, exactly=True)
    follows(here, remote)


def test_case_10_a_clone_made_anew_follows_a_rewritten_master(
    machine: Machines, remote: Path
) -> None:
    """The catalog may know a commit that neither master nor the new clone has ever seen."""
    here = machine("here", remote=remote)
    saved = here.save(*map(doc, range(3)))
    shutil.rmtree(here.data / "clone.git")
    githttp.force_push(remote, {saved[1].path: githttp.files(remote)[saved[1].path]})
    assert here.sync().code == 0
    holds([here], remote, {saved[1].id: doc(1)}, exactly=True)


# --- case 14: whatever hangs or asks ---------------------------------------------------------

_ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "annoris.cli", *sys.argv[1:]])
"""
_ASKS = re.compile(r"username|password|passphrase|yes/no|fingerprint|token:", re.IGNORECASE)
IMPATIENT = {
    "ANNORIS_MASTER_PUSH_SECONDS": "1.2",
    "ANNORIS_MASTER_FETCH_SECONDS": "1.2",
    "ANNORIS_MASTER_LOAD_SECONDS": "0.8",
    "ANNORIS_MASTER_FRESH_SECONDS": "0.001",
}


def on_terminal(machine: Machine, *arguments: str | Path, env: dict[str, str]) -> tuple[int, str]:
    """Run annoris with a terminal of its own to ask on; answers its code and the whole screen.

    No process may be left of it.
    """
    marker = f"ANNORIS_TEST_MARK={uuid.uuid4()}"
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_TERMINAL, *map(str, arguments)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=machine.desk,
        env=machine.environment | env | dict([marker.split("=")]) | {"TERM": "xterm"},
    )
    os.close(terminal)
    seen: list[bytes] = []
    reader = threading.Thread(target=_read_all, args=(screen, seen))
    reader.start()
    try:
        code = process.wait(timeout=30)
    finally:
        left = _marked(marker)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        reader.join()
        os.close(screen)
    assert not left, "processes are left"
    return code, b"".join(seen).decode(errors="replace")


def _read_all(screen: int, seen: list[bytes]) -> None:
    try:
        while piece := os.read(screen, 65536):
            seen.append(piece)
    except OSError:  # nobody holds the terminal any more
        pass


def _marked(marker: str) -> list[int]:
    """Processes with the marker in their environment; those about to end are given a moment."""
    until = time.monotonic() + 2
    while found := [pid for pid in map(int, _numbers()) if _has(pid, marker)]:
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return found


def _numbers() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _has(pid: int, marker: str) -> bool:
    try:
        return marker.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{textwrap.dedent(text)}")
    path.chmod(0o755)
    return path


class Fault(NamedTuple):
    """What goes wrong, made on a machine and its server; and how commands may end then."""

    make: Callable[[Machine, GitServer], dict[str, str]]
    code: int


def _unauthorised(here: Machine, server: GitServer) -> dict[str, str]:
    server.status = 401
    return {}


def _wrong_token(here: Machine, server: GitServer) -> dict[str, str]:
    server.token = "right" * 8
    return {"ANNORIS_MASTER_TOKEN": "wrong" * 8}


def _forbidden(here: Machine, server: GitServer) -> dict[str, str]:
    server.status = 403
    return {"ANNORIS_MASTER_TOKEN": "expired" * 8}


def _hanging_askpass(here: Machine, server: GitServer) -> dict[str, str]:
    server.token = "right" * 8
    program = str(script(here.folder / "askpass", "sleep 60\n"))
    return {"GIT_ASKPASS": program, "SSH_ASKPASS": program, "DISPLAY": ":0"}


def _hanging_configured_askpass(here: Machine, server: GitServer) -> dict[str, str]:
    server.token = "right" * 8
    program = script(here.folder / "askpass", "sleep 60\n")
    (here.folder / ".gitconfig").write_text(f'[core]\n\taskPass = "{program}"\n')
    return {}


def _hanging_helper(here: Machine, server: GitServer) -> dict[str, str]:
    server.token = "right" * 8
    program = script(here.folder / "helper", "trap '' TERM HUP\nsleep 60 & wait\n")
    (here.folder / ".gitconfig").write_text(f'[credential]\n\thelper = "!{program}"\n')
    return {}


def _silent(here: Machine, server: GitServer) -> dict[str, str]:
    server.hang = "accept"
    return {}


def _dripping(here: Machine, server: GitServer) -> dict[str, str]:
    server.hang = "drip"
    return {}


FAULTS = {
    "401": Fault(_unauthorised, 10),
    "wrong token": Fault(_wrong_token, 10),
    "403": Fault(_forbidden, 10),
    "hanging askpass": Fault(_hanging_askpass, 10),
    "hanging core.askPass": Fault(_hanging_configured_askpass, 10),
    "hanging credential helper": Fault(_hanging_helper, 75),
    "accepts and says nothing": Fault(_silent, 75),
    "a byte a second": Fault(_dripping, 75),
}


@pytest.mark.parametrize("name", FAULTS)
def test_case_14_no_server_hangs_a_command_or_makes_it_ask(
    name: str, machine: Machines, server: GitServer
) -> None:
    """On a terminal every command ends by its deadline, asks nothing and leaves no process."""
    here = machine("here", remote=server.url)
    old = here.save(doc(1))[0]
    fault = FAULTS[name]
    env = IMPATIENT | fault.make(here, server)
    ended_well(here, old.id, fault.code, env)
    server.token = server.status = None
    server.hang = ""
    new = next(id for id in listed(here) if id != old.id)
    holds([here], server.repo, {old.id: doc(1), new: doc(2)}, exactly=True)


UNKNOWN_HOST = """
    case "$*" in *-G*) exit 1;; esac
    echo "Host key verification failed." >&2
    exit 255
"""
ASKS_ON_TERMINAL = """
    case "$*" in *-G*) exit 1;; esac
    exec 3<>/dev/tty || exit 255
    printf "Are you sure you want to continue connecting (yes/no)? " >&3
    read answer <&3
"""
HANGS = """
    case "$*" in *-G*) exit 1;; esac
    trap '' TERM HUP
    sleep 60 & wait
"""


@pytest.mark.parametrize(
    ("ssh", "code"), [(UNKNOWN_HOST, 10), (ASKS_ON_TERMINAL, 75), (HANGS, 75)],
    ids=["unknown host key", "asks on the terminal", "hangs"],
)  # fmt: skip
def test_case_14_no_ssh_hangs_a_command_or_makes_it_ask(
    ssh: str, code: int, machine: Machines, remote: Path
) -> None:
    """The same for ssh: a host that nobody knows, a question on /dev/tty, a dead connection."""
    here = machine("here", remote=f"ssh://host{remote}")
    good = {"GIT_SSH_COMMAND": str(script(here.folder / "ssh", SSH))}
    saved = here.run("save", here.write("first.md", doc(1)), "--json", env=good)
    assert saved.code == 0, saved.err
    id = saved.json["receipts"][0]["id"]
    bad = {"GIT_SSH_COMMAND": str(script(here.folder / "bad-ssh", ssh))}
    ended_well(here, id, code, IMPATIENT | bad)
    here.environment |= good
    assert here.sync().code == 0
    new = next(other for other in listed(here) if other != id)
    assert document.split(here.run("load", new).out)[1] == doc(2)
    assert waiting(here)["waiting"] == []


def ended_well(here: Machine, id: str, code: int, env: dict[str, str]) -> None:
    """Save and sync end with ``code`` and the document kept; load answers from the clone."""
    ended, screen = on_terminal(here, "save", here.write("two.md", doc(2)), env=env)
    assert ended == code, screen
    assert not _ASKS.search(_without_errors(screen)), screen
    assert len(list((here.data / "outbox").glob("*.drafts"))) == 1
    ended, screen = on_terminal(here, "sync", env=env)
    assert ended == code, screen
    assert not _ASKS.search(_without_errors(screen)), screen
    (here.data / "breaker.json").unlink(missing_ok=True)
    ended, screen = on_terminal(here, "load", id, "--raw", env=env)
    assert ended == 0, screen
    assert "What was done in step 1." in screen
    assert "may be old" in screen
    assert not _ASKS.search(_without_errors(screen)), screen


def _without_errors(screen: str) -> str:
    """The screen without our own explanations, in which git's words may stand."""
    ours = ("annoris:", "  ", "queued", "refused")
    return "\n".join(line for line in screen.splitlines() if not line.startswith(ours))


# --- case 15: refusals -----------------------------------------------------------------------


def queue(machine: Machines, server: GitServer, documents: list[bytes]) -> list[str]:
    """Save documents one by one while the server is away; answers their ids."""
    server.status = 503
    here = machine("here", remote=server.url, master_push_seconds="0.05")
    receipts = [here.save(data)[0] for data in documents]
    assert {receipt.state for receipt in receipts} == {"queued"}
    server.status = None
    return [receipt.id for receipt in receipts]


@pytest.mark.parametrize("named", [True, False], ids=["paths named", "paths not named"])
def test_case_15_what_is_refused_does_not_hold_up_the_rest(
    named: bool, machine: Machines, server: GitServer
) -> None:
    """Of 20 queued documents 18 arrive; the secret and the large one stand aside, with the reason.

    Then the branch is protected and nothing arrives or is lost; then all of it does.
    """
    here = machine("here", remote=server.url)
    here.save(doc(0))
    documents = [doc(number) for number in range(1, 21)]
    documents[4] += b"NOT-FOR-GITHUB\n"
    documents[13] += b"x" * 6000
    server.refuse_content(b"NOT-FOR-GITHUB", name_path=named)
    server.refuse_larger(5000, name_path=named)
    ids = queue(machine, server, documents)
    server.pushes = 0
    synced = here.sync("--json")
    assert synced.code == 10, synced.err
    assert synced.json["report"]["pushed"] == 18
    assert server.pushes <= (3 if named else 20)
    box = waiting(here)
    assert box["waiting"] == []
    reasons = {draft["id"]: draft["reason"] for draft in box["aside"]}
    assert reasons.keys() == {ids[4], ids[13]}
    assert "Push cannot contain secrets" in reasons[ids[4]]
    assert re.search("exceeds GitHub's file size limit|GH001", reasons[ids[13]])
    assert sum(path.endswith(".md") for path in server.files()) == 19
    assert here.load(ids[4]).endswith(b"NOT-FOR-GITHUB\n")

    keys = [draft["key"] for draft in box["aside"]]
    more = [doc(number) for number in range(21, 24)]
    protected_then_open(here, server, more)
    for key in keys:
        assert here.run("outbox", "retry", key).code == 0
    bodies = {document.split(data)[1] for data in here.loads(ids)}
    assert bodies == set(documents)
    everything = {id: document.split(here.load(id))[1] for id in listed(here)}
    holds([here, machine("there", remote=server.url)], server.repo, everything, exactly=True)


def test_case_15_what_was_refused_hides_nothing_that_came_after_it(
    machine: Machines, server: GitServer
) -> None:
    """It shows until its session has a newer text on master, from here or elsewhere; it is kept."""
    here, there = machine("here", remote=server.url), machine("there", remote=server.url)
    here.save(doc(0))
    server.refuse_content(b"NOT-FOR-GITHUB", name_path=True)
    (id,) = queue(machine, server, [doc(1) + b"NOT-FOR-GITHUB\n"])
    assert here.sync().code == 10
    refused = here.load(id)
    assert refused.endswith(b"NOT-FOR-GITHUB\n")
    mended = refused.replace(b"NOT-FOR-GITHUB\n", b"fine\n")
    assert here.run("save", "-", stdin=mended).code == 0
    assert here.load(id).endswith(b"fine\n")

    elsewhere = there.run("load", id).out
    edit = here.load(id) + b"NOT-FOR-GITHUB\n"
    assert here.run("save", "-", stdin=edit).code == 10
    assert here.load(id).endswith(b"NOT-FOR-GITHUB\n")
    assert there.run("save", "-", stdin=elsewhere + b"from there\n").code == 0
    assert here.run("load", id, "--fresh").out.endswith(b"from there\n")
    assert len(waiting(here)["aside"]) == 2


def protected_then_open(here: Machine, server: GitServer, documents: list[bytes]) -> None:
    server.protect()
    for number, data in enumerate(documents, 1):
        server.pushes = 0
        saved = here.run("save", "-", stdin=data)
        assert saved.code == 10
        assert "Protected branch" in saved.text
        assert server.pushes <= 2, "a storm of pushes against a protected branch"
        assert len(list((here.data / "outbox").glob("*.drafts"))) == number
    server.pushes = 0
    assert here.sync().code == 10
    assert server.pushes <= 2
    assert len(waiting(here)["waiting"]) == len(documents)
    server.allow_all()
    server.pushes = 0
    assert here.sync().code == 0
    assert server.pushes == 1
    assert waiting(here)["waiting"] == []


def test_case_15_many_refused_documents_do_not_hold_up_a_good_one(
    machine: Machines, server: GitServer
) -> None:
    """Secrets whose places the server does not name are found, however many come first."""
    here = machine("here", remote=server.url)
    here.save(doc(0))
    server.refuse_content(b"NOT-FOR-GITHUB", name_path=False)
    bad = [doc(number) + b"NOT-FOR-GITHUB\n" for number in range(1, 5)]
    ids = queue(machine, server, [*bad, doc(5)])
    assert here.sync().code == 10
    box = waiting(here)
    assert box["waiting"] == []
    assert {draft["id"] for draft in box["aside"]} == set(ids[:4])
    assert doc(5) in b"".join(server.files().values())


def test_case_15_a_hook_that_refuses_everything_blames_no_document(
    machine: Machines, remote: Path
) -> None:
    """When a hook says only no, to all of them, the documents wait; they are not set aside."""
    here = machine("here", remote=remote)
    here.save(doc(0))
    tries = remote / "tries"
    hook = f"echo >> '{tries}'\necho 'not today' >&2\nexit 1\n"
    (remote / "hooks").mkdir(exist_ok=True)
    script(remote / "hooks" / "pre-receive", hook)
    receipts = here.save(*map(doc, range(1, 9)))
    assert {receipt.state for receipt in receipts} == {"refused"}
    box = waiting(here)
    assert (len(box["waiting"]), len(box["aside"])) == (8, 0)
    assert len(tries.read_text().splitlines()) <= 8
    (remote / "hooks" / "pre-receive").unlink()
    bodies = {receipt.id: doc(number) for number, receipt in enumerate(receipts, 1)}
    assert here.sync().code == 0
    holds([here], remote, bodies)


def test_the_first_fetch_may_take_longer_than_any_other(
    machine: Machines, server: GitServer
) -> None:
    """A large master comes whole, which each other time it does not."""
    machine("there", remote=server.url).save(doc(0))
    here = machine("here", remote=server.url, master_push_seconds="2")
    server.delay = 1.2  # each of at least two requests
    assert here.sync().code == 0
    server.delay = 0.0
    assert here.run("load", "--body").out == doc(0)


# --- case 16: long offline -------------------------------------------------------------------


def test_case_16_weeks_offline_arrive_in_order_with_few_pushes(
    machine: Machines, server: GitServer
) -> None:
    """Saves of many runs, edits among them, go on top of a master that is far ahead."""
    here = machine("here", remote=server.url, master_push_seconds="0.05")
    first = machine("here", remote=server.url).save(doc(0))[0]
    server.status = 503
    texts = {first.id: doc(0)}
    order = []
    for run in range(ARCHIVES):
        documents = [
            doc(number) for number in range(1, OFFLINE_SAVES + 1) if number % ARCHIVES == run
        ]
        for receipt, data in zip(saved_one_by_one(here, documents), documents, strict=True):
            texts[receipt.id] = data
            order.append(receipt.title)
        edited = here.load(first.id).replace(b"What was", b"Again: what was")
        assert here.save(edited)[0].state == "queued"
        texts[first.id] = document.split(edited)[1]
    server.status = None
    run_ahead(server.repo, COMMITS_AHEAD)
    server.pushes = 0
    assert machine("here", remote=server.url).sync().code == 0
    assert server.pushes <= 10
    assert server.commits() >= COMMITS_AHEAD + OFFLINE_SAVES
    log = git(server.repo, "log", "--reverse", "--format=%s", "--grep=Annoris-Save", "main")
    assert [line for line in log.splitlines() if line != "Save Step 0"] == [
        f"Save {title}" for title in order
    ]
    online = machine("here", remote=server.url)
    holds([online, machine("there", remote=server.url)], server.repo, texts)


def saved_one_by_one(machine: Machine, documents: list[bytes]) -> list[Any]:
    """Save each by itself, as one process that lives a while does."""
    from annoris.intake import SaveOptions, Source  # noqa: PLC0415

    archive = machine.archive()
    try:
        receipts = [archive.save([Source("-", data)], SaveOptions())[0] for data in documents]
    finally:
        archive.catalog.close()
    assert {receipt.state for receipt in receipts} == {"queued"}
    return receipts


def run_ahead(repo: Path, count: int) -> None:
    """Put so many commits on the branch, each with a session of its own."""
    stream = ["feature done\n"]
    for number in range(count):
        text = f"# Elsewhere {number}\n\nBody.\n"
        start = "from refs/heads/main^0\n" if number == 0 else ""
        stream.append(
            f"commit refs/heads/main\ncommitter A Person <a@b.c> {1700000000 + number} +0000\n"
            f"data 2\nby\n{start}M 100644 inline sessions/other/{number}.md\n"
            f"data {len(text)}\n{text}\n"
        )
    subprocess.run(
        ["git", f"--git-dir={repo}", "fast-import", "--quiet"],
        input=("".join(stream) + "done\n").encode(),
        check=True,
    )


# --- every kind of remote --------------------------------------------------------------------

SSH = """
    case "$*" in *-G*) exit 1;; esac
    for last; do :; done
    exec sh -c "$last"
"""


@pytest.mark.parametrize("kind", ["path", "relative", "file", "http", "ssh"])
def test_each_kind_of_remote_is_set_up_saved_to_and_loaded_from(
    kind: str, machine: Machines, remote: Path, tmp_path: Path
) -> None:
    """init, save and load work on each, and on another machine that comes to it."""
    with GitServer(tmp_path / "http", token="t0ken" * 8) as server:
        here, there = machine("here"), machine("there")
        ssh = {"GIT_SSH_COMMAND": str(script(tmp_path / "ssh", SSH))}
        urls = {
            "path": (str(remote), {}),
            "relative": (os.path.relpath(remote, here.desk), {}),
            "file": (f"file://{remote}", {}),
            "http": (server.url, {"ANNORIS_MASTER_TOKEN": "t0ken" * 8}),
            "ssh": (f"ssh://someone@host{remote}", ssh),
        }
        url, env = urls[kind]
        for one in (here, there):
            one.environment |= env
            done = one.run("init", "--remote", url)
            assert done.code == 0, done.err
        saved = here.run("save", "-", "--json", stdin=doc(1), cwd=tmp_path)
        assert saved.code == 0, saved.text + saved.err
        id = saved.json["receipts"][0]["id"]
        assert there.sync().code == 0
        assert document.split(there.run("load", id).out)[1] == doc(1)
        repo = server.repo if kind == "http" else remote
        assert doc(1) in b"".join(githttp.files(repo).values())
        elsewhere = there.run("save", "-", stdin=doc(2), cwd=tmp_path)
        assert elsewhere.code == 0, elsewhere.err
        assert here.sync().code == 0
        assert listed(here) == listed(there)
        assert len(listed(here)) == 2


# --- adopting --------------------------------------------------------------------------------


def test_a_repository_of_markdown_is_adopted_as_it_is(machine: Machines, remote: Path) -> None:
    """Hundreds of files become sessions by --include: same bytes, ids from paths."""
    notes: dict[str, bytes | None] = {
        f"notes/{number % 20}/note {number}.md": f"# Note {number}\r\n\r\nText".encode()
        for number in range(ADOPTED)
    }
    known = "018f3c1e-1111-7abc-8def-001122334455"
    notes["journal/with-id.md"] = f"---\nid: {known}\ntags: [a]\n---\n# Mine\n".encode()
    notes["code.py"] = b"print(1)\n"
    githttp.commit(remote, notes)
    before = githttp.files(remote)
    here = machine("here")
    set_up = here.run("init", "--remote", str(remote), "--include", "**/*.md", "--json")
    assert set_up.code == 0, set_up.err
    assert set_up.json["init"]["sessions"] == ADOPTED + 1
    after = githttp.files(remote)
    assert {path: after[path] for path in before} == before
    archive = here.archive()
    rows, _ = archive.sessions(everything=True, limit=None)
    assert {row.path: archive.load(row.id).data for row in rows} == {
        path: data for path, data in before.items() if path.endswith(".md")
    }
    archive.catalog.close()
    by_path = {row.path: row.id for row in rows}
    assert by_path["journal/with-id.md"] == known
    assert all(
        id == str(uuid.uuid5(uuid.NAMESPACE_URL, f"annoris:{path}"))
        for path, id in by_path.items() if path.startswith("notes/")
    )  # fmt: skip
    edits_of_adopted(here, remote, by_path)


def edits_of_adopted(here: Machine, remote: Path, by_path: dict[str, str]) -> None:
    """An edit stays at its path; a rename by hand keeps an id that the file carries."""
    path = "notes/7/note 7.md"
    text = here.run("load", by_path[path]).out + b"\r\nMore."
    edited = here.run("save", here.write("edit.md", text), "--update", by_path[path])
    assert edited.code == 0, edited.text + edited.err
    saved = githttp.files(remote)[path]
    assert document.split(saved)[1] == b"# Note 7\r\n\r\nText\r\nMore."
    assert document.inspect(saved).id == by_path[path]
    old = githttp.files(remote)["journal/with-id.md"]
    githttp.commit(remote, {"journal/with-id.md": None, "diary/mine.md": old, path: None,
                            "notes/seven.md": saved})  # fmt: skip
    assert here.sync().code == 0
    archive = here.archive()
    try:
        moved = {row.path: row.id for row in archive.sessions(everything=True, limit=None)[0]}
        assert moved["diary/mine.md"] == by_path["journal/with-id.md"]
        assert moved["notes/seven.md"] == by_path[path]
        assert len(moved) == len(by_path)
        assert len(archive.history(by_path[path])[1]) >= 2
    finally:
        archive.catalog.close()
    holds([here], remote, {by_path[path]: b"# Note 7\r\n\r\nText\r\nMore."})


# --- init ------------------------------------------------------------------------------------


def test_init_takes_embedded_sessions_and_their_history_to_an_empty_remote(
    machine: Machines, remote: Path
) -> None:
    """What was saved without a remote is on the remote after init, with every revision."""
    here = machine("here")
    first, other = here.save(doc(1), doc(2))
    here.save(here.load(first.id).replace(b"What was", b"More was"))
    done = here.run("init", "--remote", str(remote), "--json")
    assert done.code == 0, done.err
    assert done.json["init"]["brought"] == 2
    assert githttp.head(remote) == git(here.data / "clone.git", "rev-parse", "main").strip()
    there = machine("there", remote=remote)
    there.sync()
    history = there.run("history", first.id, "--json").json["revisions"]
    assert len(history) == 2
    bodies = {first.id: doc(1).replace(b"What was", b"More was"), other.id: doc(2)}
    holds([here, there], remote, bodies, exactly=True)


def test_init_joins_two_sets_of_sessions(machine: Machines, remote: Path) -> None:
    """Both sides keep theirs, with history; a session that both hold differently becomes two."""
    there = machine("there", remote=remote)
    theirs = there.save(doc(1), doc(2))
    here = machine("here")
    mine = here.save(doc(3))[0]
    both = there.load(theirs[0].id)
    changed = here.save(both.replace(b"What was", b"Here was"))[0]
    assert changed.path == theirs[0].path
    done = here.run("init", "--remote", str(remote))
    assert done.code == 0, done.err
    bodies = {theirs[0].id: doc(1), theirs[1].id: doc(2), mine.id: doc(3)}
    lost = doc(1).replace(b"What was", b"Here was")
    holds([here, there], remote, bodies, anywhere=[lost])
    assert len(there.run("history", mine.id, "--json").json["revisions"]) == 1


def test_init_again_changes_nothing(machine: Machines, remote: Path) -> None:
    """A second init of the same remote is harmless, after a rewritten master too."""
    here = machine("here")
    saved = here.save(*map(doc, range(6)))
    for _ in range(2):
        assert here.run("init", "--remote", str(remote)).code == 0
    tip = githttp.head(remote)
    files = githttp.files(remote)
    del files[saved[0].path]
    githttp.force_push(remote, files)
    assert here.run("init", "--remote", str(remote)).code == 0
    assert githttp.head(remote) != tip
    assert githttp.files(remote) == files, "init brought back what master had dropped"
    bodies = {receipt.id: doc(number) for number, receipt in enumerate(saved) if number}
    holds([here], remote, bodies, exactly=True)


def test_init_moves_to_another_remote_only_when_told_to(machine: Machines, tmp_path: Path) -> None:
    """Another remote is refused without --move; with it everything goes along, outbox included."""
    old, new = (githttp.bare(tmp_path / f"{name}.git") for name in ("old", "new"))
    here = machine("here")
    assert here.run("init", "--remote", str(old)).code == 0
    first = here.save(doc(1))[0]
    old.rename(tmp_path / "away.git")
    late = here.save(doc(2))[0]
    refused = here.run("init", "--remote", str(new))
    assert refused.code == 2
    assert "--move" in refused.err
    assert githttp.head(new) == ""
    moved = here.run("init", "--remote", str(new), "--move")
    assert moved.code == 0, moved.err
    holds([here, machine("there", remote=new)], new, {first.id: doc(1), late.id: doc(2)})


def test_a_remote_that_was_only_configured_never_mixes_with_what_is_here(
    machine: Machines, remote: Path
) -> None:
    """Sessions of another master are not pushed or dropped by save or sync; init joins them."""
    there = machine("there", remote=remote)
    theirs = there.save(doc(1))[0]
    mine = machine("here").save(doc(2))[0]
    here = machine("here", remote=remote)
    for ran in (here.sync(), here.run("save", "-", stdin=doc(3)), here.sync("--force")):
        assert ran.code == 10
        assert "was not saved to" in ran.err + ran.text
    assert sum(path.endswith(".md") for path in githttp.files(remote)) == 1
    assert here.run("init").code == 0
    late = next(id for id in listed(here) if id not in (theirs.id, mine.id))
    bodies = {theirs.id: doc(1), mine.id: doc(2), late: doc(3)}
    holds([here, there], remote, bodies, exactly=True)


def wrong(kind: str, remote: Path) -> list[str]:
    return {
        "branch": ["--remote", str(remote), "--branch", "mian"],
        "missing": ["--remote", str(remote.with_name("nothing.git"))],
        "no repository": ["--remote", str(remote.parent)],
        "token in URL": ["--remote", "https://me:secret@example.org/sessions.git"],
        "option": ["--remote=--upload-pack=true"],
        "scheme": ["--remote", "ext::sh -c true"],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("branch", 2, "has no branch mian; it has main"),
        ("missing", 10, "not a repository"),
        ("no repository", 10, "not a repository"),
        ("token in URL", 2, "ANNORIS_MASTER_TOKEN"),
        ("option", 2, "not a repository"),
        ("scheme", None, ""),
    ],
)
def test_init_with_a_wrong_remote_says_what_is_wrong_and_changes_nothing(
    kind: str, code: int | None, words: str, machine: Machines, remote: Path
) -> None:
    """A clear line, the right exit code, no configuration, and saving goes on as before."""
    githttp.commit(remote, {"README.md": b"# Hello\n"})
    tip = githttp.head(remote)
    here = machine("here")
    first = here.save(doc(1))[0]
    ran = here.run("init", *wrong(kind, remote))
    assert ran.code == code if code is not None else ran.code not in (0, 1)
    assert words in ran.err
    assert "secret" not in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= 3
    assert not list(here.folder.rglob("config.toml"))
    assert githttp.head(remote) == tip
    second = here.save(doc(2))[0]
    holds([here], None, {first.id: doc(1), second.id: doc(2)}, exactly=True)


# --- the token -------------------------------------------------------------------------------


def test_the_token_is_nowhere_to_be_seen(
    machine: Machines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in argv of any git, the clone's configuration, any output, nor any file of ours."""
    token = "ghp_" + "a1B2" * 9
    argv = tmp_path / "argv"
    shims = tmp_path / "bin"
    shims.mkdir()
    real = shutil.which("git")
    script(shims / "git", f"printf '%s\\n' \"$@\" >> '{argv}'\nexec '{real}' \"$@\"\n")
    with GitServer(tmp_path / "http", token=token) as server:
        here = machine("here", master_token=token)
        here.environment["PATH"] = f"{shims}{os.pathsep}{here.environment['PATH']}"
        runs = [
            here.run("init", "--remote", server.url),
            here.run("save", "-", "--json", stdin=doc(1)),
            *(here.run(*line.split()) for line in (
                "load", "sync", "status", "status --json", "doctor", "history", "outbox", "list",
            )),
        ]  # fmt: skip
        assert [ran.code for ran in runs] == [0] * len(runs)
        server.token = "another"
        runs += [here.run("save", "-", stdin=doc(2)), here.sync(), here.run("load", "--fresh")]
        runs += [here.run("doctor"), here.run("init", "--remote", f"{server.url}x", "--move")]
        server.token, server.status = token, 500
        runs += [here.sync(), here.run("load", "--json")]
        server.status = None
        assert here.sync().code == 0
    calls = argv.read_text()
    assert "push" in calls
    assert "fetch" in calls
    hidden = [token, "YWNjZXNzLXRva2Vu", "access-token", "Authorization"]
    shown = "".join(ran.text + ran.err for ran in runs)
    clone = here.data / "clone.git"
    shown += git(clone, "config", "--list") + git(clone, "remote", "-v")
    files = [path for path in here.folder.rglob("*") if path.is_file()]
    kept = b"".join(path.read_bytes() for path in files).decode("latin-1")
    for secret in hidden:
        assert secret not in calls, "in argv"
        assert secret not in shown, "shown"
        assert secret not in kept, "in a file"
    bug_report_is_clean(token, tmp_path, capsys)


def test_no_child_sees_a_key_or_a_password_that_it_does_not_need(
    machine: Machines, server: GitServer, tmp_path: Path
) -> None:
    key = new_key().text()
    word = "s3" + "cr3t"
    seen = tmp_path / "seen"
    shims = tmp_path / "bin"
    shims.mkdir()
    look = f"test \"$1\" = version || env >> '{seen}'"  # which GitPython asks before anything
    script(shims / "git", f"{look}\nexec '{shutil.which('git')}' \"$@\"\n")
    here = machine("here", remote=server.url)
    here.environment |= {
        "PATH": f"{shims}{os.pathsep}{here.environment['PATH']}",
        "ANNORIS_KEY": key,
        "ANNORIS_ALERTS_URLS": f"json://user:{word}@127.0.0.1:9/",
        "DATABASE_URL": f"postgresql://me:{word}@127.0.0.1:9/db",
        "REDIS_URL": f"redis://:{word}@127.0.0.1:9/0",
        "PGPASSWORD": word,
    }
    for line in ("save -", "load --fresh", "sync --full", "doctor"):
        assert here.run(*line.split(), stdin=doc(1)).code in (0, 5, 9), line
    told = seen.read_text()
    assert "GIT_TERMINAL_PROMPT=0" in told
    assert key not in told
    assert word not in told


def bug_report_is_clean(token: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that end up in a traceback don't show the token."""
    settings = MasterSettings(remote="https://example.org/x.git", token=token)
    cli._bug(RuntimeError(f"unexpected: {settings}"))
    said = capsys.readouterr().err
    path = Path(said.rsplit(" ", 1)[1].strip())
    report = path.read_text()
    path.unlink()
    assert "unexpected" in report
    assert token not in report + said


def test_a_slow_or_dead_remote_does_not_keep_a_reader_waiting(
    machine: Machines, server: GitServer
) -> None:
    """After one load that waited in vain the next does not ask at all, and both say so."""
    here = machine("here", remote=server.url)
    saved = here.save(doc(1))[0]
    server.hang = "accept"
    here.environment |= IMPATIENT
    first = here.run("load", saved.id)
    asked = server.requests
    second = here.run("load", saved.id)
    assert (first.code, second.code) == (0, 0)
    assert "may be old" in first.err
    assert "may be old" in second.err
    assert server.requests == asked


def test_a_wrong_branch_in_the_configuration_makes_no_branch(
    machine: Machines, remote: Path
) -> None:
    """A repository that has branches gets no new one by a slip of the pen."""
    assert machine("there", remote).run("save", "-", stdin=b"# There\n").code == 0
    here = machine("here", remote, master_branch="mian")
    saved = here.run("save", "-", stdin=b"# Here\n")
    assert saved.code == 10
    assert "no branch mian; it has main" in saved.text
    assert here.run("sync").code == 10
    assert githttp.head(remote, "mian") == ""


# --- before it is said that there is none ----------------------------------------------------


def test_a_session_is_not_said_to_be_missing_before_master_was_asked(
    server: GitServer, machine: Machines
) -> None:
    """Not by a load or a delete, although master was asked a moment ago, or is paused over.

    When master can't be asked, that is said, and it is another exit code.
    """
    here, there = machine("here", remote=server.url), machine("there", remote=server.url)
    here.save(doc(0))
    saved = [there.save(doc(number))[0].id for number in (1, 2)]
    assert here.load(saved[0]).endswith(doc(1)), "asked within master.fresh_seconds"
    server.status = 503
    with pytest.raises(Unavailable, match="as far as is known here; master can't be asked"):
        here.load(uuid.uuid4().hex)
    saved.append(there_later(there, server))
    asked = server.requests
    assert here.load(saved[2]).endswith(doc(3)), "in spite of the breaker's pause"
    assert server.requests > asked
    with pytest.raises(NotFound):
        here.load(uuid.uuid4().hex)
    saved.append(there.save(doc(4))[0].id)
    assert here.run("delete", saved[3]).code == 0


def there_later(there: Machine, server: GitServer) -> str:
    """Master is back, and another machine saves."""
    server.status = None
    (there.data / "breaker.json").unlink(missing_ok=True)
    (receipt,) = there.save(doc(3))
    assert receipt.state == "master"
    return receipt.id
