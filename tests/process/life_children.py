"""Children of a program with a pool: `python life_children.py fork|forkserver|spawn|executor`. SIGTERM ends it.

Each child writes reports until it is told to stop; one that dies is replaced, as a server would do it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import life_app

CHILDREN = 2


def go_on(stop: Any) -> None:
    """What a child does."""
    obey()
    number = 0
    while not stop.is_set():
        number += 2
        life_app.write(life_app.report(number))
        time.sleep(0.02)


def obey() -> None:
    """A child of a fork has its parent's handler of SIGTERM, and would not end by it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def one(number: int) -> None:
    """What a worker of an executor does for one call."""
    life_app.write(life_app.report(number))
    time.sleep(0.02)


def processes(method: str, stop: threading.Event) -> None:
    """Keep two children running."""
    context: Any = multiprocessing.get_context(method)
    stop_children = context.Event()
    children: list[Any] = []
    while not stop.wait(0.02):
        children = [child for child in children if child.is_alive()]
        while len(children) < CHILDREN:
            children.append(context.Process(target=go_on, args=(stop_children,)))
            children[-1].start()
    stop_children.set()
    for child in children:
        child.join()


def executor(stop: threading.Event) -> None:
    """Keep an executor busy."""
    while not stop.is_set():
        with contextlib.suppress(BrokenProcessPool), ProcessPoolExecutor(CHILDREN, initializer=obey) as workers:
            while not stop.is_set():
                list(workers.map(one, range(0, 20, 2)))


def main(kind: str) -> None:
    """Work until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if kind == "executor":
        executor(stop)
    else:
        processes(kind, stop)


if __name__ == "__main__":
    main(sys.argv[1])
