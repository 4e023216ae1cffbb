"""After the commit: bodies that are streamed, cursors that are left, work that outlives its request."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Iterator

import pytest
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django_rig import MIDDLEWARE, MakeSite, Rows, Site, awrite, eventually, out, run, write

from poolkit_django import current_unit, get


def keep_open() -> None:
    unit = current_unit()
    assert unit is not None
    unit.stream()


def test_a_body_holds_nothing_between_its_queries(site: MakeSite, rows: Rows) -> None:
    """Each query of a streamed body leases anew, in autocommit, and gives back at once, however slow the client is."""
    seen: list[tuple[int, bool]] = []

    def save(_: HttpRequest) -> StreamingHttpResponse:
        write("before")

        def body() -> Iterator[str]:
            for _ in range(3):
                write("late")
                seen.append((out(), connection.in_atomic_block))
                yield "part"

        return StreamingHttpResponse(body())

    def asave(_: HttpRequest) -> StreamingHttpResponse:
        write("before")

        async def body() -> AsyncIterator[str]:
            for _ in range(3):
                await awrite("late")
                seen.append((out(), False))
                yield "part"

        return StreamingHttpResponse(body())

    served = site(save, asave)
    name = "/save" if served.kind == "wsgi" else "/asave"
    assert served.get(name).body == b"partpartpart"
    assert seen == [(0, False)] * 3
    assert (rows("before"), rows("late")) == (1, 3)


def test_a_block_in_a_body_is_a_transaction_of_its_own(rows: Rows) -> None:
    """atomic() in a streamed body begins and ends there, and gives back at its end."""

    def save(_: HttpRequest) -> StreamingHttpResponse:
        def body() -> Iterator[str]:
            with transaction.atomic():
                write("block")
                write("block")
                yield str(out())
            yield str(out())

        return StreamingHttpResponse(body())

    with Site("wsgi", {"save": save}) as served:
        assert served.get("/save").body == b"10"
    assert rows("block") == 2


def test_a_server_side_cursor_in_a_body_keeps_its_connection_while_it_is_read() -> None:
    """queryset.iterator() in a body: the connection stays while rows are fetched, and comes back at the end."""
    held: list[int] = []

    def show(_: HttpRequest) -> StreamingHttpResponse:
        def body() -> Iterator[str]:
            with connection.chunked_cursor() as cursor:
                cursor.execute("SELECT generate_series(1, 4)")
                for (number,) in iter(cursor.fetchone, None):
                    held.append(out())
                    yield str(number)

        return StreamingHttpResponse(body())

    with Site("wsgi", {"show": show}) as served:
        assert served.get("/show").body == b"1234"
        assert held == [1] * 4
        assert out() == 0
        assert served.get("/show", parts=2).body == b"12"
    assert out() == 0


def test_stream_keeps_the_transaction_to_the_end(site: MakeSite, rows: Rows) -> None:
    """unit.stream(): what the body writes is saved with the rest, once the body is at its end."""
    seen: list[int] = []

    def save(_: HttpRequest) -> StreamingHttpResponse:
        keep_open()
        write("stream")
        return StreamingHttpResponse(body(rows))

    def body(rows: Rows) -> Iterator[str]:
        write("stream")
        seen.append(rows("stream"))
        yield "part"

    def asave(_: HttpRequest) -> StreamingHttpResponse:
        keep_open()
        write("stream")
        return StreamingHttpResponse(abody(rows))

    async def abody(rows: Rows) -> AsyncIterator[str]:
        await awrite("stream")
        seen.append(rows("stream"))
        yield "part"

    served = site(save, asave)
    assert served.get("/save" if served.kind == "wsgi" else "/asave").body == b"part"
    assert seen == [0]
    assert rows("stream") == 2


def test_an_abandoned_stream_rolls_back(site: MakeSite, rows: Rows) -> None:
    """The client left in the middle: nothing of a body with its transaction is saved, and nothing stays lent."""

    def parts() -> Iterator[str]:
        for _ in range(100):
            write("gone")
            yield "part" * 100

    async def aparts() -> AsyncIterator[str]:
        for _ in range(100):
            await awrite("gone")
            yield "part" * 100
            await asyncio.sleep(0.02)

    def save(_: HttpRequest) -> StreamingHttpResponse:
        keep_open()
        return StreamingHttpResponse(parts())

    def asave(_: HttpRequest) -> StreamingHttpResponse:
        keep_open()
        return StreamingHttpResponse(aparts())

    served = site(save, asave)
    served.get("/save" if served.kind == "wsgi" else "/asave", parts=2)
    assert rows("gone") == 0
    assert out() == 0


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")  # a sync body under ASGI
def test_a_body_that_fails_rolls_back(site: MakeSite, rows: Rows) -> None:
    """An exception in a body with its transaction undoes all of it."""

    def parts() -> Iterator[str]:
        write("failed")
        yield "part"
        raise KeyError("in the body")

    def save(_: HttpRequest) -> StreamingHttpResponse:
        keep_open()
        return StreamingHttpResponse(parts())

    served = site(save)
    with pytest.raises(KeyError):
        served.get("/save")
    with warnings.catch_warnings():  # Django 5.2 leaves its copy of the request's body open then
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert rows("failed") == 0
    assert out() == 0


@pytest.mark.parametrize("name", ["sync", "asynchronous"])
def test_a_body_that_is_never_read_rolls_back(name: str, rows: Rows) -> None:
    """A response that is closed unread, also from a thread that is not the request's: nothing saved, nothing lent."""

    def sync(_: HttpRequest) -> StreamingHttpResponse:
        keep_open()
        write("unread")
        return StreamingHttpResponse(iter(["part"]))

    async def asynchronous(request: HttpRequest) -> StreamingHttpResponse:
        return await sync_to_async(sync)(request)

    async def visit(site: Site) -> None:
        request = ASGIRequest(site._scope(f"/{name}", {}), None)
        response = await site.app.get_response_async(request)
        assert response.status_code == 200
        assert out() == 1
        response.close()  # in the loop's own thread

    with Site("asgi", {name: {"sync": sync, "asynchronous": asynchronous}[name]}) as served:
        asyncio.run(visit(served))
    assert rows("unread") == 0
    eventually(lambda: out() == 0)


def test_a_commit_that_fails_at_the_end_of_a_stream_cuts_it(rows: Rows) -> None:
    """The status has left already: all that can be done is not to end well."""

    def parts() -> Iterator[str]:
        run("INSERT INTO django_children VALUES (999)")
        yield "part"

    def save(_: HttpRequest) -> StreamingHttpResponse:
        keep_open()
        write("cut")
        return StreamingHttpResponse(parts())

    with Site("wsgi", {"save": save}) as served, pytest.raises(Exception, match="django_children"):
        served.get("/save")
    assert rows("cut") == 0


def test_resources_of_poolkit_are_late_too(rows: Rows) -> None:
    """get() in a body leases anew, in autocommit, and the end of the body gives back."""

    def save(_: HttpRequest) -> StreamingHttpResponse:
        get("second").execute("INSERT INTO django_notes VALUES ('unit')")

        def body() -> Iterator[str]:
            get("second").execute("INSERT INTO django_notes VALUES ('late')")
            yield str(rows("unit") + rows("late"))

        return StreamingHttpResponse(body())

    with Site("wsgi", {"save": save}) as served:
        assert served.get("/save").body == b"2"
    assert rows("late") == 1


def test_a_task_that_outlives_its_request_works_and_gives_back(rows: Rows) -> None:
    """asyncio.create_task: after the response its queries are their own, each gives back at once."""
    tasks: list[asyncio.Task[None]] = []
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        for _ in range(5):
            await sync_to_async(write, thread_sensitive=False)("task")
            await asyncio.to_thread(write, "task")

    async def accept(_: HttpRequest) -> HttpResponse:
        tasks.append(asyncio.create_task(later()))
        return HttpResponse(status=202)

    async def visit(site: Site) -> None:
        replies = [await site.aget("/accept") for _ in range(4)]
        assert [reply.status for reply in replies] == [202] * 4
        go.set()
        await asyncio.gather(*tasks)
        assert out() == 0

    with Site("asgi", {"accept": accept}) as served:
        asyncio.run(visit(served))
    assert rows("task") == 40


def test_many_requests_that_use_other_threads(rows: Rows) -> None:
    """48 requests through a pool of 3, all in threads that no signal visits: all served, nothing left out."""

    async def use(_: HttpRequest) -> HttpResponse:
        await asyncio.to_thread(write, "threads")
        await sync_to_async(write, thread_sensitive=False)("threads")
        await asyncio.sleep(0)
        return HttpResponse("done")

    async def visit(site: Site) -> list[int]:
        return [reply.status for reply in await asyncio.gather(*(site.aget("/use") for _ in range(48)))]

    with Site("asgi", {"use": use}) as served:
        assert asyncio.run(visit(served)) == [200] * 48
    assert out() == 0
    assert rows("threads") == 96


def test_a_page_that_waits_holds_nothing_after_its_commit(rows: Rows) -> None:
    """unit.commit() in the view ends it: what comes later waits without a connection."""

    def save(_: HttpRequest) -> HttpResponse:
        write("early")
        unit = current_unit()
        assert unit is not None
        unit.commit()
        held = out()
        write("after")
        return HttpResponse(f"{held} {out()}")

    with Site("wsgi", {"save": save}, MIDDLEWARE=[MIDDLEWARE]) as served:
        assert served.get("/save").body == b"0 0"
    assert (rows("early"), rows("after")) == (1, 1)
