"""For uvicorn: `uvicorn example_projects.django_shop.asgi:application`."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_projects.django_shop.settings")
application = get_asgi_application()
