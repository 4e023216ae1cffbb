"""The ways in which a Django project has its connections, on each of poolkit's engines."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django_rig import Site, database
from matrix_cells import Way, Work, drive

from poolkit_django import aconnection, atransaction, current_unit, native
from poolkit_django.backends import pools

__all__ = ["DJANGO", "NATIVE", "DjangoWay", "entry"]

HERE = "matrix"
T = TypeVar("T")
# Whether it is in a transaction, and whether one session does all of a request's work.
DJANGO = {
    "autocommit": (False, True),
    "unit": (True, True),
    "atomic": (True, True),
    "stream": (False, False),
    "whole stream": (True, True),
    "async unit": (True, True),
    "async autocommit": (False, False),
    "async atomic": (True, True),
    "async stream": (False, False),
}
NATIVE = {"native": (False, True), "native transaction": (True, True)}


def entry(url: str, **pool: Any) -> dict[str, Any]:
    """Make an entry of DATABASES for a URL, with a pool of one connection."""
    kind, parts = url.partition(":")[0].partition("+")[0], urlsplit(url)
    options = {"pool": {"max_size": 1, "timeout": 5, **pool}}
    if kind == "sqlite":
        return {"ENGINE": "poolkit_django.backends.sqlite3", "NAME": parts.path[1:], "OPTIONS": options}
    if kind == "postgresql":
        return database(url, **options)
    place = {"HOST": parts.hostname, "PORT": parts.port, "NAME": parts.path[1:]}
    account = {"USER": parts.username, "PASSWORD": unquote(parts.password or "")}
    return {"ENGINE": "poolkit_django.backends.mysql", **place, **account, "OPTIONS": options}


class DjangoWay(Way):
    """A site with one view for each way; `how` says which. `driver` is the one of native connections."""

    def __init__(self, url: str, how: str, driver: str = "", **pool: Any) -> None:
        self.how = how
        self.transaction, self.keeps = {**DJANGO, **NATIVE}[how]
        # a `configure` for native connections is a coroutine function, which the engine's pool would refuse
        ours = {name: value for name, value in pool.items() if not driver or name != "configure"}
        connections.settings[HERE] = connections.configure_settings({"default": {}, HERE: entry(url, **ours)})[HERE]
        self.settings = override_settings(POOLKIT_ASYNC={HERE: {"driver": driver, **pool}} if driver else {})
        self.settings.enable()
        views = self._native() if driver else self._views()
        self.asgi = "async" in how or bool(driver)
        self.site = Site("asgi" if self.asgi else "wsgi", {how: views[how]}).__enter__()
        self.loop = asyncio.new_event_loop()  # it runs between requests too, as a server's does
        self.thread = threading.Thread(target=self.loop.run_forever, name="matrix-loop")
        self.thread.start()

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def do(self) -> None:
        """Do the request's work on the alias."""
        drive(self.work(connections[HERE]))

    def _views(self) -> dict[str, Callable[..., Any]]:
        def unit(request: HttpRequest) -> HttpResponse:
            self.do()
            return HttpResponse("ab")

        def stream(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(self._body())

        def whole_stream(request: HttpRequest) -> StreamingHttpResponse:
            current_unit().stream()
            return StreamingHttpResponse(self._body())

        def atomic(request: HttpRequest) -> HttpResponse:
            with transaction.atomic(using=HERE):
                return unit(request)

        async def async_unit(request: HttpRequest) -> HttpResponse:
            await sync_to_async(self.do)()
            return HttpResponse("ab")

        async def async_atomic(request: HttpRequest) -> HttpResponse:
            return await sync_to_async(atomic)(request)

        async def async_stream(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(self._async_body())

        def alone(view: Callable[..., Any]) -> Callable[..., Any]:
            """Take a copy of a view out of the request's unit: the decorator marks the function that it is given."""
            return transaction.non_atomic_requests(using=HERE)(functools.wraps(view)(functools.partial(view)))

        return {
            "autocommit": alone(unit),
            "unit": unit,
            "atomic": alone(atomic),
            "stream": stream,
            "whole stream": whole_stream,
            "async unit": async_unit,
            "async autocommit": alone(async_unit),
            "async atomic": alone(async_atomic),
            "async stream": async_stream,
        }

    def _native(self) -> dict[str, Callable[..., Any]]:
        async def native(request: HttpRequest) -> HttpResponse:
            async with aconnection(HERE) as conn:
                await self.work(conn)
            return HttpResponse("ab")

        async def native_transaction(request: HttpRequest) -> HttpResponse:
            async with atransaction(HERE) as conn:
                await self.work(conn)
            return HttpResponse("ab")

        return {"native": native, "native transaction": native_transaction}

    def _body(self) -> Iterator[str]:
        yield "a"
        self.do()
        yield "b"

    async def _async_body(self) -> AsyncIterator[str]:
        yield "a"
        await sync_to_async(self.do)()
        yield "b"

    def serve(self, work: Work) -> int:
        """Give one request to the site; return the status of the answer, 599 for a body that broke off."""
        self.work = work
        try:
            reply = self._in_loop(self.site.aget(f"/{self.how}")) if self.asgi else self.site.get(f"/{self.how}")
        except Exception:
            if "stream" not in self.how:
                raise
            return 599
        return 599 if reply.status == 200 and reply.body != b"ab" else reply.status

    def pools(self) -> list[Any]:
        """The pools that exist now."""
        return native.live() if self.how in NATIVE else [pools.pool_for(connections[HERE])]  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the pools, and forget the alias."""
        self._in_loop(native.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        self.site.__exit__(None, None, None)
        self.settings.disable()
        connections[HERE].close()
        pools.close_database(connections[HERE])  # type: ignore[arg-type]
        del connections[HERE], connections.settings[HERE]
