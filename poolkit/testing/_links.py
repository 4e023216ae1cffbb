"""What a `FaultProxy` carries: links between a client and a server, each of two pipes. One thread moves them on."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass
from selectors import EVENT_READ, EVENT_WRITE
from urllib.parse import parse_qsl, urlsplit

__all__ = ["POSTGRES", "Address", "Conditions", "Link", "Target", "abort", "addresses_of"]

Address = tuple[socket.AddressFamily, object]
Target = str | os.PathLike[str] | tuple[str, int]

POSTGRES = ("postgresql", "postgres")
_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "redis": 6379, "amqp": 5672, "http": 80, "https": 443}

MOST_HELD = 1 << 20  # about what the buffers of a real path hold; beyond that the sender is made to wait
_NEXT_PIECE = 0.02  # a throttled pipe delivers this many seconds' worth at a time, not all of it late
_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)

_END = b""  # in a pipe: the source has said its last
_RESET = None  # in a pipe: the source has broken off


@dataclass
class Conditions:
    """What the network is like just now, for every link."""

    delay_up: float = 0.0
    delay_down: float = 0.0
    rate: float = math.inf  # bytes per second, each way of each link
    holds: bool = False  # nothing arrives
    holds_ends: bool = False  # that the server has hung up does not arrive


class _Pipe:
    """One way of a link: what was read from one end and is on its way to the other, in order."""

    __slots__ = ("delivered_all", "free_at", "full", "held", "read_all", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, bytes | None]] = deque()  # when it is due, and what
        self.held = 0
        self.free_at = 0.0  # when the throttle lets the next piece go
        self.full = False  # the receiver takes no more at present
        self.read_all = False
        self.delivered_all = False

    def put(self, data: bytes | None, due: float) -> None:
        self.waiting.append((due, data))
        self.held += len(data or b"")
        self.read_all = not data

    def stop(self) -> None:
        """Deliver nothing more: nobody is there to take it."""
        self.waiting.clear()
        self.held = 0
        self.full = False
        self.delivered_all = True


class Link:
    """A client's connection, and the one to the server made for it. All calls come from the proxy's thread."""

    def __init__(self, client: socket.socket, addresses: list[Address], conditions: Conditions) -> None:
        self.client = client
        self.server: socket.socket | None = None
        self.connected = False
        self.over = False  # nothing more will happen here
        self.lost = False  # the path is gone: whatever either end sends vanishes
        self._reset = False  # it ends as if somebody had crashed
        self._asked = False  # the client spoke last
        self._addresses = list(addresses)
        self._conditions = conditions
        self._up, self._down = _Pipe(), _Pipe()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def held_by_client(self) -> bool:
        """Whether the client has not hung up."""
        return not self._up.read_all and not self.over

    # -- the server's end ---------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begin to connect to the first address that is left; a client that nobody will answer is reset."""
        while self._addresses:
            family, address = self._addresses.pop(0)
            self.server = socket.socket(family, socket.SOCK_STREAM)
            self.server.setblocking(False)
            problem = self.server.connect_ex(address)  # type: ignore[arg-type]  # it suits its family
            if not problem or problem in _UNDER_WAY:
                return
            self.server.close()
        self.server = None
        self.finish(reset=True)

    def connect_further(self) -> None:
        """The connect has come to its end: with a connection, or the next address is tried."""
        server = self.server
        if server is None:
            return
        if server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            server.close()
            self.connect()
            return
        self.connected = True
        if server.family != getattr(socket, "AF_UNIX", None):
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, end: socket.socket, now: float) -> tuple[int, bool]:
        """Take what has come from one end. Returns how many bytes, and whether they began a round trip."""
        up = end is self.client
        try:
            data: bytes | None = end.recv(65536)
        except BlockingIOError:
            return 0, False
        except OSError:
            data = _RESET
        if data is _RESET:
            self._pipe(up=not up).stop()
        if self.lost:
            self._pipe(up=up).read_all = not data
            self.over = self.over or (up and not data and self.server is None)
            return len(data or b""), False
        delay = self._conditions.delay_up if up else self._conditions.delay_down
        self._pipe(up=up).put(data, now + delay)
        asks = bool(data) and up and not self._asked
        if data:
            self._asked = up
        return len(data or b""), asks

    def _pipe(self, *, up: bool) -> _Pipe:
        return self._up if up else self._down

    # -- delivering ---------------------------------------------------------------------------------------------------

    def due(self, *, up: bool) -> float:
        """When something may be delivered that way next; never, as long as nothing else changes: infinity."""
        pipe = self._pipe(up=up)
        stuck = not pipe.waiting or pipe.full or not self.connected or self.lost or self._conditions.holds
        if stuck or (not up and not pipe.waiting[0][1] and self._conditions.holds_ends):
            return math.inf
        return max(pipe.waiting[0][0], pipe.free_at)

    def pour(self, now: float) -> None:
        """Deliver all that is due, both ways."""
        if self.server is None and not self.lost and self._up.read_all:
            self.finish()  # it gave up before the server heard of it; a real connect would have left no trace either
        for up in (True, False):
            while not self.over and self.due(up=up) <= now:
                self._deliver(up=up, now=now)
        if self._up.delivered_all and self._down.delivered_all:
            self.finish()

    def _deliver(self, *, up: bool, now: float) -> None:
        pipe = self._pipe(up=up)
        due, data = pipe.waiting.popleft()
        sink = self.server if up else self.client
        if sink is None:
            pipe.stop()
        elif data is _RESET:
            self.finish(reset=True)
        elif not data:
            pipe.stop()
            with contextlib.suppress(OSError):  # the other has hung up as well
                sink.shutdown(socket.SHUT_WR)
        else:
            sent = self._send(pipe, sink, data)
            pipe.held -= sent
            pipe.free_at = max(pipe.free_at, now) + sent / self._conditions.rate
            if sent < len(data) and not pipe.delivered_all:
                pipe.waiting.appendleft((due, data[sent:]))

    def _send(self, pipe: _Pipe, sink: socket.socket, data: bytes) -> int:
        rate = self._conditions.rate
        piece = data if rate == math.inf else data[: max(1, int(rate * _NEXT_PIECE))]
        try:
            return sink.send(piece)
        except BlockingIOError:
            pipe.full = True
        except OSError:  # it has broken off, and tells us by refusing what we send
            pipe.stop()
            back = self._pipe(up=sink is self.client)
            if not back.read_all:
                back.put(_RESET, 0.0)
        return 0

    def can_take(self, end: socket.socket) -> None:
        """One end takes data again."""
        self._pipe(up=end is not self.client).full = False

    # -- the loop's questions, and the end ----------------------------------------------------------------------------

    def interest(self, end: socket.socket) -> int:
        """What the selector is to watch one end for."""
        if end is self.server and not self.connected:
            return EVENT_WRITE
        out, into = (self._up, self._down) if end is self.client else (self._down, self._up)
        reading = not out.read_all and (out.held < MOST_HELD or self.lost)
        return (EVENT_READ if reading else 0) | (EVENT_WRITE if into.full else 0)

    def ends(self) -> list[socket.socket]:
        """The sockets it has."""
        return [self.client] if self.server is None else [self.client, self.server]

    def lose(self) -> None:
        """Let the path vanish without a word to either end."""
        self.lost = True
        self._up.waiting.clear()
        self._down.waiting.clear()

    def hang_up(self) -> None:
        """Say goodbye to both ends, after all that was sent before; what they say from now on is not heard."""
        for up in (True, False):
            while self.due(up=up) < math.inf:
                self._deliver(up=up, now=math.inf)
        server, self.server = self.server, None
        for end in filter(None, (self.client, server)):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)
        if server is not None:
            server.close()
        self.lose()
        self.over = self._up.read_all

    def finish(self, *, reset: bool = False) -> None:
        """Let it be over; `reset`: as one whose other side has crashed. The proxy closes it."""
        self.over = True
        self._reset = self._reset or reset

    def close(self) -> None:
        """Close both ends; nothing may watch them any more."""
        for end in self.ends():
            abort(end) if self._reset else _close(end)


def abort(end: socket.socket) -> None:
    """Close with an RST: what has not arrived is thrown away."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # a forked child may hold a copy, so closing alone might say nothing
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def addresses_of(target: Target) -> list[Address]:
    """Find what to connect to, in the order in which to try."""
    if isinstance(target, tuple):
        found = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]
    text = os.fspath(target)
    if "://" not in text:
        if not text.startswith("/"):
            raise ValueError("a target must be a URL, a pair of host and port, or the absolute path of a Unix socket")
        return [(socket.AF_UNIX, text)]
    parts = urlsplit(text)
    scheme = parts.scheme.partition("+")[0]
    given = dict(parse_qsl(parts.query)) if scheme in POSTGRES else {}
    host = given.get("host") or parts.hostname or "localhost"
    port = int(given.get("port") or parts.port or _PORTS.get(scheme, 0))
    if not port or "," in parts.netloc or "," in host:
        raise ValueError("the target's URL must name one host, and its port")
    return addresses_of(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
