"""Credentials of an HTTP client go to the host of its URL and to no other, however a URL or a redirect is spelled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from poolkit import ConfigError
from poolkit.drivers.http import HttpClient

KEY = "k-123"


class Host(ThreadingHTTPServer):
    """Keeps the secrets that it was sent; redirects to what follows `/to?`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked = 0
        self.secrets: list[Any] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.secrets += filter(None, (self.headers.get("Authorization"), self.headers.get("X-Key")))
        _, to, target = self.path.partition("/to?")
        self.send_response(302 if to else 200)
        if to:
            self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    own, other = Host(), Host()
    yield own, other
    for host in (own, other):
        host.shutdown()
        host.server_close()


# How a URL for one host can be made to look like one for another: to a reader, to urlsplit or to urllib3.
TRICKS = [
    "http://{other}/", "http://{other}\\@{own}/", "http://{own}\\@{other}/", "http://{own}@{other}/",
    "http://{other}#@{own}/", "http://{other}?@{own}/", "http://{own}\\.{other}/", "http:\\\\{other}\\@{own}/",
    "http://{other}%5C@{own}/", "http://{own}%40{other}/", " http://{other}/", "\thttp://{other}\\@{own}",
    "HTTP://{other}/", "http://{own}:80@{other}/", "http://{other}\\\\@{own}/", "//{other}/", "///{other}/",
    "\\\\{other}/", "/\\{other}/", "http:/{other}/", "http:{other}/", "http:///{other}/", "http://{other}\r\n@{own}/",
    "http://user:pw@{other}\\@{own}/", "http://[{other}]/", "http://{other};@{own}/", "@{other}/", ".{other}/",
    ":80@{other}/", "http://{own}\x00@{other}/", "http://{other}\u3002@{own}/", "http://{own}/../\\\\{other}/", "https://{own}/",
]  # fmt: skip


def client(own: Host) -> HttpClient:
    url = f"http://user:hunter2@127.0.0.1:{own.server_port}"
    return HttpClient(url, options={"headers": {"X-Key": KEY}, "trust_env": False, "retries": 0})


def spelled(trick: str, own: Host, other: Host) -> str:
    return trick.format(own=f"127.0.0.1:{own.server_port}", other=f"127.0.0.1:{other.server_port}")


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("way", ["request", "bytes", "prepared", "by hand"])
def test_no_spelling_sends_credentials_elsewhere(hosts: tuple[Host, Host], trick: str, way: str) -> None:
    """Whatever parser reads it, and however it is handed over: refused, or sent to the session's own host."""
    own, other = hosts
    before = other.asked, len(other.secrets)
    session = client(own).get()
    url = spelled(trick, own, other)
    try:
        if way == "request":
            session.get(url)
        elif way == "bytes":
            session.get(url.encode())
        elif way == "prepared":
            session.send(session.prepare_request(requests.Request("GET", url)))
        else:
            prepared = session.prepare_request(requests.Request("GET", f"http://127.0.0.1:{own.server_port}/"))
            prepared.url = url
            session.send(prepared)
    except (ValueError, requests.RequestException, UnicodeError) as error:
        assert "hunter2" not in str(error)  # noqa: PT017  some spellings are refused, others sent home
    assert (other.asked, len(other.secrets)) == before


@pytest.mark.parametrize("trick", TRICKS)
def test_no_redirect_takes_credentials_along(hosts: tuple[Host, Host], trick: str) -> None:
    """A redirect may lead elsewhere; neither the password nor a header of the settings goes with it."""
    own, other = hosts
    session = client(own).get()
    target = spelled(trick, own, other).strip().replace("\r\n", "").replace("\x00", "")
    try:
        session.get(f"http://127.0.0.1:{own.server_port}/to?{target}")
    except (ValueError, requests.RequestException, UnicodeError) as error:
        assert "hunter2" not in str(error)  # noqa: PT017
    assert other.secrets == []


def test_a_plain_redirect_is_followed(hosts: tuple[Host, Host]) -> None:
    """To another host without the credentials, to the same one with them; `next` can be sent by hand."""
    own, other = hosts
    session = client(own).get()
    before = other.asked, len(own.secrets)
    session.get(f"/to?http://127.0.0.1:{other.server_port}/there")
    answer = session.get(f"/to?http://127.0.0.1:{other.server_port}/there", allow_redirects=False)
    assert answer.next is not None
    session.send(answer.next)
    session.get("/to?/here")
    assert (other.asked, other.secrets) == (before[0] + 2, [])
    assert len(own.secrets) == before[1] + 8


@pytest.mark.parametrize(
    "url", ["http://own\\@evil/", "http://own\\evil/", "http://a b/", "http://own\t.evil/", "https://u:p@ss/word@own/"]
)
def test_a_base_that_can_be_read_in_two_ways_is_refused(url: str) -> None:
    """Where Python and urllib3 see two hosts in the settings' URL, there is none to trust."""
    with pytest.raises(ConfigError, match="malformed"):
        HttpClient(url)
