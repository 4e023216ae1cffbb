"""The load: some connections that each ask again as soon as they are answered. `wrk` where there is one, else our own.

Ours is one thread over non-blocking sockets. It asks with a request made beforehand and reads of an answer what tells
where it ends, so that it keeps up with a Python server several times over.

    python -m benchmarks.requests.load URL CONNECTIONS SECONDS [BODY]

prints a `Load` as JSON; with a body it asks by POST.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["Generator", "Load", "generate", "quantile", "read_wrk", "run_own", "run_wrk"]

STALLED = 10.0  # seconds without any answer, after which the rest is given up
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Load:
    """What a load of some seconds met with. `rate` is of answers a second, `p50` and `p99` are in milliseconds."""

    answered: int
    errors: int
    rate: float
    p50: float
    p99: float


Generator = str  # "wrk" or "own"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of them does not exceed. Raises `ValueError` for none."""
    if not values:
        raise ValueError("no values, so no quantile")
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def chosen(wanted: str | None = None) -> Generator:
    """Return which generator is used: the one that is wanted, or the best that is there. Raises `SystemExit`."""
    if wanted is None:
        return "wrk" if shutil.which("wrk") else "own"
    if wanted == "wrk" and not shutil.which("wrk"):
        raise SystemExit("bench requests: wrk is not installed; leave --generator out, or say --generator own")
    return wanted


def generate(generator: Generator, url: str, connections: int, seconds: float, body: str | None = None) -> Load:
    """Put the load on a server, from a process of its own."""
    return (run_wrk if generator == "wrk" else run_own)(url, connections, seconds, body)


# -- wrk ---------------------------------------------------------------------------------------------------------------

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3}
_SCRIPT = """
wrk.method = "POST"
wrk.body = {body}
wrk.headers["Content-Type"] = "application/json"
"""


def run_wrk(url: str, connections: int, seconds: float, body: str | None = None) -> Load:
    """Let wrk do it. Its seconds are whole."""
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--latency"]
    command += ["--duration", f"{max(1, round(seconds))}s", "--timeout", f"{STALLED:.0f}s"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if body is not None:
            script.write(_SCRIPT.format(body=json.dumps(body)))
            script.flush()
            command += ["--script", script.name]
        said = subprocess.run([*command, url], capture_output=True, text=True, check=False)
    if said.returncode:
        raise RuntimeError(f"wrk failed: {(said.stderr or said.stdout).strip()}")
    return read_wrk(said.stdout)


def read_wrk(text: str) -> Load:
    """Read what wrk prints. Raises `ValueError` where it is not that."""
    answered = re.search(r"(\d+) requests in ", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if answered is None or rate is None:
        raise ValueError(f"this is not what wrk prints: {text[:200]!r}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    errors = sum(int(number) for found in (refused, broken) if found for number in found.groups())
    return Load(int(answered[1]), errors, float(rate[1]), _latency(text, 50), _latency(text, 99))


def _latency(text: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m|h)\s*$", text, re.MULTILINE)
    return float(found[1]) * _UNITS[found[2]] if found else float("nan")


# -- our own -----------------------------------------------------------------------------------------------------------


def run_own(url: str, connections: int, seconds: float, body: str | None = None) -> Load:
    """Run this module in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.requests.load", url, str(connections), str(seconds)]
    command += [] if body is None else [body]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return Load(**json.loads(said.stdout))


@dataclass
class _Tally:
    """What happened so far."""

    latencies: list[float] = field(default_factory=list)
    errors: int = 0


class _Client:
    """One connection, kept open: it asks, reads the answer to its end, and asks again."""

    def __init__(self, address: tuple[str, int], request: bytes, tally: _Tally) -> None:
        self._address = address
        self._request = request
        self._tally = tally
        self.socket = self._connected()
        self._read = b""
        self._asked = 0.0

    def _connected(self) -> socket.socket:
        connected = socket.create_connection(self._address, timeout=STALLED)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def ask(self) -> None:
        """Send the request: a few hundred bytes, which a socket takes at once."""
        self._read = b""
        self._asked = time.perf_counter()
        self.socket.sendall(self._request)

    def hear(self) -> bool:
        """Read what is there; return whether the answer, or the connection, has come to its end."""
        try:
            part = self.socket.recv(65536)
        except OSError:
            part = b""
        if not part:
            self._tally.errors += 1
            self.socket.close()
            return True
        self._read += part
        whole = is_whole(self._read)
        if whole:
            self._tally.latencies.append(time.perf_counter() - self._asked)
            if self._read[9:10] != b"2":
                self._tally.errors += 1
        return whole

    @property
    def is_open(self) -> bool:
        """Whether it may ask again as it is."""
        return self.socket.fileno() >= 0 and b"\r\nconnection: close" not in self._read.lower()

    def close(self) -> None:
        """End the connection, whichever it is by then."""
        self.socket.close()

    def connect_anew(self) -> None:
        """Take a new connection in the place of one that was closed."""
        self.close()
        self.socket = self._connected()


def is_whole(answer: bytes) -> bool:
    """Whether this is an HTTP answer to its end. Raises `ValueError` for one that does not tell its length."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    lowered = head.lower()
    length = re.search(rb"\r\ncontent-length: *(\d+)", lowered)
    if length:
        return len(body) >= int(length[1])
    if b"\r\ntransfer-encoding: chunked" in lowered:
        return body.endswith(b"0\r\n\r\n")
    raise ValueError("an answer without a length; this generator can't tell where it ends")


def _request(url: str, body: str | None) -> tuple[tuple[str, int], bytes]:
    parts = urlsplit(url)
    lines = [f"{'GET' if body is None else 'POST'} {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body.encode())}"]
    whole = "\r\n".join([*lines, "", body or ""])
    return (parts.hostname or "127.0.0.1", parts.port or 80), whole.encode()


def ask_for(url: str, connections: int, seconds: float, body: str | None = None) -> Load:
    """Keep so many connections asking for so many seconds, in this thread."""
    address, request = _request(url, body)
    tally = _Tally()
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        began = time.perf_counter()
        for _ in range(connections):
            client = _Client(address, request, tally)
            stack.callback(client.close)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask()
        _keep_asking(selector, began + seconds)
        took = time.perf_counter() - began
    return _summed(tally, took)


def _keep_asking(selector: selectors.BaseSelector, end: float) -> None:
    """Ask on until the end, and then hear the answers that are still to come."""
    waiting = len(selector.get_map())
    while waiting:
        ready = selector.select(STALLED)
        if not ready:
            raise RuntimeError(f"no answer within {STALLED:g} s")
        for key, _ in ready:
            client: _Client = key.data
            if not client.hear():
                continue
            if time.perf_counter() >= end:
                selector.unregister(key.fileobj)
                waiting -= 1
                continue
            if not client.is_open:
                selector.unregister(key.fileobj)
                client.connect_anew()
                selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask()


def _summed(tally: _Tally, took: float) -> Load:
    latencies = [1000 * latency for latency in tally.latencies] or [float("nan")]
    answered = len(tally.latencies)
    return Load(answered, tally.errors, answered / took, quantile(latencies, 0.5), quantile(latencies, 0.99))


if __name__ == "__main__":
    url, connections, seconds, *rest = sys.argv[1:]
    json.dump(asdict(ask_for(url, int(connections), float(seconds), *rest)), sys.stdout)
