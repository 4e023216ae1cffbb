"""The ways in which a Flask app has its connections."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response
from matrix_cells import Way, Work, drive

from poolkit_flask import Poolkit

__all__ = ["FLASK", "FlaskWay"]

FLASK = {"unit": True, "acquire": False, "transaction": True, "stream": False, "whole stream": True}


class FlaskWay(Way):
    """An app with one view for each way; `how` says which."""

    def __init__(self, url: str, how: str, **pool: Any) -> None:
        self.how, self.transaction = how, FLASK[how]
        self.app = app = Flask(f"matrix{secrets.token_hex(2)}")
        app.logger.disabled = True
        app.config["POOLKIT"] = {"default": {"url": url, "max_size": 1, "timeout": 5, **pool}}
        self.db = db = Poolkit(app)

        @app.get("/unit")
        def unit() -> str:
            self.do(db.connection)
            return ""

        @app.get("/acquire")
        def acquire() -> str:
            with db.pool().acquire() as conn:
                self.do(conn)
            return ""

        @app.get("/transaction")
        def transaction() -> str:
            with db.transaction() as conn:
                self.do(conn)
            return ""

        @app.get("/stream")
        def stream() -> Response:
            return Response(body())

        @app.get("/whole stream")
        def whole_stream() -> Response:
            db.unit_of_work.stream()
            return Response(body())

        def body() -> Iterator[str]:
            yield "a"
            self.do(db.connection)
            yield "b"

    def do(self, conn: Any) -> None:
        """Do the request's work."""
        drive(self.work(conn))

    def serve(self, work: Work) -> int:
        """Give one request to the app; return the status of the answer, 599 for a body that broke off."""
        self.work = work
        try:
            response = self.app.test_client().get(f"/{self.how}")
            complete = response.get_data()
        except Exception:
            if "stream" not in self.how:
                raise
            return 599
        assert complete or response.status_code != 200 or "stream" not in self.how
        return response.status_code

    def pools(self) -> list[Any]:
        """The pools that exist now."""
        return list(self.db.registry.live_pools())

    def close(self) -> None:
        """Close the pool."""
        self.db.close(self.app, 0)
