"""Which clients Annoris is set up in, when each was last answered, and what is wrong there."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from annoris.assistant.clients import Client
from annoris.assistant.install import installed
from annoris.assistant.spool import Spool
from annoris.console import ago
from annoris.dataclass import dataclass
from annoris.model import Ailment

_PARTS = ("hook", "mcp")


@dataclass(frozen=True, slots=True)
class Answer:
    """When a part of a client (``hook`` or ``mcp``) was last answered, and the error if any."""

    part: str
    at: str
    error: str


@dataclass(frozen=True, slots=True)
class Assistant:
    """A client that has something of Annoris in its files; ``missing`` are those without."""

    name: str
    files: tuple[str, ...]
    missing: tuple[str, ...]
    answers: tuple[Answer, ...]


def look(clients: Iterable[Client]) -> list[Assistant]:
    """The clients that Annoris is set up in, by what their files hold now."""
    spool = Spool()
    found = []
    for client in clients:
        files = [(part.file, installed(part, client.name)) for part in client.parts]
        if any(done for _, done in files):
            found.append(
                Assistant(
                    client.name,
                    tuple(file for file, done in files if done),
                    tuple(file for file, done in files if not done),
                    tuple(_answers(spool, client.name)),
                )
            )
    return found


def last_answer(assistant: Assistant) -> str:
    """When it was last answered, for people."""
    told = [f"{answer.part} answered {ago(answer.at)}" for answer in assistant.answers]
    return ", ".join(told) or "it has not asked yet"


def ailments(assistants: Iterable[Assistant]) -> list[Ailment]:
    """What is wrong with what is set up, and with what hooks have captured."""
    spool, found = Spool(), []
    for assistant in assistants:
        mend = f"annoris install {assistant.name}"
        found += [
            Ailment(f"{file} does not start this annoris for {assistant.name}", mend)
            for file in assistant.missing
        ]
        found += [
            Ailment(f"{assistant.name}: the last {answer.part} failed: {answer.error}", mend)
            for answer in assistant.answers
            if answer.error
        ]
    if failure := spool.failure():
        found.append(Ailment(failure, f"read {spool.log}, then remove {spool.untold}"))
    if overdue := spool.overdue(3600.0):
        found.append(Ailment(f"{overdue} captured events are not saved", "annoris hook flush"))
    folder, refused = spool.refused()
    if refused:
        mend = f"look at them in {folder}, then remove them"
        found.append(Ailment(f"{refused} captured texts were kept out of master", mend))
    return found


def _answers(spool: Spool, client: str) -> Iterable[Answer]:
    for part in _PARTS:
        if known := spool.last_answer(client, part):
            moment = datetime.fromtimestamp(known[0], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            yield Answer(part, moment, known[1])
