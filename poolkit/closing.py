"""A borrower's own `close()`: who may close a resource, and what it calls in the place of its `close`.

Where each borrowing has an object of its own, any holder of the object may close it: that returns the connection at
once. Where every borrower gets the same object (a C library's), the caller is identified by its thread. A block (`with
pool.acquire()`, a unit of work) runs in one thread. So only that thread can close what the block has borrowed: another
thread has the object from an earlier borrowing, or was given it. Where the thread is not known, any caller may close
it, and the connection is not lent again before the lease ends.
"""

# ruff: noqa: SLF001  the pool's own part of a connection

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any
from weakref import ref

from poolkit.errors import LeaseError, Returned
from poolkit.state import DEAD

if TYPE_CHECKING:
    from poolkit.state import Slot

__all__ = ["Block", "Early", "owner_of"]


def owner_of(slot: Slot[Any]) -> int | None:
    """Return the thread whose block has borrowed a slot; None where work goes from thread to thread.

    That is so in an event loop, which uses threads for what would block it, and for a lease without a block.
    """
    frame = sys._current_frames().get(slot.holder) if slot.scoped and isinstance(slot.holder, int) else None
    if frame is None:
        return None
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("asyncio."):
            return None
        frame = frame.f_back
    owner: int = slot.holder
    return owner


class Block:
    """The block, or the lease, in whose middle a resource was closed: answers None once it is over.

    That is when the lease is ended, or dropped. A traceback may keep the slot for longer.
    """

    __slots__ = ("_slot",)

    def __init__(self, slot: Slot[Any]) -> None:
        self._slot = ref(slot)

    def __call__(self) -> object:
        """Return something while it goes on."""
        slot = self._slot()
        return None if slot is None or slot.status is DEAD else slot


class Early:
    """What a resource calls in the place of its own `close`. It keeps no pool: idle resources would, in a circle."""

    __slots__ = ("_pool",)

    def __init__(self, pool: Any) -> None:
        self._pool = ref(pool)

    def __call__(self, resource: Any) -> bool:
        """Take back a resource with no work open; False where it is not borrowed."""
        pool = self._pool()
        return pool is not None and bool(pool._close_early(resource))

    def begin(self, resource: Any) -> Returned | None:
        """Request the close of a resource that is the same object for every borrower, before any work on it.

        Returns the place of the close, for the errors of later uses; None where it is not borrowed. Raises
        `LeaseError` where it is another thread's.
        """
        pool = self._pool()
        if self.is_stranger(resource):
            raise LeaseError(
                f"pool {pool and pool.name!r}: this connection is in use by the thread {self._thread(resource)}, and "
                "only that thread, which has borrowed it, can close it"
            )
        slot = None if pool is None else pool._state.lent(resource)  # not in the frames of the error above
        if pool is None or slot is None:
            return None
        slot.closing = slot.uses
        place: Returned = pool._place_of_close(slot)
        return place

    def is_stranger(self, resource: Any) -> bool | None:
        """Whether the running thread is another than the one that uses a resource; None where any thread may."""
        pool = self._pool()
        slot = None if pool is None else pool._state.lent(resource)
        if slot is None:
            return None
        if slot.holder == threading.get_ident():
            return False
        return None if owner_of(slot) is None else True

    def _thread(self, resource: Any) -> str:
        pool = self._pool()
        slot = None if pool is None else pool._state.lent(resource)
        holder = None if slot is None else slot.holder
        return next((repr(thread.name) for thread in threading.enumerate() if thread.ident == holder), str(holder))
