"""Closing a psycopg connection that somebody is using: what the C library works with must stay where it is."""

from __future__ import annotations

import asyncio
import threading
import time

import psycopg
import pytest

from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver

SLEEP = "SELECT pg_sleep(20)"
COPY = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT"


@pytest.fixture(autouse=True)
def _nobody_left(pg_dsn):
    """End what goes on at the server: a sleeper does not see that its client has gone, nor who waits to send more."""
    yield
    with psycopg.connect(pg_dsn, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query = ANY(%s)", ([SLEEP, COPY],)
        )


class Watched:
    """Stands in for a connection's libpq object, and notes whether it was freed."""

    def __init__(self, real):
        self._real = real
        self.freed = False

    def __getattr__(self, name):
        return getattr(self._real, name)

    def finish(self):
        self.freed = True
        self._real.finish()


def is_active(conn):
    return conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE


def test_a_running_statement_is_hung_up_on(pg_dsn):
    """Closed by another thread, a statement fails at once, and libpq's memory is not freed under it."""
    driver = PsycopgDriver(pg_dsn)
    conn = driver.open(10)
    errors = []

    def run():
        try:
            conn.execute(SLEEP)
        except psycopg.Error as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not is_active(conn):
        time.sleep(0.001)
    conn.pgconn = watched = Watched(conn.pgconn)
    driver.close(conn)
    assert not watched.freed
    thread.join(5)
    assert [type(error) for error in errors] == [psycopg.OperationalError]
    assert conn.closed


def test_an_idle_connection_is_closed(pg_dsn):
    """Where nothing runs, closing frees everything."""
    driver = PsycopgDriver(pg_dsn)
    conn = driver.open(10)
    conn.pgconn = watched = Watched(conn.pgconn)
    driver.close(conn)
    assert watched.freed


def test_a_copy_is_hung_up_on(pg_dsn):
    """No lock of psycopg's is held during a COPY; it is not freed under its user either."""
    driver = PsycopgDriver(pg_dsn)
    conn = driver.open(10)
    with pytest.raises(psycopg.Error), conn.cursor().copy(COPY) as copy:  # noqa: PT012  all of it is one COPY
        copy.read()
        conn.pgconn = watched = Watched(conn.pgconn)
        driver.close(conn)
        assert not watched.freed
        while copy.read():
            pass
    assert conn.closed


@pytest.mark.parametrize("how", ["close", "terminate"])
async def test_a_running_statement_of_a_task_is_hung_up_on(pg_dsn, how):
    """The same for asyncio."""
    driver = AsyncPsycopgDriver(pg_dsn)
    conn = await driver.open(10)
    task = asyncio.ensure_future(conn.execute(SLEEP))
    while not is_active(conn):  # noqa: ASYNC110  libpq tells nobody
        await asyncio.sleep(0.001)
    conn.pgconn = watched = Watched(conn.pgconn)
    if how == "close":
        await driver.close(conn)
    else:
        driver.terminate(conn)
    assert not watched.freed
    with pytest.raises(psycopg.OperationalError):
        async with asyncio.timeout(5):
            await task
    assert conn.closed


async def result_of(given):
    """What a driver of either kind returns."""
    return await given if asyncio.iscoroutine(given) else given


@pytest.mark.parametrize("kind", [PsycopgDriver, AsyncPsycopgDriver])
def test_who_is_about_to_send_is_under_way(pg_dsn, kind):
    """Given back while somebody has its lock and has sent nothing yet, a connection is not lent on."""

    async def main():
        driver = kind(pg_dsn)
        conn = await result_of(driver.open(10))
        assert driver.clean(conn)
        assert await result_of(conn.lock.acquire())
        assert not driver.clean(conn)
        with pytest.raises(psycopg.OperationalError, match="under way"):
            await result_of(driver.reset(conn, full=False))
        conn.lock.release()
        assert driver.clean(conn)
        await result_of(driver.close(conn))

    asyncio.run(main())
