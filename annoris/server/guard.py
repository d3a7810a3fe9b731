"""Who is let in: tokens, or on loopback without any token whoever sits at this machine."""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from typing import Annotated, Any

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from annoris.archive import Archive
from annoris.dataclass import dataclass
from annoris.server import tokens
from annoris.server.pool import Pool
from annoris.server.problems import Problem
from annoris.server.tokens import Scope, Token

_bearer = HTTPBearer(auto_error=False, description="Made by `annoris token new --scope …`.")
_FORWARDED = {"forwarded", "x-forwarded-for", "x-real-ip", "via"}  # by a proxy, for anybody
_SOON_SECONDS = 2.0  # a token that nobody knows is looked for on master no oftener


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the id and name of a token, or nobody in particular, who may do everything."""

    id: str
    name: str = ""
    token: Token | None = None

    def allows(self, scope: Scope) -> bool:
        return self.token is None or self.token.allows(scope)

    def must(self, scope: Scope) -> None:
        """Raises Problem (403) where the token does not allow that."""
        if self.token and not self.token.allows(scope):
            raise Problem(
                "scope", f"this token may {self.token.scope}; {scope} is needed",
                hint=f"make one: annoris token new --scope {scope}",
            )  # fmt: skip


class Guard:
    """``open_``: whoever asks is let in until there is a token, and never again after that.

    ``loopback``: only this machine can connect, and then requests must be meant for it: a page
    that a browser here shows can reach this port too, under its own name (DNS rebinding) or
    from its own origin.
    """

    def __init__(self, pool: Pool, *, open_: bool, loopback: bool) -> None:
        self._pool = pool
        self._open = open_
        self._loopback = loopback
        self._settings = pool.settings.server
        self._looking = threading.Lock()
        self._looked = 0.0
        self._tip = ""
        self._tokens: tuple[Token, ...] = ()
        self._spent: dict[str, tuple[float, float]] = {}
        self._spending = threading.Lock()

    def prime(self, archive: Archive) -> tuple[Token, ...]:
        """The tokens that there are, asking master. Raises ConfigError when unreadable."""
        archive.look()
        if archive.master.tip() != self._tip:
            self._tokens = tokens.known(archive)
            self._tip = archive.master.tip()
        self._open = self._open and not self._tokens
        self._looked = time.monotonic()
        return self._tokens

    async def admit(self, request: Request, text: str, scope: Scope) -> Caller:
        """Who the caller is. Raises Problem: 401, 403 or 429. No thread, unless master is asked."""
        age = time.monotonic() - self._looked
        unknown = not self._open and text and not tokens.match(text, self._tokens)
        if age > self._settings.token_seconds or (unknown and age > _SOON_SECONDS):
            await run_in_threadpool(self._look)
        if self._open:
            if self._loopback:
                _from_here(request)
            return Caller("anyone")
        token = text and tokens.match(text, self._tokens)
        if not token:
            raise Problem(
                "token",
                "this token is not known" if text else "a token is needed",
                hint="send Authorization: Bearer TOKEN; make one: annoris token new --scope read",
                headers={"WWW-Authenticate": "Bearer"},
            )
        caller = Caller(token.id, token.name, token)
        caller.must(scope)
        self._spend(token.id)
        return caller

    def _look(self) -> None:
        """Look for tokens on master; while one thread does, the others go on."""
        if self._looking.acquire(blocking=False):
            try:
                with self._pool.lend() as archive:
                    self.prime(archive)
            finally:
                self._looking.release()

    def _spend(self, id: str) -> None:
        """One request of the minute's; what was not used comes back evenly."""
        rate, now = self._settings.rate, time.monotonic()
        with self._spending:
            left, since = self._spent.get(id, (float(rate), now))
            left = min(rate, left + (now - since) * rate / 60) - 1
            self._spent[id] = (max(left, 0.0), now)
        if left < 0:
            wait = max(1, round(-left * 60 / rate))
            raise Problem(
                "rate", f"more than {rate} requests a minute with this token",
                hint=f"wait {wait} s", headers={"Retry-After": str(wait)},
            )  # fmt: skip


def _from_here(request: Request) -> None:
    """Refuse what a page of somewhere else had a browser send."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if (
        not is_loopback(re.sub(r":\d+$", "", host).strip("[]"))
        or (origin is not None and origin.partition("://")[2] != host)
        or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        or _FORWARDED & set(request.headers)
    ):
        raise Problem(
            "origin", "without tokens, this server answers requests from this machine only",
            hint="ask http://127.0.0.1, or make a token: annoris token new --scope read",
        )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether only this machine can mean itself by that."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _needs(scope: Scope) -> Any:
    async def admitted(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> None:
        guard: Guard = request.app.state.guard
        text = credentials.credentials if credentials else ""
        request.state.caller = await guard.admit(request, text, scope)

    return Security(admitted)


READ, WRITE, ADMIN = _needs("read"), _needs("write"), _needs("admin")
