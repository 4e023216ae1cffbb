"""CONN_MAX_AGE=None and CONN_HEALTH_CHECKS."""

from __future__ import annotations

from benchmarks.requests.apps._django import application

app = application({"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True})
