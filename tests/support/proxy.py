"""A TCP proxy on loopback that fails on demand, to stand between a client and a real server."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Literal

Mode = Literal["pass", "refuse", "blackhole", "drip", "cut"]


class Proxy:
    """Passes bytes between ``127.0.0.1:port`` and ``upstream`` as ``mode`` says.

    ``mode`` may be set at any time, also for the connections that are open:

    ``pass``       everything passes
    ``refuse``     a new connection is refused, the open ones are closed; the port stays ours
    ``blackhole``  connections are accepted and read, nothing passes either way; when it ends
                   they are closed, because what they lost would make sense to nobody
    ``drip``       one byte of answer a second
    ``cut``        a connection closes after ``cut_after`` further bytes of answer

    ``delay`` is how many seconds each piece of an answer waits. ``connections`` counts those
    that were accepted, ``bytes_up`` and ``bytes_down`` what passed. A context manager that
    leaves no thread and no socket.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.delay = 0.0
        self.cut_after = 20
        self.connections = self.bytes_up = self.bytes_down = 0
        self._mode: Mode = "pass"
        self._changed = threading.Condition()
        self._open: dict[threading.Thread, list[socket.socket]] = {}
        # Bound for as long as we live and never listening: nobody else gets the port.
        self._hold = _bound(0)
        self.port: int = self._hold.getsockname()[1]
        self._listen()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        before = self._mode
        if mode == before:
            return
        with self._changed:
            self._mode = mode
            self._changed.notify_all()
        if mode == "refuse":
            self._refuse()
        elif before == "refuse":
            self._listen()
        if before == "blackhole":
            self._hang_up()

    def close(self) -> None:
        """Refuse, end every connection and thread, and give the port back."""
        self.mode = "refuse"
        for thread in list(self._open):
            thread.join()
        self._hold.close()

    def _listen(self) -> None:
        self._listener = _bound(self.port)
        self._listener.listen(128)
        self._listener.settimeout(0.02)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _refuse(self) -> None:
        self._accepting.join()
        self._listener.close()
        self._hang_up()

    def _accept(self) -> None:
        while self._mode != "refuse":
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                client.settimeout(None)
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(client,))
                self._open[thread] = [client]
                thread.start()

    def _hang_up(self) -> None:
        for sockets in list(self._open.values()):
            for end in list(sockets):
                _shut(end)

    def _serve(self, client: socket.socket) -> None:
        me = threading.current_thread()
        with client, contextlib.suppress(OSError):
            if self._mode == "blackhole":
                _swallow(client)
            else:
                with socket.create_connection(self.upstream, timeout=5) as server:
                    self._open[me].append(server)
                    self._join(client, server)
        del self._open[me]

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        if self._mode == "refuse":  # since a moment ago: nobody else hangs this one up
            return
        server.settimeout(None)
        for end in (client, server):  # pass each piece on at once, as those two send it
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        down = threading.Thread(target=self._down, args=(server, client))
        down.start()
        self._up(client, server)
        down.join()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._mode != "blackhole":
                    server.sendall(data)
                    self._passed(up=len(data))
        _shut(server, socket.SHUT_WR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        given = 0  # bytes of answer since the mode is "cut"
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                while data and self._waited() != "blackhole":
                    mode = self._mode
                    most = {"drip": 1, "cut": self.cut_after - given}.get(mode, len(data))
                    piece, data = data[:most], data[most:]
                    client.sendall(piece)
                    self._passed(down=len(piece))
                    given = given + len(piece) if mode == "cut" else 0
                    if mode == "cut" and given >= self.cut_after:
                        _shut(server)
                        _shut(client)
                        return
        if self._mode != "blackhole":  # out of which not even an end comes
            _shut(client, socket.SHUT_WR)

    def _waited(self) -> Mode:
        """Sit out ``delay`` and the drip's second, or until the mode changes; the mode now."""
        with self._changed:
            mode = self._mode
            seconds = self.delay + (1.0 if mode == "drip" else 0.0)
            self._changed.wait_for(lambda: self._mode != mode, timeout=seconds)
            return self._mode

    def _passed(self, up: int = 0, down: int = 0) -> None:
        with self._changed:
            self.bytes_up += up
            self.bytes_down += down


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _swallow(source: socket.socket) -> None:
    while source.recv(65536):
        pass


def _shut(end: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(how)
