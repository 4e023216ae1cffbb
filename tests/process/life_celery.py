"""The tasks, for `celery -A life_celery worker`: each worker process writes reports, until it is enough."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import life_app
from celery import Celery
from celery.signals import worker_ready

folder = os.environ["LIFE_FOLDER"]
root = Path(folder).parent
app = Celery("life_celery", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": folder, "data_folder_out": folder, "control_folder": folder, "polling_interval": 0.02,
}  # fmt: skip
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_lost_wait = 0.1  # instead of ten seconds before it gives up on the task of a dead worker
app.conf.worker_max_tasks_per_child = int(os.environ.get("LIFE_TASKS_PER_CHILD", "0")) or None


@app.task(name="report")
def report(number: int) -> None:
    """Write one report; a file in the folder says when it is enough, another that one is to die."""
    if (root / "enough").exists():
        return
    life_app.write(life_app.report(number))
    with contextlib.suppress(FileNotFoundError):
        (root / "die").unlink()  # for one of the workers
        with life_app.early.transaction():  # not between tasks, where it may hold a lock of Celery's own
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.03)


@worker_ready.connect
def send_all(sender: Any, **_: Any) -> None:
    """Send all from here: this broker can't be read while another process writes to it."""
    for number in range(0, 600, 2):
        report.delay(number)
