from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import traceback
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import annoris
from annoris import catalog as module
from annoris.catalog import Catalog, Row
from annoris.errors import StorageError, UsageError
from annoris.model import Project, Session
from tests.support.fuzz import examples

ROOT = str(Path(annoris.__file__).parent.parent)


def an_id(number: int) -> str:
    return str(uuid.UUID(int=(0x018F00000000 + number) << 80 | 7 << 76 | 2 << 62 | number))


def a_row(number: int, text: str = "", fallback: str = "", **changes: object) -> Row:
    session = Session(
        id=an_id(number),
        path=f"sessions/work/2026/01/{number:05}.md",
        oid=f"{number:040x}",
        project="work",
        name="",
        title=f"Session {number}",
        status="Active",
        priority="high",
        created="2026-01-01T00:00:00Z",
        saved=f"2026-01-{1 + number // 86400:02}T{number // 3600 % 24:02}:"
        f"{number // 60 % 60:02}:{number % 60:02}Z",
        size=len(text),
        etag=f"e{number}",
        literal=f"l{number}",
        body_md5=hashlib.md5(text.encode(errors="replace")).hexdigest(),
    )
    session = replace(session, **changes)  # type: ignore[arg-type]
    own = str(uuid.uuid5(uuid.NAMESPACE_URL, session.path.encode(errors="replace").hex()))
    return Row(session, fallback or own, text)


class Text(str):
    """A text whose end can be watched."""

    __slots__ = ("__weakref__",)


def titles(found: Iterable[Session]) -> list[str]:
    return [session.title for session in found]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "catalog.sqlite")


@pytest.fixture
def catalog(path: str) -> Iterator[Catalog]:
    with contextlib.closing(Catalog(path)) as opened:
        yield opened


@contextlib.contextmanager
def in_memory() -> Iterator[Catalog]:
    """A catalog for one example of a property: where nothing can be written it makes no file."""
    with contextlib.closing(Catalog("/proc/none/catalog.sqlite")) as opened:
        yield opened


def fill(catalog: Catalog, *rows: Row, commit: str = "c1") -> None:
    catalog.apply(commit=commit, master="m", upserts=rows, replace_all=True)


class TestOpening:
    def test_a_missing_catalog_is_created_empty_and_private(self, tmp_path: Path) -> None:
        path = tmp_path / "new folder ?#%41" / "catalog.sqlite"
        with contextlib.closing(Catalog(str(path))) as catalog:
            assert (catalog.commit, catalog.master, catalog.count()) == ("", "", 0)
            fill(catalog, a_row(1))
            modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("*.sqlite*-*")}
            assert modes | {stat.S_IMODE(path.stat().st_mode)} == {0o600}
        with contextlib.closing(Catalog(str(path))) as catalog:
            assert catalog.count() == 1

    def test_what_was_applied_is_there_after_opening_again(self, path: str) -> None:
        with contextlib.closing(Catalog(path)) as catalog:
            fill(catalog, a_row(1, "some words"))
        with contextlib.closing(Catalog(path)) as catalog:
            assert (catalog.commit, catalog.master) == ("c1", "m")
            assert catalog.get(an_id(1)) == a_row(1, "some words").session
            assert [hit.session.id for hit in catalog.search("words")] == [an_id(1)]

    def test_a_catalog_of_another_version_is_made_anew(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with contextlib.closing(Catalog(path)) as catalog:
            fill(catalog, a_row(1))
        for version in (module.VERSION + 1, module.VERSION):
            monkeypatch.setattr(module, "VERSION", version)
            with contextlib.closing(Catalog(path)) as catalog:
                assert (catalog.commit, catalog.count()) == ("", 0)
                fill(catalog, a_row(1))

    def test_a_change_of_the_schema_needs_a_new_version(self) -> None:
        schema = Path(module.__file__).with_name("sql") / "catalog.sql"
        known = {
            1: "4988ccae369a0e88", 2: "5ad71555ce076989", 3: "12240b0e8ae48bbc",
            4: "33f446d778119d82",
        }  # fmt: skip
        assert known[module.VERSION] == hashlib.sha256(schema.read_bytes()).hexdigest()[:16]

    @pytest.mark.parametrize("garbage", [b"", b"x", b"no database\n" * 999, bytes(8192)])
    def test_a_file_that_is_no_database_is_made_anew(self, path: str, garbage: bytes) -> None:
        Path(path).write_bytes(garbage)
        Path(path + "-wal").write_bytes(garbage)
        Path(path + "-shm").write_bytes(garbage)
        with contextlib.closing(Catalog(path)) as catalog:
            assert catalog.commit == ""
            fill(catalog, a_row(1))
        with contextlib.closing(Catalog(path)) as catalog:
            assert catalog.count() == 1

    def test_any_damage_ends_in_a_catalog_that_can_be_filled_again(self, tmp_path: Path) -> None:
        """Bytes flipped, pages overwritten, the end cut off: StorageError or nothing else."""
        sound = str(tmp_path / "sound")
        rows = [a_row(n, f"words of {n} " * 30, name=f"n{n}") for n in range(60)]
        with contextlib.closing(Catalog(sound)) as catalog:
            fill(catalog, *rows)
        noticed = 0
        for seed in range(60):
            path = str(tmp_path / "damaged")
            Path(path).write_bytes(damaged(Path(sound).read_bytes(), random.Random(seed)))
            with contextlib.closing(Catalog(path)) as catalog:
                if error := first_refusal(lambda: use_everything(catalog, rows)):
                    noticed += 1
                    assert "thrown away" in error.message
                    assert "again" in error.hint
                    assert (catalog.commit, catalog.count()) == ("", 0)
                    fill(catalog, *rows)
                assert len(catalog.search("words", limit=99)) == 60
                assert titles(catalog.list(limit=None)) == titles(r.session for r in rows[::-1])
            Path(path).unlink()
        assert noticed > 10

    @pytest.mark.parametrize("junk", [b"\xff\xfe", b"xx"])
    @pytest.mark.parametrize("part", [b"TABLE sessions", b"texts USING fts5", b"unicode61 remove"])
    def test_a_damaged_schema_is_made_anew(self, path: str, part: bytes, junk: bytes) -> None:
        """Even where SQLite's own message about it is not UTF-8."""
        with contextlib.closing(Catalog(path)) as catalog:
            fill(catalog, a_row(1, "words"))
        data = Path(path).read_bytes()
        assert part in data
        Path(path).write_bytes(data.replace(part, junk + part[2:]))
        with contextlib.closing(Catalog(path)) as catalog:
            first_refusal(lambda: catalog.search("words"))
            assert catalog.commit == ""
            fill(catalog, a_row(1, "words"))
            assert len(catalog.search("words")) == 1

    def test_filling_anew_heals_an_index_that_lists_what_is_gone(self, path: str) -> None:
        with contextlib.closing(Catalog(path)) as catalog:
            fill(catalog, a_row(1))
        where = "FROM sqlite_master WHERE type = 'index' AND tbl_name = 'sessions'"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as behind:
            behind.execute("PRAGMA writable_schema = ON")
            indexes = behind.execute(f"SELECT * {where}").fetchall()
            behind.execute(f"DELETE {where}")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as behind:
            behind.execute("DELETE FROM sessions")
            behind.execute("PRAGMA writable_schema = ON")
            behind.executemany("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", indexes)
        with contextlib.closing(Catalog(path)) as catalog:
            assert catalog.count() == 1
            fill(catalog)
            assert catalog.count() == 0

    def test_a_damaged_one_can_be_opened_anew_by_hand(self, catalog: Catalog, path: str) -> None:
        fill(catalog, a_row(1))
        catalog.close()
        Path(path).write_bytes(b"garbage" * 1000)
        catalog.reopen()
        assert catalog.commit == ""

    def test_a_catalog_on_a_read_only_disk_can_be_read(self) -> None:
        folder = Path(tempfile.mkdtemp())
        path = str(folder / "catalog.sqlite")
        try:
            with contextlib.closing(Catalog(path)) as catalog:
                fill(catalog, a_row(1, "some words"))
            for file in folder.iterdir():
                file.chmod(0o444)
            folder.chmod(0o555)
            without_privileges(lambda: read_only(path))
        finally:
            folder.chmod(0o755)
            shutil.rmtree(folder)

    def test_where_nothing_can_be_written_the_catalog_lives_in_memory(self) -> None:
        with contextlib.closing(Catalog("/proc/none/catalog.sqlite")) as catalog:
            fill(catalog, a_row(1, "some words"))
            assert len(catalog.search("words")) == 1

    def test_opening_waits_for_another_that_makes_the_catalog_but_not_for_ever(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
        with open(path + ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(StorageError, match="another process"):
                Catalog(path)


def damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    kind = chance.choice(["flip", "page", "cut"])
    if kind == "cut":
        return data[: chance.randrange(1, len(data))]
    for _ in range(chance.choice([1, 5, 50])):
        at = chance.randrange(len(data))
        if kind == "flip":
            changed[at] ^= 1 << chance.randrange(8)
        else:
            changed[at // 4096 * 4096 : at // 4096 * 4096 + 300] = chance.randbytes(300)
    return bytes(changed)


def first_refusal(action: Callable[[], object]) -> StorageError | None:
    try:
        action()
    except StorageError as error:
        return error
    return None


def use_everything(catalog: Catalog, rows: list[Row]) -> None:
    """Read and write whatever there is; at the end the catalog holds the rows again."""
    known = catalog.list(limit=None)
    catalog.search("words")
    catalog.search('"of 7" n7', project="work")
    for n in range(60):
        catalog.get(an_id(n))
        catalog.named("work", f"n{n}")
        catalog.at(f"sessions/work/2026/01/{n:05}.md")
    catalog.prefixed(an_id(1)[:8])
    catalog.twin("work", "x")
    catalog.near("n11", None)
    assert catalog.count() >= 0
    catalog.projects()
    catalog.entries()
    catalog.apply(commit="c2", upserts=[a_row(n, "changed") for n in range(0, 70, 7)])
    catalog.overlay([a_row(n, "waiting", pending=f"k{n}") for n in range(0, 70, 9)], [])
    catalog.apply(
        commit="c3", upserts=[], after="c2", removals=[session.path for session in known[:9]]
    )
    catalog.overlay([], [])
    fill(catalog, *rows)


def read_only(path: str) -> None:
    with contextlib.closing(Catalog(path)) as catalog:
        assert catalog.commit == "c1"
        assert len(catalog.search("words")) == 1
        with pytest.raises(StorageError, match="can't be written") as caught:
            fill(catalog, a_row(2))
        assert "writable" in caught.value.hint


def without_privileges(check: Callable[[], None]) -> None:
    """Root may write anywhere, so for root the check runs in a child that is nobody."""
    if os.geteuid() != 0:
        check()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads only wait for us
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            check()
            status = 0
        finally:
            traceback.print_exc()
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


class TestApplying:
    def test_rows_come_change_and_go_by_their_path(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1, "first text"), a_row(2, "second text"))
        path = a_row(1).session.path
        catalog.apply(
            commit="c2",
            upserts=[a_row(1, "other words", oid="new"), a_row(3, "third text")],
            removals=[a_row(2).session.path, "never/there.md"],
        )
        assert catalog.commit == "c2"
        assert catalog.entries() == {path: "new", a_row(3).session.path: a_row(3).session.oid}
        assert [hit.session.id for hit in catalog.search("text")] == [an_id(3)]
        assert [hit.session.id for hit in catalog.search("other")] == [an_id(1)]

    def test_a_path_both_removed_and_added_is_there(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1, "old"))
        path = a_row(1).session.path
        catalog.apply(commit="c2", upserts=[a_row(1, "new"), a_row(1, "newest")], removals=[path])
        assert [len(catalog.search(word)) for word in ("old", "new", "newest")] == [0, 1, 1]
        assert catalog.count() == 1

    def test_replacing_all_leaves_nothing_of_before_but_the_outbox(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1, "old words"))
        catalog.overlay([a_row(2, "waiting words 使用", pending="k")], [])
        fill(catalog, a_row(3, "new words"), commit="c2")
        found = {hit.session.id for hit in catalog.search("words")}
        assert found == {an_id(2), an_id(3)}
        assert [hit.session.id for hit in catalog.search("使用")] == [an_id(2)]
        assert set(catalog.entries()) == {a_row(3).session.path}

    def test_a_failure_among_the_rows_changes_nothing(self, catalog: Catalog) -> None:
        def rows() -> Iterator[Row]:
            yield a_row(2, "second text")
            raise RuntimeError("git stopped")

        fill(catalog, a_row(1, "first text"))
        for replace_all in (False, True):
            with pytest.raises(RuntimeError, match="git stopped"):
                catalog.apply(commit="c2", upserts=rows(), replace_all=replace_all)
            assert catalog.commit == "c1"
            assert [hit.session.id for hit in catalog.search("text")] == [an_id(1)]

    def test_changes_from_another_commit_than_the_one_shown_are_not_applied(
        self, catalog: Catalog
    ) -> None:
        assert catalog.apply(commit="c1", upserts=[a_row(1)], after="")
        assert not catalog.apply(commit="c3", upserts=[a_row(3)], after="c2")
        assert (catalog.commit, catalog.count()) == ("c1", 1)
        assert catalog.apply(commit="c2", upserts=[a_row(2)], after="c1")
        assert (catalog.commit, catalog.count()) == ("c2", 2)

    def test_rows_are_taken_as_they_come_and_not_all_kept(self, catalog: Catalog) -> None:
        """However many follow, no more than some megabytes of text are held at once."""
        made: list[weakref.ref[Text]] = []
        most = 0

        def rows() -> Iterator[Row]:
            nonlocal most
            for n in range(100):
                text = Text("x" * 200_000)
                made.append(weakref.ref(text))
                yield a_row(n, text)
                most = max(most, sum(text() is not None for text in made))

        catalog.apply(commit="c1", upserts=rows())
        assert catalog.count() == 100
        assert most <= 25

    def test_names_that_are_not_utf_8_come_back_as_they_are(self, catalog: Catalog) -> None:
        path = b"notes/\xe9t\xe9.md".decode("utf-8", "surrogateescape")
        fill(catalog, a_row(1, "summer words", path=path), a_row(2))
        row = catalog.at(path)
        assert row is not None
        assert row.path == path
        assert path in catalog.entries()
        assert catalog.search("summer")[0].session.path == path
        catalog.apply(commit="c2", upserts=[a_row(1, "winter words", path=path)])
        assert (catalog.count(), len(catalog.search("summer"))) == (2, 0)
        catalog.apply(commit="c3", upserts=[], removals=[path])
        assert catalog.at(path) is None

    def test_a_full_disk_is_named_and_changes_nothing(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1, "first text"))
        pages = catalog._db.execute("PRAGMA page_count").fetchone()[0]
        catalog._db.execute(f"PRAGMA max_page_count = {pages + 5}")
        with pytest.raises(StorageError, match="no space is left") as caught:
            fill(catalog, *(a_row(n, f"text {n} " * 3000) for n in range(2, 40)), commit="c2")
        assert "free" in caught.value.hint
        assert (catalog.commit, catalog.count()) == ("c1", 1)
        assert len(catalog.search("first")) == 1


SMALL = [f"{letter}.md" for letter in "abcde"]
FALLBACKS = {path: str(uuid.uuid5(uuid.NAMESPACE_URL, path)) for path in SMALL}
CLAIMS = [an_id(1), an_id(2), FALLBACKS["a.md"], FALLBACKS["c.md"], FALLBACKS["e.md"]]
CHANGES = st.tuples(st.sampled_from(SMALL), st.sampled_from(["", *CLAIMS]))


def claiming(path: str, claim: str) -> Row:
    return a_row(7, path=path, id=claim, fallback=FALLBACKS[path])


def ids(catalog: Catalog) -> dict[str, str]:
    return {session.path: session.id for session in catalog.list(limit=None)}


class TestIdentity:
    def test_of_two_files_with_one_id_the_smallest_path_keeps_it(self, catalog: Catalog) -> None:
        """Whatever came first; and when it goes, the next one takes the id over."""
        wanted = {"b.md": an_id(1), "c.md": FALLBACKS["c.md"], "d.md": FALLBACKS["d.md"]}
        for order in (("c.md", "b.md", "d.md"), ("d.md", "c.md", "b.md")):
            fill(catalog)
            for path in order:
                catalog.apply(commit="c", upserts=[claiming(path, an_id(1))])
            assert ids(catalog) == wanted
        catalog.apply(commit="c", upserts=[], removals=["b.md"])
        assert ids(catalog) == {"c.md": an_id(1), "d.md": FALLBACKS["d.md"]}
        row = catalog.get(FALLBACKS["d.md"])
        assert row is not None
        assert row.path == "d.md"

    def test_a_file_without_an_id_keeps_the_one_made_from_its_path(self, catalog: Catalog) -> None:
        """A copy of what was loaded of it, at a smaller path, does not take it away."""
        fill(catalog, claiming("c.md", FALLBACKS["c.md"]), claiming("a.md", FALLBACKS["c.md"]))
        assert ids(catalog) == {path: FALLBACKS[path] for path in ("a.md", "c.md")}

    @given(
        batches=st.lists(st.lists(CHANGES, max_size=4), max_size=6),
        removed=st.lists(st.lists(st.sampled_from(SMALL), max_size=3), min_size=6, max_size=6),
    )
    @example(batches=[[("b.md", FALLBACKS["c.md"])], [("c.md", an_id(1))]], removed=[[], []])
    @settings(max_examples=examples(60), deadline=None)
    def test_changes_in_any_order_give_what_a_rebuild_gives(
        self, batches: list[list[tuple[str, str]]], removed: list[list[str]]
    ) -> None:
        """And every session has an id of its own."""
        present: dict[str, str] = {}
        with in_memory() as changed, in_memory() as rebuilt:
            for upserts, removals in zip(batches, removed, strict=False):
                rows = [claiming(path, claim) for path, claim in upserts]
                changed.apply(commit="c", upserts=rows, removals=removals)
                present = {p: c for p, c in present.items() if p not in removals}
                present |= dict(upserts)
            fill(rebuilt, *(claiming(path, claim) for path, claim in present.items()))
            found = ids(changed)
            assert found == ids(rebuilt)
        assert found.keys() == present.keys()
        assert len(set(found.values())) == len(found)


class TestOverlay:
    def test_a_waiting_update_shows_instead_of_masters_row(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1, "old text", name="n"), a_row(2))
        new = a_row(1, "new text", name="n", title="Changed", oid="", pending="k1")
        catalog.overlay([new], [])
        assert catalog.get(an_id(1)) == new.session
        assert catalog.at(new.session.path) == new.session
        assert catalog.named("work", "n") == [new.session]
        assert catalog.base(an_id(1)) == a_row(1, "old text", name="n").session
        assert catalog.count() == 2
        assert [len(catalog.search(word)) for word in ("old", "new")] == [0, 1]

    def test_a_waiting_delete_hides_masters_row(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1, "first text"), a_row(2, "second text"))
        catalog.overlay([], [(an_id(2), "k1")])
        assert catalog.get(an_id(2)) is None
        assert catalog.at(a_row(2).session.path) is None
        assert catalog.newest(None) == a_row(1, "first text").session
        assert len(catalog.search("text")) == 1
        assert [project.sessions for project in catalog.projects()] == [1]
        assert catalog.base(an_id(2)) is not None
        assert len(catalog.entries()) == 2

    def test_a_session_that_master_does_not_have_yet_shows(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1))
        catalog.overlay([a_row(2, "fresh text", pending="k1")], [])
        assert titles(catalog.list()) == ["Session 2", "Session 1"]
        assert len(catalog.search("fresh")) == 1
        assert catalog.base(an_id(2)) is None
        assert len(catalog.entries()) == 1

    def test_at_one_path_what_waits_goes_before_what_is_there(self, catalog: Catalog) -> None:
        path = a_row(1).session.path
        fill(catalog, a_row(1))
        catalog.overlay([a_row(n, path=path, pending=f"k{n}") for n in (2, 3)], [])
        assert titles(filter(None, [catalog.at(path)])) == ["Session 3"]

    def test_clearing_the_overlay_brings_masters_rows_back(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1, "text"), a_row(2, "text"))
        catalog.overlay([a_row(1, "new", pending="k1")], [(an_id(2), "k2")])
        catalog.overlay([], [])
        assert titles(catalog.list()) == ["Session 2", "Session 1"]
        assert len(catalog.search("text")) == 2
        assert catalog.overlay_keys() == frozenset()

    def test_it_holds_whatever_happens_to_master_below(self, catalog: Catalog) -> None:
        catalog.overlay([a_row(1, title="Waiting", pending="k1")], [(an_id(2), "k2")])
        catalog.apply(commit="c1", upserts=[a_row(1), a_row(2), a_row(3)])
        assert titles(catalog.list()) == ["Session 3", "Waiting"]
        catalog.apply(commit="c2", upserts=[a_row(2, title="Again")], removals=[])
        assert titles(catalog.list()) == ["Session 3", "Waiting"]
        catalog.overlay([], [])
        assert titles(catalog.list()) == ["Session 3", "Again", "Session 1"]

    def test_the_row_that_gets_a_hidden_id_is_hidden_too(self, catalog: Catalog) -> None:
        fill(catalog, claiming("b.md", an_id(1)), claiming("c.md", an_id(1)))
        catalog.overlay([], [(an_id(1), "k1")])
        assert ids(catalog) == {"c.md": FALLBACKS["c.md"]}
        catalog.apply(commit="c2", upserts=[], removals=["b.md"])
        assert ids(catalog) == {}

    def test_of_several_entries_for_one_session_the_last_counts(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1))
        rows = [a_row(1, title=f"Saved {key}", pending=key) for key in ("k1", "k3")]
        catalog.overlay(rows, [])
        assert titles(catalog.list()) == ["Saved k3"]
        catalog.overlay(rows, [(an_id(1), "k2")])
        assert titles(catalog.list()) == ["Saved k3"]
        catalog.overlay(rows, [(an_id(1), "k4"), (an_id(1), "k2")])
        assert titles(catalog.list()) == []
        assert catalog.overlay_keys() == {"k1", "k2", "k3", "k4"}


class TestSelecting:
    def test_an_id_is_found_by_its_start_and_by_the_start_of_its_last_eight_digits(
        self, catalog: Catalog
    ) -> None:
        other = "0aaaaaaa-0000-7000-8000-0000ffeeddcc"
        fill(catalog, a_row(1), a_row(2), a_row(3, id=other))
        assert [row.id for row in catalog.prefixed("0aaa")] == [other]
        assert [row.id for row in catalog.prefixed("FFEE")] == [other]
        assert [row.id for row in catalog.prefixed(other)] == [other]
        assert catalog.prefixed("ffeeddcc0") == []
        assert [row.id for row in catalog.prefixed(an_id(1)[:8])] == [an_id(2), an_id(1)]
        assert catalog.prefixed(an_id(1)[-8:]) == [a_row(1).session]

    @pytest.mark.parametrize("text", ["", "xyz", "%", "0_", "0*", "' OR 1", "\udcff", "ａ"])
    def test_what_is_no_part_of_an_id_finds_nothing(self, catalog: Catalog, text: str) -> None:
        fill(catalog, a_row(1))
        assert catalog.prefixed(text) == []

    def test_a_name_belongs_to_its_project(self, catalog: Catalog) -> None:
        fill(
            catalog,
            a_row(1, name="plan"),
            a_row(2, name="plan", project="home"),
            a_row(3, name="plan"),
        )
        assert titles(catalog.named("work", "plan")) == ["Session 3", "Session 1"]
        assert titles(catalog.named("home", "plan")) == ["Session 2"]
        assert catalog.named("work", "pla") == []
        assert catalog.named("work", "") == []

    @pytest.mark.parametrize("odd", ["", "\udcff", "a\ud800", "a\x00b", "x" * 100_000])
    def test_odd_arguments_find_nothing_and_break_nothing(self, catalog: Catalog, odd: str) -> None:
        fill(catalog, a_row(1, name="n"))
        assert catalog.get(odd) is None
        assert catalog.at(odd) is None
        assert catalog.base(odd) is None
        assert catalog.named(odd, odd) == []
        assert catalog.newest(odd) is None
        assert catalog.list(project=odd, status=odd) == []
        assert catalog.search("session", project=odd) == []
        assert catalog.twin(odd, odd) is None
        assert catalog.near(odd, None) == []

    def test_the_newest_is_the_last_saved_and_of_one_second_the_greater_id(
        self, catalog: Catalog
    ) -> None:
        second = "2026-02-01T00:00:00Z"
        fill(catalog, a_row(5, saved=second), a_row(4, saved=second), a_row(9, project="home"))
        assert titles(filter(None, [catalog.newest(None), catalog.newest("home")])) == [
            "Session 5",
            "Session 9",
        ]
        assert catalog.newest("none") is None

    def test_a_list_is_filtered_by_project_status_and_time(self, catalog: Catalog) -> None:
        fill(
            catalog,
            a_row(1, status="ГОТОВО"),
            a_row(2, project="home", status="готово"),
            a_row(3),
        )
        assert titles(catalog.list(status="Готово")) == ["Session 2", "Session 1"]
        assert titles(catalog.list(status="Готово", project="home")) == ["Session 2"]
        assert titles(catalog.list(since=a_row(2).session.saved)) == ["Session 3", "Session 2"]
        assert titles(catalog.list(limit=1)) == ["Session 3"]
        assert catalog.list(limit=0) == []

    def test_pages_follow_each_other_without_gap_or_repetition(self, catalog: Catalog) -> None:
        rows = [a_row(n, saved=f"2026-01-01T00:00:{n // 7:02}Z") for n in range(100)]
        fill(catalog, *rows)
        seen: list[Session] = []
        before = None
        while page := catalog.list(limit=9, before=before):
            seen += page
            before = (page[-1].saved, page[-1].id)
        assert seen == [row.session for row in reversed(rows)]

    def test_the_twin_is_the_newest_session_of_the_project_with_the_same_body(
        self, catalog: Catalog
    ) -> None:
        fill(catalog, *(a_row(n, "same") for n in (1, 2)), a_row(3, "same", project="home"))
        same = a_row(1, "same").session.body_md5
        assert titles(filter(None, [catalog.twin("work", same)])) == ["Session 2"]
        assert catalog.twin("work", "other") is None
        assert catalog.twin("none", same) is None

    def test_projects_are_counted(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1), a_row(2), a_row(3, project="home"))
        assert catalog.projects() == [
            Project(name="home", sessions=1, newest=a_row(3).session.saved),
            Project(name="work", sessions=2, newest=a_row(2).session.saved),
        ]
        assert (catalog.count(), catalog.count(project="work")) == (3, 2)

    def test_a_mistyped_selector_gets_the_nearest_names_and_titles(self, catalog: Catalog) -> None:
        fill(
            catalog,
            a_row(1, name="auth-refactor", title="Один"),
            a_row(2, title="Миграция базы"),
            a_row(3, name="auth-refactoring", project="home", title="Три"),
        )
        assert catalog.near("auth-refactro", "work") == ["auth-refactor"]
        assert catalog.near("АUTH-refactor", None) == ["auth-refactor", "auth-refactoring"]
        assert catalog.near("мигация базы", "work") == ["Миграция базы"]
        assert catalog.near("hme/auth-refactorng", "work")[0] == "home/auth-refactoring"
        assert catalog.near("zzzzzz", None) == []

    def test_selecting_and_listing_read_an_index_never_the_whole_table(
        self, catalog: Catalog
    ) -> None:
        fill(catalog, *(a_row(n, name=f"n{n}") for n in range(50)))
        ran: list[str] = []
        catalog._db.set_trace_callback(ran.append)
        catalog.get("x")
        catalog.base("x")
        catalog.at("x")
        catalog.named("work", "x")
        catalog.prefixed("abcd")
        catalog.newest(None)
        catalog.newest("work")
        catalog.twin("work", "x")
        for chosen in ({"project": "work"}, {"status": "x"}, {"since": "2026"}):
            catalog.list(**chosen)  # type: ignore[arg-type]
        catalog.list(since="2026", before=("2027", "x"))
        catalog.list(project="work", before=("2027", "x"))
        catalog._db.set_trace_callback(None)
        assert len(ran) == 13
        for statement in ran:
            plan = [row[3] for row in catalog._db.execute("EXPLAIN QUERY PLAN " + statement)]
            assert all(step.startswith(("SEARCH", "MULTI-INDEX", "INDEX")) or "ORDER" in step
                       for step in plan), (statement, plan)  # fmt: skip

    def test_a_list_in_order_is_not_sorted(self, catalog: Catalog) -> None:
        """The first page costs the same however many sessions there are."""
        for term in ("", "AND project = 'x'", "AND folded = 'x'", "AND saved >= 'x'"):
            sql = f"SELECT * FROM sessions WHERE shown = 1 {term} ORDER BY saved DESC, id DESC"
            plan = [row[3] for row in catalog._db.execute("EXPLAIN QUERY PLAN " + sql)]
            assert len(plan) == 1, plan


class TestSearching:
    @pytest.mark.parametrize(
        ("text", "query"),
        [
            ("Deploy the server", "deploy"),
            ("Deploy the server", "SERV dep"),
            ("Настройка СЕРВЕРА, ёлка", "сервер НАСТРОЙКА"),
            ("Настройка сервера", "Сервера"),
            ("Café crème", "cafe CREME"),
            ("Cafe\u0301", "café"),
            ("我们使用Python编写代码", "编写"),
            ("我们使用Python编写代码", "python"),
            ("我们使用Python编写代码", "使用Python"),
            ("データベースを移行する", "移行"),
            ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
            ("full width", "ｗｉｄｔｈ"),
            ("데이터베이스를 옮긴다", "데이터베이스"),
            ("การย้ายฐานข้อมูล", "ฐานข้อมูล"),
            ("ການຍ້າຍຖານຂໍ້ມູນ", "ຖານ"),
            ("ការផ្លាស់ទីមូលដ្ឋានទិន្នន័យ", "មូលដ្ឋាន"),
            ("ဒေတာဘေ့စ်ရွှေ့ခြင်း", "ရွှေ့"),
            ("डेटाबेस का स्थानांतरण", "स्थानां"),
            ("نقل قاعدة البيانات", "قاعدة"),
            ("העברת מסד נתונים", "מסד"),
            ("Μετάβαση ΒΆΣΗΣ", "βάση μετά"),
            ("⚠️Fix: the 🚀launch", "fix launch"),
            ("call foo_bar(baz-qux)", "foo_bar baz-qux"),
            ("version 3.11.7", "3.11"),
            ("a b c", "c a"),
            ("the quick brown fox", '"quick brown" fox'),
            ("the quick brown fox", '"quick brown'),
            ("the quick brown fox", "quick — !! fox"),
        ],
    )
    def test_words_of_any_language_are_found(self, catalog: Catalog, text: str, query: str) -> None:
        fill(catalog, a_row(1, text), a_row(2, "nothing of that"))
        assert [hit.session.id for hit in catalog.search(query)] == [an_id(1)]

    @pytest.mark.parametrize(
        ("text", "query"),
        [
            ("the quick brown fox", '"quick fox"'),
            ("the quick brown fox", "quick red"),
            ("the quick brown fox", "uick"),
            ("我们使用代码", "用使"),
            ("ข้อมูล", "ขอมูล"),
            ("word", "wordy"),
            ("word", "w"),
        ],
    )
    def test_what_is_not_there_is_not_found(self, catalog: Catalog, text: str, query: str) -> None:
        fill(catalog, a_row(1, text))
        assert catalog.search(query) == []

    @given(query=st.text(max_size=60), text=st.text(max_size=60))
    @settings(max_examples=examples(100), deadline=None)
    def test_no_text_breaks_a_search(self, query: str, text: str) -> None:
        with in_memory() as catalog:
            catalog.apply(commit="c", upserts=[a_row(1, text)])
            for odd in (query, f'{query} "{text}', f"{query} AND ({text} OR NEAR {query}*"):
                with contextlib.suppress(UsageError):
                    catalog.search(odd)

    @given(text=st.text(st.characters(codec="utf-8", categories=("L", "N", "Z", "P")), max_size=60))
    @settings(max_examples=examples(100), deadline=None)
    def test_a_text_is_found_by_all_of_its_words(self, text: str) -> None:
        with in_memory() as catalog:
            catalog.apply(commit="c", upserts=[a_row(1, f"{text} word")])
            assert len(catalog.search(f"{text} word")) == 1

    @pytest.mark.parametrize("query", ["", "  ", '""', "—!?", "✅", '"', "\x00", "*"])
    def test_nothing_to_search_for_is_said(self, catalog: Catalog, query: str) -> None:
        with pytest.raises(UsageError, match="nothing to search for"):
            catalog.search(query)

    def test_a_line_of_words_is_a_search_a_page_is_refused(self, catalog: Catalog) -> None:
        words = [f"word{n}" for n in range(100)]
        fill(catalog, a_row(1, " ".join(words)), a_row(2, "word1"))
        assert [hit.session.id for hit in catalog.search(" ".join(words * 3))] == [an_id(1)]
        with pytest.raises(UsageError, match="101 words are too many"):
            catalog.search(" ".join([*words, "more"]))

    def test_a_title_counts_more_than_a_name_and_a_name_more_than_the_body(
        self, catalog: Catalog
    ) -> None:
        fill(
            catalog,
            a_row(1, "deploy and six other words are here", name="one", title="Three small words"),
            a_row(2, "none of the eight words is here", name="deploy", title="Three small words"),
            a_row(3, "none of the eight words is here", name="one", title="Deploy small words"),
            *(a_row(n, "filler") for n in range(10, 20)),
        )
        hits = catalog.search("deploy")
        assert titles(hit.session for hit in hits) == [
            "Deploy small words",
            "Three small words",
            "Three small words",
        ]
        assert [hit.session.name for hit in hits] == ["one", "deploy", "one"]
        assert hits[0].score > hits[1].score > hits[2].score > 0

    def test_among_equals_the_newest_come_first(self, catalog: Catalog) -> None:
        numbers = list(range(10, 60))
        random.Random(1).shuffle(numbers)
        fill(catalog, *(a_row(n, "same text") for n in numbers))
        found = [hit.session.id for hit in catalog.search("same", limit=20)]
        assert found == [an_id(n) for n in range(59, 39, -1)]

    def test_a_search_stays_in_its_project(self, catalog: Catalog) -> None:
        fill(catalog, a_row(1, "text"), a_row(2, "text", project="home"))
        assert [hit.session.id for hit in catalog.search("text", project="home")] == [an_id(2)]
        assert catalog.search("text", project="none") == []

    def test_a_snippet_marks_the_matches_in_one_line(self, catalog: Catalog) -> None:
        text = f"{'before ' * 50}\n\n- the \x02quick\x03\tbrown fox\n\n{'after ' * 50}"
        fill(catalog, a_row(1, text), a_row(2, f"{'前' * 50}使用代码{'後' * 50}"))
        quick = catalog.search("qui")[0].snippet
        assert "- the \x02quick\x03 brown fox after" in quick
        assert quick.startswith("…")
        assert quick.endswith("…")
        assert len(quick.split()) < 16
        cjk = catalog.search("使用")[0].snippet
        assert "前\x02使用\x03代码" in cjk
        assert "\u200b" not in cjk


WRITER = """
import sys
sys.path.insert(0, "tests")
from test_catalog import Catalog, a_row
path, first = sys.argv[1], int(sys.argv[2])
for number in range(first, first + 10):
    catalog = Catalog(path)
    catalog.apply(commit=str(number), upserts=[a_row(number, f"text {number}")])
    assert catalog.get(a_row(number).session.id)
    catalog.close()
"""


class TestTogether:
    def test_processes_that_create_and_write_at_once_lose_nothing(self, path: str) -> None:
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, path, str(number)], cwd=ROOT)
            for number in (100, 200, 300)
        ]
        assert [writer.wait() for writer in writers] == [0, 0, 0]
        with contextlib.closing(Catalog(path)) as catalog:
            assert catalog.count() == 30
            assert len(catalog.search("text", limit=99)) == 30

    def test_a_reader_sees_the_whole_of_before_while_another_writes(
        self, catalog: Catalog, path: str
    ) -> None:
        fill(catalog, a_row(1))
        with contextlib.closing(Catalog(path)) as reader:

            def rows() -> Iterator[Row]:
                yield a_row(2)
                assert (reader.commit, reader.count()) == ("c1", 1)

            catalog.apply(commit="c2", upserts=rows())
            assert (reader.commit, reader.count()) == ("c2", 2)

    def test_a_writer_that_waits_too_long_says_for_what(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
        with contextlib.closing(Catalog(path)) as catalog:
            fill(catalog, a_row(1))
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StorageError, match="another process is writing") as caught:
                    fill(catalog, a_row(2), commit="c2")
                assert "again" in caught.value.hint
                other.execute("ROLLBACK")
            assert (catalog.commit, catalog.count()) == ("c1", 1)
            fill(catalog, a_row(2), commit="c2")
            assert catalog.commit == "c2"


def test_two_thousand_sessions_are_listed_searched_and_selected(catalog: Catalog) -> None:
    text = "Some more words, as they stand in a session. " * 20
    fill(catalog, *(a_row(n, f"{text} number{n}", project=f"p{n % 7}") for n in range(2000)))
    assert catalog.count() == 2000
    assert [hit.session.id for hit in catalog.search("number1234")] == [an_id(1234)]
    assert len(catalog.search("words session", project="p3")) == 20
    assert titles(catalog.list(project="p0", limit=2)) == ["Session 1995", "Session 1988"]
    assert sum(project.sessions for project in catalog.projects()) == 2000
    catalog.apply(commit="c2", upserts=[], removals=[*catalog.entries()][:1500])
    assert catalog.count() == 500
    assert len(catalog.search("words", limit=1000)) == 500


def test_finding_one_session_takes_the_same_steps_among_many(tmp_path: Path) -> None:
    lookups: list[Callable[[Catalog], object]] = [
        lambda catalog: catalog.get(an_id(7)),
        lambda catalog: catalog.base(an_id(7)),
        lambda catalog: catalog.at("sessions/work/2026/01/00007.md"),
        lambda catalog: catalog.named("work", "seven"),
        lambda catalog: catalog.holders("work", "seven"),
        lambda catalog: catalog.prefixed(an_id(7)[-8:]),
        lambda catalog: catalog.twin("work", a_row(7, "7").session.body_md5),
        lambda catalog: catalog.newest("work"),
        lambda catalog: catalog.list(project="work", limit=1),
    ]
    steps: list[list[int]] = []
    for size in (20, 2000):
        with contextlib.closing(Catalog(str(tmp_path / str(size)))) as catalog:
            rows = [a_row(n, str(n), name="seven" if n == 7 else "") for n in range(size)]
            catalog.apply(commit="c", upserts=rows)
            counts = [0]

            def count(counts: list[int] = counts) -> int:
                counts[-1] += 1
                return 0

            catalog._db.set_progress_handler(count, 10)
            for lookup in lookups:
                assert lookup(catalog)
                counts.append(0)
            catalog._db.set_progress_handler(None, 0)
            steps.append(counts)
    assert [many <= few + 5 for few, many in zip(*steps, strict=True)] == [True] * len(steps[0])
