"""The shop through Django's test client: `python -m example_projects.django_shop.manage test ...`."""

from __future__ import annotations

import time
from unittest import mock

from django.db import connection
from django.test import TestCase, TransactionTestCase

from example_projects.django_shop import views
from example_projects.django_shop.models import Customer, Order, Product
from example_projects.passwords import hash_password

ORDER = {"product_id": 1, "quantity": 2}


def fill() -> None:
    """Put a product and a customer into the shop."""
    Product.objects.create(id=1, name="Tea", price=350, stock=10)
    Customer.objects.create(name="bob", password=hash_password("builder"))


class Shopping(TestCase):
    """Each test in a transaction that is rolled back, as ever."""

    @classmethod
    def setUpTestData(cls) -> None:
        """Fill the shop once."""
        fill()

    def test_an_order(self) -> None:
        """It is saved, and the stock is lowered."""
        answer = self.client.post("/orders", ORDER, "application/json")
        self.assertEqual(answer.status_code, 201)
        self.assertEqual(Order.objects.get().quantity, 2)
        self.assertEqual(Product.objects.get().stock, 8)
        shown = self.client.get(f"/orders/{answer.json()['id']}").json()
        self.assertEqual(shown, {"id": answer.json()["id"], **ORDER, "status": "new"})

    def test_what_goes_wrong_leaves_nothing(self) -> None:
        """What a view raises is rolled back."""
        for body, status in (({**ORDER, "quantity": 11}, 409), ({**ORDER, "product_id": 99}, 404), ({}, 400)):
            self.assertEqual(self.client.post("/orders", body, "application/json").status_code, status)
        self.assertEqual((Order.objects.count(), Product.objects.get().stock), (0, 10))

    def test_a_failed_login_is_counted(self) -> None:
        """A returned 401 commits."""
        body = {"user": "bob", "password": "no"}
        self.assertEqual(self.client.post("/login", body, "application/json").status_code, 401)
        self.assertEqual(self.client.get("/users/bob").json(), {"failed_logins": 1})

    def test_the_stream(self) -> None:
        """The body comes page by page."""
        order = Order.objects.create(**ORDER)
        text = self.client.get("/orders.csv").getvalue().decode()
        self.assertEqual(text, f"id,product_id,quantity,status\r\n{order.id},1,2,new\r\n")

    def test_the_price(self) -> None:
        """It comes from the pricing service."""
        session = mock.Mock()
        session.get.return_value = mock.Mock(status_code=200, json=lambda: {"price": 340})
        with mock.patch.object(views, "get", return_value=session):
            self.assertEqual(self.client.get("/quote/1").json(), {"id": 1, "price": 340})


class Committing(TransactionTestCase):
    """Real commits, for what a test's own transaction would hide."""

    def setUp(self) -> None:
        """Fill the shop."""
        fill()
        self.client.raise_request_exception = False

    def test_faults_leave_nothing(self) -> None:
        """An error, and a COMMIT that fails."""
        for fault, status in (("raise", 500), ("commit", 409)):
            with self.subTest(fault):
                answer = self.client.post(f"/orders?fault={fault}", ORDER, "application/json")
                self.assertEqual(answer.status_code, status)
                self.assertEqual((Order.objects.count(), Product.objects.get().stock), (0, 10))

    def test_a_failed_statement_that_was_ignored(self) -> None:
        """On PostgreSQL it takes its transaction with it; MariaDB undoes it alone, and all the others are saved."""
        answer = self.client.post("/orders?fault=swallow", ORDER, "application/json")
        expected = (500, 0, 10) if connection.vendor == "postgresql" else (201, 1, 8)
        self.assertEqual((answer.status_code, Order.objects.count(), Product.objects.get().stock), expected)

    def test_work_in_the_background(self) -> None:
        """It begins after the COMMIT."""
        order = Order.objects.create(**ORDER)
        self.assertEqual(self.client.post(f"/orders/{order.id}/notify").status_code, 202)
        end = time.monotonic() + 5
        while Order.objects.get().status != "notified" and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual(Order.objects.get().status, "notified")
