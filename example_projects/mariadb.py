"""What `database` does for PostgreSQL, for the Django shop on MariaDB: its tables, and a few products to begin with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from urllib.parse import unquote, urlsplit

import pymysql
from pymysql.cursors import Cursor
from pymysql.err import MySQLError, OperationalError

from example_projects.database import PRODUCTS, USERS
from example_projects.passwords import hash_password

__all__ = ["MySQLError", "OperationalError", "prepare"]

_WITHIN = 60  # seconds to wait for another server that prepares the same database


def prepare(url: str, make_tables: Callable[[pymysql.Connection[Cursor]], None]) -> None:
    """Make the tables, and the first products and users where there are none. May be run any number of times.

    Raises `OperationalError` where the server can't be reached.
    """
    with closing(_connect(url)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK('poolkit shop', %s)", (_WITHIN,))  # given back with the connection
        if cursor.fetchone() != (1,):
            raise OperationalError("another server has been preparing the database for too long")
        make_tables(conn)
        _fill(cursor)
        conn.commit()


def _connect(url: str) -> pymysql.Connection[Cursor]:
    parts = urlsplit(url)
    return pymysql.connect(
        host=parts.hostname or "localhost",
        port=parts.port or 3306,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=unquote(parts.path.lstrip("/")),
        connect_timeout=3,
    )


def _fill(cursor: Cursor) -> None:
    if not cursor.execute("SELECT id FROM products LIMIT 1"):
        cursor.executemany("INSERT INTO products (name, price, stock) VALUES (%s, %s, %s)", PRODUCTS)
    if not cursor.execute("SELECT name FROM users LIMIT 1"):
        users = [(name, hash_password(password)) for name, password in USERS.items()]
        cursor.executemany("INSERT INTO users (name, password) VALUES (%s, %s)", users)
