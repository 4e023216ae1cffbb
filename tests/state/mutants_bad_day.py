"""Hand-made faults of `poolkit/state.py`: patience, failures, demotion, the urgent and their reserve, who waits for whom."""

# ruff: noqa: E501  an edit is quoted as it stands in the source
from __future__ import annotations

from mutation import Mutant

MUTANTS = [
    # patience
    Mutant(
        "no patient attempt",
        "        if self._hung and self._patient is None and room > 1",
        "        if False and room > 1",
        model=False,
    ),
    Mutant(
        "a patient attempt that failed is followed by the next at once",
        "self._patient is None and room > 1 and now >= self._retry_at:",
        "self._patient is None and room > 1:",
        seen_in="min_size",
        model=False,
    ),
    Mutant(
        "one patient attempt after the other is begun",
        "if self._hung and self._patient is None and room",
        "if self._hung and room",
        seen_in="three slots",
    ),
    Mutant(
        "the patient attempt takes the last place",
        "self._patient is None and room > 1 and",
        "self._patient is None and room > 0 and",
    ),
    Mutant(
        "the patient attempt is as short as the others",
        "now >= self._retry_at:\n            self._patient = self._order_open(self._limit, now)",
        "now >= self._retry_at:\n            self._patient = self._order_open(self._patience(room), now)",
    ),
    Mutant("the patient attempt holds up the short ones", " - (self._hung and self._patient is not None)", ""),
    Mutant(
        "a failed patient attempt is thought to go on",
        "        if slot is self._patient:\n            self._patient = None\n",
        "",
    ),
    Mutant(
        "a patient attempt outlives its generation",
        "        self._stale = self.opening\n        self._patient = None\n",
        "        self._stale = self.opening\n",
        model=False,
    ),
    Mutant(
        "a patient attempt outlives the outage",
        "        self._hung = False\n        self._patient = None\n",
        "        self._hung = False\n",
    ),
    Mutant(
        "every failure is thought to have hung",
        "self._hung = self._hung or now - slot.since >= slot.patience",
        "self._hung = True",
        model=False,
    ),
    Mutant(
        "an attempt has more time than open_timeout",
        "return min(self._limit, max(LEAST_PATIENCE, PATIENCE * (self._slowest or 0.0)))",
        "return max(LEAST_PATIENCE, PATIENCE * (self._slowest or 0.0))",
    ),
    Mutant(
        "a slow connect is forgotten at once", "max(took, FORGETTING * (self._slowest or 0.0))", "took", model=False
    ),
    # what failed, and when
    Mutant(
        "what is left over from an outage that has ended counts",
        "elif slot.attempt == self.failures or self.failures:  # else",
        "else:  # else",
        model=False,
    ),
    Mutant(
        "an attempt that took its time is followed by a pause",
        "self._retry_at = began + self",
        "self._retry_at = now + self",
        seen_in="",
    ),
    Mutant(
        "those who wait outlive the last attempt's failure",
        "(failed or now < self._retry_at)",
        "(now < self._retry_at)",
        model=False,
    ),
    Mutant(
        "hanging attempts are as many as failing ones", "BREAK_AFTER_HUNG if self._hung else BREAK_AFTER", "BREAK_AFTER"
    ),
    Mutant(
        "a drain goes on with the short attempts only",
        "        self._patient = None\n        self._hung = False\n        for slot",
        "        self._patient = None\n        for slot",
        model=False,
    ),
    Mutant(
        "the first attempt is as short as the others",
        "self._patient = self._order_open(self._limit, now)\n                else",
        "self._patient = self._order_open(self._patience(room), now)\n                else",
    ),
    Mutant(
        "the first attempt is waited for however long it takes",
        "            self._hung = True  # the very first attempt",
        "            pass  # the very first attempt",
        model=False,
    ),
    # found dead
    Mutant(
        "only the one that was asked is dead",
        '                self._doom_idle(other, "dead")\n',
        "                pass\n",
        seen_in="ages, fifo",
        model=False,
    ),
    Mutant("those that lay idle for a shorter time die with it", "if other.since <= last_seen]", "]", model=False),
    Mutant(
        "one that lay idle for a moment takes others with it",
        "        if slot.idled > self._check_after:",
        "        if True:",
        model=False,
    ),
    # outages, as configured
    Mutant(
        "on_outage=wait refuses newcomers",
        "if self.failures and self._is_hopeless() and",
        "if self.broken and self.size == self.opening and",
        seen_in="on_outage=wait",
    ),
    Mutant(
        "on_outage=wait refuses those who wait",
        "if self._is_hopeless() and (failed",
        "if self.broken and self.size == self.opening and (failed",
        seen_in="on_outage=wait",
    ),
    # demotion
    Mutant(
        "a demoted server keeps its other connections",
        "            self._demoted_at = now\n            self._end_generation()\n",
        "            self._demoted_at = now\n",
    ),
    Mutant("each refused write ends a generation", "            self._demoted_at = now\n", ""),
    Mutant(
        "a demotion of an earlier generation ends this one",
        "if slot.generation == self.generation and now - self._demoted_at",
        "if now - self._demoted_at",
    ),
    Mutant(
        "after a demotion the old server's backoff goes on",
        "            self._end_generation()\n            self._retry_at = 0.0\n",
        "            self._end_generation()\n",
        model=False,
    ),
    Mutant(
        "a demoted slot leaves its waiters alone",
        "            self._retry_at = 0.0\n        self._after_loss(now)\n",
        "            self._retry_at = 0.0\n",
    ),
    # urgent
    Mutant(
        "the urgent stand at the end",
        "                self.waiters.move_to_end(other, last=False)\n",
        "                pass\n",
        seen_in="reserved, resized",
    ),
    Mutant(
        "the last urgent one goes first",
        "[waiter, *reversed(list(islice(self.waiters, self.urgent)))]",
        "[waiter]",
        seen_in="reserved, resized",
    ),
    Mutant(
        "served urgent ones are counted on",
        "        self.urgent -= waiter.urgent\n        return waiter\n",
        "        return waiter\n",
        seen_in="reserved, resized",
    ),
    Mutant(
        "urgent ones who gave up are counted on",
        "                self.urgent -= waiter.urgent\n                self.timeouts",
        "                self.timeouts",
        seen_in="reserved, resized",
    ),
    Mutant(
        "the urgent are shed",
        "self._codel is not None and not waiter.urgent and",
        "self._codel is not None and",
        seen_in="reserved, shed",
    ),
    Mutant(
        "max_waiting refuses the urgent",
        "if limit is None or waiter.urgent or not",
        "if limit is None or not",
        seen_in="reserved",
    ),
    Mutant(
        "max_waiting counts the urgent",
        "if len(self.waiters) - self.urgent - self.opening < limit:",
        "if len(self.waiters) - self.opening < limit:",
        seen_in="reserved",
    ),
    Mutant(
        "the reserve is never opened", "            room += self._config.reserved\n", "", seen_in="reserved, resized"
    ),
    Mutant(
        "the reserve is open to all",
        "        if self.urgent:\n            room += ",
        "        if True:\n            room += ",
        seen_in="reserved",
        model=False,
    ),
    Mutant(
        "the reserve is kept when nobody urgent waits",
        "return bool(fit and self.urgent and self.size",
        "return bool(fit and self.size",
        seen_in="reserved, resized",
    ),
    Mutant(
        "the reserve has no bound",
        "self.urgent and self.size <= self.max_size + self._config.reserved)",
        "self.urgent)",
        seen_in="reserved, resized",
    ),
    Mutant(
        "the reserve lends what is too old",
        "        fit = slot.expires > now and slot.uses < self._max_uses\n",
        "        fit = True\n",
        seen_in="reserved, resized",
    ),
    Mutant(
        "a surplus is not lent on to the urgent",
        "        if retired and not self._is_lent_on(slot, now):",
        "        if retired:",
        seen_in="reserved, resized",
        model=False,
    ),
    Mutant(
        "an urgent one with room in the reserve is thought nested",
        "return self._config.reserved if waiter.urgent else 0",
        "return 0",
        seen_in="nested, reserved",
        model=False,
    ),
    # who waits for whom
    Mutant(
        "only one's own leases make a deadlock",
        "waiting = waiting or [mine, *[other.holder for other in self.waiters]]",
        "waiting = [mine]",
        seen_in="nested",
    ),
    Mutant(
        "one who holds nothing is thought nested",
        "return mine in self._blocks()",
        "return True",
        seen_in="nested",
        model=False,  # all others have to wait for each other first, which takes an urgent one and an outage
    ),
    Mutant(
        "a witness is believed when it asks itself",
        "seen.status is not OUT or seen.holder == waiter.holder",
        "seen.status is not OUT",
        seen_in="",
    ),
    Mutant(
        "leases by hand are thought to be stuck",
        "            if slot.scoped:\n",
        "            if True:\n",
        seen_in="nested",
    ),
    Mutant(
        "a deadlock after a resize is not seen",
        "        self._grow(now)\n        self._refuse_the_nested(now)\n        return self._orders()\n\n    def close",
        "        self._grow(now)\n        return self._orders()\n\n    def close",
        seen_in="nested",
        model=False,
    ),
    Mutant(
        "a deadlock after a loss is not seen",
        "        self._grow(now)\n        self._refuse_the_nested(now)\n\n    def _pop_idle",
        "        self._grow(now)\n\n    def _pop_idle",
        seen_in="nested, calm",
        model=False,
    ),
    Mutant(
        "a deadlock after a failed open is not seen",
        "        self._refuse_the_nested(now)\n        self._refuse_the_hopeless(now, failed=failed)\n        self._grow(now)\n        return self._orders()\n\n    def retry",
        "        self._refuse_the_hopeless(now, failed=failed)\n        self._grow(now)\n        return self._orders()\n\n    def retry",
        seen_in="nested",
        model=False,
    ),
    Mutant(
        "a deadlock after a stale open is not seen",
        "            self._grow(now)\n            self._refuse_the_nested(now)\n",
        "            self._grow(now)\n",
        seen_in="nested, calm",
        model=False,
    ),
    Mutant(
        "a deadlock after a late open is not seen",
        '            self._doom(slot, "resized")\n            self._refuse_the_nested(now)\n',
        '            self._doom(slot, "resized")\n',
        seen_in="nested, calm",
        model=False,
    ),
]
