"""health, ready, stats.json and the page for staff: how this worker is.

None of them needs a free connection to answer, but to look up the user who asks.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.http import Http404, HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from poolkit import web
from poolkit_django import conf
from poolkit_django.overview import happenings, replica_states

__all__ = ["health", "pools", "ready", "stats"]


def _respond(reply: web.Reply) -> JsonResponse:
    return JsonResponse(reply.body, status=reply.status, headers=reply.headers)


@require_safe
def health(request: HttpRequest) -> JsonResponse:  # noqa: ARG001
    """Say that the process lives."""
    return _respond(web.health())


@require_safe
def ready(request: HttpRequest) -> JsonResponse:  # noqa: ARG001
    """Say whether requests can be served: 200 or 503."""
    return _respond(web.ready(conf.registry()))


@never_cache
@require_safe
def stats(request: Any) -> JsonResponse:
    """Show the pools of this worker to the token's holder and to staff; to this machine where the settings say so."""
    remote = request.META.get("REMOTE_ADDR")
    if web.may_see_stats(remote, request.headers, conf.stats_token(), conf.stats()) or _is_staff(request):
        reply = web.stats(conf.registry())
        return _respond(reply._replace(body={**reply.body, "replicas": replica_states(), "happenings": happenings()}))
    return _respond(web.forbidden())


@never_cache
@require_safe
def pools(request: HttpRequest) -> Any:
    """Show this worker's pools in the look of the default admin site, to those who may enter it; others log in there.

    404 where the admin is not installed. It must have a place in the URLs.
    """
    if not apps.is_installed("django.contrib.admin"):
        raise Http404("the page is the admin's: django.contrib.admin is not in INSTALLED_APPS")
    from django.contrib import admin  # noqa: PLC0415  only where it is installed

    from poolkit_django.admin_site import show_pools  # noqa: PLC0415

    return admin.site.admin_view(lambda request: show_pools(request, admin.site))(request)


def _is_staff(request: Any) -> bool:
    # Asked last, and only of those with a session: looking a user up takes a connection.
    if settings.SESSION_COOKIE_NAME not in request.COOKIES:
        return False
    user = getattr(request, "user", None)
    return bool(user is not None and user.is_active and user.is_staff)
