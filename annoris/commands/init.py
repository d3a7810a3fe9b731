"""annoris init"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from annoris import commands
from annoris.commands import Json, Quiet, speak

if TYPE_CHECKING:
    from annoris.model import SetUp


def init(
    remote: Annotated[
        str, typer.Option(metavar="URL", help="The repository that becomes master.")
    ] = "",
    branch: Annotated[
        str, typer.Option(metavar="NAME", help="Its branch; default: the remote's own.")
    ] = "",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Which files are sessions, e.g. 'notes/**/*.md'."),
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Take everything along from another master.")
    ] = False,
    scope: Annotated[
        str,
        typer.Option(
            metavar="caches|everything", help="What is encrypted: the caches, or master too."
        ),
    ] = "",
    convert: Annotated[
        bool, typer.Option("--convert", help="Give master the form of that scope, for all.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Set up this machine or its remote. What was saved here before goes there too.

    \b
    annoris init --remote git@github.com:me/sessions.git
    annoris init --remote https://github.com/me/notes --include '**/*.md'
    annoris init --scope everything --convert
    """
    from annoris.bootstrap import set_up
    from annoris.model import counted
    from annoris.settings import default_path

    settings = commands.settings()
    path = settings.source or commands.config_file or default_path(os.environ)
    output = speak(json, quiet)
    with output.working("talking to the remote"):
        done = set_up(
            settings,
            path,
            remote=remote,
            branch=branch,
            include=tuple(include or ()),
            move=move,
            scope=scope,
            convert=convert,
        )
    output.complain(done.problems)
    if commands.settings().encryption.scope != done.scope:
        output.warn(f"ANNORIS_ENCRYPTION_SCOPE must be {done.scope} too: it goes before {path}")
    if json:
        output.emit(init=asdict(done))
        return
    output.note(f"master: {done.master} ({done.branch}), {counted(done.sessions, 'session')}")
    if done.others:
        output.note(
            f"not sessions there: {counted(done.others, 'Markdown file')}; to adopt them: "
            f"annoris init --remote {done.master} --include '**/*.md'"
        )
    for line in _about_form(done):
        output.note(line)
    output.note("next: annoris save FILE")


def _about_form(done: SetUp) -> list[str]:
    """What a person must know of a master that is sealed, or was until now."""
    sealed = done.scope == "everything"
    lines = ["sealed: without the key nobody reads it; keep it: annoris key export"] * sealed
    if done.converted and sealed:
        lines.append(
            "its history still holds everything in plain: to leave that behind, make an empty "
            "repository, annoris init --remote URL --move, and delete this one"
        )
    if done.converted and not sealed:
        lines.append("older revisions in its history stay sealed: keep the key")
    if not done.history:
        lines.append("only newest revisions went there: the history here holds plain text")
    return lines
