"""How psycopg2 connects: the time is shared among addresses, wherever they are named; what a failure says."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest

from poolkit.drivers.psycopg2 import Psycopg2Driver
from poolkit.errors import ConfigError

NAMES = {"two": ["10.0.0.1", "10.0.0.2"], "one": ["10.0.0.3"], "six": ["fd00::1", "10.0.0.4", "fd00::1"]}


def _known(names: dict[str, list[str]]) -> Callable[..., Any]:
    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host not in names:
            raise socket.gaierror(f"{host} is unknown")
        return [(0, 0, 0, "", (address, 0)) for address in names[host]]

    return look_up


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Names that are looked up without a network, and no settings of this machine's."""
    monkeypatch.setattr(socket, "getaddrinfo", _known(NAMES))
    for variable in ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGCONNECT_TIMEOUT", "PGTARGETSESSIONATTRS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))


def asked(url: str, timeout: float = 12, **options: Any) -> dict[str, Any]:
    given = Psycopg2Driver(url, options=options)._arguments(timeout)
    return {name: given.get(name) for name in ("host", "port", "hostaddr", "connect_timeout")}


@pytest.mark.parametrize(
    ("url", "host", "port", "hostaddr", "seconds"),
    [
        ("postgresql://one/db", "one", None, None, 12),
        ("postgresql://two:99/db", "two,two", "99,99", "10.0.0.1,10.0.0.2", 6),
        ("postgresql://one,two/db", "one,two,two", ",,", "10.0.0.3,10.0.0.1,10.0.0.2", 4),
        ("postgresql://two:1,one:2/db", "two,two,one", "1,1,2", "10.0.0.1,10.0.0.2,10.0.0.3", 4),
        ("postgresql://six/db", "six,six", ",", "fd00::1,10.0.0.4", 6),
        ("postgresql:///db?host=/run/pg,two", "/run/pg,two,two", ",,", ",10.0.0.1,10.0.0.2", 4),
        ("postgresql://127.0.0.1/db", "127.0.0.1", None, None, 12),
        ("postgresql://[::1]/db", "::1", None, None, 12),
        ("postgresql://unknown,one/db", "unknown,one", ",", None, 6),
        ("postgresql://x,y/db?hostaddr=10.0.0.1,10.0.0.2", "x,y", ",", "10.0.0.1,10.0.0.2", 6),
        ("postgresql:///db", None, None, None, 12),
        ("postgresql://two/db?target_session_attrs=prefer-standby", "two,two", ",", "10.0.0.1,10.0.0.2", 3),
    ],
)
def test_time_is_shared_among_addresses(url: str, host: object, port: object, hostaddr: object, seconds: int) -> None:
    """Each address of each name has its share of the time, as libpq tries one after the other."""
    assert asked(url) == {"host": host, "port": port, "hostaddr": hostaddr, "connect_timeout": seconds}


def test_never_less_than_libpq_can_count() -> None:
    """However little time there is, an attempt has the two seconds that libpq takes at least."""
    assert asked("postgresql://two/db", 0.1)["connect_timeout"] == 2


def test_what_the_user_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that the URL, the options or the environment sets is left alone."""
    assert asked("postgresql://two/db?connect_timeout=7")["connect_timeout"] == "7"
    assert asked("postgresql://two/db", connect_timeout=8)["connect_timeout"] == 8
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    assert asked("postgresql://two/db")["connect_timeout"] is None


def test_hosts_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts in PGHOST count as those of the URL do."""
    monkeypatch.setenv("PGHOST", "two,one")
    monkeypatch.setenv("PGPORT", "5,6")
    assert asked("postgresql:///db") == {
        "host": "two,two,one", "port": "5,5,6", "hostaddr": "10.0.0.1,10.0.0.2,10.0.0.3", "connect_timeout": 4,
    }  # fmt: skip


def test_hosts_of_a_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So do those of a service file, which stand above the environment; of two files the first that has it counts."""
    monkeypatch.setenv("PGHOST", "one")
    (tmp_path / "services").write_text("[other]\nhost=one\n# a note\n[shop]\n  host = two\nport=7\n#host=one\n")
    (tmp_path / "pg_service.conf").write_text("[shop]\nhost=one\n[late]\nhost=two\n")
    wanted = {"host": "two,two", "port": "7,7", "hostaddr": "10.0.0.1,10.0.0.2", "connect_timeout": 6}
    assert asked("postgresql:///?service=shop") == wanted
    monkeypatch.setenv("PGSERVICE", "late")
    assert asked("postgresql:///") == {**wanted, "port": ","}
    assert asked("postgresql:///?service=nowhere")["connect_timeout"] == 12


@pytest.fixture
def silent(pg_dsn: str) -> Iterator[str]:
    """The address of something that accepts connections on the server's port, and never says a word."""
    with socket.create_server(("127.0.0.9", urlsplit(pg_dsn).port or 5432), backlog=64):
        yield "127.0.0.9"


@pytest.mark.slow
def test_a_name_whose_first_address_is_silent(pg_dsn: str, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second address is reached within its share of the time, and tried first from then on."""
    host = urlsplit(pg_dsn).hostname or ""
    monkeypatch.setattr(socket, "getaddrinfo", _known({"two-faced": [silent, host]}))
    driver = Psycopg2Driver(pg_dsn.replace(host, "two-faced", 1))
    for at_most in (4.0, 1.5):
        began = time.monotonic()
        driver.close(driver.open(4))
        assert time.monotonic() - began < at_most


# -- what a failure says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda parts: parts._replace(path="/no_such_database"), "refused"),
        (lambda parts: parts._replace(netloc=f"nobody_here@{parts.netloc.rpartition('@')[2]}"), "refused"),
        (lambda parts: parts._replace(query="options=-c%20no_such_setting%3D1"), "refused"),
        (lambda parts: parts._replace(query="options=-c%20work_mem%3Dmuch"), "refused"),
        (lambda parts: parts._replace(query="service=nowhere"), "refused"),
        (lambda parts: parts._replace(netloc="127.0.0.1:1"), "away"),
        (lambda parts: parts._replace(netloc=f"{parts.netloc},127.0.0.1:1", path="/no_such_database"), "refused"),
        (lambda parts: parts._replace(netloc=f"127.0.0.1:1,{parts.netloc}", path="/no_such_database"), "refused"),
        (lambda parts: parts._replace(netloc="no-such-host.invalid"), "away"),
    ],
)
def test_kinds_of_failed_connects(pg_dsn: str, change: Callable[[Any], Any], kind: str) -> None:
    """What the server or libpq refuses for good is told apart from a server that is away."""
    driver = Psycopg2Driver(change(urlsplit(pg_dsn)).geturl())
    with pytest.raises(psycopg2.Error) as caught:
        driver.open(4)
    assert driver.failure_kind(caught.value) == kind, caught.value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('FATAL:  password authentication failed for user "u"', "refused"),
        ("fe_sendauth: no password supplied", "refused"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "u", database "d", no encryption', "refused"),
        ('FATAL:  role "u" is not permitted to log in', "refused"),
        ('FATAL:  permission denied for database "d"', "refused"),
        ("server does not support SSL, but SSL was required", "refused"),
        ('server certificate for "a" does not match host name "b"', "refused"),
        ("SSL error: certificate verify failed", "refused"),
        ("FATAL:  sorry, too many clients already", "away"),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", "away"),
        ("FATAL:  the database system is starting up", "away"),
        ("timeout expired", "away"),
        ("server closed the connection unexpectedly", "away"),
    ],
)
def test_kinds_by_their_text(text: str, kind: str) -> None:
    """psycopg2 gives a failed connect no SQLSTATE: its text tells."""
    driver = Psycopg2Driver("postgresql://h/db")
    error = psycopg2.OperationalError(f'connection to server at "10.0.0.1", port 5432 failed: {text}\n')
    assert driver.failure_kind(error) == kind


def test_other_errors_have_a_kind() -> None:
    """A URL callable's wrong answer is for good, an error of its own is not."""
    driver = Psycopg2Driver("postgresql://h/db")
    assert driver.failure_kind(ConfigError("malformed")) == "refused"
    assert driver.failure_kind(OSError("the secrets manager is away")) == "away"


def test_white_space_around_a_url(pg_dsn: str) -> None:
    """White space around a URL, as a file or a shell leaves it, is not a part of the database's name."""
    driver = Psycopg2Driver(f" {pg_dsn}\n")
    driver.close(driver.open(10))
