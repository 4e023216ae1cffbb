"""queryset.iterator() on PostgreSQL: server-side cursors in and out of a transaction, left early, and switched off."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import DataError, InterfaceError, connection, models, transaction
from django.http import HttpRequest, HttpResponse
from django_rig import ABORTED, Site, eventually, out, run

from poolkit_django import early, release, unit_of_work
from poolkit_django.backends import pools
from poolkit_django.backends.pooled import Pooled

CHUNK = 10
COUNT = 25


@cache  # a model can't be made before Django is configured
def counters() -> Any:
    """Return the manager of the tests' table."""

    class Counter(models.Model):
        value = models.IntegerField()

        class Meta:
            app_label = "tests_of_iterators"
            managed = False
            db_table = "django_counters"

        def __str__(self) -> str:
            return str(self.value)

    return Counter.objects


@pytest.fixture(autouse=True)
def _counters(rows: Any, monitor: psycopg.Connection[Any]) -> None:
    monitor.execute("INSERT INTO django_counters SELECT number, number FROM generate_series(1, %s) number", (COUNT,))


def values(queryset: Any = None) -> Iterator[int]:
    """Iterate in chunks of less than there is."""
    queryset = counters() if queryset is None else queryset
    return (counter.value for counter in queryset.order_by("id").iterator(chunk_size=CHUNK))


def session() -> int:
    """Which session serves."""
    (row,) = run("SELECT pg_backend_pid()")
    return int(row[0])


def next_session() -> int:
    """Which one serves next. One whose reset is read in the background at that moment would be passed over."""
    eventually(lambda: pools.pool_for(connection).stats().resetting == 0)
    return session()


def cursors() -> int:
    """How many cursors the server has for this session."""
    (row,) = run("SELECT count(*) FROM pg_cursors WHERE name LIKE '\\_django\\_curs\\_%%'")
    return int(row[0])


ALL = list(range(1, COUNT + 1))


@pytest.mark.parametrize("block", [unit_of_work, transaction.atomic, transaction.mark_for_rollback_on_error])
def test_chunks(block: Any) -> None:
    """All rows come once, from a cursor on the server, while other queries run between the chunks."""
    with block():
        found = values()
        first = next(found)
        assert cursors() == 1
        assert [first, *((value, counters().count())[0] for value in found)] == ALL
        assert cursors() == 0
    connection.close()
    assert out() == 0


def test_autocommit() -> None:
    """Outside of a transaction the cursor is WITH HOLD, and survives the commits between its chunks."""
    found = values()
    assert next(found) == 1
    with transaction.atomic():
        counters().filter(id=COUNT).update(value=0)
    assert cursors() == 1
    assert list(found) == ALL[1:]  # as of when it was opened
    assert cursors() == 0


def test_abandoned_midway() -> None:
    """One that is left in the middle closes its cursor, as soon as nobody has it any more."""
    found = values()
    assert next(found) == 1
    assert cursors() == 1
    del found
    gc.collect()
    assert cursors() == 0


def test_abandoned_and_given_back() -> None:
    """One that is left open while its connection goes back leaves no cursor to the next borrower of the session."""
    found = values()
    assert next(found) == 1
    before = session()
    connection.close()
    assert out() == 0
    assert (next_session(), cursors()) == (before, 0)
    connection.close()
    with pytest.raises(InterfaceError, match="went back to the pool"):
        list(found)


def test_without_an_open_one_the_way_back_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an abandoned cursor costs a round trip when the connection goes back; one that was read does not."""
    asked: list[Any] = []
    close = Pooled.close_held_cursors

    def noted(conn: Any) -> bool:
        asked.append(conn)
        return close(conn)

    monkeypatch.setattr(Pooled, "close_held_cursors", staticmethod(noted))
    assert list(values()) == ALL
    connection.close()
    found = values()
    next(found)
    found.close()  # type: ignore[attr-defined]
    connection.close()
    assert asked == []
    found = values()
    next(found)
    connection.close()
    assert len(asked) == 1


def test_closed_in_an_aborted_transaction() -> None:
    """In an aborted transaction psycopg sends no CLOSE: the cursor is closed when the connection goes back."""
    found = values()
    assert next(found) == 1
    before = session()
    with transaction.atomic():
        with pytest.raises(DataError):
            run(ABORTED)
        found.close()  # type: ignore[attr-defined]
        transaction.set_rollback(True)
    assert cursors() == 1
    connection.close()
    assert (next_session(), cursors()) == (before, 0)


@pytest.mark.parametrize("statement", ["SELECT 1", ABORTED])
def test_given_back_in_the_middle_of_a_transaction(statement: str) -> None:
    """A transaction that is open, or aborted, is rolled back first: it would refuse to close the cursor."""
    found = values()
    assert next(found) == 1
    before = session()
    connection.set_autocommit(False)
    with suppress(DataError):
        run(statement)
    connection.close()
    assert out() == 0
    assert (next_session(), cursors()) == (before, 0)


def test_its_session_was_killed(monitor: psycopg.Connection[Any]) -> None:
    """Where the cursor can't be closed, the connection is discarded in silence."""
    found = values()
    assert next(found) == 1
    before = session()
    monitor.execute("SELECT pg_terminate_backend(%s, 5000)", (before,))
    connection.close()
    assert out() == 0
    assert session() != before


@pytest.mark.psycopg3
def test_while_another_thread_uses_its_connection() -> None:
    """The way back does not wait for whoever is inside of the connection: it is discarded."""
    found = values()
    assert next(found) == 1
    before = session()
    inside, leave = threading.Event(), threading.Event()

    def use(lock: Any) -> None:
        with lock:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=use, args=(connection.connection.lock,))
    thread.start()
    assert inside.wait(10)
    connection.close()
    assert out() == 0
    assert thread.is_alive()
    leave.set()
    thread.join()
    assert session() != before


def test_interrupted_on_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while the cursor is being closed passes through, and the connection is not lent again."""

    def interrupted(_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pooled, "close_held_cursors", staticmethod(interrupted))
    found = values()
    assert next(found) == 1
    before = session()
    with pytest.raises(KeyboardInterrupt):
        connection.close()
    assert out() == 0
    assert session() != before


def test_over_the_end_of_its_unit() -> None:
    """An iterator taken out of its unit of work can't go on, and says why: what it would read is another's."""
    with unit_of_work():
        found = values()
        assert next(found) == 1
    with pytest.raises(InterfaceError, match="went back to the pool"):
        list(found)


@pytest.mark.psycopg3
def test_closed_by_another_thread() -> None:
    """A thread that drops another's iterator says nothing to the server: the connection may be in use, or a stranger's.

    Its own thread has the cursor closed, when it gives the connection back.
    """
    found = [values()]
    assert next(found[0]) == 1
    before = session()
    thread = threading.Thread(target=found.clear)
    with connection.connection.lock:  # in use: who said something would wait for ever
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert cursors() == 1
    connection.close()
    assert (next_session(), cursors()) == (before, 0)


def test_release_between_chunks(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """release() in the middle of one keeps the connection, and says why, once; the iterator goes on."""
    monkeypatch.setattr(early, "_said", set())  # another test may have heard it
    found = values()
    assert next(found) == 1
    assert release() is False
    assert "a server-side cursor is open" in caplog.text
    assert list(found) == ALL[1:]
    assert release() is True
    assert out() == 0


def test_forgotten_in_a_thread() -> None:
    """A thread that ends with one in the middle gives its connection back, without the cursor."""
    kept: list[Any] = []

    def read() -> None:
        kept.append(values())
        next(kept[0])

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert out() == 0
    assert cursors() == 0


@pytest.mark.psycopg3
def test_forgotten_by_hand() -> None:
    """A cursor of chunked_cursor() that nobody closes is gone with its connection, not the next borrower's."""
    cursor = connection.chunked_cursor()
    cursor.execute("SELECT * FROM django_counters")
    with pytest.warns(ResourceWarning):
        del cursor
    assert cursors() == 1
    connection.close()
    assert cursors() == 0


def test_in_a_thread() -> None:
    """In a thread that nobody visits the connection stays for all chunks, and goes back with the last row."""
    seen: list[Any] = []

    def read() -> None:
        seen.append(list(values()))
        connection.close()
        seen.append(out())

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert seen == [ALL, 0]


@pytest.mark.parametrize("around", [lambda view: view, transaction.non_atomic_requests])
@pytest.mark.parametrize("leave", [COUNT, 3], ids=["read", "abandoned"])
def test_in_an_async_view(around: Any, leave: int) -> None:
    """aiterator() in a unit of work and in autocommit, read or left in the middle: no cursor and no lease stays."""
    sessions: list[int] = []

    async def show(_: HttpRequest) -> HttpResponse:
        seen = []
        async for counter in counters().order_by("id").aiterator(chunk_size=2):
            seen.append(counter.value)
            await asyncio.sleep(0)
            if len(seen) == leave:
                break
        sessions.append(await sync_to_async(session)())
        return HttpResponse(str(seen))

    with Site("asgi", {"show": around(show)}) as site:
        for _ in range(3):
            assert site.get("/show").body == str(ALL[:leave]).encode()
            assert out() == 0
    assert (len(set(sessions)), session()) == (1, sessions[0])
    assert cursors() == 0


def test_two_at_once() -> None:
    """Two iterators on one connection, interleaved."""
    with transaction.atomic():
        assert list(zip(values(), values(counters().filter(value__gt=0)), strict=True)) == list(
            zip(ALL, ALL, strict=True)
        )


def test_an_error_between_chunks() -> None:
    """A failed block inside of a transaction takes nothing from an iterator that was opened before it."""
    with transaction.atomic():
        found = values()
        assert next(found) == 1
        with pytest.raises(DataError), transaction.atomic():
            run(ABORTED)
        assert list(found) == ALL[1:]


def test_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """DISABLE_SERVER_SIDE_CURSORS: all is fetched at once, so it can be read on after the connection went back."""
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    found = values()
    assert next(found) == 1
    assert cursors() == 0
    connection.close()
    assert out() == 0
    assert list(found) == ALL[1:]
