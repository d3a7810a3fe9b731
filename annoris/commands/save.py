"""annoris save"""

import os
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import typer

from annoris.commands import InProject, Json, Quiet, archive, exit_code, speak
from annoris.errors import DocumentRefused, UsageError

if TYPE_CHECKING:
    from annoris.intake import Source
    from annoris.settings import SaveSettings


def save(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Markdown files; - reads stdin.")
    ] = None,
    project: InProject = "",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="A handle; saving under it again adds a revision.")
    ] = "",
    update: Annotated[
        str, typer.Option(metavar="SEL", help="Save as a new revision of this session.")
    ] = "",
    priority: Annotated[str, typer.Option(metavar="TEXT", help="Kept in the front matter.")] = "",
    status: Annotated[str, typer.Option(metavar="TEXT", help="Kept in the front matter.")] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what is only warned of.")
    ] = False,
    no_validate: Annotated[
        bool, typer.Option("--no-validate", help="Skip the checks of Markdown structure.")
    ] = False,
    allow_secret: Annotated[
        list[str] | None,
        typer.Option(metavar="FINGERPRINT", help="Save although this credential was found."),
    ] = None,
    fix_encoding: Annotated[
        bool, typer.Option("--fix-encoding", help="Repair text in a wrong encoding first.")
    ] = False,
    no_workspace: Annotated[
        bool, typer.Option("--no-workspace", help="Note nothing of the work tree around.")
    ] = False,
    transcript: Annotated[
        str, typer.Option(metavar="FILE", help="Keep the client's own transcript beside it.")
    ] = "",
    redact: Annotated[
        bool, typer.Option("--redact", help="Mask credentials in the transcript.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Save documents on master. Exit 0: they are there; 75: safe here, queued.

    \b
    annoris save session.md
    annoris save --name auth-refactor notes.md
    pbpaste | annoris save -
    """
    from annoris.intake import SaveOptions

    where = archive()
    limit = where.settings.save.max_bytes
    sources = [_read(file, limit) for file in files or (["-"] if not sys.stdin.isatty() else [])]
    if not sources:
        raise UsageError("nothing to save", hint="annoris save FILE, or pipe a document into it")
    if transcript:
        sources = [_with_transcript(sources, transcript, where.settings.save, redact)]
    output = speak(json, quiet)
    options = SaveOptions(
        project=project,
        name=name,
        update=update,
        priority=priority,
        status=status,
        strict=strict,
        validate=not no_validate,
        fix_encoding=fix_encoding,
        allow_secrets=tuple(allow_secret or ()),
        workspace="" if no_workspace else _workspace(),
    )
    with output.working("saving"):
        receipts = where.save(sources, options)
    output.receipts(receipts)
    output.complain(where.caches.complaints)
    raise typer.Exit(exit_code(receipts))


def _with_transcript(
    sources: "list[Source]", name: str, limits: "SaveSettings", redact: bool
) -> "Source":
    from dataclasses import replace

    from annoris.assistant.native import MAX_BYTES, packed

    if len(sources) > 1:
        raise UsageError("--transcript goes with one document", hint="save them one by one")
    data = _read(name, MAX_BYTES).data
    return replace(sources[0], transcript=packed(data, name, limits, redact=redact))


def _workspace() -> str:
    from annoris.workspace import look

    found = look(os.getcwd())
    return found.text() if found else ""


def _real(name: str) -> str:
    """The absolute path of a file; the folder of many is looked at once."""
    folder, file = os.path.split(name)
    return (
        os.path.realpath(name)
        if os.path.islink(name)
        else os.path.join(_folder(os.getcwd(), folder), file)
    )


@lru_cache(1)
def _folder(here: str, name: str) -> str:
    return os.path.realpath(os.path.join(here, name))


def _read(name: str, limit: int) -> "Source":
    """A file's bytes; one byte more than allowed at the most."""
    from annoris.intake import Source

    try:
        if name == "-":
            return Source("stdin", sys.stdin.buffer.read(limit + 1))
        with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            if about.st_size > limit:
                raise DocumentRefused(
                    f"{name}: {about.st_size:,} bytes are more than the {limit:,} allowed",
                    hint="save a summary, or raise save.max_bytes in the configuration",
                )
            os.set_blocking(file.fileno(), True)
            return Source(name, file.read(limit + 1), _real(name))
    except IsADirectoryError:
        raise UsageError(
            f"{name}: is a folder", hint=f"annoris save {name.rstrip('/')}/*.md"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{name}: {error.strerror or error}", hint="check the file name"
        ) from error
    except ValueError as error:  # a NUL in the name
        raise UsageError(f"{name!r}: is not a file name") from error
