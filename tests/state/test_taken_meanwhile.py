"""Whatever a method does with `idle`, a borrower may take from it in the middle of that, without the lock.

For each method, for each of its steps on `idle`: the slots are taken just before that step. The books must balance
afterwards as if they had been taken before the call or after it, and nobody may have got the same one.
"""

# ruff: noqa: E501  an edit is quoted as it stands in the source
from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mutants import Mutant, load, original

from poolkit.config import PoolConfig

NOW = 1000.0


class Raided(deque[Any]):
    """The idle slots, of which somebody takes some before the n-th step that is made with them."""

    steps = -1
    raid_at = -1
    raid: Callable[[], None] = staticmethod(lambda: None)

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.raid_at:
            self.raid()

    def __bool__(self) -> bool:
        self._step()
        return deque.__len__(self) > 0

    def __len__(self) -> int:
        self._step()
        return super().__len__()

    def __getitem__(self, place: Any) -> Any:
        self._step()
        return super().__getitem__(place)

    def __contains__(self, item: object) -> bool:
        self._step()
        return super().__contains__(item)

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():  # not one step: it fails if anything is taken while it goes on
            yield item
            self._step()

    def pop(self) -> Any:  # type: ignore[override]
        self._step()
        return super().pop()

    def popleft(self) -> Any:
        self._step()
        return super().popleft()

    def append(self, item: Any) -> None:
        self._step()
        super().append(item)

    def appendleft(self, item: Any) -> None:
        self._step()
        super().appendleft(item)

    def remove(self, item: Any) -> None:
        self._step()
        super().remove(item)


class Case:
    """A state with slots idle, one out, and a thief."""

    def __init__(self, module: Any, order: str, *, long: bool, many: bool) -> None:
        config = PoolConfig(
            max_size=5, max_lifetime=50.0, lifetime_jitter=0.0, idle_timeout=40.0, check_after=10.0, max_waiting=0,
            order=order,
        )  # fmt: skip
        self.module = module
        self.state = state = module.PoolState(config, "raided", lambda: 0.5)
        module.list = in_one_step  # what is one step in C is one here
        self.orders: list[Any] = []
        self.stolen: list[Any] = []
        self.many = many
        self.carry_out(state.resize(5, NOW - 60, 5))
        for age, slot in zip((60, 45, 30, 5, 0), self.opens, strict=True):
            self.carry_out(state.opened(slot, object(), NOW - (age if long else 1)))
        state.idle = Raided(state.idle)
        state.pop = state.idle.pop if order == "lifo" else state.idle.popleft
        self.mine = self.steal()
        self.arrive(self.mine)
        self.all = {*state.slots}

    @property
    def opens(self) -> list[Any]:
        return [slot for orders in self.orders for slot in orders.opens]

    @property
    def doomed(self) -> list[Any]:
        return [slot for orders in self.orders for slot in orders.doomed]

    def carry_out(self, orders: Any) -> None:
        if orders is not None:
            self.orders.append(orders)

    def steal(self) -> Any:
        """Do as `Pool.acquire` does without the lock."""
        end = deque.pop if self.state._config.order == "lifo" else deque.popleft
        slot = end(self.state.idle)
        slot.uses += 1
        return slot

    def arrive(self, slot: Any) -> None:
        slot.status = self.module.OUT
        slot.idled, slot.since = NOW - slot.since, NOW

    def raid(self) -> None:
        """Somebody takes one, or all are taken: some have arrived when the step is made, some are on their way."""
        there = deque.__len__(self.state.idle)
        for _ in range(there if self.many else min(there, 1)):
            slot = self.steal()
            self.stolen.append(slot)
            if len(self.stolen) % 2:
                self.arrive(slot)

    def finish(self) -> None:
        """Let the thieves see what they have, and check that everything is where it has to be."""
        state = self.state
        self.carry_out(state.orders())
        for slot in self.stolen:
            assert slot not in self.doomed, "ordered closed while it was on its way"
            if slot.status is self.module.IDLE:
                self.arrive(slot)
            if slot.expires <= NOW:
                state.outlived(slot, NOW)
                self.carry_out(state.orders())
                assert slot in self.doomed, "too old to be lent, and kept"
        held = [slot for slot in state.slots if slot.status is self.module.OUT]
        idle = [*deque.__iter__(state.idle)]
        assert len(self.doomed) == len(set(self.doomed)), "ordered closed twice"
        assert not {*idle, *held} & {*self.doomed}
        assert {*idle, *held, *self.doomed} >= self.all, "forgotten"
        assert state.slots == {*idle, *held} | {s for s in state.slots if s.status is self.module.OPENING}
        assert state.size == len(state.slots)
        assert {slot.status for slot in idle} <= {self.module.IDLE}
        assert not (state.waiters and idle), "somebody waits while a slot is idle"
        for slot in held:
            self.carry_out(state.give(slot, NOW))
        self.carry_out(state.close(NOW))
        assert {*self.doomed} >= self.all, "closed, and something is still open"
        assert state.size == state.opening
        assert sum(state.reasons.values()) == len(self.doomed)


def in_one_step(things: Any) -> list[Any]:
    if not isinstance(things, Raided):
        return [*things]
    things._step()
    return [*deque.__iter__(things)]


def _ask(case: Case) -> None:
    waiter = case.module.Waiter("ann")
    case.carry_out(case.state.ask(waiter, NOW))
    if waiter.slot is None:
        assert waiter.error is not None, "nobody is to wait here, where max_waiting is 0"


def _take(case: Case) -> None:
    slot = case.state.take(NOW)
    assert slot is None or slot.status is case.module.OUT


def _recover(case: Case) -> None:
    """One was lost on its way by an interrupt; the others lie there, or are on theirs."""
    lost = case.steal()
    case.carry_out(case.state.recover([lost], NOW))
    assert lost in case.doomed


def _mend(case: Case) -> None:
    lost = case.steal()
    case.carry_out(case.state.mend(NOW, [lost]))
    assert lost in case.doomed


def _found_dead(case: Case) -> None:
    """After it lay as long as the oldest of those that lie there."""
    case.mine.idled = 45.0
    case.carry_out(case.state.found_dead(case.mine, NOW))


def _stats(case: Case) -> None:
    stats = case.state.stats()
    assert stats.size == stats.idle + stats.out + stats.opening
    assert 0 <= stats.idle <= 5
    assert 0 <= stats.out <= 5


CALLS: dict[str, Callable[[Case], None]] = {
    "take": _take,
    "ask": _ask,
    "give": lambda case: case.carry_out(case.state.give(case.mine, NOW)),
    "found dead": _found_dead,
    "demoted": lambda case: case.carry_out(case.state.demoted(case.mine, NOW)),
    "drop": lambda case: case.carry_out(case.state.drop(case.mine, NOW, "dropped")),
    "sweep": lambda case: case.carry_out(case.state.sweep(NOW)),
    "drain": lambda case: case.carry_out(case.state.drain(NOW)),
    "shrink": lambda case: case.carry_out(case.state.resize(2, NOW)),
    "close": lambda case: case.carry_out(case.state.close(NOW)),
    "recover": _recover,
    "mend": _mend,
    "stats": _stats,
}


def steps_of(module: Any, call: Callable[[Case], None], order: str, *, long: bool, many: bool) -> int:
    """Raid before the first, the second, the third step that the call makes, until it makes no more."""
    for raid_at in itertools.count():
        case = Case(module, order, long=long, many=many)
        idle = case.state.idle
        idle.steps, idle.raid_at, idle.raid = -1, raid_at, case.raid
        call(case)
        idle.raid_at = -1
        case.finish()
        if not case.stolen:
            return raid_at
    raise AssertionError


@pytest.mark.parametrize("order", ["lifo", "fifo"])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_taken_in_the_middle_is_missed_by_nobody(name, order):
    """One slot or all are gone at any step, on their way or arrived; the books are right all the same."""
    steps = [
        steps_of(original(), CALLS[name], order, long=long, many=many)
        for long, many in itertools.product((False, True), repeat=2)
    ]
    assert max(steps) > 0 or name == "drop", "nothing was raided"


MUTANTS = [
    Mutant("take looks first", "            except IndexError:  # another", "            except KeyError:  # another"),
    Mutant("the end of the idle is not expected", "        except IndexError:\n            return None", "        except KeyError:\n            return None"),
    Mutant("the first is expected to lie there", "        except IndexError:\n            return math.inf", "        except KeyError:\n            return math.inf"),
    Mutant("a drain looks first", "while (idle := self._pop_idle()) is", "while self.idle and (idle := self.idle.popleft()) is"),
    Mutant("what is to be ended lies where it lay", "        except ValueError:  # somebody took it", "        except KeyError:  # somebody took it"),
    Mutant("what was taken is ended", "took it in this moment\n            return\n", "took it in this moment\n            pass\n"),
    Mutant("the doubtful are looked through in place", "in list(self.idle) if other", "in self.idle if other"),
    Mutant("a sweep looks through the idle in place", "for slot in list(self.idle):", "for slot in self.idle:"),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_call_that_relies_on_the_idle_is_seen(mutant):
    """Each is right as long as nobody takes anything meanwhile, and so no search of whole calls would see it."""
    with pytest.raises((AssertionError, IndexError, ValueError, RuntimeError)):
        raid_everything(load(mutant))


def raid_everything(module: Any) -> None:
    for call, order in itertools.product(CALLS.values(), ("lifo", "fifo")):
        for long, many in itertools.product((False, True), repeat=2):
            steps_of(module, call, order, long=long, many=many)
