"""The test servers keep their own promises, as real clients see them."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import githttp
from tests.support.githttp import GitServer
from tests.support.proxy import Proxy
from tests.support.servers import Postgres, Valkey

IMPATIENT = ("-c", "http.lowSpeedLimit=100", "-c", "http.lowSpeedTime=1")
OLD_PROTOCOL = ("-c", "protocol.version=0")  # the only one whose requests git compresses
WHO = ("-c", "user.name=A Person", "-c", "user.email=person@example.org")


def git(*arguments: str, fails: bool = False) -> str:
    """Run git and answer all that it says."""
    done = subprocess.run(
        ["git", *WHO, *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
        text=True,
        timeout=60,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


class Client:
    """A work tree on somebody's machine."""

    def __init__(self, folder: Path, url: str, *options: str) -> None:
        self.folder = folder
        git(*options, "clone", "--quiet", url, str(folder))

    def git(self, *arguments: str, fails: bool = False) -> str:
        return git("-C", str(self.folder), *arguments, fails=fails)

    def commit(self, path: str, data: bytes) -> str:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.git("add", "--", path)
        self.git("commit", "--quiet", "-m", "more")
        return self.git("rev-parse", "HEAD").strip()

    def push(self, *options: str, fails: bool = False) -> str:
        return self.git(*options, "push", "origin", "HEAD:refs/heads/main", fails=fails)


@pytest.fixture
def client(tmp_path: Path, server: GitServer) -> Client:
    return Client(tmp_path / "client", server.url)


# --- the git server --------------------------------------------------------------------------


def test_what_one_clone_pushes_another_fetches(
    tmp_path: Path, server: GitServer, client: Client
) -> None:
    tip = client.commit("sessions/a.md", b"one\r\n")
    client.push()
    assert server.head() == tip
    assert server.files() == {"sessions/a.md": b"one\r\n"}
    other = Client(tmp_path / "other", server.url)
    assert (other.folder / "sessions/a.md").read_bytes() == b"one\r\n"
    client.commit("sessions/b.md", b"two")
    client.push()
    other.git("pull", "--quiet")
    assert (other.folder / "sessions/b.md").read_bytes() == b"two"
    assert (server.pushes, server.commits()) == (2, 2)
    assert server.fetches > 0
    assert server.requests >= server.pushes + server.fetches


def test_a_push_in_chunks_arrives_whole_and_counts_once(server: GitServer, client: Client) -> None:
    data = random.Random(1).randbytes(300_000)
    client.commit("large.bin", data)
    client.push("-c", "http.postBuffer=65536")
    assert server.files() == {"large.bin": data}
    assert server.pushes == 1


def test_a_compressed_request_is_understood(
    server: GitServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):  # so many that git compresses what it says it has
        githttp.commit(client.folder / ".git", {"a.md": b"%d" % number})
    server.commit({"b.md": b"unrelated"})
    monkeypatch.setenv("GIT_TRACE_CURL", "1")
    assert "Content-Encoding: gzip" in client.git(*OLD_PROTOCOL, "fetch", "origin")
    assert client.git("rev-parse", "origin/main").strip() == server.head()


def test_many_clients_are_served_at_once(tmp_path: Path, server: GitServer) -> None:
    server.commit({"a.md": b"a"})

    def work(number: int) -> None:
        client = Client(tmp_path / f"client{number}", server.url)
        client.commit(f"{number}.md", b"x")
        client.git("push", "origin", f"HEAD:refs/heads/branch{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for number in range(4):
        assert f"{number}.md" in githttp.files(server.repo, f"branch{number}")


def test_only_the_token_opens(tmp_path: Path) -> None:
    token = "t0ken"
    with GitServer(tmp_path / "private", token=token) as server:
        server.commit({"a.md": b"a"})
        for header in ("", _basic("wrong"), "Bearer wrong", "Basic not/base64!"):
            options = ("-c", f"http.extraHeader=Authorization: {header}") if header else ()
            said = git(*options, "ls-remote", server.url, fails=True)
            assert "Authentication failed" in said or "could not read Username" in said
        for number, header in enumerate((_basic(token), f"Bearer {token}")):
            option = f"http.extraHeader=Authorization: {header}"
            client = Client(tmp_path / str(number), server.url, "-c", option)
            client.commit(f"{number}.md", b"x")
            client.push("-c", option)
        assert server.commits() == 3


def _basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"x-access-token:{token}".encode()).decode()


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_status_is_what_the_client_is_told(server: GitServer, status: int) -> None:
    server.status = status
    said = git("ls-remote", server.url, fails=True)
    assert ("not found" if status == 404 else f"error: {status}") in said
    server.status = None
    git("ls-remote", server.url)


@pytest.mark.parametrize("how", ["accept", "drip"])
def test_a_hanging_server_is_given_up_and_recovers(
    server: GitServer, client: Client, how: str
) -> None:
    client.commit("a.md", b"a")
    server.hang = "accept" if how == "accept" else "drip"
    assert "Operation too slow" in client.push(*IMPATIENT, fails=True)
    server.hang = ""
    assert (server.pushes, server.head()) == (0, "")
    client.push()
    assert server.commits() == 1


def test_a_dripping_answer_comes_byte_by_byte(server: GitServer) -> None:
    server.hang = "drip"
    port = int(server.url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(b"GET /sessions.git/info/refs?service=git-upload-pack HTTP/1.1\r\n\r\n")
        assert raw.recv(100) == b"H"
        server.hang = ""
        assert raw.recv(10).startswith(b"T")  # the second byte, or the rest at once


def test_a_push_that_its_client_gave_up_never_reaches_git(
    server: GitServer, client: Client
) -> None:
    client.commit("a.md", b"a")
    server.delay = 0.3
    asked = server.requests
    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(client.push, *IMPATIENT, fails=True)
        _until(lambda: server.requests == asked + 2)  # where the tip is, then the push
        server.hang = "accept"
        pushing.result(30)
    server.hang = ""
    assert "[new branch]" in client.push()  # had the first one come through: up-to-date
    assert (server.pushes, server.commits()) == (1, 1)


def test_a_lost_acknowledgement_leaves_the_push_applied(server: GitServer, client: Client) -> None:
    tip = client.commit("a.md", b"a")
    server.lose_ack = 1
    assert "Empty reply from server" in client.push(fails=True)
    assert (server.head(), server.pushes, server.lose_ack) == (tip, 1, 0)
    assert "Everything up-to-date" in client.push()
    assert server.pushes == 1


def test_a_cut_answer_is_an_error_once(server: GitServer, client: Client) -> None:
    tip = server.commit({"a.md": b"a" * 1000})
    server.cut = 1
    client.git("fetch", "origin", fails=True)
    client.git("fetch", "origin")
    assert client.git("rev-parse", "origin/main").strip() == tip


def test_a_protected_branch_refuses_every_push_to_it(server: GitServer, client: Client) -> None:
    client.commit("a.md", b"a")
    server.protect()
    said = client.push(fails=True)
    assert "remote: error: GH006: Protected branch update failed for refs/heads/main." in said
    assert "[remote rejected]" in said
    assert "hook declined" in said
    client.git("push", "origin", "HEAD:refs/heads/other")
    server.allow_all()
    client.push()


def test_a_secret_is_refused_and_named_even_if_a_later_commit_removes_it(
    server: GitServer, client: Client
) -> None:
    guilty = client.commit("sessions/x.md", b"one\ntwo\nneedle")
    client.commit("sessions/x.md", b"clean")
    server.refuse_content(b"needle")
    said = client.push(fails=True)
    assert "GH013: Repository rule violations found for refs/heads/main." in said
    assert "- Push cannot contain secrets" in said
    assert f"- commit: {guilty}" in said
    assert "path: sessions/x.md:3" in said
    assert server.head() == ""


def test_what_is_on_master_already_is_not_refused(server: GitServer, client: Client) -> None:
    client.commit("old.md", b"needle")
    client.push()
    server.refuse_content(b"needle")
    client.commit("new.md", b"harmless")
    client.push()
    assert sorted(server.files()) == ["new.md", "old.md"]


def test_several_rules_hold_at_once_and_need_not_name_the_file(
    server: GitServer, client: Client
) -> None:
    client.commit("привет.md", b"needle")
    client.commit("large.md", b"x" * 2000)
    server.refuse_content(b"needle", name_path=False)
    server.refuse_larger(1000)
    said = client.push(fails=True)
    assert "GH013" in said
    assert "path:" not in said
    assert "File large.md is 101.00 MB; this exceeds GitHub's file size limit" in said
    assert "GH001: Large files detected." in said
    server.allow_all()
    server.refuse_larger(1000, name_path=False)
    said = client.push(fails=True)
    assert "GH001" in said
    assert "large.md" not in said
    assert "GH013" not in said


def test_a_person_edits_and_removes_files_on_master(server: GitServer) -> None:
    odd = 'a "quoted"\n\\name ж.md'
    first = server.commit({odd: b"\x00\xff\n", "dir/b.md": b""})
    assert server.files() == {odd: b"\x00\xff\n", "dir/b.md": b""}
    server.commit({odd: None, "c.md": b"c"}, message="tidy")
    assert server.files() == {"dir/b.md": b"", "c.md": b"c"}
    again = server.commit({"d.md": b"d"}, parent=first)
    assert server.head() == again
    assert sorted(server.files()) == sorted([odd, "dir/b.md", "d.md"])
    assert server.commits() == 2
    git("--git-dir", str(server.repo), "fsck", "--strict")


def test_history_is_rewritten_and_the_branch_removed(server: GitServer) -> None:
    server.commit({"a.md": b"a"})
    server.commit({"b.md": b"b"})
    assert server.force_push({"c.md": b"c"}) == server.head()
    assert (server.commits(), server.files()) == (1, {"c.md": b"c"})
    server.delete_branch()
    assert (server.head(), server.commits(), server.files()) == ("", 0, {})


def test_a_plain_bare_repository_is_read_by_the_same_functions(tmp_path: Path) -> None:
    repo = githttp.bare(tmp_path / "plain.git", "trunk")
    assert githttp.files(repo, "trunk") == {}
    tip = githttp.commit(repo, {"a.md": b"a"}, branch="trunk")
    client = Client(tmp_path / "client", str(repo))
    assert client.git("rev-parse", "HEAD").strip() == tip == githttp.head(repo, "trunk")


def test_closing_ends_waiting_clients_threads_and_git_processes(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with GitServer(tmp_path / "busy") as server:
        client = Client(tmp_path / "client", server.url)
        client.commit("a.md", b"a")
        started, lock = server.repo / "started", server.repo / "lock"
        hook = server.repo / "hooks" / "pre-receive"
        hook.write_text(f"#!/bin/sh\nexec 9>'{lock}'\nflock 9\ntouch '{started}'\nsleep 600\n")
        with ThreadPoolExecutor(2) as pool:
            pushing = pool.submit(client.push, fails=True)
            _until(started.exists)
            server.hang = "accept"
            waiting = pool.submit(git, "ls-remote", server.url, fails=True)
            _until(lambda: server.requests >= 4)
            server.close()
            pushing.result(30)
            waiting.result(30)
    assert set(threading.enumerate()) == before
    with lock.open("w") as file:
        _until(lambda: _locks(file.fileno()))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def _locks(file: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


# --- the proxy -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey"), password="pass w\\ord/") as running:
        yield running


@pytest.fixture(scope="module")
def open_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("open-valkey")) as running:
        yield running


@pytest.fixture
def proxy(open_valkey: Valkey) -> Iterator[Proxy]:
    before = set(threading.enumerate())
    with Proxy(("127.0.0.1", open_valkey.port)) as running:
        yield running
    assert set(threading.enumerate()) == before


def _connect(proxy: Proxy, timeout: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout)


def _ping(connection: socket.socket) -> bytes:
    connection.sendall(b"PING\r\n")
    return connection.recv(100)


def test_a_proxy_passes_everything_and_counts_it(proxy: Proxy, open_valkey: Valkey) -> None:
    data = random.Random(2).randbytes(3_000_000)
    with redis.Redis.from_url(open_valkey.url_at(proxy.port)) as client:
        client.set("k", data)
        assert client.get("k") == data
    assert proxy.connections == 1
    assert proxy.bytes_up > len(data)
    assert proxy.bytes_down > len(data)


def test_a_refusing_proxy_closes_what_is_open_and_comes_back_on_its_port(proxy: Proxy) -> None:
    port = proxy.port
    with _connect(proxy) as connection:
        assert _ping(connection) == b"+PONG\r\n"
        proxy.mode = "refuse"
        assert connection.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        _connect(proxy)
    proxy.mode = "pass"
    with _connect(proxy) as connection:
        assert _ping(connection) == b"+PONG\r\n"
    assert proxy.port == port


def test_a_black_hole_answers_neither_old_nor_new_connections(proxy: Proxy) -> None:
    with _connect(proxy, 0.3) as old:
        assert _ping(old) == b"+PONG\r\n"
        proxy.mode = "blackhole"
        with _connect(proxy, 0.3) as new:
            for connection in (old, new):
                with pytest.raises(TimeoutError):
                    _ping(connection)
            assert proxy.bytes_up == len(b"PING\r\n")
            proxy.mode = "pass"
            assert old.recv(1) == new.recv(1) == b""
    with _connect(proxy) as connection:
        assert _ping(connection) == b"+PONG\r\n"


def test_a_client_leaves_a_black_hole_and_its_server_connection_ends(
    proxy: Proxy, open_valkey: Valkey
) -> None:
    with redis.Redis.from_url(open_valkey.url) as admin:
        before = len(admin.client_list())
        with _connect(proxy) as connection:
            assert _ping(connection) == b"+PONG\r\n"
            assert len(admin.client_list()) == before + 1
            proxy.mode = "blackhole"
        _until(lambda: len(admin.client_list()) == before)


def test_not_even_the_end_of_the_server_comes_out_of_a_black_hole(
    proxy: Proxy, open_valkey: Valkey
) -> None:
    with redis.Redis.from_url(open_valkey.url) as admin, _connect(proxy, 0.3) as connection:
        assert _ping(connection) == b"+PONG\r\n"
        proxy.mode = "blackhole"
        assert admin.client_kill_filter(_type="normal", skipme=True) == 1
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_a_drip_gives_single_bytes_until_it_ends(proxy: Proxy) -> None:
    with _connect(proxy) as connection:
        assert _ping(connection) == b"+PONG\r\n"
        proxy.mode = "drip"
        assert _ping(connection) == b"+"
        proxy.mode = "pass"
        rest = b""
        while len(rest) < 6:
            rest += connection.recv(10)
        assert rest == b"PONG\r\n"


def test_a_cut_closes_after_so_many_bytes(proxy: Proxy) -> None:
    with _connect(proxy) as connection:
        assert _ping(connection) == b"+PONG\r\n"
        proxy.cut_after = 3
        proxy.mode = "cut"
        assert _ping(connection) == b"+PO"
        assert connection.recv(100) == b""


def test_a_delay_outlasts_an_impatient_client_and_not_the_proxy(proxy: Proxy) -> None:
    proxy.delay = 600
    with _connect(proxy, 0.3) as connection, pytest.raises(TimeoutError):
        _ping(connection)
    proxy.delay = 0.01
    with _connect(proxy) as connection:
        assert _ping(connection) == b"+PONG\r\n"


def test_a_proxy_before_nothing_hangs_up(proxy: Proxy) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with Proxy(nobody.getsockname()) as broken, _connect(broken) as connection:
            assert connection.recv(1) == b""


# --- PostgreSQL and Valkey -------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres")) as running:
        yield running


def _query(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, connect_timeout=10) as connection:
        cursor = connection.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def _runs(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody collected does not."""
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=10)
    return done.stdout.strip()[:1] not in ("", "Z")


def test_postgres_answers_on_tcp_socket_and_through_a_proxy(postgres: Postgres) -> None:
    with Proxy(("127.0.0.1", postgres.port)) as proxy:
        for dsn in (
            postgres.dsn(),
            postgres.dsn(host=str(postgres.sockets)),
            postgres.dsn(port=proxy.port),
        ):
            assert _query(dsn, "SELECT lower('ПРИВЕТ')") == [("привет",)]
        assert proxy.connections == 1


def test_a_database_is_made_from_a_template(postgres: Postgres) -> None:
    model = postgres.create_database("model")
    _query(model, "CREATE TABLE t AS SELECT 7 AS x")
    copy = postgres.create_database("a-copy", template="model")
    assert _query(copy, "SELECT x FROM t") == [(7,)]


def test_postgres_keeps_what_was_committed_through_restart_and_kill(postgres: Postgres) -> None:
    dsn = postgres.create_database("kept")
    _query(dsn, "CREATE TABLE t AS SELECT 1 AS x")
    postgres.restart()
    _query(dsn, "INSERT INTO t VALUES (2)")
    postgres.kill()
    with pytest.raises(psycopg.OperationalError):
        _query(dsn, "SELECT 1")
    postgres.start()
    assert _query(dsn, "SELECT x FROM t ORDER BY x") == [(1,), (2,)]


@pytest.mark.parametrize("end", [Postgres.stop, Postgres.kill])
def test_an_ended_postgres_leaves_no_process(
    postgres: Postgres, end: Callable[[Postgres], None]
) -> None:
    rows = _query(postgres.dsn(), "SELECT pid FROM pg_stat_activity")
    pids = [postgres.pid, *(int(str(pid)) for (pid,) in rows)]
    end(postgres)
    assert not [pid for pid in pids if _runs(pid)]
    assert postgres.pid == 0
    postgres.start()


def test_postgres_syncs_its_writes_only_on_demand(tmp_path: Path, postgres: Postgres) -> None:
    assert _query(postgres.dsn(), "SHOW fsync") == [("off",)]
    with Postgres(tmp_path / "careful", fsync=True) as careful:
        assert _query(careful.dsn(), "SHOW fsync") == [("on",)]
        sockets = careful.sockets
    assert not sockets.exists()


def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    broken = Postgres(tmp_path / "broken")
    (tmp_path / "broken" / "data" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(RuntimeError, match=r"9\.6"):
        broken.start()
    broken.close()


def test_valkey_wants_its_password_and_keeps_it_out_of_argv(valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set("k", "v")
        assert client.get("k") == b"v"
    with (
        redis.Redis(port=valkey.port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.get("k")
    assert b"pass w" not in Path(f"/proc/{valkey.pid}/cmdline").read_bytes()


def test_valkey_forgets_when_it_ends_and_keeps_its_port(valkey: Valkey) -> None:
    url = valkey.url
    for end in (valkey.stop, valkey.kill):
        with redis.Redis.from_url(url) as client:
            client.set("k", "v")
        pid = valkey.pid
        end()
        assert not _runs(pid)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", valkey.port), timeout=10)
        valkey.start()
        assert valkey.url == url
        with redis.Redis.from_url(url) as client:
            assert client.get("k") is None
