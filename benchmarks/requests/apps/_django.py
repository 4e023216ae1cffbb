"""What the Django apps have in common: everything but settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.conf import settings
from django.core.wsgi import get_wsgi_application

__all__ = ["POOL_SIZE", "application"]

POOL_SIZE = int(os.environ["BENCH_POOL_SIZE"])


def application(database: Mapping[str, Any], middleware: Sequence[str] = ()) -> Any:
    """Make the WSGI application of a Django project with this database and middleware."""
    merged = _on_its_server({**_server(os.environ["BENCH_DSN"]), **database})
    ours = merged["ENGINE"].startswith("poolkit_django")
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": merged},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["poolkit_django"] if ours else [],
        MIDDLEWARE=list(middleware),
        ROOT_URLCONF="benchmarks.requests.apps._django_views",
        SECRET_KEY="not one",  # noqa: S106  nothing is signed
        USE_TZ=True,
    )
    return get_wsgi_application()


def _on_its_server(database: dict[str, Any]) -> dict[str, Any]:
    """Put MySQL's engine in the place of PostgreSQL's, with the same library for Django's own as for poolkit's."""
    if os.environ["BENCH_DSN"].startswith("mysql"):
        from poolkit_django.backends.mysql import library  # noqa: PLC0415  no app on PostgreSQL imports it

        library.provide()
        database["ENGINE"] = database["ENGINE"].replace("postgresql", "mysql")
    return database


def _server(dsn: str) -> dict[str, Any]:
    """Read libpq's URL, or poolkit's for MySQL, into Django's terms."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": query.get("unix_socket") or parts.hostname or query.get("host", ""),
        "PORT": str(parts.port or query.get("port", "")),
    }
