"""The app that `fastapi_threads` measures, served by uvicorn in a process of its own: one `def` endpoint, two pools.

`BENCH_FORM` says how the endpoint comes by its connection, `BENCH_SIZE` how many there are, `BENCH_HOLD` for how many
seconds it uses it.
"""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import os
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI

URL = os.environ["DATABASE_URL"]
SIZE = int(os.environ["BENCH_SIZE"])
TIMEOUT = float(os.environ["BENCH_TIMEOUT"])
STATEMENT = f"SELECT pg_sleep({float(os.environ['BENCH_HOLD'])})"

app = FastAPI()


@app.get("/up")
async def up() -> None:
    """Answer, without a connection."""


def with_poolkit() -> None:
    """As poolkit's README has it."""
    from poolkit_fastapi import Poolkit  # noqa: PLC0415

    db = Poolkit({"default": {"url": URL, "max_size": SIZE, "timeout": TIMEOUT}})
    db.init_app(app)

    @app.get("/work")
    def work(conn: Annotated[Any, Depends(db.sync_connection)]) -> dict[str, int]:
        conn.execute(STATEMENT)
        return {"done": 1}


def with_psycopg_pool() -> None:
    """A pool of psycopg_pool's, entered in the endpoint: who waits, waits in a thread."""
    pool = _psycopg_pool()

    @app.get("/work")
    def work() -> dict[str, int]:
        with pool.connection() as conn:
            conn.execute(STATEMENT)
        return {"done": 1}


def with_a_yield_dependency() -> None:
    """The same pool in a `def` dependency with `yield`, as guides have it: who waits, takes a thread from who works."""
    pool = _psycopg_pool()

    def connection() -> Iterator[Any]:
        with pool.connection() as conn:
            yield conn

    @app.get("/work")
    def work(conn: Annotated[Any, Depends(connection)]) -> dict[str, int]:
        conn.execute(STATEMENT)
        return {"done": 1}


def _psycopg_pool() -> Any:
    from psycopg_pool import ConnectionPool  # noqa: PLC0415

    return ConnectionPool(URL, min_size=SIZE, max_size=SIZE, timeout=TIMEOUT, open=True)


FORMS = {"poolkit": with_poolkit, "psycopg_pool": with_psycopg_pool, "yield": with_a_yield_dependency}
FORMS[os.environ["BENCH_FORM"]]()
