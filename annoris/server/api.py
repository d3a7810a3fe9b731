"""The REST API: parse, call, answer, over one archive.

Reading routes are plain functions, each in a thread with an archive of its own. Writing ones
keep the document in the outbox by a thread and then wait for the courier without one.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from annoris import __version__, document, upkeep, verify
from annoris.archive import excerpt
from annoris.assistant import native
from annoris.model import Loaded, Project, Run, Session
from annoris.server import body, schemas, writing
from annoris.server.body import DOCUMENT_BODY, JSON, LINES, MARKDOWN, Options, Word, tag
from annoris.server.courier import Courier, fate
from annoris.server.guard import ADMIN, READ, WRITE
from annoris.server.pool import Pool
from annoris.server.problems import Problem, documented, plain

router = APIRouter(prefix="/api/v1")

_FINDINGS = 500  # of a verify that are named; more of them are counted

Id = Annotated[uuid.UUID, Path(description="A session's whole id.", examples=[schemas.ID])]
Limit = Annotated[int, Field(ge=1, le=500, description="How many at most.")]
Rev = Annotated[str, Field(pattern="^([0-9a-f]{4,64})?$", description="Blob or commit, 4+ digits.")]
IfMatch = Annotated[str | None, Header(description='The ETag that the edit was made from, or "*".')]
IfNoneMatch = Annotated[str | None, Header(description="ETags that the caller has.")]
Key = Annotated[str, Path(pattern=r"^\d{12}-[0-9a-f]{16}\.\d{1,4}$")]
ProjectName = Annotated[Word, Path(min_length=1, examples=["shop"])]
Prefer = Annotated[str | None, Header(description="respond-async: answer 202 at once.")]
IdempotencyKey = Annotated[
    str | None,
    Header(max_length=255, description="A retry with the same key makes no second session."),
]


def _header(name: str, description: str, kind: str = "string") -> dict[str, Any]:
    return {name: {"description": description, "schema": {"type": kind}}}


_ETAG = _header("ETag", "Of the revision, in this form.")
_TIER = {
    **_header("Annoris-Tier", "Where it was answered from."),
    **_header("Age", "Seconds since master was asked.", "integer"),
}
_LATER: dict[int | str, dict[str, Any]] = {
    202: {
        "model": schemas.Receipt,
        "description": "Kept here, durable, and on its way to master.",
        "headers": _header("Location", "Where to ask for the receipt."),
    }
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Listing(_Strict):
    project: Word = Field("", description="Default: of all projects.")
    status: Word = ""
    since: Word = Field("", description="A date, a time, or a distance back like 3d or 12h.")
    limit: Limit = 20
    cursor: Word = Field("", description="``next`` of the page before.")


class Searching(_Strict):
    q: str = Field(min_length=1, max_length=1000, description='Words, or a "quoted phrase".')
    project: Word = ""
    limit: Limit = 20


class Loading(_Strict):
    rev: Rev = ""
    at: Word = Field("", description="The revision that was the newest at that moment.")
    fresh: bool = Field(False, description="Insist on asking master.")
    part: Literal["document", "body"] = Field("document", description="With front matter, or not.")


class Attaching(_Strict):
    redact: bool = Field(False, description="Mask credentials; else one refuses the transcript.")


class LoadingNewest(_Strict):
    project: Word = ""
    name: Word = Field("", description="The session of that name; default: the newest one.")
    fresh: bool = False
    part: Literal["document", "body"] = "document"


class Comparing(_Strict):
    old: Rev = ""
    new: Rev = ""


class Verifying(_Strict):
    quick: bool = Field(True, description="Compare ids only; open and read nothing.")
    sample: float = Field(100.0, gt=0, le=100, description="Percent of the documents to open.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Open the same ones as a run before.")
    repair: bool = Field(False, description="Bring what differs in step; needs an admin token.")


class Logging(_Strict):
    kind: Word = Field("", description="Only sync, verify, dump, drill, restore, …")
    limit: Limit = 20
    cursor: Word = Field("", description="``next`` of the page before.")


class Nothing(_Strict):
    """No query at all."""


def _nothing(query: Annotated[Nothing, Query()]) -> None:
    pass


NO_QUERY = Depends(_nothing)


_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "model": schemas.LoadedSession,
        "description": "The session, in JSON or as the very bytes that master holds.",
        "content": {MARKDOWN: {"schema": {"type": "string"}}},
        "headers": {**_ETAG, **_TIER},
    },
    304: {"description": "Not Modified", "headers": _ETAG},
}


# --- reading ---------------------------------------------------------------------------------


@router.get(
    "/sessions",
    dependencies=[READ],
    tags=["sessions"],
    responses={200: {"model": schemas.SessionList}, **documented(422)},
)
def sessions(request: Request, query: Annotated[Listing, Query()]) -> Response:
    """List sessions, newest first."""
    before = _place_of(query.cursor) if query.cursor else None
    with _pool(request).lend() as archive:
        rows, stale = archive.sessions(
            project=query.project,
            status=query.status,
            since=query.since,
            limit=query.limit + 1,
            everything=not query.project,
            before=before,
        )
    page = rows[: query.limit]
    more = _cursor(page[-1].saved, page[-1].id) if len(rows) > len(page) else None
    found = {"sessions": [_session(row) for row in page], "next": more, "stale": stale}
    return JSONResponse(plain(found), headers=_next(request, more))


@router.get(
    "/sessions/newest",
    dependencies=[READ],
    tags=["sessions"],
    responses={**_CONTENT, **documented(404, 406, 409, 422)},
)
def newest(
    request: Request,
    query: Annotated[LoadingNewest, Query()],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Load the newest session, or one by its name."""
    form = body.accepted(request.headers.get("accept"), JSON, MARKDOWN)
    with _pool(request).lend() as archive:
        loaded = archive.load(query.name, query.project, fresh=query.fresh)
    return _loaded(request, loaded, form, query.part, if_none_match)


@router.get(
    "/sessions/{id:uuid}",
    dependencies=[READ],
    tags=["sessions"],
    responses={**_CONTENT, **documented(404, 406, 409, 422)},
)
def session(
    request: Request,
    id: Id,
    query: Annotated[Loading, Query()],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Load a session."""
    form = body.accepted(request.headers.get("accept"), JSON, MARKDOWN)
    with _pool(request).lend() as archive:
        loaded = archive.load(str(id), fresh=query.fresh, rev=query.rev, at=query.at)
    return _loaded(request, loaded, form, query.part, if_none_match)


@router.get(
    "/sessions/{id:uuid}/history",
    dependencies=[READ, NO_QUERY],
    tags=["sessions"],
    responses={200: {"model": schemas.History}, **documented(404, 422)},
)
def history(request: Request, id: Id) -> Response:
    """Revisions of a session, newest first."""
    with _pool(request).lend() as archive:
        found, revisions = archive.history(str(id))
    items = [asdict(item) for item in revisions]
    return JSONResponse(plain({"id": found.id, "revisions": items}))


@router.get(
    "/sessions/{id:uuid}/diff",
    dependencies=[READ],
    tags=["sessions"],
    responses={200: {"model": schemas.Diff}, **documented(404, 409, 422)},
)
def diff(request: Request, id: Id, query: Annotated[Comparing, Query()]) -> Response:
    """What changed; default: in the last revision."""
    with _pool(request).lend() as archive:
        lines = archive.diff(str(id), old=query.old, new=query.new)
    return JSONResponse(plain({"id": str(id), "diff": "".join(lines)}))


@router.get(
    "/sessions/{id:uuid}/transcript",
    dependencies=[READ, NO_QUERY],
    tags=["sessions"],
    response_class=Response,
    responses={
        200: {
            "description": "What its client kept of the conversation: a JSON object in each line.",
            "content": {LINES: {"schema": {"type": "string"}}},
        },
        **documented(404, 422),
    },
)
def transcript(request: Request, id: Id) -> Response:
    """The transcript beside a session."""
    with _pool(request).lend() as archive:
        data = archive.transcript(str(id))[1]
    headers = {"Vary": "Accept-Encoding", "Cache-Control": "private, no-cache"}
    if "gzip" in request.headers.get("accept-encoding", ""):  # as it is kept
        return Response(data, headers={**headers, "Content-Encoding": "gzip"}, media_type=LINES)
    return Response(native.unpacked(data), headers=headers, media_type=LINES)


@router.get(
    "/search",
    dependencies=[READ],
    tags=["sessions"],
    responses={200: {"model": schemas.Found}, **documented(422)},
)
def search(request: Request, query: Annotated[Searching, Query()]) -> Response:
    """Sessions that hold every word, best first."""
    with _pool(request).lend() as archive:
        hits, stale = archive.search(query.q, project=query.project, limit=query.limit)
    found = [{**_session(hit.session), "score": hit.score, "snippet": hit.snippet} for hit in hits]
    return JSONResponse(plain({"sessions": found, "stale": stale}))


@router.get(
    "/projects",
    dependencies=[READ, NO_QUERY],
    tags=["projects"],
    responses={200: {"model": schemas.Projects}, **documented(422)},
)
def projects(request: Request) -> Response:
    """Projects and how much is in them."""
    with _pool(request).lend() as archive:
        found = archive.projects()
    return JSONResponse(plain({"projects": [asdict(project) for project in found]}))


@router.get(
    "/projects/{name}",
    dependencies=[READ, NO_QUERY],
    tags=["projects"],
    responses={200: {"model": schemas.Project}, **documented(404, 422)},
)
def project(request: Request, name: ProjectName) -> Response:
    """A project, by its name or a former one."""
    with _pool(request).lend() as archive:
        return JSONResponse(plain(asdict(archive.project(name))))


@router.patch(
    "/projects/{name}",
    dependencies=[WRITE, NO_QUERY],
    tags=["projects"],
    openapi_extra=body.CHANGES_BODY,
    responses={200: {"model": schemas.Project}, **documented(400, 404, 409, 413, 415, 422, 507)},
)
async def set_project(request: Request, name: ProjectName) -> Response:
    """Change a project, or make it; on master when this is answered."""
    changes = await body.changes(request)

    def change() -> Project:
        with _pool(request).lend() as archive:
            archive.set_project(name, changes)
            return archive.project(changes.get("name") or name)

    return JSONResponse(plain(asdict(await run_in_threadpool(change))))


@router.get(
    "/receipts/{key}",
    dependencies=[READ, NO_QUERY],
    tags=["sessions"],
    responses={200: {"model": schemas.Receipt}, **documented(404, 422)},
)
def receipt(
    request: Request,
    key: Key,
) -> Response:
    """What became of a document that was answered 202."""
    return JSONResponse(writing.written(fate(_pool(request), _courier(request), key), key))


# --- writing ---------------------------------------------------------------------------------


@router.post(
    "/sessions",
    dependencies=[WRITE],
    tags=["sessions"],
    openapi_extra=DOCUMENT_BODY,
    status_code=201,
    responses={
        201: {
            "model": schemas.Receipt,
            "description": "A new session, on master.",
            "headers": {**_ETAG, **_header("Location", "Where the session is.")},
        },
        200: {"model": schemas.Receipt, "description": "On master: a revision, or there already."},
        **_LATER,
        **documented(400, 404, 409, 413, 415, 422, 507),
    },
)
async def create(
    request: Request,
    query: Annotated[Options, Query()],
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Save a document as a session, new or its own."""
    data, options = await body.document(request, query)
    pool, key = _pool(request), idempotency_key
    taking = (
        run_in_threadpool(writing.take_once, pool, data, options, request.state.caller, key)
        if key
        else run_in_threadpool(writing.take, pool, data, options.options())
    )
    return await writing.answer(request, taking, prefer)


@router.put(
    "/sessions/{id:uuid}",
    dependencies=[WRITE],
    tags=["sessions"],
    openapi_extra=DOCUMENT_BODY,
    responses={
        200: {"model": schemas.Receipt, "description": "On master.", "headers": _ETAG},
        **_LATER,
        **documented(400, 404, 409, 412, 413, 415, 422, 428, 507),
    },
)
async def update(
    request: Request,
    id: Id,
    query: Annotated[Options, Query()],
    if_match: IfMatch = None,
    prefer: Prefer = None,
) -> Response:
    """Save a new revision of a session."""
    data, options = await body.document(request, query)
    taking = run_in_threadpool(writing.revise, _pool(request), str(id), data, options, if_match)
    return await writing.answer(request, taking, prefer, if_match)


@router.put(
    "/sessions/{id:uuid}/transcript",
    dependencies=[WRITE],
    tags=["sessions"],
    openapi_extra=body.LINES_BODY,
    responses={
        200: {"model": schemas.Receipt, "description": "On master, in the place of one before."},
        **_LATER,
        **documented(400, 404, 409, 413, 415, 422, 507),
    },
)
async def keep_transcript(
    request: Request, id: Id, query: Annotated[Attaching, Query()], prefer: Prefer = None
) -> Response:
    """Keep a transcript beside a session."""
    data = await body.transcript(request)
    pool = _pool(request)
    taking = run_in_threadpool(writing.attach, pool, str(id), data, redact=query.redact)
    return await writing.answer(request, taking, prefer)


@router.delete(
    "/sessions/{id:uuid}",
    dependencies=[WRITE, NO_QUERY],
    tags=["sessions"],
    responses={
        200: {"model": schemas.Receipt, "description": "It is off master."},
        **_LATER,
        **documented(404, 409, 412, 422, 507),
    },
)
async def delete(
    request: Request,
    id: Id,
    if_match: IfMatch = None,
    prefer: Prefer = None,
) -> Response:
    """Remove a session; its history stays."""
    taking = run_in_threadpool(writing.give_up, _pool(request), str(id), if_match)
    return await writing.answer(request, taking, prefer, if_match)


# --- upkeep ----------------------------------------------------------------------------------


@router.post(
    "/sync",
    dependencies=[ADMIN, NO_QUERY],
    tags=["upkeep"],
    responses={200: {"model": schemas.Report}, **documented(409, 422, 507)},
)
def sync(request: Request) -> Response:
    """Deliver what waits and follow master."""
    with _pool(request).lend() as archive, archive.caches.alone("sync"):
        report = asdict(upkeep.sync(archive))
    return JSONResponse(plain({key: report[key] for key in schemas.Report.model_fields}))


@router.post(
    "/verify",
    dependencies=[READ],
    tags=["upkeep"],
    responses={200: {"model": schemas.Audit}, **documented(409, 422, 507)},
)
def check(request: Request, query: Annotated[Verifying, Query()]) -> Response:
    """Check that every tier holds what master holds. What is found is answered with 200."""
    if query.repair:
        request.state.caller.must("admin")
    scope = verify.Scope(query.quick, query.sample, query.seed or secrets.randbelow(10**6) + 1)
    with _pool(request).lend() as archive, archive.caches.alone("verify", wait=False):
        audit = verify.verify(archive, scope, repair=query.repair, source="api")
    found = {
        **asdict(audit),
        "sound": all(item.healed for item in audit.findings),
        "count": len(audit.findings),
        "findings": [asdict(item) for item in audit.findings[:_FINDINGS]],
    }
    return JSONResponse(plain(found))


@router.get(
    "/sync-log",
    dependencies=[READ],
    tags=["upkeep"],
    responses={200: {"model": schemas.SyncLog}, **documented(422)},
)
def sync_log(request: Request, query: Annotated[Logging, Query()]) -> Response:
    """Past runs, newest first."""
    before = _run_of(query.cursor) if query.cursor else None
    with _pool(request).lend() as archive:
        runs, log = upkeep.log(archive, query.limit + 1, query.kind, before)
    page = runs[: query.limit]
    last = page[-1] if len(runs) > len(page) else None
    more = _cursor(last.started, str(last.id), last.key) if last else None
    found = {"runs": [asdict(run) for run in page], "log": log, "next": more}
    return JSONResponse(plain(found), headers=_next(request, more))


@router.get(
    "/status",
    dependencies=[READ, NO_QUERY],
    tags=["upkeep"],
    responses={200: {"model": schemas.Standing}, **documented(422)},
)
def status(request: Request) -> Response:
    """Where one stands."""
    with _pool(request).lend() as archive:
        found = asdict(upkeep.status(archive))
    found |= {"version": __version__}
    return JSONResponse(plain({key: found[key] for key in schemas.Standing.model_fields}))


# --- answers ---------------------------------------------------------------------------------


def _loaded(
    request: Request, loaded: Loaded, form: str, part: str, if_none_match: str | None
) -> Response:
    request.app.state.metrics.loaded(loaded.tier)
    row = loaded.session
    suffix = "-".join(
        filter(None, (part if part == "body" else "", "json" if form == JSON else ""))
    )
    etag = document.etag(loaded.data)
    headers = {
        "ETag": tag(etag, suffix),
        "Annoris-Tier": loaded.tier,
        "Age": str(_age(loaded.checked)),
        "Vary": "Accept",
        "Cache-Control": "private, no-cache",
    }
    if {etag, "*"} & set(body.revisions(if_none_match)):
        return Response(status_code=304, headers=headers)
    data = excerpt(loaded.data, body=part == "body")
    if form == MARKDOWN:
        return Response(data, headers=headers, media_type=MARKDOWN)
    about = {
        **_session(row),
        "etag": etag,
        "text": data.decode(errors="replace"),
        "tier": loaded.tier,
        "checked": loaded.checked,
        "stale": loaded.stale,
        "revision": loaded.revision,
    }
    return JSONResponse(plain(about), headers=headers)


def _session(row: Session) -> dict[str, Any]:
    return {**asdict(row), "short": row.short}


def _age(checked: str) -> int:
    moment = datetime.fromisoformat(checked).timestamp() if checked else 0.0
    return max(0, int(time.time() - moment))


def _next(request: Request, cursor: str | None) -> dict[str, str]:
    """The header that leads to the next page, if there is one."""
    if not cursor:
        return {}
    return {"Link": f'<{request.url.include_query_params(cursor=cursor)}>; rel="next"'}


def _cursor(*parts: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


def _parts(cursor: str) -> list[str]:
    return [str(part) for part in json.loads(base64.urlsafe_b64decode(cursor))]


_NO_CURSOR = "cursor: is none that this API gave"


def _place_of(cursor: str) -> tuple[str, str]:
    try:
        saved, id = _parts(cursor)
    except (ValueError, TypeError, RecursionError):
        raise Problem("usage", _NO_CURSOR, hint="take next") from None
    return saved, id


def _run_of(cursor: str) -> Run:
    """The run that a page ended with, as far as it says where the next one begins."""
    try:
        started, id, key = _parts(cursor)
        moment = datetime.fromisoformat(started).astimezone(UTC)
        number = min(max(int(id), 0), 2**63 - 1)
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise Problem("usage", _NO_CURSOR, hint="take next") from None
    started = moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    return Run("", "", started, id=number, key=key)


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool


def _courier(request: Request) -> Courier:
    courier: Courier = request.app.state.courier
    return courier
