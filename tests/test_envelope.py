from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from annoris import envelope
from annoris.envelope import Key, KeyRing
from annoris.errors import (
    DocumentRefused,
    KeyProblem,
    Locked,
    NewerFormat,
    StorageError,
    Tampered,
    Truncated,
    WrongKey,
)

SESSION = "0193a5c2-7b10-70a4-8c3d-5e6f70819200"
OID = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "envelopes.json").read_text(encoding="utf-8")
)


def _key(number: int) -> Key:
    return Key(hashlib.sha256(f"Annoris golden key {number}".encode()).digest())


RING = KeyRing((_key(1), _key(2)))
SHORT = envelope.seal(b"hello", key=_key(1), session=SESSION, oid=OID)


def _open(text: str, ring: KeyRing = RING, session: str = SESSION, oid: str = OID) -> bytes:
    return envelope.open_(text, ring=ring, session=session, oid=oid)


def _sealed_by_hand(content: bytes, algorithm: str) -> str:
    """An envelope with a right tag over content that ``seal`` would not have made."""
    magic, _, key_id, nonce, _, end = SHORT.split(".")
    bound = envelope._bound(magic, algorithm, key_id, SESSION, OID)
    raw_nonce = envelope._unb64(nonce)
    assert raw_nonce is not None
    sealed = AESGCM(_key(1).secret).encrypt(raw_nonce, content, bound)
    return ".".join((magic, algorithm, key_id, nonce, envelope._b64(sealed), end))


# --- envelopes


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 40), st.text(max_size=20), st.text(max_size=20))
def test_what_was_sealed_opens_to_the_same_bytes(
    piece: bytes, times: int, session: str, oid: str
) -> None:
    plaintext = piece * times
    text = envelope.seal(plaintext, key=_key(2), session=session, oid=oid)
    assert _open(text, RING, session, oid) == plaintext
    assert text.isascii()
    assert len(text.split()) == 1


def test_an_envelope_says_how_it_was_sealed_and_by_which_key() -> None:
    zipped = envelope.seal(b"again and " * 50, key=_key(2), session=SESSION, oid=OID)
    assert SHORT.split(".")[:3] == ["annoris1", "A256GCM", _key(1).id]
    assert zipped.split(".")[:3] == ["annoris1", "zA256GCM", _key(2).id]
    assert envelope.sealed_by(zipped) == _key(2).id
    assert len(zipped) < 200


def test_the_same_text_is_never_sealed_twice_the_same_way() -> None:
    texts = {envelope.seal(b"x", key=_key(1), session=SESSION, oid=OID) for _ in range(100)}
    assert len({text.split(".")[3] for text in texts}) == 100


@settings(deadline=None)
@given(st.text(max_size=6), st.text(max_size=6), st.text(max_size=6), st.text(max_size=6))
def test_case_20_an_envelope_opens_for_its_own_session_and_revision_only(
    session: str, oid: str, other_session: str, other_oid: str
) -> None:
    text = envelope.seal(b"mine", key=_key(1), session=session, oid=oid)
    if (session, oid) == (other_session, other_oid):
        assert _open(text, RING, other_session, other_oid) == b"mine"
    else:
        with pytest.raises(Tampered):
            _open(text, RING, other_session, other_oid)


@pytest.mark.parametrize(("session", "oid"), [("ab", "c"), ("", "abc"), ("abc", ""), ("c", "ab")])
def test_case_20_the_border_between_session_and_revision_can_not_be_moved(
    session: str, oid: str
) -> None:
    text = envelope.seal(b"mine", key=_key(1), session="a", oid="bc")
    with pytest.raises(Tampered):
        _open(text, RING, session, oid)


def test_case_20_an_older_revision_replayed_as_the_newest_is_refused() -> None:
    old = envelope.seal(b"old", key=_key(1), session=SESSION, oid="a" * 40)
    with pytest.raises(Tampered, match=f"session {SESSION}, revision bbbbbbbbbbbb was changed"):
        _open(old, oid="b" * 40)


@pytest.mark.parametrize("plaintext", [b"", b"hello", b"hello " * 9])
def test_case_20_every_flipped_bit_is_noticed(plaintext: bytes) -> None:
    text = envelope.seal(plaintext, key=_key(1), session=SESSION, oid=OID)
    for position, character in enumerate(text):
        for bit in range(8):
            changed = text[:position] + chr(ord(character) ^ 1 << bit) + text[position + 1 :]
            with pytest.raises(KeyProblem):
                _open(changed)


def test_case_20_every_cut_is_called_truncated() -> None:
    for length in range(len(SHORT)):
        with pytest.raises(Truncated):
            _open(SHORT[:length])


def test_case_20_a_missing_beginning_is_noticed() -> None:
    for start in range(1, len(SHORT)):
        with pytest.raises(KeyProblem):
            _open(SHORT[start:])


@pytest.mark.parametrize("more", [".", "x", " ", "\n", "=", "annoris1.", "\u00e9", "\ud800"])
def test_case_20_text_after_the_end_is_noticed(more: str) -> None:
    with pytest.raises(Tampered):
        _open(SHORT + more)


@settings(deadline=None)
@given(st.text())
def test_case_20_any_other_text_is_a_key_problem(text: str) -> None:
    with pytest.raises(KeyProblem):
        _open(text)
    with pytest.raises(KeyProblem):
        envelope.sealed_by(text)


@settings(deadline=None)
@given(st.integers(0, 5), st.text("annoris1zA256GCM.abcdef0_-=+/ \n"))
def test_case_20_any_other_field_is_a_key_problem(place: int, field: str) -> None:
    fields = SHORT.split(".")
    if fields[place] != field:
        fields[place] = field
        with pytest.raises(KeyProblem):
            _open(".".join(fields))


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000), st.binary(max_size=40))
def test_case_20_a_damaged_middle_is_never_shown(start: int, length: int, put: bytes) -> None:
    text = GOLDEN["envelopes"][3]
    whole: str = text["envelope"]
    changed = whole[:start] + put.decode("latin-1") + whole[start + length :]
    if changed != whole:
        with pytest.raises(KeyProblem):
            _open(changed, RING, text["session"], text["oid"])


def test_base64_has_one_spelling_only() -> None:
    """Of the last character of 22 bytes four bits decode to nothing."""
    text = envelope.seal(b"hello!", key=_key(1), session=SESSION, oid=OID)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for spare in range(1, 16):
        twin = letters[letters.index(text[-2]) ^ spare]
        with pytest.raises(Tampered):
            _open(text[:-2] + twin + ".")


def test_case_21_a_wrong_key_names_the_key_that_is_needed_and_those_that_are_here() -> None:
    with pytest.raises(WrongKey) as caught:
        _open(SHORT, KeyRing((_key(2), _key(3))))
    assert f"needs key {_key(1).id}; here is {_key(2).id}, {_key(3).id}" in caught.value.message
    assert caught.value.details == {"needed": _key(1).id, "have": [_key(2).id, _key(3).id]}


@pytest.mark.parametrize("text", ["annoris2.", "annoris2.whatever", "annoris17.A256GCM.x.y.z."])
def test_a_newer_format_asks_for_an_upgrade(text: str) -> None:
    with pytest.raises(NewerFormat) as caught:
        _open(text)
    assert "upgrade" in caught.value.hint


def test_a_newer_algorithm_asks_for_an_upgrade() -> None:
    with pytest.raises(NewerFormat, match="unknown algorithm X256"):
        _open(SHORT.replace("A256GCM", "X256"))


def test_the_algorithm_in_the_header_is_covered_by_the_tag() -> None:
    with pytest.raises(Tampered):
        _open(SHORT.replace(".A256GCM.", ".zA256GCM."))


def test_a_small_envelope_that_expands_without_end_is_refused() -> None:
    bomb = _sealed_by_hand(zlib.compress(bytes(envelope.MAX_PLAINTEXT + 1)), "zA256GCM")
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(Tampered, match="more than 1000 bytes") as caught:
            envelope.open_(bomb, ring=RING, session=SESSION, oid=OID, limit=1000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert "--repair" in caught.value.hint
    with pytest.raises(Tampered, match="more than 67108864 bytes"):
        _open(bomb)


@pytest.mark.parametrize("size", [1000, 1001])
@pytest.mark.parametrize("plaintext", [random.Random(1).randbytes(1001), bytes(1001)])
def test_the_limit_is_exact_on_both_sides(plaintext: bytes, size: int) -> None:
    plaintext = plaintext[:size]
    text = envelope.seal(plaintext, key=_key(1), session=SESSION, oid=OID)
    if size > 1000:
        with pytest.raises(Tampered, match="more than 1000 bytes"):
            envelope.open_(text, ring=RING, session=SESSION, oid=OID, limit=1000)
        with pytest.raises(DocumentRefused, match="1001 bytes") as caught:
            envelope.seal(plaintext, key=_key(1), session=SESSION, oid=OID, limit=1000)
        assert "split" in caught.value.hint
    else:
        text = envelope.seal(plaintext, key=_key(1), session=SESSION, oid=OID, limit=1000)
        opened = envelope.open_(text, ring=RING, session=SESSION, oid=OID, limit=1000)
        assert opened == plaintext


@pytest.mark.parametrize(
    "content", [b"", b"not zlib", zlib.compress(b"abc")[:-1], zlib.compress(b"abc") + b"more"]
)
def test_damaged_compression_under_a_right_tag_is_still_noticed(content: bytes) -> None:
    with pytest.raises(Tampered, match=f"^the envelope of session {SESSION}") as caught:
        _open(_sealed_by_hand(content, "zA256GCM"))
    assert "--repair" in caught.value.hint


@pytest.mark.parametrize("wrong", [zlib.compress(b"something else"), b"not zlib"])
def test_nothing_is_returned_that_does_not_open_to_what_was_sealed(
    wrong: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zlib, "compress", lambda _: wrong)
    with pytest.raises(KeyProblem, match="came back changed") as caught:
        envelope.seal(b"hello " * 20, key=_key(1), session=SESSION, oid=OID)
    assert "memory" in caught.value.hint


# --- golden


@pytest.mark.parametrize("name", ["empty", "small", "russian", "10 KB", "incompressible"])
def test_case_20_envelopes_of_every_version_open_for_ever(name: str) -> None:
    found = [one for one in GOLDEN["envelopes"] if one["name"] == name]
    assert found
    for one in found:
        plaintext = _open(one["envelope"], RING, one["session"], one["oid"])
        blob = b"blob %d\0" % one["size"] + plaintext
        assert hashlib.sha1(blob, usedforsecurity=False).hexdigest() == one["oid"]
        assert envelope.sealed_by(one["envelope"]) == _key(one["key"]).id


@pytest.mark.parametrize("number", [1, 2])
def test_keys_phrases_and_proofs_of_every_version_are_understood_for_ever(number: int) -> None:
    one = next(one for one in GOLDEN["keys"] if one["key"] == number)
    key = _key(number)
    assert (key.id, key.text(), envelope.phrase(key)) == (one["id"], one["text"], one["phrase"])
    assert envelope.load_ring("", one["text"]).current == key
    assert envelope.from_phrase(one["phrase"]) == key
    envelope.check(RING, one["proof"])


def test_exported_keys_of_every_version_are_understood_for_ever() -> None:
    export = GOLDEN["export"]
    assert envelope.import_ring(export["text"], export["passphrase"]) == RING


def test_what_is_derived_from_a_key_is_the_same_for_ever() -> None:
    """Paths on a sealed master and codes in the caches are made so."""
    key = _key(1)
    assert envelope.derived(key, "names").id == "058a6fb8"
    assert envelope.pseudonym("shop", key) == "9d58e5529d95103a37cad96af2f0ee1d"
    assert envelope.pseudonym("\ud800", key) != envelope.pseudonym("\ud801", key)


# --- the key check


def test_case_21_a_wrong_key_is_seen_on_the_stored_proof() -> None:
    stored = envelope.proof(_key(1))
    envelope.check(KeyRing((_key(2), _key(1))), stored)
    with pytest.raises(WrongKey):
        envelope.check(KeyRing((_key(2),)), stored)


def test_a_session_is_no_proof() -> None:
    with pytest.raises(Tampered):
        envelope.check(RING, SHORT)
    with pytest.raises(Tampered, match="key proof"):
        envelope.check(RING, envelope.seal(b"x", key=_key(1), session="key-proof", oid=""))


# --- keys stay secret


def _forms(key: Key) -> list[str]:
    return [key.text()[12:], key.secret.hex(), repr(key.secret), envelope.phrase(key)]


def test_no_repr_shows_a_key() -> None:
    shown = f"{RING} {RING!r} {RING.current} {RING.keys}"
    assert RING.current.id in shown
    for key in RING.keys:
        assert not [form for form in _forms(key) if form in shown]


_KEY = _key(5)
_CHANGED = _KEY.text()[:-3] + "!" + _KEY.text()[-2:]


@pytest.mark.parametrize(
    "attempt",
    [
        lambda path: envelope.load_ring("", _CHANGED),
        lambda path: envelope.load_ring("", _KEY.text() + ",x"),
        lambda path: envelope.load_ring("", "é" + _KEY.text()),
        envelope.load_ring,
        lambda path: envelope.from_phrase(envelope.phrase(_KEY)[:-1]),
        lambda path: envelope.from_phrase("*" + envelope.phrase(_KEY)),
        lambda path: envelope.from_phrase("A" + envelope.phrase(_KEY)[1:]),
        lambda path: envelope.retire(KeyRing((_KEY,)), _KEY.id),
        lambda path: Key(_KEY.secret + b"x"),
        lambda path: envelope.open_(SHORT, ring=KeyRing((_KEY,)), session="", oid=""),
    ],
)
def test_no_error_shows_a_key(attempt: Callable[[str], object], tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(_CHANGED, encoding="ascii")
    path.chmod(0o600)
    with pytest.raises(KeyProblem) as caught:
        attempt(str(path))
    error = caught.value
    shown = "".join(traceback.format_exception(error)) + error.hint + repr(error.details)
    for cause in (error.__cause__, error.__context__):
        shown += repr(cause) + repr(vars(cause) if cause else "")
        shown += repr(getattr(cause, "object", ""))
    pieces = [*_forms(_KEY), _CHANGED[12:40], envelope.phrase(_KEY)[5:30]]
    assert not [piece for piece in pieces if piece in shown]


@pytest.mark.parametrize(
    ("attempt", "message", "hint"),
    [
        (lambda: envelope.retire(RING, _key(1).id), "current", "annoris key rotate"),
        (lambda: _open(SHORT, KeyRing((_key(2),))), "needs key", f"add key {_key(1).id}"),
        (lambda: envelope.sealed_by("x"), "^the envelope is not", "annoris verify --repair"),
        (lambda: envelope.sealed_by("annoris2."), "^the envelope has", "upgrade"),
        (lambda: envelope.from_phrase("*"), "character that no phrase has", "without I, L, O and"),
        (lambda: envelope.from_phrase("0"), "has 1 char", "a group that does not have 4"),
        (lambda: envelope.from_phrase("0" * 55 + "1"), "does not add up", "with the paper"),
        (lambda: envelope.read_ring("# none\n"), "^the text: holds no key", "43 characters"),
        (lambda: envelope.read_ring("\nx"), "^the text, line 2: not a key", "43 characters"),
    ],
)
def test_a_refusal_says_what_to_do(attempt: Callable[[], object], message: str, hint: str) -> None:
    with pytest.raises(KeyProblem, match=message) as caught:
        attempt()
    assert hint in caught.value.hint


def test_a_key_file_that_came_as_text_is_read() -> None:
    text = f"# mine\n{_key(1).text()}\n{_key(2).text()}\n"
    assert envelope.read_ring(text) == RING


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_key_has_32_bytes(size: int) -> None:
    with pytest.raises(KeyProblem, match=f"not {size}"):
        Key(bytes(size))


def test_importing_the_module_does_not_pay_for_cryptography() -> None:
    code = "import sys, annoris.envelope; print('cryptography' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert shown == b"False\n"


# --- the key file


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "config" / "annoris" / "keys")


def _write(path: str, text: str | bytes, mode: int = 0o600) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())
    os.chmod(path, mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_key_file_is_for_its_owner_only_whatever_the_umask(path: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        ring = envelope.new_key_file(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        envelope.edit_key_file(path, lambda ring: envelope.rotate(ring, _key(1)))
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert envelope.load_ring(path) == envelope.rotate(ring, _key(1))
    assert sorted(os.listdir(os.path.dirname(path))) == ["keys", "keys.lock"]


def test_an_existing_key_file_is_never_overwritten(path: str) -> None:
    first = envelope.new_key_file(path)
    content = Path(path).read_bytes()
    assert envelope.new_key_file(path) == first
    assert envelope.new_key_file(path, first.current) == first
    with pytest.raises(KeyProblem, match="nothing was overwritten") as caught:
        envelope.new_key_file(path, _key(1))
    assert f"add key {_key(1).id}" in caught.value.hint
    assert Path(path).read_bytes() == content


def test_a_damaged_key_file_is_not_overwritten_either(path: str) -> None:
    _write(path, "")
    with pytest.raises(KeyProblem, match="holds no key"):
        envelope.new_key_file(path)
    assert Path(path).read_bytes() == b""


def test_a_given_key_is_kept(path: str) -> None:
    assert envelope.new_key_file(path, _key(1)) == KeyRing((_key(1),))
    assert envelope.load_ring(path) == KeyRing((_key(1),))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610, 0o602])
def test_a_key_file_that_others_may_read_is_refused_with_the_command_to_run(
    path: str, mode: int
) -> None:
    path = path.replace("keys", "my keys")
    _write(path, _key(1).text(), mode)
    with pytest.raises(KeyProblem, match=f"mode {mode:04o}") as caught:
        envelope.load_ring(path)
    assert f"chmod 600 '{path}'" in caught.value.hint


def test_a_missing_key_file_says_what_to_do(path: str) -> None:
    with pytest.raises(KeyProblem, match="does not exist") as caught:
        envelope.load_ring(path)
    assert "annoris key new" in caught.value.hint


def test_what_is_no_file_is_refused_at_once(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyProblem, match="not a file"):
        envelope.load_ring(path)
    with pytest.raises(KeyProblem, match="can't be read"):
        envelope.load_ring(os.path.dirname(path))


def test_comments_blank_lines_and_foreign_line_ends_do_not_matter(path: str) -> None:
    text = f"\ufeff# mine\r\n\r\n  {_key(1).text()} \r\n# old\r\n{_key(2).text()}\r\n"
    _write(path, text + _key(1).text())
    assert envelope.load_ring(path) == RING


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        _key(1).text()[:-1].encode(),
        _key(1).text().encode() + b"A",
        _key(1).text()[12:].encode(),
        _key(1).text().upper().encode(),
        _key(1).text().encode() + b" # home",
        b"\xff\xfe",
        b"annoris-key-",
    ],
)
def test_a_line_that_is_no_key_is_named(path: str, line: bytes) -> None:
    _write(path, b"# keys\n" + _key(2).text().encode() + b"\n" + line + b"\n")
    with pytest.raises(KeyProblem, match=r"keys, line 3: not a key"):
        envelope.load_ring(path)


def test_the_environment_goes_before_the_file(path: str) -> None:
    envelope.new_key_file(path)
    value = f" {_key(1).text()}, {_key(2).text()},"
    assert envelope.load_ring(path, value) == RING
    assert envelope.load_ring("/nowhere", value) == RING
    assert envelope.load_ring(path, " ") == envelope.load_ring(path, None)


def test_a_key_in_the_environment_that_is_none_is_named() -> None:
    with pytest.raises(KeyProblem, match="ANNORIS_KEY, key 2: not a key"):
        envelope.load_ring("", f"{_key(1).text()},oops")
    with pytest.raises(KeyProblem, match="ANNORIS_KEY: holds no key"):
        envelope.load_ring("", ",")


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="only Linux tells the names of open files"
)
def test_the_key_and_every_new_folder_are_on_disk_before_the_answer(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(handle: int) -> None:
        steps.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path))
        real_fsync(handle)

    def link(source: str, target: str) -> None:
        steps.append("link")
        real_link(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    envelope.new_key_file(path)
    folder = os.path.join("config", "annoris")
    assert steps == [".", "config", f"{folder}/keys.new", "link", folder]


def test_a_disk_that_refuses_is_told_and_leaves_nothing(path: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file in the folder's place")
    before = os.listdir(tmp_path)
    with pytest.raises(StorageError, match="can't be written") as caught:
        envelope.new_key_file(path)
    assert "free some space" in caught.value.hint
    assert os.listdir(tmp_path) == before


def test_a_full_disk_leaves_the_old_keys_and_no_copy_of_the_new(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = envelope.new_key_file(path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        envelope.edit_key_file(path, lambda ring: envelope.rotate(ring, _key(1)))
    assert envelope.load_ring(path) == ring
    assert sorted(os.listdir(os.path.dirname(path))) == ["keys", "keys.lock"]


def test_what_a_killed_run_left_never_spoils_the_key_file(path: str) -> None:
    """Killed between link and unlink, the temporary name is the key file itself."""
    ring = envelope.new_key_file(path)
    os.link(path, path + ".new")
    changed = envelope.edit_key_file(path, lambda ring: envelope.rotate(ring, _key(1)))
    assert envelope.load_ring(path) == changed == envelope.rotate(ring, _key(1))
    assert not os.path.exists(path + ".new")


def test_a_key_file_may_be_a_name_in_the_working_folder() -> None:
    assert envelope.new_key_file("key") == envelope.load_ring("key")


def test_a_link_to_the_key_file_stays_a_link(path: str, tmp_path: Path) -> None:
    envelope.new_key_file(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    ring = envelope.edit_key_file(str(link), lambda ring: envelope.rotate(ring, _key(1)))
    assert link.is_symlink()
    assert envelope.load_ring(path) == ring


def _start(code: str, path: str) -> subprocess.Popen[str]:
    """A process that has said ``ready`` and waits for a line."""
    head = "import sys\nfrom annoris import envelope\npath = sys.argv[1]\n"
    wait = "print('ready', flush=True)\nsys.stdin.readline()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", head + wait + textwrap.dedent(code), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _together(code: str, path: str, count: int) -> list[str]:
    running = [_start(code, path) for _ in range(count)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate()[0].strip() for process in running]


def test_processes_that_make_the_key_file_at_once_end_with_the_same_key(path: str) -> None:
    said = _together("print(envelope.new_key_file(path).current.id)", path, 6)
    assert set(said) == {envelope.load_ring(path).current.id}
    assert len(envelope.load_ring(path).keys) == 1


def test_case_21_processes_that_rotate_at_once_lose_no_key(path: str) -> None:
    envelope.new_key_file(path, _key(1))
    code = """
        for _ in range(5):
            new = envelope.new_key()
            envelope.edit_key_file(path, lambda ring: envelope.rotate(ring, new))
            print(new.id)
    """
    said = " ".join(_together(code, path, 4)).split()
    assert {key.id for key in envelope.load_ring(path).keys} == {*said, _key(1).id}
    assert len(said) == 20


def test_case_21_a_rotation_killed_at_any_moment_leaves_all_earlier_keys(path: str) -> None:
    envelope.new_key_file(path, _key(1))
    code = """
        while True:
            new = envelope.new_key()
            envelope.edit_key_file(path, lambda ring: envelope.rotate(ring, new))
            print(new.id, flush=True)
    """
    known = {_key(1).id}
    chance = random.Random(21)
    for _ in range(12):
        with _start(code, path) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            known.add(process.stdout.readline().strip())
            time.sleep(chance.random() / 20)
            process.send_signal(signal.SIGKILL)
            known |= {line for line in process.stdout.read().split("\n") if len(line) == 8}
        assert known <= {key.id for key in envelope.load_ring(path).keys}


def test_another_run_that_does_not_finish_is_not_waited_for_for_ever(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = envelope.new_key_file(path)
    monkeypatch.setattr(envelope, "_LOCK_SECONDS", 0.05)

    def nested(ring: KeyRing) -> KeyRing:
        return envelope.edit_key_file(path, lambda ring: ring)

    with pytest.raises(Locked):
        envelope.edit_key_file(path, nested)
    assert envelope.load_ring(path) == ring


# --- rotation


def test_rotation_puts_the_new_key_first_and_can_be_repeated() -> None:
    once = envelope.rotate(KeyRing((_key(1),)), _key(2))
    assert once.keys == (_key(2), _key(1))
    assert envelope.rotate(once, _key(2)) == once
    assert envelope.rotate(once, _key(1)).keys == (_key(1), _key(2))


def test_only_a_key_that_is_there_and_not_current_is_retired() -> None:
    assert envelope.retire(RING, _key(2).id).keys == (_key(1),)
    with pytest.raises(KeyProblem, match="current"):
        envelope.retire(RING, _key(1).id)
    with pytest.raises(KeyProblem, match="no key 00000000"):
        envelope.retire(RING, "00000000")


def test_case_21_a_rotation_stopped_anywhere_leaves_all_readable_and_goes_on() -> None:
    old = KeyRing((_key(1),))
    rows = [
        envelope.seal(b"text %d" % n, key=old.current, session=f"s{n}", oid=OID) for n in range(50)
    ]
    ring = envelope.rotate(old, _key(2))
    for stopped in range(50):
        for n, row in enumerate(rows):
            plaintext = _open(row, ring, f"s{n}", OID)
            assert plaintext == b"text %d" % n
            if envelope.sealed_by(row) != ring.current.id:
                session = f"s{n}"
                rows[n] = envelope.seal(plaintext, key=ring.current, session=session, oid=OID)
                break
        moved = [envelope.sealed_by(row) == _key(2).id for row in rows]
        assert moved == [True] * (stopped + 1) + [False] * (49 - stopped)
    alone = envelope.retire(ring, _key(1).id)
    assert [_open(row, alone, f"s{n}", OID) for n, row in enumerate(rows)] == [
        b"text %d" % n for n in range(50)
    ]


# --- recovery phrase

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_a_phrase_gives_the_key_back(secret: bytes) -> None:
    text = envelope.phrase(Key(secret))
    groups = text.split("-")
    assert [len(group) for group in groups] == [4] * 14
    assert set(text) <= set(_ALPHABET + "-")
    assert envelope.from_phrase(text) == Key(secret)


def test_a_phrase_is_read_as_people_write_it() -> None:
    text = envelope.phrase(Key(bytes(range(32))))
    assert "0" in text
    assert "1" in text
    for written in (
        text.lower(),
        text.replace("-", ""),
        text.replace("-", " \n"),
        text.replace("-", " – "),
        text.replace("0", "O").replace("1", "l"),
        text.replace("0", "o").replace("1", "I"),
    ):
        assert envelope.from_phrase(written) == Key(bytes(range(32)))


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, _key(1).secret])
def test_every_wrong_character_in_a_phrase_is_noticed(secret: bytes) -> None:
    text = envelope.phrase(Key(secret)).replace("-", "")
    for position, right in enumerate(text):
        for wrong in _ALPHABET.replace(right, ""):
            with pytest.raises(KeyProblem, match="does not add up"):
                envelope.from_phrase(text[:position] + wrong + text[position + 1 :])


def test_every_two_swapped_characters_up_to_three_apart_are_noticed() -> None:
    text = envelope.phrase(_key(1)).replace("-", "")
    for first in range(55):
        for second in range(first + 1, min(first + 4, 56)):
            swapped = list(text)
            swapped[first], swapped[second] = text[second], text[first]
            if "".join(swapped) != text:
                with pytest.raises(KeyProblem, match="does not add up"):
                    envelope.from_phrase("".join(swapped))


def test_a_phrase_of_the_wrong_length_tells_the_length() -> None:
    text = envelope.phrase(_key(1))
    for wrong, size in (("", 0), (text[:-1], 55), (text[5:], 52), (text + "0", 57)):
        with pytest.raises(KeyProblem, match=f"has {size} characters, not 56"):
            envelope.from_phrase(wrong)


@pytest.mark.parametrize("character", ["U", "*", "ж", "é", "."])
def test_a_character_that_no_phrase_has_is_placed(character: str) -> None:
    text = envelope.phrase(_key(1))
    with pytest.raises(KeyProblem, match="group 3 "):
        envelope.from_phrase(text[:10] + character + text[11:])


# --- export


@pytest.fixture(scope="module")
def exported() -> str:
    return envelope.export_ring(RING, "верный пароль")


def test_an_export_brings_every_key_however_it_was_wrapped_by_the_mail(exported: str) -> None:
    assert exported.startswith("annoris-export1.")
    wrapped = "\r\n  ".join(textwrap.wrap(exported, 40)) + "\n"
    composed, decomposed = "верный", "верныи\u0306"
    assert composed != decomposed
    assert envelope.import_ring(wrapped, "верныи\u0306 пароль") == RING


def test_an_export_does_not_open_with_another_passphrase(exported: str) -> None:
    with pytest.raises(WrongKey, match="passphrase"):
        envelope.import_ring(exported, "верный пароль ")


def test_an_export_needs_a_passphrase() -> None:
    with pytest.raises(KeyProblem, match="empty"):
        envelope.export_ring(RING, "")


def test_a_cut_export_is_called_truncated(exported: str) -> None:
    for length in range(len(exported)):
        with pytest.raises(Truncated, match=r"^the exported key is cut short") as caught:
            envelope.import_ring(exported[:length], "верный пароль")
        assert "copy it again" in caught.value.hint


@pytest.mark.parametrize("field", [1, 2, 3])
def test_a_changed_export_is_noticed(exported: str, field: int) -> None:
    fields = exported.split(".")
    fields[field] = ("A" if fields[field][0] != "A" else "B") + fields[field][1:]
    with pytest.raises(WrongKey):
        envelope.import_ring(".".join(fields), "верный пароль")
    fields[field] = fields[field][1:] + "="
    with pytest.raises(Tampered):
        envelope.import_ring(".".join(fields), "верный пароль")


def test_a_newer_export_and_an_envelope_are_no_export(exported: str) -> None:
    with pytest.raises(NewerFormat):
        envelope.import_ring(exported.replace("export1", "export2"), "верный пароль")
    with pytest.raises(Tampered):
        envelope.import_ring(SHORT, "верный пароль")
    with pytest.raises(Tampered):
        _open(exported)
