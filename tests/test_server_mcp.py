"""MCP at /mcp of a real server, asked by the SDK's own client over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.support.githttp import GitServer, bare
from tests.support.machine import Machine
from tests.support.service import Service, on_master

T = TypeVar("T")
TEXT = "# Webhook retries\n\n**Status:** open\n\n## Next steps\n\ntry again [verified: by test]\n"
NEWEST, BEFORE = "2026-07-28", "2025-11-25"
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": BEFORE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"},
    },
}  # fmt: skip


@asynccontextmanager
async def connected(service: Service, token: str, mode: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(f"{service.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


def ask(
    service: Service,
    work: Callable[[Client], Awaitable[T]],
    *,
    token: str | None = None,
    mode: str = NEWEST,
) -> T:
    async def run() -> T:
        async with connected(service, service.token if token is None else token, mode) as client:
            return await work(client)

    return anyio.run(run)


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return dict(result.structured_content or {})


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare(tmp_path_factory.mktemp("mcp") / "remote.git")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, remote: Path) -> Machine:
    settings = {"master_fresh_seconds": "0.001"}
    return Machine(tmp_path_factory.mktemp("served"), str(remote), settings)


@pytest.fixture(scope="module")
def reader(here: Machine) -> str:
    """A token that may only read, made before the server starts."""
    return here.run("token", "new", "--scope", "read").text.strip()


@pytest.fixture(scope="module")
def service(here: Machine, reader: str) -> Iterator[Service]:
    """A server on loopback to which a token is needed; the client's may write."""
    token = here.run("token", "new", "--scope", "write").text.strip()
    with Service(here, token=token) as running:
        yield running


@pytest.mark.parametrize(("mode", "version"), [(NEWEST, NEWEST), ("legacy", BEFORE)])
def test_a_client_saves_loads_lists_searches_and_verifies_over_http(
    mode: str, version: str, service: Service, remote: Path
) -> None:
    """In the current and the previous version of the protocol; nothing of the server's folder."""

    async def work(client: Client) -> None:
        assert client.protocol_version == version
        saved = await call(client, "session_save", markdown=TEXT, name=mode, project="shop")
        assert saved["state"] == "master"
        assert on_master(remote)[saved["path"]].endswith(TEXT.encode())
        assert b"workspace" not in on_master(remote)[saved["path"]]
        loaded = await call(client, "session_load", selector=mode, project="shop")
        assert loaded["text"].endswith(TEXT)
        assert loaded["drift"] == []
        listed = await call(client, "session_list", project="shop")
        assert saved["id"] in [row["id"] for row in listed["sessions"]]
        found = await call(client, "session_search", query="again")
        assert saved["id"] in [hit["session"]["id"] for hit in found["hits"]]
        assert (await call(client, "session_verify"))["sound"]
        read = await client.read_resource(f"session://{saved['id']}")
        assert read.contents[0].text.endswith(TEXT)  # type: ignore[union-attr]

    ask(service, work, mode=mode)


def test_a_token_that_may_read_is_refused_a_save_and_told_why(
    service: Service, reader: str
) -> None:
    """The tools are the same ones, and what only reads works."""

    async def work(client: Client) -> str:
        assert (await call(client, "session_list", project="all"))["stale"] == ""
        refused = await client.call_tool("session_save", {"markdown": "# Refused\n\nzeisig\n"})
        assert refused.is_error
        assert (await call(client, "session_search", query="zeisig"))["hits"] == []
        return str(refused.content[0].text)  # type: ignore[union-attr]

    told = ask(service, work, token=reader)
    assert "may only read" in told
    assert "annoris token new --scope write" in told


def test_who_has_no_token_or_comes_from_another_page_is_not_let_in(service: Service) -> None:
    """401 without one or with a wrong one; 403 for a foreign Origin even with one."""

    def post(token: str, **headers: str) -> int:
        accepts = {"Accept": "application/json, text/event-stream"}
        with service.as_(token) as client:
            answer = client.post("/mcp", json=HELLO, headers={**accepts, **headers})
        assert (answer.status_code == 401) == ("www-authenticate" in answer.headers)
        return answer.status_code

    assert post("") == 401
    assert post("annoris_" + "x" * 40) == 401
    assert post(service.token) == 200
    assert post(service.token, Origin="https://evil.example") == 403
    assert post(service.token, Origin="null") == 403
    assert post(service.token, Origin=service.url) == 200
    assert service.client.get("/mcp").status_code == 405


def test_without_tokens_loopback_is_served_and_no_page_in_a_browser(
    machine: Callable[..., Machine], server: GitServer
) -> None:
    """Another Host (DNS rebinding) is 403; what a save left in the outbox is delivered later."""
    accepts = {"Accept": "application/json, text/event-stream"}
    with Service(machine("open", server.url)) as service:
        rebound = service.client.post(
            "/mcp", json=HELLO, headers={**accepts, "Host": "evil.example"}
        )
        assert (rebound.status_code, rebound.json()["code"]) == (403, "origin")
        server.protect()

        async def refused(client: Client) -> str:
            result = await client.call_tool("session_save", {"markdown": TEXT})
            assert result.is_error
            return str(result.content[0].text)  # type: ignore[union-attr]

        assert "annoris outbox" in ask(service, refused)
        service.wait_for("outbox waits")
        server.allow_all()
        assert service.stop() == 0
    assert any(data.endswith(TEXT.encode()) for data in server.files().values())
