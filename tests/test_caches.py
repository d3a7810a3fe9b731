"""The three tiers together: real PostgreSQL, a real Redis-compatible server, real git."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import psycopg
import pytest
import redis

from annoris.envelope import new_key, read_ring, seal
from annoris.hot import Hot
from tests.support.machine import Machine
from tests.support.servers import Postgres, Valkey
from tests.support.tiers import Tiers, forget_failures

CANARY = "canary-7319-zeisig"
BODY = f"# Notes\n\nThe word is {CANARY}.\n".encode()


@pytest.mark.parametrize("up", list(itertools.product((True, False), repeat=3)))
def test_each_state_of_the_tiers_answers_as_promised(
    make: Callable[..., Machine], tiers: Tiers, up: tuple[bool, bool, bool]
) -> None:
    """Saves and loads go on with any of the tiers down; the answer names the tier."""
    hot, emergency, master = up
    here = make()
    saved = here.run("save", "-", "--json", stdin=BODY)
    assert saved.code == 0, saved.err
    id = saved.json["receipts"][0]["id"]
    assert saved.json["receipts"][0]["cached"] == "hot"
    tiers.set(hot=hot, emergency=emergency, master=master)

    again = here.run("save", "-", "--json", "--name", "next", stdin=b"# Next\n\nmore\n")
    receipt = again.json["receipts"][0]
    assert again.code == (0 if master else 10)
    cached = "hot" if hot else "emergency" if emergency else ""
    assert receipt["cached"] == (cached if master else "")

    loaded = here.run("load", "next", "--json")
    assert loaded.code == 0
    assert loaded.json["text"].endswith("# Next\n\nmore\n")
    expected = "hot" if hot else "emergency" if emergency else "clone"
    assert loaded.json["tier"] == (expected if master else "outbox")

    first = here.run("load", id, "--json")
    assert first.json["text"].encode().endswith(BODY)
    assert first.json["tier"] == ("hot" if hot else "clone")
    assert bool(first.json["stale"]) == (not hot and not master)

    tiers.set()
    forget_failures(here)
    assert here.sync().code == 0
    other = make("other")
    assert other.run("load", "next", "--json").json["tier"] == "hot"


def test_a_blank_machine_is_answered_by_the_hot_cache_alone(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """With master and Redis down, a machine without a clone loads what another saved."""
    make().save(BODY)
    tiers.set(master=False, emergency=False)
    loaded = make("blank").run("load")
    assert loaded.code == 0
    assert loaded.out.endswith(BODY)
    assert "[hot]" in loaded.err


def test_a_blank_machine_is_answered_by_the_emergency_cache_alone(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """What was saved while PostgreSQL was down comes back from Redis, with a word of warning."""
    tiers.set(hot=False)
    saved = make().run("save", "-", "--json", stdin=BODY)
    assert saved.json["receipts"][0]["cached"] == "emergency"
    tiers.set(hot=False, master=False)
    loaded = make("blank").run("load", "--json")
    assert loaded.json["tier"] == "emergency"
    assert loaded.json["text"].encode().endswith(BODY)
    assert loaded.json["stale"]


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
def test_case_17_a_dead_hot_cache_costs_one_command_its_limit_and_the_next_ones_nothing(
    make: Callable[..., Machine], tiers: Tiers, mode: str
) -> None:
    """The breaker is remembered across processes: the second command does not even connect."""
    here = make(hot_seconds="0.7", hot_load_seconds="0.5")
    here.save(BODY)
    tiers.hot.mode = mode  # type: ignore[assignment]
    first = here.run("load")
    assert first.code == 0
    assert "PostgreSQL" in first.err
    before = tiers.hot.connections
    second = here.run("load")
    assert second.code == 0
    assert "PostgreSQL" not in second.err
    assert here.run("save", "-", stdin=b"# Two\n").code == 0
    assert tiers.hot.connections == before


def test_case_17_recovery_brings_the_hot_cache_up_to_date(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """Sessions saved during the outage are in the hot cache after one sync, deletions too."""
    here = make()
    kept, gone = here.save(BODY, b"# Gone\n\nsoon\n")
    tiers.set(hot=False)
    later = here.save(b"# Later\n\nsaved in the dark\n")[0]
    assert here.run("delete", gone.id).code == 0
    tiers.set()
    forget_failures(here)
    assert here.sync().code == 0
    hot = Hot(tiers.direct)
    held = {id: row for id, row in hot.entries().items() if not row.deleted}
    hot.close()
    assert held.keys() == {kept.id, later.id}


def test_a_row_that_is_behind_this_machine_is_not_served(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """An older revision in the cache never answers where a newer one is known."""
    here = make()
    id = here.save(BODY)[0].id
    text = here.load(id)
    tiers.set(hot=False, emergency=False)
    assert here.run("save", "-", stdin=text.replace(b"word", b"password-free word")).code == 0
    tiers.set()
    forget_failures(here)
    loaded = here.run("load", id, "--json")
    assert "password-free" in loaded.json["text"]
    assert loaded.json["tier"] == "clone"
    assert here.run("load", id, "--json").json["tier"] == "hot", "the load has healed the cache"


def test_a_deleted_session_does_not_come_back_from_a_cache(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """Deleted while the cache was down: the cached row is no answer."""
    here = make()
    id = here.save(BODY, b"# Other\n")[0].id
    tiers.set(hot=False, emergency=False)
    assert here.run("delete", id).code == 0
    tiers.set()
    forget_failures(here)
    assert here.run("load", id).code == 3


def test_case_20_a_bad_row_is_a_miss_that_heals(make: Callable[..., Machine], tiers: Tiers) -> None:
    """Content that was changed, or taken from another row, is reported and never shown."""
    here = make()
    one, two = here.save(BODY, b"# Two\n\nanother text\n")
    with psycopg.connect(tiers.direct) as db:
        db.execute(
            "UPDATE annoris.sessions SET content = "
            "(SELECT content FROM annoris.sessions WHERE id = %s) WHERE id = %s",
            [two.id, one.id],
        )
        db.execute(
            "UPDATE annoris.sessions SET content = left(content, 60) WHERE id = %s", [two.id]
        )
    for receipt, body in ((one, BODY), (two, b"# Two\n\nanother text\n")):
        loaded = here.run("load", receipt.id)
        assert loaded.code == 0
        assert loaded.out.endswith(body)
        assert "can't be read" in loaded.err


def test_case_21_a_wrong_key_is_seen_before_anything_is_written(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """A machine with another key saves and loads through master, and leaves the cache alone."""
    make().save(BODY)
    other = make("other")
    other.environment["ANNORIS_KEY"] = new_key().text()
    saved = other.run("save", "-", "--json", stdin=b"# Mine\n")
    assert saved.code == 0
    assert saved.json["receipts"][0]["cached"] == "emergency"
    assert "key" in saved.err
    hot = Hot(tiers.direct)
    assert hot.count() == 1
    hot.close()
    loaded = other.run("load", "--json")
    assert loaded.code == 0
    assert loaded.json["tier"] == "clone"


def test_p5_the_hot_cache_is_rebuilt_from_master_alone(
    make: Callable[..., Machine], tiers: Tiers, postgres: Postgres
) -> None:
    """Schema dropped, Redis flushed, catalog deleted: one sync brings every session back."""
    here = make()
    receipts = here.save(*(b"# Note %d\n\ntext %d\n" % (n, n) for n in range(80)))
    with psycopg.connect(tiers.direct) as db:
        db.execute("DROP SCHEMA annoris CASCADE")
    (here.data / "catalog.sqlite").unlink()
    assert here.sync().code == 0
    tiers.set(emergency=False, master=False)
    blank = make("blank")
    assert [blank.load(receipt.id).split(b"---\n")[-1] for receipt in receipts[::10]] == [
        b"# Note %d\n\ntext %d\n" % (n, n) for n in range(0, 80, 10)
    ]


def test_p7_no_plaintext_in_the_caches(
    make: Callable[..., Machine], tiers: Tiers, valkey: Valkey
) -> None:
    """Neither PostgreSQL nor Redis holds a word of the body."""
    here = make()
    here.save(BODY)
    tiers.set(hot=False)
    forget_failures(here)
    here.save(b"# During\n\n" + CANARY.encode() + b"\n")
    tiers.set()
    with psycopg.connect(tiers.direct) as db:
        rows = db.execute("SELECT to_jsonb(sessions)::text FROM annoris.sessions").fetchall()
    assert rows
    assert not any(CANARY in row for (row,) in rows)
    with redis.Redis.from_url(valkey.url) as client:
        held = [client.dump(key) for key in client.scan_iter()]
    assert held
    assert not any(CANARY.encode() in (value or b"") for value in held)


def test_a_load_that_the_caches_answer_asks_master_nothing(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """A hit is one connection to PostgreSQL and no git at all."""
    make().save(BODY)
    blank = make("blank")
    assert blank.run("load").code == 0
    assert not (blank.data / "clone.git").exists()


def test_case_20_what_opens_but_is_not_masters_text_is_a_miss(
    make: Callable[..., Machine], tiers: Tiers
) -> None:
    """An envelope under the right key, id and blob id that holds other bytes is never shown."""
    here = make()
    receipt = here.save(BODY)[0]
    key = read_ring(here.environment["ANNORIS_KEY"]).current
    forged = seal(b"# Forged\n", key=key, session=receipt.id, oid=receipt.oid)
    with psycopg.connect(tiers.direct) as db:
        db.execute("UPDATE annoris.sessions SET content = %s", [forged])
    loaded = here.run("load")
    assert loaded.code == 0
    assert loaded.out.endswith(BODY)
    assert "is not what master holds" in loaded.err
