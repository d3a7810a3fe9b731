"""annoris load"""

import os
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from annoris.commands import InProject, Json, Quiet, Selector, archive, speak
from annoris.errors import StorageError, UsageError

if TYPE_CHECKING:
    from annoris.console import Output


def load(
    selector: Selector = "",
    project: InProject = "",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Write the exact bytes there.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Let -o or --as replace another file.")
    ] = False,
    body: Annotated[bool, typer.Option("--body", help="Without the front matter.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Insist on asking master first.")] = False,
    source: Annotated[
        Literal["hot", "emergency", "master", "clone"] | None,
        typer.Option("--from", help="Answer from this tier or not at all; master is asked anew."),
    ] = None,
    rev: Annotated[str, typer.Option(metavar="REV", help="An older revision; see history.")] = "",
    at: Annotated[
        str, typer.Option(metavar="DATE", help="As of 2026-11-24, 2026-11-24T15:00, 3d, 12h.")
    ] = "",
    section: Annotated[
        str, typer.Option(metavar="TITLE", help="Only what is under a heading.")
    ] = "",
    max_chars: Annotated[
        int, typer.Option(metavar="N", min=0, help="At most so many characters.")
    ] = 0,
    no_workspace: Annotated[
        bool, typer.Option("--no-workspace", help="Do not compare with the work tree around.")
    ] = False,
    native: Annotated[
        Literal["claude-code"] | None,
        typer.Option(
            "--as", help="Give the transcript beside it back to this client, for this folder."
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Exact bytes on a terminal too.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a session back. Rendered on a terminal, byte for byte in a pipe.

    \b
    annoris load
    annoris load auth-refactor --section "Next steps"
    annoris load 3f2a9c1e -o session.md
    annoris load auth-refactor --as claude-code
    """
    from annoris.archive import drift_here, excerpt

    if rev and at:
        raise UsageError("--rev and --at exclude each other", hint="use one of them")
    if source and (rev or at or (fresh and source != "master")):
        raise UsageError(
            f"--from {source} excludes --fresh, --rev and --at", hint="leave one of them out"
        )
    show = speak(json, quiet)
    if native:
        _give_back(selector, project, force, show)
        return
    with show.working("asking master"):
        where = archive()
        loaded = where.load(selector, project, fresh=fresh, rev=rev, at=at, source=source)
    show.complain(where.caches.complaints)
    data = excerpt(loaded.data, body=body, section=section, max_chars=max_chars)
    drift = None if no_workspace else drift_here(loaded)
    if not output:
        show.loaded(loaded, data, drift, render=not raw)
        return
    _write(output, data, force)
    if json:
        show.loaded(loaded, data, drift, render=False)
    else:
        show.origin(loaded, drift)
        show.note(f"written to {output}")


def _give_back(selector: str, project: str, force: bool, show: "Output") -> None:
    """Write a transcript where Claude Code goes on from it, and say how."""
    from annoris.assistant.native import for_claude_code, unpacked

    session, data = archive().transcript(selector, project)
    id, file, moved = for_claude_code(unpacked(data), os.getcwd(), os.environ)
    os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
    _write(file, moved, force)
    show.resumable(session, file, f"claude --resume {id}")


def _write(path: str, data: bytes, force: bool) -> None:
    """Write a file whole or not at all; another content stays unless ``force``."""
    temporary = os.path.join(os.path.dirname(path), f".annoris-{os.urandom(6).hex()}")
    try:
        if os.path.exists(path) and not force:
            with open(path, "rb") as file:
                if file.read() == data:
                    return
            raise UsageError(f"{path}: exists and holds something else", hint="add --force")
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise StorageError(f"{path}: {error.strerror}", hint="choose another place") from error
