"""Django without a pool: its own engine, CONN_MAX_AGE=0, so each request connects and closes."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, transaction
from django.http import Http404, HttpRequest, JsonResponse
from django.urls import path

_url = urlsplit(os.environ.get("DATABASE_URL", ""))
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _url.path.lstrip("/"),
            "USER": _url.username,
            "PASSWORD": _url.password,
            "HOST": _url.hostname,
            "PORT": _url.port,
            "CONN_MAX_AGE": 0,
        }
    },
)
django.setup()


def product(request: HttpRequest, product_id: int) -> JsonResponse:  # noqa: ARG001
    """Show one product."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, name, price, stock FROM products WHERE id = %s", [product_id])
        row = cursor.fetchone()
    if row is None:
        raise Http404
    return JsonResponse({"id": row[0], "name": row[1], "price": str(row[2]), "stock": row[3]})


@transaction.atomic
def create_order(request: HttpRequest) -> JsonResponse:
    """Insert an order and lower the stock."""
    wanted: dict[str, Any] = json.loads(request.body)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO orders (product_id, quantity) VALUES (%s, %s) RETURNING id",
            [wanted["product_id"], wanted["quantity"]],
        )
        order_id = cursor.fetchone()[0]
        cursor.execute(
            "UPDATE products SET stock = stock - %s WHERE id = %s", [wanted["quantity"], wanted["product_id"]]
        )
    return JsonResponse({"id": order_id}, status=201)


urlpatterns = [path("products/<int:product_id>", product), path("orders", create_order)]
app = get_wsgi_application()
