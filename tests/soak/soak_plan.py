"""What will happen in one round, all of it drawn from one seed before anything begins: the settings and the faults.

The same seed gives the same plan. What the threads and tasks make of it is another matter: their interleaving is the
system's, so a replay meets the same faults at the same moments, and not the same statements.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["ADMIN", "NETWORK", "SERVER", "Fault", "Plan", "draw"]


class Kind(NamedTuple):
    """A kind of fault: how often it is drawn compared with the others, and for how long it lasts (seconds)."""

    weight: int
    shortest: float = 0.0
    longest: float = 0.0


# On one track one thing happens at a time; the tracks run side by side.
SERVER = {
    "kill idle backends": Kind(4),
    "kill all backends": Kind(4),
    "kill a few backends": Kind(4),
    "cancel statements": Kind(3),
    "crash one backend": Kind(2),  # the postmaster then ends them all, and recovers
    "restart": Kind(3, 0.0, 0.6),
    "stop": Kind(2, 0.5, 2.5),
    "crash": Kind(3, 0.0, 1.0),
    "pause": Kind(3, 0.1, 2.0),
}
NETWORK = {
    "latency": Kind(3, 0.5, 2.0),
    "throttle": Kind(2, 0.5, 2.0),
    "blackhole": Kind(3, 0.2, 2.5),
    "half-open": Kind(2, 0.2, 1.5),
    "hide ends": Kind(2, 0.5, 2.0),
    "refuse": Kind(2, 0.2, 2.0),
    "cut by RST": Kind(4),
    "cut by FIN": Kind(4),
}
ADMIN = {
    "drain": Kind(4),
    "resize": Kind(4),
    "sweep": Kind(2),
    "rotate credentials": Kind(4),
    "ask ready": Kind(3),
    "look": Kind(3),
}

CALM_BETWEEN = {"server": (0.3, 1.6), "network": (0.3, 1.6), "admin": (0.05, 0.6)}


@dataclass(frozen=True)
class Fault:
    """One thing that happens `at` so many seconds into the round, and ends `lasts` seconds later."""

    at: float
    track: str
    kind: str
    lasts: float = 0.0
    dice: float = 0.0  # in [0, 1): whatever else the kind has to choose

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.track:8}{self.kind}" + (f" for {self.lasts:.2f} s" if self.lasts else "")


@dataclass(frozen=True)
class Plan:
    """One round."""

    seed: int
    seconds: float  # of storm
    settings: dict[str, Any]
    listened: bool  # whether the pools have listeners
    faults: tuple[Fault, ...]

    def moments(self) -> list[tuple[float, Fault, bool]]:
        """Every beginning (True) and every end of a fault, in order."""
        moments = []
        for fault in self.faults:
            moments.append((fault.at, fault, True))
            if ({**SERVER, **NETWORK, **ADMIN})[fault.kind].longest:
                moments.append((fault.at + fault.lasts, fault, False))
        return sorted(moments, key=lambda moment: moment[0])

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"seed {self.seed}: {len(self.faults)} faults in {self.seconds:.0f} s; {settings}"


def draw(seed: int, seconds: float) -> Plan:
    """Draw a round with `seconds` of faults."""
    luck = random.Random(seed)
    settings = _settings(luck)
    listened = luck.random() < 0.5
    faults = [
        *_track(luck, "server", SERVER, seconds),
        *_track(luck, "network", NETWORK, seconds),
        *_track(luck, "admin", ADMIN, seconds),
    ]
    # The last thing that happens is an outage, so that every round measures how soon service is back after one.
    name, table = luck.choice([("server", SERVER), ("network", NETWORK)])
    kind = luck.choice([kind for kind, (_, _, longest) in table.items() if longest >= 1.0])
    faults.append(Fault(seconds, name, kind, lasts=table[kind].longest, dice=luck.random()))
    return Plan(seed, seconds, settings, listened, tuple(sorted(faults, key=lambda fault: fault.at)))


def _track(luck: random.Random, track: str, table: dict[str, Kind], seconds: float) -> list[Fault]:
    faults = []
    low, high = CALM_BETWEEN[track]
    at = luck.uniform(low, high)
    while True:
        kind = luck.choices(list(table), [entry.weight for entry in table.values()])[0]
        lasts = luck.uniform(table[kind].shortest, table[kind].longest)
        if at + lasts >= seconds:
            return faults
        faults.append(Fault(at, track, kind, lasts, luck.random()))
        at += lasts + luck.uniform(low, high)


def _settings(luck: random.Random) -> dict[str, Any]:
    max_size = luck.randint(3, 8)
    return {
        "max_size": max_size,
        "min_size": luck.randint(0, 2),
        "timeout": luck.choice([0.5, 1.0, 2.0]),
        "open_timeout": luck.choice([2.0, 5.0]),
        "max_lifetime": luck.choice([1.0, 5.0, 3600.0]),
        "idle_timeout": luck.choice([0.5, 600.0]),
        "max_uses": luck.choice([None, None, 50]),
        "check_after": luck.choice([0.02, 0.5, 30.0, None]),
        "reset": luck.choice(["auto", "auto", "full"]),
        "order": luck.choice(["lifo", "fifo"]),
        "max_waiting": luck.choice([None, None, 15]),
        "target_delay": luck.choice([None, None, 0.05]),
        "on_outage": luck.choice(["refuse", "refuse", "wait"]),
        "reserved": luck.choice([0, 0, 2]),
        "leak_after": luck.choice([None, 0.5]),
    }
