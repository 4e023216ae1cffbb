"""The shop with FastAPI: async endpoints with async psycopg, `def` endpoints where the work is not async."""
