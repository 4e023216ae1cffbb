"""psycopg: prepared statements that went out of date, and statements whose borrower has gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import psycopg
import pytest

from poolkit.aio import AsyncPool
from poolkit.drivers._fold import _goes_along
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.threads import Pool

QUERY = "SELECT * FROM plans WHERE id = %s"
SIZE = 3
TRIES = 12


@pytest.fixture
def table(admin: psycopg.Connection[Any]) -> Iterator[None]:
    admin.execute("DROP TABLE IF EXISTS plans")
    admin.execute("CREATE TABLE plans (id int, name text)")
    yield
    admin.execute("DROP TABLE plans")


@pytest.mark.parametrize("mode", ["acquire", "transaction"])
@pytest.mark.parametrize("harm", ["migration", "deallocated"])
def test_one_borrower_fails(tables: str, table: None, admin: psycopg.Connection[Any], mode: str, harm: str) -> None:
    """After a migration one borrower of the process fails at most, also in autocommit; then all have forgotten."""
    with Pool(PsycopgDriver(tables), max_size=SIZE, order="fifo") as pool:
        prepare_everywhere(pool)
        if harm == "migration":
            admin.execute("ALTER TABLE plans ADD COLUMN extra int")
        else:
            with pool.acquire() as conn:
                conn.pgconn.exec_(b"DEALLOCATE ALL")  # behind psycopg's back, as a pooler does
        failed = sum(not works(getattr(pool, mode)) for _ in range(TRIES))
        assert failed <= 1
        assert pool.stats().opened == SIZE


def prepare_everywhere(pool: Any) -> None:
    leases = [pool.acquire() for _ in range(SIZE)]
    for lease in leases:
        for _ in range(7):
            lease.resource.execute(QUERY, [1])
    for lease in leases:
        lease.release()


def works(borrow: Callable[[], Any]) -> bool:
    try:
        with borrow() as conn:
            conn.execute(QUERY, [1]).fetchall()
    except psycopg.Error:
        return False
    return True


def test_one_borrower_fails_in_asyncio(tables: str, table: None, admin: psycopg.Connection[Any]) -> None:
    """The same with asyncio."""

    async def main() -> int:
        failed = 0
        async with AsyncPool(AsyncPsycopgDriver(tables), max_size=SIZE, order="fifo") as pool:
            leases = [await pool.acquire() for _ in range(SIZE)]
            for lease in leases:
                for _ in range(7):
                    await lease.resource.execute(QUERY, [1])
            for lease in leases:
                await lease.release()
            admin.execute("ALTER TABLE plans ADD COLUMN extra int")
            for _ in range(TRIES):
                try:
                    async with pool.acquire() as conn:
                        await conn.execute(QUERY, [1])
                except psycopg.Error:
                    failed += 1
        return failed

    assert asyncio.run(main()) == 1


def test_the_borrower_itself_goes_on(tables: str, table: None, admin: psycopg.Connection[Any]) -> None:
    """Who met the stale statement can execute it again, on the same connection."""
    driver = PsycopgDriver(tables)
    conn = driver.open(10)
    for _ in range(7):
        conn.execute(QUERY, [1])
    admin.execute("ALTER TABLE plans ADD COLUMN extra int")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        conn.execute(QUERY, [1])
    for _ in range(7):
        assert len(conn.execute(QUERY, [1]).description or ()) == 3
    driver.close(conn)


def test_a_feature_that_is_not_supported_forgets_nothing(tables: str, table: None) -> None:
    """Only an error that speaks of a stale statement has statements forgotten."""
    driver = PsycopgDriver(tables)
    conn = driver.open(10)
    for _ in range(7):
        conn.execute(QUERY, [1])
    for statement in ("SELECT 1 FOR UPDATE OF nothing", "EXECUTE nobody", "SELECT DISTINCT 1 FOR UPDATE"):
        with pytest.raises(psycopg.Error):
            conn.execute(statement)
    assert driver._plans.epoch == 0
    driver.close(conn)


@pytest.mark.parametrize("mode", ["acquire", "transaction"])
@pytest.mark.parametrize("gone", ["anyio", "asyncio"])
def test_a_statement_whose_borrower_left_is_cancelled(
    tables: str, admin: psycopg.Connection[Any], mode: str, gone: str
) -> None:
    """Whoever leaves in the middle of a statement, however often cancelled, leaves none running on the server."""

    async def main() -> None:
        # Else the server would look for the client by itself.
        options = {"session_settings": {"client_connection_check_interval": 0}}
        async with AsyncPool(AsyncPsycopgDriver(tables, options=options), max_size=2) as pool:
            for _ in range(4):
                await left(pool)
            async with asyncio.timeout(5):
                while running():  # noqa: ASYNC110  it is the server that is waited for
                    await asyncio.sleep(0.01)

    async def left(pool: AsyncPool[Any]) -> None:
        if gone == "anyio":
            with anyio.move_on_after(0.05):
                await visit(pool)
            return
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await visit(pool)

    async def visit(pool: AsyncPool[Any]) -> None:
        async with getattr(pool, mode)() as conn:
            await conn.execute("SELECT pg_sleep(61)")

    def running() -> int:
        found = admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep(61)%'"
        ).fetchone()
        return int(found[0]) if found else 0

    asyncio.run(main())


@pytest.mark.parametrize("blank", [" ", "\n", "(", "( ", "/**/"])
def test_reading_a_statement_takes_linear_time(blank: str) -> None:
    """Whether BEGIN can go along is read in a time that grows as the statement does."""

    def seconds(count: int) -> float:
        text = blank * count + "NOTHING"
        best = float("inf")
        for _ in range(5):
            begun = time.process_time()
            assert not _goes_along(text)
            best = min(best, time.process_time() - begun)
        return best

    assert seconds(200_000) < 40 * seconds(20_000) + 0.01
