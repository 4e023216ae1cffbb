"""What a statement of SQLite's SQL does to its connection, read from its text and taken for the worst in doubt.

A connection keeps what is no part of the database: settings (most PRAGMAs), attached databases, temporary tables, views
and triggers. A text is split at every semicolon, also at those inside of literals and triggers: the start of a real
statement is always the start of a part, and a part that begins with nothing known counts as a change.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["CHANGES", "READS", "WRITES", "judge", "makes_temporary"]

READS, WRITES, CHANGES = 0, 1, 2
"""Levels, each worse than the one before: nothing is left; the database may be changed; the connection may be."""

_LONGEST = 10_000  # characters; a longer text is read each time, as remembering it would keep it in memory

# A comment that was not ended takes the rest.
_SKIPPED = re.compile(r"(?:\s+|--[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/|\Z))*+")
_WORD = re.compile(r"[a-z]+", re.IGNORECASE | re.ASCII)
_READING = frozenset(
    {"select", "values", "explain", "begin", "commit", "end", "rollback", "savepoint", "release"},
)
_WRITING = frozenset(
    {"insert", "replace", "update", "delete", "with", "create", "drop", "alter", "reindex", "analyze", "vacuum"},
)
_TEMPORARY = re.compile(r"\btemp(?:orary)?\b", re.IGNORECASE)
_MAKES = re.compile(r"\bcreate\b", re.IGNORECASE)
_ATTACHES = re.compile(r"\battach\b", re.IGNORECASE)
_IN_MEMORY = re.compile(r":memory:|\bmode=memory\b|\bvfs=memdb\b|''|\"\"", re.IGNORECASE)  # no name: a temporary file
_TELLTALE = re.compile(r"load_extension|fts3_tokenizer", re.IGNORECASE)
_PRAGMA = re.compile(r"pragma\s++(?:\w++\s*+\.\s*+)?+(\w++)\s*+(=|\(|\Z)", re.IGNORECASE)
_ASKING = frozenset({
    "collation_list", "compile_options", "data_version", "database_list", "foreign_key_check", "foreign_key_list",
    "freelist_count", "function_list", "index_info", "index_list", "index_xinfo", "integrity_check", "module_list",
    "page_count", "pragma_list", "quick_check", "schema_version", "table_info", "table_list", "table_xinfo",
})  # fmt: skip
# They change the file and not the connection.
_OF_THE_FILE = frozenset({"application_id", "incremental_vacuum", "optimize", "user_version", "wal_checkpoint"})


def makes_temporary(sql: str, parameters: object = ()) -> bool:
    """Whether a text may make a temporary table, view or trigger, or attach a database that is the connection's own."""
    if _TEMPORARY.search(sql) and _MAKES.search(sql):
        return True
    return _ATTACHES.search(sql) is not None and _IN_MEMORY.search(f"{sql} {parameters!r}") is not None


def judge(sql: str) -> int:
    """Return READS, WRITES or CHANGES for the text of one or more statements."""
    return _remembered(sql) if len(sql) < _LONGEST else _judge(sql)


def _judge(sql: str) -> int:
    if _TELLTALE.search(sql):
        return CHANGES
    return max([_level(part) for part in sql.split(";")])


def _level(part: str) -> int:
    skipped = _SKIPPED.match(part)
    start = 0 if skipped is None else skipped.end()
    if start == len(part):
        return READS
    word = _WORD.match(part, start)
    name = "" if word is None else word[0].lower()
    if name in _READING:
        return READS
    if name in _WRITING:
        # A word in the text of a table is enough: temporary tables are made by others than CREATE TEMP.
        return CHANGES if name in {"create", "alter"} and _TEMPORARY.search(part) else WRITES
    return _of_a_pragma(part[start:].rstrip()) if name == "pragma" else CHANGES


def _of_a_pragma(part: str) -> int:
    found = _PRAGMA.match(part)
    if found is None:
        return CHANGES
    name = found[1].lower()
    if name in _ASKING:
        return READS
    if name in _OF_THE_FILE:
        return WRITES
    return READS if not found[2] else CHANGES


_remembered = lru_cache(maxsize=2048)(_judge)
