"""SQLite: the next borrower finds a connection as new, and nobody uses one that was given back."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from state_kinds import SQLITE, SqliteKind

from poolkit.drivers._sqlite_statements import CHANGES, READS, WRITES, judge
from poolkit.drivers.sqlite import PooledCursor, SqliteDriver
from poolkit.errors import CommitFailed, ConfigError, LeaseError, Returned
from poolkit.threads import Pool

RETURNED = Returned("default", "GET /orders")
REFUSED = "given back by GET /orders"
ROWS = 50


@pytest.fixture(params=["file", "memory"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteDriver:
    """A driver whose database has a table of some rows."""
    url = f"sqlite:///{tmp_path}/x.db" if request.param == "file" else "sqlite:///:memory:"
    driver = SqliteDriver(url, options={"busy_timeout": 0})
    conn = driver.open(10)
    conn.execute("CREATE TABLE item (id integer PRIMARY KEY)")
    conn.executemany("INSERT INTO item VALUES (?)", [(number,) for number in range(ROWS)])
    driver.close(conn)
    return driver


@pytest.fixture
def conn(driver: SqliteDriver) -> Iterator[Any]:
    conn = driver.open(10)
    driver.lend(conn)
    yield conn
    driver.close(conn)


def rest(driver: SqliteDriver, conn: Any) -> bool:
    """Do what a pool does at a return and at the next checkout; False where it would discard the connection."""
    clean = driver.clean(conn)
    try:
        driver.retire(conn, RETURNED)
        if not clean:
            driver.reset(conn, full=False)
    except sqlite3.Error:
        return False
    assert driver.clean(conn)
    driver.lend(conn)
    return True


def count(conn: Any) -> int:
    return int(conn.execute("SELECT count(*) FROM item").fetchone()[0])


# -- the next borrower finds nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SQLITE, ids=str)
def test_nothing_is_left(driver: SqliteDriver, conn: Any, kind: SqliteKind) -> None:
    """Whatever a borrower did to the connection, the next one finds it as new, with all its data."""
    new = kind.look(conn)
    before = count(conn)
    assert rest(driver, conn)
    kind.dirty(conn)
    assert rest(driver, conn)
    assert count(conn) == before
    assert kind.look(conn) == new


@pytest.mark.parametrize("kind", SQLITE, ids=str)
def test_a_full_reset(driver: SqliteDriver, conn: Any, kind: SqliteKind) -> None:
    """A full reset does the same, and is not told what was done."""
    new = kind.look(conn)
    driver.lend(conn)
    kind.dirty(conn)
    driver.reset(conn, full=True)
    driver.lend(conn)
    assert kind.look(conn) == new


class Mine(sqlite3.Cursor):
    """A cursor that rewrites what it is told."""

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        return super().execute("PRAGMA foreign_keys = OFF")


WAYS: dict[str, Callable[[Any], object]] = {
    "a cursor": lambda conn: conn.cursor().execute("PRAGMA foreign_keys = OFF"),
    "a cursor made by hand": lambda conn: PooledCursor(conn).execute("PRAGMA foreign_keys = OFF"),
    "a cursor of one's own": lambda conn: conn.cursor(Mine).execute("something"),
    "a factory of one's own": lambda conn: conn.cursor(lambda c: sqlite3.Cursor(c)).execute(  # noqa: PLW0108
        "PRAGMA foreign_keys = OFF"
    ),
    "parameters": lambda conn: conn.execute("ATTACH ? AS mine", [":memory:"]),
    "executescript": lambda conn: conn.cursor().executescript("SELECT 1; PRAGMA foreign_keys = OFF"),
    "a comment": lambda conn: conn.execute("/* a */ -- b\n PRAGMA foreign_keys = OFF"),
    "deserialize": lambda conn: conn.deserialize(conn.serialize()),
    "a blob": lambda conn: setattr(conn, "kept", blob(conn)),
}


def blob(conn: Any) -> object:
    conn.execute("CREATE TABLE blobs (data blob)")
    conn.execute("INSERT INTO blobs VALUES (zeroblob(9))")
    return conn.blobopen("blobs", "data", 1)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whatever_way_it_was_done(driver: SqliteDriver, conn: Any, way: Callable[[Any], object]) -> None:
    """Every method of connection and cursor by which a connection can be changed is seen."""
    way(conn)
    assert not driver.clean(conn)
    assert rest(driver, conn)
    assert conn.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert len(conn.execute("PRAGMA database_list").fetchall()) == 1
    assert count(conn) == ROWS
    conn.execute("DELETE FROM item")


UNSEEN: dict[str, Callable[[Any], object]] = {
    "`sqlite3.Cursor(conn)`": lambda conn: sqlite3.Cursor(conn).execute("PRAGMA cache_size = 7"),
    "`total_changes`": lambda conn: conn.execute("DELETE FROM item WHERE id = 1"),
    "`last_insert_rowid()`": lambda conn: conn.execute("INSERT INTO item VALUES (700)"),
}


@pytest.mark.parametrize("words", UNSEEN)
def test_what_the_docs_say_is_not_seen(driver: SqliteDriver, conn: Any, words: str) -> None:
    """What is left to the next borrower stands in the table of docs/sessions.md, and nothing else stands there."""

    def look() -> object:
        asked = ("PRAGMA cache_size", "SELECT last_insert_rowid()", "SELECT total_changes()")
        return [conn.execute(query).fetchone() for query in asked]

    new = look()
    UNSEEN[words](conn)
    assert driver.clean(conn)
    assert look() != new
    text = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| not seen", "| not undone"))]
    assert words in " ".join(rows)
    driver.reset(conn, full=True)
    driver.lend(conn)
    assert look() == new, "a full reset undoes it"


@pytest.mark.parametrize(
    "work",
    [
        lambda conn: conn.execute("INSERT INTO item VALUES (500)"),
        lambda conn: conn.execute("PRAGMA table_info(item)").fetchall(),
        lambda conn: conn.execute("PRAGMA foreign_keys").fetchone(),
        lambda conn: conn.executescript("CREATE TABLE t (a); CREATE INDEX i ON t (a); DROP TABLE t"),
        lambda conn: conn.execute("WITH a AS (SELECT 1) SELECT * FROM a").fetchall(),
        lambda conn: list(conn.iterdump()),
    ],
)
def test_ordinary_work_is_clean(driver: SqliteDriver, conn: Any, work: Callable[[Any], object]) -> None:
    """What reads and writes the database is no change of the connection."""
    work(conn)
    assert driver.clean(conn)


@pytest.mark.parametrize(
    ("sql", "level"),
    [
        ("SELECT 1", READS),
        (" -- a\n\t/* b */ select 1 ;", READS),
        ("", READS),
        ("EXPLAIN QUERY PLAN SELECT 1", READS),
        ("SAVEPOINT a", READS),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", WRITES),
        ("CREATE TRIGGER a AFTER INSERT ON t BEGIN UPDATE t SET a = 1; END", WRITES),
        ("CREATE TABLE attempts (a)", WRITES),
        ("CREATE TEMP TABLE t (a)", CHANGES),
        ("CREATE TABLE IF NOT EXISTS [temp].t (a)", CHANGES),
        ("create /* a */ temporary view v as select 1", CHANGES),
        ("ALTER TABLE temp.t RENAME TO u", CHANGES),
        ("SELECT load_extension('x')", CHANGES),
        ("ATTACH 'a.db' AS a", CHANGES),
        ("DETACH a", CHANGES),
        ("PRAGMA foreign_keys", READS),
        ("PRAGMA main.foreign_keys ;", READS),
        ("PRAGMA table_info('a')", READS),
        ("PRAGMA user_version = 3", WRITES),
        ("PRAGMA foreign_keys=0", CHANGES),
        ("PRAGMA foreign_keys(0)", CHANGES),
        ("PRAGMA main . cache_size = 0", CHANGES),
        ('PRAGMA "foreign_keys" = 0', CHANGES),
        ("PRAGMA /* a */ foreign_keys = 0", CHANGES),
        ("PRAGMA foreign_keys /* a */ = 0", CHANGES),
        ("SELECT ';'; PRAGMA foreign_keys = 0", CHANGES),
        ("SELECT '; /*'; PRAGMA foreign_keys = 0 -- */", CHANGES),
        ("whatever comes with the next version", CHANGES),
    ],
)
def test_statements(sql: str, level: int) -> None:
    """A text is judged by what each of its statements begins with, and taken for a change in doubt."""
    assert judge(sql) == level


def test_long_statements_take_no_long_time() -> None:
    """Judging takes time in proportion to the length, whatever is in the text."""
    for text in ("/*" * 200_000, "(" * 200_000, "-- \n" * 100_000, "pragma " + "a." * 100_000, "/**/ " * 50_000):
        assert judge(text) in (READS, CHANGES)


# -- the state of rest ------------------------------------------------------------------------------------------------


def test_what_was_done_while_it_was_new(driver: SqliteDriver) -> None:
    """What was set, attached, registered or made on a new connection is done again when that is opened again."""
    conn: Any = driver.open(10)
    conn.create_function("twice", 1, lambda x: 2 * x, deterministic=True)
    conn.create_collation("backwards", lambda a, b: (a < b) - (a > b))
    conn.execute("ATTACH ? AS more", [":memory:"])
    conn.executescript("PRAGMA cache_size = -77; CREATE TEMP VIEW seen AS SELECT 42")
    conn.row_factory = sqlite3.Row
    conn.tenant = "acme"
    driver.settled(conn)
    driver.settled(conn)
    for undo in ("PRAGMA cache_size = 5", "DETACH more", "DROP VIEW temp.seen", "SELECT 1"):
        driver.lend(conn)
        conn.execute(undo)
        conn.row_factory = None
        conn.tenant = "another"
        conn.create_function("twice", 1, lambda x: x)
        assert rest(driver, conn)
        assert conn.tenant == "acme"
        assert conn.execute("SELECT twice(21) AS x").fetchone()["x"] == 42
        assert conn.execute("SELECT 'a' < 'b' COLLATE backwards").fetchone()[0] == 0
        assert conn.execute("PRAGMA cache_size").fetchone()[0] == -77
        assert conn.execute("SELECT * FROM seen").fetchone()[0] == 42
        assert [row[1] for row in conn.execute("PRAGMA database_list") if row[1] != "temp"] == ["main", "more"]
    driver.close(conn)


def test_rows_of_a_temporary_table(driver: SqliteDriver) -> None:
    """A temporary table of the state of rest is as it was, or the connection is replaced."""
    conn = driver.open(10)
    conn.execute("CREATE TEMP TABLE scratch (i)")
    driver.settled(conn)
    driver.lend(conn)
    conn.execute("INSERT INTO scratch VALUES (1)")
    assert rest(driver, conn)
    assert conn.execute("SELECT count(*) FROM scratch").fetchone() == (0,)
    driver.close(conn)
    conn = driver.open(10)
    conn.execute("CREATE TEMP TABLE scratch (i)")
    conn.execute("INSERT INTO scratch VALUES (1)")
    driver.settled(conn)
    driver.lend(conn)
    conn.execute("DELETE FROM scratch")
    assert not rest(driver, conn)
    driver.close(conn)


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("ATTACH ':memory:' AS own", ()),
        ("ATTACH '' AS own", ()),
        ("ATTACH ? AS own", (":memory:",)),
        ("ATTACH :file AS own", {"file": "file::memory:"}),
        ("ATTACH 'file:own?mode=memory' AS own", ()),
    ],
)
def test_rows_of_a_database_of_its_own(driver: SqliteDriver, text: str, parameters: Any) -> None:
    """Where a borrower wrote into a database in memory that `configure` attached, the connection is replaced."""
    conn = driver.open(10)
    conn.execute(text, parameters)
    conn.execute("CREATE TABLE own.scratch (i)")
    driver.settled(conn)
    driver.lend(conn)
    assert conn.execute("SELECT count(*) FROM own.scratch").fetchone() == (0,)
    assert driver.clean(conn)
    conn.execute("INSERT INTO own.scratch VALUES (1)")
    assert not rest(driver, conn)
    driver.close(conn)


def test_rows_of_an_attached_file(driver: SqliteDriver, tmp_path: Path) -> None:
    """A file that `configure` attached is everybody's: who writes into it has not changed the connection."""
    conn = driver.open(10)
    conn.execute("ATTACH ? AS more", [str(tmp_path / "more.db")])
    conn.execute("CREATE TABLE more.item (i)")
    driver.settled(conn)
    driver.lend(conn)
    conn.execute("INSERT INTO more.item VALUES (1)")
    assert driver.clean(conn)
    driver.close(conn)


def test_a_configure_that_leaves_a_transaction(driver: SqliteDriver) -> None:
    """A transaction that was left open on a new connection fails its open."""
    conn = driver.open(10)
    conn.execute("BEGIN")
    with pytest.raises(sqlite3.Error, match="left in a transaction"):
        driver.settled(conn)
    driver.close(conn)


# -- whose it is ------------------------------------------------------------------------------------------------------

USES: dict[str, Callable[[Any], object]] = {
    "execute": lambda cursor: cursor.execute("SELECT 1"),
    "executemany": lambda cursor: cursor.executemany("DELETE FROM item WHERE id = ?", [[1]]),
    "executescript": lambda cursor: cursor.executescript("SELECT 1"),
    "fetchone": lambda cursor: cursor.fetchone(),
    "fetchmany": lambda cursor: cursor.fetchmany(2),
    "fetchall": lambda cursor: cursor.fetchall(),
    "next": next,
    "a loop": list,
}


@pytest.mark.parametrize("factory", [PooledCursor, sqlite3.Cursor, Mine], ids=["pooled", "plain", "own"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_cursors_of_an_earlier_borrowing(
    driver: SqliteDriver, conn: Any, use: Callable[[Any], object], factory: Any
) -> None:
    """A cursor refuses after the return of its connection, while that is idle and while the next one works with it."""
    cursor = conn.cursor(factory)
    sqlite3.Cursor.execute(cursor, "SELECT id FROM item")
    cursor.fetchone()
    driver.retire(conn, RETURNED)
    with pytest.raises(LeaseError, match=REFUSED):
        use(cursor)
    driver.lend(conn)
    with pytest.raises(LeaseError, match=REFUSED):
        use(cursor)
    cursor.close()
    assert cursor.description is not None, "what is known of a statement may be asked for"
    assert count(conn) == ROWS


def test_a_loop_that_goes_on(driver: SqliteDriver, conn: Any) -> None:
    """A loop over rows that is under way ends at the return, and its snapshot with it."""
    rows = (row for row in conn.execute("SELECT id FROM item"))
    next(rows)
    assert rest(driver, conn)
    with pytest.raises(LeaseError, match=REFUSED):
        next(rows)
    conn.execute("DELETE FROM item WHERE id = 1")


class Slotted(PooledCursor):
    """A cursor whose class can't be changed."""

    __slots__ = ("more",)


def test_a_cursor_of_another_shape(driver: SqliteDriver, conn: Any) -> None:
    """Also a cursor with slots of its own refuses: it is closed."""
    cursor = conn.cursor(Slotted)
    cursor.execute("SELECT id FROM item").fetchone()
    assert rest(driver, conn)
    with pytest.raises((LeaseError, sqlite3.ProgrammingError)):
        cursor.fetchone()
    conn.execute("DELETE FROM item WHERE id = 1")


def test_many_cursors(driver: SqliteDriver, conn: Any) -> None:
    """What is remembered of cursors does not grow with their number, but with those that are still referred to."""
    for _ in range(1000):
        conn.execute("SELECT 1")
    assert len(conn._session.cursors) < 100
    kept = [conn.execute("SELECT id FROM item") for _ in range(300)]
    assert rest(driver, conn)
    for cursor in kept:
        with pytest.raises(LeaseError):
            cursor.fetchone()
    assert not conn._session.cursors


def test_a_cursor_in_another_thread(driver: SqliteDriver, conn: Any) -> None:
    """A connection with a cursor that another thread is inside of is not lent again."""
    inside, over = threading.Event(), threading.Event()

    def wait() -> int:
        inside.set()
        over.wait(10)
        return 1

    conn.create_function("wait", 0, wait)
    cursor = conn.cursor()
    thread = threading.Thread(target=lambda: cursor.execute("SELECT wait()"))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(sqlite3.ProgrammingError):
        driver.retire(conn, RETURNED)
    over.set()
    thread.join()


def backed_up(conn: Any) -> None:
    """Copy a database."""
    with contextlib.closing(sqlite3.connect(":memory:")) as other:
        conn.backup(other)


METHODS: dict[str, Callable[[Any], object]] = {
    "cursor": lambda conn: conn.cursor(),
    "execute": lambda conn: conn.execute("SELECT 1"),
    "executemany": lambda conn: conn.executemany("SELECT ?", [[1]]),
    "executescript": lambda conn: conn.executescript("SELECT 1"),
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "with": lambda conn: conn.__enter__(),
    "interrupt": lambda conn: conn.interrupt(),
    "iterdump": lambda conn: list(conn.iterdump()),
    "backup": backed_up,
    "blobopen": lambda conn: conn.blobopen("item", "id", 1),
    "create_function": lambda conn: conn.create_function("mine", 0, lambda: 1),
    "set_authorizer": lambda conn: conn.set_authorizer(None),
    "set_trace_callback": lambda conn: conn.set_trace_callback(None),
    "row_factory": lambda conn: setattr(conn, "row_factory", sqlite3.Row),
    "isolation_level": lambda conn: setattr(conn, "isolation_level", "DEFERRED"),
    "an attribute": lambda conn: setattr(conn, "tenant", "acme"),
}


@pytest.mark.parametrize("use", METHODS.values(), ids=METHODS)
def test_an_idle_connection(driver: SqliteDriver, conn: Any, use: Callable[[Any], object]) -> None:
    """A connection that was given back refuses, and what was tried leaves nothing for the next borrower."""
    driver.retire(conn, RETURNED)
    with pytest.raises(LeaseError, match=REFUSED):
        use(conn)
    conn.close()
    conn.__exit__(None, None, None)
    assert driver.alive(conn)
    assert driver.ping(conn, 10)
    assert driver.clean(conn)
    driver.lend(conn)
    assert count(conn) == ROWS


def test_a_block_that_ends_after_the_return(driver: SqliteDriver, conn: Any) -> None:
    """The end of a `with conn:` of an earlier borrowing does not end the next one's transaction."""
    conn.__enter__()
    assert rest(driver, conn)
    driver.begin(conn)
    conn.execute("DELETE FROM item")
    conn.__exit__(None, None, None)
    assert driver.in_transaction(conn)
    driver.rollback(conn)
    assert count(conn) == ROWS


# -- closed by its borrower -------------------------------------------------------------------------------------------


# -- opening, and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slashes", ["/", "//", "///"])
def test_slashes_in_a_path(tmp_path: Path, slashes: str) -> None:
    """Slashes that are doubled are one, wherever they stand."""
    driver = SqliteDriver(f"sqlite:///{slashes}{str(tmp_path)[1:]}//x.db")
    driver.close(driver.open(10))
    assert (tmp_path / "x.db").exists()


def test_white_space_around_a_url(tmp_path: Path) -> None:
    """White space around a URL is no part of the file's name."""
    with Pool(f" sqlite:///{tmp_path}/x.db\n") as pool, pool.acquire() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".db", ".db-wal", ".db-shm"}


def test_a_private_database_in_memory() -> None:
    """A database that each connection would have for itself is refused; one they share keeps its data."""
    with pytest.raises(ConfigError, match="add cache=shared"):
        SqliteDriver("sqlite:////x?mode=memory")
    for url in ("sqlite:////kept?mode=memory&cache=shared", "sqlite:////kept?vfs=memdb"):
        driver = SqliteDriver(url)
        conn = driver.open(10)
        driver.lend(conn)
        conn.execute("CREATE TABLE kept (i)")
        conn.execute("PRAGMA cache_size = 5")
        assert rest(driver, conn)
        assert conn.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        driver.close(conn)


def test_kinds_of_failed_opens(tmp_path: Path) -> None:
    """A missing folder, a folder in the place of a file and a file that is no database are refused for good."""
    (tmp_path / "no.db").write_bytes(b"no database at all, by any means" * 64)
    for url in (f"{tmp_path}/none/x.db", str(tmp_path), f"{tmp_path}/no.db", f"{tmp_path}/none.db?mode=ro"):
        driver = SqliteDriver(f"sqlite:///{url}")
        with pytest.raises(sqlite3.Error) as caught:
            driver.open(10)
        assert driver.failure_kind(caught.value) == "refused"
    driver = SqliteDriver(f"sqlite:///{tmp_path}/x.db")
    for error in (_error(sqlite3.SQLITE_CANTOPEN), _error(sqlite3.SQLITE_BUSY), _error(None), OSError()):
        assert driver.failure_kind(error) == "away"
    assert driver.failure_kind(ConfigError("malformed")) == "refused"


def _error(code: int | None) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as raised")
    if code is not None:
        error.sqlite_errorcode = code
    return error


def test_what_is_worth_another_try(driver: SqliteDriver) -> None:
    """A lock that another connection has is, in every variety; nothing else."""
    assert driver.is_retryable(_error(sqlite3.SQLITE_BUSY_SNAPSHOT))
    assert driver.is_retryable(_error(sqlite3.SQLITE_LOCKED))
    for error in (_error(sqlite3.SQLITE_FULL), _error(None), sqlite3.IntegrityError("x"), KeyError(5)):
        assert not driver.is_retryable(error)


# -- through a pool ---------------------------------------------------------------------------------------------------


def test_the_next_borrower_of_a_pool(driver: SqliteDriver) -> None:
    """The same connection, as new, whatever the one before kept of it; a changed one costs no new one."""
    with Pool(driver, max_size=1) as pool:
        for _ in range(3):
            with pool.acquire() as conn:
                cursor = conn.execute("SELECT id FROM item")
                cursor.fetchone()
                conn.execute("PRAGMA foreign_keys = OFF")
            with pool.acquire() as conn:
                assert conn.execute("PRAGMA foreign_keys").fetchone() == (1,)
                with pytest.raises(LeaseError, match=r"given back at .*test_sqlite_session\.py:\d+ in test_the_next"):
                    cursor.fetchone()
        with pytest.raises(LeaseError):
            conn.execute("SELECT 1")
        assert pool.stats().opened == 1


def test_a_close_in_a_transaction_of_a_pool(driver: SqliteDriver) -> None:
    """What was lost by `conn.close()` is told, and the next borrower gets another connection."""
    with Pool(driver, max_size=1) as pool:
        with pytest.raises((sqlite3.Error, CommitFailed)), pool.transaction() as conn:  # noqa: PT012
            conn.execute("INSERT INTO item VALUES (500)")
            conn.close()
        with pool.transaction() as conn:
            assert count(conn) == ROWS


def descriptors() -> int:
    """How many this process has; 0 where the system does not tell."""
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.is_dir() else 0


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """A connection that is opened again a thousand times has the descriptors of one."""
    driver = SqliteDriver(f"sqlite:///{tmp_path}/x.db")
    conn = driver.open(10)
    before = descriptors()
    for _ in range(200):
        driver.lend(conn)
        conn.execute("PRAGMA cache_size = 5")
        with contextlib.suppress(sqlite3.Error):
            conn.execute("SELECT * FROM nothing")
        assert rest(driver, conn)
    assert descriptors() <= before + 2
    driver.close(conn)
