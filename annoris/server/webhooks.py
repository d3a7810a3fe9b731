"""GitHub's webhooks. A delivery means only "go and look": what it says is never applied.

GitHub waits ten seconds, delivers out of order and never again; so a push on our branch wakes
one sync, whatever else was delivered meanwhile, and the clock's sync makes up for lost ones.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Annotated, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from annoris.server import body
from annoris.server.logs import say
from annoris.server.problems import Problem, documented

router = APIRouter()

Outcome = Literal["pong", "sync", "ignored"]


class Done(BaseModel):
    """What a delivery led to."""

    outcome: Outcome


@router.post(
    "/webhooks/github", tags=["operation"], summary="Where GitHub tells of a push",
    responses={
        200: {"model": Done, "description": "Understood; nothing is to be done."},
        202: {"model": Done, "description": "A sync follows."},
        **{status: told for status, told in documented(400, 404, 413, 415).items()
           if status not in (403, 429, 503)},
    },
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}
    },
)  # fmt: skip
async def github(
    request: Request,
    x_hub_signature_256: Annotated[str, Header(description="sha256=HMAC of the raw body.")] = "",
    x_github_event: Annotated[str, Header()] = "",
    x_github_delivery: Annotated[str, Header()] = "",
) -> Response:
    secret = request.app.state.settings.server.webhook_secret
    if not secret:
        raise Problem("not-found", "webhooks are not set up here", hint="annoris webhook setup")
    if not re.fullmatch(r"sha256=[0-9a-f]{64}", x_hub_signature_256):
        raise _unsigned("it carries no X-Hub-Signature-256")
    raw = await body.read(request)
    if not await run_in_threadpool(signed, secret, raw, x_hub_signature_256):
        raise _unsigned("its signature is not of this body under our secret")
    branch = request.app.state.settings.master.branch
    outcome = await run_in_threadpool(meaning, x_github_event, raw, branch)
    say("webhook", delivery=x_github_delivery, kind=x_github_event, outcome=outcome)
    request.app.state.metrics.hooked(outcome)
    if outcome == "sync":
        request.app.state.chores.wake("sync")
    return JSONResponse({"outcome": outcome}, 202 if outcome == "sync" else 200)


def signed(secret: str, raw: bytes, signature: str) -> bool:
    """Whether ``signature`` is the HMAC of the raw body, in constant time."""
    wanted = "sha256=" + hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()
    return hmac.compare_digest(wanted, signature)


def meaning(event: str, raw: bytes, branch: str) -> Outcome:
    """What a delivery asks for. Raises Problem for a body that is no event."""
    if event == "ping":
        return "pong"
    if event != "push":
        return "ignored"
    try:
        if raw.startswith(b"payload="):  # a hook that was made with "form" as content type
            raw = parse_qs(raw.decode())["payload"][0].encode()
        said = json.loads(raw)
        ours = said["ref"] == f"refs/heads/{branch}" and not said.get("deleted")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Problem("body", "the body is no push event") from None
    return "sync" if ours else "ignored"


def _unsigned(why: str) -> Problem:
    headers = {"WWW-Authenticate": "X-Hub-Signature-256"}
    hint = "give the hook the secret that annoris webhook setup printed"
    return Problem("token", f"this delivery is refused: {why}", hint=hint, headers=headers)
