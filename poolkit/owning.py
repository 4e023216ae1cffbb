"""Who runs: whether the code that runs now is its unit's own, or only copied the context that the unit is in.

A new task, and many a thread, starts with a copy of the context of the code that started it, and so with a unit of work
that is not its own: the unit may end while it is in the middle of something. So a unit is joined only by its owner, the
task or thread that it was begun in, and by what runs in the owner's place while the owner waits for it and can't leave
first. That is known for certain of these:

- anyio's worker threads, without `abandon_on_cancel`: `def` endpoints and dependencies, `run_in_threadpool`;
- a task of Starlette's or FastAPI's own: what is below a `BaseHTTPMiddleware`, a streamed body;
- asyncio's `wait_for`, which starts a task on Python 3.11;
- asgiref's `async_to_sync` and `sync_to_async`;
- a loop that runs in the owner's thread, where that is no task itself (`asyncio.run` in a script).

All of this is looked at only where code runs that is not the owner itself, and none of these libraries is imported. A
version of theirs that looks different makes a unit of its own of what would have joined, which is the safe side.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from asyncio import _get_running_loop, current_task
from collections.abc import Callable, Collection, Iterator
from threading import get_ident
from types import AsyncGeneratorType, FrameType
from typing import Any, TypeAlias

__all__ = ["Owner", "here", "is_one_of", "place_of"]

Owner: TypeAlias = tuple[int, "weakref.ref[asyncio.Task[Any]] | None"]
"""A thread, and the task in it. The task is not kept: one that is forgotten loses what it holds."""

Task: TypeAlias = "asyncio.Task[Any]"

_OF_THE_FRAMEWORK = ("starlette.middleware.base.", "starlette.responses.", "fastapi.routing.")
_LOOKS = 200  # a millisecond from one to the next, as long as the loop is in the middle of a step


def here() -> Owner:
    """Return the running thread and task."""
    loop = _get_running_loop()  # current_task() alone would raise where no loop runs
    task = None if loop is None else current_task(loop)
    return get_ident(), None if task is None else weakref.ref(task)


def is_one_of(owners: Collection[Owner]) -> bool:
    """Whether the code that runs now is one of these, or runs in the place of one."""
    thread, task = here()
    if (thread, task) in owners or (thread, None) in owners:
        return True
    if task is not None:
        return _task_is(task(), owners)
    return _thread_is(threading.current_thread(), owners)


def place_of(frame: FrameType, line: int | None = None) -> str:
    """Say where a frame is, as `file.py:12 in function`."""
    return f"{frame.f_code.co_filename}:{line or frame.f_lineno} in {frame.f_code.co_name}"


def _task_is(task: Task | None, owners: Collection[Owner]) -> bool:
    """Whether a task is an owner, or stands for one, however many stand between."""
    for _ in range(16):  # one that waits for itself is a program's error, not ours to hang on
        if task is None:
            return False
        if any(owner is not None and owner() is task for _, owner in owners):
            return True
        if task.get_name().startswith(_OF_THE_FRAMEWORK):  # anyio names a task after what it runs
            return True  # who started it is the framework, in the task that it serves the request in
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is not None and frame.f_globals is _globals("asgiref.sync"):
            return _caller_is(task, frame, owners)
        task = _waits_for(task)
    return False


def _waits_for(task: Task) -> Task | None:
    """Find the task that is in asyncio's `wait_for` for this one. From 3.12 on that starts none."""
    if sys.version_info >= (3, 12):
        return None
    for callback in _callbacks(task):
        if getattr(callback, "func", None) is asyncio.tasks._release_waiter:  # type: ignore[attr-defined]  # noqa: SLF001
            for wakeup in _callbacks(callback.args[0]):
                waiting = getattr(wakeup, "__self__", None)
                if isinstance(waiting, asyncio.Task):
                    return waiting
    return None


def _callbacks(future: Any) -> list[Any]:
    return [callback for callback, _ in getattr(future, "_callbacks", None) or ()]


def _caller_is(task: Task, frame: FrameType, owners: Collection[Owner]) -> bool:
    """Whether the thread that waits in asgiref's `async_to_sync` for this task is an owner, or stands for one."""
    executor = getattr(_globals("asgiref.sync")["AsyncToSync"].executors, "current", None)
    thread = getattr(executor, "_work_thread", None)
    if thread is None:
        return False
    if (thread.ident, None) in owners or _anyio_thread_is(thread, owners):
        return True
    return _job_is(task.get_loop(), frame.f_locals.get("task_context"), owners)


def _thread_is(thread: threading.Thread, owners: Collection[Owner]) -> bool:
    """Whether an owner waits for what the running thread does."""
    if _anyio_thread_is(thread, owners):
        return True
    local = getattr(_globals("asgiref.sync").get("SyncToAsync"), "threadlocal", None)
    return _job_is(getattr(local, "main_event_loop", None), getattr(local, "task_context", None), owners)


def _anyio_thread_is(thread: threading.Thread, owners: Collection[Owner]) -> bool:
    if not type(thread).__module__.startswith("anyio."):
        return False

    def waits(frame: FrameType) -> bool:
        if frame.f_code.co_name != "run_sync_in_worker_thread":
            return False
        return frame.f_locals.get("worker") is thread and not frame.f_locals.get("abandon_on_cancel")

    return _waiter_is(getattr(thread, "loop", None), owners, waits)


def _job_is(loop: asyncio.AbstractEventLoop | None, job: object, owners: Collection[Owner]) -> bool:
    """Do the same for asgiref's `sync_to_async`: a call has one list, known to its thread and to who waits for it."""
    if job is None:
        return False
    module = _globals("asgiref.sync")

    def waits(frame: FrameType) -> bool:
        if frame.f_code.co_name != "__call__" or frame.f_globals is not module:
            return False
        return frame.f_locals.get("task_context") is job

    return _waiter_is(loop, owners, waits)


def _globals(module: str) -> dict[str, Any]:
    """Return a module's names, none where it was not imported."""
    return getattr(sys.modules.get(module), "__dict__", {})


def _waiter_is(
    loop: asyncio.AbstractEventLoop | None, owners: Collection[Owner], waits: Callable[[FrameType], bool]
) -> bool:
    """Whether the task of that loop whose frames satisfy `waits` is an owner, or stands for one."""
    if loop is None:
        return False
    for _ in range(_LOOKS):
        running = current_task(loop) is not None
        own = [task for _, ref in owners if ref is not None and (task := ref()) is not None]
        for task in (*own, *asyncio.all_tasks(loop)):
            if any(map(waits, _frames(task))):
                return _task_is(task, owners)
        if not running:
            return False
        time.sleep(0.001)  # the task that started the thread may be about to wait for it
    return False


def _frames(task: Task) -> Iterator[FrameType]:
    """Yield the frames that a suspended task is in, from the outermost on; a running one's can't be seen."""
    step: Any = task.get_coro()
    while step is not None:
        if type(step).__name__ == "async_generator_asend":  # it does not tell its generator in any other way
            step = next((one for one in gc.get_referents(step) if isinstance(one, AsyncGeneratorType)), None)
        for kind in ("cr", "ag", "gi"):
            if hasattr(step, f"{kind}_frame"):
                frame = getattr(step, f"{kind}_frame")
                if frame is not None:
                    yield frame
                step = getattr(step, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            return
