"""Around every request: an id, a line in the log, metrics, headers that keep browsers careful."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from annoris.server.logs import say
from annoris.server.metrics import Metrics

_QUIET = {"/livez", "/readyz", "/metrics"}
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; sandbox",
    b"cache-control": b"no-store",
}


class Tracing:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = _request_id(scope)
        scope.setdefault("state", {})["id"] = id
        started, status = time.monotonic(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *_completed(message["headers"]),
                    (b"x-request-id", id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            self._note(scope, status, time.monotonic() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "") or "unknown"
        self._metrics.requested(_method(scope["method"]), route, status, seconds)
        if scope["path"] in _QUIET and status < 400:
            return
        state: dict[str, Any] = scope["state"]
        caller = state.get("caller")
        say(
            "request", method=scope["method"], path=scope["path"], status=status,
            milliseconds=round(seconds * 1000, 1), request_id=state["id"],
            token=caller.id if caller else "",
        )  # fmt: skip


def _request_id(scope: Scope) -> str:
    """The caller's own, where it is harmless, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    fits = re.fullmatch(rb"[\w.-]{1,64}", given)
    return given.decode() if fits else uuid.uuid4().hex[:16]


def _completed(headers: Any) -> list[tuple[bytes, bytes]]:
    known = {name.lower() for name, _ in headers}
    return [*headers, *((name, value) for name, value in _HEADERS.items() if name not in known)]


def _method(method: str) -> str:
    return (
        method
        if method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
        else "other"
    )
