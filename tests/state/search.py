"""Every state that a small pool can get into, and that in each of them all is well.

A breadth-first search from the empty pool through every event (`search_steps`) in every state it meets, until there is
no new one: 2 slots, 3 borrowers, the breaker opening at the second failure (the first, if it hung) instead of the
eighth. In each step the orders are checked, in each state the invariants. Then the graph of all states answers what no
single state can show: that nobody waits for ever. The subgraph of the states in which somebody waits has only the steps
that come about by themselves (borrowers give back, takers
arrive, opens end, timers fire; nobody new asks). A state in it without such
a step is a lost wake-up. A cycle in it is a wait without end, unless it lasts only because somebody never does what he
could do all the time: gives back, ends an open, lets a timer fire.

Run it by itself for the table: `python tests/state/search.py [--mutants]`.
"""

# ruff: noqa: T201  a table is what it prints
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

from frozen import BREAK_AFTER, BREAK_AFTER_HUNG, Key
from mutants import MUTANTS, Mutant, load, original
from search_steps import Event, Steps

from poolkit.config import PoolConfig

# What goes on by itself, and the promise each rests on.
FAIR = {"give": "give", "arrive": "arrive", "opened": "open", "failed": "open", "timer": "timer"}


class Setup(NamedTuple):
    """One configuration to search."""

    name: str
    config: PoolConfig
    nested: bool = False
    resizes: tuple[int, ...] = (1, 2)
    fails: bool = True  # whether opens may fail


def _config(**settings: object) -> PoolConfig:
    plain: dict[str, object] = {"max_size": 2, "max_lifetime": None, "idle_timeout": None}
    return PoolConfig.from_mapping({**plain, **settings})


# Each is searched to its end. Features that do not touch each other are searched apart: together their states multiply
# and show nothing more. For the same reason no open fails where the crowd is the subject and not the server.
SETUPS = [
    Setup("plain", _config()),
    Setup("ages, fifo", _config(order="fifo", max_lifetime=3.0, idle_timeout=2.0)),
    Setup("min_size", _config(min_size=1, idle_timeout=2.0)),
    Setup("max_waiting", _config(max_waiting=1)),
    Setup("uses", _config(max_uses=2)),
    Setup("leaks", _config(leak_after=1.0)),
    Setup("target_delay", _config(target_delay=0.0625), fails=False),
    Setup("on_outage=wait", _config(on_outage="wait")),
    Setup("nested", _config(), nested=True),
    Setup("nested, calm", _config(), nested=True, fails=False),
    Setup("nested, reserved", _config(max_size=1, reserved=1), nested=True, resizes=(), fails=False),
    Setup("reserved", _config(max_size=1, reserved=1, max_waiting=1), resizes=()),
    Setup("reserved, shed", _config(max_size=1, reserved=1, target_delay=0.0625), resizes=(), fails=False),
    Setup("reserved, resized", _config(max_size=1, reserved=1), fails=False),
    Setup("three slots", _config(max_size=3), resizes=()),
]


class Found(NamedTuple):
    """What a search has seen."""

    name: str
    states: int
    transitions: int
    waiting: int  # states in which somebody waits
    depth: int  # events to the furthest state
    seconds: float
    whole: bool  # no state was left out


class Fault(AssertionError):
    """Something is wrong; the message has the shortest way there."""


class Search:
    """One search of one configuration of one module."""

    def __init__(self, module: ModuleType, setup: Setup) -> None:
        module.BREAK_AFTER = BREAK_AFTER  # type: ignore[attr-defined]
        module.BREAK_AFTER_HUNG = BREAK_AFTER_HUNG  # type: ignore[attr-defined]
        self.setup = setup
        self.steps = Steps(module, setup.config, nested=setup.nested, resizes=setup.resizes, fails=setup.fails)
        self.came: dict[Key, tuple[Key | None, Event | None]] = {}
        self.onward: dict[Key, list[tuple[str, Key]]] = {}  # the fair steps of those states in which somebody waits
        self.transitions = 0

    def run(self, *, most: int = sys.maxsize) -> Found:
        """Visit every state, or the `most` nearest ones. Raises `Fault`."""
        began = time.perf_counter()
        first = self.steps.first()
        self.came[first] = (None, None)
        border, depth = [first], 0
        while border and len(self.came) < most:
            border = [new for key in border for new in self._expand(key)]
            depth += bool(border)
        if not border:
            self._prove_service()
        seconds = time.perf_counter() - began
        waiting = sum(bool(key.queue) for key in self.came)
        return Found(self.setup.name, len(self.came), self.transitions, waiting, depth, seconds, whole=not border)

    def _expand(self, key: Key) -> Iterator[Key]:
        fair: list[tuple[str, Key]] = []
        for event in self.steps.of(key):
            after = self._take(key, event)
            self.transitions += 1
            if key.queue and self._goes_by_itself(event):
                fair.append((_promise(key, event), after))
            if after not in self.came:
                self.came[after] = (key, event)
                yield after
        if key.queue:
            self.onward[key] = fair

    def _take(self, key: Key, event: Event) -> Key:
        try:
            after, step = self.steps.take(key, event)
            if after not in self.came:
                self.steps.check(step)
        except Exception as error:
            raise Fault(f"{type(error).__name__}: {error}\n{self._way(key)} -> {_said(event)}") from error
        return after

    def _goes_by_itself(self, event: Event) -> bool:
        name, _, flag, _ = event
        if name == "timer":
            return flag  # when it is time
        if name == "failed":  # where all wait, or may wait for their own, nothing but the server's return helps
            return self.setup.config.on_outage == "refuse" and not self.setup.nested
        return name in FAIR

    # -- nobody waits for ever ----------------------------------------------------------------------------------------

    def _prove_service(self) -> None:
        for key, onward in self.onward.items():
            if not onward:
                raise Fault(f"a lost wake-up: nothing will ever happen here\n{self._way(key)}")
        for ring in _rings({key: [k for _, k in onward if k.queue] for key, onward in self.onward.items()}):
            self._check_ring(ring)

    def _check_ring(self, ring: set[Key]) -> None:
        """A wait that goes round and round has to rest on somebody who never does what he could do all the time."""
        inside = {kind for key in ring for kind, after in self.onward[key] if after in ring}
        always = set.intersection(*({kind for kind, _ in self.onward[key]} for key in ring))
        if always <= inside:
            raise Fault(
                f"somebody may wait for ever, in a circle of {len(ring)}\n{self._way(min(ring, key=self._far))}"
            )

    def _far(self, key: Key) -> int:
        return len(self._path(key))

    def _path(self, key: Key) -> list[Event]:
        path = []
        before, event = self.came[key]
        while before is not None and event is not None:
            path.append(event)
            before, event = self.came[before]
        return path[::-1]

    def _way(self, key: Key) -> str:
        return f"[{self.setup.name}] " + " -> ".join(map(_said, self._path(key))) + f"\n  {key}"


def _promise(key: Key, event: Event) -> str:
    kind = FAIR[event[0]]
    return "patient open" if kind == "open" and key.opening[event[1]][7] else kind


def _said(event: Event) -> str:
    name, number, *flags = event
    return f"{name}({', '.join(map(str, (number, *(flag for flag in flags if flag))))})"


def _rings(graph: dict[Key, list[Key]]) -> Iterator[set[Key]]:  # noqa: C901  an algorithm of one piece
    """Find the strongly connected parts of more than one state, or of one that leads to itself (Tarjan)."""
    order: dict[Key, int] = {}
    low: dict[Key, int] = {}
    stack: list[Key] = []
    on_stack: set[Key] = set()
    for root, nexts in graph.items():
        if root in order:
            continue
        work = [(root, iter(nexts))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            key, rest = work[-1]
            for after in rest:
                if after not in order:
                    order[after] = low[after] = len(order)
                    stack.append(after)
                    on_stack.add(after)
                    work.append((after, iter(graph[after])))
                    break
                if after in on_stack:
                    low[key] = min(low[key], order[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[key])
                if low[key] == order[key]:
                    ring = set()
                    while key not in ring:
                        ring.add(stack.pop())
                    on_stack -= ring
                    if len(ring) > 1 or key in graph[key]:
                        yield ring


def catches(mutant: Mutant) -> str | None:
    """Search a mutant until it shows; return in which configuration that was."""
    for setup in SETUPS:
        try:
            Search(load(mutant), setup).run()
        except Fault:
            return setup.name
    return None


def table(found: Iterable[Found]) -> str:
    """Lay out what was seen."""
    found = list(found)
    lines = [f"{'configuration':<18}{'states':>9}{'transitions':>13}{'waiting':>9}{'depth':>7}{'seconds':>9}"]
    for f in found:
        rest = "" if f.whole else "  (the nearest)"
        lines.append(f"{f.name:<18}{f.states:>9}{f.transitions:>13}{f.waiting:>9}{f.depth:>7}{f.seconds:>9.2f}{rest}")
    total = sum(f.states for f in found), sum(f.transitions for f in found), sum(f.waiting for f in found)
    lines.append(f"{'in all':<18}{total[0]:>9}{total[1]:>13}{total[2]:>9}{'':>7}{sum(f.seconds for f in found):>9.2f}")
    return "\n".join(lines)


def main() -> None:
    """Search the real one, and the mutants if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", action="store_true", help="search every mutant, and say how each is found")
    parser.add_argument("--only", help="one configuration, by name")
    arguments = parser.parse_args()
    if arguments.mutants:
        for mutant in MUTANTS:
            began = time.perf_counter()
            where = catches(mutant)
            print(f"{time.perf_counter() - began:6.2f} s  {mutant.name}: {where or 'NOT SEEN'}", flush=True)
        return
    setups = [setup for setup in SETUPS if arguments.only in {None, setup.name}]
    found = []
    for setup in setups:
        found.append(Search(original(), setup).run())
        print(table(found).splitlines()[-2], flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
