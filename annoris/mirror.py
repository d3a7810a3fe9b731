"""Bringing the caches in step with what this machine knows of master, and comparing them to it.

Rows go by session id and changes of master by path, so what a changed path touches is followed
from one to the other: a file that gives up an id hands it to the next one that asks for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from annoris import plan
from annoris.caches import Caches
from annoris.dataclass import dataclass
from annoris.errors import Locked, RemoteRefused, RemoteUnreachable, StorageError
from annoris.follow import Follower
from annoris.model import Cached, Change, Deadline, Entry, Held, Projected, Session
from annoris.plan import Drift
from annoris.settings import HotSettings

if TYPE_CHECKING:
    from concurrent.futures import Future

    from annoris.emergency import Emergency
    from annoris.hot import Hot, HotState

T = TypeVar("T")
R = TypeVar("R")

_FEW = 500  # changed paths; for more, comparing everything costs no more, and threads pay
_TRIES = 3
_GROUP = 200_000  # bytes of documents that a thread seals at once
_AHEAD = 4  # groups that are read before the first one is sent


@dataclass(frozen=True, slots=True)
class View:
    """Master as it is compared with: a commit, and what it holds by session id."""

    tip: str
    position: int
    identity: str


class _Moved(Exception):
    """Master has a newer tip than the one that a cache was compared with."""


class _CloneBroken(Exception):
    """The clone can't give a document; it is not the cache's fault."""


class Mirror:
    def __init__(
        self, caches: Caches, follower: Follower, limits: HotSettings, ask: Callable[[], None]
    ) -> None:
        """``ask`` makes the clone and the catalog know master's newest tip, or raises."""
        self._caches = caches
        self._follower = follower
        self._master = follower.master
        self._catalog = follower.catalog
        self._limits = limits
        self._ask = ask

    def view(self) -> View:
        return View(self._master.tip(), self._follower.position(), self._master.identity)

    def sessions(self) -> dict[str, Session]:
        """What master holds, by id."""
        return {row.id: row for row in self._catalog.settled()}

    # --- the hot cache -------------------------------------------------------------------------

    def bring(
        self,
        deadline: Deadline,
        *,
        full: bool = False,
        force: bool = False,
        again: frozenset[str] = frozenset(),
    ) -> Projected:
        """Make the hot cache show master's tip, in one transaction.

        Only what changed since the commit that it shows is looked at, everything when that is
        unknown, or ``full``. Rows of ``again`` are written whatever they hold.
        """
        started = time.monotonic()
        done: Projected | None = None
        for left in reversed(range(_TRIES)):
            try:
                done = self._caches.hot(
                    lambda hot: self._bring(hot, full=full, force=force, again=again),
                    deadline.left(self._limits.sync_seconds),
                    insist=full,
                )
            except _CloneBroken as broken:
                raise broken.__cause__ or broken from None
            except _Moved:
                if left:
                    continue
                why = "it knows more than this machine, and master could not be asked about it"
                return Projected("hot", "left out", why=why)
            break
        if done is None:
            return Projected("hot", "left out", why=self._caches.why_not("hot"))
        return _timed(done, started)

    def _bring(self, hot: Hot, *, full: bool, force: bool, again: frozenset[str]) -> Projected:
        view, state = self.view(), hot.state()
        if not full and (state.commit, state.master) == (view.tip, view.identity):
            return Projected("hot")
        known = state.master == view.identity and self._built_on(view.tip, state.commit)
        changes = self._changes(state.commit, view.tip) if known and not full else None
        if changes is not None and len(changes) <= _FEW:
            found = self._near(hot, changes, view, state.position)
        else:
            found = self.compare(hot, view, self.sessions())
        ahead = [item.held.position for item in found if item.kind == "ahead" and item.held]
        if (ahead or (state.commit and not known)) and not self.is_newest(view):
            raise _Moved
        found += self._asked_for(again, found)
        if why := "" if force else self._shrinks(hot, found, state, view, known=known):
            return Projected("hot", "refused", why=why)
        past = 0 if known or not state.commit else state.position
        projects = map(self._caches.filed, self._catalog.filed()[0])
        renamed = hot.projects(projects, whole=True)
        changed = renamed + self._write(hot, found, view, max([view.position, past, *ahead]))
        evicted = hot.evict(self._limits.retention_days)
        return _counted(found if changed else [], evicted)

    def compare(self, hot: Hot, view: View, want: Mapping[str, Session]) -> list[Drift]:
        """Everything in the hot cache that differs from ``want``, master's sessions by id."""
        return self._drift(hot.entries(days=self._limits.retention_days), want, view)

    def _near(self, hot: Hot, changes: Iterable[Change], view: View, shown: int) -> list[Drift]:
        """The same for what changed paths touch, and what was put there since ``shown``.

        The latter came with saves. It is among the changes, or of a history that is gone.
        """
        paths, ids = {change.path for change in changes}, set[str]()
        while True:
            rows = self._catalog.of(ids, paths)
            ids |= {row.id for row in rows}
            days = self._limits.retention_days
            held = hot.near(ids, paths, shown, days=days)
            size = len(paths) + len(ids)
            paths |= {row.path for row in rows} | {row.path for row in held.values() if row.path}
            ids |= held.keys()
            if len(paths) + len(ids) == size:
                return self._drift(held, {row.id: row for row in rows}, view)

    def _drift(
        self, have: Mapping[str, Held], want: Mapping[str, Session], view: View
    ) -> list[Drift]:
        from annoris.hot import mark  # noqa: PLC0415

        return plan.drift(
            have, want, view.position, lambda session: mark(self._caches.listed(session))
        )

    def _asked_for(self, again: frozenset[str], found: Iterable[Drift]) -> list[Drift]:
        known = {item.id for item in found}
        rows = self._catalog.of(again - known, ())
        return [Drift("wrong", row.id, None, row) for row in rows]

    def _shrinks(
        self, hot: Hot, found: list[Drift], state: HotState, view: View, *, known: bool
    ) -> str:
        """Why this would take too much away from the hot cache; empty when it does not."""
        gone = {item.held.path: item.held.oid for item in found if _vanishes(item) and item.held}
        for path in [item.session.path for item in found if item.session]:
            gone.pop(path, None)  # the same file under another id
        if not gone or not plan.shrinks(total := hot.count(), len(gone)):
            return ""
        deliberate = self._master.deliberate(state.commit if known else "", view.tip)
        changes = [Change(path, "") for path in gone]
        changes += [Change(item.session.path, item.session.oid) for item in found if item.session]
        lost = plan.vanishing(gone, changes, deliberate)
        if not plan.shrinks(total, lost):
            return ""
        return f"it would lose {lost} of {total} sessions, which master does not have"

    def _write(self, hot: Hot, found: Iterable[Drift], view: View, upto: int) -> int:
        wanted = {item.session.path: item for item in found if item.session}
        gone = [(item.id, view.position) for item in found if not item.session]
        return hot.put(
            self._rows(wanted, view.position),
            commit=view.tip,
            position=view.position,
            master=view.identity,
            removed=gone,
            upto=upto,
        )

    def _rows(self, wanted: Mapping[str, Drift], position: int) -> Iterator[Cached]:
        since = datetime.now(UTC) - timedelta(days=self._limits.retention_days)
        oldest = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        entries = [Entry(row.path, row.oid) for item in wanted.values() if (row := item.session)]

        def sealed(documents: list[tuple[Entry, bytes]]) -> list[Cached]:
            rows = []
            for entry, data in documents:
                held, session = wanted[entry.path][2:]
                if session:
                    old = session.saved < oldest and (not held or held.old)
                    rows.append(self._caches.sealed(session, data, position, content=not old))
            return rows

        groups = _groups(self._master.blobs(entries))
        try:
            yield from chain.from_iterable(
                map(sealed, groups) if len(entries) < _FEW else _beside(sealed, groups)
            )
        except StorageError as error:
            raise _CloneBroken from error

    def is_newest(self, view: View) -> bool:
        """Whether master has no newer tip; what is beyond it is then of a history that is gone."""
        try:
            self._ask()
        except (Locked, RemoteRefused, RemoteUnreachable):
            return False
        return self.view().tip == view.tip

    def _built_on(self, tip: str, commit: str) -> bool:
        return bool(tip and commit) and (tip == commit or self._master.descends(tip, commit))

    def _changes(self, old: str, new: str) -> list[Change] | None:
        """Changed sessions; None when that is not all: a project may take others along."""
        try:
            changed = self._master.diff(old, new, self._follower.wanted)
        except StorageError:
            return None
        sessions = [change for change in changed if self._master.included(change.path)]
        return sessions if len(sessions) == len(changed) else None

    # --- the emergency cache -------------------------------------------------------------------

    def sweep(self) -> Projected:
        """Take away what the emergency cache holds of other revisions than master's.

        An index that leads to another session than master's newest goes too.
        """
        started = time.monotonic()
        view = self.view()
        want = self.sessions()

        def work(cache: Emergency) -> int:
            other = {
                id: at
                for id, (_, at) in cache.entries().items()
                if at < 0 or not self._says(cache, want.get(id))
            }
            if any(at > view.position for at in other.values()) and not self.is_newest(view):
                other = {id: at for id, at in other.items() if at <= view.position}
            due = cache.pointers_to(map(self._caches.listed, want.values()))
            led = cache.pointers().items() if self.view() == view else ()
            cache.unpoint(index for index, id in led if due.get(index) != id)
            return sum(cache.drop(id) for id in other)

        removed = self._caches.emergency(work)
        if removed is None:
            return Projected("emergency", "left out", why=self._caches.why_not("emergency"))
        return _timed(Projected("emergency", removed=removed), started)

    def _says(self, cache: Emergency, session: Session | None) -> bool:
        """Whether the cache says of a session what master does."""
        try:
            row = cache.get(session.id) if session else None
        except StorageError:
            return False
        return bool(row and session and row.session == self._caches.listed(session))


def _beside(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """As ``map``, by two threads that are some items ahead: most of sealing lets others go on."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    ahead: deque[Future[R]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _groups(documents: Iterable[tuple[Entry, bytes]]) -> Iterator[list[tuple[Entry, bytes]]]:
    """Documents in lists of some hundred kilobytes."""
    group: list[tuple[Entry, bytes]] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document[1])
        if size > _GROUP:
            yield group
            group, size = [], 0
    yield group


def _vanishes(item: Drift) -> bool:
    return item.session is None and item.held is not None and not item.held.deleted


def _counted(found: Iterable[Drift], evicted: int) -> Projected:
    kinds = ["surplus" if _vanishes(item) else item.kind for item in found]
    return Projected(
        "hot",
        added=kinds.count("missing"),
        changed=kinds.count("stale"),
        removed=kinds.count("surplus"),
        healed=sum(kinds.count(kind) for kind in ("wrong", "bare", "ahead")),
        evicted=evicted,
    )


def _timed(done: Projected, started: float) -> Projected:
    return replace(done, milliseconds=round((time.monotonic() - started) * 1000))
