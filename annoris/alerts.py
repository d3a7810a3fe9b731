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
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from annoris.archive import Archive
from annoris.breaker import locked
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
    """An alert that was not told yet, or not at every target. Times are of the Unix clock."""

    alert: Alert
    since: float
    times: int = 1
    owed: tuple[str, ...] = ()  # marks of targets that missed what others took; empty: all


@dataclass(frozen=True, slots=True)
class Told:
    """The last that people heard under a key; ``at`` is when they heard of the trouble."""

    alert: Alert
    at: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Both by key. ``last`` is when a message last arrived, ``failure`` why one did not since."""

    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    told: Mapping[str, Told] = field(default_factory=dict)
    last: float = 0.0
    failure: str = ""


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
        replace(old, alert=alert, times=old.times + 1, owed=()) if old else Waiting(alert, now)
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
                waiting[key] = replace(item, alert=replace(item.alert, over=True), owed=())
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
        and (item.owed or _is_news(item, memory.told.get(key), now, settings.repeat_seconds))
    }


def _is_news(item: Waiting, known: Told | None, now: float, repeat: float) -> bool:
    if known is None or not _within(known.at, now, repeat):
        return True
    return item.alert.over and not known.alert.over


def settled(
    memory: Memory,
    told: Mapping[str, Waiting],
    missed: Collection[str],
    targets: Collection[str],
    now: float,
    settings: AlertSettings,
) -> Memory:
    """The memory after telling: ``missed`` are the marks of those ``targets`` that failed.

    What no target took waits on as it is; what some took waits for the others.
    """
    waiting, known = dict(memory.waiting), dict(memory.told)
    for key, item in told.items():
        asked = recipients(item, targets)
        owed = tuple(mark for mark in asked if mark in missed)
        if owed and len(owed) == len(asked):
            continue
        is_rest = key in known and (item.alert.over or bool(item.owed))
        known[key] = Told(replace(item.alert, text=""), known[key].at if is_rest else now)
        if key in waiting and waiting[key].alert.over == item.alert.over:
            del waiting[key]
            if owed:
                waiting[key] = replace(item, owed=owed)
    return replace(memory, waiting=waiting, told=_recent(known, now, settings.repeat_seconds))


def _recent(known: Mapping[str, Told], now: float, repeat: float) -> dict[str, Told]:
    return {
        key: item
        for key, item in known.items()
        if _within(item.at, now, repeat if item.alert.over else max(repeat, _REMEMBERED))
    }


def recipients(item: Waiting, targets: Collection[str]) -> list[str]:
    """The marks of the targets that must still get it."""
    return [mark for mark in targets if not item.owed or mark in item.owed]


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
        """What to call each target; the rest of its URL is secret."""
        return [self._label(mark) for mark in self._urls]

    def memory(self) -> Memory:
        """What waits and what was told. A file that is missing or damaged knows of nothing."""
        try:
            with open(self._path, encoding="utf-8") as file:
                raw = json.load(file)
            return Memory(
                waiting={item["alert"]["key"]: _waiting(item) for item in raw["waiting"]},
                told={
                    item["alert"]["key"]: Told(_alert(item["alert"]), float(item["at"]))
                    for item in raw["told"]
                },
                last=float(raw["last"]),
                failure=str(raw["failure"]),
            )
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
            return Memory()

    def condition(self) -> str:
        """How it stands with the alerts, for people."""
        memory = self.memory()
        if not memory.waiting:
            return "none waits"
        why = f"; the last did not arrive at {memory.failure}" if memory.failure else ""
        return f"{len(memory.waiting)} waiting for the next sync{why}"

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

    def _note(self, alerts: Iterable[Alert], now: float) -> tuple[Memory, list[str]]:
        clean = [self._clean(alert) for alert in alerts]
        return self._change(lambda memory: noted(memory, clean, now, self._settings))

    def _raise(self, alerts: Iterable[Alert]) -> list[str]:
        now, settings = self._clock(), self._settings
        with self._alone() as is_alone:
            memory, unkept = self._note(alerts, now)
            batch = due(memory, now, settings) if is_alone else {}
            if not batch:
                return unkept
            deadline = Deadline(settings.seconds)
            others = self._of_others(batch)
            mine = {key: item for key, item in batch.items() if key not in others}
            reasons = self._send(mine, deadline) if mine else {}
            missed = {mark for mark, reason in reasons.items() if reason}
            failures = [f"{self._label(mark)}: {reasons[mark]}" for mark in sorted(missed)]

            def learn(memory: Memory) -> Memory:
                memory = settled(memory, others, (), self._urls, now, settings)
                memory = settled(memory, mine, missed, self._urls, now, settings)
                last = now if len(missed) < len(reasons) else memory.last
                return replace(memory, last=last, failure="; ".join(failures))

            _, unkept = self._change(learn)
        return unkept + [
            f"an alert did not arrive at {failure}; it is kept for the next run"
            for failure in failures
        ]

    def test(self) -> list[tuple[str, str]]:
        """Send a test to each target; answers what it is called, and why it did not arrive."""
        text = "This is a test: alerts of Annoris arrive here."
        item = Waiting(Alert("test", "info", "a test", text), self._clock())
        reasons = self._send({"test": item}, Deadline(self._settings.seconds))
        return [(self._label(mark), reason) for mark, reason in reasons.items()]

    # --- sending -----------------------------------------------------------------------------

    def _of_others(self, batch: Mapping[str, Waiting]) -> dict[str, Waiting]:
        """Those that another machine has told people about."""
        shared = {key: item for key, item in batch.items() if item.alert.shared}
        if not shared:
            return {}
        wanted = [(key, item.alert.over) for key, item in shared.items()]
        holder = f"{socket.gethostname()}:{self._all.data_dir}"
        granted = (
            self._claim(wanted, holder, self._settings.repeat_seconds) if self._claim else None
        )
        return {
            key: item for key, item in shared.items() if granted is not None and key not in granted
        }

    def _send(self, batch: Mapping[str, Waiting], deadline: Deadline) -> dict[str, str]:
        """Send to every target that must get something; why each did not take it, or nothing."""
        bundles = {
            mark: [item for item in batch.values() if mark in recipients(item, self._urls)]
            for mark in self._urls
        }
        services = _services({mark: self._urls[mark] for mark, items in bundles.items() if items})
        reasons = dict.fromkeys(services, "it did not answer in time")
        host, project = socket.gethostname(), self._all.project

        def post(mark: str) -> None:
            items = bundles[mark]
            try:
                reason = _post(services[mark], heading(items, host), blocks(items, project), items)
            except Exception as error:  # noqa: BLE001 - a target's trouble is told, not raised
                reason = type(error).__name__
            reasons[mark] = _masked(reason, self._urls[mark])

        threads = [threading.Thread(target=post, args=[mark], daemon=True) for mark in services]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(deadline.left())
        return dict(reasons)

    def _label(self, mark: str) -> str:
        number = list(self._urls).index(mark) + 1
        return f"target {number} ({self._urls[mark].partition('://')[0][:20]})"

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

    def _change(self, decide: Callable[[Memory], Memory]) -> tuple[Memory, list[str]]:
        """Decide upon the memory in one step; what to complain of when it can't be kept."""
        try:
            with self._locked("lock", _LOCK_SECONDS):
                before = self.memory()
                after = decide(before)
                if after != before:
                    self._write(after)
                return after, []
        except OSError as error:
            complaint = f"{self._path}: {error.strerror}: alerts may be lost or come again"
            return decide(self.memory()), [complaint]

    def _write(self, memory: Memory) -> None:
        raw = {
            "waiting": [asdict(item) for item in memory.waiting.values()],
            "told": [asdict(item) for item in memory.told.values()],
            "last": memory.last,
            "failure": memory.failure,
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


def _waiting(raw: dict[str, Any]) -> Waiting:
    owed = tuple(map(str, raw["owed"]))
    return Waiting(_alert(raw["alert"]), float(raw["since"]), int(raw["times"]), owed)


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


def _post(
    service: NotifyBase | None, title: str, text: list[str], items: Collection[Waiting]
) -> str:
    """Send one message, in parts where the service needs it; why it was not taken, or nothing."""
    from apprise import Apprise  # noqa: PLC0415

    if service is None:
        return "Apprise does not understand its URL"
    worst = max((item.alert for item in items), key=_weight)
    kind = {"error": "failure"}.get(worst.level, worst.level)
    service.request_rate_per_sec = 0  # a few parts are no flood
    sender = Apprise(asset=service.asset)
    sender.add(service)
    pieces = parts(text, service.body_maxlen - _cost(title) - 40)
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
