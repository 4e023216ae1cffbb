"""The forms without a dependency: `async with db.transaction()` and `db.pool().acquire()` in the endpoint itself."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from fastapi_rig import Exchange, MakeKit, Rows, out
from test_fastapi_contract import BAD, CASES, ORPHAN, HandledError, Item

from poolkit import ConfigError
from poolkit_fastapi import Poolkit

INSERT = "INSERT INTO notes VALUES ('inline')"


def add_inline(app: FastAPI, kit: Poolkit) -> None:
    for name, (end, _status, _rows) in CASES.items():
        model = Item if name == "bad_response" else None

        def add(name: str = name, end: Any = end, model: Any = model) -> None:
            @app.get(f"/{name}", response_model=model)
            async def endpoint() -> Any:
                async with kit.transaction() as conn:
                    await conn.execute(INSERT)
                    return end(conn)

        add()

    @app.get("/swallowed")
    async def swallowed() -> str:
        async with kit.transaction() as conn:
            await conn.execute(INSERT)
            try:
                await conn.execute(BAD)
            except psycopg.Error:
                return "all is well"
        return "not reached"

    @app.get("/commit_fails")
    async def commit_fails() -> str:
        async with kit.transaction() as conn:
            await conn.execute(INSERT)
            await conn.execute(ORPHAN)
        return "saved"

    @app.get("/plain")
    async def plain(fail: int = 0) -> int:
        async with kit.pool().acquire() as conn:
            await conn.execute(INSERT)
            if fail:
                raise HTTPException(400)
            return int(conn.info.transaction_status)


@pytest.fixture(scope="module")
def shared(dsn: str) -> Iterator[tuple[Poolkit, TestClient]]:
    """One app for all the cases: each must leave it as it was."""
    kit = Poolkit({"default": {"url": dsn, "max_size": 1, "timeout": 5}})
    app = FastAPI()
    kit.init_app(app)
    add_inline(app, kit)

    @app.exception_handler(HandledError)
    async def handled(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"handled": True})

    @app.exception_handler(psycopg.errors.ForeignKeyViolation)
    async def conflict(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse({"conflict": True}, 409)

    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield kit, client


@pytest.mark.parametrize("case", CASES)
def test_raise_rolls_back_and_return_commits(case: str, shared: tuple[Poolkit, TestClient], rows: Rows) -> None:
    """The contract holds for the block: what leaves it by an error is undone, what returns is saved.

    One row of the table differs: the block has ended, and committed, before the response is serialised.
    """
    kit, client = shared
    _end, status, saved = CASES[case]
    assert client.get(f"/{case}").status_code == status
    assert rows("inline") == (1 if case == "bad_response" else saved)
    assert out(kit) == 0


def test_a_swallowed_error_is_never_a_success(shared: tuple[Poolkit, TestClient], rows: Rows) -> None:
    """PostgreSQL would answer this COMMIT with a silent ROLLBACK: the client must not see 200."""
    kit, client = shared
    assert client.get("/swallowed").status_code == 500
    assert rows("inline") == 0
    assert out(kit) == 0


def test_a_typed_handler_sees_the_failing_commit(shared: tuple[Poolkit, TestClient], rows: Rows) -> None:
    """The COMMIT comes before the first byte, and its error is the driver's own."""
    kit, client = shared
    answer = client.get("/commit_fails")
    assert (answer.status_code, answer.json()) == (409, {"conflict": True})
    assert rows("inline") == 0
    assert out(kit) == 0


def test_a_connection_of_the_pool_has_no_transaction(shared: tuple[Poolkit, TestClient], rows: Rows) -> None:
    """`db.pool().acquire()`: each statement is saved by itself, and the connection comes back whatever happens."""
    kit, client = shared
    assert client.get("/plain").json() == psycopg.pq.TransactionStatus.IDLE
    assert client.get("/plain?fail=1").status_code == 400
    assert rows("inline") == 2
    assert out(kit) == 0


@pytest.mark.asyncio
async def test_the_pool_is_the_one_of_the_dependencies(make_kit: MakeKit) -> None:
    """There is one pool for a name, however an endpoint comes by its connection; an unknown name is told at once."""
    kit = make_kit({"max_size": 1})
    assert kit.pool() is kit.registry.async_pool("default")
    with pytest.raises(ConfigError, match="'defualt'"):
        kit.pool("defualt")
    await kit.close()


@pytest.mark.asyncio
async def test_whoever_gets_none_is_told_503(make_kit: MakeKit) -> None:
    """Overload is answered for these forms as for the others."""
    kit = make_kit({"max_size": 1, "max_waiting": 0})
    app = FastAPI()
    kit.init_app(app)
    add_inline(app, kit)
    async with kit.pool().acquire():
        answers = [(await Exchange(app, path).run()).status for path in ("/plain", "/return")]
    assert answers == [503, 503]
    await kit.close()
