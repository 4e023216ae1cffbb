"""atomic() of one query is two round trips: BEGIN rides with it, on Django's own cursors as on any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.http import HttpResponse
from django_rig import MakeSite, Rows, run, write

from poolkit.testing import FaultProxy
from poolkit_django import release
from poolkit_django.backends import pools

pytestmark = pytest.mark.psycopg3
Trips = Callable[[Callable[[], object]], int]


@pytest.fixture
def trips(dsn: str) -> Iterator[Trips]:
    """Count the round trips of some work; Django's connection goes through a proxy meanwhile."""
    with FaultProxy(dsn) as proxy:
        yield from _through(proxy)


def _through(proxy: FaultProxy) -> Iterator[Trips]:
    settings = connection.settings_dict
    before = {name: settings[name] for name in ("HOST", "PORT")}
    connection.close()
    host, port = proxy.address
    settings.update(HOST=host, PORT=str(port))
    run("SELECT 1")

    def count(work: Callable[[], object]) -> int:
        start = proxy.round_trips
        work()
        return proxy.round_trips - start

    try:
        yield count
    finally:
        connection.close()
        pools.retire(connections["default"])  # type: ignore[arg-type]
        settings.update(before)


def _atomic(*queries: str) -> Callable[[], None]:
    @transaction.atomic
    def work() -> None:
        for query in queries:
            run(query)

    return work


def test_atomic_costs_its_queries_and_one(trips: Trips) -> None:
    """None costs nothing, n cost n + 1; also with parameters, which Django's cursors put into the text."""
    assert trips(_atomic()) == 0
    assert trips(_atomic("SELECT 1")) == 2
    assert trips(_atomic("SELECT 1", "SELECT 2")) == 3
    with transaction.atomic():
        assert trips(lambda: run("SELECT %s || %s", "a;b", "$1")) == 1
    assert trips(lambda: run("SELECT 1")) == 1


def test_server_side_binding(trips: Trips) -> None:
    """The other kind of Django's cursors as well."""
    options = connection.settings_dict["OPTIONS"]
    connection.close()
    options["server_side_binding"] = True
    try:
        run("SELECT 1")
        assert trips(_atomic("SELECT 1")) == 2
    finally:
        connection.close()
        pools.retire(connections["default"])  # type: ignore[arg-type]
        del options["server_side_binding"]


def test_option(trips: Trips) -> None:
    """OPTIONS["fold_begin"] turns it off, and is not handed to libpq."""
    options = connection.settings_dict["OPTIONS"]
    connection.close()
    options["fold_begin"] = False
    try:
        run("SELECT 1")
        assert trips(_atomic("SELECT 1")) == 3
    finally:
        connection.close()
        pools.retire(connections["default"])  # type: ignore[arg-type]
        del options["fold_begin"]


def test_a_view_of_one_query(trips: Trips, site: MakeSite, kind: str) -> None:
    """With ATOMIC_REQUESTS alone, and in poolkit's unit of work, a request of one query is two round trips."""

    def view(_: object) -> HttpResponse:
        return HttpResponse(str(run("SELECT 1")))

    if kind == "asgi":
        pytest.skip("its views run in another thread, whose connection is another; what they send is the same")
    served = site(view)
    served.get("/view")
    assert trips(lambda: served.get("/view")) == 2
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        served = site(view, MIDDLEWARE=[])
        assert trips(lambda: served.get("/view")) == 2
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False


def _fail() -> None:
    with transaction.atomic():
        write("lost")
        raise LookupError


def test_rollback_undoes_the_first(rows: Rows) -> None:
    """What rode with BEGIN is inside: an error, set_rollback and a failing savepoint undo as ever."""
    with pytest.raises(LookupError):
        _fail()
    with transaction.atomic():
        write("lost")
        transaction.set_rollback(True)
    with transaction.atomic():
        with pytest.raises(LookupError):
            _fail()  # its SAVEPOINT is the first statement
        write("kept")
    assert (rows("lost"), rows("kept")) == (0, 1)


def test_errors_of_the_first(rows: Rows) -> None:
    """An error of the first statement is its own, breaks the block, and nothing is saved."""
    write("one")
    run("INSERT INTO django_counters VALUES (1, 0)")
    with pytest.raises(IntegrityError), transaction.atomic():
        run("INSERT INTO django_counters VALUES (1, 0)")
    with pytest.raises(DatabaseError), transaction.atomic():
        run("SELECT 1; SELEC 2")
    assert run("SELECT value FROM django_counters") == [(0,)]
    assert rows("one") == 1


def test_hooks_durable_and_iterators(rows: Rows) -> None:
    """on_commit runs after the COMMIT, durable blocks are outermost, and a named cursor opens in the transaction."""
    seen: list[int] = []
    with transaction.atomic(durable=True):
        with connection.chunked_cursor() as cursor:  # a named cursor: its DECLARE is the first statement
            cursor.execute("SELECT generate_series(1, 3)")
            assert cursor.fetchall() == [(1,), (2,), (3,)]
        write("kept")
        transaction.on_commit(lambda: seen.append(rows("kept")))
        assert seen == []
    assert seen == [1]


def test_autocommit_by_hand(rows: Rows) -> None:
    """Autocommit that is turned off begins with the first statement, and may be turned on again before any."""
    transaction.set_autocommit(False)
    transaction.set_autocommit(True)
    transaction.set_autocommit(False)
    try:
        write("lost")
        transaction.rollback()
        write("kept")
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
        release()
    assert (rows("lost"), rows("kept")) == (0, 1)
