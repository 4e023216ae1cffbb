"""MySQL and MariaDB, for threads: what `PymysqlDriver` and `MysqlclientDriver` share. See `_mysql_guard` for the unit.

A connection rests in autocommit; `begin` sends BEGIN. Whether a connection is in a transaction is read from the status
flags that the server sends with each success, as the library keeps them.

A session is clean where no statement has changed it: the texts are read, and the server tells what triggers and stored
functions did. One that is not is reset with COM_RESET_CONNECTION, which keeps the database and the character set as
they are: those are set again, and what the options and `configure` say in each session is said again. What no reset
undoes (SET ROLE, another database where the URL names none) has the connection replaced.

Not seen: a lock by name, or a user variable assigned in a SELECT, inside a trigger; LAST_INSERT_ID() and FOUND_ROWS().
"""

# ruff: noqa: SLF001  the driver and its connection are one thing in two objects

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

from poolkit.config import PoolConfig
from poolkit.driver import TransactionOptions
from poolkit.drivers import _common, _dbapi, _mysql
from poolkit.drivers._mysql_guard import ASK, BEGIN, UNKNOWN_LOSS, Guarded
from poolkit.drivers._mysql_statements import LASTING, MOVES, STAINED, Traces
from poolkit.errors import ConfigError

__all__ = ["Guarded", "MysqlDriver"]


class MysqlDriver(_common.UrlDriver):
    """What both drivers for threads share: all but connecting."""

    _options: frozenset[str]  # what may be set for the library in question
    _errors: type[Exception]  # the root of the library's errors
    _several_hosts = False
    alive_bypass = _common.ALIVE_BYPASS

    def __init__(
        self,
        source: _common.Source,
        *,
        options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None,  # noqa: ARG002  nothing of it concerns MySQL
        where: str = "",
    ) -> None:
        self._source = source
        self._where = where
        self._given = dict(options or {})
        self._harmless = _common.harmless_functions(self._given.pop("harmless_functions", ()), where)
        self._readers: dict[tuple[bool, str], Traces] = {}
        _common.check_options(self._given, self._options, _mysql.REFUSED, where)
        self._fixed = self._settle(source) if isinstance(source, str) else None
        if self._fixed is None:
            self._merge({})  # so that a wrong option is told at once

    def _settle(self, url: str) -> dict[str, Any]:
        return self._merge(_mysql.parse(url, self._options, self._where, several_hosts=self._several_hosts))

    def _merge(self, url: dict[str, Any]) -> dict[str, Any]:
        """All arguments for one connect: what suits a pool, under the URL, under the options."""
        merged = {"charset": "utf8mb4", **url, **self._given}
        _mysql.check_values(merged, self._where)
        merged["isolation_level"] = _mysql.isolation(merged.get("isolation_level"), self._where)
        merged["statement_timeout"] = _mysql.statement_timeout(merged.get("statement_timeout"), self._where)
        merged["session_settings"] = _mysql.session_settings(merged.get("session_settings"), self._where)
        self._encrypt(merged)
        return {name: value for name, value in merged.items() if value is not None}

    def _encrypt(self, merged: dict[str, Any]) -> None:
        """Put what is asked of TLS into the library's own terms."""

    def _arguments(self) -> tuple[dict[str, Any], list[bytes]]:
        """Return the library's arguments for a connect, and what is to be said in each new session."""
        fixed = self._fixed if self._fixed is not None else self._settle(_common.ask(self._source, self._where))
        arguments = dict(fixed)
        said = (
            ("sql_mode", "SET SESSION sql_mode = '{}'"),
            ("isolation_level", "SET SESSION TRANSACTION ISOLATION LEVEL {}"),
            ("statement_timeout", "{}"),
            ("session_settings", "{}"),
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
        if resource._noted is not None:
            resource._noted = None  # `configure` is over
        return not (
            resource._changed
            or resource._in_unit
            or resource._busy
            or resource._streamed
            or len(resource.__dict__) != resource._count
            or self._attributes(resource) != resource._as_new
            or not self._is_quiet(resource)
            or (resource._own and not resource._own.items() <= vars(resource).items())
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

    def failure_kind(self, error: BaseException) -> Literal["away", "refused"]:
        """Whether a failed connect may succeed later, or only after something was changed."""
        if isinstance(error, self._errors):
            return "refused" if _mysql.refuses(error) else "away"
        return "refused" if isinstance(error, (ValueError, TypeError)) else "away"

    def is_retryable(self, error: BaseException) -> bool:
        """Whether the library's error is the server's word for a deadlock or a serialization failure."""
        return isinstance(error, self._errors) and _mysql.number_of(error) in _mysql.RETRYABLE

    def aborted(self, resource: Any) -> bool:
        """Whether the unit's transaction is lost: rolled back with an error, or ended by a stored procedure."""
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
                resource._run(ASK)
        except resource.Error:
            return False
        return not deadline.passed

    def begin(self, resource: Any, options: TransactionOptions | None = None) -> None:
        """Send BEGIN; one round trip, and one more for an isolation level."""
        resource._beginning = BEGIN if options is None else _beginning(options)
        resource._failed = ()
        resource._begin()
        resource._in_unit = True
        resource._wrote = False

    def check_options(self, options: TransactionOptions) -> None:
        """Raise `ConfigError` for what MySQL has not."""
        problems = []
        if options.deferrable is not None:
            problems.append("deferrable is PostgreSQL's: MySQL has no such transactions")
        if options.settings:
            problems.append("settings can't be for one transaction in MySQL: session_settings are for each connection")
        if problems:
            raise ConfigError(problems, self._where)

    def on_explicit_end(self, resource: Any, callback: Callable[[str], object]) -> None:
        """Have the connection's own `commit()` and `rollback()` tell of themselves."""
        resource._on_end = callback

    def statement_error(self, resource: Any) -> str:
        """Return what the server said of the last statement that failed, its first line; "" where none did."""
        return str(resource._failed[-1]).partition("\n")[0] if resource._failed else ""

    def commit(self, resource: Any) -> None:
        """Commit, one round trip; none where nothing is open.

        Raises where the connection was closed, or the transaction has ended by itself, before the COMMIT.
        """
        resource._on_end = None
        if resource._in_unit:
            self._check_unit(resource)
        if not self.in_transaction(resource):
            return
        try:
            resource._run(b"COMMIT")
            self._to_rest(resource)
        except resource.Error:
            # Whether the transaction is still open is not for a failed statement to say: make sure that it is not.
            if resource._is_open():
                self._undo(resource)
            raise
        resource._begun, resource._beginning = False, BEGIN

    def _check_unit(self, conn: Any) -> None:
        """End a unit; raise where its transaction is not there any more, and it was not ended."""
        if not conn._is_open():
            lost = conn._lost
            conn._forget_unit()
            if lost:
                raise conn.OperationalError(lost, "the connection was lost before the COMMIT: nothing was saved")
            raise conn.InterfaceError(0, "the connection was closed before the COMMIT: nothing was saved")
        if conn._streamed:
            conn._look(UNKNOWN_LOSS)
        conn._check_begun()
        conn._in_unit = False
        if conn._lost:
            error = conn._loss()
            if self.in_transaction(conn):
                self._undo(conn)
            conn._forget_unit()
            raise error

    def _undo(self, conn: Any) -> None:
        try:
            conn._run(b"ROLLBACK")
            self._to_rest(conn)
        except conn.Error:  # the error of the COMMIT is the one to tell; reset looks again
            return

    def rollback(self, resource: Any) -> None:
        """Roll back, one round trip; none where nothing is open."""
        resource._in_unit = False
        if self.in_transaction(resource):
            resource._run(b"ROLLBACK")
            self._to_rest(resource)
        resource._forget_unit()

    def _to_rest(self, conn: Any) -> None:
        if not conn._flags() & _mysql.AUTOCOMMIT:
            conn._run(b"SET autocommit = 1")

    # -- the state of rest --------------------------------------------------------------------------------------------

    def settled(self, resource: Any) -> None:
        """Take the session and the object as they are for their state of rest: what was said in it is said again.

        Raises `ConfigError` where a transaction is open.
        """
        if self.in_transaction(resource) or resource._streamed:
            raise ConfigError("configure left a transaction or rows open on a new connection: end them", self._where)
        if resource._noted:
            resource._said = tuple(resource._noted)
            resource._has_tables = any(b"TEMPORARY" in said.upper() for said in resource._said)
        resource._noted = [] if resource._noted is None and not resource._as_new else None
        resource._returns = resource._home is not None or resource._returns or bool(resource._changed & MOVES)
        resource._changed = 0
        self._read_as(resource)
        if resource._names:
            resource._own = {name: value for name, value in vars(resource).items() if name not in resource._names}
        self._keep_converters(resource)  # those of now are kept alive: they are told by their identity
        resource._as_new = self._attributes(resource)
        if not resource._names:
            resource._prepare()
            resource._names = frozenset(vars(resource))
        resource._count = len(vars(resource))

    def _read_as(self, conn: Any) -> None:
        """Have statements read as the server reads them in this session."""
        way = not conn._flags() & _mysql.NO_BACKSLASH_ESCAPES, _mysql.codec(conn.encoding)
        traces = self._readers.get(way)
        if traces is None:
            traces = self._readers[way] = Traces(self._harmless, backslashes=way[0], encoding=way[1])
        conn._traces = traces

    def _check_fit(self, conn: Any, *, full: bool) -> None:
        """Raise where no reset can make the connection fit for the next borrower."""
        if not conn._is_open() or conn._busy or conn._flags() & _mysql.MORE_RESULTS:
            raise conn.OperationalError(
                _mysql.GONE, "the connection came back closed, or with a statement or results under way"
            )
        if conn._changed & LASTING:
            raise conn.OperationalError(UNKNOWN_LOSS, "a statement of its borrower (SET ROLE) is undone by no reset")
        if conn._changed and conn._filled:
            raise conn.OperationalError(
                UNKNOWN_LOSS, "what `configure` wrote into a temporary table can't be made again"
            )
        if conn._changed & MOVES and not conn._returns:
            raise conn.OperationalError(UNKNOWN_LOSS, "its borrower chose a database, and the URL names none")
        conn._noted = conn._on_end = None
        if full:
            conn._changed |= STAINED

    def _is_new(self, conn: Any) -> None:
        conn._changed = 0
        conn._forget_unit()
        for name in vars(conn).keys() - conn._names:
            del vars(conn)[name]
        vars(conn).update(conn._own)
        if len(vars(conn)) != conn._count:  # one of the library's own was deleted: that is not undone
            raise conn.OperationalError(UNKNOWN_LOSS, "its borrower deleted an attribute")

    def on_user_close(self, resource: Any, give_back: Callable[[Any], bool] | None) -> None:
        """Have `close` give the connection back; None: it is its borrower's for good."""
        resource._give_back = give_back

    def closed_by_user(self, resource: Any) -> bool:
        """Whether the borrower has closed it with a transaction open."""
        return bool(resource._closed_in_work)

    def close(self, resource: Any) -> None:
        """Say goodbye and close; hang up where another thread is in the middle of a statement."""
        if not resource._is_open():
            return
        if resource._busy:
            _common.hang_up_on(resource._descriptor)  # who is in there wakes; the rest is freed as the last one lets go
            return
        resource._busy = True  # a reset in a helper thread may be between two statements: it goes no further
        _dbapi.say_little(resource._fd)
        resource._end()

    def abandon(self, resource: Any) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        if resource._is_open():
            _common.silence(resource._fd)

    # -- for the libraries to fill in ---------------------------------------------------------------------------------

    @abstractmethod
    def _is_quiet(self, conn: Any) -> bool:
        """Whether the connection is open, in autocommit, with no transaction and no rows under way."""

    @abstractmethod
    def _attributes(self, conn: Any) -> tuple[object, ...]:
        """All that the library keeps of its own about a session."""

    @abstractmethod
    def _keep_converters(self, conn: Any) -> None:
        """Replace the converters by ones that note changes in place, and keep a copy of their present values."""

    def _fit(self, conn: Any, session: list[bytes]) -> None:
        """Prepare a new connection for its life in the pool."""
        conn._readable = _common.poller(conn._fd)
        conn._tracks = bool(conn.server_capabilities & _mysql.SESSION_TRACK)
        _dbapi.keep_alive(conn._fd)
        for statement in session:
            conn._run(statement)
        conn._session = tuple(session)
        self.settled(conn)


def _beginning(options: TransactionOptions) -> tuple[bytes, ...]:
    """Return the statements that begin such a transaction; a level is for the next one only."""
    modes = {True: b"START TRANSACTION READ ONLY", False: b"START TRANSACTION READ WRITE"}
    begin = BEGIN[0] if options.read_only is None else modes[options.read_only]
    if options.isolation_level is None:
        return (begin,)
    return f"SET TRANSACTION ISOLATION LEVEL {options.isolation_level.upper()}".encode(), begin
