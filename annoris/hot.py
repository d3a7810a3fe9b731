"""The hot cache: a PostgreSQL projection of master, and the log of what was run. The only psycopg.

It can be dropped at any time. It sees no plaintext: content is an envelope that the caller has
sealed. Every method is one transaction, and but for bulk writing one round trip; settings go
along inside it (``SET LOCAL``), so that a pooler between transactions does no harm.

Methods raise TierDown when the server does not answer in time or can't work now, StorageError
when it refuses for good (permissions, the schema, a value), and ConfigError for a URL that is
none. One Hot belongs to one thread.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from annoris.dataclass import dataclass
from annoris.errors import AnnorisError, ConfigError, Locked, StorageError, TierDown
from annoris.model import CAPTURED, Cached, Deadline, Held, Project, Run, Session

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]
    Cursor = psycopg.Cursor[tuple[Any, ...]]

VERSION = 3  # of sql/hot.sql; tables of an older version are thrown away

_FEW = 50  # rows that go as parameters of one statement; more go by COPY
_CHUNK = 1000  # contents that are asked for at once
_CHUNK_BYTES = 4_000_000  # of them that are held in memory, and one more
_MATCHES = 10
_WIDTH = 255  # of VARCHAR columns
_START = 64  # characters that tell an envelope from any other: its nonce is among them

# What libpq notices of a dead peer; the deadline of a call comes first where that is shorter.
_DEFAULTS = {
    "application_name": "annoris",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}

_BEGIN = """
SELECT set_config('search_path', %s, true), set_config('statement_timeout', %s, true),
    set_config('lock_timeout', %s, true),
    set_config('idle_in_transaction_session_timeout', %s, true)
"""
# Divides by zero on tables of another version, which ends the transaction before it does harm.
_CHECK = "SELECT 1 / (version = %s)::int FROM state"

_DROP = """
DROP TABLE state, sessions, projects; DROP TABLE IF EXISTS alerts;
DROP FUNCTION IF EXISTS touch(uuid)
"""

# Columns as they are written, with their types; ``_record`` gives the values.
_COLUMNS = {
    "id": "text",
    "project": "text",
    "name": "text",
    "title": "text",
    "file_path": "text",
    "content": "text",
    "checksum": "text",
    "github_sha": "text",
    "priority": "text",
    "status": "text",
    "created_at": "text",
    "updated_at": "text",
    "size": "int8",
    "etag": "text",
    "literal": "text",
    "body_md5": "text",
    "position": "int8",
}
_CASTS = {"id": "::uuid", "created_at": "::timestamptz", "updated_at": "::timestamptz"}
_PLAIN = [name for name in _COLUMNS if name not in ("id", "content", "position")]

_INCOMING = "CREATE TEMP TABLE incoming ({}) ON COMMIT DROP".format(
    ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
)
_COPY = "COPY incoming FROM STDIN (FORMAT BINARY)"
_PARAMETERS = "unnest({}) AS incoming ({})".format(
    ", ".join(f"%({name})s::{kind}[]" for name, kind in _COLUMNS.items()), ", ".join(_COLUMNS)
)

# Rows are locked in the order of their ids, so that two writers never wait for each other.
_UPSERT = f"""
INSERT INTO sessions AS held ({", ".join(_COLUMNS)}, accessed_at, synced_at)
SELECT DISTINCT ON (incoming.id) {
    ", ".join(f"incoming.{name}{_CASTS.get(name, '')}" for name in _COLUMNS)
}, CASE WHEN %(loaded)s THEN now() END, now()
FROM {{source}} ORDER BY incoming.id, incoming.position DESC
ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _PLAIN)},
    content = CASE
        WHEN excluded.content IS NULL AND held.github_sha = excluded.github_sha THEN held.content
        ELSE excluded.content
    END,
    position = excluded.position, accessed_at = COALESCE(excluded.accessed_at, held.accessed_at),
    synced_at = now(), deleted_at = NULL
WHERE %(force)s OR held.position <= %(upto)s OR held.position < excluded.position OR (
    held.position = excluded.position AND held.github_sha = excluded.github_sha
    AND held.deleted_at IS NULL AND (
        (held.content IS NULL OR held.content = '') AND excluded.content IS NOT NULL
        OR ({", ".join(f"held.{name}" for name in _PLAIN)})
            IS DISTINCT FROM ({", ".join(f"excluded.{name}" for name in _PLAIN)})
    )
)
"""  # noqa: S608 - constants only

# What was never here gets a tombstone too: the one who saved it may be late.
_REMOVE = """
INSERT INTO sessions AS held (id, position, synced_at, deleted_at)
SELECT gone.id::uuid, max(gone.position), now(), now()
FROM unnest(%(ids)s::text[], %(positions)s::int8[]) AS gone (id, position)
GROUP BY gone.id ORDER BY gone.id
ON CONFLICT (id) DO UPDATE SET content = NULL, position = excluded.position, synced_at = now(),
    deleted_at = COALESCE(held.deleted_at, now())
WHERE %(force)s OR held.position <= %(upto)s OR held.position < excluded.position
    OR held.position = excluded.position AND held.deleted_at IS NULL
"""
_ADVANCE = """
UPDATE state SET commit = %(commit)s, position = %(position)s,
    master = COALESCE(NULLIF(%(master)s, ''), master)
WHERE %(force)s OR position <= greatest(%(upto)s, %(position)s)
    AND commit = COALESCE(%(since)s::text, commit)
"""

_ISO = "COALESCE(to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), '')"
_READ = ", ".join(
    {"id": "id::text", "created_at": _ISO.format(name), "updated_at": _ISO.format(name)}.get(
        name, name
    )
    for name in _COLUMNS
)
_NEWEST = "ORDER BY updated_at DESC NULLS LAST, id DESC"
_FIND = f"""
SELECT {_READ}, touch(id) FROM (
    SELECT * FROM sessions WHERE {{where}} AND deleted_at IS NULL {_NEWEST} LIMIT {{limit}}
) AS found {_NEWEST}
"""  # noqa: S608 - constants only
_PREFIXED = """
(
    id BETWEEN %(low)s AND %(high)s AND id::text LIKE %(prefix)s || '%%'
    OR right(id::text, 8) COLLATE "C" >= %(prefix)s
        AND right(id::text, 8) COLLATE "C" < %(prefix)s || 'g'
)
"""
# Neither saved nor loaded since. What puts off eviction counts here too.
_OLD = "COALESCE(GREATEST(updated_at, accessed_at), synced_at) < now() - make_interval(days => %s)"
_MARKED = (
    "project", "name", "title", "priority", "status", "created_at", "updated_at", "size", "etag",
    "literal", "body_md5",
)  # fmt: skip
_marked = itemgetter(*map(list(_COLUMNS).index, _MARKED))
_MARK = "md5(concat_ws(chr(31), {}))".format(
    ", ".join(_ISO.format(name) if name.endswith("_at") else name for name in _MARKED)
)
_ENTRIES = f"""
SELECT id::text, file_path, github_sha, position, content IS NOT NULL, deleted_at IS NOT NULL,
    {_OLD}, {_MARK}
FROM sessions
"""  # noqa: S608 - constants only
_NEAR = " WHERE id = ANY(%s::uuid[]) OR file_path = ANY(%s) OR position > %s"
_CONTENTS = f"""
SELECT {_READ} FROM (
    SELECT *, sum(octet_length(content)) OVER (
        ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS before FROM sessions WHERE id = ANY(%s::uuid[]) AND deleted_at IS NULL
) AS found WHERE COALESCE(before, 0) < {_CHUNK_BYTES} ORDER BY id
"""  # noqa: S608 - constants only
# Rows are locked in the order of their ids here too.
_RESEAL = """
UPDATE sessions AS held SET content = NULLIF(incoming.content, '')
FROM unnest(%s::text[], %s::text[], %s::text[]) AS incoming (id, start, content), (
    SELECT id FROM sessions WHERE id = ANY (%s::uuid[]) ORDER BY id FOR NO KEY UPDATE
) AS locked
WHERE held.id = locked.id AND held.id = incoming.id::uuid
    AND starts_with(held.content, incoming.start)
"""
_DISCARD = """
DELETE FROM sessions WHERE id = %s::uuid AND position = %s AND github_sha = %s AND checksum = %s
    AND content IS NOT DISTINCT FROM NULLIF(%s, '')
"""
_COUNT = "SELECT count(*) FROM sessions WHERE deleted_at IS NULL"
# Rows that somebody is writing are not old.
_EVICT = f"""
UPDATE sessions SET content = NULL WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM sessions WHERE content IS NOT NULL AND {_OLD}
    FOR NO KEY UPDATE SKIP LOCKED
))
"""  # noqa: S608 - constants only

# A project that got another name keeps its id: the row of the old name makes way.
_PROJECT_KEYS = ("id", "name", "status", "priority", "target", "current", "created")
_RENAMED = """
DELETE FROM projects USING unnest(%(id)s::text[], %(name)s::text[]) AS incoming (id, name)
WHERE projects.id::text = incoming.id AND projects.name <> incoming.name
"""
# … and one that has no file any more goes.
_UNFILED = "DELETE FROM projects WHERE id::text <> ALL (%(id)s::text[])"
_MOVED = """
UPDATE sessions SET project = former.name
FROM unnest(%(was)s::text[], %(now)s::text[]) AS former (was, name) WHERE project = former.was
"""
_PROJECTS = """
INSERT INTO projects AS held
    (id, name, status, priority, target_revenue, current_revenue, created_at)
SELECT COALESCE(NULLIF(incoming.id, '')::uuid, known.id, gen_random_uuid()), incoming.name,
    incoming.status, incoming.priority, incoming.target::numeric, incoming.current::numeric,
    COALESCE(incoming.created::timestamptz, known.created_at, now())
FROM unnest(%(id)s::text[], %(name)s::text[], %(status)s::text[], %(priority)s::text[],
    %(target)s::text[], %(current)s::text[], %(created)s::text[])
    AS incoming (id, name, status, priority, target, current, created)
LEFT JOIN projects AS known ON known.name = incoming.name
ORDER BY incoming.name
ON CONFLICT (name) DO UPDATE SET id = excluded.id, status = excluded.status,
    priority = excluded.priority, target_revenue = excluded.target_revenue,
    current_revenue = excluded.current_revenue, created_at = excluded.created_at,
    updated_at = now()
WHERE (held.id, held.status, held.priority, held.target_revenue, held.current_revenue,
    held.created_at)
    IS DISTINCT FROM (excluded.id, excluded.status, excluded.priority, excluded.target_revenue,
    excluded.current_revenue, excluded.created_at)
"""

# The same comparison for all of them, without a write.
_MISFILED = """
SELECT COALESCE(incoming.name, held.name)
FROM unnest(%(id)s::text[], %(name)s::text[], %(status)s::text[], %(priority)s::text[],
    %(target)s::text[], %(current)s::text[], %(created)s::text[])
    AS incoming (id, name, status, priority, target, current, created)
FULL JOIN projects AS held ON held.name = incoming.name
WHERE held.name IS NULL OR incoming.name IS NULL OR (held.id::text, held.status, held.priority,
    held.target_revenue, held.current_revenue, held.created_at)
    IS DISTINCT FROM (COALESCE(NULLIF(incoming.id, ''), held.id::text), incoming.status,
    incoming.priority, incoming.target::numeric, incoming.current::numeric,
    COALESCE(incoming.created::timestamptz, held.created_at))
ORDER BY 1
"""

# A run is logged once, however often it is brought here.
_LOG = """
INSERT INTO sync_log (kind, status, started_at, finished_at, source, host, details, run)
VALUES (%s, %s, %s::timestamptz, NULLIF(%s, '')::timestamptz, %s, %s, %s::jsonb, NULLIF(%s, ''))
ON CONFLICT (run) DO NOTHING RETURNING id
"""
_UNKNOWN = """
SELECT key FROM unnest(%s::text[]) AS asked (key)
WHERE NOT EXISTS (SELECT 1 FROM sync_log WHERE run = asked.key)
"""
_RUNS = f"""
SELECT kind, status, {_ISO.format("started_at")}, {_ISO.format("finished_at")}, source, host,
    details, id, COALESCE(run, '')
FROM sync_log WHERE %s IN ('', kind)
    AND (started_at, id) < (COALESCE(NULLIF(%s, '')::timestamptz, 'infinity'), %s)
ORDER BY started_at DESC, id DESC LIMIT %s
"""  # noqa: S608 - constants only

# Whoever told of a trouble may tell of it again; another one once that was long ago. Of its end
# the first one tells that sees it. Rows are locked in the order of their keys.
_CLAIM = """
INSERT INTO alerts AS held (key, holder, over, at)
SELECT key, %(holder)s, over, CASE WHEN over THEN '-infinity' ELSE now() END
FROM unnest(%(keys)s::text[], %(overs)s::bool[]) AS incoming (key, over) ORDER BY key
ON CONFLICT (key) DO UPDATE SET holder = excluded.holder, over = excluded.over,
    at = CASE WHEN excluded.over THEN held.at ELSE excluded.at END
WHERE held.holder = excluded.holder
    OR CASE WHEN excluded.over THEN NOT held.over
        ELSE held.at < now() - make_interval(secs => %(seconds)s) END
RETURNING key
"""
# How often each key is needed; the key's id is the third part of an envelope.
_SEALED_BY = """
SELECT count(*) FROM sessions WHERE split_part(left(content, %s), '.', 3) = %s
"""
_STOCK = f"""
SELECT (SELECT count(*) FROM sessions WHERE deleted_at IS NULL), newest.title, newest.saved
FROM (VALUES (1)) AS one LEFT JOIN (
    SELECT title, {_ISO.format("updated_at")} AS saved FROM sessions
    WHERE deleted_at IS NULL AND updated_at IS NOT NULL ORDER BY updated_at DESC, id DESC LIMIT 1
) AS newest ON true
"""  # noqa: S608 - constants only
# Asks for every permission that writing needs, and writes nothing.
_TRIAL = (
    "INSERT INTO sessions SELECT * FROM sessions WHERE false",
    "UPDATE sessions SET title = title WHERE false",
    "INSERT INTO projects SELECT * FROM projects WHERE false",
    "DELETE FROM projects WHERE false",
    "UPDATE state SET commit = commit WHERE false",
    "INSERT INTO sync_log SELECT * FROM sync_log WHERE false",
    "INSERT INTO alerts SELECT * FROM alerts WHERE false",
    "CREATE TEMP TABLE trial () ON COMMIT DROP",
)

# What a dump holds, by the names that it uses: the table, which of its rows, in which order. The
# log of dumps stands apart, so that a dump which changes nothing else can be told.
_ABOUT_DUMPS = "kind IN ('dump', 'drill', 'restore')"
_TABLES = {
    "dump_log": ("sync_log", _ABOUT_DUMPS, "id"),
    "projects": ("projects", "TRUE", "id"),
    "sessions": ("sessions", "TRUE", "id"),
    "state": ("state", "TRUE", "one"),
    "sync_log": ("sync_log", f"NOT {_ABOUT_DUMPS}", "id"),
}
_EXPORT = """
COPY (SELECT row_to_json(held) FROM (SELECT * FROM {} WHERE {} ORDER BY {}) AS held) TO STDOUT
"""
_LOCK = "LOCK TABLE state, sessions, projects, sync_log IN SHARE ROW EXCLUSIVE MODE"
_CENSUS = """
SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM projects),
    (SELECT count(*) FROM sync_log)
"""
_LINES = "CREATE TEMP TABLE lines (name text, line json) ON COMMIT DROP"
_FILL = """
INSERT INTO {table} ({columns}) SELECT {values}
FROM lines, json_populate_record(NULL::{table}, line) AS given WHERE lines.name = '{table}'
"""
_SET_STATE = """
UPDATE state SET ({columns}) = ROW ({values})
FROM lines, json_populate_record(NULL::state, line) AS given WHERE lines.name = 'state'
"""
# Ids that are neither here nor in the lines.
_SKIP_IDS = """
SELECT setval(pg_get_serial_sequence('sync_log', 'id'), GREATEST(1,
    (SELECT max(id) FROM sync_log),
    (SELECT max((line ->> 'id')::bigint) FROM lines WHERE name IN ('dump_log', 'sync_log'))))
"""
# What is there already, under whatever id, is not noted twice; an id that is taken is not used.
_FILL_LOG = """
INSERT INTO sync_log ({columns}) SELECT {values}
FROM (
    SELECT given.* FROM lines, json_populate_record(NULL::sync_log, line) AS given
    WHERE name IN ('dump_log', 'sync_log')
) AS given
WHERE NOT EXISTS (
    SELECT FROM sync_log AS held WHERE to_jsonb(held) - 'id' = to_jsonb(given) - 'id'
)
ORDER BY given.id
"""
_OWN = {("state", "one"), ("state", "version")}
_FREE_ID = """
CASE WHEN EXISTS (SELECT FROM sync_log AS held WHERE held.id = given.id)
    THEN nextval(pg_get_serial_sequence('sync_log', 'id')) ELSE given.id END
"""

_GRANTS = {
    "database": 'GRANT CREATE, TEMPORARY ON DATABASE "{database}" TO "{user}"',
    "schema": 'GRANT USAGE, CREATE ON SCHEMA "{schema}" TO "{user}"',
    "table": 'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{user}"',
    "sequence": 'GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{schema}" TO "{user}"',
    "": 'ALTER SCHEMA "{schema}" OWNER TO "{user}"; the same for its tables',
}

# What the server says, what it means for a person; the first that fits counts.
_MENDS = (
    (
        re.compile(r"password|authentication|pg_hba|role .* does not exist|not permitted to log"),
        "correct the user and the password in ANNORIS_HOT_URL or DATABASE_URL",
    ),
    (
        re.compile(r"database .* does not exist"),
        "create that database (createdb), or correct its name in ANNORIS_HOT_URL or DATABASE_URL",
    ),
    (
        re.compile(r"certificate|SSL|TLS"),
        "name the CA's certificate in the URL: ?sslmode=verify-full&sslrootcert=FILE",
    ),
    (re.compile(r"read-only"), "give the address of the primary server, not of a replica"),
    (
        re.compile(r"too many|slots are reserved|no more connections"),
        "raise max_connections there, or put a pooler before it",
    ),
    (re.compile(r"No space left|could not extend"), "free some space on the server's disk"),
)
_UNREACHED = (
    "start the server, or correct host and port in ANNORIS_HOT_URL or DATABASE_URL; to try it: "
    "pg_isready -d URL"
)
# What a moment may mend: a connection that is refused or lost, a server that starts or stops,
# two transactions in each other's way.
_PASSING = re.compile(
    r"refused|reset|closed|lost|EOF|[Bb]roken pipe|starting up|shutting down|recovery mode"
    r"|too many|slots are reserved|terminating connection"
)
_PASSING_STATES = ("08", "40001", "40P01", "53300", "57P01", "57P02", "57P03")

_NOISE = re.compile(r"^connection failed: | Is the server running .*$")

_UNFIT = re.compile("[\\\\\0\ud800-\udfff]")  # the escape itself, and what PostgreSQL refuses
_ESCAPED = re.compile(r"\\(?:(\\)|u([0-9a-f]{4}))")
_NUL_IN_JSON = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")

Statement = tuple[str, Mapping[str, object] | Sequence[object]]


@dataclass(frozen=True, slots=True)
class HotState:
    """What the hot cache says of itself; ``version`` 0 when there is none yet."""

    version: int = 0
    commit: str = ""  # of master, that it shows
    position: int = 0  # of that commit
    proof: str = ""  # an envelope to try a key on
    master: str = ""  # which master, in the words of the last ``put``


@dataclass(frozen=True, slots=True)
class Stock:
    """How many sessions there are, and which of them was saved last."""

    entries: int
    title: str = ""
    saved: str = ""


class Hot:
    def __init__(self, url: str, *, schema: str = "annoris", seconds: float = 5.0) -> None:
        """``url`` is a postgres:// URL, ``key=value`` words, or empty for the PG* variables.

        Nothing is opened before the first call. Each call ends within ``seconds``, connecting
        included, unless ``within`` says otherwise. After one that had to be cut, every further
        one raises TierDown at once, until ``close``.
        """
        import psycopg  # noqa: F401, PLC0415 - here, so that no limit of a call pays for it

        self._url = url
        self._schema = schema
        self._seconds = seconds
        self._shared: Deadline | None = None
        self._db: Connection | None = None
        self._wire: socket.socket | None = None  # the connection's own, to cut it
        self._cut = False
        self._secret = ""
        self._names = {"schema": schema, "user": "", "database": ""}  # for the words of a GRANT

    def close(self) -> None:
        """Close the connection; a later call opens it anew."""
        self._drop()
        self._cut = False

    @contextmanager
    def within(self, deadline: Deadline) -> Iterator[None]:
        """Calls inside share one deadline instead of having ``seconds`` each."""
        before, self._shared = self._shared, deadline
        try:
            yield
        finally:
            self._shared = before

    # --- the schema and its state --------------------------------------------------------------

    def prepare(self, *, trial: bool = False) -> None:
        """Make the schema, or its projection tables anew when they are of an older version.

        Does nothing when all is there. ``sync_log`` is kept. Raises StorageError, having changed
        nothing, when a newer Annoris made the tables, or somebody else did. A ``trial`` raises
        what it would raise and changes nothing.
        """
        if self.state().version == VERSION:
            return
        with self._talking() as (db, deadline):
            self._begin(db, deadline, check=False)
            # Two processes may be here; the second finds the work done.
            db.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"annoris {self._schema}"])
            schema = _quoted(self._schema)
            # Read from the table: to_regnamespace may answer from before the lock was ours.
            there = "SELECT nspname FROM pg_namespace WHERE nspname = %s"
            if _value(db, there, self._schema) is None:
                db.execute(f"CREATE SCHEMA {schema}")
            made = _value(db, "SELECT to_regclass(%s)::text", f"{schema}.state") is not None
            version = _value(db, "SELECT version FROM state") if made else 0
            if version != VERSION:
                self._make(db, version)
            db.execute("ROLLBACK" if trial else "COMMIT")

    def _make(self, db: Connection, version: int) -> None:
        if version > VERSION:
            raise StorageError(
                f"the hot cache in schema {self._schema} was made by a newer Annoris",
                hint="upgrade Annoris on this machine",
            )
        if version:
            db.execute(_DROP)
        path = os.path.join(os.path.dirname(__file__), "sql", "hot.sql")
        with open(path, encoding="utf-8") as file:
            db.execute(file.read())
        db.execute("INSERT INTO state (version) VALUES (%s)", [VERSION])

    def state(self) -> HotState:
        """What was last put, and the key proof; an empty state when nothing was prepared."""
        from psycopg.errors import UndefinedTable  # noqa: PLC0415

        try:
            found = self._run(("SELECT to_jsonb(state) FROM state", ()), check=False)[0].fetchone()
        except StorageError as error:
            if isinstance(error.__cause__, UndefinedTable):
                return HotState()
            raise
        known = found[0] if found else {}
        return HotState(**{key: known[key] for key in HotState.__slots__ if key in known})

    def prove(self, proof: str, *, replacing: str = "") -> str:
        """Keep a key proof where there is none, or where ``replacing`` is; answers what is kept."""
        swap = ("UPDATE state SET proof = %s WHERE proof = %s", (proof, replacing))
        kept = self._run(swap, ("SELECT proof FROM state", ()))[1].fetchone()
        return str(kept[0]) if kept else ""

    # --- writing sessions ----------------------------------------------------------------------

    def put(  # noqa: PLR0913 - each says how, by name
        self,
        rows: Iterable[Cached],
        *,
        commit: str = "",
        position: int = 0,
        master: str = "",
        since: str | None = None,
        removed: Iterable[tuple[str, int]] = (),
        force: bool = False,
        upto: int = -1,
        loaded: bool = False,
    ) -> int:
        """Write sessions, and tombstones for ``removed`` (id, position); answers how many changed.

        One transaction; ``rows`` is consumed row by row. A row is written when its position is
        higher than the held one's; at the same position and blob id, when it brings evicted
        content back or other metadata. A row without content leaves that of the same blob id.
        A removal wins at the same position too. With ``commit`` the state advances to it and
        its ``position``, never back, and only from ``since`` where that is given. ``force``
        writes everything regardless, ``upto`` what is held at that position or before it.
        ``loaded`` counts as an access, which puts off eviction.
        """
        gone = list(removed)
        how: dict[str, object] = {"force": force, "upto": upto, "loaded": loaded}
        ids = {"ids": [id for id, _ in gone], "positions": [at for _, at in gone], **how}
        after: list[Statement] = [(_REMOVE, ids)] if gone else []
        if commit:
            state = {"commit": commit, "position": position, "master": _text(master)}
            state |= {"since": since, **how}
            after.append((_ADVANCE, state))
        rest = iter(rows)
        few = [_record(row) for row in islice(rest, _FEW + 1)]
        if len(few) > _FEW:
            cursors = self._copy(chain(few, map(_record, rest)), how, after)
        else:
            values = dict(zip(_COLUMNS, map(list, zip(*few, strict=True)), strict=False))
            upsert = (_UPSERT.format(source=_PARAMETERS), {**values, **how})
            cursors = self._run(*([upsert] if few else []), *after)
        return sum(cursor.rowcount for cursor in cursors[: len(cursors) - bool(commit)])

    def _copy(
        self,
        records: Iterable[tuple[object, ...]],
        how: Mapping[str, object],
        after: Iterable[Statement],
    ) -> list[Cursor]:
        with self._talking() as (db, deadline):
            with db.pipeline():
                self._begin(db, deadline)
                db.execute(_INCOMING)
            with db.cursor() as cursor, cursor.copy(_COPY) as copy:
                copy.set_types(list(_COLUMNS.values()))
                for record in records:
                    copy.write_row(record)
            with db.pipeline():
                upsert = (_UPSERT.format(source="incoming"), how)
                cursors = [db.execute(sql, values) for sql, values in (upsert, *after)]
                db.execute("COMMIT")
            return cursors

    def reseal(self, swaps: Iterable[tuple[str, str, str]]) -> int:
        """Put another envelope in the place of one: (id, old, new); answers how many were.

        A row whose content is not the old one any more is left alone. An empty ``new`` evicts.
        """
        all_swaps = list(swaps)
        if not all_swaps:
            return 0
        ids, old, new = map(list, zip(*all_swaps, strict=True))
        starts = [content[:_START] for content in old]
        return self._run((_RESEAL, (ids, starts, new, ids)))[0].rowcount

    def discard(self, row: Cached) -> int:
        """Drop a row that was found to be bad, if it is still just that; answers how many were."""
        values = (row.session.id, row.position, row.session.oid, row.checksum, row.content)
        return self._run((_DISCARD, values))[0].rowcount

    def evict(self, days: int) -> int:
        """Drop content neither saved nor loaded for so many days; metadata stays."""
        return self._run((_EVICT, (days,)))[0].rowcount

    # --- reading sessions ----------------------------------------------------------------------

    def newest(self, project: str) -> list[Cached]:
        """The session of a project that was saved last: one, or none.

        One that was captured only when there is no other.
        """
        where, value = "project = %(project)s", _fit(project)
        written = f"{where} AND lower(trim(status)) IS DISTINCT FROM '{CAPTURED}'"
        return self._find(written, 1, project=value) or self._find(where, 1, project=value)

    def get(self, id: str) -> list[Cached]:
        """The session of this id: one, or none."""
        return self._find("id = %(id)s::uuid", 1, id=id)

    def named(self, project: str, name: str) -> list[Cached]:
        """Sessions of that name in the project, newest first; normally one, at most ten."""
        where = (
            "project = %(project)s AND name = %(name)s AND name <> ''"
            " AND left(name, 200) = left(%(name)s, 200)"
        )
        return self._find(where, _MATCHES, project=_fit(project), name=_text(name))

    def prefixed(self, prefix: str) -> list[Cached]:
        """Sessions whose id, or its last eight digits, starts so; at most ten, newest first."""
        prefix = prefix.lower()
        digits = prefix.replace("-", "")
        if not re.fullmatch(r"[0-9a-f]{1,32}", digits):
            return []
        low, high = digits.ljust(32, "0"), digits.ljust(32, "f")
        return self._find(_PREFIXED, _MATCHES, prefix=prefix, low=low, high=high)

    def _find(self, where: str, limit: int, **values: object) -> list[Cached]:
        cursor = self._run((_FIND.format(where=where, limit=limit), values))[0]
        return [_cached(row) for row in cursor]

    def entries(self, *, days: int = 36_500) -> dict[str, Held]:
        """Everything held, by id, tombstones included; ``old`` after ``days``, as for ``evict``."""
        with self._talking() as (db, deadline):
            with db.pipeline():
                self._begin(db, deadline)
            with db.cursor("entries") as cursor:
                cursor.itersize = 5000
                cursor.execute(_ENTRIES, [days], binary=True)
                held = {id: Held(_original(path), *rest) for id, path, *rest in cursor}
            db.execute("COMMIT")
        return held

    def near(
        self, ids: Iterable[str], paths: Iterable[str], beyond: int, *, days: int
    ) -> dict[str, Held]:
        """What is held of these ids or at these paths, and what is beyond a position."""
        values = (days, list(ids), [_text(path) for path in paths], beyond)
        found = self._run((_ENTRIES + _NEAR, values))[0]
        return {id: Held(_original(path), *rest) for id, path, *rest in found}

    def contents(self, ids: Iterable[str]) -> Iterator[Cached]:
        """The sessions of these ids, some at a time and in their order; no tombstones."""
        left = sorted(ids)
        while left:
            asked = left[:_CHUNK]
            found = self._run((_CONTENTS, (asked,)))[0].fetchall()
            yield from map(_cached, found)
            # As far as the bytes went; nothing found is nothing there.
            left = left[bisect(left, found[-1][0]) if found else len(asked) :]

    def count(self) -> int:
        """How many sessions there are, without tombstones."""
        found = self._run((_COUNT, ()))[0].fetchone()
        return int(found[0]) if found else 0

    def stock(self) -> Stock:
        """How many sessions there are, and which was saved last, of all projects."""
        count, title, saved = self._run((_STOCK, ()))[0].fetchone() or (0, None, None)
        return Stock(int(count), _original(title or ""), saved or "")

    def sealed_by(self, key_id: str) -> int:
        """How many contents need the key of this id."""
        found = self._run((_SEALED_BY, (_START, key_id)))[0].fetchone()
        return int(found[0]) if found else 0

    def try_writing(self) -> None:
        """Raise what a ``put`` would raise for want of a permission; nothing is written."""
        self._run(*((sql, ()) for sql in _TRIAL))

    def clock(self) -> float:
        """Seconds that the server's clock is ahead of this machine's."""
        with self._talking() as (db, _):
            now = _value(db, "SELECT extract(epoch FROM clock_timestamp())")
            return float(now) - time.time()

    def ping(self) -> float:
        """Seconds that the server takes for one answer, once connected."""
        with self._talking() as (db, _):
            started = time.monotonic()
            db.execute("SELECT 1")
            return time.monotonic() - started

    # --- projects and the log ------------------------------------------------------------------

    def projects(self, rows: Iterable[Project], *, whole: bool = False) -> int:
        """Write projects, by name; answers how many changed.

        One without an id keeps the one that it has here. ``whole``: there are no others, so
        that these go, and sessions go along with a project that got another name. Raises
        StorageError for a revenue of more than ten digits before the point.
        """
        given = list(rows)
        if not (given or whole):
            return 0
        values = _project_columns(given)
        former = [(_fit(was), _fit(row.name)) for row in given for was in row.was]
        moved = {"was": [was for was, _ in former], "now": [name for _, name in former]}
        also: list[Statement] = [(_UNFILED, values), (_MOVED, moved)] if whole else []
        cursors = self._run((_RENAMED, values), (_PROJECTS, values), *also)
        return sum(cursor.rowcount for cursor in cursors[1:])

    def misfiled(self, rows: Iterable[Project]) -> list[str]:
        """Names of projects that are not here as they are in ``rows``, which are all there are."""
        return [_original(name) for (name,) in self._run((_MISFILED, _project_columns(rows)))[0]]

    def log(self, run: Run) -> int:
        """Note a run; answers its id, 0 when it is known already.

        What JSON in PostgreSQL can't hold is replaced in details.
        """
        words = (run.kind, run.status, run.started, run.finished, run.source, run.host)
        values = (*map(_text, words), _json(run.details), run.key)
        found = self._run((_LOG, values))[0].fetchone()
        return int(found[0]) if found else 0

    def unlogged(self, keys: Iterable[str]) -> set[str]:
        """Those of these runs' keys that the log does not know."""
        return {key for (key,) in self._run((_UNKNOWN, (list(keys),)))[0]}

    def runs(self, limit: int = 20, kind: str = "", before: Run | None = None) -> list[Run]:
        """The last runs, of one kind or of all, newest first; those before one, if it is named."""
        started, last = (before.started, before.id) if before else ("", 0)
        return [
            Run(
                kind=_original(kind),
                status=_original(status),
                started=started,
                finished=finished,
                source=_original(source),
                host=_original(host),
                details=details,
                id=id,
                key=key,
            )
            for kind, status, started, finished, source, host, details, id, key in self._run(
                (_RUNS, (kind, started, last, limit))
            )[0]
        ]

    def claim(self, alerts: Iterable[tuple[str, bool]], holder: str, seconds: float) -> set[str]:
        """Which of these alerts (key, over) are for ``holder`` to tell people about.

        The others were told by another one within ``seconds``.
        """
        claimed = list(alerts)
        values: dict[str, object] = {
            "keys": [_text(key) for key, _ in claimed],
            "overs": [over for _, over in claimed],
            "holder": _text(holder),
            "seconds": seconds,
        }
        return {_original(key) for (key,) in self._run((_CLAIM, values))[0]}

    # --- dumps ---------------------------------------------------------------------------------

    def census(self) -> dict[str, int]:
        """How many rows each table has, tombstones included."""
        return _counted(self._run((_CENSUS, ()))[0].fetchone())

    def export(self) -> Iterator[tuple[str, str]]:
        """Every row of all tables at one moment, streamed: (table, row as a line of JSON).

        In the order of the tables' names and primary keys; times in UTC. The rows of
        ``sync_log`` that are about dumps come as ``dump_log``.
        """
        with self._talking() as (db, deadline):
            self._begin(db, deadline, mode="ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield from _lines(db)
            db.execute("COMMIT")

    def restore(
        self, lines: Iterable[tuple[str, str]], accept: Callable[[dict[str, int]], object]
    ) -> None:
        """Make the tables hold what an ``export`` gave, whole or not at all.

        ``accept`` is told how many rows there are, while nobody else can write, and may raise.
        The rows of ``sync_log`` are added to those that are there. Lines may be of an older
        version: what they do not say gets its default. Raises StorageError for a value that
        does not fit.
        """
        with self._talking() as (db, deadline):
            self._begin(db, deadline)
            db.execute(_LOCK)
            accept(_counted(db.execute(_CENSUS).fetchone()))
            _fill(db, lines)
            db.execute("COMMIT")

    def rehearse(self, lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """What an ``export`` gives after a ``restore`` into a schema made for that.

        All in one transaction that is rolled back, so that nothing of it is ever left, nor
        seen by anybody.
        """
        with self._talking() as (db, deadline):
            self._begin(db, deadline, check=False)
            scratch = _quoted(f"{self._schema[:40]}_drill_{os.urandom(4).hex()}")
            db.execute(f"CREATE SCHEMA {scratch}")
            db.execute("SELECT set_config('search_path', %s, true)", [f"{scratch}, pg_temp"])
            self._make(db, 0)
            _fill(db, lines)
            yield from _lines(db)
            db.execute("ROLLBACK")

    @contextmanager
    def exclusive(self, what: str, *, wait: bool = True) -> Iterator[None]:
        """Hold a lock that all who use this schema share, waiting for it if need be.

        Without ``wait``, raises Locked where another one holds it. It is gone with the
        connection, which does nothing else meanwhile.
        """
        with self._talking() as (db, deadline):
            self._begin(db, deadline, check=False)  # a pooler keeps no lock between transactions
            name = f"annoris {self._schema} {what}"
            if wait:
                db.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [name])
            elif not _value(db, "SELECT pg_try_advisory_xact_lock(hashtext(%s))", name):
                raise Locked(f"another machine is at it: {what}", hint="wait for it to end")
            try:
                yield
            finally:
                self._drop()

    # --- the connection ------------------------------------------------------------------------

    def _run(self, *statements: Statement, check: bool = True) -> list[Cursor]:
        """Statements as one transaction, in one round trip."""
        with self._talking() as (db, deadline):
            with db.pipeline():
                self._begin(db, deadline, check=check)
                cursors = [db.execute(sql, values, binary=True) for sql, values in statements]
                db.execute("COMMIT")
            return cursors

    def _begin(
        self, db: Connection, deadline: Deadline, *, check: bool = True, mode: str = ""
    ) -> None:
        left = str(max(1, math.ceil(deadline.left(86_400) * 1000)))
        db.execute(f"BEGIN {mode}")
        db.execute(_BEGIN, [f"{_quoted(self._schema)}, pg_temp", left, left, left])
        if check:
            db.execute(_CHECK, [VERSION])

    @contextmanager
    def _talking(self) -> Iterator[tuple[Connection, Deadline]]:
        """The connection until the deadline; its errors become ours, and end it.

        So a transaction that something broke off is never gone on with.
        """
        import psycopg  # noqa: PLC0415

        deadline = self._shared or Deadline(self._seconds)
        if self._cut or deadline.over:
            raise self._down("did not answer in time")
        try:
            db = self._db or self._connect(deadline)
            with deadline.cutting(partial(self._shut, self._wire)):
                yield db, deadline
        except BaseException as error:
            self._drop()
            if isinstance(error, psycopg.Error):
                raise self._explained(error) from error
            raise

    def _connect(self, deadline: Deadline) -> Connection:
        import psycopg  # noqa: PLC0415

        settings: dict[str, Any] = _DEFAULTS | self._settings()
        # psycopg has no timeout below two seconds, and none for looking up a host's name.
        settings["connect_timeout"] = max(2, math.ceil(deadline.left(60)))

        def dial() -> Connection:
            return psycopg.connect(autocommit=True, prepare_threshold=None, **settings)

        try:
            db = deadline.run(dial, discard=lambda late: late.close())
        except TimeoutError:
            self._cut = True
            raise self._down("did not answer in time") from None
        self._wire = socket.socket(fileno=os.dup(db.fileno()))
        self._names |= {"user": db.info.user, "database": db.info.dbname}
        self._db = db
        return db

    def _settings(self) -> dict[str, Any]:
        """The URL in parts. libpq's own complaint about one may quote the password."""
        import logging  # noqa: PLC0415

        from psycopg import ProgrammingError  # noqa: PLC0415
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

        logger = logging.getLogger("psycopg")
        if not logger.handlers:  # what it has to say about lost connections comes as errors too
            logger.addHandler(logging.NullHandler())
        try:
            settings = conninfo_to_dict(self._url)
        except (ProgrammingError, UnicodeError):
            settings = None
        # An unescaped / or @ in a password leaves parts of it in what follows.
        host, port = (str((settings or {}).get(key) or "") for key in ("host", "port"))
        if settings is None or "@" in host or port.strip("0123456789,"):
            raise ConfigError(
                "the URL of the hot cache can't be read",
                hint="write postgresql://user:password@host:5432/database, with each @ : / ? # "
                "or % in the password as %40 %3A %2F %3F %23 %25",
            )
        self._secret = str(settings.get("password") or os.environ.get("PGPASSWORD") or "")
        return dict(settings)

    def _shut(self, wire: socket.socket | None) -> None:
        """Shut the connection, which ends whatever waits for it."""
        self._cut = True
        with suppress(OSError):
            if wire:
                wire.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        db, self._db = self._db, None
        wire, self._wire = self._wire, None
        if db:
            db.close()
        if wire:
            wire.close()

    # --- errors --------------------------------------------------------------------------------

    def _down(self, what: str, *, transient: bool = False) -> TierDown:
        return TierDown(
            f"the hot cache (PostgreSQL) {what}",
            hint="nothing is lost: master holds every session; see annoris doctor",
            mend=next((mend for said, mend in _MENDS if said.search(what)), _UNREACHED),
            transient=transient,
        )

    def _explained(self, error: psycopg.Error) -> AnnorisError:
        from psycopg import InterfaceError, OperationalError, errors  # noqa: PLC0415

        if self._cut:
            return self._down("did not answer in time")
        said = _NOISE.sub("", " ".join(str(error.diag.message_primary or error).split()))
        if self._secret:
            said = said.replace(self._secret, "***")
        down = (OperationalError, InterfaceError, errors.ReadOnlySqlTransaction)
        if isinstance(error, down):
            state = error.sqlstate or ""
            passing = state.startswith(_PASSING_STATES) or (not state and _PASSING.search(said))
            return self._down(f"can't be used now: {said}", transient=bool(passing))
        hint = "run annoris doctor"
        if isinstance(error, errors.InsufficientPrivilege):
            grant = next(text for what, text in _GRANTS.items() if what in said)
            hint = f"let the owner of the database run: {grant.format(**self._names)}"
        elif isinstance(error, (errors.UndefinedTable, errors.DivisionByZero)):
            said = f"its tables in schema {self._schema} are missing or of another version"
            hint = "annoris sync makes them anew"
        elif isinstance(error, errors.DuplicateTable):
            hint = "that table is not Annoris's: give the hot cache a schema of its own"
        return StorageError(f"the hot cache (PostgreSQL) refuses: {said}", hint=hint)


# --- dumps -----------------------------------------------------------------------------------


def _counted(counts: tuple[Any, ...] | None) -> dict[str, int]:
    return dict(zip(("sessions", "projects", "sync_log"), counts or (), strict=False))


def _lines(db: Connection) -> Iterator[tuple[str, str]]:
    db.execute("SET LOCAL TimeZone TO 'UTC'")
    for name, which in _TABLES.items():
        with db.cursor() as cursor, cursor.copy(_EXPORT.format(*which)) as copy:
            for (line,) in copy.rows():
                yield name, line


def _fill(db: Connection, lines: Iterable[tuple[str, str]]) -> None:
    db.execute(_LINES)
    columns: dict[str, list[str]] = {}
    with db.cursor() as cursor, cursor.copy("COPY lines FROM STDIN") as copy:
        for name, line in lines:
            columns.setdefault("sync_log" if name == "dump_log" else name, list(json.loads(line)))
            copy.write_row((name, line))
    db.execute("DELETE FROM sessions; DELETE FROM projects")
    db.execute(_SKIP_IDS)
    statements = {"state": _SET_STATE, "sync_log": _FILL_LOG}
    for table, names in columns.items():
        # The version and the one row of ``state`` are those of the tables as they are here.
        wanted = [name for name in names if (table, name) not in _OWN]
        values = [
            _FREE_ID if (table, name) == ("sync_log", "id") else f"given.{_quoted(name)}"
            for name in wanted
        ]
        db.execute(
            statements.get(table, _FILL).format(
                table=table, columns=", ".join(map(_quoted, wanted)), values=", ".join(values)
            )
        )


# --- values ----------------------------------------------------------------------------------


def _record(row: Cached) -> tuple[str | int | None, ...]:
    """A row in the order of ``_COLUMNS``."""
    session = row.session
    return (
        session.id,
        _fit(session.project),
        _text(session.name),
        _text(session.title),
        _text(session.path),
        row.content or None,
        row.checksum,
        session.oid,
        _fit(session.priority),
        _fit(session.status),
        session.created or None,
        session.saved or None,
        session.size,
        session.etag,
        session.literal,
        session.body_md5,
        row.position,
    )


def mark(session: Session) -> str:
    """The digest that ``Held.mark`` has when the row's metadata is that of the session."""
    from hashlib import md5  # noqa: PLC0415

    values = _marked(_record(Cached(session, 0, "")))
    words = ["" if value is None else str(value) for value in values]
    return md5(chr(31).join(words).encode(), usedforsecurity=False).hexdigest()


def _cached(row: Sequence[Any]) -> Cached:
    held = dict(zip(_COLUMNS, row, strict=False))
    words = ("project", "name", "title", "status", "priority")
    held |= {key: _original(held[key]) for key in words}
    session = Session(
        id=held["id"],
        path=_original(held["file_path"]),
        oid=held["github_sha"],
        created=held["created_at"],
        saved=held["updated_at"],
        **{key: held[key] for key in (*words, "size", "etag", "literal", "body_md5")},
    )
    return Cached(session, held["position"], held["checksum"], held["content"] or "")


def _value(db: Connection, sql: str, *values: object) -> Any:
    found = db.execute(sql, values).fetchone()
    return found[0] if found else None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    """Text as PostgreSQL takes it: paths need not be UTF-8, and YAML can write a NUL."""
    if not _UNFIT.search(text):
        return text
    return _UNFIT.sub(lambda m: "\\\\" if m[0] == "\\" else f"\\u{ord(m[0]):04x}", text)


def _original(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda m: m[1] or chr(int(m[2], 16)), text)


def _project_columns(rows: Iterable[Project]) -> dict[str, list[Any]]:
    records = [_project_record(row) for row in rows]
    columns = map(list, zip(*records, strict=True)) if records else ([] for _ in _PROJECT_KEYS)
    return dict(zip(_PROJECT_KEYS, columns, strict=True))


def _project_record(row: Project) -> tuple[object, ...]:
    texts = map(_fit, (row.name, row.status, row.priority))
    return (
        row.id,
        *texts,
        *(row.target_revenue or None, row.current_revenue or None),
        row.created or None,
    )


def _fit(text: str) -> str:
    """Text for a column of limited width; longer ones stay different from each other."""
    text = _text(text)
    if len(text) <= _WIDTH:
        return text
    from hashlib import sha256  # noqa: PLC0415

    return f"{text[: _WIDTH - 33]}~{sha256(text.encode()).hexdigest()[:32]}"


def _json(details: Mapping[str, object]) -> str:
    text = json.dumps(details, ensure_ascii=False).encode(errors="replace").decode()
    return _NUL_IN_JSON.sub(r"\1\\ufffd", text)
