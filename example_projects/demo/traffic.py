"""A small HTTP client for many requests at once: keep-alive connections, a thread per client, every answer counted."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answers:
    """What came back: each answer's moment (of time.monotonic()) and status, 0 where no answer came."""

    moments: list[tuple[float, int]] = field(default_factory=list)
    seconds: float = 0.0
    retry_after: int = 0  # answers that said when to come back

    @property
    def by_status(self) -> Counter[int]:
        """How many of each status."""
        return Counter(status for _, status in self.moments)

    @property
    def total(self) -> int:
        """All requests."""
        return len(self.moments)

    @property
    def failed(self) -> int:
        """Requests that were not answered with 2xx."""
        return sum(not is_success(status) for _, status in self.moments)

    def first_success_after(self, moment: float) -> float | None:
        """Seconds from `moment` to the first good answer after it."""
        later = [when for when, status in self.moments if when > moment and is_success(status)]
        return min(later) - moment if later else None


def is_success(status: int) -> bool:
    """Whether the server did what it was asked."""
    return 200 <= status < 300


class Client:
    """One keep-alive connection to one server; connects again after a fault."""

    def __init__(self, url: str, timeout: float = 20.0) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, http.client.HTTPMessage | None, bytes]:
        """Send one request; status 0 where no answer came."""
        kept = self._connection is not None
        answer = self._exchange(method, path, body)
        if answer is None and kept and method == "GET":
            # A server may close a connection it kept just when we use it again: any client asks once more then.
            answer = self._exchange(method, path, body)
        return answer or (0, None, b"")

    def _exchange(self, method: str, path: str, body: Any) -> tuple[int, http.client.HTTPMessage, bytes] | None:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=self._timeout)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self._connection.getresponse()
            return response.status, response.headers, response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return None

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def one(url: str, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """Send one request on a connection of its own."""
    client = Client(url)
    try:
        status, _, content = client.request(method, path, body)
        return status, content
    finally:
        client.close()


Request = tuple[str, str, Any]


def shopping(count: int) -> Iterator[Request]:
    """Mostly looking, sometimes buying: every fourth request is an order."""
    for number in range(count):
        if number % 4 == 3:
            yield "POST", "/orders", {"product_id": number % 3 + 1, "quantity": 1}
        else:
            yield "GET", f"/products/{number % 3 + 1}", None


def send(url: str, requests: Iterator[Request], clients: int, *, pause: float = 0.0) -> Answers:
    """Send all requests through so many clients at once, each with a pause (seconds) between two requests."""
    answers = Answers()
    lock = threading.Lock()

    def take() -> Request | None:
        with lock:
            return next(requests, None)

    def work() -> None:
        client = Client(url)
        while (request := take()) is not None:
            status, headers, _ = client.request(*request)
            with lock:
                answers.moments.append((time.monotonic(), status))
                answers.retry_after += bool(headers and headers.get("Retry-After"))
            time.sleep(pause)
        client.close()

    began = time.monotonic()
    _run_threads(work, clients)
    answers.seconds = time.monotonic() - began
    return answers


def until(stop: threading.Event) -> Iterator[Request]:
    """Look at products until told to stop."""
    number = 0
    while not stop.is_set():
        number += 1
        yield "GET", f"/products/{number % 3 + 1}", None


def _run_threads(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
