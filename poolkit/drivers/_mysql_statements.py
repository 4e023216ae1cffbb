"""Whether a statement of MySQL's or MariaDB's SQL changes its session. Read from its text; in doubt, it does.

A session is what outlives a statement and its transaction: variables of the system and of the user, the database, the
character set, temporary tables, locks by name or of tables, prepared statements, handlers. What only reads and writes
tables changes nothing of it. So a text is clean if each of its statements begins with a word that can't change the
session, names no user variable, and calls no function but the server's own harmless ones and those the caller names.

`Traces` is a dictionary from text to what it says, which fills itself: a text known already costs one look-up. PyMySQL
and mysqlclient put the values into the text, so that many texts are new. Reading one takes time in proportion to its
length, whatever is in it: every repetition is possessive, and what it has passed is not looked at again.

What no text shows: a change made inside a trigger, or a view that calls a stored function.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from poolkit.drivers._mysql_functions import HARMLESS_FUNCTIONS, HARMLESS_PREFIXES, NOT_CALLS

__all__ = ["CLEAN", "ENDS", "LASTING", "LEVEL", "MOVES", "SETS_AUTOCOMMIT", "STAINED", "WRITES", "Traces"]

CLEAN, STAINED, LASTING = 0, 1, 2
"""Levels: nothing; what a reset of the session removes; what only closing it removes."""
LEVEL = 3
"""The bits of the level."""
MOVES = 4
"""The session has another default database afterwards."""
ENDS = 8
"""The statement ends the open transaction by itself, or may."""
SETS_AUTOCOMMIT = 16
"""Nothing but autocommit is set, which the server tells with each answer."""

WRITES = 32
"""The statement may change what is in the database."""

_LONGEST = 1_000  # characters; a longer text is read each time, as remembering it would keep it in memory
_MOST = 2_048  # texts; then all are forgotten, which costs less than to note which was used last

_ID = r"(?:[\w$]++|`[^`]*+`)"
_COMMENT = r"--(?=[\s\x00-\x1f]|\Z)[^\n]*+|\#[^\n]*+|/\*(?!M?!)(?:[^*]|\*(?!/))*+\*/"  # those with ! are carried out
_GAP = rf"\s*+(?:(?=[-\#/])(?:{_COMMENT})\s*+)*+"
_CHAIN = rf"{_ID}(?:{_GAP}\.{_GAP}{_ID})*+"


def _scanner(*, backslashes: bool) -> re.Pattern[str]:
    """Make the pattern that finds the next thing of note: a call, a semicolon, what can't be told, or the end.

    A name between double quotation marks may be an identifier, where a backslash is an ordinary character: one that has
    a backslash can't be told. `backslashes`: whether they mean anything in literals.
    """
    literal = r"'[^'\\]*+(?:\\.[^'\\]*+)*+'" if backslashes else r"'[^']*+'"
    return re.compile(
        rf"""
        (?: [^\w$'"`\#\-/@;\\]++
          | (?:INTO|INSERT|REPLACE|IGNORE) \s++ {_CHAIN} {_GAP} \(   # a table and its columns
          | {_ID} (?= \s*+ [^\s.(/\#\-] )   # most words; a call needs a longer look
          | {literal}
          | "[^"\\]*+"
          | (?=[-\#/]) (?:{_COMMENT})
          | {_CHAIN} (?! {_GAP} \( )
          | @@ [\w$.`]++
          | @ (?:[\w$.]++ | `[^`]*+` | '[^']*+' | "[^"]*+") (?! {_GAP} := )   # read, not assigned
          | -(?!-) | --(?![\s\x00-\x1f]|\Z) | /(?!\*)
        )*+
        (?: ({_CHAIN}) {_GAP} \( | (;) | (\Z) | . )
        """,
        re.VERBOSE | re.IGNORECASE | re.DOTALL,
    )


_WITH_BACKSLASHES, _WITHOUT = (_scanner(backslashes=way) for way in (True, False))
_START = re.compile(rf"(?:{_GAP}\()*+{_GAP}(\w*+)")

# What a statement may call functions in; and what runs none of its text.
_CALLING = {"SELECT", "INSERT", "REPLACE", "UPDATE", "DELETE", "WITH", "VALUES", "TABLE", "DO", "EXPLAIN", "DESCRIBE",
            "DESC", "ANALYZE", "LOAD"}  # fmt: skip
_PLAIN = {
    "", "ALTER", "CHECK", "CHECKSUM", "COMMIT", "CREATE", "DROP", "GRANT", "HELP", "KILL", "OPTIMIZE", "RELEASE",
    "RENAME", "REPAIR", "REVOKE", "ROLLBACK", "SAVEPOINT", "SHOW", "START", "TRUNCATE", "UNLOCK",
}  # fmt: skip
_ENDING = {
    "ALTER", "ANALYZE", "BEGIN", "CACHE", "CHANGE", "CHECK", "COMMIT", "CREATE", "DROP", "FLUSH", "GRANT", "INSTALL",
    "LOCK", "OPTIMIZE", "RENAME", "REPAIR", "RESET", "REVOKE", "ROLLBACK", "SET", "START", "STOP", "TRUNCATE",
    "UNINSTALL", "UNLOCK", "XA",
}  # fmt: skip
_QUERY = re.compile(r"\s*+(?:(SELECT)|UPDATE|DELETE)\b", re.IGNORECASE)
_READING = {
    "", "BEGIN", "COMMIT", "DESC", "DESCRIBE", "EXPLAIN", "HELP", "RELEASE", "ROLLBACK", "SAVEPOINT", "SELECT", "SET",
    "SHOW", "START", "TABLE", "UNLOCK", "USE", "VALUES",
}  # fmt: skip
_WRITES_BELOW = re.compile(r"\b(?:UPDATE|DELETE)\b", re.IGNORECASE)
_BEGIN = re.compile(rf"{_GAP}(?:WORK\b)?+{_GAP}(?:;|\Z)", re.IGNORECASE)
_AUTOCOMMIT = re.compile(
    r"\s++(?:SESSION\s++|LOCAL\s++|@@(?:SESSION\.|LOCAL\.)?+)?+AUTOCOMMIT\s*+:?+=\s*+(?:[01]|ON|OFF|TRUE|FALSE)\s*+(?:;|\Z)",
    re.IGNORECASE,
)
_MAKES_MORE = re.compile(r"\b(?:TEMPORARY|SELECT)\b", re.IGNORECASE)  # a table of what a query finds may call functions
_SAVED_POINT = re.compile(rf"{_GAP}(?:WORK\b)?+{_GAP}TO\b", re.IGNORECASE)
_INTO_VARIABLE = re.compile(rf"\bINTO\b{_GAP}@(?!@)|^{_GAP}LOAD\b", re.IGNORECASE)
_ROLE = re.compile(r"\bROLE\b|\bAUTHORIZATION\b", re.IGNORECASE)  # no reset gives it back


class Traces(dict[str | bytes, int]):
    """What each text leaves in its session, remembered: `traces[text]` is a level with the other bits.

    Args:
        harmless: Names of stored functions that change nothing in the session, as `name` or `schema.name`, beside the
            server's own. A bare name counts in every schema.
        backslashes: Whether a backslash means anything in a literal (not with NO_BACKSLASH_ESCAPES).
        encoding: Of texts that are bytes.
    """

    __slots__ = ("_encoding", "_harmless", "_scan")

    def __init__(self, harmless: Iterable[str] = (), *, backslashes: bool = True, encoding: str = "utf-8") -> None:
        super().__init__()
        self._harmless = frozenset(name.lower() for name in harmless)
        self._scan = (_WITH_BACKSLASHES if backslashes else _WITHOUT).match
        self._encoding = encoding

    def __missing__(self, query: str | bytes) -> int:
        found = self.read(query)
        if len(query) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[query] = found
        return found

    def read(self, query: str | bytes | bytearray) -> int:
        """Read a text without remembering it."""
        text = query if isinstance(query, str) else query.decode(self._encoding, "replace")
        if (
            "(" not in text
            and "@" not in text
            and ";" not in text
            and "/" not in text
            and (plain := _QUERY.match(text))
        ):
            return CLEAN if plain[1] else WRITES
        found, at = STAINED if "@" in text and _INTO_VARIABLE.search(text) else CLEAN, 0
        while at < len(text):
            said, at = self._statement(text, at)
            found = max(found & LEVEL, said & LEVEL) | ((found | said) & ~LEVEL)
        return found & ~SETS_AUTOCOMMIT if found & LEVEL else found

    def _statement(self, text: str, start: int) -> tuple[int, int]:
        """Read one statement; returns what it leaves, and where the next one begins."""
        begun = _START.match(text, start)
        if begun is None:  # it matches nothing, too
            return STAINED | WRITES, len(text)
        word, at = begun[1].upper(), begun.end()
        found = ENDS if word in _ENDING and not (word == "ROLLBACK" and _SAVED_POINT.match(text, at)) else 0
        found |= self._by_word(word, text, at)
        if word not in _READING and not (word == "WITH" and not _WRITES_BELOW.search(text, at)):
            found |= WRITES
        calling = word in _CALLING
        at = begun.start(1)  # INSERT t (a, b) has a table there
        while True:
            token = self._scan(text, at)
            if token is None:
                return found | STAINED | WRITES, len(text)
            at = token.end()
            if token[2] or token[3] is not None:
                return found, at
            if token[1] is None or (calling and not self._is_harmless(token[1])):
                found |= WRITES | (0 if found & LEVEL else STAINED)
                if token[1] is None and text[at - 1] != "@":
                    return found, len(text)  # what follows may be text or literal

    def _by_word(self, word: str, text: str, at: int) -> int:
        """Say what a statement leaves by its first word."""
        if word in _CALLING or (word in _PLAIN and word != "CREATE"):
            return CLEAN
        if (word == "CREATE" and not _MAKES_MORE.search(text, at)) or (word == "BEGIN" and _BEGIN.match(text, at)):
            return CLEAN
        if word == "SET" and _AUTOCOMMIT.match(text, at):
            return SETS_AUTOCOMMIT
        if word != "CREATE" and _ROLE.search(text, at):
            return LASTING
        return STAINED | MOVES if word == "USE" else STAINED

    def _is_harmless(self, called: str) -> bool:
        name = called.lower()
        if name in HARMLESS_FUNCTIONS or name in NOT_CALLS or name.startswith(HARMLESS_PREFIXES):
            return True
        if not self._harmless:
            return False
        plain = re.sub(r"[`\s]", "", name)
        return plain in self._harmless or plain.rpartition(".")[2] in self._harmless
