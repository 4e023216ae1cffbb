"""Flask-SQLAlchemy, Core select."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Column, Integer, String, Table, insert, select

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["BENCH_DSN"].replace("postgresql://", "postgresql+psycopg://", 1)
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": int(os.environ["BENCH_POOL_SIZE"]), "max_overflow": 0}
db: Any = SQLAlchemy(app)
items = Table("items", db.metadata, Column("id", Integer, primary_key=True), Column("name", String))
hits = Table("hits", db.metadata, Column("id", Integer, primary_key=True), Column("item_id", Integer))


@app.get("/hello")
def hello() -> dict[str, str]:
    """Answer, without a connection."""
    return {"hello": "world"}


@app.get("/item/<int:item_id>")
def item(item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    row = db.session.execute(select(items.c.id, items.c.name).where(items.c.id == item_id)).one()
    return {"id": row.id, "name": row.name}


@app.get("/hit")
def hit() -> dict[str, Any]:
    """Write and read in one transaction."""
    new = db.session.execute(insert(hits).values(item_id=1).returning(hits.c.id)).scalar_one()
    db.session.execute(select(items.c.name).where(items.c.id == 1)).one()
    db.session.commit()
    return {"id": new}
