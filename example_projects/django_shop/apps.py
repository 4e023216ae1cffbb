"""The application's name."""

from __future__ import annotations

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """The shop; its tables are named without a prefix, see models.py."""

    name = "example_projects.django_shop"
    label = "shop"
