"""Tables and apps for the Flask tests. What was saved is counted by a connection of the test's own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask_rig import MakeApp, Rows, eventually

from poolkit_flask import Poolkit


@pytest.fixture(scope="session")
def dsn(pg_dsn: str) -> str:
    """The database, with the tables of these tests."""
    with psycopg.connect(pg_dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE flask_notes (word text);"
            "CREATE TABLE flask_parents (id int PRIMARY KEY);"
            "CREATE TABLE flask_children (parent int REFERENCES flask_parents DEFERRABLE INITIALLY DEFERRED)"
        )
    return pg_dsn


@pytest.fixture(scope="session")
def monitor(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the tests' own: it sees what is committed and nothing else."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def rows(monitor: psycopg.Connection[Any]) -> Rows:
    """Count the committed rows of that word."""
    monitor.execute("TRUNCATE flask_notes, flask_children")

    def count(word: str) -> int:
        row = monitor.execute("SELECT count(*) FROM flask_notes WHERE word = %s", (word,)).fetchone()
        return row[0] if row else 0

    return count


@pytest.fixture
def tag() -> str:
    """The application name of this test's connections."""
    return f"flask-{secrets.token_hex(4)}"


@pytest.fixture
def backends(monitor: psycopg.Connection[Any], tag: str) -> Any:
    """List the states of this test's connections, as the server sees them."""

    def states() -> list[str]:
        query = "SELECT state FROM pg_stat_activity WHERE application_name = %s"
        return [state for (state,) in monitor.execute(query, (tag,)).fetchall()]

    return states


@pytest.fixture
def make_app(dsn: str, tag: str) -> Iterator[MakeApp]:
    """Make an app that answers errors as in production. After the test nothing may be in use, in any of them."""
    with ExitStack() as stack:

        def make(pool: dict[str, Any] | None = None, **config: Any) -> tuple[Flask, Poolkit]:
            app = Flask(f"app{secrets.token_hex(2)}")
            app.logger.disabled = True
            own = {"url": dsn, "options": {"application_name": tag}, "max_size": 2, "timeout": 5, **(pool or {})}
            app.config.from_mapping(
                {"POOLKIT": {"default": own}, "TESTING": True, "PROPAGATE_EXCEPTIONS": False, **config}
            )
            db = Poolkit(app)
            stack.callback(_finish, app, db)
            return app, db

        yield make


@pytest.fixture
def app_and_db(make_app: MakeApp) -> tuple[Flask, Poolkit]:
    """An everyday app."""
    return make_app()


@pytest.fixture
def app(app_and_db: tuple[Flask, Poolkit]) -> Flask:
    """The everyday app."""
    return app_and_db[0]


@pytest.fixture
def db(app_and_db: tuple[Flask, Poolkit]) -> Poolkit:
    """The Poolkit of the everyday app."""
    return app_and_db[1]


def _finish(app: Flask, db: Poolkit) -> None:
    pools = list(app.extensions["poolkit"].registry.live_pools())
    try:
        eventually(lambda: not any(pool.stats().out for pool in pools), 2)
    except AssertionError:
        pytest.fail("; ".join(str(holder) for pool in pools for holder in pool.holders()))
    finally:
        db.close(app, 0)
