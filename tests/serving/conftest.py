"""The real server, in its own process, on the exported tiny model."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 120
ADMIN_KEY = "the admin's"


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    address: str
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    def workers(self) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(self.process.pid).children()
            if child.status() != psutil.STATUS_ZOMBIE and "_bentoml_impl.worker.service" in child.cmdline()
        ]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20)


def serve_command(port: int, host: str = "127.0.0.1") -> list[str]:
    bentoml = Path(sys.executable).with_name("bentoml")
    return [str(bentoml), "serve", "--host", host, "--port", str(port)]


def serve_environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "BENTOML_DO_NOT_TRACK": "True", **variables}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(model: Path, folder: Path, host: str = "127.0.0.1", **variables: str) -> Iterator[Running]:
    """Start a server whose log is `folder/log`, wait until it is ready, and end it with the block."""
    port, log = free_port(), folder / "log"
    environment = serve_environment(TAILSTACK_MODEL=str(model), **variables)
    with log.open("w") as output:
        process = subprocess.Popen(serve_command(port, host), cwd=ROOT, env=environment, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, address, log)
        yield Running(address, port, process, log)
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def serving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with default settings but for a limit on bodies of 1 MB."""
    with running(tiny_model, tmp_path_factory.mktemp("server"), TAILSTACK_MAX_BYTES="1000000") as server:
        yield server


@pytest.fixture(scope="session")
def server(serving: Running) -> str:
    """The address of a running server."""
    return serving.address


def encoded(image_format: str = "PNG", size: tuple[int, int] = (48, 64), **options: object) -> bytes:
    """A noisy image of `size` (width, height)."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels), image_format, **options)


def saved(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


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
