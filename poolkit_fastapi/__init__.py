"""Bring poolkit to a FastAPI or Starlette project.

    from poolkit_fastapi import Poolkit

    db = Poolkit({"default": {"url": "postgresql://localhost/shop", "max_size": 8}})
    app = FastAPI()
    db.init_app(app)
    Conn = Annotated[psycopg.AsyncConnection, Depends(db.connection)]

Where to look:

    extension      Poolkit: settings, init_app, transactions outside a request
    dependencies   what an endpoint asks for, and the commit point
    middleware     one exchange: what a request holds besides, until its body and background tasks are through
    handlers       the 503                lifespan   warm at start, drained at stop
    routes         health, ready, stats   retry      endpoints that run again
"""

from poolkit_fastapi.extension import Poolkit

__all__ = ["Poolkit"]
