"""Keys on real tiers: made, carried to another machine, tried, changed; and loads from one tier."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from annoris import envelope, keys, lock
from annoris.errors import Unavailable, WrongKey
from annoris.hot import Hot
from annoris.model import Deadline, Tier
from annoris.settings import Settings, load
from tests.support.machine import Machine
from tests.support.tiers import Tiers, forget_failures

Machines = Callable[..., Machine]
BODY = b"# Notes\n\nWhere the work stands.\n"

# Rotates, and dies at one of its effects: before or after it, in turn.
DYING = """
import os, signal, sys
from annoris import envelope, hot, keys, settings
left = int(sys.argv[1])
def step():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
def fragile(owner, name):
    effect = getattr(owner, name)
    def stepping(*args, **named):
        step()
        answer = effect(*args, **named)
        step()
        return answer
    setattr(owner, name, stepping)
fragile(envelope, "edit_key_file")
fragile(hot.Hot, "prove")
fragile(hot.Hot, "reseal")
keys.rotate(settings.load())
"""


def settings_of(machine: Machine) -> Settings:
    return load(environ=machine.environment)


def key_file(machine: Machine) -> Path:
    return machine.data / "key"


def ring_of(machine: Machine) -> envelope.KeyRing:
    return envelope.load_ring(str(key_file(machine)))


@pytest.fixture
def keyed(make: Machines) -> Machines:
    """Machines that have a key file, or none yet, instead of a key in the environment."""

    def made(name: str = "laptop", like: Machine | None = None) -> Machine:
        here = make(name)
        del here.environment["ANNORIS_KEY"]
        if like:
            here.data.mkdir(mode=0o700)
            shutil.copy(key_file(like), key_file(here))
        return here

    return made


def held(tiers: Tiers) -> list[tuple[str, str, str]]:
    """Id, blob id and envelope of everything in the hot cache."""
    with closing(Hot(tiers.direct)) as hot:
        rows = hot.contents(hot.entries())
        return [(row.session.id, row.session.oid, row.content) for row in rows]


def sealing(tiers: Tiers) -> set[str]:
    """Ids of the keys that the contents of the hot cache need."""
    return {envelope.sealed_by(content) for _, _, content in held(tiers)}


def must_open(tiers: Tiers, ring: envelope.KeyRing, count: int) -> None:
    """Every content is there and opens with this ring."""
    rows = held(tiers)
    assert len(rows) == count
    for id, oid, content in rows:
        assert envelope.open_(content, ring=ring, session=id, oid=oid)


def documents(count: int) -> list[bytes]:
    return [b"# Note %d\n\ntext %d\n" % (n, n) for n in range(count)]


# --- making a key and carrying it over -----------------------------------------------------------


def test_a_phrase_on_paper_brings_a_blank_machine_back_to_the_hot_cache(
    keyed: Machines, tiers: Tiers
) -> None:
    """Made once, exported on request, imported elsewhere; then hot alone answers."""
    here = keyed()
    made = here.run("key", "new")
    assert made.code == 0
    phrase = made.text.strip()
    assert envelope.from_phrase(phrase) == ring_of(here).current
    assert "write this recovery phrase down" in made.err
    again = here.run("key", "new")
    assert (again.code, again.out) == (2, b"")
    assert "annoris key rotate" in again.err
    assert here.run("key", "export").text.strip() == phrase

    here.save(BODY)
    tiers.set(master=False, emergency=False)
    blank = keyed("blank")
    assert blank.run("key", "import", "-", stdin=phrase.lower().encode()).code == 0
    loaded = blank.run("load", "--from", "hot", "--json")
    assert loaded.json["text"].encode().endswith(BODY)
    assert loaded.json["tier"] == "hot"


def test_an_export_carries_every_key_and_opens_with_its_passphrase_alone(
    keyed: Machines, tiers: Tiers
) -> None:
    here, other = keyed(), keyed("other")
    keys.create(settings_of(here))
    keys.rotate(settings_of(here))
    keys.create(settings_of(other))
    own = ring_of(other).current
    passphrase = here.write("passphrase", "correct horse\n")
    text = here.run("key", "export", "--passphrase-file", passphrase).out
    export = other.write("export.txt", text)
    assert other.run("key", "import", export).code == 2
    wrong = other.run("key", "import", export, "--passphrase-file", "-", stdin=b"wrong")
    assert wrong.code == 8
    assert ring_of(other).keys == (own,)
    right = other.run("key", "import", export, "--passphrase-file", "-", stdin=b"correct horse")
    assert right.code == 0
    assert ring_of(other).keys == (*ring_of(here).keys, own)


def test_the_lines_of_a_key_file_are_a_key_to_import(keyed: Machines) -> None:
    here, other = keyed(), keyed("other")
    keys.create(settings_of(here))
    keys.bring(settings_of(other), key_file(here).read_text())
    assert ring_of(other) == ring_of(here)


def test_a_key_that_is_no_key_changes_nothing(keyed: Machines) -> None:
    here = keyed()
    keys.create(settings_of(here))
    before = key_file(here).read_bytes()
    for text in (b"", b"annoris-key-short", b"0123-4567"):
        assert here.run("key", "import", "-", stdin=text).code == 8
    assert here.run("key", "import", "none.txt").code == 2
    assert key_file(here).read_bytes() == before


def test_a_key_in_the_environment_goes_before_the_file_and_is_not_changed_here(
    make: Machines,
) -> None:
    """What would only change a file that nobody reads is refused, with what to do."""
    here = make()
    assert here.run("key", "check", "--json").json["key"]["source"] == "ANNORIS_KEY"
    for command in (("new",), ("rotate",), ("import", "-")):
        ran = here.run("key", *command, stdin=b"phrase")
        assert ran.code == 2
        assert "ANNORIS_KEY" in ran.err
    assert not key_file(here).exists()


def test_key_bytes_appear_only_where_they_are_asked_for(keyed: Machines, tiers: Tiers) -> None:
    here = keyed()
    made = here.run("key", "new", "--json")
    key = ring_of(here).current
    here.save(BODY)
    imported = here.run("key", "import", "-", "--json", stdin=key.text().encode())
    ran = [made, imported, here.run("key"), here.run("key", "rotate"), here.run("key", "--json")]
    said = "".join(one.text + one.err for one in ran)
    assert key.id in said
    for known in ring_of(here).keys:
        assert known.text().removeprefix("annoris-key-") not in said
        assert envelope.phrase(known) not in said


# --- trying a key --------------------------------------------------------------------------------


def test_a_wrong_key_is_told_with_its_remedy_and_rotates_nothing(
    keyed: Machines, tiers: Tiers
) -> None:
    here, other = keyed(), keyed("other")
    here.save(BODY)
    keys.create(settings_of(other))
    before, rows = key_file(other).read_bytes(), held(tiers)
    checked = other.run("key")
    assert checked.code == 8
    assert ring_of(here).current.id in checked.err
    assert "annoris key import" in checked.err
    assert other.run("key", "rotate").code == 8
    assert (key_file(other).read_bytes(), held(tiers)) == (before, rows)


def test_check_says_what_the_hot_cache_says_to_the_key(keyed: Machines, tiers: Tiers) -> None:
    here = keyed()
    assert here.run("key").code == 8, "there is no key yet"
    keys.create(settings_of(here))
    assert keys.check(settings_of(here)).hot == "empty"
    here.save(BODY)
    assert keys.check(settings_of(here)).hot == "accepted"
    keys.bring(settings_of(here), envelope.new_key().text())
    assert keys.check(settings_of(here)).hot == "behind"
    tiers.set(hot=False)
    with pytest.raises(Unavailable):
        keys.check(settings_of(here))


# --- rotation ------------------------------------------------------------------------------------


def test_a_rotation_seals_everything_again_and_keeps_the_older_key(
    keyed: Machines, tiers: Tiers
) -> None:
    """All contents, tombstones aside; the hot cache goes by the new key; another adds one more."""
    here = keyed()
    receipts = here.save(*documents(60))
    old = ring_of(here).current
    assert here.run("delete", receipts[0].id).code == 0
    done = keys.rotate(settings_of(here))
    ring = ring_of(here)
    assert (done.made, done.resealed, done.older) == (True, 59, (old.id,))
    assert ring.keys[1:] == (old,)
    assert sealing(tiers) == {ring.current.id}
    must_open(tiers, envelope.KeyRing((ring.current,)), 59)
    assert keys.check(settings_of(here)).hot == "accepted"
    assert keys.rotate(settings_of(here)).made
    assert len(ring_of(here).keys) == 3


def test_a_rotation_while_the_hot_cache_is_down_changes_nothing(
    keyed: Machines, tiers: Tiers
) -> None:
    here = keyed()
    here.save(BODY)
    before = key_file(here).read_bytes()
    tiers.set(hot=False)
    assert here.run("key", "rotate").code == 5
    assert key_file(here).read_bytes() == before


def test_killed_at_any_effect_a_rotation_leaves_all_readable_and_goes_on(
    keyed: Machines, tiers: Tiers
) -> None:
    """kill -9 before and after each of its effects: the ring opens all, no second key is made."""
    here = keyed()
    here.save(*documents(120))
    first = ring_of(here)
    # Before the key is on disk, after; before and after the proof; between two batches.
    for number, moment in enumerate((0, 1, 0, 1, 4, 5)):
        done = subprocess.run(
            [sys.executable, "-c", DYING, str(moment)], env=here.environment, check=False
        )
        assert done.returncode == -signal.SIGKILL
        must_open(tiers, ring_of(here), 120)
        assert len(ring_of(here).keys) == (2 if number else 1)
    stopped = ring_of(here)
    assert sealing(tiers) == {key.id for key in stopped.keys}, "it was stopped in the middle"
    ran = here.run("key", "rotate")
    assert ran.code == 0
    assert "an earlier rotation is finished" in ran.err
    assert ring_of(here) == stopped
    assert stopped.keys[1:] == first.keys
    assert sealing(tiers) == {stopped.current.id}


def test_killed_at_a_random_moment_a_rotation_leaves_all_readable(
    keyed: Machines, tiers: Tiers
) -> None:
    here = keyed()
    here.save(*documents(120))
    for _ in range(4):
        running = here.start("key", "rotate")
        time.sleep(random.uniform(0.3, 1.2))
        running.kill()
        running.communicate()
        must_open(tiers, ring_of(here), 120)
    keys.rotate(settings_of(here))
    assert sealing(tiers) == {ring_of(here).current.id}


def test_two_machines_that_rotate_at_once_read_everything_once_keys_are_exchanged(
    keyed: Machines, tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hot cache goes by the faster one's key; the slower one is told, and seals nothing."""
    fast = keyed("fast")
    receipts = fast.save(*documents(60))
    slow = keyed("slow", like=fast)
    make_key = envelope.new_key

    def overtaken() -> envelope.Key:
        monkeypatch.setattr(envelope, "new_key", make_key)
        keys.rotate(settings_of(fast))
        return make_key()

    monkeypatch.setattr(envelope, "new_key", overtaken)
    with pytest.raises(WrongKey, match=r"sealed with key"):
        keys.rotate(settings_of(slow))
    assert sealing(tiers) == {ring_of(fast).current.id}
    receipts += slow.save(b"# Saved meanwhile\n\nby the slower one\n")

    fast_keys, slow_keys = (keys.export(settings_of(one), "pass")[0] for one in (fast, slow))
    keys.bring(settings_of(slow), fast_keys, "pass")
    keys.bring(settings_of(fast), slow_keys, "pass")
    assert set(ring_of(slow).keys) == set(ring_of(fast).keys)
    assert slow.sync().code == 0
    for one in (fast, slow):
        must_open(tiers, ring_of(one), 61)
        with closing(one.archive()) as archive:
            assert all(archive.load(item.id, source="hot").data for item in receipts[::10])


def test_a_content_that_does_not_open_is_dropped_and_comes_back_from_master(
    keyed: Machines, tiers: Tiers
) -> None:
    here = keyed()
    one, _ = here.save(BODY, b"# Two\n\nmore\n")
    with psycopg.connect(tiers.direct) as db:
        db.execute(
            "UPDATE annoris.sessions SET content = left(content, 70) || '.' WHERE id = %s", [one.id]
        )
    done = keys.rotate(settings_of(here))
    assert (done.resealed, done.dropped) == (1, 1)
    assert keys.rotate(settings_of(here)).made, "what is damaged holds up no rotation"
    assert here.load(one.id).endswith(BODY)
    must_open(tiers, ring_of(here), 2)


def test_one_rotation_at_a_time_on_a_machine(machine: Machines) -> None:
    here = machine()
    assert here.run("key", "new").code == 0
    before = (here.data / "key").read_bytes()
    with lock.hold(str(here.data / "rotate.lock"), Deadline(1), "held by the test"):
        ran = here.run("key", "rotate")
    assert (ran.code, "another rotation is running" in ran.err) == (11, True)
    assert (here.data / "key").read_bytes() == before
    assert here.run("key", "rotate").code == 0


def test_without_a_hot_cache_a_rotation_is_a_new_key(machine: Machines) -> None:
    here = machine()
    keys.create(settings_of(here))
    old = ring_of(here)
    assert keys.rotate(settings_of(here)).made
    assert ring_of(here).keys[1:] == old.keys


# --- loads from one tier -------------------------------------------------------------------------

TIERS: tuple[Tier, ...] = ("hot", "emergency", "master", "clone")


@pytest.mark.parametrize("down", ["", "hot", "emergency", "master"])
def test_from_answers_from_exactly_that_tier_or_says_why_not(
    make: Machines, tiers: Tiers, down: str
) -> None:
    here = make()
    tiers.set(hot=False)
    here.save(BODY)
    tiers.set()
    forget_failures(here)
    assert here.sync().code == 0  # now all four hold it
    tiers.set(**({down: False} if down else {}))
    for tier in TIERS:
        with closing(here.archive()) as archive:
            if tier == down:
                with pytest.raises(Unavailable) as refused:
                    archive.load(source=tier)
                assert refused.value.message
                assert tier == "master" or "did not answer" in refused.value.message
            else:
                loaded = archive.load(source=tier)
                assert (loaded.tier, loaded.data.endswith(BODY)) == (tier, True)


def test_from_a_tier_that_lacks_it_is_exit_5_and_from_no_tier_is_usage(
    make: Machines, machine: Machines, tiers: Tiers
) -> None:
    here = make()
    here.save(BODY)
    with psycopg.connect(tiers.direct) as db:
        db.execute("UPDATE annoris.sessions SET content = NULL")
    lacking = here.run("load", "--from", "hot")
    assert (lacking.code, lacking.out) == (5, b"")
    assert "the hot cache has no one session that fits" in lacking.err
    assert make("blank").run("load", "--from", "clone").code == 5
    alone = machine("alone", tiers.remote)
    assert "is not configured" in alone.run("load", "--from", "emergency").err
    for arguments in (("nowhere",), ("outbox",), ("hot", "--fresh"), ("clone", "--rev", "abcd")):
        assert here.run("load", "--from", *arguments).code == 2


def test_what_only_waits_here_is_not_answered_as_master(make: Machines, tiers: Tiers) -> None:
    """A draft is on no tier; the older revision on master comes with a word of warning."""
    here = make()
    receipt = here.save(BODY)[0]
    text = here.load(receipt.id)
    tiers.set(master=False)
    assert here.run("save", "-", stdin=text.replace(b"stands", b"stood")).code != 0
    waiting = here.save(b"# Waiting\n\nhere\n")[0]
    with closing(here.archive()) as archive:
        loaded = archive.load(receipt.id, source="clone")
        assert loaded.data == text
        assert "newer" in loaded.stale
        with pytest.raises(Unavailable, match="not on master yet"):
            archive.load(waiting.id, source="clone")


# --- retiring ------------------------------------------------------------------------------------


def test_a_key_is_retired_once_nothing_needs_it(keyed: Machines, tiers: Tiers) -> None:
    """Not the current one, not an unknown one, not one that seals anything or the proof."""
    here = keyed()
    here.save(BODY)
    old = ring_of(here).current
    assert here.run("key", "retire", old.id).code == 8
    assert here.run("key", "retire", "00000000").code == 8
    keys.bring(settings_of(here), envelope.new_key().text())
    refused = here.run("key", "retire", old.id)
    assert refused.code == 8
    assert "1 content" in refused.err
    with psycopg.connect(tiers.direct) as db:
        db.execute("UPDATE annoris.sessions SET content = NULL")
    refused = here.run("key", "retire", old.id)
    assert (refused.code, len(ring_of(here).keys)) == (8, 2)
    assert "the proof" in refused.err
    assert "annoris key rotate" in refused.err
    keys.rotate(settings_of(here))
    tiers.set(hot=False)
    assert here.run("key", "retire", old.id).code == 5, "nobody knows what it needs"
    tiers.set()
    done = here.run("key", "retire", old.id.upper(), "--json")
    assert done.code == 0, done.err
    assert done.json["key"]["older"] == []
    assert old not in ring_of(here).keys
    assert here.run("load", "--json").json["text"].encode().endswith(BODY)


def test_a_key_is_retired_without_a_hot_cache_too(machine: Machines) -> None:
    here = machine()
    keys.create(settings_of(here))
    old = ring_of(here).current
    keys.rotate(settings_of(here))
    said = here.run("key", "retire", old.id)
    assert said.code == 0
    assert old.id in said.err
    assert len(ring_of(here).keys) == 1


def test_no_key_is_retired_while_master_is_sealed(machine: Machines) -> None:
    """History is for ever, and so are the keys that it goes by."""
    here = machine(encryption_scope="everything")
    keys.create(settings_of(here))
    old = ring_of(here).current
    here.save(BODY)
    assert here.run("key", "rotate").code == 0
    refused = here.run("key", "retire", old.id)
    assert refused.code == 8
    assert "history" in refused.err
    assert old in ring_of(here).keys
