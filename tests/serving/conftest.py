"""The real server, in its own process, on the exported tiny model."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 120


def serve_command(port: int) -> list[str]:
    bentoml = Path(sys.executable).with_name("bentoml")
    return [str(bentoml), "serve", "--host", "127.0.0.1", "--port", str(port)]


def serve_environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "BENTOML_DO_NOT_TRACK": "True", **variables}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    environment = serve_environment(TAILSTACK_MODEL=str(tiny_model), TAILSTACK_MAX_BYTES="1000000")
    with log.open("w") as output:
        process = subprocess.Popen(serve_command(port), cwd=ROOT, env=environment, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, address, log)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"the server did not get ready:\n{log.read_text()}")
