"""Django, configured once for these tests, on the run's own database. What was saved is counted from outside."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import django
import psycopg
import pytest
from django.conf import settings
from django.db import connection, connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django_rig import MIDDLEWARE, MakeSite, Rows, Site, database, eventually, holding, open_transactions, out
from psycopg import sql

from poolkit_django.backends import pools


@pytest.fixture(scope="session")
def dsn(pg_dsn: str) -> str:
    """The database, with the tables of these tests."""
    with psycopg.connect(pg_dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE django_notes (word text);"
            "CREATE TABLE django_parents (id int PRIMARY KEY);"
            "CREATE TABLE django_children (parent int REFERENCES django_parents DEFERRABLE INITIALLY DEFERRED);"
            "CREATE TABLE django_counters (id int PRIMARY KEY, value int);"
            "CREATE TABLE django_session"
            " (session_key varchar(40) PRIMARY KEY, session_data text, expire_date timestamptz)"
        )
    return pg_dsn


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what looks into psycopg 3 where Django was told to use psycopg2: see `on_psycopg2`."""
    if not is_psycopg3:
        for item in items:
            if item.get_closest_marker("psycopg3"):
                item.add_marker(pytest.mark.skip(reason="it looks into psycopg 3"))


@pytest.fixture(scope="session", autouse=True)
def _django(dsn: str) -> None:
    assert not settings.configured, "another test has configured Django in this process: run it in one of its own"
    settings.configure(
        SECRET_KEY="not a secret",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=(),
        MIDDLEWARE=[MIDDLEWARE],
        INSTALLED_APPS=["poolkit_django", "django.contrib.sessions"],
        DATABASES={"default": database(dsn), "other": database(dsn, application_name="other")},
        POOLKIT={"second": {"url": dsn, "max_size": 2, "timeout": 5}, "api": {"url": "http://127.0.0.1:9"}},
        USE_TZ=True,
    )
    django.setup()


@pytest.fixture(autouse=True)
def _nothing_stays(monitor: psycopg.Connection[Any]) -> Iterator[None]:
    """After every test nothing is lent, and the server knows of no open transaction.

    The next one has the usual settings, also where this one failed before it put them back.
    """
    logging.getLogger("django").setLevel(logging.CRITICAL)
    options = connections.settings["default"]["OPTIONS"]
    usual = dict(options)
    yield
    connections.close_all()
    if options != usual:
        options.clear()
        options.update(usual)
    eventually(lambda: out() == 0)
    eventually(lambda: open_transactions(monitor) == [])  # a session that was cut ends a moment later


@pytest.fixture(scope="session")
def monitor(dsn: str, _django: None) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the tests' own: it sees what is committed and nothing else."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn
    pools.close_all()


@pytest.fixture
def own_dsn(dsn: str) -> Iterator[str]:
    """An empty database for one test's programs; its sessions are cut at the end."""
    name = f"own_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def rows(monitor: psycopg.Connection[Any]) -> Rows:
    """Count the committed notes of a word."""
    monitor.execute("TRUNCATE django_notes, django_children, django_counters, django_session")

    def count(word: str) -> int:
        row = monitor.execute("SELECT count(*) FROM django_notes WHERE word = %s", (word,)).fetchone()
        return row[0] if row else 0

    return count


@pytest.fixture(params=["wsgi", "asgi"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of Django's handlers serves."""
    found: str = request.param
    return found


@pytest.fixture
def site(kind: str) -> Iterator[MakeSite]:
    """Make a site of views, with settings of its own."""
    with ExitStack() as stack:

        def make(*views: Any, **keywords: Any) -> Site:
            named = {view.__name__: view for view in views if callable(view)}
            named.update({str(number): view for number, view in enumerate(views) if not callable(view)})
            return stack.enter_context(Site(kind, named, **keywords))

        yield make


@pytest.fixture
def hold() -> Callable[[int], Any]:
    """Make a block in which so many connections of the default pool are away."""
    return contextmanager(holding)


@pytest.fixture
def fresh_pools() -> Iterator[None]:
    """Start with no pool, and end so."""
    connection.close()
    pools.close_all(0)
    yield
    connections.close_all()
    pools.close_all(0)
