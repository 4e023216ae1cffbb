"""Bring poolkit to a Flask project."""
