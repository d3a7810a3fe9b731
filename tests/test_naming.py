from __future__ import annotations

import re
import string
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annoris import naming
from tests.support.fuzz import examples

ID = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
words = st.text(st.characters(codec="utf-8"), max_size=20)
some = settings(deadline=None, max_examples=examples(80))

NAMES = [
    "con.md", "con", "NUL", "com1", "COM¹", "lpt9", "a:b", "dot.", "dots...", "two\nlines", "🔥",
    "🔥🔥", "שלום עולם", "مرحبا", "../x", "..", ".git/x", ".git", "-rf", "--help", "a/b", "a\\b",
    "x" * 256, "ж" * 256, "Case", "case", "CASE", "a b", "a-b", "", " ", "session", "a\0b",
    "~", "$x", "%2e%2e", "\u202egnp.exe", "con-session", "case-0a1b2c", "Проект", "\ud800",
    "e\u0301", "straße",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("Session: Web shop", "session-web-shop"),
        ("Привет, день! 🔥", "privet-den"),
        ("don't stop", "dont-stop"),
        ("Größe", "grosse"),
        ("你好", "nihao"),
        ("हिन्दी", "hindi"),
        ("🎉 👩‍👩‍👧 ✅", "session"),
        ("", "session"),
        ("con", "con-session"),
        ("Com¹", "com1-session"),
        ("../.git/x", "git-x"),
        ("one two three " * 9, "one-two-three-one-two-three-one-two-three-one"),
        ("y" * 99, "y" * 48),
    ],
)
def test_case_23_slugs_are_ascii_words(text: str, slug: str) -> None:
    assert naming.slug(text) == slug


def test_case_23_different_projects_never_share_a_folder() -> None:
    folders = {naming.folder(unicodedata.normalize("NFC", name)) for name in NAMES}
    assert len(folders) == len({unicodedata.normalize("NFC", name) for name in NAMES})
    assert naming.folder("web-shop") == "web-shop"


def test_case_23_a_folder_name_can_not_be_taken_by_naming_a_project_so() -> None:
    taken = naming.folder("Web Shop")
    assert taken.startswith("web-shop-")
    assert naming.folder(taken) != taken


@given(st.sampled_from(NAMES) | words, st.sampled_from(NAMES) | words)
@some
def test_case_23_any_name_gives_a_safe_path(project: str, title: str) -> None:
    path = naming.path_for(project, title, "2026-11-24T06:22:00+00:00", ID.upper())
    pattern = r"sessions/([a-z0-9]+(?:-[a-z0-9]+)*)/2026/11/2026-11-24-([a-z0-9-]+)-2e3f4a5b\.md"
    match = re.fullmatch(pattern, path)
    assert match
    assert len(path) < 160
    for part in match.groups():
        assert not re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", part)
    for form in ("NFC", "NFD"):
        assert naming.folder(unicodedata.normalize(form, project)) == match[1]


@given(words, st.integers(1, 60))
@some
def test_case_23_a_slug_keeps_its_limit(text: str, limit: int) -> None:
    slug = naming.slug(text, limit=limit)
    assert len(slug) <= limit or slug == "session" or slug.endswith("-session")
    assert set(slug) <= {*string.ascii_lowercase, *string.digits, "-"}


@pytest.mark.parametrize(("created", "id"), [("../..", ID), ("", ID), ("2026-11-24", "../../x")])
def test_case_23_no_path_is_made_from_a_bad_date_or_id(created: str, id: str) -> None:
    with pytest.raises(ValueError, match="no path"):
        naming.path_for("p", "t", created, id)


def test_paths_in_ascii_need_no_transliteration() -> None:
    code = (
        "import sys; known = {*sys.modules}; from annoris import encoding, markdown, naming\n"
        f"naming.path_for('p', 't', '2026-01-01', {ID!r})\n"
        "heavy = {'yaml', 'markdown_it', 'ftfy', 'anyascii', 'html', 'json'}\n"
        "heavy &= set(sys.modules) - known\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
