"""Workers that are killed, and a server that is told to end."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import Running, encoded, running


@pytest.fixture
def pair(tiny_model: Path, tmp_path: Path) -> Iterator[Running]:
    """Two workers, in what BentoML takes for a container, where it wouldn't bring one back."""
    variables = {"TAILSTACK_WORKERS": "2", "TAILSTACK_DRAIN": "2", "BENTOML_CONTAINERIZED": "true"}
    with running(tiny_model, tmp_path, host="0.0.0.0", **variables) as server:
        yield server


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def classify(server: Running) -> int:
    return httpx.post(f"{server.address}/classify", content=encoded()).status_code


def requests_counted(server: Running) -> float:
    lines = httpx.get(f"{server.address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if 'tailstack_requests_total{method="POST"' in line)


def test_a_killed_worker_comes_back_and_the_end_is_orderly(pair: Running) -> None:
    first, second = pair.workers()
    # Each adds its own queue: both are up.
    wait_for(lambda: "tailstack_queue_capacity_images 256.0" in httpx.get(f"{pair.address}/metrics").text)
    assert [classify(pair) for _ in range(20)] == [200] * 20
    first.kill()
    # The other goes on meanwhile.
    assert [classify(pair) for _ in range(20)] == [200] * 20
    wait_for(lambda: len(pair.workers()) == 2)
    assert second in pair.workers()
    assert first not in pair.workers()
    assert [classify(pair) for _ in range(20)] == [200] * 20
    # The figures of all workers are added up, those of the dead one included.
    assert requests_counted(pair) == 60
    assert "without API keys" in pair.log.read_text()
    end_under_load(pair)


def end_under_load(pair: Running) -> None:
    with ThreadPoolExecutor(8) as pool:
        # Their bodies come slowly: they are accepted before the signal, and whole after it.
        accepted = [pool.submit(slow_upload, pair) for _ in range(4)]
        time.sleep(0.5)
        pair.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{pair.address}/readyz").status_code == 503)
        assert httpx.get(f"{pair.address}/livez").status_code == 200
        assert classify(pair) == 200
        refusals: list[Future[httpx.Response]] = []
        while pair.process.poll() is None:
            refusals.append(pool.submit(httpx.post, f"{pair.address}/classify", content=encoded(), timeout=30))
            time.sleep(0.2)
    assert [upload.result() for upload in accepted] == [200] * 4
    # Nobody is left waiting: a late request is answered, or its connection is refused.
    for refusal in refusals:
        error = refusal.exception()
        assert isinstance(error, httpx.TransportError) if error else refusal.result().status_code in {200, 503}
    assert any(not late.exception() and late.result().status_code == 503 for late in refusals)
    assert pair.process.returncode == 0
    assert not [line for line in pair.log.read_text().splitlines() if json.loads(line)["level"] == "error"]


def slow_upload(pair: Running) -> int:
    data = encoded()

    def parts() -> Iterator[bytes]:
        for part in (data[:100], data[100:200], data[200:]):
            yield part
            time.sleep(1.5)

    return httpx.post(f"{pair.address}/classify", content=parts(), timeout=30).status_code


def test_the_end_comes_within_the_grace_time(tiny_model: Path, tmp_path: Path) -> None:
    variables = {"TAILSTACK_DRAIN": "0", "TAILSTACK_GRACE": "2"}
    with running(tiny_model, tmp_path, **variables) as server, server.connect() as stuck:
        stuck.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
        time.sleep(0.3)
        server.process.terminate()
        try:
            # The default limit for a body that doesn't come is 30 seconds.
            server.process.wait(20)
        except subprocess.TimeoutExpired:
            pytest.fail("the server waits for a client that sends nothing")
