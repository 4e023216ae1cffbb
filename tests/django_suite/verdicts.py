"""Hold a run with poolkit's engine against the same run with Django's own.

A test that goes well with Django's and not with poolkit's is a fault, and so is one that was skipped or did not run
with poolkit's only. Tests that can't hold for another engine are listed in known.toml, each with its reason; an entry
that is not needed any more is a fault too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .runs import FAILED, Outcome, Report

__all__ = ["Known", "Verdict", "compare", "read_known"]

_FIELDS = {"test", "engines", "reason", "drivers", "django"}


@dataclass(frozen=True)
class Known:
    """A test that is expected to fail: with these engines, and where given with these drivers and Django's series."""

    test: str
    engines: tuple[str, ...]
    reason: str
    drivers: tuple[str, ...] = ()
    django: tuple[str, ...] = ()

    def concerns(self, engine: str, driver: str, version: str) -> bool:
        """Whether it speaks of such a run."""
        series = any(version == one or version.startswith(f"{one}.") for one in self.django)
        return engine in self.engines and (not self.drivers or driver in self.drivers) and (not self.django or series)


@dataclass
class Verdict:
    """What a comparison found: test ids, and what is wrong with each."""

    tests: int = 0
    both: list[str] = field(default_factory=list)
    only_ours: dict[str, Outcome] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    only_theirs: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether poolkit's engine did as well as Django's, and the list is true."""
        return bool(self.tests) and not self.only_ours and not self.stale


def read_known(path: Path | None = None) -> list[Known]:
    """Read the list. Raises ValueError for an entry that is not whole."""
    path = path or Path(__file__).with_name("known.toml")
    found = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("listed", []):
        if set(entry) - _FIELDS or not all(entry.get(name) for name in ("test", "engines", "reason")):
            raise ValueError(f"{path.name}: {entry!r} must have test, engines and reason, and may have drivers, django")
        several = {name: tuple(entry.get(name, ())) for name in ("engines", "drivers", "django")}
        found.append(Known(test=entry["test"], reason=entry["reason"], **several))
    return found


def compare(theirs: Report, ours: Report, known: Iterable[Known]) -> Verdict:
    """Judge a run with poolkit's engine by the one with Django's; `known` are the entries that concern it."""
    listed = {entry.test: entry.reason for entry in known}
    failed, worse = theirs.failed, _worse(theirs, ours)
    return Verdict(
        tests=len(ours.outcomes),
        both=sorted(ours.failed & failed),
        only_ours={test: outcome for test, outcome in worse.items() if test not in listed},
        listed={test: listed[test] for test in worse if test in listed},
        stale=_stale(listed, worse, theirs),
        only_theirs=sorted(failed & {test for test, outcome in ours.outcomes.items() if outcome.kind not in FAILED}),
    )


def _worse(theirs: Report, ours: Report) -> dict[str, Outcome]:
    found = {test: outcome for test, outcome in ours.outcomes.items() if test in ours.failed - theirs.failed}
    for test, outcome in theirs.outcomes.items():
        mine = ours.outcomes.get(test)
        if mine is None and outcome.kind not in FAILED:
            found[test] = Outcome("not run")
        elif mine is not None and mine.kind == "skip" and outcome.kind != "skip":
            found[test] = mine
    return dict(sorted(found.items()))


def _stale(listed: dict[str, str], worse: dict[str, Outcome], theirs: Report) -> dict[str, str]:
    """Return the entries that say nothing true about this run; those of labels that were not run say nothing."""
    labels = {test.partition(".")[0] for test in theirs.outcomes}
    return {
        test: "it passes" if test in theirs.outcomes else "there is no such test"
        for test in listed
        if test not in worse and test.partition(".")[0] in labels
    }
