"""How the units of work of one registry behave. Pure: frozen, checked at once, and every fault is in one error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from poolkit.config import nearest, shown
from poolkit.errors import ConfigError

__all__ = ["UnitSettings"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "swallowed_error": ("rollback", "raise"),
    "explicit_commit": ("allow", "warn", "refuse"),
}
_LONGEST = 3600.0  # seconds: a hook that takes an hour belongs into a task queue


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSettings:
    """How units of work behave. Raises `ConfigError` naming everything that is wrong."""

    swallowed_error: Literal["rollback", "raise"] = "rollback"
    """What becomes of an answer with a status of 400 or more after a failed statement whose error was handled:
    `rollback` sends it, and a warning tells that nothing was saved; `raise` makes it `CommitFailed`."""
    explicit_commit: Literal["allow", "warn", "refuse"] = "warn"
    """What `conn.commit()` and `conn.rollback()` inside a unit are: `allow` says nothing, `warn` counts them and logs
    each place once, `refuse` raises `UnitOfWorkError` before anything is done."""
    hook_timeout: float = 5.0
    """Seconds that an `on_commit` hook of an async unit may take to be awaited."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be one of {', '.join(map(repr, choices))}, not {shown(getattr(self, name))}"
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in choices
        ]
        seconds: object = self.hook_timeout
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= _LONGEST:
            problems.append(f"hook_timeout must be a number of seconds from 0 to {_LONGEST:g}, not {shown(seconds)}")
        if problems:
            raise ConfigError(problems, "settings of units of work")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every setting's name, in order."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str = "settings of units of work") -> UnitSettings:
        """Build from settings; `where` says where they stand. Raises one `ConfigError` with all that is wrong."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"must map names to settings, not {type(values).__name__}", where)
        known = {name: value for name, value in values.items() if name in cls.names()}
        problems = [_unknown(name) for name in values if name not in known]
        try:
            settings = cls(**known)
        except ConfigError as error:
            raise ConfigError([*problems, *error.problems], where) from None
        if problems:
            raise ConfigError(problems, where)
        return settings


def _unknown(name: str) -> str:
    guess = nearest(str(name), UnitSettings.names())
    hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(map(repr, UnitSettings.names()))}"
    return f"unknown setting {name!r}: {hint}"
