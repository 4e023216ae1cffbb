"""A plugin for pytest: Django's backend for PostgreSQL takes psycopg2, as where psycopg 3 is not installed.

    python -m pytest -p on_psycopg2 tests/django         (with tests/django on PYTHONPATH)

Only Django is kept from psycopg 3, and what is below Django's engine: the tests look at the server with it.
"""

from __future__ import annotations

import sys

sys.modules["psycopg"] = None  # type: ignore[assignment]  the import fails
import poolkit_django.backends.postgresql.base  # noqa: E402,F401

del sys.modules["psycopg"]
