"""What can go wrong after the writes of an order, on demand: `POST /orders?fault=...`. Leave this out of a copy."""

from __future__ import annotations

from contextlib import suppress

from django.core.exceptions import BadRequest
from django.db import DatabaseError, connection

from example_projects.django_shop.models import Order


def happen(fault: str | None, order: Order) -> None:
    """Let `fault` happen. Nothing of the order may be saved, whichever it is."""
    if fault == "raise":
        raise RuntimeError("raised after both writes, as the request asked")
    if fault == "commit":  # nobody of that name: PostgreSQL's COMMIT finds that out, or at once MariaDB's statement
        Order.objects.filter(id=order.id).update(customer="nobody")
    elif fault == "swallow":
        with suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT no_such_column FROM orders")
    elif fault:
        raise BadRequest(f"fault must be raise, commit or swallow, not {fault!r}")
