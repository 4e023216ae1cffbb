"""What the database itself says: rows, sessions, and how many connections were ever opened."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import sql

from poolkit.testing.postgres import LocalPostgres

PLAIN_SCHEMA = """
    CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, price numeric NOT NULL, stock int NOT NULL);
    CREATE TABLE orders (id serial PRIMARY KEY, product_id int NOT NULL REFERENCES products, quantity int NOT NULL);
    INSERT INTO products VALUES (1, 'tea', 3.50, 1000000), (2, 'cup', 7.00, 1000000), (3, 'pot', 19.90, 1000000);
"""


class Database:
    """One database of the private server, seen through connections of the demonstration's own."""

    def __init__(self, server: LocalPostgres, name: str) -> None:
        self.name = name
        self._server = server
        self._admin("CREATE DATABASE {}")

    @property
    def dsn(self) -> str:
        """The URL for the application."""
        return self._server.dsn.rsplit("/", 1)[0] + "/" + self.name

    def run(self, script: str) -> None:
        """Run SQL in this database."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(script)  # type: ignore[call-overload]

    def orders(self) -> int:
        """How many orders are really there."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            table = _one(
                conn.execute(
                    "SELECT table_name FROM information_schema.tables "
                    "WHERE table_schema = 'public' AND table_name ~ '(^|_)orders?$'"
                )
            )
            return int(_one(conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))))

    def sessions(self, condition: str = "true") -> int:
        """How many sessions the server has for this database now."""
        query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid() AND {condition}"
        with psycopg.connect(self._server.dsn, autocommit=True) as conn:
            return int(_one(conn.execute(query, (self.name,))))  # type: ignore[call-overload]

    def in_transaction(self) -> int:
        """How many sessions sit in a transaction and do nothing."""
        return self.sessions("state IN ('idle in transaction', 'idle in transaction (aborted)')")

    def connections_opened(self) -> int:
        """How many connections were ever opened to this database, counted in the server's log."""
        return len(re.findall(rf"connection authorized: .*database={self.name}\b", self._server.log))

    def _admin(self, statement: str) -> None:
        with psycopg.connect(self._server.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL(statement).format(sql.Identifier(self.name)))  # type: ignore[arg-type]


def _one(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    return row[0] if row else None
