"""For tests, poolkit's own and its users': fakes instead of mocks, a clock turned by hand, a private PostgreSQL."""

from poolkit.testing.fakes import FakeAsyncDriver, FakeConnection, FakeDriver, FakeServer, ManualClock, ManualRuntime
from poolkit.testing.loops import ManualLoop

__all__ = [
    "FakeAsyncDriver",
    "FakeConnection",
    "FakeDriver",
    "FakeServer",
    "ManualClock",
    "ManualLoop",
    "ManualRuntime",
]
