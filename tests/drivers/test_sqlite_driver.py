"""What is SQLite's own: pragmas, databases in memory, transactions that SQLite ends by itself, forks."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from poolkit.drivers.sqlite import SqliteDriver
from poolkit.errors import ConfigError, NestedAcquire
from poolkit.threads import Pool


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/test.db"


def pragma(conn: sqlite3.Connection, name: str) -> object:
    return conn.execute(f"PRAGMA {name}").fetchone()[0]


def make_table(pool: Pool[sqlite3.Connection]) -> None:
    with pool.transaction() as conn:
        conn.execute("CREATE TABLE item (id integer PRIMARY KEY)")


# -- settings ---------------------------------------------------------------------------------------------------------


def test_defaults_of_a_connection(url: str) -> None:
    """Foreign keys are checked, a lock is waited for, readers and writers of a file don't block each other."""
    driver = SqliteDriver(url)
    conn = driver.open(10)
    assert pragma(conn, "foreign_keys") == 1
    assert pragma(conn, "busy_timeout") == 5000
    assert pragma(conn, "journal_mode") == "wal"
    driver.close(conn)


def test_options_of_a_connection(url: str) -> None:
    """Every default can be set, and other pragmas be given."""
    options = {
        "foreign_keys": False, "busy_timeout": 0.25, "journal_mode": "delete", "row_factory": sqlite3.Row,
        "pragmas": {"cache_size": -5000},
    }  # fmt: skip
    driver = SqliteDriver(url, options=options)
    conn = driver.open(10)
    assert pragma(conn, "foreign_keys") == 0
    assert pragma(conn, "busy_timeout") == 250
    assert pragma(conn, "journal_mode") == "delete"
    assert pragma(conn, "cache_size") == -5000
    assert conn.execute("SELECT 1 AS one").fetchone()["one"] == 1
    assert driver.clean(conn)
    driver.close(conn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": "now"}, "begin must be one of deferred, immediate, exclusive, not 'now'"),
        ({"journal_mode": "fast"}, "journal_mode must be one of wal, .*, not 'fast'"),
        ({"busy_timeout": "5"}, "busy_timeout must be a number of seconds, not '5'"),
        ({"busy_timeout": float("nan")}, "busy_timeout must be a number"),
        ({"foreign_keys": 1}, "foreign_keys must be True or False, not 1"),
        ({"pragmas": {"cache_size": "1; DROP TABLE item"}}, "must be a name and a plain value"),
        ({"pragmas": ["cache_size"]}, "pragmas must map names to values"),
        ({"isolation_level": "DEFERRED"}, "'isolation_level' can't be set: poolkit begins"),
        ({"timeout": 3}, "it is called 'busy_timeout' here"),
        ({"jornal_mode": "wal"}, "did you mean 'journal_mode'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    """An option that can't work says so when the driver is made."""
    with pytest.raises(ConfigError, match=message):
        SqliteDriver("sqlite:///x.db", options=options)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://x.db", "sqlite://host/x.db", "file:x.db"])
def test_malformed_urls(url: str) -> None:
    """A URL with too few slashes, or without a name, is an error and not a database in memory."""
    with pytest.raises(ConfigError, match=r"expected sqlite:///relative\.db"):
        SqliteDriver(url)


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes are relative to the directory at the time of the settings, four absolute; names may be encoded."""
    monkeypatch.chdir(tmp_path)
    relative = SqliteDriver("sqlite:///a%20b.db?mode=rwc")
    monkeypatch.chdir("/")
    for driver in (relative, SqliteDriver(f"sqlite:///{tmp_path}/c.db")):
        driver.close(driver.open(10))
    assert {path.name for path in tmp_path.iterdir()} == {"a b.db", "c.db"}


def test_read_only(url: str) -> None:
    """mode=ro opens a file that exists, leaves its journal alone and refuses to write."""
    with pytest.raises(sqlite3.OperationalError):
        SqliteDriver(f"{url}?mode=ro").open(10)
    writer = SqliteDriver(url, options={"journal_mode": "delete"})
    conn = writer.open(10)
    conn.execute("CREATE TABLE item (id integer)")
    writer.close(conn)
    driver = SqliteDriver(f"{url}?mode=ro")
    conn = driver.open(10)
    assert pragma(conn, "journal_mode") == "delete"
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        conn.execute("INSERT INTO item VALUES (1)")
    driver.close(conn)


# -- transactions -----------------------------------------------------------------------------------------------------


def test_begin_immediate(url: str) -> None:
    """With begin="immediate" the second writer fails or waits at the start, not in the middle of its work."""
    driver = SqliteDriver(url, options={"begin": "immediate", "busy_timeout": 0})
    first, second = driver.open(10), driver.open(10)
    driver.begin(first)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        driver.begin(second)
    assert driver.clean(second)
    driver.rollback(first)
    driver.begin(second)
    for conn in (first, second):
        driver.close(conn)


def test_nothing_runs_in_a_lost_transaction(url: str) -> None:
    """Where SQLite rolled back by itself, later statements of the unit fail instead of being saved one by one."""
    with Pool(SqliteDriver(url)) as pool:
        make_table(pool)
        with pytest.raises(sqlite3.OperationalError, match="ended by an error"), pool.transaction() as conn:  # noqa: PT012  all must fail
            conn.execute("INSERT INTO item VALUES (1)")
            with pytest.raises(sqlite3.IntegrityError):
                conn.execute("INSERT OR ROLLBACK INTO item VALUES (1)")
            for attempt in (conn.execute, conn.cursor().execute):
                with pytest.raises(sqlite3.OperationalError, match="ended by an error"):
                    attempt("INSERT INTO item VALUES (2)")
            conn.executemany("INSERT INTO item VALUES (?)", [(3,), (4,)])
        with pool.acquire() as conn:
            assert conn.execute("SELECT count(*) FROM item").fetchone() == (0,)


def test_lost_transaction_is_not_clean(url: str) -> None:
    """A connection that comes back with a lost transaction is reset, and serves the next unit."""
    driver = SqliteDriver(url)
    conn = driver.open(10)
    conn.execute("CREATE TABLE item (id integer PRIMARY KEY)")
    driver.begin(conn)
    for _ in range(2):
        with contextlib.suppress(sqlite3.IntegrityError):
            conn.execute("INSERT OR ROLLBACK INTO item VALUES (1)")
    assert not conn.in_transaction
    assert not driver.clean(conn)
    driver.reset(conn, full=False)
    assert driver.clean(conn)
    assert conn.execute("SELECT count(*) FROM item").fetchone() == (0,)
    driver.close(conn)


def test_executescript_in_a_unit(url: str) -> None:
    """sqlite3 commits before it runs a script: refused inside a unit, as ever outside."""
    with Pool(SqliteDriver(url)) as pool:
        with pool.transaction() as conn:
            for attempt in (conn.executescript, conn.cursor().executescript):
                with pytest.raises(sqlite3.ProgrammingError, match="outside the transaction"):
                    attempt("CREATE TABLE item (id integer)")
            assert conn.in_transaction
        with pool.acquire() as conn:
            conn.executescript("CREATE TABLE item (id integer); INSERT INTO item VALUES (1)")


def test_with_connection_in_a_unit(url: str) -> None:
    """`with conn:` commits or rolls back, as in sqlite3, and the unit goes on with a new transaction."""
    with Pool(SqliteDriver(url)) as pool:
        make_table(pool)
        with pool.transaction() as conn:
            with conn:
                conn.execute("INSERT INTO item VALUES (1)")
            with pytest.raises(ValueError, match="mine"), conn:  # noqa: PT012  conn must see it
                conn.execute("INSERT INTO item VALUES (2)")
                raise ValueError("mine")
            assert conn.in_transaction
            conn.execute("INSERT INTO item VALUES (3)")
        with pool.acquire() as conn:
            assert conn.execute("SELECT id FROM item").fetchall() == [(1,), (3,)]


def test_broken_file(tmp_path: Path) -> None:
    """An error that says the file is no database means that the connection can't be used again."""
    (tmp_path / "test.db").write_bytes(b"no database at all, by any means" * 64)
    driver = SqliteDriver(f"sqlite:///{tmp_path}/test.db", options={"journal_mode": None})
    conn = driver.open(10)
    assert not driver.ping(conn, 1)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        conn.execute("SELECT * FROM item")
    assert driver.is_broken(conn, caught.value)
    driver.close(conn)


# -- as when it was opened --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda conn: setattr(conn, "row_factory", sqlite3.Row),
        lambda conn: setattr(conn, "text_factory", bytes),
        lambda conn: setattr(conn, "isolation_level", "IMMEDIATE"),
    ],
    ids=["row_factory", "text_factory", "isolation_level"],
)
def test_attributes_are_put_back(url: str, change: Any) -> None:
    """Whatever attribute a borrower changes is noticed, and put back by a reset."""
    driver = SqliteDriver(url)
    conn = driver.open(10)
    change(conn)
    assert not driver.clean(conn)
    driver.reset(conn, full=False)
    assert driver.clean(conn)
    assert conn.execute("SELECT 'a'").fetchone() == ("a",)
    driver.close(conn)


@pytest.mark.skipif(not hasattr(sqlite3, "LEGACY_TRANSACTION_CONTROL"), reason="from Python 3.12 on")
def test_autocommit_attribute_is_put_back(url: str) -> None:
    """The transaction control of newer Pythons is put back as well."""
    driver = SqliteDriver(url)
    conn: Any = driver.open(10)
    conn.autocommit = False
    assert not driver.clean(conn)
    driver.reset(conn, full=False)
    assert driver.clean(conn)
    assert conn.autocommit == sqlite3.LEGACY_TRANSACTION_CONTROL
    driver.close(conn)


def test_full_reset(url: str, tmp_path: Path) -> None:
    """A full reset detaches databases, drops what is temporary and sets the pragmas again."""
    driver = SqliteDriver(url)
    conn = driver.open(10)
    conn.execute('ATTACH ? AS "ot\'her"', [str(tmp_path / "other.db")])
    conn.execute("CREATE TEMP TABLE mine (id integer PRIMARY KEY AUTOINCREMENT)")
    conn.execute("CREATE TEMP VIEW seen AS SELECT * FROM mine")
    conn.execute("PRAGMA foreign_keys = off")
    conn.execute("PRAGMA busy_timeout = 1")
    conn.set_trace_callback(print)
    driver.reset(conn, full=True)
    assert [row[1] for row in conn.execute("PRAGMA database_list")] in (["main"], ["main", "temp"])
    for name in ("mine", "seen"):
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            conn.execute(f"SELECT * FROM {name}")
    assert pragma(conn, "foreign_keys") == 1
    assert pragma(conn, "busy_timeout") == 5000
    driver.close(conn)


# -- in memory --------------------------------------------------------------------------------------------------------


def test_memory_is_shared_by_the_pool() -> None:
    """All connections of one driver see one database in memory; another driver has its own."""
    with Pool("sqlite:///:memory:", max_size=3) as pool, Pool("sqlite:///:memory:") as other:
        make_table(pool)
        with pool.acquire() as first, pool.acquire() as second:
            first.execute("INSERT INTO item VALUES (1)")
            assert second.execute("SELECT id FROM item").fetchall() == [(1,)]
        with other.acquire() as conn, pytest.raises(sqlite3.OperationalError, match="no such table"):
            conn.execute("SELECT id FROM item")


def test_memory_outlives_its_connections() -> None:
    """The database is there for as long as the driver, whatever happens to its connections."""
    driver = SqliteDriver("sqlite:///:memory:")
    with Pool(driver) as pool:
        make_table(pool)
        pool.drain()
        assert pool.stats().size == 0
        with pool.acquire() as conn:
            assert conn.execute("SELECT count(*) FROM item").fetchone() == (0,)


def test_memory_goes_with_the_driver() -> None:
    """The connection that holds the database open is closed with the driver, without a complaint."""
    driver = SqliteDriver("sqlite:///:memory:")
    driver.close(driver.open(10))
    (anchor,) = driver._anchors.values()
    del driver
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        anchor.execute("SELECT 1")


def test_memory_under_threads() -> None:
    """Writers in many threads lose no update."""
    with Pool("sqlite:///:memory:", max_size=4, options={"begin": "immediate"}) as pool:
        with pool.transaction() as conn:
            conn.execute("CREATE TABLE counter (n integer)")
            conn.execute("INSERT INTO counter VALUES (0)")

        def work() -> None:
            for _ in range(50):
                with pool.transaction() as conn:
                    (n,) = conn.execute("SELECT n FROM counter").fetchone()
                    conn.execute("UPDATE counter SET n = ?", [n + 1])

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pool.acquire() as conn:
            assert conn.execute("SELECT n FROM counter").fetchone() == (300,)


def test_memory_takes_no_parameters() -> None:
    """Parameters would make it another database."""
    with pytest.raises(ConfigError, match="takes no parameters"):
        SqliteDriver("sqlite:///:memory:?cache=shared")


# -- threads and processes --------------------------------------------------------------------------------------------


def test_threads_take_turns(url: str) -> None:
    """A connection may be used by one thread after the other; one thread can't wait for itself."""
    with Pool(SqliteDriver(url), max_size=1) as pool:
        make_table(pool)
        seen = []

        def work() -> None:
            with pool.acquire() as conn:
                seen.append(conn.execute("SELECT count(*) FROM item").fetchone())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [(0,)]
        with pool.acquire(), pytest.raises(NestedAcquire), pool.acquire():
            pass


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_fork(url: str, kind: str) -> None:
    """A child works with connections of its own, and does not disturb a transaction of the parent."""
    with Pool(url if kind == "file" else "sqlite:///:memory:", max_size=2) as pool:
        make_table(pool)
        with pool.transaction() as conn:
            conn.execute("INSERT INTO item VALUES (1)")
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
                with pool.acquire() as own:
                    tables = own.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
                    rows = own.execute("SELECT count(*) FROM item").fetchone()[0] if kind == "file" else 0
                os._exit(0 if (tables, rows) == ((1, 0) if kind == "file" else (0, 0)) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            conn.execute("INSERT INTO item VALUES (2)")
        with pool.acquire() as conn:
            assert conn.execute("SELECT id FROM item").fetchall() == [(1,), (2,)]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_child_closes_nothing(url: str) -> None:
    """A child that loses an inherited connection does not close it: that would take the journal from its parent."""
    driver = SqliteDriver(url, options={"journal_mode": "delete"})
    conn = driver.open(10)
    driver.begin(conn)
    conn.execute("CREATE TABLE item (id integer)")
    journal = Path(f"{url.removeprefix('sqlite:///')}-journal")
    assert journal.exists()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        driver.abandon(conn)
        conn = None  # type: ignore[assignment]  # the last reference
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert journal.exists()
    driver.commit(conn)
    driver.close(conn)


def test_lock_is_waited_for(url: str) -> None:
    """A writer waits up to busy_timeout for another, and then gets sqlite3's own error."""
    driver = SqliteDriver(url, options={"busy_timeout": 0.2, "begin": "immediate"})
    first, second = driver.open(10), driver.open(10)
    driver.begin(first)
    began = time.monotonic()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        driver.begin(second)
    assert 0.15 < time.monotonic() - began < 2
    for conn in (first, second):
        driver.close(conn)


def test_what_python_began_by_itself_is_rolled_back(tmp_path):
    """sqlite3 commits what is open when its isolation_level is put back: it is rolled back before that."""
    driver = SqliteDriver(f"sqlite:///{tmp_path}/x.db")
    conn = driver.open(5)
    conn.execute("CREATE TABLE x (y)")
    conn.isolation_level = ""
    conn.execute("INSERT INTO x VALUES (1)")
    assert not driver.clean(conn)
    driver.reset(conn, full=False)
    assert driver.clean(conn)
    assert conn.execute("SELECT * FROM x").fetchall() == []
    driver.close(conn)
