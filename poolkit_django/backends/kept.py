"""Whether a generator that waits keeps an atomic() open. Asked seldom: where a connection is closed inside a block."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import AsyncGeneratorType, CoroutineType, GeneratorType, MethodType
from typing import Any

__all__ = ["is_kept"]

_WAITING = ("gi_running", "cr_running", "ag_running")


def is_kept(block: Any) -> bool:
    """Return whether a generator or coroutine that does not run now stands inside of `with block`.

    A `with` keeps its block's `__exit__` among the values of its frame, and the garbage collector knows what refers to
    what. It looks at all objects, which takes some milliseconds.
    """
    holders = [block, *(found for found in gc.get_referrers(block) if isinstance(found, MethodType))]
    return any(_waits(found) for found in _referrers(holders))


def _referrers(things: list[Any]) -> Iterator[Any]:
    for found in gc.get_referrers(*things):
        if isinstance(found, (GeneratorType, CoroutineType, AsyncGeneratorType)):
            yield found


def _waits(found: Any) -> bool:
    return not any(getattr(found, name, False) for name in _WAITING)
