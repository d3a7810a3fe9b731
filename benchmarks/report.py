"""Rows of figures as lines, as a table of a page, and as curves over N."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_HEADS = "| verb | sessions | tiers | median ms | floor ms | ratio | cpu | target | MiB |"
_BETWEEN = re.compile(r"(?<=<!-- figures -->\n).*(?=<!-- end of figures -->)", re.DOTALL)
_COLOURS = ("#1b6ca8", "#c0392b", "#1e8449", "#7d3c98", "#b9770e", "#117a65", "#5d6d7e", "#a04000")


def line(row: Row) -> str:
    if "what" in row:
        return (
            f"{row['what']:60} {row['n']:7} {_value(row):>12}  target {_target(row)}  {row['note']}"
        )
    return (
        f"{row['verb']:36} {row['n']:7} {row['median'] * 1000:9.1f} ms  floor "
        f"{row['floor'] * 1000:9.1f} ms  ratio {row['ratio']:5.2f}  cpu {row['cpu']:5.2f}  "
        f"target {row['target']:4.2f}  {row['memory']:5} MiB"
    )


def write(page: Path, rows: list[Row], machine: str) -> None:
    """Put the tables in their place in the page, and the curves beside it.

    Rows are of verbs beside their floors, or with ``what``: one value each, of anything.
    """
    verbs, others = ([row for row in rows if ("what" in row) == one] for one in (False, True))
    parts = [f"Measured on {machine}."]
    if verbs:
        table = [_HEADS, "|---|--:|---|--:|--:|--:|--:|--:|--:|", *map(_cells, verbs)]
        curve = "![Median time of each verb over the number of sessions](performance.svg)"
        parts += ["\n".join(table), curve]
        page.with_name("performance.svg").write_text(curves(verbs))
    if others:
        heads = ["| what | number | value | target | |", "|---|--:|--:|--:|---|"]
        parts.append("\n".join([*heads, *map(_other, others)]))
    told = "\n\n".join(parts) + "\n"
    page.write_text(_BETWEEN.sub(lambda _: told, page.read_text()))


def _value(row: Row) -> str:
    return f"{row['value']:.1f} {row['unit']}".strip()


def _target(row: Row) -> str:
    sign = "≤" if row["most"] else "≥"
    return "" if row["target"] is None else f"{sign} {row['target']:g} {row['unit']}".strip()


def _other(row: Row) -> str:
    target = row["target"]
    missed = target is not None and (row["value"] > target) == row["most"]
    value = f"**{_value(row)}**" if missed else _value(row)
    return f"| {row['what']} | {row['n']:,} | {value} | {_target(row)} | {row['note']} |"


def _cells(row: Row) -> str:
    missed = row["ratio"] > row["target"]
    ratio = f"**{row['ratio']:.2f}**" if missed else f"{row['ratio']:.2f}"
    return (
        f"| {row['verb']} | {row['n']:,} | {row['tiers']} | {row['median'] * 1000:,.0f} | "
        f"{row['floor'] * 1000:,.0f} | {ratio} | {row['cpu']:.2f} | {row['target']:.2f} | "
        f"{row['memory']} |"
    )


def curves(rows: list[Row]) -> str:
    """Medians over the number of sessions, both axes logarithmic, as SVG."""
    width, height, edge = 760, 420, 60
    sizes = sorted({row["n"] for row in rows})
    times = [row["median"] * 1000 for row in rows]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))

    def across(size: int) -> float:
        span = math.log10(sizes[-1] / sizes[0]) or 1
        return edge + math.log10(size / sizes[0]) / span * (width - 260 - edge)

    def down(ms: float) -> float:
        return height - edge - (math.log10(ms) - low) / ((high - low) or 1) * (height - 2 * edge)

    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="60" y="24">Whole process, median, milliseconds over sessions</text>',
    ]
    for power in range(low, high + 1):
        y = down(10.0**power)
        parts.append(
            f'<line x1="{edge}" x2="{width - 200}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
            f'<text x="8" y="{y + 4:.0f}">{10.0**power:,g}</text>'
        )
    parts += [
        f'<text x="{across(size) - 12:.0f}" y="{height - 34}">{size:,}</text>' for size in sizes
    ]
    for place, name in enumerate(dict.fromkeys(row["verb"] for row in rows)):
        colour = _COLOURS[place % len(_COLOURS)]
        points = [
            (across(row["n"]), down(row["median"] * 1000)) for row in rows if row["verb"] == name
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        y = edge + place * 20
        parts.append(f'<text x="{width - 190}" y="{y}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
