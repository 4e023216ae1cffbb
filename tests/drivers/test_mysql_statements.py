"""What the text of a statement of MySQL's says of its session, and in how much time."""

from __future__ import annotations

import time

import pytest

from poolkit.drivers._mysql_statements import (
    CLEAN,
    ENDS,
    LASTING,
    LEVEL,
    MOVES,
    SETS_AUTOCOMMIT,
    STAINED,
    WRITES,
    Traces,
)

TRACES = Traces(["app.Known", "plain"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ; ",
        "SELECT 1",
        "(SELECT 1) UNION (SELECT max(`a`) FROM t)",
        "SELECT count(*), coalesce(a, 'it''s; SET @x = 1') FROM t WHERE (a, b) IN ((1, 2)) AND c = 'x\\'; USE d'",
        "SELECT 'a@b.c', @@sql_mode, @@session.time_zone, @mine",
        "SELECT a/b, a-b, 1--1 FROM t # get_lock('x', 1)",
        "-- SET @x = 1\nSELECT /* get_lock('x', 1) */ /*+ MAX_EXECUTION_TIME(1) */ 1",
        "INSERT INTO `t` (`a`, b) VALUES ('a', now()) ON DUPLICATE KEY UPDATE a = VALUES(a)",
        "INSERT t (a) SELECT b FROM u",
        "REPLACE INTO db.t (a) VALUES (1)",
        "INSERT IGNORE INTO db . `t` (a) VALUES (1)",
        "UPDATE t SET a = REPLACE (a, 'b', 'c') WHERE id = 1",
        "DELETE FROM t WHERE a = ST_AsText(b)",
        "WITH c AS (SELECT 1) SELECT * FROM c JOIN d USING (id) ORDER BY FIELD(a, 1, 2) LIMIT 3",
        "SELECT CAST(a AS CHAR(10)), IF(a, b, c), row_number() OVER (PARTITION BY a) FROM t USE INDEX (i)",
        "SELECT app.known(1), plain (2), `plain`(3)",
        "DO release_lock('x')",
        "SHOW TABLES",
        "EXPLAIN SELECT 1",
        "ALTER TABLE t ADD COLUMN made_up (1)",
        "CREATE TABLE t (a int DEFAULT (my_default()))",
        "KILL QUERY 5",
        "SAVEPOINT s",
        "BEGIN",
        "begin work ;",
        "START TRANSACTION READ ONLY",
    ],
)
def test_clean(text: str) -> None:
    """What reads and writes tables, and calls nothing but what is known, leaves no trace; as text and as bytes."""
    assert TRACES[text] & LEVEL == CLEAN
    assert TRACES[text.encode()] & LEVEL == CLEAN


@pytest.mark.parametrize(
    "text",
    [
        "SET @x = 1",
        "set session wait_timeout = 1",
        "/* why */ SET NAMES latin1",
        "SELECT 1; SET @x = 1",
        "SELECT @x := 1",
        "SELECT @`x` /* assigned */ := 1",
        "SELECT 1 INTO @x",
        "SELECT a, b INTO\n@x, @y FROM t",
        "LOAD DATA INFILE 'f' INTO TABLE t (@a, b)",
        "SELECT get_lock('x', 1)",
        "SELECT GET_LOCK ('x', 1)",
        "SELECT get_lock/**/('x', 1)",
        "SELECT made_up()",
        "SELECT `made_up`(1)",
        "SELECT db.count(1)",
        "SELECT db . plainer (1)",
        "INSERT INTO t (a) VALUES (made_up())",
        "INSERT INTO t VALUES (made_up())",
        "SELECT 'a' 'b', made_up()",
        'SELECT "a\\", made_up(), "b"',
        "SELECT /*! made_up() */ 1",
        "SELECT /*M! made_up() */ 1",
        "SELECT /*!50000 @x := */ 1",
        "CALL p()",
        "LOCK TABLES t READ",
        "HANDLER t OPEN",
        "PREPARE s FROM 'SELECT 1'",
        "EXECUTE IMMEDIATE 'SELECT 1'",
        "CREATE TEMPORARY TABLE t (a int)",
        "CREATE OR REPLACE TEMPORARY TABLE t (a int)",
        "CREATE TABLE t AS SELECT made_up()",
        "BEGIN NOT ATOMIC SET @x = 1; END",
        "FLUSH TABLES WITH READ LOCK",
        "INSTALL SONAME 'x'",
        "XA START 'x'",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET autocommit = 0, @x = 1",
        "SET autocommit = (SELECT made_up())",
        "something new",
    ],
)
def test_stained(text: str) -> None:
    """What changes the session, or may, is seen wherever it stands in the text."""
    assert TRACES[text] & LEVEL == STAINED
    assert TRACES.read(bytearray(text.encode())) & LEVEL == STAINED


def test_what_no_reset_undoes() -> None:
    """A role stays whatever is reset, and another database has to be known to be left."""
    assert TRACES["SET ROLE admin"] & LASTING
    assert TRACES["SELECT 1; set role none"] & LASTING
    assert not TRACES["GRANT admin TO role_of_mine"] & LEVEL
    assert TRACES["USE other"] == STAINED | MOVES


def test_what_ends_a_transaction() -> None:
    """Statements that commit or roll back by themselves are known by their first word, comments left out."""
    for text in ("COMMIT", "/* x */ rollback", "CREATE TABLE t (a int)", "TRUNCATE t", "LOCK TABLES t READ", "BEGIN"):
        assert TRACES[text] & ENDS
    for text in ("SELECT 1", "ROLLBACK TO SAVEPOINT s", "ROLLBACK WORK TO s", "SAVEPOINT s", "CALL p()"):
        assert not TRACES[text] & ENDS
    assert TRACES["SET autocommit = 0"] == SETS_AUTOCOMMIT | ENDS
    assert TRACES["SET @@session.autocommit := ON;"] & SETS_AUTOCOMMIT
    assert not TRACES["SET autocommit = 0; SET @x = 1"] & SETS_AUTOCOMMIT


def test_what_writes() -> None:
    """What may write is told from what only reads; a function that is not known may."""
    writing = ("INSERT INTO t VALUES (1)", "UPDATE t SET a = 1", "CALL p()", "SELECT f()", "SELECT 1; DELETE FROM t")
    for text in (*writing, "WITH c AS (SELECT 1) DELETE FROM t"):
        assert TRACES[text] & WRITES
    for text in ("SELECT 1", "SELECT max(a) FROM t FOR UPDATE", "SHOW TABLES", "WITH c AS (SELECT 1) TABLE c", "BEGIN"):
        assert not TRACES[text] & WRITES


def test_without_backslashes() -> None:
    """With NO_BACKSLASH_ESCAPES a literal ends where the server ends it."""
    text = r"SELECT (1), 'a\', made_up(), 'b'"
    assert Traces(backslashes=False)[text] & LEVEL == STAINED
    harmless = r"SELECT (1), 'a\'"
    assert Traces(backslashes=False)[harmless] & LEVEL == CLEAN


def test_encodings_whose_characters_hold_a_backslash() -> None:
    """The second byte of a character may be a backslash's: what counts is the character."""
    text = "SELECT (1), '\u8868', made_up()"
    assert b"\\" in text.encode("shift_jis")
    assert Traces(encoding="shift_jis")[text.encode("shift_jis")] & LEVEL == STAINED


def test_what_is_remembered() -> None:
    """A text is read once; long ones are read each time, and the number of the others has an end."""
    traces = Traces()
    for number in range(5_000):
        assert traces[f"SELECT {number}"] == CLEAN
    assert len(traces) <= 2_048
    assert traces["SELECT 1" + " " * 5_000] == CLEAN
    assert max(map(len, traces)) < 1_000


HOSTILE = [
    "a.", "/*", "'", "`", "a ", "a(", "INTO ", "--", "@", "*/", "\\", "'\\", "a/**/", ";", "INTO a.", "a /*x*/ ",
    "(/**/", "a`.`", "INSERT a ", "f(/*", '"', "@a", "@`", ":=", "#", "INTO/**/", "SET ", "\n-- ", "LOAD ", "'a' ",
]  # fmt: skip


@pytest.mark.parametrize("part", HOSTILE)
@pytest.mark.parametrize("head", ["SELECT (", "INSERT INTO t (a) ", "CREATE TABLE ", "@ "])
def test_linear_time(head: str, part: str) -> None:
    """Reading takes time in proportion to the length, whatever is repeated in the text."""

    def seconds(count: int) -> float:
        text = head + part * count
        best = 9.0
        for _ in range(3):
            began = time.thread_time()
            TRACES.read(text)
            best = min(best, time.thread_time() - began)
        return best

    assert seconds(16_000) < 40 * (seconds(2_000) + 0.0005)  # eight times the length; squared, it would be 64 times
