"""Health and readiness for anyone, the numbers for those who may; and the commands."""

from __future__ import annotations

import contextlib
from typing import Any

from flask import Flask, abort
from flask_rig import MakeApp, write

from poolkit_flask import Poolkit

TOKEN = "open sesame"
REMOTE = {"REMOTE_ADDR": "203.0.113.7"}


def test_health_and_readiness_are_for_anyone(app: Flask) -> None:
    """They tell their status and nothing else."""
    client = app.test_client()
    for path, status in (("health", "ok"), ("ready", "ready")):
        response = client.get(f"/poolkit/{path}", environ_base=REMOTE)
        assert (response.status_code, response.json) == (200, {"status": status})
        assert response.headers["Cache-Control"] == "no-store"
        assert client.head(f"/poolkit/{path}").status_code == 200


def test_they_need_no_free_connection(make_app: MakeApp) -> None:
    """A pool that is in use serves: that is not a reason to take the worker out of service."""
    app, db = make_app({"max_size": 1, "timeout": 0.05}, POOLKIT_STATS="loopback")
    with db.pool().acquire(timeout=10):
        for path in ("health", "ready", "stats.json"):
            assert app.test_client().get(f"/poolkit/{path}").status_code == 200


def test_they_do_not_pass_the_apps_own_hooks(app: Flask, db: Poolkit) -> None:
    """A login that every request needs, or a query in before_request, has no part in them."""

    @app.before_request
    def login() -> None:
        write(db, "hook")
        abort(401)

    client = app.test_client()
    assert client.get("/poolkit/health").status_code == 200
    assert client.get("/poolkit/ready").status_code == 200
    assert client.get("/other").status_code == 401


def test_the_numbers_are_for_loopback(app: Flask, make_app: MakeApp) -> None:
    """Without a token: for nobody; for the machine itself where the settings say so and nobody forwarded it."""
    assert app.test_client().get("/poolkit/stats.json").status_code == 403
    app, db = make_app(POOLKIT_STATS="loopback")
    app.add_url_rule("/", "view", lambda: write(db, "numbers") or "x")
    client = app.test_client()
    client.get("/")
    (pool,) = client.get("/poolkit/stats.json").json["pools"]
    assert (pool["name"], pool["size"], pool["out"], pool["acquired"]) == ("default", 1, 0, 1)
    for environ in (
        {"environ_base": REMOTE},
        {"headers": {"X-Forwarded-For": "127.0.0.1"}},
        {"environ_base": {"REMOTE_ADDR": ""}},
        {"headers": {"Host": "evil.example"}},
    ):
        response = client.get("/poolkit/stats.json", **environ)  # type: ignore[arg-type]
        assert (response.status_code, response.json) == (403, {"error": "forbidden"})


def test_the_numbers_with_a_token(make_app: MakeApp) -> None:
    """With a token: for whoever has it, and for nobody else."""
    app, _ = make_app(POOLKIT_STATS_TOKEN=TOKEN)
    client = app.test_client()

    def status(**headers: str) -> int:
        return client.get("/poolkit/stats.json", headers=headers, environ_base=REMOTE).status_code

    assert status(Authorization=f"Bearer {TOKEN}") == 200
    assert status(Authorization="Bearer wrong") == 403
    assert status() == 403
    assert client.get("/poolkit/stats.json").status_code == 403, "loopback alone is not enough then"


def test_the_numbers_say_who_holds_what(make_app: MakeApp) -> None:
    """The holder is told by its route."""
    app, db = make_app(POOLKIT_STATS="loopback")
    seen: list[Any] = []

    @app.get("/orders/<int:number>")
    def view(number: int) -> str:
        write(db, "holder")
        seen.append(app.test_client().get("/poolkit/stats.json").json)
        return "x"

    app.test_client().get("/orders/17")
    (holder,) = seen[0]["pools"][0]["holders"]
    assert holder.startswith("GET /orders/<int:number> for ")
    assert "17" not in holder.partition(" for ")[0]


def test_another_prefix_or_none(make_app: MakeApp) -> None:
    """POOLKIT_URL_PREFIX moves the pages, None switches them off."""
    moved, _ = make_app(POOLKIT_URL_PREFIX="/-/pools")
    assert moved.test_client().get("/-/pools/health").status_code == 200
    assert moved.test_client().get("/poolkit/health").status_code == 404
    off, _ = make_app(POOLKIT_URL_PREFIX=None)
    assert off.test_client().get("/poolkit/health").status_code == 404
    assert not [rule for rule in off.url_map.iter_rules() if "poolkit" in rule.endpoint]


def test_status_prints_the_settings_and_connects(make_app: MakeApp, dsn: str) -> None:
    """`flask poolkit status`: every connection with its settings, without the password, and whether it answers."""
    secret = dsn.replace("@", ":sesame@", 1) if ":" not in dsn.split("://")[1].split("@", maxsplit=1)[0] else dsn
    app, _ = make_app(
        POOLKIT={
            "default": {"url": secret, "max_size": 7},
            "prices": {"url": "https://me:sesame@prices.test/v1"},
            "moving": {"url": lambda: dsn},
        }
    )
    result = app.test_cli_runner().invoke(args=["poolkit", "status"])
    assert result.exit_code == 0, result.output
    assert "max_size = 7" in result.output
    assert result.output.count("  answers") == 2
    assert "a shared client" in result.output
    assert "https://me@prices.test/v1" in result.output
    assert "moving: (a callable)" in result.output
    assert "sesame" not in result.output


def test_check_is_for_deployments(make_app: MakeApp) -> None:
    """`flask poolkit check` exits with 0 where every server can be reached, else with 1 and the reason."""
    good, _ = make_app()
    result = good.test_cli_runner().invoke(args=["poolkit", "check"])
    assert (result.exit_code, result.output) == (0, "default: ok\n")
    bad, _ = make_app({"url": "postgresql://nobody@127.0.0.1:9/none"})
    result = bad.test_cli_runner().invoke(args=["poolkit", "check", "--timeout", "0.5"])
    assert result.exit_code == 1
    assert "default: can't connect: " in result.output


def test_a_command_commits_only_what_it_says(app: Flask, db: Poolkit, rows: Any) -> None:
    """In a command of the app's own a connection without db.begin() is refused, and begin() commits."""

    @app.cli.command()
    def work() -> None:
        with db.begin():
            write(db, "command")
        with contextlib.suppress(RuntimeError), db.begin():
            write(db, "failed")
            raise RuntimeError
        write(db, "bare")

    result = app.test_cli_runner().invoke(args=["work"])
    assert "no request" in str(result.exception)
    assert (rows("command"), rows("failed"), rows("bare")) == (1, 0, 0)
