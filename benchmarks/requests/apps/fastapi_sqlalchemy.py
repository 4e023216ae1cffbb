"""SQLAlchemy's AsyncSession over asyncpg, a yield dependency."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions.

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy import BigInteger, Identity, Integer, MetaData, Table, Text, insert, select
from sqlalchemy import Column as TableColumn
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

SIZE = int(os.environ["BENCH_POOL_SIZE"])
URL = os.environ["BENCH_DSN"].replace("postgresql://", "postgresql+asyncpg://", 1)

metadata = MetaData()
items = Table("items", metadata, TableColumn("id", Integer, primary_key=True), TableColumn("name", Text))
hits = Table(
    "hits", metadata, TableColumn("id", BigInteger, Identity(), primary_key=True), TableColumn("item_id", Integer)
)
engine = create_async_engine(URL, pool_size=SIZE, max_overflow=0)
make_session = async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Close the pool at the end."""
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def session() -> AsyncIterator[AsyncSession]:
    """Lend a session to the request."""
    async with make_session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(session)]


@app.get("/hello")
async def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/{item_id}")
async def item(session: Session, item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    row = (await session.execute(select(items.c.id, items.c.name).where(items.c.id == item_id))).one()
    return {"id": row.id, "name": row.name}


@app.get("/hit")
async def hit(session: Session) -> dict[str, Any]:
    """Write and read in one transaction."""
    number = (await session.execute(insert(hits).values(item_id=1).returning(hits.c.id))).scalar_one()
    (await session.execute(select(items.c.name).where(items.c.id == 1))).scalar_one()
    await session.commit()
    return {"id": number}
