"""What the drivers for PostgreSQL do where a pooler (PgBouncer, ...) may stand between them and the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from poolkit.config import PoolConfig
from poolkit.driver import TransactionOptions

__all__ = ["Pooler"]

_SEEN = (
    "%s: a pooler stands between here and the server. Where it lends server sessions for one transaction only, a reset "
    "may reach another session: set pooler='transaction', which sends none, or pooler='session'"
)
_LARGEST_PID = 4_194_304  # of Linux
_LIMIT = "statement_timeout"

_logger = logging.getLogger("poolkit")


class Pooler:
    """What is known of a pooler, and what becomes of `session_settings` and `statement_timeout` there.

    `packet` has the settings for the startup packet, and `local` those that go with each BEGIN. Behind a pooler in
    transaction mode that is all of them: in the startup packet they would be refused, or not reach the server's
    session. A pooler that is only seen has got the packet; the limit goes with each BEGIN as well.
    """

    def __init__(self, config: PoolConfig | None, settings: Mapping[str, str], where: str) -> None:
        config = config or PoolConfig()
        self.by_transaction = config.pooler == "transaction"
        self._where = where
        self._looks = config.pooler == "auto"
        self._warns = config.reset != "off"
        self._limit = tuple((name, value) for name, value in settings.items() if name == _LIMIT)
        self.local = tuple(settings.items()) if self.by_transaction else ()
        self.packet = {} if self.by_transaction else dict(settings)

    def look(self, pid: int, library: str) -> bool:
        """Look at the process id of a new session; whether this is the first one that no server could have.

        Poolers make theirs up.
        """
        if not self._looks or 0 < pid <= _LARGEST_PID:
            return False
        self._looks = False
        self.local = self._limit
        if self._warns:
            _logger.warning(_SEEN, self._where or library)
        return True

    def options(self, options: TransactionOptions) -> TransactionOptions:
        """Return what a transaction is to begin with: its own settings come last."""
        return replace(options, settings=(*self.local, *options.settings)) if self.local else options
