"""What went wrong, as RFC 9457 problem details; the one table from our codes to HTTP's."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from annoris.errors import AnnorisError
from annoris.server.pages import page

MEDIA = "application/problem+json"

STATUS = {
    "usage": 422, "config": 503, "config-scope": 503, "not-found": 404,
    "ambiguous": 409, "conflict": 409,
    "unavailable": 503, "tier-down": 503, "document": 422, "credential": 422, "key": 503,
    "key-wrong": 503, "key-tampered": 503, "key-truncated": 503, "key-newer": 503,
    "findings": 409, "refused": 409, "refused-auth": 409, "refused-policy": 422,
    "master-shrunk": 409, "unreachable": 503, "locked": 503, "storage": 507, "queued": 503,
    "storage-full": 507, "deadline": 503,
    # What only a server has to say.
    "body": 400, "token": 401, "scope": 403, "origin": 403, "method": 405, "accept": 406,
    "precondition": 412, "too-large": 413, "media-type": 415, "precondition-required": 428,
    "rate": 429, "bug": 500,
}  # fmt: skip
_RETRY_SECONDS = "5"  # for what may be over in a moment


class Problem(AnnorisError):
    """An error that only HTTP has; ``code`` is one of ``STATUS``."""

    code = "usage"

    def __init__(
        self, code: str, message: str, *, hint: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.headers = headers or {}


class ProblemDetails(BaseModel):
    """An error (RFC 9457). ``code`` never changes its meaning; ``hint`` says what to do."""

    type: str = Field(examples=["urn:annoris:not-found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no session 'f3a9c1e2-…'"])
    code: str = Field(examples=["not-found"])
    hint: str = Field(examples=["list them: GET /api/v1/sessions"])
    request_id: str = Field(examples=["0f2b7c9d8e114a52"])


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the problems that a route may answer, besides those of every route."""
    headers = {
        401: {"WWW-Authenticate": "The scheme to use."},
        429: {"Retry-After": "Seconds to wait."},
        503: {"Retry-After": "Seconds to wait."},
    }
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
            "headers": {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in headers.get(status, {}).items()
            },
        }
        for status in sorted({401, 403, 429, 503, *statuses})
    }


def response(error: AnnorisError, request: Request) -> JSONResponse:
    """The answer to a request that ended in ``error``."""
    status = STATUS.get(error.code, 500)
    headers = dict(getattr(error, "headers", {}))
    if status == 503:
        headers.setdefault("Retry-After", _RETRY_SECONDS)
    body = {
        **error.details,
        "type": f"urn:annoris:{error.code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.code,
        "hint": error.hint,
        "request_id": request.state.id,
    }
    return JSONResponse(plain(body), status, headers, media_type=MEDIA)


def install(app: FastAPI) -> None:
    """Answer every error as a problem."""

    @app.exception_handler(AnnorisError)
    def ours(request: Request, error: AnnorisError) -> JSONResponse:
        return response(error, request)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return response(unfit(error.errors()), request)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not-found", 405: "method"}.get(error.status_code, "body")
        headers = {"Allow": _methods(request)} if code == "method" else {}
        told = f"{error.detail}: {request.url.path}"
        return response(Problem(code, told, headers=headers), request)

    @app.exception_handler(Exception)
    def bug(request: Request, error: Exception) -> Response:
        told = f"this is a bug ({type(error).__name__}); the server's log has it by request_id"
        if "text/html" in request.headers.get("accept", ""):  # a person's browser
            return page(request, "error.html", code=500, error=Problem("bug", told))
        return response(Problem("bug", told), request)


def _methods(request: Request) -> str:
    """What a path can do: Starlette's own answer is that of its first route."""
    found: set[str] = set()
    scope = {key: request.scope[key] for key in ("type", "path", "method")}
    for route in request.app.state.routes:
        if route.matches({**scope, "root_path": ""})[0] is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found))


def unfit(errors: Any) -> AnnorisError:
    """What pydantic found wrong with a request, without the values that were sent."""
    found = [f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in errors]
    return Problem("usage", "; ".join(found[:5]), hint="see /docs")


def plain(value: Any) -> Any:
    """JSON-ready data that UTF-8 can write: names on master need not be UTF-8."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
