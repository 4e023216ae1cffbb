"""The admin's page of this worker's pools: for staff only, true, and free of secrets and inline scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib.staticfiles import finders
from django.core.checks.registry import registry
from django.core.management import call_command
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import include, path
from django_rig import MIDDLEWARE, database, run

from poolkit import Pool, PoolStats
from poolkit.testing import FakeDriver
from poolkit_django import recent
from poolkit_django.backends import pools
from poolkit_django.overview import overview, waited

PAGE = "/admin/poolkit/pools/"
DATA = "/admin/poolkit/pools.json"
TEMPLATES = {
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {
        "context_processors": [
            "django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]
    },
}
STACK = [
    MIDDLEWARE,
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]


def hold(_: HttpRequest) -> HttpResponse:
    """Hold a connection while staff look at the page."""
    run("SELECT 1")
    return HttpResponse(_hold_client.get(PAGE).content)


_hold_client = Client()


@pytest.fixture(scope="module", autouse=True)
def _admin(_django: None) -> Iterator[None]:
    """The admin, with its tables, for these tests alone."""
    known = set(registry.registered_checks)  # the apps add theirs for good
    installed = [
        "poolkit_django.admin_site.PoolkitAdminConfig",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "poolkit_django",
    ]
    with override_settings(
        INSTALLED_APPS=installed,
        MIDDLEWARE=STACK,
        TEMPLATES=[TEMPLATES],
        STATIC_URL="/static/",
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        ROOT_URLCONF=(),
    ):
        call_command("migrate", verbosity=0)
        from django.contrib import admin  # noqa: PLC0415  not before it is installed

        urls = (
            path("admin/", admin.site.urls),
            path("poolkit/", include("poolkit_django.urls")),
            path("hold", hold),
        )
        with override_settings(ROOT_URLCONF=urls):
            yield
        connections.close_all()
    registry.registered_checks = known


def visitor(*, staff: bool, superuser: bool = False) -> Client:
    """Somebody who is logged in."""
    from django.contrib.auth.models import User  # noqa: PLC0415  not before it is installed

    name = f"staff-{staff}-{superuser}"
    user, _ = User.objects.get_or_create(username=name, is_staff=staff, is_superuser=superuser)
    client = Client()
    client.force_login(user)
    connections.close_all()
    return client


@pytest.fixture
def staff() -> Client:
    """Somebody of the staff, with no permission beside."""
    return visitor(staff=True)


# -- who may see it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [PAGE, DATA, "/poolkit/pools/"])
def test_only_staff_may_see_it(where: str, staff: Client) -> None:
    """Anonymous and ordinary users are sent to the login, and told nothing."""
    assert staff.get(where).status_code == 200
    for client in (Client(), visitor(staff=False)):
        reply = client.get(where)
        assert reply.status_code == 302
        assert reply["Location"].startswith("/admin/login/")
        assert b"default" not in reply.content


def test_it_only_reads(staff: Client) -> None:
    """There is nothing to post to."""
    assert [staff.post(where).status_code for where in (PAGE, DATA)] == [405, 405]


def test_it_is_linked_from_the_index(staff: Client) -> None:
    """On the index and in the side bar, for who may enter; there is no model, so no permission and no migration."""
    shown = staff.get("/admin/").content.decode()
    assert shown.count(f'href="{PAGE}"') >= 2
    assert "Connection pools" in shown
    assert PAGE not in Client().get("/admin/login/").content.decode()
    assert list(apps.get_app_config("poolkit_django").get_models()) == []


def test_an_admin_site_of_ones_own(staff: Client) -> None:
    """PoolsAdmin mixes the page into any site, under that site's name."""
    from django.contrib import admin  # noqa: PLC0415  not before it is installed

    from poolkit_django.admin_site import PoolsAdmin  # noqa: PLC0415  the same

    class ShopSite(PoolsAdmin, admin.AdminSite):
        site_header = "The shop"

    shop = ShopSite(name="shop")
    urls = (path("office/", shop.urls), path("admin/", admin.site.urls))
    with override_settings(ROOT_URLCONF=urls):
        shown = staff.get("/office/poolkit/pools/").content.decode()
    assert "The shop" in shown
    assert 'href="/office/poolkit/pools/"' in shown
    assert "/admin/poolkit" not in shown


def test_without_the_admin_there_is_no_page() -> None:
    """poolkit_django.urls works in a project without the admin; the page is not there then."""
    urls = (path("poolkit/", include("poolkit_django.urls")),)
    with override_settings(INSTALLED_APPS=["poolkit_django"], MIDDLEWARE=[MIDDLEWARE], ROOT_URLCONF=urls):
        client = Client()
        assert client.get("/poolkit/pools/").status_code == 404
        assert client.get("/poolkit/health").status_code == 200


# -- what it shows -----------------------------------------------------------------------------------------------------


def test_it_shows_who_holds_what(fresh_pools: None, staff: Client) -> None:
    """The pools, their numbers, and the requests that have a connection, this one's own included."""
    global _hold_client  # noqa: PLW0603  the view has no other way to it
    _hold_client = staff
    shown = staff.get("/hold").content.decode()
    assert "GET /hold" in shown
    assert re.search(r'<meter min="0" max="3" value="\d"', shown)
    assert "opened in" in shown
    data = staff.get(DATA).json()
    default = next(pool for pool in data["pools"] if pool["name"] == "default")
    assert default["max_size"] == 3
    assert [holder["label"] for holder in default["holders"]] == ["GET /admin/poolkit/pools.json"]
    assert {happening["kind"] for happening in data["happenings"]} <= {"Opened", "Closed", "Refused", "OpenError"}


def test_no_script_and_no_style_of_its_own(staff: Client) -> None:
    """A strict Content-Security-Policy breaks nothing: the page adds a style sheet and a meta to the admin's own."""
    shown = staff.get(f"{PAGE}?refresh=5").content.decode()
    content = shown[shown.index('<div id="content-main"') : shown.index('<footer id="footer"')]
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=|javascript:", content)
    assert "poolkit_django/pools.css" in shown
    assert finders.find("poolkit_django/pools.css")
    assert '<meta http-equiv="refresh" content="5">' in shown


@pytest.mark.parametrize("asked", ["", "?refresh=1", "?refresh=5;url=//elsewhere", "?refresh=x"])
def test_it_refreshes_only_as_offered(asked: str, staff: Client) -> None:
    """Nobody can be sent elsewhere with it, nor the server be asked all the time."""
    shown = staff.get(PAGE + asked).content.decode()
    assert "http-equiv" not in shown
    assert "elsewhere" not in shown


def test_it_is_not_cached(staff: Client) -> None:
    """What it shows is of this moment."""
    assert all("no-store" in staff.get(where)["Cache-Control"] for where in (PAGE, DATA))


def test_labels_are_escaped(staff: Client) -> None:
    """Whatever a unit of work is called."""
    pool = pools.pool_for(connections["default"])
    with_label = pool.acquire()
    with_label.label("<script>alert(1)</script>")
    try:
        shown = staff.get(PAGE).content.decode()
    finally:
        with_label.release()
    assert "&lt;script&gt;alert(1)" in shown
    assert "<script>alert" not in shown


def test_a_full_pool_is_shown(staff: Client) -> None:
    """The page itself takes no connection: where the user needs none either, it is there when all are out."""
    pool = pools.pool_for(connections["default"])
    leases = [pool.acquire() for _ in range(3)]
    try:
        with override_settings(MIDDLEWARE=[MIDDLEWARE, STACK[1], f"{__name__}.KnownUser", STACK[3]]):
            shown = Client().get(PAGE)
    finally:
        for lease in leases:
            lease.release()
    assert shown.status_code == 200
    assert "3 of 3" in shown.content.decode()


def test_where_the_user_needs_a_connection_a_full_pool_is_503(staff: Client) -> None:
    """Looking the user up waits like any request, and is refused like any: stats.json with a token is for that hour."""
    options = connections["default"].settings_dict["OPTIONS"]
    usual, options["pool"] = options["pool"], {"max_size": 1, "timeout": 0.1}
    lease = pools.pool_for(connections["default"]).acquire(10)  # a connect may take longer than the pool's timeout
    try:
        page = staff.get(PAGE)
        with override_settings(POOLKIT_STATS_TOKEN="token"):
            numbers = staff.get("/poolkit/stats.json", headers={"Authorization": "Bearer token"})
    finally:
        lease.release()
        connections.close_all()
        pools.retire(connections["default"])
        options["pool"] = usual
    assert (page.status_code, numbers.status_code) == (503, 200)


class KnownUser:
    """A user who is known without a database: of a proxy in front, say."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        from django.contrib.auth.models import User  # noqa: PLC0415  not before it is installed

        request.user = User(username="proxy", is_staff=True, is_active=True, is_superuser=True)
        return self.get_response(request)


def test_a_server_that_is_away_is_shown_without_the_password(dsn: str, staff: Client) -> None:
    """The last error, of the pools and in what happened lately; never what was tried."""
    usual = connections["other"].settings_dict
    before = dict(usual)
    connections.close_all()
    usual.update(database(dsn, pool={"timeout": 1, "open_timeout": 1}))
    usual.update(HOST="127.0.0.1", PORT="9", PASSWORD="very secret")
    pool = pools.pool_for(connections["other"])
    try:
        with pytest.raises(Exception, match=r"can't be reached|no connection"):
            pool.acquire()
        seen = overview()
        shown = staff.get(PAGE).content.decode()
    finally:
        pools.retire(connections["other"])
        usual.update(before)
    outages = [each["outage"] for each in seen["pools"] if each["name"] == "other" and each["outage"]]
    assert outages
    assert "Server away" in shown
    assert "very secret" not in f"{seen}{shown}"


# -- the numbers -------------------------------------------------------------------------------------------------------


def stats(acquired: int, buckets: list[int]) -> PoolStats:
    """The numbers of a pool whose borrowers waited like this."""
    taken = Pool(FakeDriver()).stats()
    wait = type(taken.wait)(taken.wait.bounds, tuple(buckets), sum(buckets), 1.0)
    return PoolStats(**{**{name: getattr(taken, name) for name in taken.__slots__}, "acquired": acquired, "wait": wait})


def test_waits_are_of_all_borrowers() -> None:
    """Those who got a connection at once count as well, or a single wait would look like everybody's."""
    nobody_waited = stats(100, [0] * 10)
    assert [waited(nobody_waited, share) for share in (0.5, 0.99)] == ["0", "0"]
    some = stats(100, [0, 4, 0, 0, 0, 2, 0, 0, 0, 0])
    assert [waited(some, share) for share in (0.5, 0.94, 0.95, 0.98, 0.99)] == [
        "0",
        "0",
        "≤ 5 ms",
        "≤ 5 ms",
        "≤ 500 ms",
    ]
    assert waited(stats(1, [0] * 9 + [1]), 0.5) == "> 10 s"
    assert waited(stats(0, [0] * 10), 0.5) == "-"


def test_the_memory_is_this_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a parent remembers from before a fork is not the child's."""
    assert recent.latest()
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert recent.latest() == []


def test_the_data_is_json(staff: Client) -> None:
    """With times that can be read anywhere."""
    data = json.loads(staff.get(DATA).content)
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z$", happening["at"]) for happening in data["happenings"])
    assert data["pid"] > 0
