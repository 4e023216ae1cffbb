"""Which statements may write: read from the text alone, in time in proportion to its length."""

from __future__ import annotations

import pytest

from poolkit_django import writing
from poolkit_django.writing import surely_writes, writes


@pytest.mark.parametrize(
    "statement",
    [
        'INSERT INTO "t" VALUES (1)',
        "update t set a = 1",
        " /* why */ DELETE FROM t",
        "-- why\nTRUNCATE t",
        "CREATE TABLE t ()",
        "WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone",
        "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
        "EXPLAIN ANALYZE UPDATE t SET a = 1",
        "EXPLAIN ANALYZE SELECT do_it(1)",
        "EXPLAIN (ANALYZE, COSTS off) SELECT do_it(1)",
        "SELECT * INTO fresh FROM t",
        "SELECT 1; UPDATE t SET a = 1",
        "SELECT 1 --\n; DELETE FROM t",
        "SELECT $$a$$; DELETE FROM t",
        "TABLE t; CALL p()",
        "SELECT do_it(1)",
        "SELECT do_it (1)",
        "Select DO_IT(1)",
        "SELECT a, do_it(a) FROM t",
        "SELECT shop.do_it(1)",
        "SELECT shop . do_it (1)",
        'SELECT "do_it"(1)',
        'SELECT "shop"."do it" (1)',
        "SELECT `do_it`(1)",
        "SELECT nextval('s')",
        "SELECT * FROM do_it(1)",
        "VALUES (do_it(1))",
        "(((UPDATE t SET a = 1",
        "CALL p()",
        "DO $$ $$",
        "COPY t FROM STDIN",
        "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
        "SELECT /*! do_it(1) */ 1",
        r"SELECT 'a\'', do_it(1), 'x'",
        "SELECT 'a literal without an end",
        "/* a comment without an end UPDATE t",
        b"INSERT INTO t VALUES (1)",
        object(),
    ],
)
def test_writes(statement):
    """What may write counts as a write; so does what can't be told."""
    assert writes(statement)


@pytest.mark.parametrize(
    "statement",
    [
        'SELECT "t"."id" FROM "t" WHERE "t"."id" = %s',
        'SELECT COUNT(*) AS "__count" FROM "t"',
        "select count(*) from t",
        "(SELECT 1) UNION (SELECT 2)",
        'SELECT "t"."id" FROM "t" FOR UPDATE',
        'SELECT REPLACE("a", %s, %s) FROM "t" FOR UPDATE OF "t" SKIP LOCKED',
        "WITH a AS (SELECT 1) SELECT * FROM a FOR NO KEY UPDATE",
        'WITH RECURSIVE "a" AS (SELECT 1) SELECT * FROM "a"',
        "SELECT 'it''s UPDATE t; do_it(1)'",
        "SELECT $x$ do_it(1); UPDATE $x$",
        'SELECT "update", "delete" FROM "insert into"',
        "SELECT /* UPDATE t */ 1 -- ; DELETE FROM t",
        r"SELECT a FROM t WHERE a LIKE %s ESCAPE '\'",
        'SELECT CAST("a" AS numeric(10, 2)), "b"::varchar(10) FROM t WHERE "c" IN (%s, %s) AND NOT ("d" IS NULL)',
        "SELECT COUNT(*) FILTER (WHERE a), ROW_NUMBER() OVER (PARTITION BY x ORDER BY y) FROM t",
        "SELECT pg_catalog.lower('x'), a[1], b[2:3] FROM t",
        "EXPLAIN (ANALYZE, COSTS off) SELECT 1",
        "SELECT 1;",
        "SELECT 1; SELECT 2",
        "SAVEPOINT s",
        "SHOW server_version",
        "SET search_path = x",
        'DECLARE "c" CURSOR FOR SELECT 1',
        b"SELECT 1",
    ],
)
def test_reads(statement):
    """Reads, and what only sets a session up, are none."""
    assert not writes(statement)


_PIECES = [
    *("/* a line of a banner */\n", "/*", "/*x", "/* /* ", "-- x\n", "-", "(", "[", "'", "''", "'a'", '"', '"a"', "`"),
    *("$a$", "$a$ ", "$", "a.", "a .", "a . ", " ", "\n\n", "\\", "f ", "f (", ";", "; ", "a", "1", "UPDATE ", "FOR "),
]


@pytest.mark.parametrize("piece", _PIECES)
@pytest.mark.parametrize("end", ["INSERT", "f (1)", ""])
def test_the_time_grows_with_the_length(piece, end):
    """A text of 200,000 characters of anything is read at once: where one is tried twice, that takes minutes."""
    writing._writes("SELECT " + piece * (200_000 // len(piece)) + end)


@pytest.mark.parametrize(
    ("statement", "sure"),
    [
        ("INSERT INTO t VALUES (1)", True),
        (b" -- a banner\n /* INSERT */ update t SET a = 1", True),
        ("DROP TABLE t", True),
        ("SELECT made_up()", False),
        ("SELECT 'DELETE'", False),
        ("WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x", False),
        ("", False),
        (7, False),
    ],
)
def test_only_what_begins_with_a_change_is_refused_as_a_write(statement: object, *, sure: bool) -> None:
    """A read that calls an unknown function is in doubt: it reads the primary, and is not refused."""
    assert surely_writes(statement) is sure
