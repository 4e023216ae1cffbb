"""Settings: an engine with a pool, and the middleware that makes a request one unit of work."""

from __future__ import annotations

import os
import secrets
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from psycopg.conninfo import conninfo_to_dict

from example_projects.database import is_mysql, plain_url

POOL = {"max_size": 10}


def _postgresql(url: str) -> dict[str, Any]:
    parts = conninfo_to_dict(plain_url(url))
    return {
        "ENGINE": "poolkit_django.backends.postgresql",
        "NAME": parts.pop("dbname", "shop"),
        "USER": parts.pop("user", ""),
        "PASSWORD": parts.pop("password", ""),
        "HOST": parts.pop("host", ""),
        "PORT": parts.pop("port", ""),
        "OPTIONS": {**parts, "pool": POOL},
    }


def _mysql(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "ENGINE": "poolkit_django.backends.mysql",
        "NAME": unquote(parts.path.lstrip("/")) or "shop",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "OPTIONS": {**dict(parse_qsl(parts.query)), "pool": POOL},
    }


_url = os.environ.get("DATABASE_URL", "")

SECRET_KEY = os.environ.get("SECRET_KEY") or secrets.token_urlsafe()  # nothing here is signed
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", "testserver"]
ROOT_URLCONF = "example_projects.django_shop.urls"
INSTALLED_APPS = ["poolkit_django", "example_projects.django_shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "poolkit_django.middleware.PoolkitMiddleware",
    "django.middleware.common.CommonMiddleware",
]

DATABASES = {"default": _mysql(_url) if is_mysql(_url) else _postgresql(_url)}
POOLKIT = {"pricing": {"url": os.environ.get("PRICING_URL")}}
POOLKIT_STATS = "loopback"  # nothing stands in front of this shop; behind a proxy: POOLKIT_STATS_TOKEN
POOLKIT_EXCEPTION_HANDLER = "example_projects.django_shop.errors.answer"
