"""Cancellation as applications do it: scopes, groups, a loop per request, loops closed under us, what is collected."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
from pathlib import Path

import anyio
import pytest
from cancel_rig import SlowDriver, check_books, turns
from fastapi import FastAPI
from fastapi.testclient import TestClient

from poolkit import AsyncPool, AsyncUnitOfWork, Registry
from poolkit.testing import FakeAsyncDriver, FakeServer
from poolkit.testing.schedules import run_seeded

ROOT = Path(__file__).parent.parent.parent


def test_nobody_uses_wait_for():
    """Up to Python 3.11 it swallows a cancellation that comes together with the result; asyncio.timeout does not."""
    uses = re.compile(r"asyncio\.wait_for\b|import\b.*\bwait_for\b")
    folders = ("poolkit", "poolkit_django", "poolkit_fastapi", "poolkit_flask", "tests", "example_projects")
    users = {Path(__file__).name, "test_owning.py", "test_flask_contexts.py"}  # what is started by those who do use it
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.name not in users]
    assert len(files) > 100
    assert [str(path) for path in files if uses.search(path.read_text("utf-8"))] == []


def pool_over(server, **settings):
    return AsyncPool(SlowDriver(server), max_size=1, **settings)


async def busy(pool):
    async with pool.transaction() as connection:
        connection.execute("dirty")
        await asyncio.sleep(0.01)


async def settled(pool):
    while pool._tasks:  # noqa: ASYNC110  nothing tells when the last one has ended
        await asyncio.sleep(0)
    await turns(3)


@pytest.mark.parametrize("after", [0, 0.002, 0.012])
def test_an_anyio_scope_that_expires(after):
    """Its cancellations come again and again until the block is left; the connection is clean or closed."""

    async def main():
        server = FakeServer()
        pool = pool_over(server)
        with anyio.move_on_after(after):
            await busy(pool)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await busy(pool)
        await settled(pool)
        check_books(pool)
        assert not any(c.in_transaction or c.dirty for c in server.connections if not c.closed)
        await busy(pool)
        assert await pool.close()
        assert server.open_now == 0

    anyio.run(main)


def test_a_task_group_whose_member_fails():
    """The others are cancelled wherever they are, and all that they had is back when the group has ended, or soon."""

    async def scenario(plan):
        server = FakeServer()
        pool = pool_over(server, runtime=plan)

        async def fails():
            await turns(int(30 * plan.random()))
            raise KeyError

        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(busy(pool))
                group.create_task(fails())
        await settled(pool)
        check_books(pool)
        assert await pool.close()
        assert server.open_now == 0

    for seed in range(30):
        run_seeded(scenario, seed)


# -- loops -------------------------------------------------------------------------------------------------------------


def registry_over(server):
    """A registry that makes its pools of this server, in whatever loop it is asked."""
    registry = Registry({"default": {"url": "postgresql://nowhere/never"}})
    registry._make = lambda name, kind: kind(FakeAsyncDriver(server), name=name, max_size=2)
    return registry


def test_a_new_loop_for_each_request():
    """asyncio.run again and again on one registry: each loop has connections of its own, and leaves none behind."""
    server = FakeServer()
    registry = registry_over(server)

    async def request(number):
        async with AsyncUnitOfWork(registry, "GET /") as unit:
            (await unit.get()).execute(f"insert {number}")

    for number in range(20):
        asyncio.run(request(number))
    assert [line.partition(":")[2] for line in server.log] == [
        word for number in range(20) for word in ("begin", f"insert {number}", "commit")
    ]
    assert server.open_now <= 1, "the connections of closed loops were not let go"


def test_loops_closed_with_connections_out():
    """A request that never ended, in a loop that is gone: nothing is waited for, and the next one is served."""
    server = FakeServer()
    registry = registry_over(server)
    left = []

    async def request():
        unit = AsyncUnitOfWork(registry, "GET /")
        left.append((unit, await unit.get(), await registry.async_pool().acquire()))

    for _ in range(5):
        asyncio.run(request())
    for unit, _, lease in left[:-1]:
        assert lease.inherited
        asyncio.run(unit.close())
    asyncio.run(registry.aclose(0))
    registry._leave_closed_loops()
    assert server.open_now == 0


def test_a_client_of_tests_without_a_lifespan():
    """Starlette's TestClient makes a new loop for each request; each gets a connection, and none stays out."""
    server = FakeServer()
    registry = registry_over(server)
    app = FastAPI()

    @app.get("/")
    async def index() -> int:
        async with AsyncUnitOfWork(registry, "GET /") as unit:
            connection = await unit.get()
            connection.execute("select")
            return connection.number

    client = TestClient(app)
    assert len({client.get("/").json() for _ in range(5)}) == 5
    registry._leave_closed_loops()
    assert server.open_now == 0


# -- what is collected -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["clean", "dirty", "transaction"])
def test_a_generator_that_nobody_finishes(how):
    """A stream whose reader went away is closed by its loop, and gives its connection back."""

    async def main():
        server = FakeServer()
        pool = pool_over(server)

        async def rows():
            async with pool.transaction() if how == "transaction" else pool.acquire() as connection:
                connection.execute("select" if how == "clean" else "dirty")
                for row in range(10):
                    yield row

        async for _ in rows():
            break
        gc.collect()
        await turns(20)
        await settled(pool)
        check_books(pool)
        assert await pool.close()
        assert server.open_now == 0

    asyncio.run(main())


@pytest.mark.parametrize("how", ["clean", "dirty", "transaction"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's own complaint of such a task
def test_a_coroutine_that_is_dropped_half_way(how):
    """Whoever drives a coroutine by hand and drops it in mid block: its connection is back or closed all the same."""

    async def main():
        server = FakeServer()
        pool = pool_over(server)

        async def work():
            async with pool.transaction() if how == "transaction" else pool.acquire() as connection:
                connection.execute("select" if how == "clean" else "dirty")
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        while not pool.stats().out:  # noqa: ASYNC110  the pool has no event for this
            await asyncio.sleep(0)
        await turns(5)
        task._log_destroy_pending = False
        del task
        gc.collect()
        await turns(20)
        await settled(pool)
        gc.collect()
        await turns(20)
        check_books(pool)
        assert await pool.close()
        assert server.open_now == 0

    asyncio.run(main())
