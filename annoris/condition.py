"""How the tiers are: measured for ``status``, judged for ``doctor``.

``status`` goes by the breaker as every command does, and no tier costs it more than it costs a
load. ``doctor`` asks each tier whatever the breaker remembers, and says what mends it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from annoris.archive import Archive, iso
from annoris.errors import (
    ConfigError,
    KeyProblem,
    RemoteRefused,
    RemoteUnreachable,
    StorageError,
    TierDown,
)
from annoris.model import Ailment, Deadline, TierStanding
from annoris.settings import Settings

if TYPE_CHECKING:
    from annoris.emergency import Emergency, Memory
    from annoris.hot import Hot, HotState

_TIMES = 5
_MASTER_SECONDS = 2.0  # for all the questions to master together
_FAR_BEHIND = 50  # commits
_CLOCK_SECONDS = 60.0


# --- status ----------------------------------------------------------------------------------


def tiers(archive: Archive) -> tuple[TierStanding, ...]:
    """How each configured tier is. Master has been looked at before."""
    settings = archive.settings
    found = []
    if settings.hot.url:
        found.append(_hot(archive))
    if settings.emergency.url:
        found.append(_emergency(archive))
    if not archive.master.embedded:
        found.append(_master(archive))
    master = found[-1] if found and found[-1].tier == "master" else None
    return (*found, _clone(archive, master))


def key_id(settings: Settings) -> str:
    """The id of the key that seals here; empty when there is none, or none that can be used."""
    from annoris import envelope  # noqa: PLC0415

    try:
        return envelope.load_ring(settings.at("key"), settings.key).current.id
    except KeyProblem:
        return ""


def _hot(archive: Archive) -> TierStanding:
    from annoris import envelope  # noqa: PLC0415

    def look(hot: Hot) -> TierStanding:
        stock, state = hot.stock(), hot.state()
        return TierStanding(
            "hot",
            up=True,
            milliseconds=_median(hot.ping),
            sessions=stock.entries,
            newest=stock.title,
            saved=stock.saved,
            behind=max(0, archive.follower.position() - state.position),
            key=envelope.sealed_by(state.proof) if state.proof else "",
        )

    found = archive.caches.ask_hot(look, archive.settings.hot.load_seconds)
    return found or _down(archive, "hot")


def _emergency(archive: Archive) -> TierStanding:
    def look(cache: Emergency) -> TierStanding:
        held = cache.entries()
        newest = max(held, key=lambda id: held[id][1], default="")
        row = cache.get(newest) if newest else None
        return TierStanding(
            "emergency",
            up=True,
            milliseconds=_median(cache.ping),
            sessions=len(held),
            newest=row.session.title if row else "",
            saved=row.session.saved if row else "",
            behind=max(0, archive.follower.position() - row.position) if row else None,
        )

    deadline = Deadline(archive.settings.hot.load_seconds)
    return archive.caches.ask_emergency(look, deadline) or _down(archive, "emergency")


def _master(archive: Archive) -> TierStanding:
    if archive.breaker.blocked("master"):
        return _down(archive, "master")
    deadline = Deadline(_MASTER_SECONDS)
    tips: dict[str, str] = {}

    def ask() -> None:
        tips.update(archive.master.branches(deadline)[0])

    try:
        median = _median(lambda: _timed(ask), deadline)
    except (RemoteRefused, RemoteUnreachable) as error:
        archive.remember(error)
        return replace(_down(archive, "master"), why=error.message)
    archive.breaker.succeeded("master")
    in_step = tips.get(archive.master.branch, "") == archive.master.tip()
    return TierStanding("master", up=True, milliseconds=median, behind=0 if in_step else None)


def _clone(archive: Archive, master: TierStanding | None) -> TierStanding:
    newest = archive.catalog.newest(None)
    held = archive.catalog.base(newest.id) if newest else None
    if not archive.master.tip():
        return TierStanding("clone", up=False, why="nothing is here yet")
    return TierStanding(
        "clone",
        up=True,
        milliseconds=_median(lambda: _timed(lambda: archive.master.blob(held.oid, held.path)))
        if held
        else None,
        sessions=archive.catalog.count(),
        newest=newest.title if newest else "",
        saved=newest.saved if newest else "",
        behind=master.behind if master and master.up else 0 if master is None else None,
    )


def _down(archive: Archive, tier: Literal["hot", "emergency", "master"]) -> TierStanding:
    """A tier that did not answer: what the breaker remembers, else what was complained of."""
    state = archive.breaker.state().get(tier)
    if state is None:
        why = "; ".join(archive.caches.complaints) or "it can't be used"
        return TierStanding(tier, up=False, why=why)
    return TierStanding(
        tier,
        up=False,
        why=state.why,
        since=iso(state.since),
        until=iso(state.until),
        failures=state.failures,
    )


def _median(ask: Callable[[], float], deadline: Deadline | None = None) -> float:
    """Milliseconds of the middle one of some answers: fewer of them where time runs out."""
    taken = [ask()]
    while len(taken) < _TIMES and not (deadline and deadline.left() < 2 * max(taken)):
        taken.append(ask())
    return sorted(taken)[len(taken) // 2] * 1000


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


# --- doctor ----------------------------------------------------------------------------------


def ailments(archive: Archive) -> list[Ailment]:
    """What is wrong with the caches and the keys, each with what mends it."""
    proof, found = _hot_ailments(archive)
    return [*found, *_key_ailments(archive.settings, proof), *_emergency_ailments(archive)]


def _hot_ailments(archive: Archive) -> tuple[str, list[Ailment]]:
    """The key proof that the hot cache holds, and what is wrong with it."""
    settings = archive.settings.hot
    if not settings.url:
        return "", []
    from annoris.hot import VERSION, Hot  # noqa: PLC0415

    proof = ""
    found: list[Ailment] = []
    with closing(Hot(settings.url, schema=settings.schema)) as hot:
        try:
            with hot.within(Deadline(settings.seconds)):
                state = hot.state()
                proof = state.proof
                if state.version == VERSION:
                    hot.try_writing()
                else:
                    hot.prepare(trial=True)
                found += _state_ailments(archive, state, VERSION)
                found += _clock_ailments("PostgreSQL", hot.clock())
                archive.breaker.succeeded("hot")
        except TierDown as error:
            found.append(Ailment(error.message, error.mend))
        except (StorageError, ConfigError) as error:
            found.append(Ailment(error.message, error.hint))
    return proof, found


def _state_ailments(archive: Archive, state: HotState, version: int) -> Iterator[Ailment]:
    settings, master = archive.settings.hot, archive.master
    where = f"schema {settings.schema} of the hot cache (PostgreSQL)"
    behind = archive.follower.position() - state.position
    if not state.version:
        yield Ailment(f"{where} has no tables yet", "annoris sync")
    elif state.version != version:
        yield Ailment(f"{where} was made by an older Annoris", "annoris sync")
    elif state.master and _repository(state.master) != _repository(master.identity):
        yield Ailment(
            f"{where} shows another master: {state.master.splitlines()[0]}",
            "give this one a schema of its own (ANNORIS_HOT_SCHEMA, or hot.schema in config.toml); "
            "or, if its sessions shall go: annoris sync",
        )
    elif behind > _FAR_BEHIND:
        yield Ailment(f"{where} is {behind} commits behind master", "annoris sync")


def _repository(identity: str) -> tuple[str, str]:
    """Host and path of a master and its branch: the same for each way to write its URL."""
    remote, branch = [*identity.splitlines(), "", ""][:2]
    bare = re.sub(r"^\w[\w+]*://", "", remote)
    place = re.sub(r"^[^@/]*@", "", bare).removesuffix("/").removesuffix(".git")
    return re.sub(r"^([^/:]+):(?:\d+/)?/*", r"\1/", place).lower(), branch


def _key_ailments(settings: Settings, proof: str) -> Iterator[Ailment]:
    from annoris import envelope, keys  # noqa: PLC0415

    path = settings.at("key")
    if not settings.key and not os.path.lexists(path):
        if proof:  # without one, a key is made at the first need
            yield Ailment(
                f"the hot cache is sealed with key {envelope.sealed_by(proof)}; here is no key",
                "annoris key export on a machine that has it, annoris key import FILE here",
            )
        return
    try:
        ring = envelope.load_ring(path, settings.key)
        if proof:
            keys.must_fit(settings, ring, proof)
    except KeyProblem as error:
        yield Ailment(error.message, error.hint)


def _emergency_ailments(archive: Archive) -> Iterator[Ailment]:
    settings = archive.settings
    if not settings.emergency.url:
        return
    from annoris.emergency import Emergency  # noqa: PLC0415

    with closing(Emergency(settings.emergency.url, cluster=settings.emergency.cluster)) as cache:
        try:
            with cache.within(Deadline(settings.hot.load_seconds)):
                cache.ping()
                archive.breaker.succeeded("emergency")
                yield from _memory_ailments(cache.memory())
                yield from _clock_ailments("Redis", cache.clock())
        except TierDown as error:
            yield Ailment(error.message, error.mend)
        except ConfigError as error:
            yield Ailment(error.message, error.hint)


def _memory_ailments(memory: Memory) -> Iterator[Ailment]:
    if not memory.most:
        yield Ailment(
            "the emergency cache (Redis) may take all memory of its machine: maxmemory is 0",
            "redis-cli CONFIG SET maxmemory 100mb; the same in redis.conf",
        )
    if memory.policy == "noeviction":
        yield Ailment(
            "the emergency cache (Redis) takes nothing once it is full: its policy is noeviction",
            "redis-cli CONFIG SET maxmemory-policy volatile-ttl; the same in redis.conf",
        )


def _clock_ailments(server: str, ahead: float) -> Iterator[Ailment]:
    if abs(ahead) > _CLOCK_SECONDS:
        yield Ailment(
            f"this machine's clock and that of {server} differ by {abs(ahead):.0f} s",
            f"set the one that is wrong; here it is {iso(time.time())}: timedatectl set-ntp true",
        )
