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
    """Count what poolkit logs; errors of its own, and of threads and finalizers, go to the journal."""
    logger = logging.getLogger("poolkit")
    before = (logger.propagate, logger.level, sys.unraisablehook, threading.excepthook)
    handler = _Counting(journal, logged)
    logger.addHandler(handler)
    logger.propagate = False  # other handlers have locks, which a thread that is struck might keep
    logger.setLevel(logging.WARNING)
    sys.unraisablehook = lambda args: _complain(journal, args.err_msg or f"in {args.object!r}", args.exc_value)
    threading.excepthook = lambda args: _complain(journal, f"in {args.thread}", args.exc_value)
    try:
        yield
    finally:
        logger.propagate, level, sys.unraisablehook, threading.excepthook = before
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

    def __init__(self, journal: Journal, logged: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self._journal, self._logged = journal, logged

    def createLock(self) -> None:  # noqa: N802  logging's name
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        self._logged[str(record.msg).partition("\n")[0]] += 1
        if record.levelno >= logging.ERROR:
            trace = "" if record.exc_info is None else "".join(traceback.format_exception(*record.exc_info))
            self._journal.note(f"poolkit logged: {record.getMessage()}\n{trace}")
