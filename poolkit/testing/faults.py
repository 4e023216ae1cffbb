"""A network that misbehaves when told to: `FaultProxy` stands between a client and its server.

It is a TCP proxy in a thread of its own, so tests of threads and of asyncio use it alike; what a method was asked for
holds when it returns. It counts what passes, round trips exactly: all links are served by the one thread, in the order
in which things happened.

What it can't do is what only kernels can: the client's kernel gets its ACKs from the proxy. So keepalives and
TCP_USER_TIMEOUT find nothing wrong with a black hole made here, and a test sees what the program's own timeouts do.
"""

from __future__ import annotations

import contextlib
import math
import select
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from poolkit.testing._links import POSTGRES, Conditions, Link, Target, abort, addresses_of

__all__ = ["Cut", "FaultProxy", "Refusal", "Target"]

T = TypeVar("T")
Cut = Literal["rst", "fin"]
Refusal = Literal["closed", "rst", "silent"]

_HOST = "127.0.0.1"
_BACKLOG = 128
_PLACE = ("host", "hostaddr", "port")  # parameters of a PostgreSQL URL that say where the server is
_PATIENCE = 10.0  # seconds for the proxy's thread to do as told; reached only by a fault of its own


class FaultProxy:
    """Forward connections to a server, and fail as networks do when told to; use it with `with`.

    `target` is a URL (`postgresql://user@host:5432/db`), a pair of host and port, or the path of a Unix socket. The
    proxy listens on a free port of the loopback: give the program `proxy.url(url)`, or `proxy.address`. Methods may be
    called from any thread, and from a running event loop (they take less than a millisecond).

    A client is accepted first and the server connected to afterwards; one whose server can't be reached gets an RST.
    Raises ValueError for a target that makes no sense, OSError for a host that has no address.
    """

    def __init__(self, target: Target) -> None:
        self.port = 0
        self._addresses = addresses_of(target)
        self._conditions = Conditions()
        self._selector = selectors.DefaultSelector()
        self._links: set[Link] = set()
        self._thread: threading.Thread | None = None
        self._over = False
        self._todo: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._door: Literal["open"] | Refusal = "open"
        self._listener: socket.socket | None = None
        self._stuffing: list[socket.socket] = []  # our own connects, which fill the backlog of a silent door
        self._accepted = self._refused = self._round_trips = self._most_links = 0
        self._bytes_up = self._bytes_down = 0

    def __repr__(self) -> str:
        where = f"port {self.port}" if self.port else "not started"
        return f"<FaultProxy {where}, {len(self._links)} links>"

    # -- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen, and begin to forward."""
        if self._thread is not None:
            return self
        # It keeps the port ours while nobody listens there: who connects to a socket that is only bound is refused.
        self._keeper = _bound(0)
        self.port = self._keeper.getsockname()[1]
        self._wake, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._open_door()
        self._thread = threading.Thread(target=self._serve, name="poolkit-fault-proxy", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Hang up on everybody and stop. The counts stay readable. May be called twice."""
        if self._thread is None or self._over:
            return
        self._call(self._shut)
        self._thread.join(_PATIENCE)
        for end in (self._wake, self._bell, self._keeper):
            end.close()
        self._selector.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- where it is --------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to, once started."""
        return _HOST, self.port

    def url(self, url: str) -> str:
        """Return the same URL, through the proxy.

        PostgreSQL's gets `sslmode=disable` where it names no sslmode, so that what is counted is the protocol itself.
        """
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        query = parse_qsl(parts.query, keep_blank_values=True)
        if parts.scheme.partition("+")[0] in POSTGRES:
            query = [(name, value) for name, value in query if name not in _PLACE]
            if "sslmode" not in dict(query):
                query.append(("sslmode", "disable"))
        place = f"{user}{at}{_HOST}:{self.port}"
        return urlunsplit((parts.scheme, place, parts.path, urlencode(query), parts.fragment))

    def redirect(self, target: Target) -> None:
        """Send new connections to another server, as a changed DNS entry does; the links of now stay where they are."""
        addresses = addresses_of(target)
        self._call(lambda: setattr(self, "_addresses", addresses))

    # -- counts: exact for all that happened before the question ------------------------------------------------------

    @property
    def accepted(self) -> int:
        """How many connections were accepted, those refused with an RST left out."""
        return self._call(lambda: self._accepted)

    @property
    def refused(self) -> int:
        """How many connections were refused with an RST."""
        return self._call(lambda: self._refused)

    @property
    def links(self) -> int:
        """How many clients are connected, that is, have not hung up."""
        return self._call(self._count_links)

    @property
    def most_links(self) -> int:
        """How many clients were connected at once, at most."""
        return self._call(lambda: self._most_links)

    @property
    def round_trips(self) -> int:
        """How many times a client spoke after it had been spoken to."""
        return self._call(lambda: self._round_trips)

    @property
    def bytes_up(self) -> int:
        """How many bytes clients have sent."""
        return self._call(lambda: self._bytes_up)

    @property
    def bytes_down(self) -> int:
        """How many bytes the server has sent."""
        return self._call(lambda: self._bytes_down)

    # -- faults -------------------------------------------------------------------------------------------------------

    def delay(self, seconds: float = 0.0, *, up: float | None = None, down: float | None = None) -> None:
        """Let everything sent from now on take `seconds` longer each way, or `up` to the server and `down` from it."""
        values = (seconds if up is None else up, seconds if down is None else down)
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"a delay must be a number of seconds of at least 0, not {values}")

        def change() -> None:
            self._conditions.delay_up, self._conditions.delay_down = values

        self._call(change)

    def throttle(self, bytes_per_second: float | None) -> None:
        """Let no more than so many bytes a second through, each way of each link. None: no limit."""
        rate = math.inf if bytes_per_second is None else bytes_per_second
        if not rate > 0:
            raise ValueError(f"bytes_per_second must be more than 0, or None, not {bytes_per_second}")
        self._call(lambda: setattr(self._conditions, "rate", rate))

    def blackhole(self) -> None:
        """Accept and read, and deliver nothing until `heal`: neither data nor ends, to links old and new.

        What was held then arrives in order, as TCP's retransmissions would have it; a client that gave up connecting
        meanwhile leaves no trace. To let connects go unanswered as well, add `refuse("silent")`.
        """
        self._call(lambda: setattr(self._conditions, "holds", True))

    def half_open(self) -> int:
        """Lose the path of every link of now for ever, as a NAT that forgot does; new links work. Returns how many."""
        return self._call(self._lose_links)

    def hold_ends(self) -> None:
        """Keep it from clients when the server hangs up; data passes. As a balancer that keeps its side open."""
        self._call(lambda: setattr(self._conditions, "holds_ends", True))

    def cut(self, how: Cut = "rst") -> int:
        """End every link of now: `rst` as a crash does, `fin` as a server that hangs up. Returns how many.

        With `fin` what was sent before arrives; what the client says afterwards is heard by nobody.
        """
        if how not in ("rst", "fin"):
            raise ValueError(f"how must be 'rst' or 'fin', not {how!r}")
        return self._call(lambda: self._cut(how))

    def refuse(self, how: Refusal = "closed") -> None:
        """Let nobody in; links stay as they are.

        `closed`: nobody listens, a connect gets ECONNREFUSED. `rst`: a connect succeeds and is broken off. `silent`: a
        connect gets no answer at all, as from a host that is gone; a client that is still trying when the door opens
        gets in at its kernel's next attempt, which on Linux is 1, 3, 7... s after its first. Raises OSError where the
        system answers every connect (Linux does not).
        """
        if how not in ("closed", "rst", "silent"):
            raise ValueError(f"how must be 'closed', 'rst' or 'silent', not {how!r}")
        self._call(lambda: self._refuse(how))

    def heal(self) -> None:
        """End every fault: what was held is delivered, and clients get in. What was cut or lost stays so."""
        self._call(self._heal)

    # -- in the proxy's thread ----------------------------------------------------------------------------------------

    def _call(self, work: Callable[[], T]) -> T:
        """Have the thread do something, after all that has happened before; return what it returns."""
        thread = self._thread
        if thread is None:
            raise RuntimeError("this FaultProxy has not been started: call start() first, or use it with `with`")
        if self._over or thread is threading.current_thread():
            return work()
        answer: Future[T] = Future()
        self._todo.append((work, answer))
        self._wake.send(b"!")
        return answer.result(_PATIENCE)

    def _serve(self) -> None:
        try:
            self._forward()
        finally:
            self._over = True
            self._answer()

    def _forward(self) -> None:
        while not self._over:
            events = self._selector.select(self._pause())
            self._attend_to(events)
            if self._door in ("open", "rst"):
                self._accept()
            if any(key.fileobj is self._bell for key, _ in events):
                self._catch_up()
                self._answer()
            self._move_on()

    def _attend_to(self, events: list[tuple[selectors.SelectorKey, int]]) -> bool:
        """Read and write where that can be done now; returns whether there was anything."""
        ours = [(key, mask) for key, mask in events if key.data is not None]
        for key, mask in ours:
            if key.data in self._links:  # not ended by the one before it
                self._attend(key.data, key.fileobj, mask)
        return bool(ours)

    def _catch_up(self) -> None:
        """See what has happened until now. An end takes two looks, behind data; a flood is not waited for."""
        for _ in range(4):
            if not self._attend_to(self._selector.select(0)):
                return

    def _pause(self) -> float | None:
        due = min((link.due(up=up) for link in self._links for up in (True, False)), default=math.inf)
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def _answer(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        while self._todo:
            work, answer = self._todo.popleft()
            try:
                answer.set_result(work())
            except Exception as error:  # noqa: BLE001  it is the caller's
                answer.set_exception(error)

    def _attend(self, link: Link, end: Any, mask: int) -> None:
        if end is link.server and not link.connected:
            self._watch(end, 0, link)  # before it is closed, and another gets its number
            link.connect_further()
        elif mask & selectors.EVENT_READ:
            size, asks = link.read(end, time.monotonic())
            self._round_trips += asks
            self._bytes_up += size if end is link.client else 0
            self._bytes_down += size if end is not link.client else 0
        if mask & selectors.EVENT_WRITE:
            link.can_take(end)
        self._pour(link)

    def _move_on(self) -> None:
        for link in list(self._links):
            if link.server is None and not (link.lost or self._conditions.holds):
                link.connect()
            self._pour(link)

    def _pour(self, link: Link) -> None:
        if not link.over:
            link.pour(time.monotonic())
        for end in link.ends():
            self._watch(end, 0 if link.over else link.interest(end), link)
        if link.over:
            self._links.discard(link)
            link.close()

    def _watch(self, end: Any, events: int, link: Link | None) -> None:
        known = self._selector.get_map().get(end)
        if known is None:
            if events:
                self._selector.register(end, events, link)
        elif not events:
            self._selector.unregister(end)
        elif known.events != events:
            self._selector.modify(end, events, link)

    def _count_links(self) -> int:
        return sum(link.held_by_client for link in self._links)

    # -- the door -----------------------------------------------------------------------------------------------------

    def _open_door(self) -> None:
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.setblocking(False)
            self._listener.listen(_BACKLOG)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                client, peer = self._listener.accept()
            except OSError:  # nobody is there, or one who has gone again
                return
            if peer in [end.getsockname() for end in self._stuffing]:
                client.close()
            elif self._door == "rst":
                self._refused += 1
                abort(client)
            else:
                self._let_in(client)

    def _let_in(self, client: socket.socket) -> None:
        link = Link(client, self._addresses, self._conditions)
        self._accepted += 1
        self._links.add(link)
        if not self._conditions.holds:
            link.connect()
        self._pour(link)
        self._catch_up()  # those who hung up before this one came are not there any more
        self._most_links = max(self._most_links, self._count_links())

    def _refuse(self, how: Refusal) -> None:
        self._heal_door()
        self._door = how
        if how == "closed" and self._listener is not None:
            self._watch(self._listener, 0, None)
            self._listener.close()
            self._listener = None
        elif how == "silent":
            self._fill_backlog()

    def _fill_backlog(self) -> None:
        """Take every place in the listener's queue ourselves: the kernel then drops the connects of others."""
        if self._listener is None:
            raise RuntimeError("nobody listens")
        self._watch(self._listener, 0, None)
        self._listener.listen(0)
        for _ in range(16):
            end = socket.socket()
            end.setblocking(False)
            end.connect_ex(self.address)
            self._stuffing.append(end)
            if not select.select([], [end], [], 0.01)[1]:
                return
        self._heal_door()
        raise OSError("this system answers connects although the queue is full; use refuse('closed') or blackhole()")

    def _heal_door(self) -> None:
        """Open the door as it was, after turning away our own who filled it."""
        self._open_door()
        self._door = "open"
        if self._stuffing and self._listener is not None:
            self._accept()
            for end in self._stuffing:
                end.close()
            self._stuffing.clear()
            self._listener.listen(_BACKLOG)
            self._watch(self._listener, selectors.EVENT_READ, None)

    # -- what happens to links ----------------------------------------------------------------------------------------

    def _lose_links(self) -> int:
        lost = [link for link in self._links if link.held_by_client and not link.lost]
        for link in lost:
            link.lose()
            self._pour(link)
        return len(lost)

    def _cut(self, how: Cut) -> int:
        count = self._count_links()
        for link in list(self._links):
            for end in link.ends():  # before any is closed
                self._watch(end, 0, link)
            if how == "rst":
                link.finish(reset=True)
            else:
                link.hang_up()
            self._pour(link)
        return count

    def _heal(self) -> None:
        self._heal_door()
        # In place: every link looks at these.
        vars(self._conditions).update(vars(Conditions()))

    def _shut(self) -> None:
        self._over = True
        self._heal_door()
        if self._listener is not None:
            self._watch(self._listener, 0, None)
            self._listener.close()
        for link in list(self._links):
            link.finish()
            self._pour(link)


def _bound(port: int) -> socket.socket:
    """Make a socket on our port, which several sockets of ours may have at once."""
    end = socket.socket()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    end.bind((_HOST, port))
    return end
