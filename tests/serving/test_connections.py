"""Clients that stop sending or reading: their connections end, and those of slow or idle ones end in no other way."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Thread
from typing import Any, Literal

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from serving import connections
from serving.connections import GuardedProtocol
from tests.serving.conftest import PATIENCE_S, wait_for

KERNEL_BUFFER = 65_536
MARK = 2_000_000
"""Bytes in the server's buffer above which it stops writing, and below which it goes on."""
LARGE = 2 * MARK
SMALL = b"small"
KEEP_ALIVE_S = 1


class SocketProtocol(GuardedProtocol):
    """Keeps far more in its own buffer than the kernel takes: where bytes wait doesn't depend on the machine."""

    max_connections = 10
    resumed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
        self.transport.set_write_buffer_limits(high=MARK, low=MARK)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.resumed = True


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a look at the body, as a refusal does."""
    body = bytes(LARGE) if scope["path"] == "/large" else SMALL
    if scope["path"] == "/slow":
        await asyncio.sleep(0.1)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def new_config(loop: Literal["uvloop", "asyncio"]) -> uvicorn.Config:
    return uvicorn.Config(app, port=0, loop=loop, http=SocketProtocol, lifespan="off", log_config=None)


class ThreadServer:
    """A server in a thread of this process."""

    def __init__(self, loop: Literal["uvloop", "asyncio"]) -> None:
        self.server = uvicorn.Server(new_config(loop))
        self.thread = Thread(target=self.server.run)

    @property
    def connections(self) -> list[Any]:
        return list(self.server.server_state.connections)

    def connect(self) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(PATIENCE_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
        connection.connect(self.server.servers[0].sockets[0].getsockname())
        return connection


@pytest.fixture(params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadServer]:
    """Where uvloop goes on writing once nothing is left, asyncio does so while something is."""
    monkeypatch.setattr(connections, "KEEP_ALIVE_S", KEEP_ALIVE_S)
    server = ThreadServer(request.param)
    server.thread.start()
    wait_for(lambda: server.server.started)
    yield server
    server.server.should_exit = server.server.force_exit = True
    server.thread.join(PATIENCE_S)


@pytest.fixture
def patient(server: ThreadServer, monkeypatch: pytest.MonkeyPatch) -> ThreadServer:
    monkeypatch.setattr(SocketProtocol, "receive_timeout", 10 * PATIENCE_S, raising=False)
    return server


@pytest.fixture
def impatient(server: ThreadServer, monkeypatch: pytest.MonkeyPatch) -> ThreadServer:
    monkeypatch.setattr(SocketProtocol, "receive_timeout", KEEP_ALIVE_S, raising=False)
    return server


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


def statuses(answers: bytes) -> list[int]:
    return [int(part.split()[0]) for part in answers.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    ("request_part", "rest"),
    [
        pytest.param(get("/"), b"\r\n", id="an empty line"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nfour", b" five", id="the body's rest"),
    ],
)
def test_what_comes_after_an_answer_is_no_request(patient: ThreadServer, request_part: bytes, rest: bytes) -> None:
    with patient.connect() as connection:
        connection.sendall(request_part)
        answer = b""
        while not answer.endswith(SMALL):
            answer += connection.recv(1000)
        assert statuses(answer) == [200]
        # On a loaded machine the server may have closed already.
        with suppress(ConnectionError):
            connection.sendall(rest)
            assert connection.recv(1000) == b""


def test_a_client_that_asks_again_and_reads_nothing(impatient: ThreadServer) -> None:
    with impatient.connect() as connection:
        with suppress(ConnectionError):
            connection.sendall(get("/large"))
            # The server writes head and body in one go, and looks at the next request after that.
            connection.recv(1)
            connection.sendall(get("/large"))
        wait_for(lambda: not impatient.connections)


def test_a_client_that_reads_until_writing_goes_on(impatient: ThreadServer) -> None:
    with impatient.connect() as connection:
        with suppress(ConnectionError):
            connection.sendall(get("/large"))
            while connection.recv(10_000) and not any(protocol.resumed for protocol in impatient.connections):
                pass
        wait_for(lambda: not impatient.connections)


class QuickProtocol(GuardedProtocol):
    receive_timeout = 0.01
    max_connections = 10


class ScriptedTransport(asyncio.Transport):
    """A connection without a socket, whose client reads as `reads` says whenever the protocol looks at the buffer."""

    def __init__(self, reads: Callable[[int], int]) -> None:
        super().__init__()
        self.reads = reads
        self.unsent = 0
        self.written = b""
        self.closed = False
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
        self.unsent += len(data)

    def get_write_buffer_size(self) -> int:
        self.unsent = max(0, self.reads(self.unsent))
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


def connect(transport: ScriptedTransport) -> QuickProtocol:
    protocol = QuickProtocol(
        config=new_config("asyncio"), server_state=ServerState(), app_state={}, _loop=asyncio.get_running_loop()
    )
    protocol.connection_made(transport)
    return protocol


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the client may take to send or to read, as with the server's own settings."""
    monkeypatch.setattr(connections, "KEEP_ALIVE_S", 5 * QuickProtocol.receive_timeout)


@pytest.mark.usefixtures("soon_idle")
def test_an_idle_client_that_has_read_its_answer_late_is_told_nothing() -> None:
    async def scenario() -> None:
        looks = iter(range(1, 1000))
        # All is read once the protocol has seen that something waits.
        transport = ScriptedTransport(lambda unsent: unsent if next(looks) == 1 else 0)
        connect(transport).data_received(get("/"))
        await until(transport.is_closing)
        assert statuses(transport.written) == [200]
        assert not transport.aborted

    asyncio.run(scenario())


@pytest.mark.usefixtures("soon_idle")
def test_a_request_after_an_empty_line_has_its_time() -> None:
    async def scenario() -> None:
        transport = ScriptedTransport(lambda _: 0)
        protocol = connect(transport)
        protocol.data_received(get("/"))
        await until(lambda: SMALL in transport.written)
        if not transport.closed:  # as it is on a loaded machine
            protocol.data_received(b"\r\n")
            protocol.data_received(get("/slow"))
            await until(transport.is_closing)
            assert statuses(transport.written) == [200, 200]

    asyncio.run(scenario())


@pytest.mark.usefixtures("soon_idle")
@pytest.mark.parametrize(
    ("reads", "aborted"),
    [
        pytest.param(lambda unsent: unsent - 1, False, id="slowly"),
        pytest.param(lambda unsent: max(20, unsent - 1), True, id="a part"),
        pytest.param(lambda unsent: unsent, True, id="nothing"),
    ],
)
def test_who_reads_goes_on(reads: Callable[[int], int], aborted: bool) -> None:
    async def scenario() -> None:
        transport = ScriptedTransport(reads)
        connect(transport).data_received(get("/"))
        await until(lambda: transport.aborted or (transport.closed and not transport.unsent))
        assert transport.aborted == aborted

    asyncio.run(scenario())
