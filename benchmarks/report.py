"""What the suites share. It lives in `poolkit.bench`, which is shipped; here are the names that the suites go by."""

from __future__ import annotations

from poolkit.bench.measuring import interleaved
from poolkit.bench.report import Better, Column, Report, Role, Table, Target, arguments, spread

__all__ = ["Better", "Column", "Report", "Role", "Table", "Target", "arguments", "interleaved", "spread"]
