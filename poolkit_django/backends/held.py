"""What each thread has leased, so that it comes back when the thread ends, and when the process does."""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING, Any

from poolkit import Lease

if TYPE_CHECKING:
    from poolkit_django.backends.leasing import Leasing

__all__ = ["threads"]


class Leases:
    """What one thread has leased. It dies with the thread, at once.

    A wrapper would not: cycles keep it until a garbage collection, so it knows the dictionary in here, not this object.
    """

    def __init__(self) -> None:
        self.held: dict[Lease[Any], Leasing] = {}

    def give_back(self) -> None:
        """End every lease, but for those of wrappers that other threads may use: who shares one closes it."""
        for lease, wrapper in list(self.held.items()):
            if not wrapper.allow_thread_sharing:
                wrapper.start_afresh()
                if self.held.pop(lease, None) is not None and not lease.inherited:
                    self._end(lease, wrapper)

    @staticmethod
    def _end(lease: Lease[Any], wrapper: Leasing) -> None:
        # Nothing may be logged here: a thread that ends is known to Python no more, and a log line would invent one.
        if wrapper.is_busy(lease.resource):
            lease.discard("broken")
        else:
            wrapper.end_with_care(lease)

    __del__ = give_back


class _Threads(threading.local):
    def __init__(self) -> None:
        self.leases = Leases()


threads = _Threads()


@atexit.register  # before the pools close, which were imported first; the main thread's own end would come too late
def _at_exit() -> None:
    threads.leases.give_back()
