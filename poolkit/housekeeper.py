"""The housekeeper: one daemon thread for all thread pools of a process, whatever their number.

It visits every pool once a second (`sweep`: old and idle connections, min_size, leaks) and calls back at set times
(the next attempt to connect during an outage). It starts with the first pool that opens something, ends by itself
when no pool is left, and is started anew in a forked child on first use. Its work is short: what may block, connects
and the closes that a visit leads to, runs in threads of its own.

No thread is started while the lock is held: where threads are greenlets, starting one lets the others run, and a lock
made before they were greenlets does not tell one from another.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import random
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol
from weakref import WeakSet

from poolkit import fork, surroundings
from poolkit.clock import Leaps, clock

__all__ = ["Housekeeper", "Runtime", "Swept", "shared"]

logger = logging.getLogger("poolkit")

SWEEP_EVERY = 1.0


class Swept(Protocol):
    """What the housekeeper visits."""

    def sweep(self) -> object:
        """Look after old, idle and leaked resources; must not block for long."""

    def after_leap(self, seconds: float) -> object:
        """Replace every resource: the machine stood still for so long, and its clock with it."""


class Runtime(Protocol):
    """What a thread pool needs of its surroundings; tests pass one of their own with a clock they turn by hand."""

    def clock(self) -> float:
        """Seconds, monotonic."""

    def random(self) -> float:
        """A number in [0, 1)."""

    def spawn(self, work: Callable[[], None]) -> None:
        """Run `work` elsewhere, now."""

    def call_later(self, delay: float, work: Callable[[], None]) -> None:
        """Run `work` after `delay` seconds."""

    def watch(self, pool: Swept) -> None:
        """Sweep `pool` from now on, as long as it lives."""


class Housekeeper:
    """The real surroundings: a thread per connect, one thread for everything else, and a clock for both."""

    clock = staticmethod(clock)
    random = staticmethod(random.random)

    def __init__(self) -> None:
        self._reset()
        fork.know(self)

    def _reset(self) -> None:
        # Taken by `with self._lock`, which no interrupt can tear in two; Condition's own `with` is Python, and can be.
        # Reentrant, because a finalizer may return a lease in the middle of anything.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pools: WeakSet[Swept] = WeakSet()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._ended = False

    def spawn(self, work: Callable[[], None]) -> None:
        """Run `work` in a new daemon thread, or right here where no thread can be started any more."""
        try:
            threading.Thread(target=work, name="poolkit-open", daemon=True).start()
        except RuntimeError:  # the interpreter is ending, or the system has no thread left
            work()

    def call_later(self, delay: float, work: Callable[[], None]) -> None:
        """Run `work` in the housekeeper's thread after `delay` seconds."""
        with self._lock:
            heapq.heappush(self._timers, (self.clock() + delay, next(self._numbers), work))
            self._changed.notify()
        self._ensure_running()

    def watch(self, pool: Swept) -> None:
        """Sweep `pool` once a second."""
        with self._lock:
            self._pools.add(pool)
        self._ensure_running()

    def unwatch(self, pool: Swept) -> None:
        """Leave `pool` alone; the thread ends with the last one."""
        with self._lock:
            self._pools.discard(pool)
            self._changed.notify()

    def after_fork_in_child(self) -> None:
        """The parent's thread does not exist here; if it was a greenlet, it does, and those that open do as well."""
        if self._thread is not None:
            surroundings.warn_of_inherited_greenlets()
        self._reset()

    def at_exit(self) -> None:
        """Let the thread end; it is a daemon and holds up nothing."""
        with self._lock:
            self._ended = True
            self._changed.notify()

    def _ensure_running(self) -> None:
        """Start the thread where there is none. Two may be started at once; the second leaves again."""
        if self._thread is None and not self._ended:
            # at interpreter shutdown no thread can be started, and there is nothing left to keep house for
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._run, name="poolkit-housekeeper", daemon=True).start()

    def _run(self) -> None:
        me = threading.current_thread()
        with self._lock:
            if self._thread is not None:
                return
            self._thread = me
        leaps = Leaps()
        next_sweep = self.clock() + SWEEP_EVERY
        while True:
            with self._lock:
                self._sleep(next_sweep)
            if self._thread is not me:  # a greenlet in the child of a fork: `threading` has no end for it there
                threading.Event().wait()
            with self._lock:
                if self._is_over():
                    return
                due = self._due()
                pools = list(self._pools) if self.clock() >= next_sweep else []
            _do_all(due)
            leap = leaps.seen() if pools else 0.0
            if leap:
                _do_all([partial(pool.after_leap, leap) for pool in pools])
            _do_all([pool.sweep for pool in pools])
            if self.clock() >= next_sweep:
                next_sweep = self.clock() + SWEEP_EVERY
            del due, pools  # or this frame would keep a pool alive while it sleeps

    def _sleep(self, next_sweep: float) -> None:
        """Wait for a timer, the next sweep or a change."""
        until = min(next_sweep, self._timers[0][0]) if self._timers else next_sweep
        pause = until - self.clock()
        if pause > 0:
            self._changed.wait(pause)

    def _is_over(self) -> bool:
        if self._ended or not (self._pools or self._timers):
            self._thread = None
            return True
        return False

    def _due(self) -> list[Callable[[], None]]:
        due = []
        while self._timers and self._timers[0][0] <= self.clock():
            due.append(heapq.heappop(self._timers)[2])
        return due


def _do_all(works: Iterable[Callable[[], object]]) -> None:
    for work in works:
        try:
            work()
        except BaseException:  # one pool's fault, even a SystemExit, must not end the housekeeping of the others
            logger.exception("housekeeping failed")


_shared = Housekeeper()  # no thread yet; and no lock around its making, which a fork could catch held


def shared() -> Housekeeper:
    """Return the housekeeper of this process. Warns where its threads can't run as they should."""
    surroundings.warn_of_unfit()
    return _shared
