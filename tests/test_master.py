"""The verbs of the clone, each on real git."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from annoris import gitcmd
from annoris.errors import (
    AnnorisError,
    AuthRefused,
    Locked,
    PolicyRefused,
    RemoteRefused,
    RemoteUnreachable,
    StorageError,
)
from annoris.gitcmd import LostRace
from annoris.layout import Plain
from annoris.master import Commit, Master, tidy
from annoris.model import Change, Deadline, Entry
from annoris.settings import MasterSettings
from tests.support import githttp
from tests.support.githttp import GitServer

AT = "2026-11-24T10:00:00Z"
A, B, C = "sessions/shop/a.md", "sessions/shop/b.md", "sessions/shop/c.md"
ALL = ("**/*.md",)
FOUNDATION = Plain(()).foundation()

Clones = Callable[..., Master]


def soon() -> Deadline:
    return Deadline(30)


def oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


@pytest.fixture
def clone(tmp_path: Path) -> Clones:
    """Makes clones: ``clone("one", remote)``; without a remote an embedded master."""

    def make(name: str = "clone", remote: object = "", **settings: object) -> Master:
        made = Master(
            str(tmp_path / f"{name}.git"),
            MasterSettings(remote=str(remote), **settings),  # type: ignore[arg-type]
        )
        made.create()
        return made

    return make


def put(master: Master, files: dict[str, bytes | None], batch: str = "", at: str = AT) -> str:
    """Commit and push on the tip that the clone knows."""
    tip = master.tip()
    commit = master.commit(tip, [Commit(files, "Test", at, batch)])
    master.push(commit, tip, soon())
    return commit


def update(master: Master) -> str:
    found = master.fetch(soon())
    master.accept(found)
    return found


# --- making it -------------------------------------------------------------------------------


def test_a_new_clone_is_bare_empty_and_no_error(clone: Clones, remote: Path) -> None:
    """An empty repository has no tip, no tree, no log: a state, not an error."""
    for master in (clone("embedded"), clone("of", remote)):
        assert master.exists()
        assert master.tip() == master.fetched() == master.fetch(soon()) == ""
        assert master.tree("") == {}
        assert master.log(A) == []
        assert master.once(A) == []
        assert not master.applied("1-x", A)
        assert list(master.changed_at("")) == []
        assert master.check() == ""
        assert not (Path(master.folder) / "index").exists()
        master.create()


def test_a_clone_in_an_impossible_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    master = Master(str(tmp_path / "file" / "clone.git"), MasterSettings())
    with pytest.raises(StorageError, match="clone can't be made"):
        master.create()
    with pytest.raises(StorageError), master.lock(soon()):
        pass


def test_a_clone_made_by_several_at_once_is_one_and_leaves_nothing(tmp_path: Path) -> None:
    folder = str(tmp_path / "new" / "clone.git")
    masters = [Master(folder, MasterSettings()) for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(Master.create, masters)) == [None] * 4
    assert os.listdir(tmp_path / "new") == ["clone.git"]
    assert put(masters[0], {A: b"1"}) == masters[3].tip()


def test_the_lock_is_held_by_one_process_and_freed_by_its_death(clone: Clones) -> None:
    """A second writer waits until its deadline; a killed holder blocks nobody."""
    master = clone()
    holding = (
        "import sys, time\nfrom annoris.master import Master\n"
        "from annoris.model import Deadline\nfrom annoris.settings import MasterSettings\n"
        "with Master(sys.argv[1], MasterSettings()).lock(Deadline(9)):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, master.folder], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Locked), master.lock(Deadline(0.1)):
            pass
        other.kill()
    with master.lock(soon()):
        pass


def test_the_clone_remembers_whose_history_it_holds(clone: Clones, remote: Path) -> None:
    """Nothing says so at first; then one remote and branch do, and no others."""
    master = clone("one", remote)
    assert master.claimed() is None
    master.claim()
    assert master.claimed() is True
    assert clone("one").claimed() is False
    assert clone("one", remote, branch="other").claimed() is False


def test_what_is_included_is_part_of_what_a_projection_was_made_from(clone: Clones) -> None:
    several = [clone(include=include).identity for include in (("a", "b"), ("ab",), ())]
    assert len(set(several)) == len(several)


# --- bytes in, bytes out ---------------------------------------------------------------------

BYTES = {
    "empty": b"",
    "no last newline": b"text",
    "many last newlines": b"text\n\n\n",
    "only newlines": b"\n\n",
    "CRLF and CR": b"a\r\nb\rc\r\n",
    "NUL and all bytes": bytes(range(256)),
    "BOM": b"\xef\xbb\xbf# x\n",
    "large": b"0123456789abcde\n" * 70_000,
}


def test_blobs_come_back_byte_for_byte(clone: Clones) -> None:
    """The last newline included, one by one and many at once."""
    master = clone()
    paths = {f"sessions/x/{number}.md": data for number, data in enumerate(BYTES.values())}
    tip = put(master, dict(paths))
    tree = master.tree(tip)
    assert tree == {path: oid(data) for path, data in paths.items()}
    assert {path: master.blob(tree[path], path) for path in tree} == paths
    found = master.blobs(Entry(path, oid) for path, oid in tree.items())
    assert {entry.path: data for entry, data in found} == paths


def test_many_blobs_are_streamed_each_once(clone: Clones) -> None:
    """Above 2,000 the whole store is read in its own order: still each that was asked for, once."""
    master = clone()
    files: dict[str, bytes | None] = {f"sessions/x/{n}.md": b"text %d" % n for n in range(2100)}
    tree = master.tree(put(master, files))
    asked = [Entry(path, blob) for path, blob in tree.items()][:2050]
    found = list(master.blobs(asked))
    assert len(found) == 2050
    assert {entry for entry, _ in found} == set(asked)
    assert all(oid(data) == entry.oid for entry, data in found)


def test_files_with_the_same_bytes_are_each_answered(clone: Clones) -> None:
    master = clone()
    tree = master.tree(put(master, {A: b"same", B: b"same"}))
    found = list(master.blobs(Entry(path, blob) for path, blob in tree.items()))
    assert found == [(Entry(A, oid(b"same")), b"same"), (Entry(B, oid(b"same")), b"same")]


def test_a_missing_blob_is_a_storage_error_with_a_way_out(clone: Clones, remote: Path) -> None:
    master = clone("one", remote)
    put(master, {A: b"a"})
    gone = Entry(A, "1" * 40)
    for read in (lambda: master.blob(gone.oid, A), lambda: list(master.blobs([gone]))):
        with pytest.raises(StorageError) as caught:
            read()
        assert caught.value.hint == "annoris verify --repair"


def test_no_process_is_left_by_any_reading(clone: Clones) -> None:
    """Neither a stream that is read to its end nor one that is dropped in its middle leaves git."""
    master = clone()
    tip = put(master, {f"sessions/x/{number}.md": b"x" * 9000 + b"%d" % number
                       for number in range(50)})  # fmt: skip
    before = children()
    entries = [Entry(path, blob) for path, blob in master.tree(tip).items()]
    list(master.blobs(entries))
    dropped = master.blobs(entries)
    next(dropped)
    dropped.close()  # type: ignore[attr-defined]
    master.log("sessions/x/1.md")
    walk = master.changed_at(tip)
    next(walk)
    walk.close()
    assert children() == before


def children() -> set[str]:
    me = str(os.getpid())
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1] == me:
                found.add(name)
        except OSError:
            continue
    return found


# --- names -----------------------------------------------------------------------------------

NAMES = [
    "-leading.md", "--option.md", "line\nbreak.md", "\nfirst.md", 'quote".md', "back\\slash.md",
    "tab\t.md", "\U0001f600.md", "имя.md", ":(glob)x.md", ":top.md", "[ab]*?.md", " space .md",
    "%s.md", "~.md", os.fsdecode(b"latin-\xe9.md"), "deep/er/\U0001f600/-x.md", "a\x01b.md",
]  # fmt: skip


def test_every_name_goes_in_and_out(clone: Clones, remote: Path) -> None:
    """Newlines, quotes, emoji, bytes that are no UTF-8, names like options: written and read."""
    master = clone("one", remote, include=ALL)
    files: dict[str, bytes | None] = {name: os.fsencode(name) for name in NAMES}
    tip = put(master, files, "1-aa")
    assert {path: master.blob(blob, path) for path, blob in master.tree(tip).items()} == files
    seen = githttp.files(remote)
    assert {path: data for path, data in seen.items() if path not in FOUNDATION} == files
    other = clone("two", remote, include=ALL)
    assert other.tree(update(other)) == master.tree(tip)
    assert master.diff(tip, put(master, {NAMES[0]: b"new", NAMES[2]: None})) == [
        Change(NAMES[0], oid(b"new")), Change(NAMES[2], ""),
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_history_of_a_name_is_its_own(name: str, clone: Clones) -> None:
    """A name is never taken for a pattern: its log, time and removal are not another's."""
    master = clone("one", include=ALL)
    put(master, {name: b"1", "a.md": b"other", "x.md": b"other"}, "1-aa")
    put(master, {name: b"2"}, "2-bb", "2026-11-24T11:00:00Z")
    assert [item.oid for item in master.log(name)] == [oid(b"2"), oid(b"1")]
    assert next(master.changed_at(master.tip())) == (name, "2026-11-24T11:00:00Z")
    assert master.applied("2-bb", name)
    assert not master.applied("2-bb", "a.md")
    before = master.tip()
    put(master, {name: None, "x.md": None}, "3-cc")
    assert master.once(f":(literal){name}") == [name]
    assert master.deliberate(before, master.tip()) == {name, "x.md"}
    gone = {Entry(name, oid(b"2")), Entry("x.md", oid(b"other"))}
    assert set(master.removed_with(master.tip())) == gone


def test_a_push_moves_our_branch_also_where_git_itself_does_not(
    clone: Clones, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = clone(remote=remote)
    given = {key: value for key, value in master._extra().items() if not key.endswith(".fetch")}
    monkeypatch.setattr(master, "_extra", lambda: given)
    made = put(master, {A: b"1"})
    assert made == master.tip() == githttp.head(remote)


def test_a_fetch_that_meets_another_one_is_tried_again(
    clone: Clones, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that ask at once write the same ref; that is no lost race for anybody."""
    master, git = clone(remote=remote), shutil.which("git")
    tip = githttp.commit(remote, {A: b"1"})
    programs, met = tmp_path / "programs", tmp_path / "met"
    programs.mkdir()
    (programs / "git").write_text(
        f'#!/bin/sh\nfor word; do if [ "$word" = fetch ] && [ "$(wc -l < "{met}")" -lt 2 ]; then\n'
        f'echo >> "{met}"; echo "error: cannot lock ref: is at 1 but expected 2" >&2; exit 1; fi\n'
        f'done\nexec "{git}" "$@"\n'
    )
    (programs / "git").chmod(0o755)
    met.touch()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    assert master.peek(Deadline(60)) == tip
    assert len(met.read_text().splitlines()) == 2


def test_a_count_goes_on_from_a_known_one_on_a_straight_line_only(clone: Clones) -> None:
    """Also of commits whose dates go backwards; where two lines met, all are counted."""
    master = clone()
    known = put(master, {A: b"1"})
    for number, day in enumerate((20, 3, 11)):
        tip = put(master, {A: b"%d" % number}, at=f"2026-11-{day:02}T10:00:00Z")
    assert master.count(tip) == 5  # the first one begins the home
    assert master.count(tip, known, 1000) == 1003
    assert master.count(known, tip, 1000) == master.count(known, "f" * 40, 1000) == 2
    side = master.commit(known, [Commit({B: b"side"}, "Side", "2026-10-01T10:00:00Z")])
    master.accept(both := master.merge(tip, side, {}))
    assert master.count(both, tip, 1000) == master.count(both) == 7


def test_links_and_submodules_are_no_sessions_and_programs_are(clone: Clones, remote: Path) -> None:
    """What points elsewhere is never followed; a file marked executable is a file."""
    stream = (
        b"feature done\ncommit refs/heads/main\ncommitter A <a@b.c> 1700000000 +0000\ndata 1\nx\n"
        b"M 120000 inline sessions/x/link.md\ndata 11\n/etc/passwd\n"
        b"M 160000 " + b"1" * 40 + b" sessions/x/module.md\n"
        b"M 100755 inline sessions/x/run.md\ndata 4\n# x\n\n"
        b"M 100644 inline sessions/x/plain.md\ndata 4\n# y\n\ndone\n"
    )
    subprocess.run(
        ["git", f"--git-dir={remote}", "fast-import", "--quiet"], input=stream, check=True
    )
    master = clone("one", remote)
    tip = update(master)
    assert master.tree(tip) == {
        "sessions/x/run.md": oid(b"# x\n"), "sessions/x/plain.md": oid(b"# y\n"),
    }  # fmt: skip
    githttp.commit(remote, {"sessions/x/link.md": b"# now a file\n"})
    new = update(master)
    assert master.diff(tip, new) == [Change("sessions/x/link.md", oid(b"# now a file\n"))]
    assert master.diff(new, tip) == [Change("sessions/x/link.md", "")]


@pytest.mark.parametrize(
    ("include", "path", "is_session"),
    [
        (("sessions/**/*.md",), "sessions/a.md", True),
        (("sessions/**/*.md",), "sessions/a/b/c.md", True),
        (("sessions/**/*.md",), "other/sessions/a.md", False),
        (("*.md",), "a/b.md", False),
        (("**/*.md",), "a.md", True),
        (("**/*.md",), ".annoris/a.md", False),
        (("notes/?.md", "log/*.txt"), "notes/a.md", True),
        (("notes/?.md", "log/*.txt"), "log/x.txt", True),
        (("notes/?.md", "log/*.txt"), "notes/ab.md", False),
        (("a.md",), "axmd", False),
        ((), "a.md", False),
    ],
)
def test_globs_say_which_files_are_sessions(
    include: tuple[str, ...], path: str, is_session: bool, tmp_path: Path
) -> None:
    master = Master(str(tmp_path / "x.git"), MasterSettings(include=include))
    assert master.included(path) == is_session


# --- history ---------------------------------------------------------------------------------


def test_log_shows_every_revision_and_the_removal(clone: Clones) -> None:
    """Newest first, with who, when and what; a removal has no blob."""
    master = clone(author="Ann <ann@example.org>")
    for number, data in enumerate((b"1\n", b"2\n", None)):
        put(master, {A: data, B: b"%d" % number}, at=f"2026-11-24T1{number}:00:00Z")
    found = master.log(A)
    assert [item.oid for item in found] == ["", oid(b"2\n"), oid(b"1\n")]
    assert [item.at for item in found] == [f"2026-11-24T1{hour}:00:00Z" for hour in (2, 1, 0)]
    assert {(item.author, item.message, item.path) for item in found} == {("Ann", "Test", A)}
    assert found[0].commit == master.tip()


def test_log_goes_on_beyond_a_merge(clone: Clones) -> None:
    """The history that init joined in is still the history of its sessions."""
    one, two = clone("one"), clone("two", clone("one").folder)
    put(one, {A: b"1"})
    put(one, {A: b"2"})
    there = one.tip()
    put(clone("two"), {B: b"1"})
    put(clone("two"), {B: b"2"})
    here = two.tip()
    assert two.fetch(soon()) == there
    joined = two.merge(there, here, {B: b"2"})
    two.accept(joined)
    assert two.descends(joined, here)
    assert two.descends(joined, there)
    assert two.tree(joined) == {A: oid(b"2"), B: oid(b"2")}
    assert [item.oid for item in two.log(A)] == [oid(b"2"), oid(b"1")]
    assert [item.oid for item in two.log(B)] == [oid(b"2"), oid(b"1")]


def test_descends_knows_who_was_built_on_whom(clone: Clones) -> None:
    master = clone()
    first, second = put(master, {A: b"1"}), put(master, {A: b"2"})
    assert master.descends(second, first)
    assert master.descends(first, first)
    assert not master.descends(first, second)


def test_several_commits_go_in_one_push_with_their_trailers(clone: Clones, remote: Path) -> None:
    """Each batch is a commit of its own, found again by its trailer and path alone."""
    master = clone("one", remote)
    commits = [
        Commit({A: b"1"}, "Save a", AT, "000000000001-aa"),
        Commit({B: b"1"}, "Save b", AT, "000000000002-bb"),
    ]
    tip = master.commit("", commits)
    master.push(tip, "", soon())
    assert githttp.commits(remote) == 3  # the foundation first
    assert master.founded(tip)
    assert master.applied("000000000001-aa", A)
    assert not master.applied("000000000001-aa", B)
    assert {path: data for path, data in githttp.files(remote).items() if path in FOUNDATION} == (
        FOUNDATION
    )


def test_only_what_annoris_removed_counts_as_deliberate(clone: Clones, remote: Path) -> None:
    master = clone("one", remote)
    start = put(master, {A: b"1", B: b"1", C: b"1"})
    put(master, {A: None}, "1-aa")
    put(master, {C: None})  # in no save of the outbox
    githttp.commit(remote, {B: None})
    assert master.deliberate(start, update(master)) == {A}


def test_files_are_all_that_is_wanted_sessions_or_not(clone: Clones) -> None:
    master = clone()
    tip = put(master, {A: b"1", "README.md": b"2", "code.py": b"3"})
    markdown = master.tree(tip, lambda path: path.endswith(".md"))
    assert markdown == {A: oid(b"1"), "README.md": oid(b"2")}
    assert master.tree(tip) == {A: oid(b"1")}


# --- pushing and fetching --------------------------------------------------------------------


def test_a_push_that_lost_the_race_raises_and_changes_nothing(clone: Clones, remote: Path) -> None:
    """GitPython would say nothing; here the loser knows, and the winner's commit stands."""
    one, two = clone("one", remote), clone("two", remote)
    put(one, {A: b"1"})
    tip = update(two)
    put(one, {A: b"2"})
    commit = two.commit(tip, [Commit({B: b"1"}, "Late", AT)])
    with pytest.raises(LostRace):
        two.push(commit, tip, soon())
    assert two.tip() == tip
    assert githttp.head(remote) == one.tip()


def test_a_push_never_overwrites_what_it_does_not_know(clone: Clones, remote: Path) -> None:
    """A branch that came, went, or was rewound behind our back is a lost race each time."""
    master = clone("one", remote)
    githttp.commit(remote, {A: b"theirs"})
    with pytest.raises(LostRace):
        put(master, {B: b"1"})
    first = update(master)
    put(master, {B: b"1"})
    githttp.commit(remote, {C: b"1"}, parent=first)
    with pytest.raises(LostRace):
        put(master, {B: b"2"})
    githttp.delete_branch(remote)
    with pytest.raises(LostRace):
        put(master, {B: b"2"})
    assert githttp.head(remote) == ""


def test_a_fetch_shows_a_tip_without_taking_it(clone: Clones, remote: Path) -> None:
    """What was fetched is the tip only once it is accepted; a branch that went away is empty."""
    master = clone("one", remote)
    tip = put(master, {A: b"1"})
    new = githttp.commit(remote, {B: b"1"})
    subprocess.run(["git", f"--git-dir={remote}", "tag", "v1", new], check=True)
    assert master.fetch(soon()) == new
    assert (master.tip(), master.fetched()) == (tip, new)
    assert not subprocess.check_output(["git", f"--git-dir={master.folder}", "tag"])
    master.accept(new)
    assert master.tip() == new
    githttp.delete_branch(remote)
    assert master.fetch(soon()) == master.fetched() == ""
    assert master.tip() == new
    master.accept("")
    assert master.tip() == ""
    shown = subprocess.run(
        ["git", f"--git-dir={master.folder}", "rev-list", "--reflog"],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout.split()  # fmt: skip
    assert {tip, new} <= set(shown)


def test_to_forget_lets_the_past_of_other_branches_be(clone: Clones) -> None:
    master = clone()
    tips = [put(master, {A: b"%d" % number}) for number in range(2)]
    git = ["git", f"--git-dir={master.folder}"]
    for tip in tips:
        subprocess.run([*git, "update-ref", "refs/heads/other", tip], check=True)
    master.forget(soon())
    for branch, past in (("other", tips[::-1]), ("main", [])):
        log = [*git, "log", "--walk-reflogs", "--format=%H", branch, "--"]
        assert subprocess.check_output(log, text=True).split() == past


def test_a_tip_in_packed_refs_is_read_too(clone: Clones) -> None:
    master = clone()
    tip = put(master, {A: b"1"})
    subprocess.run(["git", f"--git-dir={master.folder}", "pack-refs", "--all"], check=True)
    assert not (Path(master.folder) / "refs" / "heads" / "main").exists()
    assert master.tip() == tip


def test_branches_are_listed_with_the_default(clone: Clones, tmp_path: Path) -> None:
    repo = githttp.bare(tmp_path / "other.git", "trunk")
    master = clone("one", repo)
    assert master.branches(soon()) == ({}, "")
    tip = githttp.commit(repo, {A: b"1"}, branch="trunk")
    side = githttp.commit(repo, {A: b"2"}, branch="side/a")
    assert master.branches(soon()) == ({"trunk": tip, "side/a": side}, "trunk")


@pytest.mark.parametrize("fault", ["protected", "secret", "token", "down", "silent", "missing"])
def test_each_refusal_has_its_error_and_leaves_the_tip(
    fault: str, clone: Clones, server: GitServer
) -> None:
    """A push that was refused for any reason raises what it means and moves nothing."""
    master = clone("one", server.url)
    tip = put(master, {A: b"1"})
    errors: dict[str, type[AnnorisError]] = {
        "protected": PolicyRefused, "secret": PolicyRefused, "token": AuthRefused,
        "down": RemoteUnreachable, "silent": RemoteUnreachable, "missing": RemoteRefused,
    }  # fmt: skip
    if fault == "protected":
        server.protect()
    elif fault == "secret":
        server.refuse_content(b"2")
    elif fault == "token":
        server.token = "other"
    elif fault == "silent":
        server.hang = "accept"
    else:
        server.status = {"down": 503, "missing": 404}[fault]
    commit = master.commit(tip, [Commit({A: b"2"}, "Two", AT)])
    with pytest.raises(errors[fault]) as caught:
        master.push(commit, tip, Deadline(2))
    assert type(caught.value) is errors[fault]
    assert master.tip() == server.head() == tip
    if isinstance(caught.value, PolicyRefused):
        assert caught.value.about == {"protected": "branch", "secret": "content"}[fault]
        assert caught.value.paths == {"protected": (), "secret": (A,)}[fault]


def test_a_token_is_used_for_its_own_remote_only(
    clone: Clones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens its server; an address that was rewritten to another one never gets it."""
    seen: list[str] = []
    with GitServer(tmp_path / "a", token="t0ken" * 8) as right, GitServer(tmp_path / "b") as wrong:
        master = clone("one", right.url, token="t0ken" * 8)
        put(master, {A: b"1"})
        assert right.head() == master.tip()
        answer = wrong.answer

        def listen(request, gone):  # type: ignore[no-untyped-def]
            seen.append(request.headers.get("Authorization", ""))
            return answer(request, gone)

        monkeypatch.setattr(wrong, "answer", listen)
        config = Path(os.environ["HOME"]) / ".gitconfig"
        config.write_text(f'[url "{wrong.url}"]\n\tinsteadOf = {right.url}\n')
        assert master.fetch(soon()) == ""
    assert seen
    assert set(seen) == {""}


def test_a_program_in_place_of_ssh_is_used(
    clone: Clones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, called = tmp_path / "program", tmp_path / "called"
    program.write_text(f'#!/bin/sh\necho "$@" > "{called}"\nexit 1\n')
    program.chmod(0o755)
    master = clone("one", "git@host.invalid:a/b.git")
    monkeypatch.setenv("GIT_SSH", str(program))
    with pytest.raises(AnnorisError):
        master.fetch(soon())
    assert "git@host.invalid" in called.read_text()


@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/annoris/fetched"])
def test_a_lock_that_a_killed_git_left_is_broken(ref: str, clone: Clones, remote: Path) -> None:
    """A write or a fetch that meets a stale lock removes it and goes on."""
    master = clone("one", remote)
    put(master, {A: b"1"})
    update(master)
    lock = Path(master.folder) / f"{ref}.lock"
    lock.touch()
    new = githttp.commit(remote, {B: b"1"})
    assert update(master) == master.tip() == new
    assert not lock.exists()


def test_a_damaged_clone_is_found_and_its_mending_named(clone: Clones, remote: Path) -> None:
    master = clone("one", remote)
    put(master, {A: b"1"})
    assert master.check() == ""
    objects = Path(master.folder) / "objects"
    for file in [path for path in objects.rglob("*") if path.is_file()]:
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:-9])
    assert master.check() != ""
    with pytest.raises(StorageError) as caught:
        master.tree(master.tip())
    assert caught.value.hint == "annoris verify --repair"


def test_concurrent_readers_do_not_disturb_each_other(clone: Clones) -> None:
    """Threads of a server read at once, each its own bytes."""
    master = clone()
    files = {f"sessions/x/{number}.md": b"%d" % number * 2000 for number in range(40)}
    tree = master.tree(put(master, dict(files)))
    wrong: list[str] = []

    def read() -> None:
        found = dict(master.blobs(Entry(path, blob) for path, blob in tree.items()))
        wrong.extend(entry.path for entry, data in found.items() if files[entry.path] != data)
        wrong.extend(files.keys() - {entry.path for entry in found})

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_author_is_configured_known_to_git_or_ours(clone: Clones, no_home: Path) -> None:
    """In that order, and never something that would break the commit."""
    for name, config, settings, expected in (
        ("one", "", {"author": "Ann <ann@example.org>"}, "Ann <ann@example.org>"),
        ("two", "[user]\n\tname = Аня\n\temail = a@b.c\n", {}, "Аня <a@b.c>"),
        ("three", "[user]\n\tuseConfigOnly = true\n", {}, "Annoris <annoris@localhost>"),
    ):
        (no_home / ".gitconfig").write_text(config)
        master = clone(name, **settings)
        tip = put(master, {A: b"1"})
        raw = gitcmd.run(["git", f"--git-dir={master.folder}", "cat-file", "commit", tip], soon())
        author = re.search(r"^author (.*) \d+ \+0000$", raw.output.decode(), re.MULTILINE)
        assert author is not None
        assert author[1] == expected


def test_what_a_killed_git_left_half_written_goes_once_it_is_old(clone: Clones) -> None:
    master = clone()
    put(master, {A: b"x"})
    objects = Path(master.folder) / "objects"
    left = [objects / "17" / "tmp_obj_old", objects / "pack" / "tmp_pack_old", objects / "tmp_new"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    for path in left[:2]:
        os.utime(path, (0, 0))
    tidy(master.folder, 3600)
    assert [path.exists() for path in left] == [False, False, True]
    assert master.blob(oid(b"x"), A) == b"x"
