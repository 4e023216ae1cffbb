"""Whether a statement of PostgreSQL's SQL changes its session. Read from its text, and taken for the worst in doubt.

A session is what outlives a statement and its transaction: settings, the role, listened channels, cursors held open,
prepared statements, temporary tables, advisory locks. What only reads and writes tables changes nothing of it. So a
text is clean if each of its statements begins with a word that can't change the session, and if each function it calls
is known to be harmless: those of `pg_catalog` that are, and those the caller names. `DO`, `CALL`, `EXECUTE` and every
function that is not known count as a change.

`Traces` is a dictionary from text to level that fills itself: the common case is one look-up. Reading a new text takes
time in proportion to its length, whatever is in it.

What no text shows: a change made inside of a trigger, a rule, a view, an operator, a cast or a default of one's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from poolkit.drivers._functions import HARMLESS_FUNCTIONS, NOT_CALLS

__all__ = ["CLEAN", "LASTING", "PREPARED", "STAINED", "Traces", "plain", "traces"]

CLEAN, STAINED, PREPARED, LASTING = 0, 1, 2, 3
"""Levels, each worse than the one before: nothing; what a reset of the session removes; statements were prepared or
deallocated by SQL, so that the client's own list of prepared statements may be wrong; what only closing removes."""

_LONGEST = 4_000  # characters; a longer text is read each time, as remembering it would keep it in memory
_MOST = 4_096  # texts; then all are forgotten, which costs less than to note which was used last

# Characters of an identifier, as the server sees them: every byte above ASCII is one.
_I = r"[\w$\x80-\U0010ffff]"

# What is not the text of a command. A comment that has another one in it, and a literal with \' in it (which ends or
# does not, by a setting), are left: their marks remain, and are taken for a change.
_SKIPPED = re.compile(
    rf"""
    (?P<name> "(?:[^"]|"")*+(?:"|\Z) )                   # kept
    | (?<!{_I})[eE]'(?:[^'\\]|\\.|'')*+(?:'|\Z)
    | '[^'\\]*+(?:\\(?!')[^'\\]*+)*+(?:'|\Z)
    | --[^\n\r]*+
    | /\*(?:[^*/]|\*(?!/)|/(?!\*))*+\*/
    | (?<!{_I})\$(?P<tag>(?:[^\W\d]\w*+)?+)\$.*?(?:\$(?P=tag)\$|\Z)
    """,
    re.DOTALL | re.VERBOSE | re.ASCII,
)
_QUOTED = re.compile(r'"(?:([a-z_][a-z0-9_$]*+)"(?!")|(?:[^"]|"")*+(?:"|\Z))')

_HARMLESS = re.compile(
    r"(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|TABLE|COPY|SHOW|NOTIFY|LOCK|FETCH|MOVE|CLOSE|"
    r"TRUNCATE|ANALYZE|VACUUM|BEGIN|START\s++TRANSACTION|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|"
    r"PREPARE\s++TRANSACTION|SET\s++LOCAL|SET\s++TRANSACTION|SET\s++CONSTRAINTS|DECLARE(?!.*\bHOLD\b))"
    r"(?![\w$\x80-\U0010ffff])",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
_PREPARING = re.compile(r"(?:PREPARE|DEALLOCATE)\b|DISCARD\s++ALL\b", re.IGNORECASE | re.ASCII)
_LOADING = re.compile(r"LOAD\b|SET\s++(?:SESSION\s++)?+SEED\b", re.IGNORECASE | re.ASCII)
_LASTING = re.compile(
    r"dblink\w*+|setseed|pg_replication_origin_session\w*+|pg_(?:create|copy)_(?:physical|logical)_replication_slot",
    re.IGNORECASE | re.ASCII,
)
_TELLTALE = re.compile(
    r"pg_temp|\bU&\"|"
    r"(?<!\")\bINTO\s++(?:(?:LOCAL|GLOBAL)\s++)?+TEMP(?:ORARY)?+\s++(?!VALUES\b|SELECT\b|DEFAULT\b|AS\b)[\w\"]",
    re.IGNORECASE | re.ASCII,
)
_SETTINGS = re.compile(r"\bpg_settings\b", re.IGNORECASE | re.ASCII)
_UPDATE = re.compile(r"\bUPDATE\b", re.IGNORECASE | re.ASCII)
_BODY = re.compile(rf"\b(?:LOAD|PREPARE|DEALLOCATE|DISCARD)\b|{_LASTING.pattern}", re.IGNORECASE | re.ASCII)

_NAME = r'"?+[\w$\x80-\U0010ffff]*+'
# A name in front of a bracket, with the word or the bracket in front of that, if there is one.
_CALLS = re.compile(
    rf"""
    (?: (?<!{_I}) ({_I}++) \s*+ | (\)) \s*+ )?
    (?<![\w$.\x80-\U0010ffff]) ( (?:"|[^\W\d]|[\x80-\U0010ffff]){_I}*+ (?:\s*+\.\s*+{_NAME}){{0,2}}+ )
    \s*+ \(
    """,
    re.VERBOSE | re.ASCII,
)
_BEFORE_A_TABLE = frozenset({"into", "as", "copy", "with", "recursive", "analyze", "vacuum", "tablesample"})
_AFTER_A_BRACKET = re.compile(r"\bDISTINCT\s++ON\b|\bOPERATOR\b", re.IGNORECASE | re.ASCII)


class Traces(dict[str | bytes, int]):
    """What each text leaves in its session, remembered: `traces[text]` is a level.

    Args:
        harmless: Names of functions that change nothing in the session, as `name` or `schema.name`, beside those that
            are known. A bare name counts in every schema.
    """

    __slots__ = ("_harmless",)

    def __init__(self, harmless: Iterable[str] = ()) -> None:
        super().__init__()
        self._harmless = frozenset(name.lower() for name in harmless)

    def __missing__(self, query: str | bytes) -> int:
        # Any encoding of the server's has ASCII in the same place, and the rest is only looked at.
        text = query if isinstance(query, str) else query.decode("latin-1")
        level = _level(text, self._harmless)
        if len(text) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[query] = level
        return level


def _level(query: str, harmless: frozenset[str]) -> int:
    text = plain(query)
    doubtful = "'" in text or "/*" in text or _TELLTALE.search(text)
    level = STAINED if doubtful or (_SETTINGS.search(text) and _UPDATE.search(text)) else CLEAN
    for part in text.split(";"):
        statement = part.lstrip(" \t\n\r\f\v(")
        if not statement or _HARMLESS.match(statement):
            continue
        if _LOADING.match(statement):
            return LASTING
        level = max(level, PREPARED if _PREPARING.match(statement) else STAINED)
        if statement[:2].lower() == "do":
            level = max(level, _in_a_body(query))
    return max(level, _calls(text, harmless)) if "(" in text else level


def plain(query: str) -> str:
    """Take literals and comments out, and mark a quoted name by one quotation mark in front of it."""
    text = query
    if "'" in text or "--" in text or "/*" in text or "$" in text:
        text = _SKIPPED.sub(r" \g<name> ", text)
    return _QUOTED.sub(r'"\1 ', text) if '"' in text else text


def _in_a_body(query: str) -> int:
    words = {word.upper() for word in _BODY.findall(query)}
    if not words:
        return STAINED
    return PREPARED if words <= {"PREPARE", "DEALLOCATE", "DISCARD"} else LASTING


def _calls(text: str, harmless: frozenset[str]) -> int:
    level = CLEAN
    ambiguous = _AFTER_A_BRACKET.search(text)
    for word, bracket, called in set(_CALLS.findall(text)):
        name = called.lower()
        if name in NOT_CALLS or name in HARMLESS_FUNCTIONS:
            continue
        if word.lower() in _BEFORE_A_TABLE or (bracket and not ambiguous):
            continue  # columns of a table, or of an alias
        *schema, function = [part.strip().removeprefix('"') for part in name.split(".")]
        if _LASTING.fullmatch(function):
            return LASTING
        if function in harmless or (schema and f"{schema[-1]}.{function}" in harmless):
            continue
        if function not in HARMLESS_FUNCTIONS or schema not in ([], ["pg_catalog"]):
            level = STAINED
    return level


traces = Traces().__getitem__
"""Return CLEAN, STAINED, PREPARED or LASTING for the text of one or more statements, with no function of one's own."""
