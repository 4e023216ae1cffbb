"""How people run out of connections under ASGI, each way a test: what is lent comes back, whoever took it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django_rig import MIDDLEWARE, Reply, Rows, Site, awrite, eventually, open_transactions, out, run, write

from poolkit_django import acommit, arelease, native
from poolkit_django.backends import pools

arun = sync_to_async(run)
PID = "SELECT pg_backend_pid()"


@pytest.fixture
def _pool_of_four(dsn: str, fresh_pools: None) -> Iterator[None]:
    """The default alias has four connections, and nobody waits for one longer than half a second."""
    before = dict(connections.settings["default"])
    connections.settings["default"]["OPTIONS"] = {
        **before["OPTIONS"],
        "pool": {"max_size": 4, "timeout": 0.5},
    }
    yield
    connections.close_all()
    connections.settings["default"]["OPTIONS"] = before["OPTIONS"]


def at_once(site: Site, where: str, count: int) -> list[Reply]:
    """Send so many requests at the same time, in one loop."""

    async def send() -> list[Reply]:
        return await asyncio.gather(*(site.aget(where) for _ in range(count)))

    return asyncio.run(send())


class Slow:
    """Something slow that is no database: over when so many wait for it, which they must within three seconds."""

    def __init__(self, count: int) -> None:
        self._all = asyncio.Barrier(count)
        self.held: list[int] = []

    async def wait(self) -> None:
        self.held.append(out())
        async with asyncio.timeout(3):
            await self._all.wait()


def autocommit(slow: Slow) -> Any:
    @transaction.non_atomic_requests
    async def show(_: HttpRequest) -> HttpResponse:
        await arun(PID)
        await slow.wait()
        return HttpResponse("shown")

    return show


def committed(slow: Slow) -> Any:
    async def show(_: HttpRequest) -> HttpResponse:
        await awrite("slow")
        await acommit()
        await slow.wait()
        return HttpResponse("shown")

    return show


def block(slow: Slow) -> Any:
    @transaction.non_atomic_requests
    async def show(_: HttpRequest) -> HttpResponse:
        await sync_to_async(transaction.atomic(write))("slow")
        await slow.wait()
        return HttpResponse("shown")

    return show


def released(slow: Slow) -> Any:
    @transaction.non_atomic_requests
    async def show(_: HttpRequest) -> HttpResponse:
        await sync_to_async(lambda: connection.ensure_connection())()  # noqa: PLW0108  this thread has another one
        assert await arelease()
        await slow.wait()
        return HttpResponse("shown")

    return show


@pytest.mark.usefixtures("_pool_of_four")
@pytest.mark.parametrize("kind", [autocommit, committed, block, released])
def test_twelve_requests_that_query_and_then_wait_share_four_connections(kind: Any) -> None:
    """Nobody holds a connection while it waits for something else: all twelve are served, and all at the same time."""
    slow = Slow(12)
    with Site("asgi", {"show": kind(slow)}) as served:
        assert [reply.status for reply in at_once(served, "/show", 12)] == [200] * 12
    assert min(slow.held) == 0
    assert out() == 0


@pytest.mark.usefixtures("_pool_of_four")
def test_the_same_without_the_middleware() -> None:
    """The engine alone does it: under Django's own handling an async view holds nothing between its queries."""
    slow = Slow(12)
    with Site("asgi", {"show": autocommit(slow)}, MIDDLEWARE=[]) as served:
        assert [reply.status for reply in at_once(served, "/show", 12)] == [200] * 12
    assert out() == 0


@pytest.mark.usefixtures("_pool_of_four")
def test_a_transaction_is_kept_and_the_others_wait_their_turn() -> None:
    """What the request has begun stays with it over its awaits: one connection, one transaction."""
    seen: list[tuple[Any, Any]] = []

    async def show(_: HttpRequest) -> HttpResponse:
        first = await arun("SELECT pg_backend_pid(), txid_current()")
        await asyncio.sleep(0.02)
        seen.append((first, await arun("SELECT pg_backend_pid(), txid_current()")))
        return HttpResponse("shown")

    with Site("asgi", {"show": show}) as served:
        assert [reply.status for reply in at_once(served, "/show", 12)] == [200] * 12
    assert all(first == last for first, last in seen)
    assert len({first[0][0] for first, _ in seen}) <= 4


@pytest.mark.usefixtures("_pool_of_four")
def test_conn_max_age_means_nothing(dsn: str) -> None:
    """CONN_MAX_AGE under ASGI used to leave a connection behind with each request: here all are used again."""
    seen: set[int] = set()

    async def show(_: HttpRequest) -> HttpResponse:
        seen.add((await arun(PID))[0][0])
        return HttpResponse("shown")

    connections.settings["default"]["CONN_MAX_AGE"] = None
    try:
        with Site("asgi", {"show": show}) as served:
            for _ in range(5):
                assert {reply.status for reply in at_once(served, "/show", 4)} == {200}
    finally:
        connections.settings["default"]["CONN_MAX_AGE"] = 0
    assert len(seen) <= 4
    assert out() == 0


def stray(_: HttpRequest) -> Any:
    return sync_to_async(run, thread_sensitive=False)(PID)


def to_thread(_: HttpRequest) -> Any:
    return asyncio.to_thread(run, PID)


_outlived: set[asyncio.Task[Any]] = set()


async def outlives(_: HttpRequest) -> None:
    async def later() -> None:
        await asyncio.sleep(0.01)
        await asyncio.to_thread(run, PID)
        await arun(PID)

    _outlived.add(asyncio.create_task(later()))


async def own_thread(_: HttpRequest) -> None:
    thread = threading.Thread(target=run, args=(PID,))
    thread.start()
    await asyncio.to_thread(thread.join)


@pytest.mark.usefixtures("_pool_of_four")
@pytest.mark.parametrize("way", [stray, to_thread, outlives, own_thread])
@pytest.mark.parametrize("middleware", [[MIDDLEWARE], []], ids=["unit", "bare"])
def test_stray_threads_leak_nothing(way: Any, middleware: list[str]) -> None:
    """48 requests whose queries run in threads that no signal visits: all are served, and nothing stays lent."""

    async def show(request: HttpRequest) -> HttpResponse:
        await way(request)
        return HttpResponse("shown")

    async def rounds(served: Site) -> list[int]:
        found = []
        for _ in range(12):
            replies = await asyncio.gather(*(served.aget("/show") for _ in range(4)))
            found += [reply.status for reply in replies]
        await asyncio.gather(*_outlived)
        _outlived.clear()
        return found

    with Site("asgi", {"show": show}, MIDDLEWARE=middleware) as served:
        assert asyncio.run(rounds(served)) == [200] * 48
    eventually(lambda: out() == 0)
    assert sum(pool.stats().size for pool in pools.live()) <= 4


@pytest.mark.usefixtures("_pool_of_four")
def test_gathered_queries_of_a_request_use_one_connection() -> None:
    """gather() in a view runs one after the other, on the request's one connection."""
    seen: list[set[int]] = []

    async def show(_: HttpRequest) -> HttpResponse:
        rows = await asyncio.gather(*(arun(PID) for _ in range(5)))
        seen.append({row[0][0] for row in rows})
        return HttpResponse("shown")

    with Site("asgi", {"show": show}) as served:
        assert {reply.status for reply in at_once(served, "/show", 6)} == {200}
    assert [len(found) for found in seen] == [1] * 6


async def _leave_in_the_middle(site: Site, where: str, entered: threading.Event) -> None:
    leave = asyncio.Event()
    task = asyncio.create_task(site.aget(where, leave=leave))
    await asyncio.to_thread(entered.wait, 10)
    leave.set()
    await task


@pytest.mark.parametrize("way", ["query", "sleep", "native"])
def test_a_cancelled_request_gives_back(way: str, rows: Rows, monitor: psycopg.Connection[Any]) -> None:
    """The client leaves in mid query, in mid sleep, or within a native transaction: undone, and given back."""
    entered = threading.Event()

    async def show(_: HttpRequest) -> HttpResponse:
        await awrite("left")
        if way == "native":
            async with native.atransaction() as conn:
                await conn.execute("INSERT INTO django_notes VALUES ('left')")
                entered.set()
                await asyncio.sleep(30)
        entered.set()
        if way == "query":
            await arun("SELECT pg_sleep(0.3)")
        await asyncio.sleep(30)
        return HttpResponse("never")

    async def visit(served: Site) -> None:
        await _leave_in_the_middle(served, "/show", entered)
        assert sum(pool.stats().out for pool in native.live()) == 0
        await native.aclose()

    with Site("asgi", {"show": show}) as served:
        asyncio.run(visit(served))
    assert rows("left") == 0
    assert out() == 0
    eventually(lambda: open_transactions(monitor) == [])


def test_a_sync_view_whose_client_left_runs_to_its_end(rows: Rows) -> None:
    """Nobody can stop a thread: the view ends, what it did is saved or not as a whole, and it gives back."""
    entered = threading.Event()

    def show(_: HttpRequest) -> HttpResponse:
        write("sync")
        entered.set()
        run("SELECT pg_sleep(0.2)")
        write("sync")
        return HttpResponse("too late")

    with Site("asgi", {"show": show}) as served:
        asyncio.run(_leave_in_the_middle(served, "/show", entered))
    eventually(lambda: out() == 0)
    assert rows("sync") in {0, 2}


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
@pytest.mark.parametrize("parts", [None, 1], ids=["read", "left"])
@pytest.mark.parametrize("body", ["sync", "async"])
def test_a_streamed_body_gives_back(body: str, parts: int | None, rows: Rows) -> None:
    """Read to its end or left after the first part, a body leaves nothing lent."""

    def sync() -> Iterator[str]:
        for _ in range(3):
            write("part")
            yield "part"

    async def asynchronous() -> AsyncIterator[str]:
        for _ in range(3):
            await awrite("part")
            yield "part"

    async def show(_: HttpRequest) -> StreamingHttpResponse:
        await awrite("first")
        return StreamingHttpResponse(sync() if body == "sync" else asynchronous())

    with Site("asgi", {"show": show}) as served:
        served.get("/show", parts=parts)
    eventually(lambda: out() == 0)
    assert rows("first") == 1
    assert rows("part") >= 1


@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")  # the request's body, that Django leaves to gc
@pytest.mark.usefixtures("_pool_of_four")
def test_a_worker_told_to_stop_gives_back(rows: Rows) -> None:
    """SystemExit passes by Django's signals: the connection comes back all the same, and nothing is saved."""

    def show(_: HttpRequest) -> HttpResponse:
        write("stop")
        raise SystemExit

    async def visit(served: Site) -> None:
        with pytest.raises(SystemExit):
            await served.aget("/show")

    # asyncio raises it out of its loop as well
    with Site("asgi", {"show": show}) as served, contextlib.suppress(SystemExit):
        asyncio.run(visit(served))
    assert rows("stop") == 0
    eventually(lambda: out() == 0)
    gc.collect()


def test_each_alias_is_kept_or_given_back_for_itself() -> None:
    """A view in autocommit on one alias and in a transaction on another keeps the connection of the latter only."""

    @transaction.non_atomic_requests(using="default")
    async def show(_: HttpRequest) -> HttpResponse:
        await sync_to_async(lambda: run(PID, using=connections["other"]))()
        await arun(PID)
        return HttpResponse(str(out()))

    with Site("asgi", {"show": show}) as served:
        assert served.get("/show").body == b"1"
    assert out() == 0
