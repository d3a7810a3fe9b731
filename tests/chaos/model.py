"""What was answered, and whether what comes back agrees with it.

Every text that anybody writes is one of its own, with a number in it, and knows the text that it
was made from. So whatever is found anywhere says what it is, and what may stand in its place.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from annoris import document

_NUMBER = re.compile(rb"text-(\d+)\.")
ACKNOWLEDGED = ("master", "unchanged", "conflict", "queued", "captured")
_FILLINGS = (
    "A line.\n", "Ünïcödé, и кириллица, 🚀.\n", "With CRLF.\r\nAnd more.\r\n", "No end of line",
    "<<<<<<< not a conflict\n=======\n>>>>>>>\n", "- [ ] a\n- [x] b\n\n```sh\necho\n```\n",
    "---\nnot: front matter\n---\n", "tab\there  \n\n\n", "A longer one. " * 4000 + "\n",
)  # fmt: skip


@dataclass(slots=True)
class Text:
    """One body. ``answer``: a receipt's state, or captured, killed, not saved, by hand."""

    number: int
    body: bytes
    parent: int
    who: str
    poison: bool = False
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    answer: str = "under way"
    id: str = ""
    commit: str = ""

    @property
    def kept(self) -> bool:
        return self.answer in ACKNOWLEDGED

    def told(self) -> dict[str, object]:
        shown = asdict(self)
        shown["body"] = self.body[:60].decode(errors="replace")
        return shown


@dataclass(frozen=True, slots=True)
class Violation:
    kind: str
    message: str
    history: tuple[dict[str, object], ...] = ()


class Model:
    """Safe to use by many threads. Moments are those of the monotonic clock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.texts: dict[int, Text] = {}
        self.ids: dict[str, list[int]] = defaultdict(list)  # what was ever seen under an id
        self.seen: dict[str, dict[str, list[tuple[float, int]]]] = defaultdict(dict)  # by machine
        self.gone: dict[str, float] = {}  # ids that somebody may have removed, and since when
        self.deletions: dict[str, list[float]] = defaultdict(list)  # by id, when each had ended
        self.dropped: set[int] = set()  # texts that a force push took away
        self.violations: list[Violation] = []
        self.stale_told = 0

    # --- writing -----------------------------------------------------------------------------

    def write(self, who: str, size: int = 0, parent: int = 0, *, poison: bool = False) -> Text:
        """A new text of somebody's."""
        with self.lock:
            number = len(self.texts) + 1
            filling = _FILLINGS[size % len(_FILLINGS)]
            word = "POISON " if poison else ""
            body = f"# Note {number}\n\n{word}text-{number}. By {who}.\n\n{filling}".encode()
            text = self.texts[number] = Text(number, body, parent, who, poison)
        return text

    def answered(self, text: Text, answer: str, machine: str = "", id: str = "") -> None:
        """A save has ended; under which id its text is, if it said so."""
        with self.lock:
            text.answer, text.ended = answer, time.monotonic()
            if id:
                text.id = id
                self.ids[id].append(text.number)
            if machine and id and text.kept:
                self.seen[machine].setdefault(id, []).append((text.ended, text.number))

    def remove(self, id: str) -> None:
        """Somebody begins to remove a session."""
        with self.lock:
            self.gone.setdefault(id, time.monotonic())
            self.deletions[id].append(float("inf"))

    def removed(self, id: str) -> None:
        """Somebody has removed it, or tried to: what comes later must outlive that."""
        with self.lock:
            self.deletions[id][self.deletions[id].index(float("inf"))] = time.monotonic()

    def drop(self, numbers: Iterable[int], ids: Iterable[str]) -> None:
        """A force push took texts, and perhaps whole sessions, from master."""
        with self.lock:
            self.dropped.update(numbers)
            for id in ids:
                self.gone.setdefault(id, time.monotonic())

    def pick(self, chance: float) -> str:
        """The id of a session that should be there; the newer the likelier. Empty for none."""
        with self.lock:
            there = [id for id in self.ids if id not in self.gone]
        return there[int((1 - chance**2) * len(there))] if there and chance else ""

    # --- judging -----------------------------------------------------------------------------

    def accuse(self, kind: str, message: str, *, id: str = "", number: int = 0) -> None:
        """Keep a violation with all that is known of the document."""
        with self.lock:
            numbers = {*self.ids.get(id, ()), *self._line(number)}
            numbers |= {other.number for other in self.texts.values() if other.parent in numbers}
            known = tuple(self.texts[one].told() for one in sorted(numbers)[-40:])
            if (kind, message) not in [(item.kind, item.message) for item in self.violations]:
                self.violations.append(Violation(kind, message, known))
                print(f"{kind}: {message}", file=sys.stderr)

    def number(self, body: bytes) -> int:
        """Which text these exact bytes are; 0 for none that anybody wrote."""
        found = _NUMBER.search(body)
        text = self.texts.get(int(found[1])) if found else None
        if not text:
            return 0
        captured = body.startswith(b"# Captured from ") and text.body.strip() in body
        return text.number if captured or text.body == body else 0

    def delivered(self, id: str, moment: float) -> bool:
        """Whether a text of a session was on master by then."""
        there = ("master", "unchanged", "conflict", "by hand")
        with self.lock:
            texts = [self.texts[number] for number in self.ids[id]]
        return any(text.answer in there and text.ended < moment for text in texts)

    def loaded(self, machine: str, id: str, data: bytes, *, stale: str, began: float) -> int:
        """Judge what a load answered; answers the number of its text."""
        number = self.number(document.split(data)[1])
        with self.lock:
            if not number:
                self.accuse("wrong bytes", f"{machine} loaded {id}: {data[:300]!r}", id=id)
                return 0
            said = document.inspect(data).id
            if said and said != id:
                self.accuse("wrong bytes", f"{machine} asked for {id} and got {said}", id=id)
            self.stale_told += bool(stale)
            newer = self._newer(machine, id, number, began)
            if newer and not stale:
                told = f"{machine} had seen text {newer} of {id} and was shown text {number}"
                self.accuse("stale", told, id=id)
            self.seen[machine].setdefault(id, []).append((time.monotonic(), number))
            if number not in self.ids[id]:
                self.ids[id].append(number)
        return number

    def _newer(self, machine: str, id: str, number: int, began: float) -> int:
        """A text that the machine saw before, and that was made from the one it shows now."""
        for when, other in self.seen[machine].get(id, ()):
            shaky = other in self.dropped or self.texts[other].poison
            if when < began and not shaky and other != number and number in self._line(other):
                return other
        return 0

    def _line(self, number: int) -> list[int]:
        """A text and those that it was made from."""
        line = []
        while number and number not in line:
            line.append(number)
            number = self.texts[number].parent
        return line

    def judge(self, changes: Iterable[Change], paths_of: Mapping[str, str]) -> None:
        """Judge master's history: what was acknowledged is in it, and nothing left wrongly."""
        changes = list(changes)
        found = {change.new for change in changes}
        placed = {(change.commit, change.new) for change in changes}
        for change in changes:
            if not change.new and (change.commit, change.old) in placed:
                continue  # it lives on as a copy
            if change.old and not change.by_hand and not self._may_go(change, paths_of):
                what = f"text {change.old} gave way to {change.new or 'nothing'} at {change.path}"
                self.accuse("lost", f"{what} in commit {change.commit}", number=change.old)
        for text in [text for text in self.texts.values() if text.number not in found]:
            if text.kept:
                told = f"text {text.number} was answered {text.answer!r} and is nowhere on master"
                self.accuse("lost", told, number=text.number)
        for number in found - {0}:
            if self.texts[number].answer == "not saved":
                self.accuse("untrue", f"text {number} was said not to be saved", number=number)

    def _may_go(self, change: Change, paths_of: Mapping[str, str]) -> bool:
        """Whether a text may have left its place on master by that change."""
        old = self.texts[change.old]
        if change.new:
            return change.new == change.old or self.texts[change.new].parent == change.old
        id = old.id or paths_of.get(change.path, "")
        return any(old.began < ended for ended in self.deletions.get(id, ()))

    def answers(self) -> dict[str, int]:
        return dict(Counter(text.answer for text in self.texts.values()))


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit did to a session's file: the numbers of its texts, 0 for none."""

    commit: str
    path: str
    old: int
    new: int
    by_hand: bool


def receipts(out: bytes) -> list[dict[str, Any]]:
    """The receipts that a command printed; none when it printed no answer."""
    import json  # noqa: PLC0415

    try:
        found: list[dict[str, Any]] = json.loads(out)["receipts"]
    except (ValueError, KeyError, TypeError):
        return []
    return found
