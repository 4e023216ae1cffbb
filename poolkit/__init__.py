"""poolkit: connection pools for threads and asyncio, and units of work for Django, Flask and FastAPI.

Where to look, in this order:

    driver     what a pool can hold: the one seam to the outside       drivers/  those that come with poolkit
    state      every decision of a pool, pure                          overload  whom to refuse when it is too much
    threads    Pool: the same for threads                              aio       AsyncPool: for asyncio
    ending     how a unit of work ends, pure                           scope     UnitOfWork, AsyncUnitOfWork
    blocks     the unit that code runs in                              retrying  units that are run again
    registry   the pools of a process by name                          fork      what happens at a fork and at exit

Two nouns are enough to begin with: a *lease* is one borrowing of a connection, a *unit of work* is what one request
does between the first use of a connection and one COMMIT or ROLLBACK.
"""

from poolkit.aio import AsyncLease, AsyncPool
from poolkit.blocks import async_unit_of_work, current, unit_of_work
from poolkit.config import PoolConfig
from poolkit.driver import AsyncDriver, AsyncTransactional, Driver, SharedClient, Transactional
from poolkit.errors import (
    AcquireTimeout,
    CommitFailed,
    ConfigError,
    ConnectRejected,
    Holder,
    LeaseError,
    NestedAcquire,
    OpenFailed,
    Overloaded,
    PoolClosed,
    PoolError,
    PoolkitError,
    UnitOfWorkError,
    WrongProcess,
)
from poolkit.registry import Registry, configure
from poolkit.retrying import retryable
from poolkit.scope import AsyncUnitOfWork, UnitOfWork
from poolkit.stats import PoolStats
from poolkit.threads import Lease, Pool

__version__ = "0.1.0"

__all__ = [
    "AcquireTimeout",
    "AsyncDriver",
    "AsyncLease",
    "AsyncPool",
    "AsyncTransactional",
    "AsyncUnitOfWork",
    "CommitFailed",
    "ConfigError",
    "ConnectRejected",
    "Driver",
    "Holder",
    "Lease",
    "LeaseError",
    "NestedAcquire",
    "OpenFailed",
    "Overloaded",
    "Pool",
    "PoolClosed",
    "PoolConfig",
    "PoolError",
    "PoolStats",
    "PoolkitError",
    "Registry",
    "SharedClient",
    "Transactional",
    "UnitOfWork",
    "UnitOfWorkError",
    "WrongProcess",
    "async_unit_of_work",
    "configure",
    "current",
    "retryable",
    "unit_of_work",
]
