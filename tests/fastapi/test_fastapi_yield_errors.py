"""`yield` dependencies of function scope beside a connection: what they raise, or keep to themselves, saves nothing."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from fastapi_rig import Exchange, MakeKit, Rows, Serve, out

from poolkit_fastapi import Poolkit, stack

INSERT = "INSERT INTO notes VALUES (%s)"


@pytest.mark.parametrize("first", ["guard", "connection"])
def test_what_is_raised_after_a_yield_rolls_back(
    first: str, kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows
) -> None:
    """The COMMIT is the last of all that ends with the endpoint, in whichever order the endpoint names them."""

    async def guard() -> AsyncIterator[None]:
        yield
        raise HTTPException(507)

    Guard = Annotated[None, Depends(guard, scope="function")]  # noqa: N806
    Conn = Annotated[Any, Depends(kit.connection)]  # noqa: N806

    async def guarded(_: Guard, conn: Conn) -> None:
        await conn.execute(INSERT, ("guarded",))

    async def connected(conn: Conn, _: Guard) -> None:
        await conn.execute(INSERT, ("guarded",))

    app.get("/guarded")(guarded if first == "guard" else connected)
    assert client.get("/guarded").status_code == 507
    assert rows("guarded") == 0
    assert out(kit) == 0


def test_what_is_done_after_a_yield_is_in_the_unit(kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows) -> None:
    """A dependency that began before the connection, and was handed it, may use it after its `yield`."""

    async def audit() -> AsyncIterator[list[Any]]:
        used: list[Any] = []
        yield used
        for conn in used:
            await conn.execute(INSERT, ("audited",))

    @app.get("/audited")
    async def audited(
        used: Annotated[list[Any], Depends(audit, scope="function")], conn: Annotated[Any, Depends(kit.connection)]
    ) -> None:
        used.append(conn)

    assert client.get("/audited").status_code == 200
    assert rows("audited") == 1
    assert out(kit) == 0


@pytest.mark.parametrize("form", ["stack", "yield"])
def test_an_error_that_a_dependency_keeps_rolls_back(
    form: str, make_kit: MakeKit, serve: Serve, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI answers 500, for there is no response: so nothing is saved, though the unit's end saw no error."""
    monkeypatch.setattr(stack, "is_sound", lambda: form == "stack")
    kit = make_kit()
    app = FastAPI()
    kit.init_app(app)
    client = serve(app)

    async def keeping(conn: Annotated[Any, Depends(kit.connection)]) -> AsyncIterator[Any]:
        with contextlib.suppress(LookupError):
            yield conn

    def keeping_sync(conn: Annotated[Any, Depends(kit.sync_connection)]) -> Iterator[Any]:
        with contextlib.suppress(LookupError):
            yield conn

    @app.get("/kept")
    async def kept(conn: Annotated[Any, Depends(keeping, scope="function")], fail: int = 0) -> None:
        await conn.execute(INSERT, ("kept",))
        if fail:
            raise KeyError

    @app.get("/kept_sync")
    def kept_sync(conn: Annotated[Any, Depends(keeping_sync, scope="function")], fail: int = 0) -> None:
        conn.execute(INSERT, ("kept_sync",))
        if fail:
            raise KeyError

    for name in ("kept", "kept_sync"):
        assert client.get(f"/{name}?fail=1").status_code == 500
        assert rows(name) == 0
        assert client.get(f"/{name}").status_code == 200
        assert rows(name) == 1
    assert out(kit) == 0


@pytest.mark.asyncio
async def test_an_app_served_inside_of_an_except_commits(kit: Poolkit, app: FastAPI, rows: Rows) -> None:
    """An error that is being handled around all of the request is not one of the request's."""

    @app.get("/fine")
    async def fine(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute(INSERT, ("fine",))

    try:
        {}["nothing"]
    except LookupError:
        assert (await Exchange(app, "/fine").run()).status == 200
    assert rows("fine") == 1
    await kit.close()
