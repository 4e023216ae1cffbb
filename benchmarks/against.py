"""This checkout against another commit of the project: whole requests, in interleaved rounds.

    python3 run.py bench against COMMIT [--served] [--pairs 20] [--delay MS] [--path /item/{}] [APP ...]

They are called without a server, one after the other; with `--served` by gunicorn or uvicorn under a load of 16
connections, on a pool of 8: as users have them, with the server's own work.

For each app there are three processes: the new code, the old code, and the old code once more. A round asks each of
them the same number of times, in changing order. What is printed is the median over the rounds of new / old, beside
that of old / old: what lies within the spread of the second is no difference. `--env NAME=VALUE` is for the new code
only: `--env POOLKIT_DEFAULT_RESET=full` compares two settings.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from benchmarks.requests.database import database_server, prepare
from benchmarks.requests.load import chosen, generate
from benchmarks.requests.servers import Server, halves, on_processors, serve
from benchmarks.requests.suite import CONNECTIONS, POOL_SIZE
from poolkit.testing.faults import FaultProxy

__all__ = ["main"]

HERE = Path(__file__).resolve().parent.parent
APPS = (
    "flask_poolkit", "flask_poolkit_autocommit", "fastapi_poolkit", "fastapi_poolkit_asyncpg", "fastapi_poolkit_def",
    "django_poolkit", "django_poolkit_engine",
)  # fmt: skip
SECONDS = 0.25  # about how long one process is measured in a round
KINDS = ("new", "old", "old again")


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Lay out another commit beside this one, and take it away again."""
    with tempfile.TemporaryDirectory(prefix="poolkit-against-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


class Process:
    """One app in a process of its own."""

    def __init__(self, app: str, tree: Path, dsn: str, more: dict[str, str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree), "BENCH_DSN": dsn, "BENCH_POOL_SIZE": "4", **more}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.requests.in_process", app],
            cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, path: str, count: int, crowd: int = 1) -> tuple[float, float]:
        """Return the seconds of each request, by the clock and of the processor; `crowd` of them at once."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self._process.stdin.write(f"{path} {count}{f' {crowd}' if crowd > 1 else ''}\n")
        self._process.stdin.flush()
        wall, cpu = self._process.stdout.readline().split()
        return float(wall), float(cpu)

    def end(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.communicate()  # which closes the pipes


class Served:
    """One app behind its server, asked by a load of its own processor."""

    def __init__(self, server: Server, processors: set[int] | None) -> None:
        self._server, self._processors = server, processors

    def ask(self, path: str, count: int) -> tuple[float, float]:  # noqa: ARG002  a second's load asks as often as it can
        """Return the seconds of each request, by the rate of the answers and of the processor."""
        before = self._server.cpu()
        with on_processors(self._processors):
            load = generate(chosen(), self._server.url + path.format(7), CONNECTIONS, 1.0)
        if load.errors or not load.answered:
            raise RuntimeError(f"{self._server.name}: {load.errors} errors, {load.answered} answers")
        return 1 / load.rate, (self._server.cpu() - before) / load.answered


Asked = Process | Served


def compare(processes: Sequence[Asked], path: str, pairs: int) -> dict[str, list[float]]:
    """Ask the three processes in turns; the CPU and wall ratios of each round."""
    for process in processes:
        process.ask(path, 50)
    count = max(5, int(SECONDS / max(processes[1].ask(path, 50)[0], 1e-6)))
    ratios: dict[str, list[float]] = {"cpu": [], "cpu, old again": [], "wall": [], "wall, old again": []}
    order = [0, 1, 2]
    for _ in range(pairs):
        random.shuffle(order)
        took = {number: processes[number].ask(path, count) for number in order}
        for place, measure in enumerate(("wall", "cpu")):
            ratios[measure].append(took[0][place] / took[1][place])
            ratios[f"{measure}, old again"].append(took[2][place] / took[1][place])
    return ratios


def _median(values: Sequence[float]) -> str:
    quarters = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.3f} ({quarters[0]:.3f} to {quarters[2]:.3f})"


@contextmanager
def _called(app: str, tree: Path, dsn: str, more: dict[str, str]) -> Iterator[Asked]:
    process = Process(app, tree, dsn, more)
    try:
        yield process
    finally:
        process.end()


@contextmanager
def _served(app: str, tree: Path, dsn: str, more: dict[str, str]) -> Iterator[Asked]:
    mine, others = halves() or (None, None)
    with serve(app, dsn, POOL_SIZE, mine, tree=tree, **more) as server:
        yield Served(server, others)


def main(argv: Sequence[str]) -> int:
    """Measure, and print a line for each app."""
    parser = argparse.ArgumentParser(prog="run.py bench against", description="Whole requests against another commit.")
    parser.add_argument("commit")
    parser.add_argument("apps", nargs="*", default=list(APPS))
    parser.add_argument("--pairs", type=int, default=20, help="rounds (20)")
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds that the network adds to a round trip")
    parser.add_argument("--path", default="/item/{}", help="what is asked for (/item/{}, one row by its key)")
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE for the new code only")
    parser.add_argument("--served", action="store_true", help="behind gunicorn or uvicorn, under load")
    parser.add_argument("--quick", action="store_true", help="5 rounds")
    asked = parser.parse_intermixed_args(argv)
    more = dict(pair.split("=", 1) for pair in asked.env)
    with checkout(asked.commit) as old, database_server("postgresql") as server, ExitStack() as stack:
        prepare(server.dsn)
        proxy = stack.enter_context(FaultProxy(server.dsn) if asked.delay else nullcontext())
        dsn = server.dsn
        if proxy is not None:
            proxy.delay(asked.delay / 2000)
            dsn = proxy.url(server.dsn)
        for app in asked.apps or APPS:
            with ExitStack() as running:
                start = _served if asked.served else _called
                processes = [
                    running.enter_context(start(app, tree, dsn, more if tree is HERE else {}))
                    for tree in (HERE, old, old)
                ]
                ratios = compare(processes, asked.path, 5 if asked.quick else asked.pairs)
            told = "; ".join(f"{measure} {_median(values)}" for measure, values in ratios.items())
            sys.stdout.write(f"{app}: {told}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
