"""Whole requests: the same three endpoints under a real server, written with each peer and with poolkit."""
