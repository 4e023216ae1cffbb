"""The traps of ASGI under uvicorn: real sockets, real disconnects, many clients at once."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
import uvicorn
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django_rig import Rows, Site, awrite, eventually, open_transactions, out, run

from poolkit_django import acommit, aconnection, atransaction, native

PID = "SELECT pg_backend_pid()"
arun = sync_to_async(run)
Serve = Callable[..., "Served"]


class Served:
    """Where a site is served, and what it answers."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, where: str) -> tuple[int, bytes]:
        """Ask; the status and the body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{where}", timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def at_once(self, where: str, count: int) -> list[int]:
        """Ask so many times at once; the statuses."""
        with ThreadPoolExecutor(count) as clients:
            return [status for status, _ in clients.map(self.get, [where] * count)]

    def hang_up(self, where: str, entered: threading.Event) -> None:
        """Ask, and be gone once the view is entered."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(f"GET {where} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert entered.wait(10)


class Server(uvicorn.Server):
    """uvicorn in a thread; its loop's native pools are closed before that ends."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await native.aclose()


@contextmanager
def uvicorn_of(app: Any) -> Iterator[Served]:
    """Serve an app on a free port."""
    config = uvicorn.Config(app, port=0, log_level="critical", ws="none", lifespan="off")
    server = Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            eventually(lambda: server.started)
            yield Served(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def serve(fresh_pools: None) -> Iterator[Serve]:
    """Serve views under uvicorn; the default alias has four connections, waited for at most half a second."""
    before = connections.settings["default"]["OPTIONS"]
    connections.settings["default"]["OPTIONS"] = {**before, "pool": {"max_size": 4, "timeout": 0.5}}
    with ExitStack() as stack:

        def start(*views: Any, **settings: Any) -> Served:
            site = stack.enter_context(Site("asgi", {view.__name__: view for view in views}, **settings))
            return stack.enter_context(uvicorn_of(site.app))

        yield start
    connections.close_all()
    connections.settings["default"]["OPTIONS"] = before


@pytest.mark.parametrize("middleware", [None, []], ids=["unit", "bare"])
def test_twelve_requests_that_query_and_then_wait(serve: Serve, middleware: list[str] | None) -> None:
    """A pool of four serves twelve clients, each waiting longer for something else than the pool lets anyone wait."""
    settings = {} if middleware is None else {"MIDDLEWARE": middleware}

    @transaction.non_atomic_requests
    async def show(_: HttpRequest) -> HttpResponse:
        await arun(PID)
        await asyncio.sleep(0.7)
        return HttpResponse("shown")

    assert serve(show, **settings).at_once("/show", 12) == [200] * 12
    assert out() == 0


def test_twelve_requests_that_commit_and_then_wait(serve: Serve, rows: Rows) -> None:
    """The same for transactions: acommit() ends them before the wait."""

    async def save(_: HttpRequest) -> HttpResponse:
        await awrite("early")
        await acommit()
        await asyncio.sleep(0.7)
        return HttpResponse("saved")

    assert serve(save).at_once("/save", 12) == [200] * 12
    assert rows("early") == 12
    assert out() == 0


def test_twelve_requests_that_use_a_native_connection_and_then_wait(serve: Serve) -> None:
    """A native connection is held for its block alone; no thread and no connection of the ORM's has a part in it."""

    async def show(_: HttpRequest) -> HttpResponse:
        async with aconnection() as conn:
            await conn.execute(PID)
        await asyncio.sleep(0.7)
        return HttpResponse("shown")

    assert serve(show).at_once("/show", 12) == [200] * 12
    assert out() == 0


def test_forty_eight_requests_through_stray_threads(serve: Serve) -> None:
    """Threads that no signal visits, and tasks that outlive their request: all are served, nothing leaks."""
    outlived: list[asyncio.Task[Any]] = []

    async def show(_: HttpRequest) -> HttpResponse:
        await sync_to_async(run, thread_sensitive=False)(PID)
        await asyncio.to_thread(run, PID)
        outlived.append(asyncio.create_task(asyncio.to_thread(run, PID)))
        return HttpResponse("shown")

    served = serve(show)
    for _ in range(6):
        assert served.at_once("/show", 8) == [200] * 8
    eventually(lambda: all(task.done() for task in outlived))
    assert [task.exception() for task in outlived] == [None] * 48
    eventually(lambda: out() == 0)


@pytest.mark.parametrize("way", ["orm", "native", "stream"])
def test_a_client_that_hangs_up(way: str, serve: Serve, rows: Rows, monitor: psycopg.Connection[Any]) -> None:
    """Whatever the view was doing, its work is undone and its connections are back."""
    entered = threading.Event()

    async def orm(_: HttpRequest) -> HttpResponse:
        await awrite("left")
        entered.set()
        await asyncio.sleep(30)
        return HttpResponse("never")

    async def native(_: HttpRequest) -> HttpResponse:
        async with atransaction() as conn:
            await conn.execute("INSERT INTO django_notes VALUES ('left')")
            entered.set()
            await conn.execute("SELECT pg_sleep(30)")
        return HttpResponse("never")

    async def stream(_: HttpRequest) -> StreamingHttpResponse:
        async def body() -> Any:
            while True:
                await arun(PID)
                yield "part"
                entered.set()
                await asyncio.sleep(0.01)

        return StreamingHttpResponse(body())

    served = serve(orm, native, stream)
    served.hang_up(f"/{way}", entered)
    eventually(lambda: out() == 0 and lent_natively() == 0)
    eventually(lambda: open_transactions(monitor) == [])
    assert rows("left") == 0


def lent_natively() -> int:
    return sum(pool.stats().out for pool in native.live())
