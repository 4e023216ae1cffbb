"""The application that every server of the matrix runs: as WSGI, as ASGI, as Celery tasks, or as plain work.

Two pools of threads and, under ASGI, one of the loop. `early` is made and used while this module is imported: before
the fork where a master imports it, in the worker elsewhere. `late` is made on first use. Each answer tells who answered
and through which sessions. LIFE_EARLY=no leaves `early` unused at import.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from poolkit import Pool, Registry

logging.basicConfig(format="%(levelname)s %(name)s %(process)d %(message)s")
URL = os.environ["LIFE_URL"]
SETTINGS = {"max_size": 2, "timeout": 10, "close_timeout": 1}

registry = Registry({"default": {"url": URL, **SETTINGS}})
early: Pool[Any] = Pool(URL, name="early", **SETTINGS)


def use(pool: Pool[Any], number: int) -> dict[str, Any]:
    """Ask something that only this question has as its answer."""
    with pool.transaction() as conn:
        answer, session = conn.execute("SELECT %s::int, pg_backend_pid()", (number,)).fetchone()
    assert answer == number, f"somebody else's answer: {answer} for {number}"
    return {"session": session}


imported_by = os.getpid()
before = use(early, 0)["session"] if os.environ.get("LIFE_EARLY") != "no" else None


def report(number: int) -> dict[str, Any]:
    """Use both pools; tell who that was, and through which sessions."""
    return {
        "pid": os.getpid(),
        "imported_by": imported_by,
        "before": before,
        "early": use(early, number)["session"],
        "late": use(registry.pool(), number + 1)["session"],
    }


async def areport(number: int) -> dict[str, Any]:
    """The same, with the loop's own pool besides."""
    async with registry.async_pool().transaction() as conn:
        row = await (await conn.execute("SELECT %s::int, pg_backend_pid()", (number,))).fetchone()
    assert row[0] == number
    return {**await asyncio.to_thread(report, number), "loop": row[1]}


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with a report."""
    if environ["PATH_INFO"] == "/stuck":
        with early.transaction() as conn:
            conn.execute("CREATE TABLE half_done ()")
            time.sleep(600)
    if environ["PATH_INFO"] == "/sleep":
        with early.acquire() as conn:
            conn.execute("SELECT pg_sleep(0.2)")
    body = json.dumps(report(int(time.monotonic() * 1000) % 10**6)).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Answer with a report; close what is open when the server says that it ends."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    if scope["path"] == "/hang":
        async with registry.async_pool().transaction() as conn:
            await conn.execute("SELECT 1")
            await asyncio.sleep(600)
    body = json.dumps(await areport(int(time.monotonic() * 1000) % 10**6)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """What an application with poolkit does: nothing to begin with, and `aclose` at the end."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await registry.aclose()
            early.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "lifespan.startup.complete"})


def write(line: dict[str, Any]) -> None:
    """Add a report to the file of those that serve no HTTP; one write, so that lines of several stay whole."""
    fd = os.open(os.environ["LIFE_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (json.dumps(line) + "\n").encode())
    os.close(fd)
