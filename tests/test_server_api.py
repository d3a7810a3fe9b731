"""The REST API: a real server, real git, real PostgreSQL and Valkey."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from annoris.cli import EXIT
from annoris.envelope import load_ring, sealed_by
from annoris.intake import SaveOptions
from annoris.layout import transcript_of
from annoris.model import Draft, Receipt
from annoris.server.courier import Courier
from annoris.server.pool import Pool
from annoris.server.problems import STATUS
from annoris.server.writing import take
from annoris.settings import load
from tests.support import githttp
from tests.support.githttp import GitServer, bare, commit
from tests.support.machine import Machine
from tests.support.service import Service, on_master, save, wait_until
from tests.support.tiers import Tiers

ABSENT = "019ab3f2-7c1e-7d20-9a51-4be03f2a9c1e"
FULL = bool(os.environ.get("ANNORIS_FULL"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server without tokens on loopback, for all tests here; each has a project of its own."""
    folder = tmp_path_factory.mktemp("service")
    remote = bare(folder / "remote.git")
    machine = Machine(folder / "server", str(remote), {"master_fresh_seconds": "0.001"})
    with Service(machine) as running:
        yield running


@pytest.fixture
def project() -> str:
    return f"p-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The remote of the shared server where a test uses that, else one of its own."""
    if "service" not in request.fixturenames:
        return bare(tmp_path / "remote.git")
    running: Service = request.getfixturevalue("service")
    return Path(running.machine.environment["ANNORIS_MASTER_REMOTE"])


def _of(client: httpx.Client, project: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(
        "/api/v1/sessions", params={"project": project, "limit": 500}
    ).json()["sessions"]
    return found


def _markdown(client: httpx.Client, id: str, **query: str) -> httpx.Response:
    headers = {"Accept": "text/markdown"}
    return client.get(f"/api/v1/sessions/{id}", headers=headers, params=query)


def _put(client: httpx.Client, id: str, text: bytes | str, **headers: str) -> httpx.Response:
    told = {"Content-Type": "text/markdown", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return client.put(f"/api/v1/sessions/{id}", content=text, headers=told)


def test_a_session_lives_from_its_first_save_to_its_removal(
    service: Service, remote: Path, project: str
) -> None:
    """Create, read in both forms, update by ETag, compare, search, list and delete."""
    client = service.client
    made = save(client, "# Retries\n\nThe queue zeisig stalls.\n", project=project, name="retries")
    assert made.status_code == 201, made.text
    id = made.json()["id"]
    assert made.headers["location"] == f"/api/v1/sessions/{id}"
    assert on_master(remote)[made.json()["path"]].endswith(b"The queue zeisig stalls.\n")

    text = _markdown(client, id)
    assert text.headers["content-type"].startswith("text/markdown")
    assert text.headers["etag"] == made.headers["etag"]
    assert text.headers["annoris-tier"] == "clone"
    assert int(text.headers["age"]) >= 0
    assert client.get(f"/api/v1/sessions/newest?project={project}&name=retries").json()["id"] == id
    again = {"Accept": "text/markdown", "If-None-Match": text.headers["etag"]}
    assert client.get(f"/api/v1/sessions/{id}", headers=again).status_code == 304

    edited = text.content + b"\nSolved.\n"
    updated = _put(client, id, edited, If_Match=text.headers["etag"])
    assert updated.status_code == 200
    assert _markdown(client, id).headers["etag"] == updated.headers["etag"]
    assert "+Solved." in client.get(f"/api/v1/sessions/{id}/diff").json()["diff"]
    revisions = client.get(f"/api/v1/sessions/{id}/history").json()["revisions"]
    assert len(revisions) == 2
    older = _markdown(client, id, rev=revisions[1]["oid"])
    assert older.content == text.content

    hits = client.get("/api/v1/search", params={"q": "zeisig", "project": project})
    assert [hit["id"] for hit in hits.json()["sessions"]] == [id]
    assert [row["id"] for row in _of(client, project)] == [id]
    assert project in [item["name"] for item in client.get("/api/v1/projects").json()["projects"]]
    assert client.get("/api/v1/status").json()["sessions"] >= 1

    assert client.delete(f"/api/v1/sessions/{id}").status_code == 200
    assert client.get(f"/api/v1/sessions/{id}").status_code == 404
    assert made.json()["path"] not in on_master(remote)


def test_a_project_is_changed_and_renamed(service: Service, project: str) -> None:
    """Exact revenues, on master; an empty value takes one away; a former name still selects."""
    client, where = service.client, f"/api/v1/projects/{project}"
    save(client, "# One\n\ntext\n", project=project)
    done = client.patch(where, json={"status": "active", "target_revenue": "12000.10"})
    assert done.status_code == 200, done.text
    assert (done.json()["target_revenue"], done.json()["sessions"]) == ("12000.10", 1)
    renamed = client.patch(where, json={"name": f"{project}-new", "status": ""})
    assert renamed.json()["was"] == [project]
    assert client.get(where).json()["name"] == f"{project}-new"
    assert client.get(where).json()["status"] == ""
    assert client.patch(where, json={"target_revenue": "many"}).status_code == 422
    assert client.patch(where, json={"nonsense": "1"}).status_code == 422
    assert client.get("/api/v1/projects/nobody").status_code == 404


def test_a_list_is_paged_by_cursors_without_gaps_or_repeats(service: Service, project: str) -> None:
    """Pages of two give all five sessions once, newest first, and a link to the next page."""
    for number in range(5):
        save(service.client, f"# N {number}\n\ntext\n", project=project)
    found: list[str] = []
    query: dict[str, str] = {"limit": "2", "project": project}
    while True:
        page = service.client.get("/api/v1/sessions", params=query)
        found += [row["title"] for row in page.json()["sessions"]]
        if not page.json()["next"]:
            assert "link" not in page.headers
            break
        assert 'rel="next"' in page.headers["link"]
        query["cursor"] = page.json()["next"]
    assert sorted(found) == [f"N {number}" for number in range(5)]
    assert found == [row["title"] for row in _of(service.client, project)]
    assert service.client.get("/api/v1/sessions?cursor=eA==").status_code == 422


def test_the_log_is_paged_and_a_verify_is_in_it(make: Callable[..., Machine], tiers: Tiers) -> None:
    """A verify by a token that may read; only admin repairs; pages from the shared log and, while
    that is away, from this machine's own; a page that the other one began is gone on with.
    """
    here = make("server")
    admin, reader = (
        here.run("token", "new", "--scope", scope).text.strip() for scope in ("admin", "read")
    )
    with Service(here, token=reader) as service:
        client = service.client
        for _ in range(4):
            found = client.post("/api/v1/verify")
            assert found.status_code == 200, found.text
        assert (found.json()["sound"], found.json()["quick"]) == (True, True)
        assert client.post("/api/v1/verify?repair=true").status_code == 403
        commit(tiers.remote, {"sessions/broken.md": b"\xff\n"})
        with service.as_(admin) as owner:
            assert owner.post("/api/v1/sync").status_code == 200
            whole = owner.post("/api/v1/verify?quick=false&repair=true&sample=50&seed=7").json()
        assert (whole["sound"], whole["count"], whole["seed"]) == (False, 1, 7)
        assert whole["findings"][0]["kind"] == "document-unreadable"
        runs = _pages(client, "/api/v1/sync-log?limit=2", "hot")
        assert [run["kind"] for run in runs] == ["verify", "sync", *["verify"] * 4]
        assert runs[0]["source"] == "api"
        first = client.get("/api/v1/sync-log?limit=4&kind=verify").json()
        tiers.set(hot=False)
        rest = client.get(f"/api/v1/sync-log?kind=verify&cursor={first['next']}").json()
        assert rest["log"] == "here"
        assert [run["key"] for run in rest["runs"]] == [runs[-1]["key"]]
        own = _pages(client, "/api/v1/sync-log?limit=2", "here")
        assert [run["key"] for run in own] == [run["key"] for run in runs]
        for cursor in ("eA==", "WyJ4IiwiMSIsImsiXQ==", "WzFd"):
            assert client.get(f"/api/v1/sync-log?cursor={cursor}").status_code == 422


def _pages(client: httpx.Client, path: str, log: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    more = ""
    while True:
        page = client.get(f"{path}{more}").json()
        assert page["log"] == log
        found += page["runs"]
        if not page["next"]:
            return found
        more = f"&cursor={page['next']}"


def test_an_update_from_an_older_revision_is_412_and_changes_nothing(service: Service) -> None:
    """If-Match protects from a lost update; without any base it is 428; a star replaces any."""
    client = service.client
    made = save(client, "# One\n\nfirst\n").json()
    first = _markdown(client, made["id"]).headers["etag"]
    assert _put(client, made["id"], "# One\n\nsecond\n", If_Match=first).status_code == 200
    late = _put(client, made["id"], "# One\n\nthird\n", If_Match=first)
    assert late.status_code == 412
    assert late.json()["code"] == "precondition"
    assert _put(client, made["id"], "# One\n\nfourth\n").status_code == 428
    assert b"second" in _markdown(client, made["id"]).content
    assert (
        client.delete(f"/api/v1/sessions/{made['id']}", headers={"If-Match": first}).status_code
        == 412
    )
    assert _put(client, made["id"], "# One\n\nfifth\n", If_Match="*").status_code == 200
    assert _put(client, ABSENT, "# One\n\nsixth\n", If_Match="*").status_code == 404


def test_of_many_updates_from_one_revision_one_wins(service: Service, project: str) -> None:
    """Eight at once with one ETag: one is 200, the others are told, and no copy is made."""
    client = service.client
    made = save(client, "# One\n\nfirst\n", project=project)
    id, etag = made.json()["id"], made.headers["etag"]

    def edit(number: int) -> int:
        return _put(client, id, f"# One\n\nby {number}\n", If_Match=etag).status_code

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(edit, range(8)))
    assert sorted(answers) == [200] + [412] * 7
    assert len(_of(client, project)) == 1


def test_an_edit_that_lost_a_race_is_409_and_names_the_copy(
    service: Service, machine: Callable[..., Machine], remote: Path
) -> None:
    """A document that carries the mark of an older revision is kept beside the newer one."""
    client = service.client
    made = save(client, "# One\n\nfirst\n").json()
    mine = _markdown(client, made["id"]).content + b"\nmine\n"
    other = machine("other", remote)
    assert other.sync().code == 0
    other.save(other.load(made["id"]) + b"\ntheirs\n")
    lost = _put(client, made["id"], mine)
    assert lost.status_code == 409
    problem = lost.json()
    assert (problem["code"], problem["conflict_of"]) == ("conflict", made["id"])
    assert _markdown(client, problem["copy"]).content.endswith(b"mine\n")
    assert _markdown(client, made["id"]).content.endswith(b"theirs\n")


def test_of_machines_that_edit_one_revision_at_once_one_wins_and_the_others_are_told(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Three servers that believe what they saw last: 412, no lost update, no copy; a removal too.
    Who does not wait for the answer gets a copy instead, for a 202 is kept.
    """
    believing = {"master_fresh_seconds": "100000"}
    laptop = machine("laptop", remote)
    (made,) = laptop.save(b"# One\n\nfirst\n")
    with (
        Service(machine("a", remote, **believing)) as a,
        Service(machine("b", remote, **believing)) as b,
        Service(machine("c", remote, **believing)) as c,
    ):
        etag = _markdown(a.client, made.id).headers["etag"]
        for service in (b, c):
            assert _markdown(service.client, made.id).headers["etag"] == etag

        def edit(service: Service) -> httpx.Response:
            return _put(service.client, made.id, f"# One\n\nby {service.url}\n", If_Match=etag)

        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(edit, (a, b)))
        assert sorted(answer.status_code for answer in answers) == [200, 412]
        lost = next(answer for answer in answers if answer.status_code == 412)
        assert (lost.json()["code"], lost.headers["etag"] == etag) == ("precondition", False)
        assert list(on_master(remote)) == [made.path]
        headers = {"If-Match": etag}
        gone = c.client.delete(f"/api/v1/sessions/{made.id}", headers=headers)
        assert gone.status_code == 412
        assert list(on_master(remote)) == [made.path]
        for service in (a, b, c):
            assert service.client.get("/api/v1/status").json()["waiting"] == 0
        mine = _markdown(c.client, made.id).headers["etag"]
        laptop.sync()
        laptop.save(laptop.load(made.id) + b"\nfaster\n")
        late = _put(c.client, made.id, "# One\n\nlate\n", If_Match=mine, Prefer="respond-async")
        assert late.status_code == 202
        assert c.stop() == 0
        assert sorted(data[-6:] for data in on_master(remote).values()) == [b"\nlate\n", b"aster\n"]


def test_a_retried_create_with_the_same_key_makes_no_second_session(
    service: Service, machine: Callable[..., Machine], remote: Path
) -> None:
    """On the same server, on another replica, at once, and after the session was edited."""
    word = uuid.uuid4().hex
    body = f"# Keyed\n\n{word}\n".encode()
    headers = {"Idempotency-Key": "k-1", "Content-Type": "text/markdown"}

    def post(client: httpx.Client, text: bytes = body) -> httpx.Response:
        return client.post("/api/v1/sessions", content=text, headers=headers)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: post(service.client), range(4)))
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 1
    assert {answer.status_code for answer in answers} <= {200, 201, 202}
    id = ids.pop()
    with Service(machine("replica", remote, master_fresh_seconds="1000")) as replica:
        assert post(replica.client).json()["id"] == id
    assert sum(word.encode() in data for data in on_master(remote).values()) == 1
    assert _put(service.client, id, "# Keyed\n\nedited\n", If_Match="*").status_code == 200
    retried = post(service.client)
    assert (retried.status_code, retried.json()["id"]) == (200, id)
    assert b"edited" in _markdown(service.client, id).content
    assert post(service.client, b"# Keyed\n\nanother\n").status_code == 422


def test_fifty_clients_that_create_at_once_share_few_pushes(service: Service, remote: Path) -> None:
    """Every 201 is on master when it is answered; pushes are far fewer than documents."""
    assert save(service.client, "# Before\n\ntext\n").status_code == 201  # the very first adds two
    before = _commits(remote)
    with ThreadPoolExecutor(50) as threads:
        answers = list(
            threads.map(lambda n: save(service.client, f"# N {n}\n\ntext {n}\n"), range(50))
        )
    assert [answer.status_code for answer in answers] == [201] * 50
    paths = on_master(remote)
    assert {answer.json()["path"] for answer in answers} <= paths.keys()
    made = {answer.json()["commit"] for answer in answers}
    assert len(made) <= 15  # each push answers with the commit that it ended in
    assert _commits(remote) == before + 50


def test_pushes_are_no_more_often_than_set_and_a_server_that_ends_waits_for_none(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """The first goes at once; what comes within the minute is one push, here that of the end."""
    later = {"Prefer": "respond-async", "Content-Type": "text/markdown"}
    with Service(machine("server", remote), ANNORIS_SERVER_PUSHES="1") as service:
        assert save(service.client, "# First\n\ntext\n").status_code == 201
        for number in range(5):
            text = f"# Later {number}\n\ntext\n".encode()
            answer = service.client.post("/api/v1/sessions", content=text, headers=later)
            assert answer.status_code == 202
        assert len(on_master(remote)) == 1
        assert service.stop() == 0
    assert len(on_master(remote)) == 6


def test_a_delivery_waits_for_what_is_being_taken_in(
    machine: Callable[..., Machine], remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a small one would go first, and all that come meanwhile would wait for two."""
    monkeypatch.setattr("annoris.server.courier._GATHER_SECONDS", 60.0)
    pool = Pool(load(environ=machine("server", remote).environment), lambda *_: None)
    rounds: list[int] = []
    courier = Courier(pool, lambda receipts, _: rounds.append(len(receipts)))

    def deliver(number: int) -> Future[Receipt]:
        taken = take(pool, f"# N {number}\n\ntext {number}\n".encode(), SaveOptions()).item
        assert isinstance(taken, Draft)
        return courier.deliver(taken)

    courier.start()
    try:
        assert deliver(0).result(60).state == "master"
        rounds.clear()
        courier._took = 60.0
        with courier.expecting():
            first = deliver(1)
            time.sleep(0.3)
            second = deliver(2)
        assert (first.result(60).state, second.result(60).state) == ("master", "master")
    finally:
        courier.stop(60)
        pool.close()
    assert rounds == [2]


def test_what_waits_for_master_is_not_tried_again_for_a_request_that_brings_nothing(
    machine: Callable[..., Machine],
) -> None:
    here = machine("server", "http://127.0.0.1:9/none.git")
    assert here.run("save", "-", stdin=b"# Waits\n\ntext\n").code == 75
    pool = Pool(load(environ=here.environment), lambda *_: None)
    rounds: list[float] = []
    courier = Courier(pool, lambda _, seconds: rounds.append(seconds))
    courier.start()
    try:
        wait_until(lambda: bool(rounds))
        for _ in range(5):  # the first may come before it waits again
            time.sleep(0.2)
            with courier.expecting():
                pass
    finally:
        courier.stop(60)
        pool.close()
    assert len(rounds) == 2  # when it began and when it ended


def _commits(remote: Path) -> int:
    count = ["git", "--git-dir", str(remote), "rev-list", "--count", "--all"]
    return int(subprocess.check_output(count))


def test_a_create_while_master_is_away_is_202_and_its_receipt_becomes_true(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """Nothing but 202 is answered before master has it; the receipt says when it does."""
    machine = make("server", master_push_seconds="2", server_answer_seconds="20")
    with Service(machine) as service:
        first = save(service.client, "# First\n\ntext\n")
        assert (first.status_code, first.json()["cached"]) == (201, "hot")
        tiers.set(master=False)
        queued = save(service.client, "# Second\n\nzeisig\n")
        assert queued.status_code in (202, 409), queued.text
        key = queued.json()["key"]
        shown = service.client.get(f"/api/v1/receipts/{key}").json()
        assert shown["state"] in ("queued", "refused")
        assert service.client.get("/api/v1/search?q=zeisig").json()["sessions"][0]["pending"] == key
        tiers.set()
        assert service.client.post("/api/v1/sync").status_code == 200
        done = service.client.get(f"/api/v1/receipts/{key}").json()
        assert done["state"] == "master", done
        assert done["path"] in on_master(tiers.remote)


def test_what_master_refuses_is_no_success(
    machine: Callable[..., Machine], server: GitServer
) -> None:
    """A refused text is 422 and set aside; under a protected branch all is 409 and kept."""
    with Service(machine("server", server.url)) as service:
        save(service.client, "# First\n\ntext\n")
        server.refuse_content(b"NOT-FOR-GITHUB")
        refused = save(service.client, "# Two\n\nNOT-FOR-GITHUB\n")
        assert (refused.status_code, refused.json()["code"]) == (422, "refused-policy")
        assert "secret" in refused.json()["detail"]
        server.allow_all()
        server.protect()
        kept = save(service.client, "# Three\n\ntext\n")
        assert (kept.status_code, kept.json()["code"]) == (409, "refused")
        server.allow_all()
        assert service.client.post("/api/v1/sync").status_code == 200
        key = kept.json()["key"]
        assert service.client.get(f"/api/v1/receipts/{key}").json()["state"] == "master"
        key = refused.json()["key"]
        assert service.client.get(f"/api/v1/receipts/{key}").json()["state"] == "refused"
        assert sum(path.endswith(".md") for path in server.files()) == 2


def test_a_create_that_takes_too_long_is_202_and_not_lost(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Nobody waits longer than answer_seconds."""
    patience = {"ANNORIS_SERVER_ANSWER_SECONDS": "0.0001"}
    with Service(machine("server", remote), **patience) as service:
        slow = save(service.client, "# Slow\n\ntext\n")
        assert (slow.status_code, slow.json()["state"]) == (202, "queued")
        assert service.stop() == 0
        assert slow.json()["path"] in on_master(remote)


def test_respond_async_is_202_at_once_and_the_receipt_outlives_the_server(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Another server, which never heard of the key, finds the receipt in master's history."""
    headers = {"Prefer": "respond-async", "Content-Type": "text/markdown"}
    with Service(machine("server", remote)) as service:
        later = service.client.post("/api/v1/sessions", content=b"# Later\n", headers=headers)
        assert later.status_code == 202
        where = later.headers["location"]
        assert service.stop() == 0
    with Service(machine("replica", remote)) as replica:
        found = replica.client.get(where)
        assert found.json()["state"] == "master"
        assert found.json()["id"] == later.json()["id"]
        nobody = where.replace(where[-6:], "ffff.0")
        assert replica.client.get(nobody).status_code == 404


def test_a_full_queue_is_202_and_each_receipt_becomes_true(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Of many creates at once those beyond the queue do not wait; all are on master in the end."""
    with Service(machine("server", remote), ANNORIS_SERVER_QUEUE="2") as service:
        with ThreadPoolExecutor(24) as threads:
            answers = list(
                threads.map(lambda n: save(service.client, f"# N {n}\n\ntext {n}\n"), range(24))
            )
        assert {answer.status_code for answer in answers} == {201, 202}
        for answer in answers:
            key = answer.json()["key"]
            where = f"/api/v1/receipts/{key}"
            if answer.status_code == 202:
                assert (answer.json()["state"], answer.headers["location"]) == ("queued", where)
            wait_until(lambda: service.client.get(where).json()["state"] == "master")  # noqa: B023
            told = service.client.get(where).json()
            assert (told["id"], told["path"]) == (answer.json()["id"], answer.json()["path"])
        assert {answer.json()["path"] for answer in answers} == on_master(remote).keys()


def test_case_22_bytes_come_back_as_they_went_in(service: Service) -> None:
    """Line ends, marks and odd endings survive in and out, raw and in JSON, compressed or not."""
    bodies = [
        b"# A\r\n\r\ncrlf\r\n", b"# B\n\nmixed\r\nends\n", b"# C\r\rcr\r", b"# D\n\nno end",
        b"\xef\xbb\xbf# E\n\nwith a mark\n", b"# F\n\n" + b"x" * 300_000 + b"\n",
        b"# G\n\n<<<<<<< ours\n=======\n>>>>>>> theirs\n", "# H\n\nжуёт 🎉 \u202e\n".encode(),
    ]  # fmt: skip
    for body in bodies:
        raw = save(service.client, body)
        assert raw.status_code == 201, raw.text
        id = raw.json()["id"]
        for encoding in ("identity", "gzip"):
            got = service.client.get(
                f"/api/v1/sessions/{id}?part=body",
                headers={"Accept": "text/markdown", "Accept-Encoding": encoding},
            )
            assert got.content == body
        whole = _markdown(service.client, id)
        same = _put(service.client, id, whole.content, If_Match=whole.headers["etag"])
        assert same.json()["state"] == "unchanged"
        text = service.client.get(f"/api/v1/sessions/{id}").json()["text"]
        assert text.encode() == whole.content
    in_json = service.client.post("/api/v1/sessions", json={"text": "# J\r\n\r\nx\r\n"}).json()
    assert _markdown(service.client, in_json["id"], part="body").content == b"# J\r\n\r\nx\r\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"# A\n\n\x00", "5"),
        (b"# A\n\n\xff", "5"),
        (b"", "empty"),
        (b"# A\n\nghp_%b\n" % (b"a1B2" * 9), ":3:"),
    ],
)
def test_case_22_what_is_no_document_is_422_and_says_where(
    service: Service, text: bytes, told: str, project: str
) -> None:
    """NUL, bytes that are no UTF-8, nothing, a credential: refused before anything is kept."""
    refused = save(service.client, text, project=project)
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    assert told in refused.json()["detail"]
    assert _of(service.client, project) == []


def test_case_28_bad_requests_get_their_status_and_a_problem(service: Service) -> None:
    """Paths that climb, ids that are none, foreign types, forms and methods; nothing is 500."""
    client = service.client
    for path in ("..%2f..%2fetc%2fpasswd", "..", "%00", "a" * 300, "<script>", ABSENT):
        status = client.get(f"/api/v1/sessions/{path}").status_code
        assert status in (404, 422), path
    for path in ("/static/..%2f__init__.py", "/static/%2e%2e/app.py", "/static/../app.py"):
        assert client.get(path).status_code == 404

    def typed(kind: str) -> int:
        return client.post(
            "/api/v1/sessions", content=b"x", headers={"Content-Type": kind}
        ).status_code

    assert typed("image/png") == 415
    assert typed("application/json") == 422
    assert (
        client.get(f"/api/v1/sessions/{ABSENT}", headers={"Accept": "image/png"}).status_code == 406
    )
    assert client.patch(f"/api/v1/sessions/{ABSENT}").headers["allow"]
    problem = client.get("/api/v1/sessions?nonsense=1", headers={"X-Request-ID": "mine-1"})
    assert problem.status_code == 422
    assert problem.json()["request_id"] == problem.headers["x-request-id"] == "mine-1"
    assert set(problem.json()) >= {"type", "title", "status", "detail", "code", "hint"}


def test_case_28_text_is_never_run(service: Service) -> None:
    """A script in a title comes back as text that no browser would run."""
    made = save(service.client, "# <script>alert(1)</script>\n\n[x](javascript:alert(1))\n").json()
    for accept in ("text/markdown", "application/json"):
        got = service.client.get(f"/api/v1/sessions/{made['id']}", headers={"Accept": accept})
        assert got.headers["content-type"].split(";")[0] == accept
        assert got.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in got.headers["content-security-policy"]


def test_case_28_a_body_of_100_mb_is_413_before_it_is_read(service: Service) -> None:
    """By its declared length at once; without one as soon as the limit is passed."""
    parts = urlsplit(service.url)
    head = "POST /api/v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/markdown\r\n"
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=30) as wire:
        wire.sendall(f"{head}Content-Length: 104857600\r\n\r\n".encode())
        assert wire.recv(12) == b"HTTP/1.1 413"

    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=30) as wire:
        wire.sendall(f"{head}Content-Length: 100\r\n\r\n# cut".encode())

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1_048_576

    with service.as_("") as client:
        answer = client.post("/api/v1/sessions", content=endless())
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    big = save(service.client, b"# X\n\n" + b"y" * 21 * 1024 * 1024)
    assert big.status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example:8080"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"X-Forwarded-For": "203.0.113.7"},
    ],
)
def test_case_28_a_page_in_a_browser_here_is_refused(
    service: Service, headers: dict[str, str]
) -> None:
    """DNS rebinding and requests from another origin reach loopback, and get nothing."""
    kind = {"Content-Type": "text/plain"}
    posted = service.client.post("/api/v1/sessions", content=b"# X\n", headers={**kind, **headers})
    assert (posted.status_code, posted.json()["code"]) == (403, "origin")
    assert service.client.get("/api/v1/sessions", headers=headers).status_code == 403


def test_a_stop_under_load_loses_nothing(machine: Callable[..., Machine], remote: Path) -> None:
    """Every document that was answered 201 or 202 before or during SIGTERM is on master."""
    with Service(machine("server", remote)) as service, ThreadPoolExecutor(12) as threads:

        def one(number: int) -> str:
            try:
                answer = save(service.client, f"# N {number}\n\ntext\n")
            except httpx.TransportError:
                return ""
            if number == 10:
                service.process.send_signal(signal.SIGTERM)
            return str(answer.json()["path"]) if answer.status_code in (201, 202) else ""

        kept = {path for path in threads.map(one, range(60)) if path}
        assert service.process.wait(60) == 0
        assert [line["event"] for line in service.lines()][-1] == "stopped"
    assert len(kept) >= 10
    assert kept <= on_master(remote).keys()


def test_a_server_begins_with_what_an_earlier_one_left(
    machine: Callable[..., Machine], remote: Path
) -> None:
    """Documents that a killed server kept in its outbox are on master soon, unasked."""
    where = machine("server", remote)
    away = remote.rename(remote.with_name("away.git"))
    queued = where.run("save", "-", "--json", stdin=b"# Left\n\ntext\n")
    assert queued.code in (10, 75)
    away.rename(remote)
    (where.data / "breaker.json").unlink(missing_ok=True)
    with Service(where) as service:
        key = service.client.get("/api/v1/sessions").json()["sessions"][0]["pending"]
        for _ in range(200):
            if not key or service.client.get(f"/api/v1/receipts/{key}").json()["state"] == "master":
                break
    assert len(on_master(remote)) == 1


@pytest.mark.parametrize("scope", ["caches", "everything"])
def test_a_server_goes_on_with_the_new_key_after_a_rotation(
    scope: str, make: Callable[..., Machine], tiers: Tiers
) -> None:
    """Unasked: what was sealed again is read from the hot cache, and new texts get the new key."""
    here = make("server", encryption_scope=scope)
    del here.environment["ANNORIS_KEY"]
    assert here.run("key", "new").code == 0
    with Service(here) as service:
        first = save(service.client, "# One\n\ntext\n").json()["id"]
        rotated = here.run("key", "rotate", "--json")
        assert rotated.code == 0, rotated.err
        new, old = _keys(here)
        tier = _markdown(service.client, first).headers["annoris-tier"]
        assert tier == ("hot" if scope == "caches" else "clone")  # master has other blobs now
        second = save(service.client, "# Two\n\ntext\n")
        assert (second.status_code, second.json()["cached"]) == (201, "hot")
        assert _markdown(service.client, second.json()["id"]).headers["annoris-tier"] == "hot"
        assert not service.lines("cache left out")
        with psycopg.connect(tiers.direct) as db:
            sealed = db.execute("SELECT content FROM annoris.sessions").fetchall()
        assert len(sealed) == 2
        assert {sealed_by(content) for (content,) in sealed} == {new} != {old}


def _keys(machine: Machine) -> list[str]:
    """The ids of a machine's keys, the current one first."""
    return [key.id for key in load_ring(str(machine.data / "key")).keys]


def test_each_state_of_the_caches_is_answered_from_another_tier(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """A long-lived server goes from hot to the clone when hot dies, and back after it."""
    machine = make("server")
    with Service(machine) as service:
        id = save(service.client, "# One\n\ntext\n").json()["id"]
        assert _markdown(service.client, id).headers["annoris-tier"] == "hot"
        tiers.set(hot=False)
        assert _markdown(service.client, id).headers["annoris-tier"] == "clone"
        assert 'annoris_breaker_open{tier="hot"} 1.0' in service.client.get("/metrics").text
        emergency = save(service.client, "# Two\n\ntext\n").json()
        assert emergency["cached"] == "emergency"
        tiers.emergency.mode = "blackhole"  # which cuts the connection that the server had
        assert save(service.client, "# Three\n\ntext\n").json()["cached"] == ""
        tiers.set(hot=False)
        (machine.data / "breaker.json").unlink()
        assert save(service.client, "# Four\n\ntext\n").json()["cached"] == "emergency"
        tiers.set()
        (machine.data / "breaker.json").unlink()
        assert _markdown(service.client, id).headers["annoris-tier"] == "hot"
        assert service.lines("cache left out")


def test_logs_are_json_and_hold_no_secret(make: Callable[..., Machine], tiers: Tiers) -> None:
    """Not the URL of a cache, not its password, not a text, not a query."""
    tiers.set(hot=False, emergency=False)
    with Service(make("server")) as service:
        save(service.client, "# One\n\nzeisig\n")
        service.client.get(
            "/api/v1/search?q=zeisig", headers={"Authorization": "Bearer abcdefghijk"}
        )
        lines = service.lines("request")
        assert {"time", "level", "method", "path", "status", "milliseconds", "request_id"} <= set(
            lines[0]
        )
        text = service.log.read_text()
    assert service.lines("cache left out")
    for secret in ("w@rd", "w%40rd", "zeisig", "abcdefghijk", tiers.emergency_url):
        assert secret not in text


def test_a_transcript_goes_to_a_session_and_comes_back_as_it_was(
    service: Service, remote: Path, project: str
) -> None:
    """Packed on the way where the client can; lines of JSON, without credentials or masked."""
    client = service.client
    id = save(client, "# Work\n\ntext\n", project=project).json()["id"]
    where, kind = f"/api/v1/sessions/{id}/transcript", {"Content-Type": "application/jsonl"}
    assert client.get(where).status_code == 404
    lines = b'{"type": "user", "message": "hello"}\n' * 99 + b"cut {"
    put = client.put(where, content=lines, headers=kind)
    assert (put.status_code, put.json()["state"], put.json()["op"]) == (200, "master", "attach")
    assert "etag" not in put.headers
    assert id in map(transcript_of, githttp.files(remote))
    for coding in ("gzip", "identity"):
        got = client.get(where, headers={"Accept-Encoding": coding})
        assert (got.content, got.headers.get("content-encoding", "identity")) == (lines, coding)
        assert got.headers["content-type"].partition(";")[0] == "application/jsonl"
    leak = b'{"token": "' + b"ghp_" + b"a1B2" * 9 + b'"}\n'
    refused = client.put(where, content=leak, headers=kind)
    assert (refused.status_code, refused.json()["hint"]) == (422, "?redact=true masks them")
    assert client.put(f"{where}?redact=true", content=leak, headers=kind).status_code == 200
    assert b"[redacted: " in client.get(where).content
    assert client.put(where, content=b"no JSON", headers=kind).status_code == 422
    assert client.put(where, content=lines).status_code == 415
    gone = client.put(where.replace(id, ABSENT), content=lines, headers=kind)
    assert gone.status_code == 404
    assert _markdown(client, id).text.endswith("# Work\n\ntext\n")


def test_docs_and_openapi_need_no_network_and_no_token(service: Service) -> None:
    """Every file that /docs names comes from here; every operation documents its problems."""
    page = service.client.get("/docs")
    names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(names) == 3
    for name in names:
        assert "//" not in name
        assert service.client.get(f"/{name}").status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    schema = service.client.get("/openapi.json").json()
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation.get("description") or operation.get("summary"), path
            if path.startswith("/api/"):
                assert operation["security"], path
                assert {"401", "403", "422", "429", "503"} <= set(operation["responses"]), path


def test_every_error_has_a_status() -> None:
    assert EXIT.keys() <= STATUS.keys()


def test_a_load_imports_nothing_of_the_server(machine: Callable[..., Machine]) -> None:
    """Start-up of the commands stays what it is."""
    here = machine()
    here.save(b"# One\n\ntext\n")
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "annoris.cli", "load"],
        cwd=here.desk, env=here.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for module in (
        "fastapi",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "annoris.server",
        "urllib.request",
    ):
        assert f" {module}" not in ran.stderr


# What no schema can say: a NUL in a text, a credential, another revision, no revision at all.
_CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 412, 422, 428]
"""
# Which it would not know how to write.
_HOOKS = """
import schemathesis

schemathesis.serializer.alias("application/jsonl", "text/plain")
"""


@pytest.mark.timeout(1200 if FULL else 300)
def test_the_api_keeps_what_openapi_says(
    machine: Callable[..., Machine], remote: Path, tmp_path: Path
) -> None:
    """Schemathesis finds no 5xx, no undocumented status, no answer that breaks its schema."""
    here = machine("server", remote)
    token = here.run("token", "new", "--scope", "admin").text.strip()
    (tmp_path / "schemathesis.toml").write_text(_CONFIG)
    (tmp_path / "hooks.py").write_text(_HOOKS)
    phases, most = ("examples,coverage,fuzzing,stateful", "100") if FULL else ("fuzzing", "2")
    with Service(here, token=token, ANNORIS_SERVER_RATE="1000000") as service:
        save(service.client, "# One\n\ntext\n", project="p", name="n")
        ran = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json",
                "--checks", "all", "--phases", phases, "--max-examples", most, "--seed", "7",
                "--exclude-path", "/webhooks/github", "--suppress-health-check", "all",
                "--request-timeout", "60", "--no-color", "--generation-database", "none",
                "--header", f"Authorization: Bearer {token}",
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks"},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
        assert "22 passed" in ran.stdout
