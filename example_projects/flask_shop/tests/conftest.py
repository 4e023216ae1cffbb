"""A database for the tests: DATABASE_URL (they write to it), else a private one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import dict_row

from example_projects.database import prepare
from example_projects.flask_shop import create_app
from example_projects.flask_shop.extensions import db
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


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    """The application, made for this test; its pool is closed afterwards."""
    with pricing_server() as pricing:
        app = create_app(
            {
                "default": {"url": database_url, "max_size": 2, "options": {"row_factory": dict_row}},
                "pricing": {"url": pricing.url},
            }
        )
        yield app
        db.close(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A browser."""
    return app.test_client()
