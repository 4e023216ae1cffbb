"""One app, called by its WSGI or ASGI interface without a server: framework, peer and driver are what is left.

Run as `python -m benchmarks.requests.in_process APP`, it reads a line `PATH COUNT` at a time, answers that many
requests to the path one after the other, and writes `WALL CPU`: the seconds each of them took, by the clock and of the
processor. A path may hold `{}`, for the number of the request. `PATH COUNT CROWD` has so many threads or tasks ask at
once, and share the requests.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

from benchmarks.requests.database import ITEMS

__all__ = ["asgi", "main", "timed", "wsgi"]


def wsgi(app: Any) -> Callable[..., None]:
    """Make a function that asks a WSGI app for each of the paths, as a server would, in so many threads."""
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }

    def start_response(status: str, _headers: Any, _error: Any = None) -> None:
        if not status.startswith("200"):
            raise RuntimeError(f"the app answered {status}")

    def ask(paths: list[str], crowd: int = 1) -> None:
        if crowd > 1:
            with ThreadPoolExecutor(crowd) as threads:
                list(threads.map(ask, [paths[number::crowd] for number in range(crowd)]))
            return
        for path in paths:
            body = app({**environ, "PATH_INFO": path, "wsgi.input": io.BytesIO()}, start_response)
            b"".join(body)
            if hasattr(body, "close"):
                body.close()

    return ask


@contextmanager
def asgi(app: Any) -> Iterator[Callable[..., None]]:
    """Make a function that asks an ASGI app for each of the paths, in so many tasks of a loop that saw its start-up."""

    async def ask_all(paths: list[str], crowd: int = 1) -> None:
        if crowd > 1:
            await asyncio.gather(*[ask_all(paths[number::crowd]) for number in range(crowd)])
            return
        for path in paths:
            await _ask(app, path)

    with asyncio.Runner() as runner:
        runner.run(_start(app))
        yield lambda paths, crowd=1: runner.run(ask_all(paths, crowd))


async def _start(app: Any) -> None:
    """Run the start-up part of the app's lifespan; the rest of it waits for an end that does not come."""
    started = asyncio.get_running_loop().create_future()

    async def receive() -> dict[str, Any]:
        if not started.done():
            return {"type": "lifespan.startup"}
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if not started.done():
            started.set_result(message)

    task = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    _lifespans.append(task)
    message = await started
    if message["type"] != "lifespan.startup.complete":
        raise RuntimeError(f"the app does not start: {message.get('message')}")


_lifespans: list[asyncio.Future[Any]] = []


async def _ask(app: Any, path: str) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise RuntimeError(f"the app answered {message['status']}")

    await app(scope, receive, send)


def timed(ask: Callable[..., None], path: str, count: int, crowd: int = 1) -> tuple[float, float]:
    """Ask `count` times; return the seconds for each, by the clock and of the processor."""
    paths = [path.format(1 + number % ITEMS) for number in range(count)]
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    ask(paths, *([crowd] if crowd > 1 else []))
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def main() -> None:
    """Serve the lines of standard input."""
    name = sys.argv[1]
    app = importlib.import_module(f"benchmarks.requests.apps.{name}").app
    with asgi(app) if name.startswith("fastapi") else nullcontext(wsgi(app)) as ask:
        for line in sys.stdin:
            path, *numbers = line.split()
            wall, cpu = timed(ask, path, *map(int, numbers))
            sys.stdout.write(f"{wall:.9f} {cpu:.9f}\n")
            sys.stdout.flush()
        os._exit(0)  # the pools of some peers take seconds to end


if __name__ == "__main__":
    main()
