"""gunicorn for the Django shop: `gunicorn -c example_projects/django_shop/gunicorn.conf.py ...`."""

# ruff: noqa: N999  the name that gunicorn looks for

from __future__ import annotations

worker_class = "gthread"
threads = 16  # requests at once in each worker; those that find no free connection wait for one


def post_worker_init(_: object) -> None:
    """Open the first connections before the first request, in the worker and not in the master."""
    import poolkit_django  # noqa: PLC0415  not in the master: with `--worker-class gevent` the worker is patched first

    poolkit_django.warm()
