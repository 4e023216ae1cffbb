"""Does a statement leave traces in its session? Read from its text alone, and taken for the worst where in doubt.

A session is what outlives a statement and its transaction: settings, listened channels, cursors held open, prepared
statements, temporary tables, advisory locks. What only reads and writes tables leaves nothing of the kind. So a
statement is clean if each part between semicolons begins with a word that can't touch the session, and the text nowhere
names a function that can. Splitting at every semicolon, also at those inside of literals, errs on the safe side: the
start of a real statement is always the start of a part.

The one blind spot is a function of the user's own that changes the session from within.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["CLEAN", "LASTING", "STAINED", "traces"]

CLEAN, STAINED, LASTING = 0, 1, 2
"""Nothing; something that a reset of the session removes; something that only closing it removes."""

_LONGEST = 10_000  # longer texts are read each time: remembering them would keep them in memory

# A comment with another one inside is not skipped, as its end can't be told by a regular expression: so it is a stain.
_SKIPPED = re.compile(r"(?:\s+|--[^\n]*(?:\n|\Z)|/\*(?:(?!/\*).)*?\*/)*", re.DOTALL)

_HARMLESS = re.compile(
    r"(?:\(\s*)*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|TABLE|COPY|SHOW|NOTIFY|LOCK|"
    r"BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|"
    r"SET\s+LOCAL|SET\s+TRANSACTION|SET\s+CONSTRAINTS)\b",
    re.IGNORECASE,
)
_TELLTALE = re.compile(
    r"set_config|setseed|pg_(?:try_)?advisory|pg_replication_origin_session|pg_temp|\bTEMP(?:ORARY)?\b|\bU&\"",
    re.IGNORECASE,
)
_LASTING = re.compile(r"dblink", re.IGNORECASE)
_LASTING_STARTS = re.compile(r"(?:PREPARE|LOAD)\b", re.IGNORECASE)


def traces(query: str) -> int:
    """Return CLEAN, STAINED or LASTING for the text of one or more statements."""
    return _remembered(query) if len(query) < _LONGEST else _traces(query)


def _traces(query: str) -> int:
    level = CLEAN
    if _LASTING.search(query):
        return LASTING
    if _TELLTALE.search(query):
        level = STAINED
    for part in query.split(";"):
        start = _skip(part)
        if start == len(part) or _HARMLESS.match(part, start):
            continue
        if _LASTING_STARTS.match(part, start):
            return LASTING
        level = STAINED
    return level


def _skip(part: str) -> int:
    skipped = _SKIPPED.match(part)
    return 0 if skipped is None else skipped.end()


_remembered = lru_cache(maxsize=2048)(_traces)
