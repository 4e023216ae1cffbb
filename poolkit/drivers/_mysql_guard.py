"""What is mixed into a MySQL library's connection: it knows its borrowing, its unit of work, and its session.

Inside a unit of work the connection is what its user knows: where the transaction ends before its unit does (a
`conn.commit()` in the middle, a CREATE TABLE, which MySQL commits by itself), the next statement begins a new one
first, which can still be rolled back.

The trap of MySQL is an error that rolls back the whole transaction: a deadlock (1213), a lock wait that timed out
(1205) where `innodb_rollback_on_timeout` is on, a conflict in a cluster. Whoever swallows it and goes on loses what was
written before, and saves what he writes afterwards. So after an error inside a unit the server is asked how things
stand (one round trip, none for errors about one statement's data or grammar). If the transaction is gone, the unit is
`aborted`: further statements and the commit are refused with the number of that error, until a ROLLBACK. The
same holds where a stored procedure ended the transaction: whether it committed or rolled back is not told.

Each statement's text tells whether it changes the session (`_mysql_statements`); and where the server has
`session_track_state_change`, so does its answer, also for what a trigger or a stored function did.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from poolkit.driver import GiveBack
from poolkit.drivers import _mysql
from poolkit.drivers._mysql_statements import ENDS, LEVEL, MOVES, SETS_AUTOCOMMIT, STAINED, WRITES, Traces

__all__ = ["ASK", "BEGIN", "TRACK", "UNKNOWN_LOSS", "Converters", "Guarded", "one_at_a_time"]

ASK = b"DO 0"  # its answer carries the status flags, and nothing else
BEGIN = (b"BEGIN",)
TRACK = "SESSION session_track_state_change = 1"
UNKNOWN_LOSS = 1180  # "Got error during COMMIT": the nearest there is for an error that was not reported

_ROLLED_BACK = "the server rolled back the transaction with this error: roll back, or run the whole unit again"
_ENDED_INSIDE = (
    "the transaction has ended inside a statement of its unit (a stored procedure with COMMIT or ROLLBACK): whether "
    "what was written before is saved is unknown. Roll back; call such a procedure outside of a transaction"
)
_LEFT_WITH_ERROR = (
    "an error left `with conn:` in the middle of this transaction: roll back, or run the whole unit again"
)

C = TypeVar("C", bound="Guarded")
P = ParamSpec("P")
T = TypeVar("T")


def one_at_a_time(method: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
    """Refuse a method of the library's while another thread uses the connection, or while it is idle."""

    @functools.wraps(method)
    def guarded(self: C, /, *arguments: P.args, **more: P.kwargs) -> T:
        if self._busy or self._refuses is not None:
            raise self._refusal()
        self._busy = True
        try:
            result = method(self, *arguments, **more)
        except self.Error:
            self._busy = False
            raise
        self._busy = False
        return result

    return guarded


class Converters(dict[Any, Any]):
    """The library's own converters, which tell when they are changed in place."""

    __slots__ = ("touched",)

    def __init__(self, given: Mapping[Any, Any]) -> None:
        super().__init__(given)
        self.touched = False

    def _tells(name: str) -> Any:  # type: ignore[misc]  # noqa: N805  makes the methods below
        plain = getattr(dict, name)

        @functools.wraps(plain)
        def changing(self: Converters, *arguments: Any, **more: Any) -> Any:
            self.touched = True
            return plain(self, *arguments, **more)

        return changing

    __setitem__, __delitem__, __ior__ = _tells("__setitem__"), _tells("__delitem__"), _tells("__ior__")
    update, setdefault, pop = _tells("update"), _tells("setdefault"), _tells("pop")
    popitem, clear = _tells("popitem"), _tells("clear")
    del _tells


class Guarded:
    """Mixed into a library's connection."""

    encoding: str
    Error: Any  # the library's own classes, as PEP 249 has them on the connection
    InterfaceError: Any
    OperationalError: Any
    DataError: Any
    IntegrityError: Any
    NotSupportedError: Any
    ProgrammingError: Any

    _fd: int = -1
    _readable: Callable[[int], object]
    # At most one thread is inside: to look and to set is one step, as nothing is called in between.
    _busy = False  # a statement has begun and not ended: if no thread is in it, it was interrupted
    _refuses: Callable[[], Exception] | None = None  # where the connection may not be used now: makes the error
    _give_back: GiveBack | None = None  # where a pool has it: what a `close()` by the borrower calls
    _closed_in_work = False  # by its borrower, with a transaction open
    _in_unit = False
    _begun = False  # the unit has a transaction that was not ended: where the server knows of none, it is lost
    _wrote = False  # since the transaction began, something may have been written
    _lost = 0  # the number of the error with which the server rolled back behind the unit's back
    _why = _ROLLED_BACK
    _beginning: tuple[bytes, ...] = BEGIN  # how a transaction of this unit begins
    _on_end: Callable[[str], object] | None = None  # called for a commit() or rollback() of the borrower's
    _failed: tuple[Any, ...] = ()  # the number and the text of the last error
    _streamed = False  # rows were read one by one: an error among them came by without being seen
    _changed = 0  # what statements have left in the session: a level, and MOVES
    _noted: list[bytes] | None = None  # what `configure` changes, while it may
    _traces: Traces  # of the driver
    # The state of rest, as `settled` found it.
    _as_new: tuple[object, ...] = ()
    _names: frozenset[str] = frozenset()  # of the object's attributes
    _count = 0  # of them, and of those that `configure` added
    _own: Mapping[str, object] = MappingProxyType({})  # those that `configure` added
    _home: Any = None  # the database
    _returns = False  # whether a reset can choose it again
    _tracks = False  # the server can tell that its session has changed
    _session: tuple[bytes, ...] = ()  # what is said in each new session
    _said: tuple[bytes, ...] = ()  # and what `configure` said
    _has_tables = False  # among it are temporary tables, whose rows are state of the session
    _filled = False  # it has written, perhaps into a temporary table: that can't be said again

    # -- for the libraries to fill in ---------------------------------------------------------------------------------

    @abstractmethod
    def _flags(self) -> int:
        """The status flags of the server's last success; raises where the connection is closed."""

    @abstractmethod
    def _run(self, query: bytes) -> None:
        """Run a statement without a result, past the guard."""

    @abstractmethod
    def _is_open(self) -> bool:
        """Whether the connection is open."""

    @abstractmethod
    def _end(self) -> None:
        """Send COM_QUIT, and close."""

    def _descriptor(self) -> int | None:
        return self._fd if self._is_open() else None

    # -- who may use it -----------------------------------------------------------------------------------------------

    def _refusal(self) -> Exception:
        """Make the error for a use while it may not be used."""
        if self._refuses is not None:
            return self._refuses()
        if not self._is_open():
            return self.InterfaceError(0, "the connection is closed")  # type: ignore[no-any-return]
        error: Exception = self.InterfaceError(
            0, "another thread is in the middle of a statement on this connection, or one was interrupted there: a "
            "connection serves one thread at a time; acquire another one",
        )  # fmt: skip
        return error

    def _check_free(self) -> None:
        """Raise while another thread is inside, or while it may not be used."""
        if self._busy or self._refuses is not None:
            raise self._refusal()

    def close(self) -> None:
        """Give a pool's connection back at once, unless work is open on it; close any other, which rolls back."""
        if self._refuses is not None or not self._is_open():
            return
        if self._busy:
            raise self._refusal()
        give_back = self._give_back
        if give_back is not None:
            self._begin_close(give_back)
            if self._rests() and give_back(self):
                return
            self._closed_in_work = bool(self._in_unit or self._flags() & _mysql.IN_TRANSACTION)
        self._end()

    def _begin_close(self, give_back: GiveBack) -> None:
        """Refuse further use, where the object is the same for every borrower."""

    def _rests(self) -> bool:
        """Whether nothing is open: a transaction that has written nothing is rolled back for that."""
        if self._flags() & _mysql.MORE_RESULTS:
            return False
        try:
            if self._in_unit:
                self._check_begun()
            open_now = self._flags() & (_mysql.IN_TRANSACTION | _mysql.AUTOCOMMIT) != _mysql.AUTOCOMMIT
            if self._lost or (open_now and self._wrote):
                return False
            if open_now:
                self._run(b"ROLLBACK")
                self._run(b"SET autocommit = 1")
        except self.Error:
            return False
        self._forget_unit()
        return True

    def __enter__(self) -> Self:
        if self._refuses is not None:
            raise self._refuses()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End a transaction without a unit, as closing would; close nothing. An error dooms a unit's transaction."""
        if self._refuses is not None or not self._is_open() or self._busy:
            return
        if not self._in_unit:
            if self._flags() & _mysql.IN_TRANSACTION:
                self.rollback()
        elif error is not None and not self._lost:
            self._lost, self._why = UNKNOWN_LOSS, _LEFT_WITH_ERROR

    def select_db(self, db: Any) -> None:
        """Choose a database; the next borrower has the usual one again."""
        self._check_free()
        name = db if isinstance(db, str) else bytes(db).decode(self.encoding)
        self._note(f"USE `{name.replace('`', '``')}`", STAINED | MOVES)
        self._select_db(db)

    @one_at_a_time
    def _select_db(self, db: Any) -> None:
        super().select_db(db)  # type: ignore[misc]  # the library's

    # -- the session --------------------------------------------------------------------------------------------------

    def _note(self, query: str | bytes | bytearray, seen: int) -> None:
        """Note what a statement does to the session and to the transaction, before it is sent."""
        self._wrote = bool(seen & WRITES and not seen & ENDS) or (self._wrote and not seen & ENDS)
        self._changed |= seen & (LEVEL | MOVES)
        if self._has_tables and seen & WRITES:
            self._changed |= STAINED
        if self._noted is None:
            return
        if seen & LEVEL:
            self._noted.append(query.encode() if isinstance(query, str) else bytes(query))
        elif seen & WRITES and any(b"TEMPORARY" in said.upper() for said in self._noted):
            self._filled = True

    def _heard(self, seen: int) -> None:
        """Note that the server's answer told of a change; of autocommit the flags tell anyway."""
        if not seen & SETS_AUTOCOMMIT:
            self._changed |= STAINED

    def _rest(self) -> Iterable[bytes]:
        """Return the statements that make a session of the server's own one of this connection's."""
        yield from (self._names_text(), *self._session, *self._said)

    def _names_text(self) -> bytes:
        """Return the statement that sets what is the same in all sessions of this driver."""
        charset, collation = self._charset()
        parts = [f"SET NAMES {charset}" + (f" COLLATE {collation}" if collation else ""), "autocommit = 1"]
        if self._tracks:
            parts.append(TRACK)
        return ", ".join(parts).encode()

    @abstractmethod
    def _charset(self) -> tuple[str, str | None]:
        """Return the character set of the state of rest, and its collation where that was chosen."""

    def _prepare(self) -> None:
        """Put every attribute of this class into the object, so that what a borrower adds shows in their number."""
        for name in _OWN:
            self.__dict__.setdefault(name, getattr(self, name))

    # -- the unit -----------------------------------------------------------------------------------------------------

    def _before(self, query: str | bytes | bytearray, seen: int) -> None:
        """Refuse a statement of a unit that has lost its transaction; begin again where it ended otherwise."""
        if self._streamed:
            self._look(UNKNOWN_LOSS)
        if self._lost:
            if not _is_rollback(query):
                raise self._loss()
            self._lost, self._begun = 0, False
        elif not self._flags() & _mysql.IN_TRANSACTION:
            if self._begun:
                self._lost, self._why = UNKNOWN_LOSS, _ENDED_INSIDE
                raise self._loss()
            if not seen & ENDS:
                self._begin()
                self._wrote = bool(seen & WRITES)

    def _begin(self) -> None:
        try:
            for text in self._beginning:
                self._run(text)
        except self.Error:
            self._changed |= STAINED  # a level for the next transaction may have been set
            raise
        self._begun = True

    def _passed(self) -> None:
        """After a statement that may end the transaction, remember whether it did."""
        self._begun = bool(self._flags() & _mysql.IN_TRANSACTION)

    def _after(self, seen: int, error: Exception) -> None:
        """Find out whether an error has ended the unit's transaction."""
        about_one = (self.DataError, self.IntegrityError, self.NotSupportedError, self.ProgrammingError)
        number = _mysql.number_of(error)
        if _mysql.ends_session(number):
            self._lost, self._why = number, _ROLLED_BACK
            return
        if isinstance(error, about_one) or seen & ENDS:
            return
        try:
            self._look(number)
        except self.Error:  # the connection is gone, and with it the transaction; the first error is the one to tell
            self._lost, self._why = number, _ROLLED_BACK

    def _look(self, number: int) -> None:
        before = self._flags()
        self._run(ASK)
        self._streamed = False
        if before & _mysql.IN_TRANSACTION and not self._flags() & _mysql.IN_TRANSACTION:
            self._lost, self._why = number or UNKNOWN_LOSS, _ROLLED_BACK

    def _check_begun(self) -> None:
        """Before a COMMIT, find out whether the transaction to commit is there."""
        if self._streamed:
            self._look(UNKNOWN_LOSS)
        if self._begun and not self._lost and not self._flags() & _mysql.IN_TRANSACTION:
            self._lost, self._why = UNKNOWN_LOSS, _ENDED_INSIDE

    def _loss(self) -> Exception:
        error: Exception = self.OperationalError(self._lost, self._why)
        return error

    def _forget_unit(self) -> None:
        self._in_unit = self._begun = self._wrote = self._streamed = False
        self._lost, self._on_end, self._beginning = 0, None, BEGIN

    def commit(self) -> None:
        """Commit; inside a unit of work the next statement begins a new transaction."""
        self._check_free()
        if self._on_end is not None:
            self._on_end("commit")
        if self._in_unit:
            self._check_begun()
        if self._lost:
            raise self._loss()
        self._begun = self._wrote = False
        self._commit()

    def rollback(self) -> None:
        """Roll back; inside a unit of work the next statement begins a new transaction."""
        self._check_free()
        if self._on_end is not None:
            self._on_end("rollback")
        self._lost, self._streamed, self._begun, self._wrote = 0, False, False, False
        self._rollback()

    @one_at_a_time
    def _commit(self) -> None:
        super().commit()  # type: ignore[misc]  # the library's

    @one_at_a_time
    def _rollback(self) -> None:
        super().rollback()  # type: ignore[misc]  # the library's


# The attributes above that change: what the class gives a value, but its methods.
_OWN = tuple(
    name
    for name, value in vars(Guarded).items()
    if not (name.startswith("__") or callable(value)) or name in ("_refuses", "_on_end", "_give_back")
)


def _is_rollback(query: str | bytes | bytearray) -> bool:
    text = query if isinstance(query, str) else bytes(query[:80]).decode("latin-1")
    return text.strip(" \t\r\n;").upper() in {"ROLLBACK", "ROLLBACK WORK"}
