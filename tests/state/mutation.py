"""What a mutant is, and how one is made."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import poolkit.state


class Mutant(NamedTuple):
    """One edit."""

    name: str
    old: str
    new: str
    hard: bool = False  # the model needs hundreds of runs to see it
    seen_in: str = "plain"  # the configuration in which the exhaustive search sees it; "" where only the model does
    model: bool = True  # the model sees it within a few hundred runs


def load(mutant: Mutant) -> ModuleType:
    """Make the mutated module. Raises ValueError where the edit does not fit the source exactly once."""
    source = _source()
    if source.count(mutant.old) != 1:
        raise ValueError(f"mutant {mutant.name!r}: its text occurs {source.count(mutant.old)} times in state.py")
    return _module(mutant.name, source.replace(mutant.old, mutant.new))


def original() -> ModuleType:
    """Make a copy of the real module, whose constants may be changed."""
    return _module("original", _source())


def _source() -> str:
    return Path(poolkit.state.__file__).read_text(encoding="utf-8")


def _module(title: str, source: str) -> ModuleType:
    name = "mutant_" + "_".join(title.split()).replace(",", "").replace(":", "").replace("'", "")
    module = ModuleType(name)
    sys.modules[name] = module  # NamedTuple and the like look their module up
    try:
        exec(compile(source, f"<{title}>", "exec"), module.__dict__)
    finally:
        del sys.modules[name]
    return module
