"""psycopg2's connection and cursors, as a pool lends them: they note what changes the session, and whose they are.

Each statement's text passes the classifier. So that this holds for the user's own cursor classes too, a cursor's class
is made of the user's and one of this module behind it: the user's `super().execute` arrives here.

While the connection is new, the statements that change its session are kept: they are a part of its state of rest.
"""

# ruff: noqa: SLF001  the connection, its session and its cursors are one thing in several objects

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import TracebackType
from typing import Any

import psycopg2
from psycopg2 import errors, extensions

from poolkit.driver import TransactionOptions
from poolkit.drivers import _common
from poolkit.drivers._configured import Watched, temporary_names
from poolkit.drivers._lending import Borrowing, LentSession
from poolkit.drivers._startup import MODES, set_local
from poolkit.drivers._statements import CLEAN, STAINED, traces
from poolkit.errors import LeaseError

__all__ = ["PooledConnection", "Session", "closed", "raw", "set_autocommit", "transaction_status"]

raw = extensions.connection
"""psycopg2's own class: its methods do their work also on a connection that refuses its borrower."""

closed: Callable[[Any], int] = raw.closed.__get__
transaction_status: Callable[[Any], int] = raw.get_transaction_status
set_autocommit: Callable[[Any, bool], None] = raw.autocommit.__set__  # type: ignore[attr-defined]
_make_cursor: Callable[..., Any] = raw.cursor
_cursor_factory: Callable[[Any], Any] = raw.cursor_factory.__get__

raw_cursor = extensions.cursor
_execute, _executemany, _callproc = raw_cursor.execute, raw_cursor.executemany, raw_cursor.callproc

_LEVELS = {1: "'read committed'", 2: "'repeatable read'", 3: "'serializable'", 4: "'read uncommitted'"}
_SPELT = {None: "DEFAULT", True: "on", False: "off"}
_STALE = "RevalidateCachedQuery"  # the server's function that finds a prepared statement's plan out of date


class Session(LentSession):
    """What the driver knows of a connection's session."""

    __slots__ = (
        "as_new", "begun", "cannot_be_repeated", "chosen", "entered", "fd", "held", "is_ours", "judge", "local",
        "notices", "notifies", "own", "plans", "read_only", "readable", "reported", "resetting", "rest", "settings",
        "stale", "traces", "types", "watched",
    )  # fmt: skip

    news: list[tuple[int, str]] | None
    fd: int
    readable: Callable[[int], object]
    as_new: tuple[object, ...]
    watched: tuple[str, ...]
    reported: tuple[str | None, ...]
    own: dict[str, object]
    types: tuple[dict[Any, Any], dict[Any, Any]]
    notices: object
    notifies: object

    def __init__(self) -> None:
        super().__init__()
        self.judge: Callable[[str | bytes], int] = traces
        self.traces = CLEAN
        self.held = 0  # cursors WITH HOLD, declared and not closed
        self.read_only = False  # at rest: the role, the database or the pool is read-only by default
        self.is_ours = True  # no pooler lends the server's session to others between two transactions
        self.entered = False  # inside `with conn:`
        self.begun = False  # a unit of work has begun a transaction and not ended it
        self.chosen = False  # whether this borrowing's transactions have options
        self.settings: str | None = None  # of this borrowing's transactions: a SELECT that sets them
        self.local: str | None = None  # the same at rest: what a pooler would not pass on in the startup packet
        self.resetting = False
        self.plans = 0  # how many plans its driver had seen out of date when this connection was opened
        self.stale: Callable[[], None] = _nothing  # tells the driver of another
        self.rest: list[str] = []  # statements of the state of rest
        self.cannot_be_repeated = False  # it is more than those

    def note(self, level: int, query: str) -> None:
        """Note what was run."""
        self.traces = max(self.traces, level)
        if self.news is not None:
            self.news.append((level, query))

    def ran(self, text: str) -> None:
        """Keep the text of what was noted last, on a new connection; empty where it can't be run again by that."""
        if self.news is None:
            return
        self.news[-1] = self.news[-1][0], text
        names = temporary_names(text)
        if names and self.is_ours:
            self.judge = Watched(self.judge, names).__getitem__


class _Noting(extensions.cursor):
    """What every cursor of a pooled connection does; stands behind the user's own class."""

    _borrowing = Borrowing()

    def _note(self, query: object) -> int:
        """Refuse a cursor of an earlier borrowing; note what a statement does to the session."""
        if self._borrowing.ended is not None:
            raise self._borrowing.ended.error("cursor")
        session = self.connection._session  # type: ignore[attr-defined]
        if session.settings is not None:
            self.connection._set_again()  # type: ignore[attr-defined]
        level: int = session.judge(query if type(query) is str else _text(query, self))
        if level:
            session.traces = max(session.traces, level)
        if session.news is not None:
            session.news.append((level, ""))
        return level

    def _ran(self) -> None:
        """Keep the text of what was run on a new connection."""
        sent = self.query
        self.connection._session.ran(sent.decode() if isinstance(sent, bytes) else str(sent))  # type: ignore[attr-defined]

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002  psycopg2's name
        """Execute a statement, or several."""
        self._note(query)
        try:
            _execute(self, query, vars)
        except psycopg2.Error as error:
            _look_at_failure(self, error)
            raise
        if self.connection._session.news is not None:  # type: ignore[attr-defined]
            self._ran()

    def executemany(self, query: Any, vars_list: Iterable[Any]) -> None:
        """Execute a statement for each set of parameters."""
        level = self._note(query)
        news = self.connection._session.news  # type: ignore[attr-defined]
        if level and news is not None:
            news.pop()
            for parameters in vars_list:
                _Noting.execute(self, query, parameters)  # each is noted with its parameters
            return
        try:
            _executemany(self, query, vars_list)
        except psycopg2.Error as error:
            _look_at_failure(self, error)
            raise

    def callproc(self, procname: Any, parameters: Any = None, /) -> Any:
        """Call a function."""
        self._note(f"SELECT * FROM {procname}()")  # noqa: S608  read, not run
        try:
            result = _callproc(self, procname) if parameters is None else _callproc(self, procname, parameters)
        except psycopg2.Error as error:
            _look_at_failure(self, error)
            raise
        if self.connection._session.news is not None:  # type: ignore[attr-defined]
            self._ran()
        return result

    def copy_expert(self, sql: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        """Run a COPY."""
        self._note(sql)  # without a text: what was copied can't be copied again
        try:
            raw_cursor.copy_expert(self, sql, file, *args, **kwargs)
        except psycopg2.Error as error:
            _look_at_failure(self, error)
            raise

    def copy_from(self, file: Any, table: Any, *args: Any, **kwargs: Any) -> None:
        """Copy from a file to a table."""
        self._note(f"COPY {table}")
        try:
            raw_cursor.copy_from(self, file, table, *args, **kwargs)
        except psycopg2.Error as error:
            _look_at_failure(self, error)
            raise

    def copy_to(self, file: Any, table: Any, *args: Any, **kwargs: Any) -> None:
        """Copy from a table to a file."""
        self._note("COPY")
        try:
            raw_cursor.copy_to(self, file, table, *args, **kwargs)
        except psycopg2.Error as error:
            _look_at_failure(self, error)
            raise


class _NotingNamed(_Noting):
    """The same for a cursor on the server, which is asked for each row."""

    _is_held = False

    def _check(self) -> None:
        if self._borrowing.ended is not None:
            raise self._borrowing.ended.error("cursor")

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002  psycopg2's name
        """Declare the cursor."""
        super().execute(query, vars)
        if self.withhold:
            self._is_held = True
            self.connection._session.held += 1  # type: ignore[attr-defined]

    def fetchone(self) -> Any:
        """Fetch one row, or None."""
        self._check()
        return raw_cursor.fetchone(self)

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch some rows."""
        self._check()
        return raw_cursor.fetchmany(self, *args, **kwargs)

    def fetchall(self) -> Any:
        """Fetch all rows that are left."""
        self._check()
        return raw_cursor.fetchall(self)

    def scroll(self, *args: Any, **kwargs: Any) -> Any:
        """Move the cursor."""
        self._check()
        return raw_cursor.scroll(self, *args, **kwargs)

    def __next__(self) -> Any:
        self._check()
        return raw_cursor.__next__(self)

    def close(self) -> None:
        """Close it on the server; after the return of the connection the reset has done so."""
        if self._borrowing.ended is None:
            aborted = transaction_status(self.connection) == extensions.TRANSACTION_STATUS_INERROR
            raw_cursor.close(self)
            if self._is_held and self.closed and not aborted:  # else psycopg2 has told the server nothing
                self._is_held = False
                self.connection._session.held -= 1  # type: ignore[attr-defined]


def _text(query: object, cursor: extensions.cursor) -> str | bytes:
    if isinstance(query, (str, bytes)):
        return query
    compose = getattr(query, "as_string", None)
    return "" if compose is None else str(compose(cursor))  # psycopg2 itself refuses what is no statement


def _look_at_failure(cursor: _Noting, error: psycopg2.Error) -> None:
    """Note what a statement was told; one that SQL has prepared, and is out of date, is prepared anew by the reset."""
    session: Session = cursor.connection._session  # type: ignore[attr-defined]
    if error.pgcode != _common.REFUSED_IN_ABORTED:
        session.failed = error.diag.message_primary or str(error).partition("\n")[0]
    if isinstance(error, errors.FeatureNotSupported) and getattr(error.diag, "source_function", None) == _STALE:
        session.traces = max(session.traces, STAINED)
        session.stale()


@lru_cache(maxsize=256)
def _noting(factory: type[extensions.cursor], *, named: bool) -> type[extensions.cursor]:
    """Make a class of the user's and one of this module behind it."""
    base = _NotingNamed if named else _Noting
    if factory is extensions.cursor or factory is base:
        return base
    names = {"__module__": factory.__module__, "__qualname__": factory.__qualname__, "__doc__": factory.__doc__}
    return type(factory.__name__, (factory, base), names)


class PooledConnection(extensions.connection):
    """A psycopg2 connection that notes what changes its session, and refuses while it is idle."""

    __module__ = "poolkit.drivers.psycopg2"  # where it is imported from
    _session: Session

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_session", Session())
        super().__init__(*args, **kwargs)

    def _descriptor(self) -> int | None:
        return None if closed(self) else self._session.fd

    @property
    def _fd(self) -> int:
        return self._session.fd

    @property
    def _readable(self) -> Callable[[int], object]:
        return self._session.readable

    def __setattr__(self, name: str, value: object) -> None:
        self._session.refuse()
        object.__setattr__(self, name, value)
        if name in MODES:
            self._note_modes()

    @property
    def closed(self) -> int:
        """0 while it is open, as far as its borrower is concerned."""
        return closed(self) or int(self._session.borrowing.ended is not None)

    def cursor(
        self,
        name: Any = None,
        cursor_factory: Any = None,
        withhold: Any = False,  # noqa: FBT002  psycopg2's signature
        scrollable: Any = None,
    ) -> Any:
        """Make a cursor that notes what it sends."""
        session = self._session
        if session.borrowing.ended is not None:
            raise session.borrowing.ended.error()
        factory = cursor_factory or _cursor_factory(self)
        if factory is None and name is None:  # nearly always
            plain: Any = _make_cursor(self, None, _Noting)
            plain._borrowing = session.borrowing
            return plain
        factory = factory or extensions.cursor
        if isinstance(factory, type):
            factory = _noting(factory, named=name is not None)
        cursor: Any = _make_cursor(self, name, factory, withhold, scrollable)
        if isinstance(cursor, _Noting):
            cursor._borrowing = session.borrowing
        else:  # made by a function that does not ask for this module's class: what it sends is not seen
            session.note(STAINED, "")
        return cursor

    def set_client_encoding(self, encoding: str) -> None:
        """Set the encoding, of the server's session and of psycopg2."""
        self._session.refuse()
        raw.set_client_encoding(self, encoding)
        self._session.note(STAINED, f"SET client_encoding TO '{self.get_parameter_status('client_encoding')}'")

    def set_session(self, *args: Any, **kwargs: Any) -> None:
        """Set the modes of transactions."""
        self._session.refuse()
        raw.set_session(self, *args, **kwargs)
        self._note_modes()

    def set_isolation_level(self, level: int | None) -> None:
        """Set the isolation level of transactions."""
        self._session.refuse()
        raw.set_isolation_level(self, level)
        self._note_modes()

    def _note_modes(self) -> None:
        """Note what psycopg2 may have told the server: in autocommit it sets the session's defaults."""
        if self.autocommit:
            level, modes = self.isolation_level, (self.readonly, self.deferrable)
            values = [_LEVELS.get(level or 0, "DEFAULT"), *(_SPELT[value] for value in modes)]
            texts = [f"SET {name} TO {value}" for name, value in zip(MODES.values(), values, strict=True)]
            self._session.note(STAINED, ";".join(texts))

    def _choose(self, options: TransactionOptions) -> None:
        """Have psycopg2 begin each transaction of this borrowing with these options. Not in autocommit; no I/O."""
        raw.set_session(
            self,
            "default" if options.isolation_level is None else options.isolation_level.upper(),
            "default" if options.read_only is None else options.read_only,
            "default" if options.deferrable is None else options.deferrable,
        )
        self._session.chosen = True
        self._session.settings = set_local(options.settings) if options.settings else None

    def _forget_choice(self) -> None:
        session = self._session
        if session.chosen:
            session.chosen, session.settings = False, session.local
            modes: list[Any] = ["default" if value is None else value for value in session.as_new[4:7]]
            raw.set_session(self, *modes)

    def _set_again(self) -> None:
        """Where no transaction is open, begin the next one with the settings of this borrowing."""
        settings = self._session.settings
        if settings is None or self.autocommit:
            return
        if transaction_status(self) == extensions.TRANSACTION_STATUS_IDLE:
            if self.status == extensions.STATUS_BEGIN:  # ended by SQL, and psycopg2 does not know
                raw.rollback(self)
            with raw_cursor(self) as cursor:
                cursor.execute(settings)

    def reset(self) -> None:
        """Roll back, and reset the session as psycopg2 does: to what it was before poolkit configured it."""
        self._session.refuse()
        self._session.note(STAINED, "")
        raw.reset(self)

    def rollback(self) -> None:
        """Roll back."""
        session = self._session
        session.refuse()
        session.tell_end("rollback")
        if session.news is not None:
            session.news.append((STAINED, ""))  # what was noted may be undone by this
        raw.rollback(self)

    def commit(self) -> None:
        """Commit."""
        self._session.refuse()
        self._session.tell_end("commit")
        raw.commit(self)

    def close(self) -> None:
        """Give a pool's connection back at once, unless work is open on it; close any other, which rolls back."""
        session = self._session
        if session.borrowing.ended is not None or closed(self):
            return
        give_back = session.give_back
        if give_back is not None:
            session.borrowing.ended = give_back.begin(self)  # further use is refused before anything is looked at
            if self._rests() and give_back(self):
                return
            session.closed_by_user = session.begun or transaction_status(self) == extensions.TRANSACTION_STATUS_INTRANS
        raw.close(self)

    def _rests(self) -> bool:
        """Whether nothing is open: a transaction that has written nothing is rolled back for that."""
        if self.status not in (extensions.STATUS_READY, extensions.STATUS_BEGIN):
            return False
        session = self._session
        try:
            if transaction_status(self) == extensions.TRANSACTION_STATUS_INTRANS and not self._roll_back_reading():
                return False
        except psycopg2.Error:
            return False
        if transaction_status(self) != extensions.TRANSACTION_STATUS_IDLE:
            return False
        if session.entered:
            self._leave_block()
        if session.begun:
            self._forget_choice()
            set_autocommit(self, True)
        session.begun, session.explicit_end = False, None
        return True

    def _roll_back_reading(self) -> bool:
        with raw_cursor(self) as cursor:
            cursor.execute("SELECT pg_catalog.txid_current_if_assigned()")
            if cursor.fetchone() != (None,):
                return False
            if self.status == extensions.STATUS_BEGIN:
                raw.rollback(self)
            else:
                cursor.execute("ROLLBACK")
        return True

    def __enter__(self) -> Any:
        session = self._session
        session.refuse()
        raw.__enter__(self)
        session.entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._session.entered and self._session.borrowing.ended is None:  # else a reset leaves the block
            self._session.entered = False
            raw.__exit__(self, kind, error, tb)

    def _leave_block(self) -> None:
        """Leave a `with conn:` whose end has not come; psycopg2 rolls back."""
        self._session.entered = False
        with contextlib.suppress(LeaseError):
            raw.__exit__(self, LeaseError, None, None)


def _nothing() -> None:
    """Stand where no driver has put its own."""


def _guarded(name: str) -> Callable[..., Any]:
    method = getattr(raw, name)

    def guarded(self: PooledConnection, *args: Any, **kwargs: Any) -> Any:
        self._session.refuse()
        return method(self, *args, **kwargs)

    guarded.__name__, guarded.__qualname__, guarded.__doc__ = name, f"PooledConnection.{name}", method.__doc__
    return guarded


for _name in (
    "cancel", "get_parameter_status", "isexecuting", "lobject", "poll", "tpc_begin", "tpc_commit",
    "tpc_prepare", "tpc_recover", "tpc_rollback",
):  # fmt: skip
    setattr(PooledConnection, _name, _guarded(_name))
