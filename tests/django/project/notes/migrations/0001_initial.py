"""The table."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Makes it."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            "Note",
            [("id", models.BigAutoField(primary_key=True, serialize=False)), ("word", models.CharField(max_length=40))],
        ),
    )
