"""Pictures of the terminal, from real runs in a folder that is thrown away: ``make pictures``."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

TOP = Path(__file__).parents[2]
WIDTH = 84
SCENE = (
    "annoris save session.md",
    "annoris search idempot",
    "annoris list --all",
    "annoris load --section Decisions",
    "annoris",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder) / "shop"
        _furnish(desk)
        console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
        for command in SCENE:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            console.print(Text.from_ansi(_seen(command, desk).rstrip()))
            console.print()
    picture = console.export_svg(title="annoris", theme=MONOKAI, unique_id="annoris")
    # The fonts of rich's template lie on a server; the reader's own will do.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    (TOP / "docs/terminal.svg").write_text(re.sub(r"[ \t]+$", "", picture, flags=re.MULTILINE))


def _furnish(desk: Path) -> None:
    """A work tree of a repository named shop, and sessions of other projects before it."""
    desk.mkdir()
    for words in (["init", "-q"], ["remote", "add", "origin", "git@github.com:me/shop.git"]):
        subprocess.run(["git", "-C", desk, *words], check=True)
    examples = TOP / "examples/sessions"
    shutil.copy(examples / "webhook-retries.md", desk / "session.md")
    others = [str(examples / name) for name in ("search-index.md", "oplata-po-podpiske.md")]
    subprocess.run(["annoris", "save", "-q", *others], cwd=desk, env=_environment(desk), check=True)


def _environment(desk: Path) -> dict[str, str]:
    return {
        "HOME": str(desk.parent), "COLUMNS": str(WIDTH), "TERM": "xterm-256color",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip


def _seen(command: str, desk: Path) -> str:
    """What a person sees of a command."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        ["sh", "-c", command], cwd=desk, env=_environment(desk),
        stdin=slave, stdout=slave, stderr=slave,
    ):  # fmt: skip
        os.close(slave)
        written = b""
        with contextlib.suppress(OSError):  # Linux says so when the last writer has gone
            while piece := os.read(master, 65536):
                written += piece
    os.close(master)
    return written.decode().replace("\r", "")


if __name__ == "__main__":
    main()
