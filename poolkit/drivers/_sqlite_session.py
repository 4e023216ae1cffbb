"""sqlite3's connection and cursors, as a pool lends them: they note what changes the connection, and whose they are.

A connection that was changed is opened again in place: its file is closed and opened, and what was done to it while it
was new is done again. Nothing of a borrower can survive that, whatever it was.

A cursor that was not read to its end keeps a read transaction open, which SQLite does not tell. So the connection knows
its cursors, and they are closed when it is given back.
"""

# ruff: noqa: SLF001  the connection, its session and its cursors are one thing in several objects

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal, Self

from poolkit.drivers._lending import LentSession
from poolkit.drivers._sqlite_statements import CHANGES, READS, WRITES, judge, makes_temporary
from poolkit.errors import Returned

__all__ = ["PooledConnection", "PooledCursor", "Session", "is_open", "raw", "run"]

raw = sqlite3.Connection
"""sqlite3's own class: its methods do their work also on a connection that refuses its borrower."""

_init, _execute = sqlite3.Cursor.__init__, sqlite3.Cursor.execute
_executemany, _executescript = sqlite3.Cursor.executemany, sqlite3.Cursor.executescript
_FEW = 64  # cursors, at which those that are gone are forgotten


class Session(LentSession):
    """What the driver knows of a connection."""

    __slots__ = (
        "arguments", "begin", "cannot_be_repeated", "changed", "cursors", "entered", "limit", "own", "query_only",
        "rest", "row_factory", "temporary", "text_factory", "wrote",
    )  # fmt: skip

    news: list[_Call] | None
    row_factory: Any
    text_factory: Any
    own: dict[str, object]

    def __init__(self, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        super().__init__()
        self.arguments = arguments
        self.begin: str | None = None  # inside a unit of work: the statement that began it
        self.wrote = False  # something was run in the open transaction that may have written
        self.query_only: int | None = None  # what it was before this borrowing's transactions were to be (or not)
        self.changed = False  # it is not as new any more
        self.entered = 0  # how many `with conn:` it is in
        self.cursors: list[weakref.ref[Any]] = []  # made in this borrowing; opened blobs too
        self.limit = _FEW
        self.rest: list[_Call] = []  # what of it belongs to the state of rest
        self.temporary = False  # there are temporary tables in it, or databases of its own
        self.cannot_be_repeated = False  # and rows in them

    def note(self, level: int, call: _Call) -> None:
        """Note something that does more than read."""
        self.wrote = True
        if self.news is not None:
            if level == CHANGES:
                self.news.append(call)
                self.temporary = self.temporary or (
                    call[0].startswith("exec") and makes_temporary(str(call[1][0]), call[1][1:])
                )
            elif self.temporary:
                self.cannot_be_repeated = True
        if level == CHANGES or self.temporary:
            self.changed = True

    def track(self, thing: Any) -> None:
        """Remember a cursor for as long as it is referred to."""
        self.cursors.append(weakref.ref(thing))
        if len(self.cursors) >= self.limit:
            self.forget()

    def forget(self) -> None:
        """Forget the cursors that are gone."""
        self.cursors = [known for known in self.cursors if known() is not None]
        self.limit = max(_FEW, 2 * len(self.cursors))

    def let_go(self) -> list[Any]:
        """Close the cursors that are still referred to, and return them.

        Raises `sqlite3.ProgrammingError` where another thread is inside one of them.
        """
        if not self.cursors:
            return []
        left = [thing for thing in [reference() for reference in self.cursors] if thing is not None]
        for thing in left:
            _close(thing)
        self.cursors, self.limit = [], _FEW
        return left

    def end(self, returned: Returned) -> None:
        """End the borrowing: its cursors are closed, and refuse."""
        super().end(returned)
        self.entered = 0
        for thing in self.let_go():
            if isinstance(thing, PooledCursor):
                thing._end = returned
                try:
                    thing.__class__ = _ended(type(thing))
                except TypeError:  # a class with slots of its own: sqlite3 itself refuses what was closed
                    continue


_Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def _close(thing: Any) -> None:
    if isinstance(thing, sqlite3.Cursor):
        sqlite3.Cursor.close(thing)
    else:
        thing.close()


class PooledCursor(sqlite3.Cursor):
    """A sqlite3 cursor that notes what it does, and runs nothing behind the back of a unit of work."""

    _end: Returned | None = None

    def __init__(self, connection: Any) -> None:
        _init(self, connection)
        session: Session = connection._session
        session.cursors.append(weakref.ref(self))  # as `track` does it; each `conn.execute` passes here
        if len(session.cursors) >= session.limit:
            session.forget()

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """Execute; refused where SQLite has ended the transaction of the unit, for it would run in autocommit."""
        session: Session = self.connection._session  # type: ignore[attr-defined]
        if session.begin is not None and not self.connection.in_transaction:
            refuse_lost()
        level = judge(sql) if type(sql) is str else CHANGES
        if level:
            session.note(level, ("execute", (sql, parameters), {}))
        try:
            _execute(self, sql, parameters)
        except sqlite3.Error as error:
            _look_at_failure(self, session, error)
            raise
        if level and not self.connection.in_transaction:
            session.wrote = False
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        """Execute for each; refused as `execute` is."""
        session: Session = self.connection._session  # type: ignore[attr-defined]
        if session.begin is not None and not self.connection.in_transaction:
            refuse_lost()
        level = judge(sql) if type(sql) is str else CHANGES
        if level:
            if level == CHANGES and session.news is not None:
                parameters = list(parameters)
            session.note(level, ("executemany", (sql, parameters), {}))
        try:
            _executemany(self, sql, parameters)
        except sqlite3.Error as error:
            _look_at_failure(self, session, error)
            raise
        if level and not self.connection.in_transaction:
            session.wrote = False
        return self

    def executescript(self, sql_script: str, /) -> Self:
        """Execute a script; not inside a unit of work, for sqlite3 commits before it runs one."""
        session: Session = self.connection._session  # type: ignore[attr-defined]
        if session.begin is not None:
            raise sqlite3.ProgrammingError("executescript() commits first: run it outside the transaction")
        level = judge(sql_script) if type(sql_script) is str else CHANGES
        if level:
            session.note(level, ("executescript", (sql_script,), {}))
        _executescript(self, sql_script)
        return self


def _look_at_failure(cursor: sqlite3.Cursor, session: Session, error: sqlite3.Error) -> None:
    """Note an error with which SQLite has ended the transaction of a unit of work."""
    if session.begin is not None and not cursor.connection.in_transaction:
        session.failed = str(error)


class _Ended:
    """What a cursor is when its connection has been given back."""

    _end: Returned

    def _refuse(self, *_: object, **__: object) -> Any:
        raise self._end.error("cursor")

    execute = executemany = executescript = fetchone = fetchmany = fetchall = __next__ = __iter__ = _refuse

    def close(self) -> None:
        """Do nothing: it was closed at the return."""


@lru_cache(maxsize=256)
def _ended(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (_Ended, kind), {"__module__": kind.__module__, "__doc__": _Ended.__doc__})


@lru_cache(maxsize=256)
def _noting(factory: type[sqlite3.Cursor]) -> type[sqlite3.Cursor]:
    """Make a class of the user's and poolkit's behind it: the user's `super().execute` arrives there."""
    if factory is sqlite3.Cursor:
        return PooledCursor
    if issubclass(factory, PooledCursor):
        return factory
    names = {"__module__": factory.__module__, "__qualname__": factory.__qualname__, "__doc__": factory.__doc__}
    return type(factory.__name__, (factory, PooledCursor), names)


class PooledConnection(raw):
    """A sqlite3 connection that notes what changes it, and refuses while it is idle."""

    __module__ = "poolkit.drivers.sqlite"  # where it is imported from
    _session: Session

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_session", Session((args, kwargs)))
        super().__init__(*args, **kwargs)

    def __setattr__(self, name: str, value: object) -> None:
        self._session.refuse()
        object.__setattr__(self, name, value)

    def cursor(self, factory: Any = PooledCursor) -> Any:
        """Make a cursor that notes what it does and minds the unit of work."""
        session = self._session
        if session.borrowing.ended is not None:
            raise session.borrowing.ended.error()
        if factory is not PooledCursor:
            if isinstance(factory, type) and issubclass(factory, sqlite3.Cursor):
                factory = _noting(factory)
            else:  # a function: what its cursor does is not seen
                session.changed = True
                session.cannot_be_repeated = session.cannot_be_repeated or session.news is not None
        cursor = super().cursor(factory)
        if not isinstance(cursor, PooledCursor):
            session.track(cursor)
        return cursor

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        """Execute on a new cursor; sqlite3's own would not ask `cursor` for it."""
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Any:
        """Execute for each, on a new cursor."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Any:
        """Execute a script on a new cursor; not inside a unit of work."""
        return self.cursor().executescript(sql_script)

    def blobopen(self, *args: Any, **kwargs: Any) -> Any:
        """Open a blob; it is closed when the connection is given back."""
        self._session.refuse()
        self._session.wrote = True
        blob = super().blobopen(*args, **kwargs)
        self._session.track(blob)
        return blob

    def commit(self) -> None:
        """Commit; inside a unit of work a new transaction follows."""
        session = self._session
        session.refuse()
        session.tell_end("commit")
        if self.in_transaction:
            run(self, "COMMIT")
            session.wrote = False
            self._begin_again()

    def rollback(self) -> None:
        """Roll back; inside a unit of work a new transaction follows."""
        session = self._session
        session.refuse()
        session.tell_end("rollback")
        if self.in_transaction:
            run(self, "ROLLBACK")
            session.wrote = False
        self._begin_again()

    def _forget_choice(self) -> None:
        """Put back what the options of this borrowing's transactions have changed."""
        before, self._session.query_only = self._session.query_only, None
        if before is not None:
            run(self, f"PRAGMA query_only = {before}")

    def _begin_again(self) -> None:
        if self._session.begin is not None:
            run(self, self._session.begin)

    def close(self) -> None:
        """Give a pool's connection back at once, unless work is open on it; close any other, which rolls back."""
        session = self._session
        if session.borrowing.ended is not None or not is_open(self):
            return
        give_back = session.give_back
        if give_back is not None:
            place = give_back.begin(self)
            if place is not None:  # further use, by its cursors too, is refused first
                session.end(place._replace(block=None))
            lost = session.begin is not None and not self.in_transaction
            if not lost and not (self.in_transaction and session.wrote):
                if self.in_transaction:
                    run(self, "ROLLBACK")
                self._forget_choice()
                session.begin = session.explicit_end = None
                if give_back(self):
                    return
            session.closed_by_user = lost or self.in_transaction
        super().close()

    def __enter__(self) -> Self:
        self._session.refuse()
        self._session.entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> Literal[False]:
        # sqlite3's own would end the transaction without asking the methods above.
        if self._session.entered:  # else the connection was given back within the block
            self._session.entered -= 1
            if kind is None:
                self.commit()
            else:
                self.rollback()
        return False


def refuse_lost() -> None:
    """Raise the error of a unit whose transaction SQLite has ended."""
    raise sqlite3.OperationalError("the transaction was ended by an error or by SQL: roll it back")


def run(conn: sqlite3.Connection, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement of the driver's own, past the refusal, and return its rows."""
    cursor = sqlite3.Cursor(conn)
    cursor.row_factory = None
    try:
        return cursor.execute(statement).fetchall()
    finally:
        cursor.close()


def is_open(conn: sqlite3.Connection) -> bool:
    """Whether it was not closed."""
    try:
        conn.in_transaction  # noqa: B018  raises where the connection is closed, from 3.13 on; total_changes always did
        conn.total_changes  # noqa: B018
    except sqlite3.ProgrammingError:
        return False
    return True


def _guarded(name: str, level: int) -> Callable[..., Any]:
    method = getattr(raw, name)

    def guarded(self: PooledConnection, *args: Any, **kwargs: Any) -> Any:
        session = self._session
        session.refuse()
        if level:
            session.note(level, (name, args, kwargs))
        return method(self, *args, **kwargs)

    guarded.__name__, guarded.__qualname__, guarded.__doc__ = name, f"PooledConnection.{name}", method.__doc__
    return guarded


_METHODS = {
    CHANGES: (
        *("create_aggregate", "create_collation", "create_function", "create_window_function", "deserialize"),
        *("enable_load_extension", "load_extension", "set_authorizer", "set_progress_handler", "set_trace_callback"),
        *("setconfig", "setlimit"),
    ),
    WRITES: ("backup",),
    READS: ("getconfig", "getlimit", "interrupt", "iterdump", "serialize"),
}
for _level, _names in _METHODS.items():
    for _name in _names:
        if hasattr(raw, _name):  # some came with later versions, or are left out of a build
            setattr(PooledConnection, _name, _guarded(_name, _level))
