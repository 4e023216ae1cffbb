"""ReplicaRouter: reads to replicas, writes to the primary, and who wrote reads his own writes.

    DATABASE_ROUTERS = ["poolkit_django.routers.ReplicaRouter"]
    POOLKIT_REPLICAS = {"default": ["replica1", "replica2"]}

A read goes to a replica that answers and is not too far behind, unless

- the code runs in an atomic() of its own on the primary, or in a test's;
- this unit of work has written on the primary, or locks rows there;
- the client has written, and the replica has not replayed that yet. The client carries a mark of it in a signed cookie
  for so long; a task gets it as an argument, with `token()` and `use()`.

A unit of work stays where it has read first, as long as it can. Other routers keep their models: put this one first,
and it asks them which primary a model lives on; a model that they put on an alias without replicas is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import router as all_routers
from django.utils.cache import patch_vary_headers

from poolkit_django import footing as footings
from poolkit_django.fleet import Fleet, fleet, in_event_loop
from poolkit_django.footing import Footing, footing
from poolkit_django.replica_settings import replica_aliases, replica_limits, replicas
from poolkit_django.replicas import Mark
from poolkit_django.scopes import scope_var

__all__ = ["ReplicaRouter", "report", "token", "use", "wrote"]

_NO_MARK = Mark()


class ReplicaRouter:
    """Reads to replicas, writes to the primary. Raises `ImproperlyConfigured` for settings that can't work."""

    def __init__(self) -> None:
        fleet()

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        """Choose a replica, or the primary; None for a model that lives on neither."""
        primary = self._home("db_for_read", model, hints)
        if primary is None or primary not in replicas():
            return None
        return _place_to_read(primary, fleet())

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        """Choose the primary, also for what was read from a replica; None for a model that lives elsewhere."""
        primary = self._home("db_for_write", model, hints)
        if primary is None or primary not in replicas():
            return None
        here = footing()
        if here.unit:
            here.wrote.add(primary)
        return primary

    def _home(self, question: str, model: Any, hints: dict[str, Any]) -> str | None:
        """Find the primary of a model as if this router were not there."""
        for other in all_routers.routers:
            ask = getattr(other, question, None)
            if not isinstance(other, ReplicaRouter) and ask is not None:
                answer: str | None = ask(model, **hints)
                if answer:
                    return answer
        instance = hints.get("instance")
        alias: str = (None if instance is None else instance._state.db) or DEFAULT_DB_ALIAS  # noqa: SLF001  Django's way
        return replica_aliases().get(alias, alias)

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool | None:  # noqa: ARG002  Django's signature
        """Allow a relation between what was read from a primary and from its replicas."""
        whose = replica_aliases()
        first, second = (whose.get(db, db) for db in (one._state.db, other._state.db))  # noqa: SLF001
        return True if first == second and first in replicas() else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:  # noqa: ARG002  Django's signature
        """Migrate no replica: it gets everything from its primary."""
        return False if db in replica_aliases() else None


def _place_to_read(primary: str, ships: Fleet) -> str:
    here = footing()
    if (here.unit and primary in here.wrote) or not _is_free(primary) or ships.is_mirrored(primary):
        return primary
    if here.unit and here.chosen.get(primary) == primary:
        return primary
    if primary in here.unknown:
        if here.is_settling(primary, ships) or in_event_loop():
            return primary
        here.settle(primary, ships)
    mark = here.marks.get(primary, _NO_MARK)
    found = ships.choose(primary, mark, here.chosen.get(primary)) or primary
    if here.unit:
        here.chosen[primary] = found
    return found


def _is_free(primary: str) -> bool:
    """Whether no transaction that matters is open on the primary: a unit's own does not, before its first write."""
    wrapper = connections[primary]
    if not wrapper.atomic_blocks:
        return wrapper.settings_dict["AUTOCOMMIT"] and wrapper.get_autocommit()
    unit = scope_var.get()
    return unit is not None and not unit.closed and unit.reads_freely(primary)


# -- for tasks and by hand ---------------------------------------------------------------------------------------------


def token() -> str:
    """Return what this code has written, for a task: `transaction.on_commit(lambda: task.delay(..., token=token()))`.

    A signed text, good for `remember` seconds. Call it after the COMMIT; what is not committed yet is not in it.
    """
    here = footing()
    for primary in replicas():
        here.settle(primary, fleet())
    return footings.encode(here.marks)


@contextmanager
def use(token: str) -> Iterator[None]:
    """Read in this block only what holds the writes of a `token()`; one too old, or not ours, demands nothing."""
    marks = footings.decode(token, replica_limits().remember, list(replicas()))
    with footings.carried(marks):
        yield


def wrote(using: str = DEFAULT_DB_ALIAS) -> None:
    """Say that something was written that can't be seen: by a function in the middle of a SELECT, or by COPY."""
    if using in replicas():
        footing().note_write(using, connections[using], fleet())


def report() -> list[dict[str, Any]]:
    """Tell of every replica whether it is in use, its lag and its last error, in plain data."""
    return fleet().report() if replicas() else []


# -- requests ----------------------------------------------------------------------------------------------------------


class Marks:
    """Reads a client's mark from its request, and gives it the new one; PoolkitMiddleware asks it for both."""

    def __init__(self) -> None:
        self._fleet = fleet()
        self._cookie = self._fleet.limits.cookie

    def read(self, request: Any, unit: Any) -> None:
        """Give the unit of work a footing on what its client has written."""
        text = request.COOKIES.get(self._cookie) if self._cookie else None
        marks = footings.decode(text, self._fleet.limits.remember, list(self._fleet.primaries)) if text else {}
        unit.footing = Footing(marks, request=True, unit=True)

    def write(self, unit: Any, response: Any) -> None:
        """Give the client its mark, where it has written. Call it after the COMMIT, in the unit's thread."""
        here: Footing = unit.footing
        for primary in list(here.unknown):
            here.settle(primary, self._fleet)
        if unit.streaming and not unit.ended:  # the COMMIT comes after the headers
            for primary in here.wrote:
                here.meet(primary, self._fleet.mark_in_time())
        if here.changed and self._cookie:
            self._set(self._cookie, response, footings.encode(here.marks))

    def _set(self, name: str, response: Any, text: str) -> None:
        response.set_cookie(
            name,
            text,
            max_age=self._fleet.limits.remember,
            path=settings.SESSION_COOKIE_PATH,
            domain=settings.SESSION_COOKIE_DOMAIN,
            secure=settings.SESSION_COOKIE_SECURE,
            httponly=True,
            samesite=settings.SESSION_COOKIE_SAMESITE,
        )
        patch_vary_headers(response, ["Cookie"])
