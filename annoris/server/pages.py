"""Pages: templates, what stands on each of them, how values are written. The only Jinja.

Everything that is put into a template is escaped; what is not is ``Markup``, made in ``charts``
and ``reading``.
"""

from __future__ import annotations

import hashlib
import os
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from markupsafe import Markup, escape

from annoris import __version__
from annoris.server.charts import short_span

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HERE = os.path.dirname(__file__)
_THEMES = ("light", "dark")


def page(request: Request, template: str, *, code: int = 200, **context: Any) -> HTMLResponse:
    """A template as an answer with that status code, under the policy of all pages."""
    theme = request.cookies.get("theme", "")
    text = _TEMPLATES.get_template(template).render(
        **context,
        path=request.url.path,
        theme=theme if theme in _THEMES else "",
        visitor=getattr(request.state, "visitor", None),
        version=__version__,
    )
    headers = {"Content-Security-Policy": POLICY, "Vary": "HX-Request"}
    return HTMLResponse(text.encode(errors="replace"), code, headers)


def part(request: Request, template: str, **context: Any) -> Response:
    """A piece of a page that is asked for again and again; 204 where it shows the same.

    What it showed is the ``seen`` of the request, and its own is put into the template.
    """
    seen = _digest(context)
    if request.query_params.get("seen") == seen:
        return Response(status_code=204)
    return page(request, template, seen=seen, **context)


def seen(context: dict[str, Any]) -> dict[str, Any]:
    """The context of a piece that stands in a whole page, to be asked for again."""
    return {**context, "seen": _digest(context)}


def _digest(context: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(context.items())).encode(errors="replace")).hexdigest()[:16]


# --- how values are written ------------------------------------------------------------------


def moment(text: str) -> datetime | None:
    """A time of the core's, or None where it is none."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def ago(text: str) -> Markup:
    """A time as a distance, with the time itself in the tooltip."""
    when = moment(text)
    if when is None:
        return escape(text or "never")
    seconds = (datetime.now(UTC) - when).total_seconds()
    told = f"{short_span(seconds)} ago" if seconds >= 1 else "now"
    exact = when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(when.isoformat(), exact, told)


def marked(text: str) -> Markup:
    """A snippet with its matches marked."""
    told = str(escape(text)).replace("\x02", "<mark>").replace("\x03", "</mark>")
    return Markup(re.sub(r"[\x00-\x08\x0b-\x1f]", "", told))  # noqa: S704 - it was escaped


def money(text: str) -> str:
    """An exact amount, in groups of three digits; cents only where there are some."""
    amount = Decimal(text)
    whole = f"{amount:,.2f}".removesuffix(".00")
    return whole.replace(",", "\u202f")


def size(count: int) -> str:
    """Bytes, in a unit that fits."""
    for unit, of in (("MB", 1_000_000), ("kB", 1000)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} B"


def milliseconds(value: float | None) -> str:
    """A duration, as short as it can be told."""
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _version_of(name: str) -> str:
    """The address of a file of ours that changes with its content, so that it may be kept."""
    with open(os.path.join(_HERE, "static", name), "rb") as file:
        return f"/static/{name}?{hashlib.sha256(file.read()).hexdigest()[:12]}"


def quoted(text: str) -> str:
    """A value of a query; names on master need not be UTF-8."""
    return quote(text, safe="", errors="surrogateescape")


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(os.path.join(_HERE, "templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "ago": ago, "marked": marked, "money": money, "size": size, "milliseconds": milliseconds,
    "urlencode": quoted,
}  # fmt: skip
_TEMPLATES.globals |= {"static": {
    name: _version_of(name) for name in ("app.css", "app.js", "icon.svg", "htmx/htmx.min.js")
}}  # fmt: skip
