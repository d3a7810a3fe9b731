"""/mcp: the assistant's tools over HTTP, for whoever a token lets in.

A token that may write gets a server whose saves work, any other one the same tools and a reason.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from annoris.archive import Archive
from annoris.assistant.mcp import make_server, over_http
from annoris.server.courier import Courier
from annoris.server.guard import READ
from annoris.server.pool import Pool
from annoris.server.problems import Problem

router = APIRouter()

_READ_ONLY = (
    "not saved: this token may only read\n"
    "the user makes one that may write: annoris token new --scope write"
)


class Assistants:
    """The servers behind /mcp; they answer while ``serving`` lasts."""

    def __init__(self, pool: Pool, courier: Courier) -> None:
        @contextmanager
        def lend() -> Iterator[Archive]:
            with pool.lend() as archive:
                try:
                    yield archive
                finally:
                    if archive.outbox.batches():
                        courier.remind()

        most = pool.settings.server.max_body_bytes
        self._writing, self._writes = over_http(make_server(lend), most)
        reader = make_server(lend, refuse_saves=_READ_ONLY)
        self._reading, self._reads = over_http(reader, most)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._writes)
            await stack.enter_async_context(self._reads)
            yield

    def of(self, *, may_write: bool) -> ASGIApp:
        return self._writing if may_write else self._reading


class _Handed(Response):
    """An answer that another application gives."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


# No GET and no DELETE: nothing is kept between requests, so there is no stream and no end.
@router.post("/mcp", dependencies=[READ], include_in_schema=False)
async def mcp(request: Request) -> Response:
    """The Model Context Protocol, streamable HTTP."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Problem("origin", "pages of other origins are not answered here")
    assistants: Assistants = request.app.state.assistants
    return _Handed(assistants.of(may_write=request.state.caller.allows("write")))
