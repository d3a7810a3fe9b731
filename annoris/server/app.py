"""The application: what a server consists of, how it begins and how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware

from annoris import __version__
from annoris.errors import ConfigError, StorageError, Unavailable, UsageError
from annoris.server import (
    api,
    dashboard,
    docs,
    login,
    logs,
    mcp,
    metrics,
    problems,
    webhooks,
)
from annoris.server.body import Document, ProjectChanges
from annoris.server.chores import Chores, daily, frequent
from annoris.server.courier import Courier
from annoris.server.guard import Guard, is_loopback
from annoris.server.metrics import Metrics
from annoris.server.pool import Pool
from annoris.server.sampling import Sampler
from annoris.server.tracing import Tracing
from annoris.settings import Settings

health = APIRouter(tags=["operation"])

_ABOUT = """Sessions: Markdown documents on a git master, through one archive.

A **201** or **200** of a write means: on master. A **202** means: kept by this server, durable,
and on its way; its receipt says what became of it. Every error is a problem (RFC 9457)."""


def create_app(
    settings: Settings, *, loopback: bool = True, insecure: bool = False, scheduled: bool = False
) -> FastAPI:
    """The application over this machine's archive.

    ``loopback``: only this machine can connect. ``insecure``: let anybody in while there are no
    tokens. ``scheduled``: sync, verify and dump by the clock. Raises ConfigError where nobody
    could be let in safely, Unavailable where it can't be known who may come in.
    """
    counts = Metrics()
    pool = Pool(settings, counts.asked)
    guard = _guard(pool, loopback=loopback, insecure=insecure)
    app = FastAPI(
        title="Annoris", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None,
        lifespan=_living, redirect_slashes=False,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )  # fmt: skip
    app.state.settings, app.state.pool, app.state.metrics = settings, pool, counts
    app.state.guard = guard
    app.state.courier = Courier(pool, counts.delivered)
    app.state.assistants = mcp.Assistants(pool, app.state.courier)
    app.state.chores = Chores(pool, counts, frequent(settings, scheduled=scheduled))
    app.state.daily = Chores(pool, counts, daily(settings) if scheduled else ())
    app.state.sampler = Sampler(pool, settings.server.sample_seconds)
    counts.follow(pool)
    pages = (docs.router, login.router, dashboard.router)
    routers = (api.router, mcp.router, webhooks.router, metrics.router, health, *pages)
    app.state.routes = [*app.routes, *(route for router in routers for route in router.routes)]
    for router in routers:
        app.include_router(router)
    docs.install(app)
    problems.install(app)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    app.add_middleware(Tracing, metrics=counts)
    _complete(app)
    return app


def _guard(pool: Pool, *, loopback: bool, insecure: bool) -> Guard:
    guard = Guard(pool, open_=loopback or insecure, loopback=loopback)
    with pool.lend() as archive:
        stale = archive.look()
        if stale and not archive.master.tip():
            raise Unavailable(
                f"the tokens lie on master, and nothing of it is here yet: {stale}",
                hint="start again when master answers",
            )
        if not (guard.prime(archive) or loopback or insecure):
            raise ConfigError(
                "there is no token, so that anybody who reaches this address could read everything",
                hint="make one: annoris token new --scope admin; or serve on 127.0.0.1, or "
                "--insecure behind something that asks who comes",
            )
    return guard


@asynccontextmanager
async def _living(app: FastAPI) -> AsyncIterator[None]:
    """Threads while the server runs; at the end what waits goes to master, if that answers."""
    limits = app.state.settings.server
    current_default_thread_limiter().total_tokens = limits.threads
    threads = (app.state.courier, app.state.chores, app.state.daily, app.state.sampler)
    for thread in threads:
        thread.start()
    app.state.ready = True
    try:
        async with app.state.assistants.serving():
            yield
    finally:
        app.state.ready = False
        await asyncio.gather(
            *(run_in_threadpool(thread.stop, limits.stop_seconds) for thread in threads)
        )
        app.state.pool.close()


def _complete(app: FastAPI) -> None:
    """Put into OpenAPI what routes refer to and FastAPI does not see."""
    plain = app.openapi

    def complete() -> dict[str, Any]:
        schema = plain()
        known = schema["components"]["schemas"]
        for model in (problems.ProblemDetails, Document, ProjectChanges):
            known.setdefault(model.__name__, model.model_json_schema())
        return schema

    app.openapi = complete  # type: ignore[method-assign]


@health.get("/livez", summary="Whether the process answers")
async def livez() -> dict[str, str]:
    return {"status": "ok"}


@health.get(
    "/readyz", summary="Whether it can take requests",
    responses={503: problems.documented()[503]},
)  # fmt: skip
def readyz(request: Request) -> JSONResponse:
    state = request.app.state
    threads = (state.courier, state.chores, state.daily)
    if not (state.ready and all(thread.is_alive() for thread in threads)):
        raise problems.Problem("unavailable", "the server is stopping")
    with state.pool.lend() as archive:
        count = archive.catalog.count()
    return JSONResponse({"status": "ok", "sessions": count})


def serve(
    settings: Settings,
    host: str,
    port: int,
    *,
    insecure: bool,
    scheduled: bool,
    quiet: bool,
    tell: Callable[[str], None],
) -> None:
    """Answer until SIGTERM or Ctrl-C; requests under way end first, within ``stop_seconds``.

    ``host`` "::" is every address, port 0 a free one; ``tell`` gets the URL. ``quiet``: only
    warnings are logged.
    """
    logs.install(settings, quiet=quiet)
    app = create_app(settings, loopback=is_loopback(host), insecure=insecure, scheduled=scheduled)
    with _listening(host, port) as listener:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="on",
            timeout_graceful_shutdown=round(settings.server.stop_seconds), timeout_keep_alive=30,
            h11_max_incomplete_event_size=64 * 1024,
        )  # fmt: skip
        where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        tell(where)
        logs.say("serving", at=where, docs=f"{where}/docs", version=__version__)
        if insecure:
            logs.warn("anybody may do everything while there is no token")
        # uvicorn ends on the signal and then raises it anew; being asked to stop is no failure.
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listener])
    logs.say("stopped")


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port < 65536:
        raise UsageError(f"{port} is not a port", hint="one of 1 to 65535")
    try:
        if host == "::" and socket.has_dualstack_ipv6():
            return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
        host = "0.0.0.0" if host == "::" else host  # noqa: S104 - every address was asked for
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]
        told = f"can't listen on {host}, port {port}: {why}"
        if (error.errno or 0) < 0:  # a resolver's number
            raise UsageError(told, hint="name an address of this machine with --host") from None
        raise StorageError(told, hint="take another one with --port") from error
