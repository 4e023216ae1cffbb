"""SQLite, for threads: `SqliteDriver`, over the standard library's sqlite3.

    sqlite:///shop.db          a file beside the working directory
    sqlite:////var/shop.db     a file by its absolute path
    sqlite:///:memory:         one database in memory, shared by all connections of the driver, gone with it

Connections rest outside transactions and get an explicit BEGIN, so that sqlite3 adds none of its own and DDL can be
rolled back. Inside a unit of work `conn.commit()` and `conn.rollback()` are followed by the next BEGIN, as in psycopg.

What is set for each connection, and why:
- `busy_timeout` 5 s: a second writer waits for the first instead of failing at once.
- `foreign_keys` on: SQLite checks none unless asked.
- `journal_mode` WAL for files: readers and the writer don't block each other, without which a pool is of little use.
  The mode stays with the file. A network file system can't do it: set `journal_mode` to "delete" there, or to None to
  leave it alone. `synchronous` is left as it is: a pool does not trade durability for speed.
- `begin` "deferred": reading takes no lock against writers. A unit that reads first and then writes can meet
  "database is locked" where another wrote in between; "immediate" takes the write lock at the start instead.

What a borrower does to a connection is seen by the text of the statements (`_sqlite_statements`), by the methods that
are called and by its attributes. A changed connection is opened again in place, in 0.3 ms: nothing that was set,
attached, registered or made temporary survives that, and what was done while it was new is done again. A database in
memory keeps its data, for the driver itself holds it open. Cursors that were not read to their end are closed when the
connection is given back, for SQLite would keep their snapshot for the next borrower.

Not seen: cursors made by `sqlite3.Cursor(conn)`. Not undone: `total_changes`, `changes()` and `last_insert_rowid()` go
on counting as long as the connection is not opened again; adapters and converters are the whole process's. A connection
that is kept beyond its return refuses while it is idle; in the next borrowing it works, for it is the same object. Its
cursors refuse for ever.
"""

# ruff: noqa: SLF001  the driver, its connection and its cursor are one thing in three objects

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import sqlite3
import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, quote, unquote, urlencode

from poolkit.config import PoolConfig, shown
from poolkit.driver import TransactionOptions
from poolkit.drivers import _common
from poolkit.drivers._lending import Lending
from poolkit.drivers._sqlite_session import PooledConnection, PooledCursor, Session, is_open, raw, run
from poolkit.drivers._url_parameters import check_names
from poolkit.errors import ConfigError

__all__ = ["PooledConnection", "PooledCursor", "SqliteDriver"]

_OPTIONS: dict[str, Any] = {
    "begin": "deferred",
    "busy_timeout": 5.0,
    "foreign_keys": True,
    "journal_mode": "wal",
    "pragmas": {},
    "row_factory": None,
    "text_factory": str,
    "detect_types": 0,
    "cached_statements": 128,
}
_REFUSED = {
    "isolation_level": "poolkit begins transactions; set 'begin' to deferred, immediate or exclusive",
    "check_same_thread": "a connection of a pool is used by one thread after the other",
    "timeout": "it is called 'busy_timeout' here, for the pool has a timeout of its own",
}
_QUERY = {"mode", "cache", "immutable", "nolock", "vfs", "psow"}
_BEGIN = ("deferred", "immediate", "exclusive")
_JOURNAL = ("wal", "delete", "truncate", "persist", "memory", "off")
_MEMORY_SINCE = (3, 36, 0)  # the first SQLite in which connections can share a database in memory with proper locks
_REFUSED_CODES = {sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOTADB}
_RETRYABLE_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_FATAL_CODES = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN}

_IN_MEMORY = re.compile(r"[?&](?:mode=memory|vfs=memdb)(?:&|\Z)")
_UNWRITABLE = re.compile(r"[?&](?:mode=ro|immutable=)")

_memory_names = itertools.count(1)


class SqliteDriver(Lending, _common.UrlDriver):
    """SQLite for threads; lends `sqlite3.Connection`.

    `source` is a URL, or a callable that returns one for each connect. `options`: `begin`, `busy_timeout` (seconds),
    `foreign_keys`, `journal_mode`, `pragmas` (a mapping of others), `row_factory`, `text_factory`, `detect_types` and
    `cached_statements`. Raises `ConfigError`.
    """

    def __init__(
        self,
        source: _common.Source,
        *,
        options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None,  # noqa: ARG002  nothing of it concerns a file
        where: str = "",
    ) -> None:
        self._source = source
        self._where = where
        given = dict(options or {})
        _common.check_options(given, _OPTIONS, _REFUSED, where)
        self._options = {**_OPTIONS, **given}
        _check_values(self._options, where)
        self._begin_sql = f"BEGIN {self._options['begin']}"
        self._row_factory = self._options["row_factory"]
        self._text_factory = self._options["text_factory"]
        self._memory_name = f"poolkit-{next(_memory_names)}"
        self._anchors: dict[tuple[int, str], sqlite3.Connection] = {}
        self._fixed = self._locate(source) if isinstance(source, str) else None

    @property
    def defaults(self) -> Mapping[str, object]:
        """No round trips to check: there is no server that could have gone away."""
        return MappingProxyType({"check_after": None})

    # -- opening ------------------------------------------------------------------------------------------------------

    def open(self, timeout: float) -> sqlite3.Connection:  # noqa: ARG002  there is nobody to wait for
        """Open the file, or the shared database in memory. Raises `sqlite3.OperationalError`."""
        uri = self._fixed if self._fixed is not None else self._locate(_common.ask(self._source, self._where))
        if uri == ":memory:":
            uri = f"file:/{self._memory_name}-{os.getpid()}?vfs=memdb"
        if _IN_MEMORY.search(uri):
            self._hold(uri)
            return self._connect(uri, {"foreign_keys": self._options["foreign_keys"]})
        # SQLite can't change the mode of a file that it may not write.
        mode = None if _UNWRITABLE.search(uri) else self._options["journal_mode"]
        return self._connect(uri, {"journal_mode": mode, "foreign_keys": self._options["foreign_keys"]})

    def _connect(self, uri: str, pragmas: Mapping[str, Any]) -> PooledConnection:
        conn = sqlite3.connect(
            uri,
            uri=True,
            timeout=self._options["busy_timeout"],
            isolation_level=None,
            check_same_thread=False,
            detect_types=self._options["detect_types"],
            cached_statements=self._options["cached_statements"],
            factory=PooledConnection,
        )
        try:
            self._apply(conn, {**pragmas, **self._options["pragmas"]})
            conn.row_factory, conn.text_factory = self._row_factory, self._text_factory
            self.settled(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    def _apply(self, conn: sqlite3.Connection, pragmas: Mapping[str, Any]) -> None:
        for name, value in pragmas.items():
            if value is not None:
                conn.execute(f"PRAGMA {name} = {int(value) if isinstance(value, bool) else value}")

    def _hold(self, uri: str) -> None:
        """Keep one connection open for as long as the driver lives: the database lives as long as it has one."""
        key = (os.getpid(), uri)
        if key in self._anchors:
            return
        anchor = sqlite3.connect(uri, uri=True, check_same_thread=False)
        if self._anchors.setdefault(key, anchor) is anchor:
            weakref.finalize(self, anchor.close)
        else:
            anchor.close()

    def _locate(self, url: str) -> str:
        """Turn the URL into what SQLite opens, or `:memory:`."""
        scheme, _, rest = url.partition("://")
        path, _, query = rest.partition("?")
        if scheme.lower() != "sqlite" or not path.startswith("/") or path == "/":
            raise ConfigError(
                "malformed SQLite URL: expected sqlite:///relative.db, sqlite:////absolute.db or sqlite:///:memory:",
                self._where,
            )
        name = unquote(path[1:])
        given = parse_qsl(query, keep_blank_values=True)
        check_names(url, dict(given), _QUERY, {}, self._where)
        if name == ":memory:":
            _check_memory(given, self._where)
            return name
        if ("mode", "memory") in given and ("cache", "shared") not in given:
            raise ConfigError(
                "mode=memory gives each connection a database of its own: use sqlite:///:memory:, or add cache=shared",
                self._where,
            )
        file = re.sub("^/+", "/", os.path.abspath(name))  # noqa: PTH100  pure text; two slashes would begin a host
        return f"file:{quote(file)}" + (f"?{urlencode(given)}" if given else "")

    def close(self, resource: sqlite3.Connection) -> None:
        """Close; an open transaction is rolled back.

        Its cursors are closed first: with one that stands in its rows, and is kept, SQLite would keep the locks.
        """
        with contextlib.suppress(sqlite3.ProgrammingError):  # another thread is inside one of them
            cast("PooledConnection", resource)._session.let_go()
        raw.close(resource)

    def settled(self, resource: sqlite3.Connection) -> None:
        """Take what the connection is now for its state of rest: `clean` compares with it, and a reset restores it.

        Raises `sqlite3.ProgrammingError` where it was left in a transaction.
        """
        conn = cast("PooledConnection", resource)
        session = conn._session
        if conn.in_transaction:
            raise sqlite3.ProgrammingError(
                "the new connection was left in a transaction: end it where it is configured"
            )
        _take_control(conn)
        if session.news is not None:
            session.rest += session.news
            session.news = []
        session.changed = False
        session.row_factory, session.text_factory = conn.row_factory, conn.text_factory
        session.own = dict(vars(conn))

    def failure_kind(self, error: BaseException) -> Literal["away", "refused"]:
        """Whether an open failed for good: no such folder, no right to it, or no database in the file."""
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code == sqlite3.SQLITE_CANTOPEN:  # also said where there are too many open files
            return "away" if self._fixed is not None and _may_be_opened(self._fixed) else "refused"
        return "refused" if isinstance(error, ConfigError) or code in _REFUSED_CODES else "away"

    # -- looking ------------------------------------------------------------------------------------------------------

    def alive(self, resource: sqlite3.Connection) -> bool:
        """Whether the connection was not closed by its user."""
        return is_open(resource)

    def ping(self, resource: sqlite3.Connection, timeout: float) -> bool:  # noqa: ARG002  there is no server
        """Whether the database can be read."""
        try:
            run(resource, "PRAGMA schema_version")
        except sqlite3.Error:
            return False
        return True

    def clean(self, resource: sqlite3.Connection) -> bool:
        """Whether no transaction is open, and nothing was done that the next borrower would notice."""
        conn = cast("PooledConnection", resource)
        session = conn._session
        return (
            is_open(conn)
            and not conn.in_transaction
            and not session.changed
            and session.begin is None
            and session.query_only is None
            and conn.row_factory is session.row_factory
            and conn.text_factory is session.text_factory
            and conn.isolation_level is None
            and conn.__dict__ == session.own
        )

    def demoted(self, resource: sqlite3.Connection, error: BaseException | None) -> bool:  # noqa: ARG002
        """Never: a file has no replicas."""
        return False

    def is_broken(self, resource: sqlite3.Connection, error: BaseException | None) -> bool:
        """Whether the connection was closed or interrupted, or the file can't be read or written any more."""
        if not is_open(resource) or isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        codes = (getattr(cause, "sqlite_errorcode", 0) & 0xFF for cause in _common.causes(error))
        return any(code in _FATAL_CODES for code in codes)

    def in_transaction(self, resource: sqlite3.Connection) -> bool:
        """Whether a transaction is open, by SQLite's own account."""
        return is_open(resource) and resource.in_transaction

    def aborted(self, resource: sqlite3.Connection) -> bool:
        """Whether the transaction is gone: SQLite itself rolls back when the disk is full or a conflict says so."""
        session = cast("PooledConnection", resource)._session
        return session.begin is not None and not session.closed_by_user and not self.in_transaction(resource)

    def statement_error(self, resource: sqlite3.Connection) -> str:
        """Return what SQLite said when it ended the transaction."""
        return cast("PooledConnection", resource)._session.failed if self.aborted(resource) else ""

    def is_retryable(self, error: BaseException) -> bool:
        """Whether the same work may succeed when it is done again: another connection wrote, or holds the lock."""
        return (
            isinstance(error, sqlite3.OperationalError)
            and ((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF) in _RETRYABLE_CODES
        )

    # -- doing --------------------------------------------------------------------------------------------------------

    def begin(self, resource: sqlite3.Connection, options: TransactionOptions | None = None) -> None:
        """Begin, as the option says. Raises `sqlite3.OperationalError` where a lock is not to be had."""
        conn = cast("PooledConnection", resource)
        session, begin = conn._session, self._begin_sql
        if options is not None and options.read_only is not None:
            session.query_only = run(conn, "PRAGMA query_only")[0][0]
            run(conn, f"PRAGMA query_only = {int(options.read_only)}")
            if options.read_only:
                begin = "BEGIN DEFERRED"  # the others take the lock of a writer, which is refused
        try:
            run(conn, begin)
        except BaseException:
            conn._forget_choice()
            raise
        session.begin = begin
        session.wrote, session.failed = False, ""

    def check_options(self, options: TransactionOptions) -> None:
        """Raise `ConfigError` for what SQLite has not."""
        problems = []
        if options.isolation_level not in (None, "serializable"):
            problems.append(f"isolation_level {options.isolation_level!r}: SQLite's transactions are serializable")
        if options.deferrable is not None:
            problems.append("deferrable is PostgreSQL's: SQLite has no such transactions")
        if options.settings:
            problems.append("settings can't be for one transaction in SQLite: pragmas are for each connection")
        if problems:
            raise ConfigError(problems, self._where)

    def commit(self, resource: sqlite3.Connection) -> None:
        """Commit, or roll back and raise: after a COMMIT that failed, SQLite leaves the transaction open."""
        session = cast("PooledConnection", resource)._session
        lost = session.begin is not None and not self.in_transaction(resource)
        session.begin = session.explicit_end = None
        if lost and session.closed_by_user:
            raise sqlite3.OperationalError(
                "the connection was closed by conn.close() before the COMMIT: nothing was saved"
            )
        if lost:
            raise sqlite3.OperationalError("the transaction had been ended before, by an error or by SQL")
        if not self.in_transaction(resource):
            self._forget_choice(resource)
            return
        try:
            run(resource, "COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # the error of the COMMIT is the one to tell; reset looks again
                run(resource, "ROLLBACK")
            raise
        finally:
            self._forget_choice(resource)

    def _forget_choice(self, resource: sqlite3.Connection) -> None:
        if is_open(resource):
            cast("PooledConnection", resource)._forget_choice()

    def rollback(self, resource: sqlite3.Connection) -> None:
        """Roll back what is open."""
        session = cast("PooledConnection", resource)._session
        session.begin = session.explicit_end = None
        if self.in_transaction(resource):
            run(resource, "ROLLBACK")
        self._forget_choice(resource)

    def reset(self, resource: sqlite3.Connection, *, full: bool) -> None:
        """Roll back what is open and put the attributes back; `full`, or where it was changed: open it again in place.

        Raises `sqlite3.Error` where that can't be.
        """
        conn = cast("PooledConnection", resource)
        session = conn._session
        if not is_open(conn):
            raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
        session.let_go()
        self.rollback(conn)  # first: sqlite3 commits what is open when its isolation_level is set to None
        if full or session.changed:
            _open_again(conn, session)
        _take_control(conn)
        for name in conn.__dict__.keys() - session.own.keys():
            del conn.__dict__[name]
        conn.__dict__.update(session.own)
        _put(conn, "row_factory", session.row_factory)
        _put(conn, "text_factory", session.text_factory)

    def abandon(self, resource: sqlite3.Connection) -> None:
        """Make the inherited connection immortal: closing it here would act on locks that the parent has."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))


_put: Any = object.__setattr__


def _take_control(conn: sqlite3.Connection) -> None:
    """Let sqlite3 begin no transactions of its own."""
    legacy = getattr(sqlite3, "LEGACY_TRANSACTION_CONTROL", None)
    if legacy is not None and conn.autocommit != legacy:  # type: ignore[attr-defined,unused-ignore]  # 3.12 and later
        _put(conn, "autocommit", legacy)
    if conn.isolation_level is not None:
        _put(conn, "isolation_level", None)


def _open_again(conn: PooledConnection, session: Session) -> None:
    """Close the file and open it in the same object, and do again what was done to the connection while it was new."""
    if session.cannot_be_repeated:
        raise sqlite3.OperationalError("the connection was changed, and how it was configured can't be repeated")
    arguments, keywords = session.arguments
    raw.__init__(conn, *arguments, **keywords)  # which takes all its attributes away, too
    _put(conn, "_session", session)
    session.news = None
    for name, given, more in session.rest:
        if name.startswith("execute"):
            cursor = sqlite3.Cursor(conn)
            getattr(cursor, name)(*given)
            cursor.close()
        else:
            getattr(raw, name)(conn, *given, **more)
    session.changed = False


def _may_be_opened(uri: str) -> bool:
    """Whether the file of a URI is there, or can be made."""
    path = unquote(uri.removeprefix("file:").partition("?")[0])
    if os.path.isdir(path):  # noqa: PTH112
        return False
    if "mode=" in uri and not os.path.exists(path):  # noqa: PTH110  but for mode=rwc, which finds its folder missing
        return "mode=rwc" in uri and os.access(os.path.dirname(path), os.W_OK | os.X_OK)  # noqa: PTH120
    return os.access(path, os.R_OK) or os.access(os.path.dirname(path), os.W_OK | os.X_OK)  # noqa: PTH120


def _check_memory(query: list[tuple[str, str]], where: str) -> None:
    if query:
        raise ConfigError("sqlite:///:memory: takes no parameters in the URL", where)
    if sqlite3.sqlite_version_info < _MEMORY_SINCE:
        raise ConfigError(f"sqlite:///:memory: needs SQLite 3.36 or later, this is {sqlite3.sqlite_version}", where)


def _check_values(options: Mapping[str, Any], where: str) -> None:
    problems = []
    if options["begin"] not in _BEGIN:
        problems.append(f"begin must be one of {', '.join(_BEGIN)}, not {shown(options['begin'])}")
    if options["journal_mode"] not in (*_JOURNAL, None):
        mode = shown(options["journal_mode"])
        problems.append(f"journal_mode must be one of {', '.join(_JOURNAL)} or None, not {mode}")
    if not isinstance(options["foreign_keys"], bool):
        problems.append(f"foreign_keys must be True or False, not {shown(options['foreign_keys'])}")
    if not _common.is_seconds(options["busy_timeout"], zero=True):
        problems.append(f"busy_timeout must be a number of seconds, not {shown(options['busy_timeout'])}")
    problems += _pragma_faults(options["pragmas"])
    if problems:
        raise ConfigError(problems, where)


def _pragma_faults(pragmas: object) -> list[str]:
    if not isinstance(pragmas, Mapping):
        return [f"pragmas must map names to values, not {shown(pragmas)}"]
    return [
        f"pragma {name!r} must be a name and a plain value, not {shown(value)}"
        for name, value in pragmas.items()
        if not re.fullmatch(r"\w+", str(name)) or not re.fullmatch(r"-?\w+", str(value))
    ]
