"""What the borrowers were told, held against what the database has.

Each unit of work has a number and writes some rows with it into one or several tables. What it was told in the end is
one of three words: the rows were saved, they were undone, or nobody can know (the connection was lost in the COMMIT, or
the borrower left before the answer came). A unit nobody can know about may be there or not, but never half.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["NEVER", "SAVED", "UNDONE", "UNKNOWN", "Found", "Ledger", "Work"]

SAVED, UNDONE, UNKNOWN = "saved", "undone", "unknown"
NEVER = 1000  # rows with a part from here on were rolled back to a savepoint: none of them may ever be seen


class Found(NamedTuple):
    """What one table has of one unit: how many rows that belong there, and how many that were rolled back inside."""

    rows: int
    ghosts: int = 0


@dataclass(slots=True)
class Work:
    """One unit's writing in one table. Until it is told otherwise, its outcome is unknown."""

    unit: int
    table: str
    rows: int = 0
    bumps: int = 0  # of the shared counter: lost and doubled updates show there
    outcome: str = UNKNOWN
    told: str = ""  # by whom and how


@dataclass
class Ledger:
    """All work of one round, by several threads at once."""

    works: dict[tuple[int, str], Work] = field(default_factory=dict)
    counter: str = "main"  # the table that the shared counter goes with
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def number(self) -> int:
        """Return the number of a new unit."""
        return next(self._numbers)

    def begin(self, unit: int, table: str) -> Work:
        """Write down, before the first statement, that a unit is about to write into a table."""
        work = Work(unit, table)
        self.works[unit, table] = work
        return work

    def of(self, unit: int) -> list[Work]:
        """All that a unit has begun."""
        return [self.works[unit, table] for table in ("main", "ledger") if (unit, table) in self.works]

    def count(self) -> Counter[str]:
        """How many writings ended how."""
        return Counter(work.outcome for work in list(self.works.values()) if work.rows)

    def faults(self, tables: Mapping[str, Mapping[int, Found]], counted: int) -> list[str]:
        """Compare with the database; return what is wrong, in words."""
        wrong: list[str] = []
        for table, units in tables.items():
            strangers = [unit for unit in units if (unit, table) not in self.works]
            wrong += [f"{table}: unit {unit} is there, and nobody began it" for unit in strangers]
        for work in self.works.values():
            wrong += _faults_of(work, tables[work.table].get(work.unit, Found(0)))
        return wrong + self._counter_faults(counted)

    def _counter_faults(self, counted: int) -> list[str]:
        at_least = sum(work.bumps for work in self._with(SAVED))
        at_most = at_least + sum(work.bumps for work in self._with(UNKNOWN))
        if at_least <= counted <= at_most:
            return []
        return [f"the counter is at {counted}: the units that were saved make it {at_least}, at most {at_most}"]

    def _with(self, outcome: str) -> Iterable[Work]:
        return (work for work in self.works.values() if work.outcome == outcome)


def _faults_of(work: Work, found: Found) -> list[str]:
    name = f"{work.table}: unit {work.unit}, which was {work.outcome} ({work.told})"
    if found.ghosts:
        return [f"{name}, has {found.ghosts} rows that were rolled back to a savepoint"]
    allowed = {SAVED: {work.rows}, UNDONE: {0}, UNKNOWN: {0, work.rows}}[work.outcome]
    return [] if found.rows in allowed else [f"{name}, has {found.rows} of its {work.rows} rows"]
