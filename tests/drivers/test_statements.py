"""Reading from a statement's text whether it leaves traces: never clean where it might not be."""

from __future__ import annotations

import time

import pytest

from poolkit.drivers._statements import CLEAN, LASTING, PREPARED, STAINED, Traces, traces

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
    "SELECT count(*), max(id), lower(name), pg_catalog.now() FROM item WHERE id IN (1, 2) AND a = ANY ($1)",
    'INSERT INTO "item" ("id", "temp", "dblink_id") VALUES (%s, %s, %s) RETURNING "item"."id"',
    "INSERT INTO app.item (id) SELECT x FROM generate_series(1, 2) g(x)",
    "SELECT * FROM jsonb_to_recordset($1) AS x(a int, b varchar(10), c numeric(10, 2))",
    "WITH RECURSIVE t (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t) SELECT sum(n) OVER (PARTITION BY n) FROM t",
    "SELECT row_number() OVER (ORDER BY id), EXTRACT(year FROM at), CAST(a AS varchar(3)) FROM item",
    "SELECT DISTINCT ON (id) id FROM item GROUP BY GROUPING SETS ((id), ())",
    "SELECT 'SET search_path', $$ set_config('a', 'b', false); SET x $$, E'it\\'s; RESET ALL' FROM item",
    "SELECT ';'",
    'SELECT "SET"."set_config" FROM "SET"',
    "DECLARE c NO SCROLL CURSOR FOR SELECT * FROM item",
    "FETCH FORWARD 100 FROM c",
    "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
    "PREPARE TRANSACTION 'x'",
    "SELECT name FROM pg_settings",
    "COPY item (id) FROM STDIN WITH (FORMAT csv)",
    "TRUNCATE item",
    "UPDATE item SET (a, b) = (1, 2) WHERE NOT EXISTS (SELECT 1)",
    "SELECT gen_random_uuid(), currval('counter')",
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
    "INSERT INTO pg_temp.t VALUES (1)",
    "DISCARD TEMP",
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
    "UPDATE pg_settings SET setting = 'x' WHERE name = 'search_path'",
    'WITH x AS (UPDATE "pg_settings" SET setting = 1 RETURNING 1) SELECT * FROM x',
    "SELECT set_limit(0.5)",
    "SELECT nextval('counter')",
    "INSERT INTO item VALUES (pg_catalog.nextval('counter'))",
    "SELECT setval('counter', 1)",
    "SELECT app.lower('x')",
    "SELECT my_function ( 1 )",
    "SELECT my_function/* hidden */(1)",
    'SELECT "my_function"(1)',
    'SELECT "MyFunction"(1)',
    "SELECT * FROM ROWS FROM (my_function(1))",
    "SELECT DISTINCT ON (id) set_config('a.b', 'c', false) FROM item",
    "INSERT INTO item (id) VALUES (my_function())",
    "SELECT query_to_xml('SELECT set_config(''a.b'', ''c'', false)', true, true, '')",
    "DECLARE c CURSOR FOR SELECT set_config('a.b', 'c', false)",
    "SELECT 1 AS \"it's\"; SET search_path TO other --'",
    "SELECT '\\'; SET search_path TO other --'",  # a literal that ends or doesn't, by a setting
    "SELECT 1 -- hidden\rSET search_path TO other; SET x TO y",
    "SELECT 1; -- hidden\rSET search_path TO other",
    "SELECT $a$ ; $b$ $a$; SET search_path TO other",
    "SELECT a$b$c; SET search_path TO other; SELECT d$b$e",
    "SET SESSION AUTHORIZATION other",
    "ALTER ROLE me SET search_path TO other",
]
PREPARING = [
    "PREPARE a AS SELECT 1",
    "SELECT 1; prepare a as select 1",
    "DEALLOCATE a",
    "DEALLOCATE ALL",
    "DISCARD ALL",
    "DO $$ BEGIN EXECUTE 'PREPARE a AS SELECT 1'; END $$",
]
FOREVER = [
    "LOAD 'auto_explain'",
    "SELECT dblink_connect('x')",
    'SELECT * FROM public."dblink"($1) AS t(a int)',
    "DO $$ BEGIN EXECUTE 'LOAD auto_explain'; END $$",
    "DO $$ BEGIN PERFORM dblink_connect('x'); END $$",
    "SELECT setseed(0.5)",
    "SET SEED TO 0.5",
    "SELECT pg_replication_origin_session_setup('x')",
    "SELECT pg_create_logical_replication_slot('x', 'pgoutput', true)",
]


@pytest.mark.parametrize("query", HARMLESS)
def test_harmless(query: str) -> None:
    """What only reads and writes tables, or ends with its transaction, costs no reset."""
    assert traces(query) == CLEAN


@pytest.mark.parametrize("query", STAINING)
def test_staining(query: str) -> None:
    """What changes the session, or might, is a stain wherever it stands."""
    assert traces(query) == STAINED


@pytest.mark.parametrize("query", PREPARING)
def test_preparing(query: str) -> None:
    """What prepares or deallocates statements by SQL is told apart: the client's own list of them may be wrong."""
    assert traces(query) == PREPARED


@pytest.mark.parametrize("query", FOREVER)
def test_lasting(query: str) -> None:
    """What no reset undoes is told apart."""
    assert traces(query) == LASTING


def test_long_texts() -> None:
    """A long text is judged by the same rules, though it is not remembered."""
    values = ", ".join(f"({number})" for number in range(5000))
    assert traces(f"INSERT INTO item VALUES {values}") == CLEAN
    assert traces(f"INSERT INTO item VALUES {values}; SET search_path TO x") == STAINED


@pytest.mark.parametrize("query", [*HARMLESS, *STAINING, *PREPARING, *FOREVER])
def test_bytes_are_judged_alike(query: str) -> None:
    """A text given as bytes has the level of the same text given as a string."""
    assert Traces()[query.encode()] == traces(query)


def test_functions_of_ones_own() -> None:
    """A function that the caller calls harmless is, in each schema or in the one that is named."""
    known = Traces(["My_Function", "app.other"])
    assert known["SELECT my_function(1), x.my_function(2), app.other(3)"] == CLEAN
    assert known['SELECT "app"."other"(1)'] == CLEAN
    assert known["SELECT x.other(3)"] == STAINED
    assert known["SELECT other(3)"] == STAINED


def test_remembered_texts_are_bounded() -> None:
    """However many texts come, a bounded number of them is kept, and no long one."""
    known = Traces()
    for number in range(10_000):
        assert known[f"SELECT {number}"] == CLEAN
    assert len(known) <= 5_000
    long = "SELECT " + "1, " * 10_000 + "1"
    assert known[long] == CLEAN
    assert long not in known


HOSTILE = {
    "blanks": " {}",
    "words": "a{}",
    "words apart": "a {}",
    "names with dots": "a.{}",
    "names with blanks and dots": "a . {}",
    "quotes": "'{}",
    "escaped quotes": "\\'{}",
    "E quotes": "E'{}",
    "E quotes closed": "E'\\'{}",
    "quoted names": '"{}',
    "doubled quoted names": '""a{}',
    "comments": "/*{}",
    "closed comments": "/**/{}",
    "half comments": "/* *{}",
    "lines": "--{}",
    "dollars": "$a{}",
    "tags": "$a{}$",
    "brackets": "({}",
    "calls": "a{}(",
    "aliases": ") a{} (",
    "statements": ";SET a{}",
    "updates": "UPDATE a{} ",
    "settings": "pg_settings{} ",
    "into": "INTO {} TEMP ",
    "holds": "DECLARE c{} ",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_linear_time(piece: str) -> None:
    """A text ten times as long takes about ten times as long to read, whatever it repeats."""

    def seconds(count: int) -> float:
        text = "".join(piece.format(number) for number in range(count))
        blank = "".join(piece.format("") for _ in range(count))
        best = float("inf")
        for _ in range(3):
            begun = time.process_time()
            for query in (text, blank, f"SELECT {text}", f"SELECT ({blank}"):
                Traces()[query]
            best = min(best, time.process_time() - begun)
        return best

    assert seconds(20_000) < 40 * seconds(2_000) + 0.02
