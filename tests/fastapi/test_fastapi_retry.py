"""Retryable endpoints: run again on a serialization failure or a deadlock, a bounded number of times."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import logging
from collections.abc import AsyncIterable
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from fastapi_rig import Rows, out

from poolkit import AsyncUnitOfWork, ConfigError, UnitOfWorkError
from poolkit_fastapi import Poolkit

CONFLICT = "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$"
INSERT = "INSERT INTO notes VALUES (%s)"


@pytest.fixture
def tries() -> list[int]:
    return []


@pytest.fixture
def retrying(kit: Poolkit, app: FastAPI, tries: list[int]) -> FastAPI:
    """Endpoints that fail with a conflict until their third try."""

    @app.get("/async")
    @kit.retryable(3)
    async def on_conn(conn: Annotated[Any, Depends(kit.connection)], fails: int) -> str:
        """Retry on a connection."""
        tries.append(1)
        await conn.execute(INSERT, ("retry",))
        if len(tries) <= fails:
            await conn.execute(CONFLICT)
        return "done"

    @app.get("/sync")
    @kit.retryable(3)
    def on_sync(conn: Annotated[Any, Depends(kit.sync_connection)], fails: int) -> str:
        tries.append(1)
        conn.execute(INSERT, ("retry",))
        if len(tries) <= fails:
            conn.execute(CONFLICT)
        return "done"

    @app.get("/unit")
    @kit.retryable()
    async def on_unit(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)], fails: int) -> str:
        tries.append(1)
        conn = await uow.get()
        await conn.execute(INSERT, ("retry",))
        if len(tries) <= fails:
            await conn.execute(CONFLICT)
        return "done"

    return app


KINDS = pytest.mark.parametrize("kind", ["async", "sync", "unit"])


@KINDS
def test_a_conflict_is_tried_again(
    kind: str, *, kit: Poolkit, retrying: FastAPI, client: TestClient, rows: Rows, tries: list[int]
) -> None:
    """Two conflicts, three tries, one row."""
    assert client.get(f"/{kind}?fails=2").json() == "done"
    assert len(tries) == 3
    assert rows("retry") == 1
    assert out(kit) == 0


@KINDS
def test_the_tries_are_bounded(
    kind: str, *, kit: Poolkit, retrying: FastAPI, client: TestClient, rows: Rows, tries: list[int]
) -> None:
    """After the last try the driver's error goes its way."""
    assert client.get(f"/{kind}?fails=9").status_code == 500
    assert len(tries) == 3
    assert rows("retry") == 0
    assert out(kit) == 0


def test_a_conflict_in_the_commit_is_tried_again(
    *, kit: Poolkit, app: FastAPI, client: TestClient, monitor: psycopg.Connection, rows: Rows, tries: list[int]
) -> None:
    """Serializable transactions fail in their COMMIT: that is inside the try."""
    monitor.execute("INSERT INTO counters VALUES (1, 0), (2, 0)")

    @app.get("/skew")
    @kit.retryable(3)
    async def skew(uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> int:
        conn = await uow.get()
        await conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        (total,) = await (await conn.execute("SELECT sum(value) FROM counters")).fetchone()
        if not tries:  # somebody else reads and writes the same, and commits first
            with psycopg.connect(monitor.info.dsn, password=monitor.info.password) as other:
                other.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                other.execute("SELECT sum(value) FROM counters").fetchone()
                other.execute("UPDATE counters SET value = value + 1 WHERE id = 1")
        tries.append(total)
        await conn.execute("UPDATE counters SET value = value + 1 WHERE id = 2")
        return len(tries)

    assert client.get("/skew").json() == 2
    assert tries == [0, 1]
    assert monitor.execute("SELECT value FROM counters ORDER BY id").fetchall() == [(1,), (1,)]


def test_work_of_another_dependency_is_not_run_again(
    *, kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows, tries: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """What a dependency did before can't be run again, and must not be lost: one try, and a warning that says why."""

    async def audit(conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute(INSERT, ("audit",))

    @app.get("/audited")
    @kit.retryable(3)
    async def audited(_: Annotated[None, Depends(audit)], conn: Annotated[Any, Depends(kit.connection)]) -> None:
        tries.append(1)
        await conn.execute(CONFLICT)

    with caplog.at_level(logging.WARNING, "poolkit"):
        assert client.get("/audited").status_code == 500
        assert client.get("/audited").status_code == 500
    assert len(tries) == 2
    assert rows("audit") == 0
    assert [record.getMessage()[:26] for record in caplog.records] == ["GET /audited is retryable,"]


def test_an_override_is_called_once(kit: Poolkit, retrying: FastAPI, client: TestClient, tries: list[int]) -> None:
    """Without a unit there is nothing to run again."""

    class Fake:
        async def execute(self, *_: Any) -> None:
            if len(tries) == 1:
                raise ZeroDivisionError

    retrying.dependency_overrides[kit.connection] = Fake
    assert client.get("/async?fails=0").status_code == 500
    assert len(tries) == 1


def test_the_endpoint_keeps_its_name_and_parameters(retrying: FastAPI) -> None:
    """The decorator does not show in the schema."""
    operation = retrying.openapi()["paths"]["/async"]["get"]
    assert operation["description"] == "Retry on a connection."
    assert [parameter["name"] for parameter in operation["parameters"]] == ["fails"]


def test_what_can_not_run_again_is_refused(kit: Poolkit) -> None:
    """A body that is on its way can't be taken back, and zero attempts are none."""
    with pytest.raises(ConfigError, match="yields its body"):

        @kit.retryable()
        async def stream() -> AsyncIterable[int]:
            yield 1

    for attempts in (0, True, "3"):
        with pytest.raises(ConfigError, match="attempts must be a whole number of at least 1"):
            kit.retryable(attempts)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_stream_can_not_be_tried_again(kind: str, kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows) -> None:
    """`uow.stream()` in a retryable endpoint is refused: its transaction ends before the body begins."""
    UoW = Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]  # noqa: N806

    @app.get("/async")
    @kit.retryable()
    async def on_async(uow: UoW) -> None:
        await (await uow.get()).execute(INSERT, ("stream",))
        uow.stream()

    @app.get("/sync")
    @kit.retryable()
    def on_sync(uow: UoW, conn: Annotated[Any, Depends(kit.sync_connection)]) -> None:
        conn.execute(INSERT, ("stream",))
        uow.stream()

    with pytest.raises(UnitOfWorkError, match=rf"GET /{kind}: retryable work can't stream\(\)"):
        TestClient(app).get(f"/{kind}")
    assert rows("stream") == 0
    assert out(kit) == 0
