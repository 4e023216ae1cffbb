"""psycopg: the next borrower finds the session as it was at rest, whatever the last one did to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from rigs import RIGS
from state_kinds import POSTGRES, PostgresKind, prepare

from poolkit.config import PoolConfig
from poolkit.errors import Returned

KINDS = ["psycopg", "psycopg-async"]
SET = "SET work_mem = '71kB'"
LOOK = "SELECT current_setting('work_mem')"


def make_rig(name: str, url: str, **arguments: Any) -> Any:
    kind = RIGS[name].kind
    return RIGS[name](kind(url, **arguments), lambda **more: kind(url, **more))


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tables: str) -> Iterator[Any]:
    made = make_rig(request.param, tables)
    yield made
    made.close_all()


def lent(rig: Any, configure: Callable[[Any], object] = lambda conn: None) -> Any:
    """A connection as a pool lends it, configured."""
    conn = rig.open()
    configure(conn)
    rig.driver.settled(conn)
    return conn


def returned(rig: Any, conn: Any) -> bool:
    """Give a connection back as a pool does; whether the session was kept."""
    if rig.driver.is_broken(conn, None):
        return False
    if not rig.driver.clean(conn):
        try:
            rig.run(rig.driver.reset(conn, full=False))
        except psycopg.Error:
            return False
    assert rig.driver.clean(conn)
    return True


# -- what a borrower does by SQL --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POSTGRES, ids=str)
def test_kinds_of_state(rig: Any, kind: PostgresKind) -> None:
    """Whatever kind of state a borrower leaves, the next one doesn't see it, on this connection or on another."""
    conn = lent(rig)
    prepare(lambda statement: rig.do(conn, statement))
    assert returned(rig, conn)
    before = rig.rows(conn, kind.look)
    for statement in kind.dirty:
        try:
            rig.do(conn, statement)
        except psycopg.Error:
            break
    if returned(rig, conn):
        assert rig.rows(conn, kind.look) == before
    else:
        assert kind.name == "LOAD"


def _execute_prepared(rig: Any, conn: Any) -> None:
    rig.run(conn.execute(SET, prepare=False))


def _params(rig: Any, conn: Any) -> None:
    rig.run(conn.execute("SELECT set_config('work_mem', %s, false)", ["71kB"]))


def _bytes(rig: Any, conn: Any) -> None:
    rig.run(conn.execute(SET.encode()))


def _composed(rig: Any, conn: Any) -> None:
    rig.run(conn.execute(sql.SQL("SET {} = {}").format(sql.Identifier("work_mem"), sql.Literal("71kB"))))


def _text_of_ones_own(rig: Any, conn: Any) -> None:
    rig.run(conn.execute(type("Text", (str,), {})(SET)))


def _many(rig: Any, conn: Any) -> None:
    rig.run(conn.cursor().executemany("SELECT set_config('work_mem', %s, false)", [["71kB"], ["71kB"]]))


def _stream(rig: Any, conn: Any) -> None:
    rows = conn.cursor().stream("SELECT set_config('work_mem', '71kB', false)")

    async def read() -> None:
        async for _ in rows:
            pass

    rig.run(read()) if hasattr(rows, "__aiter__") else list(rows)


def _copy(rig: Any, conn: Any) -> None:
    copying = conn.cursor().copy("COPY (SELECT set_config('work_mem', '71kB', false)) TO STDOUT")

    async def read() -> None:
        async with copying as copy:
            while await copy.read():
                pass

    if hasattr(copying, "__aenter__"):
        rig.run(read())
        return
    with copying as copy:
        while copy.read():
            pass


def _named(rig: Any, conn: Any) -> None:
    async def read() -> None:
        async with conn.transaction(), conn.cursor("mine") as cursor:
            await cursor.execute("SELECT set_config('work_mem', '71kB', false)")
            await cursor.fetchall()

    if hasattr(conn, "__aenter__"):
        rig.run(read())
        return
    with conn.transaction(), conn.cursor("mine") as cursor:
        cursor.execute("SELECT set_config('work_mem', '71kB', false)").fetchall()


def _pipeline(rig: Any, conn: Any) -> None:
    async def work() -> None:
        async with conn.pipeline():
            await conn.execute("SELECT 1")
            await conn.execute(SET)

    if hasattr(conn, "__aenter__"):
        rig.run(work())
        return
    with conn.pipeline():
        conn.execute("SELECT 1")
        conn.execute(SET)


def _client(rig: Any, conn: Any) -> None:
    kind = psycopg.AsyncClientCursor if hasattr(conn, "__aenter__") else psycopg.ClientCursor
    rig.run(kind(conn).execute("SELECT set_config('work_mem', %s, false)", ["71kB"]))


def _raw(rig: Any, conn: Any) -> None:
    rig.run(raw_cursor(conn).execute("SELECT set_config('work_mem', $1, false)", ["71kB"]))


class _Rewriting:
    """A cursor class of the user's own, which sends something else than it is given."""

    def _convert_query(self, query: Any, params: Any = None) -> Any:
        return super()._convert_query(query.replace("SELECT 2", SET), params)  # type: ignore[misc]


class _Generating:
    """A cursor class of the user's own, with a generator of its own around psycopg's."""

    def _execute_gen(self, query: Any, params: Any = None, **more: Any) -> Any:
        return (yield from super()._execute_gen(query.replace("SELECT 2", SET), params, **more))  # type: ignore[misc]


def _subclass(mixin: type) -> Callable[[Any, Any], None]:
    def work(rig: Any, conn: Any) -> None:
        base = psycopg.AsyncCursor if hasattr(conn, "__aenter__") else psycopg.Cursor
        rig.run(type("Mine", (mixin, base), {})(conn).execute("SELECT 2"))

    work.__name__ = mixin.__name__
    return work


def _in_a_unit(rig: Any, conn: Any) -> None:
    rig.run(rig.driver.begin(conn))
    rig.do(conn, SET)
    rig.run(rig.driver.commit(conn))


def _in_a_trigger(rig: Any, conn: Any) -> None:
    rig.do(conn, "INSERT INTO trust_fires VALUES (1)")


WAYS = [
    _execute_prepared, _params, _bytes, _composed, _text_of_ones_own, _many, _stream, _copy, _named, _pipeline, _client,
    _raw, _subclass(_Rewriting), _subclass(_Generating), _in_a_unit,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_ways_to_send(rig: Any, way: Callable[[Any, Any], None]) -> None:
    """A statement is seen in whatever way of psycopg's it is sent, and from whatever cursor class."""
    conn = lent(rig)
    before = rig.value(conn, LOOK)
    way(rig, conn)
    assert rig.value(conn, LOOK) == "71kB"
    assert not rig.driver.clean(conn)
    assert returned(rig, conn)
    assert rig.value(conn, LOOK) == before


@pytest.mark.parametrize("in_a_unit", [False, True], ids=["alone", "in a unit"])
def test_a_held_cursor(rig: Any, in_a_unit: bool) -> None:  # noqa: FBT001
    """Rows of a cursor WITH HOLD, whose query changes nothing itself, can't be read after the return."""
    conn = lent(rig)
    if in_a_unit:
        rig.run(rig.driver.begin(conn))
    cursor = conn.cursor("mine", withhold=True)
    rig.run(cursor.execute("SELECT 'of another tenant'"))
    if in_a_unit:
        rig.run(rig.driver.commit(conn))
    assert not rig.driver.clean(conn)
    assert returned(rig, conn)
    assert rig.rows(conn, "SELECT name FROM pg_cursors") == []
    cursor._close()  # nothing is left on the server to be closed


def raw_cursor(conn: Any) -> Any:
    return psycopg.AsyncRawCursor(conn) if hasattr(conn, "__aenter__") else psycopg.RawCursor(conn)


def fails(rig: Any, conn: Any, statement: str) -> None:
    with pytest.raises(psycopg.Error):
        rig.do(conn, statement)


PLAIN: dict[str, Callable[[Any, Any], object]] = {
    "execute": lambda rig, conn: rig.do(conn, "SELECT 1"),
    "composed": lambda rig, conn: rig.run(conn.execute(sql.SQL("SELECT {} FROM item").format(sql.Identifier("id")))),
    "many": lambda rig, conn: rig.run(conn.cursor().executemany("INSERT INTO item VALUES (%s)", [[1], [2]])),
    "raw": lambda rig, conn: rig.run(raw_cursor(conn).execute("SELECT $1::int", [1])),
    "types": lambda rig, conn: rig.run(TypeInfo.fetch(conn, "hstore")),
    "local": lambda rig, conn: rig.do(conn, "BEGIN", "SET LOCAL TimeZone = 'Asia/Tokyo'", "COMMIT"),
    "failing": lambda rig, conn: fails(rig, conn, "SELECT 1 / 0"),
}  # fmt: skip


@pytest.mark.parametrize("work", PLAIN)
def test_plain_work_is_clean(rig: Any, work: str) -> None:
    """What only reads and writes tables leaves a clean session, so that its return costs nothing."""
    conn = lent(rig)
    PLAIN[work](rig, conn)
    assert rig.driver.clean(conn)


REPORTED = {
    "TimeZone": "Asia/Tokyo",
    "DateStyle": "German, DMY",
    "application_name": "mine",
    "client_encoding": "LATIN1",
    "default_transaction_read_only": "on",
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_the_server_reports(rig: Any, admin: psycopg.Connection[Any], name: str) -> None:
    """What a trigger sets from within is seen where the server reports it, though no text shows it."""
    admin.execute("DROP TABLE IF EXISTS trust_fires")
    admin.execute("CREATE TABLE trust_fires (i int)")
    admin.execute(
        "CREATE OR REPLACE FUNCTION trust_fire() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM set_config('{name}', '{REPORTED[name]}', false); RETURN NEW; END $$"
    )
    admin.execute("CREATE TRIGGER t BEFORE INSERT ON trust_fires FOR EACH ROW EXECUTE FUNCTION trust_fire()")
    conn = lent(rig)
    before = rig.value(conn, f"SHOW {name}")
    _in_a_trigger(rig, conn)
    assert not rig.driver.clean(conn)
    assert returned(rig, conn)
    assert rig.value(conn, f"SHOW {name}") == before
    assert rig.driver.clean(conn)


@pytest.mark.parametrize("name", KINDS)
def test_harmless_functions(name: str, tables: str, admin: psycopg.Connection[Any]) -> None:
    """A function of one's own counts as a change, unless the option calls it harmless."""
    admin.execute("CREATE OR REPLACE FUNCTION trust_adds(i int) RETURNS int LANGUAGE sql AS 'SELECT i + 1'")
    for options, clean in (({}, False), ({"harmless_functions": ["trust_adds"]}, True)):
        rig = make_rig(name, tables, options=options)
        conn = lent(rig)
        assert rig.value(conn, "SELECT trust_adds(1)") == 2
        assert rig.driver.clean(conn) is clean
        rig.close_all()


# -- the state of rest ------------------------------------------------------------------------------------------------


def test_prepared_statements_survive(rig: Any) -> None:
    """A reset leaves what psycopg has prepared prepared, and usable."""
    conn = lent(rig)
    query = "SELECT count(*) FROM item WHERE id > %s"
    for _ in range(7):
        rig.run(conn.execute(query, [0]))
    prepared = "SELECT name, prepare_time FROM pg_prepared_statements WHERE name LIKE '\\_pg3%'"
    before = rig.rows(conn, prepared)
    assert before
    rig.do(conn, SET)
    assert returned(rig, conn)
    assert rig.rows(conn, prepared) == before
    assert rig.run(rig.run(conn.execute(query, [0])).fetchone()) == (0,)


@pytest.mark.parametrize("statement", ["DISCARD ALL", "DEALLOCATE ALL", "PREPARE mine AS SELECT 1"])
def test_statements_prepared_and_forgotten_by_sql(rig: Any, statement: str) -> None:
    """What SQL prepares is gone, and what it deallocates is prepared again, for the next borrower."""
    conn = lent(rig)
    query = "SELECT count(*) FROM item WHERE id > %s"
    for _ in range(2):
        for _ in range(7):
            rig.run(conn.execute(query, [0]))
        rig.do(conn, statement)
        assert returned(rig, conn)
        assert rig.value(conn, "SELECT count(*) FROM pg_prepared_statements") == 0
        assert rig.run(rig.run(conn.execute(query, [0])).fetchone()) == (0,)


CONFIGURED: dict[str, tuple[tuple[str, ...], str]] = {
    "SET": (("SET work_mem = '73kB'",), LOOK),
    "LISTEN": (("LISTEN trust",), "SELECT pg_listening_channels()"),
    "PREPARE": (("PREPARE trust AS SELECT 5",), "EXECUTE trust"),
    "temporary": (
        ("CREATE TEMP TABLE trust_kept (i int)", "INSERT INTO trust_kept VALUES (7)"),
        "SELECT sum(i) FROM trust_kept",
    ),
    "advisory lock": (
        ("SELECT pg_advisory_lock_shared(5)",),
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "cursor": (
        ("DECLARE trust CURSOR WITH HOLD FOR SELECT 1",), "SELECT count(*) FROM pg_cursors WHERE name = 'trust'",
    ),
    "role": (("SET ROLE pg_monitor",), "SELECT current_user"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGURED)
@pytest.mark.parametrize("dirt", ["SET work_mem = '71kB'", "DISCARD ALL", "SET default_transaction_read_only = on"])
def test_what_was_configured_survives(rig: Any, kind: str, dirt: str) -> None:
    """Statements that set up a connection are its state of rest: clean as such, and there again after a reset."""
    statements, look = CONFIGURED[kind]
    conn = lent(rig, lambda conn: rig.do(conn, *statements))
    before = rig.rows(conn, look)
    if kind != "PREPARE":  # to execute it is a change as far as its text tells
        assert rig.driver.clean(conn)
    for _ in range(2):
        rig.do(conn, dirt)
        assert not rig.driver.clean(conn)
        assert returned(rig, conn)
        assert rig.rows(conn, look) == before


def test_configured_with_parameters(rig: Any) -> None:
    """Parameters of a statement that set up a connection are sent again with it, quoted by psycopg."""
    value = "it's \\ %s"
    conn = lent(rig, lambda conn: rig.run(conn.execute("SELECT set_config('trust.tenant', %s, false)", [value])))
    rig.do(conn, "SET trust.tenant = 'other'")
    assert returned(rig, conn)
    assert rig.value(conn, "SELECT current_setting('trust.tenant')") == value


def test_what_can_not_be_sent_again(rig: Any) -> None:
    """Where a connection was set up by a statement that can't be noted, a changed session is replaced."""
    conn = lent(rig, lambda conn: _stream(rig, conn))
    assert rig.driver.clean(conn)
    rig.do(conn, "SET work_mem = '72kB'")
    assert not returned(rig, conn)


def test_attributes_of_rest(rig: Any, tables: str) -> None:
    """Attributes, handlers and adapters set by `configure` come back; those a borrower sets are gone."""
    notices: list[Any] = []
    upper = type("Upper", (psycopg.types.string.TextLoader,), {"load": lambda self, data: bytes(data).decode().upper()})
    lower = type("Lower", (upper,), {"load": lambda self, data: bytes(data).decode().lower()})

    def configure(conn: Any) -> None:
        conn.add_notice_handler(notices.append)
        conn.row_factory = dict_row
        conn.prepare_threshold = 2
        conn.prepared_max = 10
        conn.adapters.register_loader("text", upper)

    conn = lent(rig, configure)
    assert rig.driver.clean(conn)
    changes: tuple[Callable[[], object], ...] = (
        lambda: conn.add_notice_handler(print),
        lambda: conn.remove_notice_handler(notices.append),
        lambda: setattr(conn, "row_factory", psycopg.rows.tuple_row),
        lambda: setattr(conn, "server_cursor_factory", object),
        lambda: setattr(conn, "cursor_factory", object),
        lambda: setattr(conn, "prepare_threshold", None),
        lambda: setattr(conn, "prepared_max", None),
        lambda: conn.adapters.register_loader("text", lower),
        lambda: conn.adapters.register_dumper(str, psycopg.types.string.StrDumperVarchar),
        lambda: TypeInfo("mine", 99999, 99998).register(conn),
    )
    for change in changes:
        change()
        assert not rig.driver.clean(conn)
        assert returned(rig, conn)
        rows = rig.rows(conn, "SELECT 'Text'::text AS t")
        assert rows == [{"t": "TEXT"}]
        assert conn.prepared_max == 10
        with pytest.raises(KeyError):
            conn.adapters.types["mine"]
    rig.do(conn, "DO $$ BEGIN RAISE NOTICE 'x'; END $$")
    assert len(notices) == 1


@pytest.mark.parametrize("name", KINDS)
def test_settings_as_data(name: str, tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Session settings go with the connect, beside the user's own options, and a reset returns to them."""
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=79kB")
    wanted = {"search_path": '"a b", "$user"', "trust.tenant": "it's \\"}
    rig = make_rig(name, tables, options={"session_settings": wanted, "statement_timeout": 31.5})
    conn = lent(rig)
    assert rig.driver.clean(conn)
    for _ in range(2):
        assert rig.value(conn, "SHOW statement_timeout") == "31500ms"
        assert rig.value(conn, LOOK) == "79kB"
        for setting, value in wanted.items():
            assert rig.value(conn, f"SHOW {setting}") == value
        rig.do(conn, "SET search_path = x", "SET trust.tenant = 'y'", "SET statement_timeout = 0")
        assert returned(rig, conn)
    rig.close_all()


def test_it_follows_to_the_next_object(rig: Any) -> None:
    """What a borrower did is known of the session, also when a new object has taken it over."""
    conn = lent(rig)
    before = rig.value(conn, LOOK)
    rig.do(conn, SET)
    fresh = rig.driver.renew(conn, Returned("default", "x"))
    rig._opened[rig._opened.index(conn)] = fresh
    assert not rig.driver.clean(fresh)
    assert returned(rig, fresh)
    assert rig.value(fresh, LOOK) == before


@pytest.mark.parametrize("name", KINDS)
def test_round_trips(name: str, tables: str, proxy: Any) -> None:
    """A clean session costs no round trip at its return, a changed one costs one, an open transaction included."""
    rig = make_rig(name, proxy.url(tables))
    conn = lent(rig)
    for work, trips in (((), 0), (("SELECT 1",), 0), ((SET,), 1), (("BEGIN", SET), 1), (("BEGIN", "SELECT 1"), 1)):
        rig.do(conn, *work)
        before = proxy.round_trips
        assert returned(rig, conn)
        assert proxy.round_trips - before == trips, work
    rig.close_all()


@pytest.mark.parametrize("name", KINDS)
def test_behind_a_pooler(
    name: str, tables: str, proxy: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `pooler="transaction"` no reset is sent and nothing prepared; a pooler that nobody named is told of once."""
    rig = make_rig(name, proxy.url(tables), config=PoolConfig(pooler="transaction"))
    conn = lent(rig)
    assert conn.prepare_threshold is None
    rig.do(conn, SET, "LOAD 'plpgsql'")
    before = proxy.round_trips
    assert returned(rig, conn)
    assert proxy.round_trips == before
    rig.do(conn, "BEGIN", "SELECT 1")
    before = proxy.round_trips
    assert returned(rig, conn)
    assert proxy.round_trips == before + 1
    rig.close_all()
    for mode, warnings in (("transaction", 0), ("session", 0), ("auto", 1)):
        caplog.clear()
        monkeypatch.setattr("poolkit.drivers._pooler._LARGEST_PID", 0)
        other = make_rig(name, tables, config=PoolConfig(pooler=mode))
        for _ in range(2):
            lent(other)
        assert len([record for record in caplog.records if "pooler" in record.getMessage()]) == warnings
        other.close_all()


def test_no_word_of_a_secret(rig: Any) -> None:
    """Nothing of what was configured shows in the representation of a connection."""
    conn = lent(rig, lambda conn: rig.do(conn, "SET trust.secret = 'hunter2'"))
    assert not re.search("hunter2", repr(conn) + repr(rig.driver))


# -- what is not seen -------------------------------------------------------------------------------------------------

WATCH = (
    "CREATE OR REPLACE FUNCTION trust_watch() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN PERFORM set_config('work_mem', '72kB', false); RETURN NEW; END $$"
)
UNSEEN: dict[str, tuple[Callable[[Any, Any], object], str, str]] = {
    "`conn.pgconn`": (lambda rig, conn: conn.pgconn.exec_(b"SET work_mem = '71kB'"), LOOK, "71kB"),
    "a trigger": (lambda rig, conn: rig.do(conn, "INSERT INTO trust_watched VALUES (1)"), LOOK, "72kB"),
    "`lastval`": (
        lambda rig, conn: rig.do(conn, "INSERT INTO trust_numbered DEFAULT VALUES"),
        "SELECT lastval()::text",
        "1",
    ),
}


@pytest.mark.parametrize("words", UNSEEN)
def test_what_the_docs_say_is_not_seen(rig: Any, admin: psycopg.Connection[Any], words: str) -> None:
    """What is left to the next borrower stands in the table of docs/sessions.md; a full reset takes it away."""
    for statement in (
        "DROP TABLE IF EXISTS trust_watched",
        "CREATE TABLE trust_watched (i int)",
        WATCH,
        "CREATE TRIGGER t BEFORE INSERT ON trust_watched FOR EACH ROW EXECUTE FUNCTION trust_watch()",
        "DROP TABLE IF EXISTS trust_numbered",
        "CREATE TABLE trust_numbered (i serial)",
    ):
        admin.execute(statement.encode())
    work, look, left = UNSEEN[words]
    conn = lent(rig)
    work(rig, conn)
    assert rig.driver.clean(conn)
    assert rig.value(conn, look) == left
    rig.run(rig.driver.reset(conn, full=True))
    try:
        assert rig.value(conn, look) != left
    except psycopg.errors.ObjectNotInPrerequisiteState:
        assert words == "`lastval`"
    page = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in rows[0]].index("psycopg")
    assert any(words in row[column] for row in rows if row[1].strip() in ("not seen", "not undone"))


# -- what wraps psycopg's connect -------------------------------------------------------------------------------------


def test_an_instrumented_connect(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor class that tracing gives to psycopg's connect is the state of rest: it sees every statement."""
    seen: list[str] = []

    def traced(kind: Any) -> None:
        theirs, cursor = kind.connect.__func__, psycopg.Cursor if kind is psycopg.Connection else psycopg.AsyncCursor

        class Traced(cursor):  # type: ignore[misc, valid-type]
            def execute(self, query: Any, *arguments: Any, **keywords: Any) -> Any:
                seen.append(query)
                return super().execute(query, *arguments, **keywords)

        def connect(cls: Any, *arguments: Any, **keywords: Any) -> Any:
            return theirs(cls, *arguments, **keywords, cursor_factory=Traced)

        monkeypatch.setattr(kind, "connect", classmethod(connect))

    traced(psycopg.Connection)
    traced(psycopg.AsyncConnection)
    for name in KINDS:
        rig = make_rig(name, tables)
        conn = lent(rig)
        for _ in range(2):
            rig.run(rig.driver.begin(conn))
            rig.do(conn, SET)
            rig.run(rig.driver.commit(conn))
            assert rig.value(conn, LOOK) == "71kB"
            conn.cursor_factory = psycopg.Cursor if name == "psycopg" else psycopg.AsyncCursor
            assert returned(rig, conn)
            assert rig.value(conn, LOOK) != "71kB"
        assert seen == [SET, LOOK, LOOK, SET, LOOK, LOOK]
        seen.clear()
        rig.close_all()
