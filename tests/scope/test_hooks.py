"""Hooks: after the end, in order, awaited in asyncio within a deadline; none of them changes the outcome."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import pytest
from rig import Rig

from poolkit import AsyncUnitOfWork, UnitOfWork, UnitOfWorkError
from poolkit.unit_settings import UnitSettings


@pytest.fixture
def rig() -> Rig:
    return Rig(UnitSettings(hook_timeout=0.02))


async def started(rig: Rig, how: str = "asyncio") -> AsyncUnitOfWork:
    unit = AsyncUnitOfWork(rig.in_loop().registry, "POST /")
    if how != "nothing leased":
        await (unit.get() if how == "asyncio" else unit.get_sync())
    return unit


@pytest.mark.parametrize("how", ["asyncio", "sync in a loop", "nothing leased"])
async def test_a_coroutine_function_is_awaited_when_the_connection_is_back(rig: Rig, how: str) -> None:
    """Functions, coroutine functions, partials and lambdas that return an awaitable run in the order given."""
    unit = await started(rig, how)
    done: list[Any] = []

    async def send(word: str = "function") -> None:
        await asyncio.sleep(0)
        done.append((word, rig.out()))

    unit.on_commit(send)
    unit.on_commit(lambda: send("lambda"))
    unit.on_commit(functools.partial(send, "partial"))
    unit.on_commit(lambda: done.append(("plain", rig.out())))
    await unit.finish()
    assert done == [("function", 0), ("lambda", 0), ("partial", 0), ("plain", 0)]


async def test_hooks_after_a_rollback_are_awaited_too(rig: Rig) -> None:
    """The other kind of hook has the same rights."""
    unit = await started(rig)
    done: list[str] = []

    async def undo() -> None:
        done.append("undone")

    unit.on_rollback(undo)
    await unit.finish(ValueError())
    assert done == ["undone"]


async def test_one_that_takes_too_long_is_cancelled_and_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The deadline is each hook's own; the next one runs, and the end of the unit is no error."""
    unit = await started(rig)
    done: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.append("cancelled")

    unit.on_commit(hang)
    unit.on_commit(lambda: done.append("next"))
    await unit.finish()
    assert unit.committed
    assert done == ["cancelled", "next"]
    assert rig.registry.tally.hook_failures == {"on_commit": 1}
    for part in ("POST /", "hang", __file__, "longer than 0.02 s (hook_timeout)"):
        assert part in caplog.text


async def test_one_that_raises_is_told_and_changes_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Also a TimeoutError of its own is its own, and no deadline."""
    unit = await started(rig)

    async def fail() -> None:
        raise TimeoutError("the mailer's own")

    unit.on_commit(fail)
    await unit.finish()
    assert unit.committed
    assert "the mailer's own" in caplog.text
    assert "hook_timeout" not in caplog.text


async def test_a_task_that_a_hook_starts_runs_by_itself(rig: Rig) -> None:
    """What it returns is not awaited then, nor cancelled at the deadline."""
    unit = await started(rig)
    tasks: list[asyncio.Task[str]] = []

    async def long() -> str:
        await asyncio.sleep(0.05)
        return "done"

    def start() -> asyncio.Task[str]:
        tasks.append(asyncio.create_task(long()))
        return tasks[0]

    unit.on_commit(start)
    await unit.finish()
    assert await tasks[0] == "done"


async def test_a_cancelled_caller_leaves_and_the_hooks_run(rig: Rig) -> None:
    """What was committed is told of, though the client has gone."""
    unit = await started(rig)
    go, reached, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def send() -> None:
        reached.set()
        await go.wait()
        done.set()

    unit.on_commit(send)
    rig.registry.units = UnitSettings()
    ending = asyncio.create_task(unit.finish())
    await reached.wait()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    go.set()
    async with asyncio.timeout(5):
        await done.wait()


def test_a_coroutine_function_is_refused_in_a_unit_for_threads(rig: Rig) -> None:
    """Nobody would await it: that is said where it is registered, and names it."""
    unit = UnitOfWork(rig.registry)

    async def send() -> None:
        raise NotImplementedError

    for hook in (send, functools.partial(send)):
        for register in (unit.on_commit, unit.on_rollback):
            with pytest.raises(UnitOfWorkError, match=r"send.*is a coroutine function.*awaits nothing"):
                register(hook)


def test_a_coroutine_that_a_hook_returns_there_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It is closed, so that Python does not warn of it somewhere else, and the log names the hook and its place."""
    unit = UnitOfWork(rig.registry, "POST /")
    done: list[str] = []

    async def send() -> None:
        raise NotImplementedError

    unit.on_commit(lambda: send())  # noqa: PLW0108
    unit.on_commit(lambda: done.append("next"))
    unit.get()
    unit.finish()
    assert unit.committed
    assert done == ["next"]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    for part in ("<lambda>", __file__, "returned a coroutine, which never ran"):
        assert part in caplog.text, part
    assert "POST /" in record.getMessage()
    assert rig.registry.tally.hook_failures == {"on_commit": 1}


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
async def test_a_hook_may_register_another(rig: Rig, kind: str) -> None:
    """It runs after those that are there; one of the other kind, and one after all have run, come too late."""
    unit: Any = UnitOfWork(rig.registry) if kind == "threads" else await started(rig)
    done: list[str] = []
    refused: list[str] = []

    def first() -> None:
        unit.on_commit(lambda: done.append("third"))
        try:
            unit.on_rollback(first)
        except UnitOfWorkError as error:
            refused.append(str(error))

    unit.on_commit(first)
    unit.on_commit(lambda: done.append("second"))
    result = unit.finish()
    if kind == "asyncio":
        await result
    assert done == ["second", "third"]
    assert "came too late" in refused[0]
    with pytest.raises(UnitOfWorkError, match="came too late"):
        unit.on_commit(first)
