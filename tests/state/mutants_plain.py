"""Hand-made faults of `poolkit/state.py`: lending, waiting, opening, ending, serving."""

# ruff: noqa: E501  an edit is quoted as it stands in the source
from __future__ import annotations

from mutation import Mutant

MUTANTS = [
    # taking
    Mutant(
        "expired slots are lent",
        "if slot.expires > now:\n                slot.status",
        "if True:\n                slot.status",
        seen_in="ages, fifo",
        hard=True,
    ),
    Mutant(
        "the age limit is off by one moment",
        "if slot.expires > now:\n",
        "if slot.expires >= now:\n",
        hard=True,
        seen_in="ages, fifo",
    ),
    Mutant(
        "lifo and fifo are swapped",
        'if config.order == "lifo" else self.idle.popleft',
        'if config.order == "fifo" else self.idle.popleft',
    ),
    Mutant(
        "take forgets when",
        "                slot.since = now\n                slot.uses += 1\n                return slot",
        "                slot.uses += 1\n                return slot",
        seen_in="ages, fifo",
    ),
    # giving
    Mutant(
        "a second return is accepted",
        'if slot.status is not OUT:\n            raise LeaseError(f"pool {self.name!r}: this connection was given back before")\n        self.used += now - slot.since\n        self.ended += 1\n        retired',
        "self.used += now - slot.since\n        self.ended += 1\n        retired",
    ),
    Mutant(
        "a return is not counted",
        "        self.used += now - slot.since\n        self.ended += 1\n        retired",
        "        self.used += now - slot.since\n        retired",
    ),
    Mutant(
        "barging: a return goes to the idle",
        "if self.waiters:\n            self._serve(slot, now)\n            return self._orders()\n        if slot.reset",
        "if slot.reset",
    ),
    Mutant(
        "max_uses is off by one",
        "slot.uses >= self._max_uses or self.size > self.max_size",
        "slot.uses > self._max_uses or self.size > self.max_size",
        seen_in="uses",
    ),
    Mutant(
        "a surplus is kept",
        "slot.uses >= self._max_uses or self.size > self.max_size\n",
        "slot.uses >= self._max_uses\n",
    ),
    Mutant("a drained slot is lent again", "            slot.expires = -math.inf\n", "            pass\n"),
    Mutant(
        "a retired slot leaves its waiters alone",
        "        self._doom(slot, self._why(slot, now))\n        self._after_loss(now)\n",
        "        self._doom(slot, self._why(slot, now))\n",
    ),
    # waiting
    Mutant(
        "last come, first served",
        "        waiter = next(iter(self.waiters))\n        while self._codel",
        "        self.waiters.move_to_end(next(reversed(self.waiters)), last=False)\n"
        "        waiter = next(iter(self.waiters))\n        while self._codel",
    ),
    Mutant(
        "a newcomer is asked before the idle",
        "            waiter.slot = self.take(now)\n",
        "            waiter.slot = None\n",
    ),
    Mutant(
        "no open is ordered for a waiter",
        "            if self.size < self.max_size:\n                self._grow(now)\n        return self._orders()",
        "        return self._orders()",
    ),
    Mutant(
        "max_waiting is off by one",
        "len(self.waiters) - self.urgent - self.opening < limit",
        "len(self.waiters) - self.urgent - self.opening <= limit",
        seen_in="max_waiting",
    ),
    Mutant(
        "max_waiting counts those whose open is under way",
        "len(self.waiters) - self.urgent - self.opening < limit",
        "len(self.waiters) - self.urgent < limit",
        seen_in="max_waiting",
    ),
    Mutant(
        "one who gives up stays in line",
        "                del self.waiters[waiter]\n                self.urgent -= waiter.urgent\n                self.timeouts",
        "                self.urgent -= waiter.urgent\n                self.timeouts",
    ),
    Mutant(
        "what was handed over to one who gave up is lost",
        "            return self.give(slot, now)\n        if not waiter.done:",
        "            return self._orders()\n        if not waiter.done:",
        hard=True,
    ),
    Mutant("every cancellation is a timeout", "self.timeouts += timed_out", "self.timeouts += 1"),
    Mutant(
        "nested borrowers wait for ever",
        "return mine in self._blocks()",
        "return False",
        seen_in="nested",
    ),
    Mutant(
        "one's own and others' leases are confused",
        "                if slot.holder in waiting:",
        "                if slot.holder not in waiting[1:]:",
        hard=True,
        seen_in="nested",
    ),
    # opening
    Mutant("more than max_size", "self.min_size - self.size), room)", "self.min_size - self.size), 9)"),
    Mutant(
        "opens under way are forgotten",
        "max(len(self.waiters) - coming, self.min_size - self.size)",
        "max(len(self.waiters), self.min_size - self.size)",
    ),
    Mutant("stale opens are waited for", "return self.opening - self._stale - (", "return self.opening - (", hard=True),
    Mutant(
        "min_size is not refilled",
        "max(len(self.waiters) - coming, self.min_size - self.size)",
        "len(self.waiters) - coming",
        seen_in="min_size",
    ),
    Mutant(
        "a stale open enters the pool",
        '        if slot.generation != self.generation:\n            self._stale -= 1\n            self._doom(slot, "drained")\n            self._grow(now)\n            self._refuse_the_nested(now)\n            return self._orders()\n',
        "",
    ),
    Mutant(
        "a stale open's place is not used",
        '            self._doom(slot, "drained")\n            self._grow(now)\n',
        '            self._doom(slot, "drained")\n',
    ),
    Mutant(
        "an opened slot goes to the idle while some wait",
        "        elif self.waiters:\n            slot.status = OUT\n            self._serve(slot, now)\n",
        "",
    ),
    Mutant(
        "a surplus is opened and kept",
        "if self.size > self.max_size and not self._is_lent_on(slot, now):",
        "if False:",
        hard=True,
    ),
    Mutant(
        "a failed open keeps its place",
        "        self.opening -= 1\n        self.size -= 1\n        self.open_failures",
        "        self.opening -= 1\n        self.open_failures",
    ),
    Mutant(
        "a failed open keeps its slot",
        "        slot.status = DEAD\n        self.slots.discard(slot)\n        self.opening",
        "        slot.status = DEAD\n        self.opening",
    ),
    Mutant(
        "a success leaves the failures standing",
        "        self.failures = self.rejections = 0\n        self.last_error = None\n",
        "        self.last_error = None\n",
    ),
    # outages
    Mutant("nobody comes back after an outage", "self._retry_in = self._retry_at - now", "pass"),
    Mutant(
        "only one retry is ever ordered",
        '        """The time ordered by `retry_in` has come."""\n        self._retrying = False\n',
        '        """The time ordered by `retry_in` has come."""\n',
    ),
    Mutant(
        "no attempt follows a failed one",
        "        self._refuse_the_hopeless(now, failed=failed)\n        self._grow(now)\n        return self._orders()\n\n    def retry",
        "        self._refuse_the_hopeless(now, failed=failed)\n        return self._orders()\n\n    def retry",
    ),
    Mutant(
        "a storm of attempts",
        "        if not self._coming():\n            if now",
        "        if True:\n            if now",
    ),
    Mutant(
        "the backoff does not grow",
        "FIRST_RETRY * RETRY_GROWTH ** min(self.failures - 1, 20)",
        "FIRST_RETRY",
        seen_in="",
    ),
    Mutant(
        "the backoff has no bound",
        "min(LAST_RETRY, FIRST_RETRY * RETRY_GROWTH ** min(self.failures - 1, 20))",
        "FIRST_RETRY * RETRY_GROWTH ** min(self.failures - 1, 20)",
        seen_in="",
    ),
    Mutant(
        "failures of one moment are all counted",
        "if slot.attempt == self.failures:  # of many begun together",
        "if True:  # of many begun together",
    ),
    Mutant(
        "stale failures are counted",
        "        if slot.generation != self.generation:  # it tells nothing about this generation\n            self._stale -= 1\n        elif slot.attempt == self.failures or self.failures:",
        "        if slot.generation != self.generation:\n            self._stale -= 1\n        if slot.attempt == self.failures or self.failures:",
    ),
    Mutant(
        "waiters outlive all hope",
        "        self._refuse_the_hopeless(now, failed=failed)\n        self._grow(now)\n        return self._orders()\n\n    def retry",
        "        self._grow(now)\n        return self._orders()\n\n    def retry",
    ),
    Mutant(
        "waiters are refused while a slot may come back",
        "if self._is_hopeless() and (failed",
        "if self._refuses and self.broken and (failed",
        hard=True,
    ),
    Mutant(
        "newcomers are refused while a slot may come back",
        "self._is_hopeless() and not self._probe_due(now):",
        "self._refuses and self.broken and not self._probe_due(now):",
        hard=True,
    ),
    Mutant(
        "the breaker opens one failure late",
        "self.failures >= (BREAK",
        "self.failures > (BREAK",
        hard=True,
    ),
    Mutant(
        "no newcomer is let in as the probe",
        "self._is_hopeless() and not self._probe_due(now):",
        "self._is_hopeless():",
        hard=True,
    ),
    Mutant(
        "a drain keeps the old address's backoff",
        "        self._retry_at = 0.0  # the new generation may have another address: try at once\n",
        "",
    ),
    # ending
    Mutant(
        "a dropped slot leaves its waiters alone",
        "        self._take_from_borrower(slot, now, reason)\n        self._after_loss(now)\n",
        "        self._take_from_borrower(slot, now, reason)\n",
        hard=True,
    ),
    Mutant("what was detached is closed", "        self.doomed.remove(slot)  #", "        #"),
    Mutant(
        "a sweep forgets the old",
        '            if slot.expires <= now:\n                self._doom_idle(slot, "lifetime")\n            elif',
        "            if",
        seen_in="ages, fifo",
    ),
    Mutant(
        "a sweep goes below min_size",
        "now - slot.since >= limit and self.size > self.min_size:",
        "now - slot.since >= limit:",
        seen_in="min_size",
    ),
    Mutant(
        "a sweep forgets min_size",
        "math.inf if limit is None else limit)\n        self._grow(now)\n",
        "math.inf if limit is None else limit)\n",
    ),
    Mutant(
        "a sweep looks at no lifetimes",
        "if now >= self._first_expiry or (limit",
        "if (limit",
        seen_in="ages, fifo",
    ),
    Mutant(
        "the first to expire is forgotten when the next comes",
        "self._first_expiry = min(self._first_expiry, slot.expires)",
        "self._first_expiry = slot.expires",
        seen_in="",
    ),
    Mutant(
        "those that expire later are forgotten by a sweep",
        "self._first_expiry = min([slot.expires for slot in list(self.slots) if slot.expires > now], default=math.inf)",
        "self._first_expiry = math.inf",
        seen_in="",
    ),
    Mutant(
        "a drain leaves the idle",
        '        while (idle := self._pop_idle() or self._pop_resetting()) is not None:\n            self._doom(idle, "drained")\n',
        "",
    ),
    Mutant("a drain forgets what is being opened", "        self._stale = self.opening\n", ""),
    Mutant(
        "a resize leaves a surplus",
        "while self.size > max_size and (slot",
        "while self.size > max_size + 1 and (slot",
    ),
    Mutant(
        "a resize upwards helps nobody",
        '            self._doom(slot, "resized")\n        self._grow(now)\n        self._refuse_the_nested(now)\n        return self._orders()\n\n    def close',
        '            self._doom(slot, "resized")\n        self._refuse_the_nested(now)\n        return self._orders()\n\n    def close',
        hard=True,
    ),
    Mutant(
        "close leaves what is out or being opened",
        "        self.closed = True\n        self._end_generation()\n",
        '        self.closed = True\n        while self.idle:\n            self._doom(self.idle.pop(), "drained")\n',
    ),
    Mutant(
        "close leaves the idle",
        "        self.closed = True\n        self._end_generation()\n",
        "        self.closed = True\n        self.drain(now)\n",
    ),
    Mutant(
        "close leaves the waiters",
        "            self._refuse(next(iter(self.waiters)), self._closed_error(), now)\n            self._next_in_line()\n",
        "            break\n",
        hard=True,
    ),
    Mutant(
        "a closed pool goes on opening",
        "        if self.closed:\n            return\n        coming",
        "        coming",
        seen_in="min_size",
    ),
    Mutant(
        "a doomed slot keeps its place",
        "        self.size -= 1\n        self.doomed.append(slot)\n",
        "        self.doomed.append(slot)\n",
    ),
    Mutant("a doomed slot is never ordered closed", "        self.doomed.append(slot)\n", ""),
    Mutant(
        "orders are given twice",
        "            self.doomed, self._opens, self._retry_in = [], [], None\n",
        "            self._opens, self._retry_in = [], None\n",
    ),
    Mutant(
        "mend leaves what an interrupt has lost",
        "[slot for slot in lost if self._is_nowhere(slot)]",
        "[]",
    ),
    Mutant(
        "mend ends what lies idle",
        "[slot for slot in lost if self._is_nowhere(slot)]",
        "[slot for slot in lost if slot.status is IDLE]",
    ),
    # on the way from the idle to a borrower, and lost
    Mutant(
        "what was outlived on its way is kept",
        "        self._doom(slot, self._why(slot, now))\n        self._after_loss(now)  # somebody",
        "        self._after_loss(now)  # somebody",
    ),
    Mutant(
        "what was outlived on its way is uncounted",
        "        self.ended += 1  # it was out, for all who looked",
        "        # it was out, for all who looked",
    ),
    Mutant(
        "what was outlived on its way leaves its waiters alone",
        "        self._after_loss(now)  # somebody may have stood in line meanwhile\n",
        "",
    ),
    Mutant(
        "what never arrived is not recovered",
        "            elif self._is_nowhere(slot):\n",
        "            elif False:\n",
    ),
    Mutant(
        "recover ends what lies idle",
        "            elif self._is_nowhere(slot):\n",
        "            elif slot.status is IDLE:\n",
    ),
    Mutant(
        "what a borrower has forgotten is not recovered",
        '            if slot.status is OUT:\n                self._take_from_borrower(slot, now, "lost")\n            elif',
        "            if",
    ),
    Mutant(
        "what was recovered leaves its waiters alone",
        '                self._doom(slot, "broken")\n        self._after_loss(now)\n        return self._orders()\n\n    def _is_nowhere',
        '                self._doom(slot, "broken")\n        return self._orders()\n\n    def _is_nowhere',
    ),
    Mutant(
        "what is dropped is uncounted",
        "        self.ended += 1\n        self._doom(slot, reason)\n",
        "        self._doom(slot, reason)\n",
    ),
    # resetting
    Mutant(
        "a reset under way is no reset",
        "        if slot.reset is not None:\n            slot.status = RESETTING\n",
        "        if False:\n            slot.status = RESETTING\n",
        seen_in="",
    ),
    Mutant(
        "what is resetting is not lent",
        "return self._take_resetting(now) if self.resetting else None",
        "return None",
        seen_in="",
    ),
    Mutant(
        "what is resetting is lent before the idle",
        "        while self.idle:\n            try:",
        "        if self.resetting:\n            return self._take_resetting(now)\n        while self.idle:\n            try:",
        seen_in="",
    ),
    Mutant(
        "the reset that was sent last is read first",
        "slot = self.resetting.popleft()\n            if slot.expires <= now:",
        "slot = self.resetting.pop()\n            if slot.expires <= now:",
        seen_in="",
    ),
    Mutant(
        "too old to be lent, and resetting",
        "slot = self.resetting.popleft()\n            if slot.expires <= now:",
        "slot = self.resetting.popleft()\n            if False:",
        seen_in="",
    ),
    Mutant(
        "a waiter gets nothing of a reset that is done",
        "        if self.waiters:  # a borrower asked meanwhile\n",
        "        if False:\n",
        seen_in="",
    ),
    Mutant(
        "what was drained in the middle of its reset is kept",
        "if (slot.expires <= now or self.size > self.max_size) and not",
        "if self.size > self.max_size and not",
        seen_in="",
    ),
    Mutant(
        "a reset that failed is kept",
        '        self._doom(slot, "broken")\n        self._after_loss(now)\n        return self._orders()\n\n    # -- waiting',
        "        return self._orders()\n\n    # -- waiting",
        seen_in="",
    ),
    Mutant(
        "a failed reset leaves its waiters alone",
        '        self._doom(slot, "broken")\n        self._after_loss(now)\n        return self._orders()\n\n    # -- waiting',
        '        self._doom(slot, "broken")\n        return self._orders()\n\n    # -- waiting',
        seen_in="",
    ),
    Mutant(
        "a drain leaves what is resetting",
        '        while (idle := self._pop_idle() or self._pop_resetting()) is not None:\n            self._doom(idle, "drained")\n',
        '        while (idle := self._pop_idle()) is not None:\n            self._doom(idle, "drained")\n',
        seen_in="",
    ),
    Mutant("a refusal is an outage", 'if kind == "refused" else 0', "if False else 0", seen_in=""),
    Mutant(
        "refused, and asked again as after an outage",
        "        if self.rejections:\n            return REJECT_PAUSE",
        "        if False:\n            return REJECT_PAUSE",
        seen_in="",
    ),
    Mutant(
        "refused again, and again asked soon",
        "REJECT_PAUSE if self.rejections == 1 else LAST_REJECT_PAUSE",
        "REJECT_PAUSE",
        hard=True,
        seen_in="",
    ),
    # serving
    Mutant(
        "a served waiter is not woken",
        "        self._woken.append(waiter)\n        self._next_in_line()  # at last",
        "        self._next_in_line()  # at last",
    ),
    Mutant(
        "a refused waiter is not woken",
        "        waiter.done = True\n        self._woken.append(waiter)\n\n    def _shed",
        "        waiter.done = True\n\n    def _shed",
    ),
    Mutant("a hand-over is no use", "        slot.idled = 0.0\n        slot.uses += 1\n", "        slot.idled = 0.0\n"),
    Mutant(
        "the last in line is shed",
        "self._sheds(waiter, now) and len(self.waiters) > 1:",
        "self._sheds(waiter, now) and (len(self.waiters) > 1 or self._refuse(waiter, self._shed_error(0.0), now)):",
        hard=True,
        seen_in="target_delay",
    ),
    Mutant(
        "a leak is reported again and again",
        "            slot.reported = slot.since\n",
        "            pass\n",
        hard=True,
        seen_in="leaks",
    ),
]
