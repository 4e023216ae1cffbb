"""What the model writes down by itself, and how it carries out the orders of the state as a shell would."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

from poolkit.config import PoolConfig
from poolkit.errors import ConnectRejected, NestedAcquire, OpenFailed, Overloaded, PoolClosed


class Known:
    """What the model knows of one slot, from the day it was ordered."""

    def __init__(self, slot: Any, generation: int) -> None:
        self.slot = slot
        self.generation = generation
        self.patient = False  # the attempt beside the short ones of an outage
        self.failures = 0  # in a row, when it was ordered
        self.begun = 0.0
        self.born = 0.0
        self.uses = 0
        self.since = 0.0
        self.reported = False


class Books:
    """The shell and the bookkeeper: what is idle, out, being opened and waited for, found out independently."""

    module: ModuleType

    def begin(self, config: PoolConfig, luck: list[float]) -> None:
        self.config = config
        self.now = 1000.0
        self.state = self.module.PoolState(config, "model", itertools.cycle(luck).__next__)
        self.max_size, self.min_size = config.max_size, config.min_size
        self.ceiling = config.max_size  # max_size, and after a resize downwards what is still to go
        self.generation = 0
        self.closed = False
        self.opening: list[Known] = []
        self.idle: list[Known] = []
        self.resetting: list[Known] = []  # given back, the answer to their reset not read
        self.claimed: list[Known] = []  # of these, those whose answer somebody reads
        self.moving: list[Known] = []  # taken without the lock, and not looked at yet
        self.out: dict[Known, Any] = {}
        self.queue: list[Any] = []
        self.known: dict[Any, Known] = {}
        self.ended: set[Any] = set()  # slots ordered closed or taken away
        self.live: set[Any] = set()  # resources that somebody still has to close
        self.names = itertools.count()
        self.failures = 0
        self.rejections = 0  # of the failures in a row, the refused ones at the end
        self.failed_at = 0.0  # when the attempt began that failed last
        self.just_failed = False
        self.server_known = False  # how long its connects take
        self.error: Exception | None = None
        self.retries: list[float] = []  # when the shell was told to come back
        self.due_now = False
        self.demoted_at = -1000.0
        self.count = dict.fromkeys(("acquired", "timeouts", "overloaded", "refused", "opened", "failed", "leaked"), 0)
        self.queued_ended = 0
        self.used = 0.0
        self.reasons: dict[str, int] = {}

    # -- the shell: carry out what was ordered ----------------------------------------------------------------------

    def carry_out(self, orders: Any) -> None:
        """Do and check one set of orders."""
        if orders is None:
            return
        for slot in orders.doomed:
            self.note_end(slot)
        for waiter in orders.woken:
            self.note_woken(waiter)
        self.check_opens(orders.opens)
        for slot in orders.opens:
            assert slot not in self.known, "the same slot was ordered opened twice"
            assert not self.closed, "an open was ordered in a closed pool"
            self.known[slot] = known = Known(slot, self.generation)
            known.patient = slot is self.state._patient
            known.failures = self.failures
            known.begun = self.now
            self.opening.append(known)
            slot.begun = 1
        if orders.retry_in is not None:
            longest = self.module.LAST_REJECT_PAUSE if self.rejections else self.module.LAST_RETRY * 1.1
            assert 0 <= orders.retry_in <= longest
            self.retries.append(self.now + orders.retry_in)

    def check_opens(self, slots: list[Any]) -> None:
        patient = [slot for slot in slots if slot is self.state._patient]
        short = len(slots) - len(patient)
        if self.failures:
            assert short <= 1, "one attempt at a time while the server is away"
            assert not (short and self.coming), "one attempt at a time while the server is away"
        if patient:
            assert self.failures or not self.server_known, "a patient attempt, and the server is known"
            assert not any(k.patient for k in self.opening if k.generation == self.generation), "a second patient one"
            assert patient[0].patience == self.config.open_timeout
            assert short or self.coming or self.size < self.limit, "the patient attempt took the place of the short"
        wanted = self.coming + short <= len(self.queue) or self.size + short <= self.min_size
        assert wanted or not short, "more opens than anybody waits for, or min_size asks for"
        assert all(0 < slot.patience <= self.config.open_timeout for slot in slots)

    def note_end(self, slot: Any) -> None:
        known = self.known[slot]
        assert slot not in self.ended, "a slot was ordered closed twice"
        assert slot.status == "dead"
        assert known not in self.out, "a borrowed slot was ordered closed"
        assert known not in self.moving, "ordered closed on its way to a borrower"
        self.ended.add(slot)
        self.live.remove(slot.resource)
        for place in (self.idle, self.resetting, self.claimed):
            if known in place:
                place.remove(known)
        self.check_reason(known)
        self.reasons[slot.reason] = self.reasons.get(slot.reason, 0) + 1

    def check_reason(self, known: Known) -> None:
        reason, config = known.slot.reason, self.config
        if reason == "lifetime":
            assert config.max_lifetime is not None
            assert self.now - known.born >= config.max_lifetime * (1 - config.lifetime_jitter) - 1e-6
        elif reason == "idle":
            assert config.idle_timeout is not None
            assert self.now - known.since >= config.idle_timeout
            assert self.size >= self.min_size, "min_size is kept warm"
        elif reason == "uses":
            assert config.max_uses is not None
            assert known.uses >= config.max_uses
        elif reason == "drained":
            assert known.generation != self.generation
        else:
            assert reason in {"resized", "dropped", "broken", "demoted", "dead", "lost"}, reason

    def note_woken(self, waiter: Any) -> None:
        assert waiter.done
        assert self.queue, "somebody was woken who did not wait"
        nested = isinstance(waiter.error, NestedAcquire)
        assert nested or self.queue[0] is waiter, "first come, first served"
        self.queue.remove(waiter)
        self.queued_ended += 1
        assert (waiter.slot is None) != (waiter.error is None), "a slot or an error, not both and not neither"
        if waiter.slot is not None:
            self.note_lent(waiter.slot, waiter)
            return
        if isinstance(waiter.error, Overloaded):
            target = self.config.target_delay
            assert target is not None
            assert not waiter.urgent, "an urgent waiter was shed"
            assert self.now - waiter.asked_at > target, "a fresh waiter was shed"
            assert self.queue, "the last in line was shed, and nobody was served for it"
            self.count["overloaded"] += 1
        elif isinstance(waiter.error, OpenFailed):
            assert self.broken, "refused while the breaker is closed"
            assert self.config.on_outage == "refuse" or self.rejections, "refused where everyone is to wait"
            assert isinstance(waiter.error, ConnectRejected) == bool(self.rejections), "a refusal is no outage"
            assert not {*self.out, *self.moving, *self.claimed}, "refused while a borrowed slot might come back"
            assert waiter.error.__cause__ is self.error
            due = self.now >= self.state._retry_at and not self.just_failed
            assert not due or self.coming, "refused although an attempt is due"
            self.count["refused"] += 1
        elif nested:
            assert self.waits_in_vain(waiter), "refused although a slot can come back"
            self.count["refused"] += 1
        else:
            assert isinstance(waiter.error, PoolClosed)
            assert self.closed

    def waits_in_vain(self, waiter: Any) -> bool:
        """Whether it holds a slot and waits for such as wait themselves."""
        waiting = {waiter.holder, *(other.holder for other in self.queue)}
        holders = [(k.slot.scoped, k.slot.holder) for k in self.out]
        full = self.size >= self.max_size and not (self.opening or self.moving or self.claimed)
        return full and (True, waiter.holder) in holders and all(s and h in waiting for s, h in holders)

    def note_lent(self, slot: Any, borrower: Any) -> None:
        known = self.known[slot]
        assert slot.status == "out"
        assert known not in self.out, "one slot, one borrower"
        assert slot not in self.ended, "a dead slot was lent"
        assert slot.resource in self.live
        assert known.generation == self.generation, "lent although it is of an earlier generation"
        assert not self.closed, "lent by a closed pool"
        if self.config.max_lifetime is not None:
            assert self.now - known.born < self.config.max_lifetime, "lent although it is too old"
        assert known in self.idle or slot.idled == 0.0
        for place in (self.idle, self.resetting, self.claimed):
            if known in place:
                place.remove(known)
        slot.reset = None  # its borrower has read the answer
        if borrower is not None:
            slot.holder, slot.scoped = borrower.holder, borrower.holder is not None  # as a shell does for a `with`
        self.out[known] = borrower
        self.note_loan(known)

    def note_arrived(self, known: Known) -> None:
        """One taken without the lock is lent."""
        assert known.generation == self.generation, "lent although it is of an earlier generation"
        assert not self.closed, "lent by a closed pool"
        self.out[known] = None
        self.note_loan(known)

    def note_loan(self, known: Known) -> None:
        slot = known.slot
        known.uses += 1
        assert self.config.max_uses is None or known.uses <= self.config.max_uses, "lent too often"
        assert slot.since == self.now
        known.since = self.now
        known.reported = False
        self.count["acquired"] += 1

    def settle(self, known: Known) -> None:
        """After a return or an open: the slot lies idle, went to a waiter, or was doomed."""
        if known.slot.status == "idle":
            known.since = self.now
            self.idle.append(known)
        elif known.slot.status == "resetting":
            self.resetting.append(known)

    @property
    def broken(self) -> bool:
        return bool(self.rejections) or self.failures >= (
            self.module.BREAK_AFTER_HUNG if self.state._hung else self.module.BREAK_AFTER
        )

    @property
    def size(self) -> int:
        here = len(self.idle) + len(self.resetting) + len(self.claimed)
        return here + len(self.moving) + len(self.out) + len(self.opening)

    @property
    def coming(self) -> int:
        hung = self.state._hung  # before that, the patient one is an attempt like the others
        return sum(known.generation == self.generation and not (hung and known.patient) for known in self.opening)

    @property
    def urgent(self) -> int:
        return sum(waiter.urgent for waiter in self.queue)

    @property
    def limit(self) -> int:
        """How many slots there may be for who waits now."""
        return self.max_size + (self.config.reserved if self.urgent else 0)
