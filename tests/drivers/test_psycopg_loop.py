"""psycopg's connections for threads, begun and ended from a loop: the same as from a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from poolkit.driver import FromLoop
from poolkit.drivers.psycopg import PsycopgDriver


@pytest.fixture
def driver(tables: str) -> PsycopgDriver[Any]:
    return PsycopgDriver(tables)


@pytest.fixture
def conn(driver: PsycopgDriver[Any]) -> Iterator[psycopg.Connection[Any]]:
    conn = driver.open(10)
    yield conn
    conn.close()


async def test_begin_commit_and_rollback(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]) -> None:
    """What was begun is open, what was committed is there, what was rolled back is not; then it rests."""
    assert isinstance(driver, FromLoop)
    driver.settled(conn)
    for op, number in (("commit", 1), ("rollback", 2)):
        assert await driver.from_loop("begin", conn)
        assert driver.in_transaction(conn)
        conn.execute("INSERT INTO item VALUES (%s)", (number,))
        assert await driver.from_loop(op, conn)  # type: ignore[arg-type]
        assert driver.clean(conn)
    assert conn.execute("SELECT id FROM item").fetchall() == [(1,)]


async def test_the_loop_goes_on(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]) -> None:
    """While the server takes its time over a COMMIT, everything else in the loop runs."""
    conn.execute(
        "CREATE TEMP TABLE slow (n int);"
        "CREATE FUNCTION pg_temp.wait() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END';"
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION pg_temp.wait()"
    )
    await driver.from_loop("begin", conn)
    conn.execute("INSERT INTO slow VALUES (1)")
    committing = asyncio.create_task(driver.from_loop("commit", conn))
    turns = 0
    while not committing.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert committing.result()
    assert turns > 5


async def test_a_connection_in_use_is_left_alone(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]) -> None:
    """A thread that holds its lock is in the middle of something: nothing is sent, and nobody waits."""
    with conn.lock:
        assert not await driver.from_loop("begin", conn)
    assert not driver.in_transaction(conn)


async def test_an_aborted_transaction_is_never_committed(
    driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]
) -> None:
    """The server's silent ROLLBACK is an error, as from a thread; the lock is free again."""
    await driver.from_loop("begin", conn)
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("SELECT 1/0")
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        await driver.from_loop("commit", conn)
    assert driver.clean(conn)
    assert not conn.lock.locked()


async def test_a_session_that_ended_is_the_drivers_error(
    driver: PsycopgDriver[Any], conn: psycopg.Connection[Any], tables: str
) -> None:
    """Killed in mid transaction, or closed by its user: OperationalError, and the connection counts as broken."""
    await driver.from_loop("begin", conn)
    conn.execute("SELECT 1")
    with psycopg.connect(tables, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError) as raised:
        await driver.from_loop("commit", conn)
    assert driver.is_broken(conn, raised.value)
    conn.close()
    with pytest.raises(psycopg.OperationalError):
        await driver.from_loop("begin", conn)
    assert not conn.lock.locked()
