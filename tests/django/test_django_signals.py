"""Signals: what happens in the pools and how units end is told in Django's way, and hurts nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from django.db import OperationalError, connections
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse
from django_rig import MakeSite, Rows, out, run, write

import poolkit_django
from poolkit_django import recent, signals
from poolkit_django.backends import pools

Heard = list[dict[str, Any]]


@contextmanager
def listening(*to: Signal) -> Iterator[Heard]:
    """Collect what these signals are sent."""
    heard: Heard = []

    def receive(**told: Any) -> None:
        heard.append(told)

    with ExitStack() as stack:
        for signal in to:
            signal.connect(receive)
            stack.callback(signal.disconnect, receive)
        yield heard


def default_pool() -> Any:
    """The pool of the default alias."""
    return pools.pool_for(connections["default"])


def test_a_physical_connection_is_told_once(fresh_pools: None) -> None:
    """connection_opened comes with the connect, not with each lease; connection_closed says why."""
    with listening(signals.connection_opened, signals.connection_closed) as heard:
        for _ in range(3):
            run("SELECT 1")
            connections.close_all()
        pools.close_all()
    opened, closed = heard
    assert opened["pool"] == closed["pool"] == "default"
    assert opened["took"] > 0
    assert closed["reason"] == "drained"


def test_borrowings_are_told_only_while_somebody_listens(fresh_pools: None) -> None:
    """Also by a pool that was made before: it is watched from then on, and left alone again after."""
    pool = default_pool()
    assert not pool._traced
    with listening(signals.connection_acquired, signals.connection_released) as heard:
        assert pool._traced
        run("SELECT 1")
        connections.close_all()
    assert not pool._traced
    assert [set(told) - {"signal", "sender"} for told in heard] == [
        {"pool", "waited", "connection"},
        {"pool", "used", "connection"},
    ]


def test_a_pool_made_later_tells_as_well(fresh_pools: None) -> None:
    """POOLKIT's pools and the engine's, whenever they are made."""
    with listening(signals.connection_acquired) as heard, poolkit_django.unit_of_work() as unit:
        run("SELECT 1")
        unit.get("second").execute("SELECT 1")
    assert [told["pool"] for told in heard] == ["default", "second"]


def test_a_receiver_that_raises_hurts_nobody(rows: Rows, fresh_pools: None) -> None:
    """Its error is logged; the others are told, the work goes on and is saved, and nothing is lost."""

    def broken(**_: Any) -> None:
        raise ValueError("receiver")

    every = (signals.connection_opened, signals.connection_acquired, signals.connection_released, signals.unit_ended)
    with ExitStack() as stack:
        for signal in every:
            signal.connect(broken)
            stack.callback(signal.disconnect, broken)
        with listening(*every) as heard, poolkit_django.unit_of_work():
            write("kept")
    assert rows("kept") == 1
    assert len(heard) == 4
    assert out() == 0


def test_a_receiver_may_use_the_pool_it_hears_of(fresh_pools: None) -> None:
    """Nothing is sent under the pool's lock: its numbers, and another connection, can be had inside."""
    seen = []

    def look(pool: str, **_: Any) -> None:
        seen.append((pool, default_pool().stats().out))
        with default_pool().acquire() as other:
            other.execute("SELECT 1")

    signals.connection_opened.connect(look)
    try:
        run("SELECT 1")
    finally:
        signals.connection_opened.disconnect(look)
    assert seen[0][0] == "default"


def test_a_refusal_is_told_with_its_error(hold: Any) -> None:
    """connection_refused: who waited how long, and what he got instead."""
    usual = default_pool().config
    with hold(3), listening(signals.connection_refused) as heard:
        pool = default_pool()
        with pytest.raises(TimeoutError):
            pool.acquire(timeout=0.05)
    (told,) = heard
    assert told["waited"] >= 0.05
    assert "no connection came free" in str(told["error"])
    assert usual.max_size == 3


def test_a_pool_that_was_closed_refuses_nobody(fresh_pools: None) -> None:
    """The next query takes a new pool at once; nobody asks the old one, which would tell of a refusal."""
    run("SELECT 1")
    connections.close_all()
    with listening(signals.connection_refused) as heard:
        for close in (pools.close_all, connections["default"].close_pool):
            old = default_pool()
            close()
            assert run("SELECT 1") == [(1,)]
            connections.close_all()
            assert default_pool() is not old
    assert heard == []


def test_the_end_of_a_request_is_told(site: MakeSite, rows: Rows) -> None:
    """unit_ended: what it was, whether it was committed, which aliases it used, and what it was rolled back for."""

    def fine(_: HttpRequest) -> HttpResponse:
        write("fine")
        return HttpResponse()

    def wrong(_: HttpRequest) -> HttpResponse:
        write("wrong")
        raise KeyError("of the view")

    served = site(fine, wrong)
    with listening(signals.unit_ended) as heard:
        assert served.get("/fine").status == 200
        assert served.get("/wrong").status == 500
    first, second = heard
    assert (first["label"], first["committed"], first["aliases"]) == ("GET /fine", True, ["default"])
    assert first["error"] is None
    assert 0 < first["took"] < 5
    assert (second["committed"], type(second["error"])) == (False, KeyError)
    assert (rows("fine"), rows("wrong")) == (1, 0)


def test_a_failed_commit_is_told_as_such(rows: Rows) -> None:
    """Not committed, and the error is the database's."""
    with (
        listening(signals.unit_ended) as heard,
        pytest.raises(Exception, match="foreign key"),
        poolkit_django.unit_of_work(),
    ):
        run("INSERT INTO django_children VALUES (99)")
    (told,) = heard
    assert not told["committed"]
    assert "foreign key" in str(told["error"])


def test_what_happened_lately_is_remembered(fresh_pools: None) -> None:
    """The newest first, in words; borrowings are too many to be kept, and so is all that is long ago."""
    run("SELECT 1")
    connections.close_all()
    pools.close_all()
    closed, opened = recent.latest()[:2]
    assert (closed.kind, closed.text) == ("Closed", "closed: drained")
    assert opened.kind == "Opened"
    assert opened.text.startswith("opened in ")
    assert "Acquired" not in {happening.kind for happening in recent.latest()}
    assert len(recent.latest()) <= recent.KEPT


def test_no_password_is_remembered(fresh_pools: None) -> None:
    """A connect that fails is told in the driver's words, without what it was tried with."""
    wrong = connections["default"].copy()
    wrong.settings_dict.update(USER="poolkit_nobody", PASSWORD="very secret", HOST="127.0.0.1", PORT="9")
    with listening(signals.connection_open_failed) as heard, pytest.raises(OperationalError):
        run("SELECT 1", using=wrong)
    assert heard[0]["pool"] == "default"
    assert any("could not connect" in happening.text for happening in recent.latest()[:5])
    assert "very secret" not in f"{heard} {recent.latest()}"
