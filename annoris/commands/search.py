"""annoris search"""

from typing import Annotated

import typer

from annoris.commands import InProject, Json, Quiet, archive, speak


def search(
    text: Annotated[list[str], typer.Argument(metavar="TEXT...", help='Words, or a "phrase".')],
    project: InProject = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="How many.")] = 20,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find sessions by their text. Best first; the start of a word is enough.

    \b
    annoris search webhook retries
    annoris search -p shop оплат
    """
    words = " ".join(text)
    where = archive()
    hits, stale = where.search(words, project=project, limit=limit)
    speak(json, quiet).hits(hits, stale, words, titles=not where.settings.catalog.text)
