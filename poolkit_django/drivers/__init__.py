"""Drivers for native async access: what an alias of DATABASES says, told to psycopg and to asyncpg."""
