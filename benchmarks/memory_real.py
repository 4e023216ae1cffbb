"""Open real connections in a process of their own and print how many bytes it grew by for each.

python -m benchmarks.memory_real WAY DSN NUMBER
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import psutil

from poolkit import AsyncPool, Pool

__all__ = ["WAYS", "Way"]

Fill = Callable[[int], object]
AsyncFill = Callable[[int], Awaitable[object]]


class Way(NamedTuple):
    """A way to have connections: `opened(dsn, size)` gives a function that has so many of them idle."""

    opened: Callable[[str, int], AbstractContextManager[Fill]] | None
    needs: str
    bare: str
    opened_async: Callable[[str, int], AbstractAsyncContextManager[AsyncFill]] | None = None


def _borrowing(borrow: Callable[[], AbstractContextManager[Any]]) -> Fill:
    def fill(number: int) -> None:
        with contextlib.ExitStack() as held:
            for _ in range(number):
                held.enter_context(borrow())

    return fill


def _borrowing_async(borrow: Callable[[], AbstractAsyncContextManager[Any]]) -> AsyncFill:
    async def fill(number: int) -> None:
        async with contextlib.AsyncExitStack() as held:
            for _ in range(number):
                await held.enter_async_context(borrow())

    return fill


@contextmanager
def _bare_psycopg(dsn: str, size: int) -> Iterator[Fill]:  # noqa: ARG001
    import psycopg  # noqa: PLC0415

    held: list[Any] = []
    yield lambda number: held.extend(psycopg.connect(dsn) for _ in range(number - len(held)))
    for connection in held:
        connection.close()


@contextmanager
def _poolkit(dsn: str, size: int) -> Iterator[Fill]:
    with Pool(dsn, max_size=size) as pool:
        yield _borrowing(pool.acquire)


@contextmanager
def _psycopg_pool(dsn: str, size: int) -> Iterator[Fill]:
    from psycopg_pool import ConnectionPool  # noqa: PLC0415

    with ConnectionPool(dsn, min_size=0, max_size=size, open=True) as pool:
        yield _borrowing(pool.connection)


@contextmanager
def _sqlalchemy(dsn: str, size: int) -> Iterator[Fill]:
    from sqlalchemy import create_engine  # noqa: PLC0415

    url = dsn.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url, pool_size=size, max_overflow=0)
    yield _borrowing(engine.connect)
    engine.dispose()


@asynccontextmanager
async def _bare_asyncpg(dsn: str, size: int) -> AsyncIterator[AsyncFill]:  # noqa: ARG001
    import asyncpg  # noqa: PLC0415

    held: list[Any] = []

    async def fill(number: int) -> None:
        held.extend([await asyncpg.connect(dsn) for _ in range(number - len(held))])

    yield fill
    for connection in held:
        await connection.close()


@asynccontextmanager
async def _poolkit_asyncpg(dsn: str, size: int) -> AsyncIterator[AsyncFill]:
    async with AsyncPool(dsn.replace("postgresql://", "postgresql+asyncpg://", 1), max_size=size) as pool:
        yield _borrowing_async(pool.acquire)


@asynccontextmanager
async def _asyncpg(dsn: str, size: int) -> AsyncIterator[AsyncFill]:
    import asyncpg  # noqa: PLC0415

    async with asyncpg.create_pool(dsn, min_size=0, max_size=size) as pool:
        yield _borrowing_async(pool.acquire)


WAYS = {
    "psycopg, no pool": Way(_bare_psycopg, "psycopg", "psycopg, no pool"),
    "poolkit": Way(_poolkit, "psycopg", "psycopg, no pool"),
    "psycopg_pool": Way(_psycopg_pool, "psycopg_pool", "psycopg, no pool"),
    "SQLAlchemy": Way(_sqlalchemy, "sqlalchemy", "psycopg, no pool"),
    "asyncpg, no pool": Way(None, "asyncpg", "asyncpg, no pool", _bare_asyncpg),
    "poolkit asyncio, asyncpg": Way(None, "asyncpg", "asyncpg, no pool", _poolkit_asyncpg),
    "asyncpg's pool": Way(None, "asyncpg", "asyncpg, no pool", _asyncpg),
}


def _weight() -> int:
    gc.collect()
    bytes_of_its_own: int = psutil.Process().memory_full_info().uss
    return bytes_of_its_own


def _grown(opened: Callable[[str, int], AbstractContextManager[Fill]], dsn: str, number: int) -> float:
    with opened(dsn, number + 1) as fill:
        fill(1)  # what the first one brings with it, libraries above all, is not the price of the next
        before = _weight()
        fill(number + 1)
        return (_weight() - before) / number


async def _grown_async(
    opened: Callable[[str, int], AbstractAsyncContextManager[AsyncFill]], dsn: str, number: int
) -> float:
    async with opened(dsn, number + 1) as fill:
        await fill(1)
        before = _weight()
        await fill(number + 1)
        return (_weight() - before) / number


def main(name: str, dsn: str, number: int) -> None:
    """Weigh one way, and print it."""
    way = WAYS[name]
    if way.opened is not None:
        grown = _grown(way.opened, dsn, number)
    elif way.opened_async is not None:
        grown = asyncio.run(_grown_async(way.opened_async, dsn, number))
    else:
        raise ValueError(f"{name!r} has no way to open anything")
    sys.stdout.write(json.dumps(grown))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
