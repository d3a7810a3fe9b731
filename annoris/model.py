"""The nouns of Annoris as frozen values. Times are ISO 8601 in UTC with seconds and ``Z``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, TypeVar

from annoris.dataclass import dataclass, field

if TYPE_CHECKING:
    from concurrent.futures import Future
    from queue import SimpleQueue

T = TypeVar("T")

# Threads that wait for work: to start one takes a busy machine milliseconds.
_idle: list[SimpleQueue[Callable[[], object]]] = []
os.register_at_fork(after_in_child=_idle.clear)


def _hand_over(work: Callable[[], object]) -> None:
    """Have another thread do it."""
    from queue import SimpleQueue  # noqa: PLC0415

    try:
        jobs = _idle.pop()
    except IndexError:
        jobs = SimpleQueue()
        threading.Thread(target=_serve, args=(jobs,), daemon=True).start()
    jobs.put(work)


def begin(work: Callable[[], T], discard: Callable[[T], object] = lambda _: None) -> Future[T]:
    """Do it in a daemon thread, for which no process waits when it has to end.

    ``discard`` gets what it answers after the future was cancelled.
    """
    from concurrent.futures import Future, InvalidStateError  # noqa: PLC0415

    future: Future[T] = Future()

    def run() -> None:
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            with suppress(InvalidStateError):
                future.set_exception(error)
            return
        try:
            future.set_result(answer)
        except InvalidStateError:
            discard(answer)

    _hand_over(run)
    return future


def _serve(jobs: SimpleQueue[Callable[[], object]]) -> None:
    while True:
        jobs.get()()
        _idle.append(jobs)


class Deadline:
    """A moment after which nothing may still be under way; every wait is cut to it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self, most: float = float("inf")) -> float:
        """Seconds left, at most ``most``, never below zero."""
        return max(0.0, min(most, self._end - time.monotonic()))

    @property
    def over(self) -> bool:
        return self.left() == 0.0

    def run(self, work: Callable[[], T], discard: Callable[[T], object] = lambda _: None) -> T:
        """What ``work`` answers or raises; TimeoutError once the deadline is over.

        For work that can't be cut, such as looking up a host's name: it then goes on in a
        daemon thread, and ``discard`` gets what it answers too late.
        """
        future = begin(work, discard)
        try:
            return future.result(self.left())
        except TimeoutError:
            if future.cancel():
                raise
            return future.result()

    @contextmanager
    def cutting(self, cut: Callable[[], object]) -> Iterator[None]:
        """Have ``cut`` end what the block waits for, once the deadline is over."""
        done = threading.Event()
        _hand_over(lambda: done.wait(self.left(threading.TIMEOUT_MAX)) or cut())
        try:
            yield
        finally:
            done.set()


Tier = Literal["hot", "emergency", "master", "clone", "outbox"]


CAPTURED = "captured"  # the status of what a hook recorded and nobody wrote


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document's structure; a warning unless ``error``."""

    rule: str
    message: str
    line: int = 0  # 1-based; 0: the document as a whole
    error: bool = False


@dataclass(frozen=True, slots=True)
class Leak:
    """One credential in a text. ``excerpt`` is masked; ``fingerprint`` allows it by name."""

    rule: str
    line: int
    column: int
    excerpt: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Meta:
    """What a document says of itself, in its front matter or else in its body."""

    id: str = ""
    project: str = ""
    name: str = ""
    title: str = ""
    status: str = ""
    priority: str = ""
    created: str = ""
    saved: str = ""
    workspace: str = ""  # as workspace.read understands it
    etag: str = ""  # as written in the file; see document.etag for the true one


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document: ``front + body`` is its bytes, whole."""

    front: bytes
    body: bytes
    meta: Meta
    problems: tuple[Problem, ...] = ()

    @property
    def data(self) -> bytes:
        return self.front + self.body


@dataclass(frozen=True, slots=True)
class Entry:
    """A file on master: where it is and which bytes it holds (git blob id)."""

    path: str
    oid: str


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a path between two trees; ``oid`` is empty for a removal."""

    path: str
    oid: str
    added: bool = field(default=False, compare=False)  # there was none before


@dataclass(frozen=True, slots=True)
class Session:
    """A session as the catalog lists it: one row, without its text."""

    id: str
    path: str
    oid: str  # git blob id of the newest revision; empty while it waits in the outbox
    project: str
    name: str
    title: str
    status: str
    priority: str
    created: str
    saved: str
    size: int
    etag: str  # of the bytes as they are
    literal: str  # the etag that the file itself carries; differs after an edit by hand
    body_md5: str
    pending: str = ""  # the outbox entry that holds its bytes

    @property
    def short(self) -> str:
        """The eight characters that people type; the tail of the id is its random part."""
        return self.id[-8:]

    @property
    def captured(self) -> bool:
        """Whether a hook recorded it; the newest of a project is one that somebody wrote."""
        return self.status.strip().casefold() == CAPTURED

    @property
    def rank(self) -> tuple[bool, str]:
        """What orders the sessions of a project when the newest is asked for."""
        return not self.captured, self.saved


@dataclass(frozen=True, slots=True)
class Cached:
    """A session as a cache holds it.

    ``position`` orders revisions: the number of commits of master when it held this one.
    """

    session: Session
    position: int
    checksum: str  # MD5 of the document on master, unencrypted
    content: str = ""  # its envelope; empty when evicted


@dataclass(frozen=True, slots=True)
class Held:
    """What a cache holds under an id, in short; a deleted session stays as a tombstone."""

    path: str
    oid: str
    position: int
    has_content: bool
    deleted: bool
    old: bool = field(default=False, compare=False)  # to be evicted: neither saved nor loaded
    mark: str = field(default="", compare=False)  # a digest of its metadata


@dataclass(frozen=True, slots=True)
class Run:
    """A sync, dump or the like that was run, as the log keeps it. ``details`` is JSON-ready."""

    kind: str
    status: str
    started: str
    finished: str = ""
    source: str = ""  # what started it: cron, webhook, a person
    host: str = ""
    details: dict[str, object] = field(default_factory=dict)
    id: int = 0  # given by the log
    key: str = ""  # given by the machine that ran it: the same run is logged once


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that verify holds to be wrong. ``kind`` is a word of a documented list."""

    kind: str
    where: str  # a tier, or the file that it is about
    about: str  # a session's id, a path, a key; empty: the thing as a whole
    message: str
    mend: str = ""  # the command that mends it
    healed: bool = False


@dataclass(frozen=True, slots=True)
class Project:
    """What sessions belong to. Revenues are exact decimals, kept as text.

    Without an id it has no file on master: only sessions name it.
    """

    name: str
    id: str = ""
    status: str = ""
    priority: str = ""
    target_revenue: str = ""
    current_revenue: str = ""
    sessions: int = 0
    newest: str = ""
    created: str = ""
    path: str = ""
    was: tuple[str, ...] = ()  # former names, which select it too


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """A file on master in the place of a project's; ``problem`` says why it is not read as one."""

    path: str
    project: Project | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result; ``snippet`` marks the matches with \x02 and \x03."""

    session: Session
    snippet: str
    score: float


@dataclass(frozen=True, slots=True)
class Revision:
    """One version of a session: its blob and the commit that brought it."""

    oid: str
    commit: str
    at: str
    author: str
    message: str
    path: str


Op = Literal["save", "delete", "attach"]


@dataclass(frozen=True, slots=True)
class Draft:
    """One write that is on its way to master; the outbox keeps it until it is there.

    ``attach`` brings a file that belongs to session ``id`` and is none itself: a transcript.

    ``base`` is the etag of the revision that it was made from, empty for a new session.
    ``path`` is where a new session goes; an existing one stays where master has it.
    """

    key: str  # its name in the outbox: orders drafts, names them in commits
    op: Op
    id: str
    path: str
    base: str
    project: str
    name: str
    title: str
    body_md5: str
    at: str
    batch: str = ""  # drafts of one command share a commit
    data: bytes = b""


State = Literal["master", "unchanged", "conflict", "queued", "refused", "outdated"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a save or a delete answers.

    ``state``: on master; already there; kept beside the version that won (``id`` and
    ``path`` are then the copy's); waiting here; set aside because the server refused it;
    waiting here still, since master moved on and its owner wants no copy.
    """

    state: State
    id: str
    path: str
    project: str
    title: str = ""
    name: str = ""
    oid: str = ""
    commit: str = ""
    checksum: str = ""  # MD5 of the document on master
    size: int = 0
    source: str = ""  # the file it came from
    conflict_of: str = ""
    reason: str = ""
    problems: tuple[Problem, ...] = ()
    op: Op = "save"
    cached: str = ""  # the cache that has it too: hot, emergency or none


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What an import left out, and why; ``code`` is that of the error which it would be."""

    where: str
    why: str
    code: str = ""


@dataclass(slots=True)
class Imported:
    """What an import did. ``planned`` is what a dry run would have saved: (file, title)."""

    source: str
    found: int = 0
    unchanged: int = 0
    redacted: int = 0
    receipts: list[Receipt] = field(default_factory=list)
    planned: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)  # records that stand in no document


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load answers: exact bytes, where from, and how sure we are that they are new."""

    session: Session
    data: bytes
    tier: Tier
    checked: str  # when master was last asked
    stale: str = ""  # why this may not be the newest; empty when it is
    revision: str = ""  # the commit, when an older revision was asked for


@dataclass(frozen=True, slots=True)
class Projected:
    """What a sync did to one projection of master, in sessions.

    ``state``: it is in step; it did not answer or can't be used (``why``); or it would have lost
    so much that it was left as it is until a person says ``--force``.
    """

    tier: str
    state: Literal["in step", "left out", "refused"] = "in step"
    added: int = 0
    changed: int = 0
    removed: int = 0
    healed: int = 0  # contents and entries that were missing or wrong
    evicted: int = 0
    milliseconds: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a sync did, or with ``dry`` what it would do."""

    pushed: int = 0
    queued: int = 0
    conflicts: tuple[Receipt, ...] = ()
    set_aside: tuple[Receipt, ...] = ()
    before: str = ""
    after: str = ""
    changed: int = 0
    removed: int = 0
    sessions: int = 0
    milliseconds: int = 0
    hot: int | None = None  # rows of the hot cache that changed; None: it took no part
    problems: tuple[str, ...] = ()  # files on master that can't be read as what they should be
    full: bool = False
    dry: bool = False
    projections: tuple[Projected, ...] = ()
    findings: tuple[Finding, ...] = ()  # what needs a person
    incoming: tuple[str, ...] = ()  # paths that master changed, or would bring
    outgoing: tuple[str, ...] = ()  # paths or titles that were or would be delivered
    timings: dict[str, int] = field(default_factory=dict)  # milliseconds by step


@dataclass(frozen=True, slots=True)
class Audit:
    """What a verify looked at and found."""

    findings: tuple[Finding, ...] = ()
    sessions: int = 0
    checked: dict[str, int] = field(default_factory=dict)  # how many of what
    commit: str = ""
    quick: bool = False
    sample: float = 100.0  # percent of contents that were opened
    seed: int = 0
    milliseconds: int = 0


Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Alert:
    """What a person must hear about.

    ``key`` names the thing, from the general to the particular: ``tier:hot``. One with ``over``
    says that it is good again, and so is everything below it: ``sync`` ends ``sync:refused``.
    """

    key: str
    level: Level = "info"
    title: str = ""
    text: str = ""  # details and what to do, in lines
    over: bool = False
    shared: bool = False  # every machine sees it, so one of them says it


@dataclass(frozen=True, slots=True)
class TierStanding:
    """How one tier is: what it answered, or why it did not and until when it is left alone."""

    tier: Literal["hot", "emergency", "master", "clone"]
    up: bool
    why: str = ""  # it is not up
    since: str = ""  # it is down; empty when nothing is remembered of it
    until: str = ""  # commands leave it alone
    failures: int = 0
    milliseconds: float | None = None  # the median answer of at most five
    sessions: int | None = None
    newest: str = ""  # the title of what was saved last
    saved: str = ""
    behind: int | None = None  # commits of master that it does not show
    key: str = ""  # the id of the key that it goes by


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one stands, for ``status``."""

    project: str
    newest: Session | None
    sessions: int
    projects: int
    master: str
    branch: str
    tip: str
    checked: str
    stale: str
    waiting: int
    oldest_waiting: str
    aside: int
    data: str
    config: str
    key: str = ""  # the id of the key that seals here; empty when there is none yet
    tiers: tuple[TierStanding, ...] = ()  # each that is configured, in the order of a load
    last_sync: str = ""  # when one last ended well on this machine
    trouble: str = ""  # what the last one failed of


@dataclass(frozen=True, slots=True)
class Glance:
    """Where one stands by what this machine knows, for ``annoris`` alone."""

    project: str
    newest: Session | None
    sessions: int
    projects: int
    waiting: int
    aside: int
    tiers: tuple[str, ...]  # those that are configured, in the order of a load
    down: dict[str, str]  # those that failed when last asked, and why
    checked: str  # when master was last asked


@dataclass(frozen=True, slots=True)
class Ailment:
    """Something wrong with this installation, and the command that mends it."""

    what: str
    mend: str


@dataclass(frozen=True, slots=True)
class SetUp:
    """What ``init`` did."""

    master: str
    branch: str
    sessions: int
    brought: int  # sessions of this machine that are now there
    others: int  # Markdown files there that are not sessions
    config: str
    scope: str = "caches"  # encryption.scope, of this machine and of master
    converted: bool = False
    history: bool = True  # whether the history of what was brought came along
    problems: tuple[str, ...] = ()  # files on master that are not shown, and why


@dataclass(frozen=True, slots=True)
class Shelved:
    """A dump on the branch of dumps, as it is listed."""

    name: str
    made: str
    rows: dict[str, int]  # of each table
    bytes: int
    keys: tuple[str, ...]  # ids of the keys that its contents need
    verified: str  # when a drill last found it whole; empty for never


@dataclass(frozen=True, slots=True)
class Dumped:
    """What a dump did. ``pushed`` is not set when the newest dump says the same already."""

    name: str
    pushed: bool
    rows: dict[str, int]
    bytes: int
    dropped: tuple[str, ...] = ()  # dumps whose time was over
    file: str = ""
    milliseconds: int = 0


@dataclass(frozen=True, slots=True)
class Drilled:
    """What a drill found: nothing wrong. Counts of rows that the live tables have otherwise."""

    name: str
    made: str
    rows: dict[str, int]
    opened: int  # contents that were opened and are what their row says
    new: int
    changed: int
    gone: int
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did, or under ``dry_run`` would do."""

    name: str
    newest: str  # when the newest row of the dump was written
    rows: dict[str, int]
    before: dict[str, int]  # rows that were there
    dry_run: bool
    stale: str = ""  # why there may be a newer dump
    milliseconds: int = 0


def counted(number: int, thing: str) -> str:
    """How many of a thing, as one says it: 1 session, 2 sessions."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
