"""retryable: work that met a serialization failure or a deadlock runs again, as a whole."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django_rig import MIDDLEWARE, MakeSite, Rows, out, run, write

from poolkit_django import current_unit, get, retryable


class Rival:
    """Someone who changes the counter in the middle of our transaction, so often."""

    def __init__(self, monitor: psycopg.Connection[Any], times: int) -> None:
        self.monitor = monitor
        self.times = times
        self.calls = 0
        monitor.execute("INSERT INTO django_counters VALUES (1, 0)")

    def increment(self) -> None:
        """Add one, as our transaction does; ours is refused by the server if it did not come first."""
        self.calls += 1
        run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        run("SELECT value FROM django_counters")
        write("retry")
        if self.calls <= self.times:
            self.monitor.execute("UPDATE django_counters SET value = value + 1")
        run("UPDATE django_counters SET value = value + 1")

    def value(self) -> int:
        row = self.monitor.execute("SELECT value FROM django_counters").fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def rival(monitor: psycopg.Connection[Any], rows: Rows) -> Rival:
    """One who interferes twice."""
    return Rival(monitor, 2)


@pytest.mark.parametrize("view", ["sync", "asynchronous"])
def test_a_view_runs_again_until_it_succeeds(view: str, site: MakeSite, rival: Rival, rows: Rows) -> None:
    """Two refusals, then a success: it is saved once, and its hooks ran once."""
    hooks: list[int] = []

    @retryable(3)
    def sync(_: HttpRequest) -> HttpResponse:
        transaction.on_commit(lambda: hooks.append(1))
        rival.increment()
        return HttpResponse("done")

    @retryable(3)
    async def asynchronous(_: HttpRequest) -> HttpResponse:
        await sync_to_async(rival.increment)()
        await sync_to_async(transaction.on_commit)(lambda: hooks.append(1))
        return HttpResponse("done")

    reply = site(sync, asynchronous).get(f"/{view}")
    assert (reply.status, rival.calls, rival.value(), rows("retry"), hooks) == (200, 3, 3, 1, [1])


def test_attempts_are_bounded(site: MakeSite, rival: Rival, rows: Rows) -> None:
    """Refused as often as it may be tried: the error is what it would have been, and nothing is saved."""

    @retryable(2)
    def save(_: HttpRequest) -> HttpResponse:
        rival.increment()
        return HttpResponse("never")

    assert site(save).get("/save").status == 500
    assert (rival.calls, rows("retry"), out()) == (2, 0, 0)


def test_other_errors_are_not_tried_again(site: MakeSite, rival: Rival) -> None:
    """Only what may well succeed the second time is run a second time."""

    @retryable(3)
    def save(_: HttpRequest) -> HttpResponse:
        rival.calls += 1
        raise KeyError

    assert site(save).get("/save").status == 500
    assert rival.calls == 1


class Reads:
    """A middleware that asks the database before the view, as sessions do."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        write("before the view")
        return self.get_response(request)


def test_what_was_done_before_the_view_is_committed_before_it(site: MakeSite, rival: Rival, rows: Rows) -> None:
    """So the view is alone in its transaction, and can be run again; else a session would forbid it silently."""

    @retryable(3)
    def save(_: HttpRequest) -> HttpResponse:
        assert rows("before the view") == 1
        rival.increment()
        return HttpResponse("done")

    assert site(save, MIDDLEWARE=[MIDDLEWARE, f"{__name__}.Reads"]).get("/save").status == 200
    assert (rival.calls, rows("retry"), rows("before the view")) == (3, 1, 1)


def skew(conn: psycopg.Connection[Any], mine: int) -> None:
    """One half of a write skew: of two that do this at once, the server refuses the COMMIT of the second."""
    conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    conn.execute("SELECT sum(value) FROM django_counters")
    conn.execute("UPDATE django_counters SET value = value + 1 WHERE id = %s", (mine,))


def test_two_resources_are_tried_once(site: MakeSite, monitor: psycopg.Connection[Any], rows: Rows) -> None:
    """Where one of two may have committed already, nothing is run again."""
    monitor.execute("INSERT INTO django_counters VALUES (1, 0), (2, 0)")

    @retryable(3)
    def save(_: HttpRequest) -> HttpResponse:
        write("orm")
        skew(get("second"), 1)
        with monitor.transaction():
            skew(monitor, 2)
        return HttpResponse("never")

    assert site(save).get("/save").status == 500
    assert rows("orm") == 1


def test_a_failing_commit_is_tried_again(rows: Rows, monitor: psycopg.Connection[Any]) -> None:
    """SERIALIZABLE refuses at the COMMIT: that is inside of what is run again."""
    monitor.execute("INSERT INTO django_counters VALUES (1, 0), (2, 0)")
    calls: list[int] = []

    @retryable(3)
    def work() -> None:
        calls.append(1)
        run("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        run("SELECT sum(value) FROM django_counters")
        run("UPDATE django_counters SET value = value + 1 WHERE id = 1")
        if len(calls) == 1:
            with monitor.transaction():
                skew(monitor, 2)

    work()
    assert len(calls) == 2
    assert monitor.execute("SELECT sum(value) FROM django_counters").fetchone() == (2,)


def test_outside_a_request_each_call_is_a_unit(rival: Rival, rows: Rows) -> None:
    """A task or a command can use it as well."""

    @retryable()
    def work(number: int) -> int:
        rival.increment()
        return number

    assert work(7) == 7
    assert (rival.calls, rows("retry")) == (3, 1)
    assert current_unit() is None


def test_a_deadlock_is_tried_again(monitor: psycopg.Connection[Any], rows: Rows) -> None:
    """The loser of a deadlock runs again and wins."""
    monitor.execute("INSERT INTO django_counters VALUES (1, 0), (2, 0)")
    both = threading.Barrier(2, timeout=10)
    calls: list[str] = []

    @retryable(3)
    def cross(first: int, second: int) -> None:
        calls.append("call")
        run("SET LOCAL deadlock_timeout = '50ms'")
        run("UPDATE django_counters SET value = value + 1 WHERE id = %s", first)
        if len(calls) <= 2:
            both.wait()
        run("UPDATE django_counters SET value = value + 1 WHERE id = %s", second)

    threads = [threading.Thread(target=cross, args=order) for order in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) >= 3  # on a busy machine the server may find both to blame
    assert monitor.execute("SELECT sum(value) FROM django_counters").fetchone() == (4,)


@pytest.mark.parametrize("attempts", [0, -1, True, "3", 1.5])
def test_attempts_must_be_a_number(attempts: Any) -> None:
    """A wrong number of attempts is told where the view is decorated."""
    with pytest.raises(ValueError, match="at least 1"):
        retryable(attempts)


def test_without_retryable_the_error_is_djangos(rival: Rival) -> None:
    """The control: the same work without the decorator fails."""
    with pytest.raises(OperationalError), transaction.atomic():
        rival.increment()
    assert connections["default"].in_atomic_block is False
