"""The ways to the server that psycopg has; each inserts item 1, or fails. Written for asyncio, and run for both."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Generator
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

INSERT = "INSERT INTO item VALUES (1)"
_PLAIN = (type(None), bool, int, str, bytes, list, tuple, dict, memoryview)


class Alike:
    """Gives a sync object the face of an async one."""

    def __init__(self, real: Any) -> None:
        self.real = real

    @classmethod
    def of(cls, conn: Any) -> Any:
        """An async connection as it is, a sync one with another face."""
        return conn if isinstance(conn, psycopg.AsyncConnection) else cls(conn)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.real, name)
        return (lambda *args, **kwargs: Alike(value(*args, **kwargs))) if callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "real":
            super().__setattr__(name, value)
        else:
            setattr(self.real, name, value)

    def __await__(self) -> Generator[Any, Any, Any]:
        yield from ()
        return self.real if isinstance(self.real, _PLAIN) else self

    async def __aenter__(self) -> Self:
        return Alike(self.real.__enter__())  # type: ignore[return-value]

    async def __aexit__(self, *error: object) -> Any:
        return self.real.__exit__(*error)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.real:
            yield item


class Sent(list[str]):
    """The names of the messages that libpq sends meanwhile."""

    def __init__(self, conn: Any) -> None:
        super().__init__()
        self._pgconn = conn.pgconn

    def __enter__(self) -> Self:
        self._file = tempfile.TemporaryFile()
        self._pgconn.trace(self._file.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        self._pgconn.untrace()
        self._file.seek(0)
        lines = [line.split(b"\t") for line in self._file]
        self += [parts[3].decode().strip() for parts in lines if parts[1] == b"F"]
        self._file.close()


def made(conn: Any, name: str, **methods: Any) -> Any:
    """Make a cursor of a class of psycopg's, with methods of somebody's own, by hand."""
    real = conn.real if isinstance(conn, Alike) else conn
    base = getattr(psycopg, name if isinstance(conn, Alike) else f"Async{name}")
    cursor = type("Own", (base,), methods)(real)
    return Alike(cursor) if isinstance(conn, Alike) else cursor


async def execute(conn: Any) -> None:
    await conn.execute(INSERT)


async def execute_with_parameters(conn: Any) -> None:
    await conn.execute("INSERT INTO item VALUES (%s)", [1])


async def execute_with_names(conn: Any) -> None:
    await conn.execute("INSERT INTO item VALUES (%(id)s)", {"id": 1})


async def execute_bytes(conn: Any) -> None:
    await conn.execute(INSERT.encode())


async def execute_composed(conn: Any) -> None:
    await conn.execute(sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier("item")))


async def execute_on_cursor(conn: Any) -> None:
    async with conn.cursor() as cursor:
        await cursor.execute(INSERT + " RETURNING id")
        assert await cursor.fetchall() == [(1,)]


async def execute_binary(conn: Any) -> None:
    cursor = await conn.execute(INSERT + " RETURNING id", binary=True)
    assert cursor.pgresult.fformat(0) == 1
    assert await cursor.fetchone() == (1,)


async def execute_prepared(conn: Any) -> None:
    await conn.execute("INSERT INTO item VALUES (%s)", [1], prepare=True)


async def execute_commented(conn: Any) -> None:
    await conn.execute("/* page=home */ " + INSERT + " ;\n")


async def execute_with(conn: Any) -> None:
    cursor = await conn.execute(f"WITH new AS ({INSERT} RETURNING id) (SELECT id FROM new)")
    assert await cursor.fetchone() == (1,)


async def set_local_first(conn: Any) -> None:
    await conn.execute("SET LOCAL statement_timeout = '1min'")
    await conn.execute(INSERT)


async def savepoint_first(conn: Any) -> None:
    await conn.execute("SAVEPOINT one")
    await conn.execute(INSERT)
    await conn.execute("RELEASE SAVEPOINT one")


async def lock_first(conn: Any) -> None:
    await conn.execute("LOCK TABLE child")
    await conn.execute(INSERT)


async def rows_as_dictionaries(conn: Any) -> None:
    cursor = await conn.cursor(row_factory=dict_row).execute(INSERT + " RETURNING id")
    assert await cursor.fetchone() == {"id": 1}


async def client_cursor(conn: Any) -> None:
    await made(conn, "ClientCursor").execute("INSERT INTO item VALUES (length(%s))", ["$"])


async def raw_cursor(conn: Any) -> None:
    await made(conn, "RawCursor").execute("INSERT INTO item VALUES ($1)", [1])


async def own_execute(conn: Any) -> None:
    def execute(self: Any, query: str, *args: Any) -> Any:
        return super(type(self), self).execute("/* own */" + query, *args)

    await made(conn, "Cursor", execute=execute).execute(INSERT)


async def cursor_factory(conn: Any) -> None:
    conn.cursor_factory = psycopg.ClientCursor if isinstance(conn, Alike) else psycopg.AsyncClientCursor
    await conn.execute("INSERT INTO item VALUES (%s)", [1])


# -- what can't go along -----------------------------------------------------------------------------------------------


async def execute_several(conn: Any) -> None:
    await conn.execute(INSERT + "; INSERT INTO item VALUES (2)")


async def execute_dollars(conn: Any) -> None:
    await conn.execute("INSERT INTO item VALUES (length($$x$$))")


async def execute_block(conn: Any) -> None:
    await conn.execute("DO $$ BEGIN INSERT INTO item VALUES (1); END $$")


async def execute_ddl(conn: Any) -> None:
    await conn.execute("CREATE TABLE IF NOT EXISTS another AS SELECT 1")
    await conn.execute("INSERT INTO item SELECT * FROM another")
    await conn.execute("DROP TABLE another")


async def execute_begin(conn: Any) -> None:
    await conn.execute("BEGIN")
    await conn.execute(INSERT)


async def executemany(conn: Any) -> None:
    await conn.cursor().executemany("INSERT INTO item VALUES (%s)", [[1], [2]])


async def executemany_returning(conn: Any) -> None:
    cursor = conn.cursor()
    await cursor.executemany("INSERT INTO item VALUES (%s) RETURNING id", [[1], [2]], returning=True)
    assert await cursor.fetchone() == (1,)


async def copy(conn: Any) -> None:
    async with conn.cursor().copy("COPY item FROM STDIN") as rows:
        await rows.write_row([1])


async def copy_out(conn: Any) -> None:
    async with conn.cursor().copy(f"COPY ({INSERT} RETURNING id) TO STDOUT") as rows:
        assert bytes(await rows.read()) == b"1\n"
        await rows.read()


async def stream(conn: Any) -> None:
    assert [row async for row in conn.cursor().stream(INSERT + " RETURNING id")] == [(1,)]


async def named_cursor(conn: Any) -> None:
    async with conn.cursor("mine") as cursor:
        await cursor.execute("SELECT 1")
        assert await cursor.fetchone() == (1,)
    await conn.execute(INSERT)


async def nested(conn: Any) -> None:
    async with conn.transaction():
        await conn.execute(INSERT)


async def nested_and_undone(conn: Any) -> None:
    with contextlib.suppress(psycopg.errors.DivisionByZero):
        async with conn.transaction():
            await conn.execute("INSERT INTO item VALUES (7)")
            await conn.execute("SELECT 1/0")
    async with conn.transaction("outer"), conn.transaction():
        await conn.execute(INSERT)


async def pipeline(conn: Any) -> None:
    async with conn.pipeline() as line:
        await conn.execute(INSERT)
        await conn.execute("INSERT INTO item VALUES (%s)", [2])
        await line.sync()


async def notifies(conn: Any) -> None:
    assert [n async for n in conn.notifies(timeout=0)] == []
    await conn.execute(INSERT)


async def refused_first(conn: Any) -> None:
    with contextlib.suppress(psycopg.ProgrammingError):
        await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
    await conn.execute(INSERT)


async def cancelled_first(conn: Any) -> None:
    conn.cancel()
    await conn.execute(INSERT)


async def own_sending(conn: Any) -> None:
    def send(self: Any, query: Any, **_: Any) -> None:
        self._query = query
        self._pgconn.send_query(query.query)

    await made(conn, "Cursor", _execute_send=send).execute(INSERT)


async def own_steps(conn: Any) -> None:
    def steps(self: Any, query: str, *args: Any, **kwargs: Any) -> Any:
        yield from super(type(self), self)._execute_gen("/* own */" + query, *args, **kwargs)

    await made(conn, "Cursor", _execute_gen=steps).execute(INSERT)


FOLDED = [
    execute, execute_with_parameters, execute_with_names, execute_bytes, execute_composed, execute_on_cursor,
    execute_binary, execute_commented, execute_with, set_local_first, savepoint_first, lock_first,
    rows_as_dictionaries, client_cursor, raw_cursor, own_execute, cursor_factory, cancelled_first,
]  # fmt: skip
APART = [
    execute_several, execute_dollars, execute_block, execute_ddl, execute_begin, executemany, executemany_returning,
    copy, copy_out, stream, named_cursor, nested, nested_and_undone, pipeline, notifies, refused_first, own_sending,
    own_steps,
]  # fmt: skip
SAVED = {**dict.fromkeys(FOLDED, 1), **dict.fromkeys(APART, 0), execute_prepared: 2}
WAYS = list(SAVED)
