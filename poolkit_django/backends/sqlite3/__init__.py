"""SQLite files, pooled: ENGINE = "poolkit_django.backends.sqlite3"."""
