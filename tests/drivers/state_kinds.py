"""The kinds of state that a borrower can leave in a session: how to make it, and how to look for it afterwards.

What a look finds on a connection that was given back must be what it finds on a new one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["POSTGRES", "SQLITE", "PostgresKind", "SqliteKind", "prepare"]


@dataclass(frozen=True)
class PostgresKind:
    """Statements that change a session, each sent by itself in autocommit, and a query of one value that shows it."""

    name: str
    dirty: tuple[str, ...]
    look: str

    def __str__(self) -> str:
        return self.name


def _set(name: str, value: str, statement: str = "") -> PostgresKind:
    text = statement or f"SET {name} = {value}"
    return PostgresKind(text, (text,), f"SELECT current_setting('{name}')")


_TEMPORARY = "SELECT count(*) FROM pg_{0} WHERE {1} = 'kind_mine' AND {2} = pg_my_temp_schema()"
_A_TABLE = _TEMPORARY.format("class", "relname", "relnamespace")
_A_FUNCTION = _TEMPORARY.format("proc", "proname", "pronamespace")
_A_TYPE = _TEMPORARY.format("type", "typname", "typnamespace")
_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
_CHANNELS = "SELECT count(*) FROM pg_listening_channels()"
_CURSORS = "SELECT count(*) FROM pg_cursors WHERE name = 'kind_mine'"
_TENANT = "SELECT coalesce(current_setting('kind.tenant', true), '')"
_WORK_MEM = "SELECT current_setting('work_mem')"

POSTGRES: tuple[PostgresKind, ...] = (
    # settings
    _set("statement_timeout", "'31s'"),
    _set("lock_timeout", "'32s'"),
    _set("idle_in_transaction_session_timeout", "'33s'"),
    _set("search_path", "pg_catalog"),
    _set("timezone", "'Asia/Tokyo'", "SET TIME ZONE 'Asia/Tokyo'"),
    _set("datestyle", "'German'"),
    _set("intervalstyle", "iso_8601"),
    _set("client_encoding", "'LATIN1'", "SET NAMES 'LATIN1'"),
    _set("application_name", "'mine'"),
    _set("bytea_output", "escape"),
    _set("extra_float_digits", "0"),
    _set("standard_conforming_strings", "off"),
    _set("row_security", "off"),
    _set("session_replication_role", "replica"),
    _set("enable_seqscan", "off"),
    _set("check_function_bodies", "off"),
    _set(
        "default_transaction_isolation", "", "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"
    ),
    _set("default_transaction_read_only", "", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"),
    _set("default_transaction_deferrable", "on"),
    PostgresKind("a setting of one's own", ("SET kind.tenant = 'acme'",), _TENANT),
    PostgresKind("set_config", ("SELECT set_config('kind.tenant', 'acme', false)",), _TENANT),
    PostgresKind(
        "UPDATE pg_settings", ("UPDATE pg_settings SET setting = '70' WHERE name = 'work_mem'",), _WORK_MEM
    ),
    PostgresKind("SET behind a comment", ("/* a view's */ -- and more\n SET work_mem = '71kB'",), _WORK_MEM),
    PostgresKind("SET behind another statement", ("SELECT 1; SET work_mem = '72kB'",), _WORK_MEM),
    PostgresKind("SET in a transaction", ("BEGIN", "SET work_mem = '73kB'", "COMMIT"), _WORK_MEM),
    PostgresKind("SET in DO", ("DO $$ BEGIN SET work_mem = '74kB'; END $$",), _WORK_MEM),
    PostgresKind("SET in a function", ("SELECT kind_sets()",), _WORK_MEM),
    PostgresKind("SET in a procedure", ("CALL kind_calls()",), _WORK_MEM),
    # roles
    PostgresKind("SET ROLE", ("SET ROLE pg_monitor",), "SELECT current_user"),
    PostgresKind("SET SESSION AUTHORIZATION", ("SET SESSION AUTHORIZATION pg_monitor",), "SELECT session_user"),
    # what is temporary
    PostgresKind("a temporary table", ("CREATE TEMPORARY TABLE kind_mine (i int)",), _A_TABLE),
    PostgresKind("SELECT INTO TEMP", ("SELECT 1 AS i INTO TEMP kind_mine",), _A_TABLE),
    PostgresKind("a table in pg_temp", ("CREATE TABLE pg_temp.kind_mine (i int)",), _A_TABLE),
    PostgresKind("a temporary view", ("CREATE TEMP VIEW kind_mine AS SELECT 1",), _A_TABLE),
    PostgresKind("a temporary sequence", ("CREATE TEMP SEQUENCE kind_mine",), _A_TABLE),
    PostgresKind(
        "a temporary function", ("CREATE FUNCTION pg_temp.kind_mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",),
        _A_FUNCTION,
    ),
    PostgresKind("a temporary type", ("CREATE TYPE pg_temp.kind_mine AS ENUM ('a')",), _A_TYPE),
    # locks, channels, cursors, prepared statements, libraries
    PostgresKind("an advisory lock", ("SELECT pg_advisory_lock(4711)",), _LOCKS),
    PostgresKind("a shared advisory lock", ("SELECT pg_advisory_lock_shared(4712)",), _LOCKS),
    PostgresKind("an advisory lock, tried for", ("SELECT pg_try_advisory_lock(4713, 1)",), _LOCKS),
    PostgresKind("LISTEN", ("LISTEN kind_mine",), _CHANNELS),
    PostgresKind("LISTEN in DO", ("DO $$ BEGIN EXECUTE 'LISTEN kind_mine'; END $$",), _CHANNELS),
    PostgresKind(
        "a cursor WITH HOLD", ("BEGIN", "DECLARE kind_mine CURSOR WITH HOLD FOR SELECT 1", "COMMIT"), _CURSORS
    ),
    PostgresKind(
        "PREPARE", ("PREPARE kind_mine AS SELECT 1",), "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"
    ),
    PostgresKind("LOAD", ("LOAD 'plpgsql'",), "SELECT current_setting('plpgsql.variable_conflict', true)"),
    # left open
    PostgresKind("an open transaction", ("BEGIN", "SET LOCAL work_mem = '75kB'"), _WORK_MEM),
    _set("statement_timeout", "1"),
)  # fmt: skip


def prepare(execute: Callable[[str], object]) -> None:
    """Make what the kinds need in a database; `execute` runs one statement in autocommit."""
    execute(
        "CREATE OR REPLACE FUNCTION kind_sets() RETURNS void LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM set_config('work_mem', '76kB', false); END $$"
    )
    execute("CREATE OR REPLACE PROCEDURE kind_calls() LANGUAGE plpgsql AS $$ BEGIN SET work_mem = '77kB'; END $$")


@dataclass(frozen=True)
class SqliteKind:
    """What changes a connection to SQLite, and what shows it."""

    name: str
    dirty: Callable[[Any], object]
    look: Callable[[Any], object]

    def __str__(self) -> str:
        return self.name


def _value(query: str) -> Callable[[Any], object]:
    def look(conn: Any) -> object:
        cursor = conn.cursor()
        cursor.row_factory = None
        return cursor.execute(query).fetchall()

    return look


def _run(*statements: str) -> Callable[[Any], object]:
    def dirty(conn: Any) -> None:
        for statement in statements:
            conn.execute(statement)

    return dirty


def _works(query: str) -> Callable[[Any], object]:
    """Whether a query can be run at all."""

    def look(conn: Any) -> object:
        try:
            conn.execute(query).fetchall()
        except sqlite3.Error:
            return False
        return True

    return look


def _pragma(name: str, value: object) -> SqliteKind:
    return SqliteKind(f"PRAGMA {name}", _run(f"PRAGMA {name} = {value}"), _value(f"PRAGMA {name}"))


def _half_read(conn: Any) -> None:
    conn.kept = conn.execute("SELECT id FROM item")  # an attribute, a traceback or a cycle may hold it as well
    conn.kept.fetchone()


def _half_read_elsewhere(conn: Any) -> None:
    cursor = conn.execute("SELECT id FROM item")
    cursor.fetchone()
    _KEPT.append(cursor)


_KEPT: list[object] = []


class _Sum:
    def step(self, value: int) -> None:
        """Take one value."""

    def finalize(self) -> int:
        """Return the result."""
        return 0


def _snapshot(conn: Any) -> object:
    """Whether a write by another connection is seen, and can be followed by one of our own."""
    path = conn.execute("PRAGMA database_list").fetchone()[2]
    with suppress(sqlite3.Error):
        conn.execute("DELETE FROM item WHERE id >= 1000")
    before = conn.execute("SELECT count(*) FROM item").fetchone()[0]
    if Path(path or "/").is_file():  # else it is in memory
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("INSERT INTO item VALUES (1000)")
        other.close()
    seen = conn.execute("SELECT count(*) FROM item").fetchone()[0] - before
    return seen, _works("INSERT INTO item VALUES (1001)")(conn)


def _traced(conn: Any) -> object:
    before = len(_KEPT)
    conn.execute("SELECT 'traced'").fetchall()
    return len(_KEPT) - before


SQLITE: tuple[SqliteKind, ...] = (
    _pragma("foreign_keys", "OFF"),
    _pragma("busy_timeout", 1),
    _pragma("cache_size", -123),
    _pragma("query_only", "ON"),
    _pragma("recursive_triggers", "ON"),
    _pragma("temp_store", "MEMORY"),
    SqliteKind("PRAGMA as a call", _run("PRAGMA foreign_keys(0)"), _value("PRAGMA foreign_keys")),
    SqliteKind(
        "PRAGMA case_sensitive_like", _run("PRAGMA case_sensitive_like = ON"), _value("SELECT 'a' LIKE 'A'")
    ),
    SqliteKind("a temporary table", _run("CREATE TEMP TABLE mine (i)"), _works("SELECT * FROM mine")),
    SqliteKind("a table in temp", _run("CREATE TABLE temp.mine (i)"), _works("SELECT * FROM mine")),
    SqliteKind("a temporary view", _run("CREATE TEMPORARY VIEW mine AS SELECT 1"), _works("SELECT * FROM mine")),
    SqliteKind(
        "a temporary trigger",
        _run("CREATE TEMP TRIGGER mine AFTER UPDATE ON item BEGIN SELECT RAISE(ABORT, 'mine'); END"),
        _works("UPDATE item SET id = id WHERE id = 2"),
    ),
    SqliteKind("ATTACH", _run("ATTACH ':memory:' AS mine"), _value("SELECT name FROM pragma_database_list")),
    SqliteKind("ATTACH in a script", lambda conn: conn.executescript("SELECT 1; ATTACH ':memory:' AS mine"),
               _value("SELECT name FROM pragma_database_list")),
    SqliteKind("a function", lambda conn: conn.create_function("mine", 0, lambda: 1), _works("SELECT mine()")),
    SqliteKind("an aggregate", lambda conn: conn.create_aggregate("mine", 1, _Sum), _works("SELECT mine(1)")),
    SqliteKind("a collation", lambda conn: conn.create_collation("mine", lambda a, b: (a > b) - (a < b)),
               _works("SELECT 'a' < 'b' COLLATE mine")),
    SqliteKind("an authorizer", lambda conn: conn.set_authorizer(lambda *_: sqlite3.SQLITE_DENY),
               _works("SELECT id FROM item")),
    SqliteKind("a trace", lambda conn: conn.set_trace_callback(_KEPT.append), _traced),
    SqliteKind("a progress handler", lambda conn: conn.set_progress_handler(lambda: 1, 1),
               _works("SELECT id FROM item")),
    SqliteKind("a limit", lambda conn: conn.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100),
               lambda conn: conn.getlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH)),
    SqliteKind("row_factory", lambda conn: setattr(conn, "row_factory", sqlite3.Row),
               lambda conn: type(conn.execute("SELECT 1").fetchone())),
    SqliteKind("text_factory", lambda conn: setattr(conn, "text_factory", bytes),
               lambda conn: conn.execute("SELECT 'a'").fetchone()[0]),
    SqliteKind("isolation_level", lambda conn: setattr(conn, "isolation_level", "IMMEDIATE"),
               lambda conn: conn.isolation_level),
    SqliteKind("an attribute of one's own", lambda conn: setattr(conn, "tenant", "acme"),
               lambda conn: getattr(conn, "tenant", None)),
    SqliteKind("a transaction", _run("BEGIN", "INSERT INTO item VALUES (99)"),
               _value("SELECT count(*) FROM item WHERE id = 99")),
    SqliteKind("a cursor half read", _half_read_elsewhere, _snapshot),
    SqliteKind("a cursor half read, an attribute", _half_read, _snapshot),
)  # fmt: skip
