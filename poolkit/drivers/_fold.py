"""BEGIN rides with the first statement: a transaction of one statement takes two round trips, not three.

psycopg sends BEGIN before a transaction's first statement, and waits for the answer. Every step that a connection takes
with the server goes through its method `wait`, as a generator that has not run yet. That is the gate, and here it is
decided how the transaction begins:

- The steps of `Cursor.execute`, for a statement that can go along: BEGIN and the statement are sent together.
- Any other first steps in a transaction that `begin` has promised: BEGIN is sent at once, and they see it open.
- Otherwise psycopg does what it always does, which is to send BEGIN before the statement.

So no way leads round it, whatever cursor class is used, but to call libpq by hand (`conn.pgconn.exec_`).

They are sent in libpq's pipeline mode, while psycopg believes in a pipeline. There the protocol is the extended one: it
takes one statement at a time, and a COPY would leave the connection unusable. A statement goes along where these are no
question, judged by its first word and by what it does not contain; all others cost a round trip more.
Errors, results and the state of the connection are the same either way.
"""

# ruff: noqa: SLF001  see the psycopg driver: one spelling of each operation, for threads and for asyncio

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

import psycopg
from psycopg import BaseConnection, errors, generators, pq, sql
from psycopg.abc import PQGen

from poolkit.drivers._libpq import IDLE, run
from poolkit.drivers._psycopg_session import sends_as_psycopg

__all__ = ["Folding", "can_fold", "due", "nothing_begun", "through_the_gate"]

FATAL_ERROR = pq.ExecStatus.FATAL_ERROR

_ENDS = (BaseConnection._commit_gen.__code__, BaseConnection._rollback_gen.__code__)

_goes_along = re.compile(
    r"\s*+(?:/\*[^*]*+\*/)?+[\s(]*+"
    r"(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|TABLE|SET|SHOW|LOCK|EXPLAIN|SAVEPOINT)\b",
    re.IGNORECASE,
).match


class Folding:
    """What a connection must know of it; mixed in before psycopg's."""

    _settings = b""  # a SELECT that sets what each transaction of this borrowing is to have
    _folds = False  # whether the driver wants it, and libpq can
    _begin_due = False  # `begin` has promised a transaction that the server does not know of yet

    def _start_query(self) -> PQGen[None]:
        """Begin a transaction where none is open, as psycopg does; its settings go along."""
        conn: Any = self
        if conn._autocommit or conn.pgconn.transaction_status != IDLE:
            return ()  # type: ignore[return-value]  # no steps
        return self._start_with_settings(conn) if conn._settings else super()._start_query()  # type: ignore[misc]

    @staticmethod
    def _start_with_settings(conn: Any) -> PQGen[None]:
        begin = conn._get_tx_start_command()
        if conn._pipeline is None:
            yield from run(conn, begin + b"; " + conn._settings)
            return
        yield from conn._exec_command(begin)
        yield from conn._exec_command(conn._settings)
        yield from conn._pipeline._sync_gen()


def can_fold() -> bool:
    """Whether this libpq has a pipeline mode (14 and later)."""
    return psycopg.Pipeline.is_supported()


def due(conn: Any) -> bool:
    """Promise a transaction without a word to the server; False where that can't be, and BEGIN has to be sent."""
    if not conn._folds or conn._begin_due or conn.pgconn.transaction_status != IDLE or conn._pipeline is not None:
        return False
    conn._autocommit = False
    conn._begin_due = True
    return True


def nothing_begun(conn: Any) -> bool:
    """Take the promise back; whether the server never heard of the transaction, so that there is nothing to end."""
    if not conn._begin_due:
        return False
    conn._begin_due = False
    if conn.pgconn.transaction_status != IDLE:
        return False
    conn._autocommit = True
    return True


def through_the_gate(conn: Any, steps: Any, given: dict[str, Any] | None) -> tuple[Any, Any]:
    """Choose how a transaction begins, if these steps are its first; `steps` have not run yet.

    `given`: their variables, where they are those of `Cursor.execute`.
    Returns what has to be done before, or None, and the steps. The first is to be waited for by itself: psycopg waits
    for some steps only so long (`notifies`), and an answer to BEGIN must not be left behind.
    """
    if conn.pgconn.transaction_status != IDLE:
        conn._begin_due = False  # begun by hand
        return None, steps
    if (
        given is not None
        and conn._folds
        and conn._pipeline is None
        and _may_go_along(conn, given["self"], given["query"], given["params"])
    ):
        return None, _together(conn, steps)
    if not conn._begin_due:
        return None, steps
    if getattr(steps, "gi_code", None) in _ENDS:
        conn._begin_due = False
        return None, steps
    return _begin(conn), steps


def _begin(conn: Any) -> PQGen[None]:
    entering, conn._pipeline = conn._pipeline, None  # these steps would start a pipeline: BEGIN is no part of it
    try:
        yield from conn._start_query()
    finally:
        conn._pipeline = entering
    conn._begin_due = False


def _together(conn: Any, steps: Any) -> PQGen[None]:
    company = conn._pipeline = _Company(conn)
    try:
        yield from steps
    finally:
        if conn._pipeline is company:  # psycopg refused the statement, after it would have begun a transaction
            conn._pipeline = None
            conn._begin_due = conn._begin_due or bool(company.command_queue)


class _Company:
    """Stands in for psycopg's pipeline while one statement is executed; BEGIN waits in it for the statement."""

    __slots__ = ("_conn", "_preparing", "command_queue", "result_queue")

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self._preparing: bytes | None = None
        self.command_queue: list[partial[None]] = []
        self.result_queue: list[Any] = []

    @staticmethod
    def _sync_gen() -> Iterable[Any]:
        """Nothing yet: psycopg wants the answer to BEGIN before it goes on."""
        return ()

    def _communicate_gen(self) -> PQGen[None]:
        """Send all that has been queued, take the answers, and hand them on as psycopg does."""
        conn, pgconn = self._conn, self._conn.pgconn
        conn._pipeline = None
        conn._begin_due = False
        first = 2 if conn._settings else 1  # where the statement begins
        if len(self.command_queue) > first + 1:
            self._preparing = self.command_queue[first].args[0]
        pgconn.enter_pipeline_mode()
        unsent = self._send_all()
        answers = yield from self._answers(len(self.command_queue))
        if pgconn.status != pq.ConnStatus.BAD:
            pgconn.exit_pipeline_mode()
        failure = self._hand_on(answers) or unsent
        if failure is not None:
            raise failure

    def _send_all(self) -> psycopg.Error | None:
        """Send; a statement that libpq refuses to send fails alone, and the transaction begins."""
        failure = None
        for number, send in enumerate(self.command_queue):
            try:
                send()
            except psycopg.Error as error:
                if self._conn.pgconn.status == pq.ConnStatus.BAD:
                    raise
                failure = error
                self._forget()
                del self.command_queue[number:], self.result_queue[number:]
                break
        self._conn.pgconn.pipeline_sync()
        return failure

    def _answers(self, count: int) -> PQGen[list[list[Any]]]:
        """Take one answer to each command, and that to the end of the pipeline."""
        pgconn = self._conn.pgconn
        answers = [(yield from generators.execute(pgconn))]
        try:
            while len(answers) <= count:
                answers.append((yield from generators.fetch_many(pgconn)))
        except psycopg.OperationalError:
            # The server has said why, and hung up: that is the error to be raised.
            if not any(result.status == FATAL_ERROR for results in answers for result in results):
                raise
        return answers

    def _hand_on(self, answers: list[list[Any]]) -> psycopg.Error | None:
        """Give every answer to whom it concerns; returns the first error, which is the cause of all others."""
        first = None
        for queued, results in zip(self.result_queue, answers, strict=False):  # the last answer is the end's
            try:
                self._hand_over(queued, results)
            except psycopg.Error as error:
                first = first or error
        return first

    def _hand_over(self, queued: Any, results: list[Any]) -> None:
        conn = self._conn
        if queued is not None:
            cursor, cached = queued
            if cached:
                conn._prepared.validate(*cached, results)
            cursor._check_results(results)
            cursor._set_results(results)
            return
        for result in results:
            if result.status == FATAL_ERROR:
                self._forget()
                raise errors.error_from_result(result, encoding=conn.pgconn._encoding)

    def _forget(self) -> None:
        """Psycopg takes the statement for prepared as soon as it is queued; it is not."""
        names = self._conn._prepared._names
        for key in [key for key, name in names.items() if name == self._preparing]:
            del names[key]


def _may_go_along(conn: Any, cursor: Any, query: Any, params: Any) -> bool:
    kind = _kind(cursor.__class__)
    if kind is None:
        return False
    if isinstance(query, sql.Composable):
        query = query.as_string(conn)
    elif isinstance(query, bytes):
        query = query.decode("latin-1")  # only looked at: any encoding has ASCII in the same place
    if not isinstance(query, str) or not _goes_along(query):
        return False
    if ";" in query and ";" in query.rstrip("; \t\r\n"):
        return False
    # Without parameters psycopg speaks the simple protocol, in which $1 is another error.
    return "$" not in query or (kind == "server" and bool(params))


@lru_cache(maxsize=256)
def _kind(cursor: type) -> str | None:
    """Who puts the parameters into the statement, "server" or "client"; None for a class with a sending of its own."""
    if not sends_as_psycopg(cursor):
        return None
    return "client" if issubclass(cursor, (psycopg.ClientCursor, psycopg.AsyncClientCursor)) else "server"
