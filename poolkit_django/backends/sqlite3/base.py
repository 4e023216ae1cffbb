"""The engine for SQLite: Django's own backend, with connections from poolkit.

A file has a pool like a server. A database in memory has none: it is its connection, and gone with it, so there each
thread has its own as ever, and tests share theirs as Django's test runner arranges it.

A connection is configured once: Django's functions, PRAGMAs and OPTIONS["init_command"]. Nothing is chosen for the
file that the settings do not say: where several write, set OPTIONS["transaction_mode"] to "IMMEDIATE" and the
init_command "PRAGMA journal_mode=WAL".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

from django.db.backends.sqlite3 import base

from poolkit import ConfigError, PoolConfig
from poolkit.drivers.sqlite import PooledConnection, SqliteDriver
from poolkit_django.backends import pools
from poolkit_django.backends.cursors import DebugCursor as PlainDebugCursor
from poolkit_django.backends.cursors import PooledCursor as PlainCursor
from poolkit_django.backends.leasing import Leasing, PooledCreation

__all__ = ["DatabaseWrapper", "Pooled"]


class BackendDriver(SqliteDriver):
    """Opens files as Django's backend does, and looks after them as poolkit's driver does."""

    def __init__(
        self, make: Callable[[], pools.Wrapper], options: dict[str, Any], config: PoolConfig, where: str
    ) -> None:
        if "factory" in options:
            raise ConfigError("'factory' can't be set: the connection's class is poolkit's own", where)
        foreign = sorted(options.keys() & set(pools.OURS))
        if foreign:
            raise ConfigError([f"{name!r} is for servers: remove it" for name in foreign], where)
        known = {"busy_timeout": options.get("timeout", 5.0), "journal_mode": None}
        super().__init__("sqlite:////", options=known, config=config, where=where)
        self._make = make
        self._opened: WeakSet[Any] = WeakSet()
        make().get_connection_params()  # what is wrong with the settings is said now

    def _locate(self, url: str) -> str:
        return url  # it is Django's backend that opens

    def open(self, timeout: float) -> Any:  # noqa: ARG002  there is nobody to wait for
        """Open the file, and configure once for the life of the connection."""
        conn = self._make().open_physical({"factory": PooledConnection})
        self.settled(conn)
        self._opened.add(conn)
        return conn

    def cut(self) -> None:
        """Interrupt whoever is in the middle of a statement: the file is about to be removed."""
        for conn in list(self._opened):
            try:
                conn.interrupt()
            except base.Database.ProgrammingError:  # closed
                continue


class _Stepping:
    """Mix in before a cursor wrapper: SQLite runs a statement on while its rows are fetched."""

    db: Any
    _noted: Callable[..., Any]

    def fetchone(self) -> Any:
        """Fetch one row, or None."""
        return self._noted(super().fetchone)  # type: ignore[misc]

    def fetchmany(self, size: int | None = None) -> Any:
        """Fetch some rows: `size`, or as many as the library thinks fit."""
        return self._noted(super().fetchmany, size)  # type: ignore[misc]

    def fetchall(self) -> Any:
        """Fetch all rows that are left."""
        return self._noted(super().fetchall)  # type: ignore[misc]

    def __iter__(self) -> Iterator[Any]:
        rows: Iterator[Any] = iter(self.fetchone, None) if self.db.stray else super().__iter__()  # type: ignore[misc]
        return rows


class PooledCursor(_Stepping, PlainCursor):
    """A cursor without a log of its queries."""


class DebugCursor(_Stepping, PlainDebugCursor):
    """A cursor that logs its queries."""


class DatabaseCreation(PooledCreation, base.DatabaseCreation):
    """Makes and drops test databases."""

    def _get_test_db_name(self) -> str:
        """Stay in memory, as on Django's engine, where pytest-django names the databases of its worker processes.

        It knows SQLite by Django's ENGINE alone, and takes this one's path for a name: `test_/srv/db.sqlite3_gw0`.
        """
        given = self.connection.settings_dict
        if str(given["TEST"]["NAME"]).startswith(f"test_{given['NAME']}_"):
            return f"file:memorydb_{self.connection.alias}?mode=memory&cache=shared"
        return str(super()._get_test_db_name())


class Pooled(Leasing):
    """Mix in before a DatabaseWrapper on sqlite3."""

    driver_class = BackendDriver
    _begins_by_hand = True
    closes_from_elsewhere = False  # to close waits for the statement, which may wait for the one who closes
    transaction_mode: str | None

    def leased(self, connection: Any) -> None:  # noqa: ARG002
        """Know how a transaction is to begin."""
        mode = self.settings_dict["OPTIONS"].get("transaction_mode")
        self.transaction_mode = mode.upper() if mode else None

    def interrupt(self, connection: Any) -> None:
        """Have a running statement end soon."""
        connection.interrupt()

    def make_cursor(self, cursor: Any) -> PooledCursor:
        """Wrap a cursor so that it knows its lease."""
        return PooledCursor(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> DebugCursor:
        """Wrap a cursor so that it knows its lease, and logs."""
        return DebugCursor(cursor, self)

    @staticmethod
    def has_mode(connection: Any, *, autocommit: bool) -> bool:
        """Whether a connection is in this mode; a transaction is begun by hand, so it is never in the other."""
        return autocommit and connection.isolation_level is None

    @staticmethod
    def is_busy(connection: Any) -> bool:  # noqa: ARG004  a statement of SQLite's runs in its caller
        """Whether a statement is under way: never, in a thread that has ended."""
        return False

    @staticmethod
    def is_at_rest(connection: Any) -> bool:
        """Whether no transaction is open."""
        return not connection.in_transaction

    def is_aborted(self, connection: Any) -> bool:
        """Whether SQLite has ended the transaction: it does where the disk is full, or a conflict clause says so."""
        return self.in_atomic_block and not connection.in_transaction

    def _start_transaction_under_autocommit(self) -> None:
        super()._start_transaction_under_autocommit()  # type: ignore[misc]
        if self.lease is not None:
            self.connection._session.wrote = False  # noqa: SLF001  BEGIN is a statement like others to the driver

    def has_written(self, connection: Any) -> bool:
        """Whether a statement that may change something ran in the transaction, by the driver's account."""
        return bool(connection._session.wrote)  # noqa: SLF001  the driver's own class

    @staticmethod
    def is_gone(connection: Any) -> bool:  # noqa: ARG004
        """Whether the server hung up: there is none."""
        return False


class DatabaseWrapper(Pooled, base.DatabaseWrapper):
    """Django's SQLite backend, with connections from poolkit."""

    creation_class = DatabaseCreation
