"""Bring poolkit to a Django project."""
