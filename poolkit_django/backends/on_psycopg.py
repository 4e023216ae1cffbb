"""The engine for PostgreSQL on psycopg 3, and the driver that connects as Django's backend does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from django.db.backends.postgresql.base import CursorDebugWrapper
from django.db.backends.utils import CursorWrapper
from psycopg import Connection, Cursor, IsolationLevel, ServerCursor, pq

from poolkit import LeaseError, PoolConfig
from poolkit.drivers.psycopg import PooledConnection, PsycopgDriver
from poolkit_django.backends import pools
from poolkit_django.backends.cursors import Leased
from poolkit_django.backends.on_postgresql import OnPostgresql

__all__ = ["BackendDriver", "Pooled"]

_UNDER_WAY = (pq.TransactionStatus.ACTIVE, pq.TransactionStatus.UNKNOWN)


class _Psycopg:
    """psycopg as Django's backend sees it, but that its connects can be bounded."""

    connect = staticmethod(PooledConnection.connect)

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg, name)


class BackendDriver(PsycopgDriver[Any]):
    """Opens connections as Django's backend does, and looks after them as poolkit's psycopg driver does.

    `make` makes a wrapper of the engine's; each connect has one of its own, because a wrapper is one thread's.
    """

    def __init__(
        self, make: Callable[[], pools.Wrapper], options: dict[str, Any], config: PoolConfig, where: str
    ) -> None:
        template = make()
        params = template.get_connection_params()
        known: dict[str, Any] = {name: params[name] for name in ("row_factory", "cursor_factory") if name in params}
        known["prepare_threshold"] = params.get("prepare_threshold")
        known["isolation_level"] = template.settings_dict["OPTIONS"].get("isolation_level")
        known |= {name: options[name] for name in pools.OURS if name in options}
        super().__init__("postgresql://", options=known, config=config, where=where)
        self._make = make

    def open(self, timeout: float) -> Connection[Any]:
        """Connect within `timeout` seconds, and configure once for the life of the connection."""
        wrapper: Any = self._make()  # this connect's own
        wrapper.Database = _Psycopg()
        conninfo = self._conninfo(timeout, more=wrapper.get_connection_params())
        wrapper.get_connection_params = lambda: conninfo
        with self._within(timeout):
            conn: Connection[Any] = wrapper.open_physical({})
        self._fit(conn)
        return conn


class _OnPsycopg(Leased):
    """Mix in before a cursor wrapper of Django's."""

    @staticmethod
    def is_server_side(cursor: Any) -> bool:
        """Whether a cursor asks the server for more rows as they are read."""
        return isinstance(cursor, ServerCursor)

    def close_quietly(self) -> None:
        """Close a named cursor as a plain one's: without a word to the server."""
        Cursor.close(self.cursor)


class PooledCursor(_OnPsycopg, CursorWrapper):
    """A cursor without a log of its queries."""


class DebugCursor(_OnPsycopg, CursorDebugWrapper):
    """A cursor that logs its queries."""


class Pooled(OnPostgresql):
    """Mix in before a DatabaseWrapper on psycopg."""

    driver_class = BackendDriver

    def leased(self, connection: Any) -> None:
        """Tell the isolation level as Django does."""
        self.isolation_level = connection.isolation_level or IsolationLevel.READ_COMMITTED

    def make_cursor(self, cursor: Any) -> PooledCursor:
        """Wrap a cursor so that it knows its lease."""
        return PooledCursor(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> DebugCursor:
        """Wrap a cursor so that it knows its lease, and logs."""
        return DebugCursor(cursor, self)

    @staticmethod
    def is_busy(connection: Any) -> bool:
        """Whether a statement is under way."""
        return connection.pgconn.transaction_status in _UNDER_WAY

    @staticmethod
    def is_at_rest(connection: Any) -> bool:
        """Whether nothing is under way and no transaction is open."""
        return bool(connection.pgconn.transaction_status == pq.TransactionStatus.IDLE)

    def is_aborted(self, connection: Any) -> bool:
        """Whether a failed statement has aborted the transaction."""
        return bool(connection.pgconn.transaction_status == pq.TransactionStatus.INERROR)

    @staticmethod
    def close_held_cursors(connection: Any) -> bool:
        """Close all cursors, in one round trip; False where somebody uses the connection, or it is broken."""
        if connection.lock.locked():
            return False
        try:
            connection.rollback()  # an aborted transaction would refuse; without one it asks nothing of the server
            connection.execute("CLOSE ALL", prepare=False)
        except psycopg.Error:
            return False
        return True

    @staticmethod
    def is_gone(connection: Any) -> bool:
        """Whether the server hung up on a connection. One that was given back meanwhile was fit to be lent again."""
        try:
            return bool(connection.pgconn.status == pq.ConnStatus.BAD)
        except LeaseError:
            return False
