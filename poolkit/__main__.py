"""`python -m poolkit` is the `poolkit` command."""

from __future__ import annotations

from poolkit.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
