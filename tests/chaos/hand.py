"""What a person does on GitHub's pages: edits, renames, removals and force pushes.

Each is one compare-and-swap of the branch, so that it is known what it replaced.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from annoris import document
from annoris.follow import id_of
from tests.chaos.model import Change, Model
from tests.support import githttp

AUTHOR = "A Person"
_BRANCH = "by-hand"  # where a commit is made before master is moved to it


class Hand:
    """``repo`` is the bare repository on the server, ``model`` hears of what is done."""

    def __init__(self, repo: Path, model: Model) -> None:
        self.repo = repo
        self.model = model
        self._count = itertools.count(1)
        self._numbers: dict[str, int] = {}  # by blob
        self._changes: dict[str, list[Change]] = {}  # by commit
        self._paths: dict[str, str] = {}  # path -> the id last seen there

    def edit(self, pick: float) -> bool:
        """Put another text below a session's front matter."""
        if not (found := self._chosen(pick)):
            return False
        path, data, tip = found
        front, body = document.split(data)
        text = self.model.write("a person", int(pick * 97), self.model.number(body))
        self.model.answered(text, "by hand", id=_id(path, data))
        return self._move({path: front + text.body}, tip, tip)

    def add(self) -> bool:
        """A file without front matter."""
        path, text = f"sessions/by-hand/{next(self._count)}.md", self.model.write("a person")
        tip = githttp.head(self.repo)
        done = bool(tip) and self._move({path: text.body}, tip, tip)
        if done:
            self.model.answered(text, "by hand", id=id_of(path))
        return done

    def rename(self, pick: float) -> bool:
        """Move a session's file; one that says no id is then another session."""
        if not (found := self._chosen(pick)):
            return False
        path, data, tip = found
        if not document.inspect(data).id:
            self.model.drop((), [id_of(path)])
        new = f"sessions/moved/{next(self._count)}-{path.rpartition('/')[2]}"
        return self._move({path: None, new: data}, tip, tip)

    def delete(self, pick: float) -> bool:
        if not (found := self._chosen(pick)):
            return False
        path, data, tip = found
        self.model.drop((), [_id(path, data)])
        return self._move({path: None}, tip, tip)

    def force_push(self, pick: float) -> bool:
        """Take the newest few commits from master, and put one there instead."""
        tip = githttp.head(self.repo)
        line = self._git("rev-list", "--first-parent", "-n", "5", tip).split() if tip else []
        if len(line) < 5:
            return False
        base = line[1 + int(pick * 3)].decode()
        self._git("update-ref", f"refs/kept/{next(self._count)}", tip)
        undone = self._between(base, tip)
        gone = [change for change in self.changes() if change.commit in undone]
        before, after = self._ids(tip), self._ids(base)
        self.model.drop({change.new for change in gone} - {0}, before - after)
        return self._move({f"notes/{next(self._count)}.txt": b"rewritten\n"}, base, tip)

    def squash(self) -> bool:
        """Replace the whole history by one commit with the same files."""
        tip = githttp.head(self.repo)
        if not tip:
            return False
        self._git("update-ref", f"refs/kept/{next(self._count)}", tip)
        made = githttp.force_push(self.repo, githttp.files(self.repo), branch=_BRANCH)
        return self._swap(made, tip)

    def number(self) -> int:
        return next(self._count)

    # --- reading -----------------------------------------------------------------------------

    def sessions(self) -> dict[str, bytes]:
        """Every session on master by its path."""
        found = githttp.files(self.repo)
        return {path: data for path, data in found.items() if _is_session(path)}

    def tree(self) -> dict[str, str]:
        """Every session's path and blob."""
        listed = self._git("ls-tree", "-r", "-z", githttp.head(self.repo)).split(b"\0")
        rows = [row.split(b"\t", 1) for row in listed if row]
        tree = {os.fsdecode(path): fields.split()[2].decode() for fields, path in rows}
        return {path: oid for path, oid in tree.items() if _is_session(path)}

    def has(self, oid: str) -> bool:
        """Whether the server has a commit or a blob."""
        loose = self.repo / "objects" / oid[:2] / oid[2:]
        return loose.exists() or self._try("cat-file", "-e", oid)

    def changes(self) -> list[Change]:
        """What every commit that master ever had did to sessions."""
        commits = self._git("rev-list", "--all").decode().split()
        new = [commit for commit in commits if commit not in self._changes]
        if new:
            self._read(new)
        return [change for commit in commits for change in self._changes[commit]]

    def paths(self) -> Mapping[str, str]:
        """The id that was last seen at each path."""
        return self._paths

    def _read(self, commits: list[str]) -> None:
        raw = self._git(
            "log", "--no-walk=unsorted", "--stdin", "--root", "--first-parent", "--raw", "-z",
            "--no-abbrev", "--no-renames", "--format=%x01%H%x02%an",
            stdin="\n".join(commits).encode(),
        )  # fmt: skip
        self._changes.update({commit: [] for commit in commits})
        rows: list[tuple[str, bool, list[str], str]] = []
        for block in raw.split(b"\x01")[1:]:
            head, _, rest = block.partition(b"\0")
            commit, author = head.decode().strip().split("\x02")
            fields = [os.fsdecode(field).strip("\n") for field in rest.split(b"\0") if field]
            pairs = zip(fields[::2], fields[1::2], strict=True)
            rows += [(commit, author == AUTHOR, raw.split(), path) for raw, path in pairs]
        rows = [row for row in rows if _is_session(row[3])]
        self._learn(rows)
        for commit, by_hand, (_, _, old, new, *_), path in rows:
            numbers = self._numbers[old], self._numbers[new]
            self._changes[commit].append(Change(commit, path, *numbers, by_hand))

    def _learn(self, rows: list[tuple[str, bool, list[str], str]]) -> None:
        """Which text each blob is, and which id stood at each path."""
        self._numbers["0" * 40] = 0
        wanted = {oid: row[3] for row in rows for oid in row[2][2:4] if oid not in self._numbers}
        output = self._git("cat-file", "--batch", stdin="\n".join(wanted).encode() + b"\n")
        start = 0
        for oid, path in wanted.items():
            head = output.index(b"\n", start)
            end = head + 1 + int(output[start:head].split()[2])
            data = output[head + 1 : end]
            start = end + 1
            self._numbers[oid] = self.model.number(document.split(data)[1])
            self._paths[path] = _id(path, data)
            if not self._numbers[oid]:
                self.model.accuse("wrong bytes", f"master holds at {path}: {data[:300]!r}")

    def _between(self, base: str, tip: str) -> set[str]:
        return set(self._git("rev-list", f"{base}..{tip}").decode().split())

    def _ids(self, commit: str) -> set[str]:
        listed = self._git("ls-tree", "-r", "-z", "--name-only", commit).split(b"\0")
        paths = [os.fsdecode(path) for path in listed if path]
        return {self._paths.get(path) or id_of(path) for path in paths if _is_session(path)}

    def _chosen(self, pick: float) -> tuple[str, bytes, str] | None:
        tip, found = githttp.head(self.repo), sorted(self.sessions().items())
        if not tip or not found:
            return None
        path, data = found[int(pick * len(found))]
        return path, data, tip

    # --- writing -----------------------------------------------------------------------------

    def _move(self, files: Mapping[str, bytes | None], parent: str, tip: str) -> bool:
        made = githttp.commit(self.repo, files, parent=parent, branch=_BRANCH)
        return self._swap(made, tip)

    def _swap(self, made: str, tip: str) -> bool:
        """Move master from ``tip``; False when somebody was faster."""
        return self._try("update-ref", "refs/heads/main", made, tip)

    def _try(self, *arguments: str) -> bool:
        command = ["git", f"--git-dir={self.repo}", *arguments]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0

    def _git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = ["git", f"--git-dir={self.repo}", *arguments]
        return subprocess.run(
            command, input=stdin, stdout=subprocess.PIPE, check=True, timeout=120
        ).stdout


def _is_session(path: str) -> bool:
    return path.startswith("sessions/") and path.endswith(".md")


def _id(path: str, data: bytes) -> str:
    return document.inspect(data).id or id_of(path)
