"""A git server over smart HTTP on loopback that stands for GitHub, with faults on demand.

``GitServer`` hands each request to git's own ``http-backend``; refusals come from a real
pre-receive hook. The functions ``bare``, ``head``, ``files``, ``commits``, ``commit``,
``force_push`` and ``delete_branch`` read and edit any bare repository, as a person would on
GitHub's pages: no hook runs, nothing asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from annoris.sandbox.githttp import (
    SECONDS,
    Answer,
    Handler,
    Request,
    admits,
    backend,
    for_backend,
    from_backend,
    is_push,
    own_environment,
    plain,
    unknown_user,
)

_HOOK = Path(__file__).with_name("prereceive.py")
_CONFIG = "[gc]\n\tauto = 0\n[receive]\n\tautogc = false\n[http]\n\treceivepack = true\n"


# --- any bare repository ---------------------------------------------------------------------


def bare(folder: Path, branch: str = "main") -> Path:
    """Make an empty bare repository in ``folder``, which is also the answer."""
    command = ["git", "init", "--quiet", "--bare", "--template=", f"--initial-branch={branch}"]
    subprocess.run([*command, str(folder)], env=own_environment(), check=True, timeout=60)
    with (folder / "config").open("a", encoding="ascii") as config:
        config.write(_CONFIG)
    return folder


def head(repo: Path, branch: str = "main") -> str:
    """The tip of the branch; empty when there is no such branch."""
    return _git(repo, "for-each-ref", "--format=%(objectname)", _ref(branch)).decode().strip()


def commits(repo: Path, branch: str = "main") -> int:
    """How many commits the branch has."""
    tip = head(repo, branch)
    return int(_git(repo, "rev-list", "--count", tip)) if tip else 0


def files(repo: Path, branch: str = "main") -> dict[str, bytes]:
    """Every file of the branch's tip by its path."""
    tip = head(repo, branch)
    listing = _git(repo, "ls-tree", "-r", "-z", tip) if tip else b""
    entries = [entry.split(b"\t", 1) for entry in listing.split(b"\0") if entry]
    oids = [fields.split()[2] for fields, _ in entries]
    output = _git(repo, "cat-file", "--batch", stdin=b"".join(oid + b"\n" for oid in oids))
    found, start = {}, 0
    for _, path in entries:
        line = output.index(b"\n", start)
        end = line + 1 + int(output[start:line].split()[2])
        found[os.fsdecode(path)] = output[line + 1 : end]
        start = end + 1
    return found


def commit(
    repo: Path,
    files: Mapping[str, bytes | None],
    message: str = "by hand",
    *,
    parent: str | None = None,
    branch: str = "main",
    at: int = 0,
) -> str:
    """Put one commit on the branch; None removes a file. Answers the commit.

    With ``parent`` the branch is moved to a child of that commit, whatever it held before. ``at``
    is its time in seconds since the epoch, not now.
    """
    start = parent or head(repo, branch)
    origin = f"from {start}\n" if start else ""
    return _import(repo, branch, files, message, origin, bool(parent), at)


def force_push(repo: Path, files: Mapping[str, bytes], *, branch: str = "main") -> str:
    """Replace the branch's history by one root commit with exactly these files."""
    return _import(repo, branch, files, "rewritten", "", force=True)


def delete_branch(repo: Path, branch: str = "main") -> None:
    _git(repo, "update-ref", "-d", _ref(branch))


def _import(
    repo: Path,
    branch: str,
    files: Mapping[str, bytes | None],
    message: str,
    start: str,
    force: bool,
    at: int = 0,
) -> str:
    text = message.encode()
    stream = [
        f"feature done\ncommit {_ref(branch)}\nmark :1\n".encode(),
        b"committer A Person <person@example.org> %b\n" % (b"%d +0000" % at if at else b"now"),
        b"data %d\n%b\n%b" % (len(text), text, start.encode()),
    ]
    for path, data in files.items():
        name = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        quoted = b'"' + os.fsencode(name) + b'"\n'
        if data is None:
            stream.append(b"D " + quoted)
        else:
            stream.append(b"M 100644 inline %bdata %d\n%b\n" % (quoted, len(data), data))
    stream.append(b"\nget-mark :1\ndone\n")
    options = ["--quiet", *([] if at else ["--date-format=now"]), *(["--force"] if force else [])]
    return _git(repo, "fast-import", *options, stdin=b"".join(stream)).decode().strip()


def _ref(branch: str) -> str:
    return f"refs/heads/{branch}"


def _git(repo: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(
        ["git", f"--git-dir={repo}", *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        env=own_environment(),
        check=True,
        timeout=SECONDS,
    ).stdout


# --- the server ------------------------------------------------------------------------------


class GitServer:
    """One repository behind smart HTTP; a context manager that leaves no thread or process.

    ``url`` is what a client clones, ``repo`` the bare repository itself. With ``token`` every
    request must carry it, as the password of Basic (any user name) or as Bearer. The faults
    may be set at any time and hold for the requests that come after:

    ``status``    every request is answered with this HTTP status and a short text
    ``hang``      "accept": say nothing; "drip": send one byte a second; "": neither
    ``lose_ack``  so many pushes are applied, then the connection closes without an answer
    ``cut``       so many answers stop in their middle (a push behind it is applied)
    ``delay``     seconds before each request is looked at

    Who gave up while waiting for ``hang`` or ``delay`` has asked for nothing: git never sees it.
    ``requests`` counts all requests, ``pushes`` and ``fetches`` the POSTs that reached git's
    receive-pack and upload-pack (a fetch of new commits makes two), ``pushed`` the bytes that
    came with pushes.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str = "sessions.git",
        branch: str = "main",
        token: str | None = None,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.branch = branch
        self.token = token
        self.status: int | None = None
        self.hang: Literal["", "accept", "drip"] = ""
        self.lose_ack = self.cut = 0
        self.delay = 0.0
        self.requests = self.pushes = self.fetches = self.pushed = 0
        self.repo = bare(root / name, branch)
        self._rules: list[dict[str, object]] = []
        self._install_hook()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._listener = _Listener(self)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}/{name}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> GitServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every connection, git process and thread."""
        with self.lock:
            self.closing.set()
            for child in self._children:
                _kill(child)
        self._listener.shutdown()
        self._listener.hang_up()
        self._listener.server_close()
        self._thread.join()

    # The repository, as a person sees and edits it on GitHub's pages.

    def head(self) -> str:
        return head(self.repo, self.branch)

    def files(self) -> dict[str, bytes]:
        return files(self.repo, self.branch)

    def commits(self) -> int:
        return commits(self.repo, self.branch)

    def commit(
        self,
        files: Mapping[str, bytes | None],
        message: str = "by hand",
        *,
        parent: str | None = None,
    ) -> str:
        return commit(self.repo, files, message, parent=parent, branch=self.branch)

    def force_push(self, files: Mapping[str, bytes]) -> str:
        return force_push(self.repo, files, branch=self.branch)

    def delete_branch(self) -> None:
        delete_branch(self.repo, self.branch)

    # What it refuses. Rules add up until ``allow_all``.

    def protect(self) -> None:
        """Refuse every push to the branch (GH006)."""
        self._refuse(kind="protect", ref=_ref(self.branch))

    def refuse_content(self, needle: bytes, name_path: bool = True) -> None:
        """Refuse pushes that bring a file with ``needle`` in it, as a secret (GH013)."""
        self._refuse(kind="content", needle=needle.decode("latin-1"), name_path=name_path)

    def refuse_larger(self, limit: int, name_path: bool = True) -> None:
        """Refuse pushes that bring a file of more than ``limit`` bytes (GH001)."""
        self._refuse(kind="larger", limit=limit, name_path=name_path)

    def allow_all(self) -> None:
        self._rules.clear()
        (self.repo / "refusals.json").unlink(missing_ok=True)

    def _refuse(self, **rule: object) -> None:
        self._rules.append(rule)
        new = self.repo / "refusals.json.new"
        new.write_text(json.dumps(self._rules))
        new.replace(self.repo / "refusals.json")

    def _install_hook(self) -> None:
        hook = self.repo / "hooks" / "pre-receive"
        hook.parent.mkdir(exist_ok=True)
        python = shlex.join([sys.executable, "-I", "-S", str(_HOOK)])
        hook.write_text(f"#!/bin/sh\n[ -f refusals.json ] || exit 0\nexec {python}\n")
        hook.chmod(0o755)

    # One request.

    def take(self, fault: Literal["lose_ack", "cut"]) -> bool:
        """Whether a counted fault is due now; one less is then left."""
        with self.lock:
            left = int(getattr(self, fault))
            setattr(self, fault, max(0, left - 1))
        return left > 0

    def answer(self, request: Request, gone: Callable[[], bool]) -> Answer | None:
        """What the server says; None: it hangs up without a word."""
        with self.lock:
            self.requests += 1
        if not self._wait(gone):
            return None
        if self.status:
            return plain(self.status, f"{HTTPStatus(self.status).phrase}, says the test.")
        if self.token and not admits(self.token, request.headers.get("Authorization", "")):
            return unknown_user()
        pushing = self._count(request)
        answer = self._ask_git(request)
        return None if pushing and self.take("lose_ack") else answer

    def _wait(self, gone: Callable[[], bool]) -> bool:
        """Sit out ``hang`` and ``delay``; whether somebody is still there to be answered."""
        until = time.monotonic() + self.delay
        while self.hang == "accept" or time.monotonic() < until:
            if self.closing.wait(0.02) or gone():
                return False
        return True

    def _count(self, request: Request) -> bool:
        """Count what reaches git; whether it is a push."""
        pushing = is_push(request)
        with self.lock:
            self.pushes += pushing
            self.pushed += len(request.body) if pushing else 0
            self.fetches += request.method == "POST" and request.path.endswith("/git-upload-pack")
        return pushing

    def _ask_git(self, request: Request) -> Answer | None:
        environment = for_backend(str(self.repo.parent), request)
        with self.lock:
            if self.closing.is_set():
                return None
            pipe = subprocess.PIPE
            child = subprocess.Popen(
                [backend()], stdin=pipe, stdout=pipe, env=environment, start_new_session=True
            )
            self._children.add(child)
        with child:
            try:
                output, _ = child.communicate(request.body, timeout=SECONDS)
            finally:
                if child.poll() is None:
                    _kill(child)
                with self.lock:
                    self._children.discard(child)
        return from_backend(output)


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


class _Listener(socketserver.ThreadingTCPServer):
    """One thread for each connection; closing waits for all of them."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, git: GitServer) -> None:
        self.git = git
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(Handler):
    server: _Listener

    def respond(self, request: Request) -> None:
        answer = self.server.git.answer(request, self._gone)
        if answer:
            self._send(answer)
        else:
            self.close_connection = True

    def _gone(self) -> bool:
        readable = select.select([self.connection], [], [], 0)[0]
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _send(self, answer: Answer) -> None:
        git = self.server.git
        cut = git.take("cut")
        # On a connection that it used before, curl would repeat a lost request by itself.
        self.close_connection = self.close_connection or cut or git.lose_ack > 0
        raw = self.encoded(answer)
        if cut:
            raw = raw[: len(raw) - max(1, len(answer.body) // 2)]
        while raw and git.hang == "drip" and not git.closing.wait(1):
            self.wfile.write(raw[:1])
            raw = raw[1:]
        self.wfile.write(raw)
