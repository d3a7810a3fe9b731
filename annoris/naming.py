"""Names for master's files and folders, from what people write. The only user of anyascii.

Pure. Patterns are kept as text, as in ``document``.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from annoris.document import usable

_RESERVED = r"con|prn|aux|nul|(?:com|lpt)\d"
_HASHED = r"-[0-9a-f]{6}$"


def slug(text: str, *, limit: int = 48) -> str:
    """Words of ASCII letters and digits joined by '-', for names of files and folders.

    Other scripts are transliterated, emoji dropped, nothing left gives 'session'. Never a
    name that Windows reserves; cut between words where there are several.
    """
    text = unicodedata.normalize("NFKC", text)
    if not text.isascii():
        from anyascii import anyascii  # noqa: PLC0415

        # Symbols go first: anyascii would spell emoji out.
        text = anyascii("".join(c if _in_word(c) else " " for c in text))
    result = ""
    for word in re.findall(r"[a-z0-9]+", re.sub("['’`]", "", text.lower())):
        longer = f"{result}-{word}" if result else word[:limit]
        if len(longer) > limit:
            break
        result = longer
    if not result:
        return "session"
    return f"{result}-session" if re.fullmatch(_RESERVED, result) else result


def _in_word(character: str) -> bool:
    return (
        character.isalnum() or character in "'’" or unicodedata.category(character).startswith("M")
    )


def folder(project: str) -> str:
    """The folder of a project: its slug, made unique by a hash where the slug says less.

    Two names share a folder only if they are the same in Unicode's normal form.
    """
    name = unicodedata.normalize("NFC", project)
    short = slug(name)
    if short == name and not re.search(_HASHED, name):
        return short
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{short}-{digest[:6]}"


def path_for(project: str, title: str, created: str, id: str) -> str:
    """Where a new session goes on master; ``created`` is a date or time, ``id`` a UUID."""
    moment, uuid = usable("created", created), usable("id", id)
    if not moment or not uuid:
        raise ValueError(f"no path without a date and a UUID: {created!r}, {id!r}")
    year, month = moment[:4], moment[5:7]
    return f"sessions/{folder(project)}/{year}/{month}/{moment[:10]}-{slug(title)}-{uuid[-8:]}.md"
