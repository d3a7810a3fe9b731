"""Tokens: made, known to every replica, refused once revoked; who is let in without any."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from annoris.errors import ConfigError
from annoris.leaks import scan
from annoris.server import tokens
from annoris.server.app import create_app
from annoris.settings import load
from tests.support.machine import Machine
from tests.support.service import Service, save

ABSENT = "/api/v1/sessions/019ab3f2-7c1e-7d20-9a51-4be03f2a9c1e"


def _new(machine: Machine, scope: str, name: str = "") -> str:
    ran = machine.run("token", "new", "--scope", scope, "--name", name)
    assert ran.code == 0, ran.err
    return ran.text.strip()


def test_case_28_each_scope_may_what_it_says_and_no_more(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Nobody 401, read 403 on writes, write 403 on sync, admin everything; health is open."""
    here = machine("server", remote)
    read, write, admin = (_new(here, scope) for scope in tokens.SCOPES)
    calls = (
        ("GET", "/api/v1/sessions", "read"),
        ("GET", "/metrics", "read"),
        ("POST", "/api/v1/sessions", "write"),
        ("PUT", ABSENT, "write"),
        ("GET", f"{ABSENT}/transcript", "read"),
        ("PUT", f"{ABSENT}/transcript", "write"),
        ("DELETE", ABSENT, "write"),
        ("POST", "/api/v1/sync", "admin"),
    )
    with Service(here) as service:
        for token, scope in ((read, "read"), (write, "write"), (admin, "admin"), ("", "")):
            with service.as_(token) as client:
                for method, path, needed in calls:
                    status = client.request(method, path, content=b"").status_code
                    if not token:
                        assert status == 401, path
                    elif tokens.SCOPES.index(scope) < tokens.SCOPES.index(needed):
                        assert status == 403, (scope, path)
                    else:
                        assert status not in (401, 403), (scope, path)
        with service.as_("annoris_" + "x" * 43) as client:
            refused = client.get("/api/v1/sessions")
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        with service.as_("") as nobody:
            for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
                assert nobody.get(path).status_code == 200
            odd = {"Authorization": "Basic abc"}
            assert nobody.get("/api/v1/sessions", headers=odd).status_code == 401
        assert read not in service.log.read_text()


def test_a_token_made_elsewhere_counts_here_and_a_revoked_one_no_more(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Master carries tokens: a running server learns of both by itself."""
    here, other = machine("server", remote), machine("other", remote)
    first = _new(here, "read", "first")
    with Service(here, token=first, ANNORIS_SERVER_TOKEN_SECONDS="0.001",
                 ANNORIS_MASTER_FRESH_SECONDS="0.001") as service:  # fmt: skip
        second = _new(other, "read", "second")
        with service.as_(second) as client:
            answers = [client.get("/api/v1/sessions").status_code for _ in range(30)]
        assert answers[-1] == 200
        assert other.run("token", "revoke", "first").code == 0
        seen = [service.client.get("/api/v1/sessions").status_code for _ in range(30)]
        assert seen[-1] == 401
        assert other.run("token", "revoke", "second").code == 0
        with service.as_("") as nobody:
            refused = [nobody.get("/api/v1/sessions").status_code for _ in range(3)]
        assert refused == [401] * 3  # once there was a token, none is no open door


def test_a_token_lies_hashed_on_master_and_is_shown_once(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Neither master nor the list holds it; a document that does is refused."""
    here = machine("laptop", remote)
    text = _new(here, "write", "Мой 'лэптоп' \"1\"")
    blob = subprocess.check_output(
        ["git", "--git-dir", str(remote), "show", f"main:{tokens.PATH}"]
    ).decode()
    listed = here.run("token", "list", "--json")
    assert [token["name"] for token in listed.json["tokens"]] == ["Мой 'лэптоп' \"1\""]
    for told in (blob, listed.text, here.run("token").text):
        assert text not in told
        assert text.removeprefix("annoris_") not in told
    assert [leak.rule for leak in scan(f"token: {text}\n")] == ["annoris-token"]
    assert here.run("save", "-", stdin=f"# X\n\n{text}\n".encode()).code == 7


def test_wrong_use_of_token_says_what_is_right(
    machine: Callable[..., Machine], remote: Path
) -> None:
    here = machine("laptop", remote)
    assert here.run("token", "new", "--scope", "root").code == 2
    assert here.run("token", "new").code == 2
    assert here.run("token", "revoke", "nobody").code == 3
    assert here.run("token", "list").code == 0
    for _ in range(2):
        _new(here, "read", "same")
    assert here.run("token", "revoke", "same").code == 3


@pytest.mark.parametrize(
    "blob",
    [
        b"\xff",
        b"token = 1",
        b"[[token]]\nid = 1\n",
        b'token = [{id="a",name="",scope="root",created="",sha256=""}]',
    ],
)
def test_damaged_tokens_let_nobody_in(
    machine: Callable[..., Machine], remote: Path, blob: bytes
) -> None:
    """A file that can't be read is an error, never an empty list, which would open loopback."""
    here = machine("server", remote)
    archive = here.archive()
    archive.edit(tokens.PATH, lambda _: blob, "Break it")
    archive.close()
    with pytest.raises(ConfigError, match="nobody is let in"):
        create_app(load(environ=here.environment))


def test_a_minute_has_so_many_requests_for_each_token(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """The one above the rate is 429 and says when to come back; another token is not touched."""
    here = machine("server", remote)
    busy, calm = _new(here, "read"), _new(here, "read")
    with Service(here, token=busy, ANNORIS_SERVER_RATE="5") as service:
        answers = [service.client.get("/api/v1/projects") for _ in range(8)]
        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        limited = [answer for answer in answers if answer.status_code == 429]
        assert limited
        assert int(limited[0].headers["retry-after"]) >= 1
        with service.as_(calm) as client:
            assert client.get("/api/v1/projects").status_code == 200


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0"), ("--host", "::")])
def test_without_tokens_only_loopback_is_served(
    machine: Callable[..., Machine], remote: Path, arguments: tuple[str, ...]
) -> None:
    """It refuses to start, and says how to go on."""
    ran = machine("server", remote).run("serve", "--port", "0", *arguments)
    assert ran.code == 2
    assert "annoris token new" in ran.err


def test_without_knowing_the_tokens_nobody_is_served(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Master is away and was never seen here: there may be tokens, so even loopback stays shut."""
    here = machine("server", remote)
    remote.rename(remote.with_name("away.git"))
    ran = here.run("serve", "--port", "0")
    assert ran.code == 5
    assert "tokens lie on master" in ran.err


def test_a_hosting_platform_gets_its_port_on_every_address(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """PORT decides; with a token anybody may knock, in IPv4 too."""
    here = machine("server", remote)
    token = _new(here, "write")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = here.start("serve", "--json", "--quiet", env={"PORT": str(port)})
    try:
        assert process.stdout
        said = json.loads(process.stdout.readline())
        assert (said["schema_version"], said["serving"]) == (1, f"http://[::]:{port}")
        told = {"Authorization": f"Bearer {token}", "Host": "sessions.example.com"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=told) as client:
            assert save(client, "# One\n\ntext\n").status_code == 201
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        assert process.communicate()[1] == b""
    assert here.run("serve", env={"PORT": "http"}).code == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = here.run("serve", "--port", str(taken.getsockname()[1]))
    assert (busy.code, "can't listen" in busy.err) == (74, True)


def test_insecure_is_possible_and_said_aloud(machine: Callable[..., Machine], remote: Path) -> None:
    here = machine("server", remote)
    with Service(here, "--host", "0.0.0.0", "--insecure") as service:
        assert service.client.get("/api/v1/sessions", headers={"Host": "any"}).status_code == 200
        assert service.lines("anybody may do everything while there is no token")
    assert os.path.exists(here.data)
