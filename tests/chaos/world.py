"""The servers and the machines of a campaign, and the ways in which they fail.

Everything is real: git over smart HTTP, PostgreSQL, Valkey, each behind a proxy. What this
computer does not allow (a disk of a machine's own, a clock of its own) is left out and told in
``skipped``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis

from annoris.hot import Hot
from tests.chaos.hand import Hand
from tests.chaos.model import Model
from tests.chaos.plan import Fault
from tests.support.githttp import GitServer
from tests.support.machine import Machine
from tests.support.proxy import Mode, Proxy
from tests.support.servers import Postgres, Valkey

MARK = "CHAOS_RUN"
_DISK = "2g"  # of a machine; only what is used is memory
_CLOCKS = (-7200, 7200, -90, 90, 86_400, -86_400)

Heal = Callable[[], None]


class World:
    """``folder`` holds everything. ``active`` are the faults of this moment."""

    def __init__(self, folder: Path, model: Model, *, machines: int) -> None:
        self.folder = folder
        self.model = model
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self.skipped: list[str] = []
        self.active: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.last_heal: dict[str, float] = {}
        self._ends = contextlib.ExitStack()
        self._clock = _clock(folder)
        if not self._clock:
            self.skipped.append("clock: no C compiler to move it with")
        self.git = self._ends.enter_context(GitServer(folder / "server", token="t" * 20))
        self.postgres = self._ends.enter_context(Postgres(folder / "postgres", fsync=True))
        self.valkey = self._ends.enter_context(Valkey(folder / "valkey", password="pass w@rd"))
        self.hand = Hand(self.git.repo, model)
        self.direct = self.postgres.create_database("chaos")
        self._prepare()
        ports = {
            "master": urlsplit(self.git.url).port or 0,
            "hot": self.postgres.port,
            "emergency": self.valkey.port,
        }
        self.proxies = {
            tier: self._ends.enter_context(Proxy(("127.0.0.1", port)))
            for tier, port in ports.items()
        }
        self.stations = [Station(self, number) for number in range(machines)]
        self.rotating = threading.Lock()  # held by whoever changes keys

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for station in self.stations:
            station.close()
        self._ends.close()

    def settings(self) -> dict[str, str]:
        """What every machine is told of the servers, which it sees through proxies only."""
        hot = urlsplit(self.direct)._replace(
            netloc=f"postgres@127.0.0.1:{self.proxies['hot'].port}"
        )
        return {
            "hot_url": urlunsplit(hot),
            "emergency_url": self.valkey.url_at(self.proxies["emergency"].port),
            "master_token": "t" * 20,
            "master_push_seconds": "15",
            "master_fetch_seconds": "10",
            "master_fresh_seconds": "1",
        }

    @property
    def remote(self) -> str:
        own = str(urlsplit(self.git.url).port)
        return self.git.url.replace(own, str(self.proxies["master"].port))

    @property
    def clock(self) -> dict[str, str]:
        """What a process needs to have a clock that can be moved."""
        return {"LD_PRELOAD": self._clock} if self._clock else {}

    def orphans(self, known: set[int]) -> list[str]:
        """Command lines of the campaign's processes that are still there, but for the known."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            if int(folder.name) in known:
                continue
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append(f"{folder.name} {words}")
        return found

    def _prepare(self) -> None:
        hot = Hot(self.direct, seconds=30)
        with contextlib.closing(hot):
            hot.prepare()

    # --- faults ------------------------------------------------------------------------------

    def begin(self, fault: Fault) -> Heal | None:
        """Let something go wrong; answers what ends it, None when it is over or did not happen."""
        tier, _, how = fault.kind.partition("-")
        if (fault.seconds or how == "restarted") and self._is_down(fault.kind, tier):
            return None
        heal = self._begin(fault, tier, how)
        if heal is None:
            return None
        self.counts[fault.kind] += 1
        if not fault.seconds:
            heal()
            return None
        self.active.add(fault.kind)

        def over() -> None:
            heal()
            self.active.discard(fault.kind)
            self.last_heal[tier] = time.monotonic()

        return over

    def down_since(self, tier: str, moment: float) -> bool:
        """Whether anything was wrong with a tier since then."""
        now = any(kind.startswith(tier) for kind in self.active)
        return now or self.last_heal.get(tier, 0.0) > moment

    def _is_down(self, kind: str, tier: str) -> bool:
        """One fault at a time for each server, and one of each kind."""
        servers = ("master", "hot", "emergency")
        same = any(other.startswith(tier) for other in self.active)
        return same if tier in servers else kind in self.active

    def _begin(self, fault: Fault, tier: str, how: str) -> Heal | None:
        """What ends it, perhaps nothing; None when it could not be."""
        if tier in self.proxies and how in ("refuse", "blackhole", "drip", "cut", "slow"):
            return self._network(self.proxies[tier], how, fault.pick)
        if tier == "master":
            return self._master(how, fault.pick)
        if tier in ("hot", "emergency"):
            return self._server(tier, how)
        if tier in ("hand", "force", "squash"):
            return _nothing if self._by_hand(fault) else None
        station = self.stations[int(fault.pick * len(self.stations))]
        return station.begin(tier, fault.pick)

    def _network(self, proxy: Proxy, how: str, pick: float) -> Heal:
        if how == "slow":
            proxy.delay = 0.02 + pick * 0.4

            def quick() -> None:
                proxy.delay = 0.0

            return quick
        proxy.cut_after = 1 + int(pick * 400)
        proxy.mode = _MODES[how]

        def passing() -> None:
            proxy.mode = "pass"

        return passing

    def _master(self, how: str, pick: float) -> Heal:
        if how == "lose-ack":
            self.git.lose_ack += 1
        elif how == "cut-answer":
            self.git.cut += 1
        elif how == "status":
            self.git.status = (500, 502, 503, 429, 401, 403, 404)[int(pick * 7)]
        elif how == "hang":
            self.git.hang = "accept" if pick < 0.6 else "drip"
        elif how == "protected":
            self.git.protect()
        else:
            self.git.refuse_content(b"POISON", name_path=pick < 0.5)
        return self._master_well if how not in ("lose-ack", "cut-answer") else _nothing

    def _master_well(self) -> None:
        self.git.status, self.git.hang = None, ""
        self.git.allow_all()

    def _server(self, tier: str, how: str) -> Heal | None:
        server: Postgres | Valkey = self.postgres if tier == "hot" else self.valkey
        if how == "killed":
            server.kill()
            return server.start
        if how == "restarted":
            server.restart()
        elif how == "flushed":
            with redis.Redis.from_url(self.valkey.url) as client:
                client.flushall()
        else:
            try:
                with psycopg.connect(self.direct, autocommit=True, connect_timeout=10) as db:
                    db.execute("SET lock_timeout = '2s'")
                    db.execute("DROP SCHEMA IF EXISTS annoris CASCADE")
            except psycopg.Error:  # a command is at it
                return None
        return _nothing

    def _by_hand(self, fault: Fault) -> bool:
        hand, pick = self.hand, fault.pick
        work: dict[str, Callable[[], bool]] = {
            "hand-edit": lambda: hand.edit(pick),
            "hand-add": hand.add,
            "hand-rename": lambda: hand.rename(pick),
            "hand-delete": lambda: hand.delete(pick),
            "force-push": lambda: hand.force_push(pick),
            "squash": hand.squash,
        }
        return any(work[fault.kind]() for _ in range(5))  # somebody may be faster


_MODES: dict[str, Mode] = {
    "refuse": "refuse", "blackhole": "blackhole", "drip": "drip", "cut": "cut",
}  # fmt: skip


def _nothing() -> None:
    pass


class Station:
    """One machine: its home, its disk, its clock."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"machine-{number}"
        self.machine = Machine(world.folder / self.name, world.remote, world.settings())
        self.clock = 0
        self.full: tuple[float, float] = (0.0, 0.0)  # the disk last was, from and until
        (self.machine.folder / "tmp").mkdir()
        self.machine.data.mkdir()
        self._mounted = _mount(self.machine.data)
        if not self._mounted and number == 0:
            world.skipped.append("disk-full: mounting a small disk is not allowed")
        self.machine.environment |= {
            "TMPDIR": str(self.machine.folder / "tmp"),
            MARK: world.mark,
            **world.clock,
        }

    @property
    def environment(self) -> dict[str, str]:
        return self.machine.environment | {"CHAOS_CLOCK": str(self.clock)}

    def begin(self, kind: str, pick: float) -> Heal | None:
        """Move the clock, fill the disk, lose the catalog or forget the breaker."""
        if kind == "clock":
            return self._shift(pick) if self.world.clock else None
        if kind == "disk":
            return self._fill(pick) if self._mounted else None
        lost = {"catalog": "catalog.sqlite*", "breaker": "breaker.json"}[kind]
        for path in self.machine.data.glob(lost):
            path.unlink(missing_ok=True)
        return _nothing

    def _shift(self, pick: float) -> Heal:
        self.clock = _CLOCKS[int(pick * 997) % len(_CLOCKS)]

        def right() -> None:
            self.clock = 0

        return right

    def _fill(self, pick: float) -> Heal | None:
        """Make the disk as small as what is on it, give or take some pages."""
        about = os.statvfs(self.machine.data)
        used = (about.f_blocks - about.f_bfree) * about.f_frsize
        room = int(pick * 997) % 40 * 4096
        if not _remount(self.machine.data, str(used + room)):
            return None
        self.full = (time.monotonic(), float("inf"))

        def roomy() -> None:
            _remount(self.machine.data, _DISK)
            self.full = (self.full[0], time.monotonic())

        return roomy

    def was_full(self, since: float) -> bool:
        return self.full[1] > since and self.full[0] > 0

    def close(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.machine.data)], check=False)


def _mount(folder: Path) -> bool:
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=700", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _remount(folder: Path, size: str) -> bool:
    command = ["mount", "-o", f"remount,size={size}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@functools.cache
def _clock(folder: Path) -> str:
    """The library that moves a process's clock; empty where it can't be made."""
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")
    if not compiler or not os.path.exists("/proc/self/environ"):
        return ""
    source, target = Path(__file__).with_name("clock.c"), str(folder / "clock.so")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", target, str(source), "-ldl"]
    return target if subprocess.run(command, check=False).returncode == 0 else ""
