"""What every leased driver promises, held by the same cases for all of them against the real thing."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from rigs import RIGS, Rig

from poolkit.config import PoolConfig
from poolkit.driver import AsyncTransactional, Transactional
from poolkit.errors import CommitFailed, ConfigError
from poolkit.testing import FaultProxy

POSTGRES = [name for name, rig in RIGS.items() if rig.postgres]
only_postgres = pytest.mark.parametrize("rig_name", POSTGRES, indirect=True)
only_servers = pytest.mark.parametrize(
    "rig_name", [name for name, rig in RIGS.items() if rig.postgres or rig.mysql], indirect=True
)
not_mysql = pytest.mark.parametrize("rig_name", [name for name, rig in RIGS.items() if not rig.mysql], indirect=True)


def items(rig: Rig, conn: Any) -> list[int]:
    return [row[0] for row in rig.rows(conn, "SELECT id FROM item ORDER BY id")]


def refused(rig: Rig, conn: Any, query: str = "INSERT INTO item VALUES ('no number')") -> None:
    """Run a statement that fails, and ignore its error."""
    with pytest.raises(rig.errors):
        rig.do(conn, query)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# -- a new connection -------------------------------------------------------------------------------------------------


def test_new_connection(rig: Rig) -> None:
    """A new connection is alive, answers, is clean and in no transaction."""
    conn = rig.open()
    assert rig.alive(conn)
    assert rig.ping(conn)
    assert rig.clean(conn)
    assert not rig.in_transaction(conn)
    assert not rig.aborted(conn)
    assert not rig.is_broken(conn, None)


def test_rests_in_autocommit(rig: Rig) -> None:
    """Outside a unit each statement is saved by itself, and the connection stays clean."""
    conn, other = rig.open(), rig.open()
    rig.do(conn, "INSERT INTO item VALUES (1)")
    assert items(rig, other) == [1]
    assert rig.clean(conn)


def test_defaults_are_pool_settings(rig: Rig) -> None:
    """A driver's defaults are valid settings of a pool."""
    PoolConfig.from_mapping(rig.driver.defaults)


def test_is_transactional(rig: Rig) -> None:
    """Every leased driver takes part in units of work."""
    assert isinstance(rig.driver, (Transactional, AsyncTransactional))


# -- transactions -----------------------------------------------------------------------------------------------------


def test_commit_saves(rig: Rig) -> None:
    """What a unit wrote is invisible before the commit and saved after it; the connection is clean again."""
    conn, other = rig.open(), rig.open()
    rig.begin(conn)
    assert rig.in_transaction(conn)
    assert not rig.clean(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    if rig.postgres:  # a database in memory lets nobody read while somebody writes
        assert items(rig, other) == []
    rig.commit(conn)
    assert items(rig, other) == [1]
    assert rig.clean(conn)
    assert not rig.in_transaction(conn)


def test_rollback_undoes(rig: Rig) -> None:
    """What a unit wrote is gone after the rollback; the connection is clean again."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    rig.rollback(conn)
    assert items(rig, conn) == []
    assert rig.clean(conn)


@not_mysql
def test_ddl_is_rolled_back(rig: Rig) -> None:
    """CREATE TABLE is part of the transaction like anything else."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "CREATE TABLE made (id integer)")
    rig.rollback(conn)
    refused(rig, conn, "INSERT INTO made VALUES (1)")


def test_units_follow_each_other(rig: Rig) -> None:
    """A connection takes any number of units, one after the other."""
    conn = rig.open()
    for number in range(3):
        rig.begin(conn)
        rig.do(conn, f"INSERT INTO item VALUES ({number})")
        (rig.rollback if number == 1 else rig.commit)(conn)
        assert rig.clean(conn)
    assert items(rig, conn) == [0, 2]


def test_own_transactions_are_savepoints(rig: Rig) -> None:
    """The library's transaction inside a unit is a savepoint: its failure undoes its own work and nothing else."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    rig.savepoint(conn, "INSERT INTO item VALUES (2)", fail=True)
    rig.savepoint(conn, "INSERT INTO item VALUES (3)", fail=False)
    assert rig.in_transaction(conn)
    assert not rig.aborted(conn)
    rig.commit(conn)
    assert items(rig, conn) == [1, 3]


@not_mysql
def test_failed_commit(rig: Rig) -> None:
    """A COMMIT that fails raises the library's error, leaves no transaction, and nobody ever sees the row."""
    conn, other = rig.open(), rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO child VALUES (7)")
    with pytest.raises(rig.errors):
        rig.commit(conn)
    assert not rig.in_transaction(conn)
    assert rig.clean(conn)
    for reader in (conn, other):
        assert rig.value(reader, "SELECT count(*) FROM child") == 0


@only_postgres
def test_swallowed_error_is_never_committed(rig: Rig) -> None:
    """A failed statement aborts the transaction: `aborted` says so, and a commit raises instead of lying."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    refused(rig, conn)
    assert rig.aborted(conn)
    with pytest.raises(rig.errors, match="aborted"):
        rig.commit(conn)
    assert rig.clean(conn)
    assert items(rig, conn) == []


@only_postgres
def test_savepoint_saves_an_aborted_transaction(rig: Rig) -> None:
    """A rollback to a savepoint makes the transaction whole again, and it can be committed."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)", "SAVEPOINT mine")
    refused(rig, conn)
    assert rig.aborted(conn)
    rig.do(conn, "ROLLBACK TO SAVEPOINT mine")
    assert not rig.aborted(conn)
    rig.commit(conn)
    assert items(rig, conn) == [1]


@not_mysql
def test_swallowed_error_through_the_pool(rig: Rig) -> None:
    """`transaction()` of a pool ends in an error where a swallowed one has lost the work."""
    pool = rig.make_pool(rig.driver)
    lose = "INSERT INTO item VALUES (1)" if rig.postgres else "INSERT OR ROLLBACK INTO item VALUES (1)"

    def work(conn: Any) -> None:
        rig.do(conn, "INSERT INTO item VALUES (1)")
        refused(rig, conn, lose)

    with pytest.raises(CommitFailed):
        rig.transaction(pool, work)
    rig.transaction(pool, lambda conn: rig.do(conn, "INSERT INTO item VALUES (2)"))
    assert items(rig, rig.open()) == [2]
    assert rig.run(pool.close())


@not_mysql
def test_failed_commit_through_the_pool(rig: Rig) -> None:
    """After a failed COMMIT the next borrower gets a connection that never saw the row."""
    pool = rig.make_pool(rig.driver)
    with pytest.raises(rig.errors):
        rig.transaction(pool, lambda conn: rig.do(conn, "INSERT INTO child VALUES (7)"))
    seen: list[Any] = []
    rig.transaction(pool, lambda conn: seen.append(rig.value(conn, "SELECT count(*) FROM child")))
    assert seen == [0]
    assert rig.run(pool.close())


ENDS = [
    (name, how) for name, rig in RIGS.items() for how in ("closed", "killed", "lost")
    if how == "closed" or rig.postgres or rig.mysql
]  # fmt: skip


@pytest.mark.parametrize(("rig_name", "how"), ENDS, indirect=["rig_name"])
@pytest.mark.parametrize("way", ["commit", "transaction"])
def test_gone_before_the_commit(rig: Rig, how: str, way: str, request: pytest.FixtureRequest) -> None:
    """A unit whose connection was closed, killed or lost before its COMMIT ends in an error, or all of it is saved."""
    beside, keeper = rig, rig.open()
    if how == "lost":
        rig, _ = request.getfixturevalue("counted")
        proxy = request.getfixturevalue("mysql_proxy" if rig.mysql else "proxy")
    kill = request.getfixturevalue("kill") if how == "killed" else None

    def work(conn: Any) -> None:
        pid = backend(rig, conn) if kill else 0
        rig.do(conn, "INSERT INTO item VALUES (1)")
        if how == "closed":
            with contextlib.suppress(Exception):  # refused, with work open
                rig.hang_up(conn)
        elif kill:
            kill(pid)
        else:
            proxy.cut("rst")
        with contextlib.suppress(Exception):
            rig.do(conn, "SELECT 1")

    told = None
    pool = rig.make_pool(rig.driver)
    try:
        if way == "commit":
            conn = rig.open()
            rig.begin(conn)
            work(conn)
            rig.commit(conn)
        else:
            rig.transaction(pool, work)
    except (rig.errors, *rig.refusals, CommitFailed) as error:
        told = error
    rig.run(pool.close())
    assert items(beside, keeper) == ([] if told else [1])
    assert told or how == "closed"


def test_nothing_open(rig: Rig) -> None:
    """Commit and rollback of a connection with nothing open are harmless."""
    conn = rig.open()
    rig.commit(conn)
    rig.rollback(conn)
    assert rig.clean(conn)


@pytest.mark.parametrize("rig_name", [name for name, rig in RIGS.items() if rig.commits_midway], indirect=True)
def test_own_commit_midway(rig: Rig) -> None:
    """After the library's own commit inside a unit, what follows is a new transaction that can be rolled back."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    rig.run(conn.commit())
    rig.do(conn, "INSERT INTO item VALUES (2)")
    rig.run(conn.rollback())
    rig.do(conn, "INSERT INTO item VALUES (3)")
    rig.rollback(conn)
    assert items(rig, conn) == [1]
    assert rig.clean(conn)


# -- coming back ------------------------------------------------------------------------------------------------------


def test_reset_rolls_back(rig: Rig) -> None:
    """A transaction that was left open is rolled back by a reset."""
    conn = rig.open()
    rig.do(conn, "BEGIN", "INSERT INTO item VALUES (1)")
    assert not rig.clean(conn)
    rig.reset(conn, full=False)
    assert rig.clean(conn)
    assert items(rig, conn) == []


def test_reset_of_a_unit(rig: Rig) -> None:
    """A unit that was left open is gone after a reset, and the next one begins as ever."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    rig.reset(conn, full=False)
    assert rig.clean(conn)
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (2)")
    rig.commit(conn)
    assert items(rig, conn) == [2]


@only_postgres
def test_reset_of_an_aborted_transaction(rig: Rig) -> None:
    """A transaction that failed and was left open is rolled back by a reset."""
    conn = rig.open()
    rig.begin(conn)
    refused(rig, conn)
    rig.reset(conn, full=False)
    assert rig.clean(conn)
    assert rig.value(conn, "SELECT 1") == 1


@only_postgres
def test_full_reset(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """A full reset leaves no setting, role, temporary table, sequence, cursor, channel or advisory lock behind."""
    role = f"poolkit_{os.getpid()}"
    admin.execute(f"CREATE ROLE {role}")  # type: ignore[call-overload]
    conn = rig.open()
    before = rig.value(conn, "SELECT current_user")
    rig.do(
        conn,
        "SET statement_timeout = 4321",
        "CREATE TEMPORARY TABLE mine (id integer)",
        "SELECT nextval('counter')",
        "SELECT pg_advisory_lock(77)",
        "LISTEN mine",
        "BEGIN",
        "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
        "COMMIT",
        f"SET ROLE {role}",
    )
    rig.reset(conn, full=True)
    assert rig.clean(conn)
    assert rig.value(conn, "SHOW statement_timeout") == "0"
    assert rig.value(conn, "SELECT current_user") == before
    assert rig.value(conn, "SELECT count(*) FROM pg_class WHERE relname = 'mine'") == 0
    assert rig.value(conn, "SELECT count(*) FROM pg_cursors WHERE name = 'held'") == 0
    assert rig.value(conn, "SELECT count(*) FROM pg_listening_channels()") == 0
    assert admin.execute("SELECT pg_try_advisory_lock(77)").fetchone() == (True,)
    refused(rig, conn, "SELECT lastval()")
    admin.execute("SELECT pg_advisory_unlock(77)")
    admin.execute(f"DROP ROLE {role}")  # type: ignore[call-overload]


@not_mysql  # which gives a connection with nothing open back instead
def test_closed_by_the_user(rig: Rig) -> None:
    """A connection that its borrower closed is dead, not clean, broken, and can't be reset."""
    conn = rig.open()
    rig.hang_up(conn)
    assert not rig.alive(conn)
    assert not rig.clean(conn)
    assert not rig.ping(conn)
    assert not rig.in_transaction(conn)
    assert not rig.aborted(conn)
    assert rig.is_broken(conn, None)
    with pytest.raises(Exception, match=r"(?i)closed"):
        rig.reset(conn, full=False)


def test_ordinary_errors_break_nothing(rig: Rig) -> None:
    """An error of the application, or of a statement, is no reason to discard the connection."""
    conn = rig.open()
    rig.do(conn, "INSERT INTO item VALUES (1)")
    with pytest.raises(rig.errors) as caught:
        rig.do(conn, "INSERT INTO item VALUES (1)")
    assert not rig.is_broken(conn, caught.value)
    assert not rig.is_broken(conn, ValueError("the view's own"))
    assert not rig.is_broken(conn, GeneratorExit())


def test_interrupts_break(rig: Rig) -> None:
    """Ctrl-C, or a signal handler that exits, may have struck anywhere: the connection is not lent again."""
    conn = rig.open()
    assert rig.is_broken(conn, KeyboardInterrupt())
    assert rig.is_broken(conn, SystemExit())


# -- the other end ----------------------------------------------------------------------------------------------------


def backend(rig: Rig, conn: Any) -> int:
    return rig.value(conn, "SELECT connection_id()" if rig.mysql else "SELECT pg_backend_pid()")


@only_servers
def test_killed_backend(rig: Rig, kill: Callable[[int], None]) -> None:
    """A backend that was terminated is found dead without asking it."""
    conn = rig.open()
    kill(backend(rig, conn))
    assert until(lambda: not rig.alive(conn))
    assert not rig.ping(conn)
    with pytest.raises(Exception, match=r"(?i)clos|terminat|lost|gone|kill"):
        rig.reset(conn, full=True)


@only_postgres
def test_killed_while_listening(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """A goodbye that comes behind a notification is not taken for one."""
    conn = rig.open()
    rig.do(conn, "LISTEN mine")
    pid = backend(rig, conn)
    admin.execute("NOTIFY mine, 'before the end'")
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    assert until(lambda: not rig.alive(conn))


@only_postgres
def test_killed_in_a_statement(rig: Rig, admin: psycopg.Connection[Any]) -> None:
    """The error of a terminated session says that the connection is broken, also wrapped in another."""
    conn = rig.open()
    with pytest.raises(rig.errors) as caught:
        rig.do(conn, "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)")
    assert rig.is_broken(conn, caught.value)
    wrapped = RuntimeError("the view's own")
    wrapped.__cause__ = caught.value
    assert rig.is_broken(conn, wrapped)


@only_servers
def test_errors_that_end_the_session(rig: Rig) -> None:
    """Errors with which the server ends a session break the connection, though its socket may not tell yet."""
    conn = rig.open()
    for kind in rig.ending:
        wrapped = RuntimeError("the view's own")
        wrapped.__cause__ = kind("the server's word")
        assert rig.is_broken(conn, kind("the server's word"))
        assert rig.is_broken(conn, wrapped)


@only_postgres
def test_demoted_primary(rig: Rig) -> None:
    """A refusal to write, where nobody asked for read-only, means that the primary is elsewhere now."""
    conn = rig.open()
    rig.do(conn, "SET default_transaction_read_only = on")
    with pytest.raises(rig.errors) as caught:
        rig.do(conn, "INSERT INTO item VALUES (1)")
    assert rig.is_broken(conn, caught.value)


@only_postgres
def test_names_itself(rig: Rig) -> None:
    """The server is told the host and the process, unless the URL says another name."""
    assert rig.value(rig.open(), "SHOW application_name").endswith(f":{os.getpid()}")
    url = rig.driver._source
    rig.driver = rig.again(f"{url}{'&' if '?' in url else '?'}application_name=mine")
    assert rig.value(rig.open(), "SHOW application_name") == "mine"


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; returns its exit status."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            work()
        except BaseException:  # noqa: BLE001  a child of a test has nobody to raise to
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def use_up(rig: Rig, conn: Any) -> None:
    """Do in a child all that a finalizer or a stray reference could do to an inherited connection."""
    rig.driver.abandon(conn)
    assert not rig.alive(conn)
    for attempt in (lambda: rig.do(conn, "INSERT INTO item VALUES (66)"), lambda: rig.hang_up(conn)):
        try:
            attempt()
        except Exception:  # noqa: BLE001  failing is what it should do
            continue


@only_servers
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_fork(rig: Rig) -> None:
    """Whatever a forked child does with an abandoned connection, the parent's session never hears of it."""
    conn = rig.open()
    pid = backend(rig, conn)
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)")
    assert in_child(lambda: use_up(rig, conn)) == 0
    assert backend(rig, conn) == pid
    rig.commit(conn)
    assert items(rig, conn) == [1]
    assert rig.alive(conn)
    assert rig.clean(conn)


@only_servers
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_abandoned_connections_go_silently(rig: Rig) -> None:
    """The finalizer of an abandoned connection has nothing to say, and no warning to give."""
    rig.open()

    def lose() -> None:
        sys.unraisablehook = lambda _: os._exit(3)
        warnings.simplefilter("error")
        rig.driver.abandon(rig._opened[0])
        rig._opened.clear()
        gc.collect()

    assert in_child(lose) == 0


# -- what it costs ----------------------------------------------------------------------------------------------------

Counted = tuple[Rig, Callable[[Callable[[], Any]], int]]


@only_servers
def test_round_trips(counted: Counted) -> None:
    """A statement costs one round trip, a unit three, or two where BEGIN rides along; looking costs none."""
    rig, trips = counted
    conn = rig.open()
    rig.do(conn, "SELECT 1 FROM item")  # asyncpg prepares a statement when it first sees it
    assert trips(lambda: rig.do(conn, "SELECT 1 FROM item")) == 1

    def unit() -> None:
        rig.begin(conn)
        rig.do(conn, "SELECT 1 FROM item")
        rig.commit(conn)

    begin = 0 if rig.folds else 1
    assert trips(unit) == begin + 2
    assert trips(lambda: rig.begin(conn)) == begin
    assert trips(lambda: rig.rollback(conn)) == begin
    assert trips(lambda: rig.commit(conn)) == 0
    assert trips(lambda: rig.rollback(conn)) == 0
    assert trips(lambda: [rig.alive(conn), rig.clean(conn), rig.is_broken(conn, None), rig.aborted(conn)]) == 0
    assert rig.clean(conn)
    assert trips(lambda: rig.ping(conn)) == 1


@only_postgres
def test_round_trips_of_resets(counted: Counted) -> None:
    """A reset costs one round trip for what is open, and a full one no more."""
    rig, trips = counted
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "SELECT 1")
    assert trips(lambda: rig.reset(conn, full=False)) == 1
    assert trips(lambda: rig.reset(conn, full=True)) == 1
    assert trips(lambda: rig.reset(conn, full=False)) == 0


@only_servers
def test_death_is_seen_for_free(counted: Counted, kill: Callable[[int], None]) -> None:
    """Seeing that a backend is dead costs no round trip."""
    rig, trips = counted
    conn = rig.open()
    kill(backend(rig, conn))
    assert trips(lambda: until(lambda: not rig.alive(conn))) == 0
    assert not rig.alive(conn)


@only_postgres
def test_goodbye_without_an_end(counted: Counted, proxy: FaultProxy, admin: psycopg.Connection[Any]) -> None:
    """The server's goodbye is understood also while the socket stays open, and behind a notification."""
    rig, _ = counted
    for listens in (False, True):
        conn = rig.open()
        pid = backend(rig, conn)
        if listens:
            rig.do(conn, "LISTEN mine")
            admin.execute("NOTIFY mine, 'before the end'")
        proxy.hold_ends()
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert until(lambda conn=conn: not rig.alive(conn))
        proxy.heal()
        rig.ping(rig.open())  # a loop, where there is one, has run and has read what came
        assert not rig.alive(conn)


@only_postgres
def test_end_without_a_goodbye(counted: Counted, proxy: FaultProxy, admin: psycopg.Connection[Any]) -> None:
    """An end behind a notification is seen, though nothing announced it."""
    rig, _ = counted
    conn = rig.open()
    rig.do(conn, "LISTEN mine")
    admin.execute("NOTIFY mine, 'before the end'")
    assert until(lambda: bool(conn._readable(0)))
    assert rig.alive(conn)
    proxy.cut("fin")
    assert until(lambda: not rig.alive(conn))


@only_postgres
def test_notification_is_no_death(counted: Counted, admin: psycopg.Connection[Any]) -> None:
    """A notification makes the socket readable: the connection stays alive, for nothing, and the text is not lost."""
    rig, trips = counted
    conn = rig.open()
    heard = rig.listen(conn, "mine")
    admin.execute("NOTIFY mine, 'hello'")
    assert until(lambda: bool(conn._readable(0)))
    assert trips(lambda: rig.alive(conn)) == 0
    assert rig.alive(conn)
    rig.do(conn, "SELECT 1")
    assert heard() == ["hello"]


@only_servers
def test_round_trips_through_the_pool(counted: Counted) -> None:
    """Borrowing and returning add nothing: a transaction of one statement is two round trips, or three."""
    rig, trips = counted
    pool = rig.make_pool(rig.driver)

    def work(conn: Any) -> None:
        rig.do(conn, "SELECT 1 FROM item")

    rig.transaction(pool, work)
    assert trips(lambda: rig.transaction(pool, work)) == (2 if rig.folds else 3)
    assert rig.run(pool.close())


# -- settings ---------------------------------------------------------------------------------------------------------


def test_source_is_asked_each_time(rig: Rig) -> None:
    """A callable source is asked again at each open, so that it can return fresh credentials."""
    url, asked = rig.driver._source, []

    def source() -> str:
        asked.append(1)
        return url

    rig.driver = rig.again(source)
    rig.open()
    rig.open()
    assert len(asked) == 2


def test_source_must_return_a_url(rig: Rig) -> None:
    """A callable that returns something else is told so."""
    rig.driver = rig.again(lambda: None)
    with pytest.raises(ConfigError, match="must return a string"):
        rig.open()


def test_unknown_option(rig: Rig) -> None:
    """An option that does not exist is refused at once, with the nearest one and the place."""
    known = rig.an_option
    with pytest.raises(ConfigError, match=f"settings: unknown option '{known}s': did you mean '{known}'"):
        rig.again(options={f"{known}s": 1}, where="settings")


@only_postgres
@pytest.mark.parametrize("url_end", ["h:port/db", "h:99999/db", "h:5%32/db"])
def test_passwords_never_show(rig: Rig, url_end: str) -> None:
    """An error about a URL, and the driver's repr, say nothing of the password."""
    with pytest.raises(ConfigError) as caught:
        rig.again(f"postgresql://user:s3cret%zz@{url_end}")
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "s3cret" not in repr(rig.again("postgresql://user:s3cret@h/db"))


@pytest.mark.parametrize("schema", ["tenant", 'a "b\\c d'])
def test_a_schema_in_the_url_is_the_search_path(rig: Rig, url: str, schema: str) -> None:
    """As Prisma means it, whatever its name is, and beside options of the URL's own; a reset returns to it."""
    if not rig.postgres:
        pytest.skip("a schema in a URL is for PostgreSQL")
    parameters = f"options=-cwork_mem%3D64&schema={quote(schema)}"
    driver = rig.again(f"{url}{'&' if '?' in url else '?'}{parameters}")
    conn = rig.run(driver.open(10))
    rig.do(conn, "SET search_path = public", "SET work_mem = 99")
    rig.run(driver.reset(conn, full=True))
    assert rig.value(conn, "SHOW work_mem") == "64kB"
    quoted = schema.replace('"', '""')
    assert rig.value(conn, "SHOW search_path") == f'"{quoted}"'
    rig.run(driver.close(conn))
