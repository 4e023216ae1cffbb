"""What is special about MySQL: transactions that end behind their user's back, sessions, goodbyes."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rigs import MYSQL, RIGS, Rig

from poolkit.drivers import _mysql
from poolkit.testing import FaultProxy
from poolkit.testing.mariadb import LocalMariadb, MariadbNotFound

pytestmark = pytest.mark.parametrize("rig_name", MYSQL, indirect=True)


def items(rig: Rig, conn: Any) -> list[int]:
    return [row[0] for row in rig.rows(conn, "SELECT id FROM item ORDER BY id")]


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def deadlock(rig: Rig, conn: Any) -> Exception:
    """Run the connection's open unit into a deadlock, as its victim in either order: the other one has done more."""
    admin = rig.open()
    rig.do(admin, "INSERT INTO child VALUES (NULL), (NULL), (NULL)")
    rig.do(conn, "UPDATE item SET id = id WHERE id = 1")
    rig.do(admin, "BEGIN", "DELETE FROM child", "UPDATE item SET id = id WHERE id = 2")
    other = threading.Thread(target=lambda: rig.do(admin, "UPDATE item SET id = id WHERE id = 1", "ROLLBACK"))
    other.start()
    with pytest.raises(rig.errors) as caught:
        rig.do(conn, "UPDATE item SET id = id WHERE id = 2")
    other.join()
    assert caught.value.args[0] == 1213
    return caught.value


@pytest.fixture
def rows(rig: Rig) -> Rig:
    """The rig, with two rows to fight for."""
    rig.do(rig.open(), "INSERT INTO item VALUES (1), (2)")
    return rig


# -- the transaction that is gone -------------------------------------------------------------------------------------


def test_swallowed_deadlock(rows: Rig) -> None:
    """A deadlock has lost the unit's work: whoever swallows it saves nothing, neither before nor after it."""
    conn = rows.open()
    rows.begin(conn)
    rows.do(conn, "INSERT INTO item VALUES (3)")
    assert not rows.aborted(conn)
    error = deadlock(rows, conn)
    assert rows.aborted(conn)
    assert not rows.is_broken(conn, error)
    for attempt in (lambda: rows.do(conn, "INSERT INTO item VALUES (4)"), conn.commit, lambda: rows.commit(conn)):
        with pytest.raises(rows.errors, match="rolled back") as caught:
            attempt()
        assert caught.value.args[0] == 1213
    assert rows.clean(conn)
    assert items(rows, conn) == [1, 2]


@pytest.mark.parametrize("how", ["method", "statement"])
def test_rollback_after_a_deadlock(rows: Rig, how: str) -> None:
    """Whoever rolls back after a deadlock knows of it, and can do the work again in the same unit."""
    conn = rows.open()
    rows.begin(conn)
    deadlock(rows, conn)
    conn.rollback() if how == "method" else rows.do(conn, " rollback; ")
    assert not rows.aborted(conn)
    rows.do(conn, "INSERT INTO item VALUES (3)")
    assert rows.in_transaction(conn)
    rows.commit(conn)
    assert items(rows, rows.open()) == [1, 2, 3]


def test_deadlock_through_the_pool(rows: Rig) -> None:
    """The unit of a pool ends in an error where a deadlock was swallowed; the connection goes on."""
    pool = rows.make_pool(rows.driver)
    sessions: list[int] = []

    def fight(conn: Any) -> None:
        sessions.append(rows.value(conn, "SELECT connection_id()"))
        deadlock(rows, conn)

    with pytest.raises(Exception, match=r"1213|aborted"), pool.transaction() as conn:
        fight(conn)
    with pool.transaction() as again:
        rows.do(again, "INSERT INTO item VALUES (3)")
        assert rows.value(again, "SELECT connection_id()") == sessions[0]
    assert items(rows, rows.open()) == [1, 2, 3]
    assert pool.close()


def wait_in_vain(rig: Rig, conn: Any) -> None:
    """Have a statement of the open unit time out on somebody's lock."""
    holder = rig.open()
    rig.do(holder, "BEGIN", "UPDATE item SET id = id WHERE id = 1")
    rig.do(conn, "SET SESSION innodb_lock_wait_timeout = 0")
    with pytest.raises(rig.errors) as caught:
        rig.do(conn, "UPDATE item SET id = id WHERE id = 1")
    assert caught.value.args[0] == 1205
    rig.do(holder, "ROLLBACK")


def test_lock_wait_timeout(rows: Rig) -> None:
    """A lock wait that timed out has undone one statement, unless the server is set otherwise: the unit goes on."""
    conn = rows.open()
    rows.begin(conn)
    rows.do(conn, "INSERT INTO item VALUES (3)")
    wait_in_vain(rows, conn)
    assert not rows.aborted(conn)
    rows.commit(conn)
    assert items(rows, conn) == [1, 2, 3]


@pytest.mark.slow
def test_lock_wait_timeout_that_rolls_back(rig_name: str, unavailable: Callable[..., None]) -> None:
    """With innodb_rollback_on_timeout the same error has lost everything, and the unit is doomed."""
    with _private(unavailable, innodb_rollback_on_timeout=True) as server:
        rig = RIGS[rig_name](RIGS[rig_name].kind(server.dsn), None)
        conn = rig.open()
        rig.do(conn, "CREATE TABLE item (id integer PRIMARY KEY)", "INSERT INTO item VALUES (1)")
        rig.begin(conn)
        rig.do(conn, "INSERT INTO item VALUES (3)")
        wait_in_vain(rig, conn)
        assert rig.aborted(conn)
        with pytest.raises(rig.errors) as caught:
            rig.commit(conn)
        assert caught.value.args[0] == 1205
        assert items(rig, conn) == [1]
        rig.close_all()


def test_loss_that_nobody_saw(rig: Rig) -> None:
    """Rows that are read one by one may end in an error that passes by: the commit makes sure first."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    rig.stream(conn, "SELECT 1")
    behind_its_back(conn)
    with pytest.raises(rig.errors) as caught:
        rig.commit(conn)
    assert caught.value.args[0] == 1180
    assert rig.clean(conn)
    rig.begin(conn)
    rig.stream(conn, "SELECT 1")
    behind_its_back(conn)
    with pytest.raises(rig.errors):
        rig.do(conn, "INSERT INTO item VALUES (2)")
    assert rig.aborted(conn)
    rig.rollback(conn)
    assert items(rig, conn) == []


def behind_its_back(conn: Any) -> None:
    """Roll back so that the library does not hear of it, as the server does with an error."""
    conn._run(b"ROLLBACK")
    if hasattr(conn, "server_status"):
        conn.server_status |= _mysql.IN_TRANSACTION
    else:
        conn._status.value |= _mysql.IN_TRANSACTION


def test_change_of_the_schema_midway(rig: Rig) -> None:
    """MySQL commits before a CREATE TABLE; what follows in the unit is a transaction again, and can be rolled back."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)", "CREATE OR REPLACE TABLE made (id integer)")
    rig.do(conn, "INSERT INTO item VALUES (2)")
    assert rig.in_transaction(conn)
    rig.rollback(conn)
    assert items(rig, conn) == [1]
    rig.do(conn, "DROP TABLE made")


def test_failed_change_of_the_schema(rig: Rig) -> None:
    """A CREATE TABLE that fails has committed all the same: nothing is lost, so the unit is not doomed."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    with pytest.raises(rig.errors):
        rig.do(conn, "CREATE TABLE item (id integer)")
    assert not rig.aborted(conn)
    rig.commit(conn)
    assert items(rig, conn) == [1]


def test_failed_commit(rig: Rig, kill: Callable[[int], None]) -> None:
    """A COMMIT that can't be sent raises the library's error, and the connection is broken."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    kill(rig.value(conn, "SELECT connection_id()"))
    until(lambda: bool(conn._readable(0)))
    with pytest.raises(rig.errors) as caught:
        rig.commit(conn)
    assert rig.is_broken(conn, caught.value)
    assert items(rig, rig.open()) == []


def test_what_errors_cost(counted: tuple[Rig, Callable[[Callable[[], Any]], int]]) -> None:
    """An error about one statement's data costs no question; another one costs one round trip, in a unit only."""
    rig, trips = counted
    conn = rig.open()
    rig.do(conn, "INSERT INTO item VALUES (1)")

    def fails(query: str) -> int:
        def run() -> None:
            with pytest.raises(rig.errors):
                rig.do(conn, query)

        return trips(run)

    assert fails("ROLLBACK TO SAVEPOINT nobodys") == 1
    rig.begin(conn)
    assert fails("INSERT INTO item VALUES (1)") == 1
    assert fails("SELEC 1") == 1
    assert fails("RELEASE SAVEPOINT nobodys") == 2
    assert not rig.aborted(conn)


# -- the other end ----------------------------------------------------------------------------------------------------


def test_demoted_primary(rig: Rig, mysql_admin: Any) -> None:
    """A write refused because the server is read-only now means that the primary is elsewhere."""
    mysql_admin.query("CREATE OR REPLACE USER plain@'127.0.0.1' IDENTIFIED BY 'pw'")
    mysql_admin.query(f"GRANT SELECT, INSERT ON {rig.value(rig.open(), 'SELECT database()')}.* TO plain@'127.0.0.1'")
    rig.driver = rig.again(options={"user": "plain", "password": "pw"})
    conn = rig.open()
    rig.do(conn, "START TRANSACTION READ ONLY")
    with pytest.raises(rig.errors) as caught:
        rig.do(conn, "INSERT INTO item VALUES (1)")
    assert not rig.demoted(conn, caught.value)
    assert not rig.is_broken(conn, caught.value)
    rig.rollback(conn)
    mysql_admin.query("SET GLOBAL read_only = 1")
    try:
        with pytest.raises(rig.errors) as caught:
            rig.do(conn, "INSERT INTO item VALUES (1)")
    finally:
        mysql_admin.query("SET GLOBAL read_only = 0")
        mysql_admin.query("DROP USER plain@'127.0.0.1'")
    wrapped = RuntimeError("the view's own")
    wrapped.__cause__ = caught.value
    assert rig.demoted(conn, wrapped)
    assert rig.is_broken(conn, wrapped)


def test_another_option_in_the_way(rig: Rig) -> None:
    """The same number is used for other options of the server, which have nothing to do with a failover."""
    conn = rig.open()
    text = "The MariaDB server is running with the --secure-file-priv option so it cannot execute this statement"
    assert not rig.demoted(conn, conn.OperationalError(1290, text))
    assert rig.demoted(conn, conn.OperationalError(1836, "Running in read-only mode"))
    assert not rig.is_broken(conn, OSError(2013, "not the library's"))


@pytest.fixture
def through(rig_name: str, mysql_proxy: FaultProxy, mysql_tables: str) -> Iterator[tuple[Rig, FaultProxy]]:
    """A rig whose connections go through a network that can be broken."""
    kind = RIGS[rig_name]
    rig = kind(kind.kind(mysql_proxy.url(mysql_tables)), None)
    yield rig, mysql_proxy
    rig.close_all()


def test_silence(through: tuple[Rig, FaultProxy]) -> None:
    """A ping ends after its time where nobody answers, the connection is broken then, and a close does not wait."""
    rig, proxy = through
    conn, other = rig.open(), rig.open()
    proxy.blackhole()
    began = time.monotonic()
    assert not rig.ping(conn, 0.05)
    rig.driver.close(conn)
    rig.driver.close(other)
    assert time.monotonic() - began < 10
    assert not rig.alive(conn)
    assert rig.is_broken(conn, None)


def test_close_under_a_statement(rig: Rig) -> None:
    """A close while another thread is in a statement ends that statement, and returns at once."""
    conn = rig.open()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            rig.do(conn, "SELECT sleep(20)")
        except rig.errors as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: conn._busy)
    assert rig.is_broken(conn, None)
    began = time.monotonic()
    rig.driver.close(conn)
    thread.join(15)
    assert not thread.is_alive()
    assert time.monotonic() - began < 10
    assert rig.is_broken(conn, failed[0])


class Struck(BaseException):
    """What a signal handler raises in the middle of something."""


def test_interrupted_statement(rig: Rig) -> None:
    """A statement that a signal handler broke off leaves a connection that is broken, also where nobody says so."""
    conn = rig.open()

    def strike(number: int, frame: object) -> None:
        raise Struck

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(Struck):
            conn.cursor().execute("SELECT sleep(0.1)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rig.is_broken(conn, None)
    assert not rig.clean(conn)
    with pytest.raises(rig.errors):
        rig.reset(conn, full=False)


def test_keepalive_is_on(rig: Rig) -> None:
    """The socket has keepalive, with the times of poolkit."""
    with socket.socket(fileno=socket.dup(rig.open()._fd)) as view:
        assert view.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert view.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_unix_socket(rig: Rig) -> None:
    """A URL may name a Unix socket."""
    path = rig.value(rig.open(), "SELECT @@socket")
    rig.driver = rig.again(options={"unix_socket": path, "host": "localhost"})
    conn = rig.open()
    assert rig.ping(conn)
    with socket.socket(fileno=socket.dup(conn._fd)) as view:
        assert view.family == socket.AF_UNIX


def test_refused(rig: Rig) -> None:
    """A wrong password and a closed port are the library's own errors, and don't tell the password."""
    rig.driver = rig.again(options={"password": "s3cret"})
    with pytest.raises(rig.errors, match=r"1045|denied") as caught:
        rig.open()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    rig.driver = rig.again(options={"password": "s3cret", "port": port})
    with pytest.raises(rig.errors, match=r"200[23]") as again:
        rig.open()
    assert "s3cret" not in str(caught.value) + str(again.value) + repr(rig.driver)


@contextlib.contextmanager
def _private(unavailable: Callable[..., None], **settings: Any) -> Iterator[LocalMariadb]:
    try:
        server = LocalMariadb(**settings).start()
    except MariadbNotFound as error:
        unavailable("mysql", f"{error} (a server that runs already is no help: this test sets it up its own way)")
    with server:
        yield server
