"""The relay takes data for data: a status and a goodbye are what the server says, not what a row holds."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import asyncpg
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs import Rig

from poolkit.aio import AsyncPool
from poolkit.drivers._relay import Relay
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.errors import CommitFailed


class Inner:
    def __init__(self) -> None:
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def error(severity: bytes) -> bytes:
    return message(b"E", b"S" + severity + b"\0V" + severity + b"\0C57P01\0Mterminating\0\0")


FATAL = error(b"FATAL")
# What may be in a column: statuses, goodbyes, pieces of both, and what a reader of messages could be led astray by.
COLUMNS = st.lists(
    st.sampled_from(
        [b"Z\0\0\0\5I", b"Z\0\0\0\5E", b"Z\0\0\0\5", FATAL, FATAL[:-1], b"\0VFATAL\0", b"E\0\0", b"x", b"\0"]
    )
).map(b"".join)


def answer(columns: list[bytes], status: bytes) -> bytes:
    rows = b"".join(message(b"D", b"\0\1" + len(column).to_bytes(4, "big") + column) for column in columns)
    return rows + message(b"C", b"SELECT 1\0") + message(b"Z", status)


def fed(stream: bytes, cuts: list[int]) -> Relay:
    relay, begin = Relay(inner := Inner()), 0
    for cut in [*sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]:
        if cut > begin:
            relay.data_received(stream[begin:cut])
        begin = cut
    assert inner.data == stream
    return relay


@given(columns=st.lists(COLUMNS, max_size=4), status=st.sampled_from([b"I", b"T", b"E"]), cuts=st.lists(st.integers(0)))
def test_data_is_neither_status_nor_goodbye(columns: list[bytes], status: bytes, cuts: list[int]) -> None:
    """Whatever a row holds and however the stream is cut, the status is the server's and the session goes on."""
    relay = fed(answer([], b"E") + answer(columns, status), cuts)
    assert bytes([relay.status]) == status
    assert not relay.ended


@given(columns=st.lists(COLUMNS, max_size=4), between=st.booleans(), cuts=st.lists(st.integers(0)))
def test_a_goodbye_is_seen(columns: list[bytes], *, between: bool, cuts: list[int]) -> None:
    """An error that ends the session is seen after an answer or in the middle of one, however the stream is cut."""
    stream = answer(columns, b"T")
    assert fed((stream if between else stream[: -len(message(b"Z", b"T"))]) + FATAL, cuts).ended


@pytest.mark.parametrize("severity", [b"ERROR", b"WARNING"])
def test_an_error_of_a_statement_is_no_goodbye(severity: bytes) -> None:
    """Only what ends the session counts."""
    assert not fed(error(severity), []).ended


def test_a_status_before_a_notification() -> None:
    """What comes unasked after an answer does not hide its status, and is none itself."""
    relay = fed(answer([], b"T") + message(b"A", (5).to_bytes(4, "big") + b"I" * 40 + b"\0" + b"x" * 40 + b"\0"), [])
    assert bytes([relay.status]) == b"T"


GOODBYE = uuid.UUID("00564641-5441-4c00-8000-000000000000")  # \0VFATAL\0


@pytest.mark.parametrize("value", [GOODBYE, int.from_bytes(GOODBYE.bytes[:8], "big"), FATAL, b"Z\0\0\0\5E" * 100_000])
def test_rows_cost_no_connection(tables: str, value: Any) -> None:
    """Reading a value with the bytes of a goodbye or a status costs no connection, and its commit is a commit."""

    async def main() -> None:
        async with AsyncPool(AsyncpgDriver(tables), max_size=1) as pool:
            for number in range(3):
                async with pool.transaction() as conn:
                    await conn.execute("INSERT INTO item VALUES ($1)", number)
                    kind = {uuid.UUID: "uuid", int: "bigint", bytes: "bytea"}[type(value)]
                    assert await conn.fetchval(f"SELECT $1::{kind}", value) == value
                await asyncio.sleep(0.002)  # the next borrower looks at it
            assert pool.stats().opened == 1
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT count(*) FROM item") == 3

    asyncio.run(main())


# -- a first statement that is refused as a whole ----------------------------------------------------------------------

REFUSED = ["SELEKT 1", "INSERT INTO item VALUES (1); SELEKT 1", "SELEKT 1; COMMIT", "SELECT CASE WHEN true THEN 1 EN"]


@pytest.mark.parametrize("rig_name", ["asyncpg"], indirect=True)
@pytest.mark.parametrize("query", REFUSED)
def test_a_syntax_error_aborts_also_as_the_first(rig: Rig, admin: psycopg.Connection[Any], query: str) -> None:
    """A syntax error in the first statement, ignored, has aborted the transaction: what follows is not saved."""
    conn = rig.open()
    rig.begin(conn)
    with pytest.raises(asyncpg.PostgresSyntaxError, match="syntax error"):
        rig.run(conn.execute(query))
    assert conn.is_in_transaction()
    assert rig.aborted(conn)
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        rig.run(conn.execute("INSERT INTO item VALUES (2)"))
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        rig.commit(conn)
    assert not rig.in_transaction(conn)
    assert admin.execute("SELECT count(*) FROM item").fetchone() == (0,)


@pytest.mark.parametrize("rig_name", ["asyncpg"], indirect=True)
def test_a_syntax_error_through_the_pool(rig: Rig) -> None:
    """The end of the block says so, and the next borrower is not touched."""
    pool = rig.make_pool(rig.driver)

    def work(conn: Any) -> None:
        with pytest.raises(asyncpg.PostgresSyntaxError):
            rig.run(conn.execute("SELEKT 1"))

    with pytest.raises(CommitFailed):
        rig.transaction(pool, work)
    rig.transaction(pool, lambda conn: rig.do(conn, "INSERT INTO item VALUES (1)"))
    assert rig.run(pool.close())


@pytest.mark.parametrize("rig_name", ["asyncpg"], indirect=True)
def test_an_error_after_a_commit_of_its_own_is_no_syntax_error(rig: Rig) -> None:
    """A first text that commits and then fails has ended its transaction itself, as without folding."""
    conn = rig.open()
    rig.begin(conn)
    with pytest.raises(asyncpg.DivisionByZeroError):
        rig.run(conn.execute("INSERT INTO item VALUES (1); COMMIT; SELECT 1 / 0"))
    assert not rig.aborted(conn)
    rig.commit(conn)
    assert rig.value(conn, "SELECT count(*) FROM item") == 1
