"""What has to add up at the end of a round: of the pools, of the server, and of this process."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from poolkit import PoolStats, Registry
from poolkit.events import Closed, Event, Opened

__all__ = ["EventBook", "Listened", "descriptors", "faults_of", "shown", "threads"]


class EventBook:
    """Counts what the pools tell their listeners."""

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()
        self.closed: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def listener(self, pool: str) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            if isinstance(event, (Opened, Closed)):
                with self._lock:
                    if isinstance(event, Opened):
                        self.opened[pool] += 1
                    else:
                        self.closed[pool, event.reason] += 1

        return listen

    def faults(self, pool: str, stats: PoolStats) -> Iterable[str]:
        """Compare with the pool's own numbers."""
        if self.opened[pool] != stats.opened:
            yield f"{stats.opened} were opened, and the listener heard of {self.opened[pool]}"
        for reason, count in stats.closed_by_reason.items():
            heard = self.closed[pool, reason]
            if heard != count and reason != "detached":
                yield f"{count} were closed as {reason!r}, and the listener heard of {heard}"


class Listened(Registry):
    """A registry whose pools have a listener."""

    def __init__(self, settings: dict[str, Any], title: str, events: EventBook | None) -> None:
        super().__init__(settings)
        self._title, self._events = title, events

    def _make(self, name: str, kind: Callable[..., Any]) -> Any:
        if self._events is None:
            return super()._make(name, kind)
        settings = dict(self._of(name))
        return kind(
            settings.pop("url"), name=name, listeners=[self._events.listener(f"{self._title}-{name}")], **settings
        )


def faults_of(stats: PoolStats, on_server: int) -> Iterable[str]:
    """Compare the numbers of a pool that nobody uses with each other, and with the sessions on the server."""
    for count, text in ((stats.out, "are out"), (stats.waiting, "wait"), (stats.opening, "are being opened")):
        if count:
            yield f"{count} {text}, and nobody borrows"
    closed = sum(stats.closed_by_reason.values())
    if stats.opened - closed != stats.size:
        yield f"{stats.opened} opened, {closed} closed, {stats.size} held"
    if on_server > stats.size:  # fewer where a session was killed and nobody has asked for it since
        yield f"{on_server} sessions on the server, {stats.size} held"
    if stats.closed and stats.size:
        yield f"closed, and {stats.size} held"


def shown(stats: PoolStats) -> str:
    """Put the numbers of a pool into a line."""
    return (
        f"size {stats.size} of {stats.max_size} = {stats.idle} idle + {stats.out} out + {stats.resetting} resetting + "
        f"{stats.opening} opening, {stats.waiting} waiting; acquired {stats.acquired}, timeouts {stats.timeouts}, "
        f"overloaded {stats.overloaded}, refused {stats.refused}; opened {stats.opened}, failed {stats.open_failures}, "
        f"closed {stats.closed_by_reason}" + (f"; outage: {stats.outage}" if stats.outage else "")
    )


def threads() -> dict[Any, str]:
    """Every thread of this process."""
    return {thread.ident: thread.name for thread in threading.enumerate()}


def descriptors(proxy: int, server: int) -> dict[Any, str]:
    """Every open file of this process but the proxy's, which has these ports; none where the system is silent."""
    found: dict[Any, str] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
                ports = _ends(int(name)) if target.startswith("socket") else (0, 0)
                if ports[0] != proxy and ports[1] != server:
                    found[name, target] = f"{name} -> {target}, from port {ports[0]} to {ports[1]}"
    return found


def _ends(descriptor: int) -> tuple[int, int]:
    """The ports that a socket leads from and to; 0 where there is none."""
    ports = [0, 0]
    with socket.socket(fileno=os.dup(descriptor)) as view:
        for number, end in enumerate((view.getsockname, view.getpeername)):
            with contextlib.suppress(OSError, TypeError, IndexError, ValueError):
                ports[number] = int(end()[1])
    return ports[0], ports[1]
