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

`reset="full"` also detaches databases, drops temporary objects and sets the pragmas again. Never undone: functions,
collations and adapters registered on a connection, and pragmas that were set by hand and are not in the options.
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
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode

from poolkit.config import PoolConfig
from poolkit.drivers import _common
from poolkit.drivers._url_parameters import check_names
from poolkit.errors import ConfigError

__all__ = ["PooledConnection", "SqliteDriver"]

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
_FATAL_CODES = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN}

_memory_names = itertools.count(1)


class PooledCursor(sqlite3.Cursor):
    """A sqlite3 cursor that runs nothing behind the back of a unit of work."""

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """Execute; refused where SQLite has ended the transaction of the unit, for it would run in autocommit."""
        self.connection._refuse_lost()  # type: ignore[attr-defined]
        return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        """Execute for each; refused as `execute` is."""
        self.connection._refuse_lost()  # type: ignore[attr-defined]
        return super().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Self:
        """Execute a script; not inside a unit of work, for sqlite3 commits before it runs one."""
        if self.connection._begin is not None:  # type: ignore[attr-defined]
            raise sqlite3.ProgrammingError("executescript() commits first: run it outside the transaction")
        super().executescript(sql_script)
        return self


class PooledConnection(sqlite3.Connection):
    """A sqlite3 connection that knows when it is in a unit of work."""

    _begin: str | None = None  # inside a unit: the statement that began it

    def cursor(self, factory: Any = PooledCursor) -> Any:
        """Make a cursor, one that minds the unit of work unless told otherwise."""
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        """Execute on a new cursor; sqlite3's own would not ask `cursor` for it."""
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Any:
        """Execute for each, on a new cursor."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Any:
        """Execute a script on a new cursor; not inside a unit of work."""
        return self.cursor().executescript(sql_script)

    def commit(self) -> None:
        """Commit; inside a unit of work a new transaction follows."""
        if self.in_transaction:
            self._run("COMMIT")
            self._begin_again()

    def rollback(self) -> None:
        """Roll back; inside a unit of work a new transaction follows."""
        if self.in_transaction:
            self._run("ROLLBACK")
        self._begin_again()

    def _begin_again(self) -> None:
        if self._begin is not None:
            self._run(self._begin)

    def _run(self, statement: str) -> None:
        super().cursor().execute(statement)

    def _refuse_lost(self) -> None:
        if self._begin is not None and not self.in_transaction:
            raise sqlite3.OperationalError("the transaction was ended by an error or by SQL: roll it back")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> Literal[False]:
        # sqlite3's own would end the transaction without asking the methods above.
        if kind is None:
            self.commit()
        else:
            self.rollback()
        return False


class SqliteDriver:
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
        self._anchors: dict[int, sqlite3.Connection] = {}
        self._fixed = self._locate(source) if isinstance(source, str) else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

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
            self._hold(uri)
            return self._connect(uri, {"foreign_keys": self._options["foreign_keys"]})
        # SQLite can't change the mode of a file that it may not write.
        mode = None if re.search(r"[?&](mode=ro|immutable=)", uri) else self._options["journal_mode"]
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
            self._restore(conn)
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
        pid = os.getpid()
        if pid in self._anchors:
            return
        anchor = sqlite3.connect(uri, uri=True, check_same_thread=False)
        if self._anchors.setdefault(pid, anchor) is anchor:
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
        return f"file:{quote(os.path.abspath(name))}" + (f"?{urlencode(given)}" if given else "")  # noqa: PTH100  pure text

    def close(self, resource: sqlite3.Connection) -> None:
        """Close; an open transaction is rolled back."""
        resource.close()

    # -- looking ------------------------------------------------------------------------------------------------------

    def alive(self, resource: sqlite3.Connection) -> bool:
        """Whether the connection was not closed by its user."""
        return _is_open(resource)

    def ping(self, resource: sqlite3.Connection, timeout: float) -> bool:  # noqa: ARG002  there is no server
        """Whether the database can be read."""
        try:
            resource.execute("PRAGMA schema_version").fetchone()
        except sqlite3.Error:
            return False
        return True

    def clean(self, resource: sqlite3.Connection) -> bool:
        """Whether no transaction is open, and rows come as when the connection was opened."""
        return (
            _is_open(resource)
            and not resource.in_transaction
            and resource.row_factory is self._row_factory
            and resource.text_factory is self._text_factory
            and resource.isolation_level is None
            and resource._begin is None  # type: ignore[attr-defined]
        )

    def demoted(self, resource: sqlite3.Connection, error: BaseException | None) -> bool:  # noqa: ARG002
        """Never: a file has no replicas."""
        return False

    def is_broken(self, resource: sqlite3.Connection, error: BaseException | None) -> bool:
        """Whether the connection was closed or interrupted, or the file can't be read or written any more."""
        if not _is_open(resource) or isinstance(error, (KeyboardInterrupt, SystemExit)):
            return True
        codes = (getattr(cause, "sqlite_errorcode", 0) & 0xFF for cause in _common.causes(error))
        return any(code in _FATAL_CODES for code in codes)

    def in_transaction(self, resource: sqlite3.Connection) -> bool:
        """Whether a transaction is open, by SQLite's own account."""
        return _is_open(resource) and resource.in_transaction

    def aborted(self, resource: sqlite3.Connection) -> bool:
        """Whether the transaction is gone: SQLite itself rolls back when the disk is full or a conflict says so."""
        return resource._begin is not None and not self.in_transaction(resource)  # type: ignore[attr-defined]

    # -- doing --------------------------------------------------------------------------------------------------------

    def begin(self, resource: sqlite3.Connection) -> None:
        """Begin, as the option says. Raises `sqlite3.OperationalError` where a lock is not to be had."""
        resource.execute(self._begin_sql)
        resource._begin = self._begin_sql  # type: ignore[attr-defined]

    def commit(self, resource: sqlite3.Connection) -> None:
        """Commit, or roll back and raise: after a COMMIT that failed, SQLite leaves the transaction open."""
        lost = self.aborted(resource)
        resource._begin = None  # type: ignore[attr-defined]
        if lost:
            raise sqlite3.OperationalError("the transaction had been ended before, by an error or by SQL")
        if not resource.in_transaction:
            return
        try:
            resource.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # the error of the COMMIT is the one to tell; reset looks again
                resource.execute("ROLLBACK")
            raise

    def rollback(self, resource: sqlite3.Connection) -> None:
        """Roll back what is open."""
        resource._begin = None  # type: ignore[attr-defined]
        if resource.in_transaction:
            resource.execute("ROLLBACK")

    def reset(self, resource: sqlite3.Connection, *, full: bool) -> None:
        """Roll back what is open and put the attributes back; `full`: also attached and temporary things, pragmas."""
        self.rollback(resource)  # first: sqlite3 commits what is open when its isolation_level is set to None
        self._restore(resource)
        if full:
            for statement in _cleaning(resource):
                resource.execute(statement)
            self._apply(resource, {"foreign_keys": self._options["foreign_keys"], **self._options["pragmas"]})
            resource.execute(f"PRAGMA busy_timeout = {int(self._options['busy_timeout'] * 1000)}")
            resource.set_trace_callback(None)
            resource.set_authorizer(None)
            resource.set_progress_handler(None, 0)

    def _restore(self, conn: sqlite3.Connection) -> None:
        legacy = getattr(sqlite3, "LEGACY_TRANSACTION_CONTROL", None)
        if legacy is not None and conn.autocommit != legacy:  # type: ignore[attr-defined,unused-ignore]  # 3.12 and later
            conn.autocommit = legacy  # type: ignore[attr-defined,unused-ignore]
        if conn.isolation_level is not None:
            conn.isolation_level = None
        conn.row_factory = self._row_factory
        conn.text_factory = self._text_factory

    def abandon(self, resource: sqlite3.Connection) -> None:
        """Make the inherited connection immortal: closing it here would act on locks that the parent has."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))


def _is_open(conn: sqlite3.Connection) -> bool:
    try:
        conn.in_transaction  # noqa: B018  raises where the connection is closed, from 3.13 on; total_changes always did
        conn.total_changes  # noqa: B018
    except sqlite3.ProgrammingError:
        return False
    return True


def _cleaning(conn: sqlite3.Connection) -> Iterator[str]:
    """Yield the statements that remove what a session can add to itself."""
    for _, name, _ in _rows(conn, "PRAGMA database_list"):
        if name not in {"main", "temp"}:
            yield f"DETACH {_quoted(name)}"
    for kind, name in _rows(conn, "SELECT type, name FROM sqlite_temp_master WHERE type IN ('view', 'trigger')"):
        yield f"DROP {kind} IF EXISTS temp.{_quoted(name)}"
    for (name,) in _rows(conn, "SELECT name FROM sqlite_temp_master WHERE type = 'table'"):
        if not name.startswith("sqlite_"):
            yield f"DROP TABLE temp.{_quoted(name)}"


def _rows(conn: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    cursor = conn.cursor()
    cursor.row_factory = None
    return cursor.execute(query).fetchall()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _check_memory(query: list[tuple[str, str]], where: str) -> None:
    if query:
        raise ConfigError("sqlite:///:memory: takes no parameters in the URL", where)
    if sqlite3.sqlite_version_info < _MEMORY_SINCE:
        raise ConfigError(f"sqlite:///:memory: needs SQLite 3.36 or later, this is {sqlite3.sqlite_version}", where)


def _check_values(options: Mapping[str, Any], where: str) -> None:
    problems = []
    if options["begin"] not in _BEGIN:
        problems.append(f"begin must be one of {', '.join(_BEGIN)}, not {options['begin']!r}")
    if options["journal_mode"] not in (*_JOURNAL, None):
        problems.append(f"journal_mode must be one of {', '.join(_JOURNAL)} or None, not {options['journal_mode']!r}")
    if not isinstance(options["foreign_keys"], bool):
        problems.append(f"foreign_keys must be True or False, not {options['foreign_keys']!r}")
    if not _common.is_seconds(options["busy_timeout"], zero=True):
        problems.append(f"busy_timeout must be a number of seconds, not {options['busy_timeout']!r}")
    problems += _pragma_faults(options["pragmas"])
    if problems:
        raise ConfigError(problems, where)


def _pragma_faults(pragmas: object) -> list[str]:
    if not isinstance(pragmas, Mapping):
        return [f"pragmas must map names to values, not {pragmas!r}"]
    return [
        f"pragma {name!r} must be a name and a plain value, not {value!r}"
        for name, value in pragmas.items()
        if not re.fullmatch(r"\w+", str(name)) or not re.fullmatch(r"-?\w+", str(value))
    ]
