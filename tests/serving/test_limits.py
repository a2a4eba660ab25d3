"""A full, slow or ill-treated server: refusals come at once, with a reason, and nobody else suffers."""

import json
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.serving.conftest import Running, encoded, running, saved

RECEIVE_S = 1
CONNECTIONS = 40


@pytest.fixture(scope="module")
def tight(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with little room, and little patience with clients."""
    variables = {
        "MAX_QUEUE": "4",
        "MAX_BYTES": "1000000",
        "MAX_BUFFERED_BYTES": "4200000",
        "MAX_CONNECTIONS": str(CONNECTIONS),
        "TIMEOUT": "0.2",
        "RECEIVE_TIMEOUT": str(RECEIVE_S),
    }
    settings = {f"TAILSTACK_{name}": value for name, value in variables.items()}
    with running(tiny_model, tmp_path_factory.mktemp("tight"), **settings) as server:
        yield server


@pytest.fixture(autouse=True)
def unharmed(tight: Running) -> Iterator[None]:
    """After each test the one worker is the same, and answers."""
    before = tight.workers()
    yield
    assert tight.workers() == before
    answers_again(tight)


def answers_again(tight: Running) -> None:
    """Wait until what a test left behind is worked off: that takes as long as one image at most."""
    with httpx.Client(base_url=tight.address, transport=httpx.HTTPTransport(retries=3)) as client:
        for _ in range(100):
            response = client.post("/classify", content=encoded())
            if response.status_code == 200:
                return
            assert response.status_code in {503, 504}
            time.sleep(0.1)
    raise AssertionError(response.text)


@cache
def slow_image() -> bytes:
    """50 million pixels in few bytes: they take longer than the limit of time."""
    return saved(Image.new("RGBA", (7000, 7000)), compress_level=1)


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def post(length: int, body: bytes = b"", extra: str = "") -> bytes:
    return f"POST /classify HTTP/1.1\r\nhost: x\r\n{extra}content-length: {length}\r\n\r\n".encode() + body


def test_what_takes_too_long_gets_504(tight: Running) -> None:
    response = httpx.post(f"{tight.address}/classify", content=slow_image())
    assert (response.status_code, response.json()["error"]["code"]) == (504, "too_slow")


def test_a_full_server_says_so(tight: Running) -> None:
    image = slow_image()
    with ThreadPoolExecutor(16) as pool, httpx.Client() as client:
        responses = list(pool.map(lambda _: client.post(f"{tight.address}/classify", content=image), range(16)))
    assert set(Counter(response.status_code for response in responses)) == {503, 504}
    for response in responses:
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "overloaded"
    answers_again(tight)
    figures = httpx.get(f"{tight.address}/metrics").text
    assert 'tailstack_rejected_total{reason="queue_full"}' in figures
    assert 'tailstack_rejected_total{reason="deadline"}' in figures
    assert "tailstack_queue_images 0.0" in figures


def test_more_images_than_ever_fit(tight: Running) -> None:
    response = httpx.post(f"{tight.address}/classify/batch", files=[("images", encoded())] * 5)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "too_many_images")


def test_bodies_have_a_limit_in_memory_together(tight: Running) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(tight.connect()) for _ in range(4)]
        for connection in slow:
            connection.sendall(post(1_000_000, bytes(900_000)))
        time.sleep(0.2)
        response = httpx.post(f"{tight.address}/classify", content=bytes(700_000))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert [error_of(received(connection)) for connection in slow] == [(408, "body_too_slow")] * 4


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", (408, "request_too_slow")),
        (b"POST /classify HTT", (408, "request_too_slow")),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ", (408, "request_too_slow")),
        (post(1000, bytes(500)), (408, "body_too_slow")),
        (b"POST /classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello", (408, "body_too_slow")),
        (b"POST /classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", (400, "malformed_http")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400, "malformed_http")),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 500_000, (431, "headers_too_large")),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 80_000, (431, "headers_too_large")),
        (post(100, extra="transfer-encoding: chunked\r\n"), (400, "malformed_http")),
        (post(100, extra="content-length: 101\r\n"), (400, "malformed_http")),
    ],
)
def test_a_request_that_never_gets_whole(tight: Running, sent: bytes, error: tuple[int, str]) -> None:
    with tight.connect() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # the refusal came before the end
            connection.sendall(sent)
        answer = received(connection)
    # What still arrives at a closed connection resets it, and the answer may be lost on the way.
    assert answer == b"" or error_of(answer) == error
    assert answer or len(sent) > 100_000


def test_slow_loris(tight: Running) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(tight.connect()) for _ in range(CONNECTIONS - 10)]
        for connection in slow:
            connection.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\n")
        assert httpx.post(f"{tight.address}/classify", content=encoded()).status_code == 200
        end = time.monotonic() + 10 * RECEIVE_S
        while slow and time.monotonic() < end:
            readable, _, _ = select.select(slow, [], [], 0.2)
            for connection in readable:
                assert error_of(received(connection)) == (408, "request_too_slow")
                slow.remove(connection)
            # A byte now and then buys no time.
            for connection in slow:
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(b"x")
        assert not slow


def test_endless_trailers(tight: Running) -> None:
    with tight.connect() as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):
                connection.sendall(b"trailer: x\r\n" * 1000)


def test_a_body_longer_than_it_says(tight: Running) -> None:
    with tight.connect() as connection:
        connection.sendall(post(5, b"hello and something that is no request\r\n\r\n"))
        answer = received(connection)
    statuses = [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses in ([415, 400], [400], [])


def test_too_many_connections(tight: Running) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(tight.connect())
        answer = received(stack.enter_context(tight.connect()))
    assert error_of(answer) == (503, "overloaded")
    assert b"retry-after: " in answer


def test_clients_that_vanish(tight: Running) -> None:
    requests = [post(1000, bytes(500)), post(len(encoded()), encoded()), b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"]
    for number in range(60):
        with tight.connect() as connection:
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(requests[number % 3])
    answers_again(tight)
    assert "tailstack_queue_images 0.0" in httpx.get(f"{tight.address}/metrics").text


def test_a_client_that_pipelines_and_never_reads(tight: Running) -> None:
    with tight.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10 * RECEIVE_S)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100_000):
                connection.sendall(b"GET /docs.json HTTP/1.1\r\nhost: x\r\n\r\n" * 10)


def test_pipelined_requests_are_answered_in_order(tight: Running) -> None:
    with tight.connect() as connection:
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
            + post(len(encoded()), encoded())
            + b"GET /none HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        answer = received(connection)
    assert [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 404]
