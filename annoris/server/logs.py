"""One JSON object a line on stderr; what is secret is struck out, wherever it comes from."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from annoris.settings import Settings

logger = logging.getLogger("annoris.server")

_TOKENS = re.compile(r"annoris_[\w-]{20,}|(?<=Bearer )[\w.~+/-]{8,}=*")


class _Lines(logging.Formatter):
    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return self._redacted(json.dumps(line, default=str))

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _TOKENS.sub("***", text)


def install(settings: Settings, *, quiet: bool) -> None:
    """Make every line of this process, uvicorn's included, one of ours."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(_secrets(settings)))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def warn(event: str, **facts: object) -> None:
    """Log what a person should look at."""
    logger.warning("%s", event, extra={"facts": facts})


def say(event: str, **facts: object) -> None:
    """Log an event with facts, which are JSON-ready and never hold a document's text."""
    logger.info("%s", event, extra={"facts": facts})


def _secrets(settings: Settings) -> list[str]:
    found = [settings.master.token, settings.key, settings.server.webhook_secret]
    for url in (settings.hot.url, settings.emergency.url, *settings.alerts.urls):
        try:
            password = urlsplit(url).password or ""
        except ValueError:
            password = url
        found += [url, password, unquote(password)]
    # As they stand in a line of JSON.
    return [json.dumps(secret)[1:-1] for secret in found if len(secret) > 3]
