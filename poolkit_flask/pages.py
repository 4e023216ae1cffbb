"""Health, readiness and the numbers. Registered as a blueprint, so that `flask routes` shows them."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response, current_app, request

from poolkit import web
from poolkit_flask.settings import Settings

__all__ = ["Page", "make", "respond"]

Page = Callable[[], Response]


def make(settings: Settings) -> tuple[Blueprint, dict[str, Page]]:
    """Return the blueprint, and its pages by endpoint."""
    pages: dict[str, Page] = {
        "health": lambda: respond(web.health()),
        "ready": lambda: respond(web.ready(settings.registry)),
        "stats": lambda: respond(_stats(settings)),
    }
    blueprint = Blueprint("poolkit", __name__, url_prefix=settings.url_prefix)
    for name, page in pages.items():
        blueprint.add_url_rule("/stats.json" if name == "stats" else f"/{name}", name, page)
    return blueprint, {f"poolkit.{name}": page for name, page in pages.items()}


def respond(reply: web.Reply) -> Response:
    """Make a response of plain data."""
    body = current_app.json.dumps(reply.body)
    return current_app.response_class(body, reply.status, reply.headers, mimetype="application/json")


def _stats(settings: Settings) -> web.Reply:
    if not web.may_see_stats(request.remote_addr, dict(request.headers), settings.stats_token, settings.stats):
        return web.forbidden()
    return web.stats(settings.registry)
