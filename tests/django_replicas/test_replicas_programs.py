"""Programs on a primary and its standby: tests, commands, tasks."""

from __future__ import annotations

import secrets

import pytest
from replica_rig import Cluster, program

pytestmark = pytest.mark.slow


def test_a_projects_own_tests(cluster: Cluster) -> None:
    """Under test the replicas are the primary: all is visible at once, in a TestCase as well, and nothing is asked."""
    said = program(cluster, "manage.py", "test", "--noinput", TEST_NAME=f"test_{secrets.token_hex(4)}")
    assert "OK" in said


def test_several_primaries(cluster: Cluster) -> None:
    """Each primary has replicas of its own, and other routers say what lives where."""
    assert program(cluster, "many.py", DJANGO_SETTINGS_MODULE="many_settings").strip().endswith("well")


@pytest.mark.parametrize("task", ["reads", "rolled_back", "back"])
def test_tasks(task: str, cluster: Cluster) -> None:
    """A command reads replicas outside of transactions, and again after its writes are replayed."""
    assert program(cluster, "tasks.py", task).strip().endswith("well")


@pytest.mark.parametrize("task", ["units", "autocommit", "unseen", "tokens"])
def test_tasks_read_what_they_wrote(task: str, cluster: Cluster) -> None:
    """While nothing is replayed, a command reads its own writes on the primary, and a token carries them over."""
    with cluster.paused():
        assert program(cluster, "tasks.py", task).strip().endswith("well")
