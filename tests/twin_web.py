"""Random requests to a web app, moved on step by step in an order that the test says.

An app's view asks its `Visit` for the steps, one after the other, and notes the answer of each. A step is a statement,
or the name of one of `ACTIONS`. The test holds every request before each of its steps and before its end, and lets one
go at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from twin_rig import Batch, Program, batches, differing, hunt, moves

__all__ = ["ACTIONS", "COMMON", "FAILS", "MYSQL", "POSTGRES", "ROWS", "SQLITE", "WHO", "WRITE", "Visit", "WebTwins"]

WHO = "4711"  # in the text of a statement: a number that only the request has that runs it
LONGEST = 30.0  # seconds a step may take
FAILS = "SELECT nothing"
WRITE = f"INSERT INTO web_twin_rows VALUES ({WHO}, 'written')"
ROWS = f"SELECT count(*) FROM web_twin_rows WHERE who = {WHO}"
# What an app's view makes of these names is its own: each raises, ends a transaction, or goes on in the body.
ACTIONS = ["raise", "commit", "rollback", "unit commit", "doom", "stream", "stream in one transaction"]
SAVEPOINTS = (
    ("SAVEPOINT mine",),
    ("RELEASE SAVEPOINT mine",),
    ("ROLLBACK TO SAVEPOINT mine",),
    ("SAVEPOINT mine", FAILS, "ROLLBACK TO SAVEPOINT mine"),
    ("SAVEPOINT mine", WRITE, "RELEASE SAVEPOINT mine"),
)
WRITES = ((WRITE,), (ROWS,))
COMMON = [(WRITE,), (ROWS,), (FAILS,), *((name,) for name in ACTIONS)]


def _shown(look: str, *changes: str) -> tuple[tuple[str, ...], ...]:
    return (*((change,) for change in changes), (look,))


POSTGRES = [
    SAVEPOINTS,
    _shown("SELECT current_setting('work_mem')", "SET work_mem = '71kB'", "SET LOCAL work_mem = '72kB'"),
    _shown("SELECT coalesce(current_setting('kind.tenant', true), '')", "SELECT set_config('kind.tenant', 'a', false)"),
    _shown("SHOW search_path", "SET search_path = pg_catalog", "SET search_path = public, pg_temp"),
    _shown("SHOW timezone", "SET TIME ZONE 'Asia/Tokyo'", "RESET ALL"),
    _shown("SELECT current_user", "SET ROLE pg_monitor", "RESET ROLE"),
    _shown("SELECT session_user", "SET SESSION AUTHORIZATION pg_monitor"),
    _shown("SHOW default_transaction_isolation", "SET default_transaction_isolation = 'repeatable read'"),
    _shown(
        "SHOW default_transaction_read_only", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET TRANSACTION READ ONLY",
    ),
    _shown("SELECT * FROM mine", "CREATE TEMP TABLE mine (i int)", "INSERT INTO mine VALUES (1)"),
    _shown("EXECUTE mine", "PREPARE mine AS SELECT 1", "DEALLOCATE ALL"),
    _shown("FETCH mine", "DECLARE mine CURSOR WITH HOLD FOR SELECT 1", "CLOSE ALL"),
    _shown("SELECT count(*) FROM pg_listening_channels()", "LISTEN mine", "UNLISTEN *"),
    _shown(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        f"SELECT pg_advisory_lock({WHO})", f"SELECT pg_advisory_xact_lock({WHO})",
    ),
    _shown("SELECT lastval() > 0", "SELECT nextval('twin_numbers') > 0"),
]  # fmt: skip

MYSQL = [
    SAVEPOINTS,
    _shown("SELECT @@wait_timeout", "SET SESSION wait_timeout = 91"),
    _shown("SELECT @@sql_mode", "SET sql_mode = 'ANSI_QUOTES'"),
    _shown("SELECT @@time_zone", "SET time_zone = '+09:00'"),
    _shown("SELECT @@character_set_client", "SET NAMES latin1"),
    _shown("SELECT @@tx_isolation", "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"),
    _shown("SELECT @@tx_read_only", "SET SESSION TRANSACTION READ ONLY"),
    _shown("SELECT @@autocommit", "SET autocommit = 0", "SET autocommit = 1"),
    _shown("SELECT @mine", "SET @mine = 1", "SELECT @mine := 2"),
    _shown("SELECT database() = 'information_schema'", "USE information_schema"),
    _shown("SELECT * FROM mine", "CREATE TEMPORARY TABLE mine (i int)", "INSERT INTO mine VALUES (1)"),
    _shown("EXECUTE mine", "PREPARE mine FROM 'SELECT 1'"),
    _shown(f"SELECT is_used_lock('kind_{WHO}') = connection_id()", f"SELECT get_lock('kind_{WHO}', 9)"),
]

SQLITE = [
    _shown("PRAGMA foreign_keys", "PRAGMA foreign_keys = OFF"),
    _shown("PRAGMA cache_size", "PRAGMA cache_size = 77"),
    _shown("PRAGMA query_only", "PRAGMA query_only = ON"),
    _shown("PRAGMA recursive_triggers", "PRAGMA recursive_triggers = ON"),
    _shown("SELECT * FROM mine", "CREATE TEMP TABLE mine (i int)", "INSERT INTO mine VALUES (1)"),
    _shown("SELECT name FROM pragma_database_list", "ATTACH ':memory:' AS mine"),
    _shown("SELECT 'a' LIKE 'A'", "PRAGMA case_sensitive_like = ON"),
]


class Turns:
    """Steps that are awaited. Not a generator: one that a view leaves half way would be closed by a later task."""

    def __init__(self, steps: tuple[Any, ...], pause: Callable[[], Awaitable[None]]) -> None:
        self._steps, self._pause = iter(steps), pause

    def __aiter__(self) -> AsyncIterator[tuple[str, ...]]:
        return self

    async def __anext__(self) -> tuple[str, ...]:
        await self._pause()
        for step in self._steps:
            return step  # type: ignore[no-any-return]
        raise StopAsyncIteration


class Visit:
    """One request on its way: what it is to do, what it was answered, and how it ended."""

    def __init__(self, steps: tuple[Any, ...], key: int) -> None:
        self.steps = steps
        self.key = key
        self.answers: list[object] = []
        self.outcome: object = None
        self.over = False
        self._given_up = False
        self._arrived = threading.Semaphore(0)
        self._go = threading.Semaphore(0)
        self._wake: Callable[[], object] = self._go.release

    def statements(self, step: tuple[str, ...]) -> list[str]:
        """Give the statements of a step the request's own number."""
        return [statement.replace(WHO, f"{self.key}{WHO}") for statement in step]

    def taken(self) -> Iterator[tuple[str, ...]]:
        """Give the steps to a view, each when its turn has come."""
        for step in self.steps:
            self._pause()
            yield step
        self._pause()

    def ataken(self) -> AsyncIterator[tuple[str, ...]]:
        """Give the steps to a coroutine, which lets the loop go on meanwhile."""
        return Turns(self.steps, self._apause)

    def _pause(self) -> None:
        self._wake = self._go.release
        self._arrived.release()
        self._go.acquire()
        self._check()

    async def _apause(self) -> None:
        loop, go = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(go.set)
        self._arrived.release()
        await go.wait()
        self._check()

    def _check(self) -> None:
        if self._given_up:
            raise RuntimeError("the test has failed")

    def give_up(self) -> None:
        """End the request where it stands: the test has failed."""
        self._given_up = True
        self._wake()

    def serve(self, client: Callable[[str], object]) -> None:
        """Send the request to the app, and read its answer; runs beside the test."""
        try:
            self.outcome = client(f"/{self.key}")
        finally:
            self.end()

    def end(self) -> None:
        """Tell the test that the request has ended."""
        self.over = True
        self._arrived.release()

    def arrive(self) -> None:
        """Wait until the request stands before its next step, or has ended."""
        assert self._arrived.acquire(timeout=LONGEST), f"{self.steps} stands after {self.answers}"

    def go(self) -> None:
        """Let it take one step."""
        if not self.over:
            self._wake()
            self.arrive()


class WebTwins:
    """Runs batches on an app, and each request alone on an app of its own.

    `make(size, visits, reset)` starts an app on a pool of that size. The app's view finds its visit by the number in
    its path. `make` gives a function that starts a visit beside the test, and one that stops the app.
    `saved` lists a number's rows.
    """

    def __init__(
        self,
        make: Callable[[int, dict[int, Visit], str], tuple[Callable[[Visit], Future[None]], Callable[[], None]]],
        saved: Callable[[int], object],
    ) -> None:
        self._make, self._saved = make, saved
        self._reset = "auto"
        self._known: dict[tuple[Any, ...], object] = {}
        self._keys = itertools.cycle(range(1, 200_000))

    def run(self, programs: int, topics: Any, common: Any, *, alone: Any = (), fixed: bool = False) -> None:
        """Run so many programs: see `batches` and `hunt`."""
        hunt(self._check, batches(topics, common, alone=alone), programs, fixed=fixed)

    def fail_without_resets(self, topics: Any, common: Any) -> None:
        """See that the programs tell an app apart whose pool passes sessions on as they are."""
        self._reset = "off"
        with pytest.raises(AssertionError, match="and alone"):
            self.run(200, topics, common, fixed=True)

    def _check(self, batch: Batch) -> None:
        for steps in batch.requests:
            self._alone(steps)  # before: what an app is set to may be the process's
        visits: dict[int, Visit] = {}
        start, stop = self._make(batch.size, visits, self._reset)
        try:
            for program in batch.programs:
                requests = [batch.requests[number] for number in program.requests]
                got = self._play(program, batch.size, requests, visits, start)
                differing(batch, program, got, self._alone)
        finally:
            stop()

    def _alone(self, steps: tuple[Any, ...]) -> object:
        if steps not in self._known:
            visits: dict[int, Visit] = {}
            start, stop = self._make(1, visits, "auto")
            try:
                (self._known[steps],) = self._play(Program((0,), (0,)), 1, [steps], visits, start)
            finally:
                stop()
        return self._known[steps]

    def _play(
        self,
        program: Program,
        size: int,
        steps: list[tuple[Any, ...]],
        visits: dict[int, Visit],
        start: Callable[[Visit], Future[None]],
    ) -> list[object]:
        played = [Visit(each, next(self._keys)) for each in steps]
        futures = []
        try:
            for move, place in moves(program, size, [len(each) for each in steps]):
                visit = played[place]
                if move == "open":
                    visits[visit.key] = visit
                    futures.append(start(visit))
                    visit.arrive()
                else:
                    visit.go()
                    assert move == "step" or visit.over, f"{visit.steps} goes on after its end"
        except BaseException:
            for visit in played:
                visit.give_up()
            raise
        for future in futures:
            future.result(LONGEST)
        return [(visit.outcome, visit.answers, self._saved(int(f"{visit.key}{WHO}"))) for visit in played]
