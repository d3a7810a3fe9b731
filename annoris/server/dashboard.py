"""The pages: parse, call, show. Reading asks for a token that may read, changing for more."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from annoris import upkeep
from annoris.archive import Archive
from annoris.errors import AnnorisError, NotFound, UsageError
from annoris.model import Hit, Loaded, Session
from annoris.projects import REVENUES
from annoris.server import overview
from annoris.server.body import MARKDOWN
from annoris.server.login import ADMIN, OURS, READ, WRITE, Fields, Html
from annoris.server.pages import page, part, seen
from annoris.server.pool import Pool
from annoris.server.reading import read

router = APIRouter(include_in_schema=False, route_class=Html)

_PAGE = 50  # sessions
_SEARCHED = 200  # before those of another status are left out
_LINES = 5000  # of a diff
_RAW = 1_000_000  # characters of a document as it is written
_SAID = {"sync": "A sync is on its way.", "project": "It is on master."}

Text = Annotated[str, Query(max_length=1000)]


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool


# --- the whole -------------------------------------------------------------------------------


@router.get("/", dependencies=[READ])
def whole(request: Request, said: Text = "") -> Response:
    context = seen(_overview(request))
    return page(request, "overview.html", said=_SAID.get(said, ""), **context)


@router.get("/parts/overview", dependencies=[READ])
def whole_again(request: Request) -> Response:
    return part(request, "_overview.html", **_overview(request))


def _overview(request: Request) -> dict[str, Any]:
    samples = request.app.state.sampler.look()
    with _pool(request).lend() as archive:
        return overview.shown(overview.gather(archive), samples)


@router.get("/runs", dependencies=[READ])
def runs(request: Request, kind: Text = "") -> Response:
    with _pool(request).lend() as archive:
        found, where = upkeep.log(archive, 200, kind)
    kinds = (kind,) if kind else overview.KINDS_OF_RUNS
    drawn = [(one, overview.durations(found, one)) for one in kinds]
    rows = [(run, overview.tone(run), overview.took(run)) for run in found]
    return page(
        request, "runs.html", runs=rows, kind=kind, kinds=overview.KINDS_OF_RUNS, where=where,
        charts=[(one, chart) for one, chart in drawn if chart],
    )  # fmt: skip


@router.get("/findings", dependencies=[READ])
def findings(request: Request) -> Response:
    with _pool(request).lend() as archive:
        facts = overview.gather(archive)
    return page(request, "findings.html", facts=facts, matters=overview.matters(facts))


@router.get("/outbox", dependencies=[READ])
def outbox(request: Request) -> Response:
    with _pool(request).lend() as archive:
        waiting, _ = archive.outbox.read()
        aside, damaged = archive.outbox.aside(), archive.outbox.damaged()
    return page(request, "outbox.html", waiting=waiting, aside=aside, damaged=damaged)


@router.post("/sync", dependencies=[ADMIN, OURS])
def sync(request: Request) -> Response:
    request.app.state.chores.wake("sync")
    return RedirectResponse("/?said=sync", 303)


# --- projects --------------------------------------------------------------------------------


@router.get("/projects", dependencies=[READ])
def projects(request: Request, said: Text = "") -> Response:
    return _projects(request, said=_SAID.get(said, ""))


@router.post("/projects", dependencies=[WRITE])
def set_project(request: Request, fields: Fields) -> Response:
    """Change a project's file on master by what its form says; an empty field takes a key away."""
    known = ("status", "priority", *REVENUES)
    changes = {key: value.strip() for key, value in fields.items() if key in known}
    try:
        with _pool(request).lend() as archive:
            archive.set_project(fields.get("project", ""), changes)
    except UsageError as error:
        why = error.message.removeprefix("--")
        return _projects(request, code=422, why=why, open=fields.get("project", ""))
    return RedirectResponse("/projects?said=project", 303)


def _projects(request: Request, *, code: int = 200, **context: str) -> Response:
    with _pool(request).lend() as archive:
        found = [overview.earning(project) for project in archive.projects()]
    told = {"said": "", "why": "", "open": "", **context}
    return page(request, "projects.html", code=code, earnings=found, **told)


# --- sessions --------------------------------------------------------------------------------


@router.get("/sessions", dependencies=[READ])
def sessions(
    request: Request,
    q: Text = "",
    project: Text = "",
    status: Text = "",
    saved: Text = "",
    id: Text = "",
) -> Response:
    """The list, or what a search finds; only its rows where only they are to change."""
    found = _listed(request, q.strip(), project, status, (saved, id))
    if request.headers.get("hx-target") == "results":
        return page(request, "_sessions.html", **seen(found))
    with _pool(request).lend() as archive:
        names = [one.name for one in archive.catalog.projects()]
    return page(request, "sessions.html", projects=names, **seen(found))


@router.get("/parts/sessions", dependencies=[READ])
def sessions_again(
    request: Request, q: Text = "", project: Text = "", status: Text = ""
) -> Response:
    return part(request, "_sessions.html", **_listed(request, q.strip(), project, status, ("", "")))


def _listed(
    request: Request, q: str, project: str, status: str, before: tuple[str, str]
) -> dict[str, Any]:
    with _pool(request).lend() as archive:
        count = archive.catalog.count()
        try:
            hits, stale = _hits(archive, q, project, status, before)
            why = ""
        except UsageError as error:
            hits, stale, why = [], "", error.message
    query = {"q": q, "project": project, "status": status}
    last = hits[_PAGE - 1].session if not q and len(hits) > _PAGE else None
    more = urlencode({**query, "saved": last.saved, "id": last.id}) if last else ""
    return {
        **query, "hits": hits[:_PAGE], "stale": stale, "why": why, "count": count, "more": more,
        "again": urlencode(query), "first": not before[1],
    }  # fmt: skip


def _hits(
    archive: Archive, q: str, project: str, status: str, before: tuple[str, str]
) -> tuple[list[Hit], str]:
    """What fits, one more than a page of it. Raises UsageError for words that say nothing."""
    if q:
        hits, stale = archive.search(q, project=project, limit=_SEARCHED)
        wanted = status.casefold()
        return [hit for hit in hits if wanted in ("", hit.session.status.casefold())], stale
    rows, stale = archive.sessions(
        project=project,
        status=status,
        limit=_PAGE + 1,
        everything=not project,
        before=before if before[1] else None,
    )
    return [Hit(row, "", 0.0) for row in rows], stale


@router.get("/sessions/{selector}", dependencies=[READ])
def session(request: Request, selector: str, rev: Text = "") -> Response:
    """A session as it reads, or an older revision of it."""
    loaded = _loaded(request, selector, rev)
    return page(request, "session.html", rev=rev, **_about(loaded), reading=read(loaded.data))


@router.get("/sessions/{selector}/raw", dependencies=[READ])
def raw(request: Request, selector: str, rev: Text = "") -> Response:
    loaded = _loaded(request, selector, rev)
    text = loaded.data.decode(errors="replace")
    return page(
        request, "raw.html", rev=rev, **_about(loaded), text=text[:_RAW], cut=len(text) > _RAW
    )


@router.get("/sessions/{selector}/file", dependencies=[READ])
def file(request: Request, selector: str, rev: Text = "") -> Response:
    """The very bytes, to keep."""
    loaded = _loaded(request, selector, rev)
    kept = f'attachment; filename="{loaded.session.short}.md"'
    return Response(loaded.data, media_type=MARKDOWN, headers={"Content-Disposition": kept})


@router.get("/sessions/{selector}/history", dependencies=[READ])
def history(request: Request, selector: str) -> Response:
    with _pool(request).lend() as archive:
        row = _found(archive, selector)
        revisions = [] if row.pending and not row.oid else archive.history(row.id)[1]
    return page(request, "history.html", session=row, revisions=revisions, rev="")


@router.get("/sessions/{selector}/diff", dependencies=[READ])
def diff(request: Request, selector: str, old: Text = "", new: Text = "") -> Response:
    with _pool(request).lend() as archive:
        row = _found(archive, selector)
        lines = archive.diff(row.id, old=old, new=new) if row.oid or not row.pending else []
    shown = [(_kind(number, line), line.rstrip("\n")) for number, line in enumerate(lines)]
    return page(
        request, "diff.html", session=row, rev="", lines=shown[:_LINES], cut=len(shown) > _LINES
    )


@router.get("/parts/sessions/{selector}", dependencies=[READ])
def newer(request: Request, selector: str, oid: Text = "") -> Response:
    """A line that says that there is a newer revision by now; 204 while there is none."""
    with _pool(request).lend() as archive:
        archive.look()
        try:
            row = _found(archive, selector)
        except NotFound:
            return page(request, "_newer.html", session=None)
    if row.oid == oid or row.pending:
        return Response(status_code=204)
    return page(request, "_newer.html", session=row)


def _loaded(request: Request, selector: str, rev: str) -> Loaded:
    with _pool(request).lend() as archive:
        archive.look()
        loaded = archive.load(_found(archive, selector).id, rev=rev)
    request.app.state.metrics.loaded(loaded.tier)
    return loaded


def _found(archive: Archive, selector: str) -> Session:
    """The session of an id or the start of one; nothing else is a selector here."""
    try:
        if re.fullmatch(r"[0-9a-fA-F-]{4,36}", selector):
            return archive.find(selector.lower())
    except AnnorisError as error:
        if error.code != "not-found":
            raise
    raise NotFound(f"no session {selector[:40]!r}", hint="look for it among the sessions")


def _about(loaded: Loaded) -> dict[str, Any]:
    return {"session": loaded.session, "loaded": loaded}


def _kind(number: int, line: str) -> str:
    """What a line of a unified diff is."""
    if number < 2:
        return "head"
    return {"+": "added", "-": "removed", "@": "hunk"}.get(line[:1], "same")
