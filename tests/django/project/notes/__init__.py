"""Notes: one table and a few views."""
