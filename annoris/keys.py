"""The keys of this machine: which one seals, whether the hot cache accepts it, how it is changed.

The cryptography and the key file are in ``envelope``; this is what needs the hot cache too. No
key but the ones that ``create`` and ``export`` answer leaves this module, only ids do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Literal

from annoris import envelope
from annoris.dataclass import dataclass
from annoris.envelope import KeyRing
from annoris.errors import KeyProblem, TierDown, Unavailable, UsageError, WrongKey
from annoris.model import Cached, Deadline, counted
from annoris.settings import Settings

if TYPE_CHECKING:
    from annoris.hot import Hot

_BATCH = 50  # contents that are sealed again in one transaction


@dataclass(frozen=True, slots=True)
class KeyState:
    """Ids of the keys here, where they come from, and what the hot cache says to them.

    ``hot``: it is ``none`` (not configured), ``empty`` (has seen no key yet), or it has
    ``accepted`` the current key, or is ``behind`` and still goes by an older one.
    """

    current: str
    older: tuple[str, ...]
    source: str
    hot: Literal["none", "empty", "accepted", "behind"] = "none"


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did; ``made`` is not set when it finished one that had been stopped."""

    current: str
    older: tuple[str, ...]
    made: bool
    resealed: int = 0
    dropped: int = 0  # contents that did not open: a load or a sync brings them back


def check(settings: Settings) -> KeyState:
    """Look at the keys and try them on the hot cache.

    Raises KeyProblem (a key is missing, unreadable or not the one in use there) and Unavailable
    when the hot cache does not answer.
    """
    ring = envelope.load_ring(settings.at("key"), settings.key)
    if not settings.hot.url:
        return _state(settings, ring)
    with _hot(settings, settings.hot.seconds) as hot:
        proof = hot.state().proof
    if not proof:
        return _state(settings, ring, "empty")
    must_fit(settings, ring, proof)
    known = envelope.sealed_by(proof) == ring.current.id
    return _state(settings, ring, "accepted" if known else "behind")


def create(settings: Settings) -> tuple[str, KeyState]:
    """Make the first key of this machine; answers its recovery phrase, and what is here now.

    Raises UsageError when there is one.
    """
    path = _own_file(settings)
    if os.path.lexists(path):
        raise UsageError(
            f"{path} holds a key already; nothing was changed",
            hint="to see its phrase: annoris key export; for another one: annoris key rotate",
        )
    ring = envelope.new_key_file(path, envelope.new_key())
    return envelope.phrase(ring.current), _state(settings, ring)


def export(settings: Settings, passphrase: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The keys for another machine, and the ids of those that are in the text.

    Under a passphrase all of them; without one the current key alone, as its recovery phrase.
    """
    ring = envelope.load_ring(settings.at("key"), settings.key)
    if passphrase is None:
        return envelope.phrase(ring.current), (ring.current.id,)
    return envelope.export_ring(ring, passphrase), tuple(key.id for key in ring.keys)


def bring(settings: Settings, text: str, passphrase: str | None = None) -> KeyState:
    """Put keys from elsewhere before those of the key file, so that the first one seals.

    ``text`` is a recovery phrase, the lines of a key file, or an export with its passphrase.
    Raises KeyProblem for anything else.
    """
    path = _own_file(settings)
    new = _read(text.strip(), passphrase)
    if not os.path.lexists(path):
        envelope.new_key_file(path, new.current)

    def merged(have: KeyRing) -> KeyRing:
        return KeyRing(new.keys + tuple(key for key in have.keys if key not in new.keys))

    return _state(settings, envelope.edit_key_file(path, merged))


def rotate(
    settings: Settings, *, behind: bool = False, reseal: Callable[[], int] = lambda: 0
) -> Rotation:
    """Make a new key the current one, here and in the hot cache, and seal again what is there.

    The key is on disk before anything is sealed with it, and older ones stay in the file: at
    any moment each content opens with a key of the ring. A run after one that was stopped makes
    no further key but finishes that one. ``reseal`` brings a sealed master to the current key
    and answers how many files that were; ``behind``: it goes by an older one. Raises WrongKey
    when the hot cache goes by a key that is not here (another machine may have rotated),
    Unavailable when it does not answer.
    """
    path = _own_file(settings)
    if not settings.hot.url:
        ring = envelope.load_ring(path) if behind else _add_new(path)
        return _rotation(ring, not behind, reseal())
    with _hot(settings, settings.hot.sync_seconds) as hot:
        hot.prepare()
        ring, proof = envelope.load_ring(path), hot.state().proof
        if proof:
            must_fit(settings, ring, proof)
        unfinished = proof and envelope.sealed_by(proof) != ring.current.id
        made = not (behind or unfinished) and next(_late(hot, ring), None) is None
        if made:
            ring = _add_new(path)
        on_master = reseal() if made or behind else 0
        _take_over(settings, hot, ring, proof)
        resealed, dropped = _reseal(hot, ring)
        return _rotation(ring, made, on_master + resealed, dropped)


def retire(settings: Settings, key_id: str) -> KeyState:
    """Take an older key out of the key file.

    Raises KeyProblem for the current key, for one that is not here, for one that the hot cache
    still needs, and for each one while master is sealed: its history goes by all that there
    were. Unavailable when the hot cache does not answer.
    """
    path = _own_file(settings)
    if settings.encryption.scope == "everything":
        raise KeyProblem(
            f"key {key_id} may be needed to read master's history; nothing was changed",
            hint="keep it: a key that is not the current one seals nothing",
        )
    envelope.retire(envelope.load_ring(path), key_id)
    if settings.hot.url:
        with _hot(settings, settings.hot.seconds) as hot:
            _must_be_idle(hot, key_id)
    return _state(
        settings, envelope.edit_key_file(path, lambda ring: envelope.retire(ring, key_id))
    )


def _must_be_idle(hot: Hot, key_id: str) -> None:
    state = hot.state()
    needed = hot.sealed_by(key_id) if state.version else 0
    if needed or (state.proof and envelope.sealed_by(state.proof) == key_id):
        what = counted(needed, "content") if needed else "the proof"
        raise KeyProblem(
            f"key {key_id} is still needed: {what} in the hot cache; nothing was changed",
            hint="annoris key rotate seals it under the current key",
        )


def _add_new(path: str) -> KeyRing:
    return envelope.edit_key_file(path, lambda ring: envelope.rotate(ring, envelope.new_key()))


def _take_over(settings: Settings, hot: Hot, ring: KeyRing, held: str) -> None:
    """Make the hot cache go by the current key, unless a machine with other keys was faster."""
    while not held or envelope.sealed_by(held) != ring.current.id:
        if held:
            must_fit(settings, ring, held)
        held = hot.prove(envelope.proof(ring.current), replacing=held)


def _late(hot: Hot, ring: KeyRing) -> Iterator[Cached]:
    """Rows that are still under an older key of the ring."""
    older = {key.id for key in ring.keys[1:]}
    if older:
        filled = [id for id, row in hot.entries().items() if row.has_content]
        yield from (row for row in hot.contents(filled) if _key_of(row) in older)


def _key_of(row: Cached) -> str | None:
    try:
        return envelope.sealed_by(row.content)
    except KeyProblem:  # evicted meanwhile, or damaged: nothing to open
        return None


def _reseal(hot: Hot, ring: KeyRing) -> tuple[int, int]:
    """Seal under the current key what is under older ones; answers how many, and how many not."""
    resealed = dropped = 0
    late = _late(hot, ring)
    while rows := list(islice(late, _BATCH)):
        swaps = [(row.session.id, row.content, _resealed(row, ring)) for row in rows]
        bad = [swap for swap in swaps if not swap[2]]
        dropped += hot.reseal(bad)
        resealed += hot.reseal(swap for swap in swaps if swap[2])
    return resealed, dropped


def _resealed(row: Cached, ring: KeyRing) -> str:
    """The content under the current key; empty when it is damaged."""
    id, oid = row.session.id, row.session.oid
    try:
        data = envelope.open_(row.content, ring=ring, session=id, oid=oid)
    except KeyProblem:
        return ""
    return envelope.seal(data, key=ring.current, session=id, oid=oid)


def _read(text: str, passphrase: str | None) -> KeyRing:
    if text.startswith("annoris-export"):
        if passphrase is None:
            raise UsageError("this export is under a passphrase", hint="add --passphrase-file FILE")
        return envelope.import_ring(text, passphrase)
    if text.startswith(("#", "annoris-key-")):
        return envelope.read_ring(text)
    return KeyRing((envelope.from_phrase(text),))


def _own_file(settings: Settings) -> str:
    """The key file, unless a key that is given by the configuration goes before it."""
    if settings.key:
        raise UsageError(
            "the key comes from ANNORIS_KEY (or `key` in config.toml), so that the key file is "
            "not used; nothing was changed",
            hint="write the new key in front of it there, after it a comma; or unset it",
        )
    return settings.at("key")


def must_fit(settings: Settings, ring: KeyRing, proof: str) -> None:
    """Raise WrongKey, with the way to the right key, unless the ring opens this proof."""
    try:
        envelope.check(ring, proof)
    except WrongKey as error:
        needed = error.details["needed"]
        have = ", ".join(key.id for key in ring.keys)
        raise WrongKey(
            f"the hot cache is sealed with key {needed}; here is {have}",
            hint=f"copy {settings.at('key')} from the machine that made key {needed}, or there "
            "annoris key export and here annoris key import, or set ANNORIS_KEY",
            details=error.details,
        ) from error


def _state(
    settings: Settings,
    ring: KeyRing,
    hot: Literal["none", "empty", "accepted", "behind"] = "none",
) -> KeyState:
    source = "ANNORIS_KEY" if settings.key else settings.at("key")
    return KeyState(ring.current.id, tuple(key.id for key in ring.keys[1:]), source, hot)


def _rotation(ring: KeyRing, made: bool, resealed: int = 0, dropped: int = 0) -> Rotation:
    older = tuple(key.id for key in ring.keys[1:])
    return Rotation(ring.current.id, older, made, resealed, dropped)


@contextmanager
def _hot(settings: Settings, seconds: float) -> Iterator[Hot]:
    """The hot cache, whatever the breaker remembers: a person asks for it."""
    from annoris.hot import Hot  # noqa: PLC0415

    hot = Hot(settings.hot.url, schema=settings.hot.schema)
    try:
        with hot.within(Deadline(seconds)):
            yield hot
    except TierDown as error:
        raise Unavailable(
            error.message, hint="no content is lost; run the command again when it is back"
        ) from error
    finally:
        hot.close()
