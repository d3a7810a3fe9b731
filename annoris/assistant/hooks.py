"""What a client's hooks run: spool first, deliver from a detached process, tell at the start.

Nothing here may fail or delay an assistant. An event is on disk before anything else is
imported; git, master and the caches are for the process that goes on when the hook has
answered. What goes wrong there is told to the next conversation.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from annoris.assistant.spool import Event, Spool

if TYPE_CHECKING:
    from annoris.archive import Archive
    from annoris.settings import Settings

    Configured = Callable[[], Settings]

START = "session-start"
SPOOLED = ("stop", "pre-compact", "post-compact", "session-end")
EVENTS = (START, *SPOOLED, "flush")

_KEPT = ("cwd", "transcript_path", "last_assistant_message", "compact_summary")
_MOST_BYTES = 20 * 1024 * 1024
_START_SECONDS = 2.0  # that a start waits for master
_PAUSE = 60.0  # seconds between two deliveries while a conversation goes on


def run(event: str, client: str, configured: Configured) -> str:
    """Do what an event asks for; answers what the assistant is to be told. Never raises."""
    spool, error, told = Spool(), "", ""
    try:
        told = _run(spool, event, client, configured)
    except Exception as failure:  # noqa: BLE001 - an assistant must not be failed
        error = f"{event}: {_said(failure)}"
        spool.fail(error)
    if event != "flush":
        spool.answered(client, "hook", error)
    return told


def _run(spool: Spool, event: str, client: str, configured: Configured) -> str:
    if event == "flush":
        flush(spool, configured)
        return ""
    if event not in EVENTS:
        raise ValueError(f"there is no such event; they are {', '.join(EVENTS)}")
    payload = _payload()
    if event == START:
        try:
            return _opening(spool, payload, configured)
        finally:
            _detach(spool, configured)
    _keep(spool, event, payload, client)
    if event != "stop" or spool.rested(_PAUSE):
        _detach(spool, configured)
    return ""


def _payload() -> Event:
    raw = b"" if sys.stdin.isatty() else sys.stdin.buffer.read(_MOST_BYTES)
    try:
        return dict(json.loads(raw))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"the input ({len(raw)} bytes) is not a JSON object") from None


def _keep(spool: Spool, event: str, payload: Event, client: str) -> None:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kept = event_of(event, payload, client, at)
    if not kept:
        raise ValueError("the input names no session_id")
    spool.add(kept)


def event_of(event: str, payload: Event, client: str, at: str) -> Event:
    """What is worth keeping of a hook's input; empty when it names no conversation."""
    id = re.sub(r"[^A-Za-z0-9-]", "", str(payload.get("session_id") or ""))[:64]
    texts = {key: payload[key] for key in _KEPT if isinstance(payload.get(key), str)}
    return {"event": event, "session": id, "client": client, "at": at, **texts} if id else {}


def _detach(spool: Spool, configured: Configured) -> None:
    """Deliver what waits in a process of its own, which nobody waits for."""
    if not spool.waiting():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        return
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(nothing, handle)
        run("flush", "", configured)
    finally:
        os._exit(0)


def _archive(settings: Settings) -> Archive:
    from annoris.bootstrap import open_archive  # noqa: PLC0415

    return open_archive(settings)


# --- the detached process ----------------------------------------------------------------------


def flush(spool: Spool, configured: Configured) -> None:
    """Save what waits, one session for each conversation; what can't be saved now stays.

    Whoever holds the lock delivers for all. It looks again after it let go, so that an event
    that came in between is not left behind.
    """
    tried: set[str] = set()
    while fresh := [name for name in spool.waiting() if name not in tried]:
        with spool.alone() as mine:
            if not mine:
                return
            with contextlib.closing(_archive(configured())) as archive:
                for id, names in _by_conversation(spool, fresh).items():
                    tried.update(names)
                    _deliver(spool, archive, id, names)
        tried.update(fresh)


def _by_conversation(spool: Spool, names: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        event = spool.read(name)
        if event and isinstance(event.get("session"), str):
            found.setdefault(event["session"], []).append(name)
        else:
            spool.refuse([name])
    return found


def _deliver(spool: Spool, archive: Archive, id: str, names: list[str]) -> None:
    from annoris.assistant import capture  # noqa: PLC0415
    from annoris.errors import AnnorisError, CredentialFound, DocumentRefused  # noqa: PLC0415

    talk = spool.talk(id)
    for name in names:
        talk = capture.merged(talk, spool.read(name) or {})
    try:
        talk |= _save(archive, talk, id)
    except (CredentialFound, DocumentRefused) as error:
        spool.refuse(names)
        spool.fail(f"a captured text was kept out of master: {_said(error)}")
        return
    except (AnnorisError, OSError) as error:
        spool.fail(f"a captured conversation is not saved yet: {_said(error)}")
        return
    spool.keep_talk(id, talk)
    spool.drop(names)


def _save(archive: Archive, talk: dict[str, Any], id: str) -> dict[str, str]:
    """Save the captured session of a conversation; answers its project and its etag now."""
    from annoris import workspace  # noqa: PLC0415
    from annoris.assistant import capture  # noqa: PLC0415
    from annoris.document import body_md5, split  # noqa: PLC0415
    from annoris.intake import SaveOptions, Source  # noqa: PLC0415
    from annoris.model import CAPTURED  # noqa: PLC0415

    _go_to(talk.get("cwd"))
    project = talk.get("project") or archive.default_project()
    here = workspace.look(os.getcwd())
    document = capture.document(talk, id, here.dirty if here else ())
    if not document:
        return {"project": project}
    options = SaveOptions(
        project=project,
        name=_name(archive, project, talk, id, body_md5(split(document)[1])),
        status=CAPTURED,
        validate=False,
        workspace=here.text() if here else "",
    )
    (receipt,) = archive.save([Source(f"conversation {id[:8]}", document)], options)
    row = archive.catalog.get(receipt.id)
    return {"project": project, "etag": row.etag if row else ""}


def _name(archive: Archive, project: str, talk: dict[str, Any], id: str, md5: str) -> str:
    """The first name whose session is still as we left it: what a person edited is theirs."""
    from annoris.model import CAPTURED  # noqa: PLC0415

    def free(name: str) -> bool:
        rows = archive.catalog.named(project, name)
        return not rows or rows[0].etag == talk.get("etag") or rows[0].body_md5 == md5

    first = f"{CAPTURED}-{id}"
    return next(filter(free, chain([first], (f"{first}-{number}" for number in count(2)))))


def _go_to(folder: object) -> None:
    """Stand where the conversation stood; where that is gone, at home or at the very top."""
    for place in (str(folder or ""), os.path.expanduser("~"), "/"):
        with contextlib.suppress(OSError, ValueError):
            os.chdir(place)
            return


# --- the start ---------------------------------------------------------------------------------


def _opening(spool: Spool, payload: Event, configured: Configured) -> str:
    """What a new or compacted conversation is told: the newest saved state of its project."""
    from annoris.errors import NotFound  # noqa: PLC0415

    failure = spool.failure(tell=True)
    told = f"Annoris: {failure} (log: {spool.log})\n" if failure else ""
    _go_to(payload.get("cwd"))
    with contextlib.closing(_archive(_hurried(configured()))) as archive:
        try:
            return told + _state(archive, payload, len(told))
        except NotFound:
            return told


def _hurried(settings: Settings) -> Settings:
    """Rather what this machine has than a start that waits."""
    master, hot = settings.master, settings.hot
    return replace(
        settings,
        master=replace(
            master,
            load_seconds=min(master.load_seconds, _START_SECONDS),
            fetch_seconds=min(master.fetch_seconds, _START_SECONDS),
        ),
        hot=replace(hot, load_seconds=min(hot.load_seconds, 0.5)),
    )


def _state(archive: Archive, payload: Event, used: int) -> str:
    from annoris.archive import drift_here  # noqa: PLC0415
    from annoris.assistant import capture  # noqa: PLC0415
    from annoris.console import ago  # noqa: PLC0415
    from annoris.document import claims, split  # noqa: PLC0415
    from annoris.model import CAPTURED  # noqa: PLC0415

    loaded = archive.load()
    drift, (verified, unverified) = drift_here(loaded), claims(loaded.data)
    facts = [f"That was {ago(loaded.session.saved)}."]
    if loaded.stale:
        facts.append(f"It may be old: {loaded.stale}.")
    facts += [f"Since then: {sentence}." for sentence in (drift.sentences if drift else ())]
    if verified or unverified:
        facts.append(f"Lines marked: {verified} verified, {unverified} unverified.")
    own = f"{CAPTURED}-{payload.get('session_id')}"
    for row in archive.catalog.list(project=loaded.session.project, status=CAPTURED, limit=1):
        if row.saved >= loaded.session.saved and row.id != loaded.session.id and row.name != own:
            facts.append(f"A later conversation was only captured: annoris load {row.short}")
    body = split(loaded.data)[1].decode(errors="replace")
    required = archive.settings.save.required_sections
    return capture.opening(loaded, body, facts, required, capture.MOST_CHARACTERS - used)


def _said(error: BaseException) -> str:
    """An error in one line; a bug by its kind too."""
    from annoris.errors import AnnorisError  # noqa: PLC0415

    expected = isinstance(error, (AnnorisError, ValueError, OSError))
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]
