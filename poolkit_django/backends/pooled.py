"""Pooled: the mix-in that makes a backend for PostgreSQL a pooled one, for the library that Django uses.

That is psycopg 3 where it is installed, else psycopg2. To pool another backend on either, write a module `base` in a
package of yours, and name the package as ENGINE:

    class DatabaseCreation(PooledCreation, creation.DatabaseCreation): ...
    class DatabaseWrapper(Pooled, postgis.DatabaseWrapper):
        creation_class = DatabaseCreation
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db.backends.postgresql.psycopg_any import is_psycopg3

from poolkit_django.backends.leasing import PooledCreation

if TYPE_CHECKING or is_psycopg3:
    from poolkit_django.backends.on_psycopg import Pooled
else:
    from poolkit_django.backends.on_psycopg2 import Pooled

__all__ = ["Pooled", "PooledCreation"]
