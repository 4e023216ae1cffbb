"""A `PoolState` as a value: what decides its future and nothing else, so that two that will do the same are equal.

Time stands still at NOW. Whatever compares with the time is either ahead of it or past, and "time passes" means that
one such thing becomes past (`search_steps`). That allows every order in which things can become due, and some that
can't; what holds in all of them holds. Counters are not kept: each step begins at nought and is checked for what it
added.

Every attribute of `PoolState`, `Slot` and `Waiter` has to stand in one of the lists below. One that is new stops the
search (`check_known`), so that it never passes over a part of the state.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

from poolkit.config import PoolConfig
from poolkit.stats import Histogram

NOW = 1000.0
LONG_AGO = 0.0  # further back than any limit of the configurations
AHEAD = 2000.0
BREAK_AFTER = 2  # more failures in a row only repeat what two show
BREAK_AFTER_HUNG = 1
SLOWEST = 8.0  # of the recent connects, where there were any
ERROR = OSError("refused")

# What a state is made of, in the order of its key.
SCALARS = (
    "min_size", "max_size", "closed", "size", "opening", "_stale", "urgent", "failures", "last_error", "_retry_at",
    "_retrying", "_hung", "_demoted_at", "_slowest",
)  # fmt: skip
MADE_ANEW = {
    "idle", "waiters", "slots", "doomed", "_woken", "_opens", "_retry_in", "pop", "witness", "_codel", "_pace",
    "_patient", "_first_expiry", "resetting",
}  # fmt: skip
CONSTANT = {
    "name", "_check_after", "_config", "_random", "_max_uses", "_refuses", "_limit", "generation", "rejections",
    "at_exit",
}  # fmt: skip
COUNTERS = {
    "ended", "timeouts", "overloaded", "shed", "refused", "opened_total", "open_failures", "leaked", "used",
    "wait_time", "open_time", "reasons",
}  # fmt: skip
SLOT_KEY = {"attempt", "expires", "generation", "since", "uses", "reported", "scoped", "holder"}
SLOT_REST = {
    "begun", "resource", "status", "patience", "born", "idled", "label", "reason", "stack", "reset", "references",
    "returned", "closing", "__weakref__",
}  # fmt: skip
WAITER_KEY = {"asked_at", "holder", "urgent"}
WAITER_REST = {"done", "error", "slot"}


class Key(NamedTuple):
    """One state of the pool and of those around it."""

    scalars: tuple[Any, ...]
    idle: tuple[tuple[Any, ...], ...]
    moving: tuple[tuple[Any, ...], ...]  # taken without the lock, and not looked at yet
    out: tuple[tuple[Any, ...], ...]
    opening: tuple[tuple[Any, ...], ...]
    queue: tuple[tuple[Any, ...], ...]
    timers: int  # calls of retry() that were ordered and not made
    slow: bool  # CoDel's mood


class World:
    """A state that can be acted on, and the shell's side of it."""

    __slots__ = ("idle", "moving", "opening", "out", "queue", "state", "timers")

    state: Any
    idle: list[Any]
    moving: list[Any]
    out: list[Any]
    opening: list[Any]
    queue: list[Any]
    timers: int


class Freezer:
    """Turn worlds of one module and one configuration into keys and back."""

    def __init__(
        self, module: ModuleType, config: PoolConfig, *, nested: bool, resizes: tuple[int, ...], fails: bool
    ) -> None:
        self.module = module
        self.config = config
        self.resizes = resizes
        self.fails = fails
        self.nested = nested  # who holds what matters only where borrowers ask while they hold
        self.template = module.PoolState(config, "search", lambda: 0.5)
        self.check_known()
        self._new = module.PoolState.__new__
        self._shared = {name: getattr(self.template, name) for name in CONSTANT}
        self._pop = self.template.pop.__name__

    def check_known(self) -> None:
        """Fail where an attribute was added that this file does not know."""
        unknown = set(self.template.__dict__) - {*SCALARS, *MADE_ANEW, *CONSTANT, *COUNTERS}
        unknown |= set(self.module.Slot.__slots__) - SLOT_KEY - SLOT_REST
        unknown |= set(self.module.Waiter.__slots__) - WAITER_KEY - WAITER_REST
        assert not unknown, f"frozen.py has to be told what these are: {sorted(unknown)}"

    def first(self) -> Key:
        """The key of a new pool."""
        world = World()
        world.state = self.template
        world.timers = 0
        world.moving = []
        return self.freeze(world)

    # -- to a key -----------------------------------------------------------------------------------------------------

    def freeze(self, world: World) -> Key:
        s, module = world.state, self.module
        queue = list(s.waiters)
        out = [self._slot_key(slot, s) for slot in s.slots if slot.status == module.OUT]
        opening = [self._slot_key(slot, s) for slot in s.slots if slot.status == module.OPENING]
        waiting = tuple(self._waiter_key(waiter) for waiter in queue)
        out.sort()
        if self.nested:
            waiting, out = _renamed(waiting, out)
        return Key(
            (
                s.min_size, s.max_size, s.closed, s.size, s.opening, s._stale, s.urgent,
                min(s.failures, BREAK_AFTER), s.last_error, AHEAD if s._retry_at > NOW else NOW,
                s._retrying, s._hung, NOW if s._demoted_at > LONG_AGO else LONG_AGO,
                s._slowest if s._slowest is None else SLOWEST,
            ),
            tuple(self._slot_key(slot, s) for slot in s.idle),
            tuple(sorted(self._slot_key(slot, s) for slot in world.moving)),
            tuple(out),
            tuple(sorted(opening)),
            waiting,
            world.timers,
            s._codel is not None and s._codel.slow,
        )  # fmt: skip

    def _slot_key(self, slot: Any, s: Any) -> tuple[Any, ...]:
        expires = slot.expires
        since = NOW if slot.since > LONG_AGO else LONG_AGO
        return (
            NOW if expires <= NOW else expires if expires == math.inf else AHEAD,
            slot.generation == s.generation,
            since,
            slot.uses if self.config.max_uses is not None else 0,
            slot.reported == slot.since,
            slot.scoped,
            -1 if slot.holder is None or not self.nested else slot.holder,
            slot is s._patient,
            slot.status == self.module.OPENING and slot.attempt == s.failures,
        )

    def _waiter_key(self, waiter: Any) -> tuple[Any, ...]:
        return (
            NOW if waiter.asked_at > LONG_AGO else LONG_AGO,
            waiter.urgent,
            waiter.holder if self.nested else -1,
        )

    # -- from a key ---------------------------------------------------------------------------------------------------

    def thaw(self, key: Key) -> World:
        """Make the world of a key."""
        s = self._new(self.module.PoolState)
        attributes = s.__dict__
        attributes.update(self._shared)
        attributes.update(zip(SCALARS, key.scalars, strict=True))
        s._patient = None
        world = World()
        world.state = s
        world.timers = key.timers
        world.idle = [self._slot(k, self.module.IDLE, None, s) for k in key.idle]
        world.moving = [self._slot(k, self.module.IDLE, None, s) for k in key.moving]
        world.out = [self._slot(k, self.module.OUT, number, s) for number, k in enumerate(key.out)]
        world.opening = [self._slot(k, self.module.OPENING, None, s) for k in key.opening]
        world.queue = [self._waiter(k, len(key.out) + number) for number, k in enumerate(key.queue)]
        s.slots = {*world.idle, *world.moving, *world.out, *world.opening}
        s.idle = type(self.template.idle)(world.idle)
        s.resetting = type(self.template.resetting)()
        s.waiters = type(self.template.waiters).fromkeys(world.queue)
        s.pop = getattr(s.idle, self._pop)
        s.doomed, s._woken, s._opens, s._retry_in = [], [], [], None
        s.witness = None
        s._first_expiry = min((slot.expires for slot in s.slots), default=math.inf)
        s.ended = s.timeouts = s.overloaded = s.shed = s.refused = s.opened_total = s.open_failures = s.leaked = 0
        s._pace = type(self.template._pace)()
        s.used, s.reasons, s.wait_time, s.open_time = 0.0, {}, Histogram(), Histogram()
        s._codel = None if self.template._codel is None else self._codel(slow=key.slow)
        return world

    def _slot(self, key: tuple[Any, ...], status: str, holder: int | None, s: Any) -> Any:
        slot = self.module.Slot(0)
        slot.expires, current, slot.since, slot.uses, reported, slot.scoped, named, patient, latest = key
        slot.generation = 0 if current else -1
        slot.reported = slot.since if reported else -1.0
        slot.holder = named if self.nested and named >= 0 else holder
        slot.status = status
        slot.attempt = s.failures if latest else -1
        slot.begun = 1  # the shell has seen to it
        slot.resource = None if status == self.module.OPENING else slot  # any object of its own
        slot.patience = self.config.open_timeout if patient else 1.0
        if patient:
            s._patient = slot
        return slot

    def _waiter(self, key: tuple[Any, ...], holder: int) -> Any:
        asked_at, urgent, named = key
        waiter = self.module.Waiter(named if self.nested else holder, urgent=urgent)
        waiter.asked_at = asked_at
        return waiter

    def _codel(self, *, slow: bool) -> Any:
        """CoDel in a mood that is the search's to choose: what brings it about is tested in test_overload."""
        codel = type(self.template._codel)(self.config.target_delay)
        codel.slow = slow
        codel._last = NOW
        return codel


def _renamed(
    waiting: tuple[tuple[Any, ...], ...], out: list[tuple[Any, ...]]
) -> tuple[tuple[tuple[Any, ...], ...], list[tuple[Any, ...]]]:
    """Give borrowers new names in the order in which they appear: it does not matter who is who."""
    names: dict[int, int] = {}
    waiting = tuple((*k[:-1], names.setdefault(k[-1], len(names))) for k in waiting)
    out = [(*k[:6], names.setdefault(k[6], len(names)), *k[7:]) for k in out]
    return waiting, sorted(out)
