"""Session: what an alias of DATABASES asks of a connection, in words that any driver of PostgreSQL can be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["Session"]

# What Django's backend or the engine adds for the ORM's own cursors: a native connection has those of its driver.
_FOR_THE_ORM = ("connection_factory", "context", "cursor_factory", "row_factory")
_OURS = ("harmless_functions", "session_settings", "statement_timeout")


class Session:
    """The connection parameters of an alias, its time zone, its role and its isolation level.

    `settings` is copied: a test runner changes NAME in place, and a pool stays with its database.
    """

    def __init__(self, kind: Callable[..., BaseDatabaseWrapper], alias: str, settings: Mapping[str, Any]) -> None:
        self._kind = kind
        self._alias = alias
        self._settings = {**settings, "OPTIONS": dict(settings["OPTIONS"])}
        self.time_zone: str | None = self._wrapper().timezone_name
        options = self._settings["OPTIONS"]
        self.role: str | None = options.get("assume_role")
        self.isolation_level: Any = options.get("isolation_level")
        self.ours = {name: options[name] for name in _OURS if name in options}  # options of poolkit's drivers

    def _wrapper(self) -> Any:
        return self._kind({**self._settings, "OPTIONS": dict(self._settings["OPTIONS"])}, self._alias)

    @property
    def is_behind_a_pooler(self) -> bool:
        """Whether the settings say that a session may change between transactions, so that nothing can be prepared."""
        return bool(self._settings.get("DISABLE_SERVER_SIDE_CURSORS"))

    def parameters(self) -> dict[str, Any]:
        """Return libpq's parameters, as the engine makes them at this moment. Raises `ImproperlyConfigured`."""
        params: dict[str, Any] = self._wrapper().get_connection_params()
        return {name: value for name, value in params.items() if name not in _FOR_THE_ORM}
