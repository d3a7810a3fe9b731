"""What the API answers, for OpenAPI; the values themselves are the core's."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from annoris import model

ID = "019ab3f2-7c1e-7d20-9a51-4be03f2a9c1e"


class Session(BaseModel):
    """A session without its text. ``etag`` goes into If-Match."""

    id: str = Field(examples=[ID])
    short: str = Field(examples=["3f2a9c1e"])
    path: str = Field(examples=["sessions/shop/2026/11/2026-11-24-webhooks-3f2a9c1e.md"])
    oid: str = Field(description="Git blob id; empty while it waits for master.")
    project: str = Field(examples=["shop"])
    name: str
    title: str = Field(examples=["Webhook retries"])
    status: str
    priority: str
    created: str = Field(examples=["2026-11-24T09:00:00Z"])
    saved: str = Field(examples=["2026-11-24T11:30:00Z"])
    size: int
    etag: str = Field(examples=["5f0c2ab19d3e4771"])
    literal: str
    body_md5: str
    pending: str = Field(description="The receipt's key while it waits for master.")


class LoadedSession(Session):
    """A session with its text, and where it was answered from."""

    text: str
    tier: model.Tier
    checked: str = Field(description="When master was last asked.")
    stale: str = Field(description="Why it may not be the newest; empty when it is.")
    revision: str = Field(description="The commit, when an older revision was asked for.")


class SessionList(BaseModel):
    sessions: list[Session]
    next: str | None = Field(description="The cursor of the next page; null on the last one.")
    stale: str


class FoundSession(Session):
    score: float
    snippet: str = Field(description="Matches stand between \\x02 and \\x03.")


class Found(BaseModel):
    sessions: list[FoundSession]
    stale: str


class Problem(BaseModel):
    """Something that a document's structure lacks; only a warning."""

    rule: str
    message: str
    line: int
    error: bool


class Receipt(BaseModel):
    """What became of a save or a removal."""

    key: str = Field(description="Ask for it at /api/v1/receipts/KEY; empty: nothing was to do.")
    state: model.State
    id: str = Field(examples=[ID])
    path: str
    project: str
    title: str
    name: str
    oid: str
    commit: str
    checksum: str
    size: int
    source: str
    conflict_of: str
    reason: str
    problems: list[Problem]
    op: model.Op
    cached: str


class Revision(BaseModel):
    oid: str
    commit: str
    at: str
    author: str
    message: str
    path: str


class History(BaseModel):
    id: str
    revisions: list[Revision]


class Diff(BaseModel):
    id: str
    diff: str = Field(description="Unified, as diff -u writes it.")


class Project(BaseModel):
    """Revenues are exact decimals, kept as text. Without an id it has no file on master."""

    name: str = Field(examples=["shop"])
    id: str
    status: str
    priority: str
    target_revenue: str = Field(examples=["12000.00"])
    current_revenue: str
    sessions: int
    newest: str
    created: str
    path: str
    was: list[str] = Field(description="Former names, which select it too.")


class Projects(BaseModel):
    projects: list[Project]


class Report(BaseModel):
    """What a sync did."""

    pushed: int
    queued: int
    before: str
    after: str
    removed: int
    sessions: int
    milliseconds: int
    hot: int | None


class Finding(BaseModel):
    """One thing that is not as master has it."""

    kind: str = Field(examples=["hot-stale"])
    where: str = Field(examples=["hot"])
    about: str
    message: str
    mend: str = Field(
        description="The command that mends it.", examples=["annoris verify --repair"]
    )
    healed: bool


class Audit(BaseModel):
    """What a verify found. ``findings`` are the first 500 of them, ``count`` says how many."""

    sound: bool = Field(description="Nothing is left that is wrong or could not be checked.")
    count: int
    findings: list[Finding]
    sessions: int
    checked: dict[str, int]
    commit: str
    quick: bool
    sample: float
    seed: int = Field(description="Send it to have the same documents opened again.")
    milliseconds: int


class Run(BaseModel):
    """A sync, verify, dump or the like that was run."""

    kind: str = Field(examples=["sync"])
    status: str = Field(examples=["ok"])
    started: str = Field(examples=["2026-11-24T11:30:00Z"])
    finished: str
    source: str = Field(description="What started it.", examples=["schedule"])
    host: str
    details: dict[str, Any]
    id: int = Field(description="In the shared log; 0 in the server's own.")
    key: str


class SyncLog(BaseModel):
    runs: list[Run]
    log: Literal["hot", "here"] = Field(
        description="The one that all machines share, or this server's own while that is away."
    )
    next: str | None = Field(description="The cursor of the next page; null on the last one.")


class Tier(BaseModel):
    """How one tier is."""

    tier: str
    up: bool
    why: str
    since: str
    until: str
    failures: int
    milliseconds: float | None
    sessions: int | None
    newest: str
    saved: str
    behind: int | None
    key: str


class Standing(BaseModel):
    """Where one stands."""

    master: str
    branch: str
    tip: str
    checked: str
    stale: str
    sessions: int
    projects: int
    waiting: int
    oldest_waiting: str
    aside: int
    last_sync: str
    tiers: list[Tier]
    version: str
