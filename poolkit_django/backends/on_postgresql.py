"""What the engine for PostgreSQL does whatever the library: time zone and role are set once for a connection."""

from __future__ import annotations

from typing import Any

from poolkit_django.backends import pools
from poolkit_django.backends.leasing import Leasing

__all__ = ["OnPostgresql"]


class OnPostgresql(Leasing):
    """Mix in before a DatabaseWrapper on PostgreSQL."""

    def configure_physical(self, connection: Any) -> None:
        """Set time zone and role: of a new connection, and of one whose whole session was reset."""
        self.connection = connection  # Django composes SET ROLE through it
        try:
            super()._configure_connection(connection)  # type: ignore[misc]
        finally:
            self.connection = None

    def _configure_connection(self, connection: Any) -> bool:
        """Nothing is left to do on a leased connection; Django would ask the server each time."""
        if self.lease is not None:
            return False
        return bool(super()._configure_connection(connection))  # type: ignore[misc]

    def ensure_timezone(self) -> bool:
        """Take a new pool, whose connections get the time zone that is set now."""
        pools.retire(self)  # type: ignore[arg-type]
        if self.connection is None:
            return False
        return bool(self._configure_timezone(self.connection))  # type: ignore[attr-defined]

    def has_written(self, connection: Any) -> bool:
        """Ask the server whether the transaction has a number: the first change gives it one. One round trip."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.txid_current_if_assigned()")
            return bool(cursor.fetchone()[0] is not None)

    @staticmethod
    def has_mode(connection: Any, *, autocommit: bool) -> bool:
        """Whether a connection is in this mode."""
        return connection.autocommit is autocommit
