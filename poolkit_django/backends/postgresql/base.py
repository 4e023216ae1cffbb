"""The engine for PostgreSQL: Django's own backend, with connections from poolkit."""

from __future__ import annotations

from django.db.backends.postgresql import base

from poolkit_django.backends.pooled import Pooled, PooledCreation

__all__ = ["DatabaseWrapper"]


class DatabaseCreation(PooledCreation, base.DatabaseCreation):
    """Makes and drops test databases."""


class DatabaseWrapper(Pooled, base.DatabaseWrapper):
    """Django's PostgreSQL backend, with connections from poolkit."""

    creation_class = DatabaseCreation
