"""What an endpoint can ask for, and the point where its unit of work ends.

One generator dependency per request, and it is function-scoped: FastAPI ends it after the response was serialised and
before it starts, inside the exception handlers. So a failing COMMIT can still become a 409. (The default scope ends
after the client has its 200.) What users depend on are plain functions around it, because a dependency of request
scope may not depend on one of function scope, and because a generator costs 45 us of CPU where a plain function costs
17 (FastAPI 0.165); the middleware that does the rest costs 4. A callback on FastAPI's own exit stack would cost less
than the generator, but that stack is private; a middleware alone does not see what was raised, only a status.

No annotation here may name anything but the connection and other dependencies: FastAPI makes a query parameter of the
rest, and a public one at that.
"""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from fastapi import Depends
from starlette.requests import HTTPConnection

from poolkit import AsyncUnitOfWork, ConfigError
from poolkit_fastapi.middleware import Exchange, RequestUnit, current_exchange

if TYPE_CHECKING:
    from poolkit_fastapi.extension import Poolkit

__all__ = ["Dependencies"]

Dependency: TypeAlias = Callable[..., Awaitable[Any]]


class Dependencies:
    """The dependency functions of one `Poolkit`: one function object each, so that overrides find them."""

    def __init__(self, kit: "Poolkit") -> None:
        async def transaction(connection: HTTPConnection) -> AsyncIterator[RequestUnit]:
            exchange = _exchange_of(kit, connection)
            unit = exchange.enter()
            try:
                yield unit
            except BaseException as error:
                await exchange.leave(unit, error)
                raise
            await exchange.leave(unit)

        Unit = Annotated[RequestUnit, Depends(transaction, scope="function")]  # noqa: N806  a type

        async def unit_of_work(unit: Unit) -> AsyncUnitOfWork:
            return unit

        def leasing(name: str, *, sync: bool) -> Dependency:
            async def connection(unit: Unit) -> Any:
                return await unit.get(name)

            async def sync_connection(unit: Unit) -> Any:
                return await unit.get_sync(name)

            return sync_connection if sync else connection

        self._kit = kit
        self._leasing = leasing
        self._named: dict[tuple[str, bool], Dependency] = {}
        self.unit_of_work = unit_of_work

    def connection(self, name: str, *, sync: bool = False) -> Dependency:
        """Return the dependency for a name: the same function each time."""
        dependency = self._named.get((name, sync))
        if dependency is None:
            if self._kit.registry.names:  # with no settings at all, an app may still be imported, for its tests say
                self._kit.registry.url(name)
            dependency = self._named[name, sync] = self._leasing(name, sync=sync)
        return dependency

    def take_part(self, dependency: object) -> bool:
        """Whether a dependency is one of these."""
        return dependency is self.unit_of_work or dependency in self._named.values()


def _exchange_of(kit: "Poolkit", connection: HTTPConnection) -> Exchange:
    exchange = current_exchange(kit)
    if exchange is None:
        raise ConfigError(
            "this app does not know the Poolkit its endpoint depends on: call db.init_app(app)",
            f"{connection.scope['type']} {connection.scope['path']}",
        )
    return exchange
