"""Ten thousand bad requests against one real server: each is answered as documented, and nothing is left of them."""

import http.client
import json
import select
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hostile.corpus import Hostile, request, wire
from tests.serving.conftest import Running, encoded, running, wait_for, web

WARM_UP = 3_000
REQUESTS = 10_000
ON_THE_WIRE = 600
THREADS = 4
LIMIT_S = 30
SILENCE_S = 0.5
GROWTH, GROWTH_BYTES = 1.05, 20_000_000
"""Whichever is more: how many threads work at a time, and so what each keeps, is up to the scheduler."""
STATUSES = {200, 400, 403, 404, 405, 413, 415, 422, 503, 504}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OF_THE_CONNECTION = {408, 431}


@pytest.fixture(scope="module")
def target(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tiny_model, tmp_path_factory.mktemp("hostile"), TAILSTACK_MAX_BYTES="1000000") as server:
        yield server


def send_all(target: Running, seeds: range) -> Counter[tuple[str, int]]:
    """Send the requests of `seeds` over a few connections, and count the answers by kind and status."""

    def work(part: range) -> Counter[tuple[str, int]]:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=LIMIT_S)
        answers: Counter[tuple[str, int]] = Counter()
        for seed in part:
            asked = request(seed)
            connection.request(asked.method, asked.path, asked.body, asked.headers)
            response = connection.getresponse()
            check(seed, asked, response.status, response.headers.get_content_type(), response.read())
            answers[asked.kind, response.status] += 1
        connection.close()
        return answers

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, [seeds[first::THREADS] for first in range(THREADS)]), Counter())


def check(seed: int, asked: Hostile, status: int, kind: str, body: bytes) -> None:
    where = f"seed {seed}: {asked.method} {asked.path[:80]}: {status} {body[:300]!r}"
    assert status in STATUSES, where
    if asked.method == "HEAD":
        return
    if status == 200:
        assert kind in {"application/json", "application/octet-stream"}, where
        assert any(word in body for word in (b'"predictions"', b'"results"', b'"outputs"')), where
        return
    assert kind == "application/json", where
    error = json.loads(body)["error"]
    message = error if asked.path.startswith("/v2/") else error["message"]
    assert message, where
    if status in {503, 504}:
        assert "come back later" in message or "no answer within" in message, where


def send_wire(target: Running, seed: int) -> int:
    """Send one broken request on its own connection; return its status, or 0 where the server just closed."""
    answer = b""
    with target.connect() as connection, suppress(BrokenPipeError, ConnectionResetError):
        connection.settimeout(LIMIT_S)
        connection.sendall(wire(seed))
        while select.select([connection], [], [], SILENCE_S)[0] and (part := connection.recv(65_536)):
            answer += part
        # It waits for more, which doesn't come; or it has closed the connection, and then there is nothing to shut.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65_536):
            answer += part
    answer = answer.removeprefix(CONTINUE)
    if not answer:
        return 0
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status in STATUSES | OF_THE_CONNECTION, f"wire {seed}: {status} {body[:300]!r}"
    # The answer to HEAD has no body, nor one that a reset has cut off.
    if status != 200 and body:
        assert json.loads(body)["error"], f"wire {seed}"
    return status


def memory(target: Running) -> int:
    """Bytes that are the worker's own. What it shares with other processes counts less the more of them run."""
    (worker,) = target.workers()
    return int(worker.memory_full_info().uss)


def test_ten_thousand_bad_requests(target: Running) -> None:
    workers = target.workers()
    good = web.post(f"{target.address}/classify", content=encoded()).json()["predictions"]
    send_all(target, range(WARM_UP))
    before = memory(target)
    answers = send_all(target, range(WARM_UP, WARM_UP + REQUESTS))
    with ThreadPoolExecutor(4 * THREADS) as pool:
        statuses = Counter(pool.map(lambda seed: send_wire(target, seed), range(ON_THE_WIRE)))
    after = memory(target)

    # The requests are not all refused at the door.
    assert answers.total() == REQUESTS
    for kind in ("raw", "form", "json", "v2"):
        assert answers[kind, 200] > 50, answers
    assert {400, 413, 415, 422} <= {status for _, status in answers}
    assert statuses[200] > 20, statuses
    assert target.workers() == workers
    assert web.post(f"{target.address}/classify", content=encoded()).json()["predictions"] == good
    wait_for(lambda: "tailstack_queue_images 0.0" in web.get(f"{target.address}/metrics").text)
    assert not [line for line in target.log.read_text().splitlines() if json.loads(line)["level"] == "error"]
    assert after <= max(GROWTH * before, before + GROWTH_BYTES), f"{before} bytes before, {after} after"
