"""What the database says of a shop: one way to ask PostgreSQL, one to ask MariaDB."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import pymysql
from psycopg import sql

from poolkit.drivers.pymysql import PymysqlDriver

Row = tuple[Any, ...]


class Postgres:
    """A shop's database on PostgreSQL."""

    # A failed statement aborts its transaction, so one that was ignored leaves nothing to commit.
    fails_whole = True

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def query(self, statement: str, *arguments: object) -> list[Row]:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            cursor = conn.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []

    def add_orders(self, count: int, status: str = "new") -> None:
        self.query(
            "INSERT INTO orders (product_id, quantity, status) "
            "SELECT 1, n %% 1000 + 1, %s FROM generate_series(1, %s) AS n",
            status,
            count,
        )

    def sessions(self, condition: str = "true") -> list[Row]:
        """The sessions of others in this database."""
        return self.query(
            "SELECT pid, state, query, application_name FROM pg_stat_activity WHERE datname = current_database() "
            f"AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND {condition}"
        )

    def busy(self) -> list[Row]:
        """Those at work or in a transaction."""
        return self.sessions("state <> 'idle'")

    def in_transaction(self) -> list[Row]:
        """Those that are in a transaction and do nothing."""
        return self.sessions("state LIKE 'idle in transaction%'")

    def sleeping(self) -> list[Row]:
        """Those that GET /sleep keeps at work."""
        return self.sessions("query LIKE '%pg_sleep%' AND state = 'active'")

    def process_of(self, session: int) -> int:
        """The process that a session is of: the pool's name for it ends with that."""
        (name,) = [row[3] for row in self.sessions() if row[0] == session]
        assert name.startswith("poolkit:"), name
        return int(name.rpartition(":")[2])


class Mariadb:
    """A shop's database on MariaDB."""

    # A failed statement is undone by itself, and its transaction goes on: there is nothing to hide from COMMIT.
    fails_whole = False

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._driver = PymysqlDriver(dsn)

    def query(self, statement: str, *arguments: object) -> list[Row]:
        with _connection(self._driver) as conn, conn.cursor() as cursor:
            cursor.execute(statement, arguments or None)
            rows = list(cursor.fetchall()) if cursor.description else []
            conn.commit()
            return rows

    def add_orders(self, count: int, status: str = "new") -> None:
        self.query(
            f"INSERT INTO orders (product_id, quantity, status) SELECT 1, seq %% 1000 + 1, %s FROM seq_1_to_{count}",
            status,
        )

    def sessions(self, condition: str = "true") -> list[Row]:
        """The sessions of others in this database."""
        return self.query(
            "SELECT id, command, info, host FROM information_schema.processlist WHERE db = database() "
            f"AND id <> connection_id() AND command <> 'Killed' AND {condition}"
        )

    def busy(self) -> list[Row]:
        """Those at work or in a transaction."""
        return self.sessions("command <> 'Sleep'") + self.in_transaction()

    def in_transaction(self) -> list[Row]:
        """Those that are in a transaction and do nothing."""
        return self.sessions(
            "command = 'Sleep' AND id IN (SELECT trx_mysql_thread_id FROM information_schema.innodb_trx)"
        )

    def sleeping(self) -> list[Row]:
        """Those that GET /sleep keeps at work."""
        return self.sessions("info LIKE 'SELECT SLEEP(%' AND command = 'Query'")

    def process_of(self, session: int) -> int:
        """The process that a session is of: sessions have no name here, but a port at the client's end."""
        (host,) = [row[3] for row in self.sessions() if row[0] == session]
        port = int(host.rpartition(":")[2])
        (pid,) = {one.pid for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port and one.pid}
        return pid


Database = Postgres | Mariadb


def database_at(dsn: str) -> Database:
    """The way to ask the database at this URL."""
    return Mariadb(dsn) if dsn.startswith("mysql") else Postgres(dsn)


@contextmanager
def own_database(dsn: str) -> Iterator[str]:
    """Make a database on the server at `dsn`; yields its URL, and drops it at the end."""
    name = f"shop_{secrets.token_hex(4)}"
    administer = _administer_mariadb if dsn.startswith("mysql") else _administer_postgres
    administer(dsn, "CREATE DATABASE {}", name)
    try:
        yield urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
    finally:
        administer(
            dsn, "DROP DATABASE {}" if administer is _administer_mariadb else "DROP DATABASE {} WITH (FORCE)", name
        )


def _administer_postgres(dsn: str, statement: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL(statement).format(sql.Identifier(name)))


def _administer_mariadb(dsn: str, statement: str, name: str) -> None:
    with _connection(PymysqlDriver(dsn)) as admin:
        admin.query(statement.format(name))


@contextmanager
def _connection(driver: PymysqlDriver) -> Iterator[pymysql.connections.Connection]:
    """Open a connection without a pool. The driver closes it: its own `close` would keep the session."""
    conn = driver.open(10)
    try:
        yield conn
    finally:
        driver.close(conn)
