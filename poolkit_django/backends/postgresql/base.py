"""The engine for PostgreSQL: Django's own backend, with connections from poolkit."""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from poolkit_django.backends.pooled import Pooled, PooledCreation

__all__ = ["DatabaseWrapper"]

if not is_psycopg3:
    raise ImproperlyConfigured("poolkit_django.backends.postgresql needs psycopg 3: pip install 'poolkit[psycopg]'")


class DatabaseCreation(PooledCreation, base.DatabaseCreation):
    """Makes and drops test databases."""


class DatabaseWrapper(Pooled, base.DatabaseWrapper):
    """Django's PostgreSQL backend, with connections from poolkit."""

    creation_class = DatabaseCreation
