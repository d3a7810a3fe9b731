"""Encryption: envelopes, keys and where keys are kept. The only cryptography in Annoris.

An envelope is one line of ASCII that says of itself how to open it:

    annoris1.<algorithm>.<key id>.<nonce>.<ciphertext and tag>.

``A256GCM`` is AES-256-GCM, ``zA256GCM`` the same over zlib, used wherever that is shorter
(on session documents zlib comes within 2 % of zstd, and it is in the standard library).
Binary parts are base64url without padding, in their one canonical spelling. The final full
stop tells a text that was cut from one that was changed. The tag also covers the header, the
session and the revision, so that what one row holds can't be served as another's, nor an
older revision as the newest. Nonces are random: one key is good for 2^32 envelopes. Sizes
are not hidden.

Keys live in a file of mode 0600 or in ``ANNORIS_KEY``; the first one seals, each one opens.
No key ever appears in a ``repr`` or in an error.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING

from annoris.dataclass import dataclass
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
from annoris.model import Deadline

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAX_PLAINTEXT = 64 * 1024 * 1024

_ENVELOPE = "annoris"
_EXPORT = "annoris-export"
_FORMAT = "1"  # of both; a later one gets the next number, and this one stays readable
_SEALED = "A256GCM"
_ZIPPED_AND_SEALED = "zA256GCM"

_SECRET_SIZE = 32
_NONCE_SIZE = 12
_TAG_SIZE = 16
_SALT_SIZE = 16

_KEY_PREFIX = "annoris-key-"
_KEY_FORM = f"{_KEY_PREFIX} and 43 characters"
_KEY_FILE_HEADER = """\
# Encryption keys of Annoris. With one of them your sessions can be read, without them by nobody.
# The first one seals; each one opens what it has sealed. Keep a copy: annoris key export
"""
_LOCK_SECONDS = 5.0

_PROOF = b"This key opens what Annoris has stored here."
_PROOF_SESSION = "key-proof"  # no session's id: those are UUIDs

# Crockford's alphabet: no I, L, O, U.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ALIKE = str.maketrans("OIL", "011", "-‐‑‒–—")
_PHRASE_LENGTH = 56  # (32 bytes + 3 of checksum) / 5 bits: no bit is spare
_GROUP = 4

_REPAIR = "`annoris verify --repair` puts master's version back"
_UPGRADE = "upgrade Annoris: it was written by a newer version"


@dataclass(frozen=True, slots=True)
class Key:
    """32 secret bytes. Raises KeyProblem for any other size."""

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != _SECRET_SIZE:
            raise KeyProblem(f"a key has {_SECRET_SIZE} bytes, not {len(self.secret)}")

    @property
    def id(self) -> str:
        """Eight hex digits that name the key and say nothing about it."""
        return hashlib.sha256(b"annoris-key-id\0" + self.secret).hexdigest()[:8]

    def text(self) -> str:
        """The secret itself, as the key file and ``ANNORIS_KEY`` hold it."""
        return _KEY_PREFIX + _b64(self.secret)

    def __repr__(self) -> str:
        return f"Key({self.id})"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of this machine: the first is current, the others are still needed to read."""

    keys: tuple[Key, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise KeyProblem("a key ring needs at least one key")

    @property
    def current(self) -> Key:
        return self.keys[0]

    def find(self, key_id: str) -> Key | None:
        return next((key for key in self.keys if key.id == key_id), None)


# --- envelopes


def seal(plaintext: bytes, *, key: Key, session: str, oid: str, limit: int = MAX_PLAINTEXT) -> str:
    """An envelope that only opens as revision ``oid`` of ``session``.

    It has been opened again, and compared, before it is returned. Raises DocumentRefused when
    the plaintext has more than ``limit`` bytes.
    """
    if len(plaintext) > limit:
        raise DocumentRefused(
            f"session {session} has {len(plaintext)} bytes; at most {limit} can be encrypted",
            hint="split the document",
        )
    zipped = zlib.compress(plaintext)
    shorter = len(zipped) < len(plaintext)
    algorithm, content = (_ZIPPED_AND_SEALED, zipped) if shorter else (_SEALED, plaintext)
    nonce = os.urandom(_NONCE_SIZE)
    bound = _bound(_ENVELOPE + _FORMAT, algorithm, key.id, session, oid)
    sealed = _cipher(key.secret).encrypt(nonce, content, bound)
    fields = (_ENVELOPE + _FORMAT, algorithm, key.id, _b64(nonce), _b64(sealed), "")
    envelope = ".".join(fields)
    if not _holds(envelope, plaintext, key, session, oid):
        raise KeyProblem(
            f"session {session} came back changed from its own encryption; nothing was stored",
            hint="check this machine's memory, then reinstall the package cryptography",
        )
    return envelope


def open_(
    envelope: str, *, ring: KeyRing, session: str, oid: str, limit: int = MAX_PLAINTEXT
) -> bytes:
    """The plaintext, if the envelope is whole and was sealed for this session and revision.

    Raises WrongKey when the ring has no such key; Tampered when a bit differs, or the envelope
    belongs to another session or revision, or holds more than ``limit`` bytes; Truncated when
    its end is missing; NewerFormat when a later Annoris wrote it. Nothing else.
    """
    where = f"the envelope of session {session}, revision {oid[:12]}"
    algorithm, key_id, nonce_text, sealed_text = _header(envelope, where)
    nonce, sealed = _unb64(nonce_text), _unb64(sealed_text)
    if nonce is None or sealed is None or len(nonce) != _NONCE_SIZE or len(sealed) < _TAG_SIZE:
        raise _changed(where)
    if len(sealed) - _TAG_SIZE > limit:
        raise Tampered(f"{where} holds more than {limit} bytes", hint=_REPAIR)
    key = ring.find(key_id)
    if key is None:
        raise _wrong_key(where, key_id, ring)
    bound = _bound(_ENVELOPE + _FORMAT, algorithm, key_id, session, oid)
    content = _decrypted(key.secret, nonce, sealed, bound)
    if content is None:
        raise _changed(where)
    return content if algorithm == _SEALED else _unzipped(content, limit, where)


def sealed_by(envelope: str) -> str:
    """The id of the key that an envelope needs. Raises as ``open_`` does, opens nothing."""
    return _header(envelope, "the envelope")[1]


def proof(key: Key) -> str:
    """An envelope to keep beside encrypted data, so that ``check`` can try a key on it."""
    return seal(_PROOF, key=key, session=_PROOF_SESSION, oid="")


def check(ring: KeyRing, stored: str) -> None:
    """Try the ring on a stored proof, before anything is written there.

    Raises WrongKey and the others of ``open_`` when the ring does not fit.
    """
    if open_(stored, ring=ring, session=_PROOF_SESSION, oid="") != _PROOF:
        raise _changed("the key proof")


def derived(key: Key, purpose: str) -> Key:
    """A key for another purpose, from which this one can't be told."""
    return Key(hashlib.sha256(b"annoris-key-for\0" + purpose.encode() + key.secret).digest())


def pseudonym(text: str, key: Key) -> str:
    """32 hex digits that stand for a name; who has not the key can't even try names on them."""
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, key=key.secret, person=b"annoris-name", digest_size=16).hexdigest()


def _holds(envelope: str, plaintext: bytes, key: Key, session: str, oid: str) -> bool:
    try:
        opened = open_(
            envelope, ring=KeyRing((key,)), session=session, oid=oid, limit=len(plaintext)
        )
    except KeyProblem:
        return False
    return opened == plaintext


def _header(envelope: str, where: str) -> list[str]:
    """Algorithm, key id, nonce and ciphertext as text; the first two are known to be good."""
    fields = _fields(envelope, _ENVELOPE, 4, where)
    algorithm, key_id = fields[:2]
    if not (algorithm.isascii() and algorithm.isalnum()):
        raise _changed(where)
    if algorithm not in (_SEALED, _ZIPPED_AND_SEALED):
        raise NewerFormat(f"{where} uses the unknown algorithm {algorithm[:20]}", hint=_UPGRADE)
    if len(key_id) != 8 or key_id.strip("0123456789abcdef"):
        raise _changed(where)
    return fields


def _fields(text: str, name: str, count: int, where: str, hint: str = _REPAIR) -> list[str]:
    """What stands between ``<name>1.`` and the final full stop: ``count`` fields."""
    magic, *fields = text.split(".", count + 2)
    digits = magic.removeprefix(name)
    if magic == name + _FORMAT and len(fields) > count:
        if len(fields) == count + 1 and not fields[-1]:
            return fields[:-1]
        raise Tampered(f"{where} goes on after its end", hint=hint)
    if magic == name + _FORMAT or (name + _FORMAT).startswith(text):
        raise Truncated(f"{where} is cut short after {len(text)} characters", hint=hint)
    if magic.startswith(name) and digits.isascii() and digits.isdigit():
        raise NewerFormat(f"{where} has the unknown format {digits[:20]}", hint=_UPGRADE)
    raise Tampered(f"{where} is not in Annoris's format", hint=hint)


def _bound(*fields: str) -> bytes:
    """Fields as associated data; their lengths stand in front, so that none can lend to another."""
    packed = [b"annoris associated data"]
    for text in fields:
        data = text.encode()
        packed += [len(data).to_bytes(4, "big"), data]
    return b"".join(packed)


def _decrypted(secret: bytes, nonce: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415

    try:
        return _cipher(secret).decrypt(nonce, sealed, bound)
    except InvalidTag:
        return None


@lru_cache(4)
def _cipher(secret: bytes) -> AESGCM:
    """One for each key: making it takes longer than to open a document."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    return AESGCM(secret)


def _unzipped(content: bytes, limit: int, where: str) -> bytes:
    unzip = zlib.decompressobj()
    try:
        plaintext = unzip.decompress(content, limit + 1)
    except zlib.error:
        raise _changed(where) from None
    if len(plaintext) > limit:
        raise Tampered(f"{where} holds more than {limit} bytes", hint=_REPAIR)
    if not unzip.eof or unzip.unused_data:
        raise _changed(where)
    return plaintext


def _changed(where: str) -> Tampered:
    return Tampered(f"{where} was changed, or belongs to something else", hint=_REPAIR)


def _wrong_key(where: str, key_id: str, ring: KeyRing) -> WrongKey:
    have = [key.id for key in ring.keys]
    return WrongKey(
        f"{where} needs key {key_id}; here is {', '.join(have)}",
        hint=f"add key {key_id} to the key file, or to ANNORIS_KEY after a comma",
        details={"needed": key_id, "have": have},
    )


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes | None:
    """The bytes, or None unless this is exactly how ``_b64`` writes them."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return data if _b64(data) == text else None


# --- keys and where they are kept


def new_key() -> Key:
    return Key(os.urandom(_SECRET_SIZE))


def rotate(ring: KeyRing, new: Key) -> KeyRing:
    """The ring with ``new`` as its current key. The others stay until ``retire``.

    Store the ring first, then seal again what ``sealed_by`` says is under another key: each
    envelope names its own, so that this can stop anywhere and go on later.
    """
    return KeyRing((new, *(key for key in ring.keys if key != new)))


def retire(ring: KeyRing, key_id: str) -> KeyRing:
    """The ring without a key that nothing needs any more. Raises KeyProblem for the current one."""
    if ring.current.id == key_id:
        raise KeyProblem(f"key {key_id} is the current one", hint="run `annoris key rotate` first")
    if ring.find(key_id) is None:
        raise KeyProblem(f"there is no key {key_id} here")
    return KeyRing(tuple(key for key in ring.keys if key.id != key_id))


def load_ring(path: str, env_value: str | None = None) -> KeyRing:
    """The keys in ``env_value`` (comma-separated, the first is current), else in the file.

    Raises KeyProblem, with the line and what to do, when there is no usable key or when others
    than the owner may read the file.
    """
    if env_value and env_value.strip():
        return _ring("ANNORIS_KEY", "key", env_value.split(","))
    return _ring(path, "line", _read_private(path).splitlines())


def read_ring(text: str) -> KeyRing:
    """The keys in a text that is written as a key file is. Raises KeyProblem as ``load_ring``."""
    return _ring("the text", "line", text.splitlines())


def new_key_file(path: str, key: Key | None = None) -> KeyRing:
    """Make the key file with one key, a new one unless given, and return what the file holds.

    A file that is there is never overwritten: its keys are returned, or KeyProblem is raised
    if ``key`` is not among them. Raises StorageError when the disk refuses.
    """
    if not os.path.lexists(path):
        ring = KeyRing((key or new_key(),))
        with _locked(path), suppress(FileExistsError):
            _store(path, ring, os.link)  # which fails, unlike a rename, when the file is there
    ring = load_ring(path)
    if key is not None and key not in ring.keys:
        raise KeyProblem(
            f"{path} holds other keys than {key.id}; nothing was overwritten",
            hint=f"add key {key.id} as a line of its own, or move the file away",
        )
    return ring


def edit_key_file(path: str, change: Callable[[KeyRing], KeyRing]) -> KeyRing:
    """Replace the keys in the file by ``change`` of them; one process at a time.

    The new ring is on disk when this returns; whenever it is stopped, the old or the new one is
    there whole. Raises Locked when another process does not finish, StorageError when the disk
    refuses, and what ``load_ring`` raises.
    """
    path = os.path.realpath(path)  # a link stays a link
    with _locked(path):
        ring = change(load_ring(path))
        _store(path, ring, os.replace)
    return ring


def _ring(source: str, unit: str, texts: list[str]) -> KeyRing:
    keys: list[Key] = []
    for number, text in enumerate(map(str.strip, texts), 1):
        if not text or text.startswith("#"):
            continue
        secret = _unb64(text.removeprefix(_KEY_PREFIX))
        if secret is None or len(secret) != _SECRET_SIZE or not text.startswith(_KEY_PREFIX):
            raise KeyProblem(f"{source}, {unit} {number}: not a key", hint=f"a key is {_KEY_FORM}")
        if Key(secret) not in keys:
            keys.append(Key(secret))
    if not keys:
        raise KeyProblem(f"{source}: holds no key", hint=f"a key is {_KEY_FORM}")
    return KeyRing(tuple(keys))


def _read_private(path: str) -> str:
    try:
        # Without O_NONBLOCK a pipe in the file's place would be waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            mode = os.fstat(handle).st_mode
            text = file.read().decode("utf-8-sig", "replace") if stat.S_ISREG(mode) else None
    except FileNotFoundError:
        raise KeyProblem(
            f"there is no encryption key: {path} does not exist",
            hint="run `annoris key new` for a first one, or set ANNORIS_KEY to the one you have",
        ) from None
    except OSError as error:
        raise KeyProblem(f"{path}: the key can't be read: {error.strerror}") from error
    if text is None:
        raise KeyProblem(f"{path}: the key can't be read: not a file")
    if mode & 0o077:
        import shlex  # noqa: PLC0415

        raise KeyProblem(
            f"{path}: others than its owner may read the key (mode {stat.S_IMODE(mode):04o})",
            hint=f"run `chmod 600 {shlex.quote(path)}`",
        )
    return text


def _store(path: str, ring: KeyRing, place: Callable[[str, str], None]) -> None:
    """Write the keys beside ``path``, through to the disk, and ``place`` that file there."""
    temporary = f"{path}.new"
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # of a run that was killed; it may be the key file's twin
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "w", encoding="ascii") as file:
            file.write(_KEY_FILE_HEADER)
            file.writelines(f"{key.text()}\n" for key in ring.keys)
            file.flush()
            os.fsync(handle)
        place(temporary, path)
        _sync_folder(os.path.dirname(path))
    except FileExistsError:
        raise
    except OSError as error:
        raise _disk_refused(path, error) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _make_folder(folder: str) -> None:
    """Like ``os.makedirs``, and as durable as what will be put in there."""
    if folder and not os.path.isdir(folder):
        _make_folder(os.path.dirname(folder))
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _sync_folder(os.path.dirname(folder))


def _sync_folder(folder: str) -> None:
    handle = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    try:
        _make_folder(os.path.dirname(path))
        handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _disk_refused(path, error) from error
    deadline = Deadline(_LOCK_SECONDS)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.over:
                    raise Locked(f"another run is changing {path}", hint="try again") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _disk_refused(path: str, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: the key can't be written: {error.strerror}",
        hint="free some space, or choose a folder that can be written",
    )


# --- keys on paper and on the way to another machine


def phrase(key: Key) -> str:
    """The key for paper: 14 groups of 4 characters, the last five of which are a checksum.

    Whatever goes wrong within four neighbouring characters is noticed on reading, a wrong
    character and two swapped ones included; any other mistake but one in 16 million.
    """
    number = int.from_bytes(key.secret + _crc24(key.secret).to_bytes(3, "big"), "big")
    characters = [_ALPHABET[number >> 5 * place & 31] for place in range(_PHRASE_LENGTH)][::-1]
    groups = range(0, _PHRASE_LENGTH, _GROUP)
    return "-".join("".join(characters[start : start + _GROUP]) for start in groups)


def from_phrase(text: str) -> Key:
    """The key from ``phrase``, as people write it: any case, any grouping, O for 0, I or L for 1.

    Raises KeyProblem, which tells where the mistake is as far as that can be known.
    """
    characters = "".join(text.split()).upper().translate(_ALIKE)
    number = 0
    for position, character in enumerate(characters):
        value = _ALPHABET.find(character)
        if value < 0:
            raise KeyProblem(
                f"group {position // _GROUP + 1} of the recovery phrase has a character that "
                "no phrase has",
                hint="a phrase is made of digits and letters without I, L, O and U",
            )
        number = number << 5 | value
    if len(characters) != _PHRASE_LENGTH:
        raise KeyProblem(
            f"the recovery phrase has {len(characters)} characters, not {_PHRASE_LENGTH}",
            hint=f"look for a group that does not have {_GROUP}",
        )
    data = number.to_bytes(_SECRET_SIZE + 3, "big")
    if _crc24(data[:_SECRET_SIZE]) != int.from_bytes(data[_SECRET_SIZE:], "big"):
        raise KeyProblem(
            "the recovery phrase does not add up",
            hint="compare it with the paper: a character is wrong, or two are swapped",
        )
    return Key(data[:_SECRET_SIZE])


def export_ring(ring: KeyRing, passphrase: str) -> str:
    """All keys of the ring as one line, ``annoris-export1…``, which the passphrase opens.

    All and not only the current one: in the middle of a rotation the older ones are needed.
    Takes half a second (scrypt, 64 MiB), as does every guess at the passphrase.
    """
    if not passphrase:
        raise KeyProblem("the passphrase is empty")
    salt, nonce = os.urandom(_SALT_SIZE), os.urandom(_NONCE_SIZE)
    secrets = b"".join(key.secret for key in ring.keys)
    bound = _bound(_EXPORT + _FORMAT, _b64(salt))
    sealed = _cipher(_stretched(passphrase, salt)).encrypt(nonce, secrets, bound)
    return ".".join((_EXPORT + _FORMAT, _b64(salt), _b64(nonce), _b64(sealed), ""))


def import_ring(text: str, passphrase: str) -> KeyRing:
    """The keys from ``export_ring``; line breaks within the text do not matter.

    Raises WrongKey for another passphrase, and Tampered, Truncated or NewerFormat as ``open_``.
    """
    where = "the exported key"
    again = "copy it again, whole"
    fields = _fields("".join(text.split()), _EXPORT, 3, where, again)
    salt, nonce, sealed = (_unb64(field) or b"" for field in fields)
    if len(salt) != _SALT_SIZE or len(nonce) != _NONCE_SIZE or len(sealed) < _TAG_SIZE:
        raise Tampered(f"{where} was changed", hint=again)
    bound = _bound(_EXPORT + _FORMAT, _b64(salt))
    secrets = _decrypted(_stretched(passphrase, salt), nonce, sealed, bound)
    if secrets is None:
        raise WrongKey(
            f"{where} does not open with this passphrase",
            hint=f"type it again; if it is right, the text was changed: {again}",
        )
    starts = range(0, len(secrets), _SECRET_SIZE)
    return KeyRing(tuple(Key(secrets[start : start + _SECRET_SIZE]) for start in starts))


def _stretched(passphrase: str, salt: bytes) -> bytes:
    import unicodedata  # noqa: PLC0415

    # «й» may come as one character or as two, depending on the keyboard.
    password = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogateescape")
    return hashlib.scrypt(password, salt=salt, n=2**16, r=8, p=1, maxmem=2**27, dklen=32)


def _crc24(data: bytes) -> int:
    """The checksum of OpenPGP (RFC 9580, section 6.1): finds every error within 24 bits."""
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc
