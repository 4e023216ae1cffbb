"""For tests, poolkit's own and its users': fakes, not mocks; a clock turned by hand; servers and networks to break."""

from poolkit.testing.fakes import FakeAsyncDriver, FakeConnection, FakeDriver, FakeServer, ManualClock, ManualRuntime
from poolkit.testing.faults import FaultProxy
from poolkit.testing.loops import ManualLoop

__all__ = [
    "FakeAsyncDriver",
    "FakeConnection",
    "FakeDriver",
    "FakeServer",
    "FaultProxy",
    "ManualClock",
    "ManualLoop",
    "ManualRuntime",
]
