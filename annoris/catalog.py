"""The catalog: a SQLite projection of master, for selecting, listing and searching.

It can be deleted at any time. It knows neither git nor Markdown: callers hand it rows. Two
layers lie in it: what master's tip holds, and over it what waits in the outbox. An entry of
the outbox hides master's row of the same id; every reading method but ``base`` and
``entries`` sees the result.

Methods raise StorageError, with what to do, when SQLite can't go on. Damage costs nothing but
time: the file is deleted on the spot, the catalog is empty afterwards (``commit`` is "") and
is filled by the next ``apply``. One thread at a time may use a Catalog.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any

from annoris.dataclass import dataclass
from annoris.errors import DiskFull, StorageError, UsageError
from annoris.model import CAPTURED, Deadline, Hit, Project, ProjectFile, Session

VERSION = 4  # of sql/catalog.sql; a catalog of another version is thrown away
_TEXTLESS = -VERSION  # the version of one without texts, so that no text stays in the file

_BUSY_SECONDS = 5.0
_CHUNK = 2_000_000  # characters of text that are held in memory
_MOST_WORDS = 100  # of a search: its time grows with their square
_DAMAGE = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    # Statements are constant, and paths are kept unique without help: where either fails, the
    # schema is not ours or an index does not tell what the table holds.
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
}

_NAMES = [field.name for field in fields(Session)]
_FIELDS = ", ".join(_NAMES)
_values = attrgetter(*_NAMES)
_SELECT = f"SELECT {_FIELDS} FROM sessions WHERE "  # noqa: S608 - constants only
_STATE = "SELECT value FROM state WHERE key = ?"
_NEWEST = " ORDER BY saved DESC, id DESC"
# The same for the few that a name or an id finds. A plus keeps SQLite from an index: it would
# take the one that needs no sorting, and look through every session of a project.
_SORTED = " ORDER BY +saved DESC, +id DESC"
_INSERT = (
    f"INSERT INTO sessions (layer, claim, fallback, folded, stated, {_FIELDS}) "  # noqa: S608 - constants
    f"VALUES ({', '.join('?' * (5 + len(_NAMES)))})"
)

# A claim that equals some file's fallback belongs to that file, else to the smallest path. So
# ids are unique, and a function of the set of rows alone.
_SETTLE_IDS = """
WITH settled (n, id) AS (
    SELECT n, CASE WHEN EXISTS (
        SELECT 1 FROM sessions AS o WHERE o.layer = 0 AND o.fallback = s.claim
    ) OR EXISTS (
        SELECT 1 FROM sessions AS o
        WHERE o.layer = 0 AND o.claim = s.claim AND o.path < s.path
    ) THEN fallback ELSE claim END
    FROM sessions AS s WHERE layer = 0 AND claim IN (SELECT id FROM touched)
)
UPDATE sessions SET id = settled.id
FROM settled WHERE settled.n = sessions.n AND settled.id <> sessions.id
"""
_UNHIDE = """
UPDATE sessions SET shown = 1 WHERE shown = 0 AND id NOT IN (SELECT id FROM waiting)
"""
_HIDE = """
UPDATE sessions SET shown = 0 WHERE layer = 0 AND id IN (SELECT id FROM waiting)
"""

# A project that got another name takes its sessions along, whatever their documents say.
_RENAME = """
UPDATE sessions SET project = ifnull((SELECT name FROM former WHERE alias = stated), stated)
WHERE project <> ifnull((SELECT name FROM former WHERE alias = stated), stated)
"""
_PROJECT = "SELECT name, id, status, priority, target_revenue, current_revenue, created, path"

# The best first, without snippets, which cost more than ranks; then one pass for theirs. The
# unary plus keeps SQLite from a full-text query for each of them.
_SEARCH = f"""
WITH best (row, score) AS (
    SELECT n, -bm25(texts, 8, 4, 1) AS score
    FROM texts CROSS JOIN sessions ON n = texts.rowid
    WHERE texts MATCH ?1 AND shown = 1 AND project = ifnull(?2, project)
    ORDER BY score DESC, saved DESC, id DESC LIMIT ?3
)
SELECT snippet(texts, -1, char(2), char(3), '…', 12), score, {
    ", ".join(f"sessions.{name}" for name in _NAMES)
}
FROM texts CROSS JOIN best ON row = +texts.rowid CROSS JOIN sessions ON n = row
WHERE texts MATCH ?1
ORDER BY score DESC, saved DESC, id DESC
"""  # noqa: S608 - constants only

# Scripts that put no spaces between words: Thai and Lao, Myanmar, Khmer, Chinese and Japanese.
_UNSPACED = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
    "\U0001b000-\U0001b2ff\U00020000-\U0003ffff]+"
)
_BETWEEN = "\u200b"  # zero-width space: FTS5 ends a word there
_QUERY = r'"([^"]*)"?|([^\s"]+)'


# In the class below, "list" is its method.
Sessions = list[Session]
Hits = list[Hit]
Projects = list[Project]
Names = list[str]
Records = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Row:
    """A session to be shown. ``text`` is its body, for search.

    ``session.id`` is the id that the document asks for; ``fallback``, made from the path, is
    the one it gets when another file on master keeps that.
    """

    session: Session
    fallback: str
    text: str


class Catalog:
    def __init__(self, path: str, *, text: bool = True) -> None:
        """Open the catalog at ``path``; one missing, damaged or of another version is made anew.

        Without ``text`` it holds no bodies, and searches titles and names only. Each kind makes
        the other's file anew.
        On a disk that can't be written an existing one is read as it is; without one, the
        catalog lives in memory.
        """
        self._path = path
        self._text = text
        self._db = self._opened()
        self._former: dict[str, str] = {}
        self._checking = threading.Lock()

    def close(self) -> None:
        self._db.close()

    def reopen(self) -> None:
        """Look at the file anew, as opening does."""
        self._db.close()
        self._db = self._opened()

    def _opened(self) -> sqlite3.Connection:
        return _open(self._path, VERSION if self._text else _TEXTLESS)

    def discard(self) -> None:
        """Throw the file away; the next ``apply`` fills a new one."""
        self._db.close()
        with suppress(OSError):
            _delete(self._path)
        self._db = self._opened()

    # --- writing -----------------------------------------------------------------------------

    @property
    def commit(self) -> str:
        """The commit of master that layer 0 shows; empty when it was never filled."""
        return self._state("commit")

    @property
    def overlaid(self) -> str:
        """The commit that layer 0 showed when ``overlay`` was last called."""
        return self._state("overlaid")

    @property
    def master(self) -> str:
        """Which master layer 0 shows, in the words of the last ``apply``."""
        return self._state("master")

    def apply(
        self,
        *,
        commit: str,
        master: str = "",
        upserts: Iterable[Row],
        removals: Iterable[str] = (),
        projects: Iterable[ProjectFile] = (),
        replace_all: bool = False,
        after: str | None = None,
        patience: float = _BUSY_SECONDS,
    ) -> bool:
        """Make layer 0 show ``commit``: paths removed, then rows added or replaced by path.

        One transaction, which other writers wait for; ``upserts`` is consumed row by row.
        Paths of projects are removed and replaced in the same way.
        ``replace_all`` starts from nothing. ``after`` names the commit that the changes start
        from: when layer 0 shows another by now, nothing happens and the answer is False.
        ``patience``: seconds to wait for another writer.
        """
        with self._writing(patience):
            if after is not None and after != _value(self._run(_STATE, "commit").fetchall()):
                return False
            self._run("CREATE TEMP TABLE touched (id TEXT PRIMARY KEY) WITHOUT ROWID")
            if replace_all:
                self._empty()
            gone = list(removals)
            self._remove(gone)
            renamed = self._put_projects(gone, list(projects))
            for chunk in _chunks(upserts):
                self._remove(chunk)
                for row in chunk.values():
                    self._insert(0, row)
            self._run(_SETTLE_IDS)
            self._run("DROP TABLE touched")
            if renamed or replace_all:
                self._run(_RENAME)
            for key, value in (("commit", commit), ("master", master)):
                self._run("INSERT OR REPLACE INTO state VALUES (?, ?)", key, value)
        return True

    def overlay(self, rows: Iterable[Row], deleted: Iterable[tuple[str, str]]) -> None:
        """Make layer 1 show this and nothing else: waiting saves, and deletes as (id, key).

        Of several rows of one id the last shows, unless a delete's key sorts after its own.
        """
        rows, deleted = list(rows), list(deleted)
        latest = {row.session.id: row for row in rows}
        removed: dict[str, str] = {}
        for id, key in deleted:
            removed[id] = max(key, removed.get(id, ""))
        waiting = [(row.session.pending, row.session.id) for row in rows]
        waiting += [(key, id) for id, key in deleted]
        with self._writing():
            self._run("DELETE FROM texts WHERE rowid IN (SELECT n FROM sessions WHERE layer = 1)")
            self._run("DELETE FROM sessions WHERE layer = 1")
            self._run("DELETE FROM waiting")
            for key, id in waiting:
                self._run("INSERT OR REPLACE INTO waiting VALUES (?, ?)", key, id)
            for id, row in latest.items():
                if row.session.pending > removed.get(id, ""):
                    self._insert(1, row)
            self._run(
                "INSERT OR REPLACE INTO state SELECT 'overlaid', value FROM state WHERE key = ?",
                "commit",
            )

    def overlay_keys(self) -> frozenset[str]:
        """The keys of all that the last ``overlay`` was given, hidden ones included."""
        return frozenset(key for (key,) in self._rows("SELECT key FROM waiting"))

    # --- reading -----------------------------------------------------------------------------

    def get(self, id: str) -> Session | None:
        return self._one("id = ? AND +shown = 1", id)

    def at(self, path: str) -> Session | None:
        """The session at a path; one that waits goes before one that is there."""
        return self._one("path = ? AND shown = 1 ORDER BY layer DESC, pending DESC", path)

    def base(self, id: str) -> Session | None:
        """What master holds under an id, whatever waits in the outbox."""
        return self._one("id = ? AND layer = 0", id)

    def named(self, project: str, name: str) -> Sessions:
        """All sessions of that name in the project, newest first; normally one."""
        where = "shown = 1 AND project = ? AND name = ? AND name <> ''"
        return self._sessions(where + _SORTED, project, name)

    def holders(self, project: str, name: str) -> Sessions:
        """Sessions of that name on master, whatever waits in the outbox."""
        where = "shown IN (0, 1) AND project = ? AND name = ? AND name <> '' AND layer = 0"
        return self._sessions(where, project, name)

    def prefixed(self, prefix: str) -> Sessions:
        """Sessions of which the id, or its last eight digits, starts so; newest first."""
        prefix = prefix.lower()
        if not re.fullmatch(r"[0-9a-f-]+", prefix):
            return []
        end = prefix + "g"  # sorts after everything that starts with the prefix
        where = (
            "(id >= ?1 AND id < ?2 OR substr(id, -8) >= ?1 AND substr(id, -8) < ?2) AND +shown = 1"
        )
        return self._sessions(where + _SORTED, prefix, end)

    def newest(self, project: str | None) -> Session | None:
        """The session saved last, of a project or of all; at the same second the greater id.

        One that was captured only when there is no other.
        """
        where, values = "shown = 1", []
        if project is not None:
            where, values = f"{where} AND project = ?", [project]
        written = self._one(f"{where} AND folded <> ?{_NEWEST}", *values, CAPTURED)
        return written or self._one(where + _NEWEST, *values)

    def list(
        self,
        *,
        project: str | None = None,
        status: str | None = None,
        since: str | None = None,
        limit: int | None = 20,
        before: tuple[str, str] | None = None,
    ) -> Sessions:
        """Sessions, newest first, saved at ``since`` or later; case in ``status`` is ignored.

        ``before`` is the (saved, id) of the last session of the page before.
        """
        where, values = "shown = 1", []
        folded = None if status is None else _folded(status)
        for term, value in (("project =", project), ("folded =", folded), ("saved >=", since)):
            if value is not None:
                where += f" AND {term} ?"
                values.append(value)
        if before is not None:
            where += " AND (saved, id) < (?, ?)"
            values += before
        return self._sessions(f"{where}{_NEWEST} LIMIT ?", *values, -1 if limit is None else limit)

    def count(self, *, project: str | None = None) -> int:
        if project is None:  # all rows are counted by pages, without a look at one of them
            all_but = "SELECT (SELECT count(*) FROM sessions) - count(*)"
            return int(self._rows(f"{all_but} FROM sessions WHERE shown = 0")[0][0])
        sql = "SELECT count(*) FROM sessions WHERE shown = 1 AND project = ?"
        return int(self._rows(sql, project)[0][0])

    def search(self, text: str, *, project: str | None = None, limit: int = 20) -> Hits:
        """Sessions that hold every word (or a longer one) and every "quoted phrase", best first.

        A single letter stands for itself only: words that begin with it are nearly everywhere.
        A word in the title counts most, then in the name; among equals the newest goes first;
        a higher score is better. Raises UsageError when there is no letter or digit to look
        for, or too much.
        """
        rows = self._rows(_SEARCH, _query(text), project, limit)
        return [Hit(_session(row), _readable(snippet), score) for snippet, score, *row in rows]

    def projects(self) -> Projects:
        """All projects by name, with the number of sessions and when the newest was saved."""
        sql = "SELECT project, count(*), max(saved) FROM sessions WHERE shown = 1 GROUP BY project"
        counted = {_decoded(name): numbers for name, *numbers in self._rows(sql)}
        known = {project.name: project for project in self.filed()[0]}
        return [
            replace(known.get(name) or Project(name), sessions=number, newest=newest)
            for name in sorted(known.keys() | counted.keys())
            for number, newest in [counted.get(name, (0, ""))]
        ]

    def filed(self) -> tuple[Projects, Names]:
        """The projects that have a file on master, and what is wrong with other such files.

        Of several files that claim one name or one id, the one of the smallest path counts.
        """
        aliases: dict[str, Names] = {}
        for alias, path in self._rows("SELECT alias, path FROM aliases"):
            aliases.setdefault(path, []).append(alias)
        names: dict[str, Project] = {}
        ids: dict[str, Project] = {}
        broken = self._rows("SELECT problem FROM projects WHERE name = '' ORDER BY path")
        problems = [_decoded(problem) for (problem,) in broken]
        for row in self._rows(f"{_PROJECT} FROM projects WHERE name <> '' ORDER BY path"):
            project = _project(row, aliases.get(row[-1], []))
            if twin := names.get(project.name):
                problems.append(f"{project.path}: has the name of {twin.path}, which counts")
            elif twin := ids.get(project.id):
                problems.append(f"{project.path}: has the id of {twin.path}, which counts")
            else:
                names[project.name] = ids[project.id] = project
        return list(names.values()), problems

    def project(self, name: str) -> Project | None:
        """The project of a name, present or former, that has a file on master."""
        sql = f"{_PROJECT} FROM projects WHERE name = ? ORDER BY path LIMIT 1"
        for row in self._rows(sql, self.canonical(name)):
            aliases = self._rows("SELECT alias FROM aliases WHERE path = ?", row[-1])
            return _project(row, [alias for (alias,) in aliases])
        return None

    def canonical(self, name: str) -> str:
        """The name that a project has now, for one that it has or had."""
        found = self._rows("SELECT name FROM former WHERE alias = ?", name)
        return str(found[0][0]) if found else name

    def project_at(self, path: str) -> str | None:
        """The name of the project whose file lies there, empty for a broken one, None for none."""
        found = self._rows("SELECT name FROM projects WHERE path = ?", path)
        return str(found[0][0]) if found else None

    def twin(self, project: str, body_md5: str) -> Session | None:
        """The newest session of a project that has the same body."""
        return self._one("shown = 1 AND project = ? AND body_md5 = ?" + _SORTED, project, body_md5)

    def settled(self) -> Sessions:
        """Every session that master holds, whatever waits in the outbox."""
        return self._sessions("layer = 0")

    def entries(self) -> dict[str, str]:
        """Layer 0 as path → blob id."""
        rows = self._rows("SELECT path, oid FROM sessions WHERE layer = 0")
        return {_decoded(path): oid for path, oid in rows}

    def doubles(self) -> dict[str, str]:
        """Files on master that ask for an id that another one keeps: path → that id."""
        rows = self._rows(
            "SELECT path, claim FROM sessions WHERE layer = 0 AND claim <> id ORDER BY path"
        )
        return {_decoded(path): claim for path, claim in rows}

    def of(self, ids: Iterable[str], paths: Iterable[str]) -> Sessions:
        """What master holds under these ids or at these paths."""
        found = [row for id in ids for row in self._sessions("id = ? AND layer = 0", id)]
        found += [row for path in paths for row in self._sessions("path = ? AND layer = 0", path)]
        return list({row.path: row for row in found}.values())

    # --- what verify knows -------------------------------------------------------------------

    def damage(self) -> str:
        """What SQLite holds against the file, the full-text index included; empty when sound.

        By a connection of its own, so that another thread may read here meanwhile; one that
        writes waits, however long this takes.
        """
        try:
            with self._checking, closing(Catalog(self._path, text=self._text)) as other:
                said = [row[0] for row in other._rows("PRAGMA integrity_check(3)")]
                if said != ["ok"]:
                    return "; ".join(map(str, said))
                with other._guarded():
                    other._run("INSERT INTO texts (texts, rank) VALUES ('integrity-check', 1)")
        except StorageError as error:
            return error.message
        return ""

    def examined(self) -> Iterator[tuple[str, str, str]]:
        """What was found out about documents: (blob id, path, words of ``examine``)."""
        for oid, path, said in self._rows("SELECT oid, path, said FROM examined"):
            yield str(oid), _decoded(path), str(_decoded(said))

    def examine(self, found: Iterable[tuple[str, str, str]], stale: Iterable[str]) -> None:
        """Keep what was found out about documents, and forget the ``stale`` blob ids."""
        with self._checking, self._guarded(), self._db:
            self._run("BEGIN IMMEDIATE")
            for oid in stale:
                self._run("DELETE FROM examined WHERE oid = ?", oid)
            for oid, path, said in found:
                self._run("INSERT OR REPLACE INTO examined VALUES (?, ?, ?)", oid, path, said)

    # --- reading, for people -----------------------------------------------------------------

    def near(self, text: str, project: str | None, limit: int = 5) -> Names:
        """What a mistyped selector may have meant, best first: names and titles.

        With a slash in it: project/name and titles, of all projects.
        """
        from difflib import get_close_matches  # noqa: PLC0415

        anywhere = "/" in text
        known: dict[str, str] = {}
        for session in self.list(project=None if anywhere else project, limit=2000):
            name = f"{session.project}/{session.name}" if anywhere else session.name
            for candidate in (name if session.name else "", session.title):
                if candidate:
                    known.setdefault(candidate.casefold(), candidate)
        return [known[match] for match in get_close_matches(text.casefold(), known, limit)]

    # --- SQLite ------------------------------------------------------------------------------

    def _state(self, key: str) -> str:
        return _value(self._rows(_STATE, key))

    def _one(self, where: str, *values: object) -> Session | None:
        found = self._sessions(where + " LIMIT 1", *values)
        return found[0] if found else None

    def _sessions(self, where: str, *values: object) -> Sessions:
        return [_session(row) for row in self._rows(_SELECT + where, *values)]

    def _rows(self, sql: str, *values: object) -> Records:
        """All rows of a statement. Not within ``_writing``: damage closes the connection."""
        with self._guarded():
            return self._run(sql, *values).fetchall()

    def _run(self, sql: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except UnicodeEncodeError:  # a file's name that is not UTF-8
            return self._db.execute(sql, [_encoded(value) for value in values])
        except UnicodeDecodeError as error:  # SQLite's message quotes a damaged schema
            raise sqlite3.DatabaseError("damaged schema") from error

    def _remove(self, paths: Iterable[str]) -> None:
        """Take paths out of layer 0, their texts included."""
        sql = "SELECT n, claim, fallback FROM sessions WHERE path = ? AND layer = 0"
        found = [row for path in paths for row in self._run(sql, path)]
        for n, *ids in sorted(found):
            self._touch(ids)
            self._run("DELETE FROM texts WHERE rowid = ?", n)
            self._run("DELETE FROM sessions WHERE n = ?", n)

    def _put_projects(self, removals: Names, files: Sequence[ProjectFile]) -> bool:
        """Make removed and changed projects so; whether there was any."""
        rows = 0
        for path in (*removals, *(file.path for file in files)):
            rows += self._run("DELETE FROM projects WHERE path = ?", path).rowcount
            self._run("DELETE FROM aliases WHERE path = ?", path)
        for file in files:
            known = file.project or Project("")
            values = (
                *(file.path, known.name, known.id, known.status, known.priority),
                *(known.target_revenue, known.current_revenue, known.created, file.problem),
            )
            self._run("INSERT INTO projects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *values)
            for alias in known.was:
                self._run("INSERT OR IGNORE INTO aliases VALUES (?, ?)", alias, file.path)
        self._former = dict(self._run("SELECT alias, name FROM former").fetchall())
        return bool(rows or files)

    def _insert(self, layer: int, row: Row) -> None:
        session = row.session
        stated = session.project
        if stated in self._former:
            session = replace(session, project=self._former[stated])
        claim = session.id or row.fallback
        own = (layer, claim, row.fallback, _folded(session.status), stated)
        n = self._run(_INSERT, *own, *_values(session)).lastrowid
        body = row.text if self._text else ""
        texts = [_indexed(text) for text in (session.title, session.name, body)]
        self._run("INSERT INTO texts (rowid, title, name, body) VALUES (?, ?, ?, ?)", n, *texts)
        if layer == 0:
            self._touch((claim, row.fallback))

    def _touch(self, ids: Iterable[str]) -> None:
        """Note ids of which the owner must be found again."""
        for id in ids:
            self._run("INSERT OR IGNORE INTO touched VALUES (?)", id)

    def _empty(self) -> None:
        """Empty layer 0. The texts' index is made anew: deleting from it costs like filling it."""
        self._run(
            "CREATE TEMP TABLE kept AS SELECT rowid, title, name, body FROM texts "
            "WHERE rowid IN (SELECT n FROM sessions WHERE layer = 1)"
        )
        schema = self._run("SELECT sql FROM sqlite_master WHERE name = 'texts'").fetchone()[0]
        self._run("DROP TABLE texts")
        self._run(schema)
        # Bytes that FTS5 gathers before it writes: 1 MB by default, which costs a third more time.
        self._run("INSERT INTO texts (texts, rank) VALUES ('hashsize', 8000000)")
        self._run("INSERT INTO texts (rowid, title, name, body) SELECT * FROM kept")
        self._run("DROP TABLE kept")
        self._run("DELETE FROM sessions WHERE layer <> 1")
        self._run("DELETE FROM projects")
        self._run("DELETE FROM aliases")
        self._run("REINDEX sessions")  # heals damage that no statement has come across

    @contextmanager
    def _writing(self, patience: float = _BUSY_SECONDS) -> Iterator[None]:
        """One transaction, at whose end the outbox hides what it must of master."""
        with self._checking, self._guarded(), self._db:
            self._run(f"PRAGMA busy_timeout = {round(patience * 1000)}")
            self._run("BEGIN IMMEDIATE")
            self._former = dict(self._run("SELECT alias, name FROM former").fetchall())
            yield
            self._run(_UNHIDE)
            self._run(_HIDE)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a bug of ours, such as a closed connection
        except sqlite3.DatabaseError as error:
            if _code(error) in _DAMAGE:
                self._db.close()
                with suppress(OSError):
                    _delete(self._path)
                self._db = self._opened()
            raise _explained(error, self._path) from error


# --- opening a file ------------------------------------------------------------------------------


def _open(path: str, version: int) -> sqlite3.Connection:
    try:
        return _sound(path, version) or _renewed(path, version)
    except OSError:
        return _unwritable(path, version)
    except sqlite3.OperationalError as error:
        if _code(error) == sqlite3.SQLITE_BUSY:
            raise _explained(error, path) from error
        return _unwritable(path, version)


def _sound(path: str, version: int, query: str = "") -> sqlite3.Connection | None:
    """A connection to the catalog that lies there; None when there is none of this version."""
    if not os.path.exists(path):
        return None
    name = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    db = _connect(f"file:{name}{query}")
    try:
        _tune(db)
        if db.execute("PRAGMA user_version").fetchone() == (version,):
            return db
    except UnicodeDecodeError:
        pass  # SQLite's message quotes a damaged schema
    except sqlite3.DatabaseError as error:
        if _code(error) not in _DAMAGE:
            db.close()
            raise
    db.close()
    return None


def _renewed(path: str, version: int) -> sqlite3.Connection:
    """An empty catalog in place of what lies there, unless another process was faster."""
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    with _alone(path):
        if db := _sound(path, version):
            return db
        _delete(path)
        # What it will hold is private; SQLite gives its other files the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        db = _connect(path)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            _tune(db)
            return _filled(db, version)
        except BaseException:
            db.close()
            raise


def _unwritable(path: str, version: int) -> sqlite3.Connection:
    """What can be had on a disk that refuses writing: the file as it is, else memory."""
    with suppress(sqlite3.OperationalError):
        if db := _sound(path, version, "?immutable=1"):
            return db
    return _filled(_connect(":memory:"), version)


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(
        name, timeout=_BUSY_SECONDS, isolation_level=None, uri=True, check_same_thread=False
    )


def _tune(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA cache_size = -32000")  # KiB, used only as far as needed


def _filled(db: sqlite3.Connection, version: int) -> sqlite3.Connection:
    with open(os.path.join(os.path.dirname(__file__), "sql", "catalog.sql"), encoding="utf-8") as f:
        db.executescript(f.read())
    db.execute(f"PRAGMA user_version = {version}")
    return db


def _delete(path: str) -> None:
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """One process at a time makes the file anew; else one could delete what another just made."""
    deadline = Deadline(_BUSY_SECONDS)
    with open(path + ".lock", "wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.over:
                    raise StorageError(
                        f"another process has been making the catalog {path} for too long",
                        hint="end it if it hangs, then run the same command again",
                    ) from None
                time.sleep(0.01)
        yield


def _chunks(rows: Iterable[Row]) -> Iterator[dict[str, Row]]:
    """Rows by path, some at a time.

    FTS5 gathers changes in memory, and writes them out when a row number is smaller than the
    one before, or when a statement that may change several rows begins. So old rows go in order
    of their numbers, then new ones come: mixed, an update takes eight times as long.
    """
    chunk: dict[str, Row] = {}
    size = 0
    for row in rows:
        chunk[row.session.path] = row
        size += len(row.text)
        if size > _CHUNK or len(chunk) == 1000:
            yield chunk
            chunk, size = {}, 0
    yield chunk


# --- values and messages -------------------------------------------------------------------------


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code. An error without one is about text that isn't UTF-8: damage."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def _explained(error: sqlite3.DatabaseError, path: str) -> StorageError:
    code = _code(error)
    if code in _DAMAGE:
        return StorageError(
            f"the catalog {path} was damaged ({error}) and has been thrown away",
            hint="run the same command again: the catalog is rebuilt from master",
        )
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(
            f"no space is left on the disk for the catalog {path}",
            hint="free some space, then run the same command again",
        )
    what, hint = {
        sqlite3.SQLITE_BUSY: (
            f"another process is writing the catalog {path}",
            "wait until it is done, then run the same command again",
        ),
        sqlite3.SQLITE_READONLY: (
            f"the catalog {path} can't be written",
            "make the file and its folder writable for you",
        ),
    }.get(
        code,
        (f"the catalog {path} can't be used: {error}", "check the disk and the file's permissions"),
    )
    return StorageError(what, hint=hint)


def _session(row: Sequence[Any]) -> Session:
    return Session(*map(_decoded, row))


def _project(row: Sequence[Any], aliases: Iterable[str]) -> Project:
    name, id, status, priority, target, current, created, path = row
    return Project(
        name=name,
        id=id,
        status=status,
        priority=priority,
        target_revenue=target,
        current_revenue=current,
        created=created,
        path=_decoded(path),
        was=tuple(aliases),
    )


def _encoded(value: Any) -> Any:
    """Text that is not UTF-8 (a file's name can be such) as its bytes, anything else as it is."""
    if not isinstance(value, str) or not any("\ud800" <= letter <= "\udfff" for letter in value):
        return value
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no file's name: bytes that equal nothing
        return value.encode("utf-8", "surrogatepass")


def _decoded(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _value(rows: Records) -> str:
    return str(rows[0][0]) if rows else ""


def _folded(status: str) -> str:
    return status.strip().casefold()


def _plain(text: str) -> str:
    """One form for texts and queries: composed, full-width letters narrow, none of our marks."""
    for mark in "\x00\x02\x03":
        text = text.replace(mark, " ")
    return unicodedata.normalize("NFKC", text)


def _split(text: str) -> str:
    """Text with each character of an unspaced script as a word of its own."""
    if text.isascii():
        return text
    return re.sub(_UNSPACED, lambda run: _BETWEEN + _BETWEEN.join(run[0]) + _BETWEEN, text)


def _indexed(text: str) -> str:
    return _split(_plain(text))


def _readable(snippet: str) -> str:
    return " ".join(snippet.replace(_BETWEEN, "").split())


def _query(text: str) -> str:
    """What a person typed, as an FTS5 expression: nothing in it but quoted strings."""
    text = _plain(text.encode(errors="replace").decode())
    if not any(character.isalnum() for character in text):
        raise UsageError(
            "there is nothing to search for: no letter and no digit was given",
            hint='give words or a "quoted phrase", for example: annoris search deploy key',
        )
    parts = {
        f'"{_split(phrase)}"' if phrase else f'"{_split(word)}"' + "*" * (len(word) > 1): None
        for phrase, word in re.findall(_QUERY, text)
        if phrase or word
    }
    if len(parts) > _MOST_WORDS:
        raise UsageError(
            f"{len(parts)} words are too many for a search",
            hint=f"give the {_MOST_WORDS} that matter most, or fewer",
        )
    return " ".join(parts)
