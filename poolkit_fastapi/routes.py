"""Health and readiness for anyone, the numbers for whom may see them. Not in the OpenAPI schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from poolkit import ConfigError, web
from poolkit_fastapi.handlers import respond

if TYPE_CHECKING:
    from poolkit_fastapi.extension import Poolkit

__all__ = ["add_routes"]


def add_routes(app: Starlette, kit: Poolkit, prefix: str) -> None:
    """Put the pages in front of the app's routes: one of those that takes every path must not hide them."""

    async def health(_request: Request) -> Response:
        return respond(web.health())

    async def ready(_request: Request) -> Response:
        return respond(await web.aready(kit.registry))

    async def stats(request: Request) -> Response:
        remote = request.client.host if request.client else None
        allowed = web.may_see_stats(remote, request.headers, kit.stats_token, kit.stats)
        return respond(web.stats(kit.registry) if allowed else web.forbidden())

    pages = {"health": health, "ready": ready, "stats.json": stats}
    routes = [
        Route(f"{prefix}/{name}", page, name=f"poolkit:{name}", include_in_schema=False) for name, page in pages.items()
    ]
    taken = {getattr(route, "path", None) for route in app.routes}
    if any(route.path in taken for route in routes):
        raise ConfigError(f"something answers at {prefix} already: give this Poolkit another prefix, or None", "prefix")
    app.router.routes[:0] = routes
