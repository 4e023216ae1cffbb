"""Pools over connections that cost nothing but the time they are told to take: what is measured then is the pool alone.

One `Line` stands for the server. It makes connections, each after `delay` seconds, and counts them; `Connection` has
as much of a driver's connection as the pools ask for. Every pool is opened with nothing in it, and lends through
`borrow`, a context manager. Libraries are imported where they are used; `there` tells which are.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import itertools
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
)
from typing import Any, ClassVar, NamedTuple, Self

from poolkit import AsyncPool, Pool

__all__ = ["ASYNC", "SYNC", "AsyncStandIn", "Connection", "Line", "StandIn", "there"]

TIMEOUT = 60.0  # seconds; nothing here is to time out
IDLE = 0  # PostgreSQL's transaction status, as libpq and both psycopgs number it
Borrow = Callable[[], AbstractContextManager[Any]]
AsyncBorrow = Callable[[], AbstractAsyncContextManager[Any]]


class Connection:
    """A connection to nowhere, as psycopg, psycopg2 and PEP 249 would have it: always idle, always well."""

    threadsafety: ClassVar = 1
    closed: ClassVar[bool] = False
    autocommit: ClassVar = True
    pgconn: ClassVar[Any] = types.SimpleNamespace(transaction_status=IDLE)
    info: ClassVar[Any] = pgconn

    def close(self, *_: object) -> None:
        """Do nothing."""

    rollback = commit = cancel = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """psycopg_pool lends inside the connection's own block, which commits."""


class Line:
    """The way to the server: connections are made `delay` seconds after they are asked for, at any number at once."""

    def __init__(self, delay: float = 0.0, stock: Sequence[Connection] = ()) -> None:
        self.delay = delay
        self._stock = list(stock)
        self._numbers = itertools.count(1)  # its next is one step, whatever the number of threads
        self.opened = 0

    def connect(self, *_: Any, **__: Any) -> Connection:
        """Connect in this thread."""
        if self.delay:
            time.sleep(self.delay)
        return self._made()

    async def connect_async(self, *_: Any, **__: Any) -> Connection:
        """Connect in this loop."""
        if self.delay:
            await asyncio.sleep(self.delay)
        return self._made()

    def _made(self) -> Connection:
        self.opened = max(self.opened, next(self._numbers))
        return self._stock.pop() if self._stock else Connection()


class StandIn(NamedTuple):
    """A pool for threads: `opened(line, size)` lends from a new one, `needs` is the package it comes from."""

    name: str
    opened: Callable[[Line, int], AbstractContextManager[Borrow]]
    needs: str = "poolkit"


class AsyncStandIn(NamedTuple):
    """The same for asyncio."""

    name: str
    opened: Callable[[Line, int], AbstractAsyncContextManager[AsyncBorrow]]
    needs: str = "poolkit"


def there(needs: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(needs) is not None


# poolkit


class _Facts:
    """What poolkit asks about a connection without talking to its server."""

    defaults: ClassVar[dict[str, object]] = {}

    def alive(self, resource: Connection) -> bool:
        return not resource.closed

    def clean(self, resource: Connection) -> bool:
        idle: bool = resource.pgconn.transaction_status == IDLE
        return idle

    def is_broken(self, resource: Connection, error: BaseException | None) -> bool:  # noqa: ARG002
        return resource.closed

    demoted = is_broken

    def abandon(self, resource: Connection) -> None:
        """Nothing to let go of."""


class LineDriver(_Facts):
    """poolkit's driver for threads over a `Line`."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def open(self, timeout: float) -> Connection:  # noqa: ARG002
        """Connect."""
        return self._line.connect()

    def close(self, resource: Connection) -> None:
        """Close."""
        resource.close()

    def ping(self, resource: Connection, timeout: float) -> bool:  # noqa: ARG002
        """Always."""
        return self.alive(resource)

    def reset(self, resource: Connection, *, full: bool) -> None:  # noqa: ARG002
        """Roll back."""
        resource.rollback()


class AsyncLineDriver(_Facts):
    """poolkit's driver for asyncio over a `Line`."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def open(self, timeout: float) -> Connection:  # noqa: ARG002
        """Connect."""
        return await self._line.connect_async()

    async def close(self, resource: Connection) -> None:
        """Close."""
        resource.close()

    def terminate(self, resource: Connection) -> None:
        """Close without the loop."""
        resource.close()

    async def ping(self, resource: Connection, timeout: float) -> bool:  # noqa: ARG002
        """Always."""
        return self.alive(resource)

    async def reset(self, resource: Connection, *, full: bool) -> None:  # noqa: ARG002
        """Roll back."""
        resource.rollback()


@contextmanager
def _poolkit(line: Line, size: int) -> Iterator[Borrow]:
    pool = Pool(LineDriver(line), max_size=size, timeout=TIMEOUT)
    try:
        yield pool.acquire
    finally:
        pool.close(1)


@asynccontextmanager
async def _poolkit_async(line: Line, size: int) -> AsyncIterator[AsyncBorrow]:
    pool = AsyncPool(AsyncLineDriver(line), max_size=size, timeout=TIMEOUT)
    try:
        yield pool.acquire
    finally:
        await pool.close(1)


# the floor: as good as it gets with the standard library, and no care for anything


@contextmanager
def _ideal(line: Line, size: int) -> Iterator[Borrow]:
    import queue  # noqa: PLC0415

    places: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
    for _ in range(size):
        places.put(None)

    @contextmanager
    def borrow() -> Iterator[Connection]:
        connection = places.get() or line.connect()
        try:
            yield connection
        finally:
            places.put(connection)

    yield borrow


@asynccontextmanager
async def _ideal_async(line: Line, size: int) -> AsyncIterator[AsyncBorrow]:
    places: asyncio.Queue[Connection | None] = asyncio.Queue()
    for _ in range(size):
        places.put_nowait(None)

    @asynccontextmanager
    async def borrow() -> AsyncIterator[Connection]:
        connection = await places.get() or await line.connect_async()
        try:
            yield connection
        finally:
            places.put_nowait(connection)

    yield borrow


# psycopg_pool


def _class_of(connect: Callable[..., Any]) -> Any:
    """A class whose `connect` is that of a line."""
    return type("Connection", (Connection,), {"connect": staticmethod(connect)})


@contextmanager
def _psycopg_pool(line: Line, size: int) -> Iterator[Borrow]:
    from psycopg_pool import ConnectionPool  # noqa: PLC0415

    kind = _class_of(line.connect)
    pool: Any = ConnectionPool("", connection_class=kind, min_size=0, max_size=size, timeout=TIMEOUT, open=True)
    try:
        yield pool.connection
    finally:
        pool.close(1)


class _AsyncConnection(Connection):
    async def close(self, *_: object) -> None:  # type: ignore[override]
        """Do nothing."""

    rollback = commit = close  # type: ignore[assignment]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """The same as its parent's."""


@asynccontextmanager
async def _psycopg_pool_async(line: Line, size: int) -> AsyncIterator[AsyncBorrow]:
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

    async def connect(*_: Any, **__: Any) -> _AsyncConnection:
        await line.connect_async()
        return _AsyncConnection()

    kind = _class_of(connect)
    pool: Any = AsyncConnectionPool("", connection_class=kind, min_size=0, max_size=size, timeout=TIMEOUT, open=False)
    await pool.open()
    try:
        yield pool.connection
    finally:
        await pool.close(1)


# SQLAlchemy


@contextmanager
def _sqlalchemy(line: Line, size: int) -> Iterator[Borrow]:
    from sqlalchemy.pool import QueuePool  # noqa: PLC0415

    pool = QueuePool(line.connect, pool_size=size, max_overflow=0, timeout=TIMEOUT)
    try:
        yield lambda: closing(pool.connect())
    finally:
        pool.dispose()


@asynccontextmanager
async def _sqlalchemy_async(line: Line, size: int) -> AsyncIterator[AsyncBorrow]:
    """The pool under an AsyncEngine, entered and left the way the engine does it."""
    from sqlalchemy.pool import AsyncAdaptedQueuePool  # noqa: PLC0415
    from sqlalchemy.util import await_only, greenlet_spawn  # noqa: PLC0415

    pool = AsyncAdaptedQueuePool(
        lambda: await_only(line.connect_async()), pool_size=size, max_overflow=0, timeout=TIMEOUT
    )

    @asynccontextmanager
    async def borrow() -> AsyncIterator[Any]:
        connection = await greenlet_spawn(pool.connect)
        try:
            yield connection
        finally:
            await greenlet_spawn(connection.close)

    try:
        yield borrow
    finally:
        await greenlet_spawn(pool.dispose)


# the older ones


@contextmanager
def _psycopg2(line: Line, size: int) -> Iterator[Borrow]:
    """psycopg2's pool refuses whoever comes when all are out: a semaphore lets them wait, as its users do."""
    library: Any = importlib.import_module("psycopg2.pool")
    gate = threading.Semaphore(size)
    before = library.psycopg2  # its only way to connect
    library.psycopg2 = types.SimpleNamespace(connect=line.connect)

    @contextmanager
    def borrow() -> Iterator[Any]:
        with gate:
            connection = pool.getconn()
            try:
                yield connection
            finally:
                pool.putconn(connection)

    try:
        pool = library.ThreadedConnectionPool(0, size)
        pool.minconn = size  # it keeps no more than that; 0 was for opening it empty
        yield borrow
        pool.closeall()
    finally:
        library.psycopg2 = before


@contextmanager
def _dbutils(line: Line, size: int) -> Iterator[Borrow]:
    library: Any = importlib.import_module("dbutils.pooled_db")
    module = types.SimpleNamespace(
        connect=line.connect, threadsafety=1, OperationalError=OSError, InterfaceError=OSError, InternalError=OSError
    )
    pool = library.PooledDB(module, maxconnections=size, blocking=True)
    try:
        yield pool.connection
    finally:
        pool.close()


@asynccontextmanager
async def _asyncpg(line: Line, size: int) -> AsyncIterator[AsyncBorrow]:
    """The pool of asyncpg, without the round trip that its connections' `reset` costs."""
    import asyncpg  # noqa: PLC0415

    class Standing(asyncpg.Connection):
        def __init__(self) -> None:
            self._protocol = types.SimpleNamespace(queries_count=0, _is_cancelling=lambda: False)
            self._aborted = False
            self._pool_release_ctr = 0
            self._listeners: dict[str, object] = {}
            self._log_listeners: set[object] = set()
            self._proxy = None

        def is_closed(self) -> bool:
            return self._aborted

        async def reset(self, *, timeout: float | None = None) -> None:
            """No round trip."""

        async def close(self, *, timeout: float | None = None) -> None:  # noqa: ARG002
            self.terminate()

        def terminate(self) -> None:
            self._aborted = True

    async def connect(*_: Any, **__: Any) -> Standing:
        await line.connect_async()
        return Standing()

    pool = await asyncpg.create_pool(connect=connect, connection_class=Standing, min_size=0, max_size=size)
    try:
        yield pool.acquire
    finally:
        pool.terminate()


SYNC = (
    StandIn("ideal", _ideal),
    StandIn("poolkit", _poolkit),
    StandIn("psycopg_pool", _psycopg_pool, "psycopg_pool"),
    StandIn("SQLAlchemy", _sqlalchemy, "sqlalchemy"),
    StandIn("psycopg2 + semaphore", _psycopg2, "psycopg2"),
    StandIn("DBUtils", _dbutils, "dbutils"),
)
ASYNC = (
    AsyncStandIn("ideal", _ideal_async),
    AsyncStandIn("poolkit", _poolkit_async),
    AsyncStandIn("psycopg_pool", _psycopg_pool_async, "psycopg_pool"),
    AsyncStandIn("SQLAlchemy", _sqlalchemy_async, "sqlalchemy"),
    AsyncStandIn("asyncpg", _asyncpg, "asyncpg"),
)
