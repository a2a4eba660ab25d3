"""A server under measurement: the command that users type, in its own process."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.http_load import OK, ROOT
from tailstack.errors import UserError

START_LIMIT_S = 120.0
_LOOK_S = 0.01
_WORKER = "_bentoml_impl.worker.service"
MIB = 2**20


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    port: int
    process: psutil.Process
    ready_s: float
    """From its start to its first 200 on /readyz."""

    def workers(self) -> list[psutil.Process]:
        """Return the processes that hold a model; none where the server has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in self.process.children() if is_worker(child)]
        return []

    def memory_mib(self) -> dict[int, float]:
        """Return each worker's memory by process id, in MiB: pages that several share count in parts."""
        sizes = {}
        for worker in self.workers():
            try:
                sizes[worker.pid] = worker.memory_full_info().pss / MIB
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue  # it ended between the listing and the look
        return sizes

    def cpu_seconds(self) -> float:
        """Return the processor time of the workers so far."""
        times = [worker.cpu_times() for worker in self.workers()]
        return float(sum(time.user + time.system for time in times))

    def metrics(self) -> str:
        """Return what /metrics shows."""
        return _get(self.port, "/metrics")[1]


@contextmanager
def serve(model: Path, threads: int, workers: int = 1, **variables: str) -> Iterator[Served]:
    """Run `bentoml serve` until the block ends.

    Args:
        model: the file.
        threads: threads of one inference; 0 shares the cores among the workers.
        workers: processes.
        variables: other settings of the server, by the names of their environment variables.

    Raises:
        UserError: it doesn't get ready; the message has the end of its log.
    """
    port = free_port()
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "BENTOML_DO_NOT_TRACK": "True",
        "TAILSTACK_MODEL": str(model.resolve()),
        "TAILSTACK_THREADS": str(threads),
        "TAILSTACK_WORKERS": str(workers),
        **variables,
    }
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            if not _gets_ready(process, port, start):
                log.seek(0)
                raise UserError(f"the server did not get ready: {log.read()[-1000:]}")
            yield Served(port, psutil.Process(process.pid), time.perf_counter() - start)
        finally:
            process.terminate()
            process.wait()


def _gets_ready(process: "subprocess.Popen[bytes]", port: int, start: float) -> bool:
    while time.perf_counter() - start < START_LIMIT_S and process.poll() is None:
        with contextlib.suppress(OSError):
            if get_status(port, "/readyz") == OK:
                return True
        time.sleep(_LOOK_S)
    return False


def free_port() -> int:
    """Return a port on which nobody listens yet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def get_status(port: int, path: str) -> int:
    """Return the status that a GET is answered with.

    Raises:
        OSError: nobody listens, or the connection breaks.
    """
    return _get(port, path)[0]


def _get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is one of BentoML's that hold a model."""
    try:
        return _WORKER in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
