"""Database engines for Django whose connections come from a pool of poolkit's."""
