"""health, ready and stats.json, and what clients get while there is no connection to be had."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import OperationalError, connections
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django_rig import MIDDLEWARE, MakeSite, Site, database, eventually, out, run, write

import poolkit_django
from poolkit.testing.postgres import LocalPostgres
from poolkit_django.backends import pools

PAGES = path("poolkit/", include("poolkit_django.urls"))
LOCAL = {"Host": "127.0.0.1"}


def one(_: HttpRequest) -> HttpResponse:
    """Ask the database for something."""
    return HttpResponse(str(run("SELECT 1")[0][0]))


# -- the pages ---------------------------------------------------------------------------------------------------------


def test_the_numbers_are_of_all_pools(site: MakeSite, fresh_pools: None) -> None:
    """stats.json shows the engine's pools and POOLKIT's, and who holds what; the password is nowhere."""

    def hold(_: HttpRequest) -> HttpResponse:
        run("SELECT 1")
        poolkit_django.get("second")
        reply = served_inside.get("/poolkit/stats.json", headers=LOCAL)
        return HttpResponse(reply.body, status=reply.status)

    with Site("wsgi", {"pages": PAGES}) as served_inside:
        served_inside.app  # noqa: B018  made while its URLs are set
        reply = site(hold, PAGES, POOLKIT_STATS="loopback").get("/hold")
    numbers = json.loads(reply.body)
    assert {pool["name"] for pool in numbers["pools"]} >= {"default", "second"}
    assert [pool["out"] for pool in numbers["pools"] if pool["name"] == "default"] == [1]
    assert numbers["happenings"][0].keys() == {"at", "pool", "kind", "text"}
    assert numbers["replicas"] == []
    holders = [holder for pool in numbers["pools"] for holder in pool["holders"]]
    assert any(holder.startswith("GET /hold") for holder in holders)
    assert (settings.DATABASES["default"].get("PASSWORD") or "password") not in reply.body.decode()


@pytest.mark.parametrize(
    ("headers", "settings", "status"),
    [
        ({"remote": "127.0.0.1"}, {}, 403),
        ({"remote": "127.0.0.1"}, {"POOLKIT_STATS": "loopback"}, 200),
        ({"remote": "::1"}, {"POOLKIT_STATS": "loopback"}, 200),
        ({"remote": "192.0.2.1"}, {"POOLKIT_STATS": "loopback"}, 403),
        ({"remote": "127.0.0.1", "X-Forwarded-For": "192.0.2.1"}, {"POOLKIT_STATS": "loopback"}, 403),
        ({"remote": "127.0.0.1", "Host": "evil.example"}, {"POOLKIT_STATS": "loopback"}, 403),
        ({"remote": "127.0.0.1"}, {"POOLKIT_STATS_TOKEN": "secret"}, 403),
        ({"remote": "192.0.2.1", "Authorization": "Bearer secret"}, {"POOLKIT_STATS_TOKEN": "secret"}, 200),
        ({"remote": "192.0.2.1", "Authorization": "Bearer wrong"}, {"POOLKIT_STATS_TOKEN": "secret"}, 403),
    ],
)
def test_who_may_see_the_numbers(
    headers: dict[str, str], settings: dict[str, Any], status: int, site: MakeSite
) -> None:
    """The token's bearer; where the settings say so, this machine and nobody that a proxy speaks for."""
    served = site(PAGES, ALLOWED_HOSTS=["*"], **settings)
    assert served.get("/poolkit/stats.json", headers={**LOCAL, **headers}).status == status


class SomeUser:
    """Stands for the authentication middleware: `who` in the cookie says whom it finds."""

    asked = 0

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        type(self).asked += 1
        staff = request.COOKIES.get("sessionid") == "staff"
        request.user = type("User", (), {"is_active": True, "is_staff": staff})()
        return self.get_response(request)


@pytest.mark.parametrize(("cookie", "status"), [("sessionid=staff", 200), ("sessionid=other", 403), ("", 403)])
def test_staff_may_see_the_numbers(cookie: str, status: int, site: MakeSite) -> None:
    """Who is logged in as staff may; nobody without a session is even looked up."""
    served = site(PAGES, MIDDLEWARE=[MIDDLEWARE, f"{__name__}.SomeUser"])
    headers = {"remote": "192.0.2.1", **({"Cookie": cookie} if cookie else {})}
    assert served.get("/poolkit/stats.json", headers=headers).status == status


def test_health_and_ready_are_for_anyone(site: MakeSite) -> None:
    """Both answer anyone, are not cached, and tell nothing but their status."""
    for page, body in (("health", {"status": "ok"}), ("ready", {"status": "ready"})):
        reply = site(PAGES).get(f"/poolkit/{page}", headers={"remote": "192.0.2.1"})
        assert (reply.status, json.loads(reply.body)) == (200, body)
        assert "no-store" in reply.headers["Cache-Control"]


def test_a_full_pool_is_ready_and_its_pages_answer(site: MakeSite, hold: Any) -> None:
    """Health, readiness and numbers need no free connection: every one of them is out."""
    with hold(3):
        served = site(PAGES, POOLKIT_STATS="loopback")
        assert [served.get(f"/poolkit/{page}", headers=LOCAL).status for page in ("health", "ready", "stats.json")] == [
            200
        ] * 3


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(dsn: str) -> Iterator[None]:
    """The default alias with a pool of two that gives up soon."""
    usual = connections["default"].settings_dict["OPTIONS"]
    connections.close_all()
    usual_pool = usual["pool"]
    usual["pool"] = {"max_size": 2, "timeout": 0.1}
    try:
        yield
    finally:
        connections.close_all()
        usual["pool"] = usual_pool


class Tired:
    """A middleware that needs a connection itself."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        run("SELECT 1")
        return self.get_response(request)


@pytest.mark.parametrize("where", ["view", "middleware"])
def test_exhaustion_is_503(where: str, site: MakeSite, impatient: None, hold: Any) -> None:
    """No connection in time: 503 with Retry-After and nothing to configure, wherever it was asked for."""
    more = [f"{__name__}.Tired"] if where == "middleware" else []
    served = site(one, MIDDLEWARE=[MIDDLEWARE, *more])
    with hold(2):
        reply = served.get("/one")
    assert reply.status == 503
    assert int(reply.headers["Retry-After"]) >= 1
    assert "pool" not in reply.body.decode()
    assert served.get("/one").status == 200


def test_exhaustion_of_poolkits_own_is_503(site: MakeSite) -> None:
    """The same for what POOLKIT names."""

    def use(_: HttpRequest) -> HttpResponse:
        return HttpResponse(str(poolkit_django.get("small").execute("SELECT 1").fetchone()))

    url = settings.POOLKIT["second"]["url"]
    served = site(use, POOLKIT={"small": {"url": url, "max_size": 1, "timeout": 0.1}})
    with poolkit_django.unit_of_work() as unit:
        unit.get("small")
        reply = _elsewhere(served)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")


def _elsewhere(served: Site) -> Any:
    async def ask() -> Any:
        return await asyncio.to_thread(served.get, "/use")

    return asyncio.run(ask())


def test_the_users_own_handler_goes_first(site: MakeSite, impatient: None, hold: Any) -> None:
    """POOLKIT_EXCEPTION_HANDLER may answer exhaustion in its own way; users catch OperationalError as ever."""

    def busy(_: HttpRequest, error: BaseException) -> HttpResponse | None:
        return HttpResponse("busy", status=429) if isinstance(error, OperationalError) else None

    def cautious(_: HttpRequest) -> HttpResponse:
        try:
            run("SELECT 1")
        except OperationalError:
            return HttpResponse("cached")
        return HttpResponse("fresh")

    served = site(one, cautious, POOLKIT_EXCEPTION_HANDLER=busy)
    with hold(2):
        assert (served.get("/one").status, served.get("/cautious").body) == (429, b"cached")


def test_a_burst_is_served_or_refused_and_nothing_leaks(impatient: None) -> None:
    """40 requests at once past a pool of 2: each is answered with 200 or 503, and all connections come back."""

    async def nap(_: HttpRequest) -> HttpResponse:
        await sync_to_async(run)("SELECT pg_sleep(0.03)")
        return HttpResponse("rested")

    async def visit(site: Site) -> list[int]:
        return [reply.status for reply in await asyncio.gather(*(site.aget("/nap") for _ in range(40)))]

    with Site("asgi", {"nap": nap}) as served:
        found = asyncio.run(visit(served))
    assert set(found) <= {200, 503}
    assert found.count(200) >= 2
    assert out() == 0


# -- away --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def moved(private_pg: LocalPostgres) -> Iterator[LocalPostgres]:
    """The default alias on a server that may be stopped."""
    with psycopg.connect(private_pg.dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS django_notes (word text)")
    usual = connections["default"].settings_dict
    before = dict(usual)
    connections.close_all()
    pool = {"max_size": 2, "timeout": 2, "open_timeout": 2}
    usual.update({**before, **database(private_pg.dsn, pool=pool)})
    try:
        yield private_pg
    finally:
        connections.close_all()
        pools.close_database(connections["default"])
        usual.update(before)


@pytest.mark.parametrize("kind", ["asgi"])
def test_a_server_that_is_away_is_503_and_heals(moved: LocalPostgres, site: MakeSite) -> None:
    """Away: 503 fast, alive but not ready. Back: 200, with no restart of ours."""
    served = site(one, PAGES)
    assert served.get("/one").status == 200
    moved.stop()
    assert served.get("/one").status in (500, 503)  # the connection in the pool may die in the view
    assert eventually(lambda: served.get("/one").status == 503)
    assert served.get("/poolkit/ready").status == 503
    assert served.get("/poolkit/health").status == 200
    moved.start()
    assert eventually(lambda: served.get("/one").status == 200)
    assert served.get("/poolkit/ready").status == 200


@pytest.mark.parametrize("kind", ["wsgi"])
def test_a_server_away_at_the_start_is_no_reason_not_to_start(moved: LocalPostgres, site: MakeSite) -> None:
    """The app comes up, warm() says no and raises nothing, requests get 503 until the server is there."""
    moved.stop()
    served = site(one, PAGES)
    assert not poolkit_django.warm(0.5)
    assert served.get("/one").status == 503
    moved.start()
    assert eventually(lambda: served.get("/one").status == 200)
    assert poolkit_django.warm()


def test_a_server_lost_in_the_commit_is_503(moved: LocalPostgres, site: MakeSite) -> None:
    """Whether the COMMIT was carried out is unknown: 503, and never a 2xx."""

    def save(_: HttpRequest) -> HttpResponse:
        write("lost")
        moved.kill()
        return HttpResponse("looks well")

    reply = site(save).get("/save")
    assert (reply.status, reply.headers.get("Retry-After")) == (503, "1")


def test_passwords_are_nowhere(moved: LocalPostgres, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password is told neither to the client nor to the log."""
    with psycopg.connect(moved.dsn, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS poolkit_stranger")
        admin.execute("CREATE ROLE poolkit_stranger LOGIN PASSWORD 'right'")
    wrong = connections["default"].copy()
    wrong.settings_dict.update(USER="poolkit_stranger", PASSWORD="very wrong")
    with pytest.raises(OperationalError) as caught:
        run("SELECT 1", using=wrong)
    assert "very wrong" not in f"{caught.value} {caught.value.__cause__} {caplog.text}"
