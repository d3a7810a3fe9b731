"""Text in the wrong encoding: repaired when asked to, noticed when not. The only user of ftfy.

Pure. Patterns are kept as text, as in ``document``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import islice

from annoris.document import UTF16, newlines

_RARE = "[\u2500-\u259f\x80-\x9f]"
_WORD = r"[^\W\d_]+"

# UTF-8 read as cp1252, Latin-1 or cp1251 and stored again leaves pairs of two-byte letters
# of which the second is rare elsewhere. A hit only means that ftfy is asked.
_SUSPICIOUS = (
    rb"(?:\xc3[\x80-\xbf]|\xd0[\xa0\xa1])"
    rb"(?:\xc2[\x80-\xbf]|\xc5[\x92\x93\xa0\xa1\xb8\xbd\xbe]|\xc6\x92|\xcb[\x86\x9c]"
    rb"|\xd0[\x82-\x8f]|\xd1[\x91-\x9f]|\xd2[\x90\x91]|\xe2[\x80\x82\x84][\x80-\xbf])"
)


def fix_encoding(data: bytes) -> bytes:
    """The same text in sound UTF-8; line ends, quotes and everything else stay.

    Mojibake is undone by ftfy. Lines that are not UTF-8 are decoded as UTF-16 (by its BOM)
    or by the legacy code page in which they make the likeliest words.
    """
    if data.startswith(UTF16):
        with suppress(UnicodeError):  # half a character: not UTF-16 after all
            data = data.decode("utf-16").encode()
    lines = data.split(b"\n")
    broken = b"\n".join(line for line in lines if not _is_utf8(line))
    page = _likeliest(broken) if broken else "utf-8"
    return b"\n".join(_repaired(line, page) for line in lines)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _likeliest(data: bytes) -> str:
    scores = {}
    for page in ("cp1252", "cp1251", "koi8-r"):
        try:
            scores[page] = _likelihood(data.decode(page))
        except UnicodeDecodeError:
            continue
    return max(scores, key=lambda page: scores[page])


def _likelihood(text: str) -> int:
    """How much a text looks like words: frequent small letters, one script in each word."""
    score = -len(re.findall(_RARE, text))
    for word in re.findall(_WORD, text):
        foreign = [letter for letter in word if letter > "\x7f"]
        cyrillic = sum("\u0400" <= letter <= "\u04ff" for letter in word)
        if not foreign:
            continue
        if cyrillic == len(word):
            score += sum(3 if c in "оеаинтсрвл" else c.islower() for c in word.lower())
            score -= 0 if word.isupper() else 3 * sum(c.isupper() for c in word[1:])
        elif cyrillic or 2 * len(foreign) > len(word):
            score -= len(word)
        else:
            score += len(word)
    return score


def _repaired(line: bytes, page: str) -> bytes:
    if line.isascii():
        return line
    from ftfy import TextFixerConfig, fix_encoding  # noqa: PLC0415

    text = line.decode("utf-8" if _is_utf8(line) else page)
    config = TextFixerConfig(
        unescape_html=False, replace_lossy_sequences=False, fix_c1_controls=False
    )
    return fix_encoding(text, config).encode()


def mojibake(body: bytes) -> int:
    """The line, from 1, of the first text that was decoded wrongly; 0 where there is none.

    Looks at the first 200 suspicious places; bytes that are not UTF-8 are passed over.
    """
    for hit in islice(re.finditer(_SUSPICIOUS, body), 200):
        from ftfy.badness import is_bad  # noqa: PLC0415

        around = body[max(0, hit.start() - 100) : hit.end() + 100].decode("utf-8", "ignore")
        if is_bad(around):
            return newlines(body[: hit.start()]) + 1
    return 0
