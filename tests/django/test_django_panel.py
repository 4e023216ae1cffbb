"""The panel for django-debug-toolbar tells of each request what it took, waited for and held."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.checks.registry import registry
from django.db import connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path
from django_rig import MIDDLEWARE, MakeSite, run, write

pytest.importorskip("debug_toolbar", reason="django-debug-toolbar is not installed")

TOOLBAR = "debug_toolbar.middleware.DebugToolbarMiddleware"
PAGE = "<html><body>%s</body></html>"


@pytest.fixture(scope="module", autouse=True)
def _toolbar(_django: None) -> Iterator[None]:
    """The toolbar with this panel alone, shown to everybody."""
    known = set(registry.registered_checks)  # the app adds its own for good
    other = override_settings(
        DEBUG_TOOLBAR_PANELS=["poolkit_django.panels.PoolkitPanel"],
        DEBUG_TOOLBAR_CONFIG={"SHOW_TOOLBAR_CALLBACK": f"{__name__}.shown", "RENDER_PANELS": True},
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        STATIC_URL="/static/",
        MIDDLEWARE=[TOOLBAR, MIDDLEWARE],
    )
    with other, override_settings(INSTALLED_APPS=["poolkit_django", "debug_toolbar"]):  # it looks at the others
        from debug_toolbar.toolbar import DebugToolbar  # noqa: PLC0415  not before it is installed

        DebugToolbar._panel_classes = None  # it remembers another test's settings
        yield
    registry.registered_checks = known
    signals_off()


def signals_off() -> None:
    """Let the receivers go, so that no other test's borrowings are watched."""
    from poolkit_django import signals  # noqa: PLC0415  beside what it undoes

    names = ("connection_acquired", "connection_released", "connection_refused", "unit_ended")
    for signal in (getattr(signals, name) for name in names):
        signal.disconnect(dispatch_uid="poolkit_django.panels")


def shown(_: HttpRequest) -> bool:
    """Show the toolbar to everybody."""
    return True


def saves(_: HttpRequest) -> HttpResponse:
    """Write in both databases."""
    write("panel")
    run("SELECT 1", using=connections["other"])
    return HttpResponse(PAGE % "saved")


async def saves_later(request: HttpRequest) -> HttpResponse:
    """The same in a coroutine."""
    return await sync_to_async(saves)(request)


def fails(_: HttpRequest) -> HttpResponse:
    """Write, and undo it."""
    write("panel")
    raise KeyError("of the view")


def idles(_: HttpRequest) -> HttpResponse:
    """Ask for nothing."""
    return HttpResponse(PAGE % "idle")


def recorded() -> dict[str, Any]:
    """What the panel kept of the last request."""
    return dict(_Toolbars.last[-1].stats["PoolkitPanel"])


class _Toolbars:
    last: list[Any] = []  # noqa: RUF012  one list is the point


@pytest.fixture
def toolbar_urls() -> Any:
    """The toolbar's own pages; they can be imported only now that it is installed."""
    return path("__debug__/", include("debug_toolbar.urls"))


@pytest.fixture(autouse=True)
def _seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from debug_toolbar.toolbar import DebugToolbar  # noqa: PLC0415  not before it is installed

    render = DebugToolbar.render_toolbar

    def rendered(self: Any) -> str:
        _Toolbars.last.append(self)
        return str(render(self))

    monkeypatch.setattr(DebugToolbar, "render_toolbar", rendered)


@pytest.mark.parametrize("view", [saves, saves_later])
def test_every_lease_is_told(view: Any, site: MakeSite, toolbar_urls: Any, rows: Any) -> None:
    """By pool: how many, how long waited and held; the COMMIT comes before they are given back."""
    assert site(view, toolbar_urls).get(f"/{view.__name__}").status == 200
    stats = recorded()
    assert [(pool["name"], pool["leases"], pool["still_out"]) for pool in stats["pools"]] == [
        ("default", 1, 0),
        ("other", 1, 0),
    ]
    assert all(pool["folds"] is is_psycopg3 and pool["held"] > 0 <= pool["waited"] for pool in stats["pools"])
    steps = [step["what"].partition(" ")[0] for step in stats["steps"]]
    assert steps == ["leased", "leased", "given", "given", "unit"]
    assert stats["steps"][-1]["what"].startswith("unit of work committed in ")
    assert [step["at"] for step in stats["steps"]] == sorted(step["at"] for step in stats["steps"])
    assert rows("panel") == 1


@pytest.mark.psycopg3
def test_the_panel_stands_in_the_page(site: MakeSite, toolbar_urls: Any) -> None:
    """With its sums in the side bar, its tables, and the browser's own timing."""
    reply = site(saves, toolbar_urls).get("/saves")
    text = reply.body.decode()
    assert "2 taken, waited " in text
    assert "rides with the first statement" in text
    assert "PoolkitPanel_default_held" in reply.headers["Server-Timing"]


def test_a_request_without_a_connection_says_so(site: MakeSite, toolbar_urls: Any) -> None:
    """And has no figures of the request before it."""
    served = site(saves, idles, toolbar_urls)
    served.get("/saves")
    text = served.get("/idles").body.decode()
    assert "none taken" in text
    assert recorded()["pools"] == []


def test_a_rollback_is_told_with_its_reason(site: MakeSite, toolbar_urls: Any, rows: Any) -> None:
    """By the class of the exception; its text may be anything."""
    assert site(fails, toolbar_urls).get("/fails").status == 500
    assert recorded()["steps"][-1]["what"].startswith("unit of work rolled back for KeyError in ")
    assert rows("panel") == 0


@pytest.mark.parametrize("kind", ["wsgi"])
def test_what_waits_and_is_refused_is_told(site: MakeSite, toolbar_urls: Any, hold: Any) -> None:
    """A request that got nothing shows how long it asked."""
    from poolkit_django.backends import pools  # noqa: PLC0415  beside its use

    def asks(_: HttpRequest) -> HttpResponse:
        with pytest.raises(TimeoutError):
            pools.pool_for(connections["default"]).acquire(timeout=0.05)
        return HttpResponse(PAGE % "refused")

    with hold(3):
        site(asks, toolbar_urls).get("/asks")
    (pool,) = recorded()["pools"]
    assert (pool["name"], pool["leases"], pool["refused"]) == ("default", 0, 1)
    assert pool["waited"] >= 50


def test_without_the_package_nothing_is_missed() -> None:
    """No other module of poolkit's imports the panel."""
    code = "import sys; sys.modules['debug_toolbar'] = None; import poolkit_django, poolkit_django.checks"
    import subprocess  # noqa: PLC0415  beside its use

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
