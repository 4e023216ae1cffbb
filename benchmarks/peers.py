"""The pools compared: each opens, does one small operation, and closes. Every library is imported where it is used."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from poolkit import AsyncPool, Pool

__all__ = ["ALL", "Peer", "Settings"]

T = TypeVar("T")
Opened = Callable[["Settings"], AbstractContextManager[Callable[[float], object]]]
AsyncOpened = Callable[["Settings"], AbstractAsyncContextManager[Callable[[float], Coroutine[Any, Any, None]]]]


@dataclass(frozen=True)
class Settings:
    """What every pool is given: where to, how many connections, how many seconds an operation may wait for one."""

    dsn: str
    size: int
    timeout: float


@dataclass(frozen=True)
class Peer:
    """A pool, and one operation on it.

    `opened` gives the operation, to be called from any thread with the seconds for which to hold the connection.
    """

    name: str
    opened: Opened


def _in_a_loop(opened: AsyncOpened) -> Opened:
    """Let threads use an asyncio pool: each operation is a task of a loop that runs in a thread of its own."""

    @contextmanager
    def run(settings: Settings) -> Iterator[Callable[[float], object]]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="bench-loop")
        thread.start()
        block = opened(settings)

        def do(work: Coroutine[Any, Any, T]) -> T:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        try:
            operation = do(block.__aenter__())
            try:
                yield lambda hold: do(operation(hold))
            finally:
                do(block.__aexit__(None, None, None))
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    return run


def _statement(hold: float) -> str:
    return f"SELECT pg_sleep({hold})" if hold else "SELECT 1"


def _with_scheme(dsn: str, scheme: str) -> str:
    return dsn.replace("postgresql://", f"{scheme}://", 1)


@contextmanager
def _poolkit(settings: Settings) -> Iterator[Callable[[float], object]]:
    pool: Pool[Any] = Pool(settings.dsn, max_size=settings.size, timeout=settings.timeout)

    def work(hold: float) -> None:
        with pool.acquire() as conn:
            conn.execute(_statement(hold))

    try:
        yield work
    finally:
        pool.close(1)


def _psycopg_pool(*, check: bool) -> Opened:
    @contextmanager
    def opened(settings: Settings) -> Iterator[Callable[[float], object]]:
        from psycopg_pool import ConnectionPool  # noqa: PLC0415

        how: dict[str, Any] = {"check": ConnectionPool.check_connection} if check else {}
        pool = ConnectionPool(
            settings.dsn, min_size=settings.size, max_size=settings.size, timeout=settings.timeout, open=True, **how
        )
        pool.wait()

        def work(hold: float) -> None:
            with pool.connection() as conn:
                conn.execute(_statement(hold))

        try:
            yield work
        finally:
            pool.close(1)

    return opened


def _sqlalchemy(*, pre_ping: bool) -> Opened:
    @contextmanager
    def opened(settings: Settings) -> Iterator[Callable[[float], object]]:
        from sqlalchemy import create_engine  # noqa: PLC0415

        engine = create_engine(
            _with_scheme(settings.dsn, "postgresql+psycopg"),
            pool_size=settings.size, max_overflow=0, pool_timeout=settings.timeout, pool_pre_ping=pre_ping,
        )  # fmt: skip

        def work(hold: float) -> None:
            with engine.connect() as conn:
                conn.exec_driver_sql(_statement(hold))

        try:
            yield work
        finally:
            engine.dispose()

    return opened


def _poolkit_async(scheme: str) -> AsyncOpened:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[Callable[[float], Coroutine[Any, Any, None]]]:
        url = _with_scheme(settings.dsn, scheme)
        pool: AsyncPool[Any] = AsyncPool(url, max_size=settings.size, timeout=settings.timeout)

        async def work(hold: float) -> None:
            async with pool.acquire() as conn:
                await conn.execute(_statement(hold))

        try:
            yield work
        finally:
            await pool.close(1)

    return opened


def _psycopg_pool_async(*, check: bool) -> AsyncOpened:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[Callable[[float], Coroutine[Any, Any, None]]]:
        from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

        how: dict[str, Any] = {"check": AsyncConnectionPool.check_connection} if check else {}
        pool = AsyncConnectionPool(
            settings.dsn, min_size=settings.size, max_size=settings.size, timeout=settings.timeout, open=False, **how
        )
        await pool.open(wait=True)

        async def work(hold: float) -> None:
            async with pool.connection() as conn:
                await conn.execute(_statement(hold))

        try:
            yield work
        finally:
            await pool.close(1)

    return opened


def _sqlalchemy_async(*, pre_ping: bool) -> AsyncOpened:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[Callable[[float], Coroutine[Any, Any, None]]]:
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

        engine = create_async_engine(
            _with_scheme(settings.dsn, "postgresql+asyncpg"),
            pool_size=settings.size, max_overflow=0, pool_timeout=settings.timeout, pool_pre_ping=pre_ping,
        )  # fmt: skip

        async def work(hold: float) -> None:
            async with engine.connect() as conn:
                await conn.exec_driver_sql(_statement(hold))

        try:
            yield work
        finally:
            await engine.dispose()

    return opened


@asynccontextmanager
async def _asyncpg(settings: Settings) -> AsyncIterator[Callable[[float], Coroutine[Any, Any, None]]]:
    import asyncpg  # noqa: PLC0415

    pool = await asyncpg.create_pool(settings.dsn, min_size=settings.size, max_size=settings.size)

    async def work(hold: float) -> None:
        async with pool.acquire(timeout=settings.timeout) as conn:
            await conn.execute(_statement(hold))

    try:
        yield work
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await pool.close()
        pool.terminate()


ALL = (
    Peer("poolkit", _poolkit),
    Peer("psycopg_pool", _psycopg_pool(check=False)),
    Peer("psycopg_pool, check", _psycopg_pool(check=True)),
    Peer("SQLAlchemy", _sqlalchemy(pre_ping=False)),
    Peer("SQLAlchemy, pre_ping", _sqlalchemy(pre_ping=True)),
    Peer("poolkit asyncio, psycopg", _in_a_loop(_poolkit_async("postgresql"))),
    Peer("poolkit asyncio, asyncpg", _in_a_loop(_poolkit_async("postgresql+asyncpg"))),
    Peer("psycopg_pool asyncio", _in_a_loop(_psycopg_pool_async(check=False))),
    Peer("psycopg_pool asyncio, check", _in_a_loop(_psycopg_pool_async(check=True))),
    Peer("SQLAlchemy asyncio, asyncpg", _in_a_loop(_sqlalchemy_async(pre_ping=False))),
    Peer("SQLAlchemy asyncio, pre_ping", _in_a_loop(_sqlalchemy_async(pre_ping=True))),
    Peer("asyncpg's pool", _in_a_loop(_asyncpg)),
)
