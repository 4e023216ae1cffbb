"""Views of Django REST framework. It reads Django's settings as it is imported, so the tests import this later."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from django_rig import run, write
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.response import Response
from rest_framework.views import APIView

RAISED: dict[str, type[Exception]] = {
    "not_found": NotFound,
    "invalid": ValidationError,
    "http404": Http404,
    "denied": PermissionDenied,
    "broken": ZeroDivisionError,
}


class Rest(APIView):
    """Writes, and then ends as it is told."""

    def get(self, request: Any) -> Response:
        how = request.GET["how"]
        write("rest")
        if how in RAISED:
            raise RAISED[how]
        if how == "deferred":
            run("INSERT INTO django_children VALUES (999)")
            return Response({"saved": True}, status=201)
        return Response({"how": how}, status=int(how))


def rest(request: HttpRequest) -> Any:
    """A plain function, as the tests' sites want it."""
    return Rest.as_view()(request)
