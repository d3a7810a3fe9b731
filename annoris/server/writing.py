"""Writes: a document into the outbox, and what became of it as an answer.

Taking one in needs a thread, waiting for master none.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from annoris import document
from annoris.archive import Accepted, Archive
from annoris.assistant import native
from annoris.errors import (
    Conflict,
    CredentialFound,
    DocumentRefused,
    NotFound,
    PolicyRefused,
    RemoteRefused,
    Unavailable,
)
from annoris.intake import SaveOptions, Source
from annoris.model import Draft, Receipt, Session
from annoris.server import body
from annoris.server.body import Options, tag
from annoris.server.courier import Courier
from annoris.server.guard import Caller
from annoris.server.pool import Pool
from annoris.server.problems import Problem, plain

# Edits from a named revision are taken in one by one, so that of two at once the second is told.
_EDITS = tuple(threading.Lock() for _ in range(64))


def take(pool: Pool, data: bytes, options: SaveOptions) -> Accepted:
    """Keep a document in the outbox. Raises what ``Archive.accept`` does."""
    with pool.lend() as archive:
        return archive.accept([Source("document", data)], options)[0]


def take_once(
    pool: Pool, data: bytes, options: Options, caller: Caller, key: str
) -> Accepted | Receipt:
    """Take a document in under an id made from the caller's key, unless that was done before."""
    id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"annoris:{caller.id}:{key}"))
    with _EDITS[hash(id) % len(_EDITS)], pool.lend() as archive:
        archive.look()
        row = archive.catalog.get(id)
        if row is None:
            return archive.accept([Source("document", data)], options.options(id=id))[0]
        if not _is_first(archive, row, data):
            raise Problem(
                "usage", "this Idempotency-Key was used for another document",
                hint="make a new key for each document",
            )  # fmt: skip
        values = {key: getattr(row, key) for key in _COMMON}
        state: Any = "queued" if row.pending else "unchanged"
        return Receipt(state=state, source=row.pending, **values)


_COMMON = ("id", "path", "project", "title", "name", "oid", "size")


def _is_first(archive: Archive, row: Session, data: bytes) -> bool:
    """Whether a session began as this document; it may have been edited since."""
    wanted = document.body_md5(document.split(data)[1])
    if row.body_md5 == wanted:
        return True
    if row.pending:
        return False
    first = archive.history(row.id)[1][-1]
    text = archive.master.blob(first.oid, first.path)
    return document.body_md5(document.split(text)[1]) == wanted


def revise(pool: Pool, id: str, data: bytes, options: Options, if_match: str | None) -> Accepted:
    """Keep a revision in the outbox; by If-Match or its own etag it says what it was made from."""
    with _EDITS[hash(id) % len(_EDITS)], pool.lend() as archive:
        row = _matching(archive, id, if_match)
        known = document.inspect(data)
        if known.id and known.id != id:
            raise Problem("usage", f"the document says that it is {known.id}", hint="mend its id")
        base = row.etag if if_match else known.etag
        if not base:
            raise Problem(
                "precondition-required", "it is not said which revision this was made from",
                hint="send If-Match with the ETag that you loaded, or * to replace any",
            )  # fmt: skip
        return archive.accept([Source("document", data)], options.options(update=id, base=base))[0]


def give_up(pool: Pool, id: str, if_match: str | None) -> Draft:
    """Keep a removal in the outbox."""
    with _EDITS[hash(id) % len(_EDITS)], pool.lend() as archive:
        _matching(archive, id, if_match)
        return archive.give_up(id)


def attach(pool: Pool, id: str, data: bytes, *, redact: bool) -> Draft:
    """Keep a transcript in the outbox. Raises NotFound, and what ``native.packed`` does."""
    with pool.lend() as archive:
        try:
            small = native.packed(data, "transcript", archive.settings.save, redact=redact)
        except CredentialFound as error:
            error.hint = "?redact=true masks them"
            raise
        except DocumentRefused as error:
            error.hint = "send the client's .jsonl file, within save.max_bytes when packed"
            raise
        return archive.attach(id, small)


def _matching(archive: Archive, id: str, if_match: str | None) -> Session:
    """The session, if it is at a revision that the caller knows. Raises NotFound, Problem (412)."""
    archive.look()
    row = archive.catalog.get(id)
    if not (_fits(row, if_match) or archive.breaker.blocked("master")):
        with suppress(Unavailable):  # the hot cache may have shown what this clone has not seen
            archive.look(fresh=True)
        row = archive.catalog.get(id)
    if row is None:
        raise NotFound(f"no session {id}", hint="list them: GET /api/v1/sessions")
    if not _fits(row, if_match):
        raise _moved_on(row)
    return row


def _fits(row: Session | None, if_match: str | None) -> bool:
    return row is not None and (
        not if_match or bool({row.etag, "*"} & set(body.revisions(if_match)))
    )


def _moved_on(row: Session) -> Problem:
    return Problem(
        "precondition", "the session is at another revision by now; nothing was changed",
        hint=f"load it, bring both texts together, and send If-Match: {tag(row.etag)}",
        headers={"ETag": tag(row.etag)},
    )  # fmt: skip


def _outdated(pool: Pool, id: str) -> Problem:
    """Another machine was faster."""
    with pool.lend() as archive:
        row = archive.catalog.get(id)
    if row:
        return _moved_on(row)
    return Problem("precondition", "the session is gone by now; nothing was changed")


async def answer(
    request: Request,
    taking: Awaitable[Accepted | Receipt | Draft],
    prefer: str | None,
    if_match: str | None = None,
) -> Response:
    """What became of a document, once it is on master or it is plain that this takes longer.

    With If-Match it becomes no copy where another machine was faster, if its caller still waits.
    """
    courier: Courier = request.app.state.courier
    limits = request.app.state.settings.server
    with courier.expecting():
        item = await taking
        problems = item.document.problems if isinstance(item, Accepted) else ()
        found = item.item if isinstance(item, Accepted) else item
        if isinstance(found, Receipt):
            return _told(replace(found, problems=problems), found.source)
        full = courier.queue >= limits.queue
        wait = 0.0 if full or "respond-async" in (prefer or "").lower() else limits.answer_seconds
        exact = bool(wait and if_match and "*" not in body.revisions(if_match))
        future = asyncio.wrap_future(courier.deliver(found, exact=exact))
    try:
        done = await asyncio.wait_for(asyncio.shield(future), wait) if wait else None
    except TimeoutError:
        done = None if not exact or courier.leave(found) else await future
    if done is None:
        future.add_done_callback(lambda late: late.exception())  # whoever asks hears of it
        done = _on_its_way(found)
    if done.state == "outdated":
        raise await run_in_threadpool(_outdated, request.app.state.pool, done.id)
    if done.state == "refused":
        raise await run_in_threadpool(_refusal, request.app.state.pool, done, found.key)
    receipt = replace(done, problems=problems)
    saved = found.op == "save" and receipt.state == "master"
    etag = document.etag(found.data) if saved else ""
    new = saved and not found.base
    return _told(receipt, found.key, etag, new=new)


def _on_its_way(draft: Draft) -> Receipt:
    words = ("id", "path", "project", "title", "name", "op")
    values = {key: getattr(draft, key) for key in words}
    return Receipt(state="queued", size=len(draft.data), reason="on its way to master", **values)


def _told(receipt: Receipt, key: str, etag: str = "", *, new: bool = False) -> Response:
    """A receipt as an answer. Raises Conflict for one."""
    if receipt.state == "conflict":
        raise Conflict(
            f"{receipt.reason}; both are kept, this text as {receipt.path}",
            hint=f"compare them: GET /api/v1/sessions/{receipt.id}",
            details={"copy": receipt.id, "conflict_of": receipt.conflict_of, "key": key},
        )
    headers = {"ETag": tag(etag)} if etag else {}
    status = 200
    if receipt.state == "queued":
        status, headers["Location"] = 202, f"/api/v1/receipts/{key}"
    elif new:
        status, headers["Location"] = 201, f"/api/v1/sessions/{receipt.id}"
    return JSONResponse(written(receipt, key), status, headers)


def _refusal(pool: Pool, receipt: Receipt, key: str) -> RemoteRefused:
    with pool.lend() as archive:
        aside = any(draft.key == key for draft, _ in archive.outbox.aside())
    kind = PolicyRefused if aside else RemoteRefused
    error = kind(receipt.reason, hint="it is kept on the server, not on master: annoris outbox")
    error.details = {"key": key}
    return error


def written(receipt: Receipt, key: str) -> Any:
    """A receipt in JSON."""
    return plain({**asdict(receipt), "key": key})
