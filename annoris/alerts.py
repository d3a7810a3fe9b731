"""What a person must hear about: noted by any command, told by those that run in the background.

Three pure steps decide. ``noted`` adds what happened to what waits, ``due`` says what to tell
now, ``settled`` keeps what was told. One key is told once, reminded of after ``repeat_seconds``,
and called over only to people who heard of it, at the latest in the same message. ``Alerts``
does it: a small JSON file is the memory of all processes, and the one that holds the sending
lock sends. Nothing here fails a command or outlives its deadline; what no target took is kept.

The only apprise, imported only when there is something to send.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from annoris.archive import Archive
from annoris.breaker import locked
from annoris.dataclass import dataclass, field
from annoris.events import of_key, of_outbox
from annoris.model import Alert, Deadline, Level
from annoris.settings import AlertSettings, Settings, quiet_hours

if TYPE_CHECKING:
    from apprise import NotifyBase

Claim = Callable[[list[tuple[str, bool]], str, float], set[str] | None]

_LEVELS: tuple[Level, ...] = ("info", "warning", "error")
_SIGNS = {
    "info": "\N{INFORMATION SOURCE}",
    "warning": "\N{WARNING SIGN}",
    "error": "\N{POLICE CARS REVOLVING LIGHT}",
}
_OVER = "\N{WHITE HEAVY CHECK MARK}"
_REMEMBERED = 90 * 86400.0  # a trouble that nobody called over
_LOCK_SECONDS = 0.5
_TEXT = 1000  # characters of one alert
_PARTS = 5  # messages that one digest may take
_MORE = "… and more: annoris alerts"


@dataclass(frozen=True, slots=True)
class Waiting:
    """An alert that was not told yet. Times are of the Unix clock."""

    alert: Alert
    since: float
    times: int = 1


@dataclass(frozen=True, slots=True)
class Told:
    """The last that people heard under a key; ``at`` is when they heard of the trouble."""

    alert: Alert
    at: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What one target was told, and what not yet, by key.

    ``last`` is when a message last arrived there, ``failure`` why none did since.
    """

    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    told: Mapping[str, Told] = field(default_factory=dict)
    last: float = 0.0
    failure: str = ""


Memories = dict[str, Memory]  # by the mark of the target

# --- deciding --------------------------------------------------------------------------------


def noted(memory: Memory, alerts: Iterable[Alert], now: float, settings: AlertSettings) -> Memory:
    """The memory with what happened now; what people know already adds nothing."""
    waiting = dict(memory.waiting)
    for alert in alerts:
        if alert.over:
            _end(waiting, memory.told, alert.key)
        elif _LEVELS.index(alert.level) >= _LEVELS.index(settings.level):
            known = memory.told.get(alert.key)
            lately = known and _within(known.at, now, settings.repeat_seconds)
            if known and lately and not known.alert.over:
                _forget_end(waiting, alert.key)
            else:
                _begin(waiting, alert, now)
    return replace(memory, waiting=waiting)


def _begin(waiting: dict[str, Waiting], alert: Alert, now: float) -> None:
    old = waiting.get(alert.key)
    waiting[alert.key] = (
        replace(old, alert=alert, times=old.times + 1) if old else Waiting(alert, now)
    )


def _forget_end(waiting: dict[str, Waiting], key: str) -> None:
    """It was over for a while, of which nobody heard."""
    if key in waiting and waiting[key].alert.over:
        del waiting[key]


def _end(waiting: dict[str, Waiting], told: Mapping[str, Told], ended: str) -> None:
    for key in {*waiting, *told}:
        if key != ended and not key.startswith(f"{ended}:"):
            continue
        if key in waiting:
            item = waiting[key]
            if not item.alert.over:
                waiting[key] = replace(item, alert=replace(item.alert, over=True))
        elif not told[key].alert.over:
            waiting[key] = Waiting(replace(told[key].alert, over=True), told[key].at)


def due(memory: Memory, now: float, settings: AlertSettings) -> dict[str, Waiting]:
    """What to tell now, oldest first: nothing soon after a message, so that storms are digests."""
    if _within(memory.last, now, settings.digest_seconds):
        return {}
    is_quiet = quiet(settings.quiet_hours, now)
    items = sorted(memory.waiting.items(), key=lambda pair: pair[1].since)
    return {
        key: item
        for key, item in items
        if not (is_quiet and (item.alert.over or item.alert.level != "error"))
        and _is_news(item, memory.told.get(key), now, settings.repeat_seconds)
    }


def _is_news(item: Waiting, known: Told | None, now: float, repeat: float) -> bool:
    if known is None or not _within(known.at, now, repeat):
        return True
    return item.alert.over and not known.alert.over


def settled(
    memory: Memory, told: Mapping[str, Waiting], now: float, settings: AlertSettings
) -> Memory:
    """The memory after telling; what was noted in the meantime and is news stays."""
    waiting, known = dict(memory.waiting), dict(memory.told)
    for key, item in told.items():
        heard = known[key].at if item.alert.over and key in known else now
        known[key] = Told(replace(item.alert, text=""), heard)
        if key in waiting and waiting[key].alert.over == item.alert.over:
            del waiting[key]
    return replace(memory, waiting=waiting, told=_recent(known, now, settings.repeat_seconds))


def _recent(known: Mapping[str, Told], now: float, repeat: float) -> dict[str, Told]:
    return {
        key: item
        for key, item in known.items()
        if _within(item.at, now, repeat if item.alert.over else max(repeat, _REMEMBERED))
    }


def quiet(hours: str, now: float) -> bool:
    """Whether a moment lies in the quiet hours, which may span midnight."""
    span = quiet_hours(hours)
    if span is None:
        return False
    start, end, zone = span
    clock = datetime.fromtimestamp(now, zone).strftime("%H:%M")
    return start <= clock < end if start < end else clock >= start or clock < end


def _within(moment: float, now: float, seconds: float) -> bool:
    """Whether less than so many seconds have passed; a moment to come is a clock set back."""
    return 0 <= now - moment < seconds


# --- wording ---------------------------------------------------------------------------------


def heading(items: Collection[Waiting], host: str) -> str:
    """The title of a message."""
    worst = max((item.alert for item in items), key=_weight)
    what = worst.title if len(items) == 1 else f"{len(items)} alerts"
    is_over = len(items) == 1 and worst.over
    return f"{_sign(worst)} Annoris on {host}: {'over: ' if is_over else ''}{what}"


def blocks(items: Collection[Waiting], project: str) -> list[str]:
    """The text of a message, one block for each alert, from what was noted first to last."""
    found = []
    for item in items:
        alert = item.alert
        head = f"{_sign(alert)} {'over: ' if alert.over else ''}{alert.title}"
        text = [head] if len(items) > 1 else []
        text += alert.text[:_TEXT].splitlines()
        if item.times > 1 or alert.over:
            often = f", {item.times} times" if item.times > 1 else ""
            moment = datetime.fromtimestamp(item.since).astimezone()
            text.append(f"since {moment:%Y-%m-%d %H:%M %Z}{often}")
        found.append("\n".join(text))
    return [*found, f"project {project}"]


def parts(text: Iterable[str], limit: int) -> list[str]:
    """Blocks as messages of at most ``limit`` characters; only what is longer is cut.

    Characters count as what they may become: an entity of HTML, an escape of Markdown.
    """
    room = max(limit - _cost(_MORE) - 2, 40)
    made: list[str] = []
    current = ""
    for piece in (piece for block in text for piece in _cut(block, room)):
        joined = f"{current}\n{piece}" if current else piece
        if current and _cost(joined) > room:
            made.append(current)
            joined = piece
        current = joined
    made += [current] if current else []
    return made if len(made) <= _PARTS else [*made[: _PARTS - 1], f"{made[_PARTS - 1]}\n{_MORE}"]


def _cut(text: str, room: int) -> Iterator[str]:
    """Pieces that fit, cut after a line or a word where there is one."""
    while text:
        fit = next(
            (place for place, cost in enumerate(accumulate(map(_width, text))) if cost > room),
            len(text),
        )
        if fit < len(text):
            fit = text.rfind("\n", 0, fit) + 1 or text.rfind(" ", 0, fit) + 1 or fit
        yield text[:fit]
        text = text[fit:]


def _cost(text: str) -> int:
    return sum(map(_width, text))


def _width(char: str) -> int:
    if char in "&<>\"'":
        return 6
    return 1 if char == " " or (char.isalnum() and char < "\U00010000") else 2


def _sign(alert: Alert) -> str:
    return _OVER if alert.over else _SIGNS[alert.level]


def _weight(alert: Alert) -> int:
    return -1 if alert.over else _LEVELS.index(alert.level)


# --- doing -----------------------------------------------------------------------------------


def tell(archive: Archive, alerts: Iterable[Alert]) -> list[str]:
    """Raise alerts, with those of what waits on this machine; answers complaints, never raises."""
    settings = archive.settings.alerts
    if not settings.urls:
        return []
    with _mishaps() as complaints:
        state = of_outbox(
            archive.outbox.read()[0],
            archive.outbox.aside(),
            time.time(),
            settings.outbox_age_seconds,
        )
        state += of_key(archive.caches.key_problem)
        alerts = [*alerts, *state]
    raised = Alerts(archive.settings, claim=archive.caches.claim).raise_(alerts)
    return [*complaints, *raised]


@contextmanager
def _mishaps() -> Iterator[list[str]]:
    """A list that gets what went wrong: an alert must never fail what it is about."""
    complaints: list[str] = []
    try:
        yield complaints
    except Exception as error:  # noqa: BLE001
        complaints.append(f"alerts are out of order: {type(error).__name__}")


class Alerts:
    """The alerts of this machine. ``claim`` asks the other machines who tells of what."""

    def __init__(
        self,
        settings: Settings,
        *,
        claim: Claim | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._all = settings
        self._settings = settings.alerts
        self._path = settings.at("alerts.json")
        self._claim = claim
        self._clock = clock
        self._urls = {_mark(url): url for url in settings.alerts.urls}

    @property
    def targets(self) -> list[str]:
        """What each target is called."""
        return [self.label(mark) for mark in self._urls]

    def memory(self) -> dict[str, Memory]:
        """What each target was told, and what not yet.

        A file that is missing or damaged knows of nothing.
        """
        try:
            with open(self._path, encoding="utf-8") as file:
                raw = json.load(file)
            return {mark: _memory(raw[mark]) if mark in raw else Memory() for mark in self._urls}
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
            return {mark: Memory() for mark in self._urls}

    def condition(self) -> str:
        """How it stands with the alerts, for people."""
        memories = self.memory()
        waiting = {key for memory in memories.values() for key in memory.waiting}
        if not waiting:
            return "none waits"
        why = "".join(
            f"; none arrived at {self.label(mark)}: {memory.failure}"
            for mark, memory in memories.items()
            if memory.failure
        )
        return f"{len(waiting)} waiting for the next sync{why}"

    def note(self, alerts: Iterable[Alert]) -> None:
        """Keep alerts for the next one that sends; takes no longer than a lock. Never raises."""
        with _mishaps():
            self._note(alerts, self._clock())

    def raise_(self, alerts: Iterable[Alert]) -> list[str]:
        """Note alerts and tell what is due, within the deadline; answers complaints.

        Never raises. Where the memory can't be written, alerts are told all the same and may
        come again.
        """
        if not self._urls:
            return []
        with _mishaps() as complaints:
            complaints.extend(self._raise(alerts))
        return complaints

    def _note(self, alerts: Iterable[Alert], now: float) -> tuple[Memories, list[str]]:
        clean = [self._clean(alert) for alert in alerts]
        return self._change(
            lambda mark, memory: noted(memory, clean, now, self._settings)  # noqa: ARG005
        )

    def _raise(self, alerts: Iterable[Alert]) -> list[str]:
        now, settings = self._clock(), self._settings
        with self._alone() as is_alone:
            memories, unkept = self._note(alerts, now)
            batches = {mark: due(memory, now, settings) for mark, memory in memories.items()}
            batches = {mark: batch for mark, batch in batches.items() if batch and is_alone}
            if not batches:
                return unkept
            deadline = Deadline(settings.seconds)
            others = self._of_others(batches)
            reasons = self._send(
                {
                    mark: [item for key, item in batch.items() if key not in others]
                    for mark, batch in batches.items()
                },
                deadline,
            )

            def learn(mark: str, memory: Memory) -> Memory:
                batch, failure = batches.get(mark, {}), reasons.get(mark)
                told = {key: batch[key] for key in batch if key in others or failure == ""}
                memory = settled(memory, told, now, settings)
                if failure is None:
                    return memory
                return replace(memory, failure=failure, last=memory.last if failure else now)

            _, unkept = self._change(learn)
        return unkept + [
            f"an alert did not arrive at {self.label(mark)}: {reason}; it is kept for the next run"
            for mark, reason in reasons.items()
            if reason
        ]

    def test(self) -> list[tuple[str, str]]:
        """Send a test to each target; answers what it is called, and why it did not arrive."""
        text = "This is a test: alerts of Annoris arrive here."
        item = Waiting(Alert("test", "info", "a test", text), self._clock())
        deadline = Deadline(self._settings.seconds)
        reasons = self._send({mark: [item] for mark in self._urls}, deadline)
        return [(self.label(mark), reason) for mark, reason in reasons.items()]

    def label(self, mark: str) -> str:
        """What to call a target; the rest of its URL is secret."""
        number = list(self._urls).index(mark) + 1
        return f"target {number} ({self._urls[mark].partition('://')[0][:20]})"

    # --- sending -----------------------------------------------------------------------------

    def _of_others(self, batches: Mapping[str, Mapping[str, Waiting]]) -> set[str]:
        """Keys of which another machine has told people."""
        shared = {
            key: item.alert.over
            for batch in batches.values()
            for key, item in batch.items()
            if item.alert.shared
        }
        if not shared or not self._claim:
            return set()
        holder = f"{socket.gethostname()}:{self._all.data_dir}"
        mine = self._claim(list(shared.items()), holder, self._settings.repeat_seconds)
        return set() if mine is None else shared.keys() - mine

    def _send(self, batches: Mapping[str, list[Waiting]], deadline: Deadline) -> dict[str, str]:
        """Send to each target what it must get; why it did not take it, or nothing."""
        services = _services({mark: self._urls[mark] for mark, items in batches.items() if items})
        reasons = dict.fromkeys(services, "it did not answer in time")
        host, project = socket.gethostname(), self._all.project

        def post(mark: str) -> None:
            try:
                reason = _post(services[mark], batches[mark], host, project)
            except Exception as error:  # noqa: BLE001 - a target's trouble is told, not raised
                reason = type(error).__name__
            reasons[mark] = _masked(reason, self._urls[mark])

        threads = [threading.Thread(target=post, args=[mark], daemon=True) for mark in services]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(deadline.left())
        return dict(reasons)

    def _clean(self, alert: Alert) -> Alert:
        """Without credentials, wherever the words of an error came from."""
        settings = self._all
        urls = (settings.hot.url, settings.emergency.url, *settings.alerts.urls)
        secrets = [settings.key, settings.master.token, *urls, *map(_password, urls)]

        def clean(text: str) -> str:
            for secret in filter(None, secrets):
                text = text.replace(secret, "***")
            return re.sub(r"(?<=://)[^/\s@]+(?=@)", "***", text)

        return replace(alert, title=clean(alert.title), text=clean(alert.text))

    # --- remembering -------------------------------------------------------------------------

    def _change(self, decide: Callable[[str, Memory], Memory]) -> tuple[Memories, list[str]]:
        """Decide upon each memory, in one step; what to complain of when that can't be kept."""

        def decided() -> tuple[Memories, Memories]:
            before = self.memory()
            return before, {mark: decide(mark, memory) for mark, memory in before.items()}

        try:
            with self._locked("lock", _LOCK_SECONDS):
                before, after = decided()
                if after != before:
                    self._write(after)
                return after, []
        except OSError as error:
            complaint = f"{self._path}: {error.strerror}: alerts may be lost or come again"
            return decided()[1], [complaint]

    def _write(self, memories: Memories) -> None:
        raw = {
            mark: {
                "waiting": [asdict(item) for item in memory.waiting.values()],
                "told": [asdict(item) for item in memory.told.values()],
                "last": memory.last,
                "failure": memory.failure,
            }
            for mark, memory in memories.items()
        }
        temporary = f"{self._path}.new"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(raw, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)

    def _locked(self, name: str, seconds: float) -> AbstractContextManager[None]:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        return locked(f"{self._path}.{name}", seconds)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether this process may send; the lock is no other than that of who sends now."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._locked("sending", 0))
            except BlockingIOError:
                yield False
                return
            except OSError:  # no lock can be had here at all
                pass
            yield True


def _memory(raw: dict[str, Any]) -> Memory:
    waiting = [
        Waiting(_alert(item["alert"]), float(item["since"]), int(item["times"]))
        for item in raw["waiting"]
    ]
    told = [Told(_alert(item["alert"]), float(item["at"])) for item in raw["told"]]
    return Memory(
        {item.alert.key: item for item in waiting},
        {item.alert.key: item for item in told},
        float(raw["last"]),
        str(raw["failure"]),
    )


def _alert(raw: dict[str, Any]) -> Alert:
    alert = Alert(**raw)
    if alert.level not in _LEVELS:
        raise ValueError(alert.level)
    return alert


def _mark(url: str) -> str:
    """What stands for a URL in the memory, which must not hold its secrets."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def _password(url: str) -> str:
    with suppress(ValueError):
        return unquote(urlsplit(url).password or "")
    return ""


def _masked(reason: str, url: str) -> str:
    """A reason in one line, without the parts of the URL that may be tokens."""
    for part in sorted(re.split(r"[^\w-]+", url), key=len, reverse=True):
        if len(part) >= 8:
            reason = reason.replace(part, "***")
    return " ".join(reason.split())[:200].rstrip(".")


# --- Apprise ---------------------------------------------------------------------------------


def _services(urls: Mapping[str, str]) -> dict[str, NotifyBase | None]:
    """A service for each URL; None for one that Apprise does not understand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of its plugins import what is deprecated
        import logging  # noqa: PLC0415

        from apprise import Apprise, AppriseAsset  # noqa: PLC0415

        # It would print to stderr, URLs among it, when nobody listens.
        logger = logging.getLogger("apprise")
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
        # Its own threads would be waited for at exit; ours are not.
        asset = AppriseAsset(
            app_id="Annoris", async_mode=False, service_timeout=0, storage_mode="memory"
        )
        return {mark: Apprise.instantiate(url, asset=asset) for mark, url in urls.items()}


def _post(service: NotifyBase | None, items: Collection[Waiting], host: str, project: str) -> str:
    """Send one message, in parts where the service needs it; why it was not taken, or nothing."""
    from apprise import Apprise  # noqa: PLC0415

    if service is None:
        return "Apprise does not understand its URL"
    title = heading(items, host)
    worst = max((item.alert for item in items), key=_weight)
    kind = {"error": "failure"}.get(worst.level, worst.level)
    service.request_rate_per_sec = 0  # a few parts are no flood
    sender = Apprise(asset=service.asset)
    sender.add(service)
    pieces = parts(blocks(items, project), service.body_maxlen - _cost(title) - 40)
    for number, piece in enumerate(pieces, 1):
        which = f" ({number}/{len(pieces)})" if len(pieces) > 1 else ""
        result = sender.notify(
            piece,
            title=f"{title}{which}",
            notify_type="success" if worst.over else kind,
            body_format="text",
        )
        if not result:
            return next((entry.message for entry in result.logs()), "it did not take it")
    return ""
