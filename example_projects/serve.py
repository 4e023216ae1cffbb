"""Start one shop with all that it needs: `python3 run.py serve flask|django|fastapi`.

The database is the one at DATABASE_URL, else a private PostgreSQL that goes when this ends. A thread makes the tables
(again and again while the database is away), a small pricing service answers at PRICING_URL unless that is set, and
gunicorn, uvicorn or granian runs the application. One line on standard output says that it answers; all else goes to
standard error.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until there is something to tidy up, Ctrl-C just ends this, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import psycopg

from example_projects.database import is_mysql, make_tables, prepare
from example_projects.pricing import pricing_server
from poolkit import ConfigError
from poolkit.testing.postgres import LocalPostgres, PostgresFailed, PostgresNotFound
from poolkit.web import registry_from

HERE = Path(__file__).parent
START_WITHIN = 30.0
GRACE = 2  # seconds that a request under way is given at the end
STOP_WITHIN = GRACE + 5.0
SERVERS = ("gunicorn", "gevent", "uvicorn", "granian")

# However this process ends, `kill -9` included, the pipe closes, and the shell ends the server: gently, then by force.
_WATCHDOG = """
read -r _
kill -TERM "$1"
n=0
while kill -0 "$1" && [ $n -lt 60 ]; do sleep 0.1; n=$((n + 1)); done
kill -KILL -"$1"
"""


class ServeError(Exception):
    """What stands in the way, as one sentence for whoever started this."""


class Options(argparse.Namespace):
    """The command line."""

    framework: str
    workers: int
    port: int
    server: str | None
    asgi: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it in one sentence, without the usage."""
        self.exit(2, f"serve: {message}\n")


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; exits with 2 and a sentence where it is wrong."""
    parser = _Parser(prog="run.py serve", description="Start one shop, with all that it needs, until Ctrl-C.")
    parser.add_argument("framework", choices=("flask", "django", "fastapi"))
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--server", choices=SERVERS, help="for Django: what runs it (gunicorn; with --asgi uvicorn)")
    parser.add_argument("--asgi", action="store_true", help="Django by its ASGI interface, under uvicorn or granian")
    options = parser.parse_args(arguments, Options())
    if not 1 <= options.workers <= 64:
        parser.error(f"--workers must be from 1 to 64, not {options.workers}")
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be from 0 to 65535, not {options.port}")
    _settle_server(parser, options)
    return options


def _settle_server(parser: _Parser, options: Options) -> None:
    """Fill in what `--server` and `--asgi` leave open; exits where they do not go together."""
    asked = "--asgi" if options.asgi else "--server" if options.server else None
    if asked and options.framework != "django":
        parser.error(f"{asked} is for Django; {options.framework} has only one server here")
    options.asgi = options.asgi or options.framework == "fastapi" or options.server == "uvicorn"
    options.server = options.server or ("uvicorn" if options.asgi else "gunicorn")
    if options.asgi and options.server in ("gunicorn", "gevent"):
        parser.error(f"--server {options.server} is for WSGI: leave --asgi out, or choose uvicorn or granian")
    if importlib.util.find_spec(options.server) is None:
        parser.error(f"{options.server} is not installed: pip install {options.server}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code."""
    options = parse(arguments)
    try:
        with ExitStack() as stack:
            _serve(options, stack.enter_context(_stop_signals()), stack)
    except ServeError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn the signals that mean the end into an event: nothing is interrupted half-way."""
    stop = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(options: Options, stop: threading.Event, stack: ExitStack) -> None:
    listener = stack.enter_context(_listen(options.port))
    port = listener.getsockname()[1]
    if options.server == "granian":
        listener = stack.enter_context(_kept(listener))
    environ = _environment(stack, options.framework)
    if stop.is_set():
        return
    server = stack.enter_context(_server(_command(options, listener.fileno(), port), environ, listener))
    tables = stack.enter_context(_tables(options.framework, environ))
    end = monotonic() + START_WITHIN
    while not (tables.tried.is_set() and _answers(port)):
        _check(server, tables)
        if stop.wait(0.05):
            return
        if monotonic() > end:
            raise ServeError(f"the server has not answered within {START_WITHIN:g} s")
    print(f"ready http://127.0.0.1:{port}", flush=True)
    while not stop.wait(0.2):
        _check(server, tables)


def _check(server: subprocess.Popen[bytes], tables: Tables) -> None:
    if server.poll() is not None:
        raise ServeError(f"the server ended by itself (exit code {server.returncode}); its own words stand above")
    if tables.failed:
        raise ServeError(f"the tables can't be made: {tables.failed}")


def _listen(port: int) -> socket.socket:
    """Take the port before anything is started: one that is in use is the commonest mistake."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ServeError(f"port {port} can't be used ({error.strerror}): choose another with --port") from None
    return listener


def _kept(listener: socket.socket) -> socket.socket:
    """Give up listening, but keep the port for a server that can't be given a socket and binds one in each worker."""
    address = listener.getsockname()
    listener.close()
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    keeper.bind(address)
    return keeper


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/hello")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# -- what the shop needs ----------------------------------------------------------------------------------------------


def _environment(stack: ExitStack, framework: str) -> dict[str, str]:
    """Find or start the database and the pricing service; check the settings before a server trips over them."""
    environ = dict(os.environ)
    given = environ.get("DATABASE_URL")
    if given:
        _check_settings(given, environ, framework)
    if not environ.get("PRICING_URL"):
        environ["PRICING_URL"] = stack.enter_context(pricing_server()).url
    if not given:
        environ["DATABASE_URL"] = _private_postgres(stack)
        _check_settings(environ["DATABASE_URL"], environ, framework)
    return environ


def _check_settings(url: str, environ: dict[str, str], framework: str) -> None:
    scheme = url.partition(":")[0]
    try:
        registry_from({"default": {"url": url}}, where="DATABASE_URL", environ=environ)
    except ConfigError as error:
        raise ServeError(" ".join(str(error).split())) from None
    if framework == "django" and is_mysql(url):
        return
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ServeError(
            f"DATABASE_URL must begin with postgresql://, not {scheme}://: the shops know only "
            "PostgreSQL, and Django's MariaDB (mysql://)"
        )


def _private_postgres(stack: ExitStack) -> str:
    try:
        return stack.enter_context(LocalPostgres(max_connections=300)).dsn
    except (PostgresNotFound, PostgresFailed) as error:
        raise ServeError(f"DATABASE_URL is not set, and no private PostgreSQL can be started: {error}") from None


def _ways(url: str) -> tuple[Callable[..., None], type[Exception], type[Exception]]:
    """How this database is prepared, what is raised where it can't be reached, and what where something is wrong."""
    if not is_mysql(url):
        return prepare, psycopg.OperationalError, psycopg.Error
    from example_projects import mariadb  # noqa: PLC0415  it imports PyMySQL, which only this needs

    return mariadb.prepare, mariadb.OperationalError, mariadb.MySQLError


class Tables(threading.Thread):
    """Makes the tables, at once or as soon as the database is there. `make` is the framework's way."""

    def __init__(self, framework: str, environ: dict[str, str]) -> None:
        super().__init__(name="tables", daemon=True)
        self.tried = threading.Event()
        self.failed = ""
        self._stop_now = threading.Event()
        self._migration: subprocess.Popen[str] | None = None
        self._environ = environ
        self.make: Callable[[Any], None] = self._migrate if framework == "django" else make_tables
        self._prepare, self._away, self._wrong = _ways(environ["DATABASE_URL"])

    def run(self) -> None:
        """Try until it works."""
        told = False
        while not self._stop_now.is_set():
            try:
                self._prepare(self._environ["DATABASE_URL"], self.make)
            except self._away as error:
                if not told:
                    reason = str(error).splitlines()[0]
                    print(f"serve: the database can't be reached yet, trying again: {reason}", file=sys.stderr)
                told = True
            except (self._wrong, ServeError) as error:
                self.failed = " ".join(str(error).split())
                return
            else:
                self.tried.set()
                return
            self.tried.set()
            self._stop_now.wait(0.3)

    def stop(self) -> None:
        """Try no more. A migration under way is cut short: it is one transaction."""
        self._stop_now.set()
        if self._migration is not None:
            self._migration.kill()
        self.join(STOP_WITHIN)

    def _migrate(self, conn: Any) -> None:
        command = [sys.executable, "-m", "example_projects.django_shop.manage", "migrate", "--fake-initial"]
        with subprocess.Popen(  # noqa: S603
            [*command, "--verbosity", "0"],
            env=self._environ,
            cwd=HERE.parent,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdout=sys.stderr,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process
        ) as self._migration:
            said = self._migration.communicate()[1].strip().splitlines()
        if self._migration.returncode:
            conn.cursor().execute(
                "SELECT 1"
            )  # where the database went away meanwhile, that is the error, and not for good
            raise ServeError("migrate failed: " + (said or ["without a word"])[-1])


@contextmanager
def _tables(framework: str, environ: dict[str, str]) -> Iterator[Tables]:
    tables = Tables(framework, environ)
    tables.start()
    try:
        yield tables
    finally:
        tables.stop()


# -- the server -------------------------------------------------------------------------------------------------------


def _command(options: Options, fd: int, port: int) -> list[str]:
    """What a user would type, with the socket in the place of an address where the server can take one."""
    application = _APPLICATIONS[options.framework, options.asgi]
    workers = str(options.workers)
    if options.server == "uvicorn":
        return [*_UVICORN, str(fd), workers, str(GRACE), application]
    if options.server == "granian":
        return [*_GRANIAN, *_granian_options(options), "--port", str(port), "--workers", workers, application]
    config = HERE / f"{options.framework}_shop" / "gunicorn.conf.py"
    own = ["--config", str(config), "--bind", f"fd://{fd}", "--workers", workers, "--graceful-timeout", str(GRACE)]
    # gunicorn's own socket for its control program would be a file that stays
    quiet = ["--log-level", "warning", "--no-control-socket"]
    worker_class = ["--worker-class", "gevent"] if options.server == "gevent" else []
    return [sys.executable, "-m", "gunicorn", *own, *quiet, *worker_class, application]


def _granian_options(options: Options) -> list[str]:
    """By WSGI a request has a thread to itself; by ASGI Django has no lifespan, which is what "nl" says."""
    ends = ["--workers-kill-timeout", str(GRACE), "--log-level", "warning"]
    return (
        ["--interface", "asginl", *ends] if options.asgi else ["--interface", "wsgi", "--blocking-threads", "16", *ends]
    )


_APPLICATIONS = {
    ("flask", False): "example_projects.flask_shop:create_app()",
    ("django", False): "example_projects.django_shop.wsgi:application",
    ("django", True): "example_projects.django_shop.asgi:application",
    ("fastapi", True): "example_projects.fastapi_shop.main:app",
}
_GRANIAN = (sys.executable, "-m", "granian")
_UVICORN = (sys.executable, "-m", "example_projects.uvicorn_server")


@contextmanager
def _server(command: list[str], environ: dict[str, str], listener: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen(  # noqa: S603
        command,
        env=environ,
        cwd=HERE.parent,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        pass_fds=[listener.fileno()],
        start_new_session=True,  # Ctrl-C is for this process, which ends the server in order
    )
    listener.close()  # or requests would wait for a server that is gone
    watchdog = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(server.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield server
    finally:
        _end(server)
        watchdog.kill()
        watchdog.communicate()


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and all its processes, by force what does not go."""
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_WITHIN)
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, where only zombies are left
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(main())
