"""The campaign: people, faults and deaths at once, and moments at which everything must be right.

At a check point all faults are over and nobody types. Then every machine syncs, and what all of
them, the caches and master hold must be one thing, and the model's.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from annoris import document
from annoris.follow import id_of
from annoris.hot import Hot
from tests.chaos import plan
from tests.chaos.model import Model
from tests.chaos.people import Done, Person, Tally
from tests.chaos.plan import Fault
from tests.chaos.world import Heal, Station, World

_LEFT_SECONDS = 40.0  # that what a killed command left alone may go on
_OLD = 7200.0  # older than anything that a tidying sync leaves
# Names that are never used again; what has a fixed one is written over by the next.
_TEMPORARY = re.compile(r"(^\.tmp-|^tmp_|^\.annoris-|^annoris-bug-|\.\d{3,}$)")


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. ``seconds`` of faults, with a check point after each ``pause``."""

    seconds: float
    pause: float = 60.0
    machines: int = 3
    people: int = 2  # at each machine
    fault_pause: float = 1.0


class Campaign:
    def __init__(self, folder: Path, seed: int, size: Size) -> None:
        self.seed, self.size = seed, size
        self.model, self.tally = Model(), Tally()
        self.world = World(folder, self.model, machines=size.machines)
        self.checks = 0
        self._faults = plan.faults(seed, pause=size.fault_pause)
        self._heals: list[tuple[float, int, Heal]] = []
        self._count = itertools.count()
        self._stop = threading.Event()
        self._calm = threading.Event()  # set while people type
        self._ready = threading.Barrier(size.machines * size.people + 1)
        self.people: list[Person] = []

    def run(self) -> None:
        """All of it; what is wrong is in the model's violations."""
        with self.world:
            for number in range(self.size.machines * self.size.people):
                station = self.world.stations[number % self.size.machines]
                self.people.append(Person(number, station, self.world, self.tally))
            try:
                self._run()
            except Exception:  # noqa: BLE001 - what was found until then is still to be told
                self.model.accuse("campaign", traceback.format_exc())
            finally:
                for person in self.people:
                    person.zygote.close()

    def _run(self) -> None:
        for person in self.people:
            person.zygote.warm()
        first = self.people[0]
        first.type("key", "new", "--json")
        first.share_keys()
        work = [
            threading.Thread(target=self._type, args=(person, number))
            for number, person in enumerate(self.people)
        ]
        left = self.size.seconds
        self._calm.set()
        for thread in work:
            thread.start()
        try:
            while left > 0:
                self._trouble(min(left, self.size.pause))
                left -= self.size.pause
                self._check(last=left <= 0)
                self._tell(left)
        finally:
            self._stop.set()
            self._ready.abort()
            for thread in work:
                thread.join()

    def _tell(self, left: float) -> None:
        done, faults = len(self.tally.commands), sum(self.world.counts.values())
        told = f"{max(left, 0):.0f} s to go: {done} operations, {faults} faults of the world"
        print(f"{told}, {len(self.model.violations)} violations", file=sys.stderr)

    # --- people and faults -------------------------------------------------------------------

    def _type(self, person: Person, number: int) -> None:
        """One person's thread: type while the others do, wait while everything is checked."""
        try:
            for step in plan.steps(self.seed, number):
                if not self._calm.is_set():
                    self._ready.wait()  # everybody has stopped
                    self._ready.wait()  # and goes on
                if self._stop.is_set():
                    return
                person.do(step)
        except threading.BrokenBarrierError:
            pass
        except Exception:  # noqa: BLE001 - a thread must say what ended it
            self.model.accuse("campaign", traceback.format_exc())
            self._ready.abort()

    def _trouble(self, seconds: float) -> None:
        """Let people type and faults happen for so long, then end both."""
        until = time.monotonic() + seconds
        self._calm.set()
        if self.checks:
            self._ready.wait()
        fault = next(self._faults)
        due = time.monotonic() + fault.after
        while time.monotonic() < until and not self._ready.broken:
            self._heal(time.monotonic())
            if time.monotonic() >= due:
                self._begin(fault)
                fault = next(self._faults)
                due = time.monotonic() + fault.after
            time.sleep(0.02)
        self._calm.clear()
        self._heal(float("inf"))
        self._ready.wait()

    def _begin(self, fault: Fault) -> None:
        if heal := self.world.begin(fault):
            end = time.monotonic() + fault.seconds
            heapq.heappush(self._heals, (end, next(self._count), heal))

    def _heal(self, now: float) -> None:
        while self._heals and self._heals[0][0] <= now:
            heapq.heappop(self._heals)[2]()

    # --- check points ------------------------------------------------------------------------

    def _check(self, *, last: bool) -> None:
        self.checks += 1
        self.world.git.lose_ack = self.world.git.cut = 0
        self._no_orphans()
        self._settle()
        self._judge(everything=last)

    def _no_orphans(self) -> None:
        """What a killed command left alone ends by itself."""
        known = {person.zygote.pid for person in self.people}
        until = time.monotonic() + _LEFT_SECONDS
        while (left := self.world.orphans(known)) and time.monotonic() < until:
            time.sleep(0.1)
        if left:
            self.model.accuse("orphans", "; ".join(left))

    def _at(self, station: Station) -> Person:
        return next(person for person in self.people if person.station is station)

    def _settle(self) -> None:
        """Everything that waits is delivered, keys are one, every projection follows."""
        for station in self.world.stations:
            for path in [station.machine.data / "breaker.json", *_temporary(station)]:
                with contextlib.suppress(FileNotFoundError):
                    if path.name == "breaker.json":
                        path.unlink()
                    else:
                        os.utime(path, (time.time() - _OLD,) * 2)
        self._one_key()
        for station in self.world.stations:
            self._deliver(self._at(station))
        for words in (("sync", "--full", "--force"), ("sync", "--full")):
            for station in self.world.stations:
                self._must(self._at(station).type(*words), 0, 4)

    def _one_key(self) -> None:
        """Bring all keys to one machine, which seals everything under one of them."""
        for station in reversed(self.world.stations):
            self._at(station).share_keys()
        first = self.people[0]
        self._must(first.type("key", "rotate", "--json"), 0)
        first.share_keys()

    def _deliver(self, person: Person) -> None:
        person.type("hook", "flush")
        self._must(person.type("sync", "--force"), 0, 4)
        shown = json.loads(person.type("outbox", "--json").out)
        for draft in shown["aside"]:
            self._must(person.type("outbox", "retry", draft["key"]), 0, 4)
        self._must(person.type("dump", "--json"), 0)  # one that failed is a finding
        self._must(person.type("dump", "--drill", "--json"), 0)
        left = json.loads(person.type("outbox", "--json").out)
        if left["waiting"] or left["aside"]:
            told = f"{person.station.name} does not deliver {json.dumps(left)[:2000]}"
            self.model.accuse("undelivered", told)

    def _must(self, done: Done, *codes: int) -> None:
        if done.code not in codes:
            words = f"{' '.join(done.words)} ended with {done.code} where all is well"
            self.model.accuse("not healed", f"{words}: {done.err[-1500:]}{done.out[-1500:]!r}")

    def _judge(self, *, everything: bool) -> None:
        hand = self.world.hand
        self.model.judge(hand.changes(), hand.paths())
        master = hand.tree()
        self._projections(master)
        self._sound(self.world.git.repo, "master's server")
        for station in self.world.stations:
            person = self._at(station)
            self._must(person.type("verify", "--json"), 0)
            self._sound(station.machine.data / "clone.git", station.name)
            self._nothing_left(station)
        self._loads(everything=everything)

    def _projections(self, master: dict[str, str]) -> None:
        """The catalogs and the hot cache show what master holds, and nothing else."""
        hot = Hot(self.world.direct, seconds=30)
        with contextlib.closing(hot):
            rows = [row for row in hot.entries().values() if not row.deleted]
        shown = {"the hot cache": {row.path: row.oid for row in rows}}
        for station in self.world.stations:
            with contextlib.closing(station.machine.archive()) as archive:
                shown[station.name] = archive.catalog.entries()
        for name, tree in shown.items():
            if tree != master:
                differ = sorted(tree.items() ^ master.items())[:6]
                self.model.accuse("projection", f"{name} is not master: {differ}")

    def _sound(self, repo: Path, name: str) -> None:
        command = ["git", f"--git-dir={repo}", "fsck", "--full", "--no-dangling", "--no-progress"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=300)
        if done.returncode:
            self.model.accuse("fsck", f"{name}: {done.stderr.decode()[-1000:]}")

    def _nothing_left(self, station: Station) -> None:
        locks = list((station.machine.data / "clone.git").rglob("*.lock"))
        if left := [*locks, *_temporary(station)]:
            self.model.accuse("left over", f"{station.name}: {left[:20]}")

    def _loads(self, *, everything: bool) -> None:
        """Sessions come back byte for byte, to each machine and from each tier."""
        sessions = sorted(self.world.hand.sessions().items())
        turns = itertools.cycle(itertools.product(self.people, ("hot", "master", "clone", "")))
        step = 1 if everything else max(1, len(sessions) // 40)
        for path, data in sessions[::step]:
            person, tier = next(turns)
            said = document.inspect(data).id or id_of(path)
            words = ("--from", tier) if tier else ()
            done = person.type("load", said, *words)
            same = done.out == data
            if done.code or not same:
                told = f"{person.station.name} {' '.join(done.words)}: {done.code} {done.err}"
                self.model.accuse("lost" if done.code else "wrong bytes", told, id=said)


def _temporary(station: Station) -> list[Path]:
    """Files that carry a passing name."""
    return list(_passing(station.machine.data)) + list(_passing(station.machine.folder / "tmp"))


def _passing(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and _TEMPORARY.search(path.name):
            yield path
