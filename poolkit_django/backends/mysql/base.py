"""The engine for MySQL and MariaDB: Django's own backend, with connections from poolkit.

A connection is configured once: SQL_AUTO_IS_NULL, the isolation level, OPTIONS["sql_mode"] and ["init_command"].

A deadlock (1213), and a few other errors, roll back the whole transaction on the server. Whoever swallows one and goes
on would lose what he wrote before and save what he writes afterwards. So after an error inside a transaction the server
is asked how things stand (one round trip, none for errors about one statement's data or grammar). Where the transaction
is gone, further statements and the COMMIT are refused with that error, until somebody rolls back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from django.db.backends.base.base import BaseDatabaseWrapper

from poolkit import ConfigError, PoolConfig
from poolkit.drivers._common import hang_up_on
from poolkit.errors import Returned
from poolkit_django.backends import pools
from poolkit_django.backends.cursors import DebugCursor as PlainDebugCursor
from poolkit_django.backends.cursors import PooledCursor as PlainCursor
from poolkit_django.backends.leasing import Leasing, PooledCreation
from poolkit_django.backends.mysql import library
from poolkit_django.writing import writes

library.provide()

from django.db.backends.mysql import base  # noqa: E402  it needs the library

if library.is_pymysql():
    from poolkit.drivers.pymysql import PymysqlDriver as _Driver
else:
    from poolkit.drivers.mysqlclient import MysqlclientDriver as _Driver  # type: ignore[assignment]

__all__ = ["DatabaseWrapper", "Pooled"]

_AUTOCOMMIT, _IN_TRANSACTION = 2, 1  # status flags, which the server sends with each success
_SAID = ("sql_mode", "init_command")


class BackendDriver(_Driver):
    """Connects as Django's backend does, and looks after the connection as poolkit's driver does."""

    def __init__(
        self, make: Callable[[], pools.Wrapper], options: dict[str, Any], config: PoolConfig, where: str
    ) -> None:
        if "autocommit" in options:
            raise ConfigError("'autocommit' is DATABASES[...]['AUTOCOMMIT'] in Django", where)
        if "fold_begin" in options:
            raise ConfigError("'fold_begin' is for PostgreSQL", where)
        known = {name: options[name] for name in pools.OURS if name in options}
        super().__init__("mysql://localhost", options=known, config=config, where=where)
        self._make = make
        self._opened: WeakSet[Any] = WeakSet()
        make().get_connection_params()  # what is wrong with the settings is said now

    def _arguments(self) -> tuple[dict[str, Any], list[bytes]]:
        wrapper: Any = self._make()
        arguments = dict(wrapper.get_connection_params())
        session = [b"SET SQL_AUTO_IS_NULL = 0"]
        if wrapper.isolation_level:
            session.append(f"SET SESSION TRANSACTION ISOLATION LEVEL {wrapper.isolation_level.upper()}".encode())
        mode, command = (arguments.pop(name, None) for name in _SAID)
        if mode is not None:
            session.append(f"SET SESSION sql_mode = '{mode}'".encode())
        said: dict[str, Any] = self._fixed or {}
        session += [said[name].encode() for name in ("statement_timeout", "session_settings") if name in said]
        if command:
            session.append(command.encode())
        return arguments, session

    def open(self, timeout: float) -> Any:
        """Connect within `timeout` seconds, and configure once for the life of the connection."""
        conn = super().open(timeout)
        self._opened.add(conn)
        return conn

    def cut(self) -> None:
        """End every session at once, whoever uses it: their database is about to be dropped."""
        for conn in list(self._opened):
            hang_up_on(conn._descriptor)  # noqa: SLF001  the driver's own class


if library.is_pymysql():

    class _Renewing(BackendDriver):
        """Knows the objects that its connections have with each borrowing."""

        def renew(self, resource: Any, returned: Returned) -> Any:
            """Return another object that has the session, and is the one to be cut."""
            new = super().renew(resource, returned)
            self._opened.discard(resource)
            self._opened.add(new)
            return new

    _driver_class: type[BackendDriver] = _Renewing
else:
    _driver_class = BackendDriver


class _Guarded:
    """Mix in before a cursor wrapper: it does not let the server end a transaction unnoticed."""

    db: Any

    def _execute(self, *args: Any) -> Any:
        return self._watched(super()._execute, args)  # type: ignore[misc]

    def _executemany(self, *args: Any) -> Any:
        return self._watched(super()._executemany, args)  # type: ignore[misc]

    def _watched(self, run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        connection = self.db.connection
        if self.db.lease is None or connection is None or connection._flags() & _AUTOCOMMIT:  # noqa: SLF001
            return run(*args)
        if not self.db.has_changed:
            self.db.has_changed = writes(args[0])
        if connection._lost:  # noqa: SLF001
            with self.db.wrap_database_errors:
                raise connection._loss()  # noqa: SLF001
        try:
            return run(*args)
        except self.db.Database.Error as error:
            connection._after(0, error)  # noqa: SLF001
            raise
        except Exception as error:
            if isinstance(error.__cause__, self.db.Database.Error):
                connection._after(0, error.__cause__)  # noqa: SLF001
            raise


class PooledCursor(_Guarded, PlainCursor):
    """A cursor without a log of its queries."""


class DebugCursor(_Guarded, PlainDebugCursor):
    """A cursor that logs its queries."""


class DatabaseCreation(PooledCreation, base.DatabaseCreation):
    """Makes and drops test databases."""


class Pooled(Leasing):
    """Mix in before a DatabaseWrapper on MySQL."""

    driver_class = _driver_class
    isolation_level: str | None

    has_changed = False
    """Whether a statement on this lease may have written."""

    def leased(self, connection: Any) -> None:  # noqa: ARG002
        """Tell the isolation level as Django does."""
        self.has_changed = False
        level = self.settings_dict["OPTIONS"].get("isolation_level", "read committed")
        self.isolation_level = level.lower() if level else None

    def init_connection_state(self) -> None:
        """Nothing is left to say on a leased connection; Django would say it each time."""
        if self.lease is None:
            super().init_connection_state()  # type: ignore[misc]
        else:
            BaseDatabaseWrapper.init_connection_state(self)

    def is_usable(self) -> bool:
        """Ask the server; a connection found unusable is discarded when it is closed."""
        if self.connection is None:
            return False
        if self.lease is None:
            return super().is_usable()
        try:
            self.connection._run(b"DO 0")  # noqa: SLF001  PyMySQL's own `ping` would connect anew
        except self.Database.Error:  # type: ignore[attr-defined]
            self._unusable = True
        return not self._unusable

    def make_cursor(self, cursor: Any) -> PooledCursor:
        """Wrap a cursor so that it knows its lease."""
        return PooledCursor(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> DebugCursor:
        """Wrap a cursor so that it knows its lease, and logs."""
        return DebugCursor(cursor, self)

    @staticmethod
    def has_mode(connection: Any, *, autocommit: bool) -> bool:
        """Whether a connection is in this mode, by the server's last word."""
        return bool(connection.get_autocommit()) is autocommit

    @staticmethod
    def is_busy(connection: Any) -> bool:
        """Whether a statement is under way."""
        return bool(connection._busy)  # noqa: SLF001

    @staticmethod
    def is_at_rest(connection: Any) -> bool:
        """Whether nothing is under way and no transaction is open."""
        return not connection._busy and connection._flags() & (_AUTOCOMMIT | _IN_TRANSACTION) == _AUTOCOMMIT  # noqa: SLF001

    def is_aborted(self, connection: Any) -> bool:
        """Whether the server has rolled the transaction back with an error."""
        return self.lease is not None and bool(connection._lost)  # noqa: SLF001

    def has_written(self, connection: Any) -> bool:  # noqa: ARG002
        """Whether a statement on this lease may have written, by its text."""
        return self.has_changed

    @staticmethod
    def is_gone(connection: Any) -> bool:
        """Whether the server hung up on a connection."""
        return not connection.open


class DatabaseWrapper(Pooled, base.DatabaseWrapper):
    """Django's MySQL backend, with connections from poolkit."""

    creation_class = DatabaseCreation
