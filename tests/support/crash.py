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
import faulthandler
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
from types import ModuleType
from typing import Any, NoReturn

from annoris import cli, commands, convert, dumpfile, dumps, envelope, gitcmd, keys, sync, verify
from annoris.alerts import Alerts
from annoris.archive import Archive
from annoris.assistant import hooks
from annoris.assistant.spool import Spool
from annoris.breaker import Breaker
from annoris.catalog import Catalog
from annoris.emergency import Emergency
from annoris.follow import Follower
from annoris.hot import Hot
from annoris.master import Master
from annoris.notes import Notes
from annoris.outbox import Outbox
from annoris.publish import Publisher
from annoris.runs import Runs
from tests.support.machine import Machine, Ran

CLASSES: tuple[type[Any], ...] = (
    Outbox, Master, Catalog, Follower, Publisher, Breaker, Archive,
    Hot, Emergency, Spool, Notes, Runs, Alerts,
)  # fmt: skip
MODULES: tuple[ModuleType, ...] = (
    keys, envelope, dumps, dumpfile, convert, sync, verify, hooks
)  # fmt: skip

_OWNERS: tuple[type[Any] | ModuleType, ...] = (*CLASSES, *MODULES)

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
    "Follower.rebuild", "Follower.overlay", "Follower.show", "Follower.catch_up",
    "Publisher.flush", "Publisher.edit",
    "Breaker.failed", "Breaker.succeeded",
    "Archive.save", "Archive.accept", "Archive.deliver", "Archive.give_up", "Archive.delete",
    "Archive.load", "Archive.look", "Archive.flush",
    "Archive.remember", "Archive.edit", "Archive.record",
    "Archive.set_project",
    "Hot.prepare", "Hot.prove", "Hot.put", "Hot.reseal", "Hot.discard", "Hot.evict",
    "Hot.projects", "Hot.log", "Hot.claim", "Hot.restore", "Hot.rehearse", "Hot.exclusive",
    "Emergency.put", "Emergency.remove", "Emergency.drop", "Emergency.unpoint",
    "Spool.add", "Spool.drop", "Spool.refuse", "Spool.alone", "Spool.keep_talk", "Spool.fail",
    "Spool.failure", "Spool.answered",
    "Notes.keep", "Notes.forget", "Notes.prune", "Runs.add",
    "Alerts.note", "Alerts.raise_", "Alerts.test",
    "keys.create", "keys.bring", "keys.rotate", "keys.retire",
    "envelope.new_key_file", "envelope.edit_key_file",
    "dumps.dump", "dumps.drill", "dumps.restore", "dumpfile.write_tar",
    "convert.here", "convert.reseal", "convert.racing",
    "sync.sync", "sync.follow", "sync.running", "verify.verify",
    "hooks.run", "hooks.flush",
    "Archive.attach",
}  # fmt: skip
# … and those that only read, or have no effects but through one of the above.
READS = {
    "Outbox.batches", "Outbox.waiting", "Outbox.read", "Outbox.find", "Outbox.aside",
    "Outbox.damaged",
    "Master.embedded", "Master.identity", "Master.included", "Master.exists", "Master.lock",
    "Master.tip", "Master.fetched", "Master.tree", "Master.diff", "Master.blob", "Master.blobs",
    "Master.log", "Master.file", "Master.wrote",
    "Master.removed_with", "Master.saved_by", "Master.once", "Master.applied", "Master.changed_at",
    "Master.deliberate", "Master.founded", "Master.descends", "Master.count",
    "Master.branches", "Master.claimed", "Master.local_remote",
    "Master.check", "Master.holds", "Master.mend", "Master.must_fit", "Master.scope",
    "Master.ever_plain", "Master.project_path", "Master.oid",
    "Catalog.close", "Catalog.commit", "Catalog.master", "Catalog.overlaid", "Catalog.overlay_keys",
    "Catalog.get", "Catalog.at", "Catalog.base", "Catalog.named", "Catalog.prefixed",
    "Catalog.newest", "Catalog.list", "Catalog.count", "Catalog.search", "Catalog.projects",
    "Catalog.twin", "Catalog.filed", "Catalog.project", "Catalog.canonical", "Catalog.project_at",
    "Catalog.entries", "Catalog.settled", "Catalog.holders", "Catalog.near", "Catalog.doubles",
    "Catalog.of", "Catalog.damage", "Catalog.examined",
    "Follower.checked", "Follower.position", "Follower.must_be_ours", "Follower.wanted",
    "Breaker.blocked", "Breaker.state",
    "Archive.find", "Archive.default_project", "Archive.sessions", "Archive.search",
    "Archive.projects", "Archive.project", "Archive.must_fit",
    "Archive.history", "Archive.diff", "Archive.checked", "Archive.close",
    "Archive.fate", "Archive.transcript",
    "Hot.census", "Hot.clock", "Hot.close", "Hot.contents", "Hot.count", "Hot.entries",
    "Hot.export", "Hot.get", "Hot.misfiled", "Hot.named", "Hot.near", "Hot.newest", "Hot.ping",
    "Hot.prefixed", "Hot.runs", "Hot.sealed_by", "Hot.state", "Hot.stock", "Hot.try_writing",
    "Hot.unlogged", "Hot.within",
    "Emergency.clock", "Emergency.close", "Emergency.count", "Emergency.entries",
    "Emergency.get", "Emergency.memory", "Emergency.named", "Emergency.newest",
    "Emergency.ping", "Emergency.pointers", "Emergency.pointers_to", "Emergency.within",
    "Spool.last_answer", "Spool.overdue", "Spool.read", "Spool.refused", "Spool.rested",
    "Spool.talk", "Spool.waiting",
    "Notes.find", "Runs.recent",
    "Alerts.condition", "Alerts.label", "Alerts.memory", "Alerts.targets",
    "keys.check", "keys.export", "keys.must_fit",
    "envelope.check", "envelope.derived", "envelope.export_ring", "envelope.from_phrase",
    "envelope.import_ring", "envelope.load_ring", "envelope.new_key", "envelope.open_",
    "envelope.phrase", "envelope.proof", "envelope.pseudonym", "envelope.read_ring",
    "envelope.retire", "envelope.rotate", "envelope.seal", "envelope.sealed_by",
    "dumps.listing", "dumpfile.compare", "dumpfile.damaged", "dumpfile.kept", "dumpfile.key_of",
    "dumpfile.lines_of", "dumpfile.made_at", "dumpfile.mark", "dumpfile.name_of",
    "dumpfile.newer", "dumpfile.open_tar", "dumpfile.split", "dumpfile.verify",
    "convert.converted", "convert.reading",
    "sync.asking", "sync.document_problem", "sync.double", "sync.dry_run", "sync.in_step",
    "sync.mirror", "sync.outbox_damage", "sync.unfit", "sync.unopened", "sync.unreadable",
    "hooks.event_of",
}  # fmt: skip
# Which command passes which effect in a test that kills it there …
PASSED: dict[str, set[str]] = {
    "save": {
        "Archive.accept", "Archive.deliver", "Archive.flush", "Archive.remember", "Archive.save",
        "Breaker.succeeded", "Catalog.apply", "Catalog.overlay", "Follower.mark_checked",
        "Follower.catch_up", "Follower.overlay", "Follower.refresh", "Master.claim",
        "Master.commit", "Master.create", "Master.maintain", "Master.push", "Notes.keep",
        "Outbox.add", "Outbox.remove", "Outbox.tidy", "Publisher.flush",
    },
    "save, the first": {"Follower.fetch", "Follower.show", "Follower.take", "Master.fetch"},
    "save, one refused": {"Outbox.set_aside"},
    "delete": {"Archive.delete", "Archive.give_up"},
    "load": {"Archive.load", "Archive.look"},
    "sync": {
        "Archive.record", "Master.accept", "Master.peek", "Outbox.answer", "Runs.add",
        "sync.follow", "sync.running", "sync.sync",
    },
    "sync --full": {"Notes.prune", "Outbox.put_away"},
    "verify --repair": {
        "Catalog.discard", "Catalog.examine", "Master.fresh", "Master.give_way", "verify.verify",
    },
    "verify --repair, embedded": {"Master.recall"},
    "outbox retry": {"Outbox.retry"},
    "outbox drop": {"Outbox.drop"},
    "init": {"Master.merge", "Master.rewrite", "convert.racing"},
    "save, three tiers": {"Hot.put"},
    "save, the hot cache down": {"Alerts.note", "Breaker.failed", "Emergency.put"},
    "delete, the hot cache down": {"Emergency.remove"},
    "projects set": {"Archive.edit", "Archive.set_project", "Publisher.edit"},
    "key rotate": {
        "Hot.prepare", "Hot.prove", "Hot.reseal", "envelope.edit_key_file", "keys.rotate",
    },
    "key retire": {"keys.retire"},
    "key import": {"envelope.new_key_file", "keys.bring"},
    "sync --full, caches lost": {
        "Alerts.raise_", "Hot.claim", "Hot.evict", "Hot.log", "Hot.projects",
    },
    "hook flush": {
        "Spool.alone", "Spool.drop", "Spool.keep_talk", "hooks.flush", "hooks.run",
    },
    "dump --to copy.tar --force": {
        "Master.forget", "Master.store", "dumpfile.write_tar", "dumps.dump",
    },
    "dump --drill": {"Hot.rehearse", "Master.gather", "dumps.drill"},
    "restore": {"Hot.restore", "dumps.restore"},
    "init --convert": {"convert.here"},
}  # fmt: skip
# … and why none does.
PASSED_BY_NOBODY = {
    "Master.restore": "only when the hot cache gives back what a clone lost",
    "Follower.rebuild": "only when the catalog was changed behind its back",
    "Outbox.answered": "only when two processes share a push",
    "Catalog.reopen": "only when the catalog is damaged",
    "Alerts.test": "sends, and keeps nothing",
    "Archive.attach": "only the server; it adds to the outbox as a save does",
    "Emergency.drop": "only where a value is wrong",
    "Emergency.unpoint": "only where a pointer is wrong",
    "Hot.discard": "only where a row is wrong",
    "Hot.exclusive": "only servers that share a database take turns by it",
    "Notes.forget": "only an import of what somebody deleted",
    "Spool.add": "test_hook kills a hook after it; before it nothing was answered",
    "Spool.answered": "a note of when a hook ran, which nothing depends on",
    "Spool.fail": "a note for a person, which nothing depends on",
    "Spool.failure": "tells that note once",
    "Spool.refuse": "only where an event can't be saved ever",
    "keys.create": "its one effect is that of envelope.new_key_file",
    "convert.reseal": "only on a sealed master; test_sealed stops it in the middle",
}
_CALLS = ("fsync", "replace", "unlink")
_WRITING = ("init", "fast-import", "push", "fetch", "update-ref", "gc", "hash-object", "reflog")


def public() -> set[str]:
    """Everything public that the classes and modules with effects offer."""
    return {f"{_short(owner)}.{name}" for owner in _OWNERS for name in _offered(owner)}


def _offered(owner: type | ModuleType) -> list[str]:
    return [
        name
        for name, member in vars(owner).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property))
        and (isinstance(owner, type) or member.__module__ == owner.__name__)
    ]


def _short(owner: type | ModuleType) -> str:
    return owner.__name__.rpartition(".")[2]


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
        faulthandler.register(signal.SIGUSR1, sys.stderr)  # what it does, to whoever asks
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
        for owner in _OWNERS:
            for name in _offered(owner):
                if f"{_short(owner)}.{name}" in EFFECTS:
                    self._before(owner, name, f"{_short(owner)}.{name}")
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
