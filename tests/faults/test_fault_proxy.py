"""The fault proxy, between a client and a server that are both plain sockets of the test."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from proxy_rig import GRACE, MOMENT, Pair, ping, ping_through, silent

from poolkit.testing import FaultProxy


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(GRACE)
        with FaultProxy(listener.getsockname()[:2]) as proxy:
            made = Pair(proxy, listener)
            yield made
            made.close()
    assert not [t for t in threading.enumerate() if t.name == "poolkit-fault-proxy"]


# -- a network in order ------------------------------------------------------------------------------------------------


def test_forwards_data_and_ends(pair):
    """Data passes both ways, and an end passes one way at a time, after the data before it."""
    client, server = pair.link()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert server.recv(100) == b"question"
    assert server.recv(100) == b""
    server.sendall(b"answer")
    server.close()
    assert client.recv(100) == b"answer"
    assert client.recv(100) == b""


def test_a_broken_off_end_is_broken_off_at_the_other(pair):
    """An RST arrives as an RST."""
    client, server = pair.link()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    client, server = pair.link()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_much_data_both_ways_at_once(pair):
    """More than all buffers hold arrives whole and in order; a receiver that is slow makes its sender wait."""
    client, server = pair.link()
    text = bytes(range(256)) * 100_000

    def receive(end):
        got = bytearray()
        while len(got) < len(text):
            got += end.recv(1 << 16)
        return got

    with ThreadPoolExecutor(4) as threads:
        sent = [threads.submit(end.sendall, text) for end in (client, server)]
        time.sleep(MOMENT)
        assert not sent[0].done()
        got = [threads.submit(receive, end) for end in (client, server)]
        assert [bytes(one.result(GRACE)) == text for one in got] == [True, True]
    assert pair.proxy.bytes_up == pair.proxy.bytes_down == len(text)


# -- counts ------------------------------------------------------------------------------------------------------------


def test_round_trips(pair):
    """A round trip is a question, however many pieces it comes in and however many its answer has."""
    client, server = pair.link()
    assert pair.proxy.round_trips == 0
    for piece in (b"a", b"b", b"c"):
        client.sendall(piece)
        assert server.recv(1) == piece
    assert pair.proxy.round_trips == 1
    server.sendall(b"x")
    server.sendall(b"y")
    assert client.recv(1) + client.recv(1) == b"xy"
    assert pair.proxy.round_trips == 1
    ping(client, server)
    assert pair.proxy.round_trips == 2
    assert (pair.proxy.bytes_up, pair.proxy.bytes_down) == (7, 6)


def test_links_are_counted_at_once(pair):
    """What a client did before the question is in the answer, whether or not it was seen by then."""
    clients = [pair.connect() for _ in range(3)]
    assert (pair.proxy.accepted, pair.proxy.links, pair.proxy.most_links) == (3, 3, 3)
    clients[0].close()
    assert (pair.proxy.accepted, pair.proxy.links, pair.proxy.most_links) == (3, 2, 3)
    pair.connect()
    assert (pair.proxy.accepted, pair.proxy.links, pair.proxy.most_links) == (4, 3, 3)


def test_one_after_the_other_is_one_at_once(pair):
    """Clients that come one after the other are never counted as two, however fast they are."""

    def come_and_go(_):
        for _ in range(25):
            socket.create_connection(pair.proxy.address).close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(come_and_go, range(4)))
    assert (pair.proxy.accepted, pair.proxy.links) == (100, 0)
    assert pair.proxy.most_links <= 4


def test_counts_outlive_the_proxy(pair):
    """The counts can be read after the end; closing again, and with links open, does nothing bad."""
    client, server = pair.link()
    ping(client, server)
    pair.proxy.close()
    pair.proxy.close()
    assert client.recv(1) == server.recv(1) == b""
    assert (pair.proxy.accepted, pair.proxy.round_trips, pair.proxy.links) == (1, 1, 0)


# -- slow --------------------------------------------------------------------------------------------------------------


def test_delay(pair):
    """A delay is added to each way of its own, also for ends; what passes later does not overtake."""
    client, server = pair.link()
    pair.proxy.delay(0.02)
    began = time.monotonic()
    ping(client, server)
    assert time.monotonic() - began >= 0.04
    pair.proxy.delay(up=0.03)
    client.sendall(b"first")
    pair.proxy.delay()
    client.sendall(b"second")
    client.shutdown(socket.SHUT_WR)
    began = time.monotonic()
    server.sendall(b"now")
    assert client.recv(3) == b"now"
    assert _all_of(server) == b"firstsecond"
    assert time.monotonic() - began >= 0.02


def _all_of(end):
    got = b""
    while piece := end.recv(1000):
        got += piece
    return got


def test_throttle(pair):
    """No more than so many bytes a second pass, and they come little by little."""
    client, server = pair.link()
    pair.proxy.throttle(100_000)
    began = time.monotonic()
    client.sendall(b"x" * 8_000)
    first = len(server.recv(8_000))
    got = first
    while got < 8_000:
        got += len(server.recv(8_000))
    assert first <= 4_000
    assert time.monotonic() - began >= 0.05
    pair.proxy.throttle(None)
    ping(client, server)


# -- gone --------------------------------------------------------------------------------------------------------------


def test_blackhole(pair):
    """Nothing arrives until the network is back; then all does, in order, ends included."""
    client, server = pair.link()
    pair.proxy.blackhole()
    client.sendall(b"first ")
    client.sendall(b"second")
    client.shutdown(socket.SHUT_WR)
    server.sendall(b"answer")
    assert silent(server)
    assert silent(client)
    assert pair.proxy.bytes_up == 12
    pair.proxy.heal()
    assert _all_of(server) == b"first second"
    assert client.recv(100) == b"answer"


def test_connects_in_a_blackhole(pair):
    """One who waits for long enough gets through; of one who gave up the server never hears."""
    pair.proxy.blackhole()
    patient, impatient = pair.connect(), pair.connect()
    patient.sendall(b"hello")
    impatient.sendall(b"hello")
    impatient.close()
    assert pair.nobody_comes()
    assert (pair.proxy.accepted, pair.proxy.links) == (2, 1)
    pair.proxy.heal()
    assert pair.accept().recv(100) == b"hello"
    assert pair.nobody_comes()


def test_half_open(pair):
    """The links of then are lost for good, and nobody is told, whatever the other end does; new ones work."""
    lost = [pair.link() for _ in range(3)]
    assert pair.proxy.half_open() == 3
    lost[0][0].sendall(b"x")
    lost[0][1].sendall(b"x")
    lost[1][0].close()
    lost[2][1].close()
    pair.proxy.heal()
    ping(*pair.link())
    assert all(silent(end) for end in (lost[0][0], lost[0][1], lost[1][1], lost[2][0]))
    assert pair.proxy.links == 3


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_cut(pair, how):
    """A cut ends every link of now: as a crash does, or as a goodbye, after what was sent before."""
    links = [pair.link() for _ in range(2)]
    links[0][1].sendall(b"before")
    assert pair.proxy.bytes_down == 6
    assert pair.proxy.cut(how) == 2
    if how == "fin":
        assert _all_of(links[0][0]) == b"before"
        assert links[1][0].recv(1) == links[1][1].recv(1) == b""
        links[1][0].sendall(b"to nobody")
    else:
        for end in (*links[1], links[0][1]):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    ping(*pair.link())


def test_hold_ends(pair):
    """That the server hung up is kept from the client until the network heals; what it said before is not."""
    client, server = pair.link()
    pair.proxy.hold_ends()
    server.sendall(b"farewell")
    server.close()
    assert client.recv(100) == b"farewell"
    assert silent(client)
    pair.proxy.heal()
    assert client.recv(1) == b""


# -- the door ----------------------------------------------------------------------------------------------------------


def test_refuse_closed(pair):
    """Nobody listens; links go on; the port is kept for later."""
    link = pair.link()
    port = pair.proxy.port
    pair.proxy.refuse("closed")
    with pytest.raises(ConnectionRefusedError):
        pair.connect()
    ping(*link)
    pair.proxy.heal()
    assert pair.proxy.port == port
    ping(*pair.link())


def test_refuse_rst(pair):
    """A connect succeeds and is broken off; it counts as refused."""
    link = pair.link()
    pair.proxy.refuse("rst")
    with pytest.raises(ConnectionResetError):
        pair.connect().recv(1)
    assert (pair.proxy.accepted, pair.proxy.refused) == (1, 1)
    ping(*link)
    pair.proxy.heal()
    ping(*pair.link())


def test_refuse_silent(pair):
    """A connect gets no answer; links go on; afterwards the door is open, and what filled it is not counted."""
    link = pair.link()
    pair.proxy.refuse("silent")
    with socket.socket() as client:
        client.settimeout(MOMENT)
        with pytest.raises(TimeoutError):
            client.connect(pair.proxy.address)
    ping(*link)
    pair.proxy.heal()
    ping(*pair.link())
    assert (pair.proxy.accepted, pair.proxy.refused) == (2, 0)


def test_doors_in_turn(pair):
    """One way of refusing takes the place of another."""
    for how in ("silent", "closed", "rst", "silent", "rst", "closed", "closed"):
        pair.proxy.refuse(how)
    with pytest.raises(ConnectionRefusedError):
        pair.connect()
    pair.proxy.heal()
    ping(*pair.link())
    assert pair.proxy.accepted == 1


# -- where to ----------------------------------------------------------------------------------------------------------


def test_redirect(pair):
    """New connections go to the new target, the links of now stay where they are."""
    old = pair.link()
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(GRACE)
        pair.proxy.redirect(other.getsockname())
        ping_through(pair.proxy, other)
    ping(*old)


def test_unreachable_target(pair):
    """Where the server takes no connections, the client is reset; every address of the target is tried before."""
    pair.listener.close()
    with pytest.raises(ConnectionResetError):
        pair.connect().recv(1)
    assert pair.proxy.links == 0


def test_localhost():
    """A name with several addresses finds the one that listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(GRACE)
        port = listener.getsockname()[1]
        with FaultProxy(f"http://localhost:{port}/x") as proxy:
            ping_through(proxy, listener)


@pytest.mark.parametrize("spelling", ["{path}", "postgresql://u@/db?host={folder}&port=7"])
def test_unix_socket(tmp_path, spelling):
    """The target may be a Unix socket, named by its path or as PostgreSQL's URLs do."""
    path = tmp_path / ".s.PGSQL.7"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(GRACE)
        target = spelling.format(path=path, folder=tmp_path)
        with FaultProxy(target) as proxy:
            ping_through(proxy, listener)


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("postgresql://u:p%40@h:5433/db", "postgresql://u:p%40@127.0.0.1:{port}/db?sslmode=disable"),
        ("postgresql+psycopg://h1:1,h2:2/db?a=b", "postgresql+psycopg://127.0.0.1:{port}/db?a=b&sslmode=disable"),
        ("postgresql://h/db?sslmode=require", "postgresql://127.0.0.1:{port}/db?sslmode=require"),
        ("postgresql://u@/db?host=/tmp&port=7", "postgresql://u@127.0.0.1:{port}/db?sslmode=disable"),
        ("http://h/path?q=1#x", "http://127.0.0.1:{port}/path?q=1#x"),
    ],
)
def test_url(pair, url, through):
    """A URL goes through the proxy with everything but its place kept, and unencrypted unless it says otherwise."""
    assert pair.proxy.url(url) == through.format(port=pair.proxy.port)


# -- misuse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["relative/path", "nothing://h/x", "postgresql://h1,h2/db", "postgresql:///db?host=a,b"]
)
def test_senseless_targets(target):
    """A target that names no single place is refused at once."""
    with pytest.raises(ValueError, match="target"):
        FaultProxy(target)


def test_senseless_faults(pair):
    """An argument that means nothing is refused, and changes nothing."""
    for call in (
        lambda: pair.proxy.delay(-1),
        lambda: pair.proxy.delay(up=float("nan")),
        lambda: pair.proxy.throttle(0),
        lambda: pair.proxy.cut("gently"),
        lambda: pair.proxy.refuse("politely"),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()
    ping(*pair.link())


def test_not_started():
    """Before the start there is nothing to ask, and the error says what to do."""
    proxy = FaultProxy(("127.0.0.1", 1))
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        proxy.cut()
    assert "not started" in repr(proxy)
    proxy.close()
    with proxy:
        assert proxy.start() is proxy
        assert f"port {proxy.port}" in repr(proxy)
