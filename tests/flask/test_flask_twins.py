"""Random requests of several tenants to one app, interleaved: each is answered as by an app of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response
from twin_web import COMMON, FAILS, MYSQL, POSTGRES, ROWS, SQLITE, WRITE, Visit, WebTwins

import poolkit
from poolkit_flask import Poolkit

TABLE = "CREATE TABLE IF NOT EXISTS web_twin_rows (who bigint, word varchar(40))"
POSTGRES_URLS = {"psycopg": "postgresql+psycopg", "psycopg2": "postgresql+psycopg2"}


def act(db: Poolkit, visit: Visit, step: tuple[str, ...]) -> object:
    """Take one step in a request, and return its answer; an error of a statement is swallowed."""
    if step == ("raise",):
        raise ZeroDivisionError
    try:
        conn = db.connection
        match step:
            case ("commit",):
                conn.commit()
            case ("rollback",):
                conn.rollback()
            case ("unit commit",):
                db.unit_of_work.commit()
            case ("doom",):
                db.unit_of_work.doom()
            case _:
                return run(conn, *visit.statements(step))
    except Exception as error:  # noqa: BLE001  the libraries have roots of their own
        return type(error).__name__
    return None


def run(conn: Any, *statements: str) -> object:
    """Run statements, of which the last one is answered, whether or not those before fail."""
    rows: list[tuple[Any, ...]] = []
    for statement in statements:
        passed_over = contextlib.nullcontext() if statement is statements[-1] else contextlib.suppress(Exception)
        with passed_over, contextlib.closing(conn.cursor()) as cursor:
            cursor.execute(statement)
            rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
    return rows


def make_app(settings: dict[str, Any], visits: dict[int, Visit]) -> tuple[Flask, Poolkit]:
    """Make an app whose one view does what its visit says."""
    app = Flask("twins")
    app.logger.disabled = True
    app.config.from_mapping({"POOLKIT": {"default": settings}, "TESTING": True, "PROPAGATE_EXCEPTIONS": False})
    db = Poolkit(app)

    @app.get("/<int:key>")
    def view(key: int) -> Any:
        visit = visits[key]
        steps = visit.taken()

        def body() -> Iterator[str]:
            for step in steps:
                if not step[0].startswith("stream"):
                    visit.answers.append(act(db, visit, step))
                yield "piece"

        for step in steps:
            if step == ("stream",):
                return Response(body())
            if step == ("stream in one transaction",):
                db.unit_of_work.stream()
                return Response(body())
            visit.answers.append(act(db, visit, step))
        return "all"

    return app, db


@pytest.fixture(params=["psycopg", "psycopg2", "pymysql", "sqlite"])
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def url(library: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if library == "sqlite":
        return f"sqlite:///{tmp_path}/twins.db"
    if library == "pymysql":
        return str(request.getfixturevalue("mysql_dsn"))
    return str(request.getfixturevalue("dsn")).replace("postgresql", POSTGRES_URLS[library], 1)


@pytest.fixture
def twins(library: str, url: str) -> Iterator[WebTwins]:
    with poolkit.Pool(url, max_size=1) as pool, ThreadPoolExecutor(3) as threads:
        with pool.transaction() as conn:
            run(conn, TABLE, "DELETE FROM web_twin_rows")
            if library in POSTGRES_URLS:
                run(conn, "CREATE SEQUENCE IF NOT EXISTS twin_numbers", "SELECT 1")

        def make(
            size: int, visits: dict[int, Visit], reset: str
        ) -> tuple[Callable[[Visit], Future[None]], Callable[[], None]]:
            app, db = make_app({"url": url, "max_size": size, "timeout": 10, "reset": reset}, visits)

            def get(path: str) -> object:
                status = 0
                try:
                    with app.test_client().get(path, buffered=False) as response:
                        status = response.status_code
                        for _ in response.response:
                            pass
                except Exception as error:  # noqa: BLE001  of the body: a server breaks the connection off
                    return status, type(error).__name__
                return status

            return lambda visit: threads.submit(visit.serve, get), lambda: db.close(app, 0)

        def saved(who: int) -> object:
            with pool.acquire() as conn:
                return run(conn, f"SELECT word FROM web_twin_rows WHERE who = {who} ORDER BY word")

        yield WebTwins(make, saved)


STEPS = {
    "psycopg": (POSTGRES, COMMON, ()),
    "psycopg2": (POSTGRES, COMMON, ()),
    "pymysql": (MYSQL, COMMON, ()),
    # one writer at a time: others would have to wait
    "sqlite": (SQLITE, [step for step in COMMON if step != (WRITE,)], [((WRITE,), (ROWS,), (FAILS,))]),
}


def test_requests_are_answered_as_alone(twins: WebTwins, library: str) -> None:
    """Whatever one tenant's request did, another one is answered as by an app of its own, and saves the same."""
    topics, common, alone = STEPS[library]
    twins.run(20, topics, common, alone=alone, fixed=True)


def test_without_resets_they_are_not(twins: WebTwins, library: str) -> None:
    """The programs tell an app apart whose pool passes sessions on as they are."""
    topics, common, _ = STEPS[library]
    twins.fail_without_resets(topics, common)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_requests_are_answered_as_alone(twins: WebTwins, library: str) -> None:
    """The same, many times as often."""
    topics, common, alone = STEPS[library]
    twins.run(300, topics, common, alone=alone)
