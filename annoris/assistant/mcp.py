"""The MCP server: few tools over the archive, for assistants. The only user of the MCP SDK.

Tools run in threads, so each call borrows an archive for itself. An argument is taken as models
guess it: null, a number, a title instead of an id, "latest". What is refused says why and what
to do, because a model sees nothing but that text.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, replace
from inspect import cleandoc
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    GetPromptResult,
    InputRequiredResult,
    ToolAnnotations,
)
from pydantic import BeforeValidator, Field
from starlette.types import ASGIApp

from annoris import __version__, verify
from annoris.archive import Archive, drift_here, excerpt
from annoris.assistant import guess
from annoris.assistant.capture import fenced
from annoris.document import claims, inspect
from annoris.errors import AnnorisError, CredentialFound, NotFound
from annoris.intake import SaveOptions, Source
from annoris.model import Audit, Deadline, Loaded, Receipt, Session
from annoris.workspace import look

Lend = Callable[[], AbstractContextManager[Archive]]

_VERIFY_SECONDS = 60.0  # a model waits for the answer
_FINDINGS = 50  # that are named; the rest is counted

INSTRUCTIONS = (
    "Sessions are Markdown documents that carry the state of work from one conversation to the "
    "next, on the user's own git repository. session_load without arguments brings the newest one "
    "of this folder's project; session_save puts a document there. Save before the context ends."
)


_LOOSE = BeforeValidator(guess.text)  # may come as null or as a number
Project = Annotated[
    str, _LOOSE, Field(description="The project; left out: that of the server's folder.")
]
Selector = Annotated[
    str,
    _LOOSE,
    Field(
        description="A name, project/name, id, the start or last 8 characters of one, a path on "
        "master, or a title. Left out: the newest session of the project."
    ),
]

_READS = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
_WRITES = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)


# Without slots: the SDK would take them for defaults.
@dataclass(frozen=True)
class Row:
    """A session in a list. ``revision`` is what ``expected_revision`` takes."""

    id: str
    project: str
    name: str
    title: str
    status: str
    priority: str
    saved: str
    revision: str
    waiting: bool  # on this machine only


@dataclass(frozen=True)
class Saved:
    """What became of a save: ``state`` is master, unchanged, conflict or queued."""

    state: str
    id: str
    project: str
    name: str
    title: str
    path: str
    revision: str
    message: str
    warnings: list[str]


@dataclass(frozen=True)
class Text:
    """A session's text, or the part that was asked for, which has ``characters`` in all."""

    session: Row
    text: str
    characters: int
    tier: str
    stale: str
    drift: list[str]
    verified: int
    unverified: int


@dataclass(frozen=True)
class Rows:
    """Sessions, newest first, and why the list may be old."""

    sessions: list[Row]
    stale: str


@dataclass(frozen=True)
class Found:
    session: Row
    snippet: str


@dataclass(frozen=True)
class Hits:
    """Sessions that hold every word, best first, and why the list may be old."""

    hits: list[Found]
    stale: str


@dataclass(frozen=True)
class Wrong:
    """One thing that is not as it should be. ``mend``: the command by which a person mends it."""

    kind: str
    where: str
    about: str
    message: str
    mend: str


@dataclass(frozen=True)
class Verified:
    """What a check found: at most 50 findings of ``count``, and how many there are of each kind.

    ``unchecked`` tiers did not answer, so that nothing is known of them.
    """

    sound: bool
    count: int
    kinds: dict[str, int]
    findings: list[Wrong]
    unchecked: list[str]
    sessions: int
    quick: bool


def make_server(lend: Lend, *, refuse_saves: str = "") -> MCPServer[Any]:
    """The server; ``lend`` is called for each request, in its thread.

    ``refuse_saves``: why whoever asks may not save, and what to do. For stdio: ``.run()``.
    """
    server = _Server("annoris", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")
    tools = _Tools(lend, refuse_saves)
    for function, title, hints in (
        (tools.session_save, "Save a session", _WRITES),
        (tools.session_load, "Load a session", _READS),
        (tools.session_list, "List sessions", _READS),
        (tools.session_search, "Search sessions", _READS),
        (tools.session_verify, "Verify sessions", _READS),
    ):
        described = cleandoc(function.__doc__ or "")
        server.tool(title=title, description=described, annotations=hints, structured_output=True)(
            function
        )
    server.resource(
        "session://{id}", name="session", title="A session", mime_type="text/markdown",
        description="The whole document of a session, front matter included.",
    )(tools.resource)  # fmt: skip
    server.prompt(title="Continue a session")(tools.continue_session)
    return server


def over_http(
    server: MCPServer[Any], max_bytes: int
) -> tuple[ASGIApp, AbstractAsyncContextManager[None]]:
    """What answers /mcp for a server, and what to enter while it does.

    Nothing is kept between requests, so that any replica answers. Who asks, and from where, is
    checked before.
    """
    app = server.streamable_http_app(
        json_response=True, stateless_http=True, max_request_body_size=max_bytes,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )  # fmt: skip
    return app, server.session_manager.run()


class _Server(MCPServer[Any]):
    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Any, Any] | None = None,
    ) -> GetPromptResult | InputRequiredResult:
        """As the SDK has it, which takes a name that is none for a bug of the server."""
        known = [prompt.name for prompt in await self.list_prompts()]
        if name not in known:
            raise MCPError(INVALID_PARAMS, f"no prompt {name!r}; there is {', '.join(known)}")
        return await super().get_prompt(name, arguments, context)


class _Tools:
    def __init__(self, lend: Lend, refuse_saves: str) -> None:
        self._lend = lend
        self._refuse_saves = refuse_saves

    @contextlib.contextmanager
    def _archive(self) -> Iterator[Archive]:
        """An archive for one call; what goes wrong on purpose is told to the model."""
        try:
            with self._lend() as archive:
                yield archive
        except CredentialFound as error:
            raise ToolError(f"{error.message}\nnothing was saved: take it out") from error
        except AnnorisError as error:
            raise ToolError("\n".join(filter(None, (error.message, error.hint)))) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise ToolError(f"this machine refused: {where}{error.strerror}") from error

    def session_save(
        self,
        markdown: Annotated[str, Field(description="The whole Markdown document, as text.")],
        name: Annotated[
            str,
            _LOOSE,
            Field(
                description="A handle; saving under it again adds a revision to the same session."
            ),
        ] = "",
        project: Project = "",
        status: Annotated[str, _LOOSE, Field(description="Kept in the front matter.")] = "",
        priority: Annotated[str, _LOOSE, Field(description="Kept in the front matter.")] = "",
        expected_revision: Annotated[
            str,
            _LOOSE,
            Field(description="What the text was made from; refused when that is not the newest."),
        ] = "",
    ) -> Saved:
        """Save a session document on the user's master. Nothing is replaced behind anyone's back.

        state "master": it is there; "queued": safe on this machine, delivered later; "conflict":
        somebody saved meanwhile, both texts are kept. An error means that nothing was saved.
        """
        if self._refuse_saves:
            raise ToolError(self._refuse_saves)
        with self._archive() as archive:
            owner, name = guess.handle(name)
            options = SaveOptions(
                project=project or owner, name=name, status=status, priority=priority,
                workspace=_workspace(archive),
            )  # fmt: skip
            data = markdown.encode("utf-8", "surrogatepass")
            base = _expected(archive, data, options, expected_revision)
            source = Source("markdown", data)
            (receipt,) = archive.save([source], replace(options, base=base))
            return _saved(receipt)

    def session_load(
        self,
        selector: Selector = "",
        section: Annotated[str, _LOOSE, Field(description="Only what is under this heading.")] = "",
        max_chars: Annotated[
            int,
            BeforeValidator(guess.number(100, 1_000_000, 10_000)),
            Field(description="At most so many characters of text."),
        ] = 10_000,
        project: Project = "",
    ) -> Text:
        """Load a session: by default the newest one of this folder's project.

        The text is data that somebody wrote in an earlier conversation. drift says what
        changed in this work tree since.
        """
        with self._archive() as archive:
            loaded = _found(archive, selector, project)
            whole = excerpt(loaded.data, section=section)
            text = excerpt(loaded.data, section=section, max_chars=max_chars).decode()
            return _text(loaded, text, len(whole.decode()), _drift(archive, loaded))

    def session_list(
        self,
        project: Annotated[
            str, _LOOSE, Field(description='The project, or "all"; left out: the folder\'s.')
        ] = "",
        status: Annotated[str, _LOOSE, Field(description="Only sessions with this status.")] = "",
        since: Annotated[str, _LOOSE, Field(description="Saved since: 2026-11-24, 3d, 12h.")] = "",
        limit: Annotated[
            int, BeforeValidator(guess.number(1, 500, 20)), Field(description="How many at most.")
        ] = 20,
    ) -> Rows:
        """List sessions, newest first."""
        with self._archive() as archive:
            everything = project.casefold() in ("all", "*")
            rows, stale = archive.sessions(
                project="" if everything else project, status=status, since=since, limit=limit,
                everything=everything,
            )  # fmt: skip
            return Rows([_row(row) for row in rows], stale)

    def session_search(
        self,
        query: Annotated[
            str,
            _LOOSE,
            Field(description='Words, all of which must be there, or a "quoted phrase".'),
        ],
        project: Annotated[
            str, _LOOSE, Field(description="Only in this project; left out: in all.")
        ] = "",
        limit: Annotated[
            int, BeforeValidator(guess.number(1, 100, 10)), Field(description="How many at most.")
        ] = 10,
    ) -> Hits:
        """Find sessions by their text, best first, in any language."""
        with self._archive() as archive:
            hits, stale = archive.search(query, project=project, limit=limit)
            unmarked = str.maketrans("", "", "\x02\x03")
            return Hits(
                [Found(_row(hit.session), hit.snippet.translate(unmarked)) for hit in hits], stale
            )

    def session_verify(
        self,
        thorough: Annotated[
            bool,
            BeforeValidator(guess.switch),
            Field(description="Open and read every document and cached copy too."),
        ] = False,
    ) -> Verified:
        """Check that every tier holds what master holds. Nothing is changed.

        A finding says which command mends it; that one is the user's to run.
        """
        with self._archive() as archive:
            audit = verify.verify(
                archive, verify.Scope(quick=not thorough), source="mcp",
                deadline=Deadline(_VERIFY_SECONDS),
            )  # fmt: skip
            return _verified(audit)

    def resource(self, id: str) -> str:
        try:
            with self._archive() as archive:
                return _found(archive, id, "").data.decode()
        except ToolError as error:
            is_missing = isinstance(error.__cause__, NotFound)
            raise (ResourceNotFoundError if is_missing else ResourceError)(str(error)) from error

    def continue_session(self, selector: Selector = "") -> str:
        """Bring a saved session into this conversation, to go on from it."""
        try:
            with self._archive() as archive:
                loaded = _found(archive, selector, "")
                drift = _drift(archive, loaded)
        except ToolError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from error
        told = [f"- since it was saved: {sentence}" for sentence in drift]
        return "\n".join(
            [
                "Let us go on from this saved session. What it says of files may no longer hold.",
                *told,
                "",
                fenced(excerpt(loaded.data, max_chars=60_000).decode()),
            ]
        )


def _workspace(archive: Archive) -> str:
    found = look(os.getcwd()) if archive.here else None
    return found.text() if found else ""


def _expected(archive: Archive, data: bytes, options: SaveOptions, revision: str) -> str:
    """The etag that a save is to be made from, when the revision that is expected is the newest."""
    if not revision:
        return ""
    archive.look()
    meta = inspect(data)
    selector, project = meta.id or options.name or meta.name, options.project or meta.project
    if not selector:
        raise ToolError(
            "expected_revision needs a session: give its name, or keep the id in the front matter"
        )
    row = archive.find(selector, project)
    if revision not in (_revision(row), row.etag):
        raise ToolError(
            f"{row.short} has moved on to revision {_revision(row)}, saved {row.saved}; nothing "
            f'was saved\nsession_load("{row.short}"), bring both texts together, and save that '
            "with the new revision"
        )
    return row.etag


def _found(archive: Archive, selector: str, project: str) -> Loaded:
    """The session that a model means: as a person's selector, else by its title."""
    selector = guess.selector(selector)
    try:
        return archive.load(selector, project)
    except NotFound as error:
        if not selector:
            raise
        rows = archive.catalog.list(project=project or None, limit=5000)
        id = guess.titled(selector, [(row.id, row.title, row.name) for row in rows])
        if not id:
            raise NotFound(
                error.message, hint=f"{error.hint}; session_list shows what there is"
            ) from error
        return archive.load(id)


def _revision(row: Session) -> str:
    return row.oid or row.etag


def _row(row: Session) -> Row:
    return Row(
        id=row.id,
        project=row.project,
        name=row.name,
        title=row.title,
        status=row.status,
        priority=row.priority,
        saved=row.saved,
        revision=_revision(row),
        waiting=bool(row.pending),
    )


def _drift(archive: Archive, loaded: Loaded) -> list[str]:
    """What changed in the work tree that the server stands in, if that is the user's."""
    drift = drift_here(loaded) if archive.here else None
    return drift.sentences if drift else []


def _text(loaded: Loaded, text: str, characters: int, drift: list[str]) -> Text:
    verified, unverified = claims(loaded.data)
    return Text(
        session=_row(loaded.session),
        text=text,
        characters=characters,
        tier=loaded.tier,
        stale=loaded.stale,
        drift=drift,
        verified=verified,
        unverified=unverified,
    )


def _verified(audit: Audit) -> Verified:
    silent = [item for item in audit.findings if item.kind == "tier-down"]
    wrong = [item for item in audit.findings if item.kind != "tier-down"]
    kinds = [item.kind for item in wrong]
    return Verified(
        sound=not audit.findings,
        count=len(wrong),
        kinds={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        findings=[
            Wrong(item.kind, item.where, item.about, item.message, item.mend)
            for item in wrong[:_FINDINGS]
        ],
        unchecked=[f"{item.where}: {item.message}" for item in silent],
        sessions=audit.sessions,
        quick=audit.quick,
    )


_SAID = {
    "master": "saved on master",
    "unchanged": "master holds this very text already",
    "queued": "safe on this machine, not on master yet; annoris sync delivers it",
    "conflict": "somebody saved meanwhile; both texts are kept, this one as a session of its own",
}


def _saved(receipt: Receipt) -> Saved:
    if receipt.state == "refused":
        raise ToolError(
            f"not saved: master's server refuses it: {receipt.reason}\n"
            "the text is kept on this machine: annoris outbox"
        )
    message = _SAID[receipt.state]
    return Saved(
        state=receipt.state,
        id=receipt.id,
        project=receipt.project,
        name=receipt.name,
        title=receipt.title,
        path=receipt.path,
        revision=receipt.oid,
        message=f"{message}: {receipt.reason}" if receipt.reason else message,
        warnings=[
            f"line {problem.line}: {problem.message}" if problem.line else problem.message
            for problem in receipt.problems
        ],
    )
