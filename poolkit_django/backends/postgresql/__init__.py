"""PostgreSQL through psycopg 3 or psycopg2, pooled: ENGINE = "poolkit_django.backends.postgresql"."""
