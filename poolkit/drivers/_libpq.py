"""What the psycopg drivers need of libpq: taking a URL apart, running statements, and looking closer at a socket."""

# ruff: noqa: SLF001  psycopg's own generators are the only way to write an operation once for threads and for asyncio

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Literal

import psycopg
from psycopg import AsyncConnection, BaseConnection, Connection, IsolationLevel, errors, generators, pq
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict

from poolkit.config import shown
from poolkit.drivers import _common
from poolkit.drivers._refusals import is_refused
from poolkit.drivers._url_parameters import read_postgres
from poolkit.errors import ConfigError

__all__ = [
    "ACTIVE",
    "IDLE",
    "INERROR",
    "INTRANS",
    "UNKNOWN",
    "check_arguments",
    "conninfo_keywords",
    "demotes",
    "ends_session",
    "failure_kind",
    "parse",
    "read_answer",
    "refuse_busy",
    "rest_state",
    "run",
    "still_there",
    "to_rest",
]

IDLE, ACTIVE, INTRANS, INERROR, UNKNOWN = (int(status) for status in pq.TransactionStatus)

_ENDING = ("FATAL", "PANIC")  # severities after which the server closes the connection


def conninfo_keywords() -> frozenset[str]:
    """Every parameter that this libpq knows."""
    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())


def rest_state(values: Mapping[str, Any], where: str) -> tuple[IsolationLevel | None, bool | None, bool | None]:
    """Check and normalise isolation_level, read_only and deferrable."""
    level = values["isolation_level"]
    if isinstance(level, str):
        level = IsolationLevel.__members__.get(level.upper().replace(" ", "_"), level)
    if level is not None and level not in list(IsolationLevel):
        names = ", ".join(name.lower().replace("_", " ") for name in IsolationLevel.__members__)
        raise ConfigError(f"isolation_level must be one of {names}, not {shown(level)}", where)
    level = None if level is None else IsolationLevel(level)
    for name in ("read_only", "deferrable"):
        if not isinstance(values[name], (bool, type(None))):
            raise ConfigError(f"{name} must be True, False or None, not {shown(values[name])}", where)
    return level, values["read_only"], values["deferrable"]


def check_arguments(options: Mapping[str, Any], where: str) -> None:
    """Check what psycopg itself would only stumble over later."""
    threshold = options.get("prepare_threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, type(None))):
        raise ConfigError(f"prepare_threshold must be a whole number or None, not {shown(threshold)}", where)
    if not isinstance(options.get("fold_begin", True), bool):
        raise ConfigError(f"fold_begin must be True or False, not {shown(options['fold_begin'])}", where)
    for name in ("row_factory", "cursor_factory"):
        if options.get(name) is not None and not callable(options[name]):
            raise ConfigError(f"{name} must be callable, not {shown(options[name])}", where)


def parse(url: str, where: str) -> dict[str, Any]:
    """Take a URL apart with libpq's own parser. Its errors quote the URL, so they are not passed on."""
    known = conninfo_keywords()
    read = read_postgres(_common.postgres_url(url, where), known.__contains__, known, where)
    unprepared = {} if read.prepares else {"prepare_threshold": None}
    try:
        return {**conninfo_to_dict(read.url), **unprepared}
    except psycopg.Error:
        pass  # it quotes the URL, and an error raised here would keep it as its context
    raise ConfigError(
        "malformed PostgreSQL URL: special characters in the user, the password and the database must be "
        "percent-encoded",
        where,
    )


def to_rest(conn: BaseConnection[Any]) -> None:
    """Turn autocommit on again, unless a transaction is still open."""
    if conn.pgconn.transaction_status == IDLE:
        conn._autocommit = True


def refuse_busy(conn: Connection[Any] | AsyncConnection[Any]) -> None:
    """Raise where a reset could not work, or would wait for somebody who still uses the connection."""
    if conn._tpc is not None or conn._num_transactions:
        raise psycopg.OperationalError("the connection came back in a transaction block, or in a two-phase commit")
    if conn.pgconn.transaction_status in (ACTIVE, UNKNOWN) or conn.lock.locked() or conn._pipeline is not None:
        raise psycopg.OperationalError("the connection came back closed, or with a statement or a pipeline under way")


def run(conn: BaseConnection[Any], command: bytes) -> PQGen[None]:
    """Send one or several statements and take all results; the first error is raised."""
    conn.pgconn.send_query(command)
    for result in (yield from generators.execute(conn.pgconn)):
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result)


def ends_session(error: BaseException) -> bool:
    """Whether the server closes the session with this error."""
    return isinstance(error, psycopg.Error) and _common.ends_session(error.sqlstate)


def demotes(error: BaseException, conn: BaseConnection[Any]) -> bool:
    """Whether this error says that the server has ceased to be the primary."""
    if not isinstance(error, psycopg.Error):
        return False
    reported = (lambda _name: None) if conn.closed else conn.info.parameter_status
    session = getattr(conn, "_session", None)
    by_default = session is not None and session.read_only_at_rest and reported("in_hot_standby") == "off"
    return _common.demotes(
        error.sqlstate,
        read_only=bool(conn.read_only) or by_default,
        standby=reported("in_hot_standby"),
        read_only_server=reported("default_transaction_read_only"),
    )


def failure_kind(error: BaseException) -> Literal["away", "refused"]:
    """Tell a connect that can't succeed before something is changed ("refused") from one that may."""
    for cause in _common.causes(error):
        if isinstance(cause, (ConfigError, psycopg.ProgrammingError)):
            return "refused"  # the client's own parser, or SQL that ran with the connect
        if isinstance(cause, psycopg.Error):
            return "refused" if is_refused(cause.sqlstate, str(cause).partition("\n")[0]) else "away"
    return "away"


def still_there(conn: BaseConnection[Any]) -> bool:
    """Read what has come, without waiting: the end, a goodbye of the server, or only a notification."""
    goodbyes: list[errors.Diagnostic] = []

    def listen(notice: errors.Diagnostic) -> None:
        if notice.severity_nonlocalized in _ENDING:
            goodbyes.append(notice)

    pgconn = conn.pgconn
    if pgconn.transaction_status != IDLE:
        return False
    conn.add_notice_handler(listen)
    try:
        for _ in range(100):  # bounded: a flood of notifications must not keep the borrower
            pgconn.consume_input()
            _take_notifications(pgconn, pgconn.notify_handler)
            if not conn._readable(0):  # type: ignore[attr-defined]
                break
    except psycopg.Error:
        return False
    finally:
        conn.remove_notice_handler(listen)
    if goodbyes:  # it is read now and won't be seen again: make sure that nobody takes the connection for alive
        pgconn.finish()
    return pgconn.transaction_status == IDLE


def _take_notifications(pgconn: pq.abc.PGconn, notified: Callable[[pq.PGnotify], object] | None) -> None:
    while (notification := pgconn.notifies()) is not None:
        if notified is not None:
            notified(notification)


def read_answer(
    pgconn: pq.abc.PGconn, deadline: float, notified: Callable[[pq.PGnotify], object] | None = None
) -> bool:
    """Read the answer to what was sent; False where it is not complete at `deadline`. Raises the error in it.

    The end of the answer may come long after its beginning, and is waited for here as well: libpq's own waiting has no
    limit, and psycopg keeps the GIL meanwhile, which stops every thread.

    Args:
        pgconn: libpq's connection.
        deadline: A moment of `time.monotonic`; one that has passed has what has come already be read.
        notified: Called with each notification that comes before; without it they are dropped.
    """
    while True:
        unsent = pgconn.flush()
        while not unsent and not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                return True
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result, encoding=pgconn._encoding)
        if not _common.wait_for(pgconn.socket, max(0.0, deadline - monotonic()), write=bool(unsent)):
            return False
        pgconn.consume_input()
        _take_notifications(pgconn, notified)
