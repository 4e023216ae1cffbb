"""The views of every Django app."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import connection, models, transaction
from django.http import JsonResponse
from django.urls import path

__all__ = ["urlpatterns"]


class Item(models.Model):
    """What is read."""

    name = models.TextField()

    class Meta:
        app_label = "bench"
        db_table = "items"
        managed = False

    def __str__(self) -> str:
        return str(self.name)


class Hit(models.Model):
    """What is written."""

    item_id = models.IntegerField()

    class Meta:
        app_label = "bench"
        db_table = "hits"
        managed = False

    def __str__(self) -> str:
        return f"hit on {self.item_id}"


def hello(_request: Any) -> Any:
    """Answer, without a connection."""
    return JsonResponse({"hello": "world"})


def item(_request: Any, item_id: int) -> Any:
    """Read one row by its key."""
    found = Item.objects.get(pk=item_id)
    return JsonResponse({"id": found.pk, "name": found.name})


def change(_request: Any) -> Any:
    """Change the session, and read one row."""
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 60000")
    return JsonResponse({"name": Item.objects.get(pk=1).name})


def hit(_request: Any) -> Any:
    """Write and read in one transaction."""
    new = Hit.objects.create(item_id=1)
    Item.objects.get(pk=1)
    return JsonResponse({"id": new.pk})


# Where nothing around the view begins a transaction, it is the view's own.
_in_transaction = settings.MIDDLEWARE or settings.DATABASES["default"].get("ATOMIC_REQUESTS")
urlpatterns = [
    path("hello", hello),
    path("item/<int:item_id>", item),
    path("set", change),
    path("hit", hit if _in_transaction else transaction.atomic(hit)),
]
