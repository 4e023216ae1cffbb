"""What belongs to a session of asyncpg, whichever object it is lent by: its state of rest, and how to return to that.

The state of rest is what the session, and asyncpg's object, were when `configure` had done its work: reported
parameters, listeners, type codecs, and the statements with a lasting effect that ran until then. A reset lifts limits
and role first, so that nothing of the borrower's can stop it, then undoes all, then sends those statements again, all
in one text. Parameters given with the start of the session need none of this: RESET returns to them.
"""

# ruff: noqa: SLF001  the driver, its connection and what belongs to its session are one thing in several objects

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import asyncpg
from asyncpg.protocol.protocol import PreparedStatementState

from poolkit.drivers._configured import Watched, is_for_all_sessions, temporary_names
from poolkit.drivers._relay import IDLE, IN_TRANSACTION, Relay
from poolkit.drivers._statements import STAINED, traces

__all__ = ["Session"]

# What the server tells of by itself. Not in_hot_standby, which is no borrower's doing.
_REPORTED = (
    *("application_name", "client_encoding", "DateStyle", "default_transaction_read_only", "IntervalStyle"),
    *("is_superuser", "scram_iterations", "search_path", "session_authorization", "standard_conforming_strings"),
    "TimeZone",
)

_HAS_ONLY_READ = "SELECT 1 WHERE pg_catalog.txid_current_if_assigned() IS NULL"
_FIRST = (  # what could end the rest, or have it call functions of the borrower's
    "SET statement_timeout = 0; SET lock_timeout = 0; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET search_path;"
)
_THEN = "DISCARD TEMP; DISCARD SEQUENCES;"  # beside asyncpg's own reset, which leaves these


_MOST_NOTED = 10_000  # statements of `configure`; more come only from a borrower that keeps its connection


class Session:
    """One session: `conn` is the object that has it now, `rest` what it returns to.

    `family` has the sessions of the same pool; `give_back` is what `close` calls where a pool has it. `noted` collects
    statements with a lasting effect until the state of rest is known, and is None from then on; `judge` says of a text
    what it leaves in the session.
    """

    __slots__ = (
        "__weakref__", "_probe", "codecs", "conn", "family", "give_back", "judge", "noted", "oids", "readable", "relay",
        "rest", "way",
    )  # fmt: skip

    def __init__(self, conn: Any, relay: Relay, readable: Callable[[int], object]) -> None:
        self.conn = weakref.ref(conn)
        self.relay = relay
        self.readable = readable
        self.family: weakref.WeakSet[Session] = weakref.WeakSet((self,))
        self.noted: list[tuple[int, str, tuple[Any, ...] | None]] | None = []
        self.codecs: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
        self.oids: dict[tuple[str, str], int] = {}
        self.give_back: Callable[[Any], bool] | None = None
        self.rest = _Rest()
        self.judge: Callable[[str | bytes], int] = traces
        self._probe: Any = None
        self.way: Any = None  # to the address that was connected to, in the place of the loop, where a name has several

    def note(self, conn: Any, level: int, query: str, args: tuple[Any, ...] | None) -> None:
        """Note a statement of `configure`; `args` is None where they can't be given again."""
        noted = self.noted
        if noted is None:
            return
        noted.append((level, query, args))
        names = temporary_names(query)
        if names:
            conn._traces = Watched(conn._traces, names).__getitem__
        if len(noted) > _MOST_NOTED:
            self.noted = None

    def statement_removed(self, statement: Any) -> None:
        """Have a prepared statement closed that fell out of the cache."""
        conn = self.conn()
        if conn is not None:
            conn._maybe_gc_stmt(statement)

    async def has_nothing_to_save(self) -> bool:
        """Whether no transaction is open; one that has only read is rolled back."""
        relay = self.relay
        if relay.status == IN_TRANSACTION:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                if await relay._inner.query(_HAS_ONLY_READ, None) == "SELECT 1":
                    await relay._inner.query("ROLLBACK", None)
        return relay.status == IDLE

    def is_talking(self) -> bool:
        """Whether an answer is awaited, also one that a cursor or a prepared statement asked for by itself.

        Not to be asked while a cancellation is under way. asyncpg keeps that to itself, but looks
        at it before it looks at the arguments of a statement: those given here are none. 2 us.
        """
        protocol = self.relay._inner
        if self._probe is None:
            self._probe = PreparedStatementState("", "", protocol, asyncpg.Record, False)
        try:
            protocol.bind_execute(self._probe, None, "", 0, False, None).send(None)
        except asyncpg.InternalClientError:
            return False
        except Exception:  # noqa: BLE001  whatever keeps it from sending
            return True
        return True

    # -- the state of rest --------------------------------------------------------------------------------------------

    def settle(self, conn: Any) -> None:
        """Take what is now for the state of rest."""
        rest = self.rest
        if self.noted is not None:
            self.judge = conn._traces
            rest.unrepeatable = rest.unrepeatable or any(args is None for _, _, args in self.noted)
            rest.statements += [one for one in self.noted if not is_for_all_sessions(one[1])]
            self.noted = []
        rest.reported = reported(conn)
        rest.channels = {channel: set(callbacks) for channel, callbacks in conn._listeners.items()}
        rest.callbacks = [set(callbacks) for callbacks in _callbacks(conn)]
        rest.codecs = dict(self.codecs)
        self.relay.reported = False

    def is_as_reported(self, conn: Any) -> bool:
        """Whether the parameters that the server tells of are those of the state of rest."""
        if reported(conn) != self.rest.reported:
            return False
        self.relay.reported = False
        return True

    def put_back(self, conn: Any) -> bool:
        """Restore the listeners; whether other channels are listened to than at rest."""
        rest = self.rest
        other = bool(conn._listeners.keys() != rest.channels.keys())
        conn._listeners.clear()
        conn._listeners.update({channel: set(callbacks) for channel, callbacks in rest.channels.items()})
        for callbacks, at_rest in zip(_callbacks(conn), rest.callbacks, strict=True):
            callbacks.clear()
            callbacks.update(at_rest)
        return other

    async def put_back_codecs(self, conn: Any) -> None:
        """Restore the type codecs: at no cost, unless one of the state of rest was replaced."""
        now, at_rest = self.codecs, self.rest.codecs
        changed = [key for key in {**now, **at_rest} if now.get(key) != at_rest.get(key)]
        if not changed:
            return
        settings = conn._protocol.get_settings()
        for schema, name in changed:
            settings.remove_python_codec(self.oids[schema, name], name, schema)
        for key in changed:
            if key in at_rest:
                how, arguments = at_rest[key]
                await getattr(asyncpg.Connection, how)(conn, key[1], schema=key[0], **arguments)
        self.codecs = dict(at_rest)
        conn._drop_local_statement_cache()

    def reset_text(self, conn: Any, *, forgets: bool) -> str:
        """Write what makes the session as it was at rest. `forgets`: it has prepared statements of SQL, or lost some.

        What no reset undoes, and was there at rest, is there still.
        """
        texts = [_FIRST, conn.get_reset_query(), _THEN]
        if forgets:
            texts.append("DEALLOCATE ALL;")
        texts += [query for level, query, args in self.rest.statements if not args and level <= STAINED + forgets]
        return "\n".join(text.rstrip().removesuffix(";") + "\n;" for text in texts if text.strip())

    async def repeat_bound(self, conn: Any) -> None:
        """Send the statements of the state of rest again that have arguments; a round trip each."""
        noted, self.noted = self.noted, None
        for level, query, args in self.rest.statements:
            if args and level == STAINED:
                await asyncpg.Connection.execute(conn, query, *args)
        self.noted = noted


class _Rest:
    """What a session returns to."""

    __slots__ = ("callbacks", "channels", "codecs", "reported", "statements", "unrepeatable")

    def __init__(self) -> None:
        self.statements: list[tuple[int, str, tuple[Any, ...] | None]] = []
        self.unrepeatable = False
        self.reported: tuple[Any, ...] = ()
        self.channels: dict[str, set[Any]] = {}
        self.callbacks: list[set[Any]] = []
        self.codecs: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}

    @property
    def read_only(self) -> bool:
        """Whether the session refused to write from its start: its role's or its database's own setting."""
        return "on" in self.reported[3:4]


def reported(conn: Any) -> tuple[Any, ...]:
    """Return what the server has told of its parameters."""
    settings = conn._protocol.get_settings()
    return tuple(getattr(settings, name, None) for name in _REPORTED)


def _callbacks(conn: Any) -> tuple[set[Any], ...]:
    return conn._log_listeners, conn._termination_listeners, conn._query_loggers
