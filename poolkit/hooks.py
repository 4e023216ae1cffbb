"""What a unit of work calls after its end: hooks after the COMMIT, others after a ROLLBACK.

By then the connections are back, and the outcome can't change any more: a hook that fails is counted and logged, and
the next one runs. In a unit for asyncio a hook may have to be awaited, and is, for so long at the most. In one for
threads nothing could await it: a coroutine function is refused when it is registered, and a coroutine that another
function returned (`lambda: send(7)`) is closed and told as an error.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

from poolkit.errors import UnitOfWorkError
from poolkit.tally import Tally

__all__ = ["Hook", "Hooks", "Kind"]

Hook: TypeAlias = Callable[[], object]
Kind: TypeAlias = Literal["on_commit", "on_rollback"]

logger = logging.getLogger("poolkit")


class Hooks:
    """The hooks of one unit of work; `awaits`: whether its end can await them."""

    __slots__ = ("_awaits", "_label", "_lists", "_running", "_tally")

    def __init__(self, label: str, tally: Tally, *, awaits: bool) -> None:
        self._label = label
        self._tally = tally
        self._awaits = awaits
        self._lists: dict[Kind, list[Hook]] = {"on_commit": [], "on_rollback": []}
        self._running: Kind | None = None

    def takes(self, kind: Kind) -> bool:
        """Whether hooks of that kind run right now: then one may register another."""
        return self._running == kind

    def add(self, kind: Kind, hook: Hook) -> None:
        """Register one. Raises `UnitOfWorkError` where it would have to be awaited and can't be."""
        if not self._awaits and inspect.iscoroutinefunction(getattr(hook, "func", hook)):
            raise UnitOfWorkError(
                f"{kind}({_named(hook)}): it is a coroutine function, and a unit of work for threads awaits nothing. "
                "Give it a function that starts a task or puts work into a queue"
            )
        self._lists[kind].append(hook)

    def mark(self) -> tuple[int, int]:
        """Say how many there are, for `forget_since`."""
        return len(self._lists["on_commit"]), len(self._lists["on_rollback"])

    def forget_since(self, mark: tuple[int, int] = (0, 0)) -> None:
        """Forget the hooks of work that was undone."""
        del self._lists["on_commit"][mark[0] :], self._lists["on_rollback"][mark[1] :]

    def run(self, kind: Kind) -> None:
        """Call them in order, those that they register as well."""
        self._running = kind
        for hook in self._lists[kind]:
            try:
                result = hook()
                if inspect.iscoroutine(result):
                    result.close()
                    raise TypeError(  # noqa: TRY301  told like any failure of a hook
                        "it returned a coroutine, which never ran: a unit of work for threads awaits nothing"
                    )
            except Exception:  # noqa: BLE001  it is logged
                self._failed(kind, hook)
        self._running = None

    async def run_awaited(self, kind: Kind, timeout: float) -> None:
        """Do the same in asyncio, and await what has to be, each for `timeout` seconds. A task runs by itself."""
        self._running = kind
        for hook in self._lists[kind]:
            try:
                result = hook()
                if isinstance(result, Awaitable) and not isinstance(result, asyncio.Future):
                    await self._within(timeout, result)
            except Exception:  # noqa: BLE001  it is logged
                self._failed(kind, hook)
        self._running = None

    @staticmethod
    async def _within(timeout: float, work: Awaitable[object]) -> None:
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                await work
        except TimeoutError as error:
            if deadline.expired():
                raise TimeoutError(f"it took longer than {timeout:g} s (hook_timeout) and was cancelled") from error
            raise

    def _failed(self, kind: Kind, hook: Hook) -> None:
        self._tally.add("hook_failures", kind)
        logger.exception(  # noqa: LOG004  called by a handler
            "%s: a hook of %s failed: %s", self._label or "unit of work", kind, _named(hook)
        )


def _named(hook: Hook) -> str:
    """Name a hook, and where it stands."""
    function = getattr(hook, "func", hook)
    name = getattr(function, "__qualname__", None) or repr(hook)
    code = getattr(function, "__code__", None)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"
