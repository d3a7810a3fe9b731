"""What must happen, decided without doing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from annoris.model import Change, Draft, Session

Verdict = Literal["write", "remove", "present", "contested", "vanished", "edited"]

SHRINK_LIMIT = 0.20


def changes(have: Mapping[str, str], want: Mapping[str, str]) -> list[Change]:
    """Turn a projection's path → blob id into master's; removals first, then by path."""
    gone = [Change(path, "") for path in sorted(have.keys() - want.keys())]
    return gone + [
        Change(path, want[path]) for path in sorted(want) if have.get(path) != want[path]
    ]


def settle(draft: Draft, etag: str, row: Session | None) -> Verdict:
    """What a draft means for the session that master holds under its id, if any.

    ``etag`` is that of the draft's own bytes. ``contested``: master moved on since the draft's
    base. ``vanished``: its base is not there (any more). ``edited``: to be removed, but changed
    since. For these three only history can tell whether the draft was applied before.
    """
    if draft.op == "delete":
        if row is None:
            return "present"
        return "remove" if row.etag == draft.base else "edited"
    if row is None:
        return "vanished" if draft.base else "write"
    if row.etag == etag:
        return "present"
    return "write" if row.etag == draft.base else "contested"


def vanishing(before: Mapping[str, str], after: Iterable[Change], deliberate: set[str]) -> int:
    """How many sessions a fetch would take away unexplained: neither moved nor deleted by us."""
    after = list(after)
    moved = {change.oid for change in after if change.oid}
    return sum(
        1
        for change in after
        if not change.oid
        and change.path in before
        and before[change.path] not in moved
        and change.path not in deliberate
    )


def shrinks(total: int, lost: int) -> bool:
    """Whether losing so many of so many needs a person's word."""
    return total > 0 and lost > total * SHRINK_LIMIT


def isolate(drafts: list[Draft], paths: Mapping[str, str], named: Iterable[str]) -> list[Draft]:
    """The drafts whose path on master the server's refusal named."""
    said = tuple(named)
    return [draft for draft in drafts if any(paths.get(draft.key) == path for path in said)]
