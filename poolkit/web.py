"""What the integrations share: settings to a registry, the 503, health, readiness and the numbers, as plain data.

Health and readiness are for anyone and tell nothing but their status. The numbers are for whom `may_see_stats` lets in.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import math
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from poolkit.errors import (
    AcquireTimeout,
    CommitFailed,
    ConnectRejected,
    NestedAcquire,
    OpenFailed,
    Overloaded,
    PoolClosed,
    PoolError,
)
from poolkit.registry import Registry, unread_urls, with_environ, with_urls
from poolkit.unit_settings import UnitSettings

__all__ = [
    "UNAVAILABLE",
    "Reply",
    "aready",
    "described",
    "forbidden",
    "health",
    "is_unavailable",
    "may_see_stats",
    "ready",
    "registry_from",
    "stats",
    "stats_fault",
    "unavailable",
]

logger = logging.getLogger("poolkit")

UNAVAILABLE: tuple[type[Exception], ...] = (
    AcquireTimeout,
    Overloaded,
    OpenFailed,
    NestedAcquire,
    PoolClosed,
    CommitFailed,
)
"""The errors an integration has to look at with `is_unavailable`."""

# Whoever forwards a request hides who sent it: then loopback means the proxy, and proves nothing.
_FORWARDING = {"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"}


class Reply(NamedTuple):
    """A response in plain data: the status, the JSON body and the headers."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def registry_from(
    settings: Mapping[str, Mapping[str, Any]] | None, *, where: str, environ: Mapping[str, str] = os.environ,
    units: UnitSettings | None = None,
) -> Registry:  # fmt: skip
    """Make a registry from an app's settings, or from the environment where there are none.

    `POOLKIT_<NAME>_<SETTING>` and `POOLKIT_<NAME>_URL` of the environment override the settings; a URL for a name that
    is not in them is logged as a warning. `units` is how units of work behave. Raises `ConfigError` with all that is
    wrong.
    """
    if settings is None:
        return Registry.from_environ(environ, units=units)
    if isinstance(settings, Mapping):
        settings = with_urls(settings, environ)
        for variable in unread_urls(settings, environ):
            logger.warning("%s in the environment is not read: the settings have nothing of that name", variable)
    Registry(settings, where=where)  # what is wrong in the settings is said before the environment comes in
    return Registry(with_environ(settings, environ), where=where, units=units)


def is_unavailable(error: BaseException) -> bool:
    """Whether the client should come back later: no connection to be had, or the server went away in the COMMIT.

    A connect that was refused for good is not mended by waiting.
    """
    if isinstance(error, CommitFailed):
        return error.lost
    return isinstance(error, UNAVAILABLE) and not isinstance(error, ConnectRejected)


def described(registry: Registry, error: BaseException) -> str:
    """Say what the log is to have of an error that `is_unavailable`: who holds the connections, once in a minute.

    The holders and their stacks are 20 KB, and under overload each request has such an error.
    """
    holders = getattr(error, "holders", ())
    if not holders or registry.tally.each_minute.due(("holders", getattr(error, "pool", ""))) is not None:
        return str(error)
    return f"{str(error).partition(chr(10))[0]} (who holds the connections was said less than a minute ago)"


def unavailable(error: BaseException) -> Reply:
    """Make the 503 for an error that `is_unavailable`; it tells the client nothing but when to come back."""
    wait = error.retry_after if isinstance(error, PoolError) else None
    seconds = max(1, math.ceil(wait or 0))
    return Reply(503, {"error": "service unavailable"}, {"Retry-After": str(seconds), "Cache-Control": "no-store"})


def health() -> Reply:
    """Say that the process lives. Needs no connection."""
    return Reply(200, {"status": "ok"}, {"Cache-Control": "no-store"})


def ready(registry: Registry) -> Reply:
    """Say whether requests can be served, without waiting for a free connection. At most about a second."""
    return _readiness(registry, is_ready=registry.ready())


async def aready(registry: Registry) -> Reply:
    """The same in asyncio."""
    return _readiness(registry, is_ready=await registry.aready())


def _readiness(registry: Registry, *, is_ready: bool) -> Reply:
    """Anyone may ask, so the answer has a word for the reason, and the log has the driver's error."""
    if is_ready:
        return Reply(200, {"status": "ready"}, {"Cache-Control": "no-store"})
    outages = [stats for stats in registry.stats() if stats.outage is not None]
    for stats in outages:
        if registry.tally.each_minute.due(("not ready", stats.name)) is not None:
            logger.warning("not ready: pool %r can't connect: %s", stats.name, stats.outage)
    body = {"status": "not ready"}
    if outages:
        body["reason"] = "rejected" if any(stats.rejected for stats in outages) else "unreachable"
    return Reply(503, body, {"Cache-Control": "no-store", "Retry-After": "1"})


def stats(registry: Registry) -> Reply:
    """Show this worker's pools: numbers, and who holds what."""
    pools = [
        {**pool.stats().as_dict(), "holders": [str(holder) for holder in pool.holders()]}
        for pool in registry.live_pools()
    ]
    clients = {name: dict(client.stats()) for name, client in registry.live_clients().items()}
    body = {"pid": os.getpid(), "pools": pools, "clients": clients, "units": registry.tally.as_dict()}
    return Reply(200, body, {"Cache-Control": "no-store"})


def forbidden() -> Reply:
    """Answer one who may not see the numbers."""
    return Reply(403, {"error": "forbidden"}, {"Cache-Control": "no-store"})


def may_see_stats(
    remote: str | None, headers: Mapping[str, str], token: str | None, stats: Literal["loopback"] | None = None
) -> bool:
    """Whether a request may see the numbers: it has the bearer token of the settings, or loopback is trusted.

    Args:
        remote: the peer's address as the server saw it.
        headers: any mapping of the request's headers.
        token: the token of the settings.
        stats: the setting of that name. With `"loopback"` a request from this machine is trusted, where it is
            addressed to this machine and has no header of a proxy. A proxy on this machine that adds none can't be
            told from a local user, so this is never assumed.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    if token:
        scheme, _, given = lowered.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _is_token(given.strip(), token):
            return True
    return stats == "loopback" and _is_local(remote, lowered)


def stats_fault(stats: object) -> str | None:
    """Say what is wrong with the setting that opens the numbers, or None."""
    return None if stats in (None, "loopback") else f"must be 'loopback', or None, not {type(stats).__name__}"


def _is_local(remote: str | None, headers: Mapping[str, str]) -> bool:
    host = headers.get("host", "").strip().lower()
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    named = name == "localhost" or _is_loopback(name)  # another name may be an attacker's, with this address
    return named and _is_loopback(remote) and not any(map(_forwards, headers))


def _forwards(header: str) -> bool:
    return header in _FORWARDING or header.startswith("x-forwarded")


def _is_token(given: str, token: str) -> bool:
    forms = [given.encode("utf-8", "surrogatepass")]
    with contextlib.suppress(UnicodeEncodeError):
        forms.append(given.encode("latin-1"))  # what servers read headers as, whatever was sent
    return any(hmac.compare_digest(form, token.encode()) for form in forms)


def _is_loopback(remote: str | None) -> bool:
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:  # no address (a unix socket, which a proxy uses as well): nothing is known about who that is
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # what a socket for both IPs has from an IPv4 client
    return (mapped or address).is_loopback
