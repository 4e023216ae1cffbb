"""Leasing: a DatabaseWrapper that leases its connection from a pool of poolkit's, whatever the library below.

A wrapper belongs to one thread, as ever in Django. It takes a lease when it connects and ends it when it closes, which
happens at the end of the unit of work, or of the request, whatever CONN_MAX_AGE says. Where nobody would visit its
thread at the end (a thread started by a view, a body that is streamed after the commit), the lease ends as soon as no
cursor and no transaction is open; at the latest it ends with its thread.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import NO_DB_ALIAS

from poolkit import Lease
from poolkit.events import Event
from poolkit_django import native
from poolkit_django.backends import pools, unvisited
from poolkit_django.backends.connecting import in_async_request
from poolkit_django.backends.kept import is_kept
from poolkit_django.backends.strays import Straying

__all__ = ["Leasing", "PooledCreation"]


def _asked_by(module: str, depth: int = 1) -> bool:
    """Whether the method that asks this was called from a module."""
    method = sys._getframe(depth)  # noqa: SLF001  there is no other way to know a caller
    return method.f_back is not None and method.f_back.f_globals.get("__name__") == module


class Leasing(Straying):
    """What the engines share. What differs between the libraries stands at the end, for each engine to fill in."""

    leases_from_poolkit = True
    pool = None  # every branch of Django's own pool is off
    _asked_to_roll_back: int | None = None
    elsewhere = False
    """Whether the next lease is to be another server's: a replica's connection was lost, or its answer taken back."""

    def start_afresh(self) -> None:
        """Forget the connection and what was under way on it, without a word to the server."""
        self.connection = self.lease = self._scope = self._cut_short = None
        self.in_atomic_block = False
        self.savepoint_ids, self.atomic_blocks, self.run_on_commit = [], [], []
        self.forget_mode()

    # -- giving back --------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        lease, home = self.lease, self._home
        if lease is None:
            super()._close()  # type: ignore[misc]
            return
        if self.stray and not lease.inherited:
            with self._hands:
                if self.lease is not lease:  # the end of its unit was faster
                    return
                self.connection = self.lease = self._scope = None
            unvisited.leases.pop(lease, None)
        else:
            self.connection = self.lease = self._scope = None
        if home is None or home.pop(lease, None) is None:
            return
        if not (self._unusable or self.held_cursors):
            lease.__exit__(None, None, None)  # the shortest way back, which leaves alone what was inherited
        elif not lease.inherited:
            self.end_with_care(lease)

    def end_with_care(self, lease: Lease[Any]) -> None:
        """End a lease whose connection may not be fit for the next borrower."""
        fit = False
        try:
            fit = not self._unusable and (not self.held_cursors or self.close_held_cursors(lease.resource))
        finally:
            if fit:
                lease.release()
            else:
                lease.discard("broken")

    def give_up(self) -> None:
        """End the lease, from its own thread: by an engine's own close() where there is one."""
        if self.closes_plainly:
            self._close()
        else:
            self.close()

    def close(self) -> None:
        """Give the connection back.

        In the block of a unit of work alone, where nothing was written, the unit goes on: the next query leases anew.
        An atomic() that a generator keeps open, outside of a unit, is rolled back and forgotten.
        """
        if self.in_atomic_block and self.lease is not None and not self.closed_in_transaction:
            self.validate_thread_sharing()  # before anything is asked of the server
            if self.atomic_blocks == [self.units_block] and not self.needs_rollback and not self._has_written():
                self._close()
                self._wanted_autocommit, self.autocommit = False, False
                return
            if self._is_abandoned():
                self._close()
                self.start_afresh()
                return
        super().close()  # type: ignore[misc]
        self.forget_mode()

    def _has_written(self) -> bool:
        """Whether the transaction has changed anything; in doubt it has."""
        connection = self.connection
        if self.held_cursors or self.is_gone(connection) or self.is_busy(connection) or self.is_aborted(connection):
            return True
        try:
            return self.has_written(connection)
        except self.Database.Error:  # type: ignore[attr-defined]
            return True

    def _is_abandoned(self) -> bool:
        """Whether the outermost block belongs to a task that is over, or is kept open by a generator that waits."""
        if getattr(self.atomic_blocks[0], "_from_testcase", False) or self._scope is not None:
            return False
        return _asked_by("celery.fixups.django", depth=2) or is_kept(self.atomic_blocks[0])

    def tell(self, build: Callable[[], Event]) -> None:
        """Tell the listeners of this wrapper's pool."""
        if self._known is not None:
            self._known.pool._tell(build)  # noqa: SLF001  as the units of the core do

    @property
    def cause_of_loss(self) -> str:
        """What is known of why the transaction can't be committed: one line, without values; "" where nothing is."""
        if self.closed_in_transaction:
            return "connection.close() was called"
        if self.connection is not None and self.is_aborted(self.connection):
            ask = getattr(None if self._known is None else self._known.driver, "statement_error", None)
            return "" if ask is None else str(ask(self.connection))
        cause = getattr(self, "rollback_exc", None)
        return "" if cause is None else f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"

    def close_if_unusable_or_obsolete(self) -> None:
        """Give the connection back at the end of a request, whatever CONN_MAX_AGE says; the pool looks after its age.

        In a transaction (a test's, around the request) it stays. Django asks this before and after each request.
        """
        if self.in_atomic_block and (self.lease is not None or self.connection is None):
            return
        if self.lease is not None:
            if self._thread_ident == get_ident():
                self.give_up()
            else:
                self.close()  # refused, unless threads share it
                return
        elif self.connection is not None:
            super().close_if_unusable_or_obsolete()  # type: ignore[misc]
            return
        if self.run_on_commit:
            self.run_on_commit = []
        if self._wanted_autocommit is not None or self._waiting_savepoints:
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
            self.went()
        elif lease.given_back:
            self.forget_closed()

    def forget_closed(self) -> None:
        """Go on without a connection that the library's own close() has given back, with nothing open."""
        lease = self.lease
        if lease is not None and lease.given_back:
            inside = self.in_atomic_block
            self._close()
            if inside:
                self._wanted_autocommit, self.autocommit = False, False

    def is_usable(self) -> bool:
        """Ask the server; a connection found unusable is discarded when it is closed."""
        usable = super().is_usable()  # type: ignore[misc]
        self._unusable = not usable
        return bool(usable)

    def cut_off(self) -> None:
        """End the lease in the middle of a transaction that nobody will end; called from another thread."""
        lease = self.lease
        self.start_afresh()
        if lease is not None and self._is_held(lease) and not lease.inherited:
            lease.discard("abandoned")
        self.went()

    def _is_held(self, lease: Lease[Any]) -> bool:
        """Take a lease off the list of its thread; False where that ended and has given it back."""
        return self._home is not None and self._home.pop(lease, None) is not None

    # -- threads that nobody visits -----------------------------------------------------------------------------------

    def cursor_closed(self) -> None:
        """Let go of the connection where this was the last use of it in a thread that nobody visits at the end."""
        if self.open_cursors and self.ending is None:
            return
        scope = self._scope
        # In an async request without a unit of work the end may be far: its view waits for other things as well.
        over = scope.is_over_in(get_ident()) if scope is not None else in_async_request(None) is not None
        if over or self.stands_in:
            self._let_go()

    def set_autocommit(self, autocommit: bool, **kwargs: Any) -> None:  # noqa: FBT001  Django's signature
        """Change the mode; after the end of a transaction is a moment to let go of the connection, as after a query."""
        try:
            super().set_autocommit(autocommit, **kwargs)
        finally:  # it runs hooks of on_commit(), which may raise
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
    """Makes the driver: `driver_class(make, options, config, where)`; it takes its own out of `options`.

    Of what `Connecting` leaves open it fills in `leased`, `configure_physical` and `has_mode`.
    """

    @staticmethod
    @abstractmethod
    def is_busy(connection: Any) -> bool:
        """Whether a statement is under way."""

    @staticmethod
    @abstractmethod
    def is_at_rest(connection: Any) -> bool:
        """Whether nothing is under way and no transaction is open."""

    @abstractmethod
    def is_aborted(self, connection: Any) -> bool:
        """Whether a COMMIT would save nothing, or not all: the server has given the transaction up."""

    @staticmethod
    def close_held_cursors(connection: Any) -> bool:  # noqa: ARG004  only PostgreSQL has them
        """Close the cursors counted in `held_cursors`; False where that can't be, and the connection has to go."""
        return False

    @staticmethod
    @abstractmethod
    def is_gone(connection: Any) -> bool:
        """Whether the server hung up on a connection."""

    @abstractmethod
    def has_written(self, connection: Any) -> bool:
        """Whether the transaction that is open has changed anything, or may have. May ask the server."""


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
