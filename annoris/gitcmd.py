"""Running git: never a prompt, never the user's hooks, never past a deadline.

Every process gets a session of its own (so that nothing can ask on a terminal), a scrubbed
environment, our settings by ``GIT_CONFIG_*`` (so that no secret is in argv), and dies with its
whole group at the deadline. ``refusal`` turns the words of a failed push or fetch, which
``LC_ALL=C`` keeps stable, into our errors.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO

from annoris.dataclass import dataclass
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
from annoris.model import Deadline

NOTHING = subprocess.DEVNULL
_BUFFER = 1 << 17  # bytes of a pipe that are read at once: what it holds, and more
_running: set[subprocess.Popen[bytes]] = set()

# What a user may say about how git reaches the network; every other GIT_ variable is dropped,
# or git would write into the repository whose hook we were started from.
_KEEP = (
    r"GIT_(SSH|SSH_COMMAND|SSH_VARIANT|SSL_\w+|PROXY_\w+|HTTP_\w+|EXEC_PATH"
    r"|CONFIG_GLOBAL|CONFIG_SYSTEM|CONFIG_NOSYSTEM|ALLOW_PROTOCOL|CEILING_DIRECTORIES)"
)
_CONFIG = {
    "commit.gpgSign": "false",
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.fsync": "all",
    "core.hooksPath": os.devnull,
    "core.quotePath": "false",
    "credential.interactive": "false",
    "diff.orderFile": os.devnull,
    "diff.relative": "false",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
    "http.lowSpeedLimit": "100",
    "http.lowSpeedTime": "15",
    "log.diffMerges": "off",
    "log.follow": "false",
    "log.showRoot": "true",
    "log.showSignature": "false",
    "maintenance.auto": "false",
    "protocol.ext.allow": "never",
    "push.followTags": "false",
    "push.gpgSign": "false",
    "push.recurseSubmodules": "no",
    "transfer.fsckObjects": "false",
}
# In a user's own repository its configuration counts, but for what would start programs.
_GUEST = {"core.fsmonitor": "false", "core.hooksPath": os.devnull, "protocol.allow": "never"}
# Keys and passwords that no other program than this one needs; a helper of git's may keep logs.
_PRIVATE = re.compile(r"ANNORIS_\w+|DATABASE_URL|REDIS_URL|PGPASSWORD")
SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5"


class LostRace(AnnorisError):
    """Somebody else moved master between our fetch and our push; never leaves the core."""

    code = "race"


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    output: bytes
    text: str


def scrub_environment() -> None:
    """Forget the repository whose hook or shell we were started from, for every child."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        if not re.fullmatch(_KEEP, name) and name != "GIT_PYTHON_REFRESH":
            del os.environ[name]


def environment(
    extra: Mapping[str, str] | None = None,
    base: Mapping[str, str] = _CONFIG,
    *,
    ours: bool = False,
) -> dict[str, str]:
    """What a child sees: our settings for git, and nothing secret unless it is ``ours``."""
    settings = {**base, **(extra or {})}
    environment = {
        name: value for name, value in os.environ.items() if ours or not _PRIVATE.fullmatch(name)
    }
    ssh = settings.pop("core.sshCommand", "")
    if ssh:
        environment["GIT_SSH_COMMAND"] = ssh
    for number, (key, value) in enumerate(settings.items()):
        environment[f"GIT_CONFIG_KEY_{number}"] = key
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
    return environment | {
        "GIT_CONFIG_COUNT": str(len(settings)),
        "GIT_ASKPASS": "",  # set and empty: git asks no program at all
        "SSH_ASKPASS_REQUIRE": "never",
        "GIT_TERMINAL_PROMPT": "0",
        "GCM_INTERACTIVE": "never",
        "GIT_OPTIONAL_LOCKS": "0",
        "LC_ALL": "C",
        "LANGUAGE": "",
    }


def hidden() -> dict[str, str]:
    """What is secret in our environment, emptied, for a library that adds to it only."""
    return {name: "" for name in os.environ if _PRIVATE.fullmatch(name)}


@contextlib.contextmanager
def process(
    command: list[str], environment: dict[str, str], stdin: IO[bytes] | int, stderr: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own (no terminal to ask on), dead when the block ends."""
    try:
        process = subprocess.Popen(
            command,
            bufsize=_BUFFER,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise no_git() from error
    _running.add(process)
    try:
        with process:
            try:
                yield process
            finally:
                if process.stdin:
                    with contextlib.suppress(OSError):
                        process.stdin.close()
                if process.poll() is None:
                    kill(process)
    finally:
        # A helper that git left behind (a credential helper, ssh) dies with its group.
        kill(process)
        _running.discard(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)  # after Ctrl-C, Popen itself does not


def kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def kill_all() -> None:
    """End every process that is under way, with its group: this process is about to end."""
    for process in list(_running):
        kill(process)


atexit.register(kill_all)


def no_git() -> ConfigError:
    return ConfigError("git isn't installed or not on PATH", hint="install git 2.36 or newer")


def run(
    command: list[str],
    deadline: Deadline,
    stdin: bytes = b"",
    extra: Mapping[str, str] | None = None,
    *,
    base: Mapping[str, str] = _CONFIG,
    grace: float = 0.0,
    ours: bool = False,
) -> Result:
    """Run a command to its end; code -1 and no output when the deadline came first.

    ``grace``: seconds that it has then to end by itself, once asked to. ``ours``: it is annoris.
    """
    sees = environment(extra, base, ours=ours)
    with process(command, sees, subprocess.PIPE, subprocess.PIPE) as child:
        try:
            output, errors = child.communicate(stdin, timeout=max(0.05, deadline.left()))
        except subprocess.TimeoutExpired:
            if grace:
                child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.communicate(timeout=grace)
            return Result(-1, b"", "no answer within the time limit")
    return Result(child.returncode, output, text(errors))


def ask(folder: str, question: list[str], deadline: Deadline) -> Result:
    """A question about a user's own repository, under its own configuration."""
    scrub_environment()
    return run(["git", "-C", folder, *question], deadline, base=_GUEST)


# As texts: a start compiles none of them.
_RACE = (
    r"fetch first|non-fast-forward|stale info|cannot lock ref|failed to (?:lock|update ref)"
    r"|incorrect old value|reference already exists|remote ref updated since"
)
_WHOLE = (
    r"GH006|protected branch|GH00[27]|currently checked out|deny updating|read.?only"
    # What a ruleset (GH013) says when no document is to blame.
    r"|made through a pull request|protected ref|must have verified signatures|status checks?\b"
)
_CONTENT = r"GH001|GH009|exceeds GitHub's file size|cannot contain secrets"
_HOOK = r"GH0\d\d|hook declined|prohibited|rule violations"
_AUTH = (
    r"(?i)authentication failed|could not read (?:username|password)|permission denied \("
    r"|error: 40[13]|host key verification failed|invalid username|access denied"
    r"|permission to \S+ denied|\bSAML SSO\b"
)
_MISSING = (
    r"(?i)repository '?.*'? ?not found|does not appear to be a git repository|error: 404"
    r"|does not exist|not a git repository"
)
_NO_BRANCH = "couldn't find remote ref"
_FULL = r"(?m)^(?!remote:).*No space left on device"
_NAMED = r"(?m)^\s*(?:path: |File )(\S.*?)(?::\d+$| is [\d.]+ MB|$)"
_PADDING = r"(?m)[ \t]+$|\x1b\[K"  # git's, after what a server says


def refusal(result: Result, remote: str, branch: str) -> AnnorisError:
    """The error that a failed push or fetch means. The order of the tests is from sure to vague."""
    words = re.sub(_PADDING, "", f"{text(result.output)}\n{result.text}")
    told = words.replace(remote, "")  # a repository may be called read-only
    said = last_line(re.sub(r"^remote:\s*", "", result.text, flags=re.MULTILINE))
    tests: tuple[tuple[str, Callable[[], AnnorisError]], ...] = (
        (_NO_BRANCH, lambda: NotFound(f"{remote} has no branch {branch}")),
        (_FULL, lambda: DiskFull("the disk is full", hint="free some space; annoris sync")),
        (_CONTENT, lambda: PolicyRefused(
            f"{remote} refuses the document: {_why(words)}", about="content",
            paths=tuple(re.findall(_NAMED, _bare(words))))),
        (_WHOLE, lambda: PolicyRefused(
            f"{remote} refuses every push to {branch}: {_why(words)}", about="branch",
            hint="allow this user to push there; annoris sync then delivers what waits")),
        (_HOOK, lambda: PolicyRefused(f"{remote} refuses the push: {_why(words)}")),
        (_RACE, lambda: LostRace("master moved")),
        (_AUTH, lambda: AuthRefused(
            f"{remote} does not let this user in: {said}", hint=_auth_hint(remote))),
        (_MISSING, lambda: RemoteRefused(
            f"{remote} is not a repository that this user can see: {said}",
            hint="check the address: annoris init --remote URL")),
    )  # fmt: skip
    for pattern, made in tests:
        if re.search(pattern, told):
            return made()
    return RemoteUnreachable(
        f"{remote} can't be reached: {said}", hint="annoris sync delivers what waits"
    )


def _bare(words: str) -> str:
    return re.sub(r"^(?:(?:remote|fatal|error):\s*)+", "", words, flags=re.MULTILINE)


def _auth_hint(remote: str) -> str:
    if remote.startswith("http"):
        return "put a token that may write to the repository into ANNORIS_MASTER_TOKEN"
    return (
        "check the key and the host with: ssh -T "
        + remote.removeprefix("ssh://").split(":")[0].split("/")[0]
    )


def _why(words: str) -> str:
    """The lines of a refusal that name its rules, in one."""
    lines = [
        re.sub(r"^(?:remote:\s*|error:\s*|-\s*)*", "", line).strip() for line in words.splitlines()
    ]
    for pattern in (
        r"Push cannot contain|exceeds|pull request|protected ref|signatures|status check",
        r"GH0\d\d",
        r"declined",
        r"currently checked",
    ):
        if said := [line.split("\t")[-1] for line in lines if re.search(pattern, line)]:
            return "; ".join(dict.fromkeys(said[:3]))
    return last_line(words)


def break_stale_lock(words: str, *repositories: str) -> bool:
    """Remove a lock that a killed git left in one of ``repositories``; whether to try again.

    Only the holder of our own lock comes here. The words may be a server's: it can't have us
    remove a file anywhere else.
    """
    found = re.search(r"Unable to create '([^'\n]+\.lock)': File exists", words)
    path = os.path.realpath(found.group(1)) if found else ""
    homes = [os.path.realpath(repository.removeprefix("file://")) for repository in repositories]
    if not any(path.startswith(os.path.join(home, "")) for home in homes):
        return False
    with contextlib.suppress(FileNotFoundError):
        before = os.stat(path)
        time.sleep(2)
        if os.stat(path) == before:  # nobody lives so long between a lock and its release
            os.unlink(path)
    return True


def last_line(words: str) -> str:
    """The line of git's output that says why: its first fatal one, else its last."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("fatal: ", "error: ", "ERROR: ")):
            return line.partition(": ")[2]
    wordy = [line for line in lines if not line.startswith(("hint:", "To ", "Done"))]
    return (wordy or lines or ["no reason given"])[-1]


def text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")
