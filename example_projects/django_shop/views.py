"""Every page of the shop, with the ORM as ever. PoolkitMiddleware makes each request one transaction."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import BadRequest
from django.core.handlers.asgi import ASGIRequest
from django.db import connection, transaction
from django.db.models import F
from django.forms import Form
from django.http import Http404, HttpRequest, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST, require_safe

from example_projects.django_shop import faults
from example_projects.django_shop.errors import NotEnoughStock
from example_projects.django_shop.forms import LoginForm, OrderForm, SleepForm
from example_projects.django_shop.models import Customer, Order, Product
from example_projects.passwords import check_password
from poolkit_django import get, unit_of_work

background = ThreadPoolExecutor(max_workers=2, thread_name_prefix="notify")

PAGE = 500  # orders in one page of orders.csv
PRODUCT = ("id", "name", "price", "stock")
ORDER = ("id", "product_id", "quantity", "status")
_OWN_NUMBER = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}
_SLEEP = {"postgresql": "SELECT pg_sleep(%s)", "mysql": "SELECT SLEEP(%s)"}


@require_safe
def hello(_: HttpRequest) -> JsonResponse:
    """Take no connection: nothing is asked of the database."""
    return JsonResponse({"hello": "world"})


@require_safe
def products(_: HttpRequest) -> JsonResponse:
    """List the products."""
    return JsonResponse(list(Product.objects.order_by("id").values(*PRODUCT)), safe=False)


@require_safe
def product(_: HttpRequest, product_id: int) -> JsonResponse:
    """Show one product."""
    return JsonResponse(get_object_or_404(Product.objects.values(*PRODUCT), id=product_id))


@require_POST
def create_order(request: HttpRequest) -> JsonResponse:
    """Order: one transaction inserts the order and lowers the stock."""
    wanted = _valid(OrderForm(_json(request)))
    chosen = Product.objects.filter(id=wanted["product_id"])
    if not chosen.update(stock=F("stock") - wanted["quantity"]):
        raise Http404
    order = Order.objects.create(**wanted)
    if chosen.filter(stock__lt=0).exists():
        raise NotEnoughStock  # raised, so both writes are rolled back
    faults.happen(request.GET.get("fault"), order)
    return JsonResponse({"id": order.id}, status=201)


@require_safe
def order(_: HttpRequest, order_id: int) -> JsonResponse:
    """Show one order."""
    return JsonResponse(get_object_or_404(Order.objects.values(*ORDER), id=order_id))


@require_safe
def orders_csv(request: HttpRequest) -> StreamingHttpResponse:
    """Stream every order. The body is sent after this has returned, and takes a connection only for each page."""
    body = _pages_async() if isinstance(request, ASGIRequest) else _pages()
    return StreamingHttpResponse(body, content_type="text/csv")


def _pages() -> Iterator[str]:
    text, last = _page(None)
    while text:
        yield text
        text, last = _page(last)


async def _pages_async() -> AsyncIterator[str]:
    page = sync_to_async(_page)
    text, last = await page(None)
    while text:
        yield text
        text, last = await page(last)


def _page(last: int | None) -> tuple[str, int]:
    """Return the orders after `last` as text, and the last of them; the header comes with the first page."""
    text = io.StringIO()
    lines = csv.writer(text)
    if last is None:
        lines.writerow(ORDER)
    rows = list(Order.objects.filter(id__gt=last or 0).order_by("id").values_list(*ORDER)[:PAGE])
    lines.writerows(rows)
    return text.getvalue(), rows[-1][0] if rows else last or 0


@require_POST
def notify(_: HttpRequest, order_id: int) -> JsonResponse:
    """Accept, and do the work in the background once this request has committed."""
    get_object_or_404(Order, id=order_id)
    transaction.on_commit(lambda: background.submit(_mark_notified, order_id))
    return JsonResponse({"status": "accepted"}, status=202)


def _mark_notified(order_id: int) -> None:
    with unit_of_work("notify"):
        Order.objects.filter(id=order_id).update(status="notified")


@require_POST
def login(request: HttpRequest) -> JsonResponse:
    """Log in. A wrong password is counted, and 401 is returned, not raised: what is returned is committed."""
    given = _valid(LoginForm(_json(request)))
    found = Customer.objects.filter(name=given["user"])
    customer = found.first()
    if customer and check_password(given["password"], customer.password):
        found.update(failed_logins=0)
        return JsonResponse({"user": customer.name})
    found.update(failed_logins=F("failed_logins") + 1)
    return JsonResponse({"error": "wrong user or password"}, status=401)


@require_safe
def user(_: HttpRequest, name: str) -> JsonResponse:
    """Show how often a login failed."""
    return JsonResponse(get_object_or_404(Customer.objects.values("failed_logins"), name=name))


@require_safe
def quote(_: HttpRequest, product_id: int) -> JsonResponse:
    """Ask the pricing service, through a pooled session."""
    answer = get("pricing").get(f"/price/{product_id}")
    if answer.status_code == 404:
        raise Http404
    answer.raise_for_status()
    return JsonResponse({"id": product_id, "price": answer.json()["price"]})


@require_safe
def where(_: HttpRequest) -> JsonResponse:
    """Tell which process answers, and which backend serves it."""
    with connection.cursor() as cursor:
        cursor.execute(_OWN_NUMBER[connection.vendor])
        (backend,) = cursor.fetchone()
    return JsonResponse({"pid": os.getpid(), "backend": backend})


@require_safe
def sleep(request: HttpRequest) -> JsonResponse:
    """Hold this request's connection for a while."""
    seconds = _valid(SleepForm(request.GET))["seconds"]
    with connection.cursor() as cursor:
        cursor.execute(_SLEEP[connection.vendor], [seconds])
    return JsonResponse({"slept": seconds})


def _json(request: HttpRequest) -> Mapping[str, Any]:
    """Read a JSON object, or raise 400."""
    try:
        body = json.loads(request.body)
    except ValueError as error:
        raise BadRequest(f"expected JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("expected a JSON object")
    return body


def _valid(form: Form) -> dict[str, Any]:
    """Return what a form makes of its data, or raise 400 with what is wrong."""
    if not form.is_valid():
        raise BadRequest(form.errors.get_json_data())
    return form.cleaned_data
