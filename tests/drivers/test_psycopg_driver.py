"""What is psycopg's own: modes, attributes, prepared statements, interrupts, timeouts."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from poolkit.aio import AsyncPool
from poolkit.drivers import _common
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.errors import ConfigError
from poolkit.testing.postgres import LocalPostgres
from poolkit.threads import Pool


@pytest.fixture
def driver(tables: str) -> PsycopgDriver[Any]:
    return PsycopgDriver(tables)


@pytest.fixture
def conn(driver: PsycopgDriver[Any]) -> Iterator[psycopg.Connection[Any]]:
    conn = driver.open(10)
    yield conn
    conn.close()


# -- settings ---------------------------------------------------------------------------------------------------------


def test_modes_go_into_begin(tables: str) -> None:
    """The modes of the options are the connection's at rest, and BEGIN says them."""
    modes = {"isolation_level": "serializable", "read_only": True, "deferrable": True}
    driver = PsycopgDriver(tables, options=modes)
    with driver.open(10) as conn:
        assert driver.clean(conn)
        driver.begin(conn)
        for setting, value in (("isolation", "serializable"), ("read_only", "on"), ("deferrable", "on")):
            assert conn.execute(f"SHOW transaction_{setting}").fetchone() == (value,)
        driver.commit(conn)
        assert driver.clean(conn)


@pytest.mark.parametrize("level", ["repeatable read", "REPEATABLE_READ", psycopg.IsolationLevel.REPEATABLE_READ, 3])
def test_spellings_of_isolation_levels(level: object) -> None:
    """An isolation level may be psycopg's own value, or a name in any usual spelling."""
    driver = PsycopgDriver("postgresql://h/db", options={"isolation_level": level})
    assert driver._rest[0] is psycopg.IsolationLevel.REPEATABLE_READ


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation_level": "strict"}, "isolation_level must be one of read uncommitted, .*, not 'strict'"),
        ({"read_only": "yes"}, "read_only must be True, False or None, not 'yes'"),
        ({"autocommit": True}, "'autocommit' can't be set: connections rest in autocommit"),
        ({"sslmod": "require"}, "did you mean 'sslmode'"),
        ({"prepare_threshold": "5"}, "prepare_threshold must be a whole number or None, not '5'"),
        ({"row_factory": "dict_row"}, "row_factory must be callable, not 'dict_row'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    """An option that can't work says so when the driver is made."""
    with pytest.raises(ConfigError, match=message):
        PsycopgDriver("postgresql://h/db", options=options)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://h/db?sslmod=require", "did you mean 'sslmode'"),
        ("mysql://h/db", "expected a URL like postgresql://"),
        ("h/db", "expected a URL like postgresql://"),
        ("postgresql://user:%zz@h/db", "percent-encoded"),
    ],
)
def test_bad_urls(url: str, message: str) -> None:
    """A URL that can't work says so when the driver is made."""
    with pytest.raises(ConfigError, match=message):
        PsycopgDriver(url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "POSTGRESQL"])
def test_schemes(tables: str, scheme: str) -> None:
    """All the ways to write the scheme lead to the same place."""
    with PsycopgDriver(scheme + tables[tables.index(":") :]).open(10) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_connect_defaults() -> None:
    """A connect is bounded by its time and a vanished server is noticed; the URL and the options win over that."""
    plain = PsycopgDriver("postgresql://h/db")._conninfo(3.2)
    assert plain["connect_timeout"] == 4
    assert plain["tcp_user_timeout"] == 30_000
    url = "postgresql://h/db?connect_timeout=7&keepalives_idle=8"
    given = PsycopgDriver(url, options={"keepalives_idle": 9})._conninfo(3.2)
    assert (given["connect_timeout"], given["keepalives_idle"]) == ("7", 9)


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the system doesn't tell")
def test_keepalive_is_on(conn: psycopg.Connection[Any]) -> None:
    """The socket has keepalive with the times of poolkit."""
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == _common.KEEPALIVE["keepalives_idle"]


def test_row_factory(tables: str) -> None:
    """A row factory given to the driver is that of its connections, and comes back at a reset."""
    driver = PsycopgDriver(tables, row_factory=dict_row)
    with Pool(driver) as pool, pool.acquire() as conn:
        assert conn.execute("SELECT 1 AS one").fetchone() == {"one": 1}


@pytest.mark.slow
def test_types(tmp_path: Path) -> None:
    """A pool of a driver lends the library's own connection type, with the type of its rows."""
    code = """
from typing import assert_type
import psycopg
from psycopg.rows import DictRow, TupleRow, dict_row
from poolkit.aio import AsyncPool
from poolkit.drivers.psycopg import AsyncPsycopgDriver, PsycopgDriver
from poolkit.threads import Pool

with Pool(PsycopgDriver("postgresql://h/db"), max_size=2) as pool, pool.acquire() as conn:
    assert_type(conn, psycopg.Connection[TupleRow])
with Pool(PsycopgDriver("postgresql://h/db", row_factory=dict_row)) as dicts, dicts.transaction() as dict_conn:
    assert_type(dict_conn, psycopg.Connection[DictRow])

async def work() -> None:
    async with AsyncPool(AsyncPsycopgDriver("postgresql://h/db")) as pool, pool.acquire() as conn:
        assert_type(conn, psycopg.AsyncConnection[TupleRow])
"""
    path = tmp_path / "typed.py"
    path.write_text(code)
    check = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(path)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# -- as when it was opened --------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Any], object]] = {
    "autocommit": lambda conn: conn.set_autocommit(False),
    "row_factory": lambda conn: setattr(conn, "row_factory", dict_row),
    "cursor_factory": lambda conn: setattr(conn, "cursor_factory", psycopg.ClientCursor),
    "isolation_level": lambda conn: conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE),
    "read_only": lambda conn: conn.set_read_only(True),
    "deferrable": lambda conn: conn.set_deferrable(True),
    "prepare_threshold": lambda conn: setattr(conn, "prepare_threshold", None),
    "notice handler": lambda conn: conn.add_notice_handler(print),
    "notify handler": lambda conn: conn.add_notify_handler(print),
}


@pytest.mark.parametrize("change", CHANGES)
def test_attributes_are_put_back(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any], change: str) -> None:
    """Whatever attribute a borrower changes is noticed, and put back by a reset."""
    CHANGES[change](conn)
    with conn.transaction():  # psycopg keeps the BEGIN that belongs to the modes
        conn.execute("SELECT 1")
    assert not driver.clean(conn)
    driver.reset(conn, full=False)
    assert driver.clean(conn)
    driver.begin(conn)
    assert conn.execute("SHOW transaction_read_only").fetchone() == ("off",)
    assert conn.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
    driver.rollback(conn)


@pytest.mark.parametrize("change", ["autocommit", "isolation_level", "read_only", "deferrable", "notice handler"])
async def test_attributes_are_noticed_with_asyncio(tables: str, change: str) -> None:
    """The same changes are noticed on a connection of asyncio, whose methods are coroutines, and put back."""
    driver: AsyncPsycopgDriver[Any] = AsyncPsycopgDriver(tables)
    async with await driver.open(10) as conn:
        assert driver.clean(conn)
        changing = CHANGES[change](conn)
        if asyncio.iscoroutine(changing):
            await changing
        assert not driver.clean(conn)
        await driver.reset(conn, full=False)
        assert driver.clean(conn)


def test_what_was_put_back_by_hand_is_clean(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]) -> None:
    """Only what differs now counts: a setting that was changed and put back leaves nothing to reset."""
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    conn.add_notice_handler(print)
    assert not driver.clean(conn)
    conn.isolation_level = None
    assert not driver.clean(conn)
    conn.remove_notice_handler(print)
    assert driver.clean(conn)


def test_unread_notifications_are_not_handed_on(
    driver: PsycopgDriver[Any], conn: psycopg.Connection[Any], admin: psycopg.Connection[Any]
) -> None:
    """Notifications nobody read belong to the borrower who listened: a reset drops them and stops listening."""
    conn.execute("LISTEN mine")
    admin.execute("NOTIFY mine, 'for the first'")
    conn.execute("SELECT 1")
    assert not driver.clean(conn)
    driver.reset(conn, full=False)
    assert driver.clean(conn)
    assert list(conn.notifies(timeout=0)) == []
    assert conn.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)


def test_alive_keeps_unread_notifications(
    driver: PsycopgDriver[Any], conn: psycopg.Connection[Any], admin: psycopg.Connection[Any]
) -> None:
    """What `alive` reads from the socket is there for whoever asks for notifications next, in order."""
    conn.execute("LISTEN mine")
    for number in range(50):
        admin.execute("SELECT pg_notify('mine', %s)", [str(number)])
    deadline = time.monotonic() + 5
    while len(conn._notifies_backlog or ()) < 50 and time.monotonic() < deadline:
        assert driver.alive(conn)
    assert [note.payload for note in conn.notifies(timeout=0)] == [str(number) for number in range(50)]


def test_prepared_statements_survive(tables: str) -> None:
    """A full reset leaves the statements that psycopg keeps prepared in working order."""
    driver = PsycopgDriver(tables, options={"prepare_threshold": 0})
    with driver.open(10) as conn:
        for _ in range(2):
            assert conn.execute("SELECT count(*) FROM item WHERE id > %s", [0]).fetchone() == (0,)
            driver.reset(conn, full=True)
        assert conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() != (0,)


def test_pipeline_left_open(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]) -> None:
    """A connection that comes back in a pipeline is not clean and can't be reset."""
    with conn.pipeline():
        assert not driver.clean(conn)
        with pytest.raises(psycopg.OperationalError, match="pipeline under way"):
            driver.reset(conn, full=False)


def test_pipeline_in_a_unit(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]) -> None:
    """A pipeline inside a unit is part of its transaction."""
    driver.begin(conn)
    with conn.pipeline():
        for number in range(3):
            conn.execute("INSERT INTO item VALUES (%s)", [number])
    driver.rollback(conn)
    assert conn.execute("SELECT count(*) FROM item").fetchone() == (0,)


def test_busy_in_another_thread(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]) -> None:
    """A connection that another thread still uses is not clean, and a reset refuses instead of waiting."""
    thread = threading.Thread(target=conn.execute, args=["SELECT pg_sleep(0.3)"])
    thread.start()
    while conn.info.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
        time.sleep(0.001)
    assert not driver.clean(conn)
    assert driver.is_broken(conn, None)
    with pytest.raises(psycopg.OperationalError, match="under way"):
        driver.reset(conn, full=False)
    thread.join()
    assert driver.clean(conn)


# -- interrupts and silence -------------------------------------------------------------------------------------------


def test_interrupt_discards(tables: str, request: pytest.FixtureRequest) -> None:
    """Ctrl-C in the middle of a statement: the connection is not lent again."""
    # A shell's background job is born with the signal ignored, and Python leaves that so.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Pool(PsycopgDriver(tables), max_size=1) as pool:
        timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt), pool.transaction() as conn:
            conn.execute("SELECT pg_sleep(5)")
        timer.join()
        assert conn.closed
        assert pool.stats().size == 0
        with pool.acquire() as other:
            assert other.execute("SELECT 1").fetchone() == (1,)


def test_cancellation_in_a_transaction(tables: str) -> None:
    """A task cancelled in the middle of a statement: what it did is undone, and the pool goes on."""

    async def main() -> None:
        async with AsyncPool(AsyncPsycopgDriver(tables), max_size=1) as pool:

            async def slow() -> None:
                async with pool.transaction() as conn:
                    await conn.execute("INSERT INTO item VALUES (1)")
                    await conn.execute("SELECT pg_sleep(5)")

            task = asyncio.create_task(slow())
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with pool.acquire() as conn:
                assert await (await conn.execute("SELECT count(*) FROM item")).fetchone() == (0,)

    asyncio.run(main())


def test_ping_of_a_silent_server(private_pg: LocalPostgres) -> None:
    """A ping ends after its time where the server accepts but does not answer."""
    driver = PsycopgDriver(private_pg.dsn)
    conn = driver.open(10)
    private_pg.pause()
    began = time.monotonic()
    assert not driver.ping(conn, 0.3)
    assert 0.25 < time.monotonic() - began < 2
    private_pg.resume()
    driver.close(conn)


def test_async_ping_of_a_silent_server(private_pg: LocalPostgres) -> None:
    """The same for asyncio, where psycopg would first wait for the server to cancel the statement."""
    driver = AsyncPsycopgDriver(private_pg.dsn)

    async def main() -> None:
        conn = await driver.open(10)
        private_pg.pause()
        began = time.monotonic()
        assert not await driver.ping(conn, 0.3)
        assert 0.25 < time.monotonic() - began < 2
        assert not driver.alive(conn)

    asyncio.run(main())


def test_terminate_needs_no_loop(tables: str) -> None:
    """`terminate` closes a connection whose loop is gone."""
    driver = AsyncPsycopgDriver(tables)
    conn = asyncio.run(driver.open(10))
    driver.terminate(conn)
    assert conn.closed
    assert not conn.broken


# -- what can't be reset ----------------------------------------------------------------------------------------------


def test_open_transaction_block(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]) -> None:
    """A `conn.transaction()` that is still open belongs to somebody who will end it: not lent to the next."""
    block = conn.transaction()
    block.__enter__()
    conn.execute("ROLLBACK")
    assert not driver.clean(conn)
    with pytest.raises(psycopg.OperationalError, match="transaction block"):
        driver.reset(conn, full=False)
    conn.close()
    block.__exit__(None, None, None)


def test_two_phase_commit(driver: PsycopgDriver[Any], conn: psycopg.Connection[Any]) -> None:
    """A connection that comes back with a two-phase transaction begun is not lent again."""
    driver.begin(conn)
    conn.commit()
    conn.tpc_begin("mine")
    assert not driver.clean(conn)
    with pytest.raises(psycopg.OperationalError, match="two-phase"):
        driver.reset(conn, full=False)
    conn.execute("ROLLBACK")
    conn.autocommit = True  # libpq knows of nothing now, but psycopg goes on believing in it
    assert not driver.clean(conn)


def test_writing_in_a_read_only_pool(tables: str) -> None:
    """Where read-only was asked for, a refusal to write is the borrower's mistake and no reason to discard."""
    driver = PsycopgDriver(tables, options={"read_only": True})
    with driver.open(10) as conn:
        driver.begin(conn)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
            conn.execute("INSERT INTO item VALUES (1)")
        assert not driver.is_broken(conn, caught.value)
        driver.rollback(conn)
