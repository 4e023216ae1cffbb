"""What Django's own test suite found on these engines, each as a test of our own."""

from __future__ import annotations

import unittest
from typing import Any

from django.db import connection
from django.test import TestCase
from django_rig import acquired, out


def run_test(body: Any) -> None:
    """Run a function as the one test of a django.test.TestCase."""
    case = type("Case", (TestCase,), {"databases": {"default"}, "test": lambda _: body()})
    result = unittest.TestResult()
    unittest.TestSuite([case("test")]).run(result)
    for _, trace in result.errors + result.failures:
        raise AssertionError(trace)
    assert result.testsRun == 1


def test_a_testcase_has_its_connection_when_the_test_begins() -> None:
    """Laziness ends at a TestCase: its test finds a connection in its transaction, as with Django's own engine."""
    before = acquired()

    def body() -> None:
        assert connection.connection is not None
        assert out() == 1

    run_test(body)
    assert acquired() == before + 1
    assert out() == 0


def test_the_queries_of_a_testcase_are_the_tests_own() -> None:
    """What is logged in a test begins with its first query: BEGIN and the savepoint came before the test."""

    def body() -> None:
        connection.force_debug_cursor = True
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            assert [query["sql"] for query in connection.queries] == ["SELECT 1"]
        finally:
            connection.force_debug_cursor = False
            connection.queries_log.clear()

    run_test(body)


def test_who_turns_autocommit_off_by_hand_is_connected() -> None:
    """Only atomic() is lazy: an explicit set_autocommit(False) begins at once, as with Django's own engine."""
    try:
        connection.set_autocommit(False)
        assert connection.connection is not None
        assert connection.connection.autocommit is False
    finally:
        connection.rollback()
        connection.set_autocommit(True)
        connection.close()
