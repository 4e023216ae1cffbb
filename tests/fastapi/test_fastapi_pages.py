"""Health, readiness and the numbers: who may see what, and that they need no connection."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from fastapi_rig import MakeKit, Serve

from poolkit_fastapi import Poolkit

LOOPBACK = ("127.0.0.1", 1)
LOCAL = {"Host": "127.0.0.1:8000"}


def test_pages_answer_where_the_pool_is_full(make_kit: MakeKit, serve: Serve) -> None:
    """The pages must not need what the request they tell about is holding."""
    kit = make_kit({"max_size": 1, "timeout": 0.05}, stats="loopback")
    app = FastAPI()
    kit.init_app(app)
    inside: list[Any] = []

    @app.get("/hold")
    def hold(_conn: Annotated[Any, Depends(kit.connection)]) -> None:
        inside.extend(client.get(f"/poolkit/{page}", headers=LOCAL) for page in ("health", "ready", "stats.json"))

    client = serve(app, client=LOOPBACK)
    assert client.get("/hold").status_code == 200
    health, ready, stats = inside
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    (pool,) = stats.json()["pools"]
    assert (pool["name"], pool["out"]) == ("default", 1)
    assert pool["holders"][0].startswith("GET /hold for ")


def test_a_catch_all_route_does_not_hide_the_pages(kit: Poolkit, serve: Serve) -> None:
    """They stand in front of the app's own routes."""
    app = FastAPI()

    @app.get("/{path:path}")
    async def everything(path: str) -> str:
        return path

    kit.init_app(app)
    assert serve(app).get("/poolkit/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("client_host", "headers", "settings", "status"),
    [
        ("127.0.0.1", {}, {}, 403),
        ("127.0.0.1", {}, {"stats": "loopback"}, 200),
        ("10.0.0.7", {}, {"stats": "loopback"}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "10.0.0.7"}, {"stats": "loopback"}, 403),
        ("127.0.0.1", {"Host": "evil.example"}, {"stats": "loopback"}, 403),
        ("127.0.0.1", {}, {"stats_token": "t0ken"}, 403),
        ("127.0.0.1", {}, {"stats_token": "t0ken", "stats": "loopback"}, 200),
        ("10.0.0.7", {"Authorization": "Bearer t0ken"}, {"stats_token": "t0ken"}, 200),
        ("10.0.0.7", {"Authorization": "Bearer wrong"}, {"stats_token": "t0ken", "stats": "loopback"}, 403),
    ],
)
def test_who_may_see_the_numbers(
    *, client_host: str, headers: dict[str, str], settings: dict[str, Any], status: int, make_kit: MakeKit, serve: Serve
) -> None:
    """The bearer of the token; where the settings say so, whoever comes from this very machine and by no proxy."""
    app = FastAPI()
    make_kit(**settings).init_app(app)
    client = serve(app, client=(client_host, 1))
    assert client.get("/poolkit/stats.json", headers={**LOCAL, **headers}).status_code == status
    assert client.get("/poolkit/health", headers=headers).status_code == 200


def test_another_prefix_and_none(make_kit: MakeKit, serve: Serve) -> None:
    """The pages can stand elsewhere, or nowhere."""
    moved, off = FastAPI(), FastAPI()
    make_kit(prefix="/-/db").init_app(moved)
    make_kit(prefix=None).init_app(off)
    client = serve(moved)
    assert client.get("/-/db/health").status_code == 200
    assert client.get("/poolkit/health").status_code == 404
    assert serve(off).get("/poolkit/health").status_code == 404


def test_pages_take_get_and_head_only(client: TestClient) -> None:
    """A monitor may ask with HEAD; nothing can be changed here."""
    assert client.head("/poolkit/health").status_code == 200
    assert client.post("/poolkit/health").status_code == 405
