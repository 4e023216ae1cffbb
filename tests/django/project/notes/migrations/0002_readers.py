"""A row that is there from the beginning."""

from django.db import migrations


def add(apps, _):
    """Save it."""
    apps.get_model("auth", "Group").objects.create(name="readers")


class Migration(migrations.Migration):
    """Saves it."""

    dependencies = (("notes", "0001_initial"), ("auth", "0012_alter_user_first_name_max_length"))
    operations = (migrations.RunPython(add, migrations.RunPython.noop),)
