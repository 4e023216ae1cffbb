"""MySQL and MariaDB, for threads: what `PymysqlDriver` and `MysqlclientDriver` share, and the connection they lend.

A connection rests in autocommit; `begin` sends BEGIN. Inside a unit of work the connection is what its user knows:
where the transaction ends before its unit does (a `conn.commit()` in the middle, a CREATE TABLE, which MySQL commits by
itself), the next statement begins a new one first, which can still be rolled back.

The trap of MySQL is an error that rolls back the whole transaction: a deadlock (1213), a lock wait that timed out
(1205) where `innodb_rollback_on_timeout` is on, a conflict in a cluster. Whoever swallows it and goes on loses what was
written before, and saves what he writes afterwards. So after an error inside a unit the server is asked how things
stand (one round trip, none for errors about one statement's data or grammar). If the transaction is gone, the unit is
`aborted`: further statements and the commit are refused with the number of that error, until somebody rolls back.

Whether a connection is in a transaction is read from the status flags that the server sends with each success, as the
library keeps them. Not seen by `clean`, so left behind in `reset="auto"`: session settings, another database (USE),
temporary tables, LOCK TABLES and GET_LOCK. `reset="full"` removes all of them. Never undone: converters that were
changed in place.
"""

# ruff: noqa: SLF001  the driver and its connection are one thing in two objects

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from poolkit.config import PoolConfig
from poolkit.drivers import _common, _dbapi, _mysql

__all__ = ["Guarded", "MysqlDriver"]

_ASK = b"DO 0"  # its answer carries the status flags, and nothing else
_UNKNOWN_LOSS = 1180  # "Got error during COMMIT": the nearest there is for an error that nobody saw


class Guarded:
    """Mixed into a library's connection: it knows its unit of work, and doesn't let the server end it unnoticed."""

    Error: Any  # the library's own classes, as PEP 249 has them on the connection
    InterfaceError: Any
    OperationalError: Any
    DataError: Any
    IntegrityError: Any
    NotSupportedError: Any
    ProgrammingError: Any

    _fd: int = -1
    _readable: Callable[[int], object]
    _in_unit = False
    _begun = False  # the unit has a transaction that nobody has ended: where the server knows of none, it is lost
    _lost = 0  # the number of the error with which the server rolled back behind the unit's back
    _streamed = False  # rows were read one by one: an error among them came by without being seen
    _busy = False  # a statement has begun and not ended: if nobody is in it, it was interrupted

    # -- for the libraries to fill in ---------------------------------------------------------------------------------

    def _flags(self) -> int:
        """The status flags of the server's last success; raises where the connection is closed."""
        raise NotImplementedError

    def _run(self, query: bytes) -> None:
        """Run a statement without a result, past the guard."""
        raise NotImplementedError

    def _is_open(self) -> bool:
        raise NotImplementedError

    def _descriptor(self) -> int | None:
        return self._fd if self._is_open() else None

    # -- the guard ----------------------------------------------------------------------------------------------------

    def _before(self, query: bytes) -> None:
        """Refuse a statement of a unit that has lost its transaction; begin again where it ended otherwise."""
        if self._streamed:
            self._look(_UNKNOWN_LOSS)
        if self._lost:
            if query.strip(b" \t\r\n;").upper() != b"ROLLBACK":
                raise self._loss()
            self._lost, self._begun = 0, False
        elif not self._flags() & _mysql.IN_TRANSACTION:
            if self._begun:
                self._lost = _UNKNOWN_LOSS
                raise self._loss()
            if not _mysql.ends_transaction_itself(query):
                self._run(b"BEGIN")
                self._begun = True
        elif _mysql.ends_transaction_itself(query):
            self._begun = False

    def _after(self, query: bytes, error: Exception) -> None:
        """Find out whether an error has ended the unit's transaction."""
        about_one = (self.DataError, self.IntegrityError, self.NotSupportedError, self.ProgrammingError)
        number = _mysql.number_of(error)
        if _mysql.ends_session(number):
            self._lost = number
            return
        if isinstance(error, about_one) or _mysql.ends_transaction_itself(query):
            return
        try:
            self._look(number)
        except self.Error:  # the connection is gone, and with it the transaction; the first error is the one to tell
            self._lost = number

    def _look(self, number: int) -> None:
        before = self._flags()
        self._run(_ASK)
        self._streamed = False
        if before & _mysql.IN_TRANSACTION and not self._flags() & _mysql.IN_TRANSACTION:
            self._lost = number or _UNKNOWN_LOSS

    def _loss(self) -> Exception:
        text = "the server rolled back the transaction with this error: roll back, or run the whole unit again"
        error: Exception = self.OperationalError(self._lost, text)
        return error

    def commit(self) -> None:
        """Commit; inside a unit of work the next statement begins a new transaction."""
        if self._in_unit and self._streamed:
            self._look(_UNKNOWN_LOSS)
        if self._lost:
            raise self._loss()
        self._begun = False
        super().commit()  # type: ignore[misc]  # the library's

    def rollback(self) -> None:
        """Roll back; inside a unit of work the next statement begins a new transaction."""
        self._lost, self._streamed, self._begun = 0, False, False
        super().rollback()  # type: ignore[misc]  # the library's


class MysqlDriver:
    """What both drivers for threads share: all but connecting."""

    _options: frozenset[str]  # what may be set for the library in question
    _errors: Any  # its module with the classes of PEP 249

    def __init__(
        self,
        source: _common.Source,
        *,
        options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None,  # noqa: ARG002  nothing of it concerns a connection
        where: str = "",
    ) -> None:
        self._source = source
        self._where = where
        self._given = dict(options or {})
        _common.check_options(self._given, self._options, _mysql.REFUSED, where)
        self._fixed = self._settle(source) if isinstance(source, str) else None
        if self._fixed is None:
            self._merge({})  # so that a wrong option is told at once

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    alive_bypass = _common.ALIVE_BYPASS

    @property
    def defaults(self) -> Mapping[str, object]:
        """Nothing: the defaults of `PoolConfig` suit."""
        return MappingProxyType({})

    def _settle(self, url: str) -> dict[str, Any]:
        return self._merge(_mysql.parse(url, self._options, self._where))

    def _merge(self, url: dict[str, Any]) -> dict[str, Any]:
        """All arguments for one connect: what suits a pool, under the URL, under the options."""
        merged = {"charset": "utf8mb4", **url, **self._given}
        _mysql.check_values(merged, self._where)
        merged["isolation_level"] = _mysql.isolation(merged.get("isolation_level"), self._where)
        return {name: value for name, value in merged.items() if value is not None}

    def _arguments(self) -> tuple[dict[str, Any], list[bytes]]:
        """Return the library's arguments for a connect, and what is to be said in each new session."""
        fixed = self._fixed if self._fixed is not None else self._settle(_common.ask(self._source, self._where))
        arguments = dict(fixed)
        said = (
            ("sql_mode", "SET SESSION sql_mode = '{}'"),
            ("isolation_level", "SET SESSION TRANSACTION ISOLATION LEVEL {}"),
            ("init_command", "{}"),
        )
        session = [text.format(arguments.pop(name)).encode() for name, text in said if name in arguments]
        return arguments, session

    # -- looking: no I/O but a look at the socket ---------------------------------------------------------------------

    def alive(self, resource: Any) -> bool:
        """Look at the socket. This kind of server says nothing unasked but goodbye: a readable one is at its end."""
        return bool(resource._is_open() and not resource._readable(0))

    def clean(self, resource: Any) -> bool:
        """Whether the connection is as when it was opened, as far as the server has told and the library knows."""
        flags = _mysql.IN_TRANSACTION | _mysql.AUTOCOMMIT | _mysql.MORE_RESULTS
        return bool(
            resource._is_open()
            and resource._flags() & flags == _mysql.AUTOCOMMIT
            and not resource._in_unit
            and not resource._busy
            and not resource._streamed
            and self._attributes(resource) == resource._as_new
        )

    def is_broken(self, resource: Any, error: BaseException | None) -> bool:
        """Whether the session is over, is in the middle of something, or is one that has to be left.

        An interrupt (Ctrl-C, a SIGTERM that raises SystemExit) may have struck anywhere: not worth the doubt. A refusal
        to write because of `read_only` means that the server is no longer the primary.
        """
        if not resource._is_open() or resource._busy or isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        return any(
            _mysql.ends_session(_mysql.number_of(cause)) or _mysql.demotes(cause)
            for cause in _common.causes(error)
            if isinstance(cause, resource.Error)
        )

    def demoted(self, resource: Any, error: BaseException | None) -> bool:
        """Whether a write was refused because the server is no longer the primary."""
        return any(_mysql.demotes(cause) for cause in _common.causes(error) if isinstance(cause, resource.Error))

    def aborted(self, resource: Any) -> bool:
        """Whether the server has rolled back the unit's transaction with an error."""
        return bool(resource._in_unit and resource._lost)

    def in_transaction(self, resource: Any) -> bool:
        """Whether a transaction is open, or may be: without autocommit every statement begins one."""
        if not resource._is_open():
            return False
        return bool(resource._flags() & (_mysql.IN_TRANSACTION | _mysql.AUTOCOMMIT) != _mysql.AUTOCOMMIT)

    # -- doing --------------------------------------------------------------------------------------------------------

    def ping(self, resource: Any, timeout: float) -> bool:
        """Ask the server for an answer within `timeout` seconds; one round trip."""
        if not resource._is_open():
            return False
        try:
            with _dbapi.Deadline(resource._fd, timeout) as deadline:
                resource._run(_ASK)
        except resource.Error:
            return False
        return not deadline.passed

    def begin(self, resource: Any) -> None:
        """Send BEGIN; one round trip."""
        resource._run(b"BEGIN")
        resource._in_unit = resource._begun = True

    def commit(self, resource: Any) -> None:
        """Commit, one round trip; none where nothing is open.

        Raises where the connection was closed, or the server has rolled back, before the COMMIT.
        """
        begun = resource._in_unit
        if begun and not resource._is_open():
            resource._in_unit = False
            raise resource.InterfaceError(0, "the connection was closed before the COMMIT: nothing was saved")
        if begun and resource._streamed:
            resource._look(_UNKNOWN_LOSS)
        resource._in_unit = False
        if resource._lost:
            error = resource._loss()
            self.rollback(resource)
            raise error
        if not self.in_transaction(resource):
            if resource._begun:
                resource._begun, resource._lost = False, _UNKNOWN_LOSS
                error = resource._loss()
                resource._lost = 0
                raise error
            return
        try:
            resource.commit()
            self._to_rest(resource)
        except resource.Error:
            # Whether the transaction is still open is not for a failed statement to say: make sure that it is not.
            if resource._is_open():
                self._undo(resource)
            raise

    def _undo(self, conn: Any) -> None:
        try:
            conn.rollback()
        except conn.Error:  # the error of the COMMIT is the one to tell; reset looks again
            return

    def rollback(self, resource: Any) -> None:
        """Roll back, one round trip; none where nothing is open."""
        resource._in_unit = False
        if self.in_transaction(resource):
            resource.rollback()
            self._to_rest(resource)
        resource._lost, resource._streamed, resource._begun = 0, False, False

    def _to_rest(self, conn: Any) -> None:
        if not conn._flags() & _mysql.AUTOCOMMIT:
            conn._run(b"SET autocommit = 1")

    def reset(self, resource: Any, *, full: bool) -> None:
        """Roll back what is open and put every attribute back; `full`: the whole session, as after a connect."""
        if not resource._is_open() or resource._busy or resource._flags() & _mysql.MORE_RESULTS:
            raise resource.OperationalError("the connection came back closed, or with a statement or results under way")
        if resource._streamed:
            resource._run(_ASK)  # refused by the library where rows are still under way
        self.rollback(resource)
        self._restore(resource)
        if full:
            self._renew(resource)

    def _renew(self, conn: Any) -> None:
        """Make the session a new one, and say again what is said in each."""
        arguments, session = self._arguments()
        self._forget(conn, arguments)
        names = f"SET NAMES {arguments['charset']}"
        if "collation" in arguments:
            names += f" COLLATE {arguments['collation']}"
        conn._run(f"{names}, autocommit = 1".encode())
        for statement in session:
            conn._run(statement)

    def close(self, resource: Any) -> None:
        """Say goodbye and close; hang up where another thread is in the middle of a statement."""
        if not resource._is_open():
            return
        if resource._busy:
            _common.hang_up_on(resource._descriptor)  # who is in there wakes; the rest is freed as the last one lets go
            return
        _dbapi.say_little(resource._fd)
        resource.close()

    def abandon(self, resource: Any) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        if resource._is_open():
            _common.silence(resource._fd)

    # -- for the libraries to fill in ---------------------------------------------------------------------------------

    def _attributes(self, conn: Any) -> tuple[object, ...]:
        """All that the library keeps of its own about a session."""
        raise NotImplementedError

    def _restore(self, conn: Any) -> None:
        raise NotImplementedError

    def _forget(self, conn: Any, arguments: Mapping[str, Any]) -> None:
        """Have the server forget the session, and select the database again."""
        raise NotImplementedError

    def _fit(self, conn: Any, session: list[bytes]) -> None:
        """Prepare a new connection for its life in the pool."""
        conn._readable = _common.poller(conn._fd)
        conn._as_new = self._attributes(conn)
        _dbapi.keep_alive(conn._fd)
        for statement in session:
            conn._run(statement)
