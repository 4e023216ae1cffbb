"""psycopg: a reset is sent and not waited for; one that fails, hangs or loses its line is never taken for success."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.testing import FaultProxy
from poolkit.threads import Pool

LOOK = "SELECT current_setting('work_mem')"
SET = "SET work_mem = '71kB'"
SHADOW = (
    "CREATE OR REPLACE FUNCTION evil.pg_advisory_unlock_all() RETURNS void LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'evil'; END $$"
)


@pytest.fixture
def driver(proxy: FaultProxy, tables: str) -> PsycopgDriver[Any]:
    return PsycopgDriver(proxy.url(tables))


@pytest.fixture
def conn(driver: PsycopgDriver[Any]) -> Iterator[Any]:
    conn = driver.open(10)
    driver.settled(conn)
    yield conn
    driver.close(conn)


def finished(driver: PsycopgDriver[Any], conn: Any) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if driver.finish_reset(conn, 0.01):
            return True
    return False


def reset(driver: PsycopgDriver[Any], conn: Any, cut: FaultProxy | None = None) -> None:
    assert driver.send_reset(conn, full=False)
    if cut is not None:
        cut.cut()
    assert finished(driver, conn)


def test_sent_and_read(driver: PsycopgDriver[Any], conn: Any, proxy: FaultProxy) -> None:
    """Sending doesn't wait for the network; the answer is read later, and only then is the session clean."""
    before = conn.execute(LOOK).fetchone()
    conn.execute(SET)
    proxy.delay(0.1)
    begun = time.monotonic()
    assert driver.send_reset(conn, full=False)
    assert time.monotonic() - begun < 0.1
    assert not driver.clean(conn)
    assert not driver.finish_reset(conn, 0)
    assert not driver.clean(conn)
    assert finished(driver, conn)
    proxy.heal()
    assert driver.clean(conn)
    assert conn.execute(LOOK).fetchone() == before


def test_nothing_to_send(driver: PsycopgDriver[Any], conn: Any, proxy: FaultProxy) -> None:
    """What only the client knows is put back without a word to the server; `full` sends all the same."""
    before = proxy.round_trips
    conn.prepare_threshold = None
    assert not driver.clean(conn)
    assert not driver.send_reset(conn, full=False)
    assert driver.clean(conn)
    assert proxy.round_trips == before
    assert driver.send_reset(conn, full=True)
    assert finished(driver, conn)
    assert proxy.round_trips == before + 1


@pytest.mark.parametrize(
    "dirt",
    [
        ("CREATE TEMP TABLE t (i int)", "SET default_transaction_read_only = on"),
        ("SET search_path = evil", "SET ROLE pg_monitor"),
        ("SET SESSION AUTHORIZATION pg_monitor",),
        ("CREATE SCHEMA IF NOT EXISTS evil", SHADOW, "SET search_path = evil, pg_catalog"),
    ],
    ids=lambda dirt: "; ".join(dirt)[:40],
)  # fmt: skip
def test_what_would_be_in_its_way(driver: PsycopgDriver[Any], conn: Any, dirt: tuple[str, ...]) -> None:
    """Roles, read-only modes and functions of one's own don't keep a reset from its work."""
    everything = "SELECT current_user, session_user, current_schemas(false)"
    before = conn.execute(everything).fetchall()
    for statement in dirt:
        conn.execute(statement)
    assert driver.send_reset(conn, full=False)
    assert finished(driver, conn)
    assert conn.execute(everything).fetchall() == before


TABLES = "DO $$ BEGIN FOR i IN 1..600 LOOP EXECUTE 'CREATE TEMP TABLE t' || i || ' (i int)'; END LOOP; END $$"


def test_a_limit_is_lifted_first(driver: PsycopgDriver[Any], conn: Any) -> None:
    """A borrower's limit does not end what takes the reset longer: here it has hundreds of tables to drop."""
    for statement in (TABLES, "SET statement_timeout = 20"):
        conn.execute(statement)
    reset(driver, conn)
    assert conn.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_an_aborted_transaction(driver: PsycopgDriver[Any], conn: Any) -> None:
    """A failed statement's transaction is rolled back by the same message."""
    driver.begin(conn)
    conn.execute(SET)
    with pytest.raises(psycopg.Error):
        conn.execute("SELECT 1 / 0")
    assert driver.send_reset(conn, full=False)
    assert finished(driver, conn)
    assert driver.clean(conn)
    assert conn.autocommit


def test_notifications_before_the_answer(driver: PsycopgDriver[Any], conn: Any, admin: Any, proxy: FaultProxy) -> None:
    """Notifications that come before the answer are nobody's."""
    conn.execute("LISTEN mine")
    proxy.delay(down=0.2)
    admin.execute("NOTIFY mine, 'late'")
    assert driver.send_reset(conn, full=False)
    assert finished(driver, conn)
    proxy.heal()
    assert driver.clean(conn)
    assert list(conn.notifies(timeout=0)) == []


def test_hang(driver: PsycopgDriver[Any], conn: Any, proxy: FaultProxy) -> None:
    """Without an answer a reset is never finished, and the connection is closed without waiting for the server."""
    conn.execute(SET)
    proxy.blackhole()
    assert driver.send_reset(conn, full=False)
    begun = time.monotonic()
    assert not driver.finish_reset(conn, 0.1)
    assert not driver.finish_reset(conn, 0)
    driver.close(conn)
    assert time.monotonic() - begun < 5
    assert not driver.alive(conn)


@pytest.mark.parametrize("when", ["before", "after"])
def test_lost_line(driver: PsycopgDriver[Any], conn: Any, proxy: FaultProxy, when: str) -> None:
    """A line that is lost before or after the reset is sent is an error."""
    conn.execute(SET)
    if when == "before":
        proxy.cut()
    else:
        proxy.delay(down=0.2)
    with pytest.raises(psycopg.OperationalError):
        reset(driver, conn, proxy)
    assert driver.is_broken(conn, None) or not driver.clean(conn)


def test_killed(driver: PsycopgDriver[Any], conn: Any, admin: Any) -> None:
    """A session that the server ends before the reset is an error, with the server's own words."""
    pid = conn.info.backend_pid
    conn.execute(SET)
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    with pytest.raises(psycopg.OperationalError):
        reset(driver, conn)


def test_refused_by_the_server(tables: str, admin: Any) -> None:
    """A reset that the server refuses is an error: here what was configured can't be sent again."""
    driver = PsycopgDriver(tables)
    conn = driver.open(10)
    admin.execute("DROP ROLE IF EXISTS trust_gone")
    admin.execute("CREATE ROLE trust_gone")
    conn.execute("SET ROLE trust_gone")
    driver.settled(conn)
    admin.execute("DROP ROLE trust_gone")
    conn.execute(SET)
    assert driver.send_reset(conn, full=False)
    with pytest.raises(psycopg.Error, match="trust_gone"):
        finished(driver, conn)
    assert not driver.clean(conn)
    driver.close(conn)


@pytest.mark.parametrize("statement", ["LOAD 'plpgsql'", "SELECT setseed(0.5)"])
def test_what_no_reset_undoes(driver: PsycopgDriver[Any], conn: Any, statement: str) -> None:
    """What only the end of the session undoes makes a reset refuse."""
    conn.execute(statement)
    with pytest.raises(psycopg.OperationalError, match="can't be undone"):
        driver.send_reset(conn, full=False)


def test_in_use(driver: PsycopgDriver[Any], conn: Any) -> None:
    """A session with a block, a pipeline or a statement under way can't be reset."""
    with conn.transaction(), pytest.raises(psycopg.OperationalError, match="came back in a transaction block"):
        driver.send_reset(conn, full=False)
    with conn.pipeline(), pytest.raises(psycopg.OperationalError, match="under way"):
        driver.send_reset(conn, full=False)


# -- through a pool ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["none", "slow", "cut", "blackhole", "statement_timeout"])
def test_nobody_works_in_an_unclean_session(proxy: FaultProxy, tables: str, fault: str) -> None:
    """Whatever happens to the reset, the next borrower's statement runs in a session as new."""
    with Pool(PsycopgDriver(proxy.url(tables)), max_size=1, open_timeout=5) as pool:
        with pool.acquire() as conn:
            before = conn.execute(LOOK).fetchone()
            conn.execute(SET)
            if fault == "statement_timeout":
                conn.execute("SET statement_timeout = 1")
            if fault == "slow":
                proxy.delay(0.05)
            if fault == "blackhole":
                proxy.blackhole()
        if fault == "cut":
            proxy.cut()
        if fault == "blackhole":
            time.sleep(0.05)
            proxy.heal()
        with pool.acquire() as conn:
            assert conn.execute(LOOK).fetchone() == before
            assert conn.execute("SHOW statement_timeout").fetchone() == ("0",)


@pytest.mark.parametrize("fault", ["cut", "terminated", "blackhole"])
def test_async_faults(proxy: FaultProxy, tables: str, admin: Any, fault: str) -> None:
    """A reset in asyncio fails where it can't succeed, or waits until the connection is closed."""

    async def main() -> None:
        driver: AsyncPsycopgDriver[Any] = AsyncPsycopgDriver(proxy.url(tables))
        conn = await driver.open(10)
        driver.settled(conn)
        try:
            await conn.execute(SET)
            if fault == "cut":
                proxy.cut()
            elif fault == "terminated":
                admin.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
            else:
                proxy.blackhole()
            task = asyncio.create_task(driver.reset(conn, full=False))
            await asyncio.wait([task], timeout=0.3)
            assert task.done() is (fault != "blackhole")
            if not task.done():
                driver.terminate(conn)
            with pytest.raises(psycopg.OperationalError):
                await task
            assert not driver.clean(conn)
        finally:
            driver.terminate(conn)

    asyncio.run(main())
