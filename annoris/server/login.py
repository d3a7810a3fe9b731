"""Who looks at the pages: a token in a cookie that no script can read, and forms of ours only.

There is no session on the server: the cookie is the token, so that a revoked one is out within
seconds on every replica. It is sent for requests from our own pages alone (SameSite=Strict), the
API does not take it, and each form carries a word that only our pages know.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from annoris.errors import AnnorisError
from annoris.server import body
from annoris.server.guard import Caller, Guard
from annoris.server.pages import page
from annoris.server.problems import STATUS, Problem, unfit
from annoris.server.tokens import Scope

COOKIE = "annoris"

_SECONDS = 30 * 86400
_FORM_BYTES = 16 * 1024
_OURS = secrets.token_bytes(32)  # for forms while there are no tokens


class Html(APIRoute):
    """A route whose errors are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def readable(request: Request) -> Response:
            try:
                return await answer(request)
            except RequestValidationError as error:
                return _failed(request, unfit(error.errors()))
            except AnnorisError as error:
                return _failed(request, error)

        return readable


def _failed(request: Request, error: AnnorisError) -> Response:
    if error.code == "token":
        return way_in(request)
    headers = getattr(error, "headers", {})
    answer = page(request, "error.html", code=STATUS.get(error.code, 500), error=error)
    answer.headers.update({key: value for key, value in headers.items() if key == "Retry-After"})
    return answer


router = APIRouter(include_in_schema=False, route_class=Html)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at a page. ``form``: the word that this visitor's forms carry."""

    caller: Caller
    form: str

    @property
    def known(self) -> bool:
        """Whether a token says who it is."""
        return self.caller.id != "anyone"


def _needs(scope: Scope) -> Any:
    async def visiting(request: Request) -> Visitor:
        guard: Guard = request.app.state.guard
        token = request.cookies.get(COOKIE, "")
        request.state.caller = await guard.admit(request, token, scope)
        request.state.visitor = Visitor(request.state.caller, _word(token))
        found: Visitor = request.state.visitor
        return found

    return Depends(visiting)


READ, WRITE, ADMIN = _needs("read"), _needs("write"), _needs("admin")


def _word(token: str) -> str:
    return hmac.new(token.encode() or _OURS, b"annoris form", hashlib.sha256).hexdigest()


async def _filled(request: Request) -> dict[str, str]:
    """The fields of a form that a page of ours sent. Raises Problem for any other."""
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise _foreign()
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > _FORM_BYTES:
        raise Problem("too-large", "a form is not that long")
    text = (await body.read(request)).decode(errors="replace")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=32))
    except ValueError:
        raise Problem("body", "this is not how a form is sent") from None


async def _sent(request: Request) -> dict[str, str]:
    """The fields of a form for whoever is logged in. Raises Problem where its word is wrong."""
    fields = await _filled(request)
    wanted = _word(request.cookies.get(COOKIE, ""))
    if not hmac.compare_digest(fields.pop("form", "").encode(), wanted.encode()):
        raise _foreign()
    return fields


OURS = Depends(_sent)
Fields = Annotated[dict[str, str], OURS]


def _foreign() -> Problem:
    return Problem("origin", "this form was not sent from here", hint="load the page again")


def local(address: str) -> str:
    """A path of this server, for a redirect; the overview where it is none."""
    parts = urlsplit(address) if re.fullmatch(r"/(?![/\\])[!-~]*", address) else None
    return address if parts and not (parts.scheme or parts.netloc) else "/"


def way_in(request: Request) -> Response:
    """Where somebody goes who is not logged in."""
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"HX-Refresh": "true"})
    query = f"?{request.url.query}" if request.url.query else ""
    wanted = request.url.path + query
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        # From a link elsewhere the browser keeps the cookie back; from a page of ours it is sent.
        return page(request, "again.html", code=401, wanted=local(wanted))
    return RedirectResponse(f"/login?to={quote(wanted)}", 303)


@router.get("/login")
def ask(request: Request, to: str = "/") -> Response:
    return page(request, "login.html", wanted=local(to), why="")


@router.post("/login")
async def enter(request: Request, fields: Annotated[dict[str, str], Depends(_filled)]) -> Response:
    """Keep a token in the cookie, if it is one."""
    token, wanted = fields.get("token", "").strip(), local(fields.get("to", "/"))
    guard: Guard = request.app.state.guard
    try:
        caller = await guard.admit(request, token, "read")
    except Problem as problem:
        if problem.code != "token":
            raise
        why = "This token is not known, or it was revoked." if token else "Enter a token."
        return page(request, "login.html", code=401, wanted=wanted, why=why)
    answer = RedirectResponse(wanted, 303)
    if Visitor(caller, "").known:
        answer.set_cookie(
            COOKIE, token, max_age=_SECONDS, httponly=True, samesite="strict",
            secure=_over_tls(request),
        )  # fmt: skip
    return answer


@router.post("/logout", dependencies=[OURS])
def leave() -> Response:
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def _over_tls(request: Request) -> bool:
    """Whether the browser came by https, as the proxy before us says; it may lie to itself only."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
