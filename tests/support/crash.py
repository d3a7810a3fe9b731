"""Commands that die at a chosen moment: kill -9 before each of their effects.

``run`` forks this process and runs the command line in the child, in which every effect of
annoris is preceded by an event: the public methods that change something, the calls that make
a file durable, and the git commands that write. An event that ends with ``*`` lies in the
middle of a git command: git goes on alone, as it does when its parent is killed. The last
event, ``end``, comes when all is done and nobody has been told.

The product knows nothing of this: the events are put around it from outside.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from annoris import cli, commands, gitcmd
from annoris.archive import Archive
from annoris.breaker import Breaker
from annoris.catalog import Catalog
from annoris.follow import Follower
from annoris.master import Master
from annoris.outbox import Outbox
from annoris.publish import Publisher
from tests.support.machine import Machine, Ran

CLASSES: tuple[type, ...] = (Outbox, Master, Catalog, Follower, Publisher, Breaker, Archive)

# Reviewed: the public methods that change something on this machine or on master …
EFFECTS = {
    "Outbox.add", "Outbox.remove", "Outbox.set_aside", "Outbox.retry", "Outbox.drop",
    "Outbox.answer", "Outbox.answered", "Outbox.tidy", "Outbox.put_away",
    "Master.create", "Master.accept", "Master.commit", "Master.merge", "Master.push",
    "Master.fetch", "Master.peek", "Master.maintain", "Master.claim",
    "Master.store", "Master.gather", "Master.forget", "Master.rewrite",
    "Master.fresh", "Master.give_way", "Master.restore", "Master.recall",
    "Catalog.apply", "Catalog.overlay", "Catalog.reopen", "Catalog.discard", "Catalog.examine",
    "Follower.fetch", "Follower.take", "Follower.mark_checked", "Follower.refresh",
    "Follower.rebuild", "Follower.overlay", "Follower.show",
    "Publisher.flush", "Publisher.edit",
    "Breaker.failed", "Breaker.succeeded",
    "Archive.save", "Archive.accept", "Archive.deliver", "Archive.give_up", "Archive.delete",
    "Archive.load", "Archive.look", "Archive.flush",
    "Archive.remember", "Archive.edit", "Archive.record",
    "Archive.set_project",
}  # fmt: skip
# … and those that only read, or have no effects but through one of the above.
READS = {
    "Outbox.batches", "Outbox.waiting", "Outbox.read", "Outbox.find", "Outbox.aside",
    "Outbox.damaged",
    "Master.embedded", "Master.identity", "Master.included", "Master.exists", "Master.lock",
    "Master.tip", "Master.fetched", "Master.tree", "Master.diff", "Master.blob", "Master.blobs",
    "Master.log", "Master.file",
    "Master.removed_with", "Master.saved_by", "Master.once", "Master.applied", "Master.changed_at",
    "Master.deliberate", "Master.founded", "Master.descends", "Master.count",
    "Master.branches", "Master.claimed", "Master.local_remote",
    "Master.check", "Master.holds", "Master.mend", "Master.must_fit", "Master.scope",
    "Master.ever_plain", "Master.project_path", "Master.oid",
    "Catalog.close", "Catalog.commit", "Catalog.master", "Catalog.overlay_keys", "Catalog.get",
    "Catalog.at", "Catalog.base", "Catalog.named", "Catalog.prefixed", "Catalog.newest",
    "Catalog.list", "Catalog.count", "Catalog.search", "Catalog.projects", "Catalog.twin",
    "Catalog.filed", "Catalog.project", "Catalog.canonical", "Catalog.project_at",
    "Catalog.entries", "Catalog.settled", "Catalog.holders", "Catalog.near", "Catalog.doubles",
    "Catalog.of", "Catalog.damage", "Catalog.examined",
    "Follower.checked", "Follower.position", "Follower.must_be_ours", "Follower.wanted",
    "Breaker.blocked", "Breaker.state",
    "Archive.find", "Archive.default_project", "Archive.sessions", "Archive.search",
    "Archive.projects", "Archive.project", "Archive.must_fit",
    "Archive.history", "Archive.diff", "Archive.checked", "Archive.close",
    "Archive.fate", "Archive.transcript",
}  # fmt: skip
_CALLS = ("fsync", "replace", "unlink")
_WRITING = ("init", "fast-import", "push", "fetch", "update-ref", "gc", "hash-object", "reflog")


def public_methods() -> set[str]:
    """Everything public that the classes with effects offer."""
    return {
        f"{cls.__name__}.{name}"
        for cls in CLASSES
        for name, member in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }


def events(machine: Machine, *arguments: str) -> tuple[list[str], Ran]:
    """Run a command unharmed; answers the events that it passed, in order."""
    ran = run(machine, *arguments)
    return json.loads(_log(machine).read_text()), ran


def run(machine: Machine, *arguments: str, kill_at: int = -1) -> Ran:
    """The command in a child process that is killed before event number ``kill_at``.

    The answer's code is that of the process: -9 for a killed one.
    """
    out, err = machine.folder / "out", machine.folder / "err"
    command = Command(
        arguments,
        folder=str(machine.desk),
        environment=machine.environment,
        out=str(out),
        err=str(err),
        events=str(_log(machine)),
        kill_at=kill_at,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads only wait for us
        child = os.fork()
    if child == 0:
        become(command)
    _, status = os.waitpid(child, 0)
    return Ran(os.waitstatus_to_exitcode(status), out.read_bytes(), err.read_text())


def _log(machine: Machine) -> Path:
    return machine.folder / "events.json"


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, and the files of the process that runs it. No ``events``: none is noted."""

    arguments: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    out: str
    err: str
    events: str = ""
    stdin: str = os.devnull
    kill_at: int = -1


def become(command: Command) -> NoReturn:
    """Turn this process, a fork, into the command, and end with it."""
    code = 70
    try:
        for handle, path in ((1, command.out), (2, command.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), handle)
        os.dup2(os.open(command.stdin, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = (
            open(handle, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            for handle, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        os.chdir(command.folder)
        os.environ.clear()
        os.environ.update(command.environment)
        sys.argv = ["annoris", *command.arguments]
        commands.config_file = ""
        code = _main(_Events(Path(command.events), command.kill_at) if command.events else None)
    except BaseException:  # noqa: BLE001 - a child must never go on as the test run
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _main(log: _Events | None) -> int:
    if log:
        log.watch()
    try:
        cli.main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    if log:
        log("end")
        log.close()
    return code


class _Events:
    def __init__(self, path: Path, kill_at: int) -> None:
        self._path = path
        self._kill_at = kill_at
        self._seen: list[str] = []

    def __call__(self, name: str) -> None:
        self._seen.append(name)
        if len(self._seen) == self._kill_at + 1:
            self.close()
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        """Write down what was passed, by calls that are not watched."""
        self._path.write_text(json.dumps(self._seen))

    def watch(self) -> None:
        """Put an event before every effect."""
        for cls in CLASSES:
            for name in vars(cls).copy():
                if f"{cls.__name__}.{name}" in EFFECTS:
                    self._before(cls, name, f"{cls.__name__}.{name}")
        for name in _CALLS:
            self._before(os, name, f"os.{name}")
        self._git()

    def _before(self, owner: object, name: str, event: str) -> None:
        plain: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(plain)
        def watched(*arguments: Any, **keywords: Any) -> Any:
            self(event)
            return plain(*arguments, **keywords)

        setattr(owner, name, watched)

    def _git(self) -> None:
        plain = gitcmd.process

        @contextlib.contextmanager
        def process(command: list[str], *arguments: Any) -> Iterator[Any]:
            verb = next(word for word in command[1:] if not word.startswith("-"))
            if verb in _WRITING:
                self(f"git {verb}")
            with plain(command, *arguments) as child:
                if verb in _WRITING:
                    time.sleep(0.004)  # it has started, and may have done half
                    self(f"git {verb}*")
                yield child

        gitcmd.process = process  # type: ignore[assignment]
