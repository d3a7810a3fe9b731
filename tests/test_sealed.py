"""A master that holds envelopes: the main job, what the server sees, keys, and the way there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import redis

from annoris import bootstrap, convert, document, envelope, upkeep
from annoris.errors import KeyProblem, ScopeMismatch, WrongKey
from annoris.layout import FORMAT, id_in, is_sealed
from annoris.master import oid_of
from annoris.model import Receipt
from annoris.settings import load
from tests import corpus
from tests.support import crash
from tests.support.githttp import commit, commits, files, head
from tests.support.invariant import holds
from tests.support.machine import Machine
from tests.support.servers import Valkey
from tests.support.tiers import Tiers, forget_failures

Machines = Callable[..., Machine]

# Words that stand nowhere else: in titles, projects, names and bodies of what is saved here.
SECRETS = ("quagga-title", "quagga-project", "quagga-name", "quagga-body", "quagga-message")
BODY = b"# quagga-title\n\n**Status:** quagga-body\n\nThe word is quagga-body.\n"
OPTIONS = {"project": "quagga-project", "name": "quagga-name"}


@pytest.fixture
def sealing(machine: Machines, remote: Path) -> Machines:
    """Machines that share one sealed remote and, unless told otherwise, one key."""
    key = envelope.new_key().text()

    def made(name: str = "laptop", remote: object = remote, **settings: str) -> Machine:
        known = {"encryption_scope": "everything", "master_fresh_seconds": "0.001", "key": key}
        return machine(name, remote, **(known | settings))

    return made


def as_scope(machine: Machine, scope: str) -> Machine:
    """The machine after its setting was changed."""
    machine.environment["ANNORIS_ENCRYPTION_SCOPE"] = scope
    return machine


def body(data: bytes) -> bytes:
    return document.split(data)[1]


def everything_in(repo: Path) -> bytes:
    """All that a server can see: every object inflated, refs, logs and file names."""
    git = ["git", f"--git-dir={repo}"]
    objects = [*git, "cat-file", "--batch-all-objects", "--batch"]
    seen = subprocess.run(objects, capture_output=True, check=True).stdout
    seen += subprocess.run([*git, "show-ref"], capture_output=True, check=False).stdout
    for path in repo.rglob("*"):
        seen += str(path.relative_to(repo)).encode()
        if path.is_file() and "objects" not in path.parts:
            seen += path.read_bytes()
    return seen


def told(seen: bytes) -> list[str]:
    """The secrets that stand there, as they are or as a path would spell them."""
    return [word for word in SECRETS if word.encode() in seen]


def forms(remote: Path) -> set[bool]:
    """Whether the sessions and projects that are there are sealed."""
    shown = [path for path in files(remote) if path.endswith((".md", ".toml", ".annoris"))]
    return {is_sealed(path) for path in shown if path != FORMAT}


# --- the main job --------------------------------------------------------------------------------


def test_two_machines_do_on_a_sealed_master_what_they_do_on_a_plain_one(
    sealing: Machines, remote: Path
) -> None:
    """Save, load, edit, conflict, delete, history, diff, revisions, search and list."""
    one, two = sealing("one"), sealing("two")
    (first,) = one.save(b"# Plan\n\nzebra\n", project="zoo", name="plan")
    stored = files(remote)[first.path]
    assert stored.startswith(b"annoris1.")
    assert oid_of(stored) == first.oid, "a receipt names the blob that master has"
    base = two.load("zoo/plan")
    (edit,) = one.save(base.replace(b"zebra", b"giraffe"))
    (lost,) = two.save(base.replace(b"zebra", b"lion"))
    assert (edit.state, edit.id, lost.state) == ("master", first.id, "conflict")
    assert lost.conflict_of == first.id
    (again,) = sealing("three").save(base.replace(b"zebra", b"lion"))
    assert again.id == lost.id, "the same losing text is the same copy"

    with closing(two.archive()) as archive:
        (hit,), _ = archive.search("giraffe")
        assert hit.session.id == first.id
        rows, _ = archive.sessions(project="zoo")
        assert {row.title for row in rows} == {"Plan"}
        _, revisions = archive.history("zoo/plan")
        assert len(revisions) == 2
        assert "+giraffe\n" in archive.diff("zoo/plan")
        old = archive.load("zoo/plan", rev=revisions[-1].commit[:8])
        assert old.data == archive.load("zoo/plan", at=revisions[-1].at).data or old.data == base
        assert old.data == base
        assert archive.delete(lost.id, "").state == "master"
        deleted = archive.history(lost.path)[1]
        assert body(archive.load(lost.path, rev=deleted[0].oid).data) == b"# Plan\n\nlion\n"
    holds([one, two], remote, {first.id: b"# Plan\n\ngiraffe\n"}, exactly=True)


def test_saving_what_load_printed_is_nothing_and_a_deleted_text_survives_as_a_copy(
    sealing: Machines, remote: Path
) -> None:
    one, two = sealing("one"), sealing("two")
    (saved,) = one.save(BODY, **OPTIONS)
    before = commits(remote)
    text = two.load(saved.id)
    assert [receipt.state for receipt in two.save(text)] == ["unchanged"]
    assert commits(remote) == before
    with closing(one.archive()) as archive:
        archive.delete(saved.id, "")
    (kept,) = two.save(text.replace(b"The word", b"The other word"))
    assert kept.state == "conflict"
    edited = BODY.replace(b"The word", b"The other word")
    holds([one, two], remote, {kept.id: edited}, exactly=True)


def test_documents_come_back_byte_for_byte_on_another_machine(
    sealing: Machines, remote: Path
) -> None:
    one = sealing("one")
    documents = [
        data
        for name, data in corpus.documents(120)
        if not document.inspect(data).id and ("odd" in name or "session-ru" in name or "cr" in name)
    ]
    assert len(documents) > 30
    receipts = one.save(*documents)
    bodies = {receipt.id: body(data) for receipt, data in zip(receipts, documents, strict=True)}
    holds([one, sealing("two")], remote, bodies, exactly=True)


def test_without_any_other_setting_a_sealed_master_is_begun_with_a_new_key(
    machine: Machines,
) -> None:
    here = machine(encryption_scope="everything")
    here.save(BODY, **OPTIONS)
    assert body(here.load("quagga-project/quagga-name")) == BODY
    assert (here.data / "key").stat().st_mode & 0o777 == 0o600
    assert told(everything_in(here.data / "clone.git")) == []


# --- what others can see -------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["everything", "caches"])
def test_p7_no_name_and_no_text_is_seen_outside_when_everything_is_sealed(
    make: Machines, tiers: Tiers, valkey: Valkey, scope: str
) -> None:
    """Neither on master nor in a cache; with caches alone sealed, the same search finds them."""
    here = make(encryption_scope=scope)
    (saved,) = here.save(BODY, **OPTIONS)
    text = here.load(saved.id)
    here.save(text.replace(b"The word", b"Now the word"))
    here.save(text.replace(b"The word", b"Once the word"))  # a conflict copy
    tiers.set(hot=False)
    forget_failures(here)
    here.save(b"# quagga-title two\n\nquagga-body\n", **(OPTIONS | {"name": "quagga-name-2"}))
    with closing(here.archive()) as archive:
        archive.delete(saved.id, "")
        archive.set_project("quagga-project", {"status": "quagga-message"})
    tiers.set()
    forget_failures(here)
    assert here.sync().code == 0

    with psycopg.connect(tiers.direct) as db:
        tables = ("sessions", "projects", "state", "sync_log")
        rows = [
            db.execute(f"SELECT to_jsonb(t)::text FROM annoris.{table} AS t").fetchall()
            for table in tables
        ]
    assert len(rows[0]) == 3
    with redis.Redis.from_url(valkey.url) as client:
        held = [key + (client.dump(key) or b"") for key in client.scan_iter()]
    assert held
    seen = everything_in(tiers.remote), repr(rows).encode(), b"".join(held)
    if scope == "everything":
        assert [told(part) for part in seen] == [[], [], []]
    else:
        assert told(seen[0]) == list(SECRETS)
        assert all("quagga-project" in told(part) for part in seen)


def test_the_caches_answer_by_names_that_they_can_not_read(make: Machines, tiers: Tiers) -> None:
    """Newest, by name and by id, each tier alone, with all that list and load show."""
    here = make(encryption_scope="everything")
    (saved,) = here.save(BODY, **OPTIONS)
    blank = make("blank", encryption_scope="everything")
    tiers.set(master=False)
    for selector in ("quagga-project/quagga-name", saved.id, saved.id[-8:]):
        loaded = blank.run("load", selector, "--from", "hot", "--json").json
        assert body(loaded["text"].encode()) == BODY
        said = {key: loaded["session"][key] for key in ("title", "project", "name", "status")}
        assert said == {"title": "quagga-title", **OPTIONS, "status": "quagga-body"}
    assert blank.run("load", "-p", "quagga-project", "--json").json["tier"] == "hot"

    tiers.set(hot=False)
    forget_failures(here)
    here.save(b"# Later\n\ntext\n", project="quagga-project", name="later")
    tiers.set(hot=False, master=False)
    loaded = blank.run("load", "quagga-project/later", "--from", "emergency", "--json").json
    assert loaded["session"]["title"] == "Later"


# --- keys ----------------------------------------------------------------------------------------


def test_case_21_a_wrong_key_or_none_is_seen_before_anything_is_written(
    sealing: Machines, remote: Path
) -> None:
    """Exit 8 for a save, a load and a sync; master and the outbox stay as they are."""
    (saved,) = sealing().save(BODY)
    before = head(remote)
    for name, key in (("wrong", envelope.new_key().text()), ("none", "")):
        other = sealing(name, key=key)
        for command in (("save", "-"), ("load",), ("key", "check")):
            ran = other.run(*command, stdin=b"# Mine\n")
            assert ran.code == 8, (name, command, ran.err)
            assert "key" in ran.err
            assert "annoris key import" in ran.err
        assert head(remote) == before
        assert not (other.data / "key").exists(), "no key is made where one is needed"
    holds([sealing("other")], remote, {saved.id: BODY}, exactly=True)


def test_a_key_that_is_lost_later_keeps_the_next_save_out_of_the_outbox(
    sealing: Machines, remote: Path
) -> None:
    here = sealing()
    here.save(BODY)
    here.environment["ANNORIS_KEY"] = envelope.new_key().text()
    with pytest.raises(WrongKey):
        here.save(b"# Mine\n")
    assert here.archive().outbox.batches() == []


def test_a_rotation_seals_master_again_and_others_need_the_new_key(
    sealing: Machines, remote: Path
) -> None:
    """One commit; a machine with the old key alone is refused and keeps what it saved."""
    one, two = sealing("one", key=""), sealing("two", key="")
    receipts = one.save(BODY, b"# Two\n\ntext\n")
    shutil.copytree(one.data, two.data)
    old = envelope.load_ring(str(one.data / "key")).current
    base, before = two.load(receipts[0].id), commits(remote)
    ran = one.run("key", "rotate", "--json")
    assert ran.json["rotation"] | {"current": "", "older": []} == {
        "current": "", "older": [], "made": True, "resealed": 3, "dropped": 0,
    }  # fmt: skip
    assert commits(remote) == before + 1
    needed = {envelope.sealed_by(data.decode()) for path, data in files(remote).items()
              if id_in(path)}  # fmt: skip
    assert needed == {ran.json["rotation"]["current"]}

    ran = two.run("save", "-", stdin=base.replace(b"The word", b"His word"))
    assert ran.code == 8
    assert "1 waiting here, safe" in ran.err
    shutil.copy(one.data / "key", two.data / "key")
    assert two.sync().code == 0
    bodies = {receipts[0].id: BODY.replace(b"The word", b"His word"),
              receipts[1].id: b"# Two\n\ntext\n"}  # fmt: skip
    holds([one, two], remote, bodies, exactly=True)
    with closing(two.archive()) as archive:
        _, revisions = archive.history(receipts[0].id)
        assert len(revisions) == 3
        assert archive.load(receipts[0].id, rev=revisions[-1].oid).data == base
    newest = envelope.load_ring(str(one.data / "key")).current
    (two.data / "key").write_text(newest.text())
    assert two.run("load", receipts[0].id, "--rev", revisions[-1].oid).code == 8
    assert old.id not in (newest.id, "")


def test_case_21_a_rotation_that_was_killed_after_its_key_is_finished_by_the_next(
    sealing: Machines, remote: Path
) -> None:
    """Until then saves go on under the old key, so that other machines can read them."""
    one, two = sealing("one", key=""), sealing("two", key="")
    (saved,) = one.save(BODY)
    two.data.mkdir()
    shutil.copy(one.data / "key", two.data / "key")
    path = str(one.data / "key")
    ring = envelope.edit_key_file(path, lambda have: envelope.rotate(have, envelope.new_key()))
    (next_,) = one.save(b"# Next\n\ntext\n")
    assert body(two.load(next_.id)) == b"# Next\n\ntext\n"
    done = bootstrap.rotate(load(environ=one.environment))
    assert (done.made, done.current, done.resealed) == (False, ring.current.id, 3)
    shutil.copy(one.data / "key", two.data / "key")
    holds([one, two], remote, {saved.id: BODY, next_.id: b"# Next\n\ntext\n"}, exactly=True)


def test_a_rotation_takes_in_what_another_machine_saves_meanwhile(
    sealing: Machines, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = sealing("one", key=""), sealing("two", key="")
    one.save(BODY)
    two.data.mkdir()
    shutil.copy(one.data / "key", two.data / "key")
    plain = envelope.proof
    raced: list[Receipt] = []

    def slow(key: envelope.Key) -> str:
        if not raced:
            raced.extend(two.save(b"# Meanwhile\n\ntext\n"))
        return plain(key)

    monkeypatch.setattr(envelope, "proof", slow)
    done = bootstrap.rotate(load(environ=one.environment))
    assert (done.resealed, raced[0].state) == (3, "master")
    assert len(one.load(raced[0].id)) > 20


# --- the form of master --------------------------------------------------------------------------


@pytest.mark.parametrize(("has", "set_to"), [("everything", "caches"), ("caches", "everything")])
def test_a_machine_that_is_set_to_the_other_form_is_refused_and_told_the_way(
    sealing: Machines, remote: Path, has: str, set_to: str
) -> None:
    """New or known to master, for reading and writing: exit 2, and nothing is written."""
    here = sealing("here", encryption_scope=has)
    here.save(BODY)
    before = head(remote)
    for other in (as_scope(here, set_to), sealing("new", encryption_scope=set_to)):
        for command in (("save", "-"), ("load",), ("sync",)):
            ran = other.run(*command, stdin=b"# Mine\n")
            assert ran.code == 2, (command, ran.err)
            assert f"annoris init --remote {remote} --scope {has}" in ran.err
        ran = other.run("init", "--remote", str(remote))
        assert ran.code == 2, ran.err
        assert "--convert" in ran.err
    assert head(remote) == before


@pytest.mark.parametrize(("has", "wanted"), [("caches", "everything"), ("everything", "caches")])
def test_a_master_is_converted_in_one_commit_and_back_and_others_follow(
    sealing: Machines, remote: Path, has: str, wanted: str
) -> None:
    """Ids, texts, names and older revisions stay; a draft of before arrives; nothing doubles."""
    one, two = sealing("one", encryption_scope=has), sealing("two", encryption_scope=has)
    first, second = one.save(BODY, b"# Two\r\n\r\ntext"), two.save(b"# Three\n\n3\n", **OPTIONS)
    data = {receipt.id: one.load(receipt.id) for receipt in (*first, *second)}
    before, offline = commits(remote), remote.with_name("offline.git")
    remote.rename(offline)
    waiting = two.run("save", "-", "--json", stdin=data[first[0].id].replace(b"word", b"term"))
    assert waiting.json["receipts"][0]["state"] == "refused"  # there is no such repository
    offline.rename(remote)

    ran = as_scope(one, wanted).run("init", "--convert")
    assert ran.code == 0, ran.err
    assert "history" in ran.err
    assert commits(remote) == before + 1
    assert forms(remote) == {wanted == "everything"}
    assert {id: one.load(id) for id in data} == data

    ran = two.run("save", "-", stdin=b"# Four\n\n4\n")
    assert ran.code == 2
    assert "2 waiting here, safe" in ran.err
    assert f"--scope {wanted}" in ran.err
    assert as_scope(two, wanted).sync().code == 0
    bodies = {id: body(text) for id, text in data.items()}
    bodies[first[0].id] = BODY.replace(b"word", b"term")
    holds([one, two], remote, bodies, anywhere=[b"# Four\n\n4\n"])
    with closing(one.archive()) as archive:
        _, revisions = archive.history(first[0].id)
        assert len(revisions) == 3
        loaded = archive.load(first[0].id, rev=revisions[-1].commit)
        assert loaded.data == data[first[0].id]
    again = as_scope(one, has).run("init", "--convert")
    assert again.code == 0, again.err
    as_scope(two, has)
    holds([one, two], remote, bodies, anywhere=[b"# Four\n\n4\n"])


def test_a_conversion_keeps_what_only_a_path_and_git_said(sealing: Machines, remote: Path) -> None:
    """Files by hand keep their id, project and time, there and back; other files stay."""
    one = sealing("one", encryption_scope="caches")
    one.save(BODY, **OPTIONS)
    commit(remote, {"sessions/hand/note.md": b"By hand.\n", "README.md": b"# Not a session\n"})
    with closing(one.archive()) as archive:
        archive.set_project("quagga-project", {"target_revenue": "12.50"})
    before = listed(one)
    assert {project for project, *_ in before.values()} == {"hand", "quagga-project"}
    for scope in ("everything", "caches"):
        ran = as_scope(one, scope).run("init", "--convert")
        assert (ran.code, len(files(remote))) == (0, 6), ran.err
        assert listed(one) == before
        with closing(one.archive()) as archive:
            project = archive.project("quagga-project")
        assert project.target_revenue == "12.50"
        assert project.path.endswith(".annoris" if scope == "everything" else ".toml")
        holds([one], remote, {}, anywhere=[b"By hand.\n", BODY])


def test_two_files_that_claim_one_id_are_two_sessions_in_the_other_form_too(
    sealing: Machines, remote: Path
) -> None:
    one = sealing("one", encryption_scope="caches")
    (saved,) = one.save(BODY, **OPTIONS)
    commit(remote, {"sessions/hand/copy.md": one.load(saved.id)})
    before = listed(one)
    assert len(before) == 2
    assert as_scope(one, "everything").run("init", "--convert").code == 0
    assert listed(one) == before
    assert {id_in(path) for path in files(remote)} == {"", *before}


def listed(machine: Machine) -> dict[str, tuple[str, ...]]:
    """What a list shows of each session."""
    with closing(machine.archive()) as archive:
        rows, _ = archive.sessions(everything=True)
    return {row.id: (row.project, row.name, row.title, row.saved, row.created) for row in rows}


def test_a_conversion_takes_in_what_another_machine_saves_meanwhile(
    sealing: Machines, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = sealing("one"), sealing("two", encryption_scope="caches")
    (saved,) = two.save(BODY)
    plain = convert.converted
    raced: list[Receipt] = []

    def slow(*arguments: object) -> str:
        made = plain(*arguments)  # type: ignore[arg-type]
        if not raced:
            raced.extend(two.save(b"# Meanwhile\n\ntext\n"))
        return made

    monkeypatch.setattr(convert, "converted", slow)
    monkeypatch.setattr("annoris.join.converted", slow)
    done = bootstrap.set_up(load(environ=one.environment), str(one.desk / "c.toml"), convert=True)
    assert (done.converted, done.sessions, raced[0].state) == (True, 2, "master")
    as_scope(two, "everything")
    holds([one, two], remote, {saved.id: BODY, raced[0].id: b"# Meanwhile\n\ntext\n"}, exactly=True)


def test_case_3_a_conversion_that_is_killed_leaves_the_old_or_the_new_form(
    sealing: Machines, remote: Path, tmp_path: Path
) -> None:
    """Whatever was done, the same command finishes it, and both sessions are there."""
    here = sealing(encryption_scope="caches")
    receipts = here.save(BODY, b"# Two\n\ntext\n")
    as_scope(here, "everything")
    saved = tmp_path / "saved"
    shutil.copytree(here.data, saved / "data")
    shutil.copytree(remote, saved / "remote.git")
    steps, ran = crash.events(here, "init", "--convert")
    assert ran.code == 0, ran.err
    missed = crash.PASSED["init --convert"] - set(steps)
    assert not missed
    telling = [step for step, name in enumerate(steps) if name.startswith(("git ", "Master."))]
    for step in telling if os.environ.get("ANNORIS_FULL") else telling[1::6]:
        for name, place in (("data", here.data), ("remote.git", remote)):
            shutil.rmtree(place)
            shutil.copytree(saved / name, place)
        assert crash.run(here, "init", "--convert", kill_at=step).code == -9
        scope = re.findall(rb'scope = "(\w+)"', files(remote)[FORMAT])[0]
        assert forms(remote) == {scope == b"sealed"}, steps[step]
        assert here.run("init", "--convert").code == 0, steps[step]
    holds([here], remote, {receipts[0].id: BODY, receipts[1].id: b"# Two\n\ntext\n"}, exactly=True)


def test_the_setting_is_written_by_init_and_only_when_it_fits(
    machine: Machines, remote: Path
) -> None:
    """--scope on a master of the other form is refused and leaves the configuration alone."""
    here = machine()
    config = here.desk / "config.toml"
    here.environment["ANNORIS_CONFIG"] = str(config)
    config.write_text("# mine\n")
    here.save(BODY)
    ran = here.run("init", "--scope", "everything")
    assert (ran.code, config.read_text()) == (2, "# mine\n")
    assert "annoris init --scope everything --convert" in ran.err
    assert here.run("init", "--scope", "nothing").code == 2
    done = here.run("init", "--scope", "everything", "--convert", "--json")
    assert (done.code, done.json["init"]["converted"]) == (0, True)
    assert 'scope = "everything"' in config.read_text()
    assert body(here.load()) == BODY
    assert here.run("init", "--scope", "everything", "--convert", "--json").json["init"][
        "converted"
    ] is False  # fmt: skip
    assert here.run("init", "--scope", "caches", "--convert").code == 0
    assert body(here.load()) == BODY


# --- bringing what is here -----------------------------------------------------------------------


def test_a_sealed_master_of_this_machine_moves_to_a_remote_with_its_history(
    sealing: Machines, remote: Path
) -> None:
    here = sealing(remote="")
    (saved,) = here.save(BODY, **OPTIONS)
    text = here.load(saved.id)
    here.save(text.replace(b"The word", b"My word"))
    other = sealing("other")
    other.save(b"# Other\n\ntext\n")
    assert here.run("init", "--remote", str(remote)).code == 0
    here.environment["ANNORIS_MASTER_REMOTE"] = str(remote)
    bodies = {saved.id: BODY.replace(b"The word", b"My word")}
    holds([here, other], remote, bodies, anywhere=[b"# Other\n\ntext\n"])
    with closing(other.archive()) as archive:
        assert len(archive.history(saved.id)[1]) == 2
    assert told(everything_in(remote)) == []


def test_a_sealed_master_takes_no_plain_history_from_this_machine(
    sealing: Machines, remote: Path
) -> None:
    """What was saved here in plain goes there sealed, without the revisions before."""
    here = sealing(remote="", encryption_scope="caches")
    (saved,) = here.save(BODY, **OPTIONS)
    here.save(here.load(saved.id).replace(b"The word", b"My word"))
    as_scope(here, "everything")
    ran = here.run("init", "--remote", str(remote))
    assert ran.code == 2
    assert "add --convert" in ran.err
    assert head(remote) == ""
    ran = here.run("init", "--remote", str(remote), "--convert")
    assert ran.code == 0, ran.err
    assert "only newest revisions went there" in ran.err
    here.environment["ANNORIS_MASTER_REMOTE"] = str(remote)
    assert told(everything_in(remote)) == []
    moved = BODY.replace(b"The word", b"My word")
    holds([here, sealing("other")], remote, {saved.id: moved}, exactly=True)


def test_history_in_plain_is_left_behind_by_a_move_to_an_empty_repository(
    sealing: Machines, remote: Path, tmp_path: Path
) -> None:
    """As init says after a conversion."""
    here = sealing(encryption_scope="caches")
    (saved,) = here.save(BODY, **OPTIONS)
    assert as_scope(here, "everything").run("init", "--convert").code == 0
    assert "quagga-body" in told(everything_in(remote)), "git forgets nothing"
    clean = tmp_path / "clean.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(clean)], check=True)
    ran = here.run("init", "--remote", str(clean), "--move")
    assert ran.code == 0, ran.err
    here.environment["ANNORIS_MASTER_REMOTE"] = str(clean)
    assert told(everything_in(clean)) == []
    holds([here, sealing("other", remote=clean)], clean, {saved.id: BODY}, exactly=True)


# --- a server that does harm ---------------------------------------------------------------------


def test_case_20_files_that_do_not_belong_are_named_and_stop_nothing(
    sealing: Machines, remote: Path
) -> None:
    """Swapped, cut, in plain, at a strange name: none is shown, the others are, sync goes on."""
    here, other = sealing("here"), sealing("other")
    receipts = here.save(*(b"# Note %d\n\ntext %d\n" % (n, n) for n in range(5)))
    held = files(remote)
    swapped = [receipts[0].path, receipts[1].path]
    smuggled = "sealed/ff/0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4aff.annoris"
    bad = {
        swapped[0]: held[swapped[1]],
        swapped[1]: held[swapped[0]],
        receipts[2].path: held[receipts[2].path][:-1],
        smuggled: b"# In plain\n",
        "sessions/x/plain.md": b"# In plain\n",
        "sealed/strange.annoris": held[receipts[3].path],
    }
    commit(remote, bad)
    for machine in (here, other):
        ran = machine.sync("--json")
        assert ran.code == 0, ran.err
        report = ran.json["report"]
        assert {problem.partition(" ")[0] for problem in report["problems"]} == bad.keys()
        assert report["sessions"] == 2
        assert machine.run("load", receipts[0].id).code == 3
        assert body(machine.load(receipts[4].id)) == b"# Note 4\n\ntext 4\n"
    assert "is not shown" in here.sync("-q").err
    doctor = here.run("doctor")
    assert all(path in doctor.text + doctor.err for path in bad)

    (saved,) = here.save(b"# More\n\ntext\n")
    assert saved.state == "master"
    older = other.run("history", receipts[0].path, "--json").json["revisions"]
    text = other.load(receipts[0].path, rev=older[-1]["oid"])
    assert body(text) == b"# Note 0\n\ntext 0\n", "what was there before can be had"
    with pytest.raises(KeyProblem):
        other.load(receipts[0].path, rev=older[0]["oid"])
    assert {receipt.state for receipt in other.save(text)} == {"master"}
    assert body(here.load(receipts[0].id)) == b"# Note 0\n\ntext 0\n"


def test_a_master_that_turns_plain_or_loses_its_proof_gets_nothing(
    sealing: Machines, remote: Path
) -> None:
    """A server that says plain can't make a machine write in plain, nor by another's proof."""
    here = sealing()
    here.save(BODY)
    sealed = files(remote)[FORMAT]
    stranger = sealed.replace(
        re.findall(rb'proof = "(.*)"', sealed)[0], envelope.proof(envelope.new_key()).encode()
    )
    for text, error in (
        (b'version = 1\nscope = "plain"\n', ScopeMismatch),
        (None, ScopeMismatch),
        (stranger, WrongKey),
    ):
        commit(remote, {FORMAT: text})
        before = head(remote)
        with pytest.raises(error):
            here.load()
        ran = here.run("save", "-", stdin=b"# quagga-title\n\nquagga-message\n")
        assert ran.code in (2, 8)
        assert head(remote) == before
    commit(remote, {FORMAT: sealed})
    assert here.sync().code == 0
    assert told(everything_in(remote)) == []


# --- the catalog without texts -------------------------------------------------------------------


def test_a_catalog_without_texts_holds_none_and_searches_titles(sealing: Machines) -> None:
    """Also after it held them; search says that it looked at titles and names only."""
    here = sealing()
    (saved,) = here.save(BODY.replace(b"**Status:** quagga-body", b"quagga-body"), **OPTIONS)
    assert here.run("search", "quagga-body", "--json").json["hits"]
    assert "quagga-body" in told(catalog_of(here))
    here.environment["ANNORIS_CATALOG_TEXT"] = "false"
    ran = here.run("search", "quagga-body", "--json")
    assert (ran.json["hits"], ran.json["titles_only"]) == ([], True)
    found = here.run("search", "quagga-title")
    assert saved.id[-8:] in found.text
    assert "catalog.text" in found.err
    assert "quagga-body" not in told(catalog_of(here))
    assert body(here.load(saved.id)).startswith(b"# quagga-title")
    here.save(b"# More\n\nquagga-body\n")
    with closing(here.archive()) as archive:
        upkeep.sync(archive)
    assert "quagga-body" not in told(catalog_of(here))
    del here.environment["ANNORIS_CATALOG_TEXT"]
    assert len(here.run("search", "quagga-body", "--json").json["hits"]) == 2


def catalog_of(machine: Machine) -> bytes:
    return b"".join(path.read_bytes() for path in machine.data.glob("catalog.sqlite*"))
