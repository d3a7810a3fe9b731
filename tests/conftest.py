"""Fixtures: every test has an empty home, and machines that share nothing but a remote."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from annoris.envelope import new_key
from annoris.hot import Hot
from tests.support.githttp import GitServer, bare
from tests.support.machine import Machine
from tests.support.proxy import Proxy
from tests.support.servers import Postgres, Valkey
from tests.support.tiers import Tiers

_MEMORY = "/dev/shm"
_ROOM = 4 << 30  # bytes; a run of two processes takes a fraction of it


def pytest_configure() -> None:
    """Let the tests' files lie in memory, where there is room for them and programs may run."""
    with contextlib.suppress(OSError):
        room = os.statvfs(_MEMORY)
        if room.f_bavail * room.f_frsize > _ROOM and not room.f_flag & os.ST_NOEXEC:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", _MEMORY)


@pytest.fixture(autouse=True)
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test can see or touch the person's files, repository or configuration."""
    home = tmp_path / "home"
    desk = tmp_path / "desk"
    home.mkdir()
    desk.mkdir()
    for name in list(os.environ):
        if name.startswith(("ANNORIS_", "GIT_", "XDG_", "SSH_")) or name in ("EMAIL", "LANG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(desk)
    return home


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A bare repository on this machine: a real remote without a network."""
    return bare(tmp_path / "remote.git")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    """A git server over smart HTTP that can misbehave as GitHub's can."""
    with GitServer(tmp_path / "server") as running:
        yield running


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    """Makes machines: ``machine("laptop", remote=…)``, each with its own home and clone."""

    def make(name: str = "laptop", remote: object = "", **settings: str) -> Machine:
        return Machine(tmp_path / name, str(remote), settings)

    return make


# Folders with the programs of other versions of PostgreSQL, to run the tests on these instead.
_POSTGRES = [path for path in os.environ.get("ANNORIS_POSTGRES", "").split(os.pathsep) if path]


@pytest.fixture(scope="session", params=_POSTGRES or [""], ids=lambda path: path or "wheel")
def postgres(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Postgres]:
    """One PostgreSQL for all tests of a process; stop it only if you start it again."""
    with Postgres(tmp_path_factory.mktemp("postgres"), programs=request.param) as running:
        yield running


@pytest.fixture(scope="session")
def hot_template(postgres: Postgres) -> str:
    """The name of a database in which the hot cache is prepared, to copy."""
    hot = Hot(postgres.create_database("hot"), seconds=30)
    hot.prepare()
    hot.close()
    return "hot"


@pytest.fixture
def hot_url(postgres: Postgres, hot_template: str) -> Iterator[str]:
    """The URL of a database of the test's own, with an empty hot cache in it."""
    name = f"hot-{uuid.uuid4().hex[:8]}"
    yield postgres.create_database(name, hot_template)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One server that speaks Redis for all tests of a process; each has its own namespace."""
    with Valkey(tmp_path_factory.mktemp("valkey"), password="pass w@rd") as running:
        yield running


@pytest.fixture
def tiers(remote: Path, postgres: Postgres, hot_url: str, valkey: Valkey) -> Iterator[Tiers]:
    parts = urlsplit(hot_url)
    hot = Proxy(("127.0.0.1", postgres.port))
    emergency = Proxy(("127.0.0.1", urlsplit(valkey.url).port or 0))
    user = f"{parts.username}@" if parts.username else ""
    through = urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{hot.port}"))
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    try:
        yield Tiers(remote, hot, emergency, through, valkey.url_at(emergency.port), hot_url)
    finally:
        hot.close()
        emergency.close()


@pytest.fixture
def make(machine: Callable[..., Machine], tiers: Tiers) -> Callable[..., Machine]:
    """A machine with all three tiers, that asks master at each load. They share one key."""
    key = new_key().text()

    def made(name: str = "laptop", **settings: str) -> Machine:
        patient = {  # a busy machine is not a dead server, unless a test says so
            "master_fresh_seconds": "0.001", "master_push_seconds": "20", "hot_seconds": "20",
            "hot_load_seconds": "20",
        }  # fmt: skip
        here = machine(
            name, tiers.remote, hot_url=tiers.hot_url, emergency_url=tiers.emergency_url,
            **(patient | settings),
        )  # fmt: skip
        here.environment.setdefault("ANNORIS_KEY", key)
        return here

    return made
