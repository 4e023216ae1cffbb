"""The pricing service: somebody else's HTTP API, which the shops ask through their pooled session.

GET /price/ID answers {"id", "price"} in cents, 404 past the last product. Connections are kept alive, so that pooling
can show; GET /counters tells how many connections and requests there were.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PRICES = {1: 3_40, 2: 6_90, 3: 18_90, 4: 449_00, 5: 11_50}


class PricingServer(ThreadingHTTPServer):
    """A thread for each connection; counts connections and requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.connections = 0
        self.requests = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the only errors are clients that left."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the acknowledgement of its own headers
    server: PricingServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests += 1
        found = re.fullmatch(r"/price/(\d{1,9})", self.path)
        if self.path == "/counters":
            self._answer(200, {"connections": self.server.connections, "requests": self.server.requests})
        elif found and int(found[1]) in PRICES:
            self._answer(200, {"id": int(found[1]), "price": PRICES[int(found[1])]})
        else:
            self._answer(404, {"error": "no price for that"})

    def _answer(self, status: int, body: dict[str, int | str]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        """Keep quiet."""


@contextmanager
def pricing_server() -> Iterator[PricingServer]:
    """Run the service in a thread of this process on a free port; yields it."""
    with PricingServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="pricing")
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
