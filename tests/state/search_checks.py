"""One event on one world: what stood there before, and whether what was ordered and what stands there now is right."""

from __future__ import annotations

from typing import Any

from books import Known
from frozen import AHEAD, BREAK_AFTER, BREAK_AFTER_HUNG, ERROR, LONG_AGO, NOW, Freezer, Key, World
from invariants import Invariants

from poolkit.errors import NestedAcquire, OpenFailed, Overloaded, PoolClosed


def _known(slots: list[Any], state: Any) -> list[Known]:
    known = [Known(slot, slot.generation) for slot in slots]
    for each in known:
        each.patient = each.slot is state._patient
    return known


class View(Invariants):
    """A world, for the model's invariants to look at."""

    def __init__(self, freezer: Freezer, world: World, failures: int) -> None:
        s = world.state
        self.module, self.config, self.state, self.now = freezer.module, freezer.config, s, NOW
        self.generation, self.closed = s.generation, s.closed
        self.max_size, self.min_size = s.max_size, s.min_size
        self.ceiling = max(s.max_size, s.size)  # growth beyond it is looked for step by step
        self.idle = _known(world.idle, s)
        self.resetting, self.claimed = [], []  # the random model has those: here they would multiply the states
        self.moving = _known(world.moving, s)
        self.out = dict.fromkeys(_known(world.out, s))
        self.opening = _known(world.opening, s)
        self.queue = world.queue
        self.failures, self.rejections = failures, 0
        self.error = ERROR if failures else None  # type: ignore[assignment]
        self.retries = [NOW] * world.timers
        self.due_now = True  # the length of a pause is a matter of the model: here it is only ahead or past


class Step:
    """One event on one world: what stood there before, and the checks of what was ordered."""

    def __init__(self, freezer: Freezer, key: Key) -> None:
        self.freezer = freezer
        self.module = freezer.module
        self.config = freezer.config
        self.world = world = freezer.thaw(key)
        self.state = world.state
        self.queue = list(world.queue)  # as it has to be after the event, but for those who are woken
        self.live = {*world.idle, *world.moving, *world.out}  # slots whose resource somebody has to close
        self.uses = {slot: slot.uses for slot in self.live}
        self.moving = list(world.moving)
        self.out = set(world.out)
        self.opening = set(world.opening)
        self.returned: Any = None  # the slot that comes into the pool by this event
        self.failures = key.scalars[7]
        self.was_slow = key.slow
        self.failed = False  # the last attempt of this generation has
        self.was_size = self.state.size
        self.woken_done = 0
        self.was_out = len(self.out) + len(self.moving)
        self.acquired = 0
        self.count = dict.fromkeys(
            ("timeouts", "overloaded", "shed", "refused", "opened_total", "open_failures", "leaked"), 0
        )
        self.waited = 0
        self.reasons: dict[str, int] = {}
        self.lent: list[Any] = []
        self.may_grow = self.config.reserved if any(waiter.urgent for waiter in self.queue) else 0

    @property
    def coming(self) -> int:
        generation = self.state.generation
        return sum(slot.generation == generation for slot in self.opening)

    @property
    def broken(self) -> bool:
        return self.failures >= (BREAK_AFTER_HUNG if self.state._hung else BREAK_AFTER)

    @property
    def short(self) -> int:
        """How many opens are under way that those in line may count on."""
        return self.coming - (self.state._hung and self.state._patient is not None)

    # -- the orders ---------------------------------------------------------------------------------------------------

    def carry_out(self, orders: Any) -> None:
        """Do as a shell does, and check that each order has its reason."""
        if orders is None:
            return
        woken, doomed, opens, retry_in = orders.woken, orders.doomed, orders.opens, orders.retry_in
        for slot in doomed:
            assert slot in self.live, "ordered closed twice, or what was never open"
            assert slot.status == self.module.DEAD
            assert slot not in self.out, "a borrowed slot was ordered closed"
            assert slot not in self.moving, "a slot was ordered closed on its way to a borrower"
            self.live.discard(slot)
            self.reasons[slot.reason] = self.reasons.get(slot.reason, 0) + 1
        for waiter in woken:
            self.note_woken(waiter)
        for slot in opens:
            assert slot.status == self.module.OPENING
            assert slot not in self.opening, "the same slot was ordered opened twice"
            assert slot not in self.live
            assert not self.state.closed, "an open was ordered in a closed pool"
            assert 0 < slot.patience <= self.config.open_timeout
            self.opening.add(slot)
            slot.begun = 1
        if opens:
            self.check_opens(len(opens))
        if retry_in is not None:
            assert 0 <= retry_in <= AHEAD - NOW
            self.world.timers += 1

    def check_opens(self, count: int) -> None:
        s = self.state
        patient = s._patient is not None
        if self.failures:
            assert s._retry_at <= NOW, "an attempt before its time"
            assert self.short <= max(1, self.coming - count), "one attempt at a time, server away"
            room = s.max_size + self.may_grow - (len(s.slots) - count)
            assert patient or not s._hung or room < 2, "a server that is slow needs a patient attempt beside the short"
        wanted = self.short <= len(self.queue) or len(s.slots) - patient <= s.min_size
        assert wanted or (patient and count == 1), "more opens than anybody waits for, or min_size asks for"
        if patient:
            assert s._patient.patience == self.config.open_timeout, "the patient attempt has all the time"

    def note_woken(self, waiter: Any) -> None:
        assert waiter.done
        assert self.queue, "somebody was woken who did not wait"
        nested = isinstance(waiter.error, NestedAcquire)
        assert nested or self.queue[0] is waiter, "first come, first served"
        self.queue.remove(waiter)
        self.waited += 1
        assert (waiter.slot is None) != (waiter.error is None), "a slot or an error, not both and not neither"
        if waiter.slot is not None:
            assert waiter.slot is self.returned, "what is handed over is what has come"
            self.note_lent(waiter.slot)
            waiter.slot.holder, waiter.slot.scoped = waiter.holder, True
        else:
            self.note_refused(waiter)
        assert self.state.give_up(waiter, NOW) is None if waiter.slot is None else True

    def note_refused(self, waiter: Any) -> None:
        error, s = waiter.error, self.state
        if isinstance(error, Overloaded):
            assert s._codel is not None, "shed without a target_delay"
            assert self.was_slow, "shed in good times"
            assert waiter.asked_at == LONG_AGO, "a fresh waiter was shed"
            assert not waiter.urgent, "an urgent waiter was shed"
            assert self.queue, "the last in line was shed, and nobody was served for it"
            self.count["overloaded"] += 1
            self.count["shed"] += 1
        elif isinstance(error, OpenFailed):
            assert self.config.on_outage == "refuse"
            assert self.broken, "refused while the breaker is closed"
            assert not {*self.out, *self.moving}, "refused while a borrowed slot might come back"
            assert error.__cause__ is ERROR
            assert s._retry_at > NOW or self.coming or self.failed, "refused although an attempt is due"
            self.count["refused"] += 1
        elif isinstance(error, NestedAcquire):
            assert is_stuck(self, waiter.holder, waiter.urgent), "refused although a slot can come back"
            self.count["refused"] += 1
        else:
            assert isinstance(error, PoolClosed)
            assert s.closed

    def note_lent(self, slot: Any) -> None:
        s = self.state
        assert slot.status == self.module.OUT
        assert slot in self.live, "a dead slot was lent"
        assert slot not in self.out, "one slot, one borrower"
        assert slot.generation == s.generation, "lent although it is of an earlier generation"
        assert not s.closed, "lent by a closed pool"
        assert slot.expires > NOW, "lent although it is too old"
        assert self.config.max_uses is None or slot.uses <= self.config.max_uses, "lent too often"
        assert slot.since == NOW
        assert slot.uses == self.uses.get(slot, 0) + 1, "each loan is a use"
        self.lent.append(slot)
        self.out.add(slot)
        self.acquired += 1

    # -- the end of an event ------------------------------------------------------------------------------------------

    def finish(self) -> Key:
        """Check that what stands there now is what was there before, the event and the orders, and nothing else."""
        s, world = self.state, self.world
        assert s.orders() is None, "something was decided and not ordered"
        idle = list(s.idle)
        assert {*idle, *self.moving, *self.out} == self.live, "a resource was forgotten open, or lent in secret"
        stayed = [slot for slot in world.idle if slot in self.live and slot not in self.out and slot not in self.moving]
        if self.returned is not None and self.returned.status == self.module.IDLE and self.returned not in stayed:
            stayed.append(self.returned)
        assert idle == stayed, "the idle lie in the order in which they came"
        assert list(s.waiters) == self.queue
        assert s.failures == self.failures
        assert s.size <= max(s.max_size + self.may_grow, self.was_size), "above max_size, and no resize explains it"
        self.check_counters()
        world.idle, world.moving, world.out = idle, self.moving, list(self.out)
        world.opening, world.queue = list(self.opening), self.queue
        return self.freezer.freeze(world)

    def check_counters(self) -> None:
        s = self.state
        for name, value in self.count.items():
            assert getattr(s, name) == value, name
        assert s.ended + s.size - len(s.idle) - s.opening == self.was_out + self.acquired, "acquired"
        assert s.reasons == self.reasons
        assert s.wait_time.count == self.waited
        assert s.open_time.count == self.count["opened_total"]


def is_stuck(step: Step, who: int, urgent: bool) -> bool:  # noqa: FBT001
    """Whether one who holds a slot would wait for such as wait themselves."""
    s = step.state
    waiting = {waiter.holder for waiter in step.queue} | {who}
    return (
        not (step.opening or step.moving)
        and len(s.slots) >= s.max_size + (step.config.reserved if urgent else 0)
        and any(slot.scoped and slot.holder == who for slot in step.out)
        and all(slot.scoped and slot.holder in waiting for slot in step.out)
    )
