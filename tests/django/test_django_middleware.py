"""The middleware beside what people run: Django REST framework, middleware that raises, other databases' failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from inspect import iscoroutinefunction
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import connections
from django.http import Http404, HttpRequest, HttpResponse
from django.test import override_settings
from django_rig import MIDDLEWARE, MakeSite, Rows, Site, out, run, write

from poolkit_django import checks
from poolkit_django.middleware import PoolkitMiddleware

REST = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "UNAUTHENTICATED_USER": None,
}


@pytest.fixture(params=[False, True], ids=["plain", "atomic_requests"])
def rest_site(request: pytest.FixtureRequest, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site of Django REST framework's, with ATOMIC_REQUESTS and without."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", request.param)
    with override_settings(REST_FRAMEWORK=REST):
        from rest_views import rest  # noqa: PLC0415  see there

        yield site(rest)


@pytest.mark.parametrize(
    ("how", "status", "saved"),
    [
        ("200", 200, 1),
        ("400", 400, 1),
        ("not_found", 404, 0),
        ("invalid", 400, 0),
        ("http404", 404, 0),
        ("denied", 403, 0),
        ("broken", 500, 0),
        ("deferred", 500, 0),  # the framework was content, and the COMMIT fails
    ],
)
def test_django_rest_framework(how: str, status: int, saved: int, rest_site: Site, rows: Rows) -> None:
    """An error that the framework answers rolls back, a returned status commits, and a failing COMMIT is no 2xx."""
    assert rest_site.get(f"/rest?how={how}").status == status
    assert rows("rest") == saved
    assert out() == 0


ENDS: dict[str, Any] = {"404": Http404, "403": PermissionDenied, "400": SuspiciousOperation, "500": ZeroDivisionError}


class RaisesAfterwards:
    """A middleware that writes and raises once the view is through."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        response = self.get_response(request)
        write("middleware")
        if request.GET["end"] in ENDS:
            raise ENDS[request.GET["end"]]
        return response


class RaisesBefore(RaisesAfterwards):
    """A middleware that writes and raises before the view."""

    def __call__(self, request: HttpRequest) -> Any:
        write("middleware")
        if request.GET["end"] in ENDS:
            raise ENDS[request.GET["end"]]
        return self.get_response(request)


@pytest.mark.parametrize("view", ["sync", "asynchronous"])
@pytest.mark.parametrize("end", [*ENDS, "200"])
@pytest.mark.parametrize("raises", [RaisesAfterwards, RaisesBefore])
def test_an_exception_of_a_middleware_rolls_back(raises: Any, end: str, view: str, site: MakeSite, rows: Rows) -> None:
    """Http404 and PermissionDenied too: whatever Django makes a response of was an exception, wherever it came from."""

    def sync(_: HttpRequest) -> HttpResponse:
        write("view")
        return HttpResponse("done")

    async def asynchronous(_: HttpRequest) -> HttpResponse:
        await sync_to_async(write)("view")
        return HttpResponse("done")

    served = site(sync, asynchronous, MIDDLEWARE=[MIDDLEWARE, f"{__name__}.{raises.__name__}"])
    assert served.get(f"/{view}?end={end}").status == int(end)
    expected = 1 if end == "200" else 0
    assert (rows("view"), rows("middleware")) == (expected, expected)
    assert out() == 0


def test_an_exception_outside_of_it_comes_too_late(site: MakeSite, rows: Rows) -> None:
    """What a middleware around it raises afterwards can't undo what is committed: the work was done by then."""

    def save(_: HttpRequest) -> HttpResponse:
        write("saved")
        return HttpResponse("saved")

    served = site(save, MIDDLEWARE=[f"{__name__}.RaisesAfterwards", MIDDLEWARE])
    assert served.get("/save?end=404").status == 404
    assert rows("saved") == 1
    assert out() == 0


@pytest.mark.parametrize("fails", ["default", "other"])
@pytest.mark.parametrize("view", ["sync", "asynchronous"])
def test_the_commit_of_one_of_two_databases_fails(view: str, fails: str, site: MakeSite, rows: Rows) -> None:
    """Never a 2xx: what comes after the failure is rolled back, and the error tells what was committed before it."""
    told: list[BaseException] = []

    def work() -> None:
        write("default")
        write("other", using=connections["other"])
        run("INSERT INTO django_children VALUES (998)", using=connections[fails])

    def sync(_: HttpRequest) -> HttpResponse:
        work()
        return HttpResponse("done")

    async def asynchronous(_: HttpRequest) -> HttpResponse:
        await sync_to_async(work)()
        return HttpResponse("done")

    def keep(_: HttpRequest, error: BaseException) -> None:
        told.append(error)

    served = site(sync, asynchronous, POOLKIT_EXCEPTION_HANDLER=keep)
    assert served.get(f"/{view}").status == 500
    assert (rows("default"), rows("other")) == ((0, 0) if fails == "default" else (1, 0))
    assert len(told) == 1
    assert ("committed before: default" in str(told[0])) is (fails == "other")


def test_what_contradicts_it_is_logged_at_the_start(
    site: MakeSite, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that runs no checks still says what of the settings works against the unit of work."""
    monkeypatch.setattr(checks, "_told", set())
    sessions = "django.contrib.sessions.middleware.SessionMiddleware"

    def show(_: HttpRequest) -> HttpResponse:
        return HttpResponse("shown")

    assert site(show, MIDDLEWARE=[sessions, MIDDLEWARE], SESSION_ENGINE="django.contrib.sessions.backends.db")
    assert "poolkit.W003" in caplog.text


async def answered(_: HttpRequest) -> HttpResponse:
    return HttpResponse("answered")


@pytest.mark.parametrize("used", [False, True])
async def test_an_async_request_is_named_without_a_step_into_its_thread(*, used: bool) -> None:
    """Where nothing was asked of the database yet, naming the unit of work needs no thread; else it takes that way."""
    loop, threads = threading.get_ident(), []

    class Noting(PoolkitMiddleware):
        pass

    middleware = Noting(answered)
    request = SimpleNamespace(method="GET", resolver_match=SimpleNamespace(route="orders"))
    unit = SimpleNamespace(ended=False, used=used, label="GET")
    unit.relabel = lambda label: threads.append((label, threading.get_ident()))
    request.poolkit_unit = unit
    await middleware.process_view(request, answered, (), {})
    ((label, thread),) = threads
    assert label == "GET /orders"
    assert (thread != loop) is used


def test_a_process_view_of_the_users_own_stays_in_the_thread() -> None:
    """A subclass may ask the database in its process_view: Django calls it in the request's thread, as ever."""

    class Own(PoolkitMiddleware):
        def process_view(self, *args: Any) -> None:
            return super().process_view(*args)

    assert not iscoroutinefunction(Own(answered).process_view)
    assert iscoroutinefunction(PoolkitMiddleware(answered).process_view)
