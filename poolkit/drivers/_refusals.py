"""Whether a connect that failed was refused, so that nothing will help before something is changed. For PostgreSQL.

libpq keeps the SQLSTATE of a refused connect to itself: its own words, and the server's in English, are all there is.
"""

from __future__ import annotations

import re

__all__ = ["is_refused"]

# Data (a value that a setting can't have), authorization, no such database, what the settings name does not exist; a
# setting that can't be changed now.
_STATES = ("22", "28", "3D", "42", "55P02")
_TEXT = re.compile(
    r"authentication (?:method|failed)|no password supplied|password is required"
    r"|no pg_hba\.conf entry|pg_hba\.conf rejects|is not permitted to log in|permission denied for database"
    r"|(?:role|database|user) \"[^\"]*+\" does not exist|not currently accepting connections"
    r"|unrecognized configuration parameter|invalid value for|unsupported (?:startup parameter|frontend protocol)"
    r"|invalid (?:connection option|command-line argument|\S++ value|integer|port|URI|percent|dsn)"
    r"|missing \"=\"|could not match \d++ |definition of service|service file"
    r"|certificate|private key|root\.crt|does not support (?:SSL|GSSAPI)",
    re.IGNORECASE,
)


def is_refused(sqlstate: str | None, text: str = "") -> bool:
    """Whether a failed connect was refused: by its SQLSTATE, or where it has none, by what libpq or the server said."""
    if sqlstate is not None:
        return sqlstate.startswith(_STATES)
    return _TEXT.search(text) is not None
