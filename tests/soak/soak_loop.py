"""The event loop of a round, in a thread of its own."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Self

from soak_journal import Journal
from soak_tasks import TaskActor

__all__ = ["SETTLES", "Loop", "Reaper", "finish", "start"]

SETTLES = 8.0  # seconds for what was begun to come to its end, once nobody borrows any more


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="soak-loop", daemon=True)
        self.left: list[str] = []

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._complain)
        self._over = asyncio.Event()
        self._ready.set()
        await self._over.wait()
        end = time.monotonic() + SETTLES
        while (left := asyncio.all_tasks() - {asyncio.current_task()}) and time.monotonic() < end:
            await asyncio.wait(left, timeout=0.1)
        self.left = [repr(task) for task in left]

    def _complain(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        trace = "" if error is None else "".join(traceback.format_exception(error))
        self._journal.note(f"the loop complains: {context['message']}\n{trace}")

    def call(self, work: Callable[[], Awaitable[Any]], timeout: float = 30.0) -> Any:
        """Await something in the loop."""

        async def awaited() -> Any:
            return await work()

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(timeout)

    def tasks(self) -> str:
        """What every task of the loop is waiting for."""

        async def stacks() -> str:
            return "".join(_stack(task) for task in asyncio.all_tasks())

        return str(self.call(stacks))

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join(SETTLES + 5)


async def start(tasks: list[TaskActor]) -> None:
    """Let the borrowers begin."""
    for actor in tasks:
        actor.task = asyncio.create_task(actor.life(), name=actor.name)


async def finish(tasks: list[TaskActor], timeout: float) -> list[str]:
    """Wait for them to come to their end; return who has not, or who came to a bad one."""
    running = {actor.task: actor for actor in tasks if actor.task is not None}
    done, pending = await asyncio.wait(running, timeout=timeout)
    wrong = [f"{running[task].name} ended with {task.exception()!r}" for task in done if task.exception()]
    for task in pending:
        wrong.append(f"{running[task].name} never came back from {running[task].doing}:\n{_stack(task)}")
        task.cancel()
    return wrong


def _stack(task: asyncio.Task[Any]) -> str:
    """What a task is waiting for, through all the coroutines that wait in it."""
    lines = [f"{task.get_name()}:"]
    awaited: Any = task.get_coro()
    while awaited is not None and (frame := getattr(awaited, "cr_frame", None)) is not None:
        lines.append(f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        awaited = awaited.cr_await
    return "\n".join([*lines, f"  {awaited!r}", ""])


class Reaper:
    """Cancels the tasks, at whatever they are awaiting."""

    def __init__(self, seed: int, actors: list[TaskActor], every: float) -> None:
        self._luck = random.Random(f"{seed}:reaper")
        self._actors = actors
        self._every = every

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._luck.uniform(0, 2 * self._every))
            victim = self._luck.choice(self._actors)
            if victim.task is not None and not victim.reaped and not victim.journal.over:
                victim.reaped = True
                victim.struck += 1
                victim.task.cancel()
