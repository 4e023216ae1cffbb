"""The rows of the matrix: how each server is started, and what is known of its ways."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent

# Python warns of any fork beside threads; and servers leave their sockets and gunicorn its heartbeat's file to the end.
STRICT = (
    "error,ignore:This process:DeprecationWarning,"
    "ignore:unclosed <socket:ResourceWarning,ignore:unclosed file <_io.FileIO:ResourceWarning"
)


@dataclass(frozen=True)
class Row:
    """One way of running an application, and what it is known to do."""

    name: str
    command: tuple[str, ...]  # {port} and {folder} are filled in
    needs: tuple[str, ...] = ()  # what has to be importable
    environ: dict[str, str] = field(default_factory=dict)
    http: bool = True  # else the workers write their reports to a file by themselves
    workers: int = 2
    forks: bool = False  # the application is imported by the parent, before the workers are forked
    recycled: bool = False  # workers are replaced after some requests
    reloads: bool = False  # workers are replaced when a file changes
    tasks: bool = False  # the application can be told by files to die, and to send no more tasks
    hangs: bool = False  # a request never ends, and the server cuts it at its graceful timeout
    ends_with_worker: bool = False  # the whole server ends when a worker is killed
    says: tuple[str, ...] = ()  # warnings that must be in the log
    noise: str = r"(?!)"  # lines of the log that are the server's own and always there
    python_warnings: str = STRICT
    status: frozenset[int] = frozenset({0})  # what it may exit with after SIGTERM


def python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _gunicorn(name: str, *arguments: str, app: str = "life_app:wsgi", **known: object) -> Row:
    quiet = ("--bind", "127.0.0.1:{port}", "--no-control-socket", "--log-level", "warning", "--graceful-timeout", "2")
    command = python("gunicorn", *quiet, "--workers", "2", *arguments, app)
    return Row(f"gunicorn-{name}", command, ("gunicorn",), forks="--preload" in arguments, **known)  # type: ignore[arg-type]


def _uwsgi(name: str, *arguments: str, **known: object) -> Row:
    quiet = ("--need-app", "--disable-logging", "--die-on-term", "--master", "--processes", "2")
    start = "import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])"
    listen = ("--http-socket", "127.0.0.1:{port}", "--module", "life_app:wsgi")
    command = (sys.executable, "-c", start, *quiet, *listen, *arguments)
    return Row(name, command, ("pyuwsgi",), noise="running uWSGI as root", **known)  # type: ignore[arg-type]


def _celery(name: str, tasks_per_child: int, **known: object) -> Row:
    quiet = ("--loglevel", "warning", "--without-mingle", "--without-gossip", "--without-heartbeat")
    environ = {"LIFE_TASKS_PER_CHILD": str(tasks_per_child)}
    # It warns of running as root, in a class of its own that PYTHONWARNINGS can't name.
    command = python("celery", "-A", "life_celery", "worker", "--pool", "prefork", "-c", "2", *quiet)
    return Row(
        name, command, ("celery",), environ, http=False, forks=True, tasks=True, python_warnings="default",
        noise=r"SecurityWarning|This process|unclosed (<socket|file)|No hostname was supplied", **known,
    )  # type: ignore[arg-type]  # fmt: skip


def _children(kind: str, **known: object) -> Row:
    return Row(kind, (sys.executable, str(HERE / "life_children.py"), kind), http=False, **known)  # type: ignore[arg-type]


_UVICORN = python("uvicorn", "--port", "{port}", "--log-level", "warning")
_GRANIAN = python("granian", "--port", "{port}", "--workers", "2", "--log-level", "warning")
_GEVENT = ("--worker-class", "gevent")
_UNPATCHED = r"WARNING poolkit \d+ gunicorn runs its workers with gevent, and this pool is made before"
_LATE = r"WARNING poolkit \d+ gevent has patched this process after psycopg was imported"
_INHERITED = r"WARNING poolkit \d+ this process was forked after a pool had been used, and its greenlets go on"

ROWS = (
    _gunicorn("sync"),
    _gunicorn("sync-preload", "--preload"),
    _gunicorn("gthread", "--threads", "4"),
    _gunicorn("gthread-preload", "--threads", "4", "--preload"),
    _gunicorn("gevent", *_GEVENT),
    _gunicorn("gevent-preload", *_GEVENT, "--preload", says=(_UNPATCHED, _LATE)),
    _gunicorn("gevent-patched", *_GEVENT, "--preload", "--config", str(HERE / "life_gunicorn_conf.py"),
              environ={"LIFE_EARLY": "no"}),
    _gunicorn("gevent-used", *_GEVENT, "--preload", "--config", str(HERE / "life_gunicorn_conf.py"),
              says=(_INHERITED,)),
    _gunicorn("max-requests", "--threads", "4", "--max-requests", "10", recycled=True),
    _gunicorn("asgi", "--worker-class", "asgi", app="life_app:asgi"),
    _gunicorn("uvicorn", "--worker-class", "uvicorn.workers.UvicornWorker", app="life_app:asgi",
              python_warnings=f"{STRICT},ignore:The `uvicorn.workers` module:DeprecationWarning"),
    Row("uvicorn", (*_UVICORN, "--workers", "2", "life_app:asgi"), ("uvicorn",)),
    Row("uvicorn-reload", (*_UVICORN, "--reload", "--reload-dir", "{folder}", "life_app:asgi"), ("uvicorn",),
        workers=1, reloads=True, noise="WatchFiles|StatReload"),
    Row("uvicorn-graceful", (*_UVICORN, "--timeout-graceful-shutdown", "1", "life_app:asgi"), ("uvicorn",),
        workers=1, hangs=True, ends_with_worker=True, status=frozenset({0, -15})),
    Row("granian-wsgi", (*_GRANIAN, "--interface", "wsgi", "--blocking-threads", "4", "--respawn-failed-workers",
                         "life_app:wsgi"), ("granian",)),
    Row("granian-asgi", (*_GRANIAN, "--interface", "asgi", "--respawn-failed-workers", "life_app:asgi"), ("granian",)),
    Row("hypercorn", python("hypercorn", "--bind", "127.0.0.1:{port}", "--workers", "2", "--log-level", "warning",
                            "life_app:asgi"), ("hypercorn",), ends_with_worker=True),
    _uwsgi("uwsgi", forks=True),
    _uwsgi("uwsgi-lazy", "--lazy-apps"),
    # Its master sleeps where workers end fast; a SIGTERM in that sleep never reaches the worker that it starts then.
    _uwsgi("uwsgi-max-requests", "--max-requests", "10", "--min-worker-lifetime", "0", "--forkbomb-delay", "0",
           forks=True, recycled=True),
    _celery("celery", 0),
    _celery("celery-max-tasks", 10, recycled=True),
    _children("fork", forks=True),
    _children("forkserver"),
    _children("spawn"),
    _children("executor", forks=True),
    Row("xdist", python("pytest", "-q", "-n", "2", "-c", "/dev/null", "-p", "no:cacheprovider", "-p", "no:asyncio",
                        "-p", "no:django", str(HERE / "life_xdist_cases.py")), ("xdist",), http=False),
)  # fmt: skip
