"""A panel for django-debug-toolbar: which connections a request took, how long it waited for them and held them.

    DEBUG_TOOLBAR_PANELS = [..., "poolkit_django.panels.PoolkitPanel"]
    MIDDLEWARE = [..., "debug_toolbar.middleware.DebugToolbarMiddleware", ...,
                  "poolkit_django.middleware.PoolkitMiddleware", ...]      # in this order: it is to see the COMMIT

Nothing else imports this module, so the package is needed only where the panel is used. What happens in threads and
tasks of the request counts as well; what happens after the response was made does not.
"""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter
from typing import Any

from debug_toolbar.panels import Panel
from django.db import connections

from poolkit_django import conf
from poolkit_django.signals import connection_acquired, connection_refused, connection_released, unit_ended

__all__ = ["PoolkitPanel"]


class _Recording:
    """What one request did, in milliseconds since it began. Filled by several threads: only by appending."""

    def __init__(self) -> None:
        self._began = perf_counter()
        self.leases: list[tuple[str, float]] = []
        self.returns: list[tuple[str, float]] = []
        self.refusals: list[tuple[str, float]] = []
        self.steps: list[dict[str, Any]] = []

    def step(self, pool: str, what: str) -> None:
        at = (perf_counter() - self._began) * 1000
        self.steps.append({"at": at, "pool": pool, "what": what})

    def of_pools(self) -> list[dict[str, Any]]:
        """Sum up by pool, in the order of first use."""
        names = dict.fromkeys(name for name, _ in [*self.leases, *self.refusals])
        return [
            {
                "name": name,
                "leases": sum(pool == name for pool, _ in self.leases),
                "refused": sum(pool == name for pool, _ in self.refusals),
                "waited": 1000 * sum(waited for pool, waited in [*self.leases, *self.refusals] if pool == name),
                "held": 1000 * sum(used for pool, used in self.returns if pool == name),
                "still_out": sum(pool == name for pool, _ in self.leases)
                - sum(pool == name for pool, _ in self.returns),
                "folds": _folds(name),
            }
            for name in names
        ]


_recording: ContextVar[_Recording | None] = ContextVar("poolkit_django_panel", default=None)


def _acquired(pool: str, waited: float, **_: Any) -> None:
    recording = _recording.get()
    if recording is not None:
        recording.leases.append((pool, waited))
        recording.step(pool, f"leased after {waited * 1000:.2f} ms")


def _released(pool: str, used: float, **_: Any) -> None:
    recording = _recording.get()
    if recording is not None:
        recording.returns.append((pool, used))
        recording.step(pool, f"given back after {used * 1000:.2f} ms")


def _refused(pool: str, waited: float, error: BaseException, **_: Any) -> None:
    recording = _recording.get()
    if recording is not None:
        recording.refusals.append((pool, waited))
        recording.step(pool, f"refused after {waited * 1000:.2f} ms: {type(error).__name__}")


def _ended(committed: bool, aliases: list[str], took: float, error: BaseException | None, **_: Any) -> None:  # noqa: FBT001  the signal's own name
    recording = _recording.get()
    if recording is not None:
        verb = "committed" if committed else "rolled back"
        reason = f" for {type(error).__name__}" if error is not None else ""
        recording.step(", ".join(aliases) or "-", f"unit of work {verb}{reason} in {took * 1000:.2f} ms")


def _folds(alias: str) -> bool | None:
    """Whether BEGIN rides with the first statement to the server; None where that is not known."""
    if alias not in conf.aliases():
        return None
    wrapper: Any = connections[alias]
    library = wrapper.Database
    if wrapper.vendor != "postgresql" or library.__name__ != "psycopg":
        return False
    return bool(wrapper.settings_dict["OPTIONS"].get("fold_begin", True) and library.capabilities.has_pipeline())


class PoolkitPanel(Panel):
    """The connections of one request."""

    is_async = True
    title = "Connections"
    template = "poolkit_django/panel.html"

    _own: _Recording | None = None

    @property
    def nav_subtitle(self) -> str:
        """How many, and how long."""
        stats = self.get_stats()
        if not stats.get("pools"):
            return "none taken"
        leases = sum(pool["leases"] for pool in stats["pools"])
        waited = sum(pool["waited"] for pool in stats["pools"])
        held = sum(pool["held"] for pool in stats["pools"])
        return f"{leases} taken, waited {waited:.1f} ms, held {held:.1f} ms"

    def enable_instrumentation(self) -> None:
        """Listen from now on; the receivers stay, for other requests run meanwhile, and note nothing outside of one."""
        connection_acquired.connect(_acquired, dispatch_uid="poolkit_django.panels")
        connection_released.connect(_released, dispatch_uid="poolkit_django.panels")
        connection_refused.connect(_refused, dispatch_uid="poolkit_django.panels")
        unit_ended.connect(_ended, dispatch_uid="poolkit_django.panels")
        self._own = _Recording()
        _recording.set(self._own)

    def disable_instrumentation(self) -> None:
        """Note nothing more."""
        _recording.set(None)

    def generate_stats(self, request: Any, response: Any) -> None:  # noqa: ARG002  the toolbar's signature
        """Keep what was noted."""
        if self._own is not None:
            self.record_stats({"pools": self._own.of_pools(), "steps": self._own.steps})

    def generate_server_timing(self, request: Any, response: Any) -> None:  # noqa: ARG002  the toolbar's signature
        """Tell the browser as well."""
        for pool in self.get_stats().get("pools", ()):
            for what in ("waited", "held"):
                self.record_server_timing(f"{pool['name']}_{what}", f"{pool['name']} {what}", pool[what])
