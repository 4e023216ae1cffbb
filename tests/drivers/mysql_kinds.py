"""The kinds of state that a borrower can leave in a session of MySQL's: how to make it, and how to look for it.

What a look finds on a connection that was given back must be what it finds on a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "Kind", "prepare"]


def run(conn: Any, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement by a cursor, with all its results; returns the rows of the first."""
    cursor = conn.cursor()
    try:
        cursor.execute(statement)
        rows = list(cursor.fetchall()) if cursor.description else []
        while cursor.nextset():
            pass
    finally:
        cursor.close()
    return rows


@dataclass(frozen=True)
class Kind:
    """What changes a connection, and a query or a function that shows it."""

    name: str
    dirty: tuple[str | Callable[[Any], object], ...]
    look: str | Callable[[Any], object]

    def __str__(self) -> str:
        return self.name

    def make(self, conn: Any) -> None:
        """Leave it in a session."""
        for step in self.dirty:
            run(conn, step) if isinstance(step, str) else step(conn)

    def seen(self, conn: Any) -> object:
        """Look for it."""
        return run(conn, self.look) if isinstance(self.look, str) else self.look(conn)


def _said(statement: str, look: str) -> Kind:
    return Kind(statement, (statement,), look)


def _works(statement: str) -> Callable[[Any], bool]:
    def look(conn: Any) -> bool:
        try:
            run(conn, statement)
        except Exception:  # noqa: BLE001  the libraries have roots of their own
            return False
        return True

    return look


def _changed_converters(conn: Any) -> None:
    for converters in (getattr(conn, "decoders", None), getattr(conn, "converter", None)):
        if converters is not None:
            converters[3] = lambda _: "mine"


def _other_converters(conn: Any) -> None:
    for name in ("decoders", "converter"):
        if hasattr(conn, name):
            setattr(conn, name, {**getattr(conn, name), 8: lambda _: "mine", 3: lambda _: "mine"})


_MINE = "SELECT @mine"
_WAIT = "SELECT @@wait_timeout"
_OWN_LOCK = "SELECT coalesce(is_used_lock('kind_mine') = connection_id(), 0)"
_OWN_TABLES = _works("SELECT count(*) FROM child")  # with LOCK TABLES, no other table can be read

KINDS: tuple[Kind, ...] = (
    _said("SET SESSION wait_timeout = 91", _WAIT),
    _said("SET @@wait_timeout = 92", _WAIT),
    _said("SET sql_mode = 'ANSI_QUOTES'", "SELECT @@sql_mode"),
    _said("SET time_zone = '+09:00'", "SELECT @@time_zone"),
    _said("SET NAMES latin1", "SELECT @@character_set_client"),
    _said("SET CHARACTER SET latin1", "SELECT @@character_set_results"),
    _said("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT @@tx_isolation"),
    _said("SET SESSION TRANSACTION READ ONLY", "SELECT @@tx_read_only"),
    _said("SET foreign_key_checks = 0", "SELECT @@foreign_key_checks"),
    _said("SET max_statement_time = 77", "SELECT @@max_statement_time"),
    _said("SET autocommit = 0", "SELECT @@autocommit"),
    _said("SET @mine = 1", _MINE),
    _said("SELECT @mine := 2", _MINE),
    _said("SELECT 3 INTO @mine", _MINE),
    _said("/* a view's */ -- and more\n SET @mine = 4", _MINE),
    _said("CALL kind_calls()", _MINE),
    _said("SELECT kind_sets()", _WAIT),
    _said("SELECT kind_locks ()", _OWN_LOCK),
    Kind("a trigger", ("DELETE FROM kind_table", "INSERT INTO kind_table VALUES (1)"), _WAIT),
    _said("USE information_schema", "SELECT database()"),
    Kind("select_db", (lambda conn: conn.select_db("information_schema"),), "SELECT database()"),
    _said("SELECT get_lock('kind_mine', 0)", _OWN_LOCK),
    _said("LOCK TABLES item READ", _OWN_TABLES),
    _said("FLUSH TABLES WITH READ LOCK", _works("DELETE FROM item WHERE id = 0")),
    _said("CREATE TEMPORARY TABLE kind_mine (id integer)", _works("SELECT * FROM kind_mine")),
    _said("PREPARE kind_mine FROM 'SELECT 1'", _works("EXECUTE kind_mine")),
    _said("HANDLER item OPEN", _works("HANDLER item READ FIRST")),
    _said("SET ROLE kind_role", "SELECT current_role()"),
    Kind("an open transaction", ("BEGIN", "INSERT INTO item VALUES (99)"), "SELECT count(*) FROM item WHERE id = 99"),
    Kind("set_character_set", (lambda conn: conn.set_character_set("latin1"),), "SELECT @@character_set_client"),
    Kind("autocommit off", (lambda conn: conn.autocommit(False),), "SELECT @@autocommit"),
    Kind("cursorclass", (lambda conn: setattr(conn, "cursorclass", type("Own", (conn.cursorclass,), {})),),
         lambda conn: conn.cursorclass.__name__),
    Kind("a converter", (_changed_converters,), "SELECT 1"),
    Kind("other converters", (_other_converters,), "SELECT 1"),
    Kind("an attribute of one's own", (lambda conn: setattr(conn, "tenant", "acme"),),
         lambda conn: getattr(conn, "tenant", None)),
)  # fmt: skip


def prepare(conn: Any) -> None:
    """Make what the kinds need in a database."""
    for statement in (
        "CREATE OR REPLACE PROCEDURE kind_calls() SET @mine = 5",
        "CREATE OR REPLACE FUNCTION kind_sets() RETURNS integer BEGIN SET SESSION wait_timeout = 93; RETURN 1; END",
        "CREATE OR REPLACE FUNCTION kind_locks() RETURNS integer RETURN get_lock('kind_mine', 0)",
        "CREATE OR REPLACE TABLE kind_table (id integer)",
        "CREATE OR REPLACE TRIGGER kind_trigger BEFORE INSERT ON kind_table FOR EACH ROW SET SESSION wait_timeout = 94",
        "CREATE ROLE IF NOT EXISTS kind_role",
        "GRANT kind_role TO CURRENT_USER",
    ):
        run(conn, statement)
