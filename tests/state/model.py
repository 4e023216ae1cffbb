"""A second, slower opinion about `PoolState`: a hypothesis state machine that plays a shell and keeps its own books.

It calls the state as a shell would, carries out the orders it gets (an order not carried out is a fault of its own),
and after every step compares the state with what it wrote down by itself. `checks_of(module)` makes the machine for any
module that looks like `poolkit.state`, so that the mutants can be driven through the same rules.

The rules are weighted by hand: `close` ends a run, so it is rare; asking and returning are common.
"""

# ruff: noqa: FBT001  hypothesis passes arguments by name
from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from books import Known
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from invariants import Invariants

from poolkit.config import PoolConfig
from poolkit.errors import ConnectRejected, LeaseError, NestedAcquire, OpenFailed, Overloaded, PoolClosed

HOLDERS = ("ann", "bob", "cid", None)

configs = st.integers(1, 4).flatmap(
    lambda size: st.builds(
        PoolConfig,
        max_size=st.just(size),
        min_size=st.integers(0, min(size, 2)),
        max_waiting=st.sampled_from((None, None, 0, 1, 2)),
        reserved=st.sampled_from((0, 0, 1, 2)),
        on_outage=st.sampled_from(("refuse", "refuse", "wait")),
        open_timeout=st.sampled_from((0.5, 3.0)),
        max_lifetime=st.sampled_from((None, 3.0)),
        lifetime_jitter=st.sampled_from((0.0, 0.5)),
        idle_timeout=st.sampled_from((None, 2.0)),
        check_after=st.sampled_from((None, 0.5)),
        max_uses=st.sampled_from((None, None, 1, 3)),
        order=st.sampled_from(("lifo", "fifo")),
        target_delay=st.sampled_from((None, 0.0625)),
        leak_after=st.sampled_from((None, 1.0)),
    )
)
# Powers of two, so that sums are exact and "the very moment" happens: short ones most, a few longer than any limit.
pauses = st.sampled_from((0.125, 0.25, 0.5, 1.0, 1.25, 2.0, 3.0))
moments = st.sampled_from((0.0, 0.0, 0.125, 0.25))
numbers = st.integers(0, 9)


class Model(Invariants, RuleBasedStateMachine):
    """The rules: what may be done with a pool, at any time, in any order."""

    @initialize(config=configs, luck=st.lists(st.sampled_from((0.0, 0.25, 0.5, 0.75)), min_size=1, max_size=3))
    def start(self, config: PoolConfig, luck: list[float]) -> None:
        self.begin(config, luck)

    # -- borrowing --------------------------------------------------------------------------------------------------

    def expected_refusal(self, holder: Any, *, urgent: bool) -> type[Exception] | None:
        """What the rules of the pool's theory say to a newcomer who finds no fit idle slot."""
        if self.closed:
            return PoolClosed
        probe = self.now >= self.state._retry_at and not self.coming
        refuses = self.config.on_outage == "refuse" or self.rejections
        if self.broken and not (self.out or self.moving or self.claimed) and not probe and refuses:
            return ConnectRejected if self.rejections else OpenFailed
        size = len(self.moving) + len(self.out) + len(self.opening) + len(self.claimed)
        full = size >= self.max_size + (self.config.reserved if urgent else 0)
        if holder is not None and not self.opening and full and self.is_stuck(holder):
            return NestedAcquire
        limit = self.config.max_waiting
        uncovered = len(self.queue) - self.urgent - len(self.opening)
        full = size >= self.max_size or self.failures
        if limit is not None and not urgent and full and uncovered >= limit:
            return Overloaded
        return None

    def is_stuck(self, holder: Any) -> bool:
        """Whether this holder and such as wait already have everything."""
        waiting = {holder, *(waiter.holder for waiter in self.queue)}
        mine = any(k.slot.scoped and k.slot.holder == holder for k in self.out)
        return (
            mine
            and not self.moving
            and not self.claimed
            and all(k.slot.scoped and k.slot.holder in waiting for k in self.out)
        )

    def waits(self, holder: Any) -> bool:
        """Whether it stands in line, and so can't ask for another meanwhile, or have taken one."""
        return holder is not None and any(waiter.holder == holder for waiter in self.queue)

    def fit_idle(self) -> bool:
        return any(known.slot.expires > self.now for known in (*self.idle, *self.resetting))

    @rule(holder=st.sampled_from(HOLDERS), scoped=st.booleans())
    def borrow(self, holder: Any, scoped: bool) -> None:
        """Do as the shells do: look for an idle slot, and wait where there is none."""
        if self.waits(holder):
            return
        slot = self.take_idle()
        if slot is None:
            self.wait(holder)
        else:
            slot.holder, slot.scoped = holder, scoped

    @rule(holder=st.sampled_from(HOLDERS))
    def borrow_again(self, holder: Any) -> None:
        self.borrow(holder, scoped=holder is not None)

    @rule(turns=st.integers(3, 5))
    def borrow_in_turns(self, turns: int) -> None:
        """Two who have something and want more: soon all is theirs, and the last to ask would wait for himself."""
        for turn in range(turns):
            self.borrow_again(HOLDERS[turn % 2])

    @rule(holder=st.sampled_from(HOLDERS), urgent=st.booleans())
    def ask_at_once(self, holder: Any, urgent: bool) -> None:
        """Somebody else may have returned a slot between a caller's look and its asking."""
        if not self.waits(holder):
            self.wait(holder, urgent=urgent)

    @rule()
    def ask_urgently(self) -> None:
        """Probes come at any time, and stand before all who are not urgent."""
        self.wait(None, urgent=True)

    def take_idle(self) -> Any:
        fit = [known for known in self.idle if known.slot.expires > self.now]
        unread = [known for known in self.resetting if known.slot.expires > self.now]
        slot = self.state.take(self.now)
        assert (slot is not None) == bool(fit or unread), "take must find a fit slot, and no other"
        if slot is not None:
            assert not self.queue, "somebody was overtaken"
            expected = unread[0] if not fit else fit[-1] if self.config.order == "lifo" else fit[0]
            assert slot is expected.slot, "an idle one first, in order; else the one whose reset was sent first"
            assert math.isclose(slot.idled, self.now - expected.since if fit else 0.0, abs_tol=1e-6)
            self.note_lent(slot, None)
        self.carry_out(self.state.orders())
        return slot

    @precondition(lambda self: self.idle)
    @rule()
    def take_without_the_lock(self) -> None:
        """What lies idle is taken in one step; whatever happens next happens before the borrower looks at it."""
        slot = self.state.pop()
        known = self.idle.pop(-1 if self.config.order == "lifo" else 0)
        assert slot is known.slot, f"{self.config.order} order"
        self.moving.append(known)

    @precondition(lambda self: self.moving)
    @rule(number=numbers, holder=st.sampled_from(HOLDERS), scoped=st.booleans())
    def arrive(self, number: int, holder: Any = None, *, scoped: bool = False) -> None:
        """What has become too old on the way is ended, and the place is used for whoever waits; else it is lent."""
        known = self.moving.pop(number % len(self.moving))
        slot = known.slot
        slot.uses += 1
        slot.status, slot.idled, slot.since = self.module.OUT, self.now - slot.since, self.now
        if slot.expires > self.now:
            self.note_arrived(known)
            slot.holder, slot.scoped = None if self.waits(holder) else holder, scoped
            return
        self.count["acquired"] += 1
        self.state.outlived(slot, self.now)
        self.carry_out(self.state.orders())
        assert slot in self.ended, "too old to be lent, and kept"

    @precondition(lambda self: self.moving)
    @rule(number=numbers, dice=st.integers(0, 3))
    def never_arrive(self, number: int, dice: int) -> None:
        """An interrupt came in between: nobody has it, and nobody refers to it."""
        if dice:
            return
        slot = self.moving.pop(number % len(self.moving)).slot
        self.carry_out(self.state.recover([slot], self.now))
        assert slot in self.ended

    def wait(self, holder: Any, *, urgent: bool = False) -> None:
        idle = self.fit_idle()
        expected = None if idle else self.expected_refusal(holder, urgent=urgent)
        waiter = self.module.Waiter(holder, urgent=urgent)
        orders = self.state.ask(waiter, self.now)
        assert waiter.asked_at == self.now
        if expected is not None:
            assert waiter.done
            assert type(waiter.error) is expected
            self.count["overloaded"] += expected is Overloaded
            self.count["refused"] += expected in {OpenFailed, ConnectRejected, NestedAcquire}
        elif idle:
            assert waiter.done
            self.note_lent(waiter.slot, waiter)
        else:
            assert waiter.error is None, waiter.error
            self.queue.insert(self.urgent if urgent else len(self.queue), waiter)
        self.carry_out(orders)

    # -- returning --------------------------------------------------------------------------------------------------

    def returned(self, number: int) -> Known:
        known = list(self.out)[number % len(self.out)]
        del self.out[known]
        self.used += self.now - known.since
        known.slot.scoped = False
        return known

    @precondition(lambda self: self.out)
    @rule(number=numbers, held=moments)
    def give(self, number: int, held: float = 0.0, *, dirty: bool = False) -> None:
        self.now += held
        surplus = self.is_surplus()
        known = self.returned(number)
        known.slot.reset = object() if dirty else None
        orders = self.state.give(known.slot, self.now)
        spent = self.config.max_uses is not None and known.uses >= self.config.max_uses
        stale = known.generation != self.generation or self.closed
        if stale or spent or surplus:
            assert known.slot.status == "dead", "it should have been retired"
        self.settle(known)
        self.carry_out(orders)

    @precondition(lambda self: self.out)
    @rule(number=numbers, held=moments)
    def give_dirty(self, number: int, held: float) -> None:
        """A reset was sent with the return; whoever gets the slot reads the answer."""
        self.give(number, held, dirty=True)

    @precondition(lambda self: len(self.out) > 1)
    @rule()
    def give_all_dirty(self) -> None:
        """Many resets under way at once, and nothing idle: which one is read first shows."""
        while self.out:
            self.give(0, dirty=True)

    @precondition(lambda self: self.resetting)
    @rule(number=numbers)
    def claim_reset(self, number: int) -> None:
        """Somebody reads the answer in the background; meanwhile nobody else can have the slot."""
        known = self.resetting.pop(number % len(self.resetting))
        assert self.state.claim_reset(known.slot)
        assert not self.state.claim_reset(known.slot), "two read one answer"
        self.claimed.append(known)

    @rule()
    def claim_resets(self) -> None:
        claimed = self.state.claim_resets()
        assert claimed == [known.slot for known in self.resetting]
        self.claimed += self.resetting
        self.resetting = []

    @precondition(lambda self: self.claimed)
    @rule(number=numbers, answered=st.booleans())
    def reset_done(self, number: int, *, answered: bool = True) -> None:
        """With an answer it is idle, without one it goes on waiting for it; a waiter gets it in either case."""
        surplus = self.is_surplus()
        known = self.claimed[number % len(self.claimed)]
        if answered:
            known.slot.reset = None
        orders = self.state.reset_done(known.slot, self.now)
        if known.generation != self.generation or surplus:
            assert known.slot.status == "dead", "it should have been retired"
        if known.slot.status in {"idle", "resetting"}:
            self.claimed.remove(known)
            self.settle(known)
        self.carry_out(orders)

    @precondition(lambda self: self.claimed)
    @rule(number=numbers)
    def reset_failed(self, number: int) -> None:
        known = self.claimed[number % len(self.claimed)]
        self.carry_out(self.state.reset_failed(known.slot, self.now))
        assert known.slot in self.ended

    @precondition(lambda self: self.resetting)
    @rule()
    def reset_fails_a_waiter(self) -> None:
        """A waiter arrives while the answers are read, and the first is an error: the waiter gets its place."""
        self.claim_resets()
        self.ask_at_once(None, urgent=False)
        self.reset_failed(0)

    def is_surplus(self) -> bool:
        """Whether what comes now is one too many, and nobody urgent may have it."""
        over = self.size - self.max_size
        return over > (self.config.reserved if self.urgent else 0)

    @precondition(lambda self: self.out)
    @rule(number=numbers)
    def demoted(self, number: int) -> None:
        """The server takes no writes: what was opened when this was is ended, but not again and again."""
        known = self.returned(number)
        drains = known.generation == self.generation and self.now - self.demoted_at >= self.module.DEMOTION_PAUSE
        if drains:
            self.demoted_at = self.now
            self.generation += 1
            self.due_now = True
        self.carry_out(self.state.demoted(known.slot, self.now))
        assert known.slot.reason == "demoted"
        assert self.state.generation == self.generation
        assert not (drains and (self.idle or self.resetting))

    @precondition(lambda self: self.out)
    @rule(number=numbers, held=moments)
    def give_too(self, number: int, held: float) -> None:
        self.give(number, held)

    @precondition(lambda self: self.out)
    @rule(number=numbers, held=st.sampled_from((0.25, 0.5)))
    def give_after_a_while(self, number: int, held: float) -> None:
        """Work takes its time, and the queue grows."""
        self.wait(None)
        self.give(number, held)

    @precondition(lambda self: self.out)
    @rule(number=numbers)
    def drop(self, number: int) -> None:
        known = self.returned(number)
        self.carry_out(self.state.drop(known.slot, self.now, "dropped"))
        assert known.slot in self.ended

    @precondition(lambda self: self.out)
    @rule(number=numbers, dice=st.integers(0, 3))
    def forget(self, number: int, dice: int) -> None:
        """Its borrower has dropped it: nobody refers to it any more."""
        if dice:
            return
        known = self.returned(number)
        self.carry_out(self.state.recover([known.slot], self.now))
        assert known.slot in self.ended
        assert known.slot.reason == "lost"

    @precondition(lambda self: self.out)
    @rule(number=numbers)
    def found_dead(self, number: int) -> None:
        """What lay idle as long as one that was found dead after a long time is ended with it, and nothing else is."""
        known = self.returned(number)
        limit = math.inf if self.config.check_after is None else self.config.check_after
        doubtful = known.slot.idled > limit
        seen = known.slot.since - known.slot.idled
        expected = {k.slot for k in self.idle if doubtful and k.since <= seen} | {known.slot}
        ended = set(self.ended)
        self.carry_out(self.state.found_dead(known.slot, self.now))
        assert self.ended - ended == expected

    @precondition(lambda self: self.out)
    @rule(number=numbers)
    def detach(self, number: int) -> None:
        known = self.returned(number)
        orders = self.state.detach(known.slot, self.now)
        assert orders is None or known.slot not in orders.doomed, "what was detached is the borrower's to close"
        self.ended.add(known.slot)
        self.live.remove(known.slot.resource)
        self.reasons["detached"] = self.reasons.get("detached", 0) + 1
        self.carry_out(orders)

    @precondition(lambda self: any(waiter is None for waiter in self.out.values()))
    @rule(number=numbers, held=moments)
    def close_early(self, number: int, held: float) -> None:
        """Its borrower closes it in the middle of the block: another slot has it, and the old one is of no more use."""
        unhurried = [known for known, waiter in self.out.items() if waiter is None]
        known = unhurried[number % len(unhurried)]
        parted = self.state.give_early(known.slot.resource)
        assert parted is not None
        old, known.slot = parted
        self.known[known.slot] = self.known.pop(old)
        assert old.status == "returned"
        assert old not in self.state.slots
        assert self.state.give_early("what nobody has borrowed") is None
        for way, arguments in (("give", ()), ("drop", ("again",))):
            try:
                getattr(self.state, way)(old, self.now, *arguments)
            except LeaseError:
                continue
            raise AssertionError("the end of a lease reached the next borrower's resource")
        self.give(list(self.out).index(known), held)

    @precondition(lambda self: self.ended or self.idle or self.resetting)
    @rule(way=st.sampled_from(("give", "drop")))
    def return_twice(self, way: str) -> None:
        """What is not out can't be given back, and trying changes nothing."""
        slots = [*self.ended, *(known.slot for known in (*self.idle, *self.resetting))]
        arguments = () if way == "give" else ("again",)
        try:
            getattr(self.state, way)(slots[0], self.now, *arguments)
        except LeaseError:
            return
        raise AssertionError("a second return was accepted")

    # -- leaving the line -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.queue)
    @rule(number=numbers, timed_out=st.booleans())
    def give_up(self, number: int, timed_out: bool) -> None:
        waiter = self.queue.pop(number % len(self.queue))
        self.queued_ended += 1
        self.count["timeouts"] += timed_out
        self.carry_out(self.state.give_up(waiter, self.now, timed_out=timed_out))
        assert waiter.done
        assert waiter.slot is None

    @precondition(lambda self: any(self.out.values()))
    @rule(number=numbers)
    def give_up_just_served(self, number: int) -> None:
        """Cancelled in the moment of the hand-over: the slot goes on to the next in line."""
        known, waiter = [(k, w) for k, w in self.out.items() if w is not None][
            number % sum(map(bool, self.out.values()))
        ]
        self.out[known] = None
        if waiter.slot is None:
            return
        del self.out[known]
        self.used += self.now - known.since
        known.slot.scoped = False  # no block was ever entered with it
        orders = self.state.give_up(waiter, self.now)
        assert waiter.slot is None
        self.settle(known)
        self.carry_out(orders)

    # -- opening ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.opening)
    @rule(number=numbers, took=moments)
    def opened(self, number: int, took: float = 0.0) -> None:
        self.now += took
        surplus = self.is_surplus()
        known = self.opening.pop(number % len(self.opening))
        resource = f"resource {next(self.names)}"
        self.live.add(resource)
        self.count["opened"] += 1
        known.born = self.now
        if known.generation == self.generation:
            self.failures, self.error, self.due_now, self.server_known = 0, None, False, True
            self.rejections = 0
            for other in self.opening:
                other.patient = False  # from now on an attempt like the others
        orders = self.state.opened(known.slot, resource, self.now, 0.25)
        self.settle(known)
        self.carry_out(orders)
        assert known.slot in self.ended or not surplus, "a surplus was opened and kept"
        if known.generation != self.generation:
            assert known.slot in self.ended, "what was begun before a drain must not enter after it"

    @precondition(lambda self: self.opening)
    @rule(number=numbers, took=moments)
    def opened_too(self, number: int, took: float) -> None:
        self.opened(number, took)

    @precondition(lambda self: self.opening)
    @rule(number=numbers, kind=st.sampled_from(("away", "away", "refused")))
    def open_failed(self, number: int, kind: str = "away") -> None:
        known = self.opening.pop(number % len(self.opening))
        self.count["failed"] += 1
        error = OSError(f"attempt {self.count['failed']}")
        first = known.failures == self.failures  # of many begun together, the first one to fail
        if known.generation == self.generation and (first or self.failures):  # else it is left over from an outage
            self.error = error
            self.just_failed = True
            if first:
                self.failures += 1
                self.rejections = self.rejections + 1 if kind == "refused" else 0
                self.failed_at = known.begun
                self.due_now = False
        self.ended.add(known.slot)
        orders = self.state.open_failed(known.slot, error, self.now, kind)
        assert known.slot.status == "dead"
        self.carry_out(orders)
        self.just_failed = False
        refuses = self.config.on_outage == "refuse" or self.rejections
        hopeless = refuses and self.broken and not (self.out or self.moving or self.claimed or self.coming)
        if hopeless and known.generation == self.generation:
            assert not self.queue, "nobody can be served, and nobody was told"

    @precondition(lambda self: self.opening and self.failures)
    @rule(number=numbers)
    def open_failed_again(self, number: int) -> None:
        self.open_failed(number)

    @precondition(lambda self: self.retries)
    @rule()
    def retry(self) -> None:
        """A shell comes back when it was told to, not before."""
        moment = self.retries.pop(0)
        self.now = max(self.now, moment)
        self.carry_out(self.state.retry(self.now))

    @precondition(lambda self: self.opening)
    @rule(attempts=st.sampled_from((3, 5, 10, 20)))
    def outage_lasts(self, attempts: int) -> None:
        """Failures come in rows; single ones never open the breaker."""
        for _ in range(attempts):
            if self.opening:
                self.open_failed(0)
            elif self.retries:
                self.retry()

    @rule(seconds=pauses, sweep=st.booleans())
    def quiet(self, seconds: float, sweep: bool) -> None:
        """Everybody is served and has returned, what was under way has come, and time passes over idle slots."""
        self.serve_everyone()
        while self.moving:
            self.arrive(0)
        while self.out:
            self.give(0)
        while self.claimed:
            self.reset_done(0)
        while self.opening:
            self.opened(0)
        self.now += seconds
        if sweep:
            self.sweep()

    # -- the pool as a whole ----------------------------------------------------------------------------------------

    @rule(seconds=pauses)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.look_for_leaks()

    @rule()
    def sweep(self) -> None:
        limit = self.config.idle_timeout
        self.look_for_leaks()
        self.carry_out(self.state.sweep(self.now))
        for known in self.idle:
            assert known.slot.expires > self.now, "an expired slot survived a sweep"
            if limit is not None and self.now - known.since >= limit:
                assert self.size <= self.min_size, "an idle slot survived a sweep"
        if not (self.closed or self.failures):
            assert self.size >= self.min_size, "a sweep refills to min_size"

    @rule(dice=st.integers(0, 2))
    def drain(self, dice: int) -> None:
        if dice:
            return
        self.generation += 1
        self.due_now = True
        self.carry_out(self.state.drain(self.now))
        assert not self.idle
        assert not self.resetting
        if self.queue and self.size < self.max_size and not self.closed:
            assert self.coming, "a new generation is tried at once"

    @rule(size=st.sampled_from((1, 1, 2, 3, 5)), least=st.sampled_from((None, 0, 1)))
    def resize(self, size: int, least: int | None) -> None:
        self.ceiling = max(size, self.size)
        self.max_size = size
        self.min_size = min(self.min_size, size) if least is None else least
        self.carry_out(self.state.resize(size, self.now, least))

    @rule(dice=st.integers(0, 14))
    def close(self, dice: int) -> None:
        """Rarely, or most runs would be over before anything happened."""
        if dice or self.closed:
            return
        self.closed = True
        self.generation += 1
        self.carry_out(self.state.close(self.now))

    @rule()
    def mend(self) -> None:
        """Books that are right are left as they are; at most it refills to min_size, as a sweep would."""
        for call in (self.state.mend, lambda now, lost: self.state.recover(lost, now)):
            orders = call(
                self.now, [known.slot for known in (*self.idle, *self.resetting)]
            )  # what lies there has not been lost
            assert orders is None or not orders.doomed
            self.carry_out(orders)

    @precondition(lambda self: self.idle)
    @rule()
    def interrupted_while_taking(self) -> None:
        """A slot that has left the idle and reached nobody is ended, and those who wait get its place."""
        slot = self.state.idle.pop()
        self.carry_out(self.state.mend(self.now, [slot]))
        assert slot in self.ended

    def look_for_leaks(self) -> None:
        late = self.state.overdue(self.now)
        limit = math.inf if self.config.leak_after is None else self.config.leak_after
        expected = {k.slot for k in self.out if self.now - k.since > limit and not k.reported}
        assert set(late) == expected, "each overdue lease is reported once"
        for slot in late:
            self.known[slot].reported = True
        self.count["leaked"] += len(late)

    # -- the end ----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Everybody who waits is served once the server is there, and a closed pool ends empty."""
        if not hasattr(self, "state"):
            return
        self.serve_everyone()
        if not self.closed:
            self.close(dice=0)
        while self.moving or self.out or self.opening or self.claimed:
            if self.moving:
                self.arrive(0)
            elif self.claimed:
                self.reset_done(0)
            elif self.opening:
                self.opened(0)
            else:
                self.give(0)
            self.sizes()
        assert not self.live, "closed, and something is still open"
        assert self.state.size == 0
        assert self.ended == set(self.known)

    def serve_everyone(self) -> None:
        for _ in range(200 + 4 * len(self.queue)):
            self.sizes()
            self.nobody_waits_for_nothing()
            if not self.queue:
                return
            if self.moving:
                self.arrive(0)
            elif self.claimed:
                self.reset_done(0)
            elif self.opening:
                self.opened(0)
            elif self.out:
                self.give(0)
            else:
                assert self.retries, "a lost wake-up"
                self.retry()
        raise AssertionError("somebody waits for ever")


def checks_of(module: ModuleType) -> type[Model]:
    """Make the machine that checks `module.PoolState`."""
    return type("ModelOf" + module.__name__.replace(".", "_"), (Model,), {"module": module})
