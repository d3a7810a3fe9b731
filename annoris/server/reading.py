"""Documents as HTML that does nothing: no script, no style, no picture from elsewhere.

The only nh3. Markdown is whoever wrote it, HTML in it included; what is not on the list below is
taken out, and the policy of the pages would not run it either.
"""

from __future__ import annotations

from dataclasses import dataclass

import nh3
from markupsafe import Markup

from annoris import document, markdown

MOST = 256 * 1024  # characters; a longer body is shown as it is written

_TAGS = {
    "a", "abbr", "b", "blockquote", "br", "code", "dd", "del", "details", "div", "dl", "dt", "em",
    "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p",
    "pre", "q", "s", "samp", "small", "span", "strong", "sub", "summary", "sup", "table", "tbody",
    "td", "th", "thead", "tr", "u", "ul", "var",
}  # fmt: skip
_ATTRIBUTES = {
    "a": {"href", "title"}, "abbr": {"title"}, "details": {"open"}, "img": {"alt", "src"},
    "ol": {"start"}, "td": {"align"}, "th": {"align"},
}  # fmt: skip
_SCROLLED = {tag: {"tabindex": "0"} for tag in ("pre", "table")}  # by keys too, where too wide
_PICTURES = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "gif", "webp"))


@dataclass(frozen=True, slots=True)
class Reading:
    """A document as it is shown: its front matter, and its body as HTML unless it is too long."""

    front: str
    body: str
    html: Markup | None

    @property
    def titled(self) -> bool:
        """Whether it begins with a title of its own."""
        return self.html is not None and self.html.lstrip().startswith("<h1>")


def read(data: bytes) -> Reading:
    """A document, ready to be shown."""
    front, body = (part.decode(errors="replace") for part in document.split(data))
    return Reading(front, body, html(body) if len(body) <= MOST else None)


def html(body: str) -> Markup:
    """A body as HTML in which nothing runs and nothing is fetched."""
    cleaned = nh3.clean(
        markdown.html(body),
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=_kept,
        url_schemes={"http", "https", "mailto", "data"},
        set_tag_attribute_values=_SCROLLED,
        link_rel="noopener noreferrer nofollow",
    )
    return Markup(cleaned.replace("<img>", ""))  # noqa: S704 - it was cleaned


def _kept(tag: str, name: str, value: str) -> str | None:
    """Pictures lie in the document itself, links lead out of it."""
    if name == "src":
        return value if value.startswith(_PICTURES) else None
    if tag == "a" and name == "href" and value.lstrip().lower().startswith("data:"):
        return None
    return value
