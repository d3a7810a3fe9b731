"""The emergency cache: what was last saved, in Redis or Valkey for an hour. The only redis.

It can be lost at any time. It sees no plaintext: content is an envelope that the caller has
sealed. A session has a head, which says the newest revision that was seen and moves only
forward by position, and a value under that revision's blob id; both share a hash tag, so that
one script reads or moves them in one step, in a cluster too. Two small indexes lead to heads:
the newest of a project, and a name in a project; what they say is checked against the head.
Every key ends by its TTL.

What it takes there is bounded: of each session only the newest revision, of at most MAX_VALUE
characters, for an hour. A server whose memory is full, and may throw nothing out, takes
nothing; that is no failure.

Methods raise TierDown when the server does not answer in time or can't work, StorageError for
a head that can't be read, and ConfigError for a URL that is none. A server that does not
answer costs ``seconds`` once: every further call raises at once, until ``close``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from annoris.dataclass import dataclass
from annoris.errors import AnnorisError, ConfigError, StorageError, TierDown
from annoris.model import Cached, Deadline, Session

if TYPE_CHECKING:
    import redis

T = TypeVar("T")

MAX_VALUE = 1024 * 1024  # characters of an envelope

# KEYS: head. ARGV: position, blob id, TTL, where values are, metadata, content.
# At the same position a removal wins, and a blob id only over itself. What lies at an older
# blob id goes with it. Where memory is full the older revision goes, and the new one does not
# come: the first write is the one that the server refuses.
_MOVE = """
local held = redis.call('HMGET', KEYS[1], 'position', 'oid')
local before, after = tonumber(held[1] or ''), tonumber(ARGV[1])
if before then
    if after < before or after == before and ARGV[2] ~= '' and ARGV[2] ~= held[2] then
        return 0
    end
end
local moved = redis.pcall('HSET', KEYS[1], 'position', ARGV[1], 'oid', ARGV[2], 'meta', ARGV[5])
if held[2] and held[2] ~= ARGV[2] then redis.call('DEL', ARGV[4] .. held[2]) end
if type(moved) == 'table' and moved.err then
    redis.call('DEL', KEYS[1])
    return 0
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
if ARGV[6] ~= '' then redis.call('SET', ARGV[4] .. ARGV[2], ARGV[6], 'EX', ARGV[3]) end
return 1
"""
# KEYS: head. ARGV: where values are.
_GET = """
local held = redis.call('HMGET', KEYS[1], 'position', 'oid', 'meta')
if not held[1] or held[2] == '' then return {} end
return {held[1], held[3], redis.call('GET', ARGV[1] .. held[2]) or ''}
"""
# KEYS: head. ARGV: where values are.
_DROP = """
local oid = redis.call('HGET', KEYS[1], 'oid')
if oid then redis.call('DEL', ARGV[1] .. oid) end
return redis.call('DEL', KEYS[1])
"""
# KEYS: index. ARGV: what orders sessions, id, TTL. Forward only; the same session anyway.
_POINT = """
local held = redis.call('HMGET', KEYS[1], 'order', 'id')
if held[1] and held[1] > ARGV[1] and held[2] ~= ARGV[2] then return 0 end
redis.pcall('HSET', KEYS[1], 'order', ARGV[1], 'id', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""

_MENDS = (
    (
        re.compile(r"[Pp]assword|[Aa]uthentication|NOAUTH|WRONGPASS|NOPERM"),
        "correct the user and the password in ANNORIS_EMERGENCY_URL or REDIS_URL",
    ),
    (
        re.compile(r"certificate|SSL|TLS"),
        "name the file with the CA's certificate in the URL: rediss://…?ssl_ca_certs=FILE",
    ),
    (re.compile(r"READONLY|read only"), "give the address of the primary, not of a replica"),
)
_UNREACHED = (
    "start the server, or correct host and port in ANNORIS_EMERGENCY_URL or REDIS_URL; to try "
    "it: redis-cli -u URL ping"
)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the server says of its memory: bytes in use, the most (0: no limit), who must go."""

    used: int
    most: int
    policy: str


class Emergency:
    def __init__(
        self,
        url: str,
        *,
        ttl: int = 3600,
        seconds: float = 0.3,
        namespace: str = "annoris",
        cluster: bool = False,
    ) -> None:
        """``url`` is redis:// or rediss://. Nothing is opened before the first call.

        Keys last ``ttl`` seconds, each call at most ``seconds``.
        """
        import redis  # noqa: F401, PLC0415 - here, so that no limit of a call pays for it

        self._url = url
        self._ttl = ttl
        self._seconds = seconds
        self._namespace = namespace
        self._cluster = cluster
        self._server: redis.Redis | None = None
        self._shared: Deadline | None = None
        self._cut = False

    def close(self) -> None:
        """Close the connections; a later call opens them anew."""
        server, self._server = self._server, None
        if server:
            server.close()
        self._cut = False

    @contextmanager
    def within(self, deadline: Deadline) -> Iterator[None]:
        """Calls inside share one deadline instead of having ``seconds`` each."""
        before, self._shared = self._shared, deadline
        try:
            yield
        finally:
            self._shared = before

    def put(self, row: Cached) -> bool:
        """Keep a revision unless a newer one is known, in one round trip.

        False when none of its content is here now: a newer one is known, memory is full, or it
        has more than MAX_VALUE characters. In the last two cases the older revision goes all the
        same, so that it is not taken for the newest.
        """
        session = row.session
        content = row.content if len(row.content) <= MAX_VALUE else ""
        meta = json.dumps({"session": asdict(session), "checksum": row.checksum})
        move = self._moving(session.id, row.position, session.oid, meta, content)
        order, indexes = _order(session), self._indexes(session)

        def work(server: redis.Redis) -> bool:
            pipe: Any
            with server.pipeline(transaction=False) as pipe:
                pipe.execute_command("EVAL", *move)
                for index in indexes:
                    pipe.execute_command("EVAL", _POINT, 1, index, order, session.id, self._ttl)
                return bool(pipe.execute()[0])

        return self._ask(work) and bool(content)

    def remove(self, id: str, position: int) -> bool:
        """Forget a session that master lost at ``position``; a late writer does not revive it."""
        move = self._moving(id, position, "", "", "")
        return bool(self._ask(lambda server: server.execute_command("EVAL", *move)))

    def drop(self, id: str) -> bool:
        """Take what is here of a session away, whatever it is; a writer may bring it again."""
        found = ("EVAL", _DROP, 1, self._head(id), self._values(id))
        return bool(self._ask(lambda server: server.execute_command(*found)))

    def get(self, id: str) -> Cached | None:
        """The newest revision seen of a session; without content when that was too big."""
        get = ("EVAL", _GET, 1, self._head(id), self._values(id))
        found = self._ask(lambda server: server.execute_command(*get))
        return _cached(id, found) if found else None

    def newest(self, project: str) -> Cached | None:
        """The session of a project that was saved last, of those that are here."""
        found = self._through(self._newest(project))
        return found if found and found.session.project == project else None

    def named(self, project: str, name: str) -> Cached | None:
        """The session of that name in the project, saved last of those that are here."""
        found = self._through(self._named(project, name))
        known = found and (found.session.project, found.session.name)
        return found if known == (project, name) else None

    def entries(self) -> dict[str, tuple[str, int]]:
        """Blob id and position of every session that is here, by id; -1 where that is damaged."""
        heads = self._head("*")
        before, after = heads.split("*")

        def work(server: redis.Redis) -> dict[str, tuple[str, int]]:
            keys = [key.decode() for key in set(server.scan_iter(match=heads, count=1000))]
            with server.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hmget(key, "oid", "position")
                answers = pipe.execute() if keys else []
            return {
                key.removeprefix(before).removesuffix(after): (
                    (oid or b"").decode(errors="replace"),
                    int(position) if position and position.isdigit() else -1,
                )
                for key, (oid, position) in zip(keys, answers, strict=True)
                if oid or not (position and position.isdigit())
            }

        return self._ask(work)

    def pointers(self) -> dict[str, str]:
        """The ids that the indexes lead to, by what ``pointers_to`` calls an index."""

        def work(server: redis.Redis) -> dict[str, str]:
            found = {
                key.decode(errors="replace")
                for kind in ("newest", "named")
                for key in server.scan_iter(match=f"{self._namespace}:{kind}:*", count=1000)
            }
            keys = sorted(found)
            with server.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hget(key, "id")
                ids = pipe.execute(raise_on_error=False) if keys else []
            return {
                key: id.decode(errors="replace") if isinstance(id, bytes) else ""
                for key, id in zip(keys, ids, strict=True)
            }

        return self._ask(work)

    def pointers_to(self, sessions: Iterable[Session]) -> dict[str, str]:
        """What ``pointers`` would be were these all the sessions, and all of them here."""
        best: dict[str, tuple[str, str]] = {}
        for session in sessions:
            order = _order(session)
            for index in self._indexes(session):
                best[index] = max(best.get(index, ("", "")), (order, session.id))
        return {index: id for index, (_, id) in best.items()}

    def unpoint(self, indexes: Iterable[str]) -> None:
        """Take indexes away; the next save of a session brings them again."""

        def work(server: redis.Redis) -> None:
            for index in indexes:  # one by one: in a cluster they lie apart
                server.delete(index)

        self._ask(work)

    def count(self) -> int:
        """How many sessions are here."""
        return len(self.entries())

    def memory(self) -> Memory:
        """How much memory the server has taken, and how much it may take."""
        info = self._ask(lambda server: server.info("memory"))
        policy = str(info.get("maxmemory_policy", ""))
        return Memory(int(info.get("used_memory", 0)), int(info.get("maxmemory", 0)), policy)

    def clock(self) -> float:
        """Seconds that the server's clock is ahead of this machine's."""
        seconds, micro = self._ask(lambda server: server.time())
        return float(seconds) + float(micro) / 1e6 - time.time()

    def ping(self) -> float:
        """Seconds that the server takes for one answer, once connected."""

        def work(server: redis.Redis) -> float:
            server.ping()
            started = time.monotonic()
            server.ping()
            return time.monotonic() - started

        return self._ask(work)

    # --- keys ----------------------------------------------------------------------------------

    def _head(self, id: str) -> str:
        return f"{self._namespace}:{{{id}}}:head"

    def _values(self, id: str) -> str:
        """What stands before the blob id in the key of a value."""
        return f"{self._namespace}:{{{id}}}:"

    def _newest(self, project: str) -> str:
        return f"{self._namespace}:newest:{json.dumps(project)}"

    def _named(self, project: str, name: str) -> str:
        return f"{self._namespace}:named:{json.dumps([project, name])}"

    def _indexes(self, session: Session) -> list[str]:
        named = [self._named(session.project, session.name)] if session.name else []
        return [self._newest(session.project), *named]

    def _moving(self, id: str, position: int, oid: str, meta: str, content: str) -> tuple[Any, ...]:
        head, values = self._head(id), self._values(id)
        return (_MOVE, 1, head, position, oid, self._ttl, values, meta, content)

    def _through(self, index: str) -> Cached | None:
        id = self._ask(lambda server: server.hget(index, "id"))
        return self.get(id.decode()) if id else None

    # --- the server ----------------------------------------------------------------------------

    def _ask(self, work: Callable[[Any], T]) -> T:
        """What ``work`` answers, by the deadline: timeouts of sockets do not end a slow drip."""
        import redis  # noqa: PLC0415
        from redis.exceptions import RedisClusterException  # noqa: PLC0415 - no RedisError

        if self._cut or (self._shared and self._shared.over):
            raise self._down("did not answer in time")
        deadline = self._shared or Deadline(self._seconds)
        try:
            return deadline.run(lambda: work(self._connected(deadline)))
        except redis.TimeoutError as error:
            self._cut = True
            raise self._down("did not answer in time") from error
        except TimeoutError:
            self._cut = True
            raise self._down("did not answer in time") from None
        except (redis.RedisError, RedisClusterException, OSError) as error:
            raise self._explained(error) from error

    def _connected(self, deadline: Deadline) -> redis.Redis:
        import redis  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415

        if self._server is None:
            kind: Any = redis.RedisCluster if self._cluster else redis.Redis
            # Only the longest wait of one read: the deadline of each call comes first.
            seconds = max(self._seconds, deadline.left(60))
            try:
                self._server = kind.from_url(
                    self._url,
                    socket_timeout=seconds,
                    socket_connect_timeout=seconds,
                    retry=Retry(NoBackoff(), 0),
                    protocol=2,
                    driver_info=None,  # spares a question to the server about itself
                )
            except ValueError:  # it may quote the password
                raise ConfigError(
                    "the URL of the emergency cache can't be read",
                    hint="write redis://:password@host:6379/0, or rediss:// for TLS, with each "
                    "@ : / ? # or % in the password as %40 %3A %2F %3F %23 %25",
                ) from None
        return self._server

    def _down(self, what: str, *, transient: bool = False) -> TierDown:
        return TierDown(
            f"the emergency cache (Redis) {what}",
            hint="nothing is lost: master holds every session; see annoris doctor",
            mend=next((mend for said, mend in _MENDS if said.search(what)), _UNREACHED),
            transient=transient,
        )

    def _explained(self, error: Exception) -> AnnorisError:
        from urllib.parse import unquote, urlsplit  # noqa: PLC0415

        from redis import exceptions  # noqa: PLC0415

        lost = (exceptions.ConnectionError, exceptions.TryAgainError, OSError)
        for_good = (exceptions.AuthenticationError, exceptions.AuthorizationError)
        passing = isinstance(error, lost) and not isinstance(error, for_good)
        said = " ".join(str(error).split())
        password = unquote(urlsplit(self._url).password or "")
        said = said.replace(password, "***") if password else said
        return self._down(f"can't be used now: {said}", transient=passing)


def _order(session: Session) -> str:
    """What an index compares: the greatest is the one that it leads to."""
    return f"{int(not session.captured)} {session.saved} {session.id}"


def _session(fields: dict[str, Any]) -> Session:
    """Raises TypeError unless each field is there and of its kind."""
    session = Session(**fields)
    if any(isinstance(value, str) is (name == "size") for name, value in fields.items()):
        raise TypeError(f"not a session: {fields!r}")
    return session


def _cached(id: str, found: list[bytes]) -> Cached:
    position, meta, content = found
    try:
        known = json.loads(meta)
        return Cached(
            _session(known["session"]), int(position), known["checksum"], content.decode()
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StorageError(
            f"what the emergency cache (Redis) holds of session {id} can't be read",
            hint="it is ignored, and gone within the hour",
        ) from error
