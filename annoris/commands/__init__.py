"""One thin file per command: parse, call, show. ``ls`` of this folder is the manual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from annoris.archive import Archive
    from annoris.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Answer one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing when all is well.")]
InProject = Annotated[
    str,
    typer.Option("--project", "-p", metavar="NAME", help="The project; default: this folder's."),
]
Selector = Annotated[
    str,
    typer.Argument(
        metavar="[SEL]",
        help="A name, project/name, the start or the last 8 of an id, or a path on master. "
        "Nothing: the newest of this project.",
    ),
]
WHAT = Annotated[str, typer.Argument(metavar="SEL", help="A name, project/name, id or path.")]

config_file = ""  # what --config said, before any command runs


def settings() -> Settings:
    from annoris.settings import load  # noqa: PLC0415

    return load(config_file or None)


def archive() -> Archive:
    from annoris.bootstrap import open_archive  # noqa: PLC0415

    return open_archive(settings())
