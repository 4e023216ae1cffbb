"""The random programs of `test_session_twins`, on SQLite: each request gets the answers of a connection of its own."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rigs import RIGS
from state_kinds import SQLITE, SqliteKind
from twins import LOCK, Steps, Twins

ACTIONS: dict[str, Callable[[Any], object]] = {}
WRITING = {"a transaction", "a cursor half read", "a cursor half read, an attribute", "a temporary trigger"}
CHANCE = {"a limit", "a progress handler"}  # they end what depends on what was prepared or read before
LONG = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT count(*) FROM n"
TABLE = ("CREATE TABLE IF NOT EXISTS item (id integer PRIMARY KEY)", "INSERT OR IGNORE INTO item VALUES (1), (2), (3)")


def named(kind: SqliteKind) -> tuple[tuple[str, ...], ...]:
    """Give the two steps of a kind names, by which a failing program shows them."""
    ACTIONS[f"do {kind}"] = kind.dirty
    ACTIONS[f"look for {kind}"] = kind.look
    return (f"do {kind}",), (f"look for {kind}",)


def another_writes(conn: Any) -> object:
    """Write by another connection, and say whether that went well."""
    path = conn.execute("PRAGMA database_list").fetchone()[2]
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        try:
            other.execute("UPDATE numbers SET number = number + 1")
        except sqlite3.Error as error:
            return str(error)
    return None


def seen(conn: Any) -> object:
    """Say how many of the other connection's writes are not seen."""
    path = conn.execute("PRAGMA database_list").fetchone()[2]
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        (newest,) = other.execute("SELECT number FROM numbers").fetchone()
    (known,) = conn.execute("SELECT number FROM numbers").fetchone()
    return int(newest) - int(known)


def limit(conn: Any) -> None:
    """Change a limit; that of a statement's length refuses what a connection has not prepared before."""
    conn.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 1)


def interrupt(conn: Any) -> None:
    """Have long statements interrupted; a handler for each step would now and then end the reading of a schema."""
    conn.set_progress_handler(lambda: 1, 5_000)


ACTIONS["do progress handler"] = interrupt
ACTIONS["look: progress handler"] = lambda conn: conn.execute(LONG).fetchall()
ACTIONS["do limit"] = limit
ACTIONS["look: limit"] = lambda conn: conn.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
ACTIONS["look: another writes"] = another_writes
ACTIONS["look: what is seen of it"] = seen
TOPICS = [named(kind) for kind in SQLITE if kind.name not in WRITING | CHANCE] + [
    (("do limit",), ("look: limit",)),
    (("do progress handler",), ("look: progress handler",)),
    (
        ("CREATE TEMP TABLE IF NOT EXISTS mine (i)",),
        ("INSERT INTO mine VALUES (1)",),
        ("SELECT * FROM mine",),
        ("DROP TABLE mine",),
    ),
    (("ATTACH ':memory:' AS other",), ("CREATE TABLE other.items (i)",), ("SELECT * FROM other.items",)),
    (("SAVEPOINT mine",), ("ROLLBACK TO mine",), ("RELEASE mine",)),
    (("PRAGMA synchronous = OFF",), ("PRAGMA synchronous",)),
]
COMMON = [("BEGIN",), ("COMMIT",), ("ROLLBACK",), ("SELECT nothing",), ("SELECT count(*) FROM item WHERE id < 50",)]
# SQLite has one writer at a time: others would have to wait.
WRITES = [named(kind) for kind in SQLITE if kind.name == "a temporary trigger"] + [
    (
        ("BEGIN IMMEDIATE",),
        (f"INSERT INTO item VALUES ({LOCK})",),
        (f"SELECT count(*) FROM item WHERE id = {LOCK}",),
        (f"DELETE FROM item WHERE id = {LOCK}",),
    )
]
FILE_WRITES = [
    (("do a cursor half read",), ("look: another writes",), ("look: what is seen of it",)),
    (("do a cursor half read, an attribute",), ("look: another writes",), ("look: what is seen of it",)),
]
for kind in SQLITE:
    named(kind)


def configure(conn: Any) -> None:
    """Make the table where there is none: a database in memory is each driver's own, and has one writer at a time."""
    if not conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'item'").fetchall():
        for statement in TABLE:
            conn.execute(statement)


class SqliteTwins(Twins):
    """Steps are statements, or the names of `ACTIONS`."""

    def answer(self, conn: Any, step: tuple[str, ...], key: int) -> object:
        """Run a step, and return its rows, what a kind shows, or an error's message.

        The class of an error says less: with an authorizer it is another one where the schema has been read already.
        """
        (name,) = step
        try:
            if name not in ACTIONS:
                return self.rig.rows(conn, name.replace(LOCK, f"{key}{LOCK}"))
            answer = ACTIONS[name](conn)
        except self.rig.errors as error:
            return str(error)
        return answer if name.startswith("look") else None


@pytest.fixture(params=["sqlite-file", "sqlite-memory"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Twins, Steps]]:
    """What runs the programs, and what they do."""
    url = f"sqlite:///{tmp_path}/test.db" if request.param == "sqlite-file" else "sqlite:///:memory:"
    kind = RIGS[request.param]
    rig = kind(kind.kind(url), lambda **arguments: kind.kind(url, **arguments))
    if request.param == "sqlite-file":
        conn = rig.open()
        rig.do(conn, *TABLE, "CREATE TABLE numbers (number integer)", "INSERT INTO numbers VALUES (0)")
        yield SqliteTwins(rig), Steps(TOPICS, COMMON, (*WRITES, *FILE_WRITES))
    else:
        yield SqliteTwins(rig, configure=configure), Steps(TOPICS, COMMON, tuple(WRITES))
    rig.close_all()


def test_programs_get_the_answers_of_a_connection_of_their_own(database: tuple[Twins, Steps]) -> None:
    """Whatever a borrower did to its session, the next one finds it as new."""
    twins, steps = database
    steps.run(twins, 100, fixed=True)


def test_without_resets_they_do_not(database: tuple[Twins, Steps]) -> None:
    """The programs tell a pool apart that passes sessions on as they are."""
    twins, steps = database
    steps.fail_without_resets(twins)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_programs_get_the_answers_of_a_connection_of_their_own(database: tuple[Twins, Steps]) -> None:
    """The same as the first, many times as often."""
    twins, steps = database
    steps.run(twins, 2000)
