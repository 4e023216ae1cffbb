"""The app: registers the system checks. Nothing is opened here: this runs in every management command."""

from __future__ import annotations

from contextlib import suppress

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from poolkit_django.checks import check_limits, check_poolkit


class PoolkitConfig(AppConfig):
    """poolkit in INSTALLED_APPS."""

    name = "poolkit_django"
    label = "poolkit_django"
    verbose_name = "poolkit"

    def ready(self) -> None:
        """Register the checks."""
        checks.register(check_poolkit, "poolkit")
        checks.register(check_limits, checks.Tags.database)
        if getattr(settings, "POOLKIT_REPLICAS", None):  # from the first statement on: a write is not to be missed
            from poolkit_django.fleet import fleet  # noqa: PLC0415  it imports the engine

            with suppress(ImproperlyConfigured):  # here it would keep the check from telling it; a server tells it too
                fleet()
