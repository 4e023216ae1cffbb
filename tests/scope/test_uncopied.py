"""A lease, a pool, a unit and a registry exist once: a copy would be a second borrower of the same connection."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from rig import Rig

from poolkit import AsyncUnitOfWork, UnitOfWork


@pytest.mark.parametrize("do", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_none_of_them_is_copied(do: Any) -> None:
    """Copying and pickling are refused with what to do instead; nothing happens to the original."""
    rig = Rig()
    registry = rig.in_loop().registry
    pool, async_pool = registry.pool(), registry.async_pool()
    lease, async_lease = pool.acquire(), await async_pool.acquire()
    expected = {
        pool: "make a pool of your own", async_pool: "make a pool of your own", lease: "with acquire",
        async_lease: "with acquire", UnitOfWork(registry): "uow.share", AsyncUnitOfWork(registry): "uow.share",
        registry: "make one of your own",
    }  # fmt: skip
    for one, instead in expected.items():
        with pytest.raises(TypeError, match=f"{type(one).__name__} can't be copied or pickled: .*{instead}"):
            do(one)
    lease.release()
    await async_lease.release()
    assert rig.out() == 0
