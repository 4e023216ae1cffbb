"""Run an application under uvicorn on a socket that `serve` has bound: `uvicorn_server FD WORKERS GRACE MODULE:APP`.

`uvicorn --fd` would take every socket for a Unix socket, and then nobody's address is known.
"""

from __future__ import annotations

import importlib
import socket
import sys

import uvicorn
from uvicorn.supervisors import Multiprocess


def main(fd: str, workers: str, grace: str, application: str) -> int:
    """Serve until SIGTERM; a request under way is then given `grace` seconds."""
    importlib.import_module(application.partition(":")[0])  # fail here, not in one new worker after the other
    config = uvicorn.Config(
        application,
        workers=int(workers),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(grace),
    )
    with socket.socket(fileno=int(fd)) as listener:
        if config.workers > 1:
            Multiprocess(config, sockets=[listener]).run()
            return 0
        server = uvicorn.Server(config)
        server.run(sockets=[listener])
        return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
