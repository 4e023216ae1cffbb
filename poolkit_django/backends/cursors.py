"""Cursors that know which lease they belong to.

A cursor outlives the lease of its connection where a view's leftovers run in a stream, or in a thread. By then the
connection may be another request's, and a statement on it would end up in a stranger's transaction: it is refused.
What was fetched already can be read to its end.
"""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Callable, Iterator
from typing import Any

from django.apps import apps
from django.db import InterfaceError
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper

__all__ = ["DebugCursor", "Leased", "PooledCursor"]

_ASKS_THE_SERVER = frozenset({"copy", "stream", "copy_expert", "copy_from", "copy_to"})


class Leased:
    """Mix in before a cursor wrapper of Django's."""

    cursor: Any
    db: Any
    _open = _named = _held = False

    def __init__(self, cursor: Any, db: Any) -> None:
        self.cursor, self.db = cursor, db  # as Django's own does it; a call less for each statement
        self._lease = db.lease
        self._open = True
        db.open_cursors += 1
        if self.is_server_side(cursor):
            self._named = True
            self._held = bool(cursor.withhold)
            db.held_cursors += self._held

    def __getattr__(self, name: str) -> Any:
        if name in _ASKS_THE_SERVER or (self._named and name == "scroll"):
            self._check()
        return super().__getattr__(name)  # type: ignore[misc]

    # Written out, although Django has them come through __getattr__, and each within `wrap_database_errors`: that makes
    # four functions for each call. It turns errors into Django's, so it is asked where there is one.

    def fetchone(self) -> Any:
        """Fetch one row, or None."""
        if self._named:
            self._check()
        try:
            return self.cursor.fetchone()
        except Exception:
            with self.db.wrap_database_errors:
                raise

    def fetchmany(self, size: int | None = None) -> Any:
        """Fetch some rows: `size`, or as many as the library thinks fit."""
        if self._named:
            self._check()
        try:
            return self.cursor.fetchmany() if size is None else self.cursor.fetchmany(size)
        except Exception:
            with self.db.wrap_database_errors:
                raise

    def fetchall(self) -> Any:
        """Fetch all rows that are left."""
        if self._named:
            self._check()
        try:
            return self.cursor.fetchall()
        except Exception:
            with self.db.wrap_database_errors:
                raise

    def __iter__(self) -> Any:
        if not self._named:
            return super().__iter__()  # type: ignore[misc]
        self._check()
        return self._rows()

    def _rows(self) -> Iterator[Any]:
        rows, end = iter(self.cursor), object()  # not `yield from`, which would close the cursor with this generator
        while True:
            with self.db.wrap_database_errors:
                row = next(rows, end)
            if row is end:
                return
            yield row
            self._check()  # the next row may be one that the server is asked for

    def _check(self) -> None:
        if self.db.lease is not self._lease:
            self.db.hear_of_the_cut()
            raise InterfaceError(
                "this cursor's connection went back to the pool when its unit of work ended; open a new cursor, or "
                "keep the transaction to the end of the body with poolkit_django.current_unit().stream()"
            )

    def _execute(self, sql: Any, params: Any, *ignored: Any) -> Any:
        db = self.db
        if db.lease is not self._lease:
            self._check()
        if not apps.ready:
            return super()._execute(sql, params, *ignored)  # type: ignore[misc]  # it warns
        if db.needs_rollback:
            db.validate_no_broken_transaction()
        stray = db.stray
        if stray:
            db.begin_statement(self._lease)
        try:
            return self.cursor.execute(sql) if params is None else self.cursor.execute(sql, params)
        except Exception:
            with db.wrap_database_errors:
                raise
        finally:
            if stray:
                db.end_statement(self._lease)

    def _executemany(self, *args: Any) -> Any:
        self._check()
        return self._noted(super()._executemany, *args)  # type: ignore[misc]

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        """Call a stored procedure."""
        self._check()
        return self._noted(super().callproc, *args, **kwargs)  # type: ignore[misc]

    def _noted(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what is a statement; the end of a unit in another thread waits for it to end."""
        if not self.db.stray:
            return call(*args, **kwargs)
        self.db.begin_statement(self._lease)
        try:
            return call(*args, **kwargs)
        finally:
            self.db.end_statement(self._lease)

    def close(self) -> None:
        """Close; the last one of a thread that nobody visits at the end lets go of the connection."""
        try:
            if self._named:
                self._close_named()
            else:
                self.cursor.close()
        finally:
            if self._open:
                self._open = False
                db = self.db
                if db.lease is self._lease:
                    db.open_cursors -= 1
                    if not db.stays:
                        db.cursor_closed()

    def _close_named(self) -> None:
        if self._is_elsewhere():
            self.close_quietly()
        else:
            stays = self._held and self.db.is_aborted(self.db.connection)  # then the library asks the server nothing
            self.cursor.close()
            self.db.held_cursors -= self._held and not stays
            self._held = False

    @staticmethod
    def is_server_side(cursor: Any) -> bool:  # noqa: ARG004  most libraries' never do
        """Whether a cursor asks the server for more rows as they are read."""
        return False

    def close_quietly(self) -> None:
        """Close a server-side cursor whose connection is another's, without a word to the server."""
        raise NotImplementedError  # asked only where `is_server_side` may be True

    def _is_elsewhere(self) -> bool:
        """Whether its connection may be in use: by another borrower, or by the thread it belongs to."""
        db = self.db
        if db.lease is not self._lease:
            return True
        return not db.allow_thread_sharing and db._thread_ident != get_ident()  # noqa: SLF001  Django's, of its wrapper

    def __del__(self) -> None:
        # Only counted: a garbage collection may run anywhere, so nothing that takes a lock may happen here.
        if self._open:
            self._open = False
            if self.db.lease is self._lease:
                self.db.open_cursors -= 1


class PooledCursor(Leased, CursorWrapper):
    """A cursor without a log of its queries."""


class DebugCursor(Leased, CursorDebugWrapper):
    """A cursor that logs its queries."""
