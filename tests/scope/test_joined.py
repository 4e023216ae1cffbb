"""A joined block that fails and whose error is handled: never a success with nothing saved; or a savepoint."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import pytest
from rig import Rig

from poolkit import CommitFailed, async_unit_of_work, current, unit_of_work
from poolkit.testing.fakes import FakeError
from poolkit.unit_settings import UnitSettings

Kind = Literal["threads", "asyncio"]


class Blocks:
    """Blocks for threads or for asyncio, behind one spelling."""

    def __init__(self, kind: Kind, units: UnitSettings | None = None) -> None:
        self.kind = kind
        self.rig = Rig(units)

    @contextlib.asynccontextmanager
    async def block(self, **given: Any) -> Any:
        if self.kind == "threads":
            with unit_of_work(self.rig.registry, **given) as unit:
                yield unit
        else:
            self.rig.in_loop() if not self.rig.async_drivers else None
            async with async_unit_of_work(self.rig.registry, **given) as unit:
                yield unit

    async def run(self, unit: Any, *statements: str, name: str = "default") -> None:
        connection = unit.get(name) if self.kind == "threads" else await unit.get(name)
        for statement in statements:
            connection.execute(statement)

    async def finish(self, unit: Any, **given: Any) -> None:
        result = unit.finish(**given)
        if self.kind == "asyncio":
            await result

    async def fail_inside(self, **given: Any) -> None:
        """Handle the error of a block, as a view does to which the block does not matter much."""
        with contextlib.suppress(LookupError):
            async with self.block(**given) as inner:
                await self.run(inner, "inner")
                raise LookupError("no account")


@pytest.fixture(params=["threads", "asyncio"])
def blocks(request: pytest.FixtureRequest) -> Blocks:
    return Blocks(request.param)


async def test_its_handled_error_makes_the_end_an_error(blocks: Blocks) -> None:
    """The block can't be undone alone, so all is rolled back, and who handled the error is told where it was."""
    undone: list[str] = []
    with pytest.raises(CommitFailed) as caught:  # noqa: PT012  the block and its end
        async with blocks.block(label="POST /orders") as outer:
            outer.on_rollback(lambda: undone.append("undone"))
            outer.on_commit(lambda: undone.append("committed"))
            await blocks.run(outer, "order")
            await blocks.fail_inside()
            await blocks.run(outer, "item")
    assert blocks.rig.said()[-1] == "rollback"
    for part in ("POST /orders", __file__, "LookupError: no account", "nothing was saved", "nested=True"):
        assert part in str(caught.value), part
    assert (outer.rollback_reason, undone) == ("joined_block", ["undone"])
    assert blocks.rig.registry.tally.rollbacks == {"joined_block": 1}
    assert blocks.rig.out() == 0


async def test_it_is_an_error_also_where_nothing_was_used(blocks: Blocks) -> None:
    """Whether a connection was leased does not matter to what the client is told."""
    with pytest.raises(CommitFailed):  # noqa: PT012  the block and its end
        async with blocks.block():
            with contextlib.suppress(LookupError):
                async with blocks.block():
                    raise LookupError


async def test_the_error_that_goes_on_is_told_instead(blocks: Blocks) -> None:
    """An error that leaves the work, the block's own or another, is the one that is raised."""
    for error in (LookupError, KeyError):
        with pytest.raises(error):  # noqa: PT012
            async with blocks.block():
                await blocks.fail_inside()
                raise error


async def test_who_dooms_the_unit_has_said_that_nothing_is_to_be_saved(blocks: Blocks) -> None:
    """`doom()` asks for the rollback: then it is no surprise, and no error."""
    async with blocks.block() as outer:
        await blocks.fail_inside()
        outer.doom()
    assert (outer.committed, outer.rollback_reason) == (False, "doomed")


@pytest.mark.parametrize(("setting", "raises"), [("rollback", False), ("raise", True)])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
async def test_an_answer_that_is_an_error_is_sent(
    kind: Kind,
    setting: Any,
    raises: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a status of 400 or more nothing false is told: it is sent, with a warning, unless the setting says so."""
    blocks = Blocks(kind, UnitSettings(swallowed_error=setting))
    async with blocks.block(label="POST /orders") as outer:
        await blocks.fail_inside()
        with pytest.raises(CommitFailed) if raises else contextlib.nullcontext():
            await blocks.finish(outer, status=422)
    assert outer.rollback_reason == "joined_block"
    assert ("POST /orders: answered 422" in caplog.text) is not raises


# -- nested: a savepoint ---------------------------------------------------------------------------------------------


async def test_a_nested_block_is_undone_alone(blocks: Blocks) -> None:
    """What was written before and after it is saved; its hooks are forgotten with it, the others run."""
    done: list[str] = []
    async with blocks.block() as outer:
        await blocks.run(outer, "order")
        outer.on_commit(lambda: done.append("outer"))
        with contextlib.suppress(LookupError):
            async with blocks.block(nested=True) as inner:
                assert inner is outer is current()
                inner.on_commit(lambda: done.append("inner"))
                await blocks.run(inner, "points")
                raise LookupError
        await blocks.run(outer, "item")
    name = blocks.rig.said()[2].rpartition(" ")[2]
    assert blocks.rig.said() == [
        "begin", "order", f"SAVEPOINT {name}", "points", f"ROLLBACK TO SAVEPOINT {name}", f"RELEASE SAVEPOINT {name}",
        "item", "commit",
    ]  # fmt: skip
    assert done == ["outer"]


async def test_a_nested_block_that_ends_well_is_part_of_the_unit(blocks: Blocks) -> None:
    """Its savepoint is released, and its work is committed with the unit."""
    async with blocks.block() as outer:
        await blocks.run(outer, "order")
        async with blocks.block(nested=True):
            await blocks.run(outer, "points")
    assert [line.split()[0] for line in blocks.rig.said()] == [
        "begin",
        "order",
        "SAVEPOINT",
        "points",
        "RELEASE",
        "commit",
    ]


async def test_what_a_nested_block_leased_itself_is_begun_anew(blocks: Blocks) -> None:
    """A connection first used in the block has nothing but the block's work: its transaction is undone as a whole."""
    async with blocks.block() as outer:
        with contextlib.suppress(LookupError):
            async with blocks.block(nested=True):
                await blocks.run(outer, "points", name="other")
                raise LookupError
        await blocks.run(outer, "item", name="other")
    assert blocks.rig.said("other") == ["begin", "points", "rollback", "begin", "item", "commit"]


async def test_a_failed_statement_that_a_nested_block_handles_undoes_the_block(blocks: Blocks) -> None:
    """The transaction is usable again after it, and the block's end is an error: its work is not there."""
    async with blocks.block() as outer:
        await blocks.run(outer, "order")
        with pytest.raises(CommitFailed, match="'default' in this nested block"):  # noqa: PT012
            async with blocks.block(nested=True):
                with contextlib.suppress(FakeError):
                    await blocks.run(outer, "bad")
    assert blocks.rig.said()[-1] == "commit"


async def test_a_nested_block_without_a_unit_is_a_unit(blocks: Blocks) -> None:
    """Where there is nothing around it, it commits and rolls back by itself."""
    async with blocks.block(nested=True) as unit:
        await blocks.run(unit, "points")
    assert blocks.rig.said() == ["begin", "points", "commit"]


async def test_a_unit_that_ends_in_a_nested_block_has_no_savepoint_left(blocks: Blocks) -> None:
    """`uow.commit()` in the block ends all of it, and nothing is sent for the savepoint after that."""
    async with blocks.block() as outer:
        await blocks.run(outer, "order")
        async with blocks.block(nested=True):
            await blocks.finish(outer)
    assert blocks.rig.said()[-1] == "commit"


def test_new_and_nested_exclude_each_other() -> None:
    """An independent unit has no savepoint in another."""
    with pytest.raises(ValueError, match="either new"):
        unit_of_work(new=True, nested=True)
