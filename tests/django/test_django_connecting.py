"""Connecting: a lease taken in one go leaves a wrapper as Django's own connect does, and skips nobody's hook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, ClassVar

import pytest
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import OperationalError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.test import override_settings
from django_rig import run

from poolkit_django.backends.connecting import Connecting
from poolkit_django.backends.postgresql.base import DatabaseWrapper

_STATE = (
    *("in_atomic_block", "savepoint_ids", "needs_rollback", "commit_on_exit", "closed_in_transaction", "autocommit"),
    *("errors_occurred", "health_check_enabled", "health_check_done", "close_at", "run_on_commit", "isolation_level"),
    *("run_commit_hooks_on_set_autocommit_on", "_wanted_autocommit", "_waiting_savepoints", "_connecting"),
)
_MESS = {
    "savepoint_ids": ["old"],
    "needs_rollback": True,
    "errors_occurred": True,
    "run_on_commit": [((), None, False)],
}


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Collect of each attempt to lease in one go whether it did."""
    seen: list[bool] = []
    once = Connecting._lease_at_once
    with monkeypatch.context() as patch:

        def counted(self: Any) -> bool:
            seen.append(once(self))
            return seen[-1]

        patch.setattr(Connecting, "_lease_at_once", counted)
        yield seen


def hear(**_: Any) -> None:
    """Listen, so that nothing is done in one go."""


def state() -> dict[str, Any]:
    """What a connect sets, or must leave alone."""
    wrapper = connection._connections["default"]
    blocks = len(wrapper.atomic_blocks)
    return {name: getattr(wrapper, name) for name in _STATE} | {"blocks": blocks, "status": run_status()}


def run_status() -> Any:
    """What libpq says of the transaction."""
    return connection.connection.info.transaction_status


@pytest.mark.parametrize("where", ["outside", "inside", "inside, with a hook"])
@pytest.mark.parametrize("mess", [{}, _MESS])
def test_the_state_is_that_of_a_connect(
    where: str, mess: dict[str, Any], fresh_pools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a connect resets is reset, and what a block was entered with is kept: either way the same."""
    run("SELECT 1")
    connection.close()
    found: list[Any] = []
    with counting(monkeypatch) as once:
        for receivers in ([], [hear]):
            for receiver in receivers:
                connection_created.connect(receiver)
            try:
                if where != "outside":
                    with transaction.atomic():
                        if "hook" in where:
                            transaction.on_commit(list)
                        run("SELECT 1")
                        found.append(state())
                else:
                    for name, value in mess.items():
                        setattr(connection, name, value)
                    run("SELECT 1")
                    found.append(state())
            finally:
                for receiver in receivers:
                    connection_created.disconnect(receiver)
            connection.close()
    assert once == [True, False]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "special",
    [
        "a savepoint that waits",
        "a mode that was set by hand",
        "queries that are logged, in a block",
        "a time zone of its own",
        "a pool that was closed",
    ],
)
def test_what_is_special_is_done_as_ever(special: str, fresh_pools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connect that needs more than a lease takes the long way, and its query works."""
    run("SELECT 1")
    connection.close()
    with counting(monkeypatch) as once:
        if special == "a savepoint that waits":
            with transaction.atomic(), transaction.atomic():
                run("SELECT 1")
        elif special == "a mode that was set by hand":
            connection.set_autocommit(True)
            run("SELECT 1")
        elif special == "queries that are logged, in a block":
            connection.force_debug_cursor = True
            with transaction.atomic():
                run("SELECT 1")
            connection.force_debug_cursor = False
            assert [query["sql"] for query in connection.queries_log] == ["BEGIN", "SELECT 1", "COMMIT"]
            connection.queries_log.clear()
        elif special == "a time zone of its own":
            monkeypatch.setitem(connection.settings_dict, "TIME_ZONE", "Asia/Tokyo")
            assert run("SELECT 1") == [(1,)]
            connection.close()
            with override_settings(USE_TZ=False), pytest.raises(ImproperlyConfigured, match="TIME_ZONE"):
                run("SELECT 1")
        else:
            connection.close_pool()
            assert run("SELECT 1") == [(1,)]
    assert True not in once


def test_an_engine_with_hooks_of_its_own_has_them_called(fresh_pools: None) -> None:
    """Who overrides a part of Django's connect is asked with each lease."""

    class Hooked(DatabaseWrapper):
        called: ClassVar[list[str]] = []

        def init_connection_state(self) -> None:
            self.called.append("state")
            super().init_connection_state()

        def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
            self.called.append("connection")
            return super().get_new_connection(conn_params)

    wrapper = Hooked({**connection.settings_dict}, "default")
    for _ in range(3):
        assert run("SELECT 1", using=wrapper) == [(1,)]
        wrapper.close()
    assert Hooked.called[-6:] == ["connection", "state"] * 3


@pytest.mark.parametrize("how", ["a method of its own", "around Django's", "afterwards"])
def test_who_makes_cursors_is_asked(how: str, fresh_pools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's look for an event loop is taken once for each cursor, but nobody's `create_cursor` is left out."""
    asked: list[Any] = []
    djangos = DatabaseWrapper.create_cursor

    @wraps(djangos)
    def around(self: Any, name: Any = None) -> Any:
        asked.append(name)
        return djangos(self, name)

    class Own(DatabaseWrapper):
        if how == "a method of its own":

            def create_cursor(self, name: Any = None) -> Any:
                asked.append(name)
                return super().create_cursor(name)

        elif how == "around Django's":
            create_cursor = around

    if how == "afterwards":
        monkeypatch.setattr(DatabaseWrapper, "create_cursor", around)
    wrapper = Own({**connection.settings_dict}, "default")
    for _ in range(2):
        assert run("SELECT 1", using=wrapper) == [(1,)]
        wrapper.close()
    assert asked[-2:] == [None, None]  # one before for the server's version, where nobody has asked for that yet


async def test_no_cursor_is_made_in_an_event_loop() -> None:
    """Django refuses that, whichever way is asked."""
    for make in (connection.cursor, connection.create_cursor, connection.chunked_cursor):
        with pytest.raises(SynchronousOnlyOperation):
            make()


def test_a_test_case_that_allows_no_database_stops_a_connect(
    fresh_pools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django's SimpleTestCase stands in the way of every connect, of other threads too: not to be gone round."""

    def refuse(_: Any) -> None:
        raise ZeroDivisionError

    run("SELECT 1")
    connection.close()
    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", refuse)
    with pytest.raises(ZeroDivisionError):
        run("SELECT 1")


def test_no_connection_comes_free(hold: Any, fresh_pools: None) -> None:
    """A lease in one go waits once, and tells what the pool says as Django's OperationalError."""
    run("SELECT 1")
    connection.close()
    pool = connection._known.pool
    with hold(3):
        pool.config = replace(pool.config, timeout=0.01)  # the holder's own connects may take longer
        with pytest.raises(OperationalError, match="no connection came free"):
            run("SELECT 1")
    assert connection.connection is None
    assert connection.lease is None
