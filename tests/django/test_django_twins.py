"""Random requests of several tenants to one site, interleaved: each is answered as by a site of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django_rig import Site, run
from twin_web import COMMON, FAILS, POSTGRES, WRITE, Visit, WebTwins

from poolkit_django import current_unit
from poolkit_django.backends import pools

# Where a body fails, Django's ASGI handler leaves the file of the request's body to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")

TABLES = (
    "CREATE TABLE IF NOT EXISTS web_twin_rows (who bigint, word varchar(40))",
    "CREATE SEQUENCE IF NOT EXISTS twin_numbers",
    "TRUNCATE web_twin_rows",
)
ATOMIC = (("atomic", WRITE), ("atomic", FAILS), ("atomic", WRITE, "raise"), ("set_rollback",))


def act(visit: Visit, step: tuple[str, ...]) -> object:
    """Take one step in a request, and return its answer; an error of a statement is swallowed."""
    if step == ("raise",):
        raise ZeroDivisionError
    try:
        return do(visit, step)
    except Exception as error:  # noqa: BLE001  Django's, the library's, and poolkit's
        return type(error).__name__


def do(visit: Visit, step: tuple[str, ...]) -> object:
    """Take a step that may fail."""
    if step[0] == "atomic":
        with transaction.atomic():
            run(*visit.statements(step[1:2]))
            if step[2:]:
                raise ZeroDivisionError
    elif step[0] in NAMED:
        NAMED[step[0]]()
    else:
        return run_all(*visit.statements(step))
    return None


def run_all(*statements: str) -> object:
    """Run statements, of which the last one is answered, whether or not those before fail."""
    for statement in statements[:-1]:
        with contextlib.suppress(Exception):
            run(statement)
    return run(statements[-1])


def unit() -> Any:
    """Return the request's unit of work."""
    found = current_unit()
    assert found is not None
    return found


NAMED: dict[str, Callable[[], object]] = {
    "commit": transaction.commit,
    "rollback": transaction.rollback,
    "set_rollback": lambda: transaction.set_rollback(True),
    "unit commit": lambda: unit().commit(),
    "doom": lambda: unit().doom(),
    "stream in one transaction": lambda: unit().stream(),
    "stream": lambda: None,
}


def take(visit: Visit, steps: Iterator[Any]) -> bool:
    """Take a step in the body; False where there is none left."""
    step = next(steps, None)
    if step is None:
        return False
    visit.answers.append(act(visit, step))
    return True


def body(visit: Visit, steps: Iterator[Any]) -> Iterator[bytes]:
    while take(visit, steps):
        yield b"piece"


async def body_by_threads(visit: Visit, steps: Iterator[Any]) -> AsyncIterator[bytes]:
    while await sync_to_async(take)(visit, steps):
        yield b"piece"


async def body_of_a_coroutine(visit: Visit, steps: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for step in steps:
        visit.answers.append(await sync_to_async(act)(visit, step))
        yield b"piece"


class Views:
    """The views that do what a visit says."""

    def __init__(self, visits: dict[int, Visit], body: Callable[..., Any]) -> None:
        self._visits, self._body = visits, body

    def sync(self, _: HttpRequest, key: int) -> HttpResponse | StreamingHttpResponse:
        visit = self._visits[key]
        steps = visit.taken()
        for step in steps:
            visit.answers.append(act(visit, step))
            if step[0].startswith("stream"):
                return StreamingHttpResponse(self._body(visit, steps))
        return HttpResponse(b"all")

    async def coroutine(self, _: HttpRequest, key: int) -> HttpResponse | StreamingHttpResponse:
        visit = self._visits[key]
        steps = visit.ataken()
        async for step in steps:
            visit.answers.append(await sync_to_async(act)(visit, step))
            if step[0].startswith("stream"):
                return StreamingHttpResponse(self._body(visit, steps))
        return HttpResponse(b"all")


def view(kind: str, visits: dict[int, Visit]) -> Any:
    """Make the view of a site."""
    if kind == "async":
        return Views(visits, body_of_a_coroutine).coroutine
    return Views(visits, body if kind == "wsgi" else body_by_threads).sync


class Server:
    """Serves visits to a site beside the test."""

    def __init__(self, kind: str, visits: dict[int, Visit], size: int, loop: asyncio.AbstractEventLoop) -> None:
        self._wsgi, self._loop = kind == "wsgi", loop
        self._threads = ThreadPoolExecutor(size)
        self._site = Site("wsgi" if self._wsgi else "asgi", {"<int:key>": view(kind, visits)})
        self._site.__enter__()

    def start(self, visit: Visit) -> Future[None]:
        """Begin to serve a visit."""
        if self._wsgi:
            return self._threads.submit(visit.serve, self._get)
        return contextvars.Context().run(asyncio.run_coroutine_threadsafe, self._serve(visit), self._loop)

    def _get(self, path: str) -> object:
        try:
            return self._site.get(path).status
        except Exception as error:  # noqa: BLE001  of the body: a server breaks the connection off
            return type(error).__name__

    async def _serve(self, visit: Visit) -> None:
        try:
            visit.outcome = (await self._site.aget(f"/{visit.key}")).status
        except Exception as error:  # noqa: BLE001  of the body
            visit.outcome = type(error).__name__
        finally:
            visit.end()

    def stop(self) -> None:
        """End the site."""
        self._threads.shutdown()
        self._site.__exit__()
        connections.close_all()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs beside the test, which holds the requests."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["wsgi", "asgi", "async"])
def twins(
    request: pytest.FixtureRequest, monitor: psycopg.Connection[Any], loop: asyncio.AbstractEventLoop
) -> Iterator[WebTwins]:
    """`asgi` has views in threads, `async` has coroutines."""
    kind: str = request.param
    options = connections.settings["default"]["OPTIONS"]

    def make(
        size: int, visits: dict[int, Visit], reset: str
    ) -> tuple[Callable[[Visit], Future[None]], Callable[[], None]]:
        connections.close_all()
        pools.close_all(0)
        options["pool"] = {"max_size": size, "timeout": 10, "reset": reset}
        server = Server(kind, visits, size, loop)
        return server.start, server.stop

    def saved(who: int) -> object:
        return monitor.execute("SELECT word FROM web_twin_rows WHERE who = %s", [who]).fetchall()

    for statement in TABLES:
        monitor.execute(statement)
    yield WebTwins(make, saved)
    pools.close_all(0)
    gc.collect()  # what the mark above allows is to be found here, not in another test


def test_requests_are_answered_as_alone(twins: WebTwins) -> None:
    """Whatever one tenant's request did, another one is answered as by a site of its own, and saves the same."""
    twins.run(20, [*POSTGRES, ATOMIC], COMMON, fixed=True)


def test_without_resets_they_are_not(twins: WebTwins) -> None:
    """The programs tell a site apart whose pool passes sessions on as they are."""
    twins.fail_without_resets(POSTGRES, COMMON)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_requests_are_answered_as_alone(twins: WebTwins) -> None:
    """The same, many times as often."""
    twins.run(300, [*POSTGRES, ATOMIC], COMMON)
