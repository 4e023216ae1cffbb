"""A page of the Django admin with this worker's pools, for staff only.

For the default admin site, in place of "django.contrib.admin":

    INSTALLED_APPS = ["poolkit_django.admin_site.PoolkitAdminConfig", "poolkit_django", ...]

For an admin site of your own:

    class ShopAdminSite(PoolsAdmin, admin.AdminSite): ...

The page is linked from the admin's index and side bar. It has no model behind it, and so neither a migration nor a
permission: whoever may enter the admin may see it. Beside it, `pools.json` has the same as data.
"""

from __future__ import annotations

from typing import Any

from django.contrib.admin.apps import AdminConfig
from django.contrib.admin.sites import AdminSite
from django.http import HttpRequest, JsonResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_safe

from poolkit_django.overview import overview

__all__ = ["PoolkitAdminConfig", "PoolkitAdminSite", "PoolsAdmin", "show_pools", "show_pools_as_json"]

REFRESHES = (2, 5, 30)


def show_pools(request: Any, site: AdminSite) -> TemplateResponse:
    """Show this worker's pools in the look of an admin site. Takes no connection but for who asks."""
    asked = request.GET.get("refresh", "")
    every = int(asked) if asked in map(str, REFRESHES) else None
    context = {
        **site.each_context(request),
        "title": "Connection pools",
        "seen": overview(),
        "refresh": every,
        "refreshes": REFRESHES,
    }
    request.current_app = site.name
    return TemplateResponse(request, "poolkit_django/pools.html", context)  # admin_view has it not cached


def show_pools_as_json() -> JsonResponse:
    """The same as data."""
    seen = overview()
    for pool in seen["pools"]:
        pool["holders"] = [
            {"label": holder.label, "age": holder.age, "in_transaction": holder.in_transaction}
            for holder in pool["holders"]
        ]
    return JsonResponse(seen)


class PoolsAdmin(AdminSite):
    """Mix in before an AdminSite: it gets the page, and the link to it."""

    def get_urls(self) -> Any:
        """Add the page and its data."""
        page = require_safe(lambda request: show_pools(request, self))
        data = require_safe(lambda request: show_pools_as_json())  # noqa: ARG005  a view has a request
        return [
            path("poolkit/pools/", self.admin_view(page), name="poolkit_pools"),
            path("poolkit/pools.json", self.admin_view(data), name="poolkit_pools_json"),
            *super().get_urls(),
        ]

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> Any:
        """Add the link; it stands last, for it is looked for least."""
        apps = super().get_app_list(request, app_label)
        if app_label is None and self.has_permission(request):
            apps = [*apps, self._entry()]
        return apps

    def _entry(self) -> dict[str, Any]:
        url = reverse("admin:poolkit_pools", current_app=self.name)
        allowed = {"add": False, "change": False, "delete": False, "view": True}
        page = {
            "model": None,
            "name": "Connection pools",
            "object_name": "Pools",
            "admin_url": url,
            "add_url": None,
            "perms": allowed,
            "view_only": True,
        }
        return {"name": "poolkit", "app_label": "poolkit", "app_url": url, "has_module_perms": True, "models": [page]}


class PoolkitAdminSite(PoolsAdmin):
    """Django's own admin site, with the page."""


class PoolkitAdminConfig(AdminConfig):
    """Django's admin, whose default site has the page."""

    default = False
    default_site = "poolkit_django.admin_site.PoolkitAdminSite"
