"""What is special about psycopg2: options that are the session's, notices that are goodbyes, calls without a limit."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg2
import pytest
from psycopg2 import extensions, extras

from poolkit import ConfigError
from poolkit.drivers.psycopg2 import Psycopg2Driver
from poolkit.ending import is_retryable
from poolkit.testing import FaultProxy
from poolkit.threads import Pool

SECRET = "s3cret"


@pytest.fixture
def driver(tables: str) -> Psycopg2Driver:
    return Psycopg2Driver(tables)


@pytest.fixture
def conn(driver: Psycopg2Driver) -> Iterator[Any]:
    conn = driver.open(10)
    yield conn
    driver.close(conn)


def value(conn: Any, query: str) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0] if cursor.description else None


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def test_modes_are_the_sessions(tables: str, proxy: FaultProxy) -> None:
    """Isolation level and modes are the server's to know from the connect on, and cost nothing afterwards."""
    modes = {"isolation_level": "REPEATABLE_READ", "readonly": True, "deferrable": True, "options": "-c work_mem=1MB"}
    driver = Psycopg2Driver(proxy.url(tables), options=modes)
    conn = driver.open(10)
    before = proxy.round_trips
    driver.begin(conn)
    assert value(conn, "SHOW transaction_isolation") == "repeatable read"
    driver.commit(conn)
    assert proxy.round_trips - before == 3
    assert driver.clean(conn)
    for name, set_to in (("read_only", "on"), ("deferrable", "on")):
        assert value(conn, f"SHOW default_transaction_{name}") == set_to
    assert value(conn, "SHOW work_mem") == "1MB"
    driver.reset(conn, full=True)
    assert value(conn, "SHOW default_transaction_isolation") == "repeatable read"
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction) as caught:
        value(conn, "INSERT INTO item VALUES (1)")
    assert not driver.is_broken(conn, caught.value), "read-only was asked for"
    driver.close(conn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation_level": "chaos"}, "isolation_level must be one of read uncommitted"),
        ({"readonly": "yes"}, "readonly must be True, False or None, not 'yes'"),
        ({"cursor_factory": "DictCursor"}, "cursor_factory must be a subclass"),
        ({"autocommit": True}, "rest in autocommit"),
        ({"async_": True}, "for threads"),
        ({"connection_factory": object}, "poolkit's own"),
        ({"host=x dbname": "y"}, "unknown option 'host=x dbname'"),
        ({"sslmodee": "x"}, "did you mean 'sslmode'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    """An option that can't work says so when the driver is made."""
    with pytest.raises(ConfigError, match=message):
        Psycopg2Driver("postgresql://h/db", options=options)


def test_bad_urls() -> None:
    """So does a URL; and an option that only options can have is none there."""
    for url in ("mysql://h/db", f"postgresql://u:{SECRET}%zz@h/db", "postgresql://h/db?cursor_factory=x"):
        with pytest.raises(ConfigError) as caught:
            Psycopg2Driver(url)
        assert SECRET not in str(caught.value)


def test_connect_defaults() -> None:
    """A connect is bounded, its time shared out among the hosts; the URL and the options win over that."""
    given = Psycopg2Driver("postgresql+psycopg2://a,b/db")._arguments(10.5)
    assert given["connect_timeout"] == 6
    assert Psycopg2Driver("postgresql://h/db")._arguments(0.1)["connect_timeout"] == 2
    given = Psycopg2Driver("postgresql://h/db?connect_timeout=7", options={"keepalives_idle": 5})._arguments(10)
    assert given["connect_timeout"] == "7"
    assert given["keepalives_idle"] == 5
    assert "options" not in given


def test_cursor_factory(tables: str) -> None:
    """A cursor class given to the driver is that of its connections, and comes back at a reset."""
    driver = Psycopg2Driver(tables, options={"cursor_factory": extras.DictCursor})
    conn = driver.open(10)
    assert driver.ping(conn, 5)
    conn.cursor_factory = extensions.cursor
    assert not driver.clean(conn)
    driver.reset(conn, full=False)
    assert conn.cursor_factory is extras.DictCursor
    driver.close(conn)


@pytest.mark.parametrize(
    "change",
    [
        lambda conn: setattr(conn, "autocommit", False),
        lambda conn: conn.set_client_encoding("LATIN1"),
        lambda conn: conn.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True),
        lambda conn: value(conn, "SET datestyle = 'German'"),
    ],
)
def test_attributes_are_put_back(driver: Psycopg2Driver, conn: Any, change: Callable[[Any], object]) -> None:
    """Whatever a borrower changes on the connection is put back, by a full reset also what he changed in SQL."""
    before = [value(conn, f"SHOW {name}") for name in ("client_encoding", "datestyle", "default_transaction_isolation")]
    encoding = conn.encoding
    change(conn)
    driver.reset(conn, full=True)
    assert driver.clean(conn)
    assert conn.encoding == encoding
    assert before == [
        value(conn, f"SHOW {name}") for name in ("client_encoding", "datestyle", "default_transaction_isolation")
    ]


def test_a_server_of_another_date_style(driver: Psycopg2Driver, tables: str) -> None:
    """A full reset does not take from psycopg2 the date style it sets for itself."""
    own = Psycopg2Driver(f"{tables}{'&' if '?' in tables else '?'}options=-c%20datestyle%3DGerman")
    conn = own.open(10)
    own.reset(conn, full=True)
    assert value(conn, "SELECT date '2026-11-22'").year == 2026
    own.close(conn)


def test_unread_notifications_are_not_handed_on(driver: Psycopg2Driver, conn: Any) -> None:
    """Notifications nobody read belong to the borrower who listened: a reset drops them and stops listening."""
    value(conn, "LISTEN mine")
    value(conn, "NOTIFY mine, 'for me'")
    assert conn.notifies
    assert not driver.clean(conn)
    driver.reset(conn, full=False)
    assert driver.clean(conn)
    assert not conn.notifies
    assert value(conn, "SELECT count(*) FROM pg_listening_channels()") == 0


def test_two_phase_commit(driver: Psycopg2Driver, conn: Any) -> None:
    """A connection that comes back in a two-phase commit is not lent again."""
    conn.autocommit = False
    conn.tpc_begin(conn.xid(1, "mine", "half"))
    value(conn, "INSERT INTO item VALUES (1)")
    assert not driver.clean(conn)
    with pytest.raises(psycopg2.Error, match="two-phase"):
        driver.reset(conn, full=False)


def test_begin_that_fails(driver: Psycopg2Driver, tables: str) -> None:
    """A BEGIN that can't be sent raises, and the connection is broken."""
    conn = driver.open(10)
    other = driver.open(10)
    value(other, f"SELECT pg_terminate_backend({conn.info.backend_pid}, 5000)")
    with pytest.raises(psycopg2.Error) as caught:
        driver.begin(conn)
    assert driver.is_broken(conn, caught.value)
    driver.close(conn)
    driver.close(other)


def test_silence(tables: str, proxy: FaultProxy) -> None:
    """A ping ends after its time where nobody answers, the connection is broken then, and a close does not wait."""
    driver = Psycopg2Driver(proxy.url(tables))
    conn, other = driver.open(10), driver.open(10)
    proxy.blackhole()
    began = time.monotonic()
    assert not driver.ping(conn, 0.05)
    driver.close(conn)
    driver.close(other)
    assert time.monotonic() - began < 10
    assert not driver.alive(conn)
    assert driver.is_broken(conn, None)


def test_close_under_a_statement(driver: Psycopg2Driver) -> None:
    """A close while another thread is in a statement ends that statement, and returns at once."""
    conn = driver.open(10)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            value(conn, "SELECT pg_sleep(20)")
        except psycopg2.Error as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: conn.get_transaction_status() == extensions.TRANSACTION_STATUS_ACTIVE)
    assert driver.is_broken(conn, None)
    assert driver.in_transaction(conn)
    with pytest.raises(psycopg2.OperationalError, match="under way"):
        driver.reset(conn, full=False)
    began = time.monotonic()
    driver.close(conn)
    thread.join(15)
    assert not thread.is_alive()
    assert time.monotonic() - began < 10
    assert driver.is_broken(conn, failed[0])


def test_deadlocks_are_worth_another_try(conn: Any) -> None:
    """A serialization failure is told by its code, which psycopg2 keeps under a name of its own."""
    with pytest.raises(psycopg2.Error) as caught:
        value(conn, "DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")
    assert is_retryable(caught.value)


def test_keepalive_is_on(conn: Any) -> None:
    """The socket has keepalive, with the times of poolkit."""
    with socket.socket(fileno=socket.dup(conn.fileno())) as view:
        assert view.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert view.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_through_its_url(tables: str) -> None:
    """A pool finds the driver by the scheme, and lends psycopg2's own connections; `with conn` commits as ever."""
    with Pool("postgresql+psycopg2" + tables[tables.index("://") :], max_size=1) as pool:
        with pool.acquire() as conn, conn:
            assert isinstance(conn, extensions.connection)
            value(conn, "INSERT INTO item VALUES (1)")
        with pool.acquire() as again:
            assert again is conn
            assert value(again, "SELECT count(*) FROM item") == 1


@pytest.mark.parametrize("how", ["role", "pool"])
def test_read_only_by_default_is_no_demotion(tables: str, admin: psycopg.Connection[Any], how: str) -> None:
    """A refused write says nothing of the server where the role or the settings are read-only by default."""
    admin.execute("DROP ROLE IF EXISTS reader_of_psycopg2")
    admin.execute("CREATE ROLE reader_of_psycopg2 LOGIN PASSWORD 'x'")
    admin.execute("ALTER ROLE reader_of_psycopg2 SET default_transaction_read_only = on")
    options: dict[str, Any] = {"session_settings": {"default_transaction_read_only": True}}
    driver = Psycopg2Driver(
        tables, options={"user": "reader_of_psycopg2", "password": "x"} if how == "role" else options
    )
    conn = driver.open(10)
    try:
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction) as caught, conn.cursor() as cursor:
            cursor.execute("CREATE TABLE never (id int)")
        assert not driver.demoted(conn, caught.value)
        assert not driver.is_broken(conn, caught.value)
        driver.reset(conn, full=True)
        assert not driver.demoted(conn, caught.value)
    finally:
        driver.close(conn)
        admin.execute("DROP ROLE reader_of_psycopg2")
