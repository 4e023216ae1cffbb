"""The shop with Flask: an application factory, one extension, one blueprint, plain SQL."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import psycopg
import requests
from flask import Flask
from flask.typing import ResponseReturnValue
from psycopg.rows import dict_row
from werkzeug.exceptions import HTTPException

from example_projects.flask_shop.extensions import db
from example_projects.flask_shop.views import shop


def create_app(settings: Mapping[str, Mapping[str, Any]] | None = None) -> Flask:
    """Make the application; `settings` are those of poolkit, for tests."""
    app = Flask(__name__)
    app.config["POOLKIT"] = settings or {
        "default": {"url": os.environ.get("DATABASE_URL"), "options": {"row_factory": dict_row}},
        "pricing": {"url": os.environ.get("PRICING_URL")},
    }
    app.config["POOLKIT_STATS"] = "loopback"  # nothing stands in front of this shop; behind a proxy: a token
    db.init_app(app)
    app.register_blueprint(shop)
    app.register_error_handler(HTTPException, as_json)
    app.register_error_handler(psycopg.IntegrityError, conflict)
    app.register_error_handler(requests.RequestException, bad_gateway)
    return app


def as_json(error: HTTPException) -> ResponseReturnValue:
    """Answer abort(...) as an API does. What was written before it is rolled back: it was raised."""
    response = error.get_response()  # with the error's own headers: the Retry-After of a 503, the Allow of a 405
    response.data = json.dumps({"error": error.description})
    response.content_type = "application/json"
    return response


def conflict(_: psycopg.IntegrityError) -> tuple[dict[str, str], int]:
    """Answer 409 where the database refused, be it a statement or the COMMIT."""
    return {"error": "that contradicts what is stored"}, 409


def bad_gateway(_: requests.RequestException) -> tuple[dict[str, str], int]:
    """Answer 502 where the pricing service does not do its part."""
    return {"error": "no price can be had at the moment"}, 502
