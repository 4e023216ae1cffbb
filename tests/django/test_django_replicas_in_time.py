"""Replicas of engines without a position: who wrote reads the primary for `remember` seconds, all others the replica.

The primary and its replica are two databases here, and nothing is copied from one to the other: each says which it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from django.apps import apps
from django.db import connections, transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.utils import timezone
from django_rig import MakeSite, Reply, Site, eventually, run
from test_django_engines import settings_of

from poolkit.testing import FaultProxy, ManualClock
from poolkit_django import current_unit, unit_of_work
from poolkit_django import fleet as fleets
from poolkit_django.backends import pools
from poolkit_django.routers import report, token, use, wrote

FIRST, COPY = "first", "copy"
REMEMBER = 60.0
LIMITS = {"pause": 0.02, "timeout": 0.5, "remember": REMEMBER}
T = TypeVar("T")
Entries = dict[str, dict[str, Any]]


class LivesThere:
    """A router of the project's own, which says that everything lives on the primary of these tests."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        """Name it."""
        return FIRST

    db_for_write = db_for_read


class Ships(NamedTuple):
    """The fleet of a test, and its clock."""

    fleet: fleets.Fleet
    clock: ManualClock

    def advance(self, seconds: float) -> None:
        """Let time pass, and look at every replica anew: none is to be left out because nobody looked."""
        self.clock.advance(seconds)
        for one in self.fleet.lookouts.values():
            one.look()


@pytest.fixture(params=["sqlite3", "mysql"])
def engine(request: pytest.FixtureRequest) -> str:
    """Which engine."""
    name: str = request.param
    return name


@pytest.fixture
def entries(engine: str, request: pytest.FixtureRequest) -> Iterator[Entries]:
    """Two databases with the table of the sessions, and a row that says which it is; as entries of DATABASES."""
    given = {"ENGINE": f"poolkit_django.backends.{engine}", **settings_of(engine, request)}
    made = {alias: {**given, "OPTIONS": {"pool": {"timeout": 5, "open_timeout": 2}}} for alias in (FIRST, COPY)}
    made[COPY]["NAME"] += "_copy"
    with known(made):
        if engine == "mysql":
            run(f"CREATE DATABASE {made[COPY]['NAME']}", using=connections[FIRST])
        for alias in (FIRST, COPY):
            table = "(session_key varchar(40) PRIMARY KEY, session_data text, expire_date datetime)"
            run(f"CREATE TABLE django_session {table}", using=connections[alias])
            sessions()(session_key="whose", session_data=alias, expire_date=timezone.now()).save(using=alias)
    yield made
    with known(made):
        run("DROP TABLE django_session", using=connections[FIRST])
        if engine == "mysql":
            run(f"DROP DATABASE {made[COPY]['NAME']}", using=connections[FIRST])


class known:  # noqa: N801  used like a function
    """Have these aliases for a block."""

    def __init__(self, made: Entries) -> None:
        self._made = made

    def __enter__(self) -> None:
        found = connections.configure_settings(
            {"default": {}, **{alias: dict(one) for alias, one in self._made.items()}}
        )
        connections.settings.update({alias: found[alias] for alias in self._made})

    def __exit__(self, *_: object) -> None:
        for alias in self._made:
            wrapper = connections[alias]
            wrapper.close()
            pools.close_database(wrapper)
            del connections[alias], connections.settings[alias]


@pytest.fixture
def sail(entries: Entries) -> Iterator[Callable[..., Ships]]:
    """Make the replica known as one, with a clock turned by hand; `changes` go to its entry of DATABASES."""
    said = {"POOLKIT_REPLICAS": {FIRST: [COPY]}, "POOLKIT_REPLICA_OPTIONS": LIMITS}
    routers = ["poolkit_django.routers.ReplicaRouter", LivesThere()]
    made: list[fleets.Fleet] = []

    def sail(**changes: Any) -> Ships:
        connections.settings[COPY].update(changes)
        clock = ManualClock()
        made.append(fleets.Fleet(clock, clock))
        fleets._made["fleet"] = made[0]
        return Ships(made[0], clock)

    with known(entries), override_settings(**said), override_settings(DATABASE_ROUTERS=routers):
        yield sail
        for one in made[0].lookouts.values():
            one.at_exit()
        eventually(lambda: not any(thread.name == f"poolkit-{COPY}" for thread in threading.enumerate()))


@pytest.fixture
def ships(sail: Callable[..., Ships]) -> Ships:
    """The replica, where nothing is special."""
    return sail()


def sessions() -> Any:
    """The model: it can't be imported before Django is configured."""
    return apps.get_model("sessions", "Session")


def whose() -> str:
    """Say which database a read is served by."""
    data: str = sessions().objects.values_list("session_data", flat=True).get(session_key="whose")
    return data


def write(key: str = "new") -> None:
    """Write through the ORM."""
    sessions()(session_key=key, session_data="", expire_date=timezone.now()).save()


def elsewhere(work: Callable[..., T], *arguments: Any) -> T:
    """Run it in a thread that has read and written nothing before, as a worker's or a command's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work, *arguments).result()


# -- requests ----------------------------------------------------------------------------------------------------------


def read_view(request: Any) -> HttpResponse:
    return HttpResponse(whose())


def write_view(request: Any) -> HttpResponse:
    before = whose()
    write()
    return HttpResponse(f"{before} {whose()}")


def raw_view(request: Any) -> HttpResponse:
    run("UPDATE django_session SET expire_date = expire_date", using=connections[FIRST])
    return HttpResponse()


@transaction.non_atomic_requests
def alone_view(request: Any) -> HttpResponse:
    write()
    return HttpResponse(whose())


def stream_view(request: Any) -> StreamingHttpResponse:
    current_unit().stream()
    write()
    return StreamingHttpResponse(iter([b"part"]))


def doomed_view(request: Any) -> HttpResponse:
    write()
    current_unit().doom("on purpose")
    return HttpResponse()


def atomic_view(request: Any) -> HttpResponse:
    with transaction.atomic(using=FIRST):
        return HttpResponse(whose())


def lock_view(request: Any) -> HttpResponse:
    with transaction.atomic(using=FIRST):
        return HttpResponse(sessions().objects.select_for_update().get(session_key="whose").session_data)


def cookie_of(reply: Reply) -> str:
    """The client's mark in an answer, as it sends it back; empty where there is none."""
    found = reply.headers.get("Set-Cookie", "").partition(";")[0].strip()
    return found if found.startswith("poolkit_replica=") else ""


def ask(site: Site, where: str, cookie: str = "") -> str:
    """Get a page as a client with this mark does."""
    reply = site.get(where, headers={"cookie": cookie} if cookie else None)
    assert reply.status == 200, reply
    return reply.body.decode()


def test_who_wrote_reads_the_primary_for_a_while(ships: Ships, site: MakeSite) -> None:
    """The writer reads the primary until `remember` seconds after the COMMIT, all others the replica; then he too."""
    served = site(read_view, write_view)
    assert ask(served, "/read_view") == COPY
    written = served.get("/write_view")
    assert written.body.decode() == f"{COPY} {FIRST}"
    cookie = cookie_of(written)
    assert f"Max-Age={REMEMBER:.0f}" in written.headers["Set-Cookie"]
    for seconds in (0, REMEMBER - 1):
        ships.advance(seconds)
        assert ask(served, "/read_view", cookie) == FIRST
        assert ask(served, "/read_view") == COPY
    ships.advance(1)
    assert ask(served, "/read_view", cookie) == COPY
    assert ask(served, "/read_view", f"{cookie}x") == COPY


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
def test_what_leaves_a_mark(ships: Ships, site: MakeSite) -> None:
    """What was committed does: by the ORM, by raw SQL, in autocommit, or to be, after a stream. Nothing else does."""
    served = site(read_view, write_view, raw_view, alone_view, stream_view, doomed_view, atomic_view, lock_view)
    for view in ("write_view", "raw_view", "alone_view", "stream_view"):
        assert cookie_of(served.get(f"/{view}")), view
        run("DELETE FROM django_session WHERE session_key = 'new'", using=connections[FIRST])
    for view in ("read_view", "doomed_view", "atomic_view", "lock_view"):
        assert not cookie_of(served.get(f"/{view}")), view
    assert [ask(served, f"/{view}") for view in ("read_view", "atomic_view", "lock_view")] == [COPY, FIRST, FIRST]


# -- tasks and commands ------------------------------------------------------------------------------------------------


def test_a_task_reads_what_it_wrote(ships: Ships) -> None:
    """In autocommit and in units of work: the thread that wrote reads the primary, until the time is over."""

    def autocommit() -> None:
        assert whose() == COPY
        write("alone")
        for seconds in (0, REMEMBER - 1):
            ships.advance(seconds)
            assert whose() == FIRST
        ships.advance(1)
        assert whose() == COPY

    def units() -> None:
        with unit_of_work():
            assert whose() == COPY
            write("unit")
            assert whose() == FIRST
        ships.advance(1)
        with unit_of_work():
            assert whose() == FIRST
        ships.advance(REMEMBER)
        with unit_of_work():
            assert whose() == COPY

    elsewhere(autocommit)
    elsewhere(units)


def test_the_time_begins_with_the_write(ships: Ships) -> None:
    """Who writes and reads for the first time long after that reads the replica: the time is not counted from there."""

    def work() -> tuple[str, str]:
        write()
        ships.advance(REMEMBER - 1)
        soon = whose()
        with use(token()):
            ships.advance(1)
            return soon, whose()

    def late() -> str:
        write("late")
        ships.advance(REMEMBER)
        return whose()

    assert elsewhere(work) == (FIRST, COPY)
    assert elsewhere(late) == COPY


def test_rolled_back(ships: Ships) -> None:
    """What was never committed leaves nothing to wait for."""

    def work() -> str:
        with unit_of_work() as unit:
            write()
            unit.doom("on purpose")
        return whose()

    assert elsewhere(work) == COPY


def test_a_token_is_good_for_as_long(ships: Ships) -> None:
    """A task that is given the token reads the primary as long as the writer does, and one without it does not."""

    def writes() -> str:
        with unit_of_work():
            write()
        return token()

    def reads(given: str) -> tuple[str, str]:
        with use(given):
            inside = whose()
        return inside, whose()

    given = elsewhere(writes)
    assert elsewhere(reads, given) == (FIRST, COPY)
    assert elsewhere(reads, f"{given}x") == (COPY, COPY)
    ships.advance(REMEMBER)
    assert elsewhere(reads, given) == (COPY, COPY)


def test_a_write_that_is_told(ships: Ships) -> None:
    """`wrote()` counts as a write that was seen."""

    def work() -> str:
        wrote(FIRST)
        ships.advance(1)
        return whose()

    assert elsewhere(work) == FIRST


def test_no_lag_is_known(ships: Ships) -> None:
    """A replica that answers is in use, and tells no position and no lag; nobody looks at the primary for that."""
    assert elsewhere(whose) == COPY
    (told,) = report()
    assert (told["alias"], told["in_use"], told["position"], told["lag_seconds"]) == (COPY, True, None, None)
    assert FIRST not in {pool.name for pool in pools.live() if pool.stats().opened}


# -- a replica that is away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sqlite3"])
def test_a_file_that_is_not_there(sail: Callable[..., Ships], tmp_path: Path, entries: Entries) -> None:
    """A replica whose file is away is left out, and used again when it is there."""
    file, away = Path(entries[COPY]["NAME"]), tmp_path / "away"
    file.rename(away)
    ships = sail(NAME=f"file:{file}?mode=ro", OPTIONS={"uri": True, "pool": {"timeout": 5, "open_timeout": 2}})
    assert elsewhere(whose) == FIRST
    # Asked again each time: on a busy machine the first look may say no more than that it took too long.
    eventually(lambda: elsewhere(whose) == FIRST and "unable to open" in report()[0]["last_error"])
    away.rename(file)
    eventually(lambda: ships.advance(0) or elsewhere(whose) == COPY)


@pytest.mark.parametrize("engine", ["sqlite3"])
@pytest.mark.parametrize("at_the_end", [True, False])
def test_an_end_in_the_middle_of_a_look(
    sail: Callable[..., Ships], monkeypatch: pytest.MonkeyPatch, *, at_the_end: bool
) -> None:
    """What a look meets because the process ends is told nobody; any other surprise is."""
    (lookout,) = sail().fleet.lookouts.values()
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda met: told.append(str(met.exc_value)))

    def look(*_: Any) -> Any:
        if at_the_end:
            lookout.at_exit()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(fleets, "look", look)
    lookout.want()
    assert lookout.looked.wait(5)
    eventually(lambda: not any(thread.name == f"poolkit-{COPY}" for thread in threading.enumerate()))
    assert told == ([] if at_the_end else ["can't start new thread"])


@pytest.fixture
def way(entries: Entries) -> Iterator[FaultProxy]:
    """A network to the replica that can fail."""
    given = entries[COPY]
    with FaultProxy((given["HOST"] or "127.0.0.1", int(given["PORT"]))) as proxy:
        yield proxy


@pytest.fixture
def behind(way: FaultProxy, sail: Callable[..., Ships]) -> Ships:
    """A replica behind that network, in use."""
    ships = sail(HOST=way.address[0], PORT=way.address[1])
    assert elsewhere(whose) == COPY
    return ships


@pytest.mark.parametrize("engine", ["mysql"])
def test_a_server_that_goes_and_comes(behind: Ships, way: FaultProxy) -> None:
    """A read that finds its replica gone runs again on the primary, in the middle of a unit too; later it is back."""

    def work() -> tuple[str, str]:
        with unit_of_work():
            before = whose()
            way.refuse()
            way.cut()
            return before, whose()

    assert elsewhere(work) == (COPY, FIRST)
    eventually(lambda: not report()[0]["in_use"])
    assert elsewhere(whose) == FIRST
    way.heal()
    eventually(lambda: elsewhere(whose) == COPY)


@pytest.mark.parametrize("engine", ["mysql"])
def test_a_server_that_is_silent(behind: Ships, way: FaultProxy) -> None:
    """What hangs on a silent replica is cut off after about `timeout`, and a read runs again on the primary."""

    def work() -> str:
        with unit_of_work():
            assert whose() == COPY
            behind.advance(0)  # one connection to look with, beside the one that is held
            way.blackhole()
            return whose()

    mercy = threading.Timer(8, way.heal)  # for the case that nobody cuts it off
    mercy.start()
    try:
        assert elsewhere(work) == FIRST
    finally:
        mercy.cancel()
    assert report()[0]["last_error"] in ("no answer within 0.5 s", "no connection within 0.5 s")
    way.heal()
    eventually(lambda: elsewhere(whose) == COPY)
