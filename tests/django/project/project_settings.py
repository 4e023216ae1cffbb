"""A small project as a user would write it; the database comes from DATABASE_URL."""

import os

from psycopg.conninfo import conninfo_to_dict

_url = conninfo_to_dict(os.environ["DATABASE_URL"])

SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "notes.urls"
WSGI_APPLICATION = "wsgi.application"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "poolkit_django",
    "notes",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "poolkit_django.middleware.PoolkitMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
STATIC_URL = "static/"
DATABASES = {
    "default": {
        "ENGINE": "poolkit_django.backends.postgresql",
        "NAME": _url["dbname"],
        "USER": _url.get("user", ""),
        "PASSWORD": _url.get("password", ""),
        "HOST": _url["host"],
        "PORT": _url["port"],
        "OPTIONS": {
            "application_name": os.environ.get("APPLICATION", "project"),
            "pool": {"max_size": 4, "timeout": 5},
        },
        "TEST": {"NAME": os.environ.get("TEST_NAME")},
    }
}
