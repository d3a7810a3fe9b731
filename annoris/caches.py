"""The caches before master: PostgreSQL (hot) and, only while that fails, Redis (emergency).

Content is sealed here, before a cache sees it, and checked here, before anybody reads it: the
GCM tag, the MD5 and the git blob id. A cache that does not answer costs one command its limit;
the breaker, which all processes share, spares the next ones. Nothing that goes wrong here fails
a save or a load: it is a miss, and a line in ``complaints``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

from annoris.breaker import Breaker
from annoris.dataclass import dataclass
from annoris.errors import (
    AnnorisError,
    ConfigError,
    KeyProblem,
    StorageError,
    Tampered,
    TierDown,
    Truncated,
)
from annoris.follow import make_row
from annoris.master import oid_of
from annoris.model import Cached, Deadline, Project, Run, Session, Tier
from annoris.settings import Settings

if TYPE_CHECKING:
    from annoris.emergency import Emergency
    from annoris.envelope import KeyRing
    from annoris.hot import Hot

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """The tip that documents were saved to.

    ``whole`` says whether they are all that changed on master since a commit, projects included.
    """

    tip: str
    position: int
    master: str
    whole: Callable[[str], bool]


How = Literal["newest", "named", "prefixed", "get"]

_SHARE = 0.3  # seconds of each limit that are kept for the emergency cache
_MOST = 500  # documents of one command that the emergency cache takes


class Caches:
    def __init__(self, settings: Settings, breaker: Breaker) -> None:
        """Nothing is connected to, and no driver imported, before the first use."""
        self._settings = settings
        self._breaker = breaker
        self._hot: Hot | None = None
        self._emergency: Emergency | None = None
        self._ring: KeyRing | None = None
        self._mark: tuple[int, ...] = ()
        self._proved = False
        self._looked: bool | None = None  # at the key file, for what the hot cache is asked now
        self._everything = settings.encryption.scope == "everything"
        self._shown = ""  # the commit that the hot cache was last seen to show
        self._bad: list[Cached] = []
        self.complaints: list[str] = []
        self.key_problem: str | None = None  # with the hot cache; None: it was not tried
        self.watch: Callable[[Tier, float, bool], None] = lambda *_: None

    @property
    def configured(self) -> bool:
        """Whether there is any cache to ask."""
        return bool(self._settings.hot.url or self._settings.emergency.url)

    # --- reading -----------------------------------------------------------------------------

    def find(
        self, how: How, project: str, value: str, only: Tier | None = None
    ) -> tuple[list[Cached], Tier | None]:
        """Sessions that a cache has under a selector, and which cache answered, if one did.

        The emergency cache is asked only while the hot cache fails, or as the ``only`` one. An
        empty list from a tier means that it does not know, not that there is none.
        """
        if self._everything:
            try:
                project = self._code("project", project)
                value = self._code("name", value) if how == "named" else value
            except KeyProblem as error:
                self._complain(f"the caches are left out: {error.message}; {error.hint}")
                return [], None
        deadline = Deadline(self._settings.hot.load_seconds)
        if self._settings.hot.url and only != "emergency":
            asked = {
                "newest": lambda hot: hot.newest(project),
                "named": lambda hot: hot.named(project, value),
                "prefixed": lambda hot: hot.prefixed(value),
                "get": lambda hot: hot.get(value),
            }[how]
            found = self.ask_hot(asked, self._but_share(deadline))
            if found is not None:
                return found, "hot"
        if only == "hot" or how == "prefixed":  # only whole ids are keys in the emergency cache
            return [], None
        return self._find_emergency(how, project, value, deadline)

    def _find_emergency(
        self, how: How, project: str, value: str, deadline: Deadline
    ) -> tuple[list[Cached], Tier | None]:
        asked = {
            "newest": lambda cache: cache.newest(project),
            "named": lambda cache: cache.named(project, value),
            "get": lambda cache: cache.get(value),
        }[how]
        row = self.ask_emergency(asked, deadline)
        return ([row], "emergency") if row else ([], None)

    def why_not(self, tier: Literal["hot", "emergency"]) -> str:
        """Why a cache gave no answer just now, as the end of a sentence that it begins."""
        url = self._settings.hot.url if tier == "hot" else self._settings.emergency.url
        if not url:
            return "is not configured"
        if down := self._breaker.state().get(tier):
            return f"did not answer: {down.why}"
        if self.complaints:
            return f"can't answer: {'; '.join(self.complaints)}"
        return "has no one session that fits, or only a revision older than what is known here"

    def revealed(self, session: Session, data: bytes) -> Session:
        """A session that a cache lists without its names, with those that its text says."""
        if not self._everything:
            return session
        said = make_row(session.path, session.oid, data).session
        return replace(said, id=session.id, saved=session.saved, created=session.created)

    def open(self, row: Cached) -> bytes | None:
        """The bytes of a row, checked; None when it holds none, or none that are right.

        One that is damaged is replaced by the next ``store``.
        """
        try:
            return self._opened(row)
        except KeyProblem as error:
            self._complain(f"the cached copy of {row.session.path} {error.message}")
            if isinstance(error, (Tampered, Truncated)):  # under another key it may be good
                self.replace(row)
            return None

    def read(self, row: Cached) -> tuple[bytes | None, str]:
        """The bytes of a row, or why those that it holds must not be shown."""
        try:
            return self._opened(row), ""
        except KeyProblem as error:
            return None, error.message

    def _opened(self, row: Cached) -> bytes | None:
        from annoris.envelope import open_  # noqa: PLC0415

        if not row.content:
            return None
        session = row.session
        try:
            data = open_(row.content, ring=self._keys(), session=session.id, oid=session.oid)
        except KeyProblem as error:
            raise type(error)(f"can't be read: {error.message}", hint=error.hint) from error
        # The blob id of a sealed master is that of an envelope; the tag covers it all the same.
        other = not self._everything and oid_of(data) != session.oid
        if other or md5(data) != row.checksum:
            raise Tampered("is not what master holds")
        return data

    def distrust(self, row: Cached) -> None:
        """Say that a row can't be what it claims to be, and have it replaced."""
        self._complain(f"the cached copy of {row.session.path} is not what master holds")
        self.replace(row)

    def replace(self, row: Cached) -> None:
        """Have the next ``store`` put its rows in the place of this one, whatever its position."""
        self._bad.append(row)

    # --- writing -----------------------------------------------------------------------------

    def store(
        self,
        documents: Iterable[tuple[Session, bytes]],
        position: int,
        *,
        loaded: bool = False,
        step: Step | None = None,
    ) -> Tier | None:
        """Keep documents in the hot cache, or while that fails in the emergency cache.

        Answers where they are now; None when no cache took them. ``loaded``: they were read,
        not saved, so that one second must do. A ``step`` that leaves nothing out brings the hot
        cache to its tip.
        """
        limits = self._settings.hot
        try:
            rows = [self.sealed(session, data, position) for session, data in documents]
        except (AnnorisError, OSError) as error:
            self._complain(f"the caches are left out: {error}")
            return None
        deadline = Deadline(limits.load_seconds if loaded else limits.seconds)
        if limits.url:
            seconds = self._but_share(deadline)
            if self.ask_hot(lambda hot: self._put(hot, rows, loaded, step), seconds) is not None:
                return "hot"
        few = rows[-_MOST:]
        kept = self.ask_emergency(lambda cache: [cache.put(row) for row in few], deadline)
        return "emergency" if kept and all(kept) and few == rows else None

    def forget(self, removed: Iterable[tuple[str, int]]) -> None:
        """Leave a tombstone for each (id, position), so that a late writer can't bring it back."""
        gone = list(removed)
        deadline = Deadline(self._settings.hot.seconds)
        if self._settings.hot.url:
            seconds = self._but_share(deadline)
            if self.ask_hot(lambda hot: hot.put([], removed=gone), seconds) is not None:
                return
        self.ask_emergency(lambda cache: [cache.remove(id, at) for id, at in gone], deadline)

    def hot(self, work: Callable[[Hot], T], seconds: float, *, insist: bool = False) -> T | None:
        """What the hot cache answers to ``work``, which may write; None while it can't be used.

        ``why_not`` then says why. ``work`` may be called twice. ``insist``: ask it, whatever the
        breaker remembers.
        """

        def proved(hot: Hot) -> T:
            self._prove(hot)
            return work(hot)

        return self.survey(proved, seconds, insist=insist)

    def survey(self, work: Callable[[Hot], T], seconds: float, *, insist: bool = True) -> T | None:
        """The same for ``work`` that only reads. Whether it answers at all is found out first."""
        limits = self._settings.hot
        if not limits.url:
            return None
        if self.ask_hot(lambda hot: hot.ping(), limits.seconds, insist=insist) is None:
            return None
        return self.ask_hot(work, seconds)

    def claim(
        self, alerts: Iterable[tuple[str, bool]], holder: str, seconds: float
    ) -> set[str] | None:
        """Which alerts (key, over) are this machine's to tell; None without a word from others."""
        if not self._settings.hot.url:
            return None
        claimed = list(alerts)
        return self.ask_hot(lambda hot: hot.claim(claimed, holder, seconds), 1.0)

    def unfit_key(self, proof: str) -> str:
        """Why the hot cache's contents are not for this machine's keys; empty when they are."""
        from annoris import envelope  # noqa: PLC0415

        try:
            if proof:
                envelope.check(self._keys(), proof)
        except KeyProblem as error:
            self.key_problem = f"{error.message}\n{error.hint}"
            return error.message
        return ""

    def emergency(self, work: Callable[[Emergency], T]) -> T | None:
        """What the emergency cache answers to ``work``; None while it can't be used.

        It is asked whatever the breaker remembers, and given longer than for a save or a load.
        """
        return self.ask_emergency(work, Deadline(self._settings.hot.seconds), insist=True)

    def log(self, runs: Iterable[Run]) -> int:
        """Note runs in the hot cache's sync_log, if it works; answers how many are new there."""
        ours = {run.key: run for run in runs}
        if not self._settings.hot.url or not ours:
            return 0

        def bring(hot: Hot) -> int:
            if not hot.state().version:  # a note is no reason to make tables
                return 0
            new = hot.unlogged(ours) if len(ours) > 1 else ours
            return sum(hot.log(ours[key]) > 0 for key in ours if key in new)

        return self.ask_hot(bring, self._settings.hot.seconds) or 0

    def runs(self, limit: int, kind: str, before: Run | None = None) -> list[Run] | None:
        """What the hot cache's sync_log says, newest first; None while it does not answer."""
        if not self._settings.hot.url:
            return None
        seconds = self._settings.hot.seconds
        return self.ask_hot(lambda hot: hot.runs(limit, kind, before), seconds)

    @contextmanager
    def alone(self, what: str, *, wait: bool = True) -> Iterator[None]:
        """One machine at a time does ``what``, where a hot cache works by which to agree.

        Without ``wait``, raises Locked while another one is at it.
        """
        limits = self._settings.hot
        with ExitStack() as stack:
            if limits.url and not self._breaker.blocked("hot"):
                from annoris.hot import Hot  # noqa: PLC0415

                hot = Hot(limits.url, schema=limits.schema, seconds=limits.sync_seconds)
                stack.callback(hot.close)
                # Without it, all do the same work.
                with suppress(TierDown, StorageError, ConfigError):
                    stack.enter_context(hot.exclusive(what, wait=wait))
            yield

    def _put(self, hot: Hot, rows: list[Cached], loaded: bool, step: Step | None) -> int:
        self._prove(hot)
        while self._bad:
            hot.discard(self._bad[-1])
            self._bad.pop()
        shown = self._shown
        if step is None or not shown or not step.whole(shown):
            return hot.put(rows, loaded=loaded)
        changed = hot.put(
            rows, commit=step.tip, position=step.position, master=step.master, since=shown
        )
        self._shown = step.tip
        return changed

    def sealed(
        self, session: Session, data: bytes, position: int, *, content: bool = True
    ) -> Cached:
        """A session as caches hold it; without ``content`` only what is said of it."""
        from annoris.envelope import seal  # noqa: PLC0415

        key = self._keys().current
        sealed = seal(data, key=key, session=session.id, oid=session.oid) if content else ""
        return Cached(self.listed(session), position, md5(data), sealed)

    def listed(self, session: Session) -> Session:
        """As a cache lists a session: with everything sealed, by codes for its names alone."""
        if not self._everything:
            return session
        return replace(
            session,
            project=self._code("project", session.project),
            name=self._code("name", session.name),
            title="",
            status=session.status if session.captured else "",  # the newest is chosen by it
            priority="",
            etag="",
            literal="",
            body_md5="",
        )

    def filed(self, project: Project) -> Project:
        """As the hot cache lists a project: with everything sealed, by codes and nothing else."""
        if not self._everything:
            return project
        was = tuple(self._code("project", name) for name in project.was)
        name = self._code("project", project.name)
        return Project(name, project.id, was=was)

    def _code(self, kind: str, name: str) -> str:
        """What stands for the name of a project or a session, where it may not be read."""
        from annoris.envelope import pseudonym  # noqa: PLC0415

        return pseudonym(f"{kind}\0{name}", self._keys().current) if name else ""

    def _prove(self, hot: Hot) -> None:
        """Make sure, before anything is written, that our key is the one in use there."""
        from annoris import envelope  # noqa: PLC0415

        if self._proved:
            return
        stored = hot.state()
        self._shown = stored.commit
        if not stored.version:
            hot.prepare()
        ring = self._keys()
        envelope.check(ring, stored.proof or hot.prove(envelope.proof(ring.current)))
        self._proved = True
        self.key_problem = ""

    def _keys(self) -> KeyRing:
        """The key file, made at the first need; ANNORIS_KEY goes before it.

        It is read again once it was changed: a server outlives rotations. What the hot cache is
        asked goes by one ring, however many documents that is about. With everything sealed
        master decides which key it is, so that none is made here.
        """
        from annoris import envelope  # noqa: PLC0415

        if self._looked and self._ring:
            return self._ring
        mark = self._key_mark()
        if self._ring is None or (mark and mark != self._mark):  # never a new one for one lost
            given, path = self._settings.key, self._settings.at("key")
            if given or self._everything:
                self._ring = envelope.load_ring(path, given)
            else:
                os.makedirs(self._settings.data_dir, mode=0o700, exist_ok=True)
                self._ring = envelope.new_key_file(path)
            self._mark, self._proved = self._key_mark(), False
        self._looked = None if self._looked is None else True
        return self._ring

    def _key_mark(self) -> tuple[int, ...]:
        """What changes when the key file does; empty while there is none."""
        try:
            found = os.stat(self._settings.at("key"))
        except OSError:
            return ()
        return (found.st_ino, found.st_size, found.st_mtime_ns)

    # --- asking ------------------------------------------------------------------------------

    def _but_share(self, deadline: Deadline) -> float:
        """The seconds of a limit that the hot cache may use: the emergency cache needs some."""
        left = deadline.left()
        return max(left - _SHARE, left / 2) if self._settings.emergency.url else left

    def ask_hot(
        self, work: Callable[[Hot], T], seconds: float, *, insist: bool = False
    ) -> T | None:
        """What the hot cache answers within ``seconds``; None while it can't.

        ``work`` is done again where the connection was lost, so it must be able to.
        ``insist``: ask, whatever the breaker remembers.
        """
        from annoris.retry import patiently  # noqa: PLC0415

        if self._breaker.blocked("hot") and not insist:
            return None
        from annoris.hot import Hot  # noqa: PLC0415

        if self._hot is None:
            self._hot = Hot(self._settings.hot.url, schema=self._settings.hot.schema)
        hot, deadline = self._hot, Deadline(seconds)
        started = time.monotonic()
        self._looked = False
        try:
            with hot.within(deadline):
                answer = patiently(lambda: self._prepared(hot, work), deadline)
        except TierDown as error:
            hot.close()
            self.watch("hot", time.monotonic() - started, False)
            if self._breaker.failed("hot", error.message):
                self._complain(error.message)
            return None
        except (KeyProblem, StorageError, ConfigError) as error:
            if isinstance(error, KeyProblem):
                self.key_problem = f"{error.message}\n{error.hint}"
            self._complain(f"the hot cache is left out: {error.message}; {error.hint}")
            return None
        finally:
            self._looked = None
        self.watch("hot", time.monotonic() - started, True)
        self._breaker.succeeded("hot")
        return answer

    def _prepared(self, hot: Hot, work: Callable[[Hot], T]) -> T:
        try:
            return work(hot)
        except StorageError:  # no tables yet, or those of an older version
            hot.prepare()
            self._proved = False
            return work(hot)

    def ask_emergency(
        self, work: Callable[[Emergency], T], deadline: Deadline, *, insist: bool = False
    ) -> T | None:
        """What the emergency cache answers by the deadline or in its share, or None."""
        from annoris.retry import patiently  # noqa: PLC0415

        limits = self._settings.emergency
        if not limits.url or (self._breaker.blocked("emergency") and not insist):
            return None
        from annoris.emergency import Emergency  # noqa: PLC0415

        if self._emergency is None:
            self._emergency = Emergency(limits.url, ttl=limits.ttl_seconds, cluster=limits.cluster)
        cache, deadline = self._emergency, Deadline(max(_SHARE, deadline.left()))
        started = time.monotonic()
        try:
            with cache.within(deadline):
                answer = patiently(lambda: work(cache), deadline)
        except TierDown as error:
            cache.close()
            self.watch("emergency", time.monotonic() - started, False)
            if self._breaker.failed("emergency", error.message):
                self._complain(error.message)
            return None
        except (StorageError, ConfigError) as error:
            self._complain(f"the emergency cache is left out: {error.message}; {error.hint}")
            return None
        self.watch("emergency", time.monotonic() - started, True)
        self._breaker.succeeded("emergency")
        return answer

    def _complain(self, text: str) -> None:
        if text not in self.complaints:
            self.complaints.append(text)

    def close(self) -> None:
        for cache in (self._hot, self._emergency):
            if cache is not None:
                cache.close()


def md5(data: bytes) -> str:
    """The checksum of a document, as caches hold it."""
    import hashlib  # noqa: PLC0415

    return hashlib.md5(data, usedforsecurity=False).hexdigest()
