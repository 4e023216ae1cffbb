"""A visitor of a site: keeps its cookies, fills in its forms as a browser would, and notes each answer's status."""

from __future__ import annotations

import http.cookiejar
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.error import HTTPError
from urllib.parse import urlencode

__all__ = ["PASSWORD", "USER", "Visitor", "Wrong"]

USER, PASSWORD = "visitor", "of-the-visitor-8"


class Wrong(Exception):
    """A site answered something else than it should."""


@dataclass
class _Form:
    """Where a form is sent to, the names of its fields, and what it would send if nothing were filled in."""

    action: str
    names: set[str] = field(default_factory=set)
    sends: dict[str, str] = field(default_factory=dict)


class _Forms(HTMLParser):
    """Collects the forms of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[_Form] = []
        self._area = ""
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        name = given.get("name", "")
        if tag == "form":
            self.forms.append(_Form(given.get("action", "")))
        elif self.forms and tag == "option" and self._select and "selected" in given:
            self.forms[-1].sends[self._select] = given.get("value", "")
        elif self.forms and name and tag in ("input", "textarea", "select"):
            self.forms[-1].names.add(name)
            self._field(tag, name, given)

    def _field(self, tag: str, name: str, given: dict[str, str]) -> None:
        sends = self.forms[-1].sends
        if tag == "textarea":
            self._area = name
            sends[name] = ""
        elif tag == "select":
            self._select = name
        elif given.get("type") in ("radio", "checkbox"):
            if "checked" in given:
                sends[name] = given.get("value", "on")
        elif given.get("type") not in ("submit", "button", "file", "image"):
            sends[name] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("textarea", "select"):
            self._area = self._select = ""

    def handle_data(self, data: str) -> None:
        if self._area:
            self.forms[-1].sends[self._area] += data


class Visitor:
    """Visits the site at an address, such as http://127.0.0.1:8000."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.seen: list[tuple[str, int]] = []
        """Each path that was asked for, and the status of the answer."""
        jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))

    def get(self, path: str, text: str = "", *, status: int = 200) -> str:
        """Return a page; raise Wrong where the status is another, or the text is not in it."""
        return self._ask(path, None, text, status)

    def submit(self, path: str, name: str, values: Mapping[str, str], text: str = "") -> str:
        """Fill in the form that has this field, and send it where it was; return the page one gets to."""
        parser = _Forms()
        parser.feed(self.get(path))
        form = next((form for form in parser.forms if name in form.names), None)
        if form is None:
            raise Wrong(f"{path} has no form with {name!r}")
        return self._ask(form.action or path, urlencode({**form.sends, **values}).encode(), text, 200)

    def log_in(self, path: str) -> None:
        """Log in through a login page. Raises Wrong where one isn't let in."""
        page = self.submit(path, "password", {"username": USER, "password": PASSWORD})
        if 'name="password"' in page:
            raise Wrong(f"{path} let nobody in")

    def _ask(self, path: str, data: bytes | None, text: str, status: int) -> str:
        request = urllib.request.Request(f"{self.address}{path}", data, {"Referer": f"{self.address}{path}"})
        try:
            with self._opener.open(request, timeout=30) as answer:
                got, page = int(answer.status), str(answer.read(), "utf-8")
        except HTTPError as error:
            with error:
                got, page = error.code, error.read().decode(errors="replace")
        self.seen.append((path, got))
        if got != status:
            raise Wrong(f"{path}: {got} rather than {status}\n{page[-1500:]}")
        if text not in page:
            raise Wrong(f"{path}: {text!r} is not in the page\n{page[-1500:]}")
        return page
