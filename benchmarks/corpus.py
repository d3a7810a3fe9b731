"""What is measured on: documents that are the same for the same seed, and masters made of them."""

from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

WORDS = (
    "retry", "queue", "index", "webhook", "ledger", "migration", "decision", "branch", "deploy",
    "session", "таблица", "решение", "очередь", "возврат", "📌", "refactor", "cache", "tier",
)  # fmt: skip


def documents(count: int, seed: int = 7) -> Iterator[str]:
    """Markdown notes of 4 KB in the median, with a long tail."""
    chance = random.Random(seed)  # noqa: S311 - not a secret
    for number in range(count):
        size = int(chance.lognormvariate(8.3, 0.6))
        lines = [f"# Note {number}", "", f"**Status:** {chance.choice(WORDS)}", ""]
        while sum(map(len, lines)) < size:
            lines.append(" ".join(chance.choices(WORDS, k=12)))
            if chance.random() < 0.1:
                lines += ["", f"## {chance.choice(WORDS)}", "", "```python", "x = 1", "```", ""]
            if chance.random() < 0.1:
                lines += ["", *(f"- {chance.choice(WORDS)}" for _ in range(4)), ""]
        yield "\n".join(lines) + "\n"


def files(count: int) -> Iterator[tuple[str, bytes]]:
    """Path on master and bytes of each session, spread over the months of ten years."""
    chance = random.Random(count)  # noqa: S311 - not a secret
    for number, text in enumerate(documents(count)):
        id = uuid.UUID(int=chance.getrandbits(128), version=4)
        year, month, day = 2016 + number % 10, 1 + number // 10 % 12, 1 + number % 28
        front = (
            f"---\nid: {id}\nproject: default\ntitle: Note {number}\n"
            f"created: {year}-{month:02}-{day:02}T10:00:00Z\n---\n"
        )
        name = f"{year}-{month:02}-{day:02}-note-{number}-{str(id)[-8:]}.md"
        yield f"sessions/default/{year}/{month:02}/{name}", (front + text).encode()


def fill(repository: Path, count: int) -> None:
    """Add so many sessions to the branch ``main`` of a bare repository, as one commit."""
    command = ["git", "-C", str(repository), "fast-import", "--quiet", "--force"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as git:
        assert git.stdin  # noqa: S101 - as asked for
        git.stdin.write(commit(files(count), parent=True))
    subprocess.run(["git", "-C", str(repository), "repack", "-adqf", "--window=0"], check=True)


def commit(changed: Iterator[tuple[str, bytes]], *, parent: bool) -> bytes:
    """A commit as ``git fast-import`` reads it."""
    now = int(time.time())  # or a hot cache would not keep their contents
    parts = [b"commit refs/heads/main\ncommitter Bench <bench@example.org> %d +0000\n" % now]
    parts.append(b"data 5\nbench" + (b"\nfrom refs/heads/main^0\n" if parent else b"\n"))
    parts += (
        b"M 100644 inline %b\ndata %d\n%b\n" % (path.encode(), len(data), data)
        for path, data in changed
    )
    return b"".join(parts)


_YEARS = 10 * 365.25 * 86400
_VOCABULARY = [f"{head}{tail}" for head in WORDS[:12] for tail in range(1000)]
FREQUENT, RARE = f'"{_VOCABULARY[99]}"', _VOCABULARY[-1]
_ODDS = list(itertools.accumulate(1 / rank for rank in range(1, len(_VOCABULARY) + 1)))


def saves(count: int) -> Iterator[tuple[int, str, bytes]]:
    """What ten years of saves brought, oldest first: seconds since the epoch, path and bytes.

    Documents of 1 KB as ``annoris save`` writes them, in ten projects, the last one saved now.
    Words are as frequent as in a language: the most frequent one is in nearly every text.
    """
    chance = random.Random(count)  # noqa: S311 - not a secret
    end = time.time()
    for number in range(count):
        at = int(end - _YEARS * (1 - (number + 1) / count))
        when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        id = uuid.UUID(int=at * 1000 << 80 | 7 << 76 | 2 << 62 | chance.getrandbits(62))
        project = f"p{number // 10 % 10}"
        words = chance.choices(_VOCABULARY, cum_weights=_ODDS, k=90)
        lines = (" ".join(words[start : start + 10]) for start in range(0, 90, 10))
        body = (
            f"# Note {number}\n\n**Status:** {chance.choice(WORDS)}\n\n" + "\n".join(lines) + "\n"
        )
        head = f"---\nid: {id}\nproject: {project}\ncreated: {when}\nsaved: {when}\n"
        etag = hashlib.sha256(f"{head}---\n{body}".encode()).hexdigest()[:16]
        name = f"{when[:10]}-note-{number}-{str(id)[-8:]}.md"
        path = f"sessions/{project}/{when[:4]}/{when[5:7]}/{name}"
        yield at, path, f"{head}etag: {etag}\n---\n{body}".encode()


def keep(repository: Path, count: int, each: int = 1) -> None:
    """Add so many sessions to the branch ``main`` of a bare repository, ``each`` by a commit."""
    command = ["git", "-C", str(repository), "fast-import", "--quiet", "--force"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as git:
        assert git.stdin  # noqa: S101 - as asked for
        git.stdin.write(b"reset refs/heads/main\nfrom refs/heads/main^0\n\n")
        for number, (at, path, data) in enumerate(saves(count)):
            if number % each == 0:
                git.stdin.write(
                    b"commit refs/heads/main\ncommitter Bench <bench@example.org> %d +0000\n"
                    b"data 9\nSave Note\n" % at
                )
            git.stdin.write(b"M 100644 inline %b\ndata %d\n%b\n" % (path.encode(), len(data), data))
    if git.returncode:
        raise SystemExit("git fast-import failed")
