"""Case 3 with all three tiers: kill -9 at any step of what writes to the caches and to the key.

As in ``test_case_crash``, but the world goes on from one death to the next: after each, the same
command is typed again, and in the end everything is in step and nothing is lost.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from annoris import envelope
from annoris.assistant.spool import Spool
from tests.support import crash
from tests.support.invariant import holds
from tests.support.machine import Machine
from tests.support.tiers import Tiers, forget_failures
from tests.test_case_crash import FULL

Prepare = Callable[["World"], tuple[str, ...]]
DEATHS = 10_000 if FULL else 3  # of each command


class World:
    """A machine, its tiers, and every text that must be there in the end."""

    def __init__(self, here: Machine, tiers: Tiers) -> None:
        self.here, self.tiers = here, tiers
        self.bodies: dict[str, bytes] = {}
        self.texts: list[bytes] = []
        self.count = itertools.count(1)
        self.keep()

    def new(self) -> bytes:
        return f"# Text {next(self.count)}\n\nof its own\n".encode()

    def keep(self) -> str:
        """Save a session that stays; its id."""
        text = self.new()
        (receipt,) = self.here.save(text)
        self.bodies[receipt.id] = text
        return receipt.id


def save(world: World) -> tuple[str, ...]:
    world.texts.append(world.new())
    return "save", str(world.here.write("new.md", world.texts[-1]))


def save_without_hot(world: World) -> tuple[str, ...]:
    """The emergency cache takes it; the breaker remembers."""
    world.tiers.set(hot=False)
    return save(world)


def delete(world: World) -> tuple[str, ...]:
    (receipt,) = world.here.save(world.new())
    return "delete", receipt.id


def delete_without_hot(world: World) -> tuple[str, ...]:
    command = delete(world)
    world.tiers.set(hot=False)
    return command


def set_project(world: World) -> tuple[str, ...]:
    return "projects", "set", "default", "--status", f"step {next(world.count)}"


def rotate(world: World) -> tuple[str, ...]:
    return "key", "rotate"


def retire(world: World) -> tuple[str, ...]:
    assert world.here.run("key", "rotate").code == 0
    ring = envelope.load_ring(str(world.here.data / "key"))
    return "key", "retire", ring.keys[-1].id


def bring(world: World) -> tuple[str, ...]:
    """A key from another machine; and the first key of all, where the file was lost."""
    key = world.here.data / "key"
    phrase = world.here.write("phrase.txt", envelope.phrase(envelope.load_ring(str(key)).current))
    key.unlink()
    return "key", "import", str(phrase)


def sync_lost(world: World) -> tuple[str, ...]:
    """The hot cache and the catalog are lost, and people are to hear of an outage before."""
    world.tiers.set(hot=False)
    world.keep()
    world.tiers.set()
    forget_failures(world.here)
    with psycopg.connect(world.tiers.direct, autocommit=True) as db:
        db.execute("DROP SCHEMA annoris CASCADE")
    (world.here.data / "catalog.sqlite").unlink()
    return "sync", "--full"


def flush(world: World) -> tuple[str, ...]:
    """A conversation that a hook recorded."""
    said = world.new().decode()
    event = {"event": "stop", "session": f"talk-{len(said)}-{next(world.count)}", "client": "x"}
    Spool(world.here.environment).add(
        event | {"at": "2026-11-24T12:00:00Z", "last_assistant_message": said, "cwd": "/nowhere"}
    )
    return "hook", "flush"


COMMANDS: dict[str, Prepare] = {
    "save, three tiers": save,
    "save, the hot cache down": save_without_hot,
    "delete, the hot cache down": delete_without_hot,
    "projects set": set_project,
    "key rotate": rotate,
    "key retire": retire,
    "key import": bring,
    "sync --full, caches lost": sync_lost,
    "hook flush": flush,
}


@pytest.mark.timeout(3600 if FULL else 300)
@pytest.mark.parametrize("name", COMMANDS)
def test_case_03_killed_at_any_step_the_caches_and_keys_go_on(
    name: str, machine: Callable[..., Machine], tiers: Tiers, tmp_path: Path
) -> None:
    """The same command again and one sync complete it: all is readable, nothing is doubled."""
    world = World(_machine(machine, tiers), tiers)
    steps, ran = crash.events(world.here, *_prepared(world, name))
    assert ran.code == 0, ran
    missed = crash.PASSED[name] - set(steps)
    assert not missed
    for number in _sampled(len(steps)):
        command = _prepared(world, name)
        killed = crash.run(world.here, *command, kill_at=number)
        assert killed.code in (-9, 0), killed
        again = crash.run(world.here, *command)
        what = f"{name}, killed before step {number}, {steps[number]}: then {again}"
        gone = name.startswith("delete") or name == "key retire"
        assert again.code in ((0, 3, 8) if gone else (0,)), what
    tiers.set()
    forget_failures(world.here)
    assert crash.run(world.here, "sync", "--full").code == 0
    found = holds([world.here], tiers.remote, world.bodies, anywhere=world.texts)
    bodies = list(found.values())
    assert [bodies.count(text) for text in world.texts] == [1] * len(world.texts)
    if name == "hook flush":
        assert len(bodies) - len(world.bodies) == len(_sampled(len(steps))) + 1
    assert json.loads(crash.run(world.here, "verify", "--json").out)["audit"]["findings"] == []


def _machine(machine: Callable[..., Machine], tiers: Tiers) -> Machine:
    """One with a key of its own, which can be changed."""
    return machine(
        "laptop", tiers.remote, hot_url=tiers.hot_url, emergency_url=tiers.emergency_url,
        hot_seconds="20", hot_load_seconds="20", alerts_urls="json://127.0.0.1:9/nowhere",
    )  # fmt: skip


def _prepared(world: World, name: str) -> tuple[str, ...]:
    world.tiers.set()
    forget_failures(world.here)
    return COMMANDS[name](world)


def _sampled(count: int) -> list[int]:
    stride = max(1, count // DEATHS)
    return list(range(stride // 2, count, stride))[:DEATHS]
