"""URLs and options of the MySQL drivers, which library a URL stands for, and how long a connect may take."""

from __future__ import annotations

import importlib
import socket
import ssl
import sys
import time
import types
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest
from rigs import MYSQL, MYSQLCLIENT, Rig

from poolkit.drivers import SCHEMES, check_url, sync_driver
from poolkit.drivers.pymysql import PymysqlDriver
from poolkit.errors import ConfigError

SECRET = "s3cret"
needs_mysqlclient = pytest.mark.skipif(not MYSQLCLIENT, reason="mysqlclient is not installed")


def arguments(url: str, **options: Any) -> dict[str, Any]:
    return PymysqlDriver(url, options=options)._arguments()[0]


def session(url: str, **options: Any) -> list[bytes]:
    return PymysqlDriver(url, options=options)._arguments()[1]


@pytest.mark.parametrize("scheme", ["mysql", "mysql+pymysql", "mariadb", "MariaDB+pymysql"])
def test_a_url(scheme: str) -> None:
    """All ways to write the scheme are understood; what is encoded is decoded; parameters are read as what they are."""
    given = arguments(f"{scheme}://ann:p%40ss@db.example:3307/shop%2B?read_timeout=2.5&local_infile=yes&client_flag=4")
    assert given == {
        "host": "db.example", "port": 3307, "user": "ann", "password": "p@ss", "database": "shop+",
        "charset": "utf8mb4", "read_timeout": 2.5, "local_infile": True, "client_flag": 4,
    }  # fmt: skip


def test_options_win() -> None:
    """An option wins over the URL, and the URL over what suits a pool."""
    assert arguments("mysql://h/?charset=latin1")["charset"] == "latin1"
    assert arguments("mysql://h/?charset=latin1", charset="utf8mb4", host="other")["host"] == "other"


def test_what_is_said_in_each_session() -> None:
    """Mode, isolation level and the user's own command, in this order; nothing where nothing was asked for."""
    assert session("mysql://h/") == []
    assert session("mysql://h/?isolation_level=READ-COMMITTED&sql_mode=ANSI", init_command="SET @a = 1") == [
        b"SET SESSION sql_mode = 'ANSI'",
        b"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        b"SET @a = 1",
    ]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://h/db", "expected a URL like mysql://"),
        (f"mysql://u:{SECRET}%zz@h/db", "percent-encoded"),
        (f"mysql://u:{SECRET}@h:port/db", "a port that is a number"),
        (f"mysql://u:{SECRET}@h:99999/db", "a port that is a number"),
        (f"mysql://u:{SECRET}@h:0/db", "a port that is a number"),
        (f"mysql://u:{SECRET}@[::1/db", "malformed"),
        (f"mysql://u:{SECRET}/x@h/db/more", "malformed"),
        (f"mysql://u:{SECRET}@one,/db", "malformed"),
        ("mysql://h/db?charsett=utf8mb4", "unknown option 'charsett': did you mean 'charset'"),
        ("mysql://h/db?autocommit=1", "rest in autocommit"),
        ("mysql://h/db?cursorclass=x", "unknown option 'cursorclass'"),
        ("mysql://h/db?read_timeout=soon", "read_timeout in the URL must be a number of seconds"),
        ("mysql://h/db?local_infile=perhaps", "local_infile in the URL must be true or false"),
        ("mysql://h/db?client_flag=x", "client_flag in the URL must be a whole number"),
    ],
)
def test_bad_urls(url: str, message: str) -> None:
    """A URL that can't work says so when the driver is made, without a word of the password."""
    with pytest.raises(ConfigError, match=message) as caught:
        PymysqlDriver(url, where="settings")
    assert str(caught.value).startswith("settings")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passwd": "x"}, "it is called 'password'"),
        ({"db": "x"}, "it is called 'database'"),
        ({"isolation_level": "chaos"}, "isolation_level must be one of read uncommitted"),
        ({"isolation_level": 3}, "isolation_level must be one of"),
        ({"read_timeout": 0}, "read_timeout must be a number of seconds, not 0"),
        ({"connect_timeout": "5"}, "connect_timeout must be a number of seconds, not '5'"),
        ({"charset": "utf8; DROP"}, "charset must be a plain name"),
        ({"sql_mode": "'"}, "sql_mode must be names"),
        ({"init_command": " "}, "init_command must be a statement"),
        ({"cursorclass": "DictCursor"}, "cursorclass must be a class"),
        ({"use_unicode": "no"}, "use_unicode must be True or False"),
        ({"charset": 1, "write_timeout": -1}, "(?s)write_timeout.*charset"),
    ],
)
@pytest.mark.parametrize("source", ["mysql://h/db", lambda: "mysql://h/db"])
def test_bad_options(options: dict[str, Any], message: str, source: Any) -> None:
    """An option that can't work says so when the driver is made, also where the URL comes later."""
    with pytest.raises(ConfigError, match=message):
        PymysqlDriver(source, options=options)


def tls(url: str) -> ssl.SSLContext:
    context = arguments(url)["ssl"]
    assert isinstance(context, ssl.SSLContext)
    return context


@pytest.mark.parametrize(
    ("parameters", "checks", "verifies"),
    [
        ("ssl-mode=REQUIRED", False, False),  # Aiven, DigitalOcean
        ("ssl_mode=verify_ca", False, True),
        ("ssl-mode=VERIFY_IDENTITY", True, True),
        ("ssl=true", False, False),
        ("sslaccept=strict", True, True),  # Prisma, PlanetScale
        ("ssl=%7B%22rejectUnauthorized%22:true%7D", True, True),  # PlanetScale, for Node
        ("reconnect=true&ssl=%7B%22rejectUnauthorized%22%3Afalse%7D", False, False),
    ],
)
def test_what_platforms_ask_of_tls(parameters: str, checks: bool, verifies: bool) -> None:  # noqa: FBT001
    """What platforms put into their URLs is done, and not less: a certificate is checked where that is asked for."""
    context = tls(f"mysql+pymysql://u:p@h/db?{parameters}")
    assert context.check_hostname is checks
    assert (context.verify_mode is ssl.CERT_REQUIRED) is verifies


def test_no_tls() -> None:
    """Disabled is disabled, and preferred is what the library does by itself."""
    assert arguments("mysql://h/db?ssl-mode=DISABLED")["ssl_disabled"] is True
    assert "ssl" not in arguments("mysql://h/db?ssl-mode=PREFERRED")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("ssl-mode=sometimes", "ssl_mode must be DISABLED, PREFERRED"),
        ("ssl-mode=REQUIRED&ssl_verify_cert=true", "two ways to say one thing"),
        ("ssl-mode=REQUIRED&ssl_ca=/no/such/file", "can't be used: No such file"),
        ("ssl=%7B%22ca%22:1%7D", "ssl in the URL can't be JSON"),
        ("sslmode=require", "it is called 'ssl_mode'"),
        ("useSSL=true", "it is called 'ssl_mode'"),
        ("connection_limit=5", "it is the pool's max_size"),
        ("socket_timeout=5", "it is called 'read_timeout'"),
        ("session_settings=x", "unknown option 'session_settings'"),
    ],
)
def test_what_other_tools_have(parameters: str, message: str) -> None:
    """What can't be done is refused in one sentence that says what to write instead."""
    with pytest.raises(ConfigError, match=message) as caught:
        PymysqlDriver(f"mysql://u:{SECRET}@h/db?{parameters}")
    assert SECRET not in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:pa?{SECRET}@h/db",
        f"mysql://u:12?{SECRET}@h/db",
        f"mysql://u:pa#{SECRET}@h/db",
        f"mysql://u:pa/{SECRET}@h/db",
        f"mysql://u:p@{SECRET}@h/db",
        f"mysql://u:{SECRET}@one:x,two/db",
        f"mysql://u:12?read_timeout={SECRET}@h/db",
    ],
)
def test_unencoded_passwords(url: str) -> None:
    """A password that was not percent-encoded is in no error, whole or in part."""
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        PymysqlDriver(url)
    assert SECRET not in str(caught.value)


def test_white_space_around_a_url() -> None:
    """White space around a URL is dropped, also where a callable returns it."""
    assert arguments("  mysql+pymysql://u@h/db\n")["database"] == "db"
    assert PymysqlDriver(lambda: " mysql://u@h/db \n")._arguments()[0]["database"] == "db"


def test_statement_timeout_and_settings() -> None:
    """Both are said in each new session; MariaDB reads one of the comments, MySQL the other."""
    assert session("mysql://h/?statement_timeout=1.5", session_settings={"time_zone": "it's", "big_tables": True}) == [
        b"SET /*M!100101 SESSION max_statement_time = 1.5 *//*!50708 SESSION max_execution_time = 1500 */",
        b"SET SESSION time_zone = 'it''s', SESSION big_tables = 1",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"session_settings": {"a b": 1}}, "'a b' is no name of a variable"),
        ({"session_settings": {"a": "\\"}}, "a must be a number, True, False or a text"),
        ({"session_settings": {"a": None}}, "a must be a number"),
        ({"session_settings": "a=1"}, "must be a mapping, not str"),
        ({"statement_timeout": 0}, "statement_timeout must be a number of seconds"),
        ({"statement_timeout": float("nan")}, "statement_timeout must be a number of seconds"),
        ({"harmless_functions": "f"}, "must be a list of names"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    """A setting that can't be written as it is meant is refused when the driver is made."""
    with pytest.raises(ConfigError, match=message):
        PymysqlDriver("mysql://h/db", options=options)


# -- several hosts ----------------------------------------------------------------------------------------------------


def test_several_hosts(mysql_dsn: str) -> None:
    """Hosts are tried in turn, each with its port and its share of the time."""
    parts = urlsplit(mysql_dsn)
    account = f"{parts.username}:{parts.password}"
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        ports = silent.getsockname()[1], closed.getsockname()[1]
        closed.close()
        places = f"127.0.0.1:{ports[0]},127.0.0.1:{ports[1]},127.0.0.1:{parts.port}"
        driver = PymysqlDriver(f"mysql+pymysql://{account}@{places}{parts.path}")
        began = time.monotonic()
        conn: Any = driver.open(1.5)
        assert time.monotonic() - began < 10
        assert conn.port == parts.port
        driver.close(conn)
        lost = PymysqlDriver(f"mysql+pymysql://{account}@127.0.0.1:{ports[1]},localhost:{ports[1]}/db")
        with pytest.raises(pymysql.err.OperationalError, match="localhost"):
            lost.open(1)


@needs_mysqlclient
def test_several_hosts_with_mysqlclient() -> None:
    """The driver for mysqlclient takes one, and says what takes several."""
    module = importlib.import_module("poolkit.drivers.mysqlclient")
    with pytest.raises(ConfigError, match="takes one host: name one, or use mysql"):
        module.MysqlclientDriver("mysql+mysqlclient://u@one,two/db")


# -- what an error means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rig_name", MYSQL, indirect=True)
def test_failure_kinds(rig: Rig) -> None:
    """What fails until somebody changes something is refused; a server that is away or full is not."""
    operational = rig.open().OperationalError
    for number in (1044, 1045, 1049, 1130, 1251, 1698, 1193, 2059, 4151):
        assert rig.failure_kind(operational(number, "no")) == "refused"
    for number in (1040, 1203, 2002, 2003, 2006, 2013, 1053, 1226):
        assert rig.failure_kind(operational(number, "no")) == "away"
    assert rig.failure_kind(operational(2026, "SSL is required but the server doesn't support it")) == "refused"
    assert rig.failure_kind(operational(2026, "SSL connection error: reset by peer")) == "away"
    for error in (ConfigError("x"), ValueError("x"), TypeError("x")):
        assert rig.failure_kind(error) == "refused"
    for error in (OSError("x"), KeyError(1045)):
        assert rig.failure_kind(error) == "away"


@pytest.mark.parametrize("rig_name", MYSQL, indirect=True)
@pytest.mark.parametrize("wrong", [{"password": "other"}, {"database": "nowhere"}, {"init_command": "SET nothing = 1"}])
def test_real_refusals(rig: Rig, wrong: dict[str, str]) -> None:
    """The server's own answers to a wrong account, database or setting are told for what they are."""
    rig.driver = rig.again(options=wrong)
    with pytest.raises(rig.errors) as caught:
        rig.open()
    assert rig.failure_kind(caught.value) == "refused"
    assert not rig.is_retryable(caught.value)


@pytest.mark.parametrize("rig_name", MYSQL, indirect=True)
def test_what_may_be_run_again(rig: Rig) -> None:
    """A deadlock is one by the library's own word only."""
    conn = rig.open()
    assert rig.is_retryable(conn.OperationalError(1213, "Deadlock found"))
    assert not rig.is_retryable(conn.OperationalError(1205, "Lock wait timeout exceeded"))
    for error in (KeyError(1213), OSError(1213, "x"), RuntimeError(1213)):
        assert not rig.is_retryable(error)


# -- which library ----------------------------------------------------------------------------------------------------


@needs_mysqlclient
@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        ("mysql", "MysqlclientDriver"),
        ("mariadb", "MysqlclientDriver"),
        ("mysql+mysqlclient", "MysqlclientDriver"),
        ("mysql+pymysql", "PymysqlDriver"),
        ("mariadb+pymysql", "PymysqlDriver"),
    ],
)
def test_both_libraries(scheme: str, name: str) -> None:
    """Where both are installed, a URL that names none stands for mysqlclient."""
    assert type(sync_driver(f"{scheme}://h/db", None, {}, where="")[0]).__name__ == name


def named_mysqldb() -> types.ModuleType:
    """PyMySQL under the other's name, as the engine for Django has it."""
    made = types.ModuleType("MySQLdb")
    made.__spec__ = pymysql.__spec__
    return made


@pytest.mark.parametrize("stand_in", [lambda: pymysql, named_mysqldb], ids=["installed as", "named"])
def test_only_pymysql(stand_in: Callable[[], types.ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mysqlclient a URL stands for PyMySQL, also where that passes itself off as MySQLdb."""
    monkeypatch.setitem(sys.modules, "MySQLdb", stand_in())
    assert type(sync_driver("mysql://h/db", None, {}, where="")[0]) is PymysqlDriver
    check_url("mysql://h/db")
    with pytest.raises(ConfigError, match=r"'MySQLdb' is not installed: pip install 'poolkit\[mysqlclient\]'"):
        check_url("mysql+mysqlclient://h/db")
    with pytest.raises(ConfigError, match="pymysql stands in its place"):
        sync_driver("mysql+mysqlclient://h/db", None, {}, where="")


def test_the_extras() -> None:
    """Each scheme names the extra that brings its library."""
    assert {entry.extra for scheme, entry in SCHEMES.items() if scheme.startswith(("mysql", "mariadb"))} == {
        "mysql", "mysqlclient",
    }  # fmt: skip


# -- mysqlclient's status ---------------------------------------------------------------------------------------------


@needs_mysqlclient
@pytest.mark.parametrize("what", ["not to be found", "another number"])
def test_an_unknown_build(mysql_dsn: str, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A mysqlclient that keeps its status elsewhere is refused, with what to use instead."""
    mysqlclient = importlib.import_module("poolkit.drivers.mysqlclient")
    monkeypatch.setattr(mysqlclient, "_place", None)
    if what == "not to be found":
        monkeypatch.setattr(mysqlclient.ctypes, "string_at", lambda address, size: bytes(size))
    else:
        right = mysqlclient._search
        monkeypatch.setattr(mysqlclient, "_search", lambda conn: right(conn) + 4)
    with pytest.raises(ConfigError, match=r"this build of mysqlclient .* use PyMySQL"):
        mysqlclient.MysqlclientDriver(mysql_dsn).open(10)


# -- how long a connect may take --------------------------------------------------------------------------------------


def test_a_server_that_says_nothing() -> None:
    """A server that takes the connection and then is silent costs the time that was given, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        driver = PymysqlDriver(f"mysql://u:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/db")
        began = time.monotonic()
        with pytest.raises(pymysql.err.OperationalError, match=r"none within 0\.05 s") as caught:
            driver.open(0.05)
        assert time.monotonic() - began < 10
        assert SECRET not in str(caught.value)


def test_connect_timeout_is_a_limit_of_its_own() -> None:
    """A connect_timeout shortens the pool's own limit; a long one does not stretch it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for own, given in ((0.05, 30), (30, 0.05)):
            began = time.monotonic()
            with pytest.raises(pymysql.err.OperationalError):
                PymysqlDriver(f"mysql://127.0.0.1:{port}/?connect_timeout={own}").open(given)
            assert time.monotonic() - began < 10


def test_every_address_is_tried(monkeypatch: pytest.MonkeyPatch, mysql_dsn: str) -> None:
    """Where the first address refuses, the next one is tried."""
    real = socket.getaddrinfo
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    refusing = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **how: [refusing, *real(*where, **how)])
    driver = PymysqlDriver(mysql_dsn)
    driver.close(driver.open(10))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **how: [refusing])
    with pytest.raises(pymysql.err.OperationalError, match=r"2003.*refused"):
        driver.open(10)


def test_a_name_without_an_address() -> None:
    """A host that has no address is an error of the library's kind."""
    with pytest.raises(pymysql.err.OperationalError, match=r"nowhere\.invalid"):
        PymysqlDriver("mysql://nowhere.invalid/db").open(5)


@needs_mysqlclient
@pytest.mark.slow
def test_mysqlclient_counts_in_seconds() -> None:
    """The connect of mysqlclient is bounded as well, by whole seconds."""
    module = importlib.import_module("poolkit.drivers.mysqlclient")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        driver = module.MysqlclientDriver(f"mysql://127.0.0.1:{silent.getsockname()[1]}/db")
        began = time.monotonic()
        with pytest.raises(module.client.OperationalError):
            driver.open(0.2)
        assert 0.5 < time.monotonic() - began < 10
