"""The three tables."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """The first."""

    initial = True
    dependencies = []  # noqa: RUF012  Django's form
    operations = [  # noqa: RUF012
        migrations.CreateModel(
            name="Customer",
            fields=[
                ("name", models.CharField(max_length=150, primary_key=True, serialize=False)),
                ("password", models.TextField()),
                ("failed_logins", models.IntegerField(db_default=0)),
            ],
            options={"db_table": "users"},
        ),
        migrations.CreateModel(
            name="Product",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.TextField()),
                ("price", models.IntegerField()),
                ("stock", models.IntegerField()),
            ],
            options={"db_table": "products"},
        ),
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("quantity", models.IntegerField()),
                ("status", models.TextField(db_default="new")),
                (
                    "customer",
                    models.ForeignKey(
                        db_column="customer",
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="shop.customer",
                    ),
                ),
                (
                    "product",
                    models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, to="shop.product"),
                ),
            ],
            options={"db_table": "orders"},
        ),
    ]
