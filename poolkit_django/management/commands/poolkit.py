"""manage.py poolkit status | check | ping: the pools, their servers and their settings, from the command line."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError

from poolkit.config import nearest
from poolkit_django import conf, limits, probing, sessions
from poolkit_django.checks import check_limits, check_poolkit

NO_CHECKS: list[str] = []  # `status` and `ping` are for bad days too, and `check` runs its own


def _positive(kind: type[Any]) -> Any:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < 1e6:
            raise ArgumentTypeError(f"must be more than 0, not {text!r}")
        return value

    return read


class Command(BaseCommand):
    """Look at the pools, their servers and their settings."""

    help = "Looks at the connection pools: their servers and limits (status), their settings (check), the way (ping)."
    requires_system_checks = NO_CHECKS

    def add_arguments(self, parser: Any) -> None:
        """Take one of three actions, each with its options."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="{status,check,ping}")
        status = actions.add_parser("status", help="what the servers allow, and who is connected: all workers")
        status.add_argument("--database", action="append", dest="databases", help="only this alias; may be repeated")
        status.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
        check = actions.add_parser("check", help="the settings, and the pools' sizes against the servers' limits")
        check.add_argument("--database", action="append", dest="databases", help="only this alias; may be repeated")
        check.add_argument("--offline", action="store_true", help="the settings only: connect to nothing")
        ping = actions.add_parser("ping", help="connect and ping; the exit status says whether all answered")
        ping.add_argument("names", nargs="*", help="aliases, or names of POOLKIT; all of them unless given")
        ping.add_argument("--timeout", type=_positive(float), default=5.0, help="seconds for each connect and ping (5)")
        ping.add_argument("--count", type=_positive(int), default=3, help="pings of each (3)")
        ping.add_argument("--json", action="store_true", dest="as_json", help="print JSON")

    def handle(self, *args: Any, action: str, **options: Any) -> None:  # noqa: ARG002  Django's signature
        """Do it. The exit status says whether all is well."""
        try:
            if action == "check":
                self._check(_ours(options["databases"]), offline=options["offline"])
            elif action == "ping":
                self._ping(_known(options["names"]), options["timeout"], options["count"], as_json=options["as_json"])
            else:
                self._status(_ours(options["databases"]), as_json=options["as_json"])
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error

    # -- check ----------------------------------------------------------------------------------------------------

    def _check(self, aliases: Sequence[str], *, offline: bool) -> None:
        found = [message for message in check_poolkit() if not message.is_silenced()]
        self._tell(found)
        if not offline and not any(message.is_serious() for message in found):
            asked = [message for message in check_limits(databases=aliases) if not message.is_silenced()]
            self._tell(asked)
            found += asked
            if not any(message.is_serious() for message in asked):
                self._tell_room(aliases)
        serious = sum(message.is_serious() for message in found)
        if serious:
            raise CommandError(f"{serious} of {len(found)} must be mended")
        self.stdout.write(self.style.SUCCESS("poolkit: the settings can work"))

    def _tell(self, messages: Sequence[CheckMessage]) -> None:
        for message in messages:
            style = self.style.ERROR if message.is_serious() else self.style.WARNING
            self.stdout.write(style(str(message)))

    def _tell_room(self, aliases: Sequence[str]) -> None:
        workers = conf.workers()
        told = "workers are not told: set POOLKIT_WORKERS" if workers is None else f"there are {workers}"
        for demand in limits.demands(aliases):
            self.stdout.write(f"{', '.join(demand.sizes)}: {_room(demand)} ({told})")

    # -- status ---------------------------------------------------------------------------------------------------

    def _status(self, aliases: Sequence[str], *, as_json: bool) -> None:
        found = {alias: _seen(alias) for alias in aliases}
        registry = conf.registry()
        ready = {name: registry.pool(name).ready() for name in registry.names if not registry.shares(name)}
        if as_json:
            self.stdout.write(json.dumps({"databases": found, "ready": ready}, indent=2))
        else:
            for line in (*_database_lines(found), *(f"{name}: {_readiness(ready[name])}" for name in ready)):
                self.stdout.write(line)
        away = [alias for alias in found if found[alias]["error"]] + [name for name in ready if not ready[name]]
        if away:
            raise CommandError(f"not ready: {', '.join(away)}")

    # -- ping -----------------------------------------------------------------------------------------------------

    def _ping(self, names: Sequence[str], timeout: float, count: int, *, as_json: bool) -> None:
        found = []
        for name in names:
            found.append(probing.probe(name, timeout=timeout, count=count))
            if not as_json:
                self.stdout.write((self.style.ERROR if found[-1].error else self.style.SUCCESS)(str(found[-1])))
        if as_json:
            self.stdout.write(json.dumps([asdict(probe) for probe in found], indent=2))
        failed = [probe.name for probe in found if probe.error]
        if failed:
            raise CommandError(f"no answer from {', '.join(failed)}")


def _seen(alias: str) -> dict[str, Any]:
    """Everything `status` tells of one alias, as plain data; without a password."""
    pool = next(pool.config for pool in conf.orm_pools() if pool.name == alias)
    seen: dict[str, Any] = {"vendor": connections[alias].vendor, "max_size": pool.max_size, "min_size": pool.min_size}
    seen.update(limits=[], sessions=[], error="")
    try:
        for demand in limits.demands([alias]):
            told = {**demand.limit._asdict(), "pools": demand.sizes, "workers_that_fit": demand.workers_that_fit}
            seen["limits"].append(told | {"text": _room(demand)})
        seen["sessions"] = [{**found._asdict(), "text": str(found)} for found in sessions.sessions_of(alias)]
    except DatabaseError as error:
        seen["error"] = str(error).partition("\n")[0]
    return seen


def _room(demand: limits.Demand) -> str:
    fit = demand.workers_that_fit
    return f"{demand.limit.source}: {fit} worker {'process fits' if fit == 1 else 'processes fit'}"


def _database_lines(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    for alias, seen in found.items():
        yield f"{alias}: {seen['vendor']}, each worker process a pool of {seen['min_size']} to {seen['max_size']}"
        if seen["error"]:
            yield f"  {seen['error']}"
            continue
        yield from (f"  {limit['text']}" for limit in seen["limits"])
        if seen["sessions"] or seen["limits"]:
            yield f"  sessions on this database: {sum(each['total'] for each in seen['sessions'])} beside this one"
        yield from (f"  {each['text']}" for each in seen["sessions"])


def _readiness(ready: bool) -> str:  # noqa: FBT001
    return "ready" if ready else "can't be reached"


def _ours(given: Sequence[str] | None) -> list[str]:
    """The aliases that were asked for, of those with a pool. Raises `CommandError` for one that has none."""
    pooled = [pool.name for pool in conf.orm_pools()]
    for alias in given or ():
        if alias not in pooled:
            why = "its engine is not poolkit's" if alias in connections else _guess(alias, pooled)
            raise CommandError(f"no pool behind the alias {alias!r}: {why}")
    return list(given or pooled)


def _known(given: Sequence[str]) -> list[str]:
    known = probing.names()
    for name in given:
        if name in conf.registry().names and name not in known:
            raise CommandError(f"{name!r} is a shared client: it has no connections to ping")
        if name not in known:
            raise CommandError(f"nothing is named {name!r}: {_guess(name, known)}")
    return list(given or known)


def _guess(name: str, known: Sequence[str]) -> str:
    guess = nearest(name, known)
    return f"did you mean {guess!r}?" if guess else f"there are {', '.join(known) or DEFAULT_DB_ALIAS}"
