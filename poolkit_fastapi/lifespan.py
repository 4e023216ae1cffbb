"""Warm at start, drained at stop, around the app's own lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from poolkit_fastapi import late_code

if TYPE_CHECKING:
    from poolkit_fastapi.extension import Poolkit

__all__ = ["wrap_lifespan"]


def wrap_lifespan(app: Starlette, kit: Poolkit) -> None:
    """Open before the app's own lifespan begins, close after it has ended; its state is passed on.

    So the code of that lifespan can use the database on both ends. Routers included later bring their lifespans inside.
    """
    inner: Any = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Any]:
        late_code.tell(app, kit)
        await kit.open()
        try:
            async with inner(app) as state:
                yield state
        finally:
            await kit.close()

    app.router.lifespan_context = lifespan
