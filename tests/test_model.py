"""Case 25: two machines, a master and two caches against a model of what must be there.

A model of a few dictionaries goes along with the real things through any sequence of saves,
edits, deletions, syncs, outages and key rotations. In the end, and at any moment that a rule
chooses, all projections are master, and master is the model.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings, strategies
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from annoris import document, dumps, keys, sync
from annoris.archive import Archive
from annoris.errors import AnnorisError, NotFound
from annoris.follow import id_of
from annoris.hot import Hot
from annoris.settings import load
from annoris.verify import Scope, verify
from tests.support import githttp
from tests.support.invariant import holds
from tests.support.machine import Machine
from tests.support.proxy import Proxy
from tests.support.servers import Postgres, Valkey
from tests.support.tiers import Tiers, forget_failures

MANY = bool(os.environ.get("ANNORIS_FULL"))
_numbers = itertools.count(1)
_which = strategies.integers(0, 1)


def body(number: int) -> bytes:
    return b"# Note %d\n\nText %d.\n" % (number, number)


class World(RuleBasedStateMachine):
    """``truth`` is what master must hold: body by id. ``past`` is all that it ever held."""

    place: Path
    postgres: Postgres
    template: str
    valkey: Valkey

    ids = Bundle("ids")
    drafts = Bundle("drafts")

    @initialize()
    def start(self) -> None:
        number = next(_numbers)
        self.folder = self.place / str(number)
        self.folder.mkdir()
        remote = githttp.bare(self.folder / "remote.git")
        self.database = f"model-{number}"
        direct = self.postgres.create_database(self.database, self.template)
        parts = urlsplit(direct)
        hot = Proxy(("127.0.0.1", parts.port or 0))
        cache = Proxy(("127.0.0.1", urlsplit(self.valkey.url).port or 0))
        self.proxies = [hot, cache]
        user = f"{parts.username}@" if parts.username else ""
        through = urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{hot.port}"))
        emergency = self.valkey.url_at(cache.port)
        self.tiers = Tiers(remote, hot, cache, through, emergency, direct)
        self.up = {"hot": True, "emergency": True, "master": True}
        with redis.Redis.from_url(self.valkey.url) as client:
            client.flushall()
        given = {
            "hot_url": through, "emergency_url": emergency, "master_fresh_seconds": "0.0001",
            "hot_seconds": "20", "hot_load_seconds": "20",
        }  # fmt: skip
        names = ("laptop", "desktop")
        self.machines = [Machine(self.folder / name, str(remote), given) for name in names]
        self.truth: dict[str, bytes] = {}
        self.past: dict[str, set[bytes]] = {}
        self.waiting: dict[str, bytes] = {}
        self.count = itertools.count(1)
        self.dumped = False
        keys.create(load(environ=self.machines[0].environment))
        self._share_key(0)

    def teardown(self) -> None:
        try:
            if hasattr(self, "tiers") and sys.exc_info()[0] is None:  # else it hides what failed
                self.settle()
        finally:
            for proxy in getattr(self, "proxies", []):
                proxy.close()
            if hasattr(self, "database"):
                self.postgres.drop_database(self.database)
            shutil.rmtree(getattr(self, "folder", ""), ignore_errors=True)

    # --- what people do ----------------------------------------------------------------------

    @rule(target=ids, which=_which, several=strategies.integers(1, 3))
    def save(self, which: int, several: int) -> Any:
        """New sessions; while master is away they wait."""
        texts = [body(next(self.count)) for _ in range(several)]
        made = []
        for receipt, text in zip(self.machines[which].save(*texts), texts, strict=True):
            if self.up["master"]:
                assert receipt.state == "master"
                self._now(receipt.id, text)
            else:
                assert receipt.state in ("queued", "refused")
                self.waiting[receipt.id] = text
            made.append(receipt.id)
        return multiple(*made)

    @rule(target=drafts, which=_which, id=ids)
    def take(self, which: int, id: str) -> Any:
        """Load a session to work on it; what comes is what master holds, or held."""
        try:
            text = self.machines[which].load(id)
        except (AnnorisError, NotFound):
            assert id not in self.truth or not self.up["master"]
            return multiple()
        found = document.split(text)[1]
        if self.up["master"] and id in self.truth:
            assert found == self.truth[id]
        assert found in self.past.get(id, set()) | {self.waiting.get(id)}
        # A text that says no id, because a person wrote it, is a new session when it is saved.
        mine = id in self.truth and document.inspect(text).id == id
        return (which, id, text) if mine else multiple()

    @precondition(lambda self: self.up["master"])
    @rule(draft=consumes(drafts))
    def save_edit(self, draft: tuple[int, str, bytes]) -> None:
        """What was loaded comes back changed: in its place, or as a copy when that moved on."""
        which, id, text = draft
        front, before = document.split(text)
        after = before + b"More %d.\n" % next(self.count)
        (receipt,) = self.machines[which].save(front + after)
        if self.truth.get(id) == before:
            assert (receipt.state, receipt.id) == ("master", id)
            self._now(id, after)
        else:
            assert receipt.state == "conflict"
            assert receipt.id != id
            self._now(receipt.id, after)

    @precondition(lambda self: self.up["master"])
    @rule(which=_which, id=ids)
    def delete(self, which: int, id: str) -> None:
        with contextlib.closing(self.machines[which].archive()) as archive:
            try:
                receipt = archive.delete(id, "")
            except NotFound:
                assert id not in self.truth
                return
        assert receipt.state == "master"
        self.truth.pop(id, None)
        self.waiting.pop(id, None)

    @precondition(lambda self: self.up["master"])
    @rule(id=ids)
    def edit_by_hand(self, id: str) -> None:
        if path := self._path(id):
            text = githttp.files(self.tiers.remote)[path] + b"By hand %d.\n" % next(self.count)
            githttp.commit(self.tiers.remote, {path: text})
            self._now(id, document.split(text)[1])

    @precondition(lambda self: self.up["master"])
    @rule(id=ids)
    def rename_by_hand(self, id: str) -> None:
        if path := self._path(id):
            text = githttp.files(self.tiers.remote)[path]
            new = f"sessions/moved/{next(self.count)}.md"
            githttp.commit(self.tiers.remote, {path: None, new: text})

    @precondition(lambda self: self.up["master"])
    @rule(target=ids)
    def add_by_hand(self) -> str:
        path, text = f"sessions/hand/{next(self.count)}.md", body(next(self.count))
        githttp.commit(self.tiers.remote, {path: text})
        self._now(id_of(path), text)
        return id_of(path)

    @precondition(lambda self: self.up["master"])
    @rule(which=_which, full=strategies.booleans())
    def sync(self, which: int, full: bool) -> None:
        with self._open(which) as archive:
            sync.sync(archive, full=full, force=True)
            self._delivered(archive)

    # --- what happens to them ----------------------------------------------------------------

    @rule(tier=strategies.sampled_from(["hot", "emergency", "master"]), up=strategies.booleans())
    def fail(self, tier: str, up: bool) -> None:
        self.up[tier] = up
        self.tiers.set(**self.up)
        for machine in self.machines:
            forget_failures(machine)

    @precondition(lambda self: self.up["hot"])
    @rule(which=_which)
    def rotate(self, which: int) -> None:
        keys.rotate(load(environ=self.machines[which].environment))
        self._share_key(which)

    @rule(which=_which)
    def lose_catalog(self, which: int) -> None:
        (self.machines[which].data / "catalog.sqlite").unlink(missing_ok=True)

    @precondition(lambda self: self.past and self.up["hot"] and self.up["master"])
    @rule(which=_which)
    def dump(self, which: int) -> None:
        with self._open(which) as archive:
            dumps.dump(archive)
        self.dumped = True

    @precondition(lambda self: self.dumped and self.up["hot"] and self.up["master"])
    @rule(which=_which, lost=strategies.booleans())
    def restore(self, which: int, lost: bool) -> None:
        """The hot cache goes back to the newest dump, from nothing or from what it was."""
        if lost:
            with psycopg.connect(self.tiers.direct, autocommit=True) as db:
                db.execute("DROP SCHEMA annoris CASCADE")
        with self._open(which) as archive:
            dumps.restore(archive, "latest", force=True)
        self.sync(which, full=False)

    # --- what must hold ------------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        """All tiers come back, everybody syncs: projections are master, master is the model."""
        for tier in self.up:
            self.fail(tier, up=True)
        for which in (0, 1, 0):
            self.sync(which, full=True)
        assert not self.waiting
        bodies = self.truth
        holds(self.machines, self.tiers.remote, bodies, exactly=True)
        on_master = {
            document.inspect(text).id or id_of(path): document.split(text)[1]
            for path, text in githttp.files(self.tiers.remote).items()
            if path.endswith(".md")
        }
        assert on_master == bodies
        hot = Hot(self.tiers.direct, seconds=20)
        with contextlib.closing(hot):
            assert {id for id, row in hot.entries().items() if not row.deleted} == bodies.keys()
        for which in (0, 1):
            with self._open(which) as archive:
                assert verify(archive, Scope()).findings == ()

    # --- parts -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self, which: int) -> Iterator[Archive]:
        with contextlib.closing(self.machines[which].archive()) as archive:
            yield archive

    def _delivered(self, archive: Archive) -> None:
        """What waited on a machine is on master when its sync is done."""
        assert not archive.outbox.read()[0]
        for id in [id for id in self.waiting if archive.catalog.base(id)]:
            self._now(id, self.waiting.pop(id))

    def _now(self, id: str, text: bytes) -> None:
        self.truth[id] = text
        self.past.setdefault(id, set()).add(text)

    def _path(self, id: str) -> str:
        for path, text in githttp.files(self.tiers.remote).items():
            if path.endswith(".md") and document.inspect(text).id == id:
                return path
        return ""

    def _share_key(self, which: int) -> None:
        target = self.machines[1 - which].data / "key"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.machines[which].data / "key", target)
        target.chmod(0o600)


@pytest.mark.timeout(7200 if MANY else 300)
def test_case_25_any_sequence_of_events_keeps_master_the_caches_and_the_model_one(
    tmp_path: Path,
    postgres: Postgres,
    hot_template: str,
    valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"place": tmp_path, "postgres": postgres, "template": hot_template, "valkey": valkey}
    for name, value in given.items():
        monkeypatch.setattr(World, name, value, raising=False)
    run_state_machine_as_test(
        World,
        settings=settings(
            max_examples=200 if MANY else 4,
            stateful_step_count=40 if MANY else 10,
            deadline=None,
            derandomize=not MANY,
            database=None,
            phases=[Phase.generate],  # a smaller example would take longer than to understand this
            suppress_health_check=list(HealthCheck),
        ),
    )
