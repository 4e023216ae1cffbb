"""What holds after every step, whatever the step was."""

from __future__ import annotations

import math

from books import Books
from hypothesis.stateful import invariant


class Invariants(Books):
    """The state against the books."""

    @invariant()
    def sizes(self) -> None:
        s = self.state
        assert [k.slot for k in self.idle] == list(s.idle)
        assert [k.slot for k in self.resetting] == list(s.resetting)
        returned = (*self.idle, *self.resetting, *self.claimed)
        assert {k.slot for k in (*returned, *self.moving, *self.out, *self.opening)} == s.slots
        assert s.opening == len(self.opening)
        assert s.size == self.size
        assert s.max_size == self.max_size
        self.ceiling = max(self.max_size, min(self.ceiling, self.size))
        assert s.size <= self.ceiling + self.config.reserved, "more than max_size, and no resize explains it"
        assert s.urgent == self.urgent
        assert [waiter.urgent for waiter in s.waiters] == sorted((w.urgent for w in s.waiters), reverse=True)
        assert s.size <= self.max_size or not self.idle, "a surplus lies idle"
        assert all(k.slot.status == "idle" for k in (*self.idle, *self.moving))
        assert all(k.slot.reset is None for k in (*self.idle, *self.moving)), "idle, and its reset was not read"
        assert all(k.slot.status == "resetting" for k in (*self.resetting, *self.claimed))
        assert all(k.slot.status == "out" for k in self.out)

    @invariant()
    def orders_are_complete(self) -> None:
        assert self.state.orders() is None, "something was decided and not ordered"

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        assert list(self.state.waiters) == self.queue
        if not self.queue:
            return
        assert not self.closed, "somebody waits in a closed pool"
        assert not self.idle, "somebody waits while a slot lies idle"
        assert not self.resetting, "somebody waits while a slot could be had whose reset is under way"
        if self.size >= self.limit:
            return
        if self.failures:
            assert self.coming or self.retries, "a lost wake-up: nobody will ever try again"
        elif self.size < self.max_size:
            assert self.coming >= len(self.queue), "somebody waits while there is room"
        else:
            assert self.coming >= self.urgent, "somebody urgent waits while there is room in the reserve"

    @invariant()
    def outage(self) -> None:
        assert self.state.failures == self.failures
        assert self.state.last_error is self.error
        if self.failures and not self.due_now:
            base = min(0.5, 0.05 * 1.25 ** min(self.failures - 1, 20))
            if self.rejections:
                base = 5.0 if self.rejections == 1 else 30.0
            delay = self.state._retry_at - self.failed_at
            assert 0.9 * base - 1e-6 <= delay <= 1.1 * base + 1e-6, (
                "the backoff grows by a quarter, up to a bound, with jitter"
            )

    @invariant()
    def books_balance(self) -> None:
        stats = self.state.stats()
        assert stats.acquired == self.count["acquired"] + len(self.moving)
        assert stats.timeouts == self.count["timeouts"]
        assert stats.overloaded == self.count["overloaded"]
        assert stats.refused == self.count["refused"]
        assert stats.opened == self.count["opened"]
        assert stats.open_time.count == self.count["opened"]
        assert stats.open_failures == self.count["failed"]
        assert stats.leaked == self.count["leaked"]
        assert stats.closed_by_reason == self.reasons
        assert stats.wait.count == self.queued_ended
        assert math.isclose(stats.used_seconds, self.used, abs_tol=1e-6)
        assert (stats.size, stats.idle) == (self.size, len(self.idle))
        assert stats.out == len(self.out) + len(self.moving), "what is on its way is out"
        assert stats.resetting == len(self.resetting) + len(self.claimed)
        assert (stats.opening, stats.waiting) == (len(self.opening), len(self.queue))
        assert stats.closed == self.closed
        assert len(self.live) == self.size - len(self.opening), "a resource was forgotten open"

    @invariant()
    def closed_is_empty(self) -> None:
        if self.closed:
            assert not self.idle
            assert not self.resetting
            assert not self.queue
