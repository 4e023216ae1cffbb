"""What `configure` did to a PostgreSQL session by SQL: which statements a reset sends again, and which tables to watch.

A temporary table that was made there belongs to the state of rest, with the rows that it had. So each later statement
that may write into it counts as a change of the session: the reset drops the table and makes it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from poolkit.drivers._statements import CLEAN, STAINED, plain

__all__ = ["Watched", "is_for_all_sessions", "temporary_names"]

_FOR_ALL = re.compile(r"\s*+(?:LOAD|ALTER|DROP|GRANT|REVOKE|COMMENT|CREATE)\b", re.IGNORECASE)
_TEMPORARY = re.compile(r"\bTEMP(?:ORARY)?\b|\bpg_temp", re.IGNORECASE)
_MAKES = re.compile(r"\b(?:CREATE|INTO)\b", re.IGNORECASE)
_WRITES = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|TRUNCATE|COPY)\b", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:\bTEMP(?:ORARY)?\s++(?:(?:TABLE|RECURSIVE|VIEW|SEQUENCE)\s++)*+(?:IF\s++NOT\s++EXISTS\s++)?+"
    r"|\bpg_temp\s*+\.\s*+)\"?+(\w++)",
    re.IGNORECASE,
)


def is_for_all_sessions(query: str) -> bool:
    """Whether a text changes only what is there for every session, or stays loaded, so that no reset undoes it."""
    parts = [part for part in plain(query).split(";") if part.strip()]
    return bool(parts) and all(map(_FOR_ALL.match, parts)) and not _TEMPORARY.search(query)


def temporary_names(query: str) -> list[str]:
    """Name the temporary tables that a text makes. An empty name, which is in every text, stands for one not told."""
    if not (_TEMPORARY.search(query) and _MAKES.search(query)):
        return []
    return _NAMED.findall(query) or [""]


class Watched(dict[str | bytes, int]):
    """The levels of texts (see `_statements`) in a session that has temporary tables at rest.

    Nothing is remembered in it, for each connection has one of its own.

    Args:
        judge: Says the level of a text as if there were no such tables.
        names: What the tables are called.
    """

    __slots__ = ("_judge", "_names")

    def __init__(self, judge: Callable[[str | bytes], int], names: Iterable[str]) -> None:
        super().__init__()
        self._judge = judge
        self._names = re.compile("|".join(map(re.escape, names)), re.IGNORECASE).search

    def __missing__(self, query: str | bytes) -> int:
        level = self._judge(query)
        if level != CLEAN:
            return level
        text = query if isinstance(query, str) else query.decode("latin-1")  # any encoding has ASCII in the same place
        return STAINED if _WRITES.search(text) and self._names(text) else CLEAN
