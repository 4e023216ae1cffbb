"""What is asyncpg's own: the relay that reads the transaction's status, traces in a session, closing without a loop."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import psycopg
import pytest

from poolkit.aio import AsyncPool
from poolkit.config import PoolConfig
from poolkit.drivers import _common
from poolkit.drivers._relay import Relay
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.errors import CommitFailed, ConfigError
from poolkit.testing import FaultProxy
from poolkit.testing.postgres import LocalPostgres

Work = Callable[[AsyncpgDriver, Any], Awaitable[None]]


def with_connection(url: str, work: Work, **arguments: Any) -> None:
    """Run `work(driver, connection)` in a loop of its own."""

    async def main() -> None:
        driver = AsyncpgDriver(url, **arguments)
        conn = await driver.open(10)
        try:
            await work(driver, conn)
        finally:
            driver.terminate(conn)

    asyncio.run(main())


# -- the relay --------------------------------------------------------------------------------------------------------


class Inner:
    def __init__(self) -> None:
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data


READY = b"Z\0\0\0\5"
STREAM = b"T\0\0\0\6\0\0" + READY + b"T" + b"D\0\0\0\4ZZZ\0" + READY + b"E"


@pytest.mark.parametrize("cut", range(1, len(STREAM)))
def test_relay_reads_cut_messages(cut: int) -> None:
    """However the stream is cut into pieces, the relay knows the last status and passes everything on."""
    relay = Relay(inner := Inner())
    relay.data_received(STREAM[:cut])
    relay.data_received(STREAM[cut:])
    assert chr(relay.status) == "E"
    assert inner.data == STREAM


def test_relay_reads_byte_by_byte() -> None:
    """A stream that comes a byte at a time is read no worse."""
    relay = Relay(Inner())
    seen = []
    for number in range(len(STREAM)):
        relay.data_received(STREAM[number : number + 1])
        seen.append(chr(relay.status))
    assert "".join(dict.fromkeys(seen)) == "ITE"


ANSWER = b"1\0\0\0\4" + b"2\0\0\0\4" + b"C\0\0\0\x0aBEGIN\0"
NOTICE = b"N\0\0\0\x08abc\0"
REST = b"1\0\0\0\4" + b"T\0\0\0\6\0\0" + b"Z\0\0\0\5T"
ERROR = b"E\0\0\0\x08abc\0" + b"Z\0\0\0\5I"


@pytest.mark.parametrize(
    ("stream", "passed"),
    [
        (ANSWER + REST, REST),
        (NOTICE + ANSWER + REST, NOTICE + REST),
        (ANSWER[:10] + NOTICE + ANSWER[10:] + REST, NOTICE + REST),
        (ERROR, ERROR),
        (ANSWER[:10] + ERROR, ERROR),
        (NOTICE + ERROR, NOTICE + ERROR),
    ],
)
def test_relay_drops_the_answers_to_begin(stream: bytes, passed: bytes) -> None:
    """However the stream is cut, asyncpg gets what is its own: all from an error on, and what comes unasked."""
    for size in range(1, len(stream) + 1):
        relay = Relay(inner := Inner())
        relay.data_received(b"Z\0\0\0\5I")
        relay.unseen = (b"1", b"2", b"C")
        for at in range(0, len(stream), size):
            relay.data_received(stream[at : at + size])
        assert inner.data == b"Z\0\0\0\5I" + passed
        assert relay.unseen == ()
        assert chr(relay.status) == chr(passed[-1])


def test_relay_ignores_what_is_no_status() -> None:
    """A length or a process id that looks like the end of an answer is none, if no status follows."""
    relay = Relay(Inner())
    relay.data_received(READY + b"T")
    relay.data_received(b"A\0\0\0" + READY + b"x\0\0")
    assert chr(relay.status) == "T"


# -- aborted ----------------------------------------------------------------------------------------------------------


def test_silent_rollback_is_caught_without_the_relay(tables: str) -> None:
    """Even where nothing told that the transaction had failed, COMMIT's own answer is read: ROLLBACK is no commit."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await driver.begin(conn)
        with pytest.raises(asyncpg.PostgresError):
            await conn.execute("SELECT 1 / 0")
        conn._relay.status = ord("T")
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await driver.commit(conn)
        assert driver.clean(conn)

    with_connection(tables, work)


def test_timeout_in_a_unit(tables: str) -> None:
    """A statement that timed out, its error ignored, has aborted the unit: nothing is saved, and that is said."""

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(tables)) as pool:
            with pytest.raises((asyncpg.InFailedSQLTransactionError, CommitFailed)):  # noqa: PT012  the end raises
                async with pool.transaction() as conn:
                    await conn.execute("INSERT INTO item VALUES (1)")
                    with pytest.raises(TimeoutError):
                        await conn.fetch("SELECT pg_sleep(5)", timeout=0.1)
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT count(*) FROM item") == 0

    asyncio.run(main())


def test_failed_prepare_in_a_unit(tables: str) -> None:
    """An error in any kind of statement aborts: here one that could not even be prepared."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await driver.begin(conn)
        with pytest.raises(asyncpg.PostgresError):
            await conn.fetch("SELECT * FROM missing")
        assert driver.aborted(conn)
        await driver.rollback(conn)
        assert driver.clean(conn)

    with_connection(tables, work)


def test_failed_copy_in_a_unit(tables: str) -> None:
    """The same for COPY."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await driver.begin(conn)
        with pytest.raises(asyncpg.PostgresError):
            await conn.copy_records_to_table("item", records=[(1,), (1,)])
        assert driver.aborted(conn)

    with_connection(tables, work)


def test_unit_ended_by_sql(tables: str) -> None:
    """A unit that its user ended with COMMIT in SQL is over: what remains costs nothing and breaks nothing."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await driver.begin(conn)
        await conn.execute("COMMIT")
        await driver.commit(conn)
        assert driver.clean(conn)
        await driver.begin(conn)
        await driver.commit(conn)

    with_connection(tables, work)


def test_modes_go_into_begin(tables: str) -> None:
    """The modes of the options are those of the unit's transaction."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await driver.begin(conn)
        assert await conn.fetchval("SHOW transaction_isolation") == "repeatable read"
        assert await conn.fetchval("SHOW transaction_read_only") == "on"

    with_connection(tables, work, options={"isolation_level": "repeatable read", "read_only": True})


# -- traces -----------------------------------------------------------------------------------------------------------


async def many_kinds(conn: Any) -> None:
    """Read and write tables in every way asyncpg has."""
    await conn.execute("INSERT INTO item VALUES (1)")
    await conn.execute("INSERT INTO item VALUES ($1)", 2)
    await conn.executemany("INSERT INTO item VALUES ($1)", [(3,), (4,)])
    await conn.fetch("SELECT * FROM item")
    await conn.fetchrow("SELECT * FROM item")
    await conn.fetchval("SELECT id FROM item")
    statement = await conn.prepare("SELECT id FROM item WHERE id = $1")
    assert await statement.fetchval(1) == 1
    await conn.copy_records_to_table("item", records=[(5,)])
    async with conn.transaction():
        assert len([row async for row in conn.cursor("SELECT * FROM item")]) == 5
        await conn.execute("SET LOCAL statement_timeout = 1000")


def test_tables_leave_no_traces(tables: str) -> None:
    """Reading and writing tables in every way asyncpg has leaves the connection clean."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await many_kinds(conn)
        assert driver.clean(conn)
        assert await conn.fetchval("SHOW statement_timeout") == "0"

    with_connection(tables, work)


STAINS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "execute": lambda conn: conn.execute("SET statement_timeout = 1000"),
    "execute with arguments": lambda conn: conn.execute("SELECT set_config('statement_timeout', $1, false)", "1000"),
    "fetch": lambda conn: conn.fetch("SELECT set_config('statement_timeout', '1000', false)"),
    "fetchrow": lambda conn: conn.fetchrow("SELECT set_config('statement_timeout', '1000', false)"),
    "fetchval": lambda conn: conn.fetchval("SELECT set_config('statement_timeout', '1000', false)"),
    "executemany": lambda conn: conn.executemany("SELECT set_config('statement_timeout', $1, false)", [("1000",)]),
    "prepare": lambda conn: prepared(conn, "SELECT set_config('statement_timeout', '1000', false)"),
    "cursor": lambda conn: cursor(conn, "SELECT set_config('statement_timeout', '1000', false)"),
    "copy": lambda conn: conn.copy_from_query(
        "SELECT set_config('statement_timeout', '1000', false)", output=os.devnull
    ),
}


async def prepared(conn: Any, query: str) -> None:
    await (await conn.prepare(query)).fetch()


async def cursor(conn: Any, query: str) -> None:
    async with conn.transaction():
        await (await conn.cursor(query)).fetch(1)


@pytest.mark.parametrize("stain", STAINS)
def test_stains_are_seen_and_removed(tables: str, stain: str) -> None:
    """A changed setting is noticed whichever way it was sent, and the next borrower does not meet it."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await STAINS[stain](conn)
        assert await conn.fetchval("SHOW statement_timeout") == "1s"
        assert not driver.clean(conn)
        await driver.reset(conn, full=False)
        assert driver.clean(conn)
        assert await conn.fetchval("SHOW statement_timeout") == "0"

    with_connection(tables, work)


def test_role_and_temporary_tables_are_removed(tables: str) -> None:
    """An ordinary reset of a stained session undoes more than asyncpg's own: the role, and temporary tables."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        before = await conn.fetchval("SELECT current_user")
        await conn.execute("CREATE TEMP TABLE mine (id integer); SET ROLE pg_monitor")
        await driver.reset(conn, full=False)
        assert await conn.fetchval("SELECT current_user") == before
        with pytest.raises(asyncpg.UndefinedTableError):
            await conn.fetch("SELECT * FROM mine")

    with_connection(tables, work)


@pytest.mark.parametrize("kind", ["listener", "log_listener", "termination_listener", "query_logger"])
def test_listeners_are_removed(tables: str, kind: str) -> None:
    """No callback of one borrower is called for the next."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        add = getattr(conn, f"add_{kind}")
        if kind == "listener":
            await add("mine", print)
        else:
            add(print)
        assert not driver.clean(conn)
        await driver.reset(conn, full=False)
        assert driver.clean(conn)
        assert await conn.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0

    with_connection(tables, work)


def test_what_lasts_is_discarded(tables: str) -> None:
    """What no reset removes, a library that was loaded, ends with its session."""

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(tables), max_size=1) as pool:
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                await conn.execute("LOAD 'plpgsql'")
            async with pool.acquire() as other:
                assert other.get_server_pid() != pid

    asyncio.run(main())


def test_round_trips_of_a_return(tables: str, proxy: FaultProxy) -> None:
    """Returning a clean connection costs nothing, a stained one a single round trip."""

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(proxy.url(tables)), max_size=1) as pool:
            for query, cost in (("SELECT 1", 0), ("SET statement_timeout = 1000", 1), ("SELECT 1", 0)):
                async with pool.acquire() as conn:
                    await conn.execute(query)
                    before = proxy.round_trips
                while pool.stats().resetting:  # noqa: ASYNC110  nothing tells when a reset has been read
                    await asyncio.sleep(0.001)
                assert proxy.round_trips - before == cost

    asyncio.run(main())


# -- under way --------------------------------------------------------------------------------------------------------


def test_cancelled_statement(tables: str) -> None:
    """After a cancellation the connection is lent again only when the server has let go of the statement."""

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(tables), max_size=1) as pool:

            async def slow() -> None:
                async with pool.acquire() as conn:
                    await conn.execute("SELECT pg_sleep(5)")

            task = asyncio.create_task(slow())
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            began = time.monotonic()
            async with pool.acquire() as conn:
                assert not conn._protocol._is_cancelling()
                assert await conn.fetchval("SELECT 1") == 1
            assert time.monotonic() - began < 2

    asyncio.run(main())


def test_busy_in_another_task(tables: str) -> None:
    """A connection that another task still uses is not clean, and a reset refuses it."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        for query in (conn.execute, conn.fetch):
            task = asyncio.create_task(query("SELECT pg_sleep(0.2)"))
            await asyncio.sleep(0.05)
            assert not driver.clean(conn)
            with pytest.raises(asyncpg.InterfaceError, match="under way"):
                await driver.reset(conn, full=False)
            await task
            assert driver.clean(conn)

    with_connection(tables, work)


def test_ping_of_a_silent_server(private_pg: LocalPostgres) -> None:
    """A ping ends after its time where the server accepts but does not answer."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        private_pg.pause()
        began = time.monotonic()
        assert not await driver.ping(conn, 0.3)
        assert 0.25 < time.monotonic() - began < 2

    with_connection(private_pg.dsn, work, config=PoolConfig(open_timeout=0.3))


def test_leftovers_of_a_borrower(tables: str) -> None:
    """After a reset, a transaction block of the borrower before can't touch the connection any more."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        block = conn.transaction()
        await block.__aenter__()
        await driver.reset(conn, full=False)
        await driver.begin(conn)
        await conn.execute("INSERT INTO item VALUES (1)")
        with pytest.raises(asyncpg.InterfaceError, match="released back"):
            await block.__aexit__(None, None, None)
        await driver.commit(conn)
        assert await conn.fetchval("SELECT count(*) FROM item") == 1

    with_connection(tables, work)


# -- the end ----------------------------------------------------------------------------------------------------------


def gone(admin: psycopg.Connection[Any], pid: int) -> bool:
    deadline = time.monotonic() + 5
    while admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_terminate_without_a_loop(tables: str, admin: psycopg.Connection[Any]) -> None:
    """Where the loop is closed, `terminate` closes the socket all the same and nothing complains later."""
    driver = AsyncpgDriver(tables)

    async def main() -> tuple[Any, int, int]:
        conn = await driver.open(10)
        return conn, conn.get_server_pid(), conn._transport.get_extra_info("socket").fileno()

    conn, pid, fd = asyncio.run(main())
    for _ in range(2):
        driver.terminate(conn)
    assert conn.is_closed()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert gone(admin, pid)
    del conn
    gc.collect()


def test_pool_goes_on_in_another_loop(tables: str) -> None:
    """A pool whose loop was closed without a goodbye starts afresh in the next."""
    pool = AsyncPool(AsyncpgDriver(tables), max_size=1)

    async def borrow() -> int:
        async with pool.acquire() as conn:
            return await conn.fetchval("SELECT 1")

    assert [asyncio.run(borrow()) for _ in range(2)] == [1, 1]
    asyncio.run(pool.close())
    gc.collect()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_abandoned_is_closed_to_asyncpg(tables: str) -> None:
    """In a forked child asyncpg takes an abandoned connection for closed, so that its finalizer does nothing."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        pid = os.fork()
        if pid == 0:
            driver.abandon(conn)
            os._exit(0 if conn.is_closed() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0  # noqa: ASYNC222  it ends at once
        assert await conn.fetchval("SELECT 1") == 1

    with_connection(tables, work)


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"comand_timeout": 3}, "did you mean 'command_timeout'"),
        ({"connection_class": object}, "'connection_class' can't be set: the driver needs its own"),
        ({"isolation_level": "strict"}, "isolation_level must be one of"),
        ({"read_only": "yes"}, "read_only must be True or False, not 'yes'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    """An option that can't work says so when the driver is made."""
    with pytest.raises(ConfigError, match=message):
        AsyncpgDriver("postgresql://h/db", options=options)


def test_options_reach_asyncpg(tables: str) -> None:
    """Options go to asyncpg's connect; server settings are added to poolkit's own."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        assert await conn.fetchval("SHOW statement_timeout") == "7s"
        assert (await conn.fetchval("SHOW application_name")).startswith("poolkit:")
        await conn.execute("SET statement_timeout = 1000")
        await driver.reset(conn, full=False)
        assert await conn.fetchval("SHOW statement_timeout") == "7s"

    with_connection(tables, work, options={"server_settings": {"statement_timeout": "7s"}})


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the system doesn't tell")
def test_keepalive_is_on(tables: str) -> None:
    """The socket has keepalive, which asyncpg leaves off."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        sock = conn._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == _common.KEEPALIVE["keepalives_idle"]

    with_connection(tables, work)
