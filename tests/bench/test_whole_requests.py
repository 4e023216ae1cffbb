"""The suite of whole requests: what it reads of wrk, its own load, which rows are void, and how apps are called."""

from __future__ import annotations

import json
import math
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.report import Report
from benchmarks.requests import in_process, load, servers, suite
from benchmarks.requests.database import ITEMS, prepare
from benchmarks.requests.load import Load, ask_for, is_whole, quantile, read_wrk
from benchmarks.requests.suite import Sample, fill
from poolkit.drivers.pymysql import PymysqlDriver

ROOT = Path(__file__).parents[2]
WRK = """Running 4s test @ http://127.0.0.1:8000/item/7
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     5.02ms    3.10ms  60.01ms   91.47%
    Req/Sec     3.31k   180.20     3.60k    75.00%
  Latency Distribution
     50%  940.00us
     75%    5.90ms
     90%    7.51ms
     99%    1.20s
  13204 requests in 4.01s, 2.24MB read
{extra}Requests/sec:   3294.10
Transfer/sec:    572.20KB
"""


# -- wrk ---------------------------------------------------------------------------------------------------------------


def test_what_wrk_prints_is_read_in_milliseconds() -> None:
    """It writes each latency in the unit that suits it."""
    result = read_wrk(WRK.format(extra=""))
    assert result == Load(answered=13204, errors=0, rate=3294.1, p50=pytest.approx(0.94), p99=1200.0)


def test_the_errors_of_wrk_are_of_both_kinds() -> None:
    """Answers that were refusals, and connections that broke or stalled."""
    extra = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 90\n"
    assert read_wrk(WRK.format(extra=extra)).errors == 100


def test_what_is_not_from_wrk_is_refused() -> None:
    """No numbers are better than wrong ones."""
    with pytest.raises(ValueError, match="not what wrk prints"):
        read_wrk("unable to connect to 127.0.0.1:1 Connection refused")


def test_wrk_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else our own; who asks for wrk where there is none is told so."""
    monkeypatch.setattr(load.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert (load.chosen(), load.chosen("own")) == ("wrk", "own")
    monkeypatch.setattr(load.shutil, "which", lambda _: None)
    assert load.chosen() == "own"
    with pytest.raises(SystemExit, match="wrk is not installed"):
        load.chosen("wrk")


# -- our own generator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Le", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", True),
    ],
)
def test_where_an_answer_ends(answer: bytes, *, whole: bool) -> None:
    """It may come in any number of parts."""
    assert is_whole(answer) is whole


def test_an_answer_that_does_not_tell_its_end_is_refused() -> None:
    """To wait for it would be to wait for ever."""
    with pytest.raises(ValueError, match="without a length"):
        is_whole(b"HTTP/1.1 200 OK\r\n\r\nhello")


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3.0], 0.5, 3.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), (range(1, 101), 0.99, 99), (range(1, 201), 0.99, 198)],
)
def test_a_quantile_is_a_value_that_was_measured(values: list[float], share: float, expected: float) -> None:
    """The smallest that so many do not exceed."""
    assert quantile(list(reversed(values)), share) == expected


def test_there_is_no_quantile_of_nothing() -> None:
    """Not even zero."""
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


class Answering(socketserver.StreamRequestHandler):
    """Answers as it is told: the status of the n-th answer, and whether the connection ends with it."""

    def handle(self) -> None:
        while True:
            line = self.rfile.readline()
            if not line.strip():
                return
            length = 0
            while header := self.rfile.readline().strip():
                if header.lower().startswith(b"content-length"):
                    length = int(header.partition(b":")[2])
            asked = (line.split()[0].decode(), self.rfile.read(length).decode())
            status, closes = self.server.answer(asked)
            self.wfile.write(
                b"HTTP/1.1 %d X\r\n%sContent-Length: 2\r\n\r\n{}"
                % (status, b"Connection: close\r\n" if closes else b"")
            )
            if closes:
                return


@contextmanager
def answering(answer) -> Iterator[str]:
    """Serve on a free port of this machine."""
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        server.answer = answer
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/item/7"
        finally:
            server.shutdown()
            thread.join()


def test_our_generator_counts_each_answer_once() -> None:
    """Connections are kept and ask again; what it counted is what the server answered."""
    asked: list[tuple[str, str]] = []

    def answer(request: tuple[str, str]) -> tuple[int, bool]:
        asked.append(request)
        return 200, False

    with answering(answer) as url:
        result = ask_for(url, connections=3, seconds=0.05)
    assert result.answered == len(asked) >= 3
    assert set(asked) == {("GET", "")}
    assert result.errors == 0
    assert 0 < result.p50 <= result.p99
    assert result.rate > 0


def test_our_generator_posts_a_body() -> None:
    """With its length, so that the server does not wait for more."""
    asked = []

    def answer(request: tuple[str, str]) -> tuple[int, bool]:
        asked.append(request)
        return 201, False

    with answering(answer) as url:
        assert ask_for(url, 1, 0.02, '{"é": 1}').errors == 0
    assert set(asked) == {("POST", '{"é": 1}')}


@pytest.mark.parametrize("status", [404, 500, 503, 302])
def test_every_answer_but_a_success_is_an_error(status: int) -> None:
    """What is fast because it fails is not fast."""
    with answering(lambda _: (status, False)) as url:
        result = ask_for(url, 2, 0.02)
    assert result.errors == result.answered >= 2


def test_a_connection_that_the_server_closes_is_taken_anew() -> None:
    """Servers end a kept connection at times, and say so; that is no error."""
    with answering(lambda _: (200, True)) as url:
        result = ask_for(url, 2, 0.05)
    assert result.errors == 0
    assert result.answered > 2


def test_an_answer_that_does_not_come_is_an_error() -> None:
    """The server ends the connection in the middle of it."""
    turns = iter(range(10**9))

    def answer(_: object) -> tuple[int, bool]:
        if next(turns) == 1:
            raise ConnectionError
        return 200, False

    with answering(answer) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(socketserver.BaseServer, "handle_error", lambda *_: None)
        result = ask_for(url, 1, 0.05)
    assert result.errors == 1
    assert result.answered > 1


# -- what becomes of it ------------------------------------------------------------------------------------------------


def sample(rate: float, errors: int = 0) -> Sample:
    return Sample(Load(int(rate), errors, rate, 1.0, 2.0), 300.0)


def test_a_ratio_is_to_the_floor_of_the_same_round() -> None:
    """What the machine did meanwhile hit both."""
    table = Report("x").table("t", *suite.UNDER_LOAD)
    labels = {"floor": "Floor", "ours": "ours"}
    fill(table, labels, {"floor": [sample(100), sample(50)], "ours": [sample(90), sample(49)]}, "floor")
    assert table.rows["ours"]["ratio"] == [0.9, 0.98]
    assert table.rows["ours"]["rate"] == [90, 49]
    assert table.rows["Floor"]["ratio"] == [1.0, 1.0]


def test_one_error_voids_the_row() -> None:
    """In any of the rounds: nothing of it is shown but how many there were, and nothing is compared with it."""
    table = Report("x").table("t", *suite.UNDER_LOAD)
    labels = {"floor": "Floor", "ours": "ours"}
    fill(table, labels, {"floor": [sample(100), sample(100, errors=2)], "ours": [sample(90), sample(90)]}, "floor")
    void, ours = table.rows
    assert void == "Floor: VOID, 2 errors in 200 answers"
    assert not any(table.rows[void].values())
    assert ours == "ours"
    assert table.rows[ours]["ratio"] == []
    assert table.rows[ours]["rate"] == [90, 90]


def test_the_floor_is_the_first_of_its_framework() -> None:
    """All others are measured against it; each file says itself what it is."""
    for framework in ("flask", "django"):
        found = suite.apps(framework)
        assert found[0].name == suite.FLOORS[framework]
        assert found[0].label.startswith("Floor: ")
        assert len({app.label for app in found}) == len(found) >= 8
    assert [app.name for app in suite.apps("flask", ["flask_poolkit"])] == ["flask_poolkit"]


def test_which_server_an_app_gets() -> None:
    """For WSGI gunicorn with one worker of eight threads, for ASGI uvicorn."""
    flask = servers.command("flask_poolkit", 8001)
    assert flask[flask.index("--threads") + 1] == "8"
    assert flask[flask.index("--workers") + 1] == "1"
    assert "gunicorn" in flask
    assert "uvicorn" in servers.command("fastapi_poolkit", 8001)


def test_mariadb_has_the_apps_that_can_run_on_it() -> None:
    """All of Django's but its own pool, which is PostgreSQL's; and a table has a name of its own for it."""
    found = suite.apps("django")
    usual, mariadb = (suite.Plan(1, 1.0, "own", None, database=name) for name in ("postgresql", "mariadb"))
    assert suite.on(usual, found) == found
    left_out = {app.name for app in found} - {app.name for app in suite.on(mariadb, found)}
    assert left_out == {"django_native_pool", "django_native_pool_atomic"}
    assert (usual.key("django", "item"), mariadb.key("django", "item")) == ("django_item", "django_item_mariadb")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to a processor")
def test_processors_are_given_back() -> None:
    """What is started inside is pinned; what comes after is not."""
    before = os.sched_getaffinity(0)
    one = {min(before)}
    with servers.on_processors(one):
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    "wrong",
    [
        ["--seconds", "0"],
        ["--framework", "bottle"],
        ["--part", "all"],
        ["--database", "oracle"],
        ["--database", "mariadb", "--framework", "flask"],
    ],
)
def test_a_wrong_option_is_refused(wrong: list[str]) -> None:
    """Before anything is started."""
    with pytest.raises(SystemExit) as ended:
        suite.main(wrong)
    assert ended.value.code == 2


# -- without a server --------------------------------------------------------------------------------------------------


def test_a_wsgi_app_is_called_as_a_server_does() -> None:
    """Its body is read to the end and closed; an answer other than 200 is an error."""
    seen = []

    class Body(list):
        def close(self) -> None:
            seen.append("closed")

    def app(environ, start_response):
        seen.append(environ["PATH_INFO"])
        start_response("200 OK" if environ["PATH_INFO"] != "/wrong" else "500 NO", [])
        return Body([b"{}"])

    ask = in_process.wsgi(app)
    ask(["/a", "/b"])
    assert seen == ["/a", "closed", "/b", "closed"]
    with pytest.raises(RuntimeError, match="500 NO"):
        ask(["/wrong"])


def test_an_asgi_app_is_called_after_its_start_up() -> None:
    """An answer other than 200 is an error, and so is a start-up that fails."""
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 404 if scope["path"] == "/wrong" else 200})
        await send({"type": "http.response.body", "body": b"{}"})

    async def broken(_scope, _receive, send):
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with in_process.asgi(app) as ask:
        ask(["/a", "/b"])
        assert seen == ["/a", "/b"]
        with pytest.raises(RuntimeError, match="answered 404"):
            ask(["/wrong"])
    with pytest.raises(RuntimeError, match="no database"), in_process.asgi(broken):
        pass


def test_an_app_that_does_not_start_is_one_error() -> None:
    """The sentence says that the app failed, not that a pipe broke."""
    with suite.working(suite.App("flask_of_nobody", "none"), "", None) as worker:
        worker._process.wait(30)
        with pytest.raises(RuntimeError, match="the app failed, called without a server"):
            worker.call("/item/1", 1)


def test_the_number_of_the_request_goes_into_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks for another row, of those that there are."""
    asked: list[str] = []
    wall, cpu = in_process.timed(asked.extend, "/item/{}", 1001)
    assert asked[:2] == ["/item/1", "/item/2"]
    assert asked[-2:] == ["/item/1000", "/item/1"]
    assert wall > 0
    assert not math.isnan(cpu)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["django_persistent", "django_poolkit"])
def test_djangos_apps_answer_on_mariadb(name: str, mysql_dsn: str) -> None:
    """On Django's engine and on poolkit's, reading and writing; `call` fails where an answer is not 200."""
    prepare(mysql_dsn)
    with suite.working(suite.App(name, name), mysql_dsn, None) as worker:
        for path in ("/hello", "/item/{}", "/hit"):
            assert min(worker.call(path, 3)) > 0
    with PymysqlDriver(mysql_dsn).open(10) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM hits)")
        assert cursor.fetchone() == (ITEMS, 3)


# -- all of it ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_suite_runs(tmp_path: Path) -> None:
    """Flask by poolkit and by the floor, under gunicorn and without it; every row has numbers, and no error."""
    file = tmp_path / "out.json"
    line = [sys.executable, "-m", "benchmarks", "requests", "--quick", "--generator", "own", "--json", str(file)]
    line += ["--framework", "flask", "--app", "flask_thread_local", "--app", "flask_poolkit"]
    line += ["--part", "load", "--part", "called", "--route", "item"]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True, timeout=100)
    tables = json.loads(file.read_text())["tables"]
    assert len(tables) == 2
    for table in tables:
        assert len(table["rows"]) == 2
        for row, cells in table["rows"].items():
            assert "VOID" not in row
            assert cells["ratio"]["median"] > 0
