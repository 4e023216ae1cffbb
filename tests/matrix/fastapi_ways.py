"""The ways in which a FastAPI app has its connections."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from matrix_cells import Way, Work, drive

from poolkit import AsyncUnitOfWork
from poolkit_fastapi import Poolkit

__all__ = ["FASTAPI", "FASTAPI_DEF", "FastapiWay"]

FASTAPI = {"unit": True, "acquire": False, "transaction": True, "stream": False, "whole stream": True}
FASTAPI_DEF = {"def": True, "def acquire": False, "def transaction": True, "def stream": True}


class FastapiWay(Way):
    """An app with one endpoint for each way; `how` says which."""

    def __init__(self, url: str, how: str, **pool: Any) -> None:
        self.how = how
        self.transaction = {**FASTAPI, **FASTAPI_DEF}[how]
        self.db = db = Poolkit({"default": {"url": url, "max_size": 1, "timeout": 5, **pool}})
        self.app = app = FastAPI()
        db.init_app(app)
        (self._for_threads if how in FASTAPI_DEF else self._for_the_loop)(app, db)
        self.client = TestClient(app, raise_server_exceptions=False)
        self.client.__enter__()

    def _for_the_loop(self, app: FastAPI, db: Poolkit) -> None:
        Conn = Annotated[Any, Depends(db.connection)]  # noqa: N806  a type
        Unit = Annotated[AsyncUnitOfWork, Depends(db.unit_of_work)]  # noqa: N806  a type

        @app.get("/unit")
        async def unit(conn: Conn) -> None:
            await self.work(conn)

        @app.get("/acquire")
        async def acquire() -> None:
            async with db.pool().acquire() as conn:
                await self.work(conn)

        @app.get("/transaction")
        async def transaction() -> None:
            async with db.transaction() as conn:
                await self.work(conn)

        @app.get("/stream")
        async def stream(unit: Unit) -> StreamingResponse:
            return StreamingResponse(body(unit))

        @app.get("/whole stream")
        async def whole_stream(unit: Unit) -> StreamingResponse:
            unit.stream()
            return StreamingResponse(body(unit))

        async def body(unit: AsyncUnitOfWork) -> AsyncIterator[str]:
            yield "a"
            await self.work(await unit.get())
            yield "b"

    def _for_threads(self, app: FastAPI, db: Poolkit) -> None:
        Conn = Annotated[Any, Depends(db.sync_connection)]  # noqa: N806  a type

        @app.get("/def")
        def unit(conn: Conn) -> None:
            drive(self.work(conn))

        @app.get("/def acquire")
        def acquire() -> None:
            with db.sync_pool().acquire() as conn:
                drive(self.work(conn))

        @app.get("/def transaction")
        def transaction() -> None:
            with db.sync_transaction() as conn:
                drive(self.work(conn))

        @app.get("/def stream")
        def stream() -> StreamingResponse:
            return StreamingResponse(body())

        def body() -> Iterator[str]:
            yield "a"
            with db.sync_transaction() as conn:
                drive(self.work(conn))
            yield "b"

    def serve(self, work: Work) -> int:
        """Give one request to the app; return the status of the answer, 599 for a body that broke off."""
        self.work = work
        response = self.client.get(f"/{self.how}")
        if "stream" in self.how and response.status_code == 200 and response.text != "ab":
            return 599
        return response.status_code

    def pools(self) -> list[Any]:
        """The pools that exist now."""
        return list(self.db.registry.live_pools())

    def close(self) -> None:
        """Close the pool."""
        self.client.__exit__(None, None, None)
