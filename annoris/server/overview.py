"""What the pages show of the whole: gathered from an archive, then put into words and charts.

``gather`` asks; everything else is pure.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup

from annoris import projects, upkeep
from annoris.archive import Archive
from annoris.model import Draft, Project, Run, Session, TierStanding
from annoris.server import charts
from annoris.server.pages import milliseconds, moment
from annoris.server.sampling import Sample, latency
from annoris.verify import KINDS

DAYS = 30
KINDS_OF_RUNS = ("sync", "verify", "dump", "drill", "restore")

_FEW = 3  # runs; fewer make no chart
_TIERS = {
    "hot": ("Hot cache", "PostgreSQL"),
    "emergency": ("Emergency cache", "Redis, while the hot cache fails"),
    "master": ("Master", "git, asked over the network"),
    "clone": ("Clone", "git, on this server"),
}
_MENDS = {
    "tier-down": "annoris doctor",
    "master-shrunk": "annoris sync --force",
    "drill": "annoris dump --drill",
    "dump": "annoris dump",
    "outbox-old": "annoris sync",
    "outbox": "annoris outbox",
    "document": "annoris verify",  # tells which, to be mended by hand
    "project": "annoris verify",
}
_TONES = {"ok": "good", "failed": "bad"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is so, as the archive says it."""

    sessions: int
    newest: tuple[Session, ...]
    saved: tuple[str, ...]  # when, of the last days
    projects: tuple[Project, ...]
    runs: tuple[Run, ...]  # newest first
    last: dict[str, Run]
    waiting: tuple[Draft, ...]
    aside: tuple[tuple[Draft, str], ...]
    damaged: tuple[str, ...]
    master: str
    branch: str
    tip: str
    checked: str
    stale: str


@dataclass(frozen=True, slots=True)
class Card:
    """A tier as the overview shows it."""

    tier: str
    title: str
    what: str
    standing: TierStanding
    chart: Markup
    told: str  # what the chart shows


@dataclass(frozen=True, slots=True)
class Matter:
    """Something that needs a person, and the command that mends it."""

    tone: str
    title: str
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Earning:
    """A project and how much of its target is reached; ``chart`` is empty without a target."""

    project: Project
    share: str
    chart: Markup


def gather(archive: Archive) -> Facts:
    """Ask the archive; master only where a load would ask it too."""
    month = (datetime.now(UTC) - timedelta(days=DAYS - 1)).strftime("%Y-%m-%dT00:00:00Z")
    newest, stale = archive.sessions(limit=6, everything=True)
    drafts, _ = archive.outbox.read()
    last = {kind: upkeep.log(archive, 1, kind)[0] for kind in KINDS_OF_RUNS}
    return Facts(
        sessions=archive.catalog.count(),
        newest=tuple(newest),
        saved=tuple(row.saved for row in archive.catalog.list(since=month, limit=None)),
        projects=tuple(archive.catalog.projects()),
        runs=tuple(upkeep.log(archive, 200)[0]),
        last={kind: runs[0] for kind, runs in last.items() if runs},
        waiting=tuple(drafts),
        aside=tuple(archive.outbox.aside()),
        damaged=tuple(archive.outbox.damaged()),
        master=re.sub(r"//[^@/]*@", "//", archive.master.remote or archive.master.folder),
        branch=archive.master.branch,
        tip=archive.master.tip(),
        checked=archive.checked(),
        stale=stale,
    )


def shown(facts: Facts, samples: Sequence[Sample]) -> dict[str, Any]:
    """What the overview's template gets."""
    now = time.time() // 60 * 60 + 60  # a chart is the same for a minute
    return {
        "facts": facts,
        "cards": cards(samples, facts.runs),
        "timeline": charts.timeline(spans(facts.runs), now, "Runs of the last days, by kind"),
        "days": activity(facts.saved, datetime.fromtimestamp(now, UTC)),
        "earnings": [earning(project) for project in facts.projects],
        "matters": matters(facts),
    }


def cards(samples: Sequence[Sample], runs: Iterable[Run]) -> list[Card]:
    """The tiers as they were last measured, each with its past."""
    found = []
    for standing in samples[-1].tiers if samples else ():
        chart, told = _past(standing.tier, list(samples), list(runs))
        title, what = _TIERS[standing.tier]
        found.append(Card(standing.tier, title, what, standing, chart, told))
    return found


def _past(tier: str, samples: list[Sample], runs: list[Run]) -> tuple[Markup, str]:
    """How long a tier took to answer; while nothing was measured, how long in past syncs."""
    points = latency(samples, tier)
    known = [value for _, value in points if value is not None]
    since = charts.short_span(points[-1][0] - points[0][0]) if points else ""
    told = f"last {since}"
    if len(known) < 2:
        points = in_syncs(runs, "catalog" if tier == "clone" else tier)
        known = [value for _, value in points if value is not None]
        told = f"last {len(known)} syncs"
    if len(known) < 2:
        return Markup(""), ""
    told += f": {milliseconds(min(known))} to {milliseconds(max(known))}"
    return charts.sparkline(points, f"{tier}: {told}"), told


def in_syncs(runs: Iterable[Run], tier: str) -> list[charts.Point]:
    """The milliseconds that past syncs took at a tier, oldest first."""
    points: list[charts.Point] = []
    for run in reversed(list(runs)):
        took = _within(run.details, "tiers", tier, "milliseconds")
        if tier == "master":
            took = _within(run.details, "milliseconds", "fetch")
        when = moment(run.started)
        if isinstance(took, (int, float)) and when and run.kind == "sync":
            points.append((when.timestamp(), float(took)))
    return points


def _within(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def tone(run: Run) -> str:
    return _TONES.get(run.status, "warn")


def took(run: Run) -> float | None:
    """Milliseconds of a run, as it measured them or by its clock."""
    measured = run.details.get("milliseconds")
    measured = measured.get("all") if isinstance(measured, dict) else measured
    if isinstance(measured, (int, float)):
        return float(measured)
    begun, ended = moment(run.started), moment(run.finished)
    return (ended - begun).total_seconds() * 1000 if begun and ended else None


def spans(runs: Iterable[Run]) -> list[charts.Span]:
    """Runs as the timeline shows them."""
    found = []
    for run in runs:
        begun = moment(run.started)
        if begun:
            start, length = begun.timestamp(), took(run)
            label = f"{run.kind} {run.status}, {begun:%a %d %b %H:%M}, {milliseconds(length)}"
            label += f", on {run.host}" if run.host else ""
            end = start + (length or 0) / 1000
            found.append(charts.Span(run.kind, start, end, tone(run), label))
    order = {kind: place for place, kind in enumerate(KINDS_OF_RUNS)}
    return sorted(found, key=lambda span: order.get(span.lane, len(order)))


def durations(runs: Sequence[Run], kind: str) -> Markup:
    """How long each of the last runs of a kind took, the newest at the right."""
    values = [
        (f"{run.started}: {run.status}, {milliseconds(took(run))}", took(run) or 0.0, tone(run))
        for run in reversed(runs)
        if run.kind == kind
    ]
    if len(values) < _FEW:
        return Markup("")
    return charts.columns(values[-90:], f"Length of the last runs: {kind}", log=True)


def activity(saved: Iterable[str], today: datetime) -> Markup:
    """How many sessions were saved last on each of the last days."""
    counted = Counter(text[:10] for text in saved)
    days = [(today - timedelta(days=back)).strftime("%Y-%m-%d") for back in range(DAYS)][::-1]
    values = [(f"{day}: {counted[day]} saved", float(counted[day]), "part") for day in days]
    return charts.columns(values, f"Sessions by the day they were last saved, {DAYS} days")


def earning(project: Project) -> Earning:
    """A project with its bar."""
    share = projects.share(project)
    if not share:
        return Earning(project, "", Markup(""))
    told = f"{project.name}: {share} % of the target"
    return Earning(project, share, charts.progress(float(share) / 100, told))


# --- what needs a person ---------------------------------------------------------------------


def matters(facts: Facts) -> list[Matter]:
    """What the last runs and the outbox say is wrong, the worst first."""
    found = [
        *(_failure(run) for run in facts.last.values() if run.status == "failed"),
        *(matter for kind in ("verify", "sync") for matter in _found(facts.last.get(kind))),
        *_kept_here(facts),
    ]
    return sorted(found, key=lambda matter: matter.tone != "bad")


def _failure(run: Run) -> Matter:
    why = str(run.details.get("error", "")) or "the log does not say why"
    command = "annoris dump --drill" if run.kind == "drill" else f"annoris {run.kind}"
    return Matter("bad", f"The last {run.kind} failed", why, command)


def _found(run: Run | None) -> list[Matter]:
    """The findings of a run: each of a sync, and how many of each kind of a verify."""
    if run is None:
        return []
    listed = run.details.get("findings")
    if isinstance(listed, list):
        open_ = [one for one in listed if isinstance(one, dict) and not one.get("healed")]
        return [
            Matter(
                "warn",
                " ".join(str(one.get(key) or "") for key in ("kind", "about")).strip(),
                str(one.get("message", "")),
                str(one.get("mend", "")),
            )
            for one in open_
        ]
    counts = {kind: run.details[kind] for kind in KINDS if kind in run.details}
    return [
        Matter("warn", f"{count} × {kind}", KINDS[kind], _mend(kind))
        for kind, count in counts.items()
    ]


def _mend(kind: str) -> str:
    """What mends findings of a kind, or tells which they are."""
    return _MENDS.get(kind) or _MENDS.get(kind.partition("-")[0]) or "annoris verify --repair"


def _kept_here(facts: Facts) -> list[Matter]:
    found = [
        Matter(
            "bad", f"Master refuses “{draft.title or draft.path}”", reason,
            f"annoris outbox retry {draft.key}",
        )
        for draft, reason in facts.aside
    ]  # fmt: skip
    return found + [
        Matter("bad", "A file of the outbox is damaged", path, "annoris verify")
        for path in facts.damaged
    ]
