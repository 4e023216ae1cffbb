"""Whole requests: the same three endpoints under a real server, written with each peer and with poolkit.

Servers have processor 0, PostgreSQL and the load processor 1. All apps of a framework are served side by side, and the
load goes from one to the next and back, so that a drift of the machine hits all alike. An answer other than 200, or
none, voids the row: what is fast because it fails is not fast.

What a pool costs is a few per cent of a request. The rate under load shows it, but a busy machine shows as much; so
the same apps are also called by their WSGI or ASGI interface, without a server, with everything on one processor.

    apps        what is measured, a file each        database    their tables
    servers     gunicorn and uvicorn                 load        wrk, or a generator of our own
    suite       the tables                           in_process  the calls without a server
"""

from benchmarks.requests.suite import main

__all__ = ["main"]
