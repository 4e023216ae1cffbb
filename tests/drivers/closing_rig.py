"""Threads that do one call after the other, for tests of who closes a connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

from rigs import RIGS, _AsyncRig

THREADED = [name for name, kind in RIGS.items() if not issubclass(kind, _AsyncRig) and name != "sqlite-memory"]
SAME_OBJECT = {"psycopg2", "mysqlclient", "sqlite-file"}


class Thread:
    """A thread that does one call after the other."""

    def __enter__(self) -> Self:
        self._go, self._done, self._work = threading.Semaphore(0), threading.Semaphore(0), None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._work = None
        self._go.release()
        self._thread.join()

    def _serve(self) -> None:
        while self._go.acquire() and self._work is not None:
            try:
                self._answer = (True, self._work())
            except BaseException as error:  # noqa: BLE001  raised where it was called
                self._answer = (False, error)
            self._done.release()

    def __call__(self, work: Callable[[], Any]) -> Any:
        self._work = work
        self._go.release()
        self._done.acquire()
        (good, answer), self._answer = self._answer, (True, None)
        if not good:
            raise answer
        return answer
