"""An app for real servers: they import it in processes of their own, with the database in DATABASE_URL."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of endpoints.

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

from poolkit import AsyncUnitOfWork
from poolkit_fastapi import Poolkit

db = Poolkit(
    {
        "default": {
            "url": os.environ["DATABASE_URL"],
            "max_size": 4,
            "close_timeout": 3,
            "options": {"application_name": os.environ["APP_NAME"]},
        }
    }
)
app = FastAPI()
db.init_app(app)

if os.environ.get("QUERY_AT_IMPORT"):  # what nobody should do and many do: with --preload, this runs in the master
    with db.registry.pool().acquire() as early:
        early.execute("SELECT 1")


@app.get("/echo/{number}")
async def echo(number: int, conn: Annotated[Any, Depends(db.connection)]) -> list[int]:
    cursor = await conn.execute("SELECT %s::int, pg_sleep(0.005)", (number,))
    return [(await cursor.fetchone())[0], os.getpid()]


@app.get("/sync/{number}")
def sync_echo(number: int, conn: Annotated[Any, Depends(db.sync_connection)]) -> list[int]:
    return [conn.execute("SELECT %s::int, pg_sleep(0.005)", (number,)).fetchone()[0], os.getpid()]


@app.get("/slow")
async def slow(conn: Annotated[Any, Depends(db.connection)]) -> None:
    await conn.execute("INSERT INTO notes VALUES ('slow')")
    await conn.execute("SELECT pg_sleep(30)")


@app.get("/slow_sync")
def slow_sync(conn: Annotated[Any, Depends(db.sync_connection)]) -> None:
    conn.execute("INSERT INTO notes VALUES ('slow')")
    conn.execute("SELECT pg_sleep(2)")


@app.get("/stream")
async def stream(uow: Annotated[AsyncUnitOfWork, Depends(db.unit_of_work)]) -> StreamingResponse:
    uow.stream()
    conn = await uow.get()
    await conn.execute("INSERT INTO notes VALUES ('stream')")

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0.01)

    return StreamingResponse(body())
