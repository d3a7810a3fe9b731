"""Case 30: what an earlier release left on a machine and in the caches is found again."""

from __future__ import annotations

import base64
import json
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from annoris import document
from annoris.hot import VERSION
from tests.support import invariant
from tests.support.machine import Machine
from tests.support.servers import Postgres, Valkey
from tests.upgrade.make import REFUSED, REMOTE

STORED = Path(__file__).parent / "upgrade"


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A machine of an earlier release on which this one now runs."""

    machine: Machine
    remote: Path
    hot_url: str
    expected: dict[str, Any]

    def reach(self, where: object) -> None:
        """Let the remote's name lead to a repository, or to nothing."""
        config = self.machine.folder / ".gitconfig"
        config.write_text(f'[url "{where}"]\n\tinsteadOf = {REMOTE}\n')
        (self.machine.data / "breaker.json").unlink(missing_ok=True)

    def bodies(self) -> dict[str, bytes]:
        """By id what must be loaded once all is on master."""
        on_master = self.expected["master"].items()
        bodies = {id: document.split(text.encode())[1] for id, text in on_master}
        return bodies | {id: text.encode() for id, text in self.expected["waiting"].items()}


@pytest.fixture(params=sorted(STORED.glob("*.tar.gz")), ids=lambda path: path.name[:7])
def upgraded(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres: Postgres,
    valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
) -> Upgraded:
    stored = tmp_path / "stored"
    stored.mkdir()
    subprocess.run(["tar", "-xzf", str(request.param), "-C", str(stored)], check=True)
    hot_url = postgres.create_database(f"old-{uuid.uuid4().hex[:8]}")
    psql = Path(postgres.program).with_name("psql")
    load = [str(psql), "-qX", "-v", "ON_ERROR_STOP=1", "-f", str(stored / "hot.sql"), hot_url]
    subprocess.run(load, check=True, stdout=subprocess.DEVNULL)
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        for key, value in json.loads((stored / "emergency.json").read_text()).items():
            client.restore(key, 3_600_000, base64.b64decode(value))
    machine = Machine(
        stored / "home", "", {"hot_url": hot_url, "emergency_url": valkey.url, "hot_seconds": "20"}
    )
    del machine.environment["ANNORIS_DATA_DIR"]  # what a person has who set nothing
    machine.data = stored / "home" / ".local" / "share" / "annoris"
    monkeypatch.setenv("HOME", str(machine.folder))  # where git looks for insteadOf
    found = json.loads((stored / "expected.json").read_text())
    return Upgraded(machine, stored / "remote.git", hot_url, found)


def test_case_30_upgraded_offline_every_document_is_loaded_as_before(upgraded: Upgraded) -> None:
    upgraded.reach("/nowhere/sessions.git")
    waiting = upgraded.expected["waiting"]
    for id, text in upgraded.expected["master"].items():
        loaded = upgraded.machine.load(id)
        if id in waiting:
            assert document.split(loaded)[1] == waiting[id].encode()
        else:
            assert loaded == text.encode()
    listed = upgraded.machine.run("list", "--all", "--json").json["sessions"]
    assert {row["id"] for row in listed} >= upgraded.bodies().keys()


def test_case_30_one_sync_after_an_upgrade_leaves_nothing_to_find(upgraded: Upgraded) -> None:
    upgraded.reach(upgraded.remote)
    with psycopg.connect(upgraded.hot_url) as db:
        runs = db.execute("SELECT id, kind, started_at, details FROM annoris.sync_log").fetchall()
    synced = upgraded.machine.run("sync", "--full", "--json")
    assert synced.code == 0, synced.err
    verified = upgraded.machine.run("verify", "--json")
    kinds = {finding["kind"] for finding in verified.json["audit"]["findings"]}
    assert kinds <= {"outbox-refused"}, verified.text
    outbox = upgraded.machine.run("outbox", "--json").json
    assert [len(outbox["waiting"]), len(outbox["aside"])] == [0, 1]
    with psycopg.connect(upgraded.hot_url) as db:
        state = db.execute("SELECT version, commit FROM annoris.state").fetchone()
        kept = db.execute("SELECT id, kind, started_at, details FROM annoris.sync_log").fetchall()
    assert state
    assert state[0] == VERSION
    assert state[1]
    assert set(map(repr, runs)) <= set(map(repr, kept))
    aside = b"# Aside\n\n" + REFUSED + b"\n"
    loaded = invariant.holds(
        [upgraded.machine], upgraded.remote, upgraded.bodies(), anywhere=[aside]
    )
    assert len(loaded) == len(upgraded.bodies()) + 1, "what was deleted does not come back"
