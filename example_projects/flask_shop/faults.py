"""What can go wrong after the writes of an order, on demand: `POST /orders?fault=...`. Leave this out of a copy."""

from __future__ import annotations

from contextlib import suppress

import psycopg
from flask import abort


def happen(fault: str | None, conn: psycopg.Connection, order_id: int) -> None:
    """Let `fault` happen. Nothing of the order may be saved, whichever it is."""
    if fault == "raise":
        raise RuntimeError("raised after both writes, as the request asked")
    if fault == "commit":  # nobody of that name: the constraint is deferred, so it is the COMMIT that fails
        conn.execute("UPDATE orders SET customer = 'nobody' WHERE id = %s", (order_id,))
    elif fault == "swallow":
        with suppress(psycopg.Error):
            conn.execute("SELECT 1 / 0")
    elif fault:
        abort(400, f"fault must be raise, commit or swallow, not {fault!r}")
