"""Cases 19, 20 and 22 in the caches: what they hold may be anything, what is shown is master's.

And promise 7: no word of a document lies in them, in their servers' files, or in our own logs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from annoris import document
from annoris.archive import Archive
from annoris.envelope import new_key
from annoris.errors import NotFound, Unavailable
from tests.support.machine import Machine
from tests.support.servers import Postgres, Valkey
from tests.support.tiers import Tiers, forget_failures
from tests.test_case_bytes import BYTES

Machines = Callable[..., Machine]
SEEDS = range(20 if os.environ.get("ANNORIS_FULL") else 1)  # a thousand rounds in all, or fifty
ROUNDS = 25
CANARY = "kanarienvogel-8214"
TEXT = f"# Notes\n\nThe word is {CANARY}, and none other.\n".encode() * 3


# --- 19: damage ----------------------------------------------------------------------------------


def damaged(text: str, draw: random.Random) -> str:
    """The text with one thing wrong."""
    if not text:
        return "x"
    at = draw.randrange(len(text))
    other = draw.choice("0123456789abcdefABCXYZ_-. ".replace(text[at], ""))
    return draw.choice([
        text[:at] + other + text[at + 1 :], text[:at], text[at:], "", text + text,
        text[:at] + text[at + 1 :], text[::-1], "".join(draw.sample(text, len(text))),
    ])  # fmt: skip


@pytest.fixture
def archives(make: Machines, tiers: Tiers) -> Iterator[Callable[[Machine], Archive]]:
    """The library of a machine, kept open."""
    with contextlib.ExitStack() as stack:
        yield lambda machine: stack.enter_context(closing(machine.archive()))


def shown(archive: Archive, selector: str) -> bytes | None:
    try:
        return archive.load(selector).data
    except (NotFound, Unavailable):
        return None


COLUMNS = (
    "content", "content", "content", "checksum", "github_sha", "position", "name", "project",
    "title", "file_path", "status", "etag", "literal", "size", "deleted_at", "updated_at",
)  # fmt: skip


def damage_row(db: psycopg.Connection[Any], ids: list[str], draw: random.Random) -> str:
    """Change one column of one row, or exchange it with that of another; answers what was done."""
    column, id = draw.choice(COLUMNS), draw.choice(ids)
    other = draw.choice([one for one in ids if one != id])
    set_to = f"UPDATE annoris.sessions SET {column} = %s WHERE id = %s"
    [(old,)] = db.execute(f"SELECT {column} FROM annoris.sessions WHERE id = %s", [id])
    [(theirs,)] = db.execute(f"SELECT {column} FROM annoris.sessions WHERE id = %s", [other])
    if draw.random() < 0.2:
        new: object = theirs
    elif column in ("position", "size"):
        new = draw.choice([1, old + 1, old + 1000, 2**40])
    elif column == "deleted_at":
        new = "2026-11-24T10:00:00Z"
    elif column == "updated_at":
        new = draw.choice(["1970-01-01T00:00:00Z", "2099-01-01T00:00:00Z", None])
    else:
        new = damaged(old, draw)[
            : 32 if column == "checksum" else 64 if column == "github_sha" else None
        ]
    db.execute(set_to, [new, id])
    return f"{column} of {id}: {str(old)[:50]!r} became {str(new)[:50]!r}"


@pytest.mark.parametrize("seed", SEEDS)
def test_case_19_a_damaged_row_is_never_shown_and_heals(
    make: Machines, tiers: Tiers, archives: Callable[[Machine], Archive], seed: int
) -> None:
    """Random damage to every column; by a machine with a clone, and by one that has only the cache.

    The first one shows master's bytes, and after its load so does the cache; the second one
    shows them or nothing. An older revision with a higher position is damage too.
    """
    here = make()
    first = here.save(b"# One\n\nfirst\n", name="one")[0]
    old = here.load("one")
    assert here.save(old.replace(b"first", b"second"))[0].id == first.id
    second = here.save(TEXT, name="two")[0]
    here.sync()
    right = {id: here.load(id) for id in (first.id, second.id)}
    names = {"one": first.id, "two": second.id}
    blank = make("blank")
    blank.environment["ANNORIS_MASTER_REMOTE"] = str(tiers.remote.with_name("gone.git"))
    knowing, ignorant = archives(here), archives(blank)
    draw = random.Random(seed)
    with psycopg.connect(tiers.direct, autocommit=True) as db:
        db.execute("CREATE TABLE good AS SELECT * FROM annoris.sessions")
        for _ in range(ROUNDS):
            db.execute("TRUNCATE annoris.sessions")
            db.execute("INSERT INTO annoris.sessions SELECT * FROM good")
            done = damage_row(db, list(right), draw)
            for selector, id in [*names.items(), *((id, id) for id in right)]:
                assert shown(ignorant, selector) in (right[id], None), done
                assert shown(knowing, selector) == right[id], done
            if not done.startswith("deleted_at"):  # a tombstone is for sync to judge
                for id, data in right.items():
                    said = ignorant.caches.complaints[-1:]
                    assert shown(ignorant, id) == data, f"not healed: {done} {said}"


def test_case_20_an_older_revision_is_not_believed_for_its_position(
    make: Machines, tiers: Tiers
) -> None:
    """The whole row of an older revision, put back with a position beyond the newest."""
    here = make()
    id = here.save(b"# One\n\nfirst\n")[0].id
    text = here.load(id)
    with psycopg.connect(tiers.direct, autocommit=True) as db:
        db.execute("CREATE TABLE older AS SELECT * FROM annoris.sessions")
        assert here.save(text.replace(b"first", b"second"))[0].id == id
        db.execute("DELETE FROM annoris.sessions")
        db.execute("UPDATE older SET position = position + 1000")
        db.execute("INSERT INTO annoris.sessions SELECT * FROM older")
    loaded = here.run("load", id, "--json")
    assert "second" in loaded.json["text"]
    assert loaded.json["tier"] == "clone"
    assert "is not what master holds" in loaded.err
    again = here.run("load", id, "--json")
    assert ("second" in again.json["text"], again.json["tier"]) == (True, "hot")


def damage_value(client: Any, draw: random.Random) -> str:
    """Change one field of a head, or a value, or exchange two values."""
    keys = sorted(key for key in client.scan_iter() if b"newest:" not in key)
    key = draw.choice(keys)
    if client.type(key) == b"string":
        values = [one for one in keys if client.type(one) == b"string"]
        old = client.get(key).decode()
        new = damaged(old, draw) if draw.random() < 0.8 else client.get(draw.choice(values))
        client.set(key, new)
        return f"{key!r}: {new[:50]!r}"
    field = draw.choice(sorted(client.hkeys(key)))
    old = client.hget(key, field).decode(errors="replace")
    new = damaged(old, draw)
    if field == b"meta" and draw.random() < 0.5:
        meta = json.loads(old)
        name = draw.choice(sorted(meta["session"]))
        meta["session"][name] = draw.choice([None, 7, "", [], "x", damaged(str(name), draw)])
        new = json.dumps(meta)
    client.hset(key, field, new)
    return f"{key!r} {field!r}: {new!r}"


@pytest.mark.parametrize("seed", SEEDS)
def test_case_19_a_damaged_redis_value_is_never_shown(
    machine: Machines,
    tiers: Tiers,
    valkey: Valkey,
    archives: Callable[[Machine], Archive],
    seed: int,
) -> None:
    """The same in the emergency cache, alone: master's bytes with a clone, else they or nothing."""
    settings = {"emergency_url": tiers.emergency_url, "hot_load_seconds": "20"}
    here, blank = (machine(name, tiers.remote, **settings) for name in ("here", "blank"))
    here.environment["ANNORIS_KEY"] = blank.environment["ANNORIS_KEY"] = new_key().text()
    receipts = [*here.save(b"# One\n\nfirst\n", name="one"), *here.save(TEXT, name="two")]
    right = {receipt.id: here.load(receipt.id) for receipt in receipts}
    blank.environment["ANNORIS_MASTER_REMOTE"] = str(tiers.remote.with_name("gone.git"))
    knowing, ignorant = archives(here), archives(blank)
    assert all(shown(ignorant, id) == data for id, data in right.items())
    draw = random.Random(seed)
    with redis.Redis.from_url(valkey.url) as client:
        good = {key: client.dump(key) for key in client.scan_iter()}
        for _ in range(ROUNDS):
            client.flushall()
            for key, value in good.items():
                client.restore(key, 0, value)
            done = damage_value(client, draw)
            for receipt in receipts:
                for selector in (receipt.id, receipt.name):
                    assert shown(ignorant, selector) in (right[receipt.id], None), done
                    assert shown(knowing, selector) == right[receipt.id], done


# --- 22: bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["hot", "emergency"])
def test_case_22_bytes_survive_each_cache(make: Machines, tiers: Tiers, tier: str) -> None:
    """SHA-256 in is SHA-256 out, from that cache alone, on a machine that has nothing else."""
    here = make()
    tiers.set(hot=tier == "hot")
    kinds = BYTES
    receipts = here.save(*kinds.values())
    assert {receipt.cached for receipt in receipts} == {tier}
    whole = {receipt.id: here.load(receipt.id) for receipt in receipts}
    tiers.set(hot=tier == "hot", emergency=tier == "emergency", master=False)
    with closing(make("blank").archive()) as blank:
        for (kind, data), receipt in zip(kinds.items(), receipts, strict=True):
            loaded = blank.load(receipt.id, source=tier)  # type: ignore[arg-type]
            body = document.split(data)[1]
            assert document.split(loaded.data)[1] == body, kind
            found = hashlib.sha256(loaded.data).digest()
            assert found == hashlib.sha256(whole[receipt.id]).digest(), kind


# --- P7: no plaintext ----------------------------------------------------------------------------


def holding(folder: Path, word: str) -> list[str]:
    """Files below a folder that hold a word."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path) for path in files if word.encode() in path.read_bytes()]


def test_p7_no_word_of_a_document_is_in_the_servers_files_and_logs(
    tmp_path: Path, machine: Machines, remote: Path
) -> None:
    """PostgreSQL's folder after a checkpoint, its log of every statement, a dump; an RDB file.

    The word is looked for as it is and is in the document that the search finds: the test
    itself can fail.
    """
    talkative = {"log_statement": "all", "log_min_duration_statement": 0}
    with (
        Postgres(tmp_path / "pg", settings=talkative) as postgres,
        Valkey(tmp_path / "vk") as valkey,
    ):
        here = machine("here", remote)
        here.environment |= {
            "ANNORIS_HOT_URL": postgres.create_database("hot"),
            "ANNORIS_HOT_SECONDS": "20",
        }
        assert here.save(TEXT)[0].cached == "hot"
        here.load()
        here.sync()
        with psycopg.connect(postgres.dsn("hot"), autocommit=True) as db:
            db.execute("UPDATE annoris.sessions SET status = 'seen-by-the-test'")
            db.execute("CHECKPOINT")
        dump = _dump(postgres)
        del here.environment["ANNORIS_HOT_URL"]
        here.environment["ANNORIS_EMERGENCY_URL"] = valkey.url
        assert here.save(TEXT + b"more\n")[0].cached == "emergency"
        with redis.Redis.from_url(valkey.url) as client:
            client.set("seen-by-the-test", "x")
            client.save()
        for folder in (postgres.data, tmp_path / "pg", tmp_path / "vk"):
            assert holding(folder, CANARY) == []
            assert holding(folder, "seen-by-the-test")
        assert CANARY not in dump
        assert "annoris1." in dump
        logs = [
            path for path in here.data.iterdir() if path.is_file() and "sqlite" not in path.name
        ]
        assert logs
        assert not [path for path in logs if CANARY.encode() in path.read_bytes()]
    assert holding(here.data, CANARY), "the catalog, which is this machine's own"


def _dump(postgres: Postgres) -> str:
    """What pg_dump writes, where there is one beside the server."""
    program = Path(postgres.program).with_name("pg_dump")
    if not program.exists():
        return "annoris1."
    command = [str(program), "--dbname", postgres.dsn("hot")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_p7_a_bug_report_holds_no_word_of_a_document_and_no_password(
    make: Machines, tiers: Tiers, tmp_path: Path
) -> None:
    """A fault is put into the cache's own code: the traceback shows lines of it, not values."""
    here = make()
    here.write("sitecustomize.py", "import annoris.envelope as e\ne._bound = lambda *a: 1 // 0\n")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    saved = here.run(
        "save", "-", stdin=TEXT, env={"PYTHONPATH": str(here.desk), "TMPDIR": str(temporary)}
    )
    assert saved.code == 1, saved.err
    (report,) = temporary.glob("annoris-bug-*.log")
    text = report.read_text() + saved.err
    assert "ZeroDivisionError" in text
    for secret in (CANARY, "pass w@rd", "pass%20w", here.environment["ANNORIS_KEY"][12:]):
        assert secret not in text


def test_p7_no_word_and_no_password_is_in_what_an_outage_says(make: Machines, tiers: Tiers) -> None:
    here = make()
    here.save(TEXT)
    tiers.set(hot=False, emergency=False)
    forget_failures(here)
    said = "".join(here.run(*words).err for words in (("load",), ("status",), ("doctor",)))
    assert "PostgreSQL" in said
    for secret in (CANARY, "pass w@rd", "pass%20w"):
        assert secret not in said
