"""A server that exists only in memory, drivers for it, and time that passes only when told to."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["FakeAsyncDriver", "FakeConnection", "FakeDriver", "FakeServer", "ManualClock", "ManualRuntime"]


class FakeError(Exception):
    """What the fake server answers when it is down or told to fail."""


@dataclass
class FakeServer:
    """Counts what is asked of it.

    Set `down` to refuse connects, `fail_commit` and `fail_reset` to refuse those, `read_only` to refuse "write" as a
    server does that was demoted; `kill()` ends sessions.
    """

    down: bool = False
    fail_commit: bool = False
    fail_reset: bool = False
    read_only: bool = False
    open_now: int = 0
    opened: int = 0
    peak: int = 0
    log: list[str] = field(default_factory=list)
    connections: list[FakeConnection] = field(default_factory=list)

    def connect(self) -> FakeConnection:
        """Open a session, or raise `FakeError`."""
        if self.down:
            raise FakeError("the fake server is down")
        self.opened += 1
        self.open_now += 1
        self.peak = max(self.peak, self.open_now)
        connection = FakeConnection(self, self.opened)
        self.connections.append(connection)
        return connection

    def kill(self) -> None:
        """End every session from the server's side: the clients find out later."""
        for connection in self.connections:
            connection.killed = True


class FakeConnection:
    """One session. `execute("bad")` fails and aborts the transaction, as PostgreSQL does.

    Set `mute` and it answers no ping; set `deaf` and it is gone, though its client's own state still looks clean.
    """

    def __init__(self, server: FakeServer, number: int) -> None:
        self.server = server
        self.number = number
        self.closed = False
        self.killed = False
        self.mute = False
        self.deaf = False
        self.abandoned = False
        self.in_transaction = False
        self.aborted = False
        self.dirty = False
        self.explicit_end: Callable[[str], None] | None = None
        self.pings = 0

    def execute(self, statement: str) -> None:
        """Do as told: any word is logged, "bad" fails, "dirty" leaves session state behind."""
        if self.killed or self.closed:
            raise FakeError("the session has ended")
        self.server.log.append(f"{self.number}:{statement}")
        if statement == "bad":
            self.aborted = self.in_transaction
            raise FakeError("bad statement")
        if statement == "write" and self.server.read_only:
            raise FakeError("the fake server is read-only")
        if statement.startswith("ROLLBACK TO "):
            self.aborted = False
        self.dirty = self.dirty or statement == "dirty"

    def commit(self) -> None:
        """Commit, as a borrower does; the next transaction begins by itself."""
        self._end("commit")

    def rollback(self) -> None:
        """Roll back, as a borrower does."""
        self._end("rollback")

    def _end(self, verb: str) -> None:
        if self.explicit_end is not None:
            self.explicit_end(verb)
        self.aborted = False
        self.execute(f"own {verb}")

    def close(self) -> None:
        """End the session; a second time is an error, so that tests see a double close."""
        if self.closed:
            raise AssertionError(f"connection {self.number} was closed twice")
        self.closed = True
        self.server.open_now -= 1

    def __repr__(self) -> str:
        return f"<FakeConnection {self.number}>"


class _Common:
    defaults: Mapping[str, object] = {}

    def __init__(self, server: FakeServer | None = None) -> None:
        self.server = server or FakeServer()

    def alive(self, connection: FakeConnection) -> bool:
        return not (connection.closed or connection.killed or connection.deaf)

    def clean(self, connection: FakeConnection) -> bool:
        return not (connection.dirty or connection.in_transaction or connection.closed or connection.killed)

    def is_broken(self, connection: FakeConnection, error: BaseException | None) -> bool:
        return connection.closed or connection.killed or (connection.server.read_only and error is not None)

    def demoted(self, connection: FakeConnection, error: BaseException | None) -> bool:  # noqa: ARG002
        return connection.server.read_only

    def is_retryable(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) in {"40001", "40P01"}

    def abandon(self, connection: FakeConnection) -> None:
        connection.abandoned = True

    def aborted(self, connection: FakeConnection) -> bool:
        return connection.aborted

    def in_transaction(self, connection: FakeConnection) -> bool:
        return connection.in_transaction

    def _ping(self, connection: FakeConnection) -> bool:
        connection.pings += 1
        return self.alive(connection) and not connection.mute

    def _reset(self, connection: FakeConnection, *, full: bool) -> None:
        if connection.closed or connection.killed or connection.server.fail_reset:
            raise FakeError("the session can't be reset")
        connection.server.log.append(f"{connection.number}:{'full ' if full else ''}reset")
        connection.dirty = connection.in_transaction = connection.aborted = False

    def on_explicit_end(self, connection: FakeConnection, callback: Callable[[str], None] | None) -> None:
        connection.explicit_end = callback

    def _begin(self, connection: FakeConnection, options: Any) -> None:
        words = [] if options is None else [f"{name}={value}" for name, value in asdict(options).items() if value]
        connection.execute(" ".join(["begin", *words]))
        connection.in_transaction = True

    def _commit(self, connection: FakeConnection) -> None:
        connection.explicit_end = None
        if not connection.in_transaction:
            return
        connection.in_transaction = False
        if connection.server.fail_commit:
            raise FakeError("the fake server refuses the commit")
        connection.execute("commit")

    def _rollback(self, connection: FakeConnection) -> None:
        connection.explicit_end = None
        if connection.in_transaction:
            connection.in_transaction = connection.aborted = False
            connection.execute("rollback")


class FakeDriver(_Common):
    """A transactional driver for threads over a `FakeServer`.

    `on_open` is called before each connect: to block, to fail.
    """

    def __init__(self, server: FakeServer | None = None, on_open: Callable[[], object] | None = None) -> None:
        super().__init__(server)
        self.on_open = on_open

    def open(self, timeout: float) -> FakeConnection:  # noqa: ARG002  a fake takes no time, unless `on_open` does
        """Connect."""
        if self.on_open is not None:
            self.on_open()
        return self.server.connect()

    def close(self, connection: FakeConnection) -> None:
        """Close."""
        connection.close()

    def ping(self, connection: FakeConnection, timeout: float) -> bool:  # noqa: ARG002
        """Count a round trip."""
        return self._ping(connection)

    def reset(self, connection: FakeConnection, *, full: bool) -> None:
        """Clean, or raise where the session has ended."""
        self._reset(connection, full=full)

    def begin(self, connection: FakeConnection, options: Any = None) -> None:
        """Begin; what the options are is logged."""
        self._begin(connection, options)

    def commit(self, connection: FakeConnection) -> None:
        """Commit, or raise where the server was told to refuse."""
        self._commit(connection)

    def rollback(self, connection: FakeConnection) -> None:
        """Roll back."""
        self._rollback(connection)


class FakeAsyncDriver(_Common):
    """The same for asyncio; `on_open` may return an awaitable."""

    def __init__(self, server: FakeServer | None = None, on_open: Callable[[], Any] | None = None) -> None:
        super().__init__(server)
        self.on_open = on_open

    async def open(self, timeout: float) -> FakeConnection:  # noqa: ARG002
        """Connect."""
        if self.on_open is not None:
            awaitable = self.on_open()
            if awaitable is not None:
                await awaitable
        return self.server.connect()

    async def close(self, connection: FakeConnection) -> None:
        """Close."""
        connection.close()

    def terminate(self, connection: FakeConnection) -> None:
        """Close without the loop."""
        if not connection.closed:
            connection.close()

    async def ping(self, connection: FakeConnection, timeout: float) -> bool:  # noqa: ARG002
        """Count a round trip."""
        return self._ping(connection)

    async def reset(self, connection: FakeConnection, *, full: bool) -> None:
        """Clean, or raise where the session has ended."""
        self._reset(connection, full=full)

    async def begin(self, connection: FakeConnection, options: Any = None) -> None:
        """Begin; what the options are is logged."""
        self._begin(connection, options)

    async def commit(self, connection: FakeConnection) -> None:
        """Commit, or raise where the server was told to refuse."""
        self._commit(connection)

    async def rollback(self, connection: FakeConnection) -> None:
        """Roll back."""
        self._rollback(connection)


class ManualClock:
    """Seconds that pass only by `advance`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Tell the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class ManualRuntime:
    """Surroundings for a `Pool` in which nothing happens by itself: a clock, and timers that run in `advance`.

    Connects run at once, in the caller; with `hold=True` they are kept in `pending` until `run_pending`.
    """

    def __init__(self, *, hold: bool = False) -> None:
        self.clock = ManualClock()
        self.hold = hold
        self.pending: list[Callable[[], None]] = []
        self.pools: list[Any] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def random(self) -> float:
        """Always the middle."""
        return 0.5

    def spawn(self, work: Callable[[], None]) -> None:
        """Run now, or keep."""
        if self.hold:
            self.pending.append(work)
        else:
            work()

    def run_pending(self) -> int:
        """Run what was kept; returns how many."""
        works, self.pending = self.pending, []
        for work in works:
            work()
        return len(works)

    def call_later(self, delay: float, work: Callable[[], None]) -> None:
        """Run `work` when the clock has advanced so far."""
        heapq.heappush(self._timers, (self.clock() + delay, next(self._numbers), work))

    def watch(self, pool: Any) -> None:
        """Sweep `pool` whenever time passes."""
        self.pools.append(pool)

    def advance(self, seconds: float) -> None:
        """Let time pass: timers that fall due run in order, then every pool is swept."""
        until = self.clock() + seconds
        while self._timers and self._timers[0][0] <= until:
            moment, _, work = heapq.heappop(self._timers)
            self.clock.now = max(self.clock.now, moment)
            work()
        self.clock.now = until
        for pool in self.pools:
            pool.sweep()
