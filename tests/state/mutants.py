"""Hand-made faults of `poolkit/state.py`: each a small edit that a tired person could make and a reviewer could miss.

A mutant is a name, a text that occurs exactly once in the source, and what stands there instead. `load` makes a module
of the edited source; it raises where the text is not found, so that a mutant never silently stops mutating.
"""

# ruff: noqa: E501  an edit is quoted as it stands in the source
from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import poolkit.state


class Mutant(NamedTuple):
    """One edit."""

    name: str
    old: str
    new: str
    hard: bool = False  # the model needs hundreds of runs to see it


MUTANTS = [
    # taking
    Mutant(
        "expired slots are lent",
        "if slot.expires > now:\n                slot.status",
        "if True:\n                slot.status",
    ),
    Mutant("the age limit is off by one moment", "if slot.expires > now:\n", "if slot.expires >= now:\n", hard=True),
    Mutant(
        "lifo and fifo are swapped",
        'if config.order == "lifo" else self.idle.popleft',
        'if config.order == "fifo" else self.idle.popleft',
    ),
    Mutant(
        "take forgets to count",
        "                self.acquired += 1\n                return slot",
        "                return slot",
    ),
    Mutant(
        "take forgets when",
        "                slot.since = now\n                slot.uses += 1\n                self.acquired",
        "                slot.uses += 1\n                self.acquired",
    ),
    Mutant("put_back forgets how long it lay", "slot.since = now - slot.idled", "slot.since = now"),
    Mutant("put_back counts a use", "        slot.uses -= 1\n", ""),
    Mutant(
        "put_back at the wrong end",
        'if self._config.order == "lifo":\n            self.idle.append(slot)',
        'if self._config.order == "fifo":\n            self.idle.append(slot)',
    ),
    # giving
    Mutant(
        "a second return is accepted",
        'if slot.status is not OUT:\n            raise LeaseError(f"pool {self.name!r}: this connection was given back before")\n        self.used += now - slot.since\n        retired',
        "self.used += now - slot.since\n        retired",
    ),
    Mutant(
        "barging: a return goes to the idle",
        "if self.waiters:\n            self._serve(slot, now)\n            return self._orders()\n        slot.status = IDLE",
        "slot.status = IDLE",
    ),
    Mutant(
        "max_uses is off by one",
        "slot.uses >= self._max_uses or self.size > self.max_size",
        "slot.uses > self._max_uses or self.size > self.max_size",
    ),
    Mutant(
        "a surplus is kept",
        "slot.uses >= self._max_uses or self.size > self.max_size\n",
        "slot.uses >= self._max_uses\n",
    ),
    Mutant(
        "a drained slot is lent again", "        for slot in self.slots:\n            slot.expires = -math.inf\n", ""
    ),
    Mutant(
        "a retired slot leaves its waiters alone",
        "        self._doom(slot, reason)\n        self._after_loss(now)\n        return self._orders()\n\n    def _after_loss",
        "        self._doom(slot, reason)\n        return self._orders()\n\n    def _after_loss",
    ),
    # waiting
    Mutant(
        "last come, first served",
        "        waiter = self.waiters[0]\n        while self._sheds",
        "        self.waiters.reverse()\n        waiter = self.waiters[0]\n        while self._sheds",
    ),
    Mutant(
        "a newcomer is asked before the idle",
        "waiter.slot = self.take(now)  # one may have come back since the caller looked",
        "waiter.slot = None",
    ),
    Mutant(
        "no open is ordered for a waiter",
        "            self._stand_in_line(waiter)\n            self._grow(now)",
        "            self._stand_in_line(waiter)",
    ),
    Mutant(
        "max_waiting is off by one",
        "len(self.waiters) - self.urgent - self.opening < limit",
        "len(self.waiters) - self.urgent - self.opening <= limit",
    ),
    Mutant(
        "max_waiting counts those whose open is under way",
        "len(self.waiters) - self.urgent - self.opening < limit",
        "len(self.waiters) - self.urgent < limit",
    ),
    Mutant(
        "one who gives up stays in line",
        "                self.waiters.remove(waiter)\n                self.urgent -= waiter.urgent\n                self.timeouts",
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
        "return all(slot.scoped and slot.holder in waiting for slot in self.slots)",
        "return False",
    ),
    Mutant(
        "one's own and others' leases are confused",
        "return all(slot.scoped and slot.holder",
        "return any(slot.scoped and slot.holder",
        hard=True,
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
        "        self.failures = 0\n        self.last_error = None\n",
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
    Mutant("the backoff does not grow", "FIRST_RETRY * RETRY_GROWTH ** min(self.failures - 1, 20)", "FIRST_RETRY"),
    Mutant(
        "the backoff has no bound",
        "min(LAST_RETRY, FIRST_RETRY * RETRY_GROWTH ** min(self.failures - 1, 20))",
        "FIRST_RETRY * RETRY_GROWTH ** min(self.failures - 1, 20)",
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
        "self.broken and self.size == self.opening and (failed",
        "self.broken and (failed",
        hard=True,
    ),
    Mutant(
        "newcomers are refused while a slot may come back",
        "self.broken and self.size == self.opening and not self._probe_due(now):",
        "self.broken and not self._probe_due(now):",
        hard=True,
    ),
    Mutant(
        "the breaker opens one failure late",
        "return self.failures >= (",
        "return self.failures > (",
        hard=True,
    ),
    Mutant(
        "no newcomer is let in as the probe",
        "self.size == self.opening and not self._probe_due(now):",
        "self.size == self.opening:",
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
        "        self._doom(slot, reason)\n        self._after_loss(now)\n        return self._orders()\n\n    def demoted",
        "        self._doom(slot, reason)\n        return self._orders()\n\n    def demoted",
        hard=True,
    ),
    Mutant("what was detached is closed", "            orders.doomed.remove(slot)\n", "            pass\n"),
    Mutant(
        "a sweep forgets the old",
        '            if slot.expires <= now:\n                self._doom_idle(slot, "lifetime")\n            elif',
        "            if",
    ),
    Mutant(
        "a sweep goes below min_size",
        "now - slot.since >= limit and self.size > self.min_size:",
        "now - slot.since >= limit:",
    ),
    Mutant(
        "a sweep forgets min_size",
        '                self._doom_idle(slot, "idle")\n        self._grow(now)\n',
        '                self._doom_idle(slot, "idle")\n',
    ),
    Mutant(
        "a drain leaves the idle", '        while self.idle:\n            self._doom(self.idle.pop(), "drained")\n', ""
    ),
    Mutant("a drain forgets what is being opened", "        self._stale = self.opening\n", ""),
    Mutant(
        "a resize leaves a surplus",
        "while self.idle and self.size > max_size:",
        "while self.idle and self.size > max_size + 1:",
    ),
    Mutant(
        "a resize upwards helps nobody",
        '            self._doom(self.idle.popleft(), "resized")\n        self._grow(now)\n',
        '            self._doom(self.idle.popleft(), "resized")\n',
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
        "            self._refuse(self.waiters[0], PoolClosed(self.name), now)\n            self._next_in_line()\n",
        "            break\n",
        hard=True,
    ),
    Mutant(
        "a closed pool goes on opening", "        if self.closed:\n            return\n        coming", "        coming"
    ),
    Mutant(
        "a doomed slot keeps its place",
        "        self.size -= 1\n        self.doomed.append(slot)\n",
        "        self.doomed.append(slot)\n",
    ),
    Mutant("a doomed slot is never ordered closed", "        self.doomed.append(slot)\n", ""),
    Mutant(
        "orders are given twice",
        "        self._woken, self.doomed, self._opens, self._retry_in = [], [], [], None\n",
        "        self._woken, self._opens, self._retry_in = [], [], None\n",
    ),
    Mutant(
        "mend leaves what an interrupt has lost",
        "[slot for slot in self.slots if slot.status is IDLE and slot not in self.idle]",
        "[]",
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
        "while self._sheds(waiter, now) and len(self.waiters) > 1:",
        "while self._sheds(waiter, now) and (len(self.waiters) > 1 or self._refuse(waiter, self._shed_error(0.0), now)):",
        hard=True,
    ),
    Mutant(
        "a leak is reported again and again",
        "            slot.reported = slot.since\n",
        "            pass\n",
        hard=True,
    ),
    # patience
    Mutant(
        "no patient attempt",
        "        if self._hung and self._patient is None and room > 1",
        "        if False and room > 1",
    ),
    Mutant(
        "a patient attempt that failed is followed by the next at once",
        "self._patient is None and room > 1 and now >= self._retry_at:",
        "self._patient is None and room > 1:",
    ),
    Mutant(
        "one patient attempt after the other is begun",
        "if self._hung and self._patient is None and room",
        "if self._hung and room",
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
    ),
    Mutant(
        "an attempt has more time than open_timeout",
        "return min(self._limit, max(LEAST_PATIENCE, PATIENCE * (self._slowest or 0.0)))",
        "return max(LEAST_PATIENCE, PATIENCE * (self._slowest or 0.0))",
    ),
    Mutant("a slow connect is forgotten at once", "max(took, FORGETTING * (self._slowest or 0.0))", "took"),
    # what failed, and when
    Mutant(
        "what is left over from an outage that has ended counts",
        "elif slot.attempt == self.failures or self.failures:  # else",
        "else:  # else",
    ),
    Mutant(
        "an attempt that took its time is followed by a pause",
        "self._retry_at = slot.since + self",
        "self._retry_at = now + self",
    ),
    Mutant(
        "those who wait outlive the last attempt's failure",
        "(failed or now < self._retry_at)",
        "(now < self._retry_at)",
    ),
    Mutant(
        "hanging attempts are as many as failing ones", "BREAK_AFTER_HUNG if self._hung else BREAK_AFTER", "BREAK_AFTER"
    ),
    Mutant(
        "a drain goes on with the short attempts only",
        "        self._patient = None\n        self._hung = False\n        for slot",
        "        self._patient = None\n        for slot",
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
    ),
    # found dead
    Mutant(
        "only the one that was asked is dead",
        '                self._doom_idle(other, "dead")\n',
        "                pass\n",
    ),
    Mutant("those that lay idle for a shorter time die with it", "if other.since <= last_seen]", "]"),
    Mutant(
        "one that lay idle for a moment takes others with it",
        "        if slot.idled > self._check_after:",
        "        if True:",
    ),
    # outages, as configured
    Mutant(
        "on_outage=wait refuses newcomers",
        "if self._refuses and self.broken and self.size",
        "if self.broken and self.size",
    ),
    Mutant(
        "on_outage=wait refuses those who wait", "hopeless = self._refuses and self.broken", "hopeless = self.broken"
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
    ),
    Mutant(
        "a demoted slot leaves its waiters alone",
        "            self._retry_at = 0.0\n        self._after_loss(now)\n",
        "            self._retry_at = 0.0\n",
    ),
    # urgent
    Mutant(
        "the urgent stand at the end",
        "            self.waiters.insert(self.urgent, waiter)\n",
        "            self.waiters.append(waiter)\n",
    ),
    Mutant(
        "the last urgent one goes first", "self.waiters.insert(self.urgent, waiter)", "self.waiters.insert(0, waiter)"
    ),
    Mutant(
        "served urgent ones are counted on",
        "        self.urgent -= waiter.urgent\n        return waiter\n",
        "        return waiter\n",
    ),
    Mutant(
        "urgent ones who gave up are counted on",
        "                self.urgent -= waiter.urgent\n                self.timeouts",
        "                self.timeouts",
    ),
    Mutant("the urgent are shed", "self._codel is not None and not waiter.urgent and", "self._codel is not None and"),
    Mutant("max_waiting refuses the urgent", "if limit is None or waiter.urgent or not", "if limit is None or not"),
    Mutant(
        "max_waiting counts the urgent",
        "if len(self.waiters) - self.urgent - self.opening < limit:",
        "if len(self.waiters) - self.opening < limit:",
    ),
    Mutant("the reserve is never opened", "            room += self._config.reserved\n", ""),
    Mutant(
        "the reserve is open to all",
        "        if self.urgent:\n            room += ",
        "        if True:\n            room += ",
    ),
    Mutant(
        "the reserve is kept when nobody urgent waits",
        "return bool(fit and self.urgent and self.size",
        "return bool(fit and self.size",
    ),
    Mutant(
        "the reserve has no bound",
        "self.urgent and self.size <= self.max_size + self._config.reserved)",
        "self.urgent)",
    ),
    Mutant(
        "the reserve lends what is too old",
        "        fit = slot.expires > now and slot.uses < self._max_uses\n",
        "        fit = True\n",
    ),
    Mutant(
        "a surplus is not lent on to the urgent",
        "        if retired and not self._is_lent_on(slot, now):",
        "        if retired:",
    ),
    Mutant(
        "an urgent one with room in the reserve is thought nested",
        "return self._config.reserved if waiter.urgent else 0",
        "return 0",
    ),
    # who waits for whom
    Mutant(
        "only one's own leases make a deadlock",
        "        waiting = {other.holder for other in self.waiters}\n",
        "        waiting = set()\n",
    ),
    Mutant(
        "one who holds nothing is thought nested",
        "if not any(slot.scoped and slot.holder == mine for slot in self.slots):",
        "if False:",
    ),
    Mutant(
        "leases by hand are thought to be stuck",
        "return all(slot.scoped and slot.holder in waiting",
        "return all(slot.holder in waiting",
    ),
    Mutant(
        "a deadlock is seen while an open is under way",
        "if mine is None or self.opening or self.size",
        "if mine is None or self.size",
    ),
    Mutant(
        "a deadlock after a resize is not seen",
        "        self._grow(now)\n        self._refuse_the_nested(now)\n        return self._orders()\n\n    def close",
        "        self._grow(now)\n        return self._orders()\n\n    def close",
    ),
    Mutant(
        "a deadlock after a loss is not seen",
        "        self._grow(now)\n        self._refuse_the_nested(now)\n\n    def _doom_idle",
        "        self._grow(now)\n\n    def _doom_idle",
    ),
    Mutant(
        "a deadlock after a failed open is not seen",
        "        self._refuse_the_nested(now)\n        self._refuse_the_hopeless(now, failed=failed)\n        self._grow(now)\n        return self._orders()\n\n    def retry",
        "        self._refuse_the_hopeless(now, failed=failed)\n        self._grow(now)\n        return self._orders()\n\n    def retry",
    ),
    Mutant(
        "a deadlock after a stale open is not seen",
        "            self._grow(now)\n            self._refuse_the_nested(now)\n",
        "            self._grow(now)\n",
    ),
    Mutant(
        "a deadlock after a late open is not seen",
        '            self._doom(slot, "resized")\n            self._refuse_the_nested(now)\n',
        '            self._doom(slot, "resized")\n',
    ),
    Mutant(
        "all of a deadlock are refused",
        "            if self._is_nested(waiter):\n                self.waiters.remove(waiter)\n                self.urgent -= waiter.urgent\n                self._refuse(waiter",
        "            if self._is_nested(waiter):\n                self.urgent -= waiter.urgent\n                self._refuse(waiter",
    ),
]


def load(mutant: Mutant) -> ModuleType:
    """Make the mutated module. Raises ValueError where the edit does not fit the source exactly once."""
    source = _source()
    if source.count(mutant.old) != 1:
        raise ValueError(f"mutant {mutant.name!r}: its text occurs {source.count(mutant.old)} times in state.py")
    return _module(mutant.name, source.replace(mutant.old, mutant.new))


def original() -> ModuleType:
    """Make a copy of the real module, whose constants may be changed."""
    return _module("original", _source())


def _source() -> str:
    return Path(poolkit.state.__file__).read_text(encoding="utf-8")


def _module(title: str, source: str) -> ModuleType:
    name = "mutant_" + "_".join(title.split()).replace(",", "").replace(":", "").replace("'", "")
    module = ModuleType(name)
    sys.modules[name] = module  # NamedTuple and the like look their module up
    try:
        exec(compile(source, f"<{title}>", "exec"), module.__dict__)
    finally:
        del sys.modules[name]
    return module
