"""HTTP APIs, through requests: `HttpClient`, one session per process and thread.

    prices = registry.client("pricing").get()      # this thread's session, made on first use
    prices.get("/price/7").json()                  # relative to the URL of the settings, with its credentials

A session is never shared between threads: requests promises no thread safety. The connections beneath are one pool for
the process, which urllib3 does make for threads: so a thread that lives for one request only (as under ASGI) finds open
ones too. A session has default timeouts, and retries only what can safely be sent twice.

Cookies are not kept unless `cookies=True`: whatever one request is given must not go out with the next one, which may
be on behalf of somebody else. A `cookies` argument of a single request works all the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import LocationParseError, ReadTimeoutError
from urllib3.util import parse_url
from urllib3.util.retry import Retry

from poolkit.config import PoolConfig, shown
from poolkit.drivers import _common
from poolkit.drivers._url_parameters import well_formed
from poolkit.errors import ConfigError

__all__ = ["HttpClient", "PooledSession"]

_OPTIONS: dict[str, Any] = {
    "headers": None,
    "auth": None,
    "verify": True,
    "cert": None,
    "read_timeout": 30.0,
    "retries": 1,
    "cookies": False,
    "trust_env": True,
}
_REFUSED = {"timeout": "it is 'read_timeout' here; the time to connect is the pool setting 'open_timeout'"}
_BACKOFF = 0.1  # seconds before the second retry, doubled for each one after


class _Place(NamedTuple):
    """Where the API is, and the credentials that stood in its URL."""

    base: str
    auth: tuple[str, str] | None


class _Retry(Retry):
    """Retries a connection that broke, not one that was too slow: waiting twice helps nobody."""

    def increment(
        self, method: str | None = None, url: str | None = None, response: Any = None, error: Exception | None = None,
        _pool: Any = None, _stacktrace: Any = None,
    ) -> Self:  # fmt: skip
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


class PooledSession(requests.Session):
    """A requests session with a base URL and default timeouts. It belongs to one thread."""

    def __init__(
        self, place: _Place, timeout: tuple[float, float], headers: Mapping[str, str], *, keep_cookies: bool
    ) -> None:
        super().__init__()
        self._base = place.base
        self._timeout = timeout
        self._own_headers = tuple(headers)
        self.headers.update(headers)
        if not keep_cookies:
            self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request; `url` is relative to the base URL, or of the same host.

        Raises `ValueError` for another host: it would be sent this one's credentials.
        """
        if len(args) < _TIMEOUT_ARGUMENT:
            kwargs.setdefault("timeout", self._timeout)
        return super().request(method, self._absolute(url), *args, **kwargs)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a prepared request, with the default timeouts unless it brings its own.

        Raises `ValueError` for another host, unless that is where a redirect leads: then the credentials are left out.
        """
        if getattr(request, "redirected_from", None) is not self and not self._is_own(request.url):
            raise self._foreign()
        kwargs.setdefault("timeout", self._timeout)
        return super().send(request, **kwargs)

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Take the headers of the settings off a redirect to another host: they may be a key to this one."""
        before, after = response.request.url, prepared_request.url
        same = _hosts(before) == _hosts(after) and len(_hosts(after)) == 1
        if not same or self.should_strip_auth(before, after):  # type: ignore[no-untyped-call,arg-type,unused-ignore]
            for name in (*self._own_headers, "Authorization"):
                prepared_request.headers.pop(name, None)
        super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call,unused-ignore]
        prepared_request.redirected_from = self  # type: ignore[attr-defined]

    def _absolute(self, url: str | bytes) -> str:
        text = url.decode() if isinstance(url, bytes) else url
        if "://" not in text.partition("?")[0]:
            return f"{self._base}/{text.lstrip('/')}" if text else self._base
        if not self._is_own(text):
            raise self._foreign()
        return text

    def _is_own(self, url: str | None) -> bool:
        return _origins(url or "") == _origins(self._base)

    def _foreign(self) -> ValueError:
        return ValueError(f"this session is for {self._base}; use a client of its own for another host")


_TIMEOUT_ARGUMENT = 7  # the place of `timeout` in Session.request, after method and url


class HttpClient:
    """An HTTP API that every thread of the process uses through a session of its own.

    `source` is the base URL, or a callable that returns it for each session. A user and a password in it become basic
    authentication. `options`: `headers`, `auth`, `verify`, `cert`, `read_timeout` (seconds, 30 by default), `retries`
    (1; of idempotent requests whose connection broke), `cookies` and `trust_env` (proxies and certificates from the
    environment). `open_timeout` of the pool settings bounds the connect, and `max_size` is how many connections the
    process keeps open per host; where more are needed at once, the others are closed after use instead of being waited
    for (`pool_block` is off). Raises `ConfigError`.
    """

    def __init__(
        self,
        source: _common.Source,
        *,
        options: Mapping[str, Any] | None = None,
        config: PoolConfig | None = None,
        where: str = "",
    ) -> None:
        self._source = source
        self._where = where
        self._config = config or PoolConfig()
        given = dict(options or {})
        _common.check_options(given, _OPTIONS, _REFUSED, where)
        self._options = {**_OPTIONS, **given}
        _check_values(self._options, where)
        self._fixed = self._locate(source) if isinstance(source, str) else None
        self._abandoned: list[Any] = []
        self._start()

    def _start(self) -> None:
        size = self._config.max_size
        self._adapter = HTTPAdapter(size, size, max_retries=_retry(self._options["retries"]), pool_block=False)
        self._local = threading.local()
        self._made = 0
        self._lock = threading.Lock()  # in a forked child, the old one may be held by a thread that isn't there

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    @property
    def defaults(self) -> Mapping[str, object]:
        """Nothing: a session is not leased."""
        return MappingProxyType({})

    def get(self) -> PooledSession:
        """This thread's session, made on first use."""
        try:
            session: PooledSession = self._local.session
        except AttributeError:
            session = self._local.session = self._session()
            with self._lock:
                self._made += 1
        return session

    def _session(self) -> PooledSession:
        options = self._options
        place = self._fixed or self._locate(_common.ask(self._source, self._where))
        timeout = (self._config.open_timeout, options["read_timeout"])
        session = PooledSession(place, timeout, options["headers"] or {}, keep_cookies=options["cookies"])
        session.auth = options["auth"] or place.auth
        session.verify = options["verify"]
        session.cert = options["cert"]
        session.trust_env = options["trust_env"]
        for scheme in ("http://", "https://"):
            session.mount(scheme, self._adapter)
        return session

    def _locate(self, url: str) -> _Place:
        place = _place(url, self._where)
        if place.auth is not None and self._options["auth"] is not None:
            raise ConfigError("credentials are given twice: in the URL and as the option 'auth'", self._where)
        return place

    def close(self) -> None:
        """Close the connections of every thread. May be called twice; a later `get` makes a new session."""
        adapter, made = self._adapter, self._made
        self._start()
        self._made = made
        adapter.close()

    def abandon(self) -> None:
        """Start afresh in a forked child; the parent's sockets are kept and never touched."""
        self._abandoned.append((self._adapter, self._local))
        self._start()

    def stats(self) -> Mapping[str, Any]:
        """How many sessions this process made, and how many connections were opened beneath them."""
        pools = self._adapter.poolmanager.pools
        found = [pools.get(key) for key in pools.keys()]  # noqa: SIM118  it can't be iterated over, for want of a lock
        return {"made": self._made, "opened": sum(pool.num_connections for pool in found if pool is not None)}


def _place(url: str, where: str) -> _Place:
    url = well_formed(url, where)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may hold a part of the password
        parts, port = urlsplit(""), None
    if parts.scheme.lower() not in {"http", "https"} or not parts.hostname:
        raise ConfigError(
            "malformed URL: expected https://host/path, with special characters in credentials percent-encoded", where
        )
    if parts.query or parts.fragment:
        raise ConfigError("the base URL can't have a query or a fragment; give them with each request", where)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if len(_origins(url)) != 1:
        raise ConfigError("malformed URL: its host can be read in two ways", where)
    base = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"
    if parts.username is None:
        return _Place(base, None)
    return _Place(base, (unquote(parts.username), unquote(parts.password or "")))


_Origin = tuple[str, str | None, int | None]


def _origins(url: str) -> set[_Origin]:
    """Return where a URL leads: to one place, or to several where the parsers of Python and urllib3 don't agree.

    requests asks both, and a URL with a backslash or white space in it can lead each of them to another host.
    """
    found: set[_Origin] = set()
    for parse in (urlsplit, parse_url):
        try:
            parts = parse(url)
            scheme = (parts.scheme or "").lower()
            host = (parts.hostname or "").strip("[]").lower()
            found.add((scheme, host, parts.port or {"http": 80, "https": 443}.get(scheme)))
        except (ValueError, LocationParseError):
            found.add(("", None, None))
    return found


def _hosts(url: str | None) -> set[str | None]:
    return {host for _, host, _ in _origins(url or "")}


def _retry(times: int) -> Retry:
    # Statuses are left alone: a server that answers 503 has enough to do. What is not idempotent is retried only where
    # no connection was made, so that nothing was sent.
    return _Retry(
        times,
        redirect=False,
        status=0,
        backoff_factor=_BACKOFF,
        respect_retry_after_header=False,
        raise_on_status=False,
    )


def _check_values(options: Mapping[str, Any], where: str) -> None:
    problems = []
    retries = options["retries"]
    if not _common.is_seconds(options["read_timeout"]):
        problems.append(f"read_timeout must be a number of seconds, not {shown(options['read_timeout'])}")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        problems.append(f"retries must be a whole number of at least 0, not {shown(retries)}")
    if not isinstance(options["headers"], (Mapping, type(None))):
        problems.append(f"headers must be a mapping, not {type(options['headers']).__name__}")
    problems += [
        f"{name} must be True or False, not {shown(options[name])}"
        for name in ("cookies", "trust_env")
        if not isinstance(options[name], bool)
    ]
    if not isinstance(options["verify"], (bool, str, os.PathLike)):
        problems.append(f"verify must be True, False or the path of a bundle, not {shown(options['verify'])}")
    if problems:
        raise ConfigError(problems, where)
