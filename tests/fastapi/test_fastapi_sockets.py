"""Websockets: a unit per message, and never one for as long as the socket is open."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from typing import Annotated, Any

import psycopg
import pytest
from fastapi import Depends, FastAPI, WebSocket, WebSocketException
from fastapi.testclient import TestClient
from fastapi_rig import MakeKit, Rows, Serve, out, settles
from starlette.websockets import WebSocketDisconnect

from poolkit import AsyncUnitOfWork, UnitOfWorkError
from poolkit_fastapi import Poolkit


def test_each_message_is_a_unit(kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows) -> None:
    """A message that fails is rolled back alone, and between messages the socket holds no connection."""

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            try:
                async with kit.transaction() as conn:
                    await conn.execute("INSERT INTO notes VALUES (%s)", (text,))
                    if text == "bad":
                        await conn.execute("SELECT 1 / 0")
                    (holder,) = [holder for pool in kit.registry.live_pools() for holder in pool.holders()]
            except psycopg.Error:
                await socket.send_text("failed")
            else:
                await socket.send_text(holder.label)

    with client.websocket_connect("/ws") as socket:
        answers = []
        for text in ("one", "bad", "two"):
            socket.send_text(text)
            answers.append(socket.receive_text())
            assert out(kit) == 0
    assert answers == ["WEBSOCKET /ws", "failed", "WEBSOCKET /ws"]
    assert [rows(word) for word in ("one", "bad", "two")] == [1, 0, 1]


@pytest.mark.parametrize("wanted", ["connection", "sync_connection", "unit_of_work"])
def test_a_dependency_may_look_at_who_knocks(
    wanted: str, kit: Poolkit, app: FastAPI, client: TestClient, rows: Rows
) -> None:
    """One auth dependency serves requests and websockets: its unit ends before the handshake is answered."""
    sockets: list[int] = []

    async def auth(user: str, given: Annotated[Any, Depends(getattr(kit, wanted))]) -> str:
        conn = await given.get() if wanted == "unit_of_work" else given
        result = conn.execute("INSERT INTO notes VALUES (%s)", (user,))
        if wanted != "sync_connection":
            await result
        if user == "mallory":
            raise WebSocketException(1008)
        return user

    @app.websocket("/ws")
    async def ws(socket: WebSocket, user: Annotated[str, Depends(auth)]) -> None:
        await socket.accept()
        sockets.append(out(kit))
        await socket.send_text(user)
        await socket.receive_text()

    with client.websocket_connect("/ws?user=ann") as socket:
        assert socket.receive_text() == "ann"
        assert rows("ann") == 1
        assert sockets == [0]
        socket.send_text("bye")
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/ws?user=mallory"):
        pass
    assert refused.value.code == 1008
    assert rows("mallory") == 0
    assert out(kit) == 0


@pytest.mark.parametrize("used", [True, False])
def test_an_open_socket_is_lent_nothing(*, used: bool, kit: Poolkit, app: FastAPI, client: TestClient) -> None:
    """The unit would hold its connection for hours: whoever asks it again is told what to write instead."""
    refused: list[str] = []

    @app.websocket("/ws")
    async def ws(socket: WebSocket, uow: Annotated[AsyncUnitOfWork, Depends(kit.unit_of_work)]) -> None:
        if used:
            await uow.get()
            await uow.commit()
        await socket.accept()
        for get in (uow.get, uow.get_sync):
            try:
                await get()
            except UnitOfWorkError as error:
                refused.append(str(error))

    with client.websocket_connect("/ws"):
        pass
    assert settles(lambda: len(refused) == 2)
    assert all("WEBSOCKET /ws" in text and "async with db.transaction()" in text for text in refused)
    assert out(kit) == 0


def test_a_commit_that_fails_refuses_the_handshake(kit: Poolkit, app: FastAPI, serve: Serve) -> None:
    """It fails in `accept()`, as it would before a response starts: nobody is let in on what was not saved."""

    @app.websocket("/ws")
    async def ws(socket: WebSocket, conn: Annotated[Any, Depends(kit.connection)]) -> None:
        await conn.execute("INSERT INTO children VALUES (1)")
        await socket.accept()

    @app.exception_handler(psycopg.errors.ForeignKeyViolation)
    async def answer(socket: WebSocket, _: Exception) -> None:
        await socket.close(1008)

    with pytest.raises(WebSocketDisconnect) as refused, serve(app).websocket_connect("/ws"):
        pass
    assert refused.value.code == 1008
    assert out(kit) == 0


def test_a_socket_that_can_have_no_connection_is_told_to_come_back(make_kit: MakeKit, serve: Serve) -> None:
    """Where a request gets 503, a websocket is closed with 1013, "try again later"."""
    kit = make_kit({"max_size": 1, "timeout": 0.05})
    app = FastAPI()
    kit.init_app(app)

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        async with kit.transaction(), kit.transaction():
            pass

    with serve(app).websocket_connect("/ws") as socket, pytest.raises(WebSocketDisconnect) as closed:
        socket.receive_text()
    assert closed.value.code == 1013
    assert out(kit) == 0
