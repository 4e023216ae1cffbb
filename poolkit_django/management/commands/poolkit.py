"""manage.py poolkit status | check."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from poolkit import web
from poolkit_django import conf
from poolkit_django.checks import check_poolkit


class Command(BaseCommand):
    """Look at the pools from the command line."""

    help = "status: open one connection per pool and print its numbers. check: print what is wrong in the settings."

    def add_arguments(self, parser: Any) -> None:
        """Take one word."""
        parser.add_argument("action", choices=["status", "check"])

    def handle(self, *args: Any, action: str, **options: Any) -> None:  # noqa: ARG002  Django's signature
        """Do it. The exit status says whether all is well."""
        if action == "check":
            self._check()
        else:
            self._status()

    def _check(self) -> None:
        messages = check_poolkit()
        for message in messages:
            self.stdout.write(str(message))
        if any(message.is_serious() for message in messages):
            raise CommandError(f"{len(messages)} problem(s)")
        self.stdout.write("poolkit: the settings can work")

    def _status(self) -> None:
        registry = conf.registry()
        is_ready = registry.ready()
        self.stdout.write(json.dumps(web.stats(registry).body, indent=2))
        if not is_ready:
            raise CommandError("not ready: a server can't be reached")
