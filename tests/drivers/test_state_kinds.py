"""The kinds of state themselves: a kind that left nothing would make every test that uses it worthless."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import psycopg
import pytest
from state_kinds import POSTGRES, SQLITE, PostgresKind, SqliteKind, prepare


def _look(conn: psycopg.Connection, kind: PostgresKind) -> object:
    try:
        return conn.execute(kind.look.encode()).fetchall()
    except psycopg.errors.QueryCanceled:  # by a limit of a millisecond, on a busy machine
        return "canceled"


@pytest.mark.parametrize("kind", POSTGRES, ids=str)
def test_postgres(kind: PostgresKind, tables: str) -> None:
    """Each kind is seen on the connection that has it, and not on a new one."""
    with psycopg.connect(tables, autocommit=True) as admin:
        prepare(lambda statement: admin.execute(statement.encode()))
    with psycopg.connect(tables, autocommit=True) as new:
        before = _look(new, kind)
    with psycopg.connect(tables, autocommit=True) as conn:
        for statement in kind.dirty:
            conn.execute(statement.encode())
        assert _look(conn, kind) != before


@pytest.mark.parametrize("kind", SQLITE, ids=str)
def test_sqlite(kind: SqliteKind, tmp_path: Path) -> None:
    """Each kind is seen on the connection that has it, and not on a new one."""

    class Connection(sqlite3.Connection):
        """One that takes attributes."""

    new, conn = (sqlite3.connect(tmp_path / "x.db", isolation_level=None, factory=Connection) for _ in range(2))
    new.execute("CREATE TABLE item (id integer PRIMARY KEY)")
    new.execute("PRAGMA foreign_keys = ON")
    new.execute("PRAGMA journal_mode = wal")
    new.executemany("INSERT INTO item VALUES (?)", [(number,) for number in range(100)])
    new.execute("DELETE FROM item WHERE id = 99")
    before = kind.look(new)
    kind.dirty(conn)
    assert kind.look(conn) != before
    new.close()
    conn.close()
