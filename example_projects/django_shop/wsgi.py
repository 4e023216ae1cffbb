"""For gunicorn: `gunicorn -c example_projects/django_shop/gunicorn.conf.py example_projects.django_shop.wsgi`."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_projects.django_shop.settings")
application = get_wsgi_application()
