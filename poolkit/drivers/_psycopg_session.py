"""What a psycopg connection of ours knows of its session: its state of rest, and whether it may differ from it.

The state of rest is what the connection was when it was opened and configured: attributes, handlers, adapters, what the
server reports (libpq's ParameterStatus), and the statements that changed the session until then. Every statement passes
`Session.enter` on its way through the connection's `wait`, and leaves its level (see `_statements`) here.

What calls libpq by hand (`conn.pgconn`) is not seen.
"""

# ruff: noqa: SLF001  see the psycopg driver: one spelling of each operation, for threads and for asyncio

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any
from weakref import ReferenceType, ref

import psycopg
from psycopg import AsyncConnection, BaseConnection, IsolationLevel, pq, sql
from psycopg._adapters_map import AdaptersMap
from psycopg._preparing import PrepareManager
from psycopg._server_cursor_base import ServerCursorMixin

from poolkit.driver import TransactionOptions
from poolkit.drivers import _common
from poolkit.drivers._configured import Watched, is_for_all_sessions, temporary_names
from poolkit.drivers._startup import set_local
from poolkit.drivers._statements import CLEAN, STAINED, Traces

__all__ = ["EXECUTE", "Plans", "Session", "forget_prepared", "sends_as_psycopg"]

EXECUTE = psycopg.Cursor._execute_gen.__code__
_DECLARE = ServerCursorMixin._declare_gen.__code__

# Where each of psycopg's steps keeps the text that it is about to send.
_TEXT_IN = {
    EXECUTE: "query",
    psycopg.Cursor._executemany_gen_pipeline.__code__: "query",
    psycopg.Cursor._executemany_gen_no_pipeline.__code__: "query",
    psycopg.Cursor._stream_send_gen.__code__: "query",
    psycopg.Cursor._start_copy_gen.__code__: "statement",
    _DECLARE: "query",  # psycopg puts DECLARE in front of it
    BaseConnection._exec_command.__code__: "command",
}

# What a cursor class must have from psycopg, so that the text it is given is what it sends.
_SENDING = (
    "_start_query", "_convert_query", "_execute_send", "_maybe_prepare_gen", "_get_prepared", "_send_prepare",
    "_send_query_prepared",
)  # fmt: skip
_OWN = ("psycopg", "psycopg_c", "psycopg_binary", "poolkit")

_REPORTED = (
    b"TimeZone", b"client_encoding", b"DateStyle", b"session_authorization", b"application_name",
    b"default_transaction_read_only", b"search_path",
)  # fmt: skip

_READ_ONLY = b"default_transaction_read_only"

_MOST_NOTES = 200
_PREPARES = re.compile(rb"\s*(?:PREPARE|DEALLOCATE)\b", re.IGNORECASE)

# "cached plan must not change result type", "prepared statement does not exist", "cache lookup failed for type"
_STALE = {"0A000", "26000", "XX000"}
_STALE_PLAN = re.compile(r"_pg3_\d|cache lookup failed")


class Plans:
    """How often the prepared statements of all connections of a driver were found to be out of date."""

    __slots__ = ("epoch",)

    def __init__(self) -> None:
        self.epoch = 0


@lru_cache(maxsize=256)
def sends_as_psycopg(cursor: type) -> bool:
    """Whether a cursor class sends the text it is given, by psycopg's own methods."""
    own = all(getattr(cursor, name).__module__.startswith("psycopg.") for name in _SENDING)
    return own and cursor._query_cls.__module__.startswith("psycopg.")  # type: ignore[attr-defined]


def forget_prepared(prepared: PrepareManager) -> None:
    """Forget which statements are prepared, with nothing to be told to the server."""
    prepared._counts.clear()
    prepared._names.clear()
    prepared._to_flush.clear()


class _NotingAdapters(AdaptersMap):
    """Adapters that tell the session when one is registered."""

    def __init__(self, template: AdaptersMap | None, session: Session) -> None:
        super().__init__(template)
        self.session = session
        self.types.add = partial(self._add_type, self.types.add)  # type: ignore[method-assign]

    def _add_type(self, add: Callable[[Any], None], info: Any) -> None:
        self.session.touched = True
        add(info)

    def register_dumper(self, cls: Any, dumper: Any) -> None:
        self.session.touched = True
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: Any, loader: Any) -> None:
        self.session.touched = True
        super().register_loader(oid, loader)


class Session:
    """Of one connection, whichever object the connection is at the moment."""

    __slots__ = (
        "__weakref__",
        "_adapters",
        "_notes",
        "closed_by_user",
        "conn",
        "epoch",
        "failed",
        "give_back",
        "is_ours",
        "level",
        "levels",
        "listens",
        "local",
        "moved",
        "notes",
        "noting",
        "plans",
        "ran",
        "reported",
        "reports",
        "resetting",
        "rest",
        "touched",
        "unnotable",
    )  # fmt: skip

    def __init__(self, conn: BaseConnection[Any]) -> None:
        self.conn: ReferenceType[Any] = ref(conn)
        self.levels: dict[str | bytes, int] = Traces()
        self.plans = Plans()
        self.epoch = 0
        self.failed = ""  # what the last statement that failed was told
        self.level = CLEAN  # the worst of what was sent since the session was as new
        self.ran = False  # whether anything was sent since the server's reports were looked at
        self.touched = False  # whether something was set that `restored` has to look at
        self.noting = True  # until it is settled
        self.local = b""  # what sets, in each transaction, what a pooler would not pass on in the startup packet
        self.is_ours = True  # no pooler lends the server's session to others between two transactions
        self.moved = False  # whether another object has the connection's attributes by now
        self.give_back: Callable[[Any], bool] | None = None  # where a pool has it: what `close` calls
        self.closed_by_user = False  # with a transaction open
        self.resetting = False
        self.notes: tuple[bytes, ...] = ()  # what a reset has to send again
        self.listens = False
        self.unnotable = False  # something changed the session that can't be sent again
        self._notes: list[bytes] = []
        self.rest: tuple[Any, ...] = ()
        self._adapters: AdaptersMap | None = None
        self.reports: tuple[bytes, ...] = _REPORTED  # of these, what this server reports at all
        self.reported: tuple[bytes | None, ...] = ()
        # psycopg's own hold a weak reference to the connection they were made with, which may be another one later.
        me = ref(self)
        conn.pgconn.notice_handler = partial(_on_notice, me)
        conn.pgconn.notify_handler = partial(_on_notify, me)

    # -- the state of rest --------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Take what the connection is now for its state of rest."""
        conn: Any = self.conn()
        self.notes = tuple(self._notes)
        self.listens = any(note.lstrip()[:6].upper() == b"LISTEN" for note in self.notes)
        self._adapters = AdaptersMap(conn.adapters)
        self.rest = (
            conn.row_factory, conn.cursor_factory, conn.server_cursor_factory, conn._prepared.prepare_threshold,
            conn._prepared.prepared_max, conn._isolation_level, conn._read_only, conn._deferrable,
            tuple(conn._notice_handlers), tuple(conn._notify_handlers),
        )  # fmt: skip
        self.restore()
        self.look()

    def look(self) -> None:
        """Take what the server reports now for what it reports at rest."""
        conn: Any = self.conn()
        value = conn.pgconn.parameter_status
        self.reports = tuple(name for name in _REPORTED if value(name) is not None)
        self.reported = tuple(map(value, self.reports))

    def reports_otherwise(self, conn: Any) -> bool:
        """Whether the server reports something else than at rest."""
        return tuple(map(conn.pgconn.parameter_status, self.reports)) != self.reported

    @property
    def read_only_at_rest(self) -> bool:
        """Whether the role or the database is read-only by default, so that a refused write says nothing new."""
        return (_READ_ONLY, b"on") in zip(self.reports, self.reported, strict=True)

    def is_read_only_now(self) -> bool:
        """Whether a transaction that begins now may not write, though it may at rest."""
        conn: Any = self.conn()
        return not self.read_only_at_rest and conn.pgconn.parameter_status(_READ_ONLY) == b"on"

    def restore(self) -> None:
        """Set every attribute as it is at rest; none of them needs the server."""
        conn: Any = self.conn()
        # Not by its `__dict__`: CPython reads the attributes of an object that was asked for that more slowly.
        conn._autocommit = True
        conn._begin_due = False
        prepared = conn._prepared
        (
            conn.row_factory, conn.cursor_factory, conn.server_cursor_factory, prepared.prepare_threshold,
            prepared.prepared_max, conn._isolation_level, conn._read_only, conn._deferrable, notice, notify,
        ) = self.rest  # fmt: skip
        conn._begin_statement = b""  # psycopg keeps BEGIN ready made, with the options of then
        conn._settings = self.local
        conn._chosen = False
        conn._explicit_end = None
        conn._notice_handlers[:] = notice
        conn._notify_handlers[:] = notify
        conn._notifies_backlog.clear()
        conn._adapters = _NotingAdapters(self._adapters, self)
        self.level = CLEAN
        self.touched = self.ran = False

    def choose(self, conn: Any, options: TransactionOptions) -> None:
        """Have every transaction begin with these options from now on, until `forget_choice`."""
        self.touched = True
        conn._chosen = True
        if options.isolation_level is not None:
            conn._isolation_level = IsolationLevel[options.isolation_level.upper().replace(" ", "_")]
        if options.read_only is not None:
            conn._read_only = options.read_only
        if options.deferrable is not None:
            conn._deferrable = options.deferrable
        conn._begin_statement = b""
        if options.settings:
            conn._settings = set_local(options.settings).encode(conn.pgconn._encoding)

    def forget_choice(self, conn: Any) -> None:
        """Have transactions begin as at rest again."""
        conn._chosen = False
        conn._settings = self.local
        conn._isolation_level, conn._read_only, conn._deferrable = self.rest[5:8]
        conn._begin_statement = b""

    def drops_backlog(self, conn: Any) -> bool:
        """Drop unread notifications, where listening is the state of rest."""
        if self.listens:
            conn._notifies_backlog.clear()
        return self.listens

    def restored(self, conn: Any) -> bool:
        """Whether all that was set is as at rest again: a change was refused, or put back by hand."""
        prepared, rest, adapters = conn._prepared, self.rest, conn._adapters
        restored = (
            (prepared.prepare_threshold, prepared.prepared_max) == rest[3:5]
            and (conn._isolation_level, conn._read_only, conn._deferrable) == rest[5:8]
            and (tuple(conn._notice_handlers), tuple(conn._notify_handlers)) == rest[8:10]
            and conn._tpc is None
            and _same(adapters, self._adapters)
        )
        self.touched = not restored
        return restored

    def descriptor(self) -> int | None:
        """Return the descriptor of the connection's socket, None where it is closed or lost."""
        conn = self.conn()
        try:
            return None if conn is None else conn.pgconn.socket
        except psycopg.OperationalError:
            return None

    # -- statements ---------------------------------------------------------------------------------------------------

    def enter(self, conn: Any, steps: Any) -> bytes | None:
        """Note what these steps of psycopg's, which have not run yet, will do to the session.

        Returns the text to note once they have succeeded.
        """
        level = self._level(conn, steps)
        self.level = max(self.level, level)
        self.ran = True
        if self.epoch != self.plans.epoch:
            self.forget(conn)
        return self._note(conn, steps, level) if self.noting else None

    def forget(self, conn: Any) -> None:
        """Forget what is prepared, as every connection of the driver does once."""
        self.epoch = self.plans.epoch
        conn._prepared.clear()  # psycopg tells the server as well, after the next statement

    def _level(self, conn: Any, steps: Any) -> int:
        code = getattr(steps, "gi_code", None)
        if code is None:  # written in C: psycopg's own steps below a statement
            return CLEAN
        where = _TEXT_IN.get(code)
        if where is None:
            package = steps.gi_frame.f_globals.get("__name__", "").partition(".")[0]
            return CLEAN if package in _OWN else STAINED
        given = steps.gi_frame.f_locals
        who = given["self"].__class__
        if where != "command" and not sends_as_psycopg(who):
            return STAINED
        text = _text(given[where], conn)
        level = STAINED if text is None else self.levels[text]
        return max(level, STAINED) if code is _DECLARE and given["self"]._withhold else level

    def _note(self, conn: Any, steps: Any, level: int) -> bytes | None:
        given = steps.gi_frame.f_locals if getattr(steps, "gi_code", None) in _TEXT_IN else {}
        query = _text(given.get("query", given.get("command")), conn)
        encoded = query.encode(conn.pgconn._encoding) if isinstance(query, str) else query
        if level == CLEAN:
            return None
        if encoded is None or steps.gi_code not in (EXECUTE, BaseConnection._exec_command.__code__):
            self.unnotable = True
            return None
        params = given.get("params")
        if params:
            try:
                kind = psycopg.AsyncClientCursor if isinstance(conn, AsyncConnection) else psycopg.ClientCursor
                encoded = kind(conn).mogrify(encoded, params).encode(conn.pgconn._encoding)
            except (psycopg.Error, TypeError):  # $1 of a raw cursor
                self.unnotable = True
                return None
        return encoded

    def noted(self, text: bytes) -> None:
        """Keep a text that succeeded, to be sent again by a reset."""
        if len(self._notes) >= _MOST_NOTES:
            self.unnotable = True
            return
        looked_at = text.decode("latin-1")  # any encoding has ASCII in the same place
        names = temporary_names(looked_at)
        if names and self.is_ours:
            self.levels = Watched(self.levels.__getitem__, names)
        if not is_for_all_sessions(looked_at):
            self._notes.append(text)

    def notes_for(self, *, unclean: bool, deallocated: bool) -> list[bytes]:
        """List what to send again: statements prepared by SQL where they were deallocated, all else if `unclean`."""
        return [note for note in self.notes if (deallocated if _PREPARES.match(note) else unclean)]

    def suspect(self, error: psycopg.Error) -> None:
        """Note the error; every connection of the driver forgets its prepared statements if it says they are stale."""
        if error.sqlstate != _common.REFUSED_IN_ABORTED:
            self.failed = error.diag.message_primary or str(error).partition("\n")[0]
        if error.sqlstate not in _STALE:
            return
        diagnosis = error.diag
        stale = diagnosis.source_function == "RevalidateCachedQuery"
        stale = stale or _STALE_PLAN.search(diagnosis.message_primary or "") is not None
        if stale and self.epoch == self.plans.epoch:
            self.plans.epoch += 1


def _text(query: Any, conn: Any) -> str | bytes | None:
    """Return the text of a query of whatever kind; None where that can't be told."""
    if isinstance(query, (str, bytes)):
        return query
    if isinstance(query, sql.Composable):
        try:
            return query.as_bytes(conn)
        except psycopg.Error:  # psycopg raises it itself in a moment
            return None
    strings = getattr(query, "strings", None)  # a template string
    if strings is None or any(part.format_spec in ("q", "i") for part in query.interpolations):
        return None
    return "%s".join(strings)


def _same(ours: Any, rest: Any) -> bool:
    """Whether nothing was registered: the maps are copied when something is."""
    return bool(
        ours._dumpers == rest._dumpers
        and ours._dumpers_by_oid == rest._dumpers_by_oid
        and ours._loaders == rest._loaders
        and ours.types._registry == rest.types._registry
    )


def _on_notice(session: ReferenceType[Session], result: pq.abc.PGresult) -> None:
    found = session()
    if found is not None:
        BaseConnection._notice_handler(found.conn, result)


def _on_notify(session: ReferenceType[Session], notification: pq.PGnotify) -> None:
    found = session()
    if found is not None:
        BaseConnection._notify_handler(found.conn, notification)
