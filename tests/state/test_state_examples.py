"""PoolState by example: the numbers, the texts, and the sequences that once went wrong. The rules are in test_model."""

from __future__ import annotations

import asyncio

import pytest

from poolkit import LeaseError, NestedAcquire, OpenFailed, Overloaded, PoolClosed, PoolConfig
from poolkit.state import BREAK_AFTER, DEAD, IDLE, OUT, PoolState, Waiter

NOW = 1000.0


class Pool:
    """A PoolState and somebody who carries out its orders: connects succeed at once unless `hold` is set."""

    def __init__(self, *, hold: bool = False, luck: float = 0.5, **settings) -> None:
        self.now = NOW
        self.state = PoolState(PoolConfig(**settings), "shop", lambda: luck)
        self.hold = hold
        self.coming = []
        self.closed = []
        self.retries = []

    def carry_out(self, orders) -> None:
        if orders is None:
            return
        self.closed += [slot.reason for slot in orders.doomed]
        if orders.retry_in is not None:
            self.retries.append(self.now + orders.retry_in)
        self.coming += orders.opens
        if not self.hold:
            while self.coming:
                self.open()

    def open(self) -> None:
        self.carry_out(self.state.opened(self.coming.pop(0), object(), self.now, 0.1))

    def fail(self, error: BaseException | None = None) -> None:
        self.carry_out(self.state.open_failed(self.coming.pop(0), error or OSError("refused"), self.now))

    def ask(self, holder=None, *, urgent: bool = False) -> Waiter:
        waiter = Waiter(holder, urgent=urgent)
        self.carry_out(self.state.ask(waiter, self.now))
        return waiter

    def give(self, slot) -> None:
        self.carry_out(self.state.give(slot, self.now))

    def drop(self, slot) -> None:
        self.carry_out(self.state.drop(slot, self.now, "dropped"))

    def retry(self) -> None:
        self.now = max(self.now, self.retries.pop(0))
        self.carry_out(self.state.retry(self.now))

    def break_down(self, failures: int = BREAK_AFTER) -> None:
        """Fail so many times in a row; the connects under way have to be there."""
        for _ in range(failures):
            if not self.coming:
                self.retry()
            self.fail()


def test_backoff_grows_by_a_quarter_up_to_a_bound():
    """50, 62, 78 ... 500 ms between attempts: a restart is found quickly, an outage is not stormed."""
    pool = Pool(hold=True)
    pool.ask()
    pauses = []
    for _ in range(13):
        pool.fail()
        if pool.state.broken:
            pool.carry_out(pool.state.ask(Waiter(), pool.now))
            pauses.append(pool.state._retry_at - pool.now)
            pool.now = pool.state._retry_at
            pool.ask()
        else:
            pauses.append(pool.retries[-1] - pool.now)
            pool.retry()
    assert pauses == pytest.approx([0.05 * 1.25**n for n in range(11)] + [0.5, 0.5])


def test_service_is_back_within_a_quarter_of_the_outage():
    """However long it lasted, up to the bound: no attempt is further off than a quarter of the time since the first."""
    pool = Pool(hold=True, on_outage="wait")
    pool.ask()
    for _ in range(20):
        pool.fail()
        pause = pool.retries[-1] - pool.now
        assert pause <= max(0.05, min(0.5, (pool.now - NOW) / 4 + 0.05)) + 1e-9
        pool.retry()


@pytest.mark.parametrize(("luck", "pause"), [(0.0, 0.045), (1.0, 0.055)])
def test_backoff_has_jitter(luck, pause):
    """A tenth either way, so that a hundred processes do not knock together."""
    pool = Pool(hold=True, luck=luck)
    pool.ask()
    pool.fail()
    assert pool.retries == pytest.approx([NOW + pause])


def test_an_attempt_that_took_its_time_was_a_pause_as_well():
    """A server that swallows everything is asked again at once; not so where the attempt was cut off from our side."""
    for error, pause in ((TimeoutError("no answer"), 0.0), (asyncio.CancelledError(), 0.05)):
        pool = Pool(hold=True, on_outage="wait")
        pool.ask()
        pool.now += 3
        pool.fail(error)
        assert pool.state._retry_at <= pool.now + pause
        assert len(pool.coming) == (not pause)
        assert len(pool.retries) == bool(pause)


def test_failures_of_one_moment_count_once():
    """Ten connects refused together are one failure, not ten: the breaker measures time, not size."""
    pool = Pool(hold=True, max_size=10)
    for _ in range(10):
        pool.ask()
    for _ in range(10):
        pool.fail()
    assert pool.state.failures == 1
    assert len(pool.retries) == 1


def test_the_eighth_failure_refuses_those_who_wait():
    """The error has the cause, the number of attempts and when the next one is due."""
    pool = Pool(hold=True)
    waiter = pool.ask()
    pool.break_down(7)
    assert not waiter.done
    pool.break_down(1)
    error = waiter.error
    assert isinstance(error, OpenFailed)
    assert str(error) == (
        "pool 'shop': no connection can be opened (8 attempts failed in a row, the next one in 0.24 s): "
        "OSError: refused"
    )
    assert isinstance(error.__cause__, OSError)
    assert error.retry_after == pytest.approx(0.238, abs=0.001)
    assert error.waited == pytest.approx(0.754, abs=0.001)


def test_with_the_breaker_open_one_is_let_in_as_the_probe():
    """When the next attempt is due, the first to ask waits for it; the others are refused meanwhile."""
    pool = Pool(hold=True)
    pool.ask()
    pool.break_down()
    assert isinstance(pool.ask().error, OpenFailed)
    pool.now += 1
    probe, other = pool.ask(), pool.ask()
    assert not probe.done
    assert isinstance(other.error, OpenFailed)
    pool.open()
    assert probe.slot is not None
    assert not pool.state.broken
    assert pool.ask().error is None


def test_a_retry_that_comes_too_early_is_ordered_again():
    """Timers may fire a hair too soon; the attempt is not lost for that."""
    pool = Pool(hold=True)
    pool.ask()
    pool.fail()
    pool.carry_out(pool.state.retry(pool.now + 0.01))
    assert not pool.coming
    assert len(pool.retries) == 2


def test_a_drain_during_an_outage_tries_at_once():
    """The new generation may have another address: those who wait are not refused for the old one's failures."""
    pool = Pool(hold=True, max_size=1)
    waiter = pool.ask()
    pool.break_down(7)
    pool.retry()
    pool.carry_out(pool.state.drain(pool.now))
    pool.fail()  # the old generation's: the eighth failure, but it tells nothing
    assert not waiter.done
    assert len(pool.coming) == 1
    pool.open()
    assert waiter.slot is not None


def test_lifetimes_are_shortened_by_luck():
    """lifetime_jitter is the share of max_lifetime that may be taken off."""
    for luck, lifetime in ((0.0, 100.0), (0.5, 95.0), (1.0, 90.0)):
        pool = Pool(luck=luck, max_lifetime=100, lifetime_jitter=0.1)
        slot = pool.ask().slot
        assert slot.expires == pytest.approx(NOW + lifetime)


def test_close_orders_the_idle_closed():
    """What lay idle is among the orders, once."""
    pool = Pool(max_size=3)
    slots = [pool.ask().slot for _ in range(3)]
    for slot in slots[:2]:
        pool.give(slot)
    pool.carry_out(pool.state.close(pool.now))
    assert pool.closed == ["drained", "drained"]
    pool.give(slots[2])
    assert pool.closed == ["drained"] * 3
    assert pool.state.size == 0
    assert isinstance(pool.ask().error, PoolClosed)


def test_what_came_back_since_the_look_is_taken_before_any_refusal():
    """A newcomer with max_waiting=0 finds a slot that was returned between its look and its asking."""
    pool = Pool(max_size=1, max_waiting=0)
    slot = pool.ask().slot
    assert isinstance(pool.ask().error, Overloaded)
    pool.give(slot)
    assert pool.ask().slot is slot


def test_a_surplus_that_was_being_opened_is_not_kept():
    """Made smaller while a connect was under way: it is closed when it arrives, though somebody waits."""
    pool = Pool(hold=True, max_size=2)
    first, second = pool.ask(), pool.ask()
    pool.open()
    pool.carry_out(pool.state.resize(1, pool.now))
    pool.open()
    assert pool.closed == ["resized"]
    assert not second.done
    pool.give(first.slot)
    assert second.slot is first.slot


def test_the_last_in_line_is_served_however_old():
    """Under CoDel the old are refused for the fresh; where nobody is fresher, the old one is served."""
    pool = Pool(max_size=1, target_delay=0.1)
    slot = pool.ask().slot
    crowd = []
    for _ in range(6):
        crowd += [pool.ask(), pool.ask()]
        pool.now += 1.5
        pool.give(slot)  # to whoever is served; with one connection it is always this one
        assert slot.status == OUT
    assert any(isinstance(waiter.error, Overloaded) for waiter in crowd)
    assert crowd[-1].slot is slot
    assert all(waiter.done for waiter in crowd)


def test_overloaded_says_when_the_queue_will_have_drained():
    """Retry-After comes from what a borrowing takes on average."""
    pool = Pool(max_size=2, max_waiting=1)
    slot, other = pool.ask().slot, pool.ask().slot
    pool.now += 6
    pool.give(slot)
    pool.ask()
    pool.now += 2
    pool.give(other)
    pool.ask()
    pool.ask()
    error = pool.ask().error
    assert isinstance(error, Overloaded)
    assert error.retry_after == pytest.approx(2 * (6 + 8) / 2 / 2)
    assert str(error) == "pool 'shop': 1 are waiting for 2 connections already (max_waiting=1)"


def test_nested_borrowers_are_told_how_many_they_hold():
    """The one who holds everything inside `with` blocks can't wait for itself."""
    pool = Pool(max_size=2)
    for _ in range(2):
        slot = pool.ask("me").slot
        slot.holder, slot.scoped = "me", True
    assert isinstance(pool.ask("me").error, NestedAcquire)
    assert pool.ask("you").error is None
    assert pool.ask(None).error is None


def test_a_second_return_says_so():
    """The pool's name is in the error."""
    pool = Pool()
    slot = pool.ask().slot
    pool.give(slot)
    with pytest.raises(LeaseError, match=r"pool 'shop': this connection was given back before"):
        pool.state.give(slot, NOW)
    with pytest.raises(LeaseError, match="given back before"):
        pool.state.drop(slot, NOW, "x")


def test_detach_does_not_close():
    """The slot leaves, the resource stays as it is."""
    pool = Pool()
    slot = pool.ask().slot
    pool.carry_out(pool.state.detach(slot, NOW))
    assert pool.closed == []
    assert slot.status == DEAD
    assert pool.state.stats().closed_by_reason == {"detached": 1}


def test_idle_ones_are_swept_oldest_first_down_to_min_size():
    """Both of the last two stay: they are what min_size keeps."""
    pool = Pool(max_size=4, min_size=2, idle_timeout=10)
    slots = [pool.ask().slot for _ in range(4)]
    for slot in slots:
        pool.give(slot)
        pool.now += 1
    pool.now += 20
    pool.carry_out(pool.state.sweep(pool.now))
    assert list(pool.state.idle) == slots[2:]
    assert pool.closed == ["idle", "idle"]


def test_a_sweep_during_an_outage_does_not_storm():
    """min_size is asked for once a backoff, not once a sweep."""
    pool = Pool(hold=True, min_size=3, max_size=3)
    pool.carry_out(pool.state.sweep(pool.now))
    assert len(pool.coming) == 3
    while pool.coming:
        pool.fail()
    for _ in range(5):
        pool.carry_out(pool.state.sweep(pool.now))
    assert pool.coming == []
    assert len(pool.retries) == 1


def test_an_interrupt_in_the_middle_is_mended():
    """A slot that left the idle and never reached anybody is closed, and its place is free again."""
    pool = Pool(max_size=1)
    slot = pool.ask().slot
    pool.give(slot)
    lost = pool.state.idle.pop()  # as take() does, in whose middle the interrupt came
    pool.carry_out(pool.state.mend(pool.now, [lost]))
    assert pool.closed == ["broken"]
    assert pool.ask().slot is not None


def test_one_interrupted_before_it_stood_in_line_leaves_nothing_behind():
    """Withdrawing is safe wherever asking was cut short."""
    pool = Pool(max_size=1)
    waiter = Waiter()
    assert pool.state.give_up(waiter, NOW) is None
    waiter = Waiter()
    waiter.slot = pool.ask().slot  # asking got as far as the slot
    pool.carry_out(pool.state.give_up(waiter, NOW))
    assert pool.state.stats().idle == 1
    assert pool.state.wait_time.count == 1


class Counting(Waiter):
    """One that counts how often it is compared with another."""

    compared = 0
    __hash__ = Waiter.__hash__

    def __eq__(self, other: object) -> bool:
        Counting.compared += 1
        return self is other


@pytest.mark.parametrize("order", [1, -1])
def test_everybody_may_leave_at_once(order: int) -> None:
    """Who leaves the line is not searched for in it: a thousand who are cancelled together cost a thousand steps."""
    pool = Pool(max_size=1)
    pool.ask()
    Counting.compared = 0
    line = [Counting(urgent=number % 100 == 0) for number in range(1000)]
    for waiter in line:
        pool.carry_out(pool.state.ask(waiter, NOW))
    assert list(pool.state.waiters) == [*line[::100], *[waiter for waiter in line if not waiter.urgent]]
    Counting.compared = 0
    for waiter in line[::order]:
        pool.carry_out(pool.state.give_up(waiter, NOW))
    assert not pool.state.waiters
    assert pool.state.urgent == 0
    assert Counting.compared < 100


def test_a_snapshot_is_of_one_moment():
    """Gauges and counters belong together, and the snapshot does not change afterwards."""
    pool = Pool(hold=True, max_size=2)
    first, _second = pool.ask(), pool.ask()
    pool.open()
    before = pool.state.stats()
    assert (before.size, before.out, before.opening, before.waiting) == (2, 1, 1, 1)
    assert before.out == before.size - before.idle - before.opening
    pool.drop(first.slot)
    assert before.closed_by_reason == {}
    assert pool.state.stats().closed_by_reason == {"dropped": 1}
    assert before.as_dict()["name"] == "shop"
    assert before.open_time.count == 1


def test_statuses():
    """A slot says where it is."""
    pool = Pool()
    slot = pool.ask().slot
    assert slot.status == OUT
    pool.give(slot)
    assert slot.status == IDLE
    pool.carry_out(pool.state.close(pool.now))
    assert slot.status == DEAD


def test_of_a_deadlock_that_a_resize_has_made_only_the_last_is_refused():
    """Two hold one each and wait for the third, whose place goes: with one of them told, the other will be served."""
    pool = Pool(max_size=3)
    first, last = pool.ask("ann"), pool.ask("bob")
    for waiter in (first, last):
        waiter.slot.scoped, waiter.slot.holder = True, waiter.holder
    pool.hold = True
    waiting = [pool.ask("ann"), pool.ask("bob")]
    pool.carry_out(pool.state.resize(2, pool.now))
    assert not any(waiter.done for waiter in waiting)
    pool.open()
    assert not waiting[0].done
    assert isinstance(waiting[1].error, NestedAcquire)
    pool.give(last.slot)
    assert waiting[0].slot is last.slot
