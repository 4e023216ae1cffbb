"""The HTTP client: one session per thread, bounded, with nothing of one request in another."""

from __future__ import annotations

import base64
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from poolkit.config import PoolConfig
from poolkit.driver import SharedClient
from poolkit.drivers import shared_client
from poolkit.drivers.http import HttpClient
from poolkit.errors import ConfigError


class Server(ThreadingHTTPServer):
    """Tells each client what it received; keeps count of connections; misbehaves on request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.connections = 0
        self.requests: list[str] = []
        self.break_next = 0
        self.hold = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.break_next:
            self.server.break_next -= 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if self.path.startswith("/away?"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.endswith("/slow"):
            self.server.hold.wait(5)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = "\n".join(f"{name}: {value}" for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Set-Cookie", "session=secret; Path=/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer  # noqa: N815  the names are the base class's

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(server: Server) -> Iterator[HttpClient]:
    client = HttpClient(server.url)
    yield client
    client.close()


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_is_a_shared_client(client: HttpClient) -> None:
    """It is used, not leased; the registry finds it by the URL."""
    assert isinstance(client, SharedClient)
    found = shared_client("https://h/", {"max_size": 3, "options": {"retries": 0}}, where="x")
    assert isinstance(found, HttpClient)
    assert isinstance(client.get(), requests.Session)


def test_one_connection_for_a_thread(server: Server, client: HttpClient) -> None:
    """A thread gets the same session each time, and its requests share one connection."""
    assert client.get() is client.get()
    for _ in range(5):
        assert client.get().get("/a").status_code == 200
    assert server.connections == 1


def test_a_session_for_each_thread(server: Server, client: HttpClient) -> None:
    """No two threads share a session, and the connection of a thread that ended serves the next."""
    sessions = []

    def work() -> None:
        sessions.append(client.get())
        assert client.get().get("/a").status_code == 200

    for _ in range(4):  # as under ASGI, where a sync view has a thread of its own for each request
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len({id(session) for session in sessions}) == 4
    assert client.stats() == {"made": 4, "opened": 1}
    assert server.connections == 1


def test_close(server: Server, client: HttpClient) -> None:
    """`close` closes the connections of all threads, may be called twice, and a later `get` makes a new session."""
    ready, go = threading.Event(), threading.Event()

    def work() -> None:
        client.get().get("/a")
        ready.set()
        go.wait(5)

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(5)
    session = client.get()
    client.close()
    assert client.stats() == {"made": 2, "opened": 0}
    client.close()
    assert client.get() is not session
    assert client.get().get("/a").status_code == 200
    go.set()
    thread.join()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_fork(server: Server, client: HttpClient) -> None:
    """A child makes sessions of its own; the parent's connection stays open and in use."""
    session = client.get()
    session.get("/parent")
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        client.abandon()
        fresh = client.get() is not session and client.stats() == {"made": 1, "opened": 0}
        fresh = fresh and client.get().get("/child").status_code == 200
        client.close()
        os._exit(0 if fresh else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    session.get("/parent")
    assert server.connections == 2
    assert server.requests == ["GET /parent", "GET /child", "GET /parent"]


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("", "/price/7", "/price/7"),
        ("", "price/7", "/price/7"),
        ("/v1", "/price/7", "/v1/price/7"),
        ("/v1/", "price/7?a=b://c", "/v1/price/7?a=b://c"),
        ("/v1", "", "/v1"),
        ("/v1", "//price", "/v1/price"),
    ],
)
def test_relative_urls(server: Server, base: str, path: str, expected: str) -> None:
    """Paths are below the base URL, whichever slashes are written."""
    client = HttpClient(server.url + base)
    client.get().get(path)
    assert server.requests == [f"GET {expected}"]
    client.close()


def test_other_hosts_are_refused(server: Server, client: HttpClient) -> None:
    """A session carries credentials: an absolute URL must be of the same scheme, host and port."""
    assert client.get().get(f"{server.url}/a").status_code == 200
    for url in ("http://elsewhere/a", f"https://127.0.0.1:{server.server_port}/a", "http://127.0.0.1/a"):
        with pytest.raises(ValueError, match="this session is for"):
            client.get().get(url)


def test_credentials_of_the_url(server: Server) -> None:
    """A user and a password in the URL are sent as basic authentication, decoded, and shown nowhere."""
    client = HttpClient(server.url.replace("//", "//me:s3%40cret@"))
    response = client.get().get("/a")
    assert f"Basic {base64.b64encode(b'me:s3@cret').decode()}" in response.text
    assert "cret" not in response.url
    assert "cret" not in repr(client) + repr(client.stats())
    with pytest.raises(ValueError, match="this session is for") as caught:
        client.get().get("http://elsewhere/")
    assert "cret" not in str(caught.value)
    client.close()


def test_headers_and_auth(server: Server) -> None:
    """Headers and credentials of the options go out with each request."""
    client = HttpClient(server.url, options={"headers": {"X-Key": "k"}, "auth": ("a", "b")})
    text = client.get().get("/a").text
    assert "X-Key: k" in text
    assert "Authorization: Basic" in text
    client.close()


def test_redirects_take_no_credentials_along(server: Server) -> None:
    """A redirect to another host gets neither the password nor the headers of the settings."""
    client = HttpClient(server.url, options={"headers": {"X-Key": "k"}, "auth": ("a", "b")})
    own = client.get().get("/away?/here").text
    assert "X-Key: k" in own
    assert "Authorization" in own
    other = client.get().get(f"/away?{server.url.replace('127.0.0.1', 'localhost')}/there")
    assert "localhost" in other.url
    assert "X-Key" not in other.text
    assert "Authorization" not in other.text
    client.close()


def test_no_cookies_by_default(client: HttpClient) -> None:
    """What one request was given does not go out with the next; a cookie of the request itself does."""
    client.get().get("/a")
    assert "Cookie" not in client.get().get("/a").text
    assert "Cookie: own=1" in client.get().get("/a", cookies={"own": "1"}).text
    assert len(client.get().cookies) == 0


def test_cookies_on_request(server: Server) -> None:
    """`cookies=True` keeps them, in each thread's own session."""
    client = HttpClient(server.url, options={"cookies": True})
    client.get().get("/a")
    assert "Cookie: session=secret" in client.get().get("/a").text
    other: list[str] = []
    thread = threading.Thread(target=lambda: other.append(client.get().get("/a").text))
    thread.start()
    thread.join()
    assert "Cookie" not in other[0]
    client.close()


def test_read_timeout(server: Server) -> None:
    """A server that does not answer is given up after read_timeout, and not asked again."""
    client = HttpClient(server.url, options={"read_timeout": 0.2, "retries": 3})
    began = time.monotonic()
    with pytest.raises(requests.ReadTimeout):
        client.get().get("/slow")
    assert time.monotonic() - began < 1
    assert server.requests == ["GET /slow"]
    client.close()


def test_timeouts_can_be_given(server: Server, client: HttpClient) -> None:
    """A request may bring its own timeout; a prepared one gets the defaults."""
    with pytest.raises(requests.ReadTimeout):
        client.get().get("/slow", timeout=0.1)
    bounded = HttpClient(server.url, options={"read_timeout": 0.1})
    with pytest.raises(requests.ReadTimeout):
        bounded.get().send(bounded.get().prepare_request(requests.Request("GET", f"{server.url}/slow")))
    bounded.close()


def test_connect_timeout() -> None:
    """The connect is bounded by open_timeout: here the queue of a server that accepts nothing is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fill = [socket.socket() for _ in range(4)]
        for sock in fill:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        config = PoolConfig(open_timeout=0.2)
        client = HttpClient(f"http://127.0.0.1:{listener.getsockname()[1]}", options={"retries": 0}, config=config)
        began = time.monotonic()
        with pytest.raises(requests.ConnectTimeout):
            client.get().get("/a")
        assert time.monotonic() - began < 2
        client.close()
        for sock in fill:
            sock.close()


def test_a_broken_connection_is_retried(server: Server, client: HttpClient) -> None:
    """A kept connection that the server closes under the request: an idempotent one is sent again."""
    client.get().get("/a")
    server.break_next = 1
    assert client.get().get("/b").status_code == 200
    server.break_next = 1
    assert client.get().put("/c").status_code == 200
    assert server.requests == ["GET /a", "GET /b", "GET /b", "PUT /c", "PUT /c"]


def test_a_post_is_not_retried(server: Server, client: HttpClient) -> None:
    """What is not idempotent may have been carried out: it is never sent twice."""
    server.break_next = 1
    with pytest.raises(requests.ConnectionError):
        client.get().post("/a")
    assert server.requests == ["POST /a"]


def test_adapters_follow_the_pool_size() -> None:
    """max_size is how many connections a session keeps, and none is waited for."""
    client = HttpClient("https://h", config=PoolConfig(max_size=3))
    adapter: Any = client.get().get_adapter("https://h/a")
    assert (adapter._pool_connections, adapter._pool_maxsize, adapter._pool_block) == (3, 3, False)
    client.close()


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["https://", "ftp://h/", "h/path", "https://user:s3cret@/path", "https://u:s3cret@h:port/", "https://[s3cret"],
)
def test_malformed_urls(url: str) -> None:
    """A URL that can't be one says so, without the password."""
    with pytest.raises(ConfigError, match="malformed URL: expected https://host/path") as caught:
        HttpClient(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://h/?key=s3cret", "https://h/#s3cret"])
def test_no_query_in_the_base(url: str) -> None:
    """A query in the base URL would end up in the middle of every path."""
    with pytest.raises(ConfigError, match="can't have a query") as caught:
        HttpClient(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 3}, "it is 'read_timeout' here"),
        ({"read_timout": 3}, "did you mean 'read_timeout'"),
        ({"read_timeout": None}, "read_timeout must be a number of seconds"),
        ({"read_timeout": float("inf")}, "read_timeout must be a number of seconds"),
        ({"retries": -1}, "retries must be a whole number of at least 0"),
        ({"cookies": "no"}, "cookies must be True or False, not 'no'"),
        ({"headers": "X: y"}, "headers must be a mapping, not str"),
        ({"verify": 1.5}, "verify must be True, False or the path"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    """An option that can't work says so when the client is made."""
    with pytest.raises(ConfigError, match=message):
        HttpClient("https://h", options=options)


def test_credentials_given_twice() -> None:
    """Credentials in the URL and in the options: it is not guessed which are meant."""
    with pytest.raises(ConfigError, match="given twice"):
        HttpClient("https://a:b@h", options={"auth": ("c", "d")})


def test_source_is_asked_for_each_session(server: Server) -> None:
    """A callable source is asked again for each new session."""
    asked = []

    def source() -> str:
        asked.append(1)
        return server.url

    client = HttpClient(source)
    client.get().get("/a")
    client.close()
    client.get().get("/a")
    client.close()
    assert len(asked) == 2
