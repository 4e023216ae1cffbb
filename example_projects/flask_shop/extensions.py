"""The extensions of the application, in a module of their own so that every view can import them."""

from __future__ import annotations

from poolkit_flask import Poolkit

db = Poolkit()
