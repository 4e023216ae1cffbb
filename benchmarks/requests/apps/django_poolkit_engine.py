"""poolkit's engine alone, no middleware: as CONN_MAX_AGE=None, no transaction for one SELECT."""

from __future__ import annotations

from benchmarks.requests.apps._django import POOL_SIZE, application

app = application(
    {
        "ENGINE": "poolkit_django.backends.postgresql",
        "OPTIONS": {"pool": {"min_size": POOL_SIZE, "max_size": POOL_SIZE}},
    }
)
