"""A server on loopback that speaks as much of Telegram's Bot API as a bot needs to send.

It is as strict as the real one: HTML that it can't parse and messages that are too long are
refused, so that what it holds in ``texts`` is what a person would have read. It also takes what
Apprise sends to a plain ``json://`` target, for processes that are not pointed here.
"""

from __future__ import annotations

import html
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qsl

LIMIT = 4096
TOKEN = "123456789:" + "AbCd_eFgH-1" * 3
CHAT = "987654321"
Mode = Literal["ok", "flood", "unauthorized", "entities", "hang", "drop"]

_TAG = re.compile(r"<(/?)(b|i|u|s|code|pre|a)(?: [^<>]*)?>")
_STRAY = re.compile(r"<|&(?!(?:lt|gt|amp|quot|#\d+|#x[0-9a-f]+);)")
_REFUSALS: dict[str, tuple[int, str, dict[str, int]]] = {
    "flood": (429, "Too Many Requests: retry after 7", {"retry_after": 7}),
    "unauthorized": (401, "Unauthorized", {}),
    "entities": (400, "Bad Request: can't parse entities: Unsupported start tag", {}),
}


class Telegram:
    def __init__(self) -> None:
        self.mode: Mode = "ok"
        self.room = 1000  # messages; then it says when to come again
        self.requests = 0
        self.payloads: list[dict[str, Any]] = []
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        """What a person would write into the settings."""
        return f"tgram://{TOKEN}/{CHAT}"

    @property
    def plain_url(self) -> str:
        """The same server as a target of another kind."""
        return self.address.replace("http", "json")

    @property
    def texts(self) -> list[str]:
        """The messages that arrived, as they are shown: without tags and entities."""
        return [
            shown(payload["text"])
            if "text" in payload
            else f"{payload['title']}\n{payload['message']}"
            for payload in self.payloads
        ]

    def point_processes(self, folder: Path) -> dict[str, str]:
        """The environment in which a process takes this server for Telegram's."""
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(
            "import warnings\n"
            "with warnings.catch_warnings():\n"
            "    warnings.simplefilter('ignore')\n"
            "    from apprise.plugins.telegram import NotifyTelegram\n"
            f"NotifyTelegram.notify_url = '{self.address}/bot'\n"
        )
        return {"PYTHONPATH": str(folder), "ANNORIS_ALERTS_URLS": self.url}

    def answer(self, path: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.requests += 1
        if path not in ("/", f"/bot{TOKEN}/sendMessage"):
            return _refusal(404, "Not Found")
        if self.mode in _REFUSALS:
            code, said, extra = _REFUSALS[self.mode]
            return _refusal(code, said, extra)
        trouble = _trouble(payload) if path != "/" else ""
        if trouble:
            return _refusal(400, f"Bad Request: {trouble}")
        if len(self.payloads) >= self.room:
            return _refusal(*_REFUSALS["flood"])
        self.payloads.append(payload)
        return 200, {"ok": True, "result": {"message_id": len(self.payloads)}}

    def wait(self) -> None:
        """What ``hang`` does, until this server is closed."""
        self._over.wait(60)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def shown(text: str) -> str:
    """A message in HTML as a person reads it."""
    return html.unescape(_TAG.sub("", text)).replace("\r\n", "\n")


def _trouble(payload: dict[str, Any]) -> str:
    """Why the real one would refuse a message; empty when it would not."""
    text = str(payload.get("text", ""))
    if str(payload.get("chat_id")) != CHAT:
        return "chat not found"
    if payload.get("parse_mode") != "HTML":
        return "this server reads HTML only"
    if stray := _STRAY.search(_TAG.sub("", text)):
        return f"can't parse entities: at {text[stray.start() :][:20]!r}"
    opened: list[str] = []
    for closing, tag in _TAG.findall(text):
        if not closing:
            opened.append(tag)
        elif not opened or opened.pop() != tag:
            return "can't parse entities: Unmatched end tag"
    if opened:
        return "can't parse entities: can't find end tag"
    if not shown(text).strip():
        return "message text is empty"
    return "message is too long" if len(shown(text).encode("utf-16-le")) // 2 > LIMIT else ""


def _refusal(
    code: int, said: str, parameters: dict[str, int] | None = None
) -> tuple[int, dict[str, Any]]:
    body: dict[str, Any] = {"ok": False, "error_code": code, "description": said}
    return code, body | ({"parameters": parameters} if parameters else {})


def _handler(telegram: Telegram) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_json = "json" in (self.headers.get("Content-Type") or "")
            payload = json.loads(raw) if is_json else dict(parse_qsl(raw.decode()))
            mode = telegram.mode
            if mode == "hang":
                telegram.wait()
            if mode in ("hang", "drop"):
                telegram.requests += 1
                self.close_connection = True
                return
            code, body = telegram.answer(self.path, payload)
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing: a test looks at what arrived."""

    return Handler
