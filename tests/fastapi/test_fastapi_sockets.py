"""Websockets: a unit per message, and never one for as long as the socket is open."""

# No `from __future__ import annotations`: FastAPI has to see the annotations of functions defined in a function.

from typing import Annotated, Any

import psycopg
import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from fastapi_rig import MakeKit, Rows, Serve, out
from starlette.websockets import WebSocketDisconnect

from poolkit import UnitOfWorkError
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
def test_a_dependency_in_a_websocket_is_refused(wanted: str, make_kit: MakeKit) -> None:
    """It would hold its connection for hours: the error says what to write instead."""
    kit = make_kit()
    app = FastAPI()
    kit.init_app(app)

    @app.websocket("/ws")
    async def ws(socket: WebSocket, _held: Annotated[Any, Depends(getattr(kit, wanted))]) -> None:
        await socket.accept()

    with (
        TestClient(app) as client,
        pytest.raises(UnitOfWorkError, match=r"WEBSOCKET /ws: .*async with db.transaction\(\)"),
        client.websocket_connect("/ws"),
    ):
        pass


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
