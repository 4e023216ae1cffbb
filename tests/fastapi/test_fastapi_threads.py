"""`def` endpoints: how often a request changes threads, and that no number of threads and connections locks up."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio.to_thread
import psycopg
import pytest
import pytest_asyncio
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi_rig import Exchange, MakeKit, Rows, Serve, out, settled

from poolkit import AsyncUnitOfWork, NestedAcquire, Pool, Registry, current
from poolkit.driver import TransactionOp
from poolkit.testing.fakes import FakeAsyncDriver, FakeConnection, FakeDriver, FakeServer
from poolkit_fastapi import Poolkit

Trips = list[str]


def make_app(kit: Poolkit) -> FastAPI:
    app = FastAPI()
    kit.init_app(app)
    conn_of = Annotated[Any, Depends(kit.sync_connection)]

    @app.get("/save")
    def save(conn: conn_of):
        conn.execute("INSERT INTO notes VALUES ('saved')")
        return threading.current_thread().name

    @app.get("/fail")
    def fail(conn: conn_of):
        conn.execute("INSERT INTO notes VALUES ('saved')")
        raise HTTPException(418)

    @app.get("/refused")
    def refused(conn: conn_of):
        conn.execute("INSERT INTO children VALUES (-1)")

    return app


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> Trips:
    """Every way into a thread that a request takes: poolkit's own, and the framework's."""
    seen: Trips = []
    in_thread, run_sync = Registry.in_thread, anyio.to_thread.run_sync

    async def own(self: Registry, work: Any, *arguments: Any) -> Any:
        seen.append("poolkit")
        return await in_thread(self, work, *arguments)

    async def framework(work: Any, *arguments: Any, **options: Any) -> Any:
        seen.append("framework")
        return await run_sync(work, *arguments, **options)

    monkeypatch.setattr(Registry, "in_thread", own)
    monkeypatch.setattr(anyio.to_thread, "run_sync", framework)
    return seen


@pytest.mark.parametrize("case", [("/save", 200, 1), ("/fail", 418, 0), ("/refused", 500, 0)], ids=lambda case: case[0])
async def test_a_request_changes_threads_for_its_endpoint_only(
    case: tuple[str, int, int], trips: Trips, make_kit: MakeKit, rows: Rows
) -> None:
    """BEGIN and the end are awaited in the loop: whoever waits for the connection waits for no thread to wake."""
    path, status, saved = case
    kit = make_kit()
    app = make_app(kit)
    try:
        exchange = await Exchange(app, path).run()
    except psycopg.errors.ForeignKeyViolation:  # for the server to make a 500 of
        assert path == "/refused"
    else:
        assert exchange.status == status
    assert trips == ["framework"]
    assert rows("saved") == saved
    assert (out(kit), kit.registry.pool().stats().idle) == (0, 1)
    await kit.close()


async def test_a_statement_still_running_in_a_thread_is_waited_for_in_a_thread(
    trips: Trips, make_kit: MakeKit, rows: Rows
) -> None:
    """The loop never waits for a lock: COMMIT comes when a thread of the endpoint's own lets go of the connection."""
    kit = make_kit()
    unit = AsyncUnitOfWork(kit.registry)
    conn = await unit.get_sync()
    with conn.lock:
        ending = asyncio.create_task(unit.finish())
        assert await settled(lambda: trips == ["poolkit"])
        await asyncio.sleep(0.01)  # the loop goes on
        assert not ending.done()
    await ending
    assert unit.committed
    assert out(kit) == 0
    await kit.close()


@pytest.mark.parametrize("tokens", [1, 3, 40, 200])
@pytest.mark.parametrize("size", [1, 3])
async def test_no_sizes_lock_up(size: int, tokens: int, make_kit: MakeKit, rows: Rows) -> None:
    """120 at once are 120 times 200, with more or fewer threads than connections, and all they wrote is there."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = tokens
    kit = make_kit({"max_size": size, "timeout": 20})
    app = make_app(kit)
    async with asyncio.timeout(20):
        exchanges = await asyncio.gather(*(Exchange(app, "/save").run() for _ in range(120)))
    assert [exchange.status for exchange in exchanges] == [200] * 120
    assert rows("saved") == 120
    assert out(kit) == 0
    await kit.close()


async def test_clients_that_leave_at_any_moment_leave_nothing(make_kit: MakeKit, rows: Rows) -> None:
    """Cancelled in line, in BEGIN, in the endpoint, in COMMIT: the pool is whole, and the others are served."""
    kit = make_kit({"max_size": 2, "timeout": 20})
    app = make_app(kit)
    staying = [asyncio.create_task(Exchange(app, "/save").run()) for _ in range(20)]
    leaving = [asyncio.create_task(Exchange(app, "/save").run()) for _ in range(40)]
    for task in leaving:
        await asyncio.sleep(0)
        task.cancel()
    async with asyncio.timeout(20):
        served = await asyncio.gather(*staying)
        await asyncio.gather(*leaving, return_exceptions=True)
    assert [exchange.status for exchange in served] == [200] * 20
    assert await settled(lambda: out(kit) == 0 and kit.registry.pool().stats().opening == 0)  # asked for in the rush
    left = sum(not task.cancelled() for task in leaving)
    assert 20 + left <= rows("saved") <= 60  # a COMMIT under way is finished though its client has left
    stats = kit.registry.pool().stats()
    assert (stats.waiting, stats.size, stats.opened) == (0, stats.idle, stats.idle)
    await kit.close()


# -- what a driver has to do in the loop, held up on purpose -------------------------------------------------------


class LoopDriver(FakeDriver):
    """Works from a loop, when told to go on."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.go = asyncio.Event()
        self.entered = asyncio.Event()
        self.able = True

    async def from_loop(self, op: TransactionOp, resource: FakeConnection) -> bool:
        if not self.able:
            return False
        self.entered.set()
        await self.go.wait()
        getattr(self, op)(resource)
        return True


class Bench:
    """A unit of work over one pool of that driver."""

    def __init__(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = FakeServer()
        self.driver = LoopDriver(self.server)
        self.pool = Pool(self.driver, max_size=1)
        monkeypatch.setattr(registry, "pool", lambda _name: self.pool)
        monkeypatch.setattr(registry, "shares", lambda _name: False)
        self.unit = AsyncUnitOfWork(registry)

    async def cancelled_in_mid(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        await self.driver.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert self.pool.stats().out == 1
        self.driver.go.set()
        assert await settled(lambda: self.pool.stats().out == 0)


@pytest_asyncio.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    registry = Registry({})
    bench = Bench(registry, monkeypatch)
    yield bench
    await bench.unit.close()
    bench.pool.close()
    await registry.aclose()


async def test_cancelled_in_begin(bench: Bench) -> None:
    """BEGIN is seen through and undone, and the connection is kept: the next gets it."""
    await bench.cancelled_in_mid(bench.unit.get_sync())
    assert not bench.unit.used
    assert (bench.pool.stats().idle, bench.server.opened) == (1, 1)
    assert not bench.server.connections[0].in_transaction


async def test_cancelled_in_commit(bench: Bench) -> None:
    """COMMIT is seen through, whoever has left."""
    bench.driver.go.set()
    await bench.unit.get_sync()
    bench.driver.go.clear()
    bench.driver.entered.clear()
    await bench.cancelled_in_mid(bench.unit.finish())
    assert bench.unit.committed
    assert bench.server.log == ["1:begin", "1:commit"]
    assert bench.pool.stats().idle == 1


async def test_a_driver_that_can_not_now_is_run_in_a_thread(bench: Bench, trips: Trips) -> None:
    """False means that nothing was done: then a thread does it."""
    bench.driver.able = False
    await bench.unit.get_sync()
    await bench.unit.finish()
    assert bench.server.log == ["1:begin", "1:commit"]
    assert trips == ["poolkit", "poolkit"]


async def test_a_begin_that_fails_is_raised_and_its_connection_closed(bench: Bench) -> None:
    """Nobody is given a connection in an unknown state."""
    bench.driver.go.set()
    await (await acquire_killed(bench)).finish()
    assert bench.pool.stats().size == 0


async def acquire_killed(bench: Bench) -> AsyncUnitOfWork:
    bench.driver.alive = lambda connection: not connection.closed  # type: ignore[method-assign]  so that it is lent
    bench.pool = Pool(bench.driver, max_size=1)
    bench.pool.acquire().release()
    bench.server.kill()
    with pytest.raises(Exception, match="the session has ended"):
        await bench.unit.get_sync()
    return bench.unit


async def test_a_commit_that_fails_is_raised(bench: Bench) -> None:
    """The server's refusal reaches the caller as it is, and the connection is as new."""
    bench.driver.go.set()
    await bench.unit.get_sync()
    bench.server.fail_commit = True
    with pytest.raises(Exception, match="refuses the commit"):
        await bench.unit.finish()
    assert bench.unit.committed is False
    assert bench.pool.stats().out == 0


async def test_what_needs_cleaning_is_cleaned_in_a_thread(bench: Bench, trips: Trips) -> None:
    """A reset is a round trip of the driver's own: not in the loop."""
    bench.driver.go.set()
    connection = await bench.unit.get_sync()
    connection.execute("dirty")
    await bench.unit.finish()
    assert trips == ["poolkit"]
    assert bench.server.log[-1] == "1:reset"


async def test_a_retry_begins_again_in_the_loop(bench: Bench, trips: Trips) -> None:
    """`restart` and `commit_in_place` take no thread either."""
    bench.driver.go.set()
    await bench.unit.get_sync()
    await bench.unit.restart()
    await bench.unit.commit_in_place()
    await bench.unit.finish()
    assert bench.server.log == ["1:begin", "1:rollback", "1:begin", "1:commit"]
    assert trips == []


@pytest.mark.parametrize("kind", ["endpoint", "task"])
def test_a_thread_takes_a_transaction_of_its_own(kind: str, kit: Poolkit, serve: Serve, rows: Rows) -> None:
    """`db.sync_transaction()` is for `def` endpoints and tasks what `db.transaction()` is for the others."""
    app = FastAPI()
    kit.init_app(app)
    labels: list[str] = []

    def work(word: str, *, fails: bool) -> None:
        with kit.sync_transaction() as conn:
            conn.execute("INSERT INTO notes VALUES (%s)", (word,))
            labels.extend(holder.label for pool in kit.registry.live_pools() for holder in pool.holders())
            if fails:
                raise ValueError

    @app.get("/endpoint")
    def endpoint(word: str, *, fails: bool) -> None:
        work(word, fails=fails)
        raise HTTPException(418)  # the block has ended: what it saved is saved

    @app.get("/task")
    def task(word: str, tasks: BackgroundTasks, *, fails: bool) -> None:
        tasks.add_task(work, word, fails=fails)

    client = serve(app)
    client.get(f"/{kind}?word=good&fails=false")
    client.get(f"/{kind}?word=bad&fails=true")
    assert (rows("good"), rows("bad")) == (1, 0)
    assert labels == [f"GET /{kind}"] * 2
    assert out(kit) == 0


def test_a_transaction_that_gets_no_connection_is_over(make_kit: MakeKit) -> None:
    """A block that could not begin leaves no unit of work behind for the code after it."""
    kit = make_kit({"max_size": 1, "timeout": 0.05})
    with kit.sync_pool().acquire(), pytest.raises(NestedAcquire), kit.sync_transaction():
        pass
    assert current() is None
    with kit.sync_begin() as uow:
        assert uow.get().execute("SELECT 1").fetchone() == (1,)
    kit.registry.close()


class Optional(FakeDriver):
    """Notes with which options its transactions begin."""

    def begin(self, connection: FakeConnection, options: Any = None) -> None:
        self.server.log.append(f"options {options and options.isolation_level}")
        super().begin(connection)


class OptionalAsync(FakeAsyncDriver):
    """The same for asyncio."""

    async def begin(self, connection: FakeConnection, options: Any = None) -> None:
        self.server.log.append(f"options {options and options.isolation_level}")
        await super().begin(connection)


@pytest.mark.asyncio
async def test_a_transaction_has_options() -> None:
    """What a block asks for reaches its BEGIN, in threads and in the loop."""
    server = FakeServer()
    kit = Poolkit({"default": {"driver": OptionalAsync(server)}, "sync": {"driver": Optional(server)}})
    options: dict[str, Any]
    for options in ({"isolation_level": "serializable"}, {}):
        with kit.sync_transaction("sync", **options):
            pass
        async with kit.transaction(**options):
            pass
    seen = [line.removeprefix("options ") for line in server.log if line.startswith("options ")]
    assert seen == ["serializable", "serializable", "None", "None"]
    await kit.close()
