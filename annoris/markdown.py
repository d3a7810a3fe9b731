"""The structure of a body: what is wrong with it, one section of it, an excerpt of it, as HTML.

Pure. The only user of markdown_it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise, zip_longest
from typing import Any

from annoris import encoding
from annoris.document import Mark, lined, newlines, outline, plain, without_closing
from annoris.errors import NotFound
from annoris.model import Document, Problem

PARSER_LIMIT = 1_000_000  # characters; a Markdown parser takes minutes for 10 MB


def check(document: Document, *, required: tuple[str, ...] = ()) -> tuple[Problem, ...]:
    """Warnings about a document's structure, in the order of the file's lines.

    Rules: no-h1, unclosed-fence, skipped-heading, missing-section (``required`` titles,
    compared without case, emoji and punctuation), mojibake, conflict-marker. A real Markdown
    parser decides, or a scan of the lines where that must find the same, or above
    ``PARSER_LIMIT``.
    """
    above = newlines(document.front)
    text = lined(document.body.decode("utf-8", "replace"))
    marks = _scanned(text)
    if marks is None:
        marks = list(outline(text) if len(text) > PARSER_LIMIT else _parsed(text))
    found = [
        *_structure(marks),
        *_missing(marks, required),
        *_conflicts(text),
        *_mojibake(document.body),
    ]
    moved = (Problem(p.rule, p.message, p.line + above if p.line else 0) for p in found)
    return tuple(sorted(moved, key=lambda problem: problem.line))


def section(body: str, title: str) -> str:
    """The part under the heading that fits ``title``, heading included, verbatim.

    It reaches to the next heading of the same or a higher level. A heading fits exactly,
    else without case, emoji and punctuation, else as the only one that begins so. Raises
    NotFound, its hint listing the headings.
    """
    marks = [(line, level, plain(raw)) for line, level, raw in outline(lined(body)) if level]
    place = _fitting([text for _, _, text in marks], title)
    line, level, _ = marks[place]
    end = next((n for n, other, _ in marks[place + 1 :] if other <= level), None)
    lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", body)
    return "".join(lines[line - 1 : end and end - 1])


def _fitting(headings: list[str], title: str) -> int:
    if title.strip() in headings:
        return headings.index(title.strip())
    wanted = _folded(title)
    folded = [_folded(heading) for heading in headings]
    if wanted and wanted in folded:
        return folded.index(wanted)
    starts = [n for n, heading in enumerate(folded) if wanted and heading.startswith(wanted)]
    if len(starts) != 1:
        what = "several sections begin" if starts else "no section begins"
        listed = [headings[n] for n in starts] or headings[:30]
        raise NotFound(
            f"{what} with {title!r}",
            hint="the headings are: " + "; ".join(listed) if listed else "there are no headings",
        )
    return starts[0]


def _folded(text: str) -> str:
    """A heading for comparison: without case, emoji and punctuation."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


# A fence that begins at the left edge, so in no list and no quotation, and is closed.
_FENCE = (
    r"(?s)\n(?:(?P<ticks>`{3,}+)[^`\n]*|(?P<waves>~{3,}+)[^\n]*)(?:\n.*?)??"
    r"\n {0,3}(?:(?P=ticks)`*|(?P=waves)~*)[ \t]*(?=\n)"
)
# Outside of such, what only a parser can judge.
_DOUBT = r"""(?x)\n(?:
      [\t >*+\-0-9.)]*(?:```|~~~|<[A-Za-z/!?])             # other fences; blocks of HTML
    | [ ]*\t                                               # columns instead of characters
    | [ ]{1,3}\#{1,6}[ \t\n]                               # a heading, perhaps of a list's item
    | (?<=[^\n]\n)[ ]{0,3}(?:=+|-+)[ \t]*\n               # an underline, or a rule
    | (?:[ ]*(?:[>*+-]|\d{1,9}[.)])){4}                    # nested deeper than a parser goes
    | [ ]{8,}(?:[>*+-]|\d{1,9}[.)])
    )"""


_HEADING = r"\n(#{1,6})([ \t][^\n]*|)(?=\n)"


def _scanned(text: str) -> list[Mark] | None:
    """What a parser would find, in a fraction of its time; None where that is not sure.

    It is where each heading is a line of its own that begins at the left edge: it ends whatever
    stands above it, and only a fence or HTML could hide it.
    """
    bare = re.sub(_FENCE, lambda fence: "\n" * fence[0].count("\n"), f"\n{text}\n")
    if re.search(_DOUBT, bare):
        return None
    marks, line, counted = [], 0, 0
    for found in re.finditer(_HEADING, bare):
        line += bare.count("\n", counted, found.start() + 1)
        counted = found.start() + 1
        marks.append((line, len(found[1]), without_closing(found[2])))
    return marks


def _parsed(text: str) -> Iterator[Mark]:
    """The same as ``outline``, by a CommonMark parser."""
    from markdown_it import MarkdownIt  # noqa: PLC0415

    lines = text.split("\n")
    tokens = MarkdownIt("commonmark").disable("inline").parse(text)
    for token, content in zip_longest(tokens, tokens[1:]):
        first, last = token.map or (0, 0)
        if token.type == "heading_open" and token.level == 0 and content:
            yield first + 1, int(token.tag[1]), content.content
        elif token.type == "fence":
            end = lines[last - 1].lstrip("> \t").rstrip()
            closed = last - first > 1 and end.startswith(token.markup) and len({*end}) == 1
            if not closed:
                yield first + 1, 0, ""


def _structure(marks: list[Mark]) -> Iterator[Problem]:
    headings = [mark for mark in marks if mark[1]]
    if not any(level == 1 for _, level, _ in headings):
        yield Problem("no-h1", "there is no title: begin the document with a line '# Title'")
    for line, level, _ in marks:
        if not level:
            yield Problem("unclosed-fence", "the code fence opened here is never closed", line)
    for (_, before, _), (line, level, raw) in pairwise(headings):
        if level > before + 1:
            text = f"'{plain(raw)}' is a heading of level {level} right below level {before}"
            yield Problem("skipped-heading", text, line)


def _missing(marks: list[Mark], required: tuple[str, ...]) -> Iterator[Problem]:
    there = {_folded(plain(raw)) for _, level, raw in marks if level} if required else set()
    for title in required:
        if _folded(title) not in there:
            yield Problem("missing-section", f"there is no section '{title}'")


def _conflicts(text: str) -> Iterator[Problem]:
    opened = 0
    if "<" * 7 not in text:
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line == "<" * 7 or line.startswith("<" * 7 + " "):
            opened = opened or number
        elif opened and (line == ">" * 7 or line.startswith(">" * 7 + " ")):
            yield Problem(
                "conflict-marker", "an unresolved merge conflict: <<<<<<< to >>>>>>>", opened
            )
            opened = 0


def _mojibake(body: bytes) -> Iterator[Problem]:
    if line := encoding.mojibake(body):
        text = "text that was decoded wrongly (mojibake): save it with --fix-encoding"
        yield Problem("mojibake", text, line)


def clip(text: str, limit: int) -> str:
    """At most ``limit`` characters, the last line saying how many were left out.

    The cut is at the end of a paragraph, else of a line, where one ends in the second half.
    """
    if len(text) <= limit:
        return text
    room = limit - len(_left_out(len(text)))
    if room < 0:
        return text[: max(limit, 0)]
    cuts = (text.rfind(end, 0, room + 1) for end in ("\n\n", "\n"))
    cut = next((cut for cut in cuts if cut > room // 2), room)
    return text[:cut] + _left_out(len(text) - cut)


def _left_out(count: int) -> str:
    return f"\n\n[… {count} more characters are left out]"


_PICTURE_HERE = "data:image/"


def html(body: str) -> str:
    """A body as HTML, tables and ``- [x]`` included. Not clean: HTML in it stays as it is.

    A picture that lies elsewhere becomes a link to it.
    """
    from markdown_it import MarkdownIt  # noqa: PLC0415

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(body)
    for place, token in enumerate(tokens):
        if token.type == "inline":
            _break(token.children or [])
            _link_picture(token.children or [])
            if place > 1 and tokens[place - 2].type == "list_item_open":
                _tick(token.children or [])
        if style := token.attrs.pop("style", ""):  # a column's alignment
            token.attrs["align"] = str(style).removeprefix("text-align:")
    return str(parser.renderer.render(tokens, parser.options, {}))


def _break(children: list[Any]) -> None:
    """Give each ``**Status:** …`` a line of its own, as it has in the text."""
    for one, after in zip(children, children[2:], strict=False):
        if one.type == "softbreak" and after.type == "strong_open":
            one.type = "hardbreak"


def _tick(children: list[Any]) -> None:
    """Show the box of a task as one."""
    if children and (box := re.match(r"\[([ xX])\] ", children[0].content)):
        mark = "☐" if box[1] == " " else "☑"
        children[0].content = f"{mark} {children[0].content[4:]}"


def _link_picture(children: list[Any]) -> None:
    """Show a picture that lies elsewhere as a link to it."""
    from html import escape  # noqa: PLC0415

    for token in children:
        if token.type == "image" and not token.attrs["src"].startswith(_PICTURE_HERE):
            source, words = escape(token.attrs["src"]), escape(token.content or "no name")
            token.type, token.content = "html_inline", f'<a href="{source}">picture: {words}</a>'
