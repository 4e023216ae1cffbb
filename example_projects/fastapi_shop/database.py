"""The connections, and the types by which endpoints ask for them."""

from __future__ import annotations

import os
from typing import Annotated, Any

import psycopg
from fastapi import Depends
from psycopg.rows import dict_row

from poolkit import AsyncUnitOfWork
from poolkit_fastapi import Poolkit

db = Poolkit(
    {
        "default": {"url": os.environ.get("DATABASE_URL"), "options": {"row_factory": dict_row}},
        "pricing": {"url": os.environ.get("PRICING_URL")},
    },
    stats="loopback",  # nothing stands in front of this shop; behind a proxy it is stats_token=...
)

Row = dict[str, Any]
Conn = Annotated[psycopg.AsyncConnection[Row], Depends(db.connection)]
SyncConn = Annotated[psycopg.Connection[Row], Depends(db.sync_connection)]
UoW = Annotated[AsyncUnitOfWork, Depends(db.unit_of_work)]
