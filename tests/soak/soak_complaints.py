"""What is logged during a round, and whatever Python itself complains of."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator

from soak_journal import Interrupt, Journal, SoftLimit

__all__ = ["taken_down"]


@contextlib.contextmanager
def taken_down(journal: Journal, logged: Counter[str]) -> Iterator[None]:
    """Count what poolkit and psycopg log; errors of poolkit's, and of threads and finalizers, go to the journal."""
    hooks = (sys.unraisablehook, threading.excepthook)
    sys.unraisablehook = lambda args: _complain(journal, args.err_msg or f"in {args.object!r}", args.exc_value)
    threading.excepthook = lambda args: _complain(journal, f"in {args.thread}", args.exc_value)
    try:
        with _only(_Counting(logged, journal), "poolkit"), _only(_Counting(logged), "psycopg"):
            yield
    finally:
        sys.unraisablehook, threading.excepthook = hooks


@contextlib.contextmanager
def _only(handler: logging.Handler, name: str) -> Iterator[None]:
    """Have no other handler see what is logged there.

    Others have locks, which a thread that is struck might keep, and may store records, with the connections in them.
    """
    logger = logging.getLogger(name)
    before = (logger.propagate, logger.level)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.propagate, level = before
        logger.setLevel(level)
        logger.removeHandler(handler)


def _complain(journal: Journal, where: str, error: BaseException | None) -> None:
    if isinstance(error, (Interrupt, SoftLimit)):  # struck in a callback of C's or a finalizer, it reaches nobody
        return
    if isinstance(error, ResourceWarning) and "unclosed file" in str(error):  # struck while a source file was read
        return
    trace = "" if error is None else "".join(traceback.format_exception(error))
    journal.note(f"Python complains, {where}:\n{trace}")


class _Counting(logging.Handler):
    """Without a lock: see above."""

    def __init__(self, logged: Counter[str], journal: Journal | None = None) -> None:
        super().__init__(logging.WARNING)
        self._logged, self._journal = logged, journal

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        self._logged[f"{record.name}: {record.msg}".partition("\n")[0]] += 1
        if record.levelno >= logging.ERROR and self._journal is not None:
            trace = "" if record.exc_info is None else "".join(traceback.format_exception(*record.exc_info))
            self._journal.note(f"poolkit logged: {record.getMessage()}\n{trace}")
