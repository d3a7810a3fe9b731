"""Cases 22, 23 and 27: what goes in comes out, byte for byte, whatever the text and the names."""

from __future__ import annotations

import hashlib
import subprocess
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from annoris import document, upkeep
from annoris.errors import AnnorisError, DocumentRefused
from tests import corpus
from tests.support.githttp import commit, commits, files
from tests.support.invariant import holds
from tests.support.machine import Machine

Machines = Callable[..., Machine]
TEXT = "# Заголовок\n\n**Status:** open\n\n## Next\n\nline one\nline two\n"


def body(data: bytes) -> bytes:
    return document.split(data)[1]


# --- 22: bytes -----------------------------------------------------------------------------------

BYTES = {
    "crlf": TEXT.replace("\n", "\r\n").encode(),
    "cr": TEXT.replace("\n", "\r").encode(),
    "mixed": TEXT.replace("\n", "\r\n", 2).encode() + b"one\rtwo\r\r\n\n\r",
    "no final newline": TEXT.rstrip("\n").encode(),
    "bom": b"\xef\xbb\xbf" + TEXT.encode(),
    "bom inside": TEXT.encode() + b"\xef\xbb\xbf\n",
    "conflict marks": TEXT.encode() + b"<<<<<<< HEAD\na\n=======\nb\n>>>>>>> theirs\n",
    "blanks at both ends": b"\n \n\t\n" + TEXT.encode() + b" \t\n\n\n",
    "separators": TEXT.encode() + "a\u2028b\u2029c\x85d\x0be\x0cf\n".encode(),
    "escape codes": TEXT.encode() + b"\x1b[31mred\x1b[0m\x07\x7f\n",
    "git keywords": TEXT.encode() + b"$Id$ $Revision: 1 $\n",
    "one character": b"x",
    "a rule first": b"---\n\n" + TEXT.encode(),
    "a rule in the body": TEXT.encode() + b"\n---\nkey: value\n---\n",
    "a line of 10 MB": b"# Long\n\n" + b"word " * 2_000_000 + b"\n",
}


@pytest.mark.parametrize("autocrlf", ["", "true", "input"])
def test_case_22_bytes_survive_the_command_line_whatever_core_autocrlf_says(
    autocrlf: str, machine: Machines, remote: Path
) -> None:
    """One save of all files is one push; each comes back whole by load --body and by -o."""
    laptop = machine(remote=remote)
    attributes = laptop.write("attributes", "* text=auto eol=crlf ident\n")
    if autocrlf:
        laptop.write(
            "../.gitconfig",
            f"[core]\n\tautocrlf = {autocrlf}\n\teol = crlf\n\tsafecrlf = true\n"
            f"\tattributesFile = {attributes}\n",
        )
    names = [f"{number}.md" for number in range(len(BYTES))]
    for name, data in zip(names, BYTES.values(), strict=True):
        laptop.write(name, data)
    saved = laptop.run("save", *names, "--json")
    assert saved.code == 0, saved.err
    ids = [receipt["id"] for receipt in saved.json["receipts"]]
    assert commits(remote) == 2, "the foundation and one commit"
    for id, (kind, data) in zip(ids, BYTES.items(), strict=True):
        assert hashlib.sha256(body(laptop.load(id))).digest() == hashlib.sha256(data).digest(), kind
    shown = laptop.run("load", ids[2], "--body")
    assert shown.out == BYTES["mixed"]
    assert laptop.run("load", ids[0], "-o", "back.md").code == 0
    assert body((laptop.desk / "back.md").read_bytes()) == BYTES["crlf"]
    holds(
        [laptop, machine("second", remote=remote)],
        remote,
        dict(zip(ids, BYTES.values(), strict=True)),
    )


def test_case_22_a_checkout_on_another_machine_has_the_same_bytes(
    machine: Machines, remote: Path, tmp_path: Path
) -> None:
    """Also where git there converts line ends."""
    laptop = machine(remote=remote)
    (receipt,) = laptop.save(BYTES["crlf"])
    clone = tmp_path / "checkout"
    options = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    subprocess.run(["git", *options, "clone", "-q", str(remote), str(clone)], check=True)
    assert body((clone / receipt.path).read_bytes()) == BYTES["crlf"]
    (receipt,) = laptop.save(BYTES["no final newline"])
    subprocess.run(["git", *options, "-C", str(clone), "pull", "-q"], check=True)
    assert body((clone / receipt.path).read_bytes()) == BYTES["no final newline"]


def test_case_22_every_document_of_the_corpus_comes_back_and_saves_to_nothing(
    machine: Machines, remote: Path
) -> None:
    """Save; load; compare; save what load printed: unchanged. For 120 documents of all kinds."""
    laptop = machine(remote=remote)
    documents = [data for _, data in corpus.documents(120)]
    archive = laptop.archive()
    archive.catalog.close()
    receipts = laptop.save(*(data for data in documents if not document.inspect(data).id))
    assert {receipt.state for receipt in receipts} == {"master"}
    own = [data for data in documents if document.inspect(data).id]
    for data in own:  # these all claim one id: revisions of one session
        receipts += laptop.save(data)
    before = commits(remote)
    bodies = {}
    for receipt in receipts[: -len(own)] + receipts[-1:]:
        loaded = laptop.load(receipt.id)
        bodies[receipt.id] = body(loaded)
        (again,) = laptop.save(loaded)
        assert again.state == "unchanged", receipt.title
    assert commits(remote) == before
    expected = [data for data in documents if data not in own]
    assert [bodies[receipt.id] for receipt in receipts[: -len(own)]] == [
        document.split(data)[1] for data in expected
    ]
    holds([laptop], remote, bodies)


def test_case_22_foreign_front_matter_stays_line_for_line(machine: Machines) -> None:
    """Every line that was there before is there afterwards, in the same order."""
    laptop = machine()
    for name, data in corpus.documents(120):
        if "front-" not in name or document.inspect(data).id:
            continue
        (receipt,) = laptop.save(data)
        assert body(laptop.load(receipt.id)) == body(data), name
        front = document.split(laptop.load(receipt.id))[0].splitlines()
        lines = iter(front)
        assert all(line in lines for line in document.split(data)[0].splitlines()), name


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"# A\n\nb\0c\n", 6),
        (b"# A\n\nb\xffc\n", 6),
        (b"# A\n\n\xc3", 5),
        (b"# A\n\n\xed\xa0\x80\n", 5),
        (b"# A\n\n\xc0\xaf\n", 5),
    ],
)
def test_case_22_what_is_no_text_is_refused_with_the_offset(
    data: bytes, offset: int, machine: Machines
) -> None:
    """Nothing is saved then, and the exit code says which kind."""
    laptop = machine()
    laptop.write("a.md", data)
    ran = laptop.run("save", "a.md", "--json")
    assert ran.code == 6
    assert ran.json["error"]["offset"] == offset
    assert f"offset {offset}" in ran.json["error"]["message"]
    assert laptop.archive().outbox.read() == ([], [])


def test_case_22_stdin_and_stdout_are_bytes_in_any_locale(machine: Machines) -> None:
    """A pipe in, a pipe out; LANG says nothing about a document."""
    laptop = machine()
    for number, locale in enumerate(("C", "POSIX", "ru_RU.KOI8-R", "C.UTF-8")):
        data = BYTES["mixed"] + str(number).encode()
        env = {"LANG": locale, "LC_ALL": locale}
        saved = laptop.run("save", "-", "--name", f"n{number}", stdin=data, env=env)
        assert saved.code == 0, saved.err
        assert laptop.run("load", f"n{number}", "--body", env=env).out == data


# --- 23: names -----------------------------------------------------------------------------------

NFC = unicodedata.normalize("NFC", "Ёж café")
NFD = unicodedata.normalize("NFD", "Ёж café")
NAMES = [
    NFC, NFD, "Case", "case", "con", "con.md", "NUL", "a:b", "dot.", ".", "..", "../x", "../../etc",
    ".git/x", ".git", "-f", "--json", "--output=/tmp/x", "a/b", "/abs", "a\\b", "a b", " lead",
    "trail ", "🔥🚀", "👩‍👩‍👧", "مرحبا", "\u202eevil", "x" * 256, "Ж" * 256, "a\tb", "$(id)",
    "`id`", "a;b", "a|b", "*", "?", "[a]", "%s%n", "sessions", "'\"", "~", "~root", "@{u}",
    "HEAD", "null", "true", "0", "1e3", "#1", ": ", "a: b", "{a}", "&a", "!!x", "a\u200bb",
]  # fmt: skip


def tame(path: str) -> bool:
    """A path that every file system takes and no program reads as something else."""
    return (
        path.isascii()
        and path.isprintable()
        and not set(path) & set(':\\*?"<>|$`;~^[]{}()&! ')
        and all(part[:1] not in "-." and part[-1:] not in ". " for part in path.split("/"))
        and all(len(part) <= 120 for part in path.split("/"))
        and all(part.split(".")[0].upper() not in ("CON", "NUL", "AUX") for part in path.split("/"))
        and path.startswith("sessions/")
    )


@pytest.mark.parametrize("role", ["title", "project", "name"])
def test_case_23_hostile_names_round_trip_or_are_clearly_refused(
    role: str, machine: Machines, remote: Path
) -> None:
    """No two collide, none escapes its folder, and a path on master is tame."""
    laptop = machine(remote=remote)
    bodies: dict[str, bytes] = {}
    refused: dict[str, str] = {}
    for number, name in enumerate(NAMES):
        title = " ".join(name.split()) if role == "title" else "Text"
        data = f"# {title}\n\nnumber {number}\n".encode()
        options = {} if role == "title" else {role: name}
        try:
            (receipt,) = laptop.save(data, **options)
        except AnnorisError as error:
            refused[name] = error.hint
            continue
        assert receipt.state == "master", name
        assert tame(receipt.path), (name, receipt.path)
        bodies[receipt.id] = data
        if role == "name":
            assert body(laptop.load(receipt.id)) == data
    assert len(bodies) > len(NAMES) // 2
    assert all(refused.values()), "a refusal says what to do"
    paths = [path for path in files(remote) if path.endswith(".md")]
    assert len({path.casefold() for path in paths}) == len(bodies)
    found = holds([laptop, machine("second", remote=remote)], remote, bodies)
    assert found.keys() == bodies.keys()


def test_case_23_a_name_finds_its_session_whatever_it_looks_like(machine: Machines) -> None:
    """By the command line, after --, and with the project before it."""
    laptop = machine()
    for name in ("-f", "--json", "con.md", "a:b", "🔥🚀", NFD, "a b", "$(id)", "..", "*"):
        data = f"# T\n\n{name}\n".encode()
        laptop.write("a.md", data)
        saved = laptop.run("save", f"--name={name}", "a.md")
        assert saved.code == 0, (name, saved.err)
        assert laptop.run("load", "--body", "--", name).out == data, name
        assert laptop.run("load", "--body", "--", f"default/{name}").out == data, name


def test_case_23_files_named_hostilely_are_saved_by_the_command_line(machine: Machines) -> None:
    """From the person's disk; a leading dash after --, as everywhere."""
    laptop = machine()
    names = ["-f.md", "a\nb.md", "🔥.md", "a b.md", "Ж" * 120 + ".md", "con.md", "'\".md", "*.md"]
    for number, name in enumerate(names):
        laptop.write(name, f"# T{number}\n\ntext\n")
    ran = laptop.run("save", "--", *names)
    assert (ran.code, ran.text.count("saved  ")) == (0, len(names)), ran.err


BY_HAND = [
    "sessions/Ёж/файл.md", f"sessions/x/{NFC}.md", f"sessions/x/{NFD}.md", "sessions/x/Case.md",
    "sessions/x/case.md", "sessions/con/con.md", "sessions/x/a:b.md", "sessions/x/a b.md",
    "sessions/x/🔥.md", "sessions/x/\u202eevil.md", "sessions/-f/-f.md", "sessions/x/new\nline.md",
    "sessions/x/tab\t.md", 'sessions/x/"quoted".md', "sessions/x/back\\slash.md",
    "sessions/x/" + "l" * 250 + ".md", "sessions/x/*.md", "sessions/x/[a].md", "sessions/top.md",
    "sessions/..x/..md", "sessions/x/trailing /.md", "sessions/x/y/z/deep.md",
]  # fmt: skip


def test_case_23_files_added_by_hand_under_hostile_names_are_sessions_too(
    machine: Machines, remote: Path
) -> None:
    """They are listed, loaded, edited at their path and deleted, and touch no file outside."""
    laptop = machine(remote=remote)
    laptop.save(b"# First\n\ntext\n")
    texts = {path: f"# Hand {number}\n\ntext\n".encode() for number, path in enumerate(BY_HAND)}
    commit(remote, texts)
    second = machine("second", remote=remote)
    found = holds([laptop, second], remote, {}, anywhere=texts.values())
    assert len(found) == len(BY_HAND) + 1
    for path, text in texts.items():
        assert laptop.load(path) == text, path
        (edited,) = laptop.save(text.replace(b"text", b"edited"), update=path)
        assert (edited.path, edited.state) == (path, "master")
    now = files(remote)
    assert [body(now[path]) for path in BY_HAND] == [
        text.replace(b"text", b"edited") for text in texts.values()
    ]
    archive = laptop.archive()
    assert {archive.delete(path, "").state for path in BY_HAND} == {"master"}
    archive.catalog.close()
    assert len([path for path in files(remote) if path.endswith(".md")]) == 1
    holds([laptop, second], remote, {})
    assert sorted(path.name for path in laptop.folder.iterdir()) == ["data", "desk"]


def test_case_23_a_symlink_and_a_submodule_on_master_are_no_sessions(
    machine: Machines, remote: Path
) -> None:
    """Nothing follows them, and a save beside them keeps them."""
    laptop = machine(remote=remote)
    laptop.save(b"# First\n\ntext\n")
    stream = b"""commit refs/heads/main
committer A <a@example.org> 1 +0000
data 1
x
from refs/heads/main^0
M 120000 inline sessions/x/link.md
data 11
/etc/passwd
M 160000 1234567890123456789012345678901234567890 sessions/x/module.md
"""
    subprocess.run(
        ["git", f"--git-dir={remote}", "fast-import", "--quiet"], input=stream, check=True
    )
    (receipt,) = laptop.save(b"# Second\n\ntext\n")
    assert receipt.state == "master"
    archive = laptop.archive()
    assert upkeep.sync(archive).sessions == 2
    archive.catalog.close()
    listing = subprocess.run(
        ["git", f"--git-dir={remote}", "ls-tree", "-r", "main", "sessions/x/"],
        capture_output=True,
        check=True,
    ).stdout
    assert [line.split()[0] for line in listing.splitlines()] == [b"120000", b"160000"]


# --- 27: front matter ----------------------------------------------------------------------------

FRONTS = {
    "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n" + "e: [*a]\n",
    "python tag": "x: !!python/object/apply:os.system ['touch pwned']\n",
    "anchors": "base: &base {a: 1}\nuse:\n  <<: *base\n",
    "yes and no": "draft: no\nwhen: 2026-11-24\nversion: 1.10\noctal: 0o17\n",
    "comments": "# mine\ntags: [a, b] # here\n\n\n# end\n",
    "windows": "title: 'x'\r\ntags:\r\n- a\r\n",
    "block text": "note: |\n  ---\n  not the end\n",
}


@pytest.mark.parametrize("name", FRONTS)
def test_case_27_front_matter_goes_through_a_save_untouched_and_unexecuted(
    name: str, machine: Machines, remote: Path
) -> None:
    laptop = machine(remote=remote)
    front = FRONTS[name]
    end = "\r\n" if "\r\n" in front else "\n"
    text = f"---{end}{front}---{end}# Text{end}{end}---{end}a: b{end}---{end}"
    (receipt,) = laptop.save(text.encode())
    loaded = laptop.load(receipt.id)
    assert front.encode() in loaded
    assert loaded.endswith(f"---{end}# Text{end}{end}---{end}a: b{end}---{end}".encode())
    assert not list(laptop.folder.rglob("pwned"))
    assert not Path("pwned").exists()
    commit(remote, {receipt.path: loaded.replace(b"# Text", b"# Edited")})
    holds([laptop], remote, {receipt.id: body(loaded).replace(b"# Text", b"# Edited")})


@pytest.mark.parametrize(
    "front",
    ["a: [1,\n", "id: 1\nid: 2\n", "a:\n\t- b\n", "x: " + "[" * 30 + "]" * 30 + "\n", "a: 'b\n"],
)
def test_case_27_broken_front_matter_is_refused_with_its_line_and_adopted_as_text(
    front: str, machine: Machines, remote: Path
) -> None:
    """A save says where it is broken; a file that a person put on master is a session anyway."""
    laptop = machine(remote=remote)
    data = f"---\n{front}---\n# Text\n".encode()
    with pytest.raises(DocumentRefused, match=r"^1\.md:\d+: the front matter"):
        laptop.save(data)
    laptop.save(b"# First\n\ntext\n")
    commit(remote, {"sessions/x/hand.md": data})
    holds([laptop], remote, {}, anywhere=[data])
    assert laptop.load("sessions/x/hand.md") == data


def test_a_blob_of_the_clone_with_other_bytes_is_never_shown(
    machine: Callable[..., Machine],
) -> None:
    """An object that unpacks well but is not what its name says is an error, not a text."""
    here = machine()
    oid = here.save(b"# True\n\ntext\n")[0].oid
    path = here.data / "clone.git" / "objects" / oid[:2] / oid[2:]
    false = zlib.decompress(path.read_bytes()).replace(b"# True", b"# Lies")
    path.chmod(0o600)
    path.write_bytes(zlib.compress(false))
    loaded = here.run("load")
    assert loaded.code in (5, 74)
    assert loaded.out == b""
    assert "damaged" in loaded.err or "corrupt" in loaded.err
