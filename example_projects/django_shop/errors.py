"""What becomes of an exception that leaves a view, and of a COMMIT that fails: settings.POOLKIT_EXCEPTION_HANDLER."""

from __future__ import annotations

import requests
from django.core.exceptions import BadRequest
from django.db import IntegrityError
from django.http import Http404, HttpRequest, JsonResponse


class NotEnoughStock(Exception):
    """Raised after the order was written; so it is rolled back."""


def answer(_: HttpRequest, error: BaseException) -> JsonResponse | None:
    """Answer as an API does; None leaves it to Django. Whatever this returns, the transaction is rolled back."""
    if isinstance(error, IntegrityError):  # of a statement, or of the COMMIT
        return JsonResponse({"error": "that contradicts what is stored"}, status=409)
    if isinstance(error, NotEnoughStock):
        return JsonResponse({"error": "not enough in stock"}, status=409)
    if isinstance(error, Http404):
        return JsonResponse({"error": "no such thing"}, status=404)
    if isinstance(error, BadRequest):
        return JsonResponse({"error": error.args[0]}, status=400)
    if isinstance(error, requests.RequestException):
        return JsonResponse({"error": "no price can be had at the moment"}, status=502)
    return None
