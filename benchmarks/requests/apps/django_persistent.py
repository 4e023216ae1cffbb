"""Floor: CONN_MAX_AGE=None, a connection for each thread, no pool."""

from __future__ import annotations

from benchmarks.requests.apps._django import application

app = application({"CONN_MAX_AGE": None})
