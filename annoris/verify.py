"""verify: does every tier hold what master holds? ``--repair`` makes it so.

The comparison is the one of ``sync --full``, with nothing applied. Beyond it every document is
read and checked, and every cached content opened. What was found out about a document is kept
by its blob id, which never says anything else, so that the next run need not parse it again.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING

from annoris import plan, sync
from annoris.archive import Archive
from annoris.caches import md5
from annoris.catalog import Catalog
from annoris.dataclass import dataclass
from annoris.errors import (
    AnnorisError,
    KeyProblem,
    MasterShrunk,
    RemoteRefused,
    RemoteUnreachable,
    ScopeMismatch,
    StorageError,
)
from annoris.follow import Follower, id_of, make_row, project_file
from annoris.master import now
from annoris.mirror import Mirror
from annoris.model import (
    Audit,
    Cached,
    Deadline,
    Entry,
    Finding,
    Project,
    Run,
    Session,
    begin,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from annoris.emergency import Emergency
    from annoris.hot import Hot

KINDS = {
    "tier-down": "a tier did not answer, so that it could not be checked",
    "master-shrunk": "master lost so many sessions that a person must accept it",
    "master-key": "master is sealed with a key that is not here, or is not sealed as it should",
    "clone-damaged": "objects, refs or files of the clone can't be read, or are not what they say",
    "document-unreadable": "a document on master is not UTF-8 text, or its front matter is broken",
    "document-id-twice": "two files on master ask for the same id",
    "project-unreadable": "a project's file on master can't be read, or another one counts",
    "catalog-damaged": "SQLite or its full-text index finds the catalog's file damaged",
    "catalog-missing": "the catalog lacks a session of master",
    "catalog-stale": "the catalog shows another revision than master's",
    "catalog-surplus": "the catalog shows a session that master does not have",
    "catalog-wrong": "what the catalog says of a session or project is not what its file says",
    "hot-absent": "the hot cache has no tables, or tables of another version or master",
    "hot-key": "the hot cache is sealed with a key that is not here",
    "hot-missing": "the hot cache lacks a session of master, or holds a tombstone for it",
    "hot-stale": "the hot cache holds another revision or path than master's",
    "hot-surplus": "the hot cache holds a session that master does not have",
    "hot-wrong": "a row is not what the document, or the project's file, says",
    "hot-bare": "content is missing that is too young to have been evicted",
    "hot-ahead": "a row claims to be newer than master's tip",
    "hot-damaged": "content does not open, or is not what master holds",
    "emergency-stale": "the emergency cache holds another revision or path than master's",
    "emergency-damaged": "the emergency cache's copy can't be read, or is not what master holds",
    "outbox-old": "a document has waited here for more than an hour",
    "outbox-refused": "a document that the server refused was set aside",
    "outbox-damaged": "a file of the outbox can't be read in full",
    "dump-old": "the last dump was made more than two days ago",
    "dump-failed": "the last dump failed",
    "drill-old": "no dump was restored for a trial in the last 35 days",
    "drill-failed": "the last trial of a dump failed",
}
SECONDS = 3000.0

_PASSES = 3
_WAITED = timedelta(hours=1)
_DUMP_AGE, _DRILL_AGE = timedelta(days=2), timedelta(days=35)
_NAMES = [field.name for field in fields(Session)]
_values = attrgetter(*_NAMES)
_SMALL = 256 * 1024  # a document of so many bytes is never too big for the emergency cache

Tell = Callable[[str, int, int], None]


def _untold(*_: object) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How closely to look. ``sample`` is the percentage of contents to open."""

    quick: bool = False
    sample: float = 100.0
    seed: int = 0

    def chosen(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids whose content is looked at; the same ones for the same seed."""
        if self.quick or self.sample >= 100:
            return set() if self.quick else set(ids)
        everything = sorted(ids)
        count = math.ceil(len(everything) * self.sample / 100)
        return set(random.Random(self.seed).sample(everything, count))  # noqa: S311 - no secret


def verify(
    archive: Archive,
    scope: Scope,
    *,
    repair: bool = False,
    source: str = "",
    deadline: Deadline | None = None,
    tell: Tell = _untold,
) -> Audit:
    """Compare every tier with master; ``repair`` brings what differs in step, master wins.

    Findings that a second look does not have any more are ``healed``. Raises Locked when a sync
    is under way and something has to be repaired.
    """
    started, clock = now(), time.monotonic()
    deadline = deadline or Deadline(SECONDS)
    look = _Look(archive, scope, deadline, tell)
    found = look.run()
    for _ in range(_PASSES if repair and found else 0):  # a sound clone may show a wrong catalog
        with sync.running(archive):
            _Repair(archive, deadline).run(found, look.unfit)
        look = _Look(archive, scope, deadline, tell)
        before, found = found, _after(found, look.run())
        if found == before or all(item.healed for item in found):
            break
    audit = Audit(
        findings=tuple(found),
        sessions=look.checked.get("sessions", 0),
        checked=look.checked,
        commit=look.tip,
        quick=scope.quick,
        sample=scope.sample,
        seed=scope.seed,
        milliseconds=round((time.monotonic() - clock) * 1000),
    )
    archive.record(_run(audit, started, source))
    return audit


def _after(before: Iterable[Finding], left: Iterable[Finding]) -> list[Finding]:
    """What was found before, healed where it is not ``left``, and what came to light since."""
    still = {_key(item): item for item in left}
    seen = {_key(item) for item in before}
    known = [still.get(_key(item)) or _healed(item) for item in before]
    return known + [item for key, item in still.items() if key not in seen]


def _key(item: Finding) -> tuple[str, str, str]:
    return (item.kind, item.where, item.about)


def _healed(item: Finding) -> Finding:
    return replace(item, healed=True)


def _run(audit: Audit, started: str, source: str) -> Run:
    kinds = [item.kind for item in audit.findings if not item.healed]
    counts: dict[str, object] = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    healed = len(audit.findings) - len(kinds)
    details = {**audit.checked, **counts, "healed": healed, "commit": audit.commit}
    status = "findings" if kinds else "ok"
    return Run("verify", status, started, now(), source, os.uname().nodename, details)


class _Look:
    """One look at everything. ``unfit``: ids whose cached copies must be written again."""

    def __init__(self, archive: Archive, scope: Scope, deadline: Deadline, tell: Tell) -> None:
        self.archive = archive
        self.scope = scope
        self.deadline = deadline
        self.tell = tell
        self.checked: dict[str, int] = {}
        self.unfit: set[str] = set()
        self.tip = ""
        self._sums: dict[str, str] = {}  # MD5 by blob id
        self._rows: list[Session] = []  # what the catalog shows of the tip
        self._learned: list[tuple[str, str, str]] = []
        self._stale: set[str] = set()

    def run(self) -> list[Finding]:
        found = [*self._outbox(), *self._dumps(), *self._remote()]
        # SQLite and git check themselves while we look elsewhere.
        sound = begin(self.archive.master.check) if self._checks_objects() else None
        try:
            self.tip = self.archive.master.tip()
            if self.tip:
                self.archive.master.must_fit(self.tip)
            files = self.archive.master.tree(self.tip, lambda _: True)
        except StorageError as error:
            found.append(_clone(error.message))
        except (KeyProblem, ScopeMismatch) as error:
            found.append(_locked(error))
        else:
            found += self._compared(files)
        return found + list(self._objects(sound))

    def _compared(self, files: dict[str, str]) -> list[Finding]:
        """All that is compared with master's files. A catalog that SQLite then finds damaged is
        not to be believed, and nothing that was compared with it."""
        catalog = self.archive.catalog
        whole: Future[str] | None = None
        found, said = list[Finding](), ""
        try:
            self.archive.follower.refresh()
            whole = None if self.scope.quick else begin(catalog.damage)
            found += self._against(files)
        except StorageError as error:
            said = error.message
        said = (whole.result() if whole else "") or said
        if said:
            catalog.reopen()
            self.unfit.clear()
            return list(self._against(files, said))
        if self._learned or self._stale:
            catalog.examine(self._learned, self._stale)
        return found

    def _against(self, files: dict[str, str], damage: str = "") -> Iterator[Finding]:
        """What is not as master's files say; with ``damage`` nothing is asked of the catalog."""
        master = self.archive.master
        tree = {path: oid for path, oid in files.items() if master.included(path)}
        here = [_damaged(damage)] if damage else list(self._catalog(files, tree))
        sound = not any(item.where == "catalog" for item in here)
        here += self._documents(tree, compare=sound)
        here += self._projects(files) if sound else ()
        yield from here
        with tempfile.TemporaryDirectory() as folder:
            archive = self.archive
            follower = archive.follower
            if any(item.where == "catalog" for item in here):  # not to be believed
                self._rows = []
                truth = Catalog(os.path.join(folder, "catalog.sqlite"))
                follower = Follower(archive.master, truth, archive.outbox)
            try:
                follower.refresh()
                yield from self._caches(follower)
            except StorageError as error:
                yield _clone(error.message)
            finally:
                if follower is not archive.follower:
                    follower.catalog.close()

    # --- this machine ------------------------------------------------------------------------

    def _outbox(self) -> Iterator[Finding]:
        outbox = self.archive.outbox
        drafts, _ = outbox.read()
        self.checked["waiting"] = len(drafts)
        for path in outbox.damaged():
            yield sync.outbox_damage(path)
        for draft in drafts:
            if _older(draft.at, _WAITED):
                what = f"has waited since {draft.at}: {draft.title or draft.path}"
                yield Finding("outbox-old", "outbox", draft.key, what, "annoris sync")
        for draft, reason in outbox.aside():
            mend = f"annoris outbox retry {draft.key}"
            yield Finding("outbox-refused", "outbox", draft.key, reason, mend)

    def _dumps(self) -> Iterator[Finding]:
        """Whether dumps are made and tried, where any was ever made."""
        runs = self.archive.runs
        for kind, age in (("dump", _DUMP_AGE), ("drill", _DRILL_AGE)):
            last = next(iter(runs.recent(1, kind)), None)
            dumped = last or next(iter(runs.recent(1, "dump")), None)
            mend = "annoris dump --drill" if kind == "drill" else "annoris dump"
            if last and last.status == "failed":
                said = str(last.details.get("error", "it failed"))
                yield Finding(f"{kind}-failed", "dump", last.started, said, mend)
            elif dumped and _older((last or dumped).started, age):
                when = f"the last {kind} was {last.started}" if last else f"there was no {kind}"
                yield Finding(f"{kind}-old", "dump", "", when, mend)

    # --- master and the clone ------------------------------------------------------------------

    def _remote(self) -> Iterator[Finding]:
        archive = self.archive
        if archive.master.embedded:
            return
        limits = archive.settings.master
        try:
            sync.follow(archive, Deadline(self.deadline.left(limits.fetch_seconds)))
        except MasterShrunk as error:
            yield Finding("master-shrunk", "master", "", error.message, error.hint)
        except (RemoteUnreachable, RemoteRefused) as error:
            if self._answers():  # so git failed of what is here
                yield _clone(error.message)
                return
            archive.remember(error)
            yield Finding("tier-down", "master", "", error.message, error.hint)
        except StorageError as error:
            yield _clone(error.message)
        except (KeyProblem, ScopeMismatch):
            return  # it is told of with the tip that is known here

    def _answers(self) -> bool:
        """Whether master answers a question for which the clone needs no objects."""
        master = self.archive.master
        try:
            return master.branch in master.branches(Deadline(self.deadline.left(10)))[0]
        except AnnorisError:
            return False

    def _checks_objects(self) -> bool:
        return not self.scope.quick and self.archive.master.exists()

    def _objects(self, sound: Future[str] | None) -> Iterator[Finding]:
        if sound is None:
            return
        while not sound.done():
            self.tell("git fsck", 0, 0)
            time.sleep(0.05)
        for line in sound.result().splitlines()[:20]:
            yield _clone(line)

    # --- the catalog and the documents -----------------------------------------------------------

    def _catalog(self, files: dict[str, str], tree: dict[str, str]) -> Iterator[Finding]:
        for path in filter(self.archive.master.layout.stray, files):
            yield sync.unfit(path, "it does not have the form of this master, and is not shown")
        unopened = sync.unopened(self.archive, tree)
        yield from (sync.unfit(path, why) for path, why in unopened.items())
        expected = {path: oid for path, oid in tree.items() if path not in unopened}
        self._rows = self.archive.catalog.settled()
        for change in plan.changes({row.path: row.oid for row in self._rows}, expected):
            kind = "missing" if change.added else "stale" if change.oid else "surplus"
            yield _repairable(f"catalog-{kind}", "catalog", change.path)

    def _documents(self, tree: dict[str, str], *, compare: bool) -> Iterator[Finding]:
        """Each document's bytes and structure, and what the catalog says of it."""
        if self.scope.quick:
            self.checked["sessions"] = len(tree)
            return
        catalog = self.archive.catalog
        entries = [Entry(path, tree[path]) for path in sorted(self.scope.chosen(tree))]
        self.checked["sessions"] = len(entries)
        rows = {row.path: row for row in self._rows} if compare else {}
        found = catalog.examined() if compare else ()
        known = {Entry(path, oid): said for oid, path, said in found}
        for entry, data in self._read(entries):
            if data is None:
                yield _clone(f"the object {entry.oid} of {entry.path} can't be read, or is another")
                continue
            self._sums[entry.oid] = md5(data)
            said = _parsed(known.get(entry, "")) or self._examined(entry, data)
            yield from self._judged(entry, said, rows.get(entry.path))
        if compare:
            if len(entries) == len(tree):
                self._stale = {entry.oid for entry in known} - set(tree.values())
            yield from (sync.double(path, id) for path, id in catalog.doubles().items())

    def _examined(self, entry: Entry, data: bytes) -> list[object]:
        """What a document says of itself, and before it what is wrong with it, if anything."""
        most = self.archive.settings.save.max_bytes
        problem = sync.document_problem(entry.path, data, most)
        said = [problem, *_values(make_row(entry.path, entry.oid, data).session)]
        self._learned.append((entry.oid, entry.path, json.dumps(said)))
        return said

    def _judged(self, entry: Entry, said: list[object], row: Session | None) -> Iterator[Finding]:
        if said[0]:
            yield sync.unfit(entry.path, str(said[0]))
        if row and not _agrees(row, said[1:], self.archive.catalog.canonical):
            yield _repairable("catalog-wrong", "catalog", entry.path)

    def _read(self, entries: list[Entry]) -> Iterator[tuple[Entry, bytes | None]]:
        """Each document; None for one that is damaged here. What does not open is left out."""
        left, master = dict.fromkeys(entries), self.archive.master
        try:
            for entry, data in master.blobs(entries, bad=lambda entry, _: left.pop(entry)):
                del left[entry]
                self.tell("documents", len(entries) - len(left), len(entries))
                yield entry, data
        except StorageError:
            for entry in left:
                try:
                    yield entry, master.blob(entry.oid, entry.path)
                except StorageError:
                    yield entry, None
                except KeyProblem:
                    continue

    def _projects(self, files: dict[str, str]) -> Iterator[Finding]:
        """Each project's file, and what the catalog says of it."""
        if self.scope.quick:
            return
        shown, problems = self.archive.catalog.filed()
        for problem in problems:
            path = problem.partition(":")[0]
            mend = "mend that file on master"
            yield Finding("project-unreadable", "master", path, problem, mend)
        known = {project.path: project for project in shown}
        paths = [path for path in files if self.archive.master.layout.is_project(path)]
        for entry, data in self._read([Entry(path, files[path]) for path in paths]):
            file = project_file(entry.path, data) if data else None
            expected = file.project if file else None
            if entry.path in known and not _same(known[entry.path], expected):
                yield _repairable("catalog-wrong", "catalog", entry.path)
        for path in known.keys() - set(paths):
            yield _repairable("catalog-wrong", "catalog", path)

    # --- the caches ------------------------------------------------------------------------------

    def _caches(self, follower: Follower) -> Iterator[Finding]:
        settings, caches = self.archive.settings, self.archive.caches
        for tier, url, work in (
            ("hot", settings.hot.url, self._ask_hot),
            ("emergency", settings.emergency.url, self._ask_emergency),
        ):
            if not url:
                continue
            found = work(follower)
            if found is None:
                why = caches.why_not("hot" if tier == "hot" else "emergency")
                mend = "annoris doctor"
                yield Finding("tier-down", tier, "", f"it {why}", mend)
            else:
                yield from found

    def _mirror(self, follower: Follower) -> Mirror:
        ask = sync.asking(self.archive, self.deadline, follower)
        return Mirror(self.archive.caches, follower, self.archive.settings.hot, ask)

    def _ask_hot(self, follower: Follower) -> list[Finding] | None:
        seconds = self.deadline.left(self.archive.settings.hot.sync_seconds)
        mirror = self._mirror(follower)
        catalog = follower.catalog
        return self.archive.caches.survey(
            lambda hot: list(self._hot(hot, mirror, catalog)), seconds
        )

    def _hot(self, hot: Hot, mirror: Mirror, catalog: Catalog) -> Iterator[Finding]:
        from annoris.hot import VERSION  # noqa: PLC0415

        view, state = mirror.view(), hot.state()
        if state.version != VERSION or state.master not in ("", view.identity):
            words = KINDS["hot-absent"]
            yield Finding("hot-absent", "hot", "", words, "annoris sync")
            return
        if problem := self.archive.caches.unfit_key(state.proof):
            yield Finding("hot-key", "hot", "", problem, "annoris key import")
            return
        known = self._rows if view.tip == self.tip else []
        sessions = {row.id: row for row in known} or mirror.sessions()
        found = mirror.compare(hot, view, sessions)
        if any(item.kind == "ahead" for item in found) and not mirror.is_newest(view):
            found = [item for item in found if item.kind != "ahead"]
        for item in found:
            about = item.session.path if item.session else item.id
            yield _repairable(f"hot-{item.kind}", "hot", about)
        if state.commit == view.tip:  # a save brings no projects, the next sync does
            filed = catalog.filed()[0]
            for name in hot.misfiled(map(self.archive.caches.filed, filed)):
                yield _repairable("hot-wrong", "hot", f"project {name}")
        differing = {item.id for item in found}
        yield from self._hot_contents(hot, sessions, differing)

    def _hot_contents(
        self, hot: Hot, sessions: dict[str, Session], differing: set[str]
    ) -> Iterator[Finding]:
        chosen = self.scope.chosen(sessions.keys() - differing)
        for done, row in enumerate(hot.contents(sorted(chosen)), 1):
            self.tell("hot cache", done, len(chosen))
            session = sessions[row.session.id]
            if row.session.oid != session.oid:
                continue  # somebody saved it just now
            _, why = self.archive.caches.read(row)
            expected = self._sums.get(session.oid)
            if why:
                self.unfit.add(session.id)
                yield replace(_repairable("hot-damaged", "hot", session.path), message=why)
            elif expected and row.checksum != expected:
                self.unfit.add(session.id)
                yield _repairable("hot-wrong", "hot", session.path)
        self.checked["cached"] = len(chosen)

    def _ask_emergency(self, follower: Follower) -> list[Finding] | None:
        mirror = self._mirror(follower)
        return self.archive.caches.emergency(lambda cache: list(self._emergency(cache, mirror)))

    def _emergency(self, cache: Emergency, mirror: Mirror) -> Iterator[Finding]:
        view, sessions = mirror.view(), mirror.sessions()
        held = cache.entries()
        for id, (oid, position) in held.items():
            session = sessions.get(id)
            if position > view.position and not mirror.is_newest(view):
                continue
            if position < 0:
                yield _repairable("emergency-damaged", "emergency", id)
            elif session is None or session.oid != oid:
                yield _repairable("emergency-stale", "emergency", id)
            elif not self.scope.quick:
                yield from self._held(cache, session)
        here = [sessions[id] for id in held.keys() & sessions.keys()]
        yield from self._led(cache, here)

    def _led(self, cache: Emergency, here: list[Session]) -> Iterator[Finding]:
        """Indexes that lead to another session than the newest of those that are here.

        One that leads to what is not here any more answers nothing, and does no harm.
        """
        due = cache.pointers_to(map(self.archive.caches.listed, here))
        ids = {session.id for session in here}
        for index, id in cache.pointers().items():
            if id in ids and due.get(index) != id:
                yield _repairable("emergency-stale", "emergency", id)

    def _held(self, cache: Emergency, session: Session) -> Iterator[Finding]:
        try:
            row = cache.get(session.id)
        except StorageError as error:
            row, why = None, error.message
        else:
            why = self.archive.caches.read(row)[1] if row else ""
        if row and row.session != self.archive.caches.listed(session):
            yield _repairable("emergency-stale", "emergency", session.id)
        elif row and not row.content and session.size < _SMALL:
            why = "its content is missing"
        if why:
            damaged = _repairable("emergency-damaged", "emergency", session.id)
            yield replace(damaged, message=why)


class _Repair:
    """What can be made from what others hold is made, the clone first."""

    def __init__(self, archive: Archive, deadline: Deadline) -> None:
        self.archive = archive
        self.deadline = deadline

    def run(self, found: Iterable[Finding], unfit: Iterable[str]) -> None:
        kinds = {item.kind for item in found if not item.healed}
        parts = {kind.partition("-")[0] for kind in kinds}
        for part, work in (
            ("clone", self._clone),
            ("catalog", self._catalog),
            ("hot", lambda: self._hot(frozenset(unfit))),
            ("emergency", lambda: self._emergency(found)),
            ("outbox", self._outbox),
        ):
            if part in parts:
                try:
                    work()
                except AnnorisError:
                    continue  # the second look says what is still wrong, and why

    def _clone(self) -> None:
        archive = self.archive
        with archive.master.lock(Deadline(self.deadline.left(30))):
            if archive.master.embedded:
                self._embedded()
                return
            fresh = archive.master.fresh(self.deadline)
            if self._loses_much(fresh.tree(fresh.tip())):
                shutil.rmtree(fresh.folder)
                return  # what a fetch would refuse to accept is not accepted by this way either
            archive.master.give_way(fresh)
            archive.follower.mark_checked()

    def _loses_much(self, tree: dict[str, str]) -> bool:
        try:
            shown = self.archive.catalog.entries()
        except StorageError:
            return not tree
        return plan.shrinks(len(shown), plan.vanishing(shown, plan.changes(shown, tree), set()))

    def _embedded(self) -> None:
        """Without a remote: the branch from its log, documents from the hot cache."""
        master = self.archive.master
        try:
            master.tree(master.tip())
        except StorageError:
            master.recall()
        for row in self.archive.catalog.settled():
            try:
                master.blob(row.oid, row.path)
            except StorageError:  # an envelope can't be made again with the same blob id
                data = None if master.layout.sealed else self._from_hot(row)
                if data is not None:
                    master.restore(row.oid, data)

    def _from_hot(self, row: Session) -> bytes | None:
        seconds = self.archive.settings.hot.seconds
        rows: list[Cached] = self.archive.caches.survey(lambda hot: hot.get(row.id), seconds) or []
        fitting = [held for held in rows if held.session.oid == row.oid]
        return self.archive.caches.read(fitting[0])[0] if fitting else None

    def _catalog(self) -> None:
        self.archive.catalog.discard()
        self.archive.follower.refresh()
        self.archive.follower.overlay()

    def _hot(self, unfit: frozenset[str]) -> None:
        self.archive.follower.refresh()
        sync.mirror(self.archive, self.deadline).bring(self.deadline, full=True, again=unfit)

    def _emergency(self, found: Iterable[Finding]) -> None:
        bad = [item.about for item in found if item.where == "emergency" and item.about]
        self.archive.caches.emergency(lambda cache: [cache.drop(id) for id in bad])
        sync.mirror(self.archive, self.deadline).sweep()

    def _outbox(self) -> None:
        _, damaged = self.archive.outbox.read()
        for path in damaged:
            self.archive.outbox.put_away(path)


# --- words -------------------------------------------------------------------------------------


def _clone(message: str) -> Finding:
    return Finding(
        "clone-damaged", "clone", message, KINDS["clone-damaged"], "annoris verify --repair"
    )


def _damaged(message: str) -> Finding:
    return Finding("catalog-damaged", "catalog", "", message, "annoris verify --repair")


def _locked(error: AnnorisError) -> Finding:
    return Finding("master-key", "master", "", error.message, error.hint)


def _repairable(kind: str, where: str, about: str) -> Finding:
    return Finding(kind, where, about, KINDS[kind], "annoris verify --repair")


def _older(moment: str, age: timedelta) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(moment) > age
    except (ValueError, TypeError):
        return True


def _parsed(said: str) -> list[object] | None:
    """What was kept of a document; None when nothing, or nothing that can be read."""
    try:
        found = json.loads(said) if said else None
    except ValueError:
        return None
    whole = isinstance(found, list) and len(found) == len(_NAMES) + 1
    return found if whole else None


def _same(shown: Project, expected: Project | None) -> bool:
    """Whether the catalog shows a project as its file says it."""
    if expected is None or set(shown.was) != set(expected.was):
        return False
    return replace(shown, was=(), sessions=0, newest="") == replace(
        expected, was=(), sessions=0, newest=""
    )


def _agrees(row: Session, said: list[object], canonical: Callable[[str], str]) -> bool:
    """Whether the catalog's row is what the document says; git alone knows some times."""
    values = list(_values(row))
    if values == said:
        return True
    expected = dict(zip(_NAMES, said, strict=True))
    found = dict(zip(_NAMES, values, strict=True))
    if found["project"] != expected["project"]:
        expected["project"] = canonical(str(expected["project"]))
    if found["id"] not in (expected.pop("id"), id_of(row.path)):
        return False
    for name in ("created", "saved"):
        if not expected[name] or not expected["saved"]:
            del expected[name]
    return all(found[name] == value for name, value in expected.items())
