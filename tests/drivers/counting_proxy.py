"""A TCP proxy that counts round trips exactly: how many times a client spoke after it had been spoken to."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit


@dataclass(eq=False)
class _Link:
    client: socket.socket
    server: socket.socket
    asked: bool = False  # the client spoke last

    def other(self, end: socket.socket) -> socket.socket:
        return self.server if end is self.client else self.client


class CountingProxy:
    """Forwards to one server. One thread serves all links, so what it counts is in the order in which it happened."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._bell = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self.round_trips = 0
        self.hides_ends = False  # keep it from the client when the server hangs up
        self._links: list[_Link] = []
        self._thread = threading.Thread(target=self._serve, name="counting-proxy", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    def url(self, url: str) -> str:
        """The same URL, through the proxy, and unencrypted."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        query = "&".join(filter(None, [parts.query, "sslmode=disable"]))
        return urlunsplit((parts.scheme, f"{user}{at}127.0.0.1:{self.port}", parts.path, query, ""))

    def hang_up(self) -> None:
        """End what is sent to every client, after all that was sent before; nothing says why."""
        for link in self._links:
            link.client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._wake.close()
        self._thread.join(5)
        for link in self._links:
            link.client.close()
            link.server.close()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._bell:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj.fileno() >= 0:  # not closed by the one before it
                    self._forward(key.data, key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        link = _Link(client, socket.create_connection(self._target))
        self._links.append(link)
        for end in (link.client, link.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(end, selectors.EVENT_READ, link)

    def _forward(self, link: _Link, end: socket.socket) -> None:
        try:
            data = end.recv(65536)
        except OSError:
            data = b""
        if not data:
            if end is link.server and self.hides_ends:
                self._selector.unregister(end)
            else:
                self._part(link)
            return
        if end is link.client and not link.asked:
            self.round_trips += 1
        link.asked = end is link.client
        with contextlib.suppress(OSError):
            link.other(end).sendall(data)

    def _part(self, link: _Link) -> None:
        for end in (link.client, link.server):
            with contextlib.suppress(KeyError):
                self._selector.unregister(end)
            end.close()
