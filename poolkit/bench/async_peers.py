"""The pools for asyncio, over psycopg and asyncpg. Each library is imported where it is used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from poolkit import AsyncPool
from poolkit.bench.peers import AsyncBench, AsyncPeer, Settings, holding_async, lending_async, with_scheme

__all__ = ["ASYNC"]

Opened = Callable[[Settings], AbstractAsyncContextManager[AsyncBench]]
Run = Callable[[Any], Coroutine[Any, Any, object]]


def _execute(settings: Settings) -> Run:
    """How a connection of psycopg is used."""
    statement = settings.statement

    async def run(connection: Any) -> None:
        await (await connection.execute(statement)).fetchone()

    return holding_async(run, settings.hold)


def _fetch(settings: Settings) -> Run:
    """How a connection of asyncpg is used."""
    statement = settings.statement

    async def run(connection: Any) -> None:
        await connection.fetch(statement)

    return holding_async(run, settings.hold)


def _fetch_in_transaction(settings: Settings) -> Run:
    """The same where the transaction is left to the user."""
    fetch = _fetch(settings)
    if not settings.transaction:
        return fetch

    async def run(connection: Any) -> None:
        async with connection.transaction():
            await fetch(connection)

    return run


def _poolkit(scheme: str, use: Callable[[Settings], Run], *, looks: bool = False) -> Opened:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[AsyncBench]:
        url = with_scheme(settings.url, scheme)
        source: Any = _looking(url, scheme) if looks else url
        pool: AsyncPool[Any] = AsyncPool(source, max_size=settings.size, timeout=settings.timeout)
        try:
            yield lending_async(pool.transaction if settings.transaction else pool.acquire, use(settings))
        finally:
            await pool.close(1)

    return opened


def _looking(url: str, scheme: str) -> object:
    """A driver without the moment after a return in which poolkit does not look whether a connection is alive."""
    from poolkit.drivers.asyncpg import AsyncpgDriver  # noqa: PLC0415
    from poolkit.drivers.psycopg import AsyncPsycopgDriver  # noqa: PLC0415

    class LookingAsyncpg(AsyncpgDriver):
        alive_bypass = 0.0

    class LookingPsycopg(AsyncPsycopgDriver[Any]):
        alive_bypass = 0.0

    return LookingAsyncpg(url) if scheme.endswith("asyncpg") else LookingPsycopg(url)


class _Kept(AbstractAsyncContextManager[Any]):
    """One connection, lent without ado."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __call__(self) -> _Kept:
        return self

    async def __aenter__(self) -> Any:
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        """Keep it."""


@asynccontextmanager
async def _bare_psycopg(settings: Settings) -> AsyncIterator[AsyncBench]:
    import psycopg  # noqa: PLC0415

    connection = await psycopg.AsyncConnection.connect(settings.url, autocommit=not settings.transaction)
    use = _execute(settings)

    async def run(lent: Any) -> None:
        await use(lent)
        if settings.transaction:
            await lent.commit()

    try:
        yield lending_async(_Kept(connection), run)
    finally:
        await connection.close()


@asynccontextmanager
async def _bare_asyncpg(settings: Settings) -> AsyncIterator[AsyncBench]:
    import asyncpg  # noqa: PLC0415

    connection = await asyncpg.connect(settings.url)
    try:
        yield lending_async(_Kept(connection), _fetch_in_transaction(settings))
    finally:
        await connection.close()


def _psycopg_pool(*, check: bool) -> Opened:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[AsyncBench]:
        from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

        pool = AsyncConnectionPool(
            settings.url, min_size=settings.size, max_size=settings.size, timeout=settings.timeout, open=False,
            kwargs={"autocommit": not settings.transaction},
            check=AsyncConnectionPool.check_connection if check else None,
        )  # fmt: skip
        try:
            await pool.open(wait=True)
            yield lending_async(pool.connection, _execute(settings))
        finally:
            await pool.close(1)

    return opened


def _asyncpg(*, resets: bool) -> Opened:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[AsyncBench]:
        import asyncpg  # noqa: PLC0415

        class Unreset(asyncpg.Connection):
            def get_reset_query(self) -> str:
                return ""

        kind: Any = asyncpg.Connection if resets else Unreset
        pool = await asyncpg.create_pool(
            settings.url, min_size=settings.size, max_size=settings.size, connection_class=kind
        )
        try:
            yield lending_async(pool.acquire, _fetch_in_transaction(settings))
        finally:
            await pool.close()

    return opened


def _sqlalchemy(scheme: str, *, ping: bool) -> Opened:
    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[AsyncBench]:
        from sqlalchemy import text  # noqa: PLC0415
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

        url = _plain(settings.url) if scheme.endswith("asyncpg") else settings.url
        engine = create_async_engine(
            with_scheme(url, scheme), pool_size=settings.size, max_overflow=0, pool_timeout=settings.timeout,
            pool_pre_ping=ping, **({} if settings.transaction else {"isolation_level": "AUTOCOMMIT"}),
        )  # fmt: skip
        statement = text(settings.statement)

        async def run(connection: Any) -> None:
            (await connection.execute(statement)).fetchone()

        try:
            borrow = engine.begin if settings.transaction else engine.connect
            yield lending_async(borrow, holding_async(run, settings.hold))
        finally:
            await engine.dispose()

    return opened


def _plain(url: str) -> str:
    """The URL without `sslmode`, which SQLAlchemy hands to asyncpg's connect as it is, and that knows `ssl`."""
    parts = urlsplit(url)
    query = [(name if name != "sslmode" else "ssl", value) for name, value in parse_qsl(parts.query)]
    return urlunsplit(parts._replace(query=urlencode(query)))


def _sqlalchemy_rows(driver: str) -> tuple[AsyncPeer, AsyncPeer]:
    scheme, needs = f"postgresql+{driver}", ("sqlalchemy", "greenlet", driver)
    return (
        AsyncPeer(f"SQLAlchemy Core, {driver}", driver, _sqlalchemy(scheme, ping=False), needs),
        AsyncPeer(f"SQLAlchemy Core, {driver}, pre_ping", driver, _sqlalchemy(scheme, ping=True), needs, checks=True),
    )


NEEDS = ("psycopg", "psycopg_pool")
ASYNC = (
    AsyncPeer("bare psycopg", "psycopg", _bare_psycopg, ("psycopg",), blocks=False),
    AsyncPeer("poolkit, psycopg", "psycopg", _poolkit("postgresql", _execute), ("psycopg",), checks=True),
    AsyncPeer(
        "poolkit, psycopg, looks each time", "psycopg", _poolkit("postgresql", _execute, looks=True), ("psycopg",),
        checks=True,
    ),
    AsyncPeer("psycopg_pool", "psycopg", _psycopg_pool(check=False), NEEDS),
    AsyncPeer("psycopg_pool, check", "psycopg", _psycopg_pool(check=True), NEEDS, checks=True),
    *_sqlalchemy_rows("psycopg"),
    AsyncPeer("bare asyncpg", "asyncpg", _bare_asyncpg, ("asyncpg",), blocks=False),
    AsyncPeer("poolkit, asyncpg", "asyncpg", _poolkit("postgresql+asyncpg", _fetch), ("asyncpg",), checks=True),
    AsyncPeer(
        "poolkit, asyncpg, looks each time", "asyncpg", _poolkit("postgresql+asyncpg", _fetch, looks=True),
        ("asyncpg",), checks=True,
    ),
    AsyncPeer("asyncpg's pool", "asyncpg", _asyncpg(resets=True), ("asyncpg",), checks=True),
    AsyncPeer("asyncpg's pool, reset emptied", "asyncpg", _asyncpg(resets=False), ("asyncpg",), checks=True),
    *_sqlalchemy_rows("asyncpg"),
)  # fmt: skip
