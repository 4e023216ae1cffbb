"""The fleet: every primary with its replicas, looked at from this process.

While a replica is in use, one daemon thread looks at it, and at its primary, twice a second; no request waits for that.
Only where nothing recent is known (the first read, or after a quiet time) does a request wait for one look, and never
longer than the time a replica has for an answer. A replica that is silent costs that much once: the thread then cuts
its connections, so that statements that hang on it fail, and those are served elsewhere.

A read that finds its replica gone goes on elsewhere, within the same call: at the connect (`Fleet.take`), and in the
statement itself where the connection was leased before (`Retry`). Both are safe because replicas are read outside of
transactions, one statement at a time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DatabaseError, InternalError, connections
from django.db.backends.signals import connection_created

from poolkit import AcquireTimeout, OpenFailed, Overloaded, PoolClosed, PoolError, PoolStats
from poolkit.fork import know
from poolkit_django.backends import pools
from poolkit_django.footing import Watch
from poolkit_django.looking import Silent, look
from poolkit_django.replica_settings import replica_aliases, replica_limits, replicas
from poolkit_django.replicas import Course, Limits, Mark, Replica, fittest, writes
from poolkit_django.scopes import takers
from poolkit_django.writing import surely_writes

__all__ = ["Fleet", "fleet", "in_event_loop"]

logger = logging.getLogger("poolkit")

_UID = "poolkit_django.fleet"
_FIRST_STEP = 0.05  # seconds to wait for a replica before it is asked whether connects fail


class Lookout:
    """Looks at one replica for as long as somebody reads from it."""

    def __init__(self, replica: Replica, primary: str, course: Course, clock: Callable[[], float]) -> None:
        self.replica = replica
        self._primary, self._course, self._clock = primary, course, clock
        self._limits = replica.limits
        self._lock = threading.Lock()
        self._wanted = self._running = self._over = False
        self._bell = threading.Event()
        self.looked = threading.Event()
        know(self)

    def after_fork_in_child(self) -> None:
        """Start afresh: the thread is the parent's."""
        self._lock = threading.Lock()
        self._wanted = self._running = False
        self._bell, self.looked = threading.Event(), threading.Event()

    def at_exit(self) -> None:
        """End the thread at its next step."""
        self._wanted, self._over = False, True
        self._bell.set()

    def want(self) -> None:
        """Have somebody look, from now on, as long as it is wanted again and again."""
        self._wanted = True
        if not self._running and self._claim():
            threading.Thread(target=self._run, name=f"poolkit-{self.replica.alias}", daemon=True).start()

    def _claim(self) -> bool:
        with self._lock:
            before, self._running = self._running, True
            if not before:
                self.looked.clear()
            return not before

    def _run(self) -> None:
        try:
            while True:
                self._wanted = False
                self.look()
                self.looked.set()
                self._bell.wait(self._limits.pause)
                with self._lock:
                    if not self._is_needed():
                        self._running = False
                        return
        except BaseException:
            self._running = False
            if not self._over:  # else it met the end of the process: pools are closed, and no thread can be started
                raise
        finally:
            self.looked.set()
            connections.close_all()

    def _is_needed(self) -> bool:
        """Whether somebody reads, or hangs: in a process with one thread nobody else would find that out."""
        if self._over:
            return False
        if self._wanted:
            return True
        try:
            return pools.pool_for(connections[self.replica.alias]).stats().out > 0
        except ImproperlyConfigured:
            return False

    def look(self) -> None:
        """Look once at the replica, and before at its primary, where there are positions to hold against each other."""
        before = self.replica.is_fit(self._clock()), self.replica.out
        wrapper = connections[self.replica.alias]
        if wrapper.vendor == "postgresql":
            self._look_at_primary()
        try:
            sight = look(wrapper, self._limits.timeout)
        except Silent as error:
            self.replica.failed(error)
            pools.cut_off(wrapper)
        except (PoolError, DatabaseError, ImproperlyConfigured, OSError) as error:
            if not isinstance(error, PoolClosed):
                self.replica.failed(error)
        else:
            self.replica.heard(self._clock(), sight, self._course)
        self._tell(*before)

    def _look_at_primary(self) -> None:
        try:
            sight = look(connections[self._primary], self._limits.timeout)
        except (PoolError, DatabaseError, ImproperlyConfigured, OSError, Silent) as error:
            logger.debug("primary %r was not seen: %s", self._primary, error)  # its own users hear of it
        else:
            self._course.note(self._clock(), sight)

    def _tell(self, was_fit: bool, was_out: str | None) -> None:  # noqa: FBT001
        replica = self.replica
        fit = replica.is_fit(self._clock())
        if was_fit and not fit:
            why = replica.out or f"it is {replica.lag or 0:.1f} s and {replica.lag_bytes} bytes behind"
            logger.warning("replica %r is left out: %s", replica.alias, why)
        elif fit and was_out is not None:
            logger.info("replica %r is used again", replica.alias)


class Fleet:
    """Every primary of the settings with its replicas. `clock` and `wall` are for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self.limits: Limits = replica_limits()
        self._clock, self._wall = clock, wall
        self.primaries = {primary: [self._lookout(alias, primary) for alias in names] for primary, names in _courses()}
        self.lookouts = {one.replica.alias: one for group in self.primaries.values() for one in group}
        self._watches = {primary: Watch(primary, self) for primary in self.primaries}
        self._retries = {alias: Retry(self) for alias in self.lookouts}
        takers.clear()
        takers.update(dict.fromkeys(self.lookouts, self.take))
        connection_created.disconnect(dispatch_uid=_UID)  # of one before: it may be there until garbage is collected
        connection_created.connect(self._dress, dispatch_uid=_UID)

    def _lookout(self, names: Any, primary: str) -> Lookout:
        alias, course = names
        return Lookout(Replica(alias, self.limits), primary, course, self._clock)

    def _dress(self, connection: Any, **_: Any) -> None:
        """Stand around the statements of a wrapper that matters here; there is one for each thread."""
        around: Any = self._watches.get(connection.alias) or self._retries.get(connection.alias)
        wrappers = connection.execute_wrappers
        if around is not None and around not in wrappers:
            wrappers[:] = [around, *(one for one in wrappers if not isinstance(one, Watch | Retry))]

    def now(self) -> float:
        """Seconds on the fleet's clock."""
        return self._clock()

    def sink(self) -> None:
        """Look at nothing any more: the settings it was made of have changed."""
        connection_created.disconnect(dispatch_uid=_UID)
        for one in self.lookouts.values():
            one.at_exit()

    # -- choosing -----------------------------------------------------------------------------------------------------

    def is_mirrored(self, primary: str) -> bool:
        """Whether its replicas are the very same database, as they are under test: then there is nothing to choose."""
        here = _place(connections.settings[primary])
        others = [connections.settings[one.replica.alias] for one in self.primaries[primary]]
        if _is_test_run() and all(other["TEST"]["MIRROR"] == primary for other in others):
            return True
        return all(_place(other) == here for other in others)

    def choose(self, primary: str, mark: Mark, stay: str | None) -> str | None:
        """Return a replica that has what the mark demands, the one to `stay` with if it will do; None: the primary."""
        group = self.primaries[primary]
        for one in group:
            one.want()
        self._wait(group)
        fit = [replica.alias for replica in fittest([one.replica for one in group], mark, self._clock(), self._wall())]
        if not fit or stay in fit:
            return stay if fit else None
        return random.choice(fit)  # noqa: S311  a die for load, not for secrets

    def _wait(self, group: list[Lookout]) -> None:
        now = self._clock()
        if any(one.replica.is_fit(now) for one in group):
            return
        waiting = [one for one in group if one.replica.is_worth_waiting_for(now)]
        if waiting and not in_event_loop():
            deadline = time.monotonic() + self.limits.timeout
            for one in waiting:
                if not one.looked.wait(max(0.0, deadline - time.monotonic())):
                    one.replica.failed(f"no answer within {self.limits.timeout:g} s")

    def mark_of(self, wrapper: Any, since: float) -> Mark:
        """Ask a primary for its position now: everything committed before is at or before it.

        Where that can't be told, the mark is a time, which is counted from the COMMIT, at `since`.
        """
        if wrapper.vendor == "postgresql" and not self.is_mirrored(wrapper.alias):
            try:
                sight = look(wrapper, self.limits.timeout, leased=wrapper.connection)
            except (PoolError, DatabaseError, Silent, OSError) as error:
                logger.warning("the position of a write on %r is not known: %s", wrapper.alias, error)
            else:
                if sight.position is not None:
                    return Mark(sight.position)
        return self.mark_in_time(self._clock() - since)

    def mark_in_time(self, age: float = 0.0) -> Mark:
        """Make a mark for what has no position: the primary, until the write is as old as marks get."""
        return Mark(until=self._wall() + self.limits.remember - age)

    # -- going on elsewhere -------------------------------------------------------------------------------------------

    def take(self, wrapper: Any) -> tuple[Any, str]:
        """Lease for a replica's wrapper; where it can't be reached, from another one or from the primary.

        Returns the lease, and what stands in for the replica: "replica", "primary", or "" where it is its own.
        """
        one = self.lookouts[wrapper.alias]
        if wrapper.elsewhere:  # the statement was lost once: now it goes where it is safe
            return pools.pool_for(connections[replica_aliases()[wrapper.alias]]).acquire(), "primary"
        one.want()
        lease = self._own(one, pools.pool_for(wrapper))
        if lease is not None:
            return lease, ""
        return self._stand_in(one)

    def _own(self, one: Lookout, pool: Any) -> Any:
        """Lease from a replica's own pool; None where it can't be reached, which is found out before the time is up.

        Raises `AcquireTimeout` where it has too much to do: the primary would have, too.
        """
        deadline = time.monotonic() + pool.config.timeout
        step = _FIRST_STEP
        while True:
            left = deadline - time.monotonic()
            try:
                return pool.acquire(max(0.0, min(step, left)))
            except OpenFailed as error:
                one.replica.failed(error)
                return None
            except AcquireTimeout as error:
                if self._is_in_vain(one, pool.stats(), error, step):
                    return None
                if left <= step:
                    raise
                step = self.limits.timeout

    def _is_in_vain(self, one: Lookout, stats: PoolStats, error: AcquireTimeout, step: float) -> bool:
        if stats.outage is not None:  # the pool tries again and again
            one.replica.failed(stats.outage)
            return True
        if step != _FIRST_STEP and stats.out < stats.max_size:  # a connect takes too long
            one.replica.failed(error)
            return True
        return not one.replica.is_fit(self._clock())

    def _stand_in(self, one: Lookout) -> tuple[Any, str]:
        """Lease from another replica, or else from the primary."""
        primary = replica_aliases()[one.replica.alias]
        now = self._clock()
        for other in self.primaries[primary]:
            if other is not one and other.replica.is_fit(now):
                try:
                    return pools.pool_for(connections[other.replica.alias]).acquire(self.limits.timeout), "replica"
                except (OpenFailed, AcquireTimeout, Overloaded) as failure:
                    logger.debug("replica %r can't stand in: %s", other.replica.alias, failure)
        return pools.pool_for(connections[primary]).acquire(), "primary"

    def report(self) -> list[dict[str, Any]]:
        """Tell how every replica is, in plain data."""
        now = self._clock()
        return [
            {"primary": primary, **one.replica.as_dict(now)}
            for primary, group in self.primaries.items()
            for one in group
        ]


class Retry:
    """Stands around every statement on a replica: one that is lost with its connection runs again elsewhere."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001  Django's
        """Run the statement."""
        wrapper = context["connection"]
        if wrapper.stands_in and surely_writes(sql):
            raise InternalError(f"{wrapper.alias!r} is a replica, and not reachable now: write on its primary")
        try:
            return execute(sql, params, many, context)
        except DatabaseError as error:
            if not self._may_run_again(wrapper, error, sql):
                raise
            logger.warning(
                "a read on replica %r runs again elsewhere: %s", wrapper.alias, str(error).partition("\n")[0]
            )
        self._move(wrapper, context["cursor"])
        return execute(sql, params, many, context)

    @staticmethod
    def _may_run_again(wrapper: Any, error: DatabaseError, sql: Any) -> bool:
        """Whether the connection is lost, or the replay had to go on: both say nothing about the statement."""
        if wrapper.in_atomic_block or wrapper.stands_in == "primary" or writes(sql) or not wrapper.get_autocommit():
            return False
        conflict = getattr(error.__cause__, "sqlstate", None) == "40001"
        return conflict or (wrapper.connection is not None and wrapper.is_gone(wrapper.connection))

    def _move(self, wrapper: Any, holder: Any) -> None:
        """Give the cursor that is about to be read another connection."""
        name = getattr(holder.cursor, "name", None)
        wrapper.close()
        wrapper.elsewhere = True
        try:
            wrapper.ensure_connection()
        finally:
            wrapper.elsewhere = False
        type(holder).__init__(holder, wrapper.create_cursor(name), wrapper)


def _courses() -> list[tuple[str, list[tuple[str, Course]]]]:
    return [
        (primary, [(alias, course) for alias in names])
        for primary, names in replicas().items()
        for course in [Course()]
    ]


def _is_test_run() -> bool:
    """Whether Django's test runner, or pytest-django, has set the process up for tests."""
    utils = sys.modules.get("django.test.utils")
    return utils is not None and hasattr(utils._TestState, "saved_data")  # noqa: SLF001  Django has no other sign


def _place(options: Any) -> tuple[str, str, str]:
    return options["HOST"], str(options["PORT"]), str(options["NAME"])


def in_event_loop() -> bool:
    """Whether waiting here would stop every other request of the thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_made: dict[str, Fleet] = {}
_lock = threading.Lock()


def _forget(*, setting: str, **_: Any) -> None:
    if setting in ("POOLKIT_REPLICAS", "POOLKIT_REPLICA_OPTIONS", "DATABASES"):
        old = _made.pop("fleet", None)
        if old is not None:
            old.sink()
        takers.clear()


setting_changed.connect(_forget, dispatch_uid=_UID)


def fleet() -> Fleet:
    """Return this process's fleet, made on first use. Raises `ImproperlyConfigured`."""
    found = _made.get("fleet")
    if found is None:
        with _lock:
            found = _made.get("fleet")
            if found is None:
                found = _made["fleet"] = Fleet()
    return found
