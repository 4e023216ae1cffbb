"""Tables, apps and clients for the FastAPI tests. What was saved is counted by a connection of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fastapi_rig import MakeKit, Rows, Serve, open_transactions, settles

from poolkit_fastapi import Poolkit


@pytest.fixture(scope="session")
def dsn(pg_dsn: str) -> str:
    """The database, with the tables of these tests."""
    with psycopg.connect(pg_dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE notes (word text);"
            "CREATE TABLE parents (id int PRIMARY KEY);"
            "CREATE TABLE children (parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED);"
            "CREATE TABLE counters (id int PRIMARY KEY, value int NOT NULL)"
        )
    return pg_dsn


@pytest.fixture(scope="session")
def monitor(dsn: str) -> Iterator[psycopg.Connection]:
    """A connection of the tests' own: it sees what is committed and nothing else."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture(autouse=True)
def _nothing_stays_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test the server must know of no transaction that is still open."""
    yield
    if "monitor" in request.fixturenames:
        monitor: psycopg.Connection = request.getfixturevalue("monitor")
        assert settles(lambda: open_transactions(monitor) == []), open_transactions(monitor)


@pytest.fixture
def rows(monitor: psycopg.Connection) -> Rows:
    """Count the committed notes of that word."""
    monitor.execute("TRUNCATE notes, children, counters")

    def count(word: str) -> int:
        row = monitor.execute("SELECT count(*) FROM notes WHERE word = %s", (word,)).fetchone()
        return row[0] if row else 0

    return count


@pytest.fixture
def make_kit(dsn: str) -> MakeKit:
    """Make a Poolkit on the test database; `pool` has the pool's settings."""

    def make(pool: dict[str, Any] | None = None, **keywords: Any) -> Poolkit:
        return Poolkit({"default": {"url": dsn, "max_size": 2, "timeout": 5, **(pool or {})}}, **keywords)

    return make


@pytest.fixture
def kit(make_kit: MakeKit) -> Poolkit:
    """An everyday Poolkit."""
    return make_kit()


@pytest.fixture
def app(kit: Poolkit) -> FastAPI:
    """An app that knows `kit`."""
    app = FastAPI()
    kit.init_app(app)
    return app


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start an app with its lifespan; it is stopped after the test, and then nothing may be in use."""
    with ExitStack() as stack:

        def start(app: Any, **keywords: Any) -> TestClient:
            client = TestClient(app, raise_server_exceptions=False, follow_redirects=False, **keywords)
            return stack.enter_context(client)

        yield start


@pytest.fixture
def client(app: FastAPI, serve: Serve, rows: Rows) -> TestClient:
    """A client of `app`. Endpoints added by the test are found: routes are looked up per request."""
    return serve(app)
