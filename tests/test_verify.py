"""verify: what is wrong is found, told by a documented word, and healed from what others hold."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from annoris import sync
from annoris.commands.verify import exit_code
from annoris.envelope import new_key, read_ring, seal
from annoris.errors import AnnorisError
from annoris.mirror import Mirror
from annoris.model import Deadline, Run
from annoris.outbox import Outbox
from annoris.verify import KINDS, Scope, verify
from tests.support import githttp
from tests.support.machine import Machine
from tests.support.servers import Valkey
from tests.support.tiers import Tiers, forget_failures

Machines = Callable[..., Machine]
WHOLE, QUICK = Scope(), Scope(quick=True)
MANY = bool(os.environ.get("ANNORIS_FULL"))
ROUNDS = 1000 if MANY else 8


def doc(number: int) -> bytes:
    return b"# Note %d\n\nWhat was said of %d.\n" % (number, number)


def found(
    machine: Machine, scope: Scope = WHOLE, *, repair: bool = False, code: int = 9
) -> list[tuple[str, str]]:
    """Kind and subject of each finding, healed ones left out."""
    with contextlib.closing(machine.archive()) as archive:
        audit = verify(archive, scope, repair=repair)
    assert exit_code(audit) == code, audit.findings
    assert {item.kind for item in audit.findings} <= KINDS.keys()
    assert all(item.message for item in audit.findings)
    return [(item.kind, item.about) for item in audit.findings if not item.healed]


def kinds(machine: Machine, *, repair: bool = False) -> set[str]:
    return {kind for kind, _ in found(machine, repair=repair)}


@contextlib.contextmanager
def database(tiers: Tiers) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(tiers.direct, options="-c search_path=annoris") as db:
        yield db


@pytest.fixture
def here(make: Machines, tiers: Tiers) -> Machine:
    """A machine with six sessions in every tier but the emergency cache."""
    machine = make()
    machine.save(*map(doc, range(6)))
    assert machine.sync().code == 0
    return machine


def sessions(machine: Machine) -> list[Any]:
    with contextlib.closing(machine.archive()) as archive:
        return sorted(archive.catalog.settled(), key=lambda row: row.title)


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


# --- the words -------------------------------------------------------------------------------


def test_every_kind_of_finding_is_documented_and_no_other() -> None:
    page = Path(__file__).parents[1] / "docs" / "verify.md"
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+?) \|", page.read_text(), re.MULTILINE)
    assert dict(rows) == KINDS


# --- each kind -------------------------------------------------------------------------------


def test_a_sound_installation_has_no_findings_and_no_document_is_parsed_twice(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run knows the documents by their blob ids."""
    parsed = []
    plain = sync.document_problem

    def noting(path: str, data: bytes, most: int) -> str:
        parsed.append(path)
        return plain(path, data, most)

    monkeypatch.setattr(sync, "document_problem", noting)
    assert found(here, code=0) == []
    assert len(parsed) == 6
    assert found(here, code=0) == []
    assert len(parsed) == 6
    ran = here.run("verify")
    assert ran.code == 0
    assert "all is well" in ran.text
    assert here.run("verify", "--quiet").out == b""


def test_an_installation_of_nothing_but_defaults_is_sound(machine: Machines) -> None:
    """No remote, no caches, no session yet; then one."""
    here = machine()
    assert found(here, code=0) == []
    here.save(doc(1))
    assert found(here, code=0) == []


def test_rows_of_the_hot_cache_are_compared_in_everything_they_say(
    here: Machine, tiers: Tiers
) -> None:
    a, b, c, d, e, f = sessions(here)
    with database(tiers) as db:
        db.execute("UPDATE sessions SET status = 'x' WHERE id = %s", [a.id])
        db.execute("DELETE FROM sessions WHERE id = %s", [b.id])
        db.execute("UPDATE sessions SET file_path = 'sessions/x.md' WHERE id = %s", [c.id])
        db.execute("UPDATE sessions SET content = NULL WHERE id = %s", [d.id])
        db.execute("UPDATE sessions SET checksum = md5('') WHERE id = %s", [e.id])
        db.execute("UPDATE sessions SET position = 999999 WHERE id = %s", [f.id])
        db.execute(
            "INSERT INTO sessions (id, file_path, position, synced_at) "
            "VALUES ('00000000-0000-0000-0000-000000000001', 'none.md', 1, now())"
        )
    expected = {
        ("hot-wrong", a.path), ("hot-missing", b.path), ("hot-stale", c.path),
        ("hot-bare", d.path), ("hot-damaged", e.path), ("hot-ahead", f.path),
        ("hot-surplus", "00000000-0000-0000-0000-000000000001"),
    }  # fmt: skip
    assert set(found(here)) == expected
    assert set(found(here, QUICK)) == expected - {("hot-damaged", e.path)}
    healed = here.run("verify", "--repair", "--json").json["audit"]["findings"]
    assert {(item["kind"], item["about"]) for item in healed if item["healed"]} == expected
    assert found(here, code=0) == []


def test_an_evicted_row_is_no_finding_and_a_wrong_checksum_of_it_is(
    here: Machine, tiers: Tiers
) -> None:
    githttp.commit(tiers.remote, {"sessions/old.md": b"# Old\n"}, at=1_600_000_000)
    assert here.sync("--full").code == 0
    with database(tiers) as db:
        without = db.execute("SELECT file_path FROM sessions WHERE content IS NULL").fetchall()
    assert without == [("sessions/old.md",)]
    assert found(here, code=0) == []
    with database(tiers) as db:
        db.execute("UPDATE sessions SET checksum = md5('') WHERE content IS NULL")
    assert found(here) == [("hot-wrong", "sessions/old.md")]
    assert found(here, repair=True, code=0) == []


def test_a_content_of_another_session_or_of_another_text_is_found_and_healed(
    here: Machine, tiers: Tiers
) -> None:
    a, b, c = sessions(here)[:3]
    key = read_ring(here.environment["ANNORIS_KEY"]).current
    with database(tiers) as db:
        db.execute(
            "UPDATE sessions SET content = (SELECT content FROM sessions WHERE id = %s) "
            "WHERE id = %s",
            [b.id, a.id],
        )
        db.execute("UPDATE sessions SET content = left(content, 60) WHERE id = %s", [b.id])
        forged = seal(b"# Forged\n", key=key, session=c.id, oid=c.oid)
        db.execute("UPDATE sessions SET content = %s WHERE id = %s", [forged, c.id])
    assert set(found(here)) == {("hot-damaged", row.path) for row in (a, b, c)}
    assert found(here, QUICK, code=0) == []
    assert found(here, repair=True, code=0) == []
    assert here.run("load", c.id, "--from", "hot").out.endswith(doc(2))


def test_a_sample_opens_some_and_the_same_seed_the_same(here: Machine, tiers: Tiers) -> None:
    with database(tiers) as db:
        db.execute("UPDATE sessions SET content = left(content, 60)")
    first = found(here, Scope(sample=34, seed=7))
    assert [kind for kind, _ in first] == ["hot-damaged"] * 3
    assert found(here, Scope(sample=34, seed=7)) == first
    others = {tuple(found(here, Scope(sample=34, seed=seed))) for seed in range(1, 6)}
    assert len(others) > 1
    assert here.run("verify", "--sample", "0").code == 2


def test_a_wrong_key_is_one_finding_and_repairs_nothing(here: Machine, tiers: Tiers) -> None:
    here.environment["ANNORIS_KEY"] = new_key().text()
    assert kinds(here) == {"hot-key"}
    with database(tiers) as db:
        before = db.execute("SELECT content FROM sessions ORDER BY id").fetchall()
    assert kinds(here, repair=True) == {"hot-key"}
    with database(tiers) as db:
        assert db.execute("SELECT content FROM sessions ORDER BY id").fetchall() == before


def test_a_hot_cache_without_tables_or_of_another_master_is_one_finding(
    here: Machine, tiers: Tiers
) -> None:
    with database(tiers) as db:
        db.execute("UPDATE state SET master = 'another'")
    assert found(here) == [("hot-absent", "")]
    assert found(here, repair=True, code=0) == []
    with database(tiers) as db:
        db.execute("DROP SCHEMA annoris CASCADE")
    assert found(here) == [("hot-absent", "")]
    with database(tiers) as db:
        assert db.execute("SELECT to_regnamespace('annoris')").fetchone() == (None,)
    assert found(here, repair=True, code=0) == []


@pytest.mark.parametrize("tier", ["hot", "emergency", "master"])
def test_a_tier_that_is_down_is_told_and_answers_5_when_it_is_all(
    here: Machine, tiers: Tiers, tier: str
) -> None:
    tiers.set(**{tier: False})
    ran = here.run("verify", "--json")
    assert ran.code == 5
    (item,) = ran.json["audit"]["findings"]
    assert (item["kind"], item["where"]) == ("tier-down", tier)
    tiers.set()
    forget_failures(here)
    assert found(here, code=0) == []


def test_what_redis_holds_is_opened_and_compared(
    here: Machine, tiers: Tiers, valkey: Valkey
) -> None:
    a, b, c, d = sessions(here)[:4]
    tiers.set(hot=False)
    for row in (a, b, c, d):
        assert here.run("load", row.id).code == 0
    tiers.set()
    forget_failures(here)
    assert found(here, code=0) == []
    with redis.Redis.from_url(valkey.url) as client:
        client.set(f"annoris:{{{a.id}}}:{a.oid}", b"junk", ex=600)
        client.hset(f"annoris:{{{b.id}}}:head", "oid", "1" * 40)
        client.hset(f"annoris:{{{c.id}}}:head", "position", "many")
        client.delete(f"annoris:{{{d.id}}}:{d.oid}")
    bad = {("emergency-damaged", row.id) for row in (a, c, d)} | {("emergency-stale", b.id)}
    assert set(found(here)) == bad
    assert found(here, repair=True, code=0) == []
    with redis.Redis.from_url(valkey.url) as client:
        assert list(client.scan_iter(match="annoris:*:head")) == []


def test_an_index_of_redis_that_leads_to_an_older_session_is_found_and_taken_away(
    here: Machine, tiers: Tiers, valkey: Valkey
) -> None:
    a, b = sorted(sessions(here), key=lambda row: (row.saved, row.id))[-2:]
    tiers.set(hot=False)
    for row in (a, b):
        assert here.run("load", row.id).code == 0
    tiers.set()
    forget_failures(here)
    with redis.Redis.from_url(valkey.url) as client:
        (index,) = client.scan_iter(match="annoris:newest:*")
        assert client.hget(index, "id") == b.id.encode()
        client.hset(index, "id", a.id)
        assert found(here) == [("emergency-stale", a.id)]
        assert found(here, QUICK) == [("emergency-stale", a.id)]
        assert found(here, repair=True, code=0) == []
        assert not client.exists(index)
        client.set("annoris:newest:odd", "no hash")
        client.hset(index, mapping={"id": "gone", "order": "9"})
        assert found(here, code=0) == [], "what leads nowhere misleads nobody"
        assert here.run("sync", "--full").code == 0
        assert list(client.scan_iter(match="annoris:newest:*")) == []


def test_rows_of_projects_are_compared_with_their_files(here: Machine, tiers: Tiers) -> None:
    for name, target in (("crane", "10.50"), ("quay", "7"), ("road", "1")):
        assert here.run("projects", "set", name, "--target-revenue", target).code == 0
    assert here.sync().code == 0
    assert found(here, code=0) == []
    with database(tiers) as db:
        db.execute("UPDATE projects SET target_revenue = 10.51 WHERE name = 'crane'")
        db.execute("DELETE FROM projects WHERE name = 'quay'")
        db.execute(
            "INSERT INTO projects (id, name, status, priority) "
            "VALUES (gen_random_uuid(), 'none', '', '')"
        )
    wrong = [("hot-wrong", f"project {name}") for name in ("crane", "none", "quay")]
    assert found(here, QUICK) == wrong
    assert found(here, repair=True, code=0) == []
    with database(tiers) as db:
        rows = db.execute("SELECT name, target_revenue::text FROM projects ORDER BY 1").fetchall()
    assert set(rows) >= {("crane", "10.50"), ("quay", "7.00"), ("road", "1.00")}
    assert "none" not in dict(rows)


def test_documents_of_master_are_judged_and_no_repair_touches_them(
    here: Machine, tiers: Tiers
) -> None:
    own = githttp.files(tiers.remote)[sessions(here)[0].path]
    bad: dict[str, bytes | None] = {"sessions/nul.md": b"# N\0UL\n", "sessions/zz.md": own}
    githttp.commit(tiers.remote, bad)
    assert here.sync().code == 0
    expected = [("document-unreadable", "sessions/nul.md"), ("document-id-twice", "sessions/zz.md")]
    assert found(here) == expected
    assert found(here) == expected, "known by its blob id, and still a finding"
    assert found(here, repair=True) == expected
    assert githttp.files(tiers.remote)["sessions/nul.md"] == b"# N\0UL\n"


def test_a_branch_that_is_gone_where_there_is_no_remote_empties_nothing(machine: Machines) -> None:
    here = machine()
    saved = here.save(doc(0), doc(1))
    (here.data / "clone.git" / "refs" / "heads" / "main").unlink()
    assert here.run("sync").code == 74
    with contextlib.closing(here.archive()) as archive:
        assert archive.catalog.count() == 2
    assert kinds(here) == {"clone-damaged"}
    assert here.run("verify", "--repair").code == 0
    assert [here.load(row.id).endswith(doc(n)) for n, row in enumerate(saved)] == [True, True]
    assert here.run("sync").code == 0
    assert len(sessions(here)) == 2


def test_what_waits_too_long_or_was_refused_is_told(machine: Machines, remote: Path) -> None:
    here = machine("here", remote=remote)
    here.save(doc(0))
    hook = remote / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'error: GH013: Push cannot contain secrets' >&2\nexit 1\n")
    hook.chmod(0o755)
    here.save(b"# Refused\n")
    remote.rename(remote.with_name("away"))
    here.save(b"# Waits\n")
    assert kinds(here) == {"tier-down", "outbox-refused"}
    (waiting,) = (here.data / "outbox").glob("*.drafts")
    (draft,), _ = Outbox(str(here.data / "outbox")).read()
    waiting.unlink()
    Outbox(str(here.data / "outbox")).add([replace(draft, at="2026-01-01T00:00:00Z")])
    assert kinds(here) == {"tier-down", "outbox-refused", "outbox-old"}


def test_dumps_are_asked_about_where_any_was_ever_made(machine: Machines) -> None:
    here = machine()
    here.save(doc(0))
    assert found(here, code=0) == []
    with contextlib.closing(here.archive()) as archive:
        archive.record(Run("dump", "ok", "2026-01-01T00:00:00Z"))
        assert kinds(here) == {"dump-old", "drill-old"}
        archive.record(Run("drill", "failed", "2026-01-02T00:00:00Z", details={"error": "why"}))
        assert kinds(here) == {"dump-old", "drill-failed"}


def test_the_catalog_is_compared_with_the_documents(here: Machine, tiers: Tiers) -> None:
    """Rows changed, removed and invented by somebody with sqlite3; the hot cache is blameless."""
    a, b, c = sessions(here)[:3]
    with sqlite3.connect(here.data / "catalog.sqlite") as db:
        db.execute("UPDATE sessions SET title = 'Forged' WHERE id = ?", [a.id])
        db.execute("UPDATE sessions SET oid = ? WHERE id = ?", ["1" * 40, b.id])
        db.execute("UPDATE sessions SET path = 'sessions/no.md' WHERE id = ?", [c.id])
    db.close()
    expected = {
        ("catalog-stale", b.path), ("catalog-surplus", "sessions/no.md"),
        ("catalog-missing", c.path),
    }  # fmt: skip
    assert set(found(here, QUICK)) == expected
    assert found(here, repair=True, code=0) == []
    with sqlite3.connect(here.data / "catalog.sqlite") as db:
        db.execute("UPDATE sessions SET title = 'Forged' WHERE id = ?", [a.id])
    db.close()
    assert found(here) == [("catalog-wrong", a.path)]
    assert found(here, repair=True, code=0) == []
    assert sessions(here)[0].title == "Note 0"


@pytest.mark.parametrize("repair", [False, True])
def test_nothing_that_a_damaged_catalog_says_is_believed(
    here: Machine, tiers: Tiers, repair: bool
) -> None:
    """SQLite finds it while everything else is compared, and the hot cache is blameless."""
    first = sessions(here)[0]
    with sqlite3.connect(here.data / "catalog.sqlite") as db:
        db.execute("UPDATE texts_content SET c2 = 'what nobody wrote' WHERE id = 1")
        db.execute(
            "UPDATE sessions SET title = 'Forged', oid = ? WHERE id = ?", ["1" * 40, first.id]
        )
    db.close()
    left = [] if repair else [("catalog-damaged", "")]
    assert found(here, repair=repair, code=0 if repair else 9) == left
    assert found(here, repair=True, code=0) == []
    assert sessions(here)[0] == first


def test_a_sealed_master_is_verified_and_rebuilt_like_a_plain_one(
    make: Machines, tiers: Tiers
) -> None:
    """What does not open, or is not sealed at all, is told and stops nothing."""
    here = make(encryption_scope="everything")
    receipts = here.save(*map(doc, range(4)))
    with contextlib.closing(here.archive()) as archive:
        sync.sync(archive, full=True)
    assert found(here, code=0) == []
    with psycopg.connect(tiers.direct) as db:
        db.execute("DROP SCHEMA annoris CASCADE")
    (here.data / "catalog.sqlite").unlink()
    assert found(here, repair=True, code=0) == []
    envelope = githttp.files(tiers.remote)[receipts[0].path]
    githttp.commit(
        tiers.remote,
        {receipts[0].path: envelope[:-40], "sessions/plain.md": b"# Plain\n"},
    )
    expected = {
        ("document-unreadable", receipts[0].path),
        ("document-unreadable", "sessions/plain.md"),
    }
    with contextlib.closing(here.archive()) as archive:
        report = sync.sync(archive, full=True, force=True)
        assert len(report.problems) == 2
    assert set(found(here)) == expected
    assert set(found(here, repair=True)) == expected
    assert here.load(receipts[1].id).endswith(doc(1))


def test_a_clone_with_damaged_objects_is_made_anew_and_the_old_one_kept(here: Machine) -> None:
    clone = here.data / "clone.git"
    for path in [path for path in (clone / "objects").rglob("*") if path.is_file()]:
        data = writable(path).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    assert kinds(here) == {"clone-damaged"}
    assert found(here, repair=True, code=0) == []
    assert [path for path in here.data.iterdir() if path.name.startswith("clone.git.damaged-")]
    assert here.load(sessions(here)[3].id).endswith(doc(3))


def test_a_clone_is_not_made_anew_from_a_master_that_looks_empty(
    here: Machine, tiers: Tiers
) -> None:
    githttp.delete_branch(tiers.remote)
    head = here.data / "clone.git" / "refs" / "heads" / "main"
    head.write_text("junk\n")
    assert "clone-damaged" in kinds(here, repair=True)
    assert head.read_text() == "junk\n"


@pytest.mark.parametrize("broken", [b"", b"junk\n", b"1" * 40 + b"\n"])
def test_a_damaged_ref_looks_like_damage_and_not_like_an_empty_master(
    machine: Machines, broken: bytes
) -> None:
    """Without a remote, where it would be the end of everything: the log of the ref helps."""
    here = machine()
    id = here.save(doc(0), doc(1))[0].id
    (here.data / "clone.git" / "refs" / "heads" / "main").write_bytes(broken)
    ran = here.run("save", "-", stdin=b"# More\n")
    assert ran.code in (74, 75), ran
    assert here.run("list").code in (0, 74)
    assert found(here, repair=True, code=0) == []
    assert here.load(id).endswith(doc(0))
    assert len(sessions(here)) == 2
    assert here.sync().code == 0


def test_without_a_remote_a_document_comes_back_from_the_hot_cache(
    make: Machines, tiers: Tiers
) -> None:
    here = make(master_remote="")
    receipts = here.save(*map(doc, range(3)))
    oid = receipts[1].oid
    loose = here.data / "clone.git" / "objects" / oid[:2] / oid[2:]
    assert loose.exists() or _unpacked(here)
    writable(loose).write_bytes(b"")
    assert kinds(here) == {"clone-damaged"}
    assert found(here, repair=True, code=0) == []
    tiers.set(hot=False)
    assert here.load(receipts[1].id).endswith(doc(1))


def _unpacked(machine: Machine) -> bool:
    objects = machine.data / "clone.git" / "objects"
    for pack in list((objects / "pack").glob("*.pack")):
        away = shutil.move(pack, machine.folder / pack.name)
        pack.with_suffix(".idx").unlink()
        with open(away, "rb") as file:
            subprocess.run(
                ["git", f"--git-dir={machine.data / 'clone.git'}", "unpack-objects", "-q"],
                stdin=file,
                check=True,
            )
    return True


def test_a_repair_waits_for_no_sync(here: Machine, tiers: Tiers) -> None:
    """While one is under way it answers 11, and a look alone goes on."""
    with database(tiers) as db:
        db.execute("UPDATE sessions SET title = 'Forged'")
    with contextlib.closing(here.archive()) as archive, sync.running(archive):
        assert kinds(here) == {"hot-wrong"}
        assert here.run("verify", "--repair").code == 11


def test_a_save_during_a_verify_is_no_finding(
    here: Machine, tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is newer than what was compared is not called wrong; deletions neither."""
    there = Machine(here.folder.with_name("there"), str(tiers.remote), {})
    there.environment |= {
        key: value for key, value in here.environment.items()
        if key.startswith("ANNORIS_") and "DATA" not in key
    }  # fmt: skip
    first, second = sessions(here)[:2]
    plain = Mirror.compare

    def late(self: Mirror, *arguments: Any) -> Any:
        there.save(b"# Meanwhile\n")
        text = there.load(first.id).replace(b"said", b"thought")
        there.save(text)
        assert there.run("delete", second.id).code == 0
        return plain(self, *arguments)

    monkeypatch.setattr(Mirror, "compare", late)
    with contextlib.closing(here.archive()) as archive:
        assert verify(archive, Scope(), deadline=Deadline(60)).findings == ()


# --- case 18 ---------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 3 MiB, where this user may mount one."""
    place = tmp_path / "tiny"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs"]
    if subprocess.run(["mount", *options, str(place)], capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs can't be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_case_18_a_full_disk_costs_nothing_but_the_time_until_it_is_free(
    machine: Machines, remote: Path, tiny: Path
) -> None:
    """Rounds of save, sync and verify with a few blocks left; then all is sound again.

    What is here is shown all the time, and whether it may be old.
    """
    here = machine("here", remote=remote, data_dir=str(tiny / "data"))
    here.data = tiny / "data"
    first = here.save(doc(0))[0].id
    saved = {first: doc(0)}
    chance = random.Random(18)
    filler = tiny / "filler"
    rounds = 10 if MANY else 3
    for number in range(1, rounds + 1):
        space = os.statvfs(tiny)
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            file.write(bytes(space.f_bavail * space.f_frsize - chance.randrange(5) * 4096))
        githttp.commit(remote, {f"sessions/{number}.md": doc(100 + number)})
        shown = here.run("load", first)
        assert (shown.code, shown.out.endswith(doc(0))) == (0, True), shown
        ran = here.run("save", "-", "--json", stdin=doc(number))
        assert ran.code in (0, 74, 75), ran
        if ran.code in (0, 75):
            saved[ran.json["receipts"][0]["id"]] = doc(number)
        for command in ("sync", "verify", "load"):  # whatever they answer, no bug
            later = here.run(command)
            assert later.code in (0, 5, 9, 74, 75), later
            assert "Traceback" not in later.err
        filler.unlink()
        assert here.sync().code == 0
        assert found(here, code=0) == []
    bodies = {id: data.rpartition(b"---\n")[2] for id, data in answers(here).items()}
    assert {id: bodies.get(id) for id in saved} == saved
    assert len(bodies) >= len(saved) + rounds


# --- case 19 ---------------------------------------------------------------------------------


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Flipped in one bit, cut, or emptied."""
    how = chance.choice(("flip", "flip", "cut", "empty"))
    if how == "empty" or not data:
        return b""
    at = chance.randrange(len(data))
    if how == "cut":
        return data[:at]
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def answers(machine: Machine) -> dict[str, bytes]:
    """Every session that loads, with its bytes."""
    loaded = {}
    with contextlib.closing(machine.archive()) as archive:
        for row in archive.catalog.list(project=None, limit=None):
            loaded[row.id] = archive.load(row.id).data
    return loaded


class Lab:
    """A machine with all tiers, brought back to soundness after each mutation."""

    def __init__(self, machine: Machine, tiers: Tiers, valkey: Valkey) -> None:
        self.machine, self.tiers, self.valkey = machine, tiers, valkey
        self.kept = machine.folder.with_name("kept")
        shutil.copytree(machine.data, self.kept, symlinks=True)
        self.truth = answers(machine)

    def back(self) -> None:
        shutil.rmtree(self.machine.data)
        shutil.copytree(self.kept, self.machine.data, symlinks=True)

    def loads(self) -> None:
        """No load shows a wrong byte; it may fail."""
        for id, text in self.truth.items():
            with contextlib.suppress(AnnorisError):  # anything else would be a bug
                assert self.machine.load(id) == text

    def judged(self, *, harmless: bool = False) -> None:
        """Verify finds it, a repair heals it, all is as before."""
        with contextlib.closing(self.machine.archive()) as archive:
            audit = verify(archive, Scope(), repair=True)
            assert harmless or audit.findings, "nothing was found"
        with contextlib.closing(self.machine.archive()) as archive:
            assert verify(archive, Scope()).findings == ()
        assert answers(self.machine) == self.truth


@pytest.fixture
def lab(here: Machine, tiers: Tiers, valkey: Valkey) -> Lab:
    tiers.set(hot=False)
    for row in sessions(here)[:3]:
        here.load(row.id)
    tiers.set()
    forget_failures(here)
    return Lab(here, tiers, valkey)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("what", ["objects", "pack", "ref", "catalog"])
def test_case_19_mutations_of_files_are_found_and_healed(lab: Lab, what: str) -> None:
    """A flip in a part of SQLite's file that holds nothing may be none: then all is as it was."""
    chance = random.Random(19)
    clone = lab.machine.data / "clone.git"
    if what == "objects":
        assert _unpacked(lab.machine)
    elif what == "pack":
        subprocess.run(["git", f"--git-dir={clone}", "gc", "-q"], check=True)
    shutil.rmtree(lab.kept)
    shutil.copytree(lab.machine.data, lab.kept, symlinks=True)
    patterns = {
        "objects": "clone.git/objects/??/*", "pack": "clone.git/objects/pack/*.pack",
        "ref": "clone.git/refs/heads/main", "catalog": "catalog.sqlite",
    }  # fmt: skip
    for number in range(ROUNDS):
        files = sorted(lab.machine.data.glob(patterns[what])) or [clone / "packed-refs"]
        path = writable(chance.choice(files))
        before = path.read_bytes()
        path.write_bytes(mutated(before, chance))
        if path.read_bytes() != before:
            if number % 5 == 0:
                lab.loads()
                lab.back() if what == "catalog" else None
            lab.judged(harmless=what == "catalog")
        lab.back()


@pytest.mark.timeout(7200)
def test_case_19_mutations_of_the_outbox_are_found_and_the_rest_is_kept(
    machine: Machines, remote: Path
) -> None:
    chance = random.Random(19)
    here = machine("here", remote=remote)
    here.save(doc(0))
    remote.rename(remote.with_name("away"))
    here.save(doc(1))
    here.save(doc(2))
    kept = here.data.with_name("kept")
    shutil.copytree(here.data, kept, symlinks=True)
    for _ in range(ROUNDS):
        path = chance.choice(sorted((here.data / "outbox").glob("*.drafts")))
        before = path.read_bytes()
        path.write_bytes(mutated(before, chance))
        with contextlib.closing(here.archive()) as archive:
            drafts, _ = archive.outbox.read()
            texts = [draft.data for draft in drafts]
            assert all(text.endswith((doc(1), doc(2))) for text in texts)
            if path.read_bytes() != before:
                kinds = [item.kind for item in verify(archive, Scope(quick=True)).findings]
                assert kinds.count("outbox-damaged") == 1
        shutil.rmtree(here.data)
        shutil.copytree(kept, here.data, symlinks=True)


@pytest.mark.timeout(7200)
def test_case_19_mutations_of_rows_are_found_and_healed(lab: Lab) -> None:
    """Any column of a row in PostgreSQL but the ones that only order and evict."""
    chance = random.Random(19)
    words = (
        "project", "name", "title", "file_path", "content", "checksum", "github_sha", "priority",
        "status", "etag", "literal", "body_md5",
    )  # fmt: skip
    for number in range(ROUNDS):
        with database(lab.tiers) as db:
            row = chance.choice(sessions(lab.machine))
            column = chance.choice(words)
            value = db.execute(f"SELECT {column} FROM sessions WHERE id = %s", [row.id]).fetchone()
            assert value is not None
            before = value[0].encode()
            after = mutated(before, chance).decode("latin-1").replace("\0", "")[: len(before)]
            db.execute(f"UPDATE sessions SET {column} = %s WHERE id = %s", [after, row.id])
        if after.encode() != before:
            if number % 5 == 0:
                lab.loads()
                continue  # a load may have healed it
            lab.judged()


@pytest.mark.timeout(7200)
def test_case_19_mutations_of_redis_are_found_and_healed(lab: Lab) -> None:
    chance = random.Random(19)
    with redis.Redis.from_url(lab.valkey.url) as client:
        for number in range(ROUNDS):
            heads = sorted(client.scan_iter(match="annoris:*:head"))
            if not heads:
                lab.tiers.set(hot=False)
                answers(lab.machine)
                lab.tiers.set()
                forget_failures(lab.machine)
                continue
            head = chance.choice(heads)
            value = head.removesuffix(b"head") + client.hget(head, "oid")
            name = chance.choice((b"oid", b"position", b"meta", b""))
            before = (client.hget(head, name) if name else client.get(value)) or b""
            after = mutated(before, chance)
            client.hset(head, name, after) if name else client.set(value, after, ex=3600)
            if number % 5 == 0:
                lab.tiers.set(hot=False)
                lab.loads()
                lab.tiers.set()
                forget_failures(lab.machine)
            # An older position is no damage that anybody could see, nor one that matters.
            lab.judged(harmless=number % 5 == 0 or name == b"position")


def test_one_that_is_told_to_end_waits_for_no_check_and_leaves_none_behind(
    machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """git fsck and SQLite's check of many sessions may take minutes."""
    here = machine()
    here.save(b"# One\n\ntext\n")
    git, began, programs = shutil.which("git"), tmp_path / "began", tmp_path / "programs"
    programs.mkdir()
    (programs / "git").write_text(
        f'#!/bin/sh\nfor word; do if [ "$word" = fsck ]; then echo $$ > "{began}"; '
        f'exec sleep 600; fi; done\nexec "{git}" "$@"\n'
    )
    (programs / "git").chmod(0o755)
    path = f"{programs}{os.pathsep}{here.environment['PATH']}"
    running = here.start("verify", env={"PATH": path})
    while not (began.exists() and began.read_text()):
        assert running.poll() is None
        time.sleep(0.02)
    running.terminate()
    assert running.wait(60) == 143
    running.communicate()
    check, end = Path(f"/proc/{began.read_text().strip()}"), time.monotonic() + 60
    while check.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not check.exists()
