"""The user's own work tree: what a save notes of it, and what a load says changed since.

Only questions are asked of git, under the user's configuration, and nothing is locked or
written there. Whatever does not answer in time, or at all, is left out. Noted is one line:
``remote branch commit path…``, parted by spaces; ``-`` stands for none, a ``-`` before a path
says that it was removed, ``+12`` at the end counts those left out.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime

from annoris import gitcmd
from annoris.dataclass import dataclass
from annoris.errors import AnnorisError
from annoris.model import Deadline

SECONDS = 1.0  # for all questions of one save or load
MOST_PATHS = 50

_NOTHING = "-"
# What a path or a name may not hold to be one word on a line of YAML: blanks, controls, lone
# surrogates, BOMs, % itself.
_UNFIT = "[\0-\x20%\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]"


@dataclass(frozen=True, slots=True)
class Workspace:
    """A work tree at a moment. Paths are those that differ from its commit, from its top."""

    remote: str
    branch: str
    commit: str
    dirty: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    more: int = 0  # paths that are not listed

    def text(self) -> str:
        """The line for the front matter; empty when something in it looks like a credential."""
        from annoris import leaks  # noqa: PLC0415 - a load needs none of it

        words = [_word(text) for text in (self.remote, self.branch, self.commit, *self.dirty)]
        words += [f"-{_word(path)}" for path in self.removed]
        words += [f"+{self.more}"] if self.more else []
        line = " ".join(words)
        return "" if leaks.scan(line) else line


@dataclass(frozen=True, slots=True)
class Drift:
    """How a work tree differs from what a session noted of it."""

    branch: str  # where it is now; empty when that is where it was
    was: str
    ahead: int | None  # commits since; None when the noted commit is not known here
    behind: int | None
    gone: tuple[str, ...]
    changed: tuple[str, ...]
    days: int

    @property
    def sentences(self) -> list[str]:
        """What a reader must know, in plain words; nothing when nothing changed."""
        told = []
        if self.branch:
            told.append(f"the branch is {self.branch}, it was {self.was}")
        if self.ahead is None:
            told.append("the commit that was checked out then is not in this repository")
        elif self.ahead:
            told.append(f"{_counted(self.ahead, 'new commit')}")
        if self.behind:
            told.append(f"{_counted(self.behind, 'commit')} of then not in the branch")
        for what, paths in (("gone", self.gone), ("changed", self.changed)):
            if paths:
                told.append(f"{what}: {', '.join(paths[:10])}{', …' if len(paths) > 10 else ''}")
        return told


def look(folder: str, deadline: Deadline | None = None) -> Workspace | None:
    """The work tree that ``folder`` is in; None when it is in none or git can't say in time."""
    deadline = deadline or Deadline(SECONDS)
    if not root_of(folder):
        return None
    status = _asked(
        folder, deadline, "status", "--porcelain=v2", "--branch", "-z", "--no-renames",
        "--untracked-files=normal", "--ignore-submodules=all",
    )  # fmt: skip
    if status is None:
        return None
    remote = _asked(folder, deadline, "config", "--get", "remote.origin.url") or ""
    head: dict[str, str] = {}
    paths: list[tuple[bool, str]] = []
    for line in filter(None, status.split("\0")):
        if line.startswith("# branch."):
            key, _, value = line.removeprefix("# branch.").partition(" ")
            head[key] = value
        else:
            paths.append(_listed(line))
    branch, commit = head.get("head", ""), head.get("oid", "")
    return Workspace(
        remote=_without_credentials(remote.strip()),
        branch="" if branch == "(detached)" else branch,
        commit="" if commit == "(initial)" else commit,
        dirty=tuple(path for removed, path in paths[:MOST_PATHS] if not removed),
        removed=tuple(path for removed, path in paths[:MOST_PATHS] if removed),
        more=max(0, len(paths) - MOST_PATHS),
    )


def read(text: str) -> Workspace | None:
    """What ``Workspace.text`` wrote; None for anything else."""
    words = text.split(" ")
    if len(words) < 3 or not re.fullmatch(r"-|[0-9a-f]{40,64}", words[2]):
        return None
    remote, branch, commit, *paths = words
    more = int(paths.pop()[1:]) if paths and re.fullmatch(r"\+\d{1,9}", paths[-1]) else 0
    return Workspace(
        remote=_plain(remote),
        branch=_plain(branch),
        commit=_plain(commit),
        dirty=tuple(_plain(path) for path in paths if path[:1] != "-"),
        removed=tuple(_plain(path[1:]) for path in paths if path[:1] == "-"),
        more=more,
    )


def drift(noted: str, saved: str, folder: str) -> Drift | None:
    """How the work tree at ``folder`` differs from the line ``noted`` at ``saved`` (ISO, UTC).

    None when there is nothing to compare: no line, no work tree, or that of something else.
    """
    then = read(noted)
    deadline = Deadline(SECONDS)
    now = look(folder, deadline) if then else None
    if then is None or now is None or _place(then.remote) != _place(now.remote):
        return None
    counts = _counts(folder, then.commit, deadline) if then.commit else (0, 0)
    if not then.remote and not (counts and then.commit):
        return None
    since = _seconds(saved)
    top = root_of(folder)
    states = [(path, _touched(os.path.join(top, path))) for path in then.dirty]
    return Drift(
        branch=(now.branch or "detached") if now.branch != then.branch else "",
        was=then.branch or "detached",
        ahead=counts[1] if counts else None,
        behind=counts[0] if counts else None,
        gone=tuple(path for path, at in states if at is None),
        changed=tuple(path for path, at in states if at is not None and at > since + 1),
        days=int((datetime.now(UTC).timestamp() - since) // 86400) if since else 0,
    )


def root_of(folder: str) -> str:
    """The top of the work tree that a folder is in, or nothing. No process is started."""
    while not os.path.exists(os.path.join(folder, ".git")):
        folder, below = os.path.dirname(folder), folder
        if folder == below:
            return ""
    return folder


def _asked(folder: str, deadline: Deadline, *question: str) -> str | None:
    try:
        result = gitcmd.ask(folder, list(question), deadline)
    except (AnnorisError, OSError):
        return None
    return gitcmd.text(result.output) if result.code == 0 else None


def _listed(line: str) -> tuple[bool, str]:
    """Whether it was removed, and the path, of a line of ``status --porcelain=v2``."""
    kind, _, rest = line.partition(" ")
    if kind == "?":
        return False, rest
    return "D" in rest[:2], rest.split(" ", 9 if kind == "u" else 7)[-1]


def _counts(folder: str, commit: str, deadline: Deadline) -> tuple[int, int] | None:
    """Commits only there and only here; None when that commit is not known."""
    span = f"{commit}...HEAD"
    found = _asked(folder, deadline, "rev-list", "--left-right", "--count", span, "--")
    if found is None:
        return None
    left, right = found.split()
    return int(left), int(right)


def _touched(path: str) -> float | None:
    try:
        return os.lstat(path).st_mtime
    except (OSError, ValueError):
        return None


def _seconds(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0


def _place(remote: str) -> str:
    """A remote without what differs between two ways to reach it."""
    bare = re.sub(r"^[a-z+]+://", "", remote.rstrip("/").removesuffix(".git"))
    bare = re.sub(r"^[^/@]*@", "", bare)
    return bare.replace(":", "/", 1).casefold()


def _without_credentials(remote: str) -> str:
    """A remote that may be shown: no user or query of http, no password of anything else."""
    if re.match(r"(?i)https?://", remote):
        return re.sub(r"^(\w+://)[^/]*@", r"\1", re.split(r"[?#]", remote)[0])
    return re.sub(r"^([\w+]+://[^/:@]*):[^/]*@", r"\1@", remote)


def _word(text: str) -> str:
    """A text as one word: what is unfit as %XX of its bytes, our marks at its start too."""
    if not text:
        return _NOTHING
    return re.sub(f"^[-+]|{_UNFIT}", lambda found: _hex(found[0]), text)


def _hex(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def _plain(word: str) -> str:
    if word == _NOTHING:
        return ""
    raw = re.sub(
        rb"%([0-9A-F]{2})",
        lambda found: bytes([int(found[1], 16)]),
        word.encode("utf-8", "surrogateescape"),
    )
    return raw.decode("utf-8", "surrogateescape")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
