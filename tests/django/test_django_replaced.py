"""Django's own methods, replaced by a library of the project: the engine goes through them as Django's engines do."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django_rig import run


def test_who_forbids_the_database_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-django replaces Django's own method to forbid the database: then no query gets a connection."""
    run("SELECT 1")
    connection.close()

    def forbidden(_: Any) -> None:
        raise RuntimeError("not allowed")

    with monkeypatch.context() as patch:
        patch.setattr(BaseDatabaseWrapper, "ensure_connection", forbidden)
        with pytest.raises(RuntimeError, match="not allowed"):
            run("SELECT 1")
        with pytest.raises(RuntimeError, match="not allowed"), transaction.atomic():
            run("SELECT 1")
    assert run("SELECT 1") == [(1,)]


def test_who_watches_connects_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that wraps Django's own connect(), to trace it, sees every lease."""
    run("SELECT 1")
    connection.close()
    seen: list[str] = []
    connect = BaseDatabaseWrapper.connect

    def traced(wrapper: Any) -> None:
        seen.append(wrapper.alias)
        connect(wrapper)

    monkeypatch.setattr(BaseDatabaseWrapper, "connect", traced)
    run("SELECT 1")
    connection.close()
    with transaction.atomic():
        run("SELECT 1")
    assert seen == ["default", "default"]


def test_who_keeps_the_wrappers_own_method_may_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who replaces ensure_connection() and calls the one he found at the wrapper does not come back to himself."""
    connection.close()
    found, seen = connection.ensure_connection, []

    def traced(wrapper: Any) -> None:
        seen.append(wrapper.connection is None)
        found()

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", traced)
    assert run("SELECT 1") == [(1,)]
    connection.close()
    with transaction.atomic():
        run("SELECT 1")
    assert seen.count(True) == 2  # Django asks with a connection as well
