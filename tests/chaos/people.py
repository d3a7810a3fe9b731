"""A person at a machine: types what the plan says, reads what comes, and tells the model."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.model import Model, Text, receipts
from tests.chaos.plan import Death, Step
from tests.chaos.world import Station, World
from tests.chaos.zygote import Zygote

LONGEST = 240.0  # seconds after which a command counts as one that hangs
_POISON = 0.03  # of the texts that are saved

# Exit codes that each command may answer; 1 is a bug and in none of them.
_EXPECTED = {
    "save": {0, 4, 10, 74, 75},
    "load": {0, 3, 5, 74},
    "delete": {0, 3, 4, 5, 10, 74, 75},
    "sync": {0, 4, 5, 9, 10, 11, 74, 75},
    "projects": {0, 3, 5, 10, 11, 74, 75},
    "hook": {0},
    "dump": {0, 2, 3, 5, 8, 9, 10, 11, 74},
    "key": {0, 5, 8, 74},
    "verify": {0, 5, 9, 10, 11, 74},
    "list": {0, 5, 74}, "search": {0, 5, 74}, "status": {0, 5, 74},
    "outbox": {0, 3, 4, 5, 10, 11, 74, 75},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended. ``died``: where it was killed, empty when it was not."""

    words: tuple[str, ...]
    code: int
    out: bytes
    err: str
    began: float
    ended: float
    died: str = ""


@dataclass(slots=True)
class Tally:
    """What people have done and met."""

    commands: list[tuple[str, int, float]] = field(default_factory=list)  # name, code, seconds
    deaths: list[str] = field(default_factory=list)
    tried: dict[str, int] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    unanswered: list[str] = field(default_factory=list)

    def count(self, what: str, good: bool, why: str = "") -> None:
        self.tried[what] = self.tried.get(what, 0) + 1
        self.answered[what] = self.answered.get(what, 0) + good
        if not good:
            self.unanswered.append(f"{what}: {why}")


class Person:
    """One thread's."""

    def __init__(self, number: int, station: Station, world: World, tally: Tally) -> None:
        self.name = f"person-{number}"
        self.station = station
        self.world = world
        self.model: Model = world.model
        self.tally = tally
        self.folder = world.folder / self.name
        self.folder.mkdir()
        self.zygote = Zygote(os.environ | station.environment)
        self._count = itertools.count(1)
        self._work: dict[str, Callable[[Step], None]] = {
            "load": self._load, "save": self._save, "edit": self._edit, "delete": self._delete,
            "hook": self._hook, "project": self._project, "sync": self._sync,
            "rotate": self._rotate,
        }  # fmt: skip

    def do(self, step: Step) -> None:
        work = self._work.get(step.kind)
        if work:
            work(step)
        else:
            self.type(*_PLAIN[step.kind], death=step.death)

    def type(
        self,
        *words: str,
        stdin: bytes = b"",
        death: Death | None = None,
        at: Station | None = None,
    ) -> Done:
        """Run a command to its end, or to its death; ``at`` another machine."""
        station = at or self.station
        files = {name: str(self.folder / name) for name in ("stdin", "out", "err")}
        events = self.folder / "events"
        Path(files["stdin"]).write_bytes(stdin)
        command: dict[str, object] = {
            "arguments": words, "folder": str(station.machine.desk),
            "environment": station.environment, **files,
        }  # fmt: skip
        if death and death.how == "point":
            events.unlink(missing_ok=True)
            command |= {"events": str(events), "kill_at": death.point}
        began = time.monotonic()
        pid = self.zygote.begin(command)
        killed = self._wait(pid, death.seconds if death and death.how == "time" else LONGEST, words)
        code = self.zygote.end()
        died = ""
        if code == -signal.SIGKILL:
            died = (
                "at a random moment" if killed else f"before {json.loads(events.read_text())[-1]}"
            )
        out, err = (Path(files[name]).read_bytes() for name in ("out", "err"))
        done = Done(words, code, out, err.decode(), began, time.monotonic(), died)
        self._note(done)
        return done

    def _wait(self, pid: int, seconds: float, words: tuple[str, ...]) -> bool:
        """Whether it had to be killed after so many seconds."""
        if select.select([self.zygote.answers], [], [], seconds)[0]:
            return False
        if seconds == LONGEST:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
            doing = (self.folder / "err").read_text(errors="replace")
            told = f"{self.name}: {' '.join(words)} ran for {LONGEST} s"
            self.model.accuse("hangs", f"{told}: {doing[-3000:]}")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True

    def _note(self, done: Done) -> None:
        name = done.words[0]
        self.tally.commands.append((name, done.code, done.ended - done.began))
        if done.died:
            self.tally.deaths.append(done.died)
        elif done.code not in _EXPECTED[name] or "Traceback" in done.err:
            told = f"{self.station.name}: {' '.join(done.words)} ended with {done.code}"
            said = (done.err or done.out.decode(errors="replace")).strip()
            self.model.accuse("unexpected", f"{told}: {said[-1500:]}")

    # --- writing -----------------------------------------------------------------------------

    def _save(self, step: Step) -> None:
        poison = step.several == 1 and step.pick < _POISON
        texts = [
            self.model.write(self.name, step.size + number, poison=poison)
            for number in range(step.several)
        ]
        names = [self._file(text.body) for text in texts]
        project = f"shop-{int(step.pick * 3)}"
        done = self.type("save", *names, "--json", "--project", project, death=step.death)
        self._saved(texts, done)

    def _edit(self, step: Step) -> None:
        """Load, change, save: what is saved knows what it was made from."""
        id = self.model.pick(step.pick)
        loaded = self._loading(id, None) if id else None
        if not loaded:
            return
        data, number = loaded
        front = data[: len(data) - len(self.model.texts[number].body)]
        if not data.endswith(self.model.texts[number].body):
            return  # captured by a hook: nobody edits that here
        text = self.model.write(self.name, step.size, number)
        done = self.type("save", self._file(front + text.body), "--json", death=step.death)
        self._saved([text], done)

    def _file(self, data: bytes) -> str:
        return str(self.station.machine.write(f"{self.name}-{next(self._count)}.md", data))

    def _saved(self, texts: Sequence[Text], done: Done) -> None:
        told = receipts(done.out) if not done.died else []
        for text, receipt in itertools.zip_longest(texts, told[: len(texts)]):
            answer = receipt["state"] if receipt else "killed" if done.died else "not saved"
            self.model.answered(text, answer, self.station.name, receipt["id"] if receipt else "")
            made = (receipt["commit"] or receipt["oid"]) if receipt else ""
            if answer == "master" and made and not self.world.hand.has(made):
                told_so = f"{self.station.name} said that {made} is on master, and it is not"
                self.model.accuse("untrue", told_so, id=text.id)
        for name in done.words[1 : 1 + len(texts)]:
            Path(name).unlink()
        full = self.station.was_full(done.began)
        if not done.died:
            safe = all(text.kept for text in texts) or all(
                text.answer == "refused" for text in texts
            )
            what = "durable save on a full disk" if full else "durable save"
            self.tally.count(what, safe, f"{done.code} {done.err.strip()[-300:]}")

    def _delete(self, step: Step) -> None:
        if id := self.model.pick(step.pick):
            self.model.remove(id)
            self.type("delete", id, "--json", death=step.death)
            self.model.removed(id)

    def _hook(self, step: Step) -> None:
        """An assistant's conversation ends; what was said is to become a session."""
        text = self.model.write(self.name)
        said = {
            "session_id": f"{self.name}-{text.number}", "cwd": str(self.station.machine.desk),
            "last_assistant_message": text.body.decode(),
        }  # fmt: skip
        done = self.type("hook", "session-end", "--client", "claude-code",
                         stdin=json.dumps(said).encode(), death=step.death)  # fmt: skip
        kept = not (done.died or self.station.was_full(done.began))
        self.model.answered(text, "captured" if kept else "killed")

    def _rotate(self, step: Step) -> None:
        """Change the key, and carry it to the other machines; one person at a time."""
        with self.world.rotating:
            self.type("key", "rotate", "--json", death=step.death)
            self.share_keys()

    def share_keys(self) -> None:
        """Give every other machine the keys of this one."""
        secret = self._file(b"a passphrase\n")
        keys = self.type("key", "export", "--passphrase-file", secret)
        for station in self.world.stations:
            if keys.code == 0 and station is not self.station:
                words = ("key", "import", "-", "--passphrase-file", secret)
                self.type(*words, stdin=keys.out, at=station)

    def _project(self, step: Step) -> None:
        self.type("projects", "set", f"shop-{int(step.pick * 3)}", "--priority",
                  str(next(self._count)), death=step.death)  # fmt: skip

    # --- reading -----------------------------------------------------------------------------

    def _load(self, step: Step) -> None:
        if id := self.model.pick(step.pick):
            self._loading(id, step.death)

    def _loading(self, id: str, death: Death | None) -> tuple[bytes, int] | None:
        """Load a session; its bytes and the number of its text, None when it did not come."""
        known = bool(self.model.seen[self.station.name].get(id))
        target = self.folder / "loaded.md"
        done = self.type("load", id, "--json", "--force", "-o", str(target), death=death)
        if done.died:
            return None
        if done.code:
            self._unanswered(id, done, known)
            return None
        said = json.loads(done.out)
        number = self.model.loaded(
            self.station.name, id, target.read_bytes(), stale=said["stale"], began=done.began
        )
        self.tally.count(self._available(known, done), good=True)
        return (target.read_bytes(), number) if number else None

    def _unanswered(self, id: str, done: Done, known: bool) -> None:
        """It counts while the session was there and somebody who holds it was up all the time."""
        up = known or (
            self.model.delivered(id, done.began) and not self.world.down_since("master", done.began)
        )
        shrunk = "nothing here was changed" in done.out.decode()  # until a person says --force
        if id not in self.model.gone and up and not shrunk:
            why = f"{self.station.name} {id} {done.code} {done.out.decode()[-300:]} {done.err}"
            self.tally.count(self._available(known, done), good=False, why=why)

    def _available(self, known: bool, done: Done) -> str:
        full = " on a full disk" if self.station.was_full(done.began) else ""
        return f"{_AVAILABLE[known]}{full}"

    def _sync(self, step: Step) -> None:
        words = ("sync", "--full") if step.pick < 0.3 else ("sync",)
        self.type(*words, "--deadline", "60", death=step.death)


_AVAILABLE = {
    True: "load of a session that this machine has seen",
    False: "load of another session",
}
_PLAIN = {
    "list": ("list", "--all", "--json"),
    "search": ("search", "Note", "--json"),
    "status": ("status", "--json"),
    "dump": ("dump", "--json"),
    "drill": ("dump", "--drill", "--json"),
    "verify": ("verify", "--quick", "--json"),
}
