"""The databases that Django's suite runs on: private servers, or the ones the environment names."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from poolkit.testing.mariadb import LocalMariadb
from poolkit.testing.postgres import LocalPostgres

__all__ = ["DRIVERS", "ENGINES", "aliases", "settings_text"]

DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "mysqlclient"), "sqlite3": ("sqlite3",)}
"""Engine -> its drivers, the default first."""
ENGINES = tuple(DRIVERS)

# Django asks for mysqlclient by name and version. poolkit's engine answers for PyMySQL by itself; Django's needs this.
_PYMYSQL = 'import pymysql\n\npymysql.version_info = (2, 2, 8, "final", 0)\npymysql.install_as_MySQLdb()\n\n'
# As in the settings that come with Django's tests: a fast hasher, no time zones.
_REST = """
SECRET_KEY = "of a test run"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
TEST_RUNNER = "suite_runner.Runner"
"""


@contextlib.contextmanager
def aliases(engine: str, folder: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Give the aliases `default` and `other` of DATABASES, less their ENGINE, for as long as the server is up.

    POOLKIT_TEST_PG_DSN and POOLKIT_TEST_MYSQL_DSN name servers that run already. SQLite's test databases are files:
    in memory there would be nothing to pool.
    """
    mark = secrets.token_hex(3)
    if engine == "sqlite3":
        yield {
            alias: {"NAME": str(folder / alias), "TEST": {"NAME": str(folder / f"test-{alias}.sqlite3")}}
            for alias in ("default", "other")
        }
        return
    with contextlib.ExitStack() as stack:
        url = os.environ.get("POOLKIT_TEST_PG_DSN" if engine == "postgresql" else "POOLKIT_TEST_MYSQL_DSN")
        if not url:
            server = _private(engine)
            stack.enter_context(server)
            url = server.dsn
        where = _where(url)
        if engine == "mysql":  # a server's own default may be one that can't hold every text of the tests
            where["TEST"] = {"CHARSET": "utf8mb4"}
        # Only `test_...` of these names is ever made; PostgreSQL's maintenance database is `postgres`.
        yield {alias: {**where, "NAME": f"suite_{mark}_{alias}"} for alias in ("default", "other")}


def _private(engine: str) -> LocalPostgres | LocalMariadb:
    return LocalPostgres(max_connections=200) if engine == "postgresql" else LocalMariadb()


def _where(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
    }


def settings_text(backend: str, driver: str, where: dict[str, dict[str, Any]]) -> str:
    """Return the settings module for a run: `backend` is the dotted path of the engine."""
    databases = {alias: {"ENGINE": backend, **settings} for alias, settings in where.items()}
    shim = _PYMYSQL if driver == "pymysql" and backend.startswith("django.") else ""
    return f"{shim}DATABASES = {databases!r}\n{_REST}"
