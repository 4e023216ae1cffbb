"""GraphQL with strawberry: errors are answered with 200, and roll back all the same."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi_rig import Rows, Serve, out

from poolkit_fastapi import Poolkit

strawberry = pytest.importorskip("strawberry", reason="strawberry-graphql is not installed")

from strawberry.fastapi import GraphQLRouter  # noqa: E402

from poolkit.strawberry import RollbackOnErrors  # noqa: E402


@strawberry.type
class Query:
    """GraphQL wants one."""

    number: int = 1


@strawberry.type
class Mutation:
    """Writes its word, and fails when asked to: in the loop of the request, or in a task that it awaits."""

    @strawberry.mutation
    async def write(self, info: strawberry.Info, word: str, *, fails: bool) -> str:
        await info.context["conn"].execute("INSERT INTO notes VALUES (%s)", (word,))
        await asyncio.sleep(0)
        if fails:
            raise ValueError(word)
        return word


def test_an_answer_with_errors_is_rolled_back(kit: Poolkit, serve: Serve, rows: Rows) -> None:
    """One failing mutation undoes those beside it; an answer without errors is saved."""

    async def context(conn: Annotated[Any, Depends(kit.connection)]) -> AsyncIterator[dict[str, Any]]:
        yield {"conn": conn}

    schema = strawberry.Schema(query=Query, mutation=Mutation, extensions=[RollbackOnErrors])
    app = FastAPI()
    kit.init_app(app)
    app.include_router(GraphQLRouter(schema, context_getter=context), prefix="/graphql")
    client = serve(app)

    def ask(text: str) -> dict[str, Any]:
        answer = client.post("/graphql", json={"query": text})
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    assert "errors" not in ask('mutation { write(word: "good", fails: false) }')
    assert "errors" in ask('mutation { a: write(word: "bad", fails: false) b: write(word: "bad", fails: true) }')
    assert "errors" in ask("mutation { nothing }")
    assert (rows("good"), rows("bad")) == (1, 0)
    assert out(kit) == 0
