"""Settings: an engine with a pool, and the middleware that makes a request one unit of work."""

from __future__ import annotations

import os
import secrets

from psycopg.conninfo import conninfo_to_dict

from example_projects.database import plain_url

_database = conninfo_to_dict(plain_url(os.environ.get("DATABASE_URL", "")))

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

DATABASES = {
    "default": {
        "ENGINE": "poolkit_django.backends.postgresql",
        "NAME": _database.pop("dbname", "shop"),
        "USER": _database.pop("user", ""),
        "PASSWORD": _database.pop("password", ""),
        "HOST": _database.pop("host", ""),
        "PORT": _database.pop("port", ""),
        "OPTIONS": {**_database, "pool": {"max_size": 10}},
    }
}
POOLKIT = {"pricing": {"url": os.environ.get("PRICING_URL")}}
POOLKIT_EXCEPTION_HANDLER = "example_projects.django_shop.errors.answer"
