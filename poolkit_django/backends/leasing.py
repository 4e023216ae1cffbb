"""Leasing: a DatabaseWrapper that leases its connection from a pool of poolkit's, whatever the library below.

A wrapper belongs to one thread, as ever in Django. It takes a lease when it connects and ends it when it closes, which
happens at the end of the unit of work, or of the request, whatever CONN_MAX_AGE says. Where nobody would visit its
thread at the end (a thread started by a view, a body that is streamed after the commit), the lease ends as soon as no
cursor and no transaction is open; at the latest it ends with its thread.
"""

from __future__ import annotations

import atexit
import sys
import threading
from _thread import get_ident
from collections.abc import Callable, Mapping
from typing import Any

from asgiref.sync import SyncToAsync
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.signals import connection_created

from poolkit import Lease, PoolClosed, PoolError
from poolkit_django import native
from poolkit_django.backends import pools
from poolkit_django.backends.lazy import LazyAtomic
from poolkit_django.scopes import scope_var, takers

__all__ = ["Leasing", "PooledCreation"]


_in_async_request = SyncToAsync.thread_sensitive_context.get  # set by Django's ASGI handler, for each request


def _asked_by(module: str) -> bool:
    """Whether the method that asks this was called from a module."""
    method = sys._getframe(1)  # noqa: SLF001  there is no other way to know a caller
    return method.f_back is not None and method.f_back.f_globals.get("__name__") == module


class _Leases:
    """What one thread has leased. It dies with the thread, at once.

    A wrapper would not: cycles keep it until a garbage collection, so it knows the dictionary in here, not this object.
    """

    def __init__(self) -> None:
        self.held: dict[Lease[Any], Leasing] = {}

    def give_back(self) -> None:
        """End every lease, but for those of wrappers that other threads may use: who shares one closes it."""
        for lease, wrapper in list(self.held.items()):
            if not wrapper.allow_thread_sharing:
                wrapper.start_afresh()
                if self.held.pop(lease, None) is not None and not lease.inherited:
                    self._end(lease, wrapper)

    @staticmethod
    def _end(lease: Lease[Any], wrapper: Leasing) -> None:
        # Nothing may be logged here: a thread that ends is known to Python no more, and a log line would invent one.
        if wrapper.is_busy(lease.resource):
            lease.discard("broken")
        else:
            lease.release()

    __del__ = give_back


class _Threads(threading.local):
    def __init__(self) -> None:
        self.leases = _Leases()


_threads = _Threads()


@atexit.register  # before the pools close, which were imported first; the main thread's own end would come too late
def _at_exit() -> None:
    _threads.leases.give_back()


class Leasing(LazyAtomic):
    """What the engines share. What differs between the libraries stands at the end, for each engine to fill in."""

    leases_from_poolkit = True
    pool = None  # every branch of Django's own pool is off
    alias: str

    lease: Lease[Any] | None = None
    allow_thread_sharing: bool
    _thread_ident: int
    errors_occurred: bool
    health_check_enabled: bool
    health_check_done: bool
    close_at: float | None
    _home: dict[Lease[Any], Leasing] | None = None
    _known: pools.Known | None = None
    _scope: Any = None
    _unusable = False
    _asked_to_roll_back: int | None = None
    open_cursors = 0
    elsewhere = False
    """Whether the next lease is to be another server's: a replica's connection was lost, or its answer taken back."""
    stands_in = False
    """Whether the lease is another server's than the alias says, for as long as one statement takes."""

    # -- taking -------------------------------------------------------------------------------------------------------

    def _cursor(self, name: str | None = None) -> Any:
        """Open a cursor as Django does, but ask only once for what `cursor()` has asked already."""
        lease = self.lease
        if lease is None or lease.inherited:
            self.close_if_health_check_failed()
            self.ensure_connection()
        with self.wrap_database_errors:  # type: ignore[attr-defined]
            return self._prepare_cursor(self.create_cursor(name))  # type: ignore[attr-defined]

    def ensure_connection(self) -> None:
        """Connect where there is no connection. `connect` refuses to be called in an event loop."""
        if self.connection is not None:
            return
        if self._pool() is None or self.closed_in_transaction:
            super().ensure_connection()  # type: ignore[misc]
        else:
            self.connect()

    def validate_thread_sharing(self) -> None:
        """Refuse other threads, unless the wrapper was made to be shared."""
        if self._thread_ident != get_ident():
            super().validate_thread_sharing()  # type: ignore[misc]

    def _connect_now(self) -> None:
        """Connect as Django does, less what a leased connection has behind it: half of the calls."""
        if self._pool() is None:
            super()._connect_now()
            return
        settings = self.settings_dict
        if settings["TIME_ZONE"] is not None:
            self.check_settings()  # type: ignore[attr-defined]
        self.in_atomic_block = self.needs_rollback = self.closed_in_transaction = self.errors_occurred = False
        self.savepoint_ids, self.atomic_blocks = [], []
        self.health_check_enabled, self.health_check_done = settings["CONN_HEALTH_CHECKS"], True
        self.close_at = None  # the pool looks after its age
        self.connection = self.get_new_connection({})
        autocommit = settings["AUTOCOMMIT"]
        if self.has_mode(self.connection, autocommit=autocommit):  # nearly always
            self.autocommit = autocommit
        else:
            self.set_autocommit(autocommit)
        self.init_connection_state()  # type: ignore[attr-defined]
        if connection_created.receivers:
            connection_created.send(sender=self.__class__, connection=self)
        self.run_on_commit = []

    def _pool(self) -> pools.Known | None:
        """Find what it leases from, None where nothing is pooled."""
        known = self._known
        if known is None or not known.serves(self):  # type: ignore[arg-type]
            pooled = self.alias != NO_DB_ALIAS and pools.is_pooled(self.settings_dict)
            known = self._known = pools.known(self) if pooled else None  # type: ignore[arg-type]
        return known

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Lease a connection. Raises `OperationalError` from poolkit's error where there is none to be had.

        The parameters are for a connection that is not pooled; the pool connects with its own.
        """
        known = self._pool()
        if known is None:
            return super().get_new_connection(conn_params)  # type: ignore[misc]
        lease = self._acquire(known)
        self.lease, self._home = lease, _threads.leases.held
        self._home[lease] = self
        self._unusable, self.open_cursors = False, 0
        scope = self._scope = scope_var.get()
        if scope is not None:
            scope.leased(self)
            lease.label(scope.label)
        connection = lease.resource
        self.leased(connection)
        return connection

    def _acquire(self, known: pools.Known) -> Lease[Any]:
        try:
            try:
                return self._take(known)
            except PoolClosed:  # since it was last asked: there is a new one
                return self._take(pools.known(self))  # type: ignore[arg-type]
        except PoolError as error:
            if isinstance(error.__cause__, ImproperlyConfigured):
                raise error.__cause__ from None
            raise OperationalError(str(error)) from error

    def _take(self, known: pools.Known) -> Lease[Any]:
        take = takers.get(self.alias)
        if take is None:
            self._known = known
            return known.pool.acquire()
        lease, self.stands_in = take(self)
        return lease

    def open_physical(self, defaults: Mapping[str, Any]) -> Any:
        """Connect, and configure once for the life of the connection.

        `defaults` are connection parameters for what the settings leave open.
        """
        params = {**defaults, **self.get_connection_params()}  # type: ignore[attr-defined]
        connection = super().get_new_connection(params)  # type: ignore[misc]
        try:
            self.configure_physical(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def start_afresh(self) -> None:
        """Forget the connection and what was under way on it, without a word to the server."""
        self.connection = self.lease = self._scope = None
        self.in_atomic_block = False
        self.savepoint_ids: list[Any] = []
        self.atomic_blocks: list[Any] = []
        self.run_on_commit: list[Any] = []
        self.forget_mode()

    # -- giving back --------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        lease = self.lease
        if lease is None:
            super()._close()  # type: ignore[misc]
            return
        self.connection = self.lease = self._scope = None
        if not self._is_held(lease):
            return
        if not self._unusable:
            lease.__exit__(None, None, None)  # the shortest way back, which leaves alone what was inherited
        elif not lease.inherited:
            lease.discard("broken")

    def close(self) -> None:
        """Give the connection back."""
        super().close()  # type: ignore[misc]
        self.forget_mode()

    def close_if_unusable_or_obsolete(self) -> None:
        """Give the connection back at the end of a request, whatever CONN_MAX_AGE says; the pool looks after its age.

        In a transaction (a test's, around the request) it stays. Django asks this before and after each request.
        """
        if self.lease is not None:
            if self.in_atomic_block:
                return
            if self._thread_ident != get_ident():
                self.close()  # refused, unless threads share it
                return
            self._close()
        elif self.connection is not None:
            super().close_if_unusable_or_obsolete()  # type: ignore[misc]
            return
        elif self.in_atomic_block:
            return
        self.run_on_commit = []
        self.forget_mode()

    def close_if_health_check_failed(self) -> None:
        """Leave health to the pool, which looks at the socket when it lends; no round trip here.

        Django asks this before each statement: the place to notice a connection inherited over a fork. It is the
        parent's, and left alone.
        """
        lease = self.lease
        if lease is None:
            super().close_if_health_check_failed()  # type: ignore[misc]
        elif lease.inherited:
            self.start_afresh()

    def is_usable(self) -> bool:
        """Ask the server; a connection found unusable is discarded when it is closed."""
        usable = super().is_usable()  # type: ignore[misc]
        self._unusable = not usable
        return bool(usable)

    def reclaim(self, scope: Any) -> None:
        """End the lease of a thread that has let go of it without closing; called by the scope, from its own thread.

        The connection is closed and not lent again: only its own thread knows for sure that nothing uses it.
        """
        lease, connection = self.lease, self.connection
        if lease is None or connection is None or self._scope is not scope or self.in_atomic_block or self.open_cursors:
            return
        if not self.is_at_rest(connection):
            return
        self.connection = self.lease = self._scope = None
        if self._is_held(lease):
            lease.discard("leaked")

    def cut_off(self) -> None:
        """End the lease in the middle of a transaction that nobody will end; called from another thread."""
        lease = self.lease
        self.start_afresh()
        if lease is not None and self._is_held(lease) and not lease.inherited:
            lease.discard("abandoned")

    def _is_held(self, lease: Lease[Any]) -> bool:
        """Take a lease off the list of its thread; False where that ended and has given it back."""
        return self._home is not None and self._home.pop(lease, None) is not None

    # -- threads that nobody visits -----------------------------------------------------------------------------------

    def cursor_closed(self) -> None:
        """Let go of the connection where this was the last use of it in a thread that nobody visits at the end."""
        if self.open_cursors:
            return
        scope = self._scope
        # In an async request without a unit of work the end may be far: its view waits for other things as well.
        over = scope.is_over_in(get_ident()) if scope is not None else _in_async_request(None) is not None
        if over or self.stands_in:
            self._let_go()

    def set_autocommit(self, autocommit: bool, **kwargs: Any) -> None:  # noqa: FBT001  Django's signature
        """Change the mode; after the end of a transaction is a moment to let go of the connection, as after a query."""
        super().set_autocommit(autocommit, **kwargs)
        if autocommit and not self._connecting:
            self.nobody_asked_to_roll_back()
            self.cursor_closed()

    def _let_go(self) -> None:
        mine = self._thread_ident == get_ident()
        if (
            mine
            and not self.in_atomic_block
            and not self._connecting
            and self.connection is not None
            and self.autocommit
        ):
            self.close()

    # -- the transaction ----------------------------------------------------------------------------------------------

    def _set_autocommit(self, autocommit: bool) -> None:  # noqa: FBT001  Django's signature
        if self.lease is None or not self.has_mode(
            self.connection, autocommit=autocommit
        ):  # psycopg looks around even for no change
            super()._set_autocommit(autocommit)  # type: ignore[misc]

    def set_rollback(self, rollback: bool) -> None:  # noqa: FBT001  Django's signature
        """Mark the block for rollback, and remember that somebody asked for it: then it is no accident."""
        super().set_rollback(rollback)  # type: ignore[misc]
        self._asked_to_roll_back = len(self.atomic_blocks) if rollback else None

    def nobody_asked_to_roll_back(self) -> None:
        """Forget what `set_rollback` was told: another block begins."""
        self._asked_to_roll_back = None

    @property
    def asked_to_roll_back(self) -> bool:
        """Whether the block entered last was marked by `set_rollback(True)`."""
        return bool(self.needs_rollback) and self._asked_to_roll_back == len(self.atomic_blocks)

    @property
    def lost_its_transaction(self) -> bool:
        """Whether a COMMIT now would save nothing although nobody asked for that: a failed statement was ignored."""
        if self.asked_to_roll_back:
            return False
        if self.needs_rollback or self.closed_in_transaction:
            return True
        return self.connection is not None and self.is_aborted(self.connection)

    # -- settings and test databases ----------------------------------------------------------------------------------

    def close_pool(self) -> None:
        """Close this wrapper's pool; what is out of it is closed when it comes back.

        Celery asks for that around each task of a prefork worker, because Django's own pool doesn't survive a fork.
        This one begins anew in the child, and stays for the next task.
        """
        if self.alias != NO_DB_ALIAS and not _asked_by("celery.fixups.django"):
            pools.retire(self)  # type: ignore[arg-type]

    # -- what each engine fills in ------------------------------------------------------------------------------------

    driver_class: Callable[..., Any]
    """Makes the driver: `driver_class(make, options, config, where)`; it takes its own out of `options`."""

    def leased(self, connection: Any) -> None:
        """Take over what Django's backend would have kept from its own connect."""

    def configure_physical(self, connection: Any) -> None:
        """Set what lasts as long as the connection: of a new one, and of one whose whole session was reset."""

    @staticmethod
    def has_mode(connection: Any, *, autocommit: bool) -> bool:
        """Whether a connection is in this mode."""
        raise NotImplementedError

    @staticmethod
    def is_busy(connection: Any) -> bool:
        """Whether a statement is under way."""
        raise NotImplementedError

    @staticmethod
    def is_at_rest(connection: Any) -> bool:
        """Whether nothing is under way and no transaction is open."""
        raise NotImplementedError

    def is_aborted(self, connection: Any) -> bool:
        """Whether a COMMIT would save nothing, or not all: the server has given the transaction up."""
        raise NotImplementedError

    @staticmethod
    def is_gone(connection: Any) -> bool:
        """Whether the server hung up on a connection."""
        raise NotImplementedError


class PooledCreation:
    """Mix in before a DatabaseCreation: a database that is to be dropped or copied must have no connection left."""

    connection: Any

    def _destroy_test_db(self, *args: Any, **kwargs: Any) -> Any:
        pools.close_database(self.connection)
        native.close_database(self.connection.settings_dict)
        return super()._destroy_test_db(*args, **kwargs)  # type: ignore[misc]

    def _clone_test_db(self, *args: Any, **kwargs: Any) -> Any:
        self.connection.close()
        pools.close_database(self.connection)
        native.close_database(self.connection.settings_dict)
        return super()._clone_test_db(*args, **kwargs)  # type: ignore[misc]
