"""What views and threads do that they should not: nothing is lost in silence, and no connection stays behind."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, connection, connections, transaction
from django_rig import Rows, out, run, write

from poolkit import CommitFailed
from poolkit_django import unit_of_work
from poolkit_django.backends import pools


def test_a_block_that_was_not_left_is_no_commit(rows: Rows) -> None:
    """A generator that waits inside of an atomic() of its own: the unit says so, and the thread is as good as new."""

    def body() -> Iterator[int]:
        with transaction.atomic():
            write("left open")
            yield 1
            yield 2

    kept = body()
    with pytest.raises(CommitFailed, match="entered and not left"), unit_of_work():
        next(kept)
    assert not connection.in_atomic_block
    assert connection.lease is None
    assert rows("left open") == 0
    with unit_of_work():
        write("after")
    assert rows("after") == 1
    kept.close()


def test_a_block_of_earlier_work_that_is_left_in_a_later_unit(rows: Rows) -> None:
    """Django takes its end for that of the block that is open then, and rolls back: the unit tells."""

    def body() -> Iterator[int]:
        with transaction.atomic():
            yield 1

    kept = body()
    with pytest.raises(CommitFailed, match="entered and not left"), unit_of_work():
        next(kept)
    with pytest.raises(CommitFailed, match="ended from outside"), unit_of_work():  # noqa: PT012
        write("lost")
        kept.close()
    assert rows("lost") == 0
    assert connection.lease is None
    with unit_of_work():
        write("after")
    assert rows("after") == 1


def test_rolled_back_with_a_block_that_was_not_left(rows: Rows) -> None:
    """An error that leaves such a view is the error, and nothing of it is saved."""
    stack = contextlib.ExitStack()
    with pytest.raises(ZeroDivisionError), unit_of_work():  # noqa: PT012
        stack.enter_context(transaction.atomic())
        stack.enter_context(transaction.atomic())
        write("left open")
        raise ZeroDivisionError
    assert not connection.in_atomic_block
    assert connection.lease is None
    assert rows("left open") == 0


def test_an_iteration_under_way_stops_with_its_lease() -> None:
    """A server-side cursor that is half read asks for no more rows in a stranger's transaction."""
    with unit_of_work():
        cursor = connection.chunked_cursor()
        cursor.execute("SELECT generate_series(1, 1000)")
        found = iter(cursor)
        assert next(found) == (1,)
    with transaction.atomic():
        run("SELECT 1")
        with pytest.raises(InterfaceError, match="went back to the pool"):
            list(found)
        assert run("SELECT 1") == [(1,)]
    cursor.close()


def test_an_iteration_to_its_end() -> None:
    """With its lease it reads all rows, over several round trips."""
    with unit_of_work(), connection.chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 250)")
        assert [number for (number,) in cursor] == list(range(1, 251))


def test_a_hook_that_raises_keeps_no_connection() -> None:
    """In a thread that nobody visits at the end: the transaction is over, so the connection goes back."""
    found: list[Any] = []

    def boom() -> None:
        raise ZeroDivisionError

    def work() -> None:
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            run("SELECT 1")
            transaction.on_commit(boom)
        found.append((connection.lease, out()))

    with unit_of_work():
        context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,))
    thread.start()
    thread.join()
    assert found == [(None, 0)]


def test_a_wrapper_of_another_thread_is_refused_before_it_leases(rows: Rows) -> None:
    """So that the end of that thread does not take away what the owner is at work with."""
    wrapper = connections["default"]
    wrapper.close()
    refused, go = threading.Event(), threading.Event()

    def misuse() -> None:
        with contextlib.suppress(DatabaseError):
            wrapper.cursor()
        refused.set()
        go.wait(10)

    thread = threading.Thread(target=misuse)
    thread.start()
    assert refused.wait(10)
    assert wrapper.lease is None
    with transaction.atomic():
        write("kept")
        go.set()
        thread.join()
    assert rows("kept") == 1


def test_a_connection_set_to_none_by_hand() -> None:
    """Some do that to have a new one; the old one is closed and not lent again."""
    ((before,),) = run("SELECT pg_backend_pid()")
    connection.connection = None
    assert run("SELECT pg_backend_pid()") != [(before,)]
    assert out() == 1
    connection.close()
    assert out() == 0


def test_nested_options_changed_in_place(fresh_pools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPTIONS["pool"] of a running process is read anew by the next connect: there is another pool."""
    run("SELECT 1")
    connection.close()
    monkeypatch.setitem(connection.settings_dict["OPTIONS"]["pool"], "max_size", 2)
    run("SELECT 1")
    assert pools.pool_for(connections["default"]).config.max_size == 2
    connection.close()
    pools.close_all(0)


@pytest.mark.parametrize("how", ["unit", "atomic", "autocommit"])
def test_closed_by_another_thread(how: str, rows: Rows) -> None:
    """Django's refusal, and nothing changes: the connection is in use where it was taken."""
    refused: list[BaseException] = []

    def close(wrapper: Any) -> None:
        try:
            wrapper.close()
        except DatabaseError as error:
            refused.append(error)

    block = {"unit": unit_of_work, "atomic": transaction.atomic}.get(how, contextlib.nullcontext)
    with block():
        run("SELECT 1")
        session = connection.connection
        thread = threading.Thread(target=close, args=(connections["default"],))
        thread.start()
        thread.join()
        assert connection.connection is session
        write("closed elsewhere")
    assert "created in a thread" in str(refused[0]) or "same thread" in str(refused[0])
    assert rows("closed elsewhere") == 1
    connection.close()
    assert out() == 0
