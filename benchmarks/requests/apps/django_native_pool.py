"""Django's own pool."""

from __future__ import annotations

from benchmarks.requests.apps._django import POOL_SIZE, application

app = application({"OPTIONS": {"pool": {"min_size": POOL_SIZE, "max_size": POOL_SIZE}}})
