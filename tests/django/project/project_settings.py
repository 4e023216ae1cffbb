"""A small project as a user would write it; the database comes from DATABASE_URL."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

_url = urlsplit(os.environ["DATABASE_URL"])
_engine = {"postgres": "postgresql", "sqlite": "sqlite3"}.get(_url.scheme, _url.scheme)

SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "notes.urls"
WSGI_APPLICATION = "wsgi.application"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "poolkit_django",
    "notes",
]
POOLKIT_STATS = "loopback"  # the tests ask it from this machine
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "poolkit_django.middleware.PoolkitMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
STATIC_URL = "static/"
CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "project_cache"}}
DATABASES = {
    "default": {
        "ENGINE": f"poolkit_django.backends.{_engine}",
        "NAME": _url.path if _engine == "sqlite3" else _url.path[1:],
        "USER": unquote(_url.username or ""),
        "PASSWORD": unquote(_url.password or ""),
        "HOST": _url.hostname or "",
        "PORT": _url.port or "",
        "OPTIONS": {"pool": {"max_size": 4, "timeout": 5}},
        "TEST": {"NAME": os.environ.get("TEST_NAME")},
    }
}
if _engine == "sqlite3" and "TEST_NAME" in os.environ:  # beside the other file, and not where programs are started
    DATABASES["default"]["TEST"]["NAME"] = str(Path(_url.path).with_name(os.environ["TEST_NAME"]))
if _engine == "postgresql":
    DATABASES["default"]["OPTIONS"]["application_name"] = os.environ.get("APPLICATION", "project")
