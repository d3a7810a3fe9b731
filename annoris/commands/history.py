"""annoris history"""

from __future__ import annotations

from annoris.commands import InProject, Json, Quiet, Selector, archive, speak


def history(
    selector: Selector = "", project: InProject = "", json: Json = False, quiet: Quiet = False
) -> None:
    """Show the revisions of a session. Newest first; a deleted one by its path.

    \b
    annoris history auth-refactor
    annoris load auth-refactor --rev 1f3e5c7a
    """
    session, revisions = archive().history(selector, project)
    speak(json, quiet).history(session, revisions)
