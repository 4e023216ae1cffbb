"""CONN_MAX_AGE=0: a connection for each request."""

from __future__ import annotations

from benchmarks.requests.apps._django import application

app = application({"CONN_MAX_AGE": 0})
