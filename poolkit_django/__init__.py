"""poolkit for Django: pooled connections for the ORM, and one unit of work per request.

    INSTALLED_APPS = [..., "poolkit_django"]
    MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "poolkit_django.middleware.PoolkitMiddleware", ...]
    DATABASES = {"default": {"ENGINE": "poolkit_django.backends.postgresql", ..., "OPTIONS": {"pool": {"max_size": 8}}}}

The ORM is used as ever. `get("pricing")` gives what the setting POOLKIT names besides.

    conf        settings to a registry            checks      what `manage.py check` says
    middleware  a unit of work for each request   units       what such a unit is made of
    backends    the engine: who has a connection, lazy atomic(), the pools behind it
    native      a driver's own async connection, on the settings of an alias
    early       giving connections back before the end
"""

from poolkit_django.early import acommit, arelease, release
from poolkit_django.native import aconnection, atransaction
from poolkit_django.retry import retryable
from poolkit_django.units import Unit, current_unit, get, unit_of_work, warm

__all__ = [
    "Unit",
    "acommit",
    "aconnection",
    "arelease",
    "atransaction",
    "current_unit",
    "get",
    "release",
    "retryable",
    "unit_of_work",
    "warm",
]
