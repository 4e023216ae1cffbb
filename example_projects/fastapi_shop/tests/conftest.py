"""A database for the tests: DATABASE_URL (they write to it), else a private one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from example_projects.database import prepare
from example_projects.pricing import pricing_server
from poolkit.testing.postgres import LocalPostgres


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """A database with the tables in it."""
    if url := os.environ.get("DATABASE_URL"):
        prepare(url)
        yield url
        return
    with LocalPostgres() as server:
        prepare(server.dsn)
        yield server.dsn


@pytest.fixture(scope="session")
def client(database_url: str) -> Iterator[TestClient]:
    """A browser, and the application with its lifespan: it opens the pools before, and closes them after."""
    with pricing_server() as pricing, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", database_url)  # the application reads its settings when it is imported
        patch.setenv("PRICING_URL", pricing.url)
        from example_projects.fastapi_shop.main import app  # noqa: PLC0415

        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
