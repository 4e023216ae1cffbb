"""reset="full" in OPTIONS["pool"]: the session is new each time, and still the alias's own."""

from __future__ import annotations

from typing import Any

import psycopg
from async_rig import another_alias
from django.db import connections
from django_rig import run


def test_a_full_reset_keeps_time_zone_and_role(dsn: str, monitor: psycopg.Connection[Any]) -> None:
    """What the settings ask of a connection holds for every lease, not for the first alone."""
    monitor.execute(
        "DROP ROLE IF EXISTS django_reset_role; CREATE ROLE django_reset_role;"
        "ALTER ROLE CURRENT_USER SET TimeZone = 'Asia/Tokyo'"
    )
    options = {"assume_role": "django_reset_role", "pool": {"max_size": 1, "reset": "full"}}
    asked = "SELECT pg_backend_pid(), current_setting('TimeZone'), current_user::text"
    try:
        with another_alias(dsn, {"TIME_ZONE": "Europe/Paris"}, **options) as name:
            seen = []
            for _ in range(3):
                seen += run(asked, using=connections[name])
                run("SET TimeZone = 'America/Lima'", using=connections[name])
                connections[name].close()
    finally:
        monitor.execute("ALTER ROLE CURRENT_USER RESET TimeZone; DROP ROLE django_reset_role")
    assert len({pid for pid, _, _ in seen}) == 1
    assert [(zone, role) for _, zone, role in seen] == [("Europe/Paris", "django_reset_role")] * 3
