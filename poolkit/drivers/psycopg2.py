"""psycopg2, for threads: `Psycopg2Driver`, which lends psycopg2's own connections.

A connection rests in autocommit. `begin` turns that off and has psycopg2 send its BEGIN at once, so inside a unit of
work the connection is what its user knows: after a `conn.commit()` in the middle the next statement begins a new
transaction, which can still be rolled back. `commit` and `rollback` turn autocommit on again.

Whether a connection is alive, clean or in a transaction is read from libpq's own state and from the socket, never from
what poolkit did with it. `isolation_level`, `readonly` and `deferrable` are the session's defaults, given to the server
with the connect: psycopg2 would send them again each time autocommit goes on or off.

Not seen by `clean`, so left behind in `reset="auto"`: session settings made by SQL (`SET`, temporary tables, session
advisory locks). Use `SET LOCAL`, or `reset="full"`. Never undone: types registered on the connection.

psycopg2 connects and waits inside of libpq, which counts in whole seconds: `open` rounds its limit up to whole seconds,
two at least, for each host.
"""

# ruff: noqa: SLF001  the driver and its connection are one thing in two objects

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

import psycopg2
from psycopg2 import errors, extensions

from poolkit.config import PoolConfig
from poolkit.drivers import _common, _dbapi
from poolkit.drivers._url_parameters import read_postgres
from poolkit.errors import ConfigError

__all__ = ["PooledConnection", "Psycopg2Driver", "for_a_pool"]

_IDLE = extensions.TRANSACTION_STATUS_IDLE
_OPEN = (extensions.TRANSACTION_STATUS_INTRANS, extensions.TRANSACTION_STATUS_INERROR)
_BUSY = (extensions.TRANSACTION_STATUS_ACTIVE, extensions.TRANSACTION_STATUS_UNKNOWN)

_REFUSED = {
    "autocommit": "connections rest in autocommit; use a transaction or a unit of work",
    "connection_factory": "the connection's class is poolkit's own",
    "async": "the pool is for threads",
    "async_": "the pool is for threads",
    "dsn": "it is the URL",
}
_SESSION = {
    "isolation_level": "default_transaction_isolation",
    "readonly": "default_transaction_read_only",
    "deferrable": "default_transaction_deferrable",
}
_LEVELS = ("read uncommitted", "read committed", "repeatable read", "serializable")
# For the nearest name in an error; what is an option is for libpq to say.
_COMMON_NAMES = (
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname", "gssencmode", "host",
    "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts",
    "options", "passfile", "password", "port", "requirepeer", "service", "sslcert", "sslcrl", "sslkey", "sslmode",
    "sslpassword", "sslrootcert", "target_session_attrs", "tcp_user_timeout", "user",
)  # fmt: skip


class PooledConnection(extensions.connection):
    """A psycopg2 connection that remembers how to look at its socket, and what it was like when it was new."""

    _fd: int
    _readable: Callable[[int], object]
    _as_new: tuple[object, ...]

    def _descriptor(self) -> int | None:
        return None if self.closed else self._fd


class Psycopg2Driver:
    """psycopg2 for threads; lends `psycopg2.extensions.connection`.

    `source` is a URL, or a callable that returns one for each connect. `options` takes libpq's connection parameters
    and `cursor_factory`, `isolation_level`, `readonly` and `deferrable`. Raises `ConfigError`.
    """

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
        given = dict(options or {})
        _check_options(given, where)
        self._session = _session({name: given.pop(name, None) for name in _SESSION}, where)
        self._read_only = "default_transaction_read_only=on" in self._session
        self._parameters = given
        self._fixed = _parse(source, where) if isinstance(source, str) else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    alive_bypass = _common.ALIVE_BYPASS

    @property
    def defaults(self) -> Mapping[str, object]:
        """Nothing: the defaults of `PoolConfig` are made for PostgreSQL."""
        return MappingProxyType({})

    # -- opening and closing ------------------------------------------------------------------------------------------

    def open(self, timeout: float) -> extensions.connection:
        """Connect within `timeout`, rounded up to seconds that libpq can count. Raises `psycopg2.OperationalError`."""
        conn: PooledConnection = psycopg2.connect(connection_factory=PooledConnection, **self._arguments(timeout))
        self._fit(conn)
        return conn

    @staticmethod
    def _fit(conn: PooledConnection) -> None:
        """Prepare a new connection for its life in the pool."""
        conn.autocommit = True
        conn._fd = conn.fileno()
        conn._readable = _common.poller(conn._fd)
        conn._as_new = _attributes(conn)

    def _arguments(self, timeout: float) -> dict[str, Any]:
        """All parameters for one connect: what suits a pool, under the URL, under the options."""
        url = self._fixed if self._fixed is not None else _parse(_common.ask(self._source, self._where), self._where)
        arguments = for_a_pool({**url, **self._parameters}, timeout)
        if self._session:
            arguments["options"] = f"{arguments.get('options') or ''} {self._session}".strip()
        return arguments

    def close(self, resource: extensions.connection) -> None:
        """Say goodbye and close; hang up where another thread is in the middle of a statement."""
        conn = cast("PooledConnection", resource)
        if conn.closed:
            return
        if conn.get_transaction_status() in _BUSY:
            _common.hang_up_on(
                conn._descriptor
            )  # closing would wait for the statement; it is closed as the last one lets go
            return
        _dbapi.say_little(conn._fd)
        conn.close()

    def abandon(self, resource: extensions.connection) -> None:
        """Put a dead socket in the place of the inherited one; the parent's session stays as it is."""
        conn = cast("PooledConnection", resource)
        if not conn.closed:
            _common.silence(conn._fd)

    # -- looking: no I/O but a look at the socket ---------------------------------------------------------------------

    def alive(self, resource: extensions.connection) -> bool:
        """Look at the socket. A readable one is looked at closer, and its notifications are kept in `conn.notifies`."""
        conn = cast("PooledConnection", resource)
        if conn.closed:
            return False
        if conn._readable(0) and not _still_there(conn):
            return False
        return conn.get_transaction_status() == _IDLE

    def clean(self, resource: extensions.connection) -> bool:
        """Whether the connection is as when it was opened, as far as libpq and psycopg2 know."""
        conn = cast("PooledConnection", resource)
        return (
            not conn.closed
            and conn.get_transaction_status() == _IDLE
            and not conn.notifies
            and _attributes(conn) == conn._as_new
        )

    def is_broken(self, resource: extensions.connection, error: BaseException | None) -> bool:
        """Whether the session is over, is in the middle of something, or is one that has to be left.

        An interrupt (Ctrl-C, a SIGTERM that raises SystemExit) may have struck anywhere: not worth the doubt. A refusal
        to write where nobody asked for read-only means that the server is no longer the primary.
        """
        conn = cast("PooledConnection", resource)
        if conn.closed or isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        if conn.get_transaction_status() in _BUSY:
            return True
        return any(_ends_session(cause) or self._demotes(cause, conn) for cause in _common.causes(error))

    def demoted(self, resource: extensions.connection, error: BaseException | None) -> bool:
        """Whether a write was refused because the server is no longer the primary."""
        conn = cast("PooledConnection", resource)
        return any(self._demotes(cause, conn) for cause in _common.causes(error))

    def _demotes(self, error: BaseException, conn: PooledConnection) -> bool:
        if not isinstance(error, errors.ReadOnlySqlTransaction):
            return False
        known = not conn.closed
        return _common.demotes(
            "25006",
            read_only=self._read_only or (known and bool(conn.readonly)),
            standby=conn.get_parameter_status("in_hot_standby") if known else None,
            read_only_server=conn.get_parameter_status("default_transaction_read_only") if known else None,
        )

    def aborted(self, resource: extensions.connection) -> bool:
        """Whether a failed statement has aborted the transaction."""
        return _status(resource) == extensions.TRANSACTION_STATUS_INERROR

    def in_transaction(self, resource: extensions.connection) -> bool:
        """Whether a transaction is open, or a statement is running."""
        return _status(resource) in (*_OPEN, extensions.TRANSACTION_STATUS_ACTIVE)

    # -- doing --------------------------------------------------------------------------------------------------------

    def ping(self, resource: extensions.connection, timeout: float) -> bool:
        """Ask the server for an answer within `timeout` seconds; one round trip."""
        conn = cast("PooledConnection", resource)
        if conn.closed:
            return False
        try:
            with _dbapi.Deadline(conn._fd, timeout) as deadline:
                _run(conn, "SELECT 1")
        except psycopg2.Error:
            return False
        return not deadline.passed

    def begin(self, resource: extensions.connection) -> None:
        """Send BEGIN; one round trip."""
        resource.autocommit = False
        try:
            # psycopg2 sends BEGIN before the first thing that is done in a transaction. This is one that needs nothing
            # else of the server: a large object that is named, and not opened.
            resource.lobject(1, "n")
        except BaseException:
            _to_rest(resource)
            raise

    def commit(self, resource: extensions.connection) -> None:
        """Commit, one round trip; none where nothing is open. Raises `InFailedSqlTransaction` for an aborted one."""
        try:
            if self.aborted(resource):  # COMMIT would roll back and call it a success
                _end(resource, "ROLLBACK")
                raise errors.InFailedSqlTransaction("a failed statement aborted the transaction: it was rolled back")
            _end(resource, "COMMIT")
        finally:
            _to_rest(resource)

    def rollback(self, resource: extensions.connection) -> None:
        """Roll back, one round trip; none where nothing is open."""
        try:
            _end(resource, "ROLLBACK")
        finally:
            _to_rest(resource)

    def reset(self, resource: extensions.connection, *, full: bool) -> None:
        """Roll back what is open and put every attribute back; `full`: the whole session, in one round trip."""
        conn = cast("PooledConnection", resource)
        if conn.closed or conn.get_transaction_status() in _BUSY:
            raise psycopg2.OperationalError("the connection came back closed, or with a statement under way")
        if conn.status == extensions.STATUS_PREPARED:
            raise psycopg2.OperationalError("the connection came back in a two-phase commit")
        _end(conn, "ROLLBACK")
        _to_rest(conn)
        if full:
            _run(conn, "DISCARD ALL")
            if not str(conn.get_parameter_status("DateStyle")).startswith("ISO"):
                _run(conn, "SET datestyle TO 'ISO'")  # psycopg2 reads no other, and sets it after each connect
        elif conn.notifies:
            _run(conn, "UNLISTEN *")
        _restore(conn)


def for_a_pool(given: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Add to the parameters of a connect what suits a pool; it ends within `timeout`, rounded up, for each host."""
    arguments = {
        "fallback_application_name": _common.application_name(),
        "keepalives_idle": _common.KEEPALIVE_IDLE,
        "keepalives_interval": _common.KEEPALIVE_INTERVAL,
        "keepalives_count": _common.KEEPALIVE_COUNT,
        "tcp_user_timeout": _common.USER_TIMEOUT * 1000,
        **given,
    }
    hosts = str(arguments.get("hostaddr") or arguments.get("host") or "").count(",") + 1
    arguments.setdefault("connect_timeout", max(2, math.ceil(timeout / hosts)))
    return arguments


def _status(conn: extensions.connection) -> int:
    return extensions.TRANSACTION_STATUS_UNKNOWN if conn.closed else conn.get_transaction_status()


def _attributes(conn: extensions.connection) -> tuple[object, ...]:
    """All that psycopg2 keeps of its own about a session."""
    return (
        conn.status,
        conn.autocommit,
        conn.cursor_factory,
        conn.encoding,
        conn.isolation_level,
        conn.readonly,
        conn.deferrable,
    )


def _restore(conn: PooledConnection) -> None:
    _, _, factory, encoding, level, readonly, deferrable = conn._as_new
    conn.notifies.clear()
    conn.notices.clear()
    conn.cursor_factory = cast("Any", factory)
    if conn.encoding != encoding:
        conn.set_client_encoding(str(encoding))
    if (conn.isolation_level, conn.readonly, conn.deferrable) != (level, readonly, deferrable):
        wanted: list[Any] = ["default" if value is None else value for value in (level, readonly, deferrable)]
        conn.set_session(wanted[0], wanted[1], wanted[2], True)


def _run(conn: extensions.connection, statement: str) -> None:
    with extensions.cursor(conn) as cursor:  # psycopg2's own class: the user's may do anything with a statement
        cursor.execute(statement)


def _end(conn: extensions.connection, statement: str) -> None:
    """End what is open, whether psycopg2 began it or somebody's own SQL."""
    if conn.status == extensions.STATUS_BEGIN:
        conn.commit() if statement == "COMMIT" else conn.rollback()
    elif conn.get_transaction_status() in _OPEN:
        _run(conn, statement)


def _to_rest(conn: extensions.connection) -> None:
    """Turn autocommit on again, unless a transaction is still open."""
    if not conn.closed and conn.status == extensions.STATUS_READY and not conn.autocommit:
        conn.autocommit = True


def _still_there(conn: PooledConnection) -> bool:
    """Read what has come, without waiting: the end, a goodbye of the server, or only a notification.

    What a server says unasked, besides notifications, is a goodbye: it comes as a notice, ahead of the end.
    """
    kept, heard = conn.notices, list[str]()
    conn.notices = heard
    try:
        for _ in range(100):  # bounded: a flood of notifications must not keep the borrower
            conn.poll()
            if heard or not conn._readable(0):
                break
    except psycopg2.Error:
        return False
    finally:
        conn.notices = kept
    if heard:  # it is read now and won't be seen again: make sure that nobody takes the connection for alive
        _common.hang_up(conn._fd)
        conn.close()
    return not heard


def _classes(codes: Iterable[str]) -> Iterator[type[Exception]]:
    for code in codes:
        with contextlib.suppress(KeyError):  # newer than this psycopg2, which then raises a class that has the code
            yield errors.lookup(code)


_ENDING = tuple(_classes([*_common.ENDING, "08000", "08001", "08003", "08004", "08006", "08P01"]))


def _ends_session(error: BaseException) -> bool:
    if not isinstance(error, psycopg2.Error):
        return False
    return isinstance(error, _ENDING) or _common.ends_session(error.pgcode)


def _parse(url: str, where: str) -> dict[str, str]:
    """Take a URL apart with libpq's own parser. Its errors quote the URL, so they are not passed on."""
    plain = _common.postgres_url(url, where)
    read = read_postgres(plain, _is_parameter, _COMMON_NAMES, where, refused=_REFUSED)  # it never prepares statements
    try:
        return dict(extensions.parse_dsn(read.url))
    except psycopg2.Error:
        raise ConfigError(
            "malformed PostgreSQL URL: special characters in the user, the password and the database must be "
            "percent-encoded",
            where,
        ) from None


def _check_options(given: Mapping[str, Any], where: str) -> None:
    known = {"cursor_factory", *_SESSION, *_COMMON_NAMES}
    known |= {name for name in given if name not in _REFUSED and _is_parameter(name)}
    _common.check_options(given, known, _REFUSED, where)
    factory = given.get("cursor_factory")
    if factory is not None and not (isinstance(factory, type) and issubclass(factory, extensions.cursor)):
        raise ConfigError(f"cursor_factory must be a subclass of psycopg2's cursor, not {factory!r}", where)


def _is_parameter(name: str) -> bool:
    """Whether this libpq knows a connection parameter of that name."""
    if not name.isidentifier():
        return False
    try:
        extensions.parse_dsn(f"{name}=1")
    except psycopg2.Error:
        return False
    return True


def _session(wanted: Mapping[str, Any], where: str) -> str:
    """Spell the session's defaults as the server takes them with the connect."""
    level = wanted["isolation_level"]
    if isinstance(level, str):
        level = level.lower().replace("_", " ")
    if level is not None and level not in _LEVELS:
        raise ConfigError(f"isolation_level must be one of {', '.join(_LEVELS)}, not {level!r}", where)
    settings = [] if level is None else [f"{_SESSION['isolation_level']}={level.replace(' ', chr(92) + ' ')}"]
    for name in ("readonly", "deferrable"):
        value = wanted[name]
        if not isinstance(value, (bool, type(None))):
            raise ConfigError(f"{name} must be True, False or None, not {value!r}", where)
        if value is not None:
            settings.append(f"{_SESSION[name]}={'on' if value else 'off'}")
    return " ".join(f"-c {setting}" for setting in settings)
