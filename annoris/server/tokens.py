"""Bearer tokens: who may do what. They lie hashed on master, in ``.annoris/tokens.toml``.

So every replica knows them, a dropped database loses none, and a revoked one is a commit. A
token is 256 random bits; a plain SHA-256 of it can't be guessed back.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal, get_args

from annoris.archive import Archive
from annoris.dataclass import dataclass
from annoris.errors import Ambiguous, ConfigError, NotFound, UsageError
from annoris.master import now

PATH = ".annoris/tokens.toml"
Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)  # each includes the ones before it

_PREFIX = "annoris_"
_HEAD = "# Who may use the server. Written by annoris token; a token itself is not in here.\n"


@dataclass(frozen=True, slots=True)
class Token:
    id: str
    name: str
    scope: Scope
    created: str
    sha256: str

    def allows(self, scope: Scope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


def known(archive: Archive) -> tuple[Token, ...]:
    """The tokens on the tip of master that this machine knows. Raises ConfigError if unreadable."""
    tip = archive.master.tip()
    return _parsed(archive.master.file(tip, PATH) if tip else None)


def match(text: str, tokens: Iterable[Token]) -> Token | None:
    """The token that ``text`` is, in a time that tells nothing."""
    digest, found = _digest(text), None
    for token in tokens:
        if hmac.compare_digest(digest, token.sha256):
            found = token
    return found


def new(archive: Archive, scope: str, name: str = "") -> tuple[str, Token]:
    """Make a token; its text is told only here. On master when this returns."""
    if scope not in SCOPES:
        raise UsageError(f"no scope {scope!r}", hint=f"one of {', '.join(SCOPES)}")
    if not name.isprintable() or len(name) > 64:
        raise UsageError("a token's name is one line of up to 64 characters")
    text = _PREFIX + secrets.token_urlsafe(32)
    token = Token(secrets.token_hex(4), name, scope, now(), _digest(text))

    def add(before: bytes | None) -> bytes:
        return _written((*_parsed(before), token))

    archive.edit(PATH, add, f"Add token {token.id} ({scope})")
    return text, token


def revoke(archive: Archive, which: str) -> Token:
    """Take a token back, by id or name. Off master when this returns; servers follow in seconds."""
    gone: list[Token] = []

    def remove(before: bytes | None) -> bytes:
        tokens = _parsed(before)
        gone[:] = [_one(which, tokens)]
        return _written(token for token in tokens if token != gone[0])

    archive.edit(PATH, remove, f"Revoke a token ({which[:40]})")
    return gone[0]


def _one(which: str, tokens: tuple[Token, ...]) -> Token:
    found = [token for token in tokens if which in (token.id, token.name)]
    if len(found) == 1:
        return found[0]
    kind = Ambiguous if found else NotFound
    many = f"{len(found)} tokens are" if found else "no token is"
    raise kind(f"{many} called {which!r}", hint="see their ids: annoris token list")


def _parsed(data: bytes | None) -> tuple[Token, ...]:
    import tomllib  # noqa: PLC0415

    if not data:
        return ()
    try:
        tokens = tuple(Token(**entry) for entry in tomllib.loads(data.decode())["token"])
        sound = all(token.scope in SCOPES and len(token.sha256) == 64 for token in tokens)
    except (KeyError, TypeError, ValueError, RecursionError):
        sound = False
    if not sound:
        raise ConfigError(
            f"{PATH} on master can't be read, so nobody is let in",
            hint="mend the file there, or remove it and make new tokens",
        )
    return tokens


def _written(tokens: Iterable[Token]) -> bytes:
    parts = [_HEAD, "version = 1\ntoken = [\n"]
    for token in tokens:
        # Printable text means the same as JSON and as TOML.
        words = (
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in asdict(token).items()
        )
        parts.append(f"  {{ {', '.join(words)} }},\n")
    return "".join([*parts, "]\n"]).encode()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
