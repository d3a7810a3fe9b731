"""GitHub's webhooks: hostile ones, lost ones, and the storm; setting one up."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import psycopg
import pytest

from annoris.server.webhooks import signed
from tests.support.githttp import bare
from tests.support.machine import Machine
from tests.support.service import Service, save
from tests.support.tiers import Tiers

SECRET = "It's a Secret to Everybody"
FULL = bool(os.environ.get("ANNORIS_FULL"))
PUSH: dict[str, Any] = {"ref": "refs/heads/main", "deleted": False, "after": "0" * 40}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("hooked")
    remote = bare(folder / "remote.git")
    machine = Machine(folder / "server", str(remote), {"server_webhook_secret": SECRET})
    with Service(machine) as running:
        yield running


def _deliver(
    client: httpx.Client, said: object, event: str = "push", **headers: str
) -> httpx.Response:
    raw = said if isinstance(said, bytes) else json.dumps(said).encode()
    told = {
        "X-GitHub-Event": event, "X-GitHub-Delivery": "d-1", "Content-Type": "application/json",
        "X-Hub-Signature-256": _sign(raw), **{k.replace("_", "-"): v for k, v in headers.items()},
    }  # fmt: skip
    given = {key.encode(): value.encode() for key, value in told.items() if value}
    return client.post("/webhooks/github", content=raw, headers=given)


def _sign(raw: bytes, how: str = "sha256") -> str:
    return f"{how}={hmac.new(SECRET.encode(), raw, how).hexdigest()}"


def test_case_11_the_signature_is_that_of_githubs_own_example() -> None:
    """The vector of GitHub's manual, and one bit beside it."""
    vector = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert signed(SECRET, b"Hello, World!", vector)
    assert not signed(SECRET, b"Hello, World?", vector)
    assert not signed(SECRET + "!", b"Hello, World!", vector)


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Hub_Signature_256": ""},
        {"X_Hub_Signature_256": "", "X_Hub_Signature": _sign(json.dumps(PUSH).encode(), "sha1")},
        {"X_Hub_Signature_256": "sha256=" + "0" * 64},
        {"X_Hub_Signature_256": "sha256=" + "é" * 64},
        {"X_Hub_Signature_256": _sign(json.dumps(PUSH, indent=1).encode())},
        {"X_Hub_Signature_256": _sign(json.dumps(PUSH).encode(), "sha1")},
    ],
)
def test_case_11_what_is_not_signed_with_sha256_over_these_bytes_is_401(
    service: Service, headers: dict[str, str]
) -> None:
    """No, a wrong, a sha1-only signature; one of the same event encoded anew."""
    before = len(service.lines("sync done"))
    answer = _deliver(service.client, PUSH, **headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "token")
    assert len(service.lines("sync done")) == before


@pytest.mark.parametrize(
    ("event", "said", "status", "outcome"),
    [
        ("ping", {"zen": "…"}, 200, "pong"),
        ("push", PUSH, 202, "sync"),
        ("push", {**PUSH, "ref": "refs/heads/other"}, 200, "ignored"),
        ("push", {**PUSH, "ref": "refs/tags/main"}, 200, "ignored"),
        ("push", {**PUSH, "deleted": True}, 200, "ignored"),
        ("release", {"action": "published"}, 200, "ignored"),
        ("push", urlencode({"payload": json.dumps(PUSH)}).encode(), 202, "sync"),
    ],
)
def test_case_11_a_delivery_means_go_and_look_or_nothing(
    service: Service, event: str, said: object, status: int, outcome: str
) -> None:
    """Only a push on our branch wakes a sync."""
    answer = _deliver(service.client, said, event)
    assert (answer.status_code, answer.json()["outcome"]) == (status, outcome)


@pytest.mark.parametrize("said", [b"{", b"[]", b"{}", b"\xff", b'"ref"', b"[" * 5000])
def test_case_11_a_signed_body_that_is_no_event_is_400(service: Service, said: bytes) -> None:
    assert _deliver(service.client, said).status_code == 400


def test_case_11_a_body_of_26_mb_is_413_by_its_length(service: Service) -> None:
    """It is not waited for."""
    parts = urlsplit(service.url)
    head = (
        f"POST /webhooks/github HTTP/1.1\r\nHost: h\r\nContent-Length: {26 * 1024 * 1024}\r\n"
        f"X-GitHub-Event: push\r\nX-Hub-Signature-256: sha256={'0' * 64}\r\n\r\n"
    )
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=30) as wire:
        wire.sendall(head.encode())
        assert wire.recv(12) == b"HTTP/1.1 413"


def test_without_a_secret_there_are_no_webhooks(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """An empty secret never verifies anything, not even what is signed with it."""
    with Service(machine("server", remote)) as plain:
        raw = json.dumps(PUSH).encode()
        empty = f"sha256={hmac.new(b'', raw, hashlib.sha256).hexdigest()}"
        assert _deliver(plain.client, raw, X_Hub_Signature_256=empty).status_code == 404


def test_case_11_a_storm_in_any_order_is_applied_once_and_the_cache_shows_the_tip(
    make: Callable[..., Machine], machine: Callable[..., Machine], tiers: Tiers
) -> None:
    """Deliveries repeated, reversed and at once: few syncs, quick answers, the newest tip."""
    other = machine("other", tiers.remote)
    with Service(make("server", server_webhook_secret=SECRET)) as service:
        for number in range(3):
            other.save(b"# N %d\n\ntext\n" % number)
        count = 10_000 if FULL else 300
        seconds: list[float] = []

        def deliver(number: int) -> int:
            started = time.monotonic()
            status = _deliver(
                service.client, {**PUSH, "after": f"{9 - number % 10:040}"}
            ).status_code
            seconds.append(time.monotonic() - started)
            return status

        with ThreadPoolExecutor(10) as threads:
            assert set(threads.map(deliver, range(count))) == {202}
        _settled(service)
        synced = service.lines("sync done")
        assert 1 <= len(synced) < count / 2  # one takes hardly longer than a delivery
        if FULL:
            assert statistics.quantiles(seconds, n=100)[98] < 1.0
        assert synced[-1]["after"] == _tip(tiers.remote)
        assert _held(tiers.direct) == (_tip(tiers.remote), 3)


def _settled(service: Service) -> None:
    """Wait until a sync that began after all deliveries has ended: the second from now."""
    for _ in range(2):
        done = len(service.lines("sync done"))
        assert _deliver(service.client, PUSH).status_code == 202
        service.wait_for("sync done", done + 1)


def _tip(remote: Path) -> str:
    return (remote / "refs" / "heads" / "main").read_text().strip()


def _held(url: str) -> tuple[str, int]:
    with psycopg.connect(url) as db:
        commit = db.execute("SELECT commit FROM annoris.state").fetchone()
        count = db.execute("SELECT count(*) FROM annoris.sessions").fetchone()
    assert commit
    assert count
    return commit[0], count[0]


def test_a_webhook_to_one_server_is_seen_by_the_other(
    make: Callable[..., Machine], machine: Callable[..., Machine], tiers: Tiers
) -> None:
    """Two servers on one PostgreSQL: both take saves and loads, and what one of them was told of
    is in the hot cache for both.
    """
    patient = {"server_webhook_secret": SECRET, "master_fresh_seconds": "100000"}
    with Service(make("one", **patient)) as one, Service(make("two", **patient)) as two:
        mine = save(one.client, "# Mine\n\ntext\n").json()
        assert two.client.get(f"/api/v1/sessions/{mine['id']}").headers["annoris-tier"] == "hot"
        (theirs,) = machine("other", tiers.remote).save(b"# Theirs\n\ntext\n")
        where = f"/api/v1/sessions/{theirs.id}"
        assert _deliver(one.client, PUSH).status_code == 202
        one.wait_for("sync done")
        found = two.client.get(where)
        assert (found.status_code, found.headers["annoris-tier"]) == (200, "hot")
        edited = two.client.put(
            where, content="# Theirs\n\nedited\n",
            headers={"If-Match": found.headers["etag"], "Content-Type": "text/markdown"},
        )  # fmt: skip
        assert edited.status_code == 200, edited.text
        assert one.client.get(where).json()["text"].endswith("edited\n")


def test_case_12_lost_webhooks_are_made_up_for_by_the_clock(
    make: Callable[..., Machine], machine: Callable[..., Machine], tiers: Tiers
) -> None:
    """No delivery ever came; status says how old the view is, and one sync heals it."""
    other = machine("other", tiers.remote)
    server = make("server", master_fresh_seconds="100000")
    with Service(server) as service:
        before = service.client.get("/api/v1/status").json()
        for number in range(4):
            other.save(b"# N %d\n\ntext\n" % number)
        stale = service.client.get("/api/v1/status").json()
        assert (stale["sessions"], stale["checked"]) == (0, before["checked"])
        assert service.stop() == 0
    with Service(server, "--schedule") as service:
        service.wait_for("sync done")
        assert service.client.get("/api/v1/status").json()["sessions"] == 4
        assert _held(tiers.direct) == (_tip(tiers.remote), 4)


@pytest.mark.skipif(not FULL, reason="ANNORIS_FULL=1 runs the long campaigns")
def test_case_13_one_delivery_for_2100_commits_and_3500_files(
    make: Callable[..., Machine], machine: Callable[..., Machine], tiers: Tiers
) -> None:
    """However much one push brings, one delivery makes the cache equal the tree."""
    other = machine("other", tiers.remote)
    with Service(make("server", server_webhook_secret=SECRET)) as service:
        other.save(b"# First\n")
        for _ in range(3):
            other.save(*(b"# N %d\n\n%d\n" % (n, time.monotonic_ns()) for n in range(1200)))
        assert _deliver(service.client, PUSH).status_code == 202
        service.wait_for("sync done")
        assert _held(tiers.direct) == (_tip(tiers.remote), 3601)


def test_a_sync_that_fails_is_tried_again_without_a_second_delivery(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """GitHub delivers once; the remote comes back a moment later."""
    here = machine("server", remote, server_webhook_secret=SECRET, master_push_seconds="3")
    with Service(here) as service:
        away = remote.rename(remote.with_name("away.git"))
        assert _deliver(service.client, PUSH).status_code == 202
        service.wait_for("sync failed")
        away.rename(remote)
        service.wait_for("sync done")


class _GitHub(BaseHTTPRequestHandler):
    """The part of GitHub's API that hooks need."""

    hooks: list[dict[str, Any]]
    seen: list[tuple[str, str, str]]

    def _answer(self, status: int, said: object) -> None:
        raw = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _note(self) -> Any:
        self.seen.append((self.command, self.path, self.headers.get("Authorization", "")))
        size = int(self.headers.get("Content-Length", 0))
        return json.loads(self.rfile.read(size)) if size else None

    def do_GET(self) -> None:
        self._note()
        if "refused" in self.path:
            self._answer(404, {})
            return
        self._answer(200, self.hooks)

    def do_POST(self) -> None:
        said = self._note()
        self.hooks.append({"id": len(self.hooks) + 1, **said})
        self._answer(201, self.hooks[-1])

    def do_PATCH(self) -> None:
        self.hooks[int(self.path.rsplit("/", 1)[1]) - 1].update(self._note())
        self._answer(200, {})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def github() -> Iterator[tuple[str, type[_GitHub]]]:
    handler = type("Handler", (_GitHub,), {"hooks": [], "seen": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def test_setup_prints_what_to_enter_and_keeps_the_secret(machine: Callable[..., Machine]) -> None:
    """The secret is new, long, in the configuration (0600), and the one that was shown."""
    here = machine()
    ran = here.run("webhook", "setup", "https://s.example.com/", "--json")
    shown = ran.json["webhook"]
    assert shown["url"] == "https://s.example.com/webhooks/github"
    config = Path(shown["config"])
    assert config.stat().st_mode & 0o077 == 0
    assert f'webhook_secret = "{shown["secret"]}"' in config.read_text()
    assert len(shown["secret"]) == 64
    assert here.run("webhook", "setup", "s.example.com").code == 2
    told = here.run("webhook", "setup", "https://s.example.com")
    assert "application/json" in told.text


def test_setup_creates_the_hook_once_and_gives_it_the_new_secret(
    machine: Callable[..., Machine], github: tuple[str, type[_GitHub]]
) -> None:
    """The second run changes the first one's hook; the token is in a header, not in the URL."""
    base, handler = github
    token = "ghp_" + "a1B2" * 9
    here = machine(
        remote="https://github.com/me/notes.git", server_github_api=base, master_token=token
    )
    for _ in range(2):
        ran = here.run("webhook", "setup", "https://s.example.com", "--create", "--json")
        assert ran.code == 0, ran.err
        assert ran.json["webhook"]["secret"] == handler.hooks[0]["config"]["secret"]
    assert len(handler.hooks) == 1
    assert handler.hooks[0]["events"] == ["push"]
    assert {path.split("?")[0] for _, path, _ in handler.seen} == {
        "/repos/me/notes/hooks", "/repos/me/notes/hooks/1",
    }  # fmt: skip
    assert {given for _, _, given in handler.seen} == {f"Bearer {token}"}


def test_setup_that_github_refuses_changes_nothing(
    machine: Callable[..., Machine], github: tuple[str, type[_GitHub]]
) -> None:
    """No token, no right, no answer, no repository there: an error, and no secret is written."""
    base, _ = github
    token = "ghp_" + "a1B2" * 9
    hub, dead = "https://github.com/me/notes", "http://127.0.0.1:1"
    cases = [
        ({"master_token": token}, "https://github.com/me/refused", 10),
        ({}, hub, 2),
        ({"master_token": token}, "", 2),
        ({"master_token": token, "server_github_api": dead}, hub, 5),
        ({"master_token": token, "server_github_api": "http://evil.example"}, hub, 2),
    ]  # fmt: skip
    for number, (settings, remote, code) in enumerate(cases):
        here = machine(f"m{number}", remote=remote, **{"server_github_api": base, **settings})
        ran = here.run("webhook", "setup", "https://s.example.com", "--create")
        assert ran.code == code, ran.err
        assert token not in ran.err + ran.text
        assert not list(here.folder.glob(".config/annoris/*"))
