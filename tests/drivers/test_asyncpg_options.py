"""asyncpg: the options of a transaction ride with its BEGIN, whatever comes first in it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import psycopg
import pytest

from poolkit.aio import AsyncPool
from poolkit.driver import TransactionOptions
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.testing import FaultProxy

ODD = 'a\'b\\c "d" $1; äö'
LOOK = (
    "SELECT ARRAY[current_setting('app.tenant'), current_setting('search_path'), "
    "current_setting('transaction_isolation'), current_setting('transaction_read_only'), "
    "current_setting('transaction_deferrable')]"
)


def made(**options: Any) -> TransactionOptions:
    found = TransactionOptions.of(**options)
    assert found is not None
    return found


ALL = made(
    settings={"app.tenant": ODD, "search_path": "app, public"}, isolation_level="serializable", read_only=True,
    deferrable=True,
)  # fmt: skip


async def fetched(conn: Any) -> None:
    await conn.fetch("SELECT 1")


async def executed(conn: Any) -> None:
    assert await conn.execute("SELECT 1") == "SELECT 1"


async def with_arguments(conn: Any) -> None:
    assert await conn.fetchval("SELECT $1::int", 7) == 7


async def copied(conn: Any) -> None:
    await conn.copy_from_query("SELECT 1", output=io.BytesIO())


async def nested(conn: Any) -> None:
    async with conn.transaction():
        await conn.fetch("SELECT 1")


FIRST = [fetched, executed, with_arguments, copied, nested]


def with_connection(url: str, work: Callable[[AsyncpgDriver, Any], Awaitable[None]], **arguments: Any) -> None:
    async def main() -> None:
        driver = AsyncpgDriver(url, **arguments)
        conn = await driver.open(10)
        await work(driver, conn)
        driver.terminate(conn)

    asyncio.run(main())


@pytest.mark.parametrize("fold_begin", [True, False])
@pytest.mark.parametrize("standard", ["on", "off"])
@pytest.mark.parametrize("first", FIRST)
def test_options_hold_for_the_transaction(
    tables: str, first: Callable[[Any], Awaitable[None]], standard: str, *, fold_begin: bool
) -> None:
    """Level, mode and settings hold for this transaction, whatever its first statement, and not for the next."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        for _ in range(2):
            await driver.begin(conn, ALL)
            await first(conn)
            assert await conn.fetchval(LOOK) == [ODD, "app, public", "serializable", "on", "on"]
            await driver.commit(conn)
            assert driver.clean(conn)
            await driver.begin(conn)
            found = await conn.fetchval(LOOK)
            assert found == ["", '"$user", public', "read committed", "off", "off"]
            await driver.rollback(conn)

    settings = {"standard_conforming_strings": standard, "app.tenant": ""}
    with_connection(tables, work, options={"fold_begin": fold_begin, "session_settings": settings})


def test_options_over_those_of_the_driver(tables: str, admin: psycopg.Connection[Any]) -> None:
    """What is said for one transaction goes before what the driver's options say for all."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):  # noqa: PT012
            await driver.begin(conn)
            await conn.execute("INSERT INTO item VALUES (1)")
        await driver.rollback(conn)
        await driver.begin(conn, made(read_only=False))
        await conn.execute("INSERT INTO item VALUES (2)")
        await driver.commit(conn)

    with_connection(tables, work, options={"read_only": True})
    assert admin.execute("SELECT id FROM item").fetchall() == [(2,)]


@pytest.mark.parametrize("first", [fetched, executed])
def test_a_setting_that_the_server_refuses(tables: str, first: Callable[[Any], Awaitable[None]]) -> None:
    """Where BEGIN's setting is refused the error is the first statement's, and nothing runs without the setting."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await driver.begin(conn, made(settings={"work_mem": "much"}))
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await first(conn)
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await first(conn)
        assert driver.statement_error(conn).startswith('invalid value for parameter "work_mem"')
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await driver.commit(conn)
        assert driver.statement_error(conn) == ""
        await driver.begin(conn)
        await first(conn)
        await driver.commit(conn)

    with_connection(tables, work)


def test_options_cost_nothing(tables: str, proxy: FaultProxy) -> None:
    """A transaction of one statement takes two round trips, with options as without, through the pool."""

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(proxy.url(tables)), max_size=1) as pool:
            for _ in range(2):
                before = proxy.round_trips
                async with pool.transaction(read_only=True, settings={"app.tenant": "acme"}) as conn:
                    assert await conn.fetchval("SELECT current_setting('app.tenant')") == "acme"
            assert proxy.round_trips - before == 2

    asyncio.run(main())
