"""Whose a unit of work is: its owner's, what runs in the owner's place, and what it was shared with. Nobody else's."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
from anyio import create_task_group
from asgiref.sync import async_to_sync, sync_to_async
from rig import Rig
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import StreamingResponse

from poolkit import (
    AsyncUnitOfWork,
    UnitOfWork,
    UnitOfWorkError,
    async_unit_of_work,
    blocks,
    current,
    unit_of_work,
)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def in_thread(work: Callable[[], Any]) -> Any:
    """Run `work` in a new thread with a copy of this context, as 3.14 does by itself; return or raise what it does."""
    done: list[Any] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            done.append(context.run(work))
        except BaseException as error:  # noqa: BLE001
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


async def look() -> Any:
    await asyncio.sleep(0)
    return current()


# -- what the owner did not start to run in its place ----------------------------------------------------------------


async def by_task(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return await asyncio.create_task(work())


async def by_gather(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return (await asyncio.gather(work(), work()))[0]


async def by_shield(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return await asyncio.shield(work())


async def by_wait_for_in_a_task(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return await asyncio.create_task(asyncio.wait_for(work(), 30))


async def by_task_group(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
    return task.result()


async def by_anyios_task_group(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    found: list[Any] = []

    async def run() -> None:
        found.append(await work())

    async with create_task_group() as group:
        group.start_soon(run)
    return found[0]


def in_loop_of_its_own(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return contextvars.copy_context().run(asyncio.run, work())


async def by_to_thread(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return await asyncio.to_thread(in_loop_of_its_own, work)


async def by_abandoned_thread(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return await anyio.to_thread.run_sync(in_loop_of_its_own, work, abandon_on_cancel=True)


async def by_two_threads_at_once(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    found = await asyncio.gather(*(anyio.to_thread.run_sync(in_loop_of_its_own, work) for _ in range(2)))
    return found[0]


STRANGERS = [
    by_task,
    by_gather,
    by_shield,
    by_wait_for_in_a_task,
    by_task_group,
    by_anyios_task_group,
    by_to_thread,
    by_abandoned_thread,
    by_two_threads_at_once,
]


@pytest.mark.parametrize("start", STRANGERS)
async def test_who_copied_the_context_has_no_unit(rig: Rig, start: Any) -> None:
    """A task or thread that the work started may outlive it, or run beside it: it gets no share by copying."""
    async with async_unit_of_work(rig.registry) as unit:
        assert current() is unit
        assert await start(look) is None


@pytest.mark.parametrize("start", STRANGERS)
async def test_a_block_there_is_a_unit_of_its_own_and_a_warning_says_so(
    rig: Rig, start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The block commits by itself; each place that would have joined is named once, with what to do."""

    async def block() -> Any:
        with unit_of_work() as unit:
            await asyncio.sleep(0)
            unit.get().execute("insert")
            return unit

    with unit_of_work(rig.registry) as outer:
        blocks.bind(outer)  # this task, not the thread that all of them may run in
        outer.get("other").execute("insert")
        inner = [await start(block), await start(block)]
        assert outer not in inner
        assert all(unit.registry is rig.registry and unit.committed for unit in inner)
        outer.doom()
    assert rig.said("other")[-1] == "rollback"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{__file__}:")
    assert "in block: this block is a unit of work of its own" in warning
    assert "with uow.share():" in warning


async def test_the_task_of_a_request_keeps_its_own_unit_when_the_request_ends(rig: Rig) -> None:
    """Half of a task's work is never committed with the request and the other half lost with a stranger's."""
    go, inside = asyncio.Event(), asyncio.Event()
    rig.in_loop()

    async def transfer() -> None:
        async with async_unit_of_work(rig.registry) as unit:
            (await unit.get()).execute("debit")
            inside.set()
            await go.wait()
            (await unit.get()).execute("credit")

    request = AsyncUnitOfWork(rig.registry, "GET /a")
    token = blocks.bind(request)
    (await request.get()).execute("read")
    task = asyncio.create_task(transfer())
    await inside.wait()
    await request.finish()
    await request.close()
    blocks.unbind(token)
    go.set()
    await task
    assert [line.partition(":")[2] for line in rig.servers["default"].log if line.startswith("2:")] == [
        "begin", "debit", "credit", "commit",
    ]  # fmt: skip


def test_a_thread_with_a_copied_context_has_no_unit(rig: Rig) -> None:
    """Free-threaded Python copies the context into every thread: that hands over nothing."""
    with unit_of_work(rig.registry) as unit:
        assert in_thread(current) is None
        assert current() is unit


def test_new_says_that_a_block_stands_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """`new=True` means what happens there anyway, so there is nothing to warn of; nor after the end of the unit."""

    def alone(**given: Any) -> None:
        with unit_of_work(rig.registry, **given):
            pass

    with unit_of_work(rig.registry) as unit:
        in_thread(lambda: alone(new=True))
        unit.commit()
        in_thread(alone)
    assert caplog.text == ""


# -- what runs in the owner's place ----------------------------------------------------------------------------------


def ask() -> Any:
    return current()


async def run_wait_for() -> list[Any]:
    return [await asyncio.wait_for(look(), 30), await asyncio.wait_for(asyncio.wait_for(look(), 30), 30)]


async def run_anyio_thread() -> list[Any]:
    return [await anyio.to_thread.run_sync(ask), await asyncio.wait_for(anyio.to_thread.run_sync(ask), 30)]


async def run_thread_from_a_generator() -> list[Any]:
    async def parts() -> Any:
        yield await anyio.to_thread.run_sync(ask)

    return [found async for found in parts()]


async def run_sync_to_async() -> list[Any]:
    return [await sync_to_async(ask)(), await sync_to_async(ask, thread_sensitive=False)()]


async def run_to_and_fro() -> list[Any]:
    """Into a thread and back into the loop, and once more, by asgiref and from a thread of anyio's."""
    there_and_back = async_to_sync(look)
    return [
        await sync_to_async(there_and_back)(),
        await anyio.to_thread.run_sync(there_and_back),
        await sync_to_async(async_to_sync(sync_to_async(ask)))(),
    ]


async def serve(app: Any) -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Any) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    await app(scope, receive, send)


async def run_base_http_middleware() -> list[Any]:
    found: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.extend([current(), await anyio.to_thread.run_sync(ask), await asyncio.wait_for(look(), 30)])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def dispatch(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    await serve(BaseHTTPMiddleware(BaseHTTPMiddleware(app, dispatch), dispatch))
    return found


async def run_streamed_body() -> list[Any]:
    found: list[Any] = []

    async def body() -> Any:
        found.append(current())
        yield b"x"

    def sync_body() -> Any:
        found.append(current())
        yield b"x"

    await serve(StreamingResponse(body()))
    await serve(StreamingResponse(sync_body()))
    return found


RUNNERS = [
    run_wait_for,
    run_anyio_thread,
    run_thread_from_a_generator,
    run_sync_to_async,
    run_to_and_fro,
    run_base_http_middleware,
    run_streamed_body,
]


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("kind", [unit_of_work, async_unit_of_work])
async def test_what_runs_in_the_owners_place_has_its_unit(rig: Rig, run: Any, kind: Any) -> None:
    """A task or thread that a framework starts, and the owner waits for, is the request itself."""
    unit = UnitOfWork(rig.registry) if kind is unit_of_work else AsyncUnitOfWork(rig.registry)
    token = blocks.bind(unit)
    found = await run()
    blocks.unbind(token)
    assert found
    assert all(one is unit for one in found), found


@pytest.mark.parametrize("run", RUNNERS[:5])
async def test_it_does_not_where_a_stranger_waits_for_it(rig: Rig, run: Any) -> None:
    """The same started by a task that only copied the context: what runs in its place has no more than it has."""
    async with async_unit_of_work(rig.registry):
        assert set(await asyncio.create_task(run())) == {None}


def test_async_to_sync_runs_in_the_place_of_its_thread(rig: Rig) -> None:
    """An async view of Flask's is a task in another thread, for which the request's thread waits."""

    async def view() -> list[Any]:
        return [current(), await look(), await sync_to_async(ask)(), await asyncio.create_task(look())]

    with unit_of_work(rig.registry) as unit:
        *own, copied = async_to_sync(view)()
        assert [one is unit for one in own] == [True] * 3
        assert copied is None
        assert in_thread(async_to_sync(look)) is None


def test_a_loop_that_runs_in_a_units_thread_is_part_of_it(rig: Rig) -> None:
    """A script's unit that calls `asyncio.run` waits for all that runs there."""
    with unit_of_work(rig.registry) as unit:
        assert asyncio.run(look()) is unit
        assert asyncio.run(by_gather(look)) is unit


# -- what it is shared with ------------------------------------------------------------------------------------------


async def test_a_task_that_was_given_a_share_takes_part(rig: Rig) -> None:
    """`with uow.share():` in a task makes its blocks a part of the unit, until it is left."""
    rig.in_loop()

    async def part(unit: AsyncUnitOfWork, word: str) -> None:
        with unit.share() as shared:
            assert shared is unit
            async with async_unit_of_work() as joined:
                assert joined is unit
                (await joined.get()).execute(word)
        assert current() is None

    async with async_unit_of_work(rig.registry) as unit:
        await asyncio.gather(part(unit, "a"), part(unit, "b"))
    assert rig.said() == ["begin", "a", "b", "commit"]


def test_a_thread_that_was_given_a_share_takes_part(rig: Rig) -> None:
    """A plain thread, without a copied context, is given the unit itself."""

    def part(unit: UnitOfWork) -> None:
        with unit.share():
            assert current() is unit
            unit.get().execute("part")

    with unit_of_work(rig.registry) as unit:
        thread = threading.Thread(target=part, args=(unit,))
        thread.start()
        thread.join(30)
    assert rig.said() == ["begin", "part", "commit"]


async def test_the_end_waits_for_nobody_and_refuses_who_is_still_inside(rig: Rig) -> None:
    """One that stays in its share beyond the end of the unit gets nothing more, and is told when it leaves."""
    rig.in_loop()
    go, inside = asyncio.Event(), asyncio.Event()
    errors: list[str] = []

    async def part(unit: AsyncUnitOfWork) -> None:
        with unit.share():
            (await unit.get()).execute("part")
            inside.set()
            await go.wait()
            for ask in (unit.get, unit.get_sync, partial(unit.get, "other"), async_unit_of_work().__aenter__):
                with pytest.raises(UnitOfWorkError, match="shares of it get nothing more") as caught:
                    await ask()
                errors.append(str(caught.value))

    async with async_unit_of_work(rig.registry, label="GET /") as unit:
        task = asyncio.create_task(part(unit))
        await inside.wait()
    assert unit.committed
    go.set()
    with pytest.raises(UnitOfWorkError, match="GET /: this unit of work ended while a task or thread had a share"):
        await task
    assert len(errors) == 4
    assert rig.out() == 0


async def test_a_joined_block_that_is_left_behind_ends_with_an_error(rig: Rig) -> None:
    """A block whose unit has ended under it must not end as if all of it had been saved."""
    rig.in_loop()
    go, inside = asyncio.Event(), asyncio.Event()

    async def part(unit: AsyncUnitOfWork) -> None:
        with unit.share():
            async with async_unit_of_work():
                inside.set()
                await go.wait()

    async with async_unit_of_work(rig.registry) as unit:
        task = asyncio.create_task(part(unit))
        await inside.wait()
    go.set()
    with pytest.raises(UnitOfWorkError, match="which had joined it, was running"):
        await task


def test_a_share_that_commits_the_unit_itself_is_no_error(rig: Rig) -> None:
    """Who ends the unit knows that it has ended."""

    def part(unit: UnitOfWork) -> None:
        with unit.share():
            unit.get().execute("part")
            unit.commit()

    with unit_of_work(rig.registry) as unit:
        in_thread(lambda: part(unit))
    assert rig.said()[-1] == "commit"


def test_a_share_is_for_one_and_for_an_open_unit(rig: Rig) -> None:
    """An object of `share()` that is in use, and a unit that has ended, are refused with what to do."""
    with unit_of_work(rig.registry) as unit:
        share = unit.share()
        with share, pytest.raises(UnitOfWorkError, match="in each task or thread"), share:
            pass
        unit.commit()
        with pytest.raises(UnitOfWorkError, match="came too late"), unit.share():
            pass


def test_an_error_of_the_share_goes_on_as_it_is(rig: Rig) -> None:
    """What the work raised is told, not that its unit ended meanwhile."""
    unit = UnitOfWork(rig.registry)
    with pytest.raises(LookupError), unit.share():  # noqa: PT012  the block and its end
        in_thread(unit.finish)
        raise LookupError


@pytest.mark.parametrize("start", [anyio.to_thread.run_sync, lambda ask: sync_to_async(ask, thread_sensitive=False)()])
async def test_a_thread_that_is_faster_than_its_task_has_the_unit_too(rig: Rig, start: Any) -> None:
    """It may run before the task that started it has come to wait for it: then it is asked again."""
    unit = UnitOfWork(rig.registry)
    token = blocks.bind(unit)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        found = [await start(ask) for _ in range(200)]
    finally:
        sys.setswitchinterval(before)
        blocks.unbind(token)
    assert all(one is unit for one in found)
