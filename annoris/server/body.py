"""Reading requests: bodies up to a size, documents as Markdown or in JSON, conditions, accepts."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import ClientDisconnect

from annoris.intake import SaveOptions
from annoris.server.problems import Problem, unfit

MARKDOWN = "text/markdown"
JSON = "application/json"
LINES = "application/jsonl"

_RAW = {MARKDOWN, "text/x-markdown", "text/plain", "application/octet-stream", ""}

# A word for a document's front matter: one line.
Word = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class Options(BaseModel):
    """How to save, as ``annoris save`` has it."""

    model_config = ConfigDict(extra="forbid")

    project: Word = Field("", description="Its project; default: the document's own.")
    name: Word = Field("", description="A handle; saving under it again adds a revision.")
    priority: Word = ""
    status: Word = ""
    strict: bool = Field(False, description="Refuse what is otherwise only warned of.")
    fix_encoding: bool = Field(False, description="Repair text that was read in a wrong encoding.")
    allow_secret: list[Annotated[str, StringConstraints(max_length=200)]] = Field(
        default_factory=list, description="Fingerprints of found credentials that are none."
    )

    def options(self, *, id: str = "", update: str = "", base: str = "") -> SaveOptions:
        """As the archive takes them."""
        return SaveOptions(
            project=self.project,
            name=self.name,
            priority=self.priority,
            status=self.status,
            strict=self.strict,
            fix_encoding=self.fix_encoding,
            allow_secrets=tuple(self.allow_secret),
            id=id,
            update=update,
            base=base,
        )


class Document(Options):
    """A document in JSON, with how to save it."""

    text: str = Field(min_length=1, examples=["# Where the work stands\n\n**Next:** deploy\n"])


class ProjectChanges(BaseModel):
    """What to change of a project; an empty value takes one away, ``name`` renames it."""

    model_config = ConfigDict(extra="forbid")

    name: Word | None = None
    status: Word | None = None
    priority: Word | None = None
    target_revenue: Word | None = Field(None, examples=["12000.00"])
    current_revenue: Word | None = None


DOCUMENT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The document: raw, byte for byte, or in JSON.",
        "content": {
            MARKDOWN: {
                "schema": {"type": "string", "minLength": 1},
                "example": "# Where the work stands\n\n**Next:** deploy\n",
            },
            JSON: {"schema": {"$ref": "#/components/schemas/Document"}},
        },
    }
}


CHANGES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/ProjectChanges"}}},
    }
}


LINES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The client's own file: a JSON object in each line.",
        "content": {LINES: {"schema": {"type": "string", "minLength": 1}}},
    }
}


async def read(request: Request) -> bytes:
    """The body. Raises Problem (413) as soon as it is known to be too big, and 415 if coded."""
    limit: int = request.app.state.settings.server.max_body_bytes
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem("media-type", "a coded body is not taken", hint="send it as it is")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limit:
        raise _too_large(limit)
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            pieces.append(piece)
    except ClientDisconnect:
        raise Problem("body", "the body ended too soon") from None
    return b"".join(pieces)


async def transcript(request: Request) -> bytes:
    """The transcript that a request carries."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (LINES, "application/x-ndjson"):
        raise Problem("media-type", "a transcript is lines of JSON", hint=f"send {LINES}")
    return await read(request)


async def changes(request: Request) -> dict[str, str]:
    """The changes of a project that a request carries in JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise Problem("media-type", "changes are read from JSON", hint=f"send {JSON}")
    try:
        given = ProjectChanges.model_validate_json(await read(request), strict=True)
    except ValidationError as error:
        raise unfit(error.errors(include_url=False, include_input=False)) from None
    return given.model_dump(exclude_none=True)


async def document(request: Request, query: Options) -> tuple[bytes, Options]:
    """The document that a request carries and how to save it; JSON's words go before the URL's."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, *_RAW):
        raise Problem(
            "media-type", f"a document can't be read from {kind}", hint=f"send {MARKDOWN} or {JSON}"
        )
    data = await read(request)
    if not data:
        raise Problem("document", "the document is empty", hint="write the session's text into it")
    options = query
    if kind == JSON:
        try:
            given = Document.model_validate_json(data, strict=True)
        except ValidationError as error:
            raise unfit(error.errors(include_url=False, include_input=False)) from None
        said = given.model_dump(exclude_unset=True, exclude={"text"})
        data, options = given.text.encode(), query.model_copy(update=said)
    most: int = request.app.state.settings.save.max_bytes
    if len(data) > most:
        raise _too_large(most)
    return data, options


def _too_large(limit: int) -> Problem:
    return Problem(
        "too-large", f"more than the {limit:,} bytes allowed",
        hint="save a summary, or raise save.max_bytes and server.max_body_bytes",
        headers={"Connection": "close"},
    )  # fmt: skip


def tag(etag: str, form: str = "") -> str:
    """The ETag of a form of a revision: every form has its own, all name the same revision."""
    return f'"{etag}{"-" if form else ""}{form}"'


def revisions(header: str | None) -> list[str]:
    """The revisions that If-Match or If-None-Match names; ``*`` for any."""
    if not header:
        return []
    if header.strip() == "*":
        return ["*"]
    return [found.partition("-")[0] for found in re.findall(r'"([^"]*)"', header)]


def accepted(header: str | None, *offers: str) -> str:
    """The media type to answer in: the one with the highest weight, the first among equals.

    Raises Problem (406).
    """
    weights = [(_weight(header or "*/*", offer), offer) for offer in offers]
    best = max(weight for weight, _ in weights)
    if best == 0:
        raise Problem("accept", f"only {' and '.join(offers)} can be had here")
    return next(offer for weight, offer in weights if weight == best)


def _weight(header: str, offer: str) -> float:
    """The q of the most specific range that fits."""
    found: list[tuple[int, float]] = []
    for part in header.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        ranges = (offer, offer.partition("/")[0] + "/*", "*/*")
        if name in ranges:
            q = next((word[2:] for word in parameters if word.startswith("q=")), "1")
            fits = re.fullmatch(r"[01](?:\.\d{0,3})?", q)
            found.append((3 - ranges.index(name), float(q) if fits else 1.0))
    return max(found)[1] if found else 0.0
