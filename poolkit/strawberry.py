"""Strawberry (GraphQL): an operation that answers with errors is rolled back.

    from poolkit.strawberry import RollbackOnErrors

    schema = strawberry.Schema(query=Query, mutation=Mutation, extensions=[RollbackOnErrors])

Strawberry puts what a resolver raises beside the data and answers 200, so that the framework sees a request that went
well. This extension looks at the result, and dooms the unit of work of the request.
"""

from __future__ import annotations

from collections.abc import Iterator

from strawberry.extensions import SchemaExtension

from poolkit.blocks import current

__all__ = ["RollbackOnErrors"]


class RollbackOnErrors(SchemaExtension):
    """Roll back everything that the request did where the answer has errors. Works in every framework."""

    def on_operation(self) -> Iterator[None]:
        """Look at the result when the operation is over."""
        yield
        errors = getattr(self.execution_context.result, "errors", None)
        unit = current()
        if errors and unit is not None and unit.is_open:
            unit.doom(f"GraphQL: {len(errors)} error(s)")
