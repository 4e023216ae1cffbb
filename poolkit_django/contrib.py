"""Hooks for what answers errors below Django, where the middleware sees a response like any other.

    REST_FRAMEWORK = {"EXCEPTION_HANDLER": "poolkit_django.contrib.rest_exception_handler"}    # Django REST framework

    api = roll_back_on_errors(NinjaAPI())                                                      # django-ninja

    class View(RollbackOnErrors, GraphQLView): ...                                             # graphene-django

    strawberry.Schema(..., extensions=[RollbackOnErrors])       # strawberry: the one of `poolkit.strawberry`

Django REST framework marks the responses that it makes of exceptions, so they roll back without a hook, at the end of
the request; with it they do at once, and what an exception handler writes stays. None of these libraries is imported
before it is used.
"""

from __future__ import annotations

from _thread import get_ident
from typing import Any, TypeVar

from poolkit_django.units import current_unit

__all__ = ["RollbackOnErrors", "rest_exception_handler", "roll_back", "roll_back_on_errors"]

A = TypeVar("A")


def roll_back(error: BaseException) -> None:
    """Roll back the unit of work that this code runs in, for an error that is about to be answered.

    At once where that can be: in the unit's own thread, and outside of an atomic() of the code's own (ATOMIC_REQUESTS
    is one). Else at the end. Does nothing where there is no unit, or it has ended.
    """
    unit = current_unit()
    if unit is None or unit.ended:
        return
    if get_ident() == unit.thread and unit.is_outermost:
        unit.roll_back(error)
    elif unit.is_open:
        unit.doom(f"{type(error).__name__} was answered")


def rest_exception_handler(error: Exception, context: dict[str, Any]) -> Any:
    """Answer as Django REST framework does, after a rollback. For a handler of one's own: call `roll_back(error)`."""
    from rest_framework.views import exception_handler  # type: ignore[import-untyped]  # noqa: PLC0415

    roll_back(error)
    return exception_handler(error, context)


def roll_back_on_errors(api: A) -> A:
    """Have a `NinjaAPI` roll back for each exception that it answers, HttpError and with DEBUG too; return it."""
    ninja: Any = api
    answer = ninja.on_exception

    def on_exception(request: Any, exc: Any) -> Any:
        roll_back(exc)
        return answer(request, exc)

    ninja.on_exception = on_exception
    return api


class RollbackOnErrors:
    """Mix in before graphene-django's GraphQLView: a result with errors rolls back all of its request, at the end."""

    def execute_graphql_request(self, *args: Any, **kwargs: Any) -> Any:
        """Execute, and look at the result."""
        result = super().execute_graphql_request(*args, **kwargs)  # type: ignore[misc]
        unit, errors = current_unit(), getattr(result, "errors", None)
        if errors and unit is not None and unit.is_open:
            unit.doom(f"GraphQL: {len(errors)} error(s)")
        return result
