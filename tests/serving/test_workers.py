"""Workers that are killed, and a server that is told to end."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Semaphore

import httpx
import pytest

from tests.serving.conftest import PATIENCE_S, Running, encoded, running, wait_for, web


@pytest.fixture
def pair(tiny_model: Path, tmp_path: Path) -> Iterator[Running]:
    """Two workers, in what BentoML takes for a container, where it wouldn't bring one back."""
    variables = {
        "TAILSTACK_WORKERS": "2",
        "TAILSTACK_DRAIN": "8",
        "TAILSTACK_GRACE": "60",
        "BENTOML_CONTAINERIZED": "true",
    }
    with running(tiny_model, tmp_path, host="0.0.0.0", **variables) as server:
        yield server


def classify(server: Running) -> int:
    return web.post(f"{server.address}/classify", content=encoded()).status_code


def requests_counted(server: Running) -> float:
    lines = web.get(f"{server.address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if 'tailstack_requests_total{method="POST"' in line)


def test_a_killed_worker_comes_back_and_the_end_is_orderly(pair: Running) -> None:
    wait_for(lambda: len(pair.workers()) == 2)
    first, second = pair.workers()
    # Each adds its own queue: both are up.
    wait_for(lambda: "tailstack_queue_capacity_images 256.0" in web.get(f"{pair.address}/metrics").text)
    assert [classify(pair) for _ in range(20)] == [200] * 20
    # A request is counted after its answer is sent.
    wait_for(lambda: requests_counted(pair) == 20)
    first.kill()
    wait_for(lambda: first not in pair.workers())
    # The other goes on meanwhile.
    assert [classify(pair) for _ in range(20)] == [200] * 20
    wait_for(lambda: len(pair.workers()) == 2)
    assert second in pair.workers()
    assert first not in pair.workers()
    assert [classify(pair) for _ in range(20)] == [200] * 20
    # The figures of all workers are added up, those of the dead one included.
    wait_for(lambda: requests_counted(pair) == 60)
    assert "without API keys" in pair.log.read_text()
    end_under_load(pair)


def end_under_load(pair: Running) -> None:
    sent, rest = Semaphore(0), Event()
    with ThreadPoolExecutor(8) as pool:
        # Their bodies are accepted before the signal, and whole long after it.
        accepted = [pool.submit(halting_upload, pair, sent, rest) for _ in range(4)]
        assert all(sent.acquire(timeout=PATIENCE_S) for _ in accepted)
        pair.process.send_signal(signal.SIGTERM)
        wait_for(lambda: web.get(f"{pair.address}/readyz").status_code == 503)
        assert web.get(f"{pair.address}/livez").status_code == 200
        assert classify(pair) == 200
        wait_for(lambda: refuses(pair))
        rest.set()
        refusals: list[Future[int]] = []
        while pair.process.poll() is None:
            refusals.append(pool.submit(classify, pair))
            time.sleep(0.2)
    assert [upload.result() for upload in accepted] == [200] * 4
    # Nobody is left waiting: a late request is answered, or its connection is refused.
    for refusal in refusals:
        error = refusal.exception()
        assert isinstance(error, httpx.TransportError) if error else refusal.result() in {200, 503}
    assert pair.process.returncode == 0
    assert not [line for line in pair.log.read_text().splitlines() if json.loads(line)["level"] == "error"]


def refuses(pair: Running) -> bool:
    # The worker without an upload ends first, and what it has not answered with it.
    with suppress(httpx.TransportError):
        return classify(pair) == 503
    return False


def halting_upload(pair: Running, sent: Semaphore, rest: Event) -> int:
    """Send the first part of an image, and the rest when it is time."""
    data = encoded()

    def parts() -> Iterator[bytes]:
        yield data[:100]
        sent.release()
        rest.wait(PATIENCE_S)
        yield data[100:]

    return web.post(f"{pair.address}/classify", content=parts()).status_code


def test_the_end_comes_within_the_grace_time(tiny_model: Path, tmp_path: Path) -> None:
    variables = {"TAILSTACK_DRAIN": "0", "TAILSTACK_GRACE": "2", "TAILSTACK_RECEIVE_TIMEOUT": "600"}
    with running(tiny_model, tmp_path, **variables) as server, server.connect() as stuck:
        stuck.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
        time.sleep(0.3)
        server.process.terminate()
        try:
            server.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail("the server waits for a client that sends nothing")
