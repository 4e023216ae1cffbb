"""Workers: a bounded number of daemon threads for calls that block.

What `concurrent.futures` offers has threads that Python waits for at the end of the program, without a limit. One that
asks a dead server would hold up the exit for as long as that takes. Ours do not, and leave by themselves after a while
with nothing to do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Any, TypeVar

__all__ = ["Workers"]

T = TypeVar("T")

LINGER = 10.0  # seconds an idle thread waits for more


class Workers:
    """Runs calls in up to `limit` threads, each started when all others are busy."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)  # for the threads
        self._less = threading.Condition(self._lock)  # for those who wait for the threads
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = 0
        self._idle = 0
        self._stopped = False

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call `work` with the arguments in a thread. Raises `RuntimeError` where no thread can be started."""
        future: Future[T] = Future()
        job = (future, lambda: work(*arguments))
        with self._lock:
            self._jobs.append(job)
            short = self._idle < len(self._jobs) and self._threads < self._limit
            if short:
                self._threads += 1
            else:
                self._more.notify()
        if short:
            self._start(job)
        return future

    def _start(self, job: tuple[Future[Any], Callable[[], Any]]) -> None:
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:  # the interpreter is ending, or the system has no thread left
            with self._lock:
                self._threads -= 1
                if self._threads or job not in self._jobs:  # one that is there will come to it
                    return
                self._jobs.remove(job)
            raise

    def stop(self) -> None:
        """Let the threads end when what was submitted is done. Does not wait."""
        with self._lock:
            self._stopped = True
            self._more.notify_all()

    def settle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for what was submitted; returns whether all of it is done."""
        until = monotonic() + timeout
        with self._lock:
            while self._jobs or self._threads > self._idle:
                pause = until - monotonic()
                if pause <= 0:
                    return False
                self._less.wait(pause)
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                job = self._next()
                if job is None:
                    self._threads -= 1
                    return
            future, work = job
            if future.set_running_or_notify_cancel():
                _fulfil(future, work)
            del job, future, work  # or this frame would keep the result alive while it waits

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """Wait for something to do; None when it is time to leave."""
        until = monotonic() + LINGER
        self._idle += 1
        self._less.notify_all()
        while not self._jobs and not self._stopped and monotonic() < until:
            self._more.wait(until - monotonic())
        self._idle -= 1
        return self._jobs.popleft() if self._jobs else None


def _fulfil(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001  it is the caller's
        future.set_exception(error)
    else:
        future.set_result(result)
