"""What happened, as alerts: one pure function for each source.

A key goes from the general to the particular, so that the end of ``sync`` ends each way in
which it failed. Titles stay the same while the trouble does; what changes is in the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from annoris.errors import AnnorisError, Locked, Queued, RemoteUnreachable, UsageError
from annoris.model import Alert, Draft, Finding, Report

_FINDINGS = 5  # of one kind that are named
_TIERS = {
    "hot": (
        "the hot cache (PostgreSQL)",
        "Saves and loads go on through the emergency cache and master.",
    ),
    "emergency": (
        "the emergency cache (Redis)",
        "It is needed only while the hot cache fails; master holds everything.",
    ),
    "master": ("master", "Saves wait in the outbox until it does."),
}


def of_tier(tier: str, why: str) -> Alert:
    """A tier went down, or came back when ``why`` is empty."""
    name, meaning = _TIERS.get(tier, (tier, ""))
    if not why:
        return Alert(f"tier:{tier}", over=True)
    text = f"{why}\n{meaning}\nannoris doctor says what to mend."
    return Alert(f"tier:{tier}", "warning", f"{name} does not answer", text, shared=True)


def of_run(kind: str, outcome: object) -> list[Alert]:
    """A sync, verify, dump or drill failed, when ``outcome`` is an exception, or works again."""
    if isinstance(outcome, (Locked, UsageError)):  # another one is at it; who asked was told
        return []
    if isinstance(outcome, (RemoteUnreachable, Queued)):
        return [of_tier("master", outcome.message)]
    if not isinstance(outcome, Exception):
        return [Alert(kind, over=True)]
    code, text = "bug", type(outcome).__name__  # the message of a bug may hold anything
    if isinstance(outcome, AnnorisError):
        code, text = outcome.code, f"{outcome.message}\n{outcome.hint}".strip()
    elif isinstance(outcome, OSError):
        code, text = "storage", outcome.strerror or text
    return [Alert(f"{kind}:{code}", "error", f"{kind} failed", text)]


def of_sync(outcome: Report | Exception) -> list[Alert]:
    """What a sync answered or raised."""
    found = of_run("sync", outcome)
    if isinstance(outcome, Report):
        found.append(of_tier("master", ""))
        found += [
            Alert(
                f"conflict:{receipt.id}",
                "info",
                f"two edits of one session: {receipt.title or receipt.path}",
                f"Both are kept, project {receipt.project}.\n"
                f"annoris diff {receipt.conflict_of[-8:]} --with {receipt.id[-8:]}",
            )
            for receipt in outcome.conflicts
        ]
    return found


def of_verify(outcome: Iterable[Finding] | Exception) -> list[Alert]:
    """What a verify found, by kind, or raised. What was healed needs nobody."""
    if isinstance(outcome, Exception):
        return of_run("verify", outcome)
    kinds: dict[str, list[Finding]] = {}
    for finding in outcome:
        if not finding.healed:
            kinds.setdefault(finding.kind, []).append(finding)
    found = []
    for kind, findings in kinds.items():
        lines = [f"{item.where}: {item.message}" for item in findings[:_FINDINGS]]
        lines += [f"… {len(findings)} of them"] if len(findings) > _FINDINGS else []
        lines.append(findings[0].mend or "annoris verify shows it.")
        found.append(Alert(f"verify:{kind}", "error", f"verify found: {kind}", "\n".join(lines)))
    return found or [Alert("verify", over=True)]


def of_outbox(
    waiting: Sequence[Draft], aside: Sequence[tuple[Draft, str]], now: float, limit: float
) -> list[Alert]:
    """Saves that wait for longer than ``limit`` seconds, and documents that were set aside."""
    age = now - datetime.fromisoformat(waiting[0].at).timestamp() if waiting else 0.0
    found = [Alert("outbox", over=True)]
    if age > limit:
        text = (
            f"{len(waiting)} wait on this machine, the oldest since {waiting[0].at}.\n"
            "annoris sync delivers them, or says why not."
        )
        found = [Alert("outbox", "warning", "saves are not on master yet", text)]
    if not aside:
        return [*found, Alert("aside", over=True)]
    return found + [
        Alert(
            f"aside:{draft.key}",
            "warning",
            f"refused by master: {draft.title or draft.path}",
            f"{reason}\nIt is kept here, project {draft.project}: annoris outbox",
        )
        for draft, reason in aside
    ]


def of_key(problem: str | None) -> list[Alert]:
    """The key of this machine does not open the hot cache; empty: it does; None: not known."""
    if problem is None:
        return []
    if not problem:
        return [Alert("key", over=True)]
    return [Alert("key", "error", "this machine's key is not the hot cache's", problem)]
