"""What a server allows, against what the pools of all worker processes may ask for. The only part that connects.

A limit covers every alias of ours that it counts: the server's max_connections all on that host and port, a role's
those of the same user, a database's those of the same name. Behind a connection pooler the numbers are of the server
behind it; what the pooler itself allows it does not tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from django.db import connections

from poolkit_django import conf, native

__all__ = ["Demand", "Limit", "demands", "limits_of"]

_POSTGRESQL = """
SELECT current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int,
       coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user),
       coalesce((SELECT pg_has_role(session_user, oid, 'USAGE') FROM pg_roles
                 WHERE rolname = 'pg_use_reserved_connections'), false),
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user),
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""
# The session's max_user_connections is the account's own where it has one, else the server's.
_MYSQL = """
SELECT @@global.max_connections, @@session.max_user_connections, @@global.max_user_connections, version(),
       (SELECT group_concat(privilege_type) FROM information_schema.user_privileges
         WHERE replace(grantee, '''', '') = current_user())
"""
_KEYS = {"server": ("HOST", "PORT"), "role": ("HOST", "PORT", "USER"), "database": ("HOST", "PORT", "NAME")}


class Limit(NamedTuple):
    """One limit: whose ("server", "role", "database"), how many connections it leaves, and where that is set."""

    kind: str
    most: int
    source: str


class Demand(NamedTuple):
    """What the pools under one limit may ask for, per worker process."""

    limit: Limit
    sizes: dict[str, int]
    """The most by alias."""
    most: int
    least: int

    @property
    def workers_that_fit(self) -> int:
        """How many worker processes can fill their pools."""
        return self.limit.most // self.most


def limits_of(alias: str) -> list[Limit]:
    """Ask the server of an alias for its limits; none where there is no server. Raises what connecting raises."""
    connection = connections[alias]
    if connection.vendor == "postgresql":
        return _postgresql(_asked(connection, _POSTGRESQL))
    if connection.vendor == "mysql":
        return _mysql(_asked(connection, _MYSQL))
    return []


def _asked(connection: Any, question: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()


def _postgresql(row: Any) -> list[Limit]:
    most, for_superusers, reserved, is_superuser, may_use_reserved, of_role, of_database = row
    if is_superuser:  # none of the others binds it
        return [Limit("server", most, f"max_connections is {most}")]
    kept = for_superusers + (0 if may_use_reserved else reserved)
    limits = [Limit("server", most - kept, f"max_connections is {most}, of which {kept} are kept for others")]
    if of_role is not None and of_role >= 0:
        limits.append(Limit("role", of_role, f"the role's CONNECTION LIMIT is {of_role}"))
    if of_database is not None and of_database >= 0:
        limits.append(Limit("database", of_database, f"the database's CONNECTION LIMIT is {of_database}"))
    return limits


def _mysql(row: Any) -> list[Limit]:
    most, of_user, of_all, version, privileges = row
    limits = [Limit("server", int(most), f"max_connections is {most}")]
    is_own = int(of_user) != int(of_all)
    if int(of_user) > 0 and (is_own or not _is_free(str(version), str(privileges or "").split(","))):
        limits.append(Limit("role", int(of_user), f"max_user_connections is {of_user}"))
    return limits


def _is_free(version: str, privileges: list[str]) -> bool:
    """Whether the server's max_user_connections does not bind an account: on MariaDB, that of an administrator."""
    if "mariadb" not in version.lower():
        return False
    return "CONNECTION ADMIN" in privileges or ("SUPER" in privileges and int(version.partition(".")[0]) < 11)


def demands(aliases: Iterable[str]) -> Iterator[Demand]:
    """Hold the pools against the limits of the servers of these aliases, each limit once.

    Every alias under a limit is counted, also one whose server was not to be asked.
    """
    pools = _sizes()
    seen = set()
    for alias in aliases:
        if alias not in pools:
            continue
        for limit in limits_of(alias):
            key = (limit.kind, _key(alias, limit.kind))
            if key in seen:
                continue
            seen.add(key)
            under = tuple(other for other in pools if _key(other, limit.kind) == key[1])
            sizes = {other: pools[other].most for other in under}
            yield Demand(limit, sizes, sum(sizes.values()), sum(pools[other].least for other in under))


class _Size(NamedTuple):
    most: int
    least: int


def _sizes() -> dict[str, _Size]:
    """What each alias may open in one process: by the ORM's pool, and by the native one that POOLKIT_ASYNC names."""
    both = [(pool.name, pool.config) for pool in conf.orm_pools()]
    both += native.configured().items()
    found: dict[str, _Size] = {}
    for alias, config in both:
        most, least = found.get(alias, (0, 0))
        found[alias] = _Size(most + config.max_size + config.reserved, least + config.min_size)
    return found


def _key(alias: str, kind: str) -> tuple[str, ...]:
    settings = connections[alias].settings_dict
    return (connections[alias].vendor, *(str(settings[name]) for name in _KEYS[kind]))
