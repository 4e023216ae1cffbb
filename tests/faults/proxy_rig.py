"""Plain sockets on both sides of a fault proxy."""

from __future__ import annotations

import contextlib
import socket

GRACE = 5.0  # seconds until a blocked call of a failing test gives up
MOMENT = 0.02  # long enough for what must not arrive to arrive all the same


class Pair:
    """A server and a proxy before it, and whatever was connected."""

    def __init__(self, proxy, listener):
        self.proxy, self.listener = proxy, listener
        self._made = contextlib.ExitStack()

    def connect(self):
        """Return a connected client."""
        client = socket.create_connection(self.proxy.address, timeout=GRACE)
        return self._made.enter_context(client)

    def accept(self):
        """Return the server's end of the next link."""
        return self._made.enter_context(patient(self.listener.accept()[0]))

    def link(self):
        client = self.connect()
        return client, self.accept()

    def nobody_comes(self):
        self.listener.settimeout(MOMENT)
        try:
            self.listener.accept()
        except TimeoutError:
            return True
        finally:
            self.listener.settimeout(GRACE)
        return False

    def close(self):
        self._made.close()


def patient(end):
    end.settimeout(GRACE)
    return end


def silent(end):
    """Nothing arrives, no end either."""
    end.settimeout(MOMENT)
    try:
        return end.recv(1) is None
    except TimeoutError:
        return True
    finally:
        end.settimeout(GRACE)


def ping(client, server, text=b"ping"):
    """A question and its answer."""
    client.sendall(text)
    assert server.recv(100) == text
    server.sendall(text)
    assert client.recv(100) == text


def ping_through(proxy, listener):
    with socket.create_connection(proxy.address) as client, patient(listener.accept()[0]) as server:
        ping(client, server)
