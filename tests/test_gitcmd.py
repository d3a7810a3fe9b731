"""Running git: what its words mean, what it may see, and that nothing outlives its deadline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from annoris import gitcmd
from annoris.errors import (
    AnnorisError,
    AuthRefused,
    ConfigError,
    DiskFull,
    NotFound,
    PolicyRefused,
    RemoteRefused,
    RemoteUnreachable,
)
from annoris.gitcmd import LostRace, Result
from annoris.model import Deadline

URL = "https://github.com/me/sessions.git"
PAD = " " * 8  # git's, after each line of a server when stderr is no terminal

SECRET = f"""remote: error: GH013: Repository rule violations found for refs/heads/main.{PAD}
remote: {PAD}
remote: - GITHUB PUSH PROTECTION{PAD}
remote:   —————————————————————————————————————————{PAD}
remote:     Resolve the following violations before pushing again{PAD}
remote:     - Push cannot contain secrets{PAD}
remote:       —— GitHub Personal Access Token ——————————————————————{PAD}
remote:        locations:{PAD}
remote:          - commit: 8728dbe67{PAD}
remote:            path: sessions/a/read-only.md:4{PAD}
remote:            path: sessions/a/name with: spaces.md:17{PAD}
To {URL}
error: failed to push some refs to '{URL}'
"""
LARGE = f"""remote: error: Trace: 5d1f{PAD}
remote: error: See https://gh.io/lfs for more information.{PAD}
remote: error: File sessions/big one.md is 123.45 MB; this exceeds GitHub's file size limit of 100.00 MB{PAD}
remote: error: GH001: Large files detected. You may want to try Git Large File Storage{PAD}
error: failed to push some refs to '{URL}'
"""  # noqa: E501
REJECTED = "!\tabc:refs/heads/main\t[remote rejected] "

WORDS: dict[str, tuple[str, str, type[AnnorisError]]] = {
    # name: (porcelain output, stderr, meaning)
    "no branch": ("", "fatal: couldn't find remote ref refs/heads/main", NotFound),
    "fetch first": ("!\tabc:refs/heads/main\t[rejected] (fetch first)", "", LostRace),
    "non-fast-forward": ("!\tabc:refs/heads/main\t[rejected] (non-fast-forward)", "", LostRace),
    "stale info": ("!\tabc:refs/heads/main\t[rejected] (stale info)", "", LostRace),
    "ref moved on the server": (
        f"{REJECTED}(cannot lock ref 'refs/heads/main': is at 1a2b but expected 3c4d)",
        "", LostRace,
    ),
    "failed to update ref": (f"{REJECTED}(failed to update ref)", "", LostRace),
    "protected": (
        f"{REJECTED}(protected branch hook declined)",
        "remote: error: GH006: Protected branch update failed for refs/heads/main.",
        PolicyRefused,
    ),
    "gitlab protected": (
        f"{REJECTED}(pre-receive hook declined)",
        "remote: GitLab: You are not allowed to push code to protected branches on this project.",
        PolicyRefused,
    ),
    "archived": (
        "", ("ERROR: This repository was archived so it is read-only.\n"
        "fatal: Could not read from remote repository."), PolicyRefused,
    ),
    "checked out": (f"{REJECTED}(branch is currently checked out)", "", PolicyRefused),
    "secret": (f"{REJECTED}(push declined due to repository rule violations)", SECRET,
               PolicyRefused),
    "large": (f"{REJECTED}(pre-receive hook declined)", LARGE, PolicyRefused),
    "any hook": (f"{REJECTED}(pre-receive hook declined)", "remote: no", PolicyRefused),
    "401": ("", f"fatal: Authentication failed for '{URL}/'", AuthRefused),
    "no prompt": (
        "", "fatal: could not read Username for 'https://github.com': terminal prompts disabled",
        AuthRefused,
    ),
    "403": ("", (f"remote: Write access to repository not granted.\nfatal: unable to access "
            f"'{URL}/': The requested URL returned error: 403"), AuthRefused),
    "old password": (
        "", ("remote: Support for password authentication was removed on August 13, 2021.\n"
        f"fatal: Authentication failed for '{URL}/'"), AuthRefused,
    ),
    "single sign-on": (
        "", ("remote: The `acme' organization has enabled or enforced SAML SSO.\n"
        f"fatal: unable to access '{URL}/': The requested URL returned error: 403"), AuthRefused,
    ),
    "ssh key": ("", ("git@github.com: Permission denied (publickey).\n"
                "fatal: Could not read from remote repository."), AuthRefused),
    "ssh, another's repository": (
        "", ("ERROR: Permission to me/sessions.git denied to somebody.\n"
        "fatal: Could not read from remote repository."), AuthRefused,
    ),
    "host key": ("", ("Host key verification failed.\n"
                 "fatal: Could not read from remote repository."), AuthRefused),
    "404": ("", f"remote: Repository not found.\nfatal: repository '{URL}/' not found",
            RemoteRefused),
    "ssh 404": ("", "ERROR: Repository not found.\nfatal: Could not read from remote repository.",
                RemoteRefused),
    "no such folder": ("", "fatal: '/srv/x.git' does not appear to be a git repository",
                       RemoteRefused),
    "no such name": ("", f"fatal: unable to access '{URL}/': Could not resolve host: github.com",
                     RemoteUnreachable),
    "refused": ("", (f"fatal: unable to access '{URL}/': Failed to connect to github.com port 443 "
                "after 2 ms: Couldn't connect to server"), RemoteUnreachable),
    "503": ("", f"fatal: unable to access '{URL}/': The requested URL returned error: 503",
            RemoteUnreachable),
    "429": ("", f"fatal: unable to access '{URL}/': The requested URL returned error: 429",
            RemoteUnreachable),
    "hung up": ("", ("error: RPC failed; curl 56 Recv failure: Connection reset by peer\n"
                "fatal: the remote end hung up unexpectedly"), RemoteUnreachable),
    "too slow": ("", (f"fatal: unable to access '{URL}/': Operation too slow. Less than 100 "
                 "bytes/sec transferred the last 15 seconds"), RemoteUnreachable),
    "certificate": ("", (f"fatal: unable to access '{URL}/': SSL certificate problem: "
                    "self-signed certificate"), RemoteUnreachable),
    "server error": (f"{REJECTED}(Internal Server Error)", "", RemoteUnreachable),
    "ssh down": ("", ("ssh: connect to host github.com port 22: Connection refused\n"
                 "fatal: Could not read from remote repository."), RemoteUnreachable),
    "our disk": ("", "fatal: write error: No space left on device", DiskFull),
    "their disk": (f"{REJECTED}(unpacker error)",
                   "remote: fatal: write error: No space left on device", RemoteUnreachable),
    "the deadline": ("", "no answer within the time limit", RemoteUnreachable),
    "nothing at all": ("", "", RemoteUnreachable),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_what_git_says_means_one_error(name: str) -> None:
    """Each real text gives its class, and a message that names the remote or the cause."""
    output, errors, kind = WORDS[name]
    error = gitcmd.refusal(Result(1, output.encode(), errors), URL, "main")
    assert type(error) is kind, error.message
    assert error.message
    assert "remote:" not in error.message


RULESETS = {
    "- Changes must be made through a pull request.": "branch",
    "- Cannot update this protected ref.": "branch",
    "- Commits must have verified signatures.": "branch",
    '- Required status check "build" is expected.': "branch",
    "- File path is restricted": "unknown",
    "- Push cannot contain secrets": "content",
}


@pytest.mark.parametrize("rule", RULESETS)
def test_a_ruleset_blames_a_document_only_where_one_is_to_blame(rule: str) -> None:
    """GH013 is the number of every rule; only its words tell what a split of the push can find."""
    errors = (
        f"remote: error: GH013: Repository rule violations found for refs/heads/main.{PAD}\n"
        f"remote: {PAD}\nremote: {rule}{PAD}\n"
    )
    output = f"{REJECTED}(push declined due to repository rule violations)".encode()
    error = gitcmd.refusal(Result(1, output, errors), URL, "main")
    assert isinstance(error, PolicyRefused)
    assert error.about == RULESETS[rule]


def test_the_paths_that_a_server_names_are_read_whatever_they_hold() -> None:
    secret = gitcmd.refusal(Result(1, b"", SECRET), URL, "main")
    large = gitcmd.refusal(Result(1, b"", LARGE), URL, "main")
    assert isinstance(secret, PolicyRefused)
    assert isinstance(large, PolicyRefused)
    assert (secret.about, large.about) == ("content", "content")
    assert secret.paths == ("sessions/a/read-only.md", "sessions/a/name with: spaces.md")
    assert large.paths == ("sessions/big one.md",)
    assert "Push cannot contain secrets" in secret.message
    assert "exceeds GitHub's file size limit" in large.message


@pytest.mark.parametrize("name", ["lessons", "read-only", "GH006", "classoom-sso", "prohibited"])
def test_the_name_of_a_repository_is_no_reason(name: str) -> None:
    """Git repeats the URL in its errors; what it happens to be called means nothing."""
    url = f"https://example.org/{name}.git"
    said = f"fatal: unable to access '{url}/': Could not resolve host: example.org"
    assert type(gitcmd.refusal(Result(128, b"", said), url, "main")) is RemoteUnreachable


def test_a_child_sees_nothing_of_another_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that git counts as local to a repository is dropped, what reaches it kept."""
    local = subprocess.run(
        ["git", "rev-parse", "--local-env-vars"], stdout=subprocess.PIPE, check=True, text=True
    ).stdout.split()
    assert len(local) > 10
    for name in [*local, "GIT_TRACE", "GIT_EDITOR", "GIT_AUTHOR_DATE"]:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("GIT_SSH_COMMAND", "my-ssh")
    monkeypatch.setenv("GIT_SSL_CAINFO", "/ca.pem")
    monkeypatch.setenv("GIT_ASKPASS", "/bin/hangs")
    gitcmd.scrub_environment()
    seen = gitcmd.environment()
    ours = {name for name in seen if name.startswith(("GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_"))}
    assert not {*local, "GIT_TRACE", "GIT_EDITOR", "GIT_AUTHOR_DATE"} & (
        seen.keys() - ours - {"GIT_CONFIG_COUNT"}
    )
    assert seen["GIT_CONFIG_COUNT"] == str(len(ours) // 2)
    assert (seen["GIT_SSH_COMMAND"], seen["GIT_SSL_CAINFO"]) == ("my-ssh", "/ca.pem")
    assert (seen["GIT_ASKPASS"], seen["GIT_TERMINAL_PROMPT"], seen["LC_ALL"]) == ("", "0", "C")


def test_extra_settings_reach_git_by_its_environment() -> None:
    """A setting that may be secret is in force and not in argv."""
    value = "Authorization: Basic c2VjcmV0"
    result = gitcmd.run(
        ["git", "config", "--get", "http.extraHeader"], Deadline(10),
        extra={"http.extraHeader": value},
    )  # fmt: skip
    assert result.output.decode().strip() == value


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.fork()
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(60)
"""


def test_at_the_deadline_the_whole_group_dies(tmp_path: Path) -> None:
    """A command that ignores SIGTERM and has forked leaves no process and no answer."""
    pids = tmp_path / "pids"
    result = gitcmd.run([sys.executable, "-c", STUBBORN, str(pids)], Deadline(1.5))
    assert (result.code, result.output) == (-1, b"")
    found = [int(line) for line in pids.read_text().split()]
    assert len(found) == 2
    assert all(gone(pid) for pid in found)


def test_what_a_command_leaves_behind_dies_with_it(tmp_path: Path) -> None:
    """A helper in the background does not outlive the git that started it."""
    pids = tmp_path / "pids"
    shell = f"sleep 60 >/dev/null 2>&1 & echo $! > '{pids}'; echo done"
    result = gitcmd.run(["sh", "-c", shell], Deadline(20))
    assert (result.code, result.output) == (0, b"done\n")
    assert gone(int(pids.read_text()))


def gone(pid: int) -> bool:
    """Whether a process ends within a moment; an orphan that nobody reaped has ended."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def test_git_has_no_terminal_and_no_input() -> None:
    """A process of ours can't open a terminal to ask on, and reads an end at once."""
    shell = "cat; (: < /dev/tty) 2>/dev/null && echo terminal || echo none"
    assert gitcmd.run(["sh", "-c", shell], Deadline(10)).output == b"none\n"


def lock_words(path: Path) -> str:
    return f"fatal: Unable to create '{path}': File exists.\n\nAnother git process seems to be"


def test_a_stale_lock_of_the_clone_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / "clone.git" / "refs" / "main.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert gitcmd.break_stale_lock(lock_words(lock), str(tmp_path / "clone.git"))
    assert not lock.exists()
    assert gitcmd.break_stale_lock(lock_words(lock), str(tmp_path / "clone.git")), "gone by itself"


def test_a_server_can_not_have_files_removed(tmp_path: Path) -> None:
    """Words that name a lock anywhere else, by whatever way, remove nothing."""
    outside = tmp_path / "project" / "poetry.lock"
    outside.parent.mkdir()
    outside.touch()
    (tmp_path / "clone.git").mkdir()
    (tmp_path / "clone.git" / "link").symlink_to(outside.parent)
    for path in (
        outside,
        tmp_path / "clone.git" / ".." / "project" / "poetry.lock",
        tmp_path / "clone.git" / "link" / "poetry.lock",
        tmp_path / "clone.git-other.lock",
    ):
        assert not gitcmd.break_stale_lock(lock_words(path), str(tmp_path / "clone.git"))
    assert not gitcmd.break_stale_lock("fatal: something else", str(tmp_path))
    assert outside.exists()


def test_without_git_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="git isn't installed"):
        gitcmd.run(["git", "--version"], Deadline(5))


def test_bytes_that_are_no_text_survive_the_way_through() -> None:
    raw = b"caf\xe9 \xff\n"
    assert os.fsencode(gitcmd.text(raw)) == raw
