"""The pre-receive hook of ``GitServer``: refuses pushes in GitHub's words.

Git runs it in the bare repository, where ``refusals.json`` holds the rules in force. The objects
of the push are still in quarantine: what is refused leaves nothing behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

Rule = dict[str, Any]
NOTHING = "0" * 40


class Blob(NamedTuple):
    """One file as one commit of the push brings it."""

    commit: str
    path: str
    data: bytes


def main() -> int:
    rules: list[Rule] = json.loads(Path("refusals.json").read_text())
    words: list[str] = []
    for line in sys.stdin:
        _, new, ref = line.split()
        if any(rule["kind"] == "protect" and rule["ref"] == ref for rule in rules):
            words.append(f"error: GH006: Protected branch update failed for {ref}.")
            continue
        blobs = new_blobs(new) if new != NOTHING else []
        for rule in rules:
            words += violations(rule, ref, blobs)
    print(*words, sep="\n", file=sys.stderr)
    return 1 if words else 0


def violations(rule: Rule, ref: str, blobs: list[Blob]) -> list[str]:
    if rule["kind"] == "content":
        return secrets(rule["needle"].encode("latin-1"), rule["name_path"], ref, blobs)
    if rule["kind"] == "larger":
        return large_files(rule["limit"], rule["name_path"], blobs)
    return []


def secrets(needle: bytes, name_path: bool, ref: str, blobs: list[Blob]) -> list[str]:
    found = [blob for blob in blobs if needle in blob.data]
    if not found:
        return []
    words = [
        f"error: GH013: Repository rule violations found for {ref}.",
        "",
        "- GITHUB PUSH PROTECTION",
        "  - Push cannot contain secrets",
    ]
    if name_path:
        words.append("     locations:")
        for blob in found:
            line = blob.data[: blob.data.index(needle)].count(b"\n") + 1
            words += [f"       - commit: {blob.commit}", f"         path: {blob.path}:{line}"]
    return words


def large_files(limit: int, name_path: bool, blobs: list[Blob]) -> list[str]:
    """GitHub's figures, whatever the limit here is: a test need not push 100 MB."""
    found = [blob for blob in blobs if len(blob.data) > limit]
    if not found:
        return []
    size = "is 101.00 MB; this exceeds GitHub's file size limit of 100.00 MB"
    words = [f"error: File {blob.path} {size}" for blob in found] if name_path else []
    return [*words, "error: GH001: Large files detected."]


def new_blobs(commit: str) -> list[Blob]:
    """Every file that a commit of the push adds or changes, even if a later one removes it."""
    log = git("log", "--raw", "--no-abbrev", "--no-renames", "-m", "--format=%H", commit,
              "--not", "--all").decode()  # fmt: skip
    named: list[tuple[str, str, str]] = []
    for line in log.splitlines():
        if not line.startswith(":"):
            commit = line or commit
        else:
            fields, path = line.split("\t", 1)
            named.append((commit, path, fields.split(" ")[3]))
    wanted = [entry for entry in named if entry[2] != NOTHING]
    texts = read([oid for _, _, oid in wanted])
    return [Blob(commit, path, data) for (commit, path, _), data in zip(wanted, texts, strict=True)]


def read(oids: list[str]) -> list[bytes]:
    output = git("cat-file", "--batch", stdin="".join(f"{oid}\n" for oid in oids).encode())
    texts, start = [], 0
    for _ in oids:
        head = output.index(b"\n", start)
        end = head + 1 + int(output[start:head].split()[2])
        texts.append(output[head + 1 : end])
        start = end + 1
    return texts


def git(*arguments: str, stdin: bytes = b"") -> bytes:
    command = ["git", "-c", "core.quotePath=false", *arguments]
    return subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout


if __name__ == "__main__":
    sys.exit(main())
