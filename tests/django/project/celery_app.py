"""Celery's app, for `celery -A celery_app worker`: messages are files in a folder."""

import os
from pathlib import Path

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project_settings")
folder = Path(os.environ.get("CELERY_FOLDER", "."))
app = Celery("project", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": folder / "broker", "data_folder_out": folder / "broker", "control_folder": folder / "broker",
    "polling_interval": 0.02,
}  # fmt: skip
app.conf.broker_connection_retry_on_startup = True
app.autodiscover_tasks()
