"""After the server went away: how many operations fail, and how soon there is service again.

Three bad days, for every pool alike, on a private PostgreSQL:

- restart: 8 workers make about 200 small operations a second in all; the server is restarted in `fast` mode. Failed
  operations, the first success counted from the moment the server takes connections, the slowest operation.
- outage: the same, with the server away for 3 seconds.
- killed: N idle connections are ended by the server, then one client makes 50 operations in a row.

An operation is what a user would write: take a connection, `SELECT 1`, give it back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import LiteralString, NamedTuple, Self

import psycopg

from benchmarks.peers import ALL, Peer, Settings
from benchmarks.report import Column, Report, Table, arguments, interleaved
from poolkit.testing.postgres import LocalPostgres

WORKERS = 8
PAUSE = 0.04  # seconds between two operations of a worker: about 200 a second in all
SETTLE = 0.5
PATIENCE = 12.0  # seconds that a pool is given to serve every worker again
OUTAGE = 3.0
KILLED = (1, 4, 8, 32)
OPERATIONS = 50
TIMEOUT = 10.0  # seconds that an operation may wait for a connection
BRIEF = 3.0  # the same where only idle connections were killed and the server is there all the time

Work = Callable[[float], object]


class Done(NamedTuple):
    """One operation that ended, well or not."""

    worker: int
    began: float
    ended: float
    ok: bool


class Crew:
    """The workers: they go on whatever happens, and write down how each operation ended."""

    def __init__(self, work: Work) -> None:
        self.done: list[Done] = []
        self._work = work
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(WORKERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        self._stop.wait(PAUSE * number / WORKERS)
        while not self._stop.is_set():
            self.done.append(attempt(self._work, number))
            self._stop.wait(PAUSE)

    def served_since(self, moment: float) -> set[int]:
        """The workers who had a success since then."""
        return {done.worker for done in self.done if done.ok and done.began > moment}


def attempt(work: Work, worker: int = 0) -> Done:
    """Make one operation. Whatever the pool or the driver raises is a failure, and no more."""
    began = time.monotonic()
    try:
        work(0)
    except Exception:  # noqa: BLE001
        return Done(worker, began, time.monotonic(), ok=False)
    return Done(worker, began, time.monotonic(), ok=True)


class Recovery(NamedTuple):
    """What a table shows of an outage; seconds."""

    failed: int
    first: float
    slowest: float


def judge(done: Sequence[Done], stopped: float, up: float) -> Recovery:
    """Sum up: what failed, when the first success came after the server was up again, what took longest.

    The first success is negative where a pool was back before the server's readiness had been noticed here.
    """
    back = [entry.ended for entry in done if entry.ok and entry.ended > stopped]
    return Recovery(
        failed=sum(not entry.ok for entry in done),
        first=min(back, default=float("inf")) - up,
        slowest=max(entry.ended - entry.began for entry in done),
    )


def restart(peer: Peer, postgres: LocalPostgres, away: float) -> Recovery:
    """Have the workers at it, take the server away for a while, and wait until all are served again."""
    with peer.opened(Settings(postgres.dsn, WORKERS, TIMEOUT)) as work, Crew(work) as crew:
        time.sleep(SETTLE)
        postgres.stop("fast")
        stopped = time.monotonic()
        time.sleep(away)
        postgres.start()
        up = time.monotonic()
        while len(crew.served_since(up)) < WORKERS and time.monotonic() < up + PATIENCE:
            time.sleep(0.01)
        time.sleep(SETTLE)
    return judge(crew.done, stopped, up)


class Kill(NamedTuple):
    """What a table shows of killed connections; seconds."""

    failed: int
    slowest: float


def killed(peer: Peer, postgres: LocalPostgres, number: int) -> Kill:
    """Let `number` connections lie idle, end them all, and make operations one after another."""
    with psycopg.connect(postgres.dsn, autocommit=True) as monitor:
        monitor.execute(OTHERS)
        with peer.opened(Settings(postgres.dsn, number, BRIEF)) as work:
            fill(work, monitor, number)
            monitor.execute("CREATE TEMP TABLE killed AS SELECT pid, pg_terminate_backend(pid) FROM others")
            wait_for(lambda: not sessions(monitor, LEFT_OF_KILLED), "the connections are gone")
            time.sleep(0.05)  # for whoever hears of it by itself
            done = [attempt(work) for _ in range(OPERATIONS)]
        wait_for(lambda: not sessions(monitor), "the pool has closed its connections")
    return Kill(sum(not entry.ok for entry in done), max(entry.ended - entry.began for entry in done))


OTHERS = (
    "CREATE TEMP VIEW others AS SELECT pid FROM pg_stat_activity "
    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)

SESSIONS: LiteralString = "SELECT count(*) FROM others"
LEFT_OF_KILLED: LiteralString = "SELECT count(*) FROM others JOIN killed USING (pid)"


def sessions(monitor: psycopg.Connection, counted: LiteralString = SESSIONS) -> int:
    """Count the connections to the server, the asker's own apart."""
    row = monitor.execute(counted).fetchone()
    return int(row[0]) if row else 0


def fill(work: Work, monitor: psycopg.Connection, number: int) -> None:
    """Use so many connections at once, so that afterwards they lie idle."""
    for hold in (0.1, 0.5, 2.0):
        with ThreadPoolExecutor(number) as threads:
            list(threads.map(work, [hold] * number))
        if sessions(monitor) == number:
            return
    raise RuntimeError(f"the pool has {sessions(monitor)} connections, not {number}")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.005)


def connects(dsn: str) -> dict[str, float]:
    """Seconds for a connect and a statement without any pool: what the slowest operation is held against."""
    return {"(one connect)": _timed(lambda: _connect(dsn)), **asyncio.run(_connects_of_asyncio(dsn))}


def _timed(connect: Callable[[], None]) -> float:
    began = time.monotonic()
    connect()
    return time.monotonic() - began


def _connect(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT 1")


async def _connects_of_asyncio(dsn: str) -> dict[str, float]:
    import asyncpg  # noqa: PLC0415

    began = time.monotonic()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("SELECT 1")
    between = time.monotonic()
    other = await asyncpg.connect(dsn)
    await other.execute("SELECT 1")
    ended = time.monotonic()
    await other.close()
    return {"(one connect, asyncio, psycopg)": between - began, "(one connect, asyncio, asyncpg)": ended - between}


def measure_outages(report: Report, postgres: LocalPostgres, peers: Sequence[Peer], rounds: int, away: float) -> None:
    """Fill the table of a restart (`away` 0) or of an outage."""
    table = report.table(
        f"server away for {away:g} s" if away else "restart -m fast",
        Column("failed", "failed operations"),
        Column("first", "first success after up, ms"),
        Column("slowest", "slowest operation, ms"),
        note=f"{WORKERS} workers, about {WORKERS / PAUSE:g} operations a second in all; median (range)",
    )
    for _, peer in interleaved(peers, rounds):
        result = restart(peer, postgres, away)
        table.add(peer.name, failed=result.failed, first=result.first * 1000, slowest=result.slowest * 1000)


def measure_kills(
    report: Report, postgres: LocalPostgres, peers: Sequence[Peer], rounds: int, numbers: Sequence[int]
) -> None:
    """Fill the table of killed connections."""
    columns = [
        Column(f"{key}_{number}", heading, digits)
        for number in numbers
        for key, heading, digits in (("failed", f"{number} killed: failed", 0), ("slowest", "slowest, ms", 1))
    ]
    note = f"of the next {OPERATIONS} operations of one client; none waits for longer than {BRIEF:g} s"
    table: Table = report.table("idle connections killed", *columns, note=note)
    for _, peer in interleaved(peers, rounds):
        for number in numbers:
            result = killed(peer, postgres, number)
            table.add(peer.name, **{f"failed_{number}": result.failed, f"slowest_{number}": result.slowest * 1000})
            for name, seconds in connects(postgres.dsn).items():
                table.add(name, **{f"slowest_{number}": seconds * 1000})


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("recovery", "Restart, outage and killed connections, for every pool alike.", rounds=5)
    parser.add_argument("--only", metavar="TEXT", default="", help="only the pools with this in their name")
    parser.add_argument("--what", choices=("restart", "outage", "killed"), help="only this (default: all three)")
    options = parser.parse_args(argv)
    peers = [peer for peer in ALL if options.only in peer.name]
    if not peers:
        parser.error(f"no pool has {options.only!r} in its name")
    rounds = 1 if options.quick else options.rounds
    for name in (
        "poolkit",
        "psycopg",
        "sqlalchemy",
        "asyncpg",
        "asyncio",
    ):  # they report each failure that is counted here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    report = Report("recovery")
    with LocalPostgres(max_connections=150) as postgres:
        if options.what in (None, "restart"):
            measure_outages(report, postgres, peers, rounds, away=0)
        if options.what == "outage" or (options.what is None and not options.quick):
            measure_outages(report, postgres, peers, min(rounds, 3), away=OUTAGE)
        if options.what in (None, "killed"):
            measure_kills(report, postgres, peers, min(rounds, 3), KILLED[::3] if options.quick else KILLED)
    report.finish(options.json)
    return 0
