"""The load: a process of its own that posts pictures again and again over connections that stay open.

`run_load` starts it; the process reads a `Load` from its standard input and prints a `LoadReport`, both as JSON. It
speaks only as much HTTP as it has to, because what it takes of the processor is taken from the server.
"""

import asyncio
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop

from tailstack.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
OK = 200
_BOUNDARY = "tailstack-load"
_HEAD_END = b"\r\n\r\n"
_MOST_CONNECTIONS = 512
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Body:
    """What a request brings."""

    content_type: str
    content: bytes


@dataclass(frozen=True)
class Load:
    """What is sent: so many requests at a time, or so many a second."""

    port: int
    image: str
    """File of the picture; of the whole body, where there is a `content_type`. A folder has several, sent in turn."""
    seconds: float = 0.0
    """How long; 0 goes by `requests`."""
    requests: int = 0
    """How many, where `seconds` is 0."""
    concurrency: int = 1
    """Requests under way at a time, each over a connection of its own; not used where there is a `rate`."""
    rate: float = 0.0
    """Requests a second, whether or not those before are answered; 0 waits for them."""
    seed: int | None = None
    """Where there is a `rate`: None sends evenly; else at random (a Poisson process), drawn from this."""
    path: str = "/classify"
    """Where it is sent."""
    content_type: str = ""
    """Of the body; empty makes a form of the picture."""
    host: str = "127.0.0.1"
    """Where the port is."""
    key: str = field(default="", repr=False)
    """API key; empty sends none."""


@dataclass
class LoadReport:
    """What came back."""

    begun: float = 0.0
    """When the first request was sent, by `time.perf_counter`, which all processes of a machine share."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Processor time of the load's own process."""
    answers: list[tuple[float, float]] = field(default_factory=list)
    """Of each request answered with 200: when it began (seconds since the first), and how long it took (seconds)."""
    failures: list[tuple[float, str]] = field(default_factory=list)
    """Of each other one: when it failed, and the status or what happened to its connection."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answers) / self.seconds

    def rate_without_load(self, cores: int) -> float:
        """Answers a second if the load had run on other cores than the `cores` that it shared with the server."""
        return len(self.answers) / (self.seconds - self.cpu_seconds / cores)

    def milliseconds(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """Return how long each answered request took."""
        return np.array([taken for _, taken in self.answers]) * 1e3

    def median_ms(self) -> float:
        """Return the median of `milliseconds`, of which there has to be one."""
        return statistics.median(taken for _, taken in self.answers) * 1e3

    def failed(self) -> dict[str, int]:
        """Return how many requests failed in which way."""
        return dict(Counter(kind for _, kind in self.failures))


@contextmanager
def in_folder(contents: Sequence[bytes]) -> Iterator[str]:
    """Write pictures or bodies into a folder that a `Load` takes as its `image`, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(contents):
            (Path(folder) / f"{number:04}").write_bytes(content)
        yield folder


def start_load(load: Load) -> "subprocess.Popen[str]":
    """Start the process; `finish_load` waits for it."""
    command = [sys.executable, "-m", "benchmarks.http_load"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(load)))
    process.stdin.close()
    process.stdin = None
    return process


def finish_load(process: "subprocess.Popen[str]") -> LoadReport:
    """Wait for the report of a process that `start_load` started.

    Raises:
        UserError: the process failed; why, it has written to the standard error.
    """
    output, _ = process.communicate()
    if process.returncode:
        raise UserError(f"the process that sends the load failed, with exit code {process.returncode}: see above")
    return LoadReport(**json.loads(output))


def run_load(load: Load) -> LoadReport:
    """Send a load from a process of its own, and wait for it. There may be no answer in the report.

    Raises:
        UserError: the process failed.
    """
    return finish_load(start_load(load))


def run_answered_load(load: Load) -> LoadReport:
    """Send a load as `run_load` does, for figures that there are only of answers.

    Raises:
        UserError: the process failed, or no request was answered.
    """
    report = run_load(load)
    if not report.answers:
        raise UserError(f"the server answered none of {len(report.failures)} requests: {report.failed()}")
    return report


class _Connection(asyncio.Protocol):
    """One connection, with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[str] | None = None
        self._received = bytearray()
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio declares any transport; a connection's is always this one.
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def ask(self, request: bytes) -> "asyncio.Future[str]":
        """Send a request; the result is its status, or what happened to the connection."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._received.clear()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_HEAD_END)
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        length = head.partition(b"content-length:")[2].split(b"\r\n")[0].strip()
        if not length.isdigit():
            self._finish("no content-length")
            return
        if len(self._received) >= end + len(_HEAD_END) + int(length):
            self._finish(head[9:12].decode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._finish(type(exc).__name__ if exc else "connection closed")

    def _finish(self, outcome: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(outcome)


class _Sender:
    """Sends the requests of one load."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = itertools.cycle(_requests(load))
        self._idle: list[_Connection] = []
        self._connections = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._begin = time.perf_counter()
        self.report = LoadReport()

    async def send(self) -> None:
        """Send the load, and complete the report."""
        before = _cpu_seconds()
        self.report.begun = self._begin = time.perf_counter()
        await (self._at_rate() if self._load.rate else self._at_a_time())
        self.report.seconds = time.perf_counter() - self._begin
        self.report.cpu_seconds = _cpu_seconds() - before

    async def _at_a_time(self) -> None:
        left = self._load.requests

        async def keep_asking() -> None:
            nonlocal left
            while time.perf_counter() - self._begin < self._load.seconds or left > 0:
                left -= 1
                await self._ask(time.perf_counter())

        await asyncio.gather(*(keep_asking() for _ in range(self._load.concurrency)))

    async def _at_rate(self) -> None:
        asking = set()
        for after in due_times(self._load):
            due = self._begin + after
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self._ask(due))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)

    async def _ask(self, due: float) -> None:
        """Ask once. A request that is late because others are slow has waited since it was `due`."""
        async with self._connections:
            try:
                connection = await self._connect()
                outcome = await asyncio.wait_for(connection.ask(next(self._requests)), _PATIENCE_S)
            except (OSError, TimeoutError) as error:
                self._fail(type(error).__name__)
                return
        if connection.open:
            self._idle.append(connection)
        if outcome == str(OK):
            self.report.answers.append((due - self._begin, time.perf_counter() - due))
        else:
            self._fail(outcome)

    async def _connect(self) -> _Connection:
        while self._idle:
            if (idle := self._idle.pop()).open:
                return idle
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._load.host, self._load.port)
        return connection

    def _fail(self, kind: str) -> None:
        self.report.failures.append((time.perf_counter() - self._begin, kind))


def due_times(load: Load) -> list[float]:
    """Return when requests are due, in seconds since the beginning."""
    count = int(load.seconds * load.rate)
    if load.seed is None:
        return [number / load.rate for number in range(count)]
    gaps = np.random.default_rng(load.seed).exponential(1 / load.rate, count)
    return [float(time) for time in np.cumsum(gaps)]


def form(picture: bytes, field: str = "image") -> Body:
    """Return a form with a picture, as curl and browsers send it."""
    head = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="{field}"; filename="picture.jpg"\r\n'
    head += "content-type: image/jpeg\r\n\r\n"
    content = head.encode() + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Body(f"multipart/form-data; boundary={_BOUNDARY}", content)


def _requests(load: Load) -> list[bytes]:
    """Return the bytes of each request."""
    path = Path(load.image)
    contents = [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    bodies = [Body(load.content_type, content) if load.content_type else form(content) for content in contents]
    return [_request(load, body) for body in bodies]


def _request(load: Load, body: Body) -> bytes:
    host = f"[{load.host}]" if ":" in load.host else load.host
    lines = (
        f"POST {load.path} HTTP/1.1",
        f"host: {host}:{load.port}",
        *([f"x-api-key: {load.key}"] if load.key else []),
        f"content-type: {body.content_type}",
        f"content-length: {len(body.content)}",
    )
    return "\r\n".join(lines).encode() + _HEAD_END + body.content


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _main() -> None:
    sender = _Sender(Load(**json.load(sys.stdin)))
    uvloop.run(sender.send())
    json.dump(asdict(sender.report), sys.stdout)


if __name__ == "__main__":
    _main()
