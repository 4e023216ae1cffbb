"""Cursors that know which lease they belong to.

A cursor outlives the lease of its connection where a view's leftovers run in a stream, or in a thread. By then the
connection may be another request's, and a statement on it would end up in a stranger's transaction: it is refused.
What was fetched already can be read to its end.
"""

from __future__ import annotations

from typing import Any

from django.db import InterfaceError
from django.db.backends.postgresql.base import CursorDebugWrapper
from django.db.backends.utils import CursorWrapper
from psycopg import Cursor, ServerCursor

__all__ = ["DebugCursor", "PooledCursor"]

_ASKS_THE_SERVER = frozenset({"copy", "stream"})
_ASKS_WHERE_NAMED = frozenset({"fetchone", "fetchmany", "fetchall", "scroll"})


class _Leased:
    """Mix in before a cursor wrapper of Django's."""

    cursor: Any
    db: Any

    def __init__(self, cursor: Any, db: Any) -> None:
        super().__init__(cursor, db)  # type: ignore[call-arg]
        self._lease = db.lease
        self._named = isinstance(cursor, ServerCursor)
        self._open = True
        db.open_cursors += 1

    def __getattr__(self, name: str) -> Any:
        if name in _ASKS_THE_SERVER or (name in _ASKS_WHERE_NAMED and self._named):
            self._check()
        return super().__getattr__(name)  # type: ignore[misc]

    def __iter__(self) -> Any:
        if self._named:
            self._check()
        return super().__iter__()  # type: ignore[misc]

    def _check(self) -> None:
        if self.db.lease is not self._lease:
            raise InterfaceError(
                "this cursor's connection went back to the pool when its unit of work ended; open a new cursor, or "
                "keep the transaction to the end of the body with poolkit_django.current_unit().stream()"
            )

    def _execute(self, *args: Any) -> Any:
        self._check()
        return super()._execute(*args)  # type: ignore[misc]

    def _executemany(self, *args: Any) -> Any:
        self._check()
        return super()._executemany(*args)  # type: ignore[misc]

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return super().callproc(*args, **kwargs)  # type: ignore[misc]

    def close(self) -> None:
        """Close; the last one of a thread that nobody visits at the end lets go of the connection."""
        with self.db.wrap_database_errors:
            if self._named and self.db.lease is not self._lease:
                Cursor.close(self.cursor)  # as a plain one's: without a word to the server
            else:
                self.cursor.close()
        if self._settle():
            self.db.cursor_closed()

    def _settle(self) -> bool:
        """Count this cursor out, once; whether its lease is still the wrapper's."""
        if not self._open:
            return False
        self._open = False
        if self.db.lease is not self._lease:
            return False
        self.db.open_cursors -= 1
        return True

    def __del__(self) -> None:
        # Only counted: a garbage collection may run anywhere, so nothing that takes a lock may happen here.
        if getattr(self, "_open", False):
            self._settle()


class PooledCursor(_Leased, CursorWrapper):
    """A cursor without a log of its queries."""


class DebugCursor(_Leased, CursorDebugWrapper):
    """A cursor that logs its queries."""
