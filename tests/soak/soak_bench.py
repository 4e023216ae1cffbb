"""What the faults are done to: a private PostgreSQL, a proxy before it, and roles whose passwords change."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import psycopg
from soak_ledger import Found
from soak_plan import Fault

from poolkit.testing.faults import FaultProxy
from poolkit.testing.postgres import LocalPostgres

__all__ = ["TABLES", "Bench", "Roles"]

TABLES = ("main", "ledger")
APPLICATION = "soak"

# The key is checked in the COMMIT: a part that is there twice makes it fail.
_SCHEMA = """
CREATE TABLE main (unit bigint, part int, PRIMARY KEY (unit, part) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE ledger (unit bigint, part int, PRIMARY KEY (unit, part) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE counter (id int PRIMARY KEY, value bigint NOT NULL);
CREATE ROLE soak_a LOGIN;
CREATE ROLE soak_b LOGIN;
GRANT ALL ON main, ledger, counter TO soak_a, soak_b;
"""
_EMPTY = """
TRUNCATE main, ledger, counter;
INSERT INTO counter SELECT id, 0 FROM generate_series(1, 3) id;
"""


class Roles:
    """Who the pools connect as. Every connect asks again, as with passwords that live for an hour."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._passwords = {"soak_a": "", "soak_b": ""}
        self._role = "soak_a"

    def url(self, scheme: str, application: str) -> Callable[[], str]:
        """Return the callable that a pool is given in the place of a URL."""

        def url() -> str:
            role = self._role
            parameters = urlencode({"application_name": f"{APPLICATION}-{application}", "sslmode": "disable"})
            place = f"127.0.0.1:{self._bench.proxy.port}/postgres"
            return f"{scheme}://{role}:{self._passwords[role]}@{place}?{parameters}"

        return url

    def rotate(self, dice: float) -> str:
        """Give a role a new password, which ends the old one at once, and have new connections use that role."""
        role = "soak_a" if dice < 0.5 else "soak_b"
        password = secrets.token_hex(6)
        self._bench.do(f"ALTER ROLE {role} PASSWORD '{password}'")
        if dice % 0.5 < 0.25:
            time.sleep(0.02)  # as long as the server knows the new password and the program does not
        self._passwords[role] = password
        self._role = role
        return role


class Bench:
    """The server, its network, and whatever can happen to them. Used by one thread at a time."""

    def __init__(self) -> None:
        self.server = LocalPostgres(
            deadlock_timeout="50ms",
            lock_timeout="1500ms",
            client_connection_check_interval="200ms",
            log_min_messages="panic",
            log_min_error_statement="panic",
        )
        self.roles = Roles(self)
        self.away = False  # stopped, killed or paused by us

    @contextlib.contextmanager
    def running(self) -> Iterator[Bench]:
        with self.server, FaultProxy(self.server.dsn) as self.proxy:
            self.do(_SCHEMA)
            self.roles.rotate(0.0)
            yield self

    # -- looking, past the proxy ----------------------------------------------------------------------------------

    def do(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL as the superuser over the Unix socket."""
        options = "-c statement_timeout=5000"
        with psycopg.connect(self.server.socket_dsn, autocommit=True, connect_timeout=3, options=options) as admin:
            cursor = admin.execute(sql)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> None:
        """Forget the rows of the round before."""
        self.do(_EMPTY)

    def rows(self) -> tuple[dict[str, dict[int, Found]], int]:
        """What is in the tables, by unit, and what the counter says."""
        ghosts = "count(*) FILTER (WHERE part >= 1000)"
        tables = {
            table: {
                unit: Found(rows, lost)
                for unit, rows, lost in self.do(f"SELECT unit, count(*) - {ghosts}, {ghosts} FROM {table} GROUP BY 1")
            }
            for table in TABLES
        }
        return tables, self.do("SELECT sum(value)::bigint FROM counter")[0][0]

    def sessions(self) -> list[tuple[str, str]]:
        """The application and the state of every session of the pools."""
        return [
            (name.removeprefix(f"{APPLICATION}-"), state)
            for name, state in self.do(
                f"SELECT application_name, state FROM pg_stat_activity WHERE application_name LIKE '{APPLICATION}-%'"
            )
        ]

    # -- faults ---------------------------------------------------------------------------------------------------

    def begin(self, fault: Fault) -> str | None:
        """Do what the fault does to the server or its network; returns what is to be said of it beyond its name."""
        return getattr(self, "_" + fault.kind.replace(" ", "_").replace("-", "_"))(fault.dice)  # type: ignore[no-any-return]

    def end(self, fault: Fault) -> None:
        """Lift it."""
        if fault.track == "network":
            if fault.kind == "half-open":  # whoever still waits on a path that was lost is told so, as by a NAT
                self.proxy.cut("rst")
            self.proxy.heal()
        else:
            self.server.resume()
            self.server.start()
            self.away = False

    def _kill(self, which: str) -> str:
        found = self.do(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            f"WHERE application_name LIKE '{APPLICATION}-%' AND {which}"
        )
        return f"{found[0][0]} sessions"

    def _kill_idle_backends(self, _dice: float) -> str:
        return self._kill("state = 'idle'")

    def _kill_all_backends(self, _dice: float) -> str:
        return self._kill("true")

    def _kill_a_few_backends(self, dice: float) -> str:
        return self._kill(f"random() < {0.1 + dice / 2}")

    def _cancel_statements(self, _dice: float) -> str:
        found = self.do(
            "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity "
            f"WHERE application_name LIKE '{APPLICATION}-%' AND state = 'active'"
        )
        return f"{found[0][0]} statements"

    def _crash_one_backend(self, _dice: float) -> str:
        found = self.do(f"SELECT pid FROM pg_stat_activity WHERE application_name LIKE '{APPLICATION}-%' LIMIT 1")
        for (pid,) in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"{len(found)} killed with -9"

    def _restart(self, dice: float) -> None:
        self.away = True
        self.server.stop("fast" if dice < 0.7 else "immediate")

    _stop = _restart

    def _crash(self, _dice: float) -> None:
        self.away = True
        self.server.kill()

    def _pause(self, _dice: float) -> None:
        self.away = True
        self.server.pause()

    def _latency(self, dice: float) -> str:
        seconds = 0.002 + dice * 0.1
        self.proxy.delay(seconds)
        return f"{seconds * 1000:.0f} ms each way"

    def _throttle(self, dice: float) -> str:
        rate = 2000 + dice * 30_000
        self.proxy.throttle(rate)
        return f"{rate / 1000:.1f} kB/s"

    def _blackhole(self, dice: float) -> str:
        self.proxy.blackhole()
        if dice < 0.5:
            self.proxy.refuse("silent")
        return "no connect is answered" if dice < 0.5 else "connects are accepted"

    def _half_open(self, _dice: float) -> str:
        return f"{self.proxy.half_open()} links lost"

    def _hide_ends(self, _dice: float) -> None:
        self.proxy.hold_ends()

    def _refuse(self, dice: float) -> str:
        how = ("closed", "rst", "silent")[int(dice * 3)]
        self.proxy.refuse(how)  # type: ignore[arg-type]
        return how

    def _cut_by_RST(self, _dice: float) -> str:  # noqa: N802  as the kind is written
        return f"{self.proxy.cut('rst')} links"

    def _cut_by_FIN(self, _dice: float) -> str:  # noqa: N802
        return f"{self.proxy.cut('fin')} links"
