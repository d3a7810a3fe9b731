"""What people and machines see. The only rich, and only on a terminal.

Data goes to stdout and everything else to stderr. ``--json`` prints one object with
``schema_version``; to it keys are only ever added. In a pipe, lists are tab-separated lines.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from annoris.dataclass import dataclass
from annoris.errors import AnnorisError
from annoris.model import (
    Audit,
    Draft,
    Drilled,
    Dumped,
    Finding,
    Glance,
    Hit,
    Imported,
    Loaded,
    Project,
    Projected,
    Receipt,
    Report,
    Restored,
    Revision,
    Run,
    Session,
    Shelved,
    TierStanding,
    counted,
)

if TYPE_CHECKING:
    from annoris.alerts import Memory
    from annoris.settings import AlertSettings
    from annoris.workspace import Drift

SCHEMA_VERSION = 1
_NARROWEST = 8  # cells of a column: a short id
_NUMBER = re.compile(r"-?[\d.,]*")
_MOST = 20  # findings of one kind that are told
_BEGINNING = """\
Annoris keeps the state of work between conversations with AI assistants.
Nothing is saved on this machine yet. To begin:

  annoris save session.md       keep a document
  annoris load                  bring the newest one back
  annoris init --remote URL     put all of it on a git repository of yours

All commands: annoris --help"""
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"


@dataclass(frozen=True, slots=True)
class Output:
    """How a command was asked to speak."""

    json: bool = False
    quiet: bool = False

    # --- answers -----------------------------------------------------------------------------

    def receipts(self, receipts: Sequence[Receipt]) -> None:
        """What a save or a delete did, one line each, and what to do next."""
        for receipt in receipts:
            for problem in receipt.problems:
                line = f":{problem.line}" if problem.line else ""
                self.note(f"{receipt.source}{line}: {problem.message}")
        if self.json:
            self.emit(receipts=[_receipt_json(receipt) for receipt in receipts])
            return
        for receipt in receipts:
            good = receipt.state in ("master", "unchanged")
            if not (self.quiet and good):
                self.line(_receipt_line(receipt))
        sessions = [receipt for receipt in receipts if receipt.op != "attach"]
        if not self.quiet and len(sessions) > 1:
            self.line(f"{len(sessions)} sessions: {_by_state(sessions)}")

    def imported(self, done: Imported) -> None:
        """What an import did, and what it left out and why."""
        if self.json:
            self.emit(imported=asdict(done))
            return
        for receipt in done.receipts:
            if not (self.quiet and receipt.state in ("master", "unchanged")):
                self.line(_receipt_line(receipt))
        for where, title in done.planned:
            self.line(f"would save  {_cell(title)}  {safe(where)}")
        for item in done.left_out:
            self.warn(f"left out: {item.where}: {item.why}")
        if not self.quiet:
            parts = (
                (done.found, "found"), (len(done.planned), "would be saved"),
                *((count, word) for count, word in _states(done.receipts)),
                (done.redacted, "with masked credentials"), (done.unchanged, "as they were"),
                (len(done.left_out), "left out"),
            )  # fmt: skip
            told = ", ".join(f"{count} {word}" for count, word in parts if count)
            self.line(f"{done.source}: {told or 'nothing found'}")
            if done.ignored:
                kinds = sorted(done.ignored.items())
                listed = ", ".join(f"{count} {kind}" for kind, count in kinds)
                self.note(f"records that stand in no document: {listed}")

    def loaded(
        self, loaded: Loaded, data: bytes, drift: Drift | None = None, *, render: bool
    ) -> None:
        """A session's text: exact bytes in a pipe, Markdown on a terminal."""
        if self.json:
            verified, unverified = _claims(loaded.data)
            self.emit(
                session=_session_json(loaded.session),
                text=data.decode(errors="replace"),
                tier=loaded.tier,
                checked=loaded.checked,
                stale=loaded.stale,
                revision=loaded.revision,
                drift={**asdict(drift), "told": drift.sentences} if drift else None,
                claims={"verified": verified, "unverified": unverified},
            )
            return
        self.origin(loaded, drift)
        if render and sys.stdout.isatty():
            self._markdown(data.decode(errors="replace"))
            return
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def origin(self, loaded: Loaded, drift: Drift | None = None) -> None:
        """Where a session came from and how old it is, on stderr."""
        row = loaded.session
        age = f", checked {ago(loaded.checked)}" if loaded.tier == "clone" else ""
        where = {"outbox": "waiting here, not yet on master"}.get(loaded.tier, loaded.tier)
        self.note(f"{row.project}  {row.id[-8:]}  saved {ago(row.saved)}  [{where}{age}]")
        if loaded.stale:
            self.warn(f"may be old: {loaded.stale}")
        for sentence in drift.sentences if drift else ():
            self.note(f"since it was saved: {sentence}")
        verified, unverified = _claims(loaded.data)
        if verified or unverified:
            self.note(f"lines marked: {verified} verified, {unverified} unverified")

    def resumable(self, session: Session, file: str, command: str) -> None:
        """Where a transcript was written, and the command that goes on from it."""
        if self.json:
            self.emit(session=_session_json(session), file=file, resume=command)
            return
        self.note(f"{session.project}  {session.short}  written to {file}")
        self.line(command)

    def sessions(self, rows: Sequence[Session], stale: str, empty: str) -> None:
        if self.json:
            self.emit(sessions=[_session_json(row) for row in rows], stale=stale)
            return
        if stale:
            self.warn(f"may be old: {stale}")
        if not rows:
            self.note(empty)
        self.table(
            ("id", "saved", "project", "name", "status", "title"),
            [
                (
                    row.short,
                    ago(row.saved) if _terminal() else row.saved,
                    row.project,
                    row.name,
                    ("waiting " if row.pending else "") + row.status,
                    row.title,
                )
                for row in rows
            ],
        )

    def hits(self, hits: Sequence[Hit], stale: str, text: str, *, titles: bool = False) -> None:
        """What a search found; ``titles``: only titles and names were searched."""
        if self.json:
            found = [
                {
                    **_session_json(hit.session),
                    "score": hit.score,
                    "snippet": hit.snippet.replace("\x02", "").replace("\x03", ""),
                }
                for hit in hits
            ]
            self.emit(hits=found, stale=stale, titles_only=titles)
            return
        if stale:
            self.warn(f"may be old: {stale}")
        if titles:
            self.note("titles and names only: catalog.text is off, so that no text is kept here")
        if not hits:
            self.note(f"nothing holds {text!r}; annoris list --all shows what there is")
        marks = ("\x1b[1m", "\x1b[0m") if _colour() else ("", "")
        for hit in hits:
            row = hit.session
            snippet = _cell(hit.snippet.replace("\x02", "\uffee").replace("\x03", "\uffef"))
            snippet = snippet.replace("\uffee", marks[0]).replace("\uffef", marks[1])
            line = f"{row.short}  {_cell(row.project)}  {_cell(row.title)}"
            self.line(_cut(line, _width()) if _terminal() else line)
            self.line(f"          {snippet}")

    def history(self, session: Session, revisions: Sequence[Revision]) -> None:
        if self.json:
            self.emit(id=session.id, revisions=[asdict(item) for item in revisions])
            return
        self.table(
            ("revision", "saved", "by", "what"),
            [(item.oid[:8], item.at, item.author, item.message) for item in revisions],
        )

    def diff(self, lines: Sequence[str]) -> None:
        if self.json:
            self.emit(diff="".join(lines))
            return
        colours = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"} if _colour() else {}
        for line in lines:
            colour = colours.get(line[:1], "")
            self.line(f"{colour}{safe(line.rstrip(chr(10)))}{chr(27) + '[0m' if colour else ''}")

    def projects(self, projects: Sequence[Project]) -> None:
        rows = [_project_json(project) for project in projects]
        if self.json:
            self.emit(projects=rows)
            return
        if not projects:
            self.note("no project yet: the first save makes one")
        keys = ("status", "priority", "target_revenue", "current_revenue", "percent")
        self.table(
            ("project", "sessions", "newest", "status", "priority", "target", "current", "%"),
            [
                (
                    item.name,
                    str(item.sessions),
                    ago(item.newest) if _terminal() else item.newest,
                    *(row[key] for key in keys),
                )
                for item, row in zip(projects, rows, strict=True)
            ],
        )

    def project(self, project: Project, *, changed: bool | None = None) -> None:
        """One project, with all that is known of it."""
        known = _project_json(project)
        more = {} if changed is None else {"changed": changed}
        known["per cent"] = known.pop("percent")
        known["was"] = ", ".join(project.was)
        shown = [(key.replace("_", " "), str(value)) for key, value in known.items() if value != ""]
        self.facts(shown, project=_project_json(project), **more)

    def report(self, report: Report) -> None:
        """What a sync did; silent under --quiet when nothing needs a person."""
        if self.json:
            self.emit(report=asdict(report))
            return
        self.complain(report.problems)
        for receipt in (*report.conflicts, *report.set_aside):
            self.line(_receipt_line(receipt))
        if not self.quiet:
            self._synced(report)
        for item in report.projections:
            if item.state == "refused":
                self.warn(f"{item.tier}: {item.why}; if that is meant: annoris sync --force")
            elif item.why and not self.quiet:
                self.warn(f"{item.tier} is left out: it {item.why}")
        self.findings(report.findings)

    def _synced(self, report: Report) -> None:
        moved = (
            "nothing new"
            if report.before == report.after
            else f"{report.before[:8] or 'nothing'} to {report.after[:8]}"
        )
        if report.dry:
            self.line(f"would deliver {report.pushed}, take {moved}; nothing was changed")
            for what, names in (("deliver", report.outgoing), ("take", report.incoming)):
                for name in names:
                    self.line(f"  {what:<8} {_cell(name)}")
        else:
            self.line(
                f"in step with master: {counted(report.sessions, 'session')}, "
                f"{report.pushed} delivered, {moved} ({report.milliseconds} ms)"
            )
        rows = [_projected(item) for item in report.projections if _moved(item) or report.full]
        self.table(("tier", "added", "changed", "removed", "healed", "evicted", "ms"), rows)

    def audit(self, audit: Audit, *, repaired: bool) -> None:
        """What a verify found; silent under --quiet when that is nothing."""
        if self.json:
            self.emit(audit=asdict(audit))
            return
        self.findings(audit.findings)
        left = sum(not item.healed for item in audit.findings)
        looked = ", ".join(_checked(what, count) for what, count in audit.checked.items())
        if not self.quiet:
            found = counted(left, "finding") if left else "all is well"
            healed = len(audit.findings) - left
            mended = f", {healed} healed" if repaired else ""
            self.line(f"{found}{mended}: {looked} ({audit.milliseconds} ms)")

    def findings(self, findings: Sequence[Finding]) -> None:
        """What needs a person, on stderr; many of one kind are told by some of them."""
        told: dict[str, int] = {}
        for item in findings:
            told[item.kind] = told.get(item.kind, 0) + 1
            if told[item.kind] <= _MOST:
                about = f" {item.about}" if item.about else ""
                mend = "  healed" if item.healed else f"  {item.mend}" if item.mend else ""
                self.warn(f"{item.kind}: {item.where}{about}: {item.message}")
                if mend:
                    print(safe(mend), file=sys.stderr)
        for kind, count in told.items():
            if count > _MOST:
                self.warn(f"{kind}: and {count - _MOST} more; --json shows them all")

    def runs(self, runs: Sequence[Run], where: str) -> None:
        """Past runs, and which log told."""
        if self.json:
            self.emit(runs=[asdict(run) for run in runs], log=where)
            return
        if not runs:
            self.note("nothing was run yet")
        if where == "here":
            self.note("the log of this machine alone; with a hot cache there is one of all")
        self.table(
            ("started", "kind", "status", "by", "on", "what"),
            [
                (
                    ago(run.started) if _terminal() else run.started,
                    run.kind,
                    run.status,
                    run.source,
                    run.host,
                    _summary(run.details),
                )
                for run in runs
            ],
        )

    def outbox(self, waiting: Sequence[Draft], aside: Sequence[tuple[Draft, str]]) -> None:
        if self.json:
            self.emit(
                waiting=[_draft_json(draft) for draft in waiting],
                aside=[{**_draft_json(draft), "reason": reason} for draft, reason in aside],
            )
            return
        if not waiting and not aside:
            self.note("the outbox is empty: everything saved here is on master")
        rows = [(draft.key, draft.op, ago(draft.at), draft.title, "waiting") for draft in waiting]
        rows += [
            (draft.key, draft.op, ago(draft.at), draft.title, reason) for draft, reason in aside
        ]
        self.table(("key", "what", "when", "title", "state"), rows)

    def alerts(
        self, targets: Sequence[str], settings: AlertSettings, memories: Sequence[Memory]
    ) -> None:
        """Where alerts go and, for each target, what waits for it and what it was told."""
        known = [_told(memory) for memory in memories]
        facts = [("level", f"{settings.level} and above")]
        facts += [("quiet hours", settings.quiet_hours or "none")]
        for target, item in zip(targets, known, strict=True):
            failure = f", then failed: {item['failure']}" if item["failure"] else ""
            facts.append((target, f"last sent {ago(item['last'])}{failure}"))
        self.facts(
            facts if targets else [*facts, ("targets", "none: set ANNORIS_ALERTS_URLS")],
            level=settings.level,
            quiet_hours=settings.quiet_hours,
            targets=[{"target": name, **item} for name, item in zip(targets, known, strict=True)],
        )
        if not self.json:
            rows = {
                (item["state"], item["level"], ago(item["at"]), item["title"]): None
                for target in known
                for item in target["alerts"]
            }
            self.table(("state", "level", "when", "alert"), list(rows))

    def sent(self, sent: Sequence[tuple[str, str]]) -> None:
        """Whether a test arrived at each target, or why not."""
        if self.json:
            self.emit(targets=[{"target": name, "failure": reason} for name, reason in sent])
            return
        for name, reason in sent:
            if reason:
                self.warn(f"{name}: did not arrive: {reason}")
            elif not self.quiet:
                self.line(f"{name}: arrived")

    def dumps(self, dumps: Sequence[Shelved], stale: str) -> None:
        """The dumps that there are."""
        if self.json:
            self.emit(dumps=[asdict(dump) for dump in dumps], stale=stale)
            return
        if stale:
            self.warn(f"there may be newer ones: {stale}")
        if not dumps:
            self.note("no dump yet: annoris dump makes one")
        self.table(
            ("dump", "made", "sessions", "size", "verified"),
            [
                (
                    dump.name,
                    ago(dump.made) if _terminal() else dump.made,
                    str(dump.rows.get("sessions", 0)),
                    _size(dump.bytes) if _terminal() else str(dump.bytes),
                    (ago(dump.verified) if _terminal() else dump.verified) or "never",
                )
                for dump in dumps
            ],
        )

    def dumped(self, done: Dumped) -> None:
        """What a dump did; silent under --quiet."""
        if self.json:
            self.emit(dump=asdict(done))
            return
        if not self.quiet:
            what = "dumped as" if done.pushed else "nothing changed since"
            self.line(
                f"{what} {done.name}: {_counts(done.rows)}, {_size(done.bytes)} ({_took(done)})"
            )
            for name in done.dropped:
                self.line(f"dropped {name}")
            if done.file:
                self.line(f"written to {safe(done.file)}")

    def drilled(self, drill: Drilled) -> None:
        """What a drill found: silent under --quiet, because it was nothing."""
        if self.json:
            self.emit(drill=asdict(drill))
            return
        if not self.quiet:
            self.line(
                f"verified {drill.name}, made {ago(drill.made)}: {_counts(drill.rows)} came back "
                f"as they were, {counted(drill.opened, 'content')} opened ({_took(drill)})"
            )
            self.line(
                f"since then the hot cache got {counted(drill.new, 'row')}, "
                f"changed {drill.changed}, lost {drill.gone}"
            )

    def restored(self, done: Restored) -> None:
        """What a restore did, and what comes next."""
        if self.json:
            self.emit(restore=asdict(done))
            return
        if done.stale:
            self.warn(f"there may be a newer dump: {done.stale}")
        if not self.quiet:
            did = "would restore" if done.dry_run else "restored"
            self.line(
                f"{did} {safe(done.name)}, of {done.newest or 'no time'}: {_counts(done.rows)} "
                f"({_took(done)})"
            )
            if not done.dry_run:
                self.line("annoris sync brings it to what master holds now")

    def facts(self, facts: Sequence[tuple[str, str]], **data: Any) -> None:
        """Names and values in two columns."""
        if self.json:
            self.emit(**data)
            return
        width = max(len(name) for name, _ in facts)
        for name, value in facts:
            self.line(f"{name:<{width}}  {safe(value)}")

    def beginning(self) -> None:
        """How to begin, on a machine where nothing is yet."""
        for line in _BEGINNING.splitlines():
            self.line(line)

    def glance(self, found: Glance) -> None:
        """Where one stands in a few lines, and what comes next."""
        newest, checked = found.newest, f", checked {ago(found.checked)}" if found.checked else ""
        waits = [(found.waiting, "waiting for master"), (found.aside, "set aside")]
        self.facts(
            [
                ("project", found.project),
                ("newest", f"{newest.title}  {newest.short}" if newest else "none yet"),
                *([("saved", ago(newest.saved))] if newest else []),
                ("sessions", f"{found.sessions} in {counted(found.projects, 'project')}"),
                ("outbox", ", ".join(f"{n} {what}" for n, what in waits if n) or "empty"),
                ("tiers", ", ".join(found.tiers) + checked),
                *((tier, f"down when last asked: {why}") for tier, why in found.down.items()),
            ]
        )
        self.note(f"next: {_next(found)}; all commands: annoris --help")

    def tiers(self, tiers: Sequence[TierStanding]) -> None:
        """Each tier in a line: how quick, how much, how far behind; why one is not up."""
        self.line("")
        self.table(("tier", "answers", "sessions", "behind", "newest"), [*map(_tier_row, tiers)])
        for tier in tiers:
            if not tier.up:
                since = f"; since {ago(tier.since)}" if tier.since else ""
                again = f", left alone for {_seconds_to(tier.until)} s" if tier.until else ""
                self.line(safe(f"{tier.tier}: {tier.why}{since}{again}"))

    # --- ways to print -----------------------------------------------------------------------

    def emit(self, **data: Any) -> None:
        import json  # noqa: PLC0415

        plain = sys.stdout.encoding.lower() != "utf-8"  # another one would lose characters
        json.dump({"schema_version": SCHEMA_VERSION, **data}, sys.stdout, ensure_ascii=plain)
        sys.stdout.write("\n")

    def line(self, text: str) -> None:
        print(text)

    def note(self, text: str) -> None:
        """Something good to know; not data, so not on stdout."""
        if not self.quiet and not self.json:
            print(safe(text), file=sys.stderr)

    def warn(self, text: str) -> None:
        print(f"annoris: {safe(text)}", file=sys.stderr)

    def complain(self, complaints: Sequence[str]) -> None:
        """What went wrong beside the point: a cache that was left out."""
        for text in complaints:
            self.warn(text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if not rows:
            return
        if not _terminal():
            for row in rows:
                self.line("\t".join(_cell(cell) for cell in row))
            return
        from rich.cells import set_cell_size  # noqa: PLC0415

        cells, widths, right = _laid_out(head, rows, _width())
        bold, plain = ("\x1b[1m", "\x1b[0m") if _colour() else ("", "")
        for number, row in enumerate(cells):
            parts = [
                _cut(cell, width).rjust(width) if flush else set_cell_size(_cut(cell, width), width)
                for cell, width, flush in zip(row, widths, right, strict=True)
            ]
            line = "  ".join(parts).rstrip()
            self.line(line if number else f"{bold}{line}{plain}")

    def _markdown(self, text: str) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.markdown import Markdown  # noqa: PLC0415

        console = Console()
        front, body = _front(safe(text))
        if front:
            console.print(front, style="dim", markup=False, highlight=False, end="\n\n")
        # In the terminal's own colours, whatever its background is.
        console.print(Markdown(body, code_theme="ansi_dark"))

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[Callable[[str, int, int], None]]:
        """A bar on a terminal, once the work has taken a second.

        What it yields takes the part that is under way, and how much of how many are done.
        """
        stop, state = threading.Event(), _State(what)
        if self.quiet or self.json or not sys.stderr.isatty():
            yield state.tell
            return
        thread = threading.Thread(target=_spin, args=(state, stop), daemon=True)
        thread.start()
        try:
            yield state.tell
        finally:
            stop.set()
            thread.join()


def fail(error: AnnorisError, *, as_json: bool) -> None:
    """One error, for a person on stderr or for a machine on stdout."""
    if as_json:
        Output(json=True).emit(
            error={
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                **error.details,
            }
        )
        return
    print(f"annoris: {safe(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  {safe(error.hint)}", file=sys.stderr)


def _next(found: Glance) -> str:
    if found.aside:
        return "annoris outbox says why documents were set aside"
    if found.waiting:
        return "annoris sync delivers what waits"
    if found.newest:
        return "annoris load brings it back"
    return "annoris list --all" if found.sessions else "annoris save FILE makes the first"


def _claims(data: bytes) -> tuple[int, int]:
    if b"verified" not in data:
        return 0, 0
    from annoris.document import claims  # noqa: PLC0415 - most loads need none of it

    return claims(data)


def safe(text: str) -> str:
    """Text that can't drive a terminal: control characters and direction overrides shown."""
    return re.sub(_CONTROL, "\N{REPLACEMENT CHARACTER}", text)


def _cell(text: str) -> str:
    """Text that can't make a row or a column of its own."""
    return safe(text.replace("\t", " ").replace("\n", " "))


def _told(memory: Memory) -> dict[str, Any]:
    """What a target was told; the state of an alert is waiting, told or over."""
    alerts = [("waiting", item.alert, item.since) for item in memory.waiting.values()]
    alerts += [
        ("over" if item.alert.over else "told", item.alert, item.at)
        for item in memory.told.values()
    ]
    return {
        "last": _iso(memory.last) if memory.last else "",
        "failure": memory.failure,
        "alerts": [
            {"state": state, "at": _iso(at), **asdict(alert)} for state, alert, at in alerts
        ],
    }


def _iso(seconds: float) -> str:
    """A time of the Unix clock as ISO in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(moment: str) -> str:
    """How long ago a moment was, in the largest unit that fits."""
    if not moment:
        return "never"
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except ValueError:
        return moment
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{int(seconds)} s ago" if seconds >= 1 else "just now"


@dataclass(slots=True)
class _State:
    """How far the work is; without a total nobody knows."""

    what: str
    done: int = 0
    total: int = 0

    def tell(self, what: str, done: int, total: int) -> None:
        self.what, self.done, self.total = what, done, total


def _spin(state: _State, stop: threading.Event) -> None:
    if stop.wait(1.0):
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(state.what, total=None)
        while not stop.wait(0.1):
            bar.update(
                task, description=state.what, completed=state.done, total=state.total or None
            )


def _terminal() -> bool:
    return sys.stdout.isatty()


def _width() -> int:
    import shutil  # noqa: PLC0415

    return shutil.get_terminal_size().columns


def _cut(text: str, width: int) -> str:
    """Text in at most ``width`` cells of a terminal; what was cut ends in an ellipsis."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def _laid_out(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> tuple[list[list[str]], list[int], list[bool]]:
    """The head and rows without empty columns; how wide each is, and whether it holds numbers."""
    from rich.cells import cell_len  # noqa: PLC0415

    columns = [
        [name, *map(_cell, cells)] for name, *cells in zip(head, *rows, strict=True) if any(cells)
    ]
    widths = _fitted([max(map(cell_len, column)) for column in columns], width)
    right = [all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    return [list(line) for line in zip(*columns, strict=True)], widths, right


def _fitted(wanted: Sequence[int], width: int) -> list[int]:
    """How wide columns may be, two cells apart: the last has a half at least, if it needs it.

    Of the others the widest give way, so that ids and times stay whole.
    """
    *others, last = wanted
    room = width - 2 * len(others)
    budget = room - min(last, room // 2)
    most = max(others, default=0)
    while most > _NARROWEST and sum(min(each, most) for each in others) > budget:
        most -= 1
    others = [min(each, most) for each in others]
    return [*others, min(last, max(_NARROWEST, room - sum(others)))]


def _colour() -> bool:
    return _terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _front(text: str) -> tuple[str, str]:
    if text.startswith("---\n") and (end := text.find("\n---\n", 3)) > 0:
        return text[4:end], text[end + 5 :]
    return "", text


def _receipt_line(receipt: Receipt) -> str:
    title = safe(receipt.title or receipt.name or receipt.path)
    short = receipt.id[-8:]
    did = {"save": "saved", "delete": "deleted", "attach": "kept"}[receipt.op]
    where = f"{safe(receipt.project)}  {short}  {title}"
    match receipt.state:
        case "master":
            return f"{did:<9}  {where}"
        case "unchanged":
            return f"unchanged  {where}"
        case "queued":
            return (
                f"queued     {where}\n  safe on this machine, not on master yet: "
                f"{safe(receipt.reason)}\n  annoris sync delivers it"
            )
        case "conflict":
            return (
                f"conflict   {where}\n  {safe(receipt.reason)}; both are kept, this text as "
                f"{safe(receipt.path)}\n  compare them: annoris diff {receipt.conflict_of[-8:]} "
                f"--with {short}"
            )
        case "refused" | "outdated":
            return (
                f"refused    {where}\n  {safe(receipt.reason)}\n  it is kept here: annoris outbox"
            )


def _counts(rows: dict[str, int]) -> str:
    log = rows.get("sync_log", 0) + rows.get("dump_log", 0)
    counts = (
        (rows.get("sessions", 0), "session"),
        (rows.get("projects", 0), "project"),
        (log, "run"),
    )
    return ", ".join(counted(number, thing) for number, thing in counts)


def _checked(what: str, count: int) -> str:
    return counted(count, "session") if what == "sessions" else f"{count} {what}"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _took(done: Dumped | Drilled | Restored) -> str:
    return f"{done.milliseconds / 1000:.1f} s"


def _tier_row(tier: TierStanding) -> tuple[str, str, str, str, str]:
    if not tier.up:
        return tier.tier, "no", "", "", ""
    quick = "yes" if tier.milliseconds is None else f"in {tier.milliseconds:.1f} ms"
    saved = f" ({ago(tier.saved)})" if tier.saved else ""
    count, behind = ("" if n is None else str(n) for n in (tier.sessions, tier.behind))
    return tier.tier, quick, count, behind, f"{tier.newest}{saved}"


def _seconds_to(moment: str) -> int:
    return max(0, round((datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()))


def _moved(item: Projected) -> bool:
    return any((item.added, item.changed, item.removed, item.healed, item.evicted))


def _projected(item: Projected) -> tuple[str, ...]:
    counts = (item.added, item.changed, item.removed, item.healed, item.evicted, item.milliseconds)
    return (item.tier, *map(str, counts))


def _summary(details: dict[str, Any]) -> str:
    """The counts of a run in one line; the error of one that failed."""
    if error := details.get("error"):
        return str(error)
    counts = {key: value for key, value in details.items() if type(value) is int and value}
    return ", ".join(f"{key} {value}" for key, value in counts.items())


def _by_state(receipts: Sequence[Receipt]) -> str:
    return ", ".join(f"{count} {word}" for count, word in _states(receipts) if count)


def _states(receipts: Sequence[Receipt]) -> list[tuple[int, str]]:
    names = {
        "master": "on master",
        "unchanged": "unchanged",
        "queued": "queued",
        "conflict": "in conflict",
        "refused": "refused",
    }
    return [(sum(item.state == state for item in receipts), word) for state, word in names.items()]


def _receipt_json(receipt: Receipt) -> dict[str, Any]:
    return asdict(receipt)


def _session_json(session: Session) -> dict[str, Any]:
    return {**asdict(session), "short": session.short}


def _project_json(project: Project) -> dict[str, Any]:
    from annoris.projects import share  # noqa: PLC0415 - a list of sessions needs no decimals

    return {**asdict(project), "percent": share(project)}


def _draft_json(draft: Draft) -> dict[str, Any]:
    raw = asdict(draft)
    raw["size"] = len(raw.pop("data"))
    return raw
