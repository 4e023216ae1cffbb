"""What an endpoint can ask for, and the point where its unit of work ends.

The end belongs after the response was serialised and before it starts, inside the exception handlers: so a failing
COMMIT can still become a 409. FastAPI ends function-scoped `yield` dependencies at that point. (Those of the default
scope end after the client has its 200; a middleware alone does not see what was raised, only a status.) Where its stack
of them can be relied on (see `stack`), the end is put onto that, and what users depend on are plain functions: 17 us of
CPU each (FastAPI 0.165). Elsewhere they stand on a function-scoped `yield` dependency, which costs 45 more. Behind a
plain function, because a dependency of request scope may not depend on one of function scope.

No annotation here may name anything but the connection and other dependencies: FastAPI makes a query parameter of the
rest, and a public one at that.
"""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from fastapi import Depends
from starlette.requests import HTTPConnection

from poolkit import AsyncUnitOfWork, ConfigError
from poolkit_fastapi import stack
from poolkit_fastapi.middleware import Exchange, current_exchange

if TYPE_CHECKING:
    from poolkit_fastapi.extension import Poolkit

__all__ = ["Dependencies"]

Dependency: TypeAlias = Callable[..., Awaitable[Any]]


class Dependencies:
    """The dependency functions of one `Poolkit`: one function object each, so that overrides find them."""

    def __init__(self, kit: "Poolkit") -> None:
        forms = _on_the_stack(kit) if stack.is_sound() else _behind_a_yield(kit)
        self.unit_of_work, self._leasing = forms
        self._kit = kit
        self._named: dict[tuple[str, bool], Dependency] = {}

    def connection(self, name: str, *, sync: bool = False) -> Dependency:
        """Return the dependency for a name: the same function each time."""
        dependency = self._named.get((name, sync))
        if dependency is None:
            if self._kit.registry.names:  # with no settings at all, an app may still be imported, for its tests say
                self._kit.registry.check(name)
            dependency = self._named[name, sync] = self._leasing(name, sync)
        return dependency

    def take_part(self, dependency: object) -> bool:
        """Whether a dependency is one of these."""
        return dependency is self.unit_of_work or dependency in self._named.values()


Forms: TypeAlias = tuple[Dependency, Callable[[str, bool], Dependency]]
"""The dependency for the unit, and what makes those for its connections: by name, for threads or not."""


def _on_the_stack(kit: "Poolkit") -> Forms:
    def enter(connection: HTTPConnection) -> AsyncUnitOfWork:
        exchange = _exchange_of(kit, connection)
        unit = exchange.unit
        if unit is None:
            unit = exchange.enter(connection.scope)
            stack.put_last(connection, exchange.exit)
        return unit

    async def unit_of_work(connection: HTTPConnection) -> AsyncUnitOfWork:
        return enter(connection)

    def leasing(name: str, sync: bool) -> Dependency:  # noqa: FBT001
        async def connection(connection: HTTPConnection) -> Any:
            return await enter(connection).get(name)

        async def sync_connection(connection: HTTPConnection) -> Any:
            return await enter(connection).get_sync(name)

        return sync_connection if sync else connection

    return unit_of_work, leasing


def _behind_a_yield(kit: "Poolkit") -> Forms:
    async def transaction(connection: HTTPConnection) -> AsyncIterator[AsyncUnitOfWork]:
        exchange = _exchange_of(kit, connection)
        unit = exchange.enter(connection.scope)
        try:
            yield unit
        except BaseException as error:
            await exchange.leave(unit, error)
            raise
        await exchange.leave(unit)

    Unit = Annotated[AsyncUnitOfWork, Depends(transaction, scope="function")]  # noqa: N806  a type

    async def unit_of_work(unit: Unit) -> AsyncUnitOfWork:
        return unit

    def leasing(name: str, sync: bool) -> Dependency:  # noqa: FBT001
        async def connection(unit: Unit) -> Any:
            return await unit.get(name)

        async def sync_connection(unit: Unit) -> Any:
            return await unit.get_sync(name)

        return sync_connection if sync else connection

    return unit_of_work, leasing


def _exchange_of(kit: "Poolkit", connection: HTTPConnection) -> Exchange:
    exchange = current_exchange(kit)
    if exchange is None:
        raise ConfigError(
            "this app does not know the Poolkit its endpoint depends on: call db.init_app(app)",
            f"{connection.scope['type']} {connection.scope['path']}",
        )
    return exchange
