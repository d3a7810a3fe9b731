"""The two forms of master's files, without git."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from annoris import envelope
from annoris.envelope import Key, KeyRing
from annoris.errors import (
    ConfigError,
    KeyProblem,
    ScopeMismatch,
    Tampered,
    Truncated,
    WrongKey,
)
from annoris.layout import FORMAT, Layout, Plain, Sealed, id_in, is_sealed, places, scope_in
from annoris.model import Draft

ID = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
OTHER = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5c"
PATH = f"sealed/5b/{ID}.annoris"
INCLUDE = ("sessions/**/*.md",)
KEY = Key(bytes(range(32)))

# Written by the first release that could; it must open for ever.
GOLDEN_FORMAT = (
    b"# Annoris keeps sessions in this repository, sealed: without the key they are noise.\n"
    b"version = 1\n"
    b'scope = "sealed"\n'
    b'proof = "annoris1.A256GCM.d269e982.qQua7YLpgbBxjeSu.WohkL_2HJ7tyCvrB0tq1_vftPbAUIQybi3'
    b'f845unZ57w77FNS2dMwCxDKBoM9EN7hnmSUeIUdc_VOBKN."\n'
    b'names = "annoris1.A256GCM.d269e982.2ZaCGSlA5hESbH1T.ak9XzqflzDCoojOrf2NxMA39kvxP3g3np6'
    b'kgqk6rStwyBoOgVzWTt6vmRxxpTy_h."\n'
)
GOLDEN_FILE = b"annoris1.A256GCM.d269e982.o4wVHnLQUO44YZZ1.LfnfQJCKgZqRDjb6sfWxEpvW51l3CShWVA."


def keys(*ring: Key) -> Callable[[bool], KeyRing]:
    return lambda _: KeyRing(ring or (KEY,))


def sealed(*ring: Key) -> Sealed:
    """A sealed layout that begins with these keys."""
    layout = Sealed(INCLUDE, keys(*ring))
    layout.begin()
    return layout


def draft(**fields: str) -> Draft:
    known = dict.fromkeys(("key", "base", "body_md5", "at", "batch"), "")
    known |= {"id": ID, "path": PATH, "project": "p", "name": "", "title": "Words"}
    return Draft(op="save", **(known | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "plain", "in_sealed", "stray"),
    [
        ("sessions/shop/2026/11/2026-11-24-x-2e3f4a5b.md", True, False, True),
        ("README.md", False, False, False),
        (FORMAT, False, False, False),
        (PATH, False, True, False),
        (PATH.replace("/5b/", "/5c/"), False, False, True),
        (PATH.upper(), False, False, False),
        (f"sealed/{ID}.annoris", False, False, True),
        (f"sealed/5b/{ID}.annoris.md", False, False, False),
        (f"sealed/5b/{ID}\n.annoris", False, False, True),
        (f"x/{PATH}", False, False, False),
    ],
)
def test_a_path_belongs_to_one_form_or_to_none(
    path: str, plain: bool, in_sealed: bool, stray: bool
) -> None:
    assert Plain(INCLUDE).included(path) is plain
    assert Sealed(INCLUDE).included(path) is bool(id_in(path)) is in_sealed
    assert Sealed(INCLUDE).stray(path) is stray
    assert not (plain and in_sealed)


def test_a_sealed_path_says_the_id_and_nothing_else() -> None:
    """Whatever project, title and date are; it is found again by the pathspecs of the id."""
    layout = sealed()
    paths = {
        layout.path_for(project, title, created, ID)
        for project, title, created in (("shop", "A", "2026-01-01"), ("", "Ж" * 300, "nothing"))
    }
    assert paths == {PATH}
    assert id_in(PATH) == ID
    assert places(ID)[1] == f":(literal){PATH}"
    with pytest.raises(ValueError, match="UUID"):
        layout.path_for("p", "t", "2026-01-01", "../../etc/passwd")


@pytest.mark.parametrize("data", [b"", b"x", b"# A\r\n\0\xff", "Ж".encode() * 100_000])
def test_what_is_encoded_is_decoded_byte_for_byte(data: bytes) -> None:
    plain, layout = Plain(INCLUDE), sealed()
    assert plain.encode("sessions/x.md", data) == plain.decode("sessions/x.md", data) == data
    stored = layout.encode(PATH, data)
    assert stored.isascii()
    assert data not in stored or len(data) < 2
    assert layout.decode(PATH, stored) == data
    assert layout.encode("README.md", data) == layout.decode("README.md", data) == data


def test_a_plain_layout_opens_what_history_holds_sealed() -> None:
    """After a master was converted back, its older revisions are still envelopes."""
    stored = sealed().encode(PATH, b"text")
    assert Plain(INCLUDE, keys()).decode(PATH, stored) == b"text"
    with pytest.raises(KeyProblem):
        Plain(INCLUDE).decode(PATH, stored)


def test_an_envelope_opens_at_its_own_path_only() -> None:
    """Two files that were swapped on the server are both refused, and so is any other change."""
    layout = sealed()
    stored = layout.encode(PATH, b"text")
    elsewhere = layout.path_for("", "", "", OTHER)
    project = layout.project_path("shop")
    for path, data, error in (
        (elsewhere, stored, Tampered),
        (project, stored, Tampered),
        (PATH, stored + b"\n", Tampered),
        (PATH, stored[:-1], Truncated),
        (PATH, b"# A text in plain\n", Tampered),
        (PATH, b"\xff\xfe", Tampered),
        (PATH, b"", Truncated),
    ):
        with pytest.raises(error, match=f"^{path} on master"):
            layout.decode(path, data)
    with pytest.raises(WrongKey):
        Sealed(INCLUDE, keys(envelope.new_key())).decode(PATH, stored)


def test_a_layout_is_fitted_to_a_master_of_its_form_and_key_alone() -> None:
    layout, other = sealed(), envelope.new_key()
    told = layout.foundation()[FORMAT]
    plain = Plain(INCLUDE).foundation()[FORMAT]
    again = Sealed(INCLUDE, keys())
    again.fit(told, "")
    assert again.key_id == KEY.id
    Plain(INCLUDE).fit(plain, "")
    Plain(INCLUDE).fit(None, "")
    refused: tuple[tuple[Layout, bytes | None, type[Exception]], ...] = (
        (Plain(INCLUDE), told, ScopeMismatch),
        (Sealed(INCLUDE, keys()), plain, ScopeMismatch),
        (Sealed(INCLUDE, keys()), None, ScopeMismatch),
        (Sealed(INCLUDE, keys()), b'scope = "sealed"\n', Truncated),
        (Sealed(INCLUDE, keys(other)), told, WrongKey),
        (Plain(INCLUDE), b'version = 2\nscope = "plain"\n', ConfigError),
        (Sealed(INCLUDE, keys()), told.replace(b"version = 1", b"version = 2"), ConfigError),
    )
    for kind, text, error in refused:
        with pytest.raises(error):
            kind.fit(text, "url")
    with pytest.raises(ScopeMismatch) as caught:
        Sealed(INCLUDE, keys()).fit(plain, "url")
    assert "annoris init --remote url --scope caches" in caught.value.hint
    assert "annoris init --remote url --scope everything --convert" in caught.value.hint


def test_master_is_sealed_under_the_key_of_its_proof_whatever_else_is_here() -> None:
    """A newer key on this machine, of a rotation that was stopped, does not seal yet."""
    told, newer = sealed().foundation()[FORMAT], envelope.new_key()
    layout = Sealed(INCLUDE, keys(newer, KEY))
    layout.fit(told, "")
    assert envelope.sealed_by(layout.encode(PATH, b"text").decode()) == KEY.id
    before = layout.project_path("shop")
    layout.turn()
    assert envelope.sealed_by(layout.encode(PATH, b"text").decode()) == newer.id
    after = Sealed(INCLUDE, keys(newer))
    after.fit(layout.foundation()[FORMAT], "")
    assert after.project_path("shop") == layout.project_path("shop") == before


def test_a_projects_path_tells_nothing_to_who_has_not_the_key() -> None:
    """Two machines that begin at once with one key make the same; another key, another path."""
    assert Plain(INCLUDE).project_path("shop") == "projects/shop.toml"
    path = sealed().project_path("shop")
    assert is_sealed(path)
    assert path == sealed().project_path("shop")
    assert path != sealed().project_path("shop2")
    assert path != sealed(envelope.new_key()).project_path("shop")


def test_the_words_of_a_sealed_masters_commits_name_nothing() -> None:
    drafts = [draft(title="Secret title", name="secret-name", project="secret-project")]
    assert Plain(INCLUDE).message(drafts) == "Save Secret title"
    assert Plain(INCLUDE).message(drafts * 2) == "Save 2 sessions, Secret title first"
    assert sealed().message(drafts) == "Save 1 session"
    assert sealed().message(drafts * 2) == "Save 2 sessions"
    assert Plain(INCLUDE).words("Set project shop") == "Set project shop"
    assert "shop" not in sealed().words("Set project shop")


def test_a_plain_format_is_told_from_a_sealed_one() -> None:
    assert scope_in(None) is None
    assert scope_in(b"") == "plain"
    assert scope_in(Plain(INCLUDE).foundation()[FORMAT]) == "plain"
    assert scope_in(sealed().foundation()[FORMAT]) == "sealed"
    assert scope_in(b'version=1\r\nscope="sealed"\r\n') == "sealed"


def test_what_the_first_release_sealed_opens_for_ever() -> None:
    layout = Sealed(INCLUDE, keys())
    layout.fit(GOLDEN_FORMAT, "")
    assert layout.decode(PATH, GOLDEN_FILE) == b"# Golden\n"
    assert layout.project_path("shop") == "projects/ef4261ab21b0c945e97adfe49dd033df.annoris"


def test_a_plain_layout_imports_no_cryptography() -> None:
    code = (
        "import sys\nfrom annoris.layout import Plain\nfrom annoris import master\n"
        "layout = Plain(('*.md',))\nlayout.fit(layout.foundation()['.annoris/format.toml'], '')\n"
        "layout.decode('a.md', layout.encode('a.md', b'x'))\n"
        "print([name for name in sys.modules if 'crypt' in name or 'envelope' in name])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
