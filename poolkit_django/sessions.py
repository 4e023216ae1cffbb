"""What a database server knows of its clients: the sessions of every worker, here and on other machines.

poolkit names its sessions `poolkit:<host>:<pid>`, so that one look at the server shows each worker; an
`application_name` of the settings' own goes before that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from django.db import connections

__all__ = ["Sessions", "sessions_of"]

# Who may not see another role's sessions gets their name and number, and NULL for all the rest.
_POSTGRESQL = """
SELECT coalesce(nullif(application_name, ''), '(no name)'), usename::text, coalesce(host(client_addr), ''), count(*),
       count(*) FILTER (WHERE state = 'active'),
       count(*) FILTER (WHERE state = 'idle'),
       count(*) FILTER (WHERE state LIKE 'idle in transaction%'),
       extract(epoch FROM max(clock_timestamp() - xact_start))::float
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
   AND (backend_type IS NULL OR backend_type = 'client backend')
 GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3
"""
# Without the PROCESS privilege it shows the user's own only.
_MYSQL = """
SELECT '(no name)', user, substring_index(host, ':', 1), count(*), sum(command <> 'Sleep'), sum(command = 'Sleep'),
       NULL, NULL
  FROM information_schema.processlist
 WHERE db = database() AND id <> connection_id()
 GROUP BY 2, 3 ORDER BY 4 DESC, 2, 3
"""
_QUESTIONS = {"postgresql": _POSTGRESQL, "mysql": _MYSQL}


class Sessions(NamedTuple):
    """The sessions of one program on one database. None: the server does not tell."""

    application: str
    user: str
    client: str
    total: int
    active: int
    idle: int
    in_transaction: int | None
    """Idle in a transaction: nobody else can have what they have locked."""
    longest: float | None
    """The oldest transaction's age in seconds."""

    def __str__(self) -> str:
        parts = [f"{self.active} active", f"{self.idle} idle"]
        hidden = self.total - self.active - self.idle - (self.in_transaction or 0)
        if self.in_transaction:
            parts.append(f"{self.in_transaction} idle in a transaction")
        if hidden > 0:
            parts.append(f"{hidden} of which this role may see nothing")
        if self.longest is not None:
            parts.append(f"oldest transaction {self.longest:.1f} s")
        at = f"@{self.client}" if self.client else ""
        return f"{self.total:4d}  {self.application}  {self.user}{at}: {', '.join(parts)}"


def sessions_of(alias: str) -> list[Sessions]:
    """Ask the server of an alias who is connected to its database, but for this connection. Raises Django's errors."""
    connection = connections[alias]
    question = _QUESTIONS.get(connection.vendor)
    if question is None:
        return []
    with connection.cursor() as cursor:
        cursor.execute(question)
        return [_sessions(row) for row in cursor.fetchall()]


def _sessions(row: Any) -> Sessions:
    application, user, client, total, active, idle, waiting, longest = row
    counted = (int(total), int(active), int(idle), None if waiting is None else int(waiting))
    return Sessions(application, user, client, *counted, None if longest is None else float(longest))
