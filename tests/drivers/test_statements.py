"""Reading from a statement's text whether it leaves traces: never clean where it might not be."""

from __future__ import annotations

import pytest

from poolkit.drivers._statements import CLEAN, LASTING, STAINED, traces

HARMLESS = [
    "SELECT 1",
    "  select * from item where id = $1",
    "(SELECT 1) UNION (SELECT 2)",
    "INSERT INTO item VALUES ($1) ON CONFLICT DO UPDATE SET id = 2 RETURNING id",
    "UPDATE item SET id = 3",
    "delete from item",
    "WITH a AS (SELECT 1) SELECT * FROM a",
    "VALUES (1), (2)",
    "TABLE item",
    "MERGE INTO item USING other ON true WHEN MATCHED THEN UPDATE SET id = 1",
    "COPY item TO STDOUT",
    "-- a note\n/* and another */ SELECT 1",
    "SELECT 1; UPDATE item SET id = 1;",
    "BEGIN; SET LOCAL app.tenant = '7'; SET TRANSACTION READ ONLY; SET CONSTRAINTS ALL DEFERRED; COMMIT",
    "SAVEPOINT a; RELEASE a; ROLLBACK",
    "SHOW search_path",
    "NOTIFY mine, 'hello'",
    "",
    " ; ",
    "SELECT reset_password, listen_count, attempts FROM settings",
]
STAINING = [
    "SET search_path TO other",
    "set session characteristics as transaction read only",
    "SET ROLE other",
    "RESET ALL",
    "LISTEN mine",
    "UNLISTEN *",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "CREATE TEMP TABLE t (id integer)",
    "SELECT 1 INTO TEMPORARY t",
    "WITH a AS (SELECT 1) SELECT * INTO TEMP t FROM a",
    "SELECT set_config('a.b', 'c', false)",
    'SELECT "set_config"($1, $2, $3)',
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(1)",
    "SELECT setseed(0.5)",
    "INSERT INTO pg_temp.t VALUES (1)",
    "DISCARD ALL",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CALL work()",
    "EXECUTE prepared",
    "EXPLAIN ANALYZE EXECUTE prepared",
    "SELECT 1; SET search_path TO other",
    "SELECT 1;/* hidden */ SET search_path TO other",
    "-- hidden\nSET search_path TO other",
    "/* a /* nested */ SELECT */ SET search_path TO other",
    "/* never closed SELECT",
    "SELECTED",
    "SET LOCALE TO x",
    "SELECT ';' ; SET search_path TO other",
    'SELECT U&"set\\005fconfig"(1)',
    "\ufeffSELECT 1",
    "SELECT ';'",  # harmless, in fact, but telling would take a parser
]
FOREVER = [
    "PREPARE a AS SELECT 1",
    "SELECT 1; prepare a as select 1",
    "LOAD 'auto_explain'",
    "SELECT dblink_connect('x')",
]


@pytest.mark.parametrize("query", HARMLESS)
def test_harmless(query: str) -> None:
    """What only reads and writes tables, or ends with its transaction, costs no reset."""
    assert traces(query) == CLEAN


@pytest.mark.parametrize("query", STAINING)
def test_staining(query: str) -> None:
    """What changes the session, or might, is a stain wherever it stands."""
    assert traces(query) == STAINED


@pytest.mark.parametrize("query", FOREVER)
def test_lasting(query: str) -> None:
    """What no reset undoes is told apart."""
    assert traces(query) == LASTING


def test_long_texts() -> None:
    """A long text is judged by the same rules, though it is not remembered."""
    values = ", ".join(f"({number})" for number in range(5000))
    assert traces(f"INSERT INTO item VALUES {values}") == CLEAN
    assert traces(f"INSERT INTO item VALUES {values}; SET search_path TO x") == STAINED
