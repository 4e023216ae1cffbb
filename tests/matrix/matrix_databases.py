"""Databases with what the kinds of state need."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import mysql_kinds
import psycopg
import pytest
import state_kinds

from poolkit.drivers.pymysql import PymysqlDriver

__all__ = ["FEW", "database"]

# One that the server is asked to undo, and one that is more than a setting.
FEW = {
    "postgresql": ["SET in a function", "a temporary table"],
    "mysql": ["SELECT @mine := 2", "LOCK TABLES item READ"],
    "sqlite": ["PRAGMA foreign_keys", "ATTACH"],
}


def database(scheme: str, request: pytest.FixtureRequest) -> str:
    """Prepare a database for the URLs of a scheme, `postgresql+psycopg2` say, and return its URL."""
    kind = scheme.partition("+")[0]
    if kind == "sqlite":
        return _sqlite(request.getfixturevalue("tmp_path"))
    plain: str = request.getfixturevalue("mysql_dsn" if kind == "mysql" else "pg_dsn")
    (_mysql if kind == "mysql" else _postgresql)(plain)
    return scheme + plain[plain.index(":") :]


def _postgresql(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        state_kinds.prepare(lambda statement: conn.execute(statement.encode()))


def _mysql(url: str) -> None:
    driver = PymysqlDriver(url)
    conn: Any = driver.open(10)
    for statement in (
        "DROP TABLE IF EXISTS child",
        "DROP TABLE IF EXISTS item",
        "CREATE TABLE item (id integer PRIMARY KEY)",
        "CREATE TABLE child (item integer REFERENCES item (id))",
    ):
        mysql_kinds.run(conn, statement)
    mysql_kinds.prepare(conn)
    driver.close(conn)


def _sqlite(folder: Path) -> str:
    conn = sqlite3.connect(folder / "matrix.db", isolation_level=None)
    conn.execute("PRAGMA journal_mode = wal")
    conn.execute("CREATE TABLE IF NOT EXISTS item (id integer PRIMARY KEY)")
    conn.executemany("INSERT OR REPLACE INTO item VALUES (?)", [(number,) for number in range(99)])
    conn.close()
    return f"sqlite:///{folder}/matrix.db"
