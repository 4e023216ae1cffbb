"""The end of a unit of work ends what other threads have leased for it, whatever they are at, and waits for none."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction
from django_rig import database, eventually, run, write
from test_django_engines import settings_of

from poolkit_django import conf, unit_of_work
from poolkit_django.backends import pools

HERE = "here"


@pytest.fixture(params=["postgresql", "sqlite3", "mysql"])
def engine(request: pytest.FixtureRequest) -> str:
    """Which engine."""
    name: str = request.param
    return name


@pytest.fixture
def here(engine: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An alias of its own with a table, on a pool of three."""
    if engine == "postgresql":
        made = database(request.getfixturevalue("own_dsn"))
    else:
        made = {"ENGINE": f"poolkit_django.backends.{engine}", **settings_of(engine, request)}
    made["OPTIONS"] = {**made.get("OPTIONS", {}), "pool": {"max_size": 3, "timeout": 5}}
    connections.settings[HERE] = connections.configure_settings({"default": {}, HERE: made})[HERE]
    wrapper = connections[HERE]
    run("CREATE TABLE django_notes (word varchar(20) UNIQUE)", using=wrapper)
    wrapper.close()
    yield wrapper
    connections[HERE].close()
    run("DROP TABLE django_notes", using=connections[HERE])
    connections[HERE].close()
    pools.close_database(connections[HERE])
    del connections[HERE], connections.settings[HERE]


class Thread:
    """Another thread, which lives on; what it is asked to do has the context of the one who asks."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def start(self, work: Callable[[], Any]) -> Future[Any]:
        """Begin with some work, and don't wait for it."""
        return self._thread.submit(contextvars.copy_context().run, work)

    def do(self, work: Callable[[], Any]) -> Any:
        """Do some work, and return what it returns."""
        return self.start(work).result(10)

    def end(self) -> None:
        """End the thread."""
        self._thread.shutdown()


@pytest.fixture
def other() -> Iterator[Thread]:
    """A thread beside the unit's own."""
    thread = Thread()
    yield thread
    thread.end()


def leased(here: Any) -> int:
    return int(pools.pool_for(here).stats().out)


def words(here: Any) -> list[str]:
    found = [word for (word,) in run("SELECT word FROM django_notes ORDER BY word", using=here)]
    here.close()
    return found


def a_cursor() -> Any:
    """Run a statement, and leave its cursor open."""
    cursor = connections[HERE].cursor()
    cursor.execute("SELECT 1")
    return cursor


def found() -> dict[str, int]:
    return dict(conf.registry().tally.stray_leases)


_STATEMENTS = {  # close the gate, open it, pass through
    "mysql": (
        "SELECT GET_LOCK('gate', 20)",
        "SELECT RELEASE_LOCK('gate')",
        "SELECT GET_LOCK('gate', 20), RELEASE_LOCK('gate')",
    ),
    "postgresql": ("SELECT pg_advisory_lock(7)", "SELECT pg_advisory_unlock(7)", "SELECT pg_advisory_xact_lock(7)"),
}


class Gate:
    """A statement that ends when somebody opens the gate, and the wrapper that it runs on."""

    def __init__(self, engine: str, here: Any) -> None:
        self._statements = _STATEMENTS.get(engine)
        self._open = threading.Event()
        self._wrapper: Any = None
        if self._statements:
            self._holder = pools.pool_for(here).acquire()
            self._ask(self._statements[0])

    def _ask(self, question: str) -> None:
        cursor = self._holder.resource.cursor()
        cursor.execute(question)
        cursor.fetchall()
        cursor.close()

    def _wait(self) -> int:
        self._open.wait(20)
        return 1

    def pass_through(self) -> list[Any]:
        """Run a statement that waits at the gate."""
        wrapper = self._wrapper = connections[HERE]
        if self._statements:
            return run(self._statements[2], using=wrapper)
        wrapper.ensure_connection()
        wrapper.connection.create_function("gate", 0, self._wait)
        return run("SELECT gate()", using=wrapper)

    def wait_for_somebody(self) -> None:
        """Return when a statement waits at the gate."""
        eventually(lambda: self._wrapper is not None and self._wrapper.running == 1)

    def open(self) -> None:
        """Let the statement end."""
        if not self._open.is_set():
            self._open.set()
            if self._statements:
                self._ask(self._statements[1])
                self._holder.release()


@pytest.fixture
def gate(engine: str, here: Any) -> Iterator[Callable[[], Gate]]:
    """Make a gate, closed."""
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(engine, here))
        return made[-1]

    yield make
    for one in made:
        one.open()


@pytest.mark.parametrize("closed", [False, True], ids=["kept", "dropped"])
def test_a_lease_that_nothing_runs_on_ends_at_once(here: Any, other: Thread, closed: bool) -> None:  # noqa: FBT001
    """A cursor that somebody keeps is refused from then on; the thread leases anew for the next one."""
    before = found()
    with unit_of_work():
        cursor = other.do(a_cursor)
        assert leased(here) == 1
        if closed:
            del cursor
    assert leased(here) == 0
    assert found().get("idle", 0) - before.get("idle", 0) == 1
    if not closed:
        with pytest.raises(InterfaceError, match="went back to the pool"):
            other.do(lambda: cursor.execute("SELECT 1"))
    assert other.do(lambda: run("SELECT 2", using=connections[HERE])) == [(2,)]


def test_a_running_statement_ends_and_then_its_lease_does(
    here: Any, other: Thread, gate: Callable[[], Gate], caplog: pytest.LogCaptureFixture
) -> None:
    """The end of the unit does not wait for it, says once which work it was, and the thread gets its answer."""
    before = found()
    for _ in range(2):
        door = gate()
        with caplog.at_level(logging.WARNING, "poolkit"), unit_of_work(f"invoices on {here.vendor}"):
            answer = other.start(door.pass_through)
            door.wait_for_somebody()
        assert not answer.done()
        door.open()
        assert len(answer.result(10)) == 1
        eventually(lambda: leased(here) == 0)
    said = [text for text in caplog.messages if "invoices on" in text]
    assert len(said) == 1
    assert all("was running a statement on 'here'" in text for text in said)
    assert found()["statement"] - before.get("statement", 0) == 2


@pytest.mark.parametrize("then", ["commits", "asks", "asks a cursor it has", "enters a block"])
def test_a_transaction_is_rolled_back_and_the_thread_is_told(
    then: str, here: Any, other: Thread, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is saved, the lease ends at once, and neither a statement nor the COMMIT looks like success."""
    wrote, ended = threading.Event(), threading.Event()

    def work() -> None:
        with transaction.atomic(using=HERE):
            with transaction.atomic(using=HERE):
                write("lost", using=connections[HERE])
            cursor = connections[HERE].cursor()
            wrote.set()
            assert ended.wait(10)
            if then == "asks":
                write("never", using=connections[HERE])
            if then == "asks a cursor it has":
                cursor.execute("INSERT INTO django_notes VALUES ('never')")
            if then == "enters a block":
                with transaction.atomic(using=HERE):
                    write("never", using=connections[HERE])

    with caplog.at_level(logging.WARNING, "poolkit"), unit_of_work(f"orders that {then} on {here.vendor}"):
        answer = other.start(work)
        assert wrote.wait(10)
    assert leased(here) == 0
    ended.set()
    with pytest.raises(OperationalError, match="was rolled back when its unit of work ended"):
        answer.result(10)
    assert any("was in a transaction on 'here'" in text for text in caplog.messages)
    assert words(here) == []

    def afresh() -> None:
        with transaction.atomic(using=HERE):
            write("kept", using=connections[HERE])

    other.do(afresh)
    with unit_of_work():
        other.do(lambda: write("also", using=connections[HERE]))
    assert words(here) == ["also", "kept"]
    assert leased(here) == 0


def test_a_statement_in_a_transaction_is_hung_up_on(here: Any, other: Thread, gate: Callable[[], Gate]) -> None:
    """Where a statement is running in it the end waits no more than else, and nothing is saved."""
    door = gate()

    def work() -> None:
        with transaction.atomic(using=HERE):
            write("lost", using=connections[HERE])
            door.pass_through()

    with unit_of_work():
        answer = other.start(work)
        door.wait_for_somebody()
    door.open()
    with pytest.raises(DatabaseError):
        answer.result(10)
    eventually(lambda: leased(here) == 0)
    assert words(here) == []


def test_a_block_that_a_generator_keeps_open_does_not_spoil_the_thread(here: Any, other: Thread) -> None:
    """Work of another unit in the thread begins afresh: it is in nobody's transaction."""

    def rows() -> Iterator[int]:
        with transaction.atomic(using=HERE):
            write("lost", using=connections[HERE])
            yield 1
            yield 2

    kept = rows()
    with unit_of_work():
        other.do(lambda: next(kept))
    assert leased(here) == 0

    def saves() -> None:
        with transaction.atomic(using=HERE):
            write("kept", using=connections[HERE])

    with unit_of_work():
        other.do(saves)
        assert not other.do(lambda: connections[HERE].in_atomic_block)
    assert words(here) == ["kept"]
    other.do(kept.close)


def test_a_block_that_outlives_its_own_unit_does_not_spoil_its_thread(here: Any) -> None:
    """The same in the unit's own thread, for a block that was entered after the COMMIT."""

    def rows() -> Iterator[int]:
        with transaction.atomic(using=HERE):
            write("lost", using=connections[HERE])
            yield 1

    kept = rows()
    with unit_of_work() as unit:
        unit.commit()
        next(kept)
    assert leased(here) == 0
    with unit_of_work():
        write("kept", using=connections[HERE])
    assert words(here) == ["kept"]
    kept.close()


def test_two_units_in_one_thread_have_a_lease_each(here: Any, other: Thread) -> None:
    """What one leaves leased in a thread is not the other's: neither its session nor its end."""
    contexts = [contextvars.copy_context() for _ in range(2)]
    units = [unit_of_work(f"unit {number}") for number in range(2)]
    own = [Thread() for _ in range(2)]
    for thread, context, unit in zip(own, contexts, units, strict=True):
        thread.do(lambda context=context, unit=unit: context.run(unit.__enter__))
    first = other.do(lambda: contexts[0].run(a_cursor))
    taken = other.do(lambda: connections[HERE].lease)
    second = other.do(lambda: contexts[1].run(a_cursor))
    assert other.do(lambda: connections[HERE].lease) is not taken
    assert leased(here) == 1
    own[0].do(lambda: contexts[0].run(units[0].__exit__, None, None, None))
    assert leased(here) == 1
    assert other.do(lambda: contexts[1].run(lambda: second.execute("SELECT 2"))) is not first
    own[1].do(lambda: contexts[1].run(units[1].__exit__, None, None, None))
    assert leased(here) == 0
    for thread in own:
        thread.end()


def test_what_is_leased_after_the_end_and_dropped_is_ended_by_the_next(here: Any, other: Thread) -> None:
    """A thread of work that is over drops a cursor without closing it: it keeps nobody from a connection."""
    with unit_of_work():
        context = contextvars.copy_context()
    other.do(lambda: context.run(lambda: a_cursor() and None))
    assert leased(here) == 1
    others = [pools.pool_for(here).acquire() for _ in range(2)]
    assert run("SELECT 3", using=here) == [(3,)]
    here.close()
    for lease in others:
        lease.release()
    assert leased(here) == 0


def test_what_is_leased_after_the_end_and_used_is_left_alone(here: Any, other: Thread) -> None:
    """A cursor that is still open, or a transaction, is in use, though no end comes by."""
    with unit_of_work():
        context = contextvars.copy_context()
    cursor = other.do(lambda: context.run(a_cursor))
    with unit_of_work():
        pass
    assert leased(here) == 1
    other.do(lambda: context.run(lambda: cursor.execute("SELECT 4")))
    other.do(lambda: context.run(cursor.close))
    assert leased(here) == 0


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_commit_under_way_is_let_through(here: Any, other: Thread) -> None:
    """A COMMIT is never hung up on: its outcome would be unknown. The lease ends after it."""
    run(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock(8); RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON django_notes DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION wait()",
        using=here,
    )
    here.close()
    holder = pools.pool_for(here).acquire()
    holder.resource.execute("SELECT pg_advisory_lock(8)")
    at_work: list[Any] = []

    def work() -> None:
        at_work.append(connections[HERE])
        with transaction.atomic(using=HERE):
            write("kept", using=connections[HERE])

    with unit_of_work():
        answer = other.start(work)
        eventually(lambda: at_work and at_work[0].committing)
    assert not answer.done()
    holder.resource.execute("SELECT pg_advisory_unlock(8)")
    holder.release()
    answer.result(10)
    eventually(lambda: leased(here) == 0)
    assert words(here) == ["kept"]
