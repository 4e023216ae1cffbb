"""The state of rest of a psycopg2 connection: what it is when it is new, whether it still is that, and the way back."""

# ruff: noqa: SLF001  the connection and its session are one thing in two objects

from __future__ import annotations

from typing import Any, cast

import psycopg2
from psycopg2 import extensions

from poolkit.drivers._configured import is_for_all_sessions
from poolkit.drivers._psycopg2_session import PooledConnection, Session, raw, set_autocommit, transaction_status
from poolkit.drivers._startup import RESET
from poolkit.drivers._statements import CLEAN

__all__ = ["READ_ONLY", "is_as_new", "reported", "reset_text", "restore", "settle"]

READ_ONLY = "default_transaction_read_only"

# Of what the server reports by itself: what a function behind a trigger or a view is most likely to have set. Each
# costs 0.35 us at each return, so it is not all of them. `search_path` is reported from PostgreSQL 18 on.
_WATCHED = ("TimeZone", "DateStyle", "search_path")

_UNDO = (
    *RESET, "DEALLOCATE ALL", "DISCARD PLANS",
    "SET datestyle TO 'ISO'",  # psycopg2 reads no other, and sets it after each connect
)  # fmt: skip


def settle(conn: PooledConnection) -> None:
    """Take what the connection is now for its state of rest. No I/O.

    Raises:
        psycopg2.ProgrammingError: A transaction is open, which would never be ended.
    """
    session = conn._session
    if transaction_status(conn) != extensions.TRANSACTION_STATUS_IDLE or conn.status != extensions.STATUS_READY:
        raise psycopg2.ProgrammingError("the new connection was left in a transaction: end it where it is configured")
    set_autocommit(conn, True)
    if session.news is not None:
        _keep(session, session.news)
        session.news = []
    session.traces = CLEAN
    session.held = 0
    known = [name for name in _WATCHED if raw.get_parameter_status(conn, name) is not None]
    session.watched = tuple(known)
    session.reported = reported(conn, session)
    session.read_only = raw.get_parameter_status(conn, READ_ONLY) == "on"
    session.as_new = _attributes(conn)
    session.types = dict(conn.string_types), dict(conn.binary_types)
    session.notices, session.notifies = conn.notices, conn.notifies
    session.own = dict(vars(conn))


def _keep(session: Session, news: list[tuple[int, str]]) -> None:
    """Keep what was run on a new connection and changed its session, so that a reset can send it again."""
    for level, text in news:
        if level and not is_for_all_sessions(text):
            session.rest.append(text.strip().rstrip(";"))
            session.cannot_be_repeated |= not text


def reported(conn: PooledConnection, session: Session) -> tuple[str | None, ...]:
    """Read what the server last said of the session."""
    return tuple([raw.get_parameter_status(conn, name) for name in session.watched])


def is_as_new(conn: PooledConnection, session: Session) -> bool:
    """Whether psycopg2 and the server have of the session what they had when it was new. No I/O."""
    return (
        _attributes(conn) == session.as_new
        and not conn.notifies
        and conn.notices is session.notices
        and conn.notifies is session.notifies
        and conn.string_types == session.types[0]
        and conn.binary_types == session.types[1]
        and conn.__dict__ == session.own
        and reported(conn, session) == session.reported
    )


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


def reset_text(session: Session) -> str:
    """Return the statements that make a session as new, for one message."""
    return "\n;".join([*_UNDO, *session.rest])  # a comment may end a statement: hence the new line


def restore(conn: PooledConnection) -> None:
    """Put every attribute back. To be called in autocommit, with nothing open.

    I/O only where the encoding or a mode of transactions was changed by psycopg2's own methods.
    """
    session = conn._session
    _, _, factory, encoding, level, readonly, deferrable = session.as_new
    for name in conn.__dict__.keys() - session.own.keys():
        del conn.__dict__[name]
    conn.__dict__.update(session.own)
    for types, as_new in zip((conn.string_types, conn.binary_types), session.types, strict=True):
        if types != as_new:
            types.clear()
            types.update(as_new)
    put = cast("Any", object.__setattr__)
    put(conn, "notices", session.notices)
    put(conn, "notifies", session.notifies)
    put(conn, "cursor_factory", factory)
    conn.notifies.clear()
    if conn.encoding != encoding:
        raw.set_client_encoding(conn, str(encoding))
    if (conn.isolation_level, conn.readonly, conn.deferrable) != (level, readonly, deferrable):
        wanted: list[Any] = ["default" if value is None else value for value in (level, readonly, deferrable)]
        raw.set_session(conn, wanted[0], wanted[1], wanted[2], True)
