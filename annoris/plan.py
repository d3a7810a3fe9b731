"""What must happen, decided without doing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from annoris.model import Change, Draft, Held, Session

Verdict = Literal["write", "remove", "present", "contested", "vanished", "edited"]

SHRINK_LIMIT = 0.20


def changes(have: Mapping[str, str], want: Mapping[str, str]) -> list[Change]:
    """Turn a projection's path → blob id into master's; removals first, then by path."""
    gone = [Change(path, "") for path in sorted(have.keys() - want.keys())]
    return gone + [
        Change(path, want[path], path not in have)
        for path in sorted(want)
        if have.get(path) != want[path]
    ]


def counted(changes: Iterable[Change]) -> tuple[int, int, int]:
    """How many paths were added, changed and removed."""
    kinds = [change.added + 2 * (not change.oid) for change in changes]
    return kinds.count(1), kinds.count(0), sum(kind >= 2 for kind in kinds)


class Drift(NamedTuple):
    """How a row of the hot cache differs from what master holds.

    ``missing``: there is no row, or a tombstone; ``surplus``: master has no such session;
    ``stale``: another path or blob; ``wrong``: other metadata; ``bare``: without the content that
    it should have; ``ahead``: of a commit that comes after the one compared with.
    """

    kind: Literal["missing", "surplus", "stale", "wrong", "bare", "ahead"]
    id: str
    held: Held | None
    session: Session | None


def drift(
    have: Mapping[str, Held],
    want: Mapping[str, Session],
    position: int,
    mark: Callable[[Session], str],
) -> list[Drift]:
    """What of ``have`` is not as master at ``position`` has it; ``mark`` digests metadata."""
    found = []
    for id in sorted(want.keys() | have.keys()):
        held, session = have.get(id), want.get(id)
        if kind := _drifted(held, session, position, mark):
            found.append(Drift(kind, id, held, session))
    return found


def _drifted(
    held: Held | None, session: Session | None, position: int, mark: Callable[[Session], str]
) -> Literal["missing", "surplus", "stale", "wrong", "bare", "ahead", ""]:
    if held is not None and held.position > position:
        return "ahead"
    if session is None:
        return "" if held is None or (held.deleted and not held.has_content) else "surplus"
    if held is None or held.deleted:
        return "missing"
    if (held.oid, held.path) != (session.oid, session.path):
        return "stale"
    if held.mark != mark(session):
        return "wrong"
    return "" if held.has_content or held.old else "bare"


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
