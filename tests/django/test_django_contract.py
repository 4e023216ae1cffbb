"""How a request ends: what the client sees, and what is saved. Sync and async views, WSGI and ASGI alike."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, NamedTuple

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.urls import path
from django_rig import (
    ABORTED,
    MIDDLEWARE,
    MakeSite,
    Rows,
    Site,
    acquired,
    awrite,
    eventually,
    open_transactions,
    out,
    run,
    write,
)

import poolkit
from poolkit_django import current_unit, get, unit_of_work
from poolkit_django.backends import pools


class HandledError(Exception):
    """A middleware nearer to the view answers it."""


class Answers:
    """A middleware that makes a response of HandledError."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_exception(self, _: HttpRequest, error: Exception) -> HttpResponse | None:
        return HttpResponse("handled") if isinstance(error, HandledError) else None


class Case(NamedTuple):
    """A way to end a view, the status the client sees, and how many rows are saved."""

    name: str
    status: int
    rows: int


CASES = [
    Case("no_query", 200, 0),
    Case("return_200", 200, 1),
    Case("return_404", 404, 1),
    Case("return_503", 503, 1),
    Case("raise_404", 404, 0),
    Case("raise_403", 403, 0),
    Case("raise_handled", 200, 0),
    Case("raise_unhandled", 500, 0),
    Case("swallow_sql_error", 500, 0),
    Case("swallow_in_a_block", 500, 0),
    Case("savepoint_saves_the_rest", 200, 1),
    Case("commit_fails", 500, 0),
    Case("template_fails", 500, 0),
    Case("framework_error", 400, 0),
    Case("doom", 200, 0),
    Case("set_rollback", 200, 0),
    Case("connection_closed", 500, 0),
    Case("commit_early_then_raise", 500, 1),
]


def _statement(name: str) -> None:
    """Do the part of a case that talks to the database."""
    if name != "no_query":
        write(name)
    if name == "swallow_sql_error":
        with contextlib.suppress(DatabaseError):
            run(ABORTED)
    if name == "swallow_in_a_block":  # no failed statement, and yet Django will only roll back
        with contextlib.suppress(KeyError), transaction.atomic(savepoint=False):
            raise KeyError
    if name == "savepoint_saves_the_rest":
        with contextlib.suppress(DatabaseError), transaction.atomic():
            run(ABORTED)
    if name == "commit_fails":
        run("INSERT INTO django_children VALUES (999)")
    if name == "set_rollback":
        transaction.set_rollback(True)
    if name == "connection_closed":
        connection.close()
    if name == "commit_early_then_raise":
        unit = current_unit()
        assert unit is not None
        unit.commit()


def _outcome(name: str, request: HttpRequest) -> HttpResponse:
    if name == "doom":
        unit = current_unit()
        assert unit is not None
        unit.doom("not today")
    raised = {
        "raise_404": Http404,
        "raise_403": PermissionDenied,
        "raise_handled": HandledError,
        "raise_unhandled": ZeroDivisionError,
        "commit_early_then_raise": ZeroDivisionError,
    }
    if name in raised:
        raise raised[name]
    if name == "template_fails":
        return TemplateResponse(request, engines["django"].from_string("{{ boom }}"), {"boom": _boom})
    response = HttpResponse("done", status={"return_404": 404, "return_503": 503}.get(name, 200))
    if name == "framework_error":  # as Django REST framework marks what it has made of an exception
        response.status_code = 400
        response.exception = True  # type: ignore[attr-defined]
    return response


def _boom() -> None:
    raise ValueError("too late for the view")


def _views(case: Case) -> tuple[Any, Any]:
    def sync(request: HttpRequest) -> HttpResponse:
        _statement(case.name)
        return _outcome(case.name, request)

    async def asynchronous(request: HttpRequest) -> HttpResponse:
        await sync_to_async(_statement)(case.name)
        return _outcome(case.name, request)

    return sync, asynchronous


TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]


@pytest.mark.parametrize("view", ["sync", "asynchronous"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_raise_rolls_back_and_return_commits(case: Case, view: str, site: MakeSite, rows: Rows) -> None:
    """Return commits whatever the status, raise rolls back whatever it becomes; no failure to save is a success."""
    with site(*_views(case), MIDDLEWARE=[MIDDLEWARE, f"{__name__}.Answers"], TEMPLATES=TEMPLATES) as served:
        before = acquired()
        reply = served.get(f"/{view}")
    assert reply.status == case.status
    assert rows(case.name) == case.rows
    assert out() == 0
    assert (acquired() == before) == (case.name == "no_query")


def test_the_commit_comes_before_the_first_byte(site: MakeSite, rows: Rows) -> None:
    """When the server is given the status, the row is there for others to see and the connection is back."""

    def save(_: HttpRequest) -> HttpResponse:
        write("early")
        return HttpResponse("saved")

    reply = site(save, look=lambda: (rows_of("early"), out())).get("/save")
    assert reply.at_start == (1, 0)


def rows_of(word: str) -> int:
    with psycopg.connect(**_parameters()) as conn:
        row = conn.execute("SELECT count(*) FROM django_notes WHERE word = %s", (word,)).fetchone()
        return row[0] if row else 0


def _parameters() -> dict[str, Any]:
    given = connection.settings_dict
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    return {names[name]: given[name] for name in names if given.get(name)}


def test_a_base_exception_rolls_back(rows: Rows) -> None:
    """A worker that is told to stop in the middle of a view (SystemExit) saves nothing, and gives back."""

    def stop(_: HttpRequest) -> HttpResponse:
        write("stop")
        raise SystemExit

    with Site("wsgi", {"stop": stop}) as served, pytest.raises(SystemExit):
        served.get("/stop")
    assert rows("stop") == 0
    assert out() == 0


def test_a_client_that_leaves_rolls_an_async_view_back(rows: Rows, monitor: psycopg.Connection[Any], dsn: str) -> None:
    """Cancelled in mid view: nothing is saved, and no connection stays in a transaction."""
    entered = threading.Event()

    async def wait(_: HttpRequest) -> HttpResponse:
        await awrite("left")
        entered.set()
        await asyncio.sleep(30)
        return HttpResponse("never")

    async def visit(site: Site) -> None:
        leave = asyncio.Event()
        task = asyncio.create_task(site.aget("/wait", leave=leave))
        await asyncio.to_thread(entered.wait)
        leave.set()
        await task

    with Site("asgi", {"wait": wait}) as served:
        asyncio.run(visit(served))
    assert rows("left") == 0
    assert out() == 0
    assert open_transactions(monitor) == []


def slow_commits(monitor: psycopg.Connection[Any]) -> None:
    """Make the table django_slow, an insert into which makes the COMMIT take its time."""
    monitor.execute(
        "CREATE TABLE IF NOT EXISTS django_slow (word text);"
        "CREATE OR REPLACE FUNCTION django_slowly() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END';"
        "DROP TRIGGER IF EXISTS slowly ON django_slow;"
        "CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON django_slow DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION django_slowly()"
    )


def committing(monitor: psycopg.Connection[Any]) -> bool:
    """Whether a COMMIT is being carried out at this moment."""
    asked = "SELECT 1 FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active'"
    return monitor.execute(asked).fetchone() is not None


def test_a_client_that_leaves_during_the_commit_does_not_stop_it(rows: Rows, monitor: psycopg.Connection[Any]) -> None:
    """A COMMIT is never cancelled half way: it is carried out, and the connection comes back."""
    slow_commits(monitor)

    async def save(_: HttpRequest) -> HttpResponse:
        await sync_to_async(run)("INSERT INTO django_slow VALUES ('x')")
        await awrite("slow")
        return HttpResponse("saved")

    async def visit(site: Site) -> None:
        leave = asyncio.Event()
        task = asyncio.create_task(site.aget("/save", leave=leave))
        await asyncio.to_thread(eventually, lambda: committing(monitor))
        leave.set()
        await task

    with Site("asgi", {"save": save}) as served:
        asyncio.run(visit(served))
    eventually(lambda: rows("slow") == 1)
    assert out() == 0


# -- what takes part ---------------------------------------------------------------------------------------------------


def test_everything_of_a_request_is_one_transaction(site: MakeSite, rows: Rows) -> None:
    """Both aliases of the ORM and what POOLKIT names commit together, and roll back together."""

    def save(request: HttpRequest) -> HttpResponse:
        write("both")
        write("both", using=connections["other"])
        get("second").execute("INSERT INTO django_notes VALUES ('both')")
        if "fail" in request.GET:
            raise Http404
        return HttpResponse("saved")

    served = site(save)
    assert served.get("/save?fail").status == 404
    assert rows("both") == 0
    assert served.get("/save").status == 200
    assert rows("both") == 3


def test_the_orm_commits_first_and_a_failure_undoes_the_rest(site: MakeSite, rows: Rows) -> None:
    """The order is fixed: where the ORM's COMMIT fails, what POOLKIT names is rolled back, though it was used first."""

    def save(_: HttpRequest) -> HttpResponse:
        get("second").execute("INSERT INTO django_notes VALUES ('second')")
        run("INSERT INTO django_children VALUES (999)")
        return HttpResponse("looks well")

    assert site(save).get("/save").status == 500
    assert rows("second") == 0


def test_a_half_done_commit_says_which_half(rows: Rows) -> None:
    """The ORM has committed when the other COMMIT fails: the error names both, with the cause."""

    def halve() -> None:
        with unit_of_work("half") as unit:
            write("half")
            unit.get("second").execute("INSERT INTO django_children VALUES (999)")

    with pytest.raises(poolkit.CommitFailed) as caught:
        halve()
    assert caught.value.committed == ("default",)
    assert isinstance(caught.value.__cause__, psycopg.errors.ForeignKeyViolation)
    assert rows("half") == 1


def test_nothing_commits_where_one_transaction_is_aborted(rows: Rows) -> None:
    """All are looked at before the first COMMIT: an aborted one of POOLKIT's keeps the ORM from saving."""

    def swallow() -> None:
        with unit_of_work() as unit:
            write("looked at")
            with contextlib.suppress(psycopg.Error):
                unit.get("second").execute(ABORTED)

    with pytest.raises(poolkit.CommitFailed):
        swallow()
    assert rows("looked at") == 0


def test_session_and_other_middleware_take_part(site: MakeSite, rows: Rows, monitor: psycopg.Connection[Any]) -> None:
    """What the session middleware writes after the view is saved with the view's work, or not at all."""

    def visit(request: Any) -> HttpResponse:
        request.session["seen"] = True
        write("session")
        if "fail" in request.GET:
            run("INSERT INTO django_children VALUES (999)")
        return HttpResponse("seen")

    middleware = [MIDDLEWARE, "django.contrib.sessions.middleware.SessionMiddleware"]
    served = site(visit, MIDDLEWARE=middleware, SESSION_ENGINE="django.contrib.sessions.backends.db")

    def sessions() -> Any:
        return monitor.execute("SELECT count(*) FROM django_session").fetchone()

    assert served.get("/visit?fail").status == 500
    assert (rows("session"), sessions()) == (0, (0,))
    reply = served.get("/visit")
    assert "Set-Cookie" in reply.headers
    assert (rows("session"), sessions()) == (1, (1,))


class Breaks:
    """A middleware that fails after the view."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        self.get_response(request)
        raise ValueError("after the view")


def test_an_error_of_an_inner_middleware_rolls_back(site: MakeSite, rows: Rows) -> None:
    """The view returned, and yet its answer never came to be."""

    def save(_: HttpRequest) -> HttpResponse:
        write("inner")
        return HttpResponse("saved")

    assert site(save, MIDDLEWARE=[MIDDLEWARE, f"{__name__}.Breaks"]).get("/save").status == 500
    assert rows("inner") == 0


def test_rolling_back_one_alias_rolls_back_all(site: MakeSite, rows: Rows) -> None:
    """transaction.set_rollback(True) is about the request, not about one of its connections."""

    def save(_: HttpRequest) -> HttpResponse:
        write("all")
        write("all", using=connections["other"])
        get("second").execute("INSERT INTO django_notes VALUES ('all')")
        transaction.set_rollback(True)
        return HttpResponse("returned")

    assert site(save).get("/save").status == 200
    assert rows("all") == 0


def test_one_rollback_on_purpose_does_not_excuse_the_next_accident(rows: Rows) -> None:
    """Inside a test's transaction: a doomed unit, and after it one whose failure was ignored, which must be told."""

    def ignore() -> None:
        with unit_of_work():
            write("accident")
            with contextlib.suppress(KeyError), transaction.atomic(savepoint=False):
                raise KeyError

    with transaction.atomic():
        with unit_of_work() as unit:
            write("purpose")
            unit.doom()
        with pytest.raises(poolkit.CommitFailed):
            ignore()
    assert (rows("purpose"), rows("accident")) == (0, 0)


def test_views_that_want_no_transaction_get_none(site: MakeSite, rows: Rows) -> None:
    """@transaction.non_atomic_requests is respected, for the alias it names."""

    @transaction.non_atomic_requests
    def save(_: HttpRequest) -> HttpResponse:
        assert not connection.in_atomic_block
        assert connections["other"].in_atomic_block
        write("kept")
        write("lost", using=connections["other"])
        raise Http404

    assert site(save).get("/save").status == 404
    assert (rows("kept"), rows("lost")) == (1, 0)


def test_atomic_requests_work_inside(site: MakeSite, rows: Rows) -> None:
    """ATOMIC_REQUESTS is a savepoint inside the unit, and takes no connection before the first query either."""
    seen = []

    def save(request: HttpRequest) -> HttpResponse:
        seen.append((len(connection.savepoint_ids), connection.connection))
        if "nothing" not in request.GET:
            write("atomic")
        return HttpResponse("saved")

    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        served = site(save)
        before = acquired()
        assert served.get("/save?nothing").status == 200
        assert acquired() == before
        assert served.get("/save").status == 200
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    assert seen == [(1, None), (1, None)]
    assert rows("atomic") == 1


def test_commit_inside_a_block_is_refused(rows: Rows) -> None:
    """unit.commit() can't commit half of an atomic() block: it says so, and the unit goes on."""
    with unit_of_work() as unit:
        write("inside")
        with pytest.raises(poolkit.UnitOfWorkError, match="leave that block first"), transaction.atomic():
            unit.commit()
    assert rows("inside") == 1


def test_hooks_run_after_the_commit_and_harm_nothing(site: MakeSite, rows: Rows) -> None:
    """on_commit, Django's and the unit's: called once the row is there; what they raise does not change the answer."""
    seen: list[int] = []

    def hook() -> None:
        seen.append(rows("hook"))
        raise ValueError("a hook's own trouble")

    def save(_: HttpRequest) -> HttpResponse:
        unit = current_unit()
        assert unit is not None
        write("hook")
        transaction.on_commit(hook)
        unit.on_commit(hook)
        return HttpResponse("saved")

    logged = site(save).get("/save")
    assert logged.status == 200
    assert seen == [1, 1]


def test_a_veto_on_the_status(site: MakeSite, rows: Rows) -> None:
    """POOLKIT_ROLLBACK_ON rolls back returned responses by their status, for all of an app."""

    def save(request: HttpRequest) -> HttpResponse:
        write("veto")
        return HttpResponse(status=int(request.GET["status"]))

    served = site(save, POOLKIT_ROLLBACK_ON=lambda status: status >= 500)
    assert served.get("/save?status=503").status == 503
    assert rows("veto") == 0
    served.get("/save?status=404")
    assert rows("veto") == 1


def conflict(_: HttpRequest, error: BaseException) -> HttpResponse | None:
    """Stand for an app's POOLKIT_EXCEPTION_HANDLER."""
    return HttpResponse("conflict", status=409) if isinstance(error, IntegrityError) else None


@pytest.mark.parametrize("where", ["statement", "commit"])
def test_an_apps_handler_answers_integrity_errors(where: str, site: MakeSite, rows: Rows) -> None:
    """POOLKIT_EXCEPTION_HANDLER makes one 409 of an error in the view or in the COMMIT; nothing is saved."""

    def save(_: HttpRequest) -> HttpResponse:
        write("conflict")
        run("INSERT INTO django_children VALUES (999)")
        if where == "statement":
            run("SET CONSTRAINTS ALL IMMEDIATE")
        return HttpResponse("looks well")

    reply = site(save, POOLKIT_EXCEPTION_HANDLER=f"{__name__}.conflict").get("/save")
    assert (reply.status, reply.body) == (409, b"conflict")
    assert rows("conflict") == 0


def test_a_request_inside_a_request_joins_its_transaction(rows: Rows) -> None:
    """A view that asks its own app: a savepoint, and the outer unit is the current one afterwards."""

    def inner(_: HttpRequest) -> HttpResponse:
        write("nested")
        raise Http404

    def outer(_: HttpRequest) -> HttpResponse:
        unit = current_unit()
        write("nested")
        assert served._wsgi("/inner", {}, None).status == 404  # in this very context, as the test client does
        assert current_unit() is unit
        assert connection.in_atomic_block
        write("nested")
        return HttpResponse("saved")

    with Site("wsgi", {"inner": inner, "outer": outer}) as served:
        assert served.get("/outer").status == 200
    assert rows("nested") == 2


def test_poolkits_own_units_join_the_requests(site: MakeSite, rows: Rows) -> None:
    """`poolkit.current()` is the request's unit, `poolkit.unit_of_work()` joins it; no block around hides it."""

    def save(_: HttpRequest) -> HttpResponse:
        assert poolkit.current() is current_unit()
        with poolkit.unit_of_work() as unit:
            assert unit is current_unit()
            unit.get("second").execute("INSERT INTO django_notes VALUES ('joined')")
        assert rows("joined") == 0
        return HttpResponse("saved")

    with poolkit.unit_of_work():
        assert site(save).get("/save").status == 200
    assert rows("joined") == 1


class Asks:
    """A middleware that asks the database before the view."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        run("SELECT 1")
        return self.get_response(request)


def test_holders_are_named_by_their_route(site: MakeSite) -> None:
    """Who holds a connection is told as method and route, without the values in the path."""
    seen: list[str] = []

    def show(_: HttpRequest, number: int) -> HttpResponse:
        run("SELECT 1")
        seen.extend(holder.label for pool in pools.live() for holder in pool.holders())
        return HttpResponse(str(number))

    assert site(path("orders/<int:number>", show)).get("/orders/7").status == 200
    assert seen == ["GET /orders/<int:number>"]
    # A middleware that asks the database first, as the session's does, does not leave the holder without a name.
    asking = site(path("orders/<int:number>", show), MIDDLEWARE=[MIDDLEWARE, f"{__name__}.Asks"])
    assert asking.get("/orders/7").status == 200
    assert seen[1:] == ["GET /orders/<int:number>"]


# -- outside a request -------------------------------------------------------------------------------------------------


def test_a_unit_outside_a_request_is_the_same(rows: Rows) -> None:
    """unit_of_work() in a task or a command: lazy, commits at the end, rolls back on an error, gives back."""
    before = acquired()
    with unit_of_work():
        pass
    assert acquired() == before
    with unit_of_work("task") as unit:
        write("task")
        assert [holder.label for pool in pools.live() for holder in pool.holders()] == ["task"]
        with unit_of_work() as joined:
            assert joined is unit
    assert rows("task") == 1
    with contextlib.suppress(KeyError), unit_of_work():
        write("task")
        raise KeyError
    assert (rows("task"), out()) == (1, 0)
    assert current_unit() is None


def test_an_error_in_a_joined_block_dooms_the_whole(rows: Rows) -> None:
    """A joined block that raised can't be committed by whoever catches the error outside of it."""
    with pytest.raises(poolkit.CommitFailed, match=r"handled.*transaction\.atomic"), unit_of_work():  # noqa: PT012
        write("joined")
        with contextlib.suppress(KeyError), unit_of_work():
            raise KeyError
    assert rows("joined") == 0


def test_get_outside_a_unit_says_what_to_do() -> None:
    """Nothing would give back what is leased there; a shared client is for anyone."""
    with pytest.raises(poolkit.UnitOfWorkError, match="unit_of_work"):
        get("second")
    assert get("api") is get("api")
    with pytest.raises(poolkit.ConfigError, match="did you mean 'second'"):
        get("secnd")
