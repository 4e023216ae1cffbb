"""The engine for PostgreSQL on psycopg2, and the driver that connects as Django's backend does.

psycopg2 sends BEGIN by itself, before the first statement of a transaction: a transaction of one statement takes three
round trips, where psycopg 3 takes two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from django.db.backends.postgresql.base import CursorDebugWrapper
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from django.db.backends.utils import CursorWrapper
from psycopg2 import extensions

from poolkit import ConfigError, PoolConfig
from poolkit.drivers._common import hang_up_on
from poolkit.drivers.psycopg2 import PooledConnection, Psycopg2Driver, closed
from poolkit_django.backends import pools
from poolkit_django.backends.cursors import Leased
from poolkit_django.backends.on_postgresql import OnPostgresql

__all__ = ["BackendDriver", "Pooled"]

_REFUSED = {
    "connection_factory": "the connection's class is poolkit's own",
    "fold_begin": "psycopg2 sends BEGIN by itself; install psycopg 3, and BEGIN rides with the first statement",
}
_UNDER_WAY = (extensions.TRANSACTION_STATUS_ACTIVE, extensions.TRANSACTION_STATUS_UNKNOWN)


class BackendDriver(Psycopg2Driver):
    """Opens connections as Django's backend does, and looks after them as poolkit's psycopg2 driver does."""

    def __init__(
        self, make: Callable[[], pools.Wrapper], options: dict[str, Any], config: PoolConfig, where: str
    ) -> None:
        for name, reason in _REFUSED.items():
            if name in options:
                raise ConfigError(f"{name!r} can't be set: {reason}", where)
        known = {name: options[name] for name in pools.OURS if name in options}
        super().__init__("postgresql://", options=known, config=config, where=where)
        self._make = make
        self._opened: WeakSet[PooledConnection] = WeakSet()
        make().get_connection_params()  # what is wrong with the settings is said now

    def open(self, timeout: float) -> PooledConnection:
        """Connect within `timeout`, rounded up to seconds that libpq can count; configure once for its life."""
        wrapper: Any = self._make()  # this connect's own
        arguments = self._for_a_pool(wrapper.get_connection_params(), timeout)
        wrapper.get_connection_params = lambda: arguments
        conn: PooledConnection = wrapper.open_physical({"connection_factory": PooledConnection})
        self._fit(conn)
        self._opened.add(conn)
        return conn

    def cut(self) -> None:
        """End every session at once, whoever uses it: their database is about to be dropped."""
        for conn in list(self._opened):
            hang_up_on(conn._descriptor)  # noqa: SLF001  the driver's own class


class _OnPsycopg2(Leased):
    """Mix in before a cursor wrapper of Django's."""

    @staticmethod
    def is_server_side(cursor: Any) -> bool:
        """Whether a cursor asks the server for more rows as they are read."""
        return cursor.name is not None

    def close_quietly(self) -> None:
        """Leave a named cursor as it is: psycopg2 would ask the server to close it."""


class PooledCursor(_OnPsycopg2, CursorWrapper):
    """A cursor without a log of its queries."""


class DebugCursor(_OnPsycopg2, CursorDebugWrapper):
    """A cursor that logs its queries."""


class Pooled(OnPostgresql):
    """Mix in before a DatabaseWrapper on psycopg2."""

    driver_class = BackendDriver

    def leased(self, connection: Any) -> None:  # noqa: ARG002
        """Tell the isolation level as Django does."""
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        self.isolation_level = IsolationLevel.READ_COMMITTED if level is None else IsolationLevel(level)

    def configure_physical(self, connection: Any) -> None:
        """Set time zone and role, outside of a transaction."""
        connection.autocommit = True
        super().configure_physical(connection)

    def make_cursor(self, cursor: Any) -> PooledCursor:
        """Wrap a cursor so that it knows its lease."""
        return PooledCursor(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> DebugCursor:
        """Wrap a cursor so that it knows its lease, and logs."""
        return DebugCursor(cursor, self)

    @staticmethod
    def is_busy(connection: Any) -> bool:
        """Whether a statement is under way."""
        return bool(connection.closed) or connection.get_transaction_status() in _UNDER_WAY

    @staticmethod
    def is_at_rest(connection: Any) -> bool:
        """Whether nothing is under way and no transaction is open."""
        return not connection.closed and connection.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE

    def is_aborted(self, connection: Any) -> bool:
        """Whether a failed statement has aborted the transaction."""
        return not connection.closed and connection.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR

    @staticmethod
    def close_held_cursors(connection: Any) -> bool:
        """Leave them to the pool, which resets such a session; False where it is in use, or broken."""
        return not connection.closed and connection.get_transaction_status() not in _UNDER_WAY

    @staticmethod
    def is_gone(connection: Any) -> bool:
        """Whether the server hung up on a connection."""
        return bool(closed(connection))  # its own word for it is also that of a connection that was given back
