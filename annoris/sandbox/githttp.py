"""A repository over smart HTTP on loopback, as GitHub would serve it, webhook included.

Each request goes to git's own ``http-backend``. After a push a signed delivery goes to ``hook``.
Run as a module with the path of a JSON file: ``repo``, ``port``, ``token``, ``hook``, ``secret``.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import hmac
import http.client
import json
import os
import socketserver
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from annoris import gitcmd

SECONDS = 120.0  # no git process of the server lives longer
_PUSH = "/git-receive-pack"


class Request(NamedTuple):
    method: str
    path: str
    query: str
    headers: Message
    body: bytes


class Answer(NamedTuple):
    status: int
    headers: list[str]
    body: bytes


@functools.cache
def backend() -> str:
    """The path of git's program that answers smart HTTP."""
    said = subprocess.run(
        ["git", "--exec-path"], stdout=subprocess.PIPE, check=True, timeout=60, text=True
    ).stdout
    return os.path.join(said.strip(), "git-http-backend")


def own_environment() -> dict[str, str]:
    """GitHub knows nothing of the configuration of whoever runs it here."""
    scrubbed = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    null = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return scrubbed | null | {"LC_ALL": "C"}


def for_backend(root: str, request: Request) -> dict[str, str]:
    """The environment of ``backend`` for a request about a repository below ``root``."""
    return own_environment() | {
        "GIT_PROJECT_ROOT": root,
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "REQUEST_METHOD": request.method,
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(request.body)),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "REMOTE_ADDR": "127.0.0.1",
    }


def from_backend(output: bytes) -> Answer:
    """What ``backend`` printed, as an answer."""
    head, _, body = output.partition(b"\r\n\r\n")
    if not head:
        return plain(500, "git gave no answer.")
    status, headers = 200, []
    for line in head.decode("latin-1").split("\r\n"):
        if line.startswith("Status: "):
            status = int(line.split()[1])
        else:
            headers.append(line)
    return Answer(status, headers, body)


def plain(status: int, text: str, *headers: str) -> Answer:
    return Answer(status, ["Content-Type: text/plain", *headers], f"{text}\n".encode())


def unknown_user() -> Answer:
    return plain(401, "Invalid username or token.", 'WWW-Authenticate: Basic realm="GitHub"')


def admits(token: str, header: str) -> bool:
    """Whether ``header`` carries the token, as the password of Basic or as Bearer."""
    scheme, _, value = header.partition(" ")
    said = value.encode()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            said = base64.b64decode(value).partition(b":")[2]
    return scheme.lower() in ("basic", "bearer") and hmac.compare_digest(said, token.encode())


def is_push(request: Request) -> bool:
    """Whether it brings something: before a large push git tries the door with an empty one."""
    posted = request.method == "POST" and request.path.endswith(_PUSH)
    return posted and request.body != b"0000"


class Handler(BaseHTTPRequestHandler):
    """Reads requests; ``respond`` says what becomes of each."""

    protocol_version = "HTTP/1.1"
    timeout = SECONDS

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.respond(Request(self.command, unquote(path), query, self.headers, self._body()))

    do_POST = do_GET  # noqa: N815 - the name that the library looks for

    def respond(self, request: Request) -> None:
        raise NotImplementedError

    def encoded(self, answer: Answer) -> bytes:
        """The answer as it goes over the wire."""
        head = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", *answer.headers]
        head += [f"Content-Length: {len(answer.body)}"]
        head += ["Connection: close"] if self.close_connection else []
        return "\r\n".join([*head, "", ""]).encode("latin-1") + answer.body

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silence: each side tells what it did itself."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(pieces)


# --- GitHub in a sandbox -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hosted:
    """One repository, who may use it, and whom a push is told to."""

    repo: str
    port: int
    token: str
    hook: str
    secret: str

    def answer(self, request: Request) -> Answer:
        if not admits(self.token, request.headers.get("Authorization", "")):
            return unknown_user()
        environment = for_backend(os.path.dirname(self.repo), request)
        pipe, nothing = subprocess.PIPE, gitcmd.NOTHING
        with gitcmd.process([backend()], environment, pipe, nothing) as child:
            output, _ = child.communicate(request.body, timeout=SECONDS)
        if is_push(request):
            threading.Thread(target=self.deliver, daemon=True).start()
        return from_backend(output)

    def deliver(self) -> None:
        """Tell of a push as GitHub does: once, whether anybody listens or not."""
        to, said = urlsplit(self.hook), json.dumps({"ref": "refs/heads/main"}).encode()
        headers = {
            "Content-Type": "application/json",
            "X-GitHub-Event": "push",
            "X-GitHub-Delivery": str(uuid.uuid4()),
            "X-Hub-Signature-256": "sha256="
            + hmac.new(self.secret.encode(), said, hashlib.sha256).hexdigest(),
        }
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(http.client.HTTPConnection(to.netloc, timeout=10)) as connection,
        ):
            connection.request("POST", to.path, said, headers)
            connection.getresponse().read()


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted
        super().__init__(("127.0.0.1", hosted.port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(Handler):
    server: _Listener

    def respond(self, request: Request) -> None:
        self.wfile.write(self.encoded(self.server.hosted.answer(request)))


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        _Listener(Hosted(**json.load(file))).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
