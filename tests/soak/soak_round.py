"""One round of the soak: pools, borrowers, a storm of faults, calm, the books, and a close under load."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from soak_bench import TABLES, Bench
from soak_books import EventBook, Listened, descriptors, faults_of, shown, threads
from soak_complaints import taken_down
from soak_journal import SLACK, Journal
from soak_ledger import SAVED, Ledger
from soak_loop import SETTLES, Loop, Reaper, finish, start
from soak_plan import Fault, Plan
from soak_tasks import TaskActor
from soak_threads import Interrupter, ThreadActor

from poolkit import AsyncPool, Pool, Registry

__all__ = ["Round"]

THREADS, TASKS = 10, 12  # borrowers: threads, and tasks per library
CALM = 3.0  # seconds of traffic after the last fault
PROGRESS = 20  # units saved in each second of the storm, at least
SERVES_AGAIN = 1.0  # seconds after the end of the last fault
ENDS = 20.0  # seconds for every borrower to come to its end, once all faults are lifted
INTERRUPT_EVERY, CANCEL_EVERY = 0.1, 0.02


class Round:
    """One round, from its plan to the list of what was wrong."""

    def __init__(self, plan: Plan, bench: Bench) -> None:
        self.plan, self.bench = plan, bench
        self.journal = Journal(Ledger())
        self.events = EventBook() if plan.listened else None
        self.timeline: list[str] = []
        self.books: list[str] = []
        self.logged: Counter[str] = Counter()
        self.began = 0.0
        self.pools: dict[str, Pool[Any] | AsyncPool[Any]] = {}
        self._loop = Loop(self.journal)

    # -- its course -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run it; `wrong` says afterwards what was found."""
        ports = (self.bench.proxy.port, self.bench.server.port)
        before, files = threads(), descriptors(*ports)
        self.bench.empty()
        with taken_down(self.journal, self.logged):
            self.began = time.monotonic()
            with self._loop:
                self._open()
                self._storm()
                self._check_books("after the storm")
                self._close_under_load()
                self._check_books("after the close")
            self.journal.wrong += [f"a task was left: {task}" for task in self._loop.left]
            self.pools.clear()
            self._check_left("thread", threads, before)
            self._check_left("file descriptor", lambda: descriptors(*ports), files)

    @property
    def wrong(self) -> list[str]:
        """What was found."""
        return self.journal.wrong

    @property
    def summary(self) -> str:
        """One line."""
        outcomes = self.journal.ledger.count()
        back = max(self.journal.came_back.values(), default=0.0)
        return (
            f"seed {self.plan.seed}: {outcomes['saved']} saved, {outcomes['undone']} undone, "
            f"{outcomes['unknown']} unknown; {len(self.plan.faults)} faults; back after {back:.2f} s; "
            f"latest borrower {self.journal.longest_wait:+.2f} s; {len(self.wrong)} wrong"
        )

    @property
    def report(self) -> str:
        """Everything, for whoever has to find out why."""
        did = ", ".join(f"{name} {count}" for name, count in sorted(self.journal.did.items()))
        met = ", ".join(f"{name} {count}" for name, count in self.journal.met.most_common())
        logged = "\n".join(f"  {count:5} x {text}" for text, count in self.logged.most_common())
        return "\n".join(
            [
                f"{len(self.wrong)} things went wrong:", *self.wrong,
                "", f"the proxy is at port {self.bench.proxy.port}, the server at {self.bench.server.port}",
                f"{self.plan}", f"to meet the same faults again: pytest tests/soak --soak-seed {self.plan.seed}",
                "", "the faults:", *self.timeline,
                "", "the books:", *self.books,
                "", self.summary, f"done: {did}", f"met: {met}", f"logged:\n{logged}",
            ]
        )  # fmt: skip

    # -- pools and borrowers --------------------------------------------------------------------------------------

    def _registry(self, title: str, scheme: str) -> Registry:
        url = self.bench.roles.url
        settings = {
            table: {"url": url(scheme, f"{title}-{table}"), "scheme": scheme, **self.plan.settings} for table in TABLES
        }
        return Listened(settings, title, self.events)

    def _open(self) -> None:
        self.registries = {
            "threads": self._registry("threads", "postgresql"),
            "psycopg": self._registry("psycopg", "postgresql"),
            "asyncpg": self._registry("asyncpg", "postgresql+asyncpg"),
        }
        for title, registry in self.registries.items():
            for table in TABLES:
                self.pools[f"{title}-{table}"] = (
                    registry.pool(table) if title == "threads" else self._in_loop(registry.async_pool, table)
                )

    def _in_loop(self, work: Callable[..., Any], *arguments: Any) -> Any:
        async def awaited() -> Any:
            return work(*arguments)

        return self._loop.call(awaited)

    @contextlib.contextmanager
    def _traffic(self, *, disturbed: bool) -> Iterator[None]:
        """Let everybody borrow; at the end all of them have to come to theirs."""
        seed, journal = self.plan.seed, self.journal
        journal.over = False
        threads = [ThreadActor(number, seed, self.registries["threads"], journal) for number in range(THREADS)]
        tasks = [
            TaskActor(
                *(library, number, seed),
                registry=self.registries[library],
                threads=self.registries["threads"],
                journal=journal,
            )
            for library in ("psycopg", "asyncpg")
            for number in range(TASKS)
        ]
        for actor in threads:
            actor.thread.start()
        self._loop.call(lambda: start(tasks))
        try:
            with self._disturbance(threads, tasks) if disturbed else contextlib.nullcontext():
                yield
        finally:
            journal.over = True
            self._await_all(threads, tasks)

    @contextlib.contextmanager
    def _disturbance(self, threads: list[ThreadActor], tasks: list[TaskActor]) -> Iterator[None]:
        reaper = Reaper(self.plan.seed, tasks, CANCEL_EVERY)
        reaping = asyncio.run_coroutine_threadsafe(reaper.run(), self._loop.loop)
        try:
            with Interrupter(self.plan.seed, threads, INTERRUPT_EVERY):
                yield
        finally:
            reaping.cancel()

    def _await_all(self, threads: list[ThreadActor], tasks: list[TaskActor]) -> None:
        end = time.monotonic() + ENDS
        for actor in threads:
            actor.thread.join(max(0.0, end - time.monotonic()))
        left = self._loop.call(lambda: finish(tasks, max(0.1, end - time.monotonic())), ENDS + 10)
        frames = sys._current_frames()
        for actor in threads:
            if actor.thread.is_alive():
                stack = "".join(traceback.format_stack(frames.get(actor.thread.ident or 0)))
                self.journal.note(f"{actor.name} never came back from {actor.doing}:\n{stack}")
        self.journal.wrong += left

    # -- the storm ------------------------------------------------------------------------------------------------

    def _storm(self) -> None:
        with self._traffic(disturbed=True):
            for at, fault, begins in self.plan.moments():
                pause = self.began + at - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
                self._happen(fault, begins=begins)
            for name, pool in self.pools.items():
                self._at(name, lambda pool=pool: pool.resize(self.plan.settings["max_size"]))
            self.journal.await_service(list(self.pools))
            self._note("all faults are lifted")
            time.sleep(CALM)
        saved = self.journal.ledger.count()[SAVED]
        if saved < PROGRESS * self.plan.seconds:
            self.journal.note(f"only {saved} units were saved in {self.plan.seconds:.0f} s")
        late = {name: seconds for name, seconds in self.journal.came_back.items() if seconds > SERVES_AGAIN + SLACK / 2}
        for name, pool in self.pools.items():
            if name not in self.journal.came_back:
                self.journal.note(
                    f"{name} did not serve again within {CALM} s of the last fault's end: {shown(pool.stats())}\n"
                    + "".join(f"  {holder}\n" for holder in pool.holders())
                    + self._loop.tasks()
                )
        for name, seconds in late.items():
            self.journal.note(f"{name} served again only {seconds:.2f} s after the last fault's end")

    def _happen(self, fault: Fault, *, begins: bool) -> None:
        try:
            if not begins:
                self.bench.end(fault)
                self._note(f"end of {fault.kind}")
            elif fault.track == "admin":
                self._note(fault.kind, self._administer(fault))
            else:
                self._note(fault.kind, self.bench.begin(fault))
        except Exception as error:  # noqa: BLE001  a fault that could not be made is no fault of the pools'
            self._note(fault.kind, f"not done: {type(error).__name__}: {error}".strip())

    def _administer(self, fault: Fault) -> str | None:
        names = list(self.pools)
        name = names[int(fault.dice * len(names))]
        pool = self.pools[name]
        if fault.kind == "drain":
            self._at(name, pool.drain)
        elif fault.kind == "resize":
            size = 1 + int(fault.dice * 1000) % 10
            self._at(name, lambda: pool.resize(size))
            return f"{name} to {size}"
        elif fault.kind == "sweep":
            self._at(name, pool.sweep)
        elif fault.kind == "ask ready":
            threading.Thread(target=self._ask_ready, args=(name,), name="soak-other", daemon=True).start()
        elif fault.kind == "look":
            return f"{name}: {shown(pool.stats())}"
        else:
            return self._rotate(fault.dice)
        return name

    def _rotate(self, dice: float) -> str:
        if self.bench.away:
            return "not done: the server is away"
        role = self.bench.roles.rotate(dice)
        if int(dice * 100) % 2:
            for name, pool in self.pools.items():
                self._at(name, pool.drain)
            return f"{role}, and all drained"
        return role

    def _ask_ready(self, name: str) -> None:
        pool = self.pools[name]
        began = time.monotonic()
        if isinstance(pool, Pool):
            pool.ready(0.5)
        else:
            self._loop.call(lambda: pool.ready(0.5))
        took = time.monotonic() - began
        if took > 0.5 + SLACK:
            self.journal.note(f"{name}.ready(0.5) took {took:.2f} s")

    def _at(self, name: str, work: Callable[[], object]) -> None:
        """Do something to a pool, where that may be done."""
        if name.startswith("threads"):
            work()
        else:
            self._in_loop(work)

    # -- the close ------------------------------------------------------------------------------------------------

    def _close_under_load(self) -> None:
        self.journal.closing = True
        with self._traffic(disturbed=False):
            time.sleep(0.5)
            for name, pool in self.pools.items():
                whole = pool.close(10) if isinstance(pool, Pool) else self._loop.call(lambda pool=pool: pool.close(10))
                if not whole:
                    self.journal.note(f"{name}: close() did not end within 10 s: {pool.holders()}")
            time.sleep(0.1)
        self.registries["threads"].close()
        for library in ("psycopg", "asyncpg"):
            self._loop.call(self.registries[library].aclose)

    # -- the books ------------------------------------------------------------------------------------------------

    def _check_books(self, when: str) -> None:
        end = time.monotonic() + SETTLES
        faults = ["never looked"]
        while faults:
            gc.collect()
            faults = self._unbalanced()
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        self.books += [f"{when}:", *(f"  {name}: {shown(pool.stats())}" for name, pool in self.pools.items())]
        self.journal.wrong += [f"{when}: {fault}" for fault in faults]
        tables, counted = self.bench.rows()
        self.journal.wrong += [f"{when}: {fault}" for fault in self.journal.ledger.faults(tables, counted)[:20]]

    def _unbalanced(self) -> list[str]:
        """Compare what the pools say with each other, with their events, and with the server."""
        faults = [f"{self.journal.left()} connections were not left by their borrowers"] * bool(self.journal.left())
        sessions = self.bench.sessions()
        faults += [f"a session of {name} is {state!r}" for name, state in sessions if state != "idle"]
        on_server = Counter(name for name, _ in sessions)
        for name, pool in self.pools.items():
            stats = pool.stats()
            faults += [f"{name}: {text}" for text in faults_of(stats, on_server[name])]
            if self.events is not None:
                faults += [f"{name}: {text}" for text in self.events.faults(name, stats)]
        return faults

    def _check_left(self, noun: str, count: Callable[[], dict[Any, str]], before: dict[Any, str]) -> None:
        end = time.monotonic() + SETTLES
        left = dict(before)
        while left and time.monotonic() < end:
            gc.collect()
            left = {key: text for key, text in count().items() if key not in before}
            if left:
                time.sleep(0.05)
        self.journal.wrong += [f"a {noun} was left: {text}" for text in left.values() if left is not before]

    # -- what is said meanwhile -----------------------------------------------------------------------------------

    def _note(self, what: str, more: str | None = None) -> None:
        self.timeline.append(f"  {time.monotonic() - self.began:7.2f} s  {what}" + (f": {more}" if more else ""))
