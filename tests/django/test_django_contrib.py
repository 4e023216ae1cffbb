"""Errors that are answered below Django roll back, by a hook for each framework that does so."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest
from django.db import connections
from django.http import HttpRequest
from django.test import override_settings
from django.urls import path
from django_rig import MakeSite, Rows, Site, awrite, out, write

from poolkit_django import contrib, current_unit


def _noting(error: Exception, context: dict[str, Any]) -> Any:
    contrib.roll_back(error)
    write("noted")
    from rest_framework.views import exception_handler  # noqa: PLC0415  it reads Django's settings

    return exception_handler(error, context)


@pytest.mark.parametrize("handler", ["poolkit_django.contrib.rest_exception_handler", f"{__name__}._noting"])
@pytest.mark.parametrize(("how", "status"), [("invalid", 400), ("not_found", 404), ("denied", 403)])
@pytest.mark.parametrize("atomic", [False, True], ids=["plain", "atomic_requests"])
def test_rest_framework(  # noqa: PLR0917
    atomic: bool, how: str, status: int, handler: str, site: MakeSite, rows: Rows, monkeypatch: pytest.MonkeyPatch  # noqa: FBT001
) -> None:  # fmt: skip
    """The view's rows are gone before the handler goes on; what a handler of one's own writes stays."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", atomic)
    given = {
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": [],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,
        "EXCEPTION_HANDLER": handler,
    }
    with override_settings(REST_FRAMEWORK=given):
        from rest_views import rest  # noqa: PLC0415  see there

        assert site(rest).get(f"/rest?how={how}").status == status
    assert rows("rest") == 0
    assert rows("noted") == (1 if handler.endswith("_noting") and not atomic else 0)
    assert out() == 0


@pytest.fixture
def ninja(site: MakeSite) -> Site:
    """A site of django-ninja's, with the hook."""
    library = pytest.importorskip("ninja", reason="django-ninja is not installed")
    from ninja.errors import HttpError  # noqa: PLC0415

    api = contrib.roll_back_on_errors(library.NinjaAPI(urls_namespace=f"hooked{id(site)}"))

    def end(how: str) -> Any:
        if how == "http":
            raise HttpError(409, "conflict")
        if how == "broken":
            raise ZeroDivisionError
        return {"how": how}

    @api.get("/sync/{how}")
    def operation(request: Any, how: str) -> Any:
        write("ninja")
        return end(how)

    @api.get("/apart/{how}")
    def apart(request: Any, how: str) -> Any:
        current_unit().commit()  # type: ignore[union-attr]
        write("apart")
        return end(how)

    @api.get("/async/{how}")
    async def aoperation(request: Any, how: str) -> Any:
        await awrite("ninja")
        return end(how)

    return site(ROOT_URLCONF=(path("api/", api.urls),))


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("operation", ["sync", "async"])
@pytest.mark.parametrize(("how", "status", "saved"), [("fine", 200, 1), ("http", 409, 0), ("broken", 500, 0)])
def test_django_ninja(  # noqa: PLR0917
    operation: str, how: str, status: int, saved: int, debug: bool, ninja: Site, rows: Rows  # noqa: FBT001
) -> None:  # fmt: skip
    """HttpError, and with DEBUG every exception, is answered inside the view and rolls back."""
    with override_settings(DEBUG=debug):
        assert ninja.get(f"/api/{operation}/{how}").status == status
    assert rows("ninja") == saved


def test_django_ninja_without_a_transaction(ninja: Site, rows: Rows) -> None:
    """An operation whose first step is a commit is its own master: django-ninja hides marks from the middleware."""
    assert ninja.get("/api/apart/broken").status == 500
    assert rows("apart") == 1


@pytest.fixture
def without_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for a library without ready-made builds: graphene-django imports it for connection fields alone."""
    if importlib.util.find_spec("promise") is None:
        stand_in: Any = types.ModuleType("promise")
        stand_in.Promise = type("Promise", (), {})
        monkeypatch.setitem(sys.modules, "promise", stand_in)


@pytest.mark.usefixtures("without_promise")
@pytest.mark.parametrize("kind", ["wsgi"], indirect=True)
@pytest.mark.parametrize(("query", "saved"), [("{ok}", 1), ("{ok bad}", 0)])
def test_graphene(query: str, saved: int, site: MakeSite, rows: Rows) -> None:
    """A result with errors is a 200, and nothing of its request is saved."""
    graphene = pytest.importorskip("graphene", reason="graphene-django is not installed")
    views = pytest.importorskip("graphene_django.views", reason="graphene-django is not installed")

    class Query(graphene.ObjectType):  # type: ignore[misc]
        ok = graphene.String()
        bad = graphene.String()

        def resolve_ok(self, _info: Any) -> str:
            write("graphene")
            return "ok"

        def resolve_bad(self, _info: Any) -> str:
            raise ValueError

    class View(contrib.RollbackOnErrors, views.GraphQLView):  # type: ignore[misc]
        pass

    view = View.as_view(schema=graphene.Schema(query=Query))
    assert site(ROOT_URLCONF=(path("graphql", view),)).get(f"/graphql?query={query}").status == 200
    assert rows("graphene") == saved


@pytest.mark.parametrize("kind", ["wsgi"], indirect=True)
@pytest.mark.parametrize(("query", "saved"), [("{ok}", 1), ("{ok bad}", 0)])
def test_strawberry(query: str, saved: int, site: MakeSite, rows: Rows) -> None:
    """The extension that every framework shares rolls back Django's unit."""
    strawberry = pytest.importorskip("strawberry", reason="strawberry-graphql is not installed")
    from strawberry.django.views import GraphQLView  # noqa: PLC0415

    from poolkit.strawberry import RollbackOnErrors  # noqa: PLC0415

    def ok() -> str:
        write("strawberry")
        return "ok"

    def bad() -> str:
        raise ValueError

    fields = {"ok": strawberry.field(resolver=ok), "bad": strawberry.field(resolver=bad)}
    kind = strawberry.type(type("Query", (), {**fields, "__annotations__": {"ok": str, "bad": str}}))
    schema = strawberry.Schema(query=kind, extensions=[RollbackOnErrors])
    view = GraphQLView.as_view(schema=schema)
    assert site(ROOT_URLCONF=(path("graphql", view),)).get(f"/graphql?query={query}").status == 200
    assert rows("strawberry") == saved


class _Answers:
    """Stands for a view that answers a request with what it was made with."""

    def __init__(self, errors: Any) -> None:
        self._errors = errors

    def execute_graphql_request(self, *_: Any) -> Any:
        """Write, and return a result."""
        write("graphql")
        return type("Result", (), {"errors": self._errors})()


class _Hooked(contrib.RollbackOnErrors, _Answers):
    pass


@pytest.mark.parametrize(("errors", "saved"), [(None, 1), ([], 1), ([ValueError()], 0)])
def test_a_result_with_errors_dooms_its_request(errors: Any, saved: int, site: MakeSite, rows: Rows) -> None:
    """The hook looks at the result alone, whatever GraphQL library made it."""
    from django.http import HttpResponse  # noqa: PLC0415

    def view(_: HttpRequest) -> HttpResponse:
        _Hooked(errors).execute_graphql_request()
        return HttpResponse()

    assert site(view).get("/view").status == 200
    assert rows("graphql") == saved
