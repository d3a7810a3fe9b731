"""Regular runs by cron or systemd: their text (pure), how it gets there, and one run.

A run needs no shell around it: ``annoris schedule run`` gives a command its lock, its deadline
and its log, so that a line of a crontab and a unit of systemd say the same and nothing else.
Text is bytes: a crontab need not be UTF-8. What is not between our marks is never changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from annoris import gitcmd
from annoris.dataclass import dataclass
from annoris.errors import ConfigError, Locked, StorageError
from annoris.model import Deadline

Kind = Literal["cron", "systemd"]

LATE = 124  # the exit code of a run that had to be stopped, as coreutils' timeout has it
PASSING = (0, 5, 11, 75)  # what mends itself: the next run tries again, nobody need hear of it

_BEGIN = b"# annoris begin"
_END = b"# annoris end"
_OPEN = b", no line end before"
_BLOCK = re.compile(
    rb"^# annoris begin(?P<open>, no line end before)?\r?\n.*?^# annoris end\r?(?:\n|\Z)",
    re.MULTILINE | re.DOTALL,
)
_MADE = "# Made by annoris schedule; annoris schedule remove takes it away.\n"
_NAMES = ("sync", "verify", "dump", "drill")  # of all jobs that there ever are
_LOG_BYTES = 1_000_000
_SECONDS = 20.0  # for crontab and systemctl
_GRACE = 15.0  # between asking a late run to end and ending it
_RAN = re.compile(rb"^(\S+Z) (.+): (exit \d+, \d+ s|stopped after \d+ s)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Job:
    """A command of annoris, when it runs (local time), and the seconds it may take."""

    name: str
    words: tuple[str, ...]
    minutes: tuple[int, ...]
    hour: int | None  # None: every hour
    seconds: int
    sundays: bool = False

    @property
    def cron(self) -> str:
        hour = "*" if self.hour is None else self.hour
        day = "0" if self.sundays else "*"
        return f"{','.join(map(str, self.minutes))} {hour} * * {day}"

    @property
    def calendar(self) -> str:
        hour = "*" if self.hour is None else f"{self.hour:02}"
        day = "Sun " if self.sundays else ""
        return f"{day}*-*-* {hour}:{','.join(f'{minute:02}' for minute in self.minutes)}:00"


@dataclass(frozen=True, slots=True)
class Edit:
    """A file, or with no path the crontab, and what it holds before and after."""

    path: str
    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class Present:
    """What is scheduled on this machine: how, which lines, when each command last ran."""

    kind: Kind | None
    lines: tuple[str, ...]
    current: bool  # whether install would write the same
    last: dict[str, str]
    log: str


# --- text ----------------------------------------------------------------------------------------


def jobs(machine: str, *, hot: bool) -> tuple[Job, ...]:
    """Sync every 15 minutes, verify once a night; with a hot cache dumps, and their drill.

    ``machine`` shifts the minutes, always by the same number: not all machines ask at once,
    and no two jobs ever start in the same minute.
    """
    number = int.from_bytes(hashlib.sha256(machine.encode(errors="replace")).digest()[:4], "big")
    shift, hour = number % 15, 1 + number // 15 % 3
    quarters = tuple(range(shift, 60, 15))
    always = (
        Job("sync", ("sync", "--full", "--quiet"), quarters, None, 840),
        Job("verify", ("verify", "--quiet"), (shift + 5,), hour, 3000),
    )
    dumps = (
        Job("dump", ("dump", "--quiet"), (shift + 10,), hour + 1, 3000),
        Job("drill", ("dump", "--drill", "--quiet"), (shift + 10,), hour + 2, 3000, sundays=True),
    )
    return (*always, *dumps) if hot else always


def command(
    python: str, folders: Sequence[str], data_dir: str = "", config: str = ""
) -> tuple[str, ...]:
    """The words that start a run, without what to run.

    ``env`` and not the shell sets variables, since a crontab's SHELL may be any. Python gets
    ``-P``: what lies in the folder where cron starts is not imported.
    """
    path = os.pathsep.join(dict.fromkeys((*folders, "/usr/local/bin", "/usr/bin", "/bin")))
    return (
        "/usr/bin/env",
        f"PATH={path}",
        *([f"ANNORIS_DATA_DIR={data_dir}"] if data_dir else []),
        *(python, "-P", "-m", "annoris.cli"),
        *(["--config", config] if config else []),
        *("schedule", "run", "--seconds"),
    )


def block(wanted: Sequence[Job], start: Sequence[str]) -> bytes:
    """The lines of a crontab, marks included. Raises ConfigError for what cron can't say."""
    lines = [_BEGIN]
    for job in wanted:
        words = (*start, str(job.seconds), "--", *job.words)
        lines.append(os.fsencode(f"{job.cron} {_cron_words(words)}"))
    return b"\n".join([*lines, _END, b""])


def _cron_words(words: Sequence[str]) -> str:
    if any(re.search(r"[\x00-\x1f\x7f\\]", word) for word in words):
        raise ConfigError(
            "a path with a backslash or a line break in it can't be written in a crontab: "
            + next(repr(word) for word in words if re.search(r"[\x00-\x1f\x7f\\]", word)),
            hint="move the data folder, the configuration or the installation elsewhere",
        )
    return shlex.join(words).replace("%", "\\%")  # cron itself would end the line there


def with_block(crontab: bytes, lines: bytes) -> bytes:
    """A crontab with our block, where it was or else at the end; the rest byte for byte."""
    found = _found(crontab)
    if found:
        lines = lines.replace(_BEGIN, _BEGIN + (found["open"] or b""), 1)
        return crontab[: found.start()] + lines + crontab[found.end() :]
    if crontab and not crontab.endswith(b"\n"):
        return crontab + b"\n" + lines.replace(_BEGIN, _BEGIN + _OPEN, 1)
    return crontab + lines


def without_block(crontab: bytes) -> bytes:
    """A crontab as it was before our block came."""
    found = _found(crontab)
    if not found:
        return crontab
    before = crontab[: found.start()]
    rest = crontab[found.end() :]
    return (before[:-1] if found["open"] and not rest else before) + rest


def _found(crontab: bytes) -> re.Match[bytes] | None:
    marks = re.findall(rb"^# annoris (begin|end)\b", crontab, re.MULTILINE)
    found = _BLOCK.search(crontab)
    if marks and (marks != [b"begin", b"end"] or not found):
        raise ConfigError(
            f"the marks of annoris in the crontab are no pair: {b', '.join(marks).decode()}",
            hint="take the lines '# annoris begin' to '# annoris end' out with: crontab -e",
        )
    return found


def units(wanted: Sequence[Job], start: Sequence[str]) -> dict[str, bytes]:
    """Unit files by name. Raises ConfigError for a path that systemd can't hold."""
    files = {}
    for job in wanted:
        words = " ".join(map(_unit_word, (*start, str(job.seconds), "--", *job.words)))
        passing = " ".join(map(str, PASSING[1:]))
        service = (
            f"{_MADE}[Unit]\nDescription=annoris {' '.join(job.words)}\n\n"
            f"[Service]\nType=oneshot\nExecStart={words}\nSuccessExitStatus={passing}\n"
            f"TimeoutStartSec={job.seconds + 2 * round(_GRACE)}\n"
        )
        timer = (
            f"{_MADE}[Unit]\nDescription=annoris {' '.join(job.words)}\n\n"
            f"[Timer]\nOnCalendar={job.calendar}\nPersistent=true\n\n"
            "[Install]\nWantedBy=timers.target\n"
        )
        files[f"annoris-{job.name}.service"] = service.encode()
        files[f"annoris-{job.name}.timer"] = timer.encode()
    return files


def _unit_word(word: str) -> str:
    if not word.isprintable():
        raise ConfigError(
            f"a path that is not plain text can't be written in a unit of systemd: {word!r}",
            hint="use a crontab instead: annoris schedule install --cron",
        )
    for letter, told in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(letter, told)
    return f'"{word}"' if re.search(r"[^\w@%+=:,./$-]", word) else word


def diff(edits: Sequence[Edit]) -> list[str]:
    """What edits change, as unified diffs."""
    import difflib  # noqa: PLC0415

    lines: list[str] = []
    for edit in edits:
        name = edit.path or "crontab"
        before, after = (
            text.decode(errors="backslashreplace").splitlines(keepends=True)
            for text in (edit.before, edit.after)
        )
        lines += difflib.unified_diff(before, after, name, name)
    return lines


# --- cron and systemd ----------------------------------------------------------------------------


def usual() -> Kind:
    """How this machine runs things regularly. Raises ConfigError where it does not."""
    if _systemd_answers():
        return "systemd"
    if shutil.which("crontab"):
        return "cron"
    raise ConfigError("this machine has neither systemd for users nor crontab")


def edits(
    kind: Kind | None, wanted: Sequence[Job], start: Sequence[str], folder: str
) -> list[Edit]:
    """What must change so that runs are scheduled that way, or with None not at all.

    ``folder`` is where a user's units lie.
    """
    crontab = _read_crontab(must=kind == "cron")
    lines = block(wanted, start) if kind == "cron" else b""
    text = with_block(crontab, lines) if lines else without_block(crontab)
    files = units(wanted, start) if kind == "systemd" else {}
    found = [Edit("", crontab, text)]
    for job in _NAMES:
        for suffix in ("timer", "service"):
            name = f"annoris-{job}.{suffix}"
            path = os.path.join(folder, name)
            found.append(Edit(path, _read_unit(path), files.get(name, b"")))
    return [edit for edit in found if edit.before != edit.after]


def apply(kind: Kind | None, changes: Sequence[Edit], wanted: Sequence[Job]) -> None:
    """Do what ``edits`` said. Raises ConfigError with what cron or systemd has against it."""
    timers = [f"annoris-{job.name}.timer" for job in wanted]
    files = [edit for edit in changes if edit.path]
    gone = [edit.path for edit in files if edit.path.endswith(".timer") and not edit.after]
    if gone and _systemd_answers():
        _systemctl("disable", "--now", *map(os.path.basename, gone))
    for edit in changes:
        if edit.path:
            _write_unit(edit)
        else:
            _write_crontab(edit.after)
    if kind == "systemd":
        _systemctl("daemon-reload")
        _systemctl("enable", "--now", *timers)
    elif files and _systemd_answers():
        _systemctl("daemon-reload")


def unit_folder(environ: Mapping[str, str]) -> str:
    """Where systemd looks for a user's units."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "systemd", "user")


def present(wanted: Sequence[Job], start: Sequence[str], folder: str, log: str) -> Present:
    """What is scheduled, and how the last runs ended."""
    found = _found(_read_crontab())
    timer = os.path.join(folder, f"annoris-{wanted[0].name}.timer")
    kind: Kind | None = "cron" if found else "systemd" if os.path.exists(timer) else None
    lines: tuple[str, ...] = ()
    if found:
        lines = tuple(found[0].decode(errors="backslashreplace").splitlines()[1:-1])
    elif kind:
        lines = tuple(f"annoris-{job.name}.timer  {job.calendar}" for job in wanted)
    return Present(
        kind=kind,
        lines=lines,
        current=bool(kind) and not edits(kind, wanted, start, folder),
        last={
            words.decode(): f"{when.decode()}, {how.decode()}" for when, words, how in _runs(log)
        },
        log=log,
    )


def _systemd_answers() -> bool:
    if not shutil.which("systemctl"):
        return False
    return gitcmd.run(["systemctl", "--user", "show-environment"], Deadline(5)).code == 0


def _systemctl(*arguments: str) -> None:
    result = gitcmd.run(["systemctl", "--user", *arguments], Deadline(_SECONDS))
    if result.code != 0:
        raise ConfigError(
            f"systemctl --user {arguments[0]}: {gitcmd.last_line(result.text)}",
            hint="use a crontab instead: annoris schedule install --cron",
        )


def _read_crontab(*, must: bool = False) -> bytes:
    """The user's crontab; empty where there is none, or no cron unless it ``must`` be there."""
    if not shutil.which("crontab"):
        if must:
            raise ConfigError("crontab isn't installed or not on PATH", hint="install cron")
        return b""
    result = gitcmd.run(["crontab", "-l"], Deadline(_SECONDS))
    if result.code == 0:
        return result.output
    if must and not re.search(r"no crontab|can't open|No such file", result.text):
        raise ConfigError(
            f"crontab -l: {gitcmd.last_line(result.text)}",
            hint="ask who runs this machine to allow cron for you",
        )
    return b""


def _write_crontab(text: bytes) -> None:
    words = ["crontab", "-"] if text else ["crontab", "-r"]
    result = gitcmd.run(words, Deadline(_SECONDS), text)
    if result.code != 0 or _read_crontab() != text:
        raise ConfigError(
            f"the crontab was not taken: {gitcmd.last_line(result.text)}",
            hint="look at it with: crontab -l",
        )


def _read_unit(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return b""
    if not text.startswith(_MADE.encode()):
        raise ConfigError(f"{path}: was not made by annoris", hint="rename that unit first")
    return text


def _write_unit(edit: Edit) -> None:
    if not edit.after:
        os.unlink(edit.path)
        return
    os.makedirs(os.path.dirname(edit.path), exist_ok=True)
    with open(f"{edit.path}.new", "wb") as file:
        file.write(edit.after)
    os.replace(f"{edit.path}.new", edit.path)


# --- a run ---------------------------------------------------------------------------------------


def run(words: Sequence[str], seconds: float, data_dir: str, config: str) -> tuple[int, str]:
    """Run a command of annoris to its end, or to the end of its time; answers code and words.

    One line of the log says how it ended, and below it stands what it said. Raises Locked when
    the same command still runs.
    """
    os.makedirs(data_dir, mode=0o700, exist_ok=True)
    with _alone(os.path.join(data_dir, f"schedule-{os.path.basename(words[0])}.lock"), words[0]):
        started = time.monotonic()
        source = ["--config", config] if config else []
        result = gitcmd.run(
            [sys.executable, "-P", "-m", "annoris.cli", *source, *words],
            Deadline(seconds),
            grace=_GRACE,
            ours=True,
        )
        said = gitcmd.text(result.output) + result.text
        late = result.code < 0
        took = f"{time.monotonic() - started:.0f} s"
        ended = f"stopped after {took}" if late else f"exit {result.code}, {took}"
        _note(os.path.join(data_dir, "schedule.log"), f"{shlex.join(words)}: {ended}", said)
    return (LATE if late else result.code), f"{said}annoris {words[0]}: {ended}\n"


@contextlib.contextmanager
def _alone(path: str, name: str) -> Iterator[None]:
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"annoris {name} still runs", hint="wait for it to end") from None
        yield


def _note(path: str, line: str, said: str) -> None:
    """Add to the log; its older half goes when it is full."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    below = "".join(f"  {line}\n" for line in said.splitlines())
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            if file.tell() > _LOG_BYTES:
                file.seek(-_LOG_BYTES // 2, os.SEEK_END)
                newest = file.read().partition(b"\n")[2]
                file.seek(0)
                file.truncate()
                file.write(newest)
            file.write(f"{when} {line}\n{below}".encode(errors="surrogateescape"))
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror}", hint="free some space there, or make it writable"
        ) from error


def _runs(log: str) -> list[tuple[bytes, bytes, bytes]]:
    try:
        with open(log, "rb") as file:
            return _RAN.findall(file.read())
    except FileNotFoundError:
        return []
