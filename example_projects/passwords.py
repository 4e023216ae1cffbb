"""Hashed passwords for the shops' users: scrypt with a salt of its own for each, from the standard library."""

from __future__ import annotations

import hashlib
import hmac
import secrets

_COST = {"n": 2**14, "r": 8, "p": 1}  # 16 MB and a few hundredths of a second for each try


def hash_password(password: str) -> str:
    """Return what to store; check it with `check_password`."""
    salt = secrets.token_hex(16)
    return f"{salt}${_scrypt(password, salt)}"


def check_password(password: str, stored: str) -> bool:
    """Whether `password` is the one that was hashed."""
    salt, _, digest = stored.partition("$")
    return hmac.compare_digest(_scrypt(password, salt), digest)


def _scrypt(password: str, salt: str) -> str:
    return hashlib.scrypt(password.encode(), salt=salt.encode(), **_COST).hex()
