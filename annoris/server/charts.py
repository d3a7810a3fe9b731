"""Charts as inline SVG. Pure: values in, markup out.

Colours are classes of ``app.css`` and places are attributes, so that the policy of the pages,
which allows no inline style, holds. Widths are in per cent: a chart fits any screen, and what
is written in it keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

Point = tuple[float, float | None]  # a moment, and a value or that there was none

_LANE, _BAR = 26, 12  # pixels of a timeline's row, and of a run in it
_SLOTS = 30  # columns that there is always room for
_SECOND, _HOUR, _DAY = 1.0, 3600.0, 86400.0


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from ``start`` to ``end``, in seconds of the epoch."""

    lane: str
    start: float
    end: float
    tone: str  # good, warn, bad
    label: str


def sparkline(points: Sequence[Point], label: str) -> Markup:
    """Values over time on a logarithmic scale; a gap where there was no answer."""
    known = [value for _, value in points if value is not None]
    if len(known) < 2:
        return Markup("")
    first, last = points[0][0], points[-1][0]
    width = max(last - first, _SECOND)
    low, high = math.log1p(min(known)), math.log1p(max(known))
    reach = max(high - low, 0.1)

    def place(point: Point) -> str:
        x = (point[0] - first) / width * 100
        y = 36 - (math.log1p(point[1] or 0.0) - low) / reach * 32
        return f"{x:.2f},{y:.2f}"

    drawn = [_stretch([place(one) for one in run]) for run in _unbroken(points)]
    return _svg(label, 'viewBox="0 0 100 40" preserveAspectRatio="none"', drawn, "spark")


def _unbroken(points: Iterable[Point]) -> list[list[Point]]:
    grouped = groupby(points, key=lambda point: point[1] is not None)
    return [list(run) for there, run in grouped if there]


def _stretch(places: list[str]) -> str:
    """A line with the area below it; a lone point is a short dash."""
    x, _, y = places[0].partition(",")
    if len(places) == 1:
        return f'<path class="line" d="M{x},{y}h0.8"/>'
    end = places[-1].partition(",")[0]
    line = " ".join(places)
    return (
        f'<polygon class="area" points="{x},40 {line} {end},40"/>'
        f'<polyline class="line" points="{line}"/>'
    )


def timeline(spans: Sequence[Span], now: float, label: str) -> Markup:
    """A row for each lane, the newest runs at the right end. At most the last seven days."""
    lanes = list(dict.fromkeys(span.lane for span in spans))
    if not lanes:
        return Markup("")
    since = max(min(span.start for span in spans), now - 7 * _DAY)
    width = max(now - since, 60.0)
    parts = [_row(number, name) for number, name in enumerate(lanes)]
    for span in sorted(spans, key=lambda span: span.start):
        if span.end >= since:
            y = lanes.index(span.lane) * _LANE + (_LANE - _BAR) / 2
            parts.append(_run(span, since, width, y))
    bottom = len(lanes) * _LANE
    parts += [_tick(ago, width, bottom) for ago in _ticks(width)]
    return _svg(label, f'width="100%" height="{bottom + 22}"', parts, "timeline")


_LEFT, _RIGHT = 14.0, 98.5  # per cent: room for the names of lanes, and for the last run


def _across(share: float) -> float:
    return _LEFT + min(max(share, 0.0), 1.0) * (_RIGHT - _LEFT)


def _row(number: int, name: str) -> str:
    middle = number * _LANE + _LANE / 2
    return (
        f'<text x="0" y="{middle + 4}">{escape(name[:12])}</text>'
        f'<line class="rule" x1="{_LEFT}%" x2="100%" y1="{middle}" y2="{middle}"/>'
    )


def _run(span: Span, since: float, width: float, y: float) -> str:
    left, right = (_across((moment - since) / width) for moment in (span.start, span.end))
    return (
        f'<rect class="{escape(span.tone)}" x="{left:.2f}%" y="{y}" rx="3" '
        f'width="{max(right - left, 0.6):.2f}%" height="{_BAR}">'
        f"<title>{escape(span.label)}</title></rect>"
    )


def _ticks(width: float) -> list[float]:
    """Round distances back from now, in seconds: two to five of them."""
    steps = [60, 300, 900, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY]
    step = next((step for step in steps if width / step <= 5), 2 * _DAY)
    return [step * count for count in range(1, int(width / step) + 1)]


def _tick(ago: float, width: float, bottom: float) -> str:
    x = _across(1 - ago / width)
    return (
        f'<line class="tick" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{bottom + 4}"/>'
        f'<text class="when" x="{x:.2f}%" y="{bottom + 17}">{short_span(ago)} ago</text>'
    )


def columns(values: Sequence[tuple[str, float, str]], label: str, *, log: bool = False) -> Markup:
    """A column for each (what it is, value, tone), side by side, the last at the right end."""
    if not values:
        return Markup("")
    sized = [math.log1p(value) if log else value for _, value, _ in values]
    most = max([*sized, 1e-9])
    slots = max(len(values), _SLOTS)
    slot = 100 / slots
    parts = []
    for number, ((name, _, tone), size) in enumerate(
        zip(values, sized, strict=True), slots - len(values)
    ):
        height = max(size / most * 60, 2.0 if size else 1.0)
        parts.append(
            f'<rect class="{escape(tone) if size else "none"}" x="{number * slot:.2f}%" '
            f'y="{64 - height:.1f}" width="{slot * 0.78:.2f}%" height="{height:.1f}" rx="1.5">'
            f"<title>{escape(name)}</title></rect>"
        )
    return _svg(label, 'width="100%" height="64"', parts, "columns")


def progress(share: float, label: str) -> Markup:
    """How much of a whole is reached; ``share`` 1.0 is all of it, and more is drawn as all."""
    reached = min(max(share, 0.0), 1.0) * 100
    tone = "good" if share >= 1 else "part"
    parts = [
        '<rect class="track" width="100%" height="8" rx="4"/>',
        f'<rect class="{tone}" width="{reached:.1f}%" height="8" rx="4"/>' if reached else "",
    ]
    return _svg(label, 'width="100%" height="8"', parts, "progress")


def short_span(seconds: float) -> str:
    """A distance in time, in one unit."""
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _svg(label: str, size: str, parts: Iterable[str], kind: str) -> Markup:
    inner = "".join(parts)
    told = escape(label)
    return Markup(  # noqa: S704 - every word in it is escaped, the rest is numbers
        f'<svg class="chart {kind}" role="img" aria-label="{told}" {size}>{inner}</svg>'
    )
