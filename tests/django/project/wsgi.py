"""For gunicorn; QUERY_AT_IMPORT asks the database here, as careless code does."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project_settings")
application = get_wsgi_application()

if os.environ.get("QUERY_AT_IMPORT"):
    from django.db import connection

    connection.cursor().execute("SELECT 1")
