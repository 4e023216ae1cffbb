"""PostgreSQL through psycopg 3, pooled: ENGINE = "poolkit_django.backends.postgresql"."""
