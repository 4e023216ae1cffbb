"""Bring poolkit to a FastAPI project."""
