"""The tables. Their names have no prefix, so that all three shops can share a database."""

from __future__ import annotations

from django.db import models


class Product(models.Model):
    """What can be bought; the price is in cents."""

    name = models.TextField()
    price = models.IntegerField()
    stock = models.IntegerField()

    class Meta:
        """The name of the table."""

        db_table = "products"

    def __str__(self) -> str:
        return str(self.name)


class Customer(models.Model):
    """Who can log in."""

    name = models.CharField(max_length=150, primary_key=True)  # MariaDB has no keys of unlimited length
    password = models.TextField()
    failed_logins = models.IntegerField(db_default=0)

    class Meta:
        """The name of the table."""

        db_table = "users"

    def __str__(self) -> str:
        return str(self.name)


class Order(models.Model):
    """Django makes foreign keys deferred, where the database can: PostgreSQL checks them by the COMMIT."""

    product = models.ForeignKey(Product, models.PROTECT, db_index=False)
    quantity = models.IntegerField()
    status = models.TextField(db_default="new")
    customer = models.ForeignKey(Customer, models.PROTECT, null=True, db_column="customer", db_index=False)

    class Meta:
        """The name of the table."""

        db_table = "orders"

    def __str__(self) -> str:
        return f"{self.quantity} of {self.product_id}"
