"""release(), arelease() and acommit(): giving connections back before the end of a request."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest, HttpResponse
from django_rig import ABORTED, MakeSite, Rows, Site, awrite, out, run, write

from poolkit import CommitFailed, UnitOfWorkError
from poolkit_django import acommit, arelease, conf, current_unit, early, get, release

arun = sync_to_async(run)


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> None:
    early._said.clear()


def test_acommit_saves_and_gives_back(site: MakeSite, rows: Rows) -> None:
    """What was written is saved at once, the connection is back, and an error afterwards can't undo it."""
    seen: list[tuple[int, int]] = []

    async def save(_: HttpRequest) -> HttpResponse:
        await awrite("kept")
        await acommit()
        seen.append((rows("kept"), out()))
        await awrite("also")  # in autocommit from here on
        seen.append((rows("also"), out()))
        raise ZeroDivisionError

    assert site(save).get("/save").status == 500
    assert seen == [(1, 0), (1, 0)]
    assert (rows("kept"), rows("also")) == (1, 1)


def test_acommit_that_fails_is_told_in_the_view(site: MakeSite, rows: Rows) -> None:
    """A swallowed error is no success here either: acommit() raises, and nothing is saved."""

    async def save(_: HttpRequest) -> HttpResponse:
        await awrite("lost")
        with contextlib.suppress(DatabaseError):
            await arun(ABORTED)
        with pytest.raises(CommitFailed):
            await acommit()
        return HttpResponse("told")

    assert site(save).get("/save").body == b"told"
    assert rows("lost") == 0


def test_acommit_runs_the_hooks_of_on_commit(site: MakeSite) -> None:
    """transaction.on_commit() hooks run when acommit() has committed, not at the end of the request."""
    seen: list[str] = []

    async def save(_: HttpRequest) -> HttpResponse:
        await awrite("hooked")
        await sync_to_async(transaction.on_commit)(lambda: seen.append("hook"))
        await acommit()
        seen.append("after")
        return HttpResponse("saved")

    assert site(save).get("/save").status == 200
    assert seen == ["hook", "after"]


def test_acommit_needs_an_open_unit_of_work(site: MakeSite) -> None:
    """Outside a request, or a second time, it says what is wrong."""
    with pytest.raises(UnitOfWorkError, match="PoolkitMiddleware"):
        asyncio.run(acommit())

    async def twice(_: HttpRequest) -> HttpResponse:
        await acommit()
        with pytest.raises(UnitOfWorkError, match="too late"):
            await acommit()
        return HttpResponse("told")

    assert site(twice).get("/twice").body == b"told"


def test_arelease_keeps_a_used_transaction_and_says_so(
    site: MakeSite, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """It commits nothing: False comes back, the log tells which view and what to do, once, and the work is undone."""
    caplog.set_level(logging.WARNING, "poolkit")

    async def save(_: HttpRequest) -> HttpResponse:
        assert await arelease()  # nothing is held yet
        await awrite("open")
        assert not await arelease()
        assert not await arelease()
        assert (rows("open"), out()) == (0, 1)
        raise ZeroDivisionError

    assert site(save).get("/save").status == 500
    assert rows("open") == 0
    assert caplog.text.count("GET /save: release() kept the connection of 'default'") == 1
    assert "acommit()" in caplog.text


def test_release_keeps_a_block_of_the_views_own() -> None:
    """Inside atomic() the connection stays, outside it goes back."""

    @transaction.non_atomic_requests
    def save(_: HttpRequest) -> HttpResponse:
        with transaction.atomic():
            write("block")
            assert not release()
        assert out() == 1  # a sync view keeps it to the end
        assert release()
        return HttpResponse(str(out()))

    with Site("wsgi", {"save": save}) as served:
        assert served.get("/save").body == b"0"


def test_release_keeps_what_a_cursor_reads_from() -> None:
    """An open server-side cursor keeps its connection: released, it would lose what is not fetched yet."""
    with connection.chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 5)")
        assert cursor.fetchone() == (1,)
        assert not release()
        assert cursor.fetchone() == (2,)
    assert release()
    assert out() == 0


def test_release_keeps_a_transaction_made_by_hand() -> None:
    """After set_autocommit(False) a transaction is its user's to end: release() does not roll it back."""
    transaction.set_autocommit(False)
    try:
        run("SELECT 1")
        assert not release()
        assert out() == 1
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert release()
    assert out() == 0


def lent() -> int:
    """Connections that POOLKIT has lent."""
    return int(conf.registry().pool("second").stats().out)


def test_release_gives_back_what_poolkit_leased(site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """After acommit() what get() leases goes back as well, but not in the middle of a transaction of its user's."""
    caplog.set_level(logging.WARNING, "poolkit")
    seen: list[Any] = []

    async def show(_: HttpRequest) -> HttpResponse:
        await sync_to_async(get)("second")
        seen.append((await arelease(), lent()))  # the unit's transaction
        await acommit()
        conn = await sync_to_async(get)("second")
        seen.append((await arelease(), lent()))
        conn = await sync_to_async(get)("second")
        await sync_to_async(conn.execute)("BEGIN")
        seen.append((await arelease(), lent()))
        await sync_to_async(conn.execute)("COMMIT")
        seen.append((await arelease(), lent()))
        return HttpResponse("shown")

    assert site(show).get("/show").status == 200
    assert seen == [(False, 1), (True, 0), (False, 1), (True, 0)]
    assert caplog.text.count("GET /show: release() kept the connection of 'second'") == 1


def test_release_leaves_the_unit_of_another_thread_alone(site: MakeSite) -> None:
    """A thread that a view has started speaks for itself: the view may be at work with what it has leased."""

    def show(_: HttpRequest) -> HttpResponse:
        unit = current_unit()
        assert unit is not None
        unit.commit()
        get("second")
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(context.run, release).result()
        held = lent()
        assert release()
        return HttpResponse(f"{held} {lent()}")

    assert site(show).get("/show").body == b"1 0"


def test_a_sync_view_keeps_its_connection_between_queries(site: MakeSite) -> None:
    """Where nothing is awaited nothing is given back between queries: that would only cost."""

    @transaction.non_atomic_requests
    def show(_: HttpRequest) -> HttpResponse:
        run("SELECT 1")
        held = out()
        unit = current_unit()
        assert unit is not None
        return HttpResponse(f"{held} {unit.awaits}")

    served = site(show)
    assert served.get("/show").body == (b"1 False" if served.kind == "wsgi" else b"0 True")
