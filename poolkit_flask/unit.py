"""A request's unit of work, and the streamed body that may outlast the request's context.

A unit goes through these phases:

- *running*: `full_dispatch_request` is under way. Only it ends the unit; a teardown that comes in between is another
  request's (an abandoned stream, finalised by whichever thread collects it).
- *carried*: the body is streamed. The body ends the unit, for teardown comes before it, after it, or both, depending
  on the version of Flask and on `stream_with_context`.
- *over*: nobody would give anything back any more, so nothing is lent.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from poolkit import UnitOfWork, UnitOfWorkError
from poolkit.blocks import bind, unbind

__all__ = ["Body", "RequestUnit", "Transaction", "body_unit"]

_body: ContextVar[RequestUnit | None] = ContextVar("poolkit_flask_body", default=None)


class RequestUnit(UnitOfWork):
    """The unit of work of one request."""

    running = False
    carried = False
    over = False

    def get(self, name: str = "default", **options: Any) -> Any:
        """Return the unit's resource of that name; see `UnitOfWork.get`."""
        if self.over:
            self._refuse_if_over(name)
        resource = super().get(name, **options)
        if self.over:  # it ended while this waited for a connection
            self.close()
            self._refuse_if_over(name)
        return resource

    def _refuse_if_over(self, name: str) -> None:
        if self.over and not self.registry.shares(name):
            raise UnitOfWorkError(
                f"{self.label}: this request is over, and nobody would give the connection back. "
                "Code that outlives its request takes its own: `with db.transaction() as conn:`"
            )

    def vetoes(self, status: int) -> bool:
        """Whether the app wants a returned response of that status rolled back."""
        return self._rollback_on is not None and self._rollback_on(status)

    def end(self, error: BaseException | None) -> None:
        """Give everything back for good; what was not committed is rolled back."""
        self.over = True
        if self._late or not self._ended:  # who waits for a connection right now, closes it: see `get`
            self.close(error)


class Body:
    """A streamed body. While it runs its request's unit is there, with or without `stream_with_context`.

    After `uow.stream()` the end of the body commits, before the server learns that it is the end; a body that fails or
    is given up half way rolls back.
    """

    def __init__(self, body: Iterable[Any], unit: RequestUnit, status: int) -> None:
        self._unit = unit
        self._body = body
        self._next = iter(body).__next__
        self._status = status
        unit.carried = True

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with _Running(self._unit):
            try:
                return self._next()
            except StopIteration:
                self._complete()
                raise
            except BaseException as error:
                self._unit.end(error)
                raise

    def _complete(self) -> None:
        try:
            self._unit.finish(status=self._status)
        finally:
            self._unit.end(None)

    def close(self) -> None:
        """End the body, wherever it is. The server calls this."""
        try:
            with _Running(self._unit):
                close = getattr(self._body, "close", None)
                if close is not None:
                    close()
        finally:
            self._unit.end(GeneratorExit())

    def __del__(self) -> None:
        if not self._unit.over and self._unit.used:
            # The collector may run in the middle of anything, a pool's lock included, so not here. At the very end of
            # a process no thread can be started, and nothing is left to be given back to.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._unit.end, args=(GeneratorExit(),), daemon=True).start()


class _Running:
    """The time in which a body's code runs; a class, because a body has many pieces."""

    __slots__ = ("_bound", "_token", "_unit")

    def __init__(self, unit: RequestUnit) -> None:
        self._unit = unit

    def __enter__(self) -> None:
        self._token = _body.set(self._unit)
        self._bound = bind(self._unit)

    def __exit__(self, *_: object) -> None:
        unbind(self._bound)
        _body.reset(self._token)


def body_unit() -> RequestUnit | None:
    """Find the unit of the body this code runs in."""
    return _body.get()


class Transaction:
    """What `Poolkit.transaction` returns: `with` it for the connection, once.

    It is nobody's current unit: in a generator that would last between two pieces, when other code runs.
    """

    __slots__ = ("_name", "_options", "_unit")

    def __init__(self, unit: UnitOfWork, name: str, options: dict[str, Any]) -> None:
        self._unit = unit
        self._name = name
        self._options = options

    def __enter__(self) -> Any:
        if self._unit.ended:
            raise UnitOfWorkError("this transaction has ended: ask for a new one with db.transaction()")
        return self._unit.get(self._name, **self._options)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._unit.__exit__(kind, error, tb)
