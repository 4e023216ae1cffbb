"""Hand-made faults of `poolkit/state.py`: each a small edit that a tired person could make and a reviewer could miss.

A mutant is a name, a text that occurs exactly once in the source, and what stands there instead. `load` makes a module
of the edited source; it raises where the text is not found, so that a mutant never silently stops mutating.
"""

from __future__ import annotations

import mutants_bad_day
import mutants_plain
from mutation import Mutant, load, original

__all__ = ["MUTANTS", "Mutant", "load", "original"]

MUTANTS = [*mutants_plain.MUTANTS, *mutants_bad_day.MUTANTS]
