"""The same two endpoints as the shops', written without a pool: one connection per request, for comparison."""
