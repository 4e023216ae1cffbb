"""What can happen to a pool, one event at a time, and what must come of each.

`Steps.of(key)` lists the events that are possible in a state. `Steps.take(key, event)` carries one out on a world made
for it, as a shell would, checks the orders against what stood there before, and returns the key of what came of it.
`Invariants` (the model's) are checked in every new state by `Steps.check`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from frozen import AHEAD, ERROR, LONG_AGO, NOW, SLOWEST, Freezer, Key
from search_checks import Step, View, is_stuck

from poolkit.errors import LeaseError, NestedAcquire, OpenFailed, Overloaded, PoolClosed

BORROWERS = 3
MOVING = 1  # at a time on their way from the idle to a borrower
QUICK = 0.25  # seconds that each connect takes
Event = tuple[str, int, bool, bool]  # what, which one, and two flags of the event's own


class Steps(Freezer):
    """The events of one configuration."""

    def of(self, key: Key) -> list[Event]:
        """List what can happen in this state. What happens to one of two equal slots is listed once."""
        events: list[Event] = [("sweep", 0, False, False), ("drain", 0, False, False), ("mend", 0, False, False)]
        events += [("resize", size, False, False) for size in self.resizes if size != key.scalars[1]]
        if not key.scalars[2]:
            events.append(("close", 0, False, False))
        events += self._asking(key)
        events += self._of_slots(key)
        events += [("give_up", number, timed_out, False) for number in range(len(key.queue)) for timed_out in (True,)]
        if key.queue:
            events.append(("give_up", 0, False, False))
        if key.timers:
            events += [("timer", 0, True, False), ("timer", 0, False, False)]
        return events + self._of_time(key)

    def _asking(self, key: Key) -> list[Event]:
        urgent = (False, True) if self.config.reserved else (False,)
        events = [("ask", who, True, u) for who in self._askers(key) for u in urgent]
        if self.nested:
            events += [("ask", who, False, False) for who in self._askers(key)]
        elif key.idle and events:
            events += [("ask_late", events[0][1], False, False)]
        return events

    def _askers(self, key: Key) -> list[int]:
        if not self.nested:
            busy = len(key.moving) + len(key.out) + len(key.queue)
            return [busy] if busy < BORROWERS else []
        waiting = {waiter[-1] for waiter in key.queue}
        if len(waiting) + len(key.moving) >= BORROWERS:
            return []
        holding = {slot[6] for slot in key.out}
        fresh = [who for who in range(BORROWERS) if who not in waiting | holding][:1]
        return sorted(holding - waiting) + fresh

    def _of_slots(self, key: Key) -> list[Event]:
        events: list[Event] = []
        stuck = {waiter[-1] for waiter in key.queue} if self.nested else set()
        for number, slot in enumerate(key.out):
            if number and slot == key.out[number - 1]:
                continue
            if slot[5] and slot[6] in stuck:  # a block is not left by one who waits inside it
                continue
            events += [
                (name, number, False, False) for name in ("give", "drop", "demoted", "detach", "undo", "forgotten")
            ]
            events += [("dead", number, long, False) for long in (False, True)]
        for number, slot in enumerate(key.opening):
            if number == 0 or slot != key.opening[number - 1]:
                events.append(("opened", number, False, False))
                events += [("failed", number, hung, False) for hung in (False, True) if self.fails]
        if key.idle:
            events += [("lost", 0, False, False), ("return_twice", 0, False, False)]
        return events + self._of_moving(key)

    def _of_moving(self, key: Key) -> list[Event]:
        """Somebody takes an idle slot without the lock; and comes to look at it, or never does."""
        events: list[Event] = []
        if key.idle and len(key.moving) < MOVING and self._askers(key):
            events.append(("pop", 0, False, False))
        for number, slot in enumerate(key.moving):
            if slot[0] == AHEAD:
                events.append(("expire", len(key.idle) + len(key.out) + number, False, False))
            takers = [who for who in range(BORROWERS) if who not in {w[-1] for w in key.queue}] if self.nested else [0]
            events += [("arrive", number * BORROWERS + who, True, False) for who in takers]
            events += [("stray", number, recovered, False) for recovered in (False, True)]
        return events

    def _of_time(self, key: Key) -> list[Event]:
        """What is ahead and may become past."""
        events: list[Event] = []
        config = self.config
        for number, slot in enumerate((*key.idle, *key.out)):
            idle = number < len(key.idle)
            if slot[0] == AHEAD:
                events.append(("expire", number, False, False))
            in_turn = not idle or number == 0 or key.idle[number - 1][2] == LONG_AGO  # the first has lain for longest
            if slot[2] == NOW and in_turn and (config.idle_timeout if idle else config.leak_after) is not None:
                events.append(("long", number, False, False))
        first = [number for number, slot in enumerate(key.opening) if slot[7] and slot[2] == NOW]
        events += [("patience_over", number, False, False) for number in first]
        if key.scalars[9] == AHEAD:
            events.append(("retry_due", 0, False, False))
        if key.scalars[12] == NOW:
            events.append(("demotion_over", 0, False, False))
        if config.target_delay is not None:
            events.append(("mood", 0, False, False))
            young = [number for number, waiter in enumerate(key.queue) if waiter[0] == NOW]
            events += [("older", young[0], False, False)] if young else []
        if config.leak_after is not None:
            events.append(("leaks", 0, False, False))
        return events

    def take(self, key: Key, event: Event) -> tuple[Key, Step]:
        """Carry out one event; AssertionError where what came of it is wrong."""
        name, number, flag, other = event
        step = Step(self, key)
        action: Callable[[Step, int, bool, bool], None] = ACTIONS[name]
        action(step, number, flag, other)
        after = step.finish()
        if name in UNCHANGED:
            assert after == key, f"{name} must leave everything as it was"
        return after, step

    def check(self, step: Step) -> None:
        """Check the model's invariants in the state that a step has led to."""
        view = View(self, step.world, step.failures)
        view.sizes()
        view.nobody_waits_for_nothing()
        view.outage()
        view.closed_is_empty()
        s = step.state
        assert s._stale == sum(slot.generation != s.generation for slot in step.opening)
        assert s.urgent == sum(waiter.urgent for waiter in step.queue)
        assert [w.urgent for w in step.queue] == sorted((w.urgent for w in step.queue), reverse=True)
        assert s._patient is None or (s._patient in step.opening and s._patient.generation == s.generation)
        assert s._retrying == (step.world.timers > 0), "the shell was told to come back as often as is remembered"


# -- the events -------------------------------------------------------------------------------------------------------


def _refusal(step: Step, who: int, urgent: bool) -> type[Exception] | None:  # noqa: FBT001
    """What the theory says to a newcomer who finds nothing idle, from the books of the step alone."""
    s, config = step.state, step.config
    if s.closed:
        return PoolClosed
    if (
        config.on_outage == "refuse"
        and step.broken
        and not (step.out or step.moving)
        and (s._retry_at > NOW or step.short)
    ):
        return OpenFailed
    if is_stuck(step, who, urgent):
        return NestedAcquire
    plain = sum(not waiter.urgent for waiter in step.queue)
    limit = config.max_waiting
    no_room = len(s.slots) >= s.max_size or step.failures > 0
    if limit is not None and not urgent and no_room and plain - len(step.opening) >= limit:
        return Overloaded
    return None


def _ask(step: Step, who: int, scoped: bool, urgent: bool) -> None:  # noqa: FBT001
    fit = [slot for slot in step.world.idle if slot.expires > NOW]
    slot = step.state.take(NOW)
    assert (slot is not None) == bool(fit), "take must find a fit idle slot, and no other"
    if slot is None:
        step.carry_out(step.state.orders())
        _wait(step, who, urgent)
        return
    assert slot is (fit[-1] if step.config.order == "lifo" else fit[0]), "the order of the idle"
    _lend(step, slot, who, scoped)
    step.carry_out(step.state.orders())


def _lend(step: Step, slot: Any, who: int, scoped: bool) -> None:  # noqa: FBT001
    step.note_lent(slot)
    slot.holder, slot.scoped = who, scoped


def _wait(step: Step, who: int, urgent: bool) -> None:  # noqa: FBT001
    expected = _refusal(step, who, urgent)
    waiter = step.module.Waiter(who, urgent=urgent)
    if urgent:
        step.may_grow = step.config.reserved
    orders = step.state.ask(waiter, NOW)
    assert waiter.slot is None
    assert waiter.asked_at == NOW
    if expected is None:
        assert waiter.error is None, f"refused without a reason: {waiter.error!r}"
        assert not waiter.done
        place = sum(other.urgent for other in step.queue) if urgent else len(step.queue)
        step.queue.insert(place, waiter)
    else:
        assert type(waiter.error) is expected
        assert waiter.done
        step.count["overloaded"] += expected is Overloaded
        step.count["refused"] += expected in {OpenFailed, NestedAcquire}
    step.carry_out(orders)


def _ask_late(step: Step, who: int, _flag: bool, _other: bool) -> None:  # noqa: FBT001
    """A slot came back between the look and the question."""
    fit = any(slot.expires > NOW for slot in step.world.idle)
    if not fit:
        return
    waiter = step.module.Waiter(who)
    orders = step.state.ask(waiter, NOW)
    assert waiter.done
    _lend(step, waiter.slot, who, scoped=True)
    step.carry_out(orders)


def _give(step: Step, number: int, _flag: bool, _other: bool) -> None:  # noqa: FBT001
    slot, s = _returned(step, number), step.state
    fit = slot.expires > NOW and (step.config.max_uses is None or slot.uses < step.config.max_uses)
    room = s.max_size + step.may_grow
    step.carry_out(s.give(slot, NOW))
    kept = slot.status != step.module.DEAD
    assert kept == (fit and step.was_size <= room), "what is fit is lent on or kept, a surplus only to the urgent"


def _returned(step: Step, number: int) -> Any:
    slot = step.world.out[number]
    step.out.discard(slot)
    step.returned = slot
    slot.holder, slot.scoped = None, False
    return slot


def _undo(step: Step, number: int, _flag: bool, _other: bool) -> None:  # noqa: FBT001
    """Cancelled in the moment of the hand-over: the state keeps no memory of who was served, so it may be anyone."""
    slot = _returned(step, number)
    waiter = step.module.Waiter()
    waiter.slot, waiter.done = slot, True
    step.carry_out(step.state.give_up(waiter, NOW))
    assert waiter.slot is None


def _drop(step: Step, number: int, _flag: bool, _other: bool) -> None:  # noqa: FBT001
    slot = _returned(step, number)
    step.carry_out(step.state.drop(slot, NOW, "dropped"))
    assert slot not in step.live


def _demoted(step: Step, number: int, _flag: bool, _other: bool) -> None:  # noqa: FBT001
    slot = _returned(step, number)
    s = step.state
    whole = slot.generation == s.generation and s._demoted_at == LONG_AGO
    generation = s.generation
    step.carry_out(s.demoted(slot, NOW))
    assert slot not in step.live
    assert (s.generation != generation) == whole, "the generation ends once for a while"
    if whole:
        assert not s.idle
        assert s._demoted_at == NOW
        assert s._retry_at <= NOW, "the new server may be there: it is tried at once"


def _dead(step: Step, number: int, long: bool, _other: bool) -> None:  # noqa: FBT001
    """Found dead when it was taken; after a long idleness all that lay idle as long are dead with it."""
    slot, s = step.world.out[number], step.state
    slot.since, slot.idled = NOW, NOW - LONG_AGO if long else 0.0
    _returned(step, number)
    expected = [other for other in step.world.idle if long and other.since == LONG_AGO]
    step.carry_out(s.found_dead(slot, NOW))
    assert slot not in step.live
    assert [other for other in step.world.idle if other not in step.live] == expected


def _detach(step: Step, number: int, _flag: bool, _other: bool) -> None:  # noqa: FBT001
    slot = _returned(step, number)
    step.live.discard(slot)
    step.reasons["detached"] = 1
    step.carry_out(step.state.detach(slot, NOW))


def _opened(step: Step, number: int, _flag: bool, _other: bool) -> None:  # noqa: FBT001
    slot, s = step.world.opening[number], step.state
    step.opening.discard(slot)
    step.live.add(slot)
    step.returned = slot
    step.count["opened_total"] = 1
    current = slot.generation == s.generation
    slowest = s._slowest or 0.0
    if current:
        step.failures = 0
    step.carry_out(s.opened(slot, object(), NOW, QUICK))
    if current:
        assert s._slowest == (QUICK if slowest == 0.0 else 0.9 * SLOWEST), "a slow connect is remembered for a while"
    assert current or slot not in step.live, "what was begun before a drain must not enter after it"


def _failed(step: Step, number: int, hung: bool, _other: bool) -> None:  # noqa: FBT001
    slot, s = step.world.opening[number], step.state
    step.opening.discard(slot)
    step.count["open_failures"] = 1
    current = slot.generation == s.generation
    if current and slot.attempt == step.failures:  # of many begun together, the first one to fail
        step.failures += 1
    step.failed = current and step.failures > 0
    slot.since = min(slot.since, NOW - (slot.patience if hung else 0.0))
    expected = s._hung or (step.failed and slot.since < NOW)
    step.carry_out(s.open_failed(slot, ERROR, NOW))
    assert s._hung == expected, "an attempt has hung when it was given up for its patience"
    assert slot.status == step.module.DEAD
    if current and step.config.on_outage == "refuse" and step.broken and not (step.out or step.moving or step.opening):
        assert not step.queue, "nobody can be served, and nobody was told"


def _give_up(step: Step, number: int, timed_out: bool, _other: bool) -> None:  # noqa: FBT001
    waiter = step.queue.pop(number)
    step.waited += 1
    step.count["timeouts"] += timed_out
    step.carry_out(step.state.give_up(waiter, NOW, timed_out=timed_out))
    assert waiter.done
    assert waiter.slot is None


def _timer(step: Step, _number: int, due: bool, _other: bool) -> None:  # noqa: FBT001
    """The moment ordered by `retry_in`; or a little before it, as timers go."""
    step.world.timers -= 1
    if due:
        step.state._retry_at = min(step.state._retry_at, NOW)
    step.carry_out(step.state.retry(NOW))


def _sweep(step: Step, *_: Any) -> None:
    s, limit = step.state, step.config.idle_timeout
    late = s._patient is not None and s._patient.since == LONG_AGO
    step.carry_out(s.sweep(NOW))
    assert s._hung or not late, "an attempt that takes long hangs before it has ended"
    for slot in s.idle:
        assert slot.expires > NOW, "an expired slot survived a sweep"
        assert limit is None or slot.since == NOW or s.size <= s.min_size, "an idle slot survived a sweep"
    assert s.closed or s.failures or s.size >= s.min_size, "a sweep refills to min_size"
    gone = step.reasons.get("idle", 0)
    assert not gone or s.size >= s.min_size, "min_size is kept warm"


def _drain(step: Step, *_: Any) -> None:
    s = step.state
    step.carry_out(s.drain(NOW))
    assert not s.idle
    assert not step.queue or len(s.slots) >= s.max_size or s.closed or step.coming, "a new generation is tried at once"


def _resize(step: Step, size: int, *_: Any) -> None:
    least = step.state.min_size
    step.carry_out(step.state.resize(size, NOW))
    assert (step.state.max_size, step.state.min_size) == (size, min(least, size))


def _close(step: Step, *_: Any) -> None:
    step.carry_out(step.state.close(NOW))
    assert step.state.closed
    assert all(slot.expires <= NOW for slot in step.out), "what is out would be lent again"


def _mend(step: Step, *_: Any) -> None:
    step.carry_out(step.state.mend(NOW, [*step.world.idle]))
    step.carry_out(step.state.recover([*step.world.idle], NOW))
    assert not step.reasons, "books that are right are left as they are"


def _lost(step: Step, *_: Any) -> None:
    """Interrupted in the middle of a take: the slot is with nobody. It is ended, and its place is used."""
    slot = step.state.idle.pop()
    step.carry_out(step.state.mend(NOW, [slot]))
    assert slot not in step.live


def _pop(step: Step, *_: Any) -> None:
    """A borrower takes what lies idle, in one step and without the lock."""
    step.moving.append(step.state.pop())
    step.acquired += 1


def _arrive(step: Step, number: int, scoped: bool, _other: bool) -> None:  # noqa: FBT001
    """It looks at what it has got; what has become too old meanwhile is ended, for another one that lies idle."""
    number, who = divmod(number, BORROWERS)
    slot, s = step.moving.pop(number), step.state
    slot.uses += 1
    slot.status, slot.since = step.module.OUT, NOW
    if slot.expires > NOW:
        step.acquired -= 1
        _lend(step, slot, who, scoped)
        return
    s.outlived(slot, NOW)
    another = s.take(NOW)
    if another is not None:
        _lend(step, another, who, scoped)
    step.carry_out(s.orders())
    assert slot not in step.live


def _stray(step: Step, number: int, recovered: bool, _other: bool) -> None:  # noqa: FBT001
    """It never arrives: an interrupt came in between. Found at once or by a search, and its place is used."""
    slot, s = step.moving.pop(number), step.state
    step.acquired -= 1  # it was not lent
    step.carry_out(s.recover([slot], NOW) if recovered else s.mend(NOW, [slot]))
    assert slot not in step.live


def _forgotten(step: Step, number: int, _flag: bool, _other: bool) -> None:  # noqa: FBT001
    slot = _returned(step, number)
    step.carry_out(step.state.recover([slot], NOW))
    assert step.reasons.get("lost"), "what a borrower has forgotten is counted as lost"


def _return_twice(step: Step, *_: Any) -> None:
    for way, arguments in (("give", ()), ("drop", ("again",)), ("demoted", ())):
        with contextlib.suppress(LeaseError):
            getattr(step.state, way)(step.world.idle[0], NOW, *arguments)
            raise AssertionError(f"what is not out was accepted by {way}")


# Time passes: one thing that was ahead is past.


def _expire(step: Step, number: int, *_: Any) -> None:
    (*step.world.idle, *step.world.out, *step.world.moving)[number].expires = NOW


def _long(step: Step, number: int, *_: Any) -> None:
    (*step.world.idle, *step.world.out)[number].since = LONG_AGO


def _retry_due(step: Step, *_: Any) -> None:
    step.state._retry_at = NOW


def _patience_over(step: Step, number: int, *_: Any) -> None:
    step.world.opening[number].since = LONG_AGO


def _demotion_over(step: Step, *_: Any) -> None:
    step.state._demoted_at = LONG_AGO


def _older(step: Step, number: int, *_: Any) -> None:
    step.queue[number].asked_at = LONG_AGO


def _mood(step: Step, *_: Any) -> None:
    step.state._codel.slow = not step.state._codel.slow


def _leaks(step: Step, *_: Any) -> None:
    expected = {slot for slot in step.out if slot.since == LONG_AGO and slot.reported != slot.since}
    assert set(step.state.overdue(NOW)) == expected, "each overdue lease is reported once"
    assert not step.state.overdue(NOW)
    step.count["leaked"] = len(expected)


ACTIONS: dict[str, Callable[..., None]] = {
    "ask": _ask, "ask_late": _ask_late, "give": _give, "undo": _undo, "drop": _drop,
    "demoted": _demoted, "detach": _detach, "opened": _opened, "failed": _failed, "give_up": _give_up,
    "timer": _timer, "sweep": _sweep, "drain": _drain, "resize": _resize, "close": _close, "mend": _mend,
    "lost": _lost, "return_twice": _return_twice, "expire": _expire, "long": _long, "retry_due": _retry_due,
    "demotion_over": _demotion_over, "older": _older, "mood": _mood, "leaks": _leaks, "dead": _dead,
    "patience_over": _patience_over, "pop": _pop, "arrive": _arrive, "stray": _stray, "forgotten": _forgotten,
}  # fmt: skip
UNCHANGED = {"return_twice"}
