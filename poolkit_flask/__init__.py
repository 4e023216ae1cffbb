"""Bring poolkit to a Flask project.

    from poolkit_flask import Poolkit

    db = Poolkit()

    def create_app():
        app = Flask(__name__)
        app.config["POOLKIT"] = {"default": {"url": "postgresql://localhost/shop", "max_size": 8}}
        db.init_app(app)
        return app

    @shop.post("/orders")
    def create_order():
        db.connection.execute("INSERT ...")     # committed when the view has returned, rolled back if it raised
        return {}, 201

Where to look:

    extension   Poolkit: what views, commands and tests use        settings   what stands in app.config
    binding     what an app does differently once it has one       unit       a request's unit of work, and its body
    pages       health, ready, stats                               cli        `flask poolkit status` and `check`
"""

from poolkit_flask.extension import Poolkit

__all__ = ["Poolkit"]
