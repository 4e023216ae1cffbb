"""One look at a server: where its log is, and whether it answers in time."""

from __future__ import annotations

import selectors
import time
from contextlib import ExitStack
from typing import Any

from django.db import OperationalError

from poolkit import AcquireTimeout, OpenFailed
from poolkit.drivers._dbapi import Deadline
from poolkit_django.backends import pools
from poolkit_django.replicas import Sight, end_of_record, lsn

__all__ = ["Silent", "look"]

_SIGHT = (
    "SELECT pg_is_in_recovery(),"
    " CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END,"
    " extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()),"
    " pg_postmaster_start_time()"
)


class Silent(Exception):
    """A server that does not answer in time: what hangs on it now would hang for long."""


def look(wrapper: Any, timeout: float, leased: Any = None) -> Sight:
    """Ask a server where it is, over its own pool, or over a connection that is `leased` already.

    Takes at most about twice `timeout` seconds. Raises `Silent`, and what a lease and a statement raise.
    """
    if leased is not None:
        with wrapper.wrap_database_errors:
            return _ask(leased, timeout)
    pool = pools.pool_for(wrapper)
    try:
        lease = pool.acquire(timeout, urgent=True)
    except AcquireTimeout as error:
        stats = pool.stats()
        if stats.out < stats.max_size:
            why = "" if stats.outage is None else f": {stats.outage}"
            raise Silent(f"no connection within {timeout:g} s{why}") from error
        return _look_beside(wrapper, timeout)
    except OpenFailed as error:
        if _is_timeout(error.__cause__):
            raise Silent(str(error)) from error
        raise
    try:
        with wrapper.wrap_database_errors:
            sight = _ask(lease.resource, timeout)
    except BaseException:
        lease.discard("broken")
        raise
    lease.release()
    return sight


def _look_beside(wrapper: Any, timeout: float) -> Sight:
    """Where every connection of the pool is out, they may hang or work: only one more can tell."""
    with wrapper.wrap_database_errors, ExitStack() as stack:
        try:
            connection = stack.enter_context(pools.spare(wrapper, timeout))
        except Exception as error:
            if _is_timeout(error):
                raise Silent(f"no connection within {timeout:g} s") from error
            raise
        return _ask(connection, timeout)


def _is_timeout(error: BaseException | None) -> bool:
    return isinstance(error, TimeoutError) or type(error).__name__ == "ConnectionTimeout"  # the drivers' own


def _ask(connection: Any, timeout: float) -> Sight:
    pgconn = getattr(connection, "pgconn", None)
    row: Any = _plain(connection, timeout) if pgconn is None else _bounded(pgconn, timeout)
    if row is None:
        return Sight()
    standby, position, age, started = row
    return Sight(
        None if position is None else end_of_record(lsn(position)),
        standby in (True, "t"),
        None if age is None else float(age),
        str(started),
    )


def _plain(connection: Any, timeout: float) -> Any:
    """For a library that waits as long as the server does: who says nothing in time is hung up on."""
    is_psycopg2 = hasattr(connection, "get_transaction_status")
    question = _SIGHT if is_psycopg2 else "SELECT 1"
    line = getattr(connection, "_fd", None)
    if line is None:  # a file, where nobody is waited for
        _answer(connection, question)
        return None
    with Deadline(line, timeout) as deadline:
        try:
            row = _answer(connection, question)
        except Exception as error:
            if deadline.passed:
                raise Silent(f"no answer within {timeout:g} s") from error
            raise
    return row if is_psycopg2 else None


def _answer(connection: Any, question: str) -> Any:
    cursor = connection.cursor()
    try:
        cursor.execute(question)
        return cursor.fetchone()
    finally:
        cursor.close()


def _bounded(pgconn: Any, timeout: float) -> list[str | None]:
    from psycopg import pq  # noqa: PLC0415  there is another driver for PostgreSQL

    deadline = time.monotonic() + timeout
    pgconn.send_query(_SIGHT.encode())
    row: list[str | None] | None = None
    error = ""
    while True:
        while pgconn.is_busy():
            left = deadline - time.monotonic()
            if left <= 0 or not _is_readable(pgconn.socket, left):
                raise Silent(f"no answer within {timeout:g} s")
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            break
        if result.status == pq.ExecStatus.TUPLES_OK:
            values = [result.get_value(0, column) for column in range(4)]
            row = [None if value is None else value.decode() for value in values]
        else:
            error = (result.error_message or b"").decode(errors="replace").strip()
    if row is None:
        raise OperationalError(error or "the server hung up")
    return row


def _is_readable(descriptor: int, seconds: float) -> bool:
    """Wait for something to read; `select()` would refuse a descriptor from 1024 on."""
    with selectors.DefaultSelector() as watch:
        watch.register(descriptor, selectors.EVENT_READ)
        return bool(watch.select(seconds))
