"""A full, slow or ill-treated server: refusals come at once, with a reason, and nobody else suffers."""

import json
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.serving.conftest import PATIENCE_S, Running, encoded, running, saved, wait_for, web

RECEIVE_S = 1
CONNECTIONS = 40
ROOM = {
    "TAILSTACK_MAX_QUEUE": "4",
    "TAILSTACK_MAX_BYTES": "1000000",
    "TAILSTACK_MAX_BUFFERED_BYTES": "4200000",
    "TAILSTACK_MAX_CONNECTIONS": str(CONNECTIONS),
}


@pytest.fixture(scope="module")
def tight(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with little room, and little patience with clients."""
    patience = {"TAILSTACK_TIMEOUT": "0.2", "TAILSTACK_RECEIVE_TIMEOUT": str(RECEIVE_S)}
    with running(tiny_model, tmp_path_factory.mktemp("tight"), **ROOM, **patience) as server:
        yield server


@pytest.fixture(scope="module")
def patient(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with little room, where what holds it stays until the test ends it, however slow the machine is."""
    with running(tiny_model, tmp_path_factory.mktemp("patient"), **ROOM, TAILSTACK_RECEIVE_TIMEOUT="600") as server:
        yield server


@pytest.fixture(autouse=True)
def unharmed(tight: Running) -> Iterator[None]:
    """After each test the one worker is the same, and answers."""
    before = tight.workers()
    yield
    assert tight.workers() == before
    answers_again(tight)


def answers_again(tight: Running) -> None:
    """Wait until what a test left behind is worked off."""
    wait_for(lambda: answers(tight))
    wait_for(lambda: "tailstack_queue_images 0.0" in web.get(f"{tight.address}/metrics").text)


def answers(server: Running) -> bool:
    # While connections are too many, this one is closed, perhaps before it is read.
    with suppress(httpx.TransportError):
        return status_of(server, encoded()) == 200
    return False


def status_of(server: Running, body: bytes) -> int:
    response = web.post(f"{server.address}/classify", content=body)
    assert response.status_code in {200, 408, 415, 503, 504}, response.text
    return response.status_code


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
    wait_for(lambda: status_of(tight, slow_image()) == 504)


def test_an_image_that_takes_too_long_costs_the_others_of_its_batch_nothing(tight: Running) -> None:
    def codes() -> list[str | None]:
        files = [("images", (f"{number}.png", image)) for number, image in enumerate((encoded(), slow_image()))]
        response = web.post(f"{tight.address}/classify/batch", files=files)
        if response.status_code != 200:
            return []
        return [result.get("error", {}).get("code") for result in response.json()["results"]]

    # On a loaded machine the small image is late as well, now and then.
    wait_for(lambda: codes() == [None, "too_slow"])


def test_a_full_server_says_so(tight: Running) -> None:
    image = slow_image()

    def counted() -> bool:
        """Send more than there is room for; return whether both reasons have been counted."""
        with ThreadPoolExecutor(16) as pool:
            responses = list(pool.map(lambda _: web.post(f"{tight.address}/classify", content=image), range(16)))
        # On a loaded machine, this client is one of the slow ones.
        assert {response.status_code for response in responses} <= {408, 503, 504}
        for response in responses:
            if response.status_code == 503:
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["code"] == "overloaded"
        figures = web.get(f"{tight.address}/metrics").text
        reasons = ("queue_full", "deadline")
        return all(f'tailstack_rejected_total{{reason="{reason}"}}' in figures for reason in reasons)

    wait_for(counted)
    answers_again(tight)


def test_more_images_than_ever_fit(patient: Running) -> None:
    response = web.post(f"{patient.address}/classify/batch", files=[("images", encoded())] * 5)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "too_many_images")


def test_bodies_have_a_limit_in_memory_together(patient: Running) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(patient.connect()).sendall(post(1_000_000, bytes(900_000)))
        # Small bodies still fit, and by the time that so many are answered, the large ones have been read.
        assert [status_of(patient, encoded()) for _ in range(20)] == [200] * 20
        wait_for(lambda: status_of(patient, bytes(700_000)) == 503)
        assert 'tailstack_rejected_total{reason="memory"}' in web.get(f"{patient.address}/metrics").text
    wait_for(lambda: status_of(patient, bytes(700_000)) == 415)


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
        (b"CONNECT x HTTP/1.1\r\nhost: x\r\n\r\n", (400, "malformed_http")),
        (b"GET http://[::1/ HTTP/1.1\r\nhost: x\r\n\r\n", (400, "malformed_http")),
        (post(100, extra="transfer-encoding: chunked\r\n"), (400, "malformed_http")),
        (post(100, extra="content-length: 101\r\n"), (400, "malformed_http")),
    ],
)
def test_a_request_that_never_gets_whole(tight: Running, patient: Running, sent: bytes, error: tuple[int, str]) -> None:
    # Only who is to be refused for his slowness is hurried.
    with (tight if error[0] == 408 else patient).connect() as connection:
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
        wait_for(lambda: answers(tight))
        end = time.monotonic() + PATIENCE_S
        while slow and time.monotonic() < end:
            readable, _, _ = select.select(slow, [], [], 0.2)
            for connection in readable:
                # A byte that comes after the end resets the connection, and the answer may be lost.
                answer = received(connection)
                assert not answer or error_of(answer) == (408, "request_too_slow")
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


def test_a_body_longer_than_it_says(patient: Running) -> None:
    with patient.connect() as connection:
        connection.sendall(post(5, b"hello and something that is no request\r\n\r\n"))
        answer = received(connection)
    statuses = [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses in ([415, 400], [400], [])


def test_too_many_connections(patient: Running) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(patient.connect())
        answer = received(stack.enter_context(patient.connect()))
    assert error_of(answer) == (503, "overloaded")
    assert b"retry-after: " in answer
    wait_for(lambda: answers(patient))


def test_clients_that_vanish(tight: Running) -> None:
    requests = [post(1000, bytes(500)), post(len(encoded()), encoded()), b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"]
    for number in range(60):
        with tight.connect() as connection:
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(requests[number % 3])
    answers_again(tight)


def test_a_client_that_pipelines_and_never_reads(tight: Running) -> None:
    with tight.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100_000):
                connection.sendall(b"GET /docs.json HTTP/1.1\r\nhost: x\r\n\r\n" * 10)


def test_pipelined_requests_are_answered_in_order(patient: Running) -> None:
    with patient.connect() as connection:
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
            + post(len(encoded()), encoded())
            + b"GET /none HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        answer = received(connection)
    first, second, third = (int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:])
    assert (first, second, third) == (200, 200, 404)
