"""120 requests at once to a `def` endpoint of FastAPI that uses a connection for 20 ms, with a pool of 1 and of 3.

Ideal is 120 x 20 ms / pool size: connections that are never idle. What lies between is the time from one holder to the
next, and the beginning, when 120 requests are read. uvicorn has a process of its own, as has the client.

`--against FOLDER` measures another checkout of poolkit in the same run: what a change has brought. `--busy N` keeps N
processes computing meanwhile, as on a machine that has other things to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.report import Column, Report, Table, arguments, interleaved
from poolkit.testing._machine import free_port
from poolkit.testing.postgres import LocalPostgres

HERE = Path(__file__).parent
REQUESTS = 120
HOLD = 0.02  # seconds
SIZES = (1, 3)
TIMEOUT = 3.0  # seconds that a request may wait for its connection, in what is not poolkit's: it may be for ever
START_WITHIN = 20.0


class Form(NamedTuple):
    """A way for an endpoint to come by a connection, in one checkout of poolkit."""

    name: str
    kind: str
    folder: str
    timeout: float


class Server(NamedTuple):
    """One app that is served."""

    form: Form
    port: int
    process: psutil.Process


class Burst(NamedTuple):
    """How 120 at once went."""

    seconds: float
    failed: int
    cpu: float


@contextmanager
def served(form: Form, dsn: str, size: int) -> Iterator[Server]:
    """Serve the app in a process of its own."""
    port = free_port()
    variables = {
        "DATABASE_URL": dsn,
        "BENCH_FORM": form.kind,
        "BENCH_SIZE": str(size),
        "BENCH_HOLD": str(HOLD),
        "BENCH_TIMEOUT": str(form.timeout),
        "PYTHONPATH": form.folder,
    }
    command = [sys.executable, "-P", "-m", "uvicorn", "fastapi_app:app", "--app-dir", str(HERE), "--port", str(port)]
    command += ["--log-level", "critical", "--no-access-log"]
    with subprocess.Popen(command, env={**os.environ, **variables}) as process:
        try:
            asyncio.run(answers(port))
            yield Server(form, port, psutil.Process(process.pid))
        finally:
            process.terminate()


async def answers(port: int) -> None:
    """Wait until the app does."""
    deadline = time.monotonic() + START_WITHIN
    while True:
        with contextlib.suppress(OSError):
            if b" 200 " in await exchange(*await asyncio.open_connection("127.0.0.1", port), "/up"):
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the app does not answer within {START_WITHIN:g} s")
        await asyncio.sleep(0.05)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bytes:
    """Ask, and return the first line of the answer once all of it has come."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n")[0]


async def burst(port: int, requests: int) -> tuple[float, int]:
    """Connect first, then ask all at once; return the seconds until the last answer, and how many were not 200."""
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(requests)]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    answers = await asyncio.gather(*(exchange(reader, writer, "/work") for reader, writer in clients))
    return time.monotonic() - began, sum(b" 200 " not in answer for answer in answers)


def measure(server: Server, size: int) -> Burst:
    """Open the connections with a small burst, then make the large one."""
    asyncio.run(burst(server.port, size))
    before = server.process.cpu_times()
    seconds, failed = asyncio.run(burst(server.port, REQUESTS))
    after = server.process.cpu_times()
    return Burst(seconds, failed, after.user + after.system - before.user - before.system)


def measure_size(table: Table, dsn: str, forms: Sequence[Form], size: int, rounds: int) -> None:
    """Fill the table for one size of the pool."""
    ideal = REQUESTS * HOLD / size
    with ExitStack() as stack:
        servers = [stack.enter_context(served(form, dsn, size)) for form in forms]
        for _, server in interleaved(servers, rounds):
            result = measure(server, size)
            row = f"pool of {size}, {server.form.name}"
            table.add(row, failed=result.failed, ratio=result.seconds / ideal, cpu=result.cpu / REQUESTS * 1000)


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Keep so many processes computing."""
    with ExitStack() as stack:
        for _ in range(number):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def main(argv: Sequence[str]) -> int:
    """Run the suite."""
    parser = arguments("fastapi_threads", "120 requests at once to a def endpoint, a pool of 1 and of 3.", rounds=9)
    parser.add_argument("--against", metavar="FOLDER", help="another checkout of poolkit, measured as well")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="N processes that compute meanwhile")
    options = parser.parse_args(argv)
    here = str(HERE.parent)
    forms = [Form("poolkit", "poolkit", here, 60.0)]
    if options.against is not None:
        forms.append(Form(f"poolkit of {Path(options.against).name}", "poolkit", str(Path(options.against)), 60.0))
    forms.append(Form("psycopg_pool in the endpoint", "psycopg_pool", here, 60.0))
    forms.append(Form("psycopg_pool in a yield dependency", "yield", here, TIMEOUT))
    report = Report("fastapi_threads")
    table = report.table(
        f"{REQUESTS} requests at once, {HOLD * 1000:g} ms each"
        + (f", beside {options.busy} busy processes" if options.busy else ""),
        Column("failed", "not 200"),
        Column("ratio", "time / ideal", 2),
        Column("cpu", "server CPU per request, ms", 2),
        note="ideal: no connection is ever idle; median (range)",
    )
    with LocalPostgres() as postgres, busy(options.busy):
        for size in SIZES:
            measure_size(table, postgres.dsn, forms, size, 1 if options.quick else options.rounds)
    report.finish(options.json)
    return 0
