"""Projects: files on master that two machines and people on GitHub edit, exact to the cent."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Callable
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from annoris import gitcmd, projects
from annoris.errors import DocumentRefused, UsageError
from annoris.model import Project
from annoris.publish import Publisher
from tests.support.githttp import bare, commit, commits, files, force_push
from tests.support.machine import Machine
from tests.support.service import Service
from tests.support.tiers import Tiers

Machines = Callable[..., Machine]

PATH = "projects/shop.toml"
ID = "0190a1b2-c3d4-4e5f-8a9b-0c1d2e3f4a5b"
BY_HAND = f"""# What the shop is to bring.
id = "{ID}"
name = "shop"
status = 'active'   # since May
target_revenue = 50_000.10
note = "ask Ann"

[contact]
mail = "ann@example.org"
""".encode()


def told(repo: Path) -> dict[str, bytes]:
    """Projects' files on master by path."""
    return {path: data for path, data in files(repo).items() if path.startswith("projects/")}


def known(machine: Machine) -> dict[str, Project]:
    with closing(machine.archive()) as archive:
        return {project.name: project for project in archive.projects()}


def put(machine: Machine, project: str, **changes: str) -> bool:
    with closing(machine.archive()) as archive:
        return archive.set_project(project, changes)


# --- amounts -------------------------------------------------------------------------------------

amounts = st.decimals(min_value=0, max_value=Decimal("9999999999.99"), places=2)


@settings(deadline=None)
@given(amounts)
@example(Decimal("0.29"))
@example(Decimal("9999999999.99"))
def test_an_amount_comes_back_exact_through_every_form(amount: Decimal) -> None:
    """As number, as text, after an edit of something else, and in the file itself."""
    text = f"{amount:.2f}"
    for form in (text, f'"{text}"'):
        data = f"name = 'x'\ntarget_revenue = {form}\n".encode()
        found = projects.parse(PATH, data)
        assert found is not None
        assert found.target_revenue == text
        edited = projects.edited(data, {"status": "on", "current_revenue": text}, found)
        again = projects.parse(PATH, edited)
        assert again is not None
        assert (again.target_revenue, again.current_revenue) == (text, text)
        raw = tomllib.loads(edited.decode(), parse_float=Decimal)
        assert raw["current_revenue"] == amount


@settings(deadline=None)
@given(st.one_of(st.text(), st.decimals().map(str), st.integers().map(str), st.floats().map(str)))
@example("1e9999")
@example("1e-9999")
@example("-0.00")
@example("١٢")
@example("1_000")
def test_whatever_is_written_is_an_exact_amount_or_refused(text: str) -> None:
    try:
        made = projects.revenue(text)
    except ValueError:
        return
    assert Decimal(made) == Decimal(text)
    assert 0 <= Decimal(made) < 10**10
    assert made.partition(".")[2].isdigit()
    assert len(made.partition(".")[2]) == 2


@pytest.mark.parametrize(("text", "says"), [
    ("nan", "is no amount"), ("-Inf", "is no amount"), ("-1", "below zero"),
    ("1,200", "not a number"), ("1.234", "more than two decimals"), ("12 €", "not a number"),
    ("10000000000", "more than ten digits"),
])  # fmt: skip
def test_a_wrong_amount_is_refused_with_the_reason(machine: Machines, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"--target-revenue: .*{says}"):
        put(machine(), "shop", target_revenue=text)
    assert known(machine()) == {}


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "says"), [
    (b"name = 'x'\nstatus = \n", ":2: is not TOML"),
    (b"name = 'x'\n\ntarget_revenue = 1.005\n", ":3: target_revenue: 1.005 has more than two"),
    (b"target_revenue = nan\n", ":1: target_revenue: NaN is no amount"),
    (b"#\ncurrent_revenue = true\n", ":2: current_revenue must be an amount"),
    (b"name = 'x'\n 'current_revenue' = -5\n", ":2: current_revenue: -5 is below zero"),
    (b"name = 'x'\ntarget_revenue = 1e99999999999999999999\n", "is not TOML"),
    (b"name = 'x'\n\xff\n", ":2: is not UTF-8"),
    (b"id = 'x'\n", ":1: id: 'x' is not a UUID"),
    (b"name = 1\n", ":1: name must be text"),
    (b"was = 'x'\n", ":1: was must be a list"),
    (b"name = " + b"[" * 9999, "is not TOML"),
])  # fmt: skip
def test_a_file_that_cant_be_read_is_named_with_its_line(data: bytes, says: str) -> None:
    with pytest.raises(DocumentRefused) as caught:
        projects.parse(PATH, data)
    assert caught.value.message.startswith(PATH)
    assert says in caught.value.message


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_a_project_none_or_refused(data: bytes) -> None:
    with suppress(DocumentRefused):
        projects.parse(PATH, data)


def test_a_file_of_somebody_elses_is_no_project() -> None:
    assert projects.parse("projects/pyproject.toml", b"[project]\nname = 'x'\n") is None


def test_a_file_without_name_and_id_gets_them_from_its_path() -> None:
    found = projects.parse(PATH, b"priority = 1\ncreated = 2026-05-01\n")
    assert found is not None
    assert (found.name, found.priority, found.created) == ("shop", "1", "2026-05-01T00:00:00Z")
    assert found.id == getattr(projects.parse(PATH, b"status = 'x'"), "id", "")


def test_an_edit_keeps_comments_order_and_foreign_keys() -> None:
    found = projects.parse(PATH, BY_HAND)
    assert found is not None
    edited = projects.edited(BY_HAND, {"status": "done", "target_revenue": "1.00"}, found)
    wanted = BY_HAND.replace(b"'active' ", b'"done" ').replace(b"50_000.10", b"1.00")
    assert edited == wanted
    assert projects.edited(edited, {"status": "done"}, found) == edited
    assert b"status" not in projects.edited(edited, {"status": ""}, found)


# --- one machine ---------------------------------------------------------------------------------


def test_the_first_save_makes_the_project_in_its_own_commit(
    machine: Machines, remote: Path
) -> None:
    laptop = machine(remote=remote)
    laptop.save(b"# One\n\ntext\n", project="shop")
    before = commits(remote)
    [(path, data)] = told(remote).items()
    laptop.save(b"# Two\n\ntext\n", project="Магазин № 1")
    assert commits(remote) == before + 1
    laptop.save(b"# Three\n\ntext\n", project="shop")
    assert path == PATH
    assert told(remote)[path] == data
    assert len(told(remote)) == 2
    found = known(laptop)
    assert found["shop"].sessions == 2
    assert found["shop"].id in data.decode()
    assert found["Магазин № 1"].id


def test_names_that_slug_alike_have_files_of_their_own(machine: Machines) -> None:
    laptop = machine()
    for name in ("shop", "Shop", "shop!", "Ａ", "A", "é", "e\u0301"):
        laptop.save(f"# {name}\n\ntext\n".encode(), project=name)
    pair = [f"---\nproject: {name}\n---\n# {name}\n".encode() for name in ("ö", "o\u0308")]
    laptop.save(*pair)
    found = known(laptop)
    assert len({project.path for project in found.values()}) == 9
    assert len({project.id for project in found.values()} - {""}) == 9


def test_a_save_into_a_known_project_starts_no_further_git(
    machine: Machines, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = machine(remote=remote)
    laptop.save(b"# One\n\ntext\n", project="shop")
    run, started = gitcmd.process, []

    def counted(command: list[str], *rest: object) -> object:
        started.append(next(word for word in command[1:] if not word.startswith("-")))
        return run(command, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gitcmd, "process", counted)
    laptop.save(b"# Two\n\ntext\n", project="shop")
    usual = started[:]
    started.clear()
    monkeypatch.setattr(Publisher, "_begin_projects", lambda *_: None)
    laptop.save(b"# Three\n\ntext\n", project="shop")
    assert usual == started
    assert "push" in usual


def test_setting_makes_a_project_and_setting_the_same_makes_no_commit(
    machine: Machines, remote: Path
) -> None:
    laptop = machine(remote=remote)
    assert put(laptop, "shop", status="active", target_revenue="50000", current_revenue="1e3")
    found = known(laptop)["shop"]
    assert (found.target_revenue, found.current_revenue) == ("50000.00", "1000.00")
    assert projects.share(found) == "2.0"
    before = commits(remote)
    assert not put(laptop, "shop", status="active")
    assert commits(remote) == before
    assert put(laptop, "shop", target_revenue="")
    assert known(laptop)["shop"].target_revenue == ""


def test_a_project_that_only_sessions_name_is_listed_and_can_be_renamed(
    machine: Machines, remote: Path
) -> None:
    laptop = machine(remote=remote)
    commit(remote, {"sessions/old/a.md": b"# By hand\n"})
    laptop.sync()
    assert known(laptop)["old"] == Project("old", sessions=1, newest=known(laptop)["old"].newest)
    put(laptop, "old", name="new")
    assert [(item.name, item.sessions, item.was) for item in known(laptop).values()] == [
        ("new", 1, ("old",))
    ]


# --- renaming ------------------------------------------------------------------------------------


def test_a_rename_keeps_id_path_and_sessions_and_both_names_select(
    machine: Machines, remote: Path
) -> None:
    laptop, desktop = machine("laptop", remote=remote), machine("desktop", remote=remote)
    first = laptop.save(b"# One\n\ntext\n", project="shop", name="plan")[0]
    before = known(laptop)["shop"]
    text = laptop.load("plan", project="shop")
    put(laptop, "shop", name="web shop")
    desktop.sync()
    for here in (laptop, desktop):
        after = known(here)
        assert list(after) == ["web shop"]
        assert (after["web shop"].id, after["web shop"].path) == (before.id, PATH)
        for name in ("shop", "web shop"):
            assert here.load(project=name) == here.load("plan", project=name) == text
            assert here.load(f"{name}/plan") == text
            rows = here.run("list", "--project", name, "--json").json["sessions"]
            assert [(row["id"], row["project"]) for row in rows] == [(first.id, "web shop")]
            assert here.run("search", "text", "--project", name, "--json").json["hits"]
    assert desktop.save(text)[0].state == "unchanged"
    again = desktop.save(b"# Two\n\ntext\n", project="shop", name="plan")[0]
    assert (again.id, again.project) == (first.id, "web shop")
    assert list(told(remote)) == [PATH]


def test_a_name_is_taken_for_a_save_that_waited_through_the_rename(
    machine: Machines, remote: Path
) -> None:
    laptop, desktop = machine("laptop", remote=remote), machine("desktop", remote=remote)
    laptop.save(b"# One\n\ntext\n", project="shop")
    desktop.sync()
    away = remote.rename(remote.with_name("away"))
    desktop.save(b"# Theirs\n\ntext\n", project="shop", name="plan")
    away.rename(remote)
    put(laptop, "shop", name="store")
    laptop.save(b"# Ours\n\ntext\n", project="store", name="plan")
    assert desktop.sync().code == 4
    assert laptop.load("store/plan").endswith(b"# Ours\n\ntext\n")
    assert known(desktop)["store"].sessions == 3


def test_a_name_can_be_given_back_but_not_taken(machine: Machines, remote: Path) -> None:
    laptop = machine(remote=remote)
    laptop.save(b"# One\n\ntext\n", project="shop")
    put(laptop, "shop", name="store")
    put(laptop, "other", status="active")
    for taken in ("store", "shop"):
        with pytest.raises(UsageError, match="already"):
            put(laptop, "other", name=taken)
    put(laptop, "shop", name="shop")
    found = known(laptop)["shop"]
    assert (found.was, found.sessions) == (("store",), 1)
    force_push(remote, {**files(remote), PATH: BY_HAND})  # whoever removes an alias means it
    laptop.sync()
    laptop.save(b"# Two\n\ntext\n", project="store")
    assert {name: item.sessions for name, item in known(laptop).items()} == {
        "other": 0, "shop": 1, "store": 1,
    }  # fmt: skip


def test_a_new_project_of_a_path_that_is_taken_gets_another(
    machine: Machines, remote: Path
) -> None:
    commit(remote, {PATH: b"name = 'something else'\n"})
    laptop = machine(remote=remote)
    laptop.save(b"# One\n\ntext\n", project="shop")
    found = known(laptop)
    assert found["shop"].path == f"projects/shop-{found['shop'].id[-8:]}.toml"
    assert found["something else"].path == PATH


# --- two machines and hands ----------------------------------------------------------------------


def test_two_machines_that_race_make_one_project(machine: Machines, remote: Path) -> None:
    """The second one builds on a tip that does not have it yet, and loses the race."""
    laptop, desktop = machine("laptop", remote=remote), machine("desktop", remote=remote)
    desktop.save(b"# Before\n\ntext\n", project="other")
    laptop.sync()
    desktop.save(b"# Two\n\ntext\n", project="shop")
    laptop.save(b"# One\n\ntext\n", project="shop")
    desktop.sync()
    assert sorted(told(remote)) == ["projects/other.toml", PATH]
    assert known(laptop)["shop"] == known(desktop)["shop"]
    assert known(laptop)["shop"].sessions == 2
    running = [
        here.start("save", "--project", "third", "--quiet", here.write("x.md", f"# {here}\n"))
        for here in (laptop, desktop)
    ]
    for process in running:
        with process:
            assert process.wait(60) == 0, process.communicate()
    assert len(told(remote)) == 3


def test_two_machines_that_set_different_things_keep_both(machine: Machines, remote: Path) -> None:
    laptop, desktop = machine("laptop", remote=remote), machine("desktop", remote=remote)
    for here in (laptop, desktop):
        here.sync()
    put(laptop, "shop", status="active")
    put(desktop, "shop", priority="high")
    laptop.sync()
    for here in (laptop, desktop):
        found = known(here)["shop"]
        assert (found.status, found.priority) == ("active", "high")
    assert list(told(remote)) == [PATH]


def test_an_edit_by_hand_counts_and_the_next_command_keeps_it(
    machine: Machines, remote: Path
) -> None:
    laptop = machine(remote=remote)
    laptop.save(b"# One\n\ntext\n", project="shop")
    commit(remote, {PATH: BY_HAND})
    assert laptop.sync().code == 0
    found = known(laptop)["shop"]
    assert (found.id, found.target_revenue, found.sessions) == (ID, "50000.10", 1)
    put(laptop, "shop", current_revenue="0.10")
    data = told(remote)[PATH]
    assert data.replace(b"current_revenue = 0.10\n", b"") == BY_HAND
    for gone in (b"[nothing]\n", None):
        commit(remote, {PATH: BY_HAND})
        laptop.sync()
        commit(remote, {PATH: gone})
        laptop.sync()
        assert known(laptop)["shop"] == Project("shop", sessions=1, newest=found.newest)


def test_broken_toml_is_named_and_holds_nothing_up(machine: Machines, remote: Path) -> None:
    laptop = machine(remote=remote)
    laptop.save(b"# One\n\ntext\n", project="shop")
    commit(remote, {
        PATH: b"name = 'shop'\nstatus = oops\n", "projects/good.toml": b"status = 'fine'\n",
        "projects/twin.toml": b"name = 'good'\n", "projects/\udcff.toml": b"status = 'odd'\n",
        "projects/a\udcfe.toml": b"status =",
    })  # fmt: skip
    ran = laptop.run("sync", "--quiet")
    assert ran.code == 0
    assert f"{PATH}:2: is not TOML" in ran.err
    assert "projects/twin.toml: has the name of projects/good.toml" in ran.err
    assert laptop.run("sync", "--json").json["report"]["problems"]
    assert laptop.run("doctor").code == 9
    found = known(laptop)
    assert (found["good"].status, found["shop"].id, found["shop"].sessions) == ("fine", "", 1)
    assert laptop.save(b"# Two\n\ntext\n", project="shop")[0].state == "master"
    ran = laptop.run("projects", "set", "shop", "--status", "x")
    assert ran.code == 6
    assert f"{PATH}:2" in ran.err
    assert len(told(remote)) == 5
    commit(remote, {PATH: BY_HAND, "projects/a\udcfe.toml": None})
    assert laptop.run("sync", "--quiet").err.splitlines() == [
        "annoris: projects/?.toml:1: name must be said here, the file's own being none",
        "annoris: projects/twin.toml: has the name of projects/good.toml, which counts",
    ]
    assert known(laptop)["shop"].id == ID


def test_a_project_that_begins_offline_is_made_when_it_is_delivered(
    machine: Machines, remote: Path
) -> None:
    laptop = machine(remote=remote)
    laptop.sync()
    away = remote.rename(remote.with_name("away"))
    assert laptop.save(b"# One\n\ntext\n", project="shop")[0].state != "master"
    assert known(laptop)["shop"].sessions == 1
    ran = laptop.run("projects", "set", "shop", "--status", "x")
    assert ran.code == 10
    away.rename(remote)
    assert laptop.sync().code == 0
    assert list(told(remote)) == [PATH]
    assert b"status" not in told(remote)[PATH]


def test_projects_go_along_to_a_new_master_that_keeps_its_own(
    machine: Machines, remote: Path
) -> None:
    laptop = machine()
    put(laptop, "mine", target_revenue="12.50")
    put(laptop, "shop", status="mine")
    commit(remote, {PATH: BY_HAND, "sessions/shop/a.md": b"# There\n"})
    assert laptop.run("init", "--remote", remote).code == 0
    here = machine("other", remote=remote)
    here.sync()
    found = known(here)
    assert (found["mine"].target_revenue, found["shop"].id) == ("12.50", ID)


# --- caches --------------------------------------------------------------------------------------


def rows(tiers: Tiers) -> list[tuple[object, ...]]:
    with psycopg.connect(tiers.direct) as db:
        return db.execute(
            "SELECT name, id::text, status, priority, coalesce(target_revenue::text, ''),"
            " coalesce(current_revenue::text, '') FROM annoris.projects ORDER BY name"
        ).fetchall()


def from_files(repo: Path) -> list[tuple[object, ...]]:
    found = [projects.parse(path, data) for path, data in told(repo).items()]
    return sorted(
        (item.name, item.id, item.status, item.priority, item.target_revenue, item.current_revenue)
        for item in found
        if item
    )


def test_the_table_in_postgres_equals_the_files_after_each_sync(
    make: Machines, tiers: Tiers
) -> None:
    laptop = make()
    laptop.save(b"# One\n\ntext\n", project="shop")
    put(laptop, "склад", target_revenue="9999999999.99", current_revenue="0.07", status="идёт")
    put(laptop, "gone", status="soon")
    assert laptop.sync().code == 0
    assert rows(tiers) == from_files(tiers.remote)
    assert len(rows(tiers)) == 3
    put(laptop, "shop", name="gone too")
    commit(tiers.remote, {"projects/gone.toml": None, "projects/more.toml": b"priority = 2\n"})
    assert laptop.sync().code == 0
    assert rows(tiers) == from_files(tiers.remote)
    with psycopg.connect(tiers.direct) as db:
        assert db.execute("SELECT project FROM annoris.sessions").fetchall() == [("gone too",)]
    loaded = laptop.run("load", "--project", "shop", "--json").json
    assert (loaded["tier"], loaded["session"]["project"]) == ("hot", "gone too")
    commit(tiers.remote, dict.fromkeys(told(tiers.remote)))
    assert laptop.sync().code == 0
    assert rows(tiers) == []


# --- the command ---------------------------------------------------------------------------------


def test_the_commands_say_what_a_person_asks(machine: Machines) -> None:
    laptop = machine()
    amounts = ("--target-revenue", "50000", "--current-revenue", "33")
    made = laptop.run("projects", "set", "shop", "--status", "active", *amounts, "--json").json
    assert (made["changed"], made["project"]["percent"]) == (True, "0.1")
    listed = laptop.run("projects", "list", "--json").json["projects"]
    assert listed == laptop.run("projects", "--json").json["projects"] == [made["project"]]
    assert laptop.run("projects").text == "shop\t0\t\tactive\t\t50000.00\t33.00\t0.1\n"
    shown = laptop.run("projects", "show", "shop")
    assert "target revenue   50000.00" in shown.text
    assert laptop.run("projects", "show", "shop", "--json").json["project"] == made["project"]
    assert laptop.run("projects", "set", "shop", "--priority", "1", "--quiet").out == b""


@pytest.mark.parametrize(("words", "code", "says"), [
    (("show", "shpo"), 3, "did you mean shop?"),
    (("show", "x"), 3, "annoris projects"),
    (("set", "shpo", "--rename", "y"), 3, "did you mean shop?"),
    (("set", "shop", "--rename", " "), 2, "needs a name"),
    (("set", "shop", "--rename", "a\nb"), 2, "line break"),
    (("set", "shop", "--status", "x" * 256), 2, "more than 255"),
    (("set", "shop", "--current-revenue", "abc"), 2, "write an amount such as 1200.50"),
    (("set", "shop", "--state", "x"), 2, "--status"),
    (("sow",), 2, "no such command"),
])  # fmt: skip
def test_bad_input_is_told_and_changes_nothing(
    machine: Machines, words: tuple[str, ...], code: int, says: str
) -> None:
    laptop = machine()
    put(laptop, "shop", status="active")
    ran = laptop.run("projects", *words)
    assert (ran.code, ran.out) == (code, b"")
    assert says in ran.err
    assert {name: item.status for name, item in known(laptop).items()} == {"shop": "active"}


def test_a_plain_load_reads_no_toml(machine: Machines) -> None:
    laptop = machine()
    laptop.save(b"# One\n\ntext\n")
    words = ["-X", "importtime", "-m", "annoris.cli", "load", "--quiet"]
    done = subprocess.run(
        [laptop.environment["PATH"].split(":")[0] + "/python", *words],
        cwd=laptop.desk, env=laptop.unmeasured, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"tomllib", "tomlkit", "decimal"} & {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines()
    }


def test_two_empty_machines_that_begin_at_once_share_the_projects(
    machine: Machines, tmp_path: Path
) -> None:
    repo = bare(tmp_path / "fresh.git")
    laptop, desktop = machine("laptop", remote=repo), machine("desktop", remote=repo)
    put(laptop, "shop", status="active")
    desktop.save(b"# One\n\ntext\n", project="shop")
    assert known(desktop)["shop"].status == "active"


def test_a_folder_whose_name_is_not_utf_8_is_a_project_like_any_other(
    machine: Machines, remote: Path
) -> None:
    """In lists of every edge; only a file of its own it can't have."""
    odd = os.fsdecode(b"\xe9t\xe9")
    commit(remote, {f"sessions/{odd}/note.md": b"# Note\n\ntext\n", "sessions/shop/a.md": b"# A\n"})
    here = machine("laptop", remote)
    assert here.run("sync").code == 0
    assert set(known(here)) == {"shop", odd}
    names = [one["name"] for one in here.run("projects", "list", "--json").json["projects"]]
    assert sorted(names) == ["?t?", "shop"]
    assert here.run("projects", "list").text.splitlines()[1].startswith("?t?\t1\t")
    (row,) = here.run("list", "--project", odd, "--json").json["sessions"]
    assert (row["project"], row["title"]) == ("?t?", "Note")
    assert here.run("load", "--project", odd).out == b"# Note\n\ntext\n"
    assert here.run("status").code == 0
    with pytest.raises(UsageError, match="not UTF-8"):
        put(here, odd, status="active")
    with Service(here) as running:
        for page in ("/", "/projects", "/sessions", f"/sessions/{row['id']}"):
            shown = running.client.get(page)
            assert shown.status_code == 200
            assert "?t?" in shown.text
        assert "project=%E9t%E9" in running.client.get("/").text
        listed = running.client.get("/api/v1/projects").json()["projects"]
        assert sorted(one["name"] for one in listed) == ["?t?", "shop"]
    here.write("more.md", b"# Note\n\nmore\n")
    assert here.run("save", "more.md", "--update", row["id"]).code == 0
