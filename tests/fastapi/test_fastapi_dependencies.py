"""Dependencies as users write them: overrides, scopes, names, OpenAPI, classes of their own, current(), labels."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Security
from fastapi.security import SecurityScopes
from fastapi.testclient import TestClient
from fastapi_rig import Exchange, MakeKit, Rows, Serve, out

import poolkit
from poolkit import AsyncUnitOfWork, ConfigError
from poolkit.testing import FakeAsyncDriver, FakeDriver, FakeServer
from poolkit_fastapi import Poolkit, middleware

INSERT = "INSERT INTO notes VALUES (%s)"


def test_one_function_per_name(dsn: str) -> None:
    """Overrides are found by the function: asking twice must give the same object, and other names another."""
    kit = Poolkit({"default": {"url": dsn}, "replica": {"url": dsn}})
    assert kit.named("replica") is kit.named("replica")
    assert kit.sync_named("replica") is kit.sync_named("replica")
    assert kit.named("default") is kit.connection
    assert kit.sync_named("default") is kit.sync_connection
    assert len({kit.connection, kit.sync_connection, kit.named("replica"), kit.sync_named("replica")}) == 4


def test_an_unknown_name_is_told_at_once(dsn: str) -> None:
    """A typing mistake shows when the module is imported, with the nearest right name."""
    kit = Poolkit({"default": {"url": dsn}, "replica": {"url": dsn}})
    with pytest.raises(ConfigError, match="did you mean 'replica'"):
        kit.named("relpica")


def test_overrides_replace_a_connection(kit: Poolkit, app: FastAPI, client: TestClient) -> None:
    """What a test puts in the place of a connection is what the endpoint gets; the database is left alone."""

    @app.get("/which")
    async def which(
        conn: Annotated[Any, Depends(kit.connection)], sync: Annotated[Any, Depends(kit.sync_connection)]
    ) -> list[str]:
        return [conn, sync]

    app.dependency_overrides[kit.connection] = lambda: "fake"
    app.dependency_overrides[kit.sync_connection] = lambda: "sync fake"
    before = [stats.acquired for stats in kit.registry.stats()]
    assert client.get("/which").json() == ["fake", "sync fake"]
    assert [stats.acquired for stats in kit.registry.stats()] == before


def test_nothing_leaks_into_openapi(dsn: str, kit: Poolkit, app: FastAPI) -> None:
    """A dependency's parameters would become query parameters that anyone can set; the pages stay out of it as well."""

    @app.get("/all")
    async def everything(
        conn: Annotated[Any, Depends(kit.connection)],
        sync: Annotated[Any, Depends(kit.sync_connection)],
        uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)],
        named: Annotated[Any, Depends(kit.named("default"))],
        page: Annotated[int, Query()] = 1,
    ) -> None:
        pass

    document = app.openapi()
    assert list(document["paths"]) == ["/all"]
    assert [parameter["name"] for parameter in document["paths"]["/all"]["get"]["parameters"]] == ["page"]
    assert "requestBody" not in document["paths"]["/all"]["get"]


def test_dependencies_with_yield_of_both_scopes(kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows) -> None:
    """A user's own `yield` dependency may stand on a connection, in whichever scope; function scope is in the unit."""
    Conn = Annotated[Any, Depends(kit.connection)]  # noqa: N806

    async def function_scoped(conn: Conn) -> AsyncIterator[Any]:
        yield conn
        await conn.execute(INSERT, ("function",))

    async def request_scoped(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> AsyncIterator[None]:
        yield
        await (await uow.get()).execute(INSERT, ("request",))

    def sync_request_scoped(_conn: Conn) -> Iterator[None]:
        yield

    @app.get("/scopes")
    async def scopes(
        conn: Annotated[Any, Depends(function_scoped, scope="function")],
        _first: Annotated[None, Depends(request_scoped)],
        _second: Annotated[None, Depends(sync_request_scoped)],
        fail: int = 0,
    ) -> None:
        await conn.execute(INSERT, ("endpoint",))
        if fail:
            raise HTTPException(400)

    assert client.get("/scopes?fail=1").status_code == 400
    assert (rows("function"), rows("endpoint"), rows("request")) == (0, 0, 0)
    assert client.get("/scopes").status_code == 200
    assert (rows("function"), rows("endpoint"), rows("request")) == (1, 1, 1)
    assert out(kit) == 0


def test_all_of_a_request_share_one_connection(kit: Poolkit, app: FastAPI, client: TestClient) -> None:
    """Dependencies of dependencies, of security scopes too, get the same connection: no deadlock in a pool of one."""
    Conn = Annotated[Any, Depends(kit.connection)]  # noqa: N806

    async def user(conn: Conn, _scopes: SecurityScopes) -> Any:
        return conn

    async def repository(conn: Conn) -> Any:
        return conn

    @app.get("/same")
    async def same(
        conn: Conn,
        again: Annotated[Any, Depends(kit.connection, use_cache=False)],
        repo: Annotated[Any, Depends(repository)],
        user: Annotated[Any, Security(user, scopes=["read"])],
        uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)],
    ) -> bool:
        return conn is again is repo is user is await uow.get()

    assert client.get("/same").json() is True


def test_a_dependency_can_translate_a_failing_commit(
    kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows
) -> None:
    """The COMMIT fails inside the user's own dependencies: what one of them makes of the error is the answer."""

    async def translate() -> AsyncIterator[None]:
        try:
            yield
        except psycopg.errors.ForeignKeyViolation:
            raise HTTPException(409, "no such parent") from None

    @app.get("/orphan")
    async def orphan(_: Annotated[None, Depends(translate)], conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute("INSERT INTO children VALUES (1)")

    answer = client.get("/orphan")
    assert (answer.status_code, answer.json()) == (409, {"detail": "no such parent"})
    assert out(kit) == 0


@pytest.mark.asyncio
async def test_the_outermost_of_two_commits(kit: Poolkit) -> None:
    """FastAPI 0.121 solves a dependency once per set of security scopes: the unit ends with the last of them."""

    async def send(_message: Any) -> None:
        pass

    exchange = middleware.Exchange(kit, {"type": "http", "method": "GET"}, send, None)
    unit = exchange.enter(exchange.scope)
    assert exchange.enter(exchange.scope) is unit
    await exchange.leave(unit)
    assert not unit.ended
    await exchange.leave(unit)
    assert unit.ended
    await exchange.end(None)


@pytest.mark.asyncio
async def test_an_app_that_calls_itself(kit: Poolkit, app: FastAPI, rows: Rows) -> None:
    """A request made inside a request, in the same task, is a unit of its own."""

    @app.get("/inner")
    async def inner(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute(INSERT, ("inner",))

    @app.get("/outer")
    async def outer(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute(INSERT, ("outer",))
        assert (await Exchange(app, "/inner").run()).status == 200
        assert rows("inner") == 1
        raise HTTPException(400)

    assert (await Exchange(app, "/outer").run()).status == 400
    assert (rows("inner"), rows("outer")) == (1, 0)
    assert out(kit) == 0
    await kit.close()


def test_current_is_the_requests_unit(kit: Poolkit, app: FastAPI, client: TestClient) -> None:
    """Code far from the endpoint finds the unit of the request, in threads too, and nothing before or after it."""
    marker: ContextVar[str] = ContextVar("marker", default="unset")

    def mark(request: Request) -> None:  # a context variable set in here is not seen by the endpoint
        marker.set(request.url.path)

    @app.get("/async")
    async def here(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> bool:
        async with poolkit.async_unit_of_work() as joined:
            return poolkit.current() is uow is joined

    @app.get("/sync")
    def there(_: Annotated[None, Depends(mark)], uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> bool:
        return poolkit.current() is uow and marker.get() == "unset"

    @app.get("/none")
    async def none() -> bool:
        return poolkit.current() is None

    for path in ("/async", "/sync", "/none"):
        assert client.get(path).json() is True
    assert poolkit.current() is None


def test_holders_are_named_after_their_endpoint(kit: Poolkit, app: FastAPI, client: TestClient) -> None:
    """Whoever looks at a full pool sees "GET /users/{user}/orders", and no one's user name."""
    labels: list[str] = []
    router = APIRouter(prefix="/users/{user}")
    inner = APIRouter(prefix="/old")

    def note() -> None:
        labels.extend(holder.label for pool in kit.registry.live_pools() for holder in pool.holders())

    @router.get("/orders")
    async def orders(user: str, _conn: Annotated[Any, Depends(kit.connection)]) -> None:
        note()

    @inner.delete("/orders")
    def delete(user: str, _conn: Annotated[Any, Depends(kit.sync_connection)]) -> None:
        note()

    router.include_router(inner)
    app.include_router(router, prefix="/api")
    assert client.get("/api/users/ada/orders").status_code == 200
    assert client.delete("/api/users/ada/old/orders").status_code == 200
    assert labels == ["GET /api/users/{user}/orders", "DELETE /api/users/{user}/old/orders"]


def test_an_app_that_does_not_know_the_poolkit_says_so(make_kit: MakeKit) -> None:
    """Forgetting init_app is one clear error."""
    kit = make_kit()
    app = FastAPI()

    @app.get("/forgotten")
    async def forgotten(_conn: Annotated[Any, Depends(kit.connection)]) -> None:
        pass

    with pytest.raises(ConfigError, match=r"call db.init_app\(app\)"), TestClient(app) as client:
        client.get("/forgotten")


def test_two_poolkits_in_one_app(make_kit: MakeKit, serve: Serve, rows: Rows) -> None:
    """Each has its own pools, units and pages, and one that rolls back does not roll back the other."""
    first, second = make_kit(), make_kit(prefix="/second")
    app = FastAPI()
    first.init_app(app)
    second.init_app(app)

    @app.get("/both")
    async def both(
        one: Annotated[Any, Depends(first.connection)],
        two: Annotated[AsyncUnitOfWork, Depends(second.unit_of_work)],
    ) -> None:
        await one.execute(INSERT, ("first",))
        await (await two.get()).execute(INSERT, ("second",))
        two.doom()

    client = serve(app)
    assert client.get("/both").status_code == 200
    assert (rows("first"), rows("second")) == (1, 0)
    assert client.get("/poolkit/health").status_code == client.get("/second/health").status_code == 200
    assert out(first) == out(second) == 0


def test_shared_clients(dsn: str) -> None:
    """`get` gives what is shared; for what is leased it says which dependency to take instead."""
    kit = Poolkit({"default": {"url": dsn}, "pricing": {"url": "https://pricing.invalid"}})
    assert kit.get("pricing") is kit.get("pricing")
    with pytest.raises(ConfigError, match=r"'default' is a pool: depend on db.named\('default'\)"):
        kit.get("default")
    kit.registry.close()


def test_a_driver_of_the_apps_own_is_part_of_the_request(dsn: str, serve: Serve) -> None:
    """What the settings name by its driver is committed and rolled back with the rest, for each kind of endpoint."""
    server = FakeServer()
    kit = Poolkit(
        {
            "default": {"url": dsn},
            "ledger": {"driver": FakeAsyncDriver(server), "max_size": 1},
            "old": {"driver": FakeDriver(server), "max_size": 1},
        }
    )
    app = FastAPI()
    kit.init_app(app)

    @app.get("/async/{word}")
    async def on_async(word: str, conn: Annotated[Any, Depends(kit.named("ledger"))]) -> None:
        conn.execute(word)
        if word == "refused":
            raise HTTPException(400)

    @app.get("/sync/{word}")
    def on_sync(word: str, conn: Annotated[Any, Depends(kit.sync_named("old"))]) -> None:
        conn.execute(word)
        if word == "refused":
            raise HTTPException(400)

    client = serve(app)
    for kind in ("async", "sync"):
        server.log.clear()
        assert [client.get(f"/{kind}/{word}").status_code for word in ("written", "refused")] == [200, 400]
        words = [line.partition(":")[2] for line in server.log]
        assert words == ["begin", "written", "commit", "begin", "refused", "rollback"]
    assert client.get("/poolkit/ready").status_code == 200
