"""Connecting: a wrapper takes its connection from a pool, in as few calls as can be.

Django's connect takes thirty calls, and a wrapper that gives its connection back makes one for each request. Where
nothing about it is special, all of them are one here (`_lease_at_once`); else they are as in Django.
"""

from __future__ import annotations

from _thread import get_ident
from abc import abstractmethod
from collections.abc import Mapping
from types import FunctionType
from typing import Any, NoReturn

from asgiref.sync import SyncToAsync
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.db.backends.base.base import NO_DB_ALIAS, RAN_DB_VERSION_CHECK, BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from poolkit import Lease, PoolClosed, PoolError
from poolkit_django.backends import pools, unvisited
from poolkit_django.backends.held import threads
from poolkit_django.backends.lazy import LazyAtomic
from poolkit_django.scopes import scope_var, takers

__all__ = ["Connecting", "in_async_request"]

_HOOKS = (
    *("connect", "check_settings", "get_new_connection", "init_connection_state", "ensure_connection"),
    *("set_autocommit", "_set_autocommit"),
)

in_async_request = SyncToAsync.thread_sensitive_context.get  # set by Django's ASGI handler, for each request
_connect, _ensure = BaseDatabaseWrapper.connect, BaseDatabaseWrapper.ensure_connection
_were_djangos = all(
    isinstance(method, FunctionType) and method.__globals__["__name__"].startswith("django.")
    for method in (_connect, _ensure)
)
_NOT_DJANGOS = frozenset({"pool", *pools.OURS})


def _are_djangos() -> bool:
    """Whether nobody has replaced the two: pytest-django does, to forbid the database, and what traces connects."""
    base = BaseDatabaseWrapper
    return base.ensure_connection is _ensure and base.connect is _connect and _were_djangos


def _kept(settings_dict: Mapping[str, Any]) -> dict[str, Any] | None:
    """Copy settings, to know them again: tests change them in place. None where a connect by them is not plain."""
    if not settings_dict["AUTOCOMMIT"] or settings_dict["TIME_ZONE"] is not None:
        return None
    return {**settings_dict, "OPTIONS": pools.copy_options(settings_dict["OPTIONS"])}


def _refuse(error: PoolError) -> NoReturn:
    """Raise what Django's users catch; settings that can't work stay what they are."""
    if isinstance(error.__cause__, ImproperlyConfigured):
        raise error.__cause__ from None
    raise OperationalError(str(error)) from error


class Connecting(LazyAtomic):
    """What `Leasing` does until it has a lease."""

    alias: str
    lease: Lease[Any] | None = None
    open_cursors = 0
    held_cursors = 0
    """Server-side cursors that no COMMIT ends, and no ROLLBACK: those of autocommit. They would outlive the lease."""
    stands_in = ""
    """The server that one statement runs on where it is not the alias's own: another "replica", or the "primary"."""
    stays = False
    """Whether the lease is sure to stay until the request's end, so that no closed cursor has to ask for it."""
    stray = False
    """Whether the lease was taken where no end of a unit comes by: see `strays`."""
    fresh = False
    """Whether a stray lease has only just been taken, for a cursor that is still to be made."""
    allow_thread_sharing: bool
    errors_occurred: bool
    health_check_enabled: bool
    health_check_done: bool
    close_at: float | None
    _thread_ident: int
    _home: dict[Lease[Any], Any] | None = None
    _known: pools.Known | None = None
    _known_by: dict[str, Any] | None = None  # the settings that it was found by
    _connects_plainly = False
    # create_cursor where it is Django's, and the same without the look for an event loop, which cursor() has taken.
    _guarded: Any = None
    _unguarded: Any = None
    _begins_by_hand = False  # SQLite's transactions are begun by a statement of Django's
    _scope: Any = None
    _unusable = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Find out whether somebody has changed what a connect does."""
        super().__init_subclass__(**kwargs)
        whose = [next((base.__module__ for base in cls.__mro__ if name in vars(base)), "") for name in _HOOKS]
        known = all(module.startswith(("django.", "poolkit_django.")) for module in whose if module)
        cls._connects_plainly = known and _were_djangos
        found = getattr(cls, "create_cursor", None)
        guarded = getattr(found, "__globals__", {}).get("__name__") == "django.utils.asyncio"
        cls._guarded = staticmethod(found) if guarded and found is not None else None
        cls._unguarded = getattr(found, "__wrapped__", None) if guarded else None

    def _cursor(self, name: str | None = None) -> Any:
        """Open a cursor as Django does, but ask only once for what `cursor()` has asked already."""
        if self._thread_ident != get_ident():  # before anything is leased for a thread that may not have it
            self.validate_thread_sharing()
        lease = self.lease
        if lease is not None and self._scope is not scope_var.get():
            self.change_hands()
            lease = self.lease
        if (lease is None or self.connection is None or not lease.is_out) and not self._lease_at_once():
            self.close_if_health_check_failed()  # type: ignore[attr-defined]
            self.ensure_connection()  # type: ignore[attr-defined]
        return self._stray_cursor(name) if self.stray else self._new_cursor(name)

    def _new_cursor(self, name: str | None) -> Any:
        try:
            if self._guarded is not None and type(self).create_cursor is self._guarded:  # type: ignore[attr-defined]
                cursor = self._unguarded(name)
            else:
                cursor = self.create_cursor(name)  # type: ignore[attr-defined]
        except Exception:
            with self.wrap_database_errors:  # type: ignore[attr-defined]
                raise
        return self.make_debug_cursor(cursor) if self.queries_logged else self.make_cursor(cursor)  # type: ignore[attr-defined]

    def _lease_at_once(self) -> bool:
        """Do what `connect` does, in one go instead of thirty calls: a request makes one. False where it must not.

        It must not where somebody listens, where something is special, and where the pool has to be found first.
        """
        known, alias = self._known, self.alias
        if (
            known is None
            or known.forgotten
            or self.connection is not None
            or self._connecting
            or self._waiting_savepoints
            or connection_created.receivers
            or not self._connects_plainly
            or BaseDatabaseWrapper.ensure_connection is not _ensure
            or BaseDatabaseWrapper.connect is not _connect
            or alias not in RAN_DB_VERSION_CHECK
            or alias in takers
            or self._cut_short is not None
            or self._known_by != self.settings_dict
        ):
            return False
        inside = self.in_atomic_block
        if self._wanted_autocommit is not (False if inside else None):
            return False
        if inside and (self.closed_in_transaction or self.queries_logged or self._begins_by_hand):
            return False
        if unvisited.leases:
            unvisited.sweep()
        try:
            lease = known.pool.acquire()
        except PoolClosed:
            return False
        except PoolError as error:
            _refuse(error)
        self.connection = self._begin(lease)
        self.closed_in_transaction = self.errors_occurred = False
        self._wanted_autocommit = None
        if inside:
            with self.wrap_database_errors:  # type: ignore[attr-defined]
                self._set_autocommit(False)  # type: ignore[attr-defined]
        else:  # its connections rest in autocommit
            self.needs_rollback = False
            self.savepoint_ids, self.atomic_blocks, self.run_on_commit = [], [], []
        self.autocommit = not inside
        return True

    def validate_thread_sharing(self) -> None:
        """Refuse other threads, unless the wrapper was made to be shared."""
        if self._thread_ident != get_ident():
            super().validate_thread_sharing()  # type: ignore[misc]

    def _connect_now(self) -> None:
        """Connect as Django does, less what a leased connection has behind it: half of the calls."""
        if self._pool() is None or not _are_djangos():
            super()._connect_now()
            return
        # No name for the settings: who fails to connect has this frame in his traceback, and they hold the password.
        if self.settings_dict["TIME_ZONE"] is not None:
            self.check_settings()  # type: ignore[attr-defined]
        self.in_atomic_block = self.needs_rollback = self.closed_in_transaction = self.errors_occurred = False
        self.savepoint_ids, self.atomic_blocks = [], []
        self.health_check_enabled, self.health_check_done = self.settings_dict["CONN_HEALTH_CHECKS"], True
        self.close_at = None  # the pool looks after its age
        self.connection = self.get_new_connection({})
        autocommit = self.settings_dict["AUTOCOMMIT"]
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
        if self._known_by != self.settings_dict:
            self._known_by = _kept(self.settings_dict)
        return known

    def get_connection_params(self) -> dict[str, Any]:
        """As Django's, without what is the pool's or its driver's."""
        given = self.settings_dict
        theirs = {name: value for name, value in given["OPTIONS"].items() if name not in _NOT_DJANGOS}
        self.settings_dict = {**given, "OPTIONS": theirs}
        try:
            return dict(super().get_connection_params())  # type: ignore[misc]
        finally:
            self.settings_dict = given

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Lease a connection. Raises `OperationalError` from poolkit's error where there is none to be had.

        The parameters are for a connection that is not pooled; the pool connects with its own.
        """
        known = self._pool()
        if known is None:
            pools.check_unpooled(self.alias, self.settings_dict)
            return super().get_new_connection(conn_params)  # type: ignore[misc]
        connection = self._begin(self._acquire(known))
        if self.stands_in:
            self.stays = False
        return connection

    def _begin(self, lease: Lease[Any]) -> Any:
        if self.lease is not None:  # somebody has set `connection` to None by hand
            self._drop_lease()
        scope, home = scope_var.get(), threads.leases.held
        self.stays = scope is None and in_async_request(None) is None
        self.stray = self.fresh = (
            not self.stays and (scope is None or not scope.visits(get_ident())) and not self.allow_thread_sharing
        )
        self._unusable, self.open_cursors, self.held_cursors = False, 0, 0
        home[lease] = self  # type: ignore[assignment]
        self._home = home
        self._scope = scope  # before the lease: the end of a scope looks at the lease first
        self.lease = lease
        if self.stray:
            self._begin_stray()
        if scope is not None:
            scope.leased(self)
            lease.label(scope.label)
        if self.stray and (scope is None or scope.closed):
            unvisited.leases[lease] = self  # type: ignore[assignment]
        connection = lease.resource
        self.leased(connection)
        return connection

    def _drop_lease(self) -> None:
        lease, home = self.lease, self._home
        self.connection = self.lease = None
        if lease is not None and home is not None and home.pop(lease, None) is not None and not lease.inherited:
            lease.discard("broken")
        self.went()

    def _acquire(self, known: pools.Known) -> Lease[Any]:
        if unvisited.leases:
            unvisited.sweep()
        try:
            try:
                return self._take(known)
            except PoolClosed:  # since it was last asked: there is a new one
                return self._take(pools.known(self))  # type: ignore[arg-type]
        except PoolError as error:
            _refuse(error)

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
        params = {**defaults, **self.get_connection_params()}
        connection = super().get_new_connection(params)  # type: ignore[misc]
        try:
            self.configure_physical(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    _cut_short: Any = None

    def change_hands(self) -> None:
        """Give a lease back that other work than this has left in the thread; `Straying` does."""

    def went(self) -> None:
        """Tell a subclass of the engine that the connection went; `Straying` does."""

    @abstractmethod
    def _begin_stray(self) -> None:
        """Prepare a lease that no unit of work ends in this thread."""

    @abstractmethod
    def _stray_cursor(self, name: str | None) -> Any:
        """Make a cursor on such a lease; a named one is the server's."""

    def leased(self, connection: Any) -> None:
        """Take over what Django's backend would have kept from its own connect."""

    def configure_physical(self, connection: Any) -> None:
        """Set what lasts as long as the connection: of a new one, and of one whose whole session was reset."""

    @staticmethod
    @abstractmethod
    def has_mode(connection: Any, *, autocommit: bool) -> bool:
        """Whether a connection is in this mode."""
