"""The real server, in its own process, on the exported tiny model."""

import io
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
START_LIMIT_S = 120
ADMIN_KEY = "the admin's"
PATIENCE_S = 120
"""How long a test waits for what has to happen: a loaded machine takes long, and that is no failure."""
PORTS = range(10_000, 32_000)
"""Below those that the kernel gives to connections, so that none takes a port before the server does."""


def new_client(**options: Any) -> httpx.Client:
    """Return a client that is patient, and that never meets a connection which a server has closed meanwhile."""
    return httpx.Client(timeout=PATIENCE_S, limits=httpx.Limits(max_keepalive_connections=0), **options)


web = new_client()


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    address: str
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    def workers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if _is_worker(child)]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)


def serve_command(port: int, host: str = "127.0.0.1") -> list[str]:
    bentoml = Path(sys.executable).with_name("bentoml")
    return [str(bentoml), "serve", "--host", host, "--port", str(port)]


def serve_environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "TAILSTACK_TUNE": "off", **variables}


def free_port() -> int:
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


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
        process.wait(PATIENCE_S)


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


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "_bentoml_impl.worker.service" in process.cmdline()
    # It ended between the two looks.
    except psutil.NoSuchProcess:
        return False


def _wait_until_ready(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if web.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"the server did not get ready:\n{log.read_text()}")
