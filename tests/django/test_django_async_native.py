"""aconnection() and atransaction(): native async connections on the settings of an alias, of psycopg and of asyncpg."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from async_rig import DRIVERS, ask, do, lent, until
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path
from django_rig import ABORTED, Rows, Site, eventually

from poolkit import AcquireTimeout, CommitFailed
from poolkit.testing import FaultProxy
from poolkit_django import aconnection, atransaction, conf, native, warm

ROOT = Path(__file__).parents[2]
KINDS = {"psycopg": psycopg.AsyncConnection, "asyncpg": asyncpg.Connection}


@pytest.fixture(autouse=True)
async def _no_native_left() -> AsyncIterator[None]:
    """After every test nothing is lent, and this loop's pools are closed."""
    yield
    assert lent() == 0
    await native.aclose()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Iterator[str]:
    """POOLKIT_ASYNC names it for the default alias."""
    name: str = request.param
    with override_settings(POOLKIT_ASYNC={"default": {"driver": name}}):
        yield name


async def test_it_lends_the_drivers_own_connection(driver: str) -> None:
    """One pool serves this loop: the object is the driver's, and the next block gets the same session."""
    async with aconnection() as conn:
        assert isinstance(conn, KINDS[driver])
        first = await ask(conn, "SELECT pg_backend_pid()")
        assert lent() == 1
    async with aconnection() as conn:
        assert await ask(conn, "SELECT pg_backend_pid()") == first
    (pool,) = native.live()
    assert (pool.name, pool.stats().opened, pool.stats().out) == ("default:async", 1, 0)
    assert pool.config.max_size == 3  # as OPTIONS["pool"] of the alias says


async def test_statements_commit_for_themselves(driver: str, rows: Rows) -> None:
    """aconnection() has no transaction: what was done stays, though the block raises."""

    async def fail() -> None:
        async with aconnection() as conn:
            await do(conn, "INSERT INTO django_notes VALUES ('native')")
            assert rows("native") == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert rows("native") == 1


async def test_a_transaction_commits_or_rolls_back_as_one(driver: str, rows: Rows) -> None:
    """atransaction() commits at the end of the block, and rolls back where it raises."""
    async with atransaction() as conn:
        await do(conn, "INSERT INTO django_notes VALUES ('kept')")
        assert rows("kept") == 0

    async def fail() -> None:
        async with atransaction() as conn:
            await do(conn, "INSERT INTO django_notes VALUES ('lost')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert (rows("kept"), rows("lost")) == (1, 0)


async def test_a_swallowed_error_does_not_pass_for_a_commit(driver: str, rows: Rows) -> None:
    """A transaction that a failed statement has aborted saves nothing, and says so."""

    async def swallow() -> None:
        async with atransaction() as conn:
            await do(conn, "INSERT INTO django_notes VALUES ('lost')")
            with pytest.raises((psycopg.errors.DivisionByZero, asyncpg.DivisionByZeroError)):
                await do(conn, ABORTED)

    with pytest.raises(CommitFailed, match="aborted"):
        await swallow()
    assert rows("lost") == 0


async def test_a_cancelled_block_gives_back(driver: str) -> None:
    """Cancelled in mid query, nothing stays lent, and the next block works."""

    async def sleep() -> None:
        async with atransaction() as conn:
            await do(conn, "SELECT pg_sleep(30)")

    task = asyncio.create_task(sleep())
    await asyncio.to_thread(eventually, lent)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(10), aconnection() as conn:
        assert await ask(conn, "SELECT 7") == 7
    await asyncio.to_thread(eventually, lambda: not lent())  # the session that slept is closed in the background


async def test_each_loop_has_a_pool_of_its_own(dsn: str, monitor: psycopg.Connection[Any]) -> None:
    """A loop in another thread has its own connections; once it is closed they are let go of."""
    async with aconnection() as conn:
        mine = await ask(conn, "SELECT pg_backend_pid()")

    async def other() -> int:
        async with aconnection() as conn:
            found: int = await ask(conn, "SELECT pg_backend_pid()")
            return found

    theirs = await asyncio.to_thread(asyncio.run, other())
    assert mine != theirs
    await asyncio.to_thread(asyncio.run, other())  # a third loop: the second one's pool is found to be left behind
    asked = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
    eventually(lambda: monitor.execute(asked, (theirs,)).fetchone() is None)
    assert monitor.execute(asked, (mine,)).fetchone() == (1,)


async def test_a_full_pool_is_a_503(driver: str) -> None:
    """A view that gets no connection in time is answered like any other overload."""

    async def show(_: HttpRequest) -> HttpResponse:
        async with aconnection(timeout=0.05):
            return HttpResponse("never")

    with Site("asgi", {"show": show}) as served:
        blocks = [aconnection() for _ in range(3)]
        for block in blocks:
            await block.__aenter__()
        reply = await served.aget("/show")
        with pytest.raises(AcquireTimeout, match="default:async"):
            await aconnection(timeout=0.05).__aenter__()
        for block in blocks:
            await block.__aexit__(None, None, None)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")


async def test_a_request_shows_as_its_holder(driver: str) -> None:
    """stats.json lists the native pools, and the view that holds a connection."""
    seen: list[Any] = []

    async def show(_: HttpRequest) -> HttpResponse:
        async with aconnection() as conn:
            await do(conn, "SELECT 1")
            reply = await served.aget("/poolkit/stats.json", headers={"Host": "localhost"})
            seen.append(json.loads(reply.body))
        async with atransaction():
            seen.extend(str(holder) for pool in native.live() for holder in pool.holders())
        return HttpResponse("shown")

    with Site(
        "asgi", {"show": show, "1": path("poolkit/", include("poolkit_django.urls"))}, POOLKIT_STATS="loopback"
    ) as served:
        assert (await served.aget("/show")).body == b"shown"
    (pool,) = [pool for pool in seen[0]["pools"] if pool["name"] == "default:async"]
    assert pool["out"] == 1
    assert "GET /show" in pool["holders"][0]
    assert "GET /show" in seen[1]


async def test_the_registry_includes_them(driver: str) -> None:
    """awarm() opens what POOLKIT_ASYNC names, aready() asks it, and aclose() closes it."""
    registry = conf.registry()
    assert await registry.awarm()
    (pool,) = native.live()
    assert pool.stats().idle == 1
    assert await registry.aready()
    await registry.aclose()
    assert native.live() == []
    assert pool.closed


async def test_warm_opens_them_as_soon_as_the_loop_goes_on(driver: str) -> None:
    """Called in a running loop, as at the end of asgi.py in a worker of uvicorn's; a failing server is no error."""
    assert warm()
    (pool,) = native.live()
    assert pool.stats().opened == 0
    await asyncio.sleep(0)
    await until(lambda: pool.stats().idle == 1)


def test_warm_without_a_loop_opens_none_of_them(driver: str) -> None:
    """There is no loop that they could belong to: they are opened by their first use."""
    assert warm()
    assert native.live() == []


async def test_ready_asks_them(driver: str, dsn: str) -> None:
    """The page says no while a native pool that is in use can't reach its server, though the ORM can."""
    with FaultProxy(dsn) as way:
        options = {"host": way.address[0], "port": way.address[1]}
        given = {"default": {"driver": driver, "options": options, "open_timeout": 1}}
        with (
            override_settings(POOLKIT_ASYNC=given),
            Site("asgi", {"1": path("poolkit/", include("poolkit_django.urls"))}) as served,
        ):
            async with aconnection() as conn:
                assert await ask(conn, "SELECT 1") == 1
            assert (await served.aget("/poolkit/ready")).status == 200
            way.refuse()
            way.cut()
            assert (await served.aget("/poolkit/ready")).status == 503
            way.heal()
            async with asyncio.timeout(10):
                while (await served.aget("/poolkit/ready")).status != 200:  # noqa: ASYNC110  it has to be asked
                    await asyncio.sleep(0.01)


def test_ready_says_no_where_a_loop_is_stuck(driver: str) -> None:
    """A loop that does not go on serves nobody: it is not waited for without end."""
    never = threading.Event()

    async def stick() -> bool:
        native.pool_for()
        asked = asyncio.ensure_future(asyncio.to_thread(conf.registry().ready, 0.05))
        await asyncio.sleep(0)
        never.wait(0.8)
        return await asked

    assert not asyncio.run(stick())


async def test_it_has_nothing_to_do_with_the_requests_unit(rows: Rows) -> None:
    """What a native transaction commits stays, though the request fails; and it takes no connection of the ORM's."""

    async def show(_: HttpRequest) -> HttpResponse:
        async with atransaction() as conn:
            await do(conn, "INSERT INTO django_notes VALUES ('apart')")
        raise ZeroDivisionError

    with Site("asgi", {"show": show}) as served:
        assert (await served.aget("/show")).status == 500
    assert rows("apart") == 1
    assert connection.connection is None


def test_a_loop_for_one_call_has_no_pool(
    driver: str, monitor: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Under WSGI each block connects and says goodbye at its end; the log tells so, once."""
    native._said.clear()
    seen: list[int] = []

    async def show(_: HttpRequest) -> HttpResponse:
        async with aconnection() as conn:
            seen.append(await ask(conn, "SELECT pg_backend_pid()"))
        async with atransaction() as conn:
            seen.append(await ask(conn, "SELECT pg_backend_pid()"))
        assert native.live() == []
        return HttpResponse("shown")

    with Site("wsgi", {"show": show}) as served:
        assert served.get("/show").status == 200
    assert len(set(seen)) == 2
    asked = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)"
    eventually(lambda: monitor.execute(asked, (seen,)).fetchone() is None)
    assert caplog.text.count("each block connects anew") == 1


def test_the_database_can_be_dropped_under_it(dsn: str, monitor: psycopg.Connection[Any], driver: str) -> None:
    """close_database() ends every session of a database, lent ones too, of loops in whatever thread."""
    ready, over = threading.Event(), threading.Event()
    errors: list[BaseException] = []
    pids: list[int] = []

    async def hold() -> None:
        async with aconnection() as conn:
            pids.append(await ask(conn, "SELECT pg_backend_pid()"))
            async with aconnection() as other:  # and one that lies idle
                pids.append(await ask(other, "SELECT pg_backend_pid()"))
            ready.set()
            await asyncio.to_thread(over.wait, 10)
            try:
                await ask(conn, "SELECT 1")
            except (psycopg.OperationalError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                errors.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    assert ready.wait(10)
    native.close_database(connections.settings["default"])
    asked = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)"
    eventually(lambda: monitor.execute(asked, (pids,)).fetchone() is None)
    over.set()
    thread.join(10)
    assert len(errors) == 1
    assert native.live() == []


def test_async_to_sync_inside_a_loop_uses_its_pool() -> None:
    """Where async_to_sync finds the loop that runs already, that loop's pool serves."""

    def sync() -> int:
        async def inner() -> int:
            async with aconnection():
                return len(native.live())

        return async_to_sync(inner)()

    async def outer() -> int:
        found = await sync_to_async(sync)()
        await native.aclose()
        return found

    assert asyncio.run(outer()) == 1


FORK = """
import asyncio, os, sys
import django
from django.conf import settings
sys.path.insert(0, os.environ["RIG"])
settings.configure(DATABASES={"default": __import__("django_rig").database(os.environ["DATABASE_URL"])},
                   INSTALLED_APPS=["poolkit_django"], USE_TZ=True)
django.setup()
from poolkit_django import aconnection, native

async def pid():
    async with aconnection() as conn:
        return (await (await conn.execute("SELECT pg_backend_pid()")).fetchone())[0]

loop = asyncio.new_event_loop()
mine = loop.run_until_complete(pid())
child = os.fork()
if child == 0:
    assert [pool.stats().size for pool in native.live()] == []
    theirs = asyncio.run(pid())
    os._exit(0 if theirs != mine else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert loop.run_until_complete(pid()) == mine
loop.run_until_complete(native.aclose())
loop.close()
print("fine")
"""


def test_a_fork_begins_afresh(dsn: str) -> None:
    """A child has connections of its own, and the parent's go on."""
    environ = {**os.environ, "DATABASE_URL": dsn, "RIG": str(Path(__file__).parent), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
