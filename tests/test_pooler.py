"""The hot cache behind pgbouncer, which keeps nothing from one transaction to the next."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from annoris.hot import Hot
from annoris.model import Run
from tests.support.servers import PgBouncer, Postgres
from tests.test_hot import cached


@pytest.fixture
def pooled(tmp_path: Path, postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database behind a pooler with two connections to it."""
    name = f"pooled-{uuid.uuid4().hex[:8]}"
    postgres.create_database(name)
    with PgBouncer(tmp_path / "bouncer", postgres, size=2) as bouncer:
        yield postgres.dsn(name, port=bouncer.port)
        # Its connections to the server go with it.


def test_every_kind_of_call_works_in_transaction_mode(pooled: str) -> None:
    with closing(Hot(pooled, seconds=20)) as hot:
        hot.prepare()
        assert hot.prove("proof") == "proof"
        rows = [cached(name="n") for _ in range(120)]
        assert hot.put(rows, commit="c1", position=1, master="m") == 120
        assert hot.put(rows[:3], removed=[(rows[5].session.id, 2)]) == 1
        assert hot.count() == hot.stock().entries == 119
        assert len(hot.entries()) == 120
        assert len(list(hot.contents(row.session.id for row in rows))) == 119
        assert hot.get(rows[0].session.id) == [rows[0]]
        assert hot.log(Run("sync", "done", "2026-11-24T10:00:00Z")) == 1
        assert (hot.state().commit, hot.state().proof) == ("c1", "proof")
        hot.try_writing()
        assert hot.ping() > 0


def test_clients_that_share_connections_do_not_meet_each_others_settings(pooled: str) -> None:
    """Two schemas, six clients, two connections: every row is where it belongs."""

    def work(number: int) -> list[int]:
        schema = f"schema {number % 2}"
        with closing(Hot(pooled, schema=schema, seconds=60)) as hot:
            hot.prepare()
            own = [replace(cached(), position=number + 1) for _ in range(60)]
            for start in range(0, 60, 20):
                hot.put(own[start : start + 20])
                hot.entries()
            return [row.position for row in hot.contents(row.session.id for row in own)]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(work, range(6)))
    assert found == [[number + 1] * 60 for number in range(6)]
    with psycopg.connect(pooled, prepare_threshold=None) as db:
        for number in range(2):
            kept = f'SELECT count(*), min(position % 2) FROM "schema {number}".sessions'
            assert db.execute(kept).fetchone() == (180, 1 - number)
