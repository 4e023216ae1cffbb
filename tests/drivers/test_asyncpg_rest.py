"""asyncpg: the next borrower finds the session, and asyncpg's object, as they were at rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import psycopg
import pytest
from state_kinds import POSTGRES, PostgresKind, prepare

from poolkit.config import PoolConfig
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.errors import ConfigError
from poolkit.testing import FaultProxy

Work = Callable[[AsyncpgDriver, Any], Awaitable[None]]


def lent(url: str, work: Work, configure: Callable[[Any], Awaitable[None]] | None = None, **arguments: Any) -> None:
    """Run `work(driver, connection)` with a connection as a pool has it, configured."""

    async def main() -> None:
        driver = AsyncpgDriver(url, **arguments)
        conn = await driver.open(10)
        if configure is not None:
            await configure(conn)
        driver.settled(conn)
        try:
            assert driver.clean(conn)
            await work(driver, conn)
        finally:
            driver.terminate(conn)

    asyncio.run(main())


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", POSTGRES, ids=str)
def test_every_kind_of_state(tables: str, admin: psycopg.Connection[Any], kind: PostgresKind, *, full: bool) -> None:
    """Whatever a borrower left is seen, and undone in one round trip; or the session is seen to be lost."""
    prepare(admin.execute)  # type: ignore[arg-type]

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        before = await conn.fetchval(kind.look)
        assert driver.clean(conn)
        for statement in kind.dirty:
            await conn.execute(statement)
        assert not driver.clean(conn)
        trips = proxy.round_trips
        if kind.name == "LOAD":
            with pytest.raises(asyncpg.InterfaceError, match="can't be undone"):
                await driver.reset(conn, full=full)
            return
        await driver.reset(conn, full=full)
        assert proxy.round_trips - trips == 1
        assert driver.clean(conn)
        assert await conn.fetchval(kind.look) == before

    with FaultProxy(tables) as proxy:
        lent(proxy.url(tables), work)


def test_a_clean_connection_costs_nothing(tables: str, proxy: FaultProxy) -> None:
    """Where nothing was changed in the session, a reset sends nothing, also where asyncpg's object was changed."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.fetch("SELECT 1")
        conn.add_log_listener(print)
        conn.add_query_logger(print)
        conn.add_termination_listener(print)
        assert not driver.clean(conn)
        before = proxy.round_trips
        await driver.reset(conn, full=False)
        assert proxy.round_trips == before
        assert driver.clean(conn)
        assert not conn._log_listeners
        assert not conn._query_loggers
        assert not conn._termination_listeners

    lent(proxy.url(tables), work)


def test_prepared_statements_stay(tables: str) -> None:
    """A reset leaves what asyncpg has prepared, so that the next borrower does not prepare again."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.fetch("SELECT id FROM item")
        await conn.execute("SET work_mem = '70kB'")
        await driver.reset(conn, full=False)
        count = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT id FROM item'"
        assert await conn.fetchval(count) == 1

    lent(tables, work)


@pytest.mark.parametrize("how", ["DISCARD ALL", "DEALLOCATE ALL"])
def test_a_session_that_forgot_its_statements(tables: str, how: str) -> None:
    """After DISCARD ALL or DEALLOCATE nobody is told that a prepared statement does not exist."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        for send in (conn.execute, conn.fetch):
            await conn.fetch("SELECT id FROM item")
            await send(how)
            await conn.fetch("SELECT id FROM item")
            await driver.reset(conn, full=False)
            await conn.fetch("SELECT id FROM item")
        assert driver.clean(conn)

    lent(tables, work)


# -- the state of rest -------------------------------------------------------------------------------------------------


def hear(*_: object) -> None:
    """Hear."""


async def configure(conn: Any) -> None:
    """Everything that an application does with each new connection."""
    await conn.execute("SET search_path TO pg_catalog, public -- and a comment")
    await conn.execute("SELECT set_config('app.tenant', $1, false)", "none")
    await conn.fetch("CREATE TEMP TABLE scratch (i int)")
    await conn.execute("PREPARE mine AS SELECT 1")
    await conn.add_listener("news", hear)
    conn.add_log_listener(hear)
    conn.add_query_logger(hear)
    await conn.set_type_codec("json", encoder=str, decoder=lambda text: f"<{text}>", schema="pg_catalog")


async def state(conn: Any) -> list[Any]:
    return [
        await conn.fetchval("SHOW search_path"),
        await conn.fetchval("SELECT current_setting('app.tenant', true)"),
        await conn.fetchval("SELECT count(*) FROM pg_class WHERE relname = 'scratch'"),
        await conn.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'"),
        await conn.fetchval("SELECT array_agg(c) FROM pg_listening_channels() AS c"),
        await conn.fetchval("SELECT '1'::json"),
        {channel: len(callbacks) for channel, callbacks in conn._listeners.items()},
        len(conn._log_listeners),
        len(conn._query_loggers),
        len(conn._termination_listeners),
    ]


AT_REST = ["pg_catalog, public", "none", 1, 1, ["news"], "<1>", {"news": 1}, 1, 1, 0]


async def undo_all(conn: Any) -> None:
    await conn.execute("DISCARD ALL")
    await conn.remove_listener("news", hear)
    conn.remove_log_listener(hear)
    conn.remove_query_logger(hear)
    conn.add_termination_listener(hear)
    await conn.reset_type_codec("json", schema="pg_catalog")


async def change_all(conn: Any) -> None:
    await conn.execute("SET search_path TO public; DROP TABLE scratch; SET app.tenant = 'acme'")
    await conn.add_listener("news", print)
    await conn.add_listener("more", hear)
    conn.add_log_listener(print)
    conn.add_query_logger(print)
    await conn.set_type_codec("json", encoder=str, decoder=str, schema="pg_catalog")


async def change_objects_only(conn: Any) -> None:
    conn.remove_query_logger(hear)
    conn.add_log_listener(print)
    await conn.set_builtin_type_codec("json", codec_name="text", schema="pg_catalog")


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("change", [undo_all, change_all, change_objects_only])
def test_what_configure_did_survives(tables: str, change: Callable[[Any], Awaitable[None]], *, full: bool) -> None:
    """What was set up on a new connection is what a reset returns to, whatever a borrower did to it."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        assert await state(conn) == AT_REST
        for _ in range(2):
            await change(conn)
            assert not driver.clean(conn)
            await driver.reset(conn, full=full)
            assert driver.clean(conn)
            assert await state(conn) == AT_REST

    lent(tables, work, configure)


async def fill(conn: Any) -> None:
    await conn.execute("CREATE TABLE IF NOT EXISTS for_all (i int)")
    await conn.execute("CREATE TEMPORARY TABLE scratch (i int)")
    await conn.execute("INSERT INTO scratch VALUES (1)")
    await conn.execute("INSERT INTO scratch VALUES ($1)", 2)
    await conn.execute("INSERT INTO item VALUES (7) ON CONFLICT DO NOTHING")


@pytest.mark.parametrize("change", ["DELETE FROM scratch", "INSERT INTO scratch VALUES (3)", "SET work_mem = '70kB'"])
def test_rows_of_a_temporary_table_belong_to_the_state_of_rest(tables: str, change: str) -> None:
    """A temporary table that `configure` filled is as full after a reset; what is no session's is not done again."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.execute("DELETE FROM item")
        await conn.execute(change)
        assert not driver.clean(conn)
        await driver.reset(conn, full=False)
        assert await conn.fetchval("SELECT array_agg(i ORDER BY i) FROM scratch") == [1, 2]
        assert await conn.fetchval("SELECT count(*) FROM item") == 0

    lent(tables, work, fill)


def test_what_a_reset_can_not_repeat(tables: str) -> None:
    """Where `configure` did what can't be done again a changed session is lost, and is said to be."""

    async def copies(conn: Any) -> None:
        await conn.execute("CREATE TEMP TABLE scratch (i int)")
        await conn.copy_records_to_table("scratch", records=[(1,)])

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        assert driver.clean(conn)
        await conn.execute("SET work_mem = '70kB'")
        with pytest.raises(asyncpg.InterfaceError, match="can't be done again by a reset"):
            await driver.reset(conn, full=False)

    lent(tables, work, copies)


@pytest.mark.parametrize("name", ["json", "item"])
def test_codecs_of_a_borrower(tables: str, name: str) -> None:
    """A type codec that a borrower set is gone, at no cost."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        if name == "json":
            query = "SELECT '1'::json"
            await conn.set_type_codec("json", encoder=str, decoder=lambda text: f"<{text}>", schema="pg_catalog")
        else:
            query = "SELECT row(1)::item"
            await conn.set_type_codec("item", encoder=tuple, decoder=lambda row: f"<{row[0]}>", format="tuple")
        assert await conn.fetchval(query) == "<1>"
        assert not driver.clean(conn)
        before = proxy.round_trips
        await driver.reset(conn, full=False)
        assert proxy.round_trips == before
        assert driver.clean(conn)
        assert await conn.fetchval(query) != "<1>"

    with FaultProxy(tables) as proxy:
        lent(proxy.url(tables), work)


def test_borrowers_are_not_taken_for_configure(tables: str) -> None:
    """What a borrower does is no state of rest, also where nothing was configured, however often it is reset."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        conn._session.noted = []  # as after `open`, where nothing is configured
        await conn.execute("CREATE TEMP TABLE item_too (i int)")
        await conn.executemany("SELECT set_config('work_mem', $1, false)", [("71kB",)])
        await driver.reset(conn, full=False)
        await conn.fetchval("SELECT 'item_too'")
        assert driver.clean(conn)
        for _ in range(3):
            await conn.execute("SET work_mem = '70kB'")
            await driver.reset(conn, full=False)
            assert await conn.fetchval("SHOW work_mem") != "70kB"

    lent(tables, work)


def test_settings_of_the_session(tables: str) -> None:
    """`session_settings` and `statement_timeout` are there from the start, and RESET returns to them."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        for _ in range(2):
            assert await conn.fetchval("SHOW search_path") == "app"
            assert await conn.fetchval("SELECT current_setting('app.tenant')") == "a b\\c"
            assert await conn.fetchval("SHOW statement_timeout") == "1500ms"
            await conn.execute("SET search_path TO public; SET app.tenant = 'acme'; SET statement_timeout = 100")
            await driver.reset(conn, full=False)

    options = {"session_settings": {"search_path": "app", "app.tenant": "a b\\c"}, "statement_timeout": 1.5}
    lent(tables, work, options=options)


def test_harmless_functions(tables: str, admin: psycopg.Connection[Any]) -> None:
    """A call of a function that is not known counts as a change, unless the caller vouches for it."""
    admin.execute("CREATE OR REPLACE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 42'")

    for harmless in ([], ["answer"]):

        async def work(driver: AsyncpgDriver, conn: Any, harmless: list[str] = harmless) -> None:
            await conn.fetchval("SELECT answer()")
            assert driver.clean(conn) == bool(harmless)

        lent(tables, work, options={"harmless_functions": harmless})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"harmless_functions": "answer"}, "harmless_functions must be a list of names"),
        ({"session_settings": {"a b": "c"}}, "'a b' is no name of a setting"),
        ({"statement_timeout": 0}, "statement_timeout must be a number of seconds"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    """An option that can't work says so when the driver is made."""
    with pytest.raises(ConfigError, match=message):
        AsyncpgDriver("postgresql://h/db", options=options)


def test_a_hidden_change_that_the_server_reports(tables: str, admin: psycopg.Connection[Any]) -> None:
    """A parameter that the server reports is seen to be changed, though no text tells."""
    admin.execute(
        "CREATE OR REPLACE FUNCTION hides() RETURNS void LANGUAGE sql AS "
        "$$ SELECT set_config('TimeZone', 'Asia/Tokyo', false) $$"
    )

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        before = await conn.fetchval("SHOW timezone")
        for send in (conn.execute, conn.fetch):
            await send("SELECT hides()")
            assert not driver.clean(conn)
            await driver.reset(conn, full=False)
            assert driver.clean(conn)
            assert await conn.fetchval("SHOW timezone") == before
            async with conn.transaction():
                await conn.execute("SET LOCAL timezone TO 'Asia/Tokyo'")
            assert driver.clean(conn)

    lent(tables, work, options={"harmless_functions": ["hides"]})


def test_notifications_before_the_answer_are_nobodys(tables: str, admin: psycopg.Connection[Any]) -> None:
    """What was sent to a channel of the last borrower is not heard by the next."""
    heard: list[object] = []

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.add_listener("mine", lambda *args: heard.append(args[3]))
        admin.execute("NOTIFY mine, 'late'")
        await driver.reset(conn, full=False)
        await conn.fetch("SELECT 1")
        assert heard == []

    lent(tables, work)


def test_what_is_not_seen(tables: str, admin: psycopg.Connection[Any]) -> None:
    """A setting that a trigger changes, and that the server does not report, is not seen; nor are numbers drawn."""
    admin.execute(
        "CREATE OR REPLACE FUNCTION sly() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM set_config('work_mem', '71kB', false); RETURN NEW; END $$"
    )
    admin.execute("DROP TABLE IF EXISTS numbered")
    admin.execute("CREATE TABLE numbered (i serial)")
    admin.execute("CREATE TRIGGER sly BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION sly()")

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.execute("INSERT INTO item VALUES (1)")
        await conn.execute("INSERT INTO numbered DEFAULT VALUES")
        assert driver.clean(conn)
        assert await conn.fetchval("SHOW work_mem") == "71kB"
        assert await conn.fetchval("SELECT lastval() > 0")
        await driver.reset(conn, full=True)
        assert await conn.fetchval("SHOW work_mem") != "71kB"
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await conn.fetchval("SELECT lastval()")

    lent(tables, work)


# -- resets that fail --------------------------------------------------------------------------------------------------


def test_a_reset_that_gets_no_answer(tables: str, proxy: FaultProxy) -> None:
    """A reset whose answer does not come ends when it is cancelled, and the connection can be terminated."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.execute("SET work_mem = '70kB'")
        proxy.blackhole()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await driver.reset(conn, full=False)
        assert time.monotonic() - began < 2
        assert not driver.clean(conn)
        driver.terminate(conn)
        assert driver.is_broken(conn, None)
        proxy.heal()

    lent(proxy.url(tables), work, config=PoolConfig(open_timeout=1))


def test_a_reset_whose_line_is_lost(tables: str, proxy: FaultProxy) -> None:
    """A reset whose connection breaks raises: nobody takes the session for clean."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.execute("SET work_mem = '70kB'")
        proxy.cut()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await driver.reset(conn, full=False)
        assert not driver.alive(conn) or driver.is_broken(conn, None)

    lent(proxy.url(tables), work)


def test_a_reset_that_the_server_refuses(tables: str) -> None:
    """A reset that fails raises, and the session is not taken for clean."""

    async def failing(conn: Any) -> None:
        await conn.execute("CREATE TABLE IF NOT EXISTS once (i int); DROP TABLE once; SET work_mem = '70kB'")
        conn._session.noted.append((1, "SET no_such_setting = 1", ()))

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.execute("SET work_mem = '71kB'")
        with pytest.raises(asyncpg.UndefinedObjectError):
            await driver.reset(conn, full=False)
        assert not driver.clean(conn)

    lent(tables, work, failing)


# -- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["autocommit", "first", "second"])
def test_a_migration_fails_one_borrower_at_most(tables: str, admin: psycopg.Connection[Any], where: str) -> None:
    """After a table was changed one borrower of the pool fails at most; then all connections have forgotten."""

    async def use(driver: AsyncpgDriver, conn: Any) -> None:
        if where != "autocommit":
            await driver.begin(conn)
        if where == "second":
            await conn.fetch("SELECT 1")
        await conn.fetch("SELECT * FROM plan_t WHERE id = $1", 1)
        if where != "autocommit":
            await driver.commit(conn)

    async def main() -> None:
        driver = AsyncpgDriver(tables)
        conns = [await driver.open(10) for _ in range(5)]
        admin.execute("DROP TABLE IF EXISTS plan_t; CREATE TABLE plan_t (id int)")
        for conn in conns:
            await use(driver, conn)
        admin.execute("ALTER TABLE plan_t ADD COLUMN extra int")
        failed = 0
        for conn in conns * 2:
            try:
                await use(driver, conn)
            except asyncpg.InvalidCachedStatementError:
                failed += 1
                await driver.rollback(conn)
        for conn in conns:
            assert driver.clean(conn)
            driver.terminate(conn)
        assert failed == (1 if where == "second" else 0)

    asyncio.run(main())


def test_a_read_only_role_is_no_demoted_server(tables: str, admin: psycopg.Connection[Any]) -> None:
    """A refusal to write is no sign of a demoted server where the session refused from its start."""

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError) as caught:
            await conn.execute("INSERT INTO item VALUES (1)")
        assert not driver.demoted(conn, caught.value)
        assert not driver.is_broken(conn, caught.value)

    lent(tables, work, options={"session_settings": {"default_transaction_read_only": True}})


def test_a_function_of_the_borrowers_is_not_called(tables: str, admin: psycopg.Connection[Any]) -> None:
    """A reset names functions as the server does, whatever the borrower's search path puts first."""
    admin.execute("CREATE SCHEMA IF NOT EXISTS evil")
    body = "$$ BEGIN RAISE EXCEPTION 'evil'; END $$"
    admin.execute(f"CREATE FUNCTION evil.pg_advisory_unlock_all() RETURNS void LANGUAGE plpgsql AS {body}")

    async def work(driver: AsyncpgDriver, conn: Any) -> None:
        await conn.execute("SET search_path = evil, pg_catalog")
        await driver.reset(conn, full=False)
        assert driver.clean(conn)
        assert await conn.fetchval("SHOW search_path") == '"$user", public'

    try:
        lent(tables, work)
    finally:
        admin.execute("DROP SCHEMA evil CASCADE")
