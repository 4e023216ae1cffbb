"""psycopg2: the next borrower finds a session as new, and nobody uses one that was given back."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest
from psycopg2 import extensions, extras, sql
from state_kinds import POSTGRES, PostgresKind, prepare

from poolkit.config import PoolConfig
from poolkit.drivers.psycopg2 import Psycopg2Driver
from poolkit.errors import LeaseError, Returned
from poolkit.testing import FaultProxy
from poolkit.threads import Pool

RETURNED = Returned("default", "GET /orders")
REFUSED = "given back by GET /orders"


@pytest.fixture
def driver(tables: str) -> Psycopg2Driver:
    return Psycopg2Driver(tables)


@pytest.fixture
def conn(driver: Psycopg2Driver) -> Iterator[Any]:
    conn = driver.open(10)
    yield conn
    driver.close(conn)


@pytest.fixture
def kinds(admin: psycopg.Connection[Any]) -> None:
    prepare(lambda statement: admin.execute(statement.encode()))


def value(conn: Any, query: str, **kwargs: Any) -> Any:
    with conn.cursor(**kwargs) as cursor:
        cursor.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def rest(driver: Psycopg2Driver, conn: Any) -> bool:
    """Do what a pool does at a return and at the next checkout; False where it would discard the connection."""
    clean = driver.clean(conn)
    driver.retire(conn, RETURNED)
    if not clean:
        try:
            driver.reset(conn, full=False)
        except psycopg2.Error:
            return False
    assert driver.clean(conn)
    driver.lend(conn)
    return True


# -- the next borrower finds nothing ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize("way", ["autocommit", "in a transaction"])
@pytest.mark.parametrize("kind", POSTGRES, ids=str)
def test_nothing_is_left(driver: Psycopg2Driver, conn: Any, kind: PostgresKind, way: str) -> None:
    """Whatever a borrower did to the session, the next one finds it as new, or gets another connection."""
    other = driver.open(10)
    new = value(other, kind.look)
    driver.close(other)
    driver.lend(conn)
    in_transaction = way != "autocommit" and "BEGIN" not in kind.dirty
    if in_transaction:
        driver.begin(conn)
    for statement in kind.dirty:
        value(conn, statement)
    if in_transaction:
        driver.commit(conn)
    assert not driver.clean(conn)
    if rest(driver, conn):
        assert value(conn, kind.look) == new
        assert kind.name != "LOAD"


def _copy(cursor: Any, query: str) -> None:
    cursor.copy_expert(query, io.StringIO())


WAYS: dict[str, Callable[[Any], object]] = {
    "bytes": lambda conn: conn.cursor().execute(b"SET kind.tenant = 'acme'"),
    "Composed": lambda conn: conn.cursor().execute(
        sql.SQL("SET {} = {}").format(sql.Identifier("kind", "tenant"), sql.Literal("acme"))
    ),
    "executemany": lambda conn: conn.cursor().executemany("SELECT set_config('kind.tenant', %s, false)", [["acme"]]),
    "execute_values": lambda conn: extras.execute_values(
        conn.cursor(), "SELECT set_config(a, b, c) FROM (VALUES %s) AS v (a, b, c)", [("kind.tenant", "acme", False)]
    ),
    "execute_batch": lambda conn: extras.execute_batch(
        conn.cursor(), "SELECT set_config('kind.tenant', %s, false)", [["acme"], ["acme"]]
    ),
    "callproc": lambda conn: conn.cursor().callproc("set_config", ["kind.tenant", "acme", False]),
    "callproc of one's own": lambda conn: conn.cursor().callproc("kind_sets"),
    "copy_expert": lambda conn: _copy(
        conn.cursor(), "COPY (SELECT set_config('kind.tenant', 'acme', false)) TO STDOUT"
    ),
    "a named cursor": lambda conn: value(
        conn, "SELECT set_config('kind.tenant', 'acme', false)", name="mine", withhold=True
    ),
    "DictCursor": lambda conn: conn.cursor(cursor_factory=extras.DictCursor).execute("SET kind.tenant = 'acme'"),
    "RealDictCursor": lambda conn: conn.cursor(cursor_factory=extras.RealDictCursor).execute("SET kind.tenant = 'a'"),
    "NamedTupleCursor": lambda conn: conn.cursor(cursor_factory=extras.NamedTupleCursor).execute("RESET work_mem"),
    "a cursor of one's own": lambda conn: conn.cursor(cursor_factory=Mine).execute("a tenant"),
    "a factory of one's own": lambda conn: conn.cursor(cursor_factory=made).execute("SET kind.tenant = 'acme'"),
    "set_client_encoding": lambda conn: conn.set_client_encoding("LATIN1"),
    "set_session": lambda conn: conn.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True),
    "autocommit": lambda conn: setattr(conn, "autocommit", False),
    "isolation_level": lambda conn: setattr(conn, "isolation_level", 3),
    "reset": lambda conn: conn.reset(),
    "cursor_factory": lambda conn: setattr(conn, "cursor_factory", extras.DictCursor),
    "register_type": lambda conn: extensions.register_type(extensions.UNICODEARRAY, conn),
    "register_uuid": lambda conn: extras.register_uuid(conn_or_curs=conn),
    "notices": lambda conn: setattr(conn, "notices", ["of another tenant"]),
    "notifies": lambda conn: setattr(conn, "notifies", ["of another tenant"]),
    "notifications": lambda conn: value(conn, "LISTEN mine; NOTIFY mine, 'of another tenant'"),
    "an attribute of one's own": lambda conn: setattr(conn, "tenant", "acme"),
    "a block that is not left": lambda conn: conn.__enter__(),
    "a held cursor": lambda conn: conn.cursor("mine", withhold=True).execute("SELECT 1"),
}  # fmt: skip


def made(*arguments: Any) -> Any:
    """Make a cursor of a class that poolkit has not prepared."""
    return extensions.cursor(*arguments)


class Mine(extensions.cursor):
    """A cursor that rewrites what it is told."""

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002
        super().execute("SET kind.tenant = 'acme'")


def whole(conn: Any) -> dict[str, object]:
    """All that can be seen of a connection."""
    names = (
        "autocommit",
        "cursor_factory",
        "encoding",
        "isolation_level",
        "readonly",
        "deferrable",
        "closed",
        "status",
    )
    seen: dict[str, object] = {name: getattr(conn, name) for name in names}
    seen.update(types=dict(conn.string_types), own=set(vars(conn)), notices=list(conn.notices), heard=conn.notifies)
    names = (
        "client_encoding",
        "datestyle",
        "default_transaction_isolation",
        "default_transaction_deferrable",
        "work_mem",
    )
    seen.update({name: value(conn, f"SHOW {name}") for name in names})
    seen["tenant"] = value(conn, "SELECT coalesce(current_setting('kind.tenant', true), '')")
    seen["cursors"] = value(conn, "SELECT count(*) FROM pg_cursors")
    seen["channels"] = value(conn, "SELECT count(*) FROM pg_listening_channels()")
    with conn:
        pass
    return seen


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whatever_way_it_was_done(driver: Psycopg2Driver, conn: Any, way: Callable[[Any], object]) -> None:
    """Every method of connection and cursor by which a session can be changed is seen, and what it did is undone."""
    new = whole(conn)
    driver.lend(conn)
    way(conn)
    assert not driver.clean(conn)
    assert rest(driver, conn)
    assert whole(conn) == new


def test_notices_are_the_borrowers(driver: Psycopg2Driver, conn: Any) -> None:
    """What the server told one borrower is not there for the next; it costs no reset."""
    driver.lend(conn)
    value(conn, "DROP TABLE IF EXISTS no_such_table")
    assert conn.notices
    assert rest(driver, conn)
    assert not conn.notices


@pytest.mark.parametrize(
    "work",
    [
        lambda conn: value(conn, "SELECT count(*) FROM item WHERE id = ANY (ARRAY[1, 2])"),
        lambda conn: conn.cursor().executemany("INSERT INTO item VALUES (%s)", [[1], [2]]),
        lambda conn: extras.execute_values(conn.cursor(), "INSERT INTO item VALUES %s", [[3], [4]]),
        lambda conn: conn.cursor().copy_from(io.StringIO("5\n"), "item"),
        lambda conn: conn.cursor().copy_to(io.StringIO(), "item"),
        lambda conn: value(conn, "SELECT now()", cursor_factory=extras.DictCursor),
    ],
)
def test_ordinary_work_is_clean(tables: str, proxy: FaultProxy, work: Callable[[Any], object]) -> None:
    """What reads and writes tables costs no reset."""
    driver = Psycopg2Driver(proxy.url(tables))
    conn = driver.open(10)
    driver.lend(conn)
    work(conn)
    before = proxy.round_trips
    assert driver.clean(conn)
    driver.retire(conn, RETURNED)
    assert proxy.round_trips == before
    driver.close(conn)


def test_a_held_cursor_that_was_closed(driver: Psycopg2Driver, conn: Any) -> None:
    """A cursor WITH HOLD is a trace for as long as it is open, and no longer."""
    driver.lend(conn)
    with conn.cursor("mine", withhold=True) as cursor:
        cursor.execute("SELECT 1")
        assert not driver.clean(conn)
    assert driver.clean(conn)
    with conn.cursor("mine", withhold=True) as cursor:
        cursor.execute("SELECT 1")
        driver.begin(conn)
        with pytest.raises(psycopg2.Error):
            value(conn, "SELECT 1 / 0")
    driver.rollback(conn)
    assert not driver.clean(conn), "in an aborted transaction psycopg2 closes it without telling the server"


def test_functions_known_to_be_harmless(tables: str, kinds: None) -> None:
    """A function of one's own counts as a change of the session, unless the options say that it is none."""
    for options, clean in (({}, False), ({"harmless_functions": ["kind_sets"]}, True)):
        driver = Psycopg2Driver(tables, options=options)
        conn = driver.open(10)
        driver.lend(conn)
        value(conn, "SELECT kind_sets()")
        assert driver.clean(conn) is clean
        driver.close(conn)


UNSEEN: dict[str, tuple[Callable[[Any], object], str]] = {
    "inside of a trigger": (
        lambda conn: value(conn, "INSERT INTO kind_watched VALUES (1)"), "SELECT current_setting('work_mem')",
    ),
    "`AsIs`": (
        lambda conn: conn.cursor().execute(
            "SELECT %s", [extensions.AsIs("set_config('kind.tenant', 'acme', false)")]
        ),
        "SELECT coalesce(current_setting('kind.tenant', true), '')",
    ),
    "`extensions.cursor(conn)`": (
        lambda conn: extensions.cursor(conn).execute("SET work_mem = 70"), "SELECT current_setting('work_mem')",
    ),
    "`lastval`": (
        lambda conn: value(conn, "INSERT INTO kind_numbered DEFAULT VALUES RETURNING i"),
        "SELECT count(*) FROM kind_numbered",
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", UNSEEN)
def test_what_the_docs_say_is_not_seen(
    driver: Psycopg2Driver, conn: Any, admin: psycopg.Connection[Any], words: str
) -> None:
    """What is left to the next borrower stands in the table of docs/sessions.md, and nothing else stands there."""
    work, look = UNSEEN[words]
    prepare(lambda statement: admin.execute(statement.encode()))
    admin.execute("DROP TABLE IF EXISTS kind_watched; CREATE TABLE kind_watched (i int)")
    admin.execute("DROP TABLE IF EXISTS kind_numbered; CREATE TABLE kind_numbered (i serial)")
    admin.execute(
        "CREATE OR REPLACE FUNCTION kind_watch() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM kind_sets(); RETURN new; END $$"
    )
    admin.execute("CREATE TRIGGER kind_watch BEFORE INSERT ON kind_watched FOR EACH ROW EXECUTE FUNCTION kind_watch()")
    new = value(conn, look)
    driver.lend(conn)
    work(conn)
    assert driver.clean(conn)
    if words != "`lastval`":
        assert value(conn, look) != new
    else:
        assert value(conn, "SELECT lastval()") > 0
    assert words in not_seen_or_undone(2)
    driver.reset(conn, full=True)
    if words != "`lastval`":
        assert value(conn, look) == new, "a full reset undoes it"


def not_seen_or_undone(column: int) -> str:
    """What the docs' table says of a driver, in the two rows on what is left."""
    text = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("| not seen", "| not undone"))]
    assert len(rows) == 2
    return " ".join(row[column] for row in rows)


def test_a_kept_connection_works_in_the_next_borrowing(driver: Psycopg2Driver, conn: Any) -> None:
    """A connection that is kept beyond its return is the next borrower's object, too: so the docs say."""
    driver.lend(conn)
    assert rest(driver, conn)
    assert value(conn, "SELECT 1") == 1


# -- the reset --------------------------------------------------------------------------------------------------------


def test_one_round_trip(tables: str, proxy: FaultProxy) -> None:
    """A session is made as new in one round trip, and where only attributes differ in none."""
    driver = Psycopg2Driver(proxy.url(tables))
    conn = driver.open(10)
    value(conn, "SET work_mem = 70; CREATE TEMP TABLE mine (i int); SET ROLE pg_monitor; LISTEN x")
    before = proxy.round_trips
    driver.reset(conn, full=False)
    assert proxy.round_trips - before == 1
    conn.cursor_factory = extras.DictCursor
    driver.reset(conn, full=False)
    assert proxy.round_trips - before == 1
    driver.reset(conn, full=True)
    assert proxy.round_trips - before == 2
    driver.close(conn)


@pytest.mark.parametrize("way", ["executed", "loaded in a transaction"])
def test_what_no_reset_undoes(driver: Psycopg2Driver, conn: Any, way: str) -> None:
    """A connection that has loaded a library is not lent again, whatever kind of reset is asked for."""
    value(conn, "LOAD 'plpgsql'" if way == "executed" else "BEGIN; LOAD 'plpgsql'; COMMIT")
    for full in (False, True):
        with pytest.raises(psycopg2.Error, match="no reset undoes"):
            driver.reset(conn, full=full)


def test_close_while_a_reset_hangs(tables: str, proxy: FaultProxy) -> None:
    """A reset that gets no answer ends at once when the connection is closed from another thread."""
    driver = Psycopg2Driver(proxy.url(tables))
    conn = driver.open(10)
    value(conn, "SET work_mem = 70")
    proxy.blackhole()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            driver.reset(conn, full=False)
        except psycopg2.Error as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    end = time.monotonic() + 15
    while conn.get_transaction_status() != extensions.TRANSACTION_STATUS_ACTIVE:
        assert time.monotonic() < end
        time.sleep(0.005)
    driver.close(conn)
    thread.join(15)
    assert not thread.is_alive()
    assert failed


def test_a_close_between_two_messages_of_a_reset(driver: Psycopg2Driver, conn: Any) -> None:
    """While a reset is under way a close hangs up, also where nothing is on the wire in that moment."""
    conn._session.resetting = True
    driver.close(conn)
    assert not driver.alive(conn)


# -- the state of rest ------------------------------------------------------------------------------------------------


def configured(conn: Any) -> dict[str, object]:
    return {
        "path": value(conn, "SHOW search_path"),
        "zone": value(conn, "SHOW timezone"),
        "role": value(conn, "SELECT current_user"),
        "channels": value(conn, "SELECT count(*) FROM pg_listening_channels()"),
        "table": value(conn, "SELECT count(*) FROM pg_class WHERE relname = 'scratch'"),
        "prepared": value(conn, "EXECUTE mine"),
        "encoding": (conn.encoding, value(conn, "SHOW client_encoding")),
        "level": (conn.isolation_level, value(conn, "SHOW default_transaction_isolation")),
        "factory": conn.cursor_factory,
        "types": dict(conn.string_types),
        "tenant": conn.tenant,
    }


def test_configured_by_a_callable(driver: Psycopg2Driver, conn: Any) -> None:
    """What was set on a new connection, by SQL or on the object, is its state of rest: a reset restores it."""
    with conn.cursor() as cursor:
        cursor.execute("SET search_path = %s; -- the tenant's", ["app"])
        cursor.execute("CREATE TEMP TABLE scratch (i int)")
        cursor.execute("LISTEN news;")
        cursor.execute("PREPARE mine AS SELECT 42")
        cursor.executemany("SELECT set_config(%s, %s, false)", [["timezone", "Asia/Tokyo"], ["work_mem", "70kB"]])
        cursor.execute("SET ROLE pg_monitor")
    conn.set_client_encoding("LATIN1")
    conn.set_session(isolation_level="SERIALIZABLE")
    conn.cursor_factory = extras.DictCursor
    extras.register_uuid(conn_or_curs=conn)
    conn.tenant = "acme"
    driver.settled(conn)
    new = configured(conn)
    for undo in ("RESET ALL; UNLISTEN *", "RESET ROLE; DROP TABLE pg_temp.scratch", "DEALLOCATE ALL", "SELECT 1"):
        driver.lend(conn)
        value(conn, undo)
        conn.tenant = "another"
        conn.cursor_factory = None
        conn.set_session(isolation_level="READ COMMITTED")
        assert rest(driver, conn)
        assert configured(conn) == new


def test_what_a_reset_cannot_repeat(driver: Psycopg2Driver, conn: Any) -> None:
    """Where a new connection got more than statements can make again, one that was changed is replaced."""
    value(conn, "CREATE TEMP TABLE scratch (i int)")
    with conn.cursor() as cursor:
        cursor.copy_from(io.StringIO("1\n"), "scratch")
    driver.settled(conn)
    driver.lend(conn)
    assert rest(driver, conn)
    value(conn, "SET work_mem = 70")
    assert not rest(driver, conn)


def test_rows_of_the_state_of_rest(driver: Psycopg2Driver, conn: Any) -> None:
    """Rows that statements wrote into a temporary table of a new connection are there again after a reset."""
    value(conn, "CREATE TEMP TABLE scratch (i int)")
    value(conn, "INSERT INTO scratch VALUES (1)")
    with conn.cursor() as cursor:
        cursor.executemany("INSERT INTO scratch VALUES (%s)", [[2], [3]])
    driver.settled(conn)
    for change in ("DELETE FROM scratch", "SET work_mem = 70"):
        driver.lend(conn)
        value(conn, change)
        assert rest(driver, conn)
        assert value(conn, "SELECT array_agg(i ORDER BY i) FROM scratch") == [1, 2, 3]


def test_rows_that_a_borrower_copies(driver: Psycopg2Driver, conn: Any) -> None:
    """What a borrower copies into a temporary table of the state of rest is gone after its return."""
    value(conn, "CREATE TEMP TABLE scratch (i int)")
    driver.settled(conn)
    for way in ("copy_from", "copy_expert"):
        driver.lend(conn)
        with conn.cursor() as cursor:
            getattr(cursor, way)(*_copied(way))
        assert rest(driver, conn)
        assert value(conn, "SELECT count(*) FROM scratch") == 0


def _copied(way: str) -> tuple[Any, ...]:
    rows = io.StringIO("1\n")
    return (rows, "scratch") if way == "copy_from" else ("COPY scratch FROM STDIN", rows)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        ("CREATE TEMPORARY TABLE IF NOT EXISTS scratch (i int)", "Scratch"),
        ("CREATE TABLE pg_temp.scratch (i int)", "pg_temp.scratch"),
        ("SELECT 1 AS i INTO TEMP scratch WHERE false", "scratch"),
        ('CREATE TEMP TABLE "a scratch" (i int)', '"a scratch"'),
    ],
)
def test_rows_of_a_temporary_table(driver: Psycopg2Driver, conn: Any, made: str, name: str) -> None:
    """A temporary table of the state of rest has the rows that it had, whatever a borrower does to them."""
    value(conn, made)
    driver.settled(conn)
    driver.lend(conn)
    value(conn, f"INSERT INTO {name} VALUES (1)")
    assert rest(driver, conn)
    assert value(conn, f"SELECT count(*) FROM {name}") == 0


def test_a_configure_that_leaves_a_transaction(driver: Psycopg2Driver, conn: Any) -> None:
    """A transaction that was left open on a new connection fails its connect."""
    value(conn, "BEGIN")
    with pytest.raises(psycopg2.Error, match="left in a transaction"):
        driver.settled(conn)


def test_session_settings(tables: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come with the connect, behind those of the environment, and a reset returns to them."""
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=71 -c kind.tenant=nobody")
    options = {"session_settings": {"kind.tenant": "acme & co"}, "statement_timeout": 7}
    driver = Psycopg2Driver(proxy.url(tables), options=options)
    conn = driver.open(10)
    for _ in range(2):
        assert value(conn, "SHOW kind.tenant") == "acme & co"
        assert value(conn, "SHOW statement_timeout") == "7s"
        assert value(conn, "SHOW work_mem") == "71kB"
        value(conn, "SET kind.tenant = 'x'; SET statement_timeout = 0; SET work_mem = 99")
        assert rest(driver, conn)
    driver.close(conn)


def test_a_stale_plan(driver: Psycopg2Driver, admin: psycopg.Connection[Any]) -> None:
    """After a migration one borrower meets the stale plan of a prepared statement; then all connections are renewed."""
    conns = [driver.open(10), driver.open(10)]
    for conn in conns:
        value(conn, "PREPARE mine AS SELECT * FROM item")
        driver.settled(conn)
        driver.lend(conn)
        value(conn, "EXECUTE mine")
        assert rest(driver, conn)
    admin.execute("ALTER TABLE item ADD more integer")
    with pytest.raises(psycopg2.errors.FeatureNotSupported):
        value(conns[0], "EXECUTE mine")
    assert not driver.alive(conns[1])
    assert rest(driver, conns[0])
    value(conns[0], "EXECUTE mine")
    for conn in conns:
        driver.close(conn)


# -- whose it is ------------------------------------------------------------------------------------------------------


def drawn(conn: Any) -> Any:
    cursor = conn.cursor()
    cursor.execute("SELECT 1")
    return cursor


USES: dict[str, Callable[[Any], object]] = {
    "execute": lambda cursor: cursor.execute("SELECT 1"),
    "executemany": lambda cursor: cursor.executemany("SELECT %s", [[1]]),
    "callproc": lambda cursor: cursor.callproc("now"),
    "copy_expert": lambda cursor: cursor.copy_expert("COPY item TO STDOUT", io.StringIO()),
    "copy_from": lambda cursor: cursor.copy_from(io.StringIO("1\n"), "item"),
    "copy_to": lambda cursor: cursor.copy_to(io.StringIO(), "item"),
}


@pytest.mark.parametrize("factory", [None, extras.DictCursor, extras.NamedTupleCursor], ids=["plain", "dict", "tuple"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_cursors_of_an_earlier_borrowing(
    driver: Psycopg2Driver, conn: Any, use: Callable[[Any], object], factory: Any
) -> None:
    """A cursor refuses after the return of its connection, while that is idle and while the next one works with it."""
    driver.lend(conn)
    cursor = conn.cursor(cursor_factory=factory)
    cursor.execute("SELECT 1")
    driver.retire(conn, RETURNED)
    with pytest.raises(LeaseError, match=REFUSED):
        use(cursor)
    driver.lend(conn)
    driver.begin(conn)
    with pytest.raises(LeaseError, match=REFUSED):
        use(cursor)
    assert len(cursor.fetchall()) == 1, "what was fetched is the client's"
    cursor.close()
    use(conn.cursor(cursor_factory=factory))
    driver.rollback(conn)


@pytest.mark.parametrize(
    "use",
    [
        lambda cursor: cursor.fetchone(), lambda cursor: cursor.fetchmany(2), lambda cursor: cursor.fetchall(),
        lambda cursor: next(iter(cursor)), lambda cursor: cursor.scroll(1), lambda cursor: cursor.execute("SELECT 1"),
    ],
)  # fmt: skip
def test_named_cursors_of_an_earlier_borrowing(driver: Psycopg2Driver, conn: Any, use: Callable[[Any], object]) -> None:
    """A cursor on the server asks nothing of it after the return, and closing it closes nobody else's."""
    driver.lend(conn)
    cursor = conn.cursor("mine", withhold=True)
    cursor.execute("SELECT * FROM generate_series(1, 10)")
    cursor.fetchmany(2)
    assert rest(driver, conn)
    other = conn.cursor("mine", withhold=True)
    other.execute("SELECT * FROM generate_series(1, 10)")
    with pytest.raises(LeaseError, match=REFUSED):
        use(cursor)
    cursor.close()
    assert len(other.fetchall()) == 10


def test_large_objects_of_an_earlier_borrowing(driver: Psycopg2Driver, conn: Any) -> None:
    """A large object does not outlive its transaction; psycopg2 itself refuses it."""
    driver.lend(conn)
    driver.begin(conn)
    thing = conn.lobject(0, "rw")
    driver.rollback(conn)
    assert rest(driver, conn)
    driver.begin(conn)
    with pytest.raises(psycopg2.Error):
        thing.read()
    driver.rollback(conn)


METHODS: dict[str, Callable[[Any], object]] = {
    "cursor": lambda conn: conn.cursor(),
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "cancel": lambda conn: conn.cancel(),
    "reset": lambda conn: conn.reset(),
    "poll": lambda conn: conn.poll(),
    "lobject": lambda conn: conn.lobject(),
    "with": lambda conn: conn.__enter__(),
    "set_session": lambda conn: conn.set_session(readonly=True),
    "set_isolation_level": lambda conn: conn.set_isolation_level(1),
    "set_client_encoding": lambda conn: conn.set_client_encoding("LATIN1"),
    "get_parameter_status": lambda conn: conn.get_parameter_status("TimeZone"),
    "tpc_begin": lambda conn: conn.tpc_begin("x"),
    "tpc_recover": lambda conn: conn.tpc_recover(),
    "autocommit": lambda conn: setattr(conn, "autocommit", False),
    "isolation_level": lambda conn: setattr(conn, "isolation_level", 1),
    "cursor_factory": lambda conn: setattr(conn, "cursor_factory", extras.DictCursor),
    "notices": lambda conn: setattr(conn, "notices", []),
    "an attribute": lambda conn: setattr(conn, "tenant", "acme"),
}


@pytest.mark.parametrize("use", METHODS.values(), ids=METHODS)
def test_an_idle_connection(driver: Psycopg2Driver, conn: Any, use: Callable[[Any], object]) -> None:
    """A connection that was given back refuses, and what was tried leaves nothing for the next borrower."""
    driver.lend(conn)
    driver.retire(conn, RETURNED)
    with pytest.raises(LeaseError, match=REFUSED):
        use(conn)
    assert conn.closed
    conn.close()
    conn.__exit__(None, None, None)
    assert driver.alive(conn)
    assert driver.ping(conn, 10)
    assert driver.clean(conn)
    driver.lend(conn)
    assert not conn.closed
    assert value(conn, "SELECT 1") == 1


def test_a_block_that_ends_after_the_return(driver: Psycopg2Driver, conn: Any) -> None:
    """The end of a `with conn:` of an earlier borrowing does not end the next one's transaction."""
    driver.lend(conn)
    conn.__enter__()
    value(conn, "INSERT INTO item VALUES (1)")
    assert rest(driver, conn)
    driver.begin(conn)
    value(conn, "INSERT INTO item VALUES (2)")
    conn.__exit__(None, None, None)
    assert driver.in_transaction(conn)
    driver.rollback(conn)
    assert value(conn, "SELECT count(*) FROM item") == 0


# -- closed by its borrower -------------------------------------------------------------------------------------------


def test_a_lost_connection_is_no_success(driver: Psycopg2Driver, conn: Any, admin: psycopg.Connection[Any]) -> None:
    """A COMMIT on a connection that the server has ended, and whose error was ignored, is an error."""
    driver.lend(conn)
    driver.begin(conn)
    value(conn, "INSERT INTO item VALUES (1)")
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
    with pytest.raises(psycopg2.Error):
        value(conn, "SELECT 1")
    assert not driver.closed_by_user(conn)
    with pytest.raises(psycopg2.Error, match="lost before the COMMIT"):
        driver.commit(conn)


def test_a_block_in_a_unit(driver: Psycopg2Driver, conn: Any) -> None:
    """`with conn:` in a unit of work ends a transaction and closes nothing."""
    driver.lend(conn)
    driver.begin(conn)
    with conn:
        value(conn, "INSERT INTO item VALUES (1)")
    value(conn, "INSERT INTO item VALUES (2)")
    driver.rollback(conn)
    assert driver.clean(conn)
    assert value(conn, "SELECT count(*) FROM item") == 1


# -- errors -----------------------------------------------------------------------------------------------------------


def test_what_is_worth_another_try(driver: Psycopg2Driver, conn: Any) -> None:
    """Only psycopg2's own serialization failures and deadlocks are, whatever else has their numbers."""
    for code in ("40001", "40P01"):
        with pytest.raises(psycopg2.Error) as caught:
            value(conn, f"DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '{code}'; END $$")
        assert driver.is_retryable(caught.value)
    for error in (KeyError("40001"), psycopg.errors.SerializationFailure(), psycopg2.OperationalError("40001")):
        assert not driver.is_retryable(error)


def test_behind_a_pooler_that_lends_by_transaction(tables: str, proxy: FaultProxy) -> None:
    """No reset is sent where it may reach another session; what is the client's own is put back all the same."""
    driver = Psycopg2Driver(proxy.url(tables), config=PoolConfig(pooler="transaction"))
    conn = driver.open(10)
    driver.lend(conn)
    value(conn, "SET work_mem = 70")
    conn.cursor_factory = extras.DictCursor
    conn.cursor("mine", withhold=True).execute("SELECT 1")
    before = proxy.round_trips
    assert rest(driver, conn)
    driver.reset(conn, full=True)
    assert proxy.round_trips == before
    assert conn.cursor_factory is None
    driver.close(conn)


def test_a_limit_is_lifted_first(driver: Psycopg2Driver) -> None:
    """A borrower's limit does not end what takes the reset longer: here it has hundreds of tables to drop."""
    conn = driver.open(10)
    driver.settled(conn)
    with conn.cursor() as cursor:
        cursor.execute(
            "DO $$ BEGIN FOR i IN 1..600 LOOP EXECUTE 'CREATE TEMP TABLE t' || i || ' (i int)'; END LOOP; END $$"
        )
        cursor.execute("SET statement_timeout = 20")
    driver.reset(conn, full=False)
    assert value(conn, "SHOW statement_timeout") == "0"
    driver.close(conn)


# -- through a pool ---------------------------------------------------------------------------------------------------

CHANGES = (
    "SET work_mem = 70",
    "CREATE TEMP TABLE kind_mine (i int)",
    "SET ROLE pg_monitor",
    "SET statement_timeout = 100",
)


def backend(conn: Any) -> tuple[int, object]:
    """The session's process, and what can be seen of its state."""
    seen = [value(conn, f"SHOW {name}") for name in ("work_mem", "role", "statement_timeout")]
    return conn.info.backend_pid, (seen, value(conn, "SELECT count(*) FROM pg_class WHERE relname = 'kind_mine'"))


@pytest.mark.parametrize("reset", ["auto", "full"])
def test_the_next_borrower_of_a_pool(driver: Psycopg2Driver, reset: str) -> None:
    """With one connection the next borrower has the same session, as new; what was kept of it is refused meanwhile."""
    with Pool(driver, max_size=1, reset=reset) as pool:
        with pool.acquire() as conn:
            new = backend(conn)
        for _ in range(3):
            with pool.acquire() as conn:
                for change in CHANGES:
                    value(conn, change)
                kept = conn.cursor()
            with pool.acquire() as conn:
                assert backend(conn) == new
                with pytest.raises(LeaseError, match=r"given back at .*test_psycopg2_session\.py:\d+ in test_the_next"):
                    kept.execute("SELECT 1")
        with pytest.raises(LeaseError):
            conn.cursor()
        assert pool.stats().opened == 1


def test_a_loaded_library_costs_the_connection(driver: Psycopg2Driver) -> None:
    """What no reset undoes replaces the connection, and the next borrower does not notice."""
    with Pool(driver, max_size=1) as pool:
        with pool.acquire() as conn:
            before, _ = backend(conn)
            value(conn, "LOAD 'plpgsql'")
        with pool.acquire() as conn:
            assert backend(conn)[0] != before


def test_hooks_get_a_connection_that_works(driver: Psycopg2Driver) -> None:
    """What the settings call with a connection may use it, also where it has lain idle."""
    asked: list[object] = []

    def look(conn: Any) -> None:
        asked.append(value(conn, "SHOW work_mem"))

    def configure(conn: Any) -> None:
        value(conn, "SET work_mem = 70")

    hooks = {"configure": configure, "setup": look, "ping": look, "on_close": look}
    with Pool(driver, max_size=1, check_after=0, **hooks) as pool:
        with pool.acquire() as conn:
            value(conn, "SET work_mem = 90")
        deadline = time.monotonic() + 10
        while pool.stats().resetting:  # a connection that is taken before its reset is over has not lain idle
            assert time.monotonic() < deadline
            time.sleep(0.001)
        for _ in range(2):
            with pool.acquire() as conn:
                assert value(conn, "SHOW work_mem") == "70kB"
        assert pool.stats().opened == 1
    assert set(asked) == {"70kB"}
    assert len(asked) == 6, "set up three times, asked twice after lying idle, closed once"
