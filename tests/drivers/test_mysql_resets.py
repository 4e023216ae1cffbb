"""Resets of MySQL's sessions on a network and a server that misbehave, and what they put back."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mysql_kinds import run
from rigs import MYSQL, RIGS, Rig

from poolkit.drivers._mysql_answers import COM_QUERY, Answers, command
from poolkit.errors import ConfigError
from poolkit.testing import FaultProxy
from poolkit.threads import Pool

every_library = pytest.mark.parametrize("rig_name", MYSQL, indirect=True)
only_pymysql = pytest.mark.parametrize("rig_name", ["pymysql"], indirect=True)
SETTING = "SET SESSION wait_timeout = 91"


@pytest.fixture
def through(rig_name: str, mysql_proxy: FaultProxy, mysql_tables: str) -> Iterator[tuple[Rig, FaultProxy]]:
    """A rig whose connections go through a network that can be broken."""
    kind = RIGS[rig_name]
    rig = kind(kind.kind(mysql_proxy.url(mysql_tables)), kind.kind)
    yield rig, mysql_proxy
    rig.close_all()


# -- sent, and read later ---------------------------------------------------------------------------------------------


@only_pymysql
def test_sent_and_not_waited_for(through: tuple[Rig, FaultProxy]) -> None:
    """A reset is one write; its answers are read when somebody asks, and nothing else may use the connection before."""
    rig, proxy = through
    conn = rig.open()
    rig.do(conn, SETTING)
    before = proxy.round_trips
    proxy.blackhole()
    assert rig.driver.send_reset(conn, full=False)
    assert not rig.driver.finish_reset(conn, 0.0)
    assert not rig.driver.finish_reset(conn, 0.02)
    with pytest.raises(rig.errors, match="one thread at a time"):
        run(conn, "SELECT 1")
    proxy.heal()
    assert rig.driver.finish_reset(conn, 10.0)
    assert proxy.round_trips == before + 1
    assert rig.clean(conn)
    assert rig.value(conn, "SELECT @@wait_timeout") != 91


@only_pymysql
def test_a_clean_one_costs_nothing(through: tuple[Rig, FaultProxy]) -> None:
    """Where only the object was changed, it is put right without a word to the server."""
    rig, proxy = through
    conn = rig.open()
    conn.cursorclass = type("Own", (conn.cursorclass,), {})
    before = proxy.bytes_up
    assert not rig.driver.send_reset(conn, full=False)
    assert rig.clean(conn)
    assert proxy.bytes_up == before


@only_pymysql
def test_one_after_the_other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a server that takes one command at a time the next is sent when the one before is answered."""
    conn = rig.open()
    conn.host = "shop.cluster-x.eu-west-1.rds.amazonaws.com"
    rig.do(conn, SETTING, "USE information_schema")
    sent: list[int] = []
    send = type(conn)._send
    monkeypatch.setattr(
        type(conn), "_send", lambda self, commands, **how: sent.append(1) or send(self, commands, **how)
    )
    assert rig.driver.send_reset(conn, full=False)
    assert len(conn._unsent) == 2
    assert rig.driver.finish_reset(conn, 10.0)
    assert len(sent) == 3
    assert rig.value(conn, "SELECT @@wait_timeout") != 91
    assert rig.value(conn, "SELECT database()") != "information_schema"


@every_library
@pytest.mark.parametrize("fault", ["rst", "fin", "silence"])
def test_a_reset_that_comes_to_nothing(through: tuple[Rig, FaultProxy], fault: str) -> None:
    """Lost or unanswered: the connection is discarded, the next borrower gets another, and never the old session."""
    rig, proxy = through
    with Pool(rig.driver, max_size=1, timeout=20) as pool:
        with pool.acquire() as conn:
            old = rig.value(conn, "SELECT connection_id()")
            rig.do(conn, SETTING)
            proxy.half_open() if fault == "silence" else proxy.cut(fault)  # type: ignore[arg-type]
        began = time.monotonic()
        with pool.acquire() as conn:
            assert rig.value(conn, "SELECT connection_id()") != old
            assert rig.value(conn, "SELECT @@wait_timeout") != 91
        assert time.monotonic() - began < 10
        assert pool.stats().opened == 2


@every_library
def test_a_reset_that_fails(rig: Rig) -> None:
    """A statement of the state of rest that fails in a reset has the connection replaced."""

    def configure(conn: Any) -> None:
        run(conn, "SET @mine = (SELECT count(*) FROM item)")

    with Pool(rig.driver, max_size=1, configure=configure) as pool:
        with pool.acquire() as conn:
            old = rig.value(conn, "SELECT connection_id()")
            rig.do(conn, SETTING, "RENAME TABLE item TO elsewhere")
        if hasattr(rig.driver, "finish_reset"):
            assert pool.stats().resetting == 1
        deadline = time.monotonic() + 5
        while pool.stats().size and time.monotonic() < deadline:
            pool.sweep()
            time.sleep(0.01)
        other = rig.open()
        rig.do(other, "RENAME TABLE elsewhere TO item")
        with pool.acquire() as conn:
            assert rig.value(conn, "SELECT connection_id()") != old
            assert rig.value(conn, "SELECT @mine") == 0


@only_pymysql
def test_a_close_while_it_is_under_way(through: tuple[Rig, FaultProxy]) -> None:
    """A connection whose reset is under way is hung up on, without a wait."""
    rig, proxy = through
    conn = rig.open()
    rig.do(conn, SETTING)
    proxy.blackhole()
    assert rig.driver.send_reset(conn, full=True)
    began = time.monotonic()
    rig.driver.close(conn)
    assert time.monotonic() - began < 1
    with pytest.raises(rig.errors):
        rig.driver.finish_reset(conn, 1.0)


# -- the state of rest ------------------------------------------------------------------------------------------------


@every_library
def test_what_configure_said_is_said_again(rig: Rig) -> None:
    """Variables, a database, a temporary table, a prepared statement and attributes set by `configure` survive."""

    def configure(conn: Any) -> None:
        run(conn, "SET @mine = 5, SESSION wait_timeout = 95")
        run(conn, "CREATE TEMPORARY TABLE own (id integer)")
        run(conn, "PREPARE own FROM 'SELECT 6'")
        conn.set_character_set("latin1")
        conn.select_db("information_schema")
        conn.tenant = "ours"

    with Pool(rig.driver, max_size=1, configure=configure) as pool:
        for _ in range(3):
            with pool.acquire() as conn:
                assert rig.value(conn, "SELECT @mine") == 5
                assert rig.value(conn, "SELECT @@wait_timeout") == 95
                assert rig.value(conn, "SELECT @@character_set_client") == "latin1"
                assert rig.value(conn, "SELECT database()") == "information_schema"
                assert rig.value(conn, "EXECUTE own") == 6
                assert conn.tenant == "ours"
                rig.do(conn, "SET @mine = 6, SESSION wait_timeout = 96", "SET NAMES utf8mb4", "DEALLOCATE PREPARE own")
                conn.select_db("mysql")
                conn.tenant = "theirs"
        assert pool.stats().opened == 1


@every_library
def test_configure_may_leave_nothing_open(rig: Rig) -> None:
    """A transaction that is open at the end of `configure` is an error of the connect, which says so."""
    conn = rig.open()
    run(conn, "BEGIN")
    with pytest.raises(ConfigError, match="left a transaction or rows open"):
        rig.driver.settled(conn)


@every_library
def test_options_are_said_again(rig: Rig) -> None:
    """`session_settings`, `statement_timeout` and `sql_mode` hold on a new connection and after each reset."""
    rig.driver = rig.again(
        options={
            "session_settings": {"time_zone": "+03:00", "wait_timeout": 97, "foreign_key_checks": False},
            "statement_timeout": 0.3,
            "sql_mode": "NO_BACKSLASH_ESCAPES,TRADITIONAL",
        }
    )
    conn = rig.open()
    for _ in range(2):
        assert rig.value(conn, "SELECT @@time_zone") == "+03:00"
        assert rig.value(conn, "SELECT @@wait_timeout") == 97
        assert rig.value(conn, "SELECT @@foreign_key_checks") == 0
        assert rig.value(conn, "SELECT @@max_statement_time") == 0.3
        assert "NO_BACKSLASH_ESCAPES" in rig.value(conn, "SELECT @@sql_mode")
        rig.do(conn, r"SELECT 'a backslash at the end \'")
        assert rig.clean(conn)
        rig.do(conn, "SET SESSION time_zone = '+04:00', max_statement_time = 0, foreign_key_checks = 1, sql_mode = ''")
        rig.reset(conn, full=False)
    with pytest.raises(rig.errors) as caught:
        rig.do(conn, "SELECT sleep(5)")
    assert caught.value.args[0] in {1969, 3024}


@every_library
def test_known_functions(rig: Rig, mysql_admin: Any) -> None:
    """A stored function counts as a change, unless it is named in `harmless_functions` and the server hears of none."""
    mysql_admin.query("CREATE OR REPLACE FUNCTION kind_plain() RETURNS integer RETURN 1")
    rig.do(conn := rig.open(), "SELECT kind_plain()")
    assert not rig.clean(conn)
    rig.driver = rig.again(options={"harmless_functions": ["Kind_plain"]})
    rig.do(conn := rig.open(), "SELECT kind_plain()")
    assert rig.clean(conn)


@every_library
def test_a_procedure_that_ends_the_transaction(rig: Rig, mysql_admin: Any) -> None:
    """Whether it committed or rolled back is not told, so the unit is told as lost, and never as saved."""
    for word in ("ROLLBACK", "COMMIT"):
        mysql_admin.query(f"CREATE OR REPLACE PROCEDURE kind_ends() {word}")
        conn = rig.open()
        rig.begin(conn)
        rig.do(conn, "INSERT INTO item VALUES (1)")
        run(conn, "CALL kind_ends()")
        with pytest.raises(rig.errors, match="ended inside a statement"):
            rig.commit(conn)
        rig.begin(conn)
        rig.do(conn, "DELETE FROM item")
        rig.commit(conn)


@every_library
@pytest.mark.parametrize("word", ["/* it's ours */ COMMIT", "CREATE OR REPLACE TABLE made (id integer)"])
def test_who_ends_it_himself(rig: Rig, word: str) -> None:
    """A statement that is known to commit is no loss: what it saved stays, and what follows is a transaction again."""
    conn = rig.open()
    rig.begin(conn)
    rig.do(conn, "INSERT INTO item VALUES (1)", word)
    rig.commit(conn)
    assert rig.value(conn, "SELECT count(*) FROM item") == 1


# -- the answers, read from bytes -------------------------------------------------------------------------------------


def packet(number: int, payload: bytes) -> bytes:
    return struct.pack("<I", len(payload))[:3] + bytes([number]) + payload


def ok(status: int = 2, number: int = 1) -> bytes:
    return packet(number, b"\x00\x00\x00" + struct.pack("<HH", status, 0))


def end(number: int, status: int = 2) -> bytes:
    return packet(number, b"\xfe" + struct.pack("<HH", 0, status))


ROWS = packet(1, b"\x01") + packet(2, b"a column") + end(3) + packet(4, b"\x01x") + packet(5, b"\xfe" + b"x" * 20)
ERROR = packet(1, b"\xff" + struct.pack("<H", 1193) + b"#HY000Unknown system variable")


@pytest.mark.parametrize(
    ("count", "data", "done"),
    [
        (1, ok(), True),
        (3, ok() + ok(3) + ok(), True),
        (2, ok(), False),
        (1, ROWS + end(6), True),
        (1, ROWS, False),
        (1, ROWS + end(6, 8 | 2) + ok(number=7), True),
        (1, packet(1, b"\x00\xfc\x00\x01\xfd\x00\x00\x01" + struct.pack("<HH", 2, 0)), True),
        (2, ok() + ERROR, False),
        (1, ok() + ok(), False),
    ],
)
def test_answers(count: int, data: bytes, done: bool) -> None:  # noqa: FBT001
    """Answers are counted whatever they hold, and however the network cuts them."""
    whole, cut = Answers(count), Answers(count)
    whole.feed(data)
    for at in range(len(data)):
        cut.feed(data[at : at + 1])
    for answers in (whole, cut):
        assert answers.done is done
        if done:
            assert answers.status & 2


def test_the_first_error_is_told() -> None:
    """An error is its number and text; what is behind it is not read. More than was asked for is an error too."""
    answers = Answers(3)
    answers.feed(ok() + ERROR + ok())
    assert answers.error == (1193, "Unknown system variable")
    answers = Answers(1)
    answers.feed(ok() + ok())
    assert answers.error is not None
    assert command(COM_QUERY, b"DO 0") == b"\x05\x00\x00\x00\x03DO 0"


Counted = tuple[Rig, Callable[[Callable[[], Any]], int]]


@every_library
def test_what_a_dirty_return_costs(counted: Counted) -> None:
    """A clean return costs no round trip, and a changed one none that the next borrower waits for, given a moment."""
    rig, trips = counted
    with Pool(rig.driver, max_size=2) as pool:
        first, second = pool.acquire(), pool.acquire()
        first.release()
        second.release()

        def borrow(*statements: str) -> None:
            with pool.acquire() as conn:
                rig.do(conn, *statements)

        borrow("SELECT 1")
        assert trips(lambda: borrow("SELECT 1")) == 1
        borrow(SETTING)
        deadline = time.monotonic() + 10
        while pool.stats().resetting:
            assert time.monotonic() < deadline
            pool.sweep()
            time.sleep(0.005)
        assert trips(lambda: borrow("SELECT 1")) == 1
        assert pool.stats().opened == 2
