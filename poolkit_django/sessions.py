"""What a database server knows of its clients: the sessions of every worker, here and on other machines.

poolkit names its sessions `poolkit:<host>:<pid>`, so that one look at the server shows each worker; an
`application_name` of the settings' own goes before that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from django.db import DatabaseError, connections

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
# The server keeps the name that a client gives itself where its performance_schema is on; mysqlclient gives none.
_MYSQL = """
SELECT coalesce(named.attr_value, '(no name)'), clients.user, substring_index(clients.host, ':', 1), count(*),
       sum(clients.command <> 'Sleep'), {idle}
  FROM information_schema.processlist AS clients
  LEFT JOIN performance_schema.session_account_connect_attrs AS named
         ON named.processlist_id = clients.id AND named.attr_name = 'program_name'
       {more}
 WHERE clients.db = database() AND clients.id <> connection_id()
 GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3
"""
# `trx_started` is in the server's own time zone, whatever the session's is.
_MYSQL_ALL = _MYSQL.format(
    idle="""sum(clients.command = 'Sleep' AND works.trx_id IS NULL),
       sum(clients.command = 'Sleep' AND works.trx_id IS NOT NULL),
       max(timestampdiff(MICROSECOND, convert_tz(works.trx_started, 'SYSTEM', '+00:00'), utc_timestamp(6))) / 1e6""",
    more="LEFT JOIN information_schema.innodb_trx AS works ON works.trx_mysql_thread_id = clients.id",
)
# Who lacks the PROCESS privilege may not ask for transactions, and finds none but the sessions of his own account.
_MYSQL_OWN = _MYSQL.format(idle="sum(clients.command = 'Sleep'), NULL, NULL", more="")
_NEEDS_PROCESS = 1227


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
    if connection.vendor == "postgresql":
        return _asked(connection, _POSTGRESQL)
    if connection.vendor != "mysql":
        return []
    try:
        return _asked(connection, _MYSQL_ALL)
    except DatabaseError as error:
        if error.args[0] != _NEEDS_PROCESS:
            raise
    return _asked(connection, _MYSQL_OWN)


def _asked(connection: Any, question: str) -> list[Sessions]:
    with connection.cursor() as cursor:
        cursor.execute(question)
        return [_sessions(row) for row in cursor.fetchall()]


def _sessions(row: Any) -> Sessions:
    application, user, client, total, active, idle, waiting, longest = row
    counted = (int(total), int(active), int(idle), None if waiting is None else int(waiting))
    return Sessions(application, user, client, *counted, None if longest is None else float(longest))
