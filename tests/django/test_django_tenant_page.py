"""docs/multi-tenant.md, the block for Django: each request's statements run as its own tenant, and no other's."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django_rig import MIDDLEWARE, MakeSite, run

from poolkit_django.backends import pools

PAGE = (Path(__file__).parents[2] / "docs" / "multi-tenant.md").read_text("utf-8")


@pytest.fixture
def middleware(monkeypatch: pytest.MonkeyPatch) -> str:
    """The dotted path of the page's middleware."""
    found = re.search(r"<!-- django_tenant.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    module = types.ModuleType("poolkit_tenant_page")
    exec(compile(found[1], "django_tenant.py", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "poolkit_tenant_page", module)
    return "poolkit_tenant_page.tenant_middleware"


def test_without_a_tenant_no_connection_is_taken(site: MakeSite, middleware: str) -> None:
    """A health page names none, and has to answer while all connections are out."""

    def view(_: HttpRequest) -> HttpResponse:
        return HttpResponse("well")

    served = site(view, MIDDLEWARE=[MIDDLEWARE, middleware])
    served.get("/view", headers={"X-Tenant": "acme"})
    acquired = pools.pool_for(connection).stats().acquired
    assert served.get("/view").body == b"well"
    assert pools.pool_for(connection).stats().acquired == acquired


def test_a_tenant_for_each_request(site: MakeSite, middleware: str) -> None:
    """What a view and a later statement of the same request see; after it the setting is gone."""
    seen: list[Any] = []

    def view(_: HttpRequest) -> HttpResponse:
        seen.extend(run("SELECT current_setting('app.tenant', true)")[0])
        return HttpResponse(seen[-1])

    served = site(view, MIDDLEWARE=[MIDDLEWARE, middleware])
    for tenant in ("acme", "it's; DROP", "acme"):
        assert served.get("/view", headers={"X-Tenant": tenant}).body.decode() == tenant
    assert run("SELECT current_setting('app.tenant', true)")[0][0] in ("", None)
    connection.close()
