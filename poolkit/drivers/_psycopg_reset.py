"""Making a psycopg session as new: one simple query, sent without waiting, whose answer is read later.

What could keep the reset itself from running is lifted first: an open transaction, timeouts, the role. The statements
that psycopg keeps prepared survive, with their plans. Settings return to what the connection was opened with; what
changed the session while it was configured is sent again behind the rest.
"""

# ruff: noqa: SLF001  see the psycopg driver

from __future__ import annotations

from typing import Any

import psycopg

from poolkit.drivers._libpq import IDLE, INERROR, INTRANS, refuse_busy
from poolkit.drivers._psycopg_session import Session, forget_prepared
from poolkit.drivers._startup import RESET
from poolkit.drivers._statements import CLEAN, LASTING, PREPARED

__all__ = ["begin_reset", "end_reset", "send"]

_SESSION = tuple(command.encode() for command in RESET)


def begin_reset(conn: Any, *, full: bool) -> bytes:
    """Put every attribute back and return what has to be sent; empty where the server need not know.

    Raises `psycopg.OperationalError` where the session can't be made as new, or is in use.
    """
    refuse_busy(conn)
    session: Session = conn._session
    session.noting = False
    level = session.level if session.is_ours else CLEAN  # a reset would reach another session
    unclean = session.is_ours and bool(
        full or level != CLEAN or (conn._notifies_backlog and not session.listens) or session.reports_otherwise(conn)
    )
    if not session.is_ours and session.reports_otherwise(conn):  # what a pooler keeps for each of its clients
        raise psycopg.OperationalError("a setting was changed behind a pooler in transaction mode; use SET LOCAL")
    if level >= LASTING:
        raise psycopg.OperationalError("what was done in this session can't be undone (LOAD, dblink or the like)")
    if unclean and session.unnotable:
        raise psycopg.OperationalError("the session was configured by statements that can't be sent again")
    if conn._begin_due and conn.pgconn.transaction_status == IDLE:
        conn._begin_due = False
    commands: list[bytes] = []
    deallocated = level >= PREPARED
    if conn.pgconn.transaction_status in (INTRANS, INERROR):
        commands.append(b"ROLLBACK")
        # as psycopg does: what was prepared may have been made for tables that the rollback takes away
        deallocated = deallocated or bool(conn._prepared._names)
    notes = session.notes_for(unclean=unclean, deallocated=deallocated)
    if notes and session.is_read_only_now():  # the rest is one transaction, and its first command decides
        commands.append(b"SET TRANSACTION READ WRITE")
    if unclean:
        commands += _SESSION
    if deallocated:
        forget_prepared(conn._prepared)
        commands.append(b"DEALLOCATE ALL")
    session.restore()
    if not session.is_ours:
        session.look()
    session.resetting = bool(commands)
    return b"; ".join([*commands, *notes])


def end_reset(conn: Any) -> None:
    """Note that the answer came, and that it was no error."""
    session: Session = conn._session
    session.resetting = False
    session.restore()  # notifications that came before the answer are dropped
    session.look()


def send(conn: Any, text: bytes) -> None:
    """Send a text without waiting for an answer, nor for the network to take it."""
    pgconn = conn.pgconn
    pgconn.send_query(text)
    pgconn.flush()
