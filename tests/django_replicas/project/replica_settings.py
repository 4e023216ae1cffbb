"""A project with a primary and its replicas, as a user would write it; the databases come from the environment."""

import os

from psycopg.conninfo import conninfo_to_dict

NAMES = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}


def database(url, **more):
    parts = conninfo_to_dict(url)
    return {
        "ENGINE": "poolkit_django.backends.postgresql",
        **{NAMES[name]: str(value) for name, value in parts.items() if name in NAMES},
        "OPTIONS": {"sslmode": "disable", "pool": {"max_size": 4, "timeout": 5, "open_timeout": 2}},
        **more,
    }


SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "notes.urls"
INSTALLED_APPS = ["poolkit_django", "notes"]
MIDDLEWARE = ["poolkit_django.middleware.PoolkitMiddleware"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
REPLICAS = dict(pair.split("=", 1) for pair in os.environ.get("REPLICAS", "").split())
DATABASES = {
    "default": database(
        os.environ["PRIMARY_URL"],
        TEST={"NAME": os.environ.get("TEST_NAME")},
        ATOMIC_REQUESTS=os.environ.get("ATOMIC_REQUESTS") == "1",
    ),
    **{alias: database(url, TEST={"MIRROR": "default"}) for alias, url in REPLICAS.items()},
}
DATABASE_ROUTERS = ["poolkit_django.routers.ReplicaRouter"]
POOLKIT_REPLICAS = {"default": list(REPLICAS)}
POOLKIT_REPLICA_OPTIONS = {
    "pause": float(os.environ.get("PAUSE", "0.1")),
    "timeout": 0.5,
    "max_lag": float(os.environ.get("MAX_LAG", "30")),
    "remember": 60,
}
