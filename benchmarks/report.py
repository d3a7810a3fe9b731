"""Rows of figures as lines, as a table of a page, and as curves over N."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterable, Sequence
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


def write(page: Path, rows: list[Row]) -> None:
    """Put the tables in their place in the page, and the curves beside it.

    Rows are of verbs beside their floors, or with ``what``: one value each, of anything.
    """
    verbs, others = ([row for row in rows if ("what" in row) == one] for one in (False, True))
    parts = [f"Measured on {machine()}."]
    if verbs:
        table = [_HEADS, "|---|--:|---|--:|--:|--:|--:|--:|--:|", *map(_cells, verbs)]
        curve = "![Median time of each verb over the number of sessions](performance.svg)"
        parts += ["\n".join(table), curve]
        points = [(row["verb"], row["n"], 1000 * row["median"]) for row in verbs]
        title = "Whole process, median, milliseconds over sessions"
        page.with_name("performance.svg").write_text(curves(points, title))
    if others:
        heads = ["| what | number | value | target | |", "|---|--:|--:|--:|---|"]
        parts.append("\n".join([*heads, *map(_other, others)]))
    put(page, parts)


def put(page: Path, parts: Iterable[str]) -> None:
    """Put parts between the marks of a page."""
    told = "\n\n".join(parts) + "\n"
    page.write_text(_BETWEEN.sub(lambda _: told, page.read_text()))


def machine() -> str:
    """Where figures come from."""
    return f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


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


def curves(points: Sequence[tuple[str, int, float]], title: str) -> str:
    """Points as (curve, x, y), both axes logarithmic, as SVG."""
    width, height, edge = 790, 420, 60
    sizes = sorted({x for _, x, _ in points})
    values = [y for _, _, y in points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def across(size: int) -> float:
        span = math.log10(sizes[-1] / sizes[0]) or 1
        return edge + math.log10(size / sizes[0]) / span * (width - 290 - edge)

    def down(value: float) -> float:
        return height - edge - (math.log10(value) - low) / ((high - low) or 1) * (height - 2 * edge)

    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="60" y="24">{title}</text>',
    ]
    for power in range(low, high + 1):
        y = down(10.0**power)
        parts.append(
            f'<line x1="{edge}" x2="{width - 230}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
            f'<text x="8" y="{y + 4:.0f}">{10.0**power:,g}</text>'
        )
    parts += [
        f'<text x="{across(size) - 12:.0f}" y="{height - 34}">{size:,}</text>' for size in sizes
    ]
    for place, name in enumerate(dict.fromkeys(curve for curve, _, _ in points)):
        again, number = divmod(place, len(_COLOURS))
        colour, dash = _COLOURS[number], ' stroke-dasharray="6 3"' * again
        dots = [(across(x), down(y)) for curve, x, y in points if curve == name]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        look = f'fill="none" stroke="{colour}" stroke-width="2"{dash}'
        parts.append(f'<polyline points="{path}" {look}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
        y = edge + place * 20
        parts.append(
            f'<line x1="{width - 216}" x2="{width - 192}" y1="{y - 4}" y2="{y - 4}" {look}/>'
        )
        parts.append(f'<text x="{width - 186}" y="{y}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
