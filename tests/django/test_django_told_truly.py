"""What a client is told is what happened: errors and what handles them, ignored failures, closed connections."""

from __future__ import annotations

import contextlib
import functools
import logging
import unittest
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.signals import got_request_exception
from django.db import DatabaseError, connection, connections, models, transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.test import Client, TestCase, TransactionTestCase, override_settings
from django.urls import path
from django_rig import ABORTED, MIDDLEWARE, MakeSite, Rows, out, run, write
from test_django_strays import HERE, engine, here  # noqa: F401  fixtures

from poolkit_django import conf, unit_of_work
from poolkit_django.signals import unit_ended


class Noting:
    """A middleware that keeps errors in the database."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_exception(self, _request: HttpRequest, _error: Exception) -> None:
        """Write a row about the error."""
        write("process_exception")


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        write("logging")


def _sorry(_request: HttpRequest, exception: Any = None) -> HttpResponse:
    write("handler")
    return HttpResponse("sorry", status=500)


@pytest.fixture
def _log() -> Iterator[None]:
    handler, log = _Handler(), logging.getLogger("django.request")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    yield
    log.removeHandler(handler)
    log.setLevel(level)


def _heard(**_: Any) -> None:
    write("signal")


@pytest.fixture
def _signal() -> Iterator[None]:
    got_request_exception.connect(_heard)
    yield
    got_request_exception.disconnect(_heard)


@pytest.mark.usefixtures("_log", "_signal")
@pytest.mark.parametrize("kind_of_view", ["sync", "async"])
@pytest.mark.parametrize(("how", "error"), [("value", ValueError), ("sql", None), ("404", Http404)])
def test_what_handles_an_error_writes_rows_that_stay(
    how: str, error: Any, kind_of_view: str, site: MakeSite, rows: Rows
) -> None:
    """The view's rows are gone before process_exception, a handler, a signal or a log handler runs; theirs stay."""

    def fails(_: HttpRequest) -> HttpResponse:
        write("view")
        if error is None:
            run(ABORTED)
        raise error

    async def afails(request: HttpRequest) -> HttpResponse:
        return await sync_to_async(fails)(request)

    class Urls:
        urlpatterns = (path("view", fails if kind_of_view == "sync" else afails),)
        handler404 = handler500 = staticmethod(_sorry)

    served = site(MIDDLEWARE=[MIDDLEWARE, f"{__name__}.Noting"])
    with override_settings(ROOT_URLCONF=Urls):
        assert served.get("/view").status == 500
    assert rows("view") == 0
    expected = {"process_exception": 1, "handler": 1, "logging": 1, "signal": int(how != "404")}
    assert {word: min(rows(word), 1) for word in expected} == expected
    assert out() == 0


@pytest.mark.usefixtures("_signal")
def test_an_error_of_a_middleware_is_rolled_back_before_it_is_handled(site: MakeSite, rows: Rows) -> None:
    """The same where no view raised: what the handler writes does not wait for a lock of the work that failed."""

    class Urls:
        urlpatterns: tuple[Any, ...] = ()
        handler404 = handler500 = staticmethod(_sorry)

    served = site(MIDDLEWARE=[MIDDLEWARE, f"{__name__}.failing"])
    with override_settings(ROOT_URLCONF=Urls):
        assert served.get("/nowhere").status == 500
    assert (rows("middleware"), rows("signal"), rows("handler")) == (0, 1, 1)


def failing(_: Any) -> Any:
    """Make a middleware that writes and raises."""

    def middleware(_: HttpRequest) -> HttpResponse:
        write("middleware")
        raise ValueError

    return middleware


@functools.cache
def _note() -> Any:
    class Note(models.Model):
        word = models.CharField(primary_key=True, max_length=20)

        class Meta:
            app_label = "told_truly"
            managed = False
            db_table = "django_notes"

        def __str__(self) -> str:
            return str(self.word)

    return Note


def _caught_sql() -> None:
    with contextlib.suppress(DatabaseError):
        run(ABORTED)


def _caught_update() -> None:
    with contextlib.suppress(DatabaseError):
        _note()(word="there is none").save(force_update=True)


def _caught_in_a_block() -> None:
    with contextlib.suppress(KeyError), transaction.atomic(savepoint=False):
        raise KeyError


WAYS = {"sql": _caught_sql, "update": _caught_update, "block": _caught_in_a_block}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("status", "sent"), [(200, 500), (302, 500), (400, 400), (409, 409), (503, 503)])
def test_an_ignored_failure_under_a_status(  # noqa: PLR0917
    way: str, status: int, sent: int, site: MakeSite, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """An answer that is an error is sent, rolled back, counted and told; one that is none becomes a 500."""
    hooks: list[str] = []
    reasons: list[Any] = []

    def view(_: HttpRequest) -> HttpResponse:
        write("ignored")
        transaction.on_commit(lambda: hooks.append("ran"))
        WAYS[way]()
        return HttpResponse("taken", status=status)

    def ended(unit: Any, **_: Any) -> None:
        reasons.append(unit.rollback_reason)

    unit_ended.connect(ended)
    before = conf.registry().tally.rollbacks.get("swallowed_error", 0)
    try:
        with caplog.at_level(logging.WARNING, "poolkit"):
            served = site(ROOT_URLCONF=(path(f"{way}/{status}", view),))
            for _ in range(2):
                reply = served.get(f"/{way}/{status}")
                assert reply.status == sent
    finally:
        unit_ended.disconnect(ended)
    assert (rows("ignored"), hooks) == (0, [])
    assert reasons == ["swallowed_error"] * 2
    assert conf.registry().tally.rollbacks["swallowed_error"] - before == 2
    said = [text for text in caplog.messages if "after a statement had failed" in text and f"/{way}/{status}" in text]
    if sent == status and served.kind == "wsgi":
        assert len(said) == 1
        assert "saved" in said[0]
        assert way != "sql" or "division by zero" in said[0]


def test_the_setting_makes_it_an_error_everywhere(site: MakeSite, rows: Rows) -> None:
    """POOLKIT_UNITS = {"swallowed_error": "raise"}: an answer that is an error becomes a 500, too."""

    def view(_: HttpRequest) -> HttpResponse:
        write("raised")
        _caught_sql()
        return HttpResponse(status=409)

    with override_settings(POOLKIT_UNITS={"swallowed_error": "raise"}):
        assert site(view).get("/view").status == 500
    assert rows("raised") == 0


@pytest.mark.parametrize("closing", ["close", "close_all"])
def test_a_view_that_only_read_may_close(closing: str, site: MakeSite, rows: Rows) -> None:
    """Nothing is lost with its transaction; what it writes after that is in a new one, and saved."""

    def view(_: HttpRequest) -> HttpResponse:
        run("SELECT * FROM django_notes")
        getattr(connections if closing == "close_all" else connection, closing)()
        assert connection.in_atomic_block
        write("after")
        return HttpResponse()

    def wrote(_: HttpRequest) -> HttpResponse:
        write("before")
        connection.close()
        return HttpResponse()

    served = site(view, wrote)
    assert served.get("/view").status == 200
    assert rows("after") == 1
    assert served.get("/wrote").status == 500
    assert rows("before") == 0


def test_each_engine_knows_what_only_read(here: Any) -> None:  # noqa: F811
    """A transaction that wrote is lost with its connection, and the end of the unit says so; one that read is not."""
    with unit_of_work():
        run("SELECT * FROM django_notes", using=here)
        here.close()
        run("SELECT * FROM django_notes", using=here)
        here.close()
    unit = unit_of_work()
    unit.__enter__()
    write("lost", using=here)
    here.close()
    with pytest.raises(Exception, match=r"connection.close\(\) on 'here'"):
        unit.__exit__(None, None, None)
    with unit_of_work():
        write("kept", using=here)
    assert run("SELECT word FROM django_notes", using=here) == [("kept",)]
    here.close()


def one_query(_: HttpRequest) -> HttpResponse:
    """Ask once."""
    run("SELECT 1")
    return HttpResponse()


def fails(_: HttpRequest) -> HttpResponse:
    """Ask once, and fail."""
    run("SELECT 1")
    raise Http404


def hooked(_: HttpRequest) -> HttpResponse:
    """Ask once, and once more when all is saved."""
    run("SELECT 1")
    transaction.on_commit(lambda: run("SELECT 2"))
    return HttpResponse()


@pytest.mark.parametrize("kind_of_case", [TestCase, TransactionTestCase])
@pytest.mark.parametrize(("view", "count"), [(one_query, 1), (fails, 1), (hooked, 2)])
def test_assert_num_queries_counts_the_views_queries(kind_of_case: Any, view: Any, count: int) -> None:
    """The unit's own BEGIN, SAVEPOINT, RELEASE and COMMIT are none of a test's; a hook's queries are."""

    class Case(kind_of_case):  # type: ignore[misc]
        databases = frozenset({"default"})
        available_apps: Any = None

        def runTest(self) -> None:  # noqa: N802
            expected = 1 if kind_of_case is TestCase else count  # a TestCase's hooks wait for captureOnCommitCallbacks
            with self.assertNumQueries(expected):
                Client().get("/")

        def _fixture_teardown(self) -> None:
            if kind_of_case is TestCase:  # the other one flushes every table
                super()._fixture_teardown()

    with override_settings(ROOT_URLCONF=(path("", view),)):
        result = unittest.TestResult()
        unittest.TestSuite([Case()]).run(result)
    assert result.errors + result.failures == []


def test_a_block_of_the_views_own_is_counted() -> None:
    """What the view asks of its own blocks is logged as ever."""

    def view(_: HttpRequest) -> HttpResponse:
        with transaction.atomic():
            run("SELECT 1")
        return HttpResponse()

    with override_settings(ROOT_URLCONF=(path("", view),)):
        connection.force_debug_cursor = True
        try:
            connection.queries_log.clear()
            Client().get("/")
            asked = [entry["sql"].split()[0] for entry in connection.queries_log]
        finally:
            connection.force_debug_cursor = False
    assert asked == ["SAVEPOINT", "SELECT", "RELEASE"]


def _kept() -> Iterator[int]:
    with transaction.atomic():
        write("lost")
        yield 1
        yield 2


def test_a_block_that_a_generator_keeps_open_does_not_spoil_a_worker(rows: Rows) -> None:
    """A task that leaves it so is rolled back when its connection is closed; the next one begins afresh."""
    kept = _kept()
    next(kept)
    for wrapper in connections.all(initialized_only=True):
        wrapper.close()
    assert out() == 0
    write("next task")
    assert not connection.in_atomic_block
    connections.close_all()
    assert (rows("next task"), rows("lost")) == (1, 0)
    kept.close()


def test_a_block_that_is_left_later_is_no_kept_one() -> None:
    """close() inside of a block that code is in: further queries are refused, as Django does it."""
    with contextlib.suppress(Exception), transaction.atomic():
        run("SELECT 1")
        connection.close()
        with pytest.raises(DatabaseError, match="Cannot open a new connection in an atomic block"):
            run("SELECT 1")
    assert run("SELECT 1") == [(1,)]


@pytest.mark.parametrize("did", ["nothing", "read", "goes on", "wrote"])
def test_a_view_that_closes_the_library_s_connection(did: str, site: MakeSite, rows: Rows) -> None:
    """With no work open it is back, and the answer is sent; with work open nothing was saved, and that is a 500."""

    def view(_: HttpRequest) -> HttpResponse:
        if did == "wrote":
            write("closed raw")
        else:
            connection.ensure_connection()
            if did != "nothing":
                connection.cursor().execute("SELECT 1")
        connection.connection.close()
        if did == "goes on":
            write("went on")
        return HttpResponse("sent")

    served = site(view)
    for _ in range(2):
        assert served.get("/view").status == (500 if did == "wrote" else 200)
    assert rows("closed raw") == 0
    assert rows("went on") == (2 if did == "goes on" else 0)
    assert out() == 0
