"""What a failed connect says: refused, or away for a while."""

from __future__ import annotations

import pytest

from poolkit.drivers._refusals import is_refused


@pytest.mark.parametrize(
    "text",
    [
        'FATAL:  password authentication failed for user "ann"',
        "FATAL:  no pg_hba.conf entry for host ...",
        'FATAL:  role "ann" does not exist',
        'FATAL:  database "shop" does not exist',
        'FATAL:  database "shop" is not currently accepting connections',
        'FATAL:  role "ann" is not permitted to log in',
        'FATAL:  unrecognized configuration parameter "serch_path"',
        'invalid sslmode value: "always"',
        'invalid port number: "no"',
        "could not match 2 port numbers to 3 hosts",
        'definition of service "shop" not found',
        "server does not support SSL, but SSL was required",
        "SSL error: certificate verify failed",
        "fe_sendauth: no password supplied",
    ],
)
def test_refused(text: str) -> None:
    """Wrong credentials, names and settings are known by the words of the server or of libpq."""
    assert is_refused(None, text)


@pytest.mark.parametrize(
    "text",
    [
        "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?",
        "FATAL:  the database system is starting up",
        "FATAL:  sorry, too many clients already",
        "server closed the connection unexpectedly",
        'could not translate host name "db" to address: Name or service not known',
        "timeout expired",
        "",
    ],
)
def test_away(text: str) -> None:
    """A server that is away, starting or full may be there in a moment."""
    assert not is_refused(None, text)


@pytest.mark.parametrize(
    ("state", "refused"),
    [
        *[(state, True) for state in ("28P01", "28000", "3D000", "42704", "22023", "55P02")],
        *[(state, False) for state in ("57P03", "53300", "08006", "55P03")],
    ],
)
def test_states(state: str, *, refused: bool) -> None:
    """Where there is an SQLSTATE it decides, whatever the text says."""
    assert is_refused(state, "certificate") is refused
