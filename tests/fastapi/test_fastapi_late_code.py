"""Dependencies with `yield` above a connection: which of them go on after its end, and what becomes of that."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.testclient import TestClient
from fastapi_rig import MakeKit, Rows, out

from poolkit import AsyncUnitOfWork
from poolkit_fastapi import Poolkit, stack

INSERT = "INSERT INTO notes VALUES (%s)"


@pytest.mark.parametrize("sound", [True, False], ids=["stack", "yield"])
@pytest.mark.parametrize("included", [True, False])
def test_the_start_names_what_comes_too_late(
    *, included: bool, sound: bool, make_kit: MakeKit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One INFO has every request-scoped `yield` dependency above a connection or the unit, once, and no other."""
    monkeypatch.setattr(stack, "is_sound", lambda: sound)
    kit = make_kit()
    Conn = Annotated[Any, Depends(kit.connection)]  # noqa: N806

    async def repository(conn: Conn) -> AsyncIterator[Any]:
        yield conn

    async def manager(repo: Annotated[Any, Depends(repository)]) -> AsyncIterator[Any]:
        yield repo

    def sync_repository(conn: Annotated[Any, Depends(kit.sync_connection)]) -> Iterator[Any]:
        yield conn

    async def in_time(conn: Conn) -> AsyncIterator[Any]:
        yield conn

    async def by_unit(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> AsyncIterator[Any]:
        yield await uow.get()

    async def plain(conn: Conn) -> Any:
        return conn

    router = APIRouter()

    @router.get("/one")
    async def one(
        _one: Annotated[Any, Depends(manager)],
        _two: Annotated[Any, Depends(in_time, scope="function")],
        _three: Annotated[Any, Depends(by_unit)],
        _four: Annotated[Any, Depends(plain)],
    ) -> None:
        pass

    @router.get("/two")
    def two(_one: Annotated[Any, Depends(repository)], _two: Annotated[Any, Depends(sync_repository)]) -> None:
        pass

    app = FastAPI()
    kit.init_app(app)
    if included:
        app.include_router(router, prefix="/api")
    else:
        app.mount("/api", FastAPI(routes=router.routes))
    with caplog.at_level(logging.INFO, "poolkit"), TestClient(app):
        pass
    (text,) = [record.getMessage() for record in caplog.records if "yield" in record.getMessage()]
    names = [part.rpartition(".")[2] for part in text.partition(" by then: ")[2].partition(". Write")[0].split(", ")]
    assert sorted(names) == ["by_unit", "manager", "repository", "sync_repository"]
    assert 'scope="function"' in text


def test_nothing_is_said_where_nothing_is_late(kit: Poolkit, app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    """An app without such dependencies starts without a word."""

    @app.get("/plain")
    async def plain(_conn: Annotated[Any, Depends(kit.connection)]) -> None:
        pass

    with caplog.at_level(logging.INFO, "poolkit"), TestClient(app):
        pass
    assert not [record for record in caplog.records if "yield" in record.getMessage()]


def test_a_repository_that_does_nothing_after_its_yield_goes_on_working(
    kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows
) -> None:
    """The documented set-up of fastapi-users: a user database, and a manager above it, both of request scope."""

    class UserDatabase:
        def __init__(self, conn: Any) -> None:
            self.conn = conn

        async def create(self, name: str) -> str:
            await self.conn.execute(INSERT, (name,))
            return name

    class UserManager:
        def __init__(self, user_db: UserDatabase) -> None:
            self.user_db = user_db

    async def get_user_db(conn: Annotated[Any, Depends(kit.connection)]) -> AsyncIterator[UserDatabase]:
        yield UserDatabase(conn)

    async def get_user_manager(
        user_db: Annotated[UserDatabase, Depends(get_user_db)],
    ) -> AsyncIterator[UserManager]:
        yield UserManager(user_db)

    @app.post("/register", status_code=201)
    async def register(name: str, manager: Annotated[UserManager, Depends(get_user_manager)]) -> str:
        return await manager.user_db.create(name)

    for name in ("ann", "bob"):
        assert client.post(f"/register?name={name}").status_code == 201
        assert rows(name) == 1
    assert out(kit) == 0
