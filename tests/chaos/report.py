"""What a campaign found, as figures: JSON for machines, a table for people."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.chaos.campaign import Campaign

_NONE = ("lost", "wrong bytes", "stale", "untrue")
_TOLD = 12  # violations that are shown in full


def figures(campaign: Campaign, seconds: float) -> dict[str, Any]:
    """Everything that was counted. ``seconds`` is how long it took, check points included."""
    tally, model, world = campaign.tally, campaign.model, campaign.world
    kinds = Counter(violation.kind for violation in model.violations)
    deaths = Counter(where.removesuffix("*") for where in tally.deaths)
    longest = max(tally.commands, key=lambda item: item[2])
    states = model.answers()
    return {
        "seed": campaign.seed,
        "seconds of faults": campaign.size.seconds,
        "seconds in all": round(seconds),
        "machines": campaign.size.machines,
        "people": campaign.size.machines * campaign.size.people,
        "operations": len(tally.commands),
        "operations by command": dict(Counter(name for name, _, _ in tally.commands).most_common()),
        "exit codes": dict(Counter(str(code) for _, code, _ in tally.commands).most_common()),
        "faults": sum(world.counts.values()) + len(tally.deaths),
        "faults by kind": {"client killed": len(tally.deaths), **dict(world.counts.most_common())},
        "killed at": dict(deaths.most_common()),
        "skipped": world.skipped,
        "check points": campaign.checks,
        "texts by answer": states,
        "acknowledged saves": sum(text.kept for text in model.texts.values()),
        **{kind: kinds.pop(kind, 0) for kind in _NONE},
        "other violations": dict(kinds),
        "stale loads that said so": model.stale_told,
        "availability": {
            what: {"tries": tried, "answered": tally.answered[what]}
            for what, tried in sorted(tally.tried.items())
        },
        "unanswered": tally.unanswered[:_TOLD],
        "longest command": {"what": longest[0], "seconds": round(longest[2], 1)},
        "violations": [
            {"kind": item.kind, "message": item.message, "history": list(item.history)}
            for item in model.violations[:_TOLD]
        ],
    }


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    spent = f"{found['seconds of faults']:g} s, {found['seconds in all']} s"
    rows = [
        ("seed", found["seed"]),
        ("time under faults, and in all", spent),
        ("machines, people", f"{found['machines']}, {found['people']}"),
        ("operations", _listed(found["operations"], found["operations by command"])),
        ("faults", _listed(found["faults"], found["faults by kind"])),
        ("left out", "; ".join(found["skipped"]) or "nothing"),
        ("check points", found["check points"]),
        ("acknowledged saves", _listed(found["acknowledged saves"], found["texts by answer"])),
        ("lost", found["lost"]),
        ("wrong bytes", found["wrong bytes"]),
        ("older revisions shown without a word", found["stale"]),
        ("answers that were not true", found["untrue"]),
        ("other violations", found["other violations"] or "none"),
        *((f"answered: {what}", _share(**both)) for what, both in found["availability"].items()),
        ("longest command", "{what}, {seconds} s".format(**found["longest command"])),
    ]  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _listed(total: int, parts: dict[str, int]) -> str:
    return f"{total:,} ({', '.join(f'{name} {count}' for name, count in parts.items())})"


def _share(tries: int, answered: int) -> str:
    return f"{answered:,} of {tries:,} ({100 * answered / tries:.2f} %)"
