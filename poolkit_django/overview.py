"""What the admin page shows of this worker's pools: plain data, read without taking a connection."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from poolkit import PoolStats
from poolkit_django import conf, recent
from poolkit_django.replica_settings import replicas

__all__ = ["SHARES", "happenings", "overview", "replica_states", "waited"]

SHARES = (0.5, 0.95, 0.99)


def overview() -> dict[str, Any]:
    """Show every pool of this process, its holders, the shared clients, and what happened lately."""
    registry = conf.registry()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pools": [_shown(pool) for pool in registry.live_pools()],
        "clients": {name: dict(client.stats()) for name, client in registry.live_clients().items()},
        "replicas": replica_states(),
        "happenings": happenings(),
    }


def happenings() -> list[dict[str, Any]]:
    """What happened lately in this process, the newest first, as plain data."""
    return [{**each._asdict(), "at": datetime.fromtimestamp(each.at, UTC)} for each in recent.latest()]


def replica_states() -> list[dict[str, Any]]:
    """How this process sees its replicas; nothing where POOLKIT_REPLICAS names none."""
    if not replicas():
        return []
    from poolkit_django.fleet import fleet  # noqa: PLC0415  it imports psycopg

    return fleet().report()


def _shown(pool: Any) -> dict[str, Any]:
    stats: PoolStats = pool.stats()
    numbers = stats.as_dict()
    numbers["outage"] = (stats.outage or "").partition("\n")[0]
    return {
        **numbers,
        "kind": "asyncio" if type(pool).__name__.startswith("Async") else "threads",
        "waits": dict(_waits(stats)),
        "at_once": _at_once(stats),
        "mean_use": stats.used_seconds / stats.acquired if stats.acquired else 0.0,
        "ends": ", ".join(f"{reason} {count}" for reason, count in sorted(stats.closed_by_reason.items())),
        "holders": sorted(pool.holders(), key=lambda holder: -holder.age),
    }


def _waits(stats: PoolStats) -> Iterator[tuple[str, str]]:
    for share in SHARES:
        yield f"{share:.0%}", waited(stats, share)


def _at_once(stats: PoolStats) -> float | None:
    return 1 - min(stats.wait.count, stats.acquired) / stats.acquired if stats.acquired else None


def waited(stats: PoolStats, share: float) -> str:
    """Say how long this share of all borrowers waited at the most: "0", "≤ 5 ms", "> 10 s", or "-" of none."""
    if not stats.acquired:
        return "-"
    left = share * stats.acquired - (stats.acquired - stats.wait.count)
    if left <= 0:
        return "0"
    for bound, count in zip(stats.wait.bounds, stats.wait.buckets, strict=False):  # the last bucket has no bound
        left -= count
        if left <= 0:
            return f"≤ {_seconds(bound)}"
    return f"> {_seconds(stats.wait.bounds[-1])}"


def _seconds(value: float) -> str:
    return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"
