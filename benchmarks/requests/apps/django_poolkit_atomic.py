"""poolkit's engine and ATOMIC_REQUESTS, no middleware."""

from __future__ import annotations

from benchmarks.requests.apps._django import POOL_SIZE, application

app = application(
    {
        "ENGINE": "poolkit_django.backends.postgresql",
        "OPTIONS": {"pool": {"min_size": POOL_SIZE, "max_size": POOL_SIZE}},
        "ATOMIC_REQUESTS": True,
    }
)
