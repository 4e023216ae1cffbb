"""What poolkit costs beside other pools: the suites of `poolkit bench URL`, and what the project's own are made with.

`figures` and `report` hold numbers, `measuring` takes them, `peers` has the pools that are compared, and `micro`,
`query`, `round_trips` and `contention` are the suites. The core needs none of it, and nothing here is imported with it.
"""

__all__ = ["SUITES"]

SUITES = ("micro", "query", "round_trips", "contention")
