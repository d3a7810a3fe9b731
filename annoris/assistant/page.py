"""Items of a conversation to one readable document, within a bound.

Pure. Texts stand as they were said; one whose headings, fences or HTML would reach beyond it is
fenced. A tool's call and its answer are a line each. Where all of that is too much, it is folded
more, and the document says so. Lines are cut between words: half of a credential would be seen by
nobody who looks for one.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from annoris.assistant.capture import fenced
from annoris.assistant.transcripts import Item
from annoris.dataclass import dataclass, field
from annoris.document import outline, plain, usable

TITLE = 80  # characters


class _Fold(NamedTuple):
    """How much is shown, in characters; 0: nothing. The last one leaves out the middle."""

    call: int
    result: int
    text: int
    told: str


_FOLDS = (
    _Fold(240, 320, 2**62, ""),
    _Fold(120, 0, 2**62, "what tools answered is left out"),
    _Fold(60, 0, 4000, "what tools answered is left out, long texts are cut"),
    _Fold(60, 0, 4000, "what tools answered is left out, long texts are cut, and so is the middle"),
)
_REACHING = r"(?im)^[ ]{0,3}(?:<(?:[!?]|pre\b|script\b|style\b|textarea\b)|\[[^\]\n]+\]:)"
_ANSI = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)"
_UNFIT = r"[\0-\x08\x0b-\x1f\x7f\ud800-\udfff]"
_SPEAKERS = ("Assistant", "Sub-agent")


@dataclass(slots=True)
class Page:
    """A conversation as a document's body, and what is known of it."""

    body: str = ""
    title: str = ""
    facts: dict[str, str] = field(default_factory=dict)  # id, cwd, branch, remote
    first: str = ""  # ISO, UTC
    last: str = ""
    counts: Counter[str] = field(default_factory=Counter)  # messages, calls
    left: Counter[str] = field(default_factory=Counter)  # what stands nowhere in the body
    folded: str = ""


class _TooLong(Exception):
    pass


def page(items: Callable[[], Iterable[Item]], client: str, most: int) -> Page:
    """The document of a conversation, of at most ``most`` bytes; no body when nothing was said.

    ``items`` is called again for each attempt to fold more.
    """
    for fold in _FOLDS[:-1]:
        try:
            return _Writer(fold, most, whole=True).write(items(), client)
        except _TooLong:
            continue
    return _Writer(_FOLDS[-1], most, whole=False).write(items(), client)


class _Writer:
    def __init__(self, fold: _Fold, most: int, *, whole: bool) -> None:
        self._fold = fold
        self._whole = whole
        self._room = max(0, most - 8192)  # for the head, and what is said of the middle
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._sizes = [0, 0]
        self._dropped = 0
        self._who = ""
        self._page = Page(folded=fold.told)
        self._titles: dict[str, str] = {}

    def write(self, items: Iterable[Item], client: str) -> Page:
        for item in items:
            if item.kind == "fact":
                self._fact(item.name, item.text)
            elif item.kind == "left":
                self._page.left[item.name] += 1
            elif item.text.strip() or item.kind == "call":
                for part in self._parts(item):
                    self._add(part)
        found = self._page
        if found.counts["messages"]:
            found.title = self._title(found)
            found.body = "".join([*_opening(found, client), *self._head, *self._middle()])
        return found

    def _fact(self, name: str, text: str) -> None:
        found = self._page
        if name == "at":
            moment = usable("created", text)
            found.first = min(found.first or moment, moment) if moment else found.first
            found.last = max(found.last, moment)
        elif name.endswith("title"):
            self._titles[name] = text
        else:
            found.facts.setdefault(name, clean(text))

    def _parts(self, item: Item) -> Iterator[str]:
        fold, counts = self._fold, self._page.counts
        if item.kind == "said":
            counts["messages"] += 1
            if item.name == "User":
                self._titles.setdefault("first", item.text)
            yield from self._heading(item.name, item.at)
            yield f"{block(clipped(clean(item.text), fold.text))}\n\n"
            return
        if item.kind == "note":
            yield f"- {code(one_line(item.text, fold.call))}\n\n"
            return
        if self._who not in _SPEAKERS:
            yield from self._heading(_SPEAKERS[0], item.at)
        if item.kind == "call":
            counts["calls"] += 1
            yield f"- {told(item.name, one_line(item.text, fold.call))}\n\n"
        elif fold.result:
            yield f"- {told(item.name, one_line(item.text, fold.result), 'answered')}\n\n"

    def _heading(self, who: str, at: str) -> Iterator[str]:
        """A heading for each message, but for what an assistant goes on to say."""
        if who == self._who and who in _SPEAKERS:
            return
        self._who = who
        moment = usable("created", at)
        yield f"## {who}{moment and f', {moment[:10]} {moment[11:16]}'}\n\n"

    def _add(self, part: str) -> None:
        size = len(part.encode())
        if self._sizes[0] + size <= (self._room if self._whole else self._room // 4):
            if not self._tail:
                self._head.append(part)
                self._sizes[0] += size
                return
        elif self._whole:
            raise _TooLong
        self._tail.append(part)
        self._sizes[1] += size
        while self._sizes[1] > self._room - self._room // 4:
            self._sizes[1] -= len(self._tail.popleft().encode())
            self._dropped += 1

    def _middle(self) -> Iterator[str]:
        if self._dropped:
            yield f"*[… {self._dropped} parts of the middle are left out]*\n\n"
        yield from self._tail

    def _title(self, found: Page) -> str:
        names = ("title", "likely-title", "first")
        likely = (heading(self._titles.get(name, "")) for name in names)
        return next(filter(None, likely), f"Conversation {found.facts.get('id', '')[:8]}".strip())


def _opening(found: Page, client: str) -> Iterator[str]:
    yield f"# {found.title}\n\nImported from {client}; nobody wrote it as a session.\n\n"
    for name, what in (("id", "conversation"), ("cwd", "folder"), ("branch", "branch")):
        if value := found.facts.get(name):
            yield f"- {what}: {code(one_line(value, 400))}\n"
    if found.first:
        yield f"- from {found.first} to {found.last}\n"
    yield f"- {found.counts['messages']} messages, {found.counts['calls']} calls of tools\n"
    if found.left:
        listed = [f"{count} × {name}" for name, count in sorted(found.left.items())]
        yield f"- not in it: {code(one_line(', '.join(listed), 1000))}\n"
    if found.folded:
        yield f"- it was too long: {found.folded}\n"
    yield "\n"


# Texts within Markdown.


def clean(text: str) -> str:
    """A text without what no document may hold: controls, lone surrogates, other line ends."""
    if "\x1b" in text:
        text = re.sub(_ANSI, "", text)
    text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    return re.sub(_UNFIT, "\N{REPLACEMENT CHARACTER}", text)


def block(text: str) -> str:
    """A text that ends where it ends: as it is, or fenced where something in it would go on."""
    text = text.strip("\n")
    if any(outline(text)) or re.search(_REACHING, text) or text[:1] in (" ", "\t"):
        return fenced(text).rstrip("\n")
    return text


def clipped(text: str, most: int) -> str:
    """A text of at most ``most`` characters, cut between words."""
    if len(text) <= most:
        return text
    cut = max(text.rfind(" ", 0, most), text.rfind("\n", 0, most), 0)
    return f"{text[:cut]}\n\n[… {len(text) - cut:,} more characters are left out]"


def one_line(text: str, most: int) -> str:
    """The first words of a text in one line, and a mark where there are more."""
    start = text[: most * 4]
    words = clean(start).split()
    more = len(start) < len(text)
    if more and words and not text[most * 4].isspace():
        words.pop()
    line = ""
    for word in words:
        if len(line) + len(word) >= most:
            more = True
            break
        line = f"{line} {word}" if line else word
    return f"{line} …".lstrip() if more else line


def code(text: str) -> str:
    """A line as code, whatever it holds."""
    if not text:
        return ""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def told(name: str, text: str, verb: str = "") -> str:
    """A call, or what was answered to it, in one line."""
    head = " ".join(filter(None, (code(one_line(name or "a tool", 80)), verb)))
    return f"{head}: {code(text)}" if text else head


def heading(text: str, most: int = TITLE) -> str:
    """The first line of a text that says something, as plain words."""
    for line in clean(text[:10_000]).split("\n"):
        if words := plain(line.lstrip("#> ")).strip():
            return one_line(words, most)
    return ""
