"""Floor in a transaction: CONN_MAX_AGE=None and ATOMIC_REQUESTS."""

from __future__ import annotations

from benchmarks.requests.apps._django import application

app = application({"CONN_MAX_AGE": None, "ATOMIC_REQUESTS": True})
