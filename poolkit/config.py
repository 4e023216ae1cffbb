"""PoolConfig: how one pool behaves. Frozen, validated at once, and every fault is reported in one error.

Settings come from Python (`PoolConfig(max_size=8)`), from a mapping (`from_mapping`, which also takes the names people
know from SQLAlchemy and psycopg_pool) or from the environment (`from_environ`). Times are seconds everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from poolkit.errors import ConfigError

__all__ = ["PoolConfig", "beside_url", "nearest", "overlay", "shown"]


_BEYOND = 1e9  # no setting means anything from here on (a time would be thirty years), and timers overflow


class _Rule(NamedTuple):
    """What a setting may be: its kind, its lower bound, whether None is allowed, and its choices."""

    kind: Literal["int", "float", "choice", "callable"]
    low: float = 0
    optional: bool = False
    choices: tuple[str, ...] = ()
    open_low: bool = False
    high: float = _BEYOND

    @property
    def noun(self) -> str:
        """What it is a setting of, for errors."""
        return "a whole number" if self.kind == "int" else "a number of seconds"

    def fault(self, name: str, value: object) -> str | None:
        """Say what is wrong with `value`, or None."""
        if value is None and self.optional:
            return None
        if self.kind == "choice":
            return (
                None if value in self.choices else f"{name} must be one of {_listed(self.choices)}, not {shown(value)}"
            )
        if self.kind == "callable":
            return (
                None
                if callable(value) or _is_path(value)
                else (f"{name} must be a callable or its dotted path (like 'shop.db.f'), not {shown(value)}")
            )
        wanted = (int,) if self.kind == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            none = " or None" if self.optional else ""
            return f"{name} must be {self.noun}{none}, not {shown(value)} ({type(value).__name__})"
        return self._bounds(name, value)

    def _bounds(self, name: str, value: float) -> str | None:
        if value != value:  # noqa: PLR0124  nan; math.isnan can't take an int of any size
            return f"{name} must be a number, not nan"
        if value < self.low or (self.open_low and value == self.low):
            return f"{name} must be {'more than' if self.open_low else 'at least'} {self.low:g}, not {shown(value)}"
        if value > self.high:
            return f"{name} must be at most {self.high:g}, not {shown(value)}"
        return None

    def parse(self, text: str) -> object:
        """Read an environment variable; raises ValueError where it is no number."""
        if self.optional and text.strip().lower() == "none":
            return None
        if self.kind in {"choice", "callable"}:
            return text.strip()
        return int(text) if self.kind == "int" else float(text)


def _setting(default: Any, rule: _Rule) -> Any:
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """How one pool behaves; every time is in seconds. Raises `ConfigError` naming everything that is wrong."""

    min_size: int = _setting(0, _Rule("int"))
    """Connections kept open even when nobody asks."""
    max_size: int = _setting(10, _Rule("int", low=1))
    """The most connections this pool opens; the server's limit is shared by all worker processes."""
    timeout: float = _setting(30.0, _Rule("float", open_low=True))
    """How long `acquire` waits for a connection before `AcquireTimeout`."""
    reserved: int = _setting(0, _Rule("int"))
    """Connections beyond `max_size` for `acquire(urgent=True)`: for probes and administration, whatever the load."""
    max_waiting: int | None = _setting(None, _Rule("int", optional=True))
    """The longest queue of waiters; the next one gets `Overloaded` at once. None: no limit."""
    open_timeout: float = _setting(10.0, _Rule("float", open_low=True))
    """How long one attempt to connect may take at the most. A pool that knows its server gives up sooner: after four
    times the slowest of the recent connects, but not before 0.75 s."""
    close_timeout: float = _setting(5.0, _Rule("float"))
    """How long `close()` waits for borrowed connections to come back."""
    max_lifetime: float | None = _setting(3600.0, _Rule("float", open_low=True, optional=True))
    """The age at which a connection is replaced. None: never."""
    lifetime_jitter: float = _setting(0.1, _Rule("float", high=1))
    """The share (0 to 1) of `max_lifetime` taken off at random, so that not all connections die together."""
    idle_timeout: float | None = _setting(600.0, _Rule("float", open_low=True, optional=True))
    """How long a connection above `min_size` may lie idle before it is closed. None: for ever."""
    max_uses: int | None = _setting(None, _Rule("int", low=1, optional=True))
    """How many times one connection is borrowed before it is replaced. None: without limit."""
    check_after: float | None = _setting(30.0, _Rule("float", optional=True))
    """Idle longer than this, a connection is asked with a round trip; before, its socket is looked at for free.
    None: never a round trip."""
    reset: Literal["auto", "full", "off"] = _setting("auto", _Rule("choice", choices=("auto", "full", "off")))
    """What is done on return: `auto` undoes what the driver's own state shows, `full` resets the whole session with a
    round trip each time, `off` leaves the connection as it is."""
    order: Literal["lifo", "fifo"] = _setting("lifo", _Rule("choice", choices=("lifo", "fifo")))
    """Which idle connection is next: the most recent one (caches are warm), or each in turn."""
    leak_after: float | None = _setting(None, _Rule("float", open_low=True, optional=True))
    """Held longer than this, a connection is reported once, with the stack that took it. None: no report."""
    on_outage: Literal["refuse", "wait"] = _setting("refuse", _Rule("choice", choices=("refuse", "wait")))
    """While the server can't be reached: `refuse` new borrowers at once with the cause, once several attempts in a row
    have failed, or let everyone `wait` for `timeout`."""
    target_delay: float | None = _setting(None, _Rule("float", open_low=True, optional=True))
    """Once everybody has waited longer than this for four times as long, those who have are refused, so that the others
    are served in time (CoDel). None: everyone waits for `timeout`."""

    pooler: Literal["auto", "session", "transaction"] = _setting(
        "auto", _Rule("choice", choices=("auto", "session", "transaction"))
    )
    """What stands between the pool and a PostgreSQL server. `transaction`: a pooler that lends a server session for one
    transaction only (PgBouncer's pool_mode=transaction): no reset is sent, for it would reach another session. `auto`
    goes on resetting, and says once in the log where a pooler is seen."""
    configure: Callable[[Any], Any] | str | None = _setting(None, _Rule("callable", optional=True))
    """Called with each new connection, to register types, set handlers or run SQL; a coroutine function for asyncio.
    What it leaves is the state that each borrower finds. Its error fails the connect. Also a dotted path to one."""
    setup: Callable[[Any], Any] | str | None = _setting(None, _Rule("callable", optional=True))
    """Called with the connection for each borrower, before that gets it. Its error is the borrower's."""
    ping: Callable[[Any], Any] | str | None = _setting(None, _Rule("callable", optional=True))
    """Takes the place of the driver's own question after `check_after`: false or an error replaces the connection."""
    on_close: Callable[[Any], Any] | str | None = _setting(None, _Rule("callable", optional=True))
    """Called with each connection before it is closed, where it can be used: not where its peer is gone, or its session
    could not be made as new. What it raises is logged."""

    def __post_init__(self) -> None:
        problems = [p for f in fields(self) if (p := f.metadata["rule"].fault(f.name, getattr(self, f.name)))]
        if not problems and self.min_size > self.max_size:
            problems.append(f"min_size ({self.min_size}) is larger than max_size ({self.max_size})")
        if not problems and self.pooler == "transaction" and self.reset == "full":
            problems.append(
                'reset="full" and pooler="transaction" exclude each other: a reset would reach another session'
            )
        if problems:
            raise ConfigError(problems, "pool settings")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every setting's name, in order."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def from_mapping(cls, options: Mapping[str, object], *, where: str = "pool settings") -> PoolConfig:
        """Build from settings; `where` says where they stand. Raises one `ConfigError` with all that is wrong."""
        values, problems = _translate(options)
        rules = _rules()
        wrong = set()
        for name, value in values.items():
            known = (*rules, *_ALIASES, "pool_size", "max_overflow")
            fault = rules[name].fault(name, value) if name in rules else _unknown(name, known)
            if fault:
                problems.append(fault)
                wrong.add(name)
        if wrong & {"min_size", "max_size"}:  # then there is nothing to compare
            wrong |= {"min_size", "max_size"}
        return cls._build({name: value for name, value in values.items() if name not in wrong}, problems, where)

    @classmethod
    def _build(cls, values: Mapping[str, Any], problems: list[str], where: str) -> PoolConfig:
        try:
            config = cls(**values)
        except ConfigError as error:
            raise ConfigError([*problems, *error.problems], where) from None
        if problems:
            raise ConfigError(problems, where)
        return config

    @classmethod
    def options_from_environ(cls, environ: Mapping[str, str], prefix: str) -> dict[str, object]:
        """Read `PREFIX_MAX_SIZE` and so on; an empty one is not set. Raises `ConfigError` naming the variable."""
        options: dict[str, object] = {}
        problems = _misspelt(environ, prefix)
        for name, rule in _rules().items():
            variable = f"{prefix}_{name.upper()}"
            if not environ.get(variable, "").strip():
                continue
            try:
                options[name] = rule.parse(environ[variable])
            except ValueError:
                problems.append(f"{variable} must be {rule.noun}, not {shown(environ[variable])}")
        if problems:
            raise ConfigError(problems, "environment")
        return options

    @classmethod
    def options_from_query(cls, given: Iterable[tuple[str, str]]) -> tuple[dict[str, object], list[str]]:
        """Read `pool_max_size=8` and so on from a URL's parameters. Returns the settings, and what is wrong.

        SQLAlchemy's names (`pool_size`, `pool_recycle`) count as well. No value is quoted: a URL may hold a secret.
        """
        options: dict[str, object] = {}
        problems: list[str] = []
        for name, text in given:
            target, convert = _ALIASES.get(name, (name.removeprefix("pool_"), _same))
            target = "max_size" if target == "size" else target
            rule = _rules().get(target)
            if rule is None:
                guess = nearest(target, _rules())
                known = f"known are {', '.join(f'pool_{one}' for one in _rules())}"
                problems.append(
                    f"{name!r} is no setting: did you mean 'pool_{guess}'?"
                    if guess
                    else f"a parameter of the URL that begins with pool_ is no setting: {known}"
                )
                continue
            if rule.kind == "callable":
                problems.append(f"{name} names code, which a URL can't bring: set {target} beside the URL")
                continue
            try:
                value = convert(_word(text) if convert is not _same else rule.parse(text))
            except ValueError:
                value = text
            fault = rule.fault(name, value)
            if fault is not None:
                problems.append(f"{fault.partition(', not ')[0]}, in the URL")
            elif target in options:
                problems.append(f"{name} is given twice in the URL")
            options[target] = value
        return options, problems


def _rules() -> dict[str, _Rule]:
    return {f.name: f.metadata["rule"] for f in fields(PoolConfig)}


def _recycle(value: object) -> object:
    return None if value == -1 else value  # SQLAlchemy's spelling of "never"


def _pre_ping(value: object) -> object:
    if not isinstance(value, bool):
        return value  # the type check reports it
    return 0.0 if value else None


def _reset_on_return(value: object) -> object:
    known = {"rollback": "auto", True: "auto", None: "off", False: "off"}
    return known.get(value, value) if isinstance(value, (str, bool, type(None))) else value


def _lifo(value: object) -> object:
    if not isinstance(value, bool):
        return value
    return "lifo" if value else "fifo"


def _same(value: object) -> object:
    return value


def _word(text: str) -> object:
    """Read a value in a URL as Python's: true, false, none, a number, or the text itself."""
    words: dict[str, object] = {"true": True, "false": False, "none": None}
    try:
        return words[text.lower()] if text.lower() in words else float(text)
    except ValueError:
        return text


# The names people bring along: SQLAlchemy's (with and without `pool_`) and psycopg_pool's.
_ALIASES: dict[str, tuple[str, Callable[[object], object]]] = {
    "pool_timeout": ("timeout", _same),
    "pool_recycle": ("max_lifetime", _recycle),
    "pre_ping": ("check_after", _pre_ping),
    "pool_pre_ping": ("check_after", _pre_ping),
    "reset_on_return": ("reset", _reset_on_return),
    "pool_reset_on_return": ("reset", _reset_on_return),
    "pool_use_lifo": ("order", _lifo),
    "max_idle": ("idle_timeout", _same),
}


def _translate(options: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """Put the known foreign names into ours; report a setting given twice."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    rest = dict(options)
    sizes = [rest.pop(name) for name in ("pool_size", "max_overflow") if name in rest]
    if sizes:
        counts = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and size >= 0]
        if len(counts) == len(sizes):
            rest.setdefault("max_size", sum(counts))
            if "max_size" in options:
                problems.append("max_size is given twice: as itself and as pool_size + max_overflow")
        else:
            hint = ". There is no pool without a limit: set max_size to what the server can bear" if -1 in sizes else ""
            problems.append(f"pool_size and max_overflow must be whole numbers of at least 0, not {shown(sizes)}{hint}")
    for name, value in rest.items():
        target, convert = _ALIASES.get(name, (name, _same))
        if target in values:
            problems.append(f"{target} is given twice: {name} means the same")
        values[target] = convert(value)
    return values, problems


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Put settings over others, whatever names either uses: `max_size` takes the place of `pool_size`."""
    replaced = {_target(name) for name in over}
    return {**{name: value for name, value in base.items() if _target(name) not in replaced}, **over}


def beside_url(options: Mapping[str, Any], from_url: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Join the settings of a URL with those beside it. Raises `ConfigError` for one that is given in both places."""
    beside = {_target(name): name for name in options}
    twice = [
        f"{name} is given twice: as pool_{name} in the URL and as {beside[name]} beside it"
        for name in from_url
        if name in beside
    ]
    if twice:
        raise ConfigError(twice, where)
    return {**from_url, **options}


def _target(name: str) -> str:
    return "max_size" if name in {"pool_size", "max_overflow"} else _ALIASES.get(name, (name, _same))[0]


def _misspelt(environ: Mapping[str, str], prefix: str) -> list[str]:
    """Tell of variables that were surely meant for this prefix.

    Not of all that are unknown: `PREFIX_MORE_MAX_SIZE` may be another pool's, and an orchestrator adds its own
    (`POOLKIT_DEFAULT_SERVICE_HOST`).
    """
    rules = tuple(_rules())
    others = tuple(f"_{name}" for name in (*rules, "url"))
    found = []
    for variable in sorted(environ):
        rest = variable.removeprefix(f"{prefix}_").lower()
        if rest == variable.lower() or rest in rules or rest.endswith(others) or not environ[variable].strip():
            continue
        guess = nearest(rest, rules)
        if guess:
            found.append(f"{variable} is not known: did you mean {prefix}_{guess.upper()}?")
    return found


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that `name` was probably meant to be."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _unknown(name: str, known: Iterable[str]) -> str:
    guess = nearest(str(name), known)
    hint = f"did you mean {guess!r}?" if guess else f"known are {_listed(PoolConfig.names())}"
    return f"unknown setting {shown(name)}: {hint}"


def _is_path(value: object) -> bool:
    """Whether `value` looks like the dotted path of something in a module."""
    parts = value.split(".") if isinstance(value, str) else []
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def shown(value: object) -> str:
    """Quote a value in an error; not where it is, or holds, a URL, which may hold a password."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python will write
        return "a number of too many digits"
    if "://" in text or "@" in text:
        return "a URL"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
