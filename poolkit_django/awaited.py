"""From async code into the request's own thread, where its connections are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from asgiref.sync import sync_to_async

__all__ = ["to_the_end"]

T = TypeVar("T")


async def to_the_end(work: Callable[..., T], *args: Any) -> T:
    """Run `work` in the request's own thread to its end, also when the client leaves meanwhile.

    A COMMIT that is cancelled half way has an unknown outcome.
    """
    task = asyncio.ensure_future(sync_to_async(work, thread_sensitive=True)(*args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        raise
