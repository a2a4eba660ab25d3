"""Our server beside the peers', over HTTP: the same file, pictures and cores, in short turns.

All servers are started once. Most of them rest while it isn't their turn; those that don't are stopped meanwhile. A
machine that is shared is a third slower now and then, for seconds or for minutes: only turns that are shorter than
that, and many, meet all servers alike.
"""

import http.client
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

import tailstack
from benchmarks.comparison_rows import HTTP, OPEN_LOOP, Row
from benchmarks.http_load import OK, Body, Load, LoadReport, form, in_folder, run_load
from benchmarks.latency import Percentiles, percentiles
from benchmarks.peer_server import Running, install, serve_peer, version
from benchmarks.peers.registry import PEERS
from benchmarks.served import serve
from benchmarks.wrk import Closed, run_wrk, turn_seconds
from tailstack.errors import UserError
from tailstack.progress import track

T = TypeVar("T")
OURS, CHEAPER = "tailstack", "tailstack, cheaper file"
CONCURRENCIES = (1, 8, 32)
OPEN_SHARE = 0.7
"""Of the weakest server's capacity: the rate of the open loop."""
OPEN_TURNS = 3
"""Length of a turn of the open loop, in turns of the closed one: a 99th percentile takes many requests."""
WARM_UP_S = 1.0
WARM_UP_CONCURRENCY = 8
"""At most: of more, a second has too few answers to tell from them how fast the server is."""
DRAIN = 1.5
"""How long a server is left alone after a load, as a multiple of the time in which it answers as many requests as that
left under way. They would take time from what is measured next. And one that is stopped in the middle of them takes
itself for slow: BentoML's dispatcher then refused half of what came next."""
_LABEL = re.compile(r'label[\\":\s]+([^"\\]+)')


@dataclass(frozen=True)
class Contestant:
    """One server, and how it is asked."""

    name: str
    version: str
    serve: Callable[[], AbstractContextManager[Running]]
    path: str
    bodies: list[Body]
    """What it is sent, in turn."""


@dataclass(frozen=True)
class Server:
    """A contestant that has been started."""

    contestant: Contestant
    running: Running
    restless: bool
    """Whether it is paused but for its turns."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run until the block ends."""
        if self.restless:
            self.running.resume()
        try:
            yield
        finally:
            if self.restless:
                self.running.pause()


@dataclass(frozen=True)
class Turn:
    """What one server did in one turn of the closed loop."""

    closed: Closed
    server_cpu_ms: float
    """A request."""


def contestants(
    names: Sequence[str],
    model: Path,
    cheaper: Path | None,
    pictures: Sequence[bytes],
    environments: Path,
    threads: int,
) -> list[Contestant]:
    """Return the servers in question, ours first; what isn't installed yet is.

    Args:
        names: peers, of `PEERS`.
        model: the file that all serve.
        cheaper: a file that ours serves besides.
        pictures: JPEGs.
        environments: folder of the peers' virtual environments.
        threads: threads of one inference in ours; peers take what they take.

    Raises:
        UserError: a peer can't be installed.
    """
    ours = {OURS: model, **({CHEAPER: cheaper} if cheaper else {})}
    found: list[Contestant] = []
    for name, file in ours.items():
        # No server logs requests here, where that can be set.
        running = partial(serve_ours, file, threads, TAILSTACK_REQUEST_LOG="errors")
        bodies = [form(picture) for picture in pictures]
        found.append(Contestant(name, tailstack.__version__, running, "/classify", bodies))
    for name in names:
        peer = PEERS[name]
        environment = install(peer, environments)
        serving = partial(serve_peer, peer, environment, model)
        bodies = [peer.body(picture) for picture in pictures]
        found.append(Contestant(name, version(peer, environment), serving, peer.path, bodies))
    return found


@contextmanager
def start(found: Sequence[Contestant]) -> Iterator[list[Server]]:
    """Start all servers, until the block ends; the restless ones are paused.

    Raises:
        UserError: one doesn't get ready.
    """
    with ExitStack() as stack:
        servers = []
        for contestant in track(found, "Starting the servers", len(found)):
            running = stack.enter_context(contestant.serve())
            server = Server(contestant, running, running.is_restless())
            if server.restless:
                running.pause()
                # One that is paused would not end.
                stack.callback(running.resume)
            servers.append(server)
        yield servers


def check_answers(servers: Sequence[Server]) -> None:
    """See that all servers of the same file give each picture the same label.

    Raises:
        UserError: one doesn't.
    """
    labels = {}
    for server in servers:
        with server.turn():
            contestant, port = server.contestant, server.running.port
            labels[contestant.name] = [_label(port, contestant, body) for body in contestant.bodies]
    for name, own in labels.items():
        others = [pair for pair in zip(labels[OURS], own, strict=True) if pair[0] != pair[1]]
        if others and name != CHEAPER:
            raise UserError(
                f"{name} gives {len(others)} of {len(own)} pictures another label than {OURS}, such as "
                f"{others[0][1]!r} instead of {others[0][0]!r}: they don't do the same work"
            )


def measure_closed(servers: Sequence[Server], rounds: int, seconds: float) -> list[Row]:
    """Measure every server at each concurrency, in turns."""
    turns: dict[tuple[str, int], list[Turn]] = defaultdict(list)
    for server in track(in_turns(servers, rounds), "Closed loop", rounds * len(servers)):
        contestant = server.contestant
        with server.turn():
            for concurrency in CONCURRENCIES:
                turn = closed_turn(server.running, contestant, concurrency, seconds)
                turns[contestant.name, concurrency].append(turn)
    rows = []
    for server in servers:
        for concurrency in CONCURRENCIES:
            own, ours = turns[server.contestant.name, concurrency], turns[OURS, concurrency]
            rows.append(_closed_row(server.contestant, concurrency, own, ours))
    return rows


def measure_open(servers: Sequence[Server], capacity: float, rounds: int, seconds: float) -> list[Row]:
    """Measure how long every server takes at `OPEN_SHARE` of a `capacity` in requests per second, in turns."""
    rate = max(1.0, round(OPEN_SHARE * capacity))
    reports: dict[str, list[tuple[LoadReport, float]]] = defaultdict(list)
    for server in track(in_turns(servers, rounds), f"Open loop, {rate:g} a second", rounds * len(servers)):
        with server.turn():
            reports[server.contestant.name].append(_open_turn(server, rate, OPEN_TURNS * seconds))
    found = [server.contestant for server in servers]
    return [_open_row(contestant, rate, reports[contestant.name], reports[OURS]) for contestant in found]


def capacity_of_weakest(rows: Sequence[Row]) -> float:
    """Return requests per second of the slowest server at the highest concurrency."""
    return min(row["images_per_second"] for row in rows if row["batch_or_concurrency"] == max(CONCURRENCIES))


def in_turns(servers: Sequence[T], rounds: int) -> Iterator[T]:
    """Yield every server once a round, each round beginning with another one."""
    for number in range(rounds):
        start = number % len(servers)
        yield from [*servers[start:], *servers[:start]]


@contextmanager
def serve_ours(model: Path, threads: int, workers: int = 1, **variables: str) -> Iterator[Running]:
    """Run our server until the block ends; arguments and errors are those of `benchmarks.served.serve`."""
    with serve(model, threads, workers, **variables) as served:
        yield Running(served.port, psutil.Process(served.process.pid))


def _label(port: int, server: Contestant, body: Body) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", server.path, body.content, {"content-type": body.content_type})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    found = _LABEL.search(text)
    if response.status != OK or found is None:
        raise UserError(f"{server.name} answered {response.status}: {text[:300]}")
    return found.group(1)


def closed_turn(running: Running, server: Contestant, concurrency: int, seconds: float) -> Turn:
    """Keep `concurrency` requests under way for some seconds, longer where the server is slow, after a warm-up."""
    url, few = f"http://127.0.0.1:{running.port}{server.path}", min(concurrency, WARM_UP_CONCURRENCY)
    warm = run_wrk(url, server.bodies, few, WARM_UP_S)
    _drain(few, warm)
    before = running.cpu_seconds()
    closed = run_wrk(url, server.bodies, concurrency, turn_seconds(seconds, concurrency, warm.pace))
    cpu = running.cpu_seconds() - before
    _drain(concurrency, closed)
    if closed.failures:
        print(f"{server.name}: {closed.failures} requests failed at concurrency {concurrency}", flush=True)
    answered = max(1.0, closed.images_per_second * closed.seconds)
    return Turn(closed, 1e3 * cpu / answered)


def pooled(turns: Sequence[Turn]) -> Percentiles:
    """Return percentiles of the answers of all turns, in milliseconds; there has to be one."""
    return percentiles(np.concatenate([turn.closed.milliseconds for turn in turns]))


def _drain(concurrency: int, load: Closed) -> None:
    """Let a server answer what a load left under way."""
    time.sleep(DRAIN * concurrency / load.pace)


def _open_turn(server: Server, rate: float, seconds: float) -> tuple[LoadReport, float]:
    """Return what the load saw, and the processor time that the server took for it in seconds."""
    contestant, running = server.contestant, server.running
    with in_folder([body.content for body in contestant.bodies]) as folder:
        kind = contestant.bodies[0].content_type
        load = partial(Load, running.port, folder, rate=rate, path=contestant.path, content_type=kind)
        run_load(load(seconds=WARM_UP_S))
        before = running.cpu_seconds()
        report = run_load(load(seconds=seconds))
        return report, running.cpu_seconds() - before


def _closed_row(server: Contestant, concurrency: int, own: Sequence[Turn], ours: Sequence[Turn]) -> Row:
    rates = [turn.closed.images_per_second for turn in own]
    if not any(rates):
        raise UserError(f"{server.name} answered no request at concurrency {concurrency}")
    pairs = zip(rates, (turn.closed.images_per_second for turn in ours), strict=True)
    taken = pooled(own)
    return Row(
        where=HTTP,
        system=server.name,
        version=server.version,
        batch_or_concurrency=concurrency,
        images_per_second=statistics.median(rates),
        p50_ms=taken["p50"],
        p99_ms=taken["p99"],
        server_cpu_ms_per_request=statistics.median(turn.server_cpu_ms for turn in own),
        relative_to_ours=statistics.median(rate / base for rate, base in pairs),
        rounds=rates,
    )


def _open_row(
    server: Contestant, rate: float, own: Sequence[tuple[LoadReport, float]], ours: Sequence[tuple[LoadReport, float]]
) -> Row:
    answered = sum(len(report.answers) for report, _ in own)
    if not answered:
        raise UserError(f"{server.name} answered none of {rate:g} requests a second: {own[0][0].failed()}")
    taken = percentiles(np.concatenate([report.milliseconds() for report, _ in own]))
    rates = [report.rate for report, _ in own]
    return Row(
        where=OPEN_LOOP,
        system=server.name,
        version=server.version,
        batch_or_concurrency=rate,
        images_per_second=statistics.median(rates),
        p50_ms=taken["p50"],
        p99_ms=taken["p99"],
        server_cpu_ms_per_request=1e3 * sum(cpu for _, cpu in own) / answered,
        relative_to_ours=statistics.median(a / b.rate for a, (b, _) in zip(rates, ours, strict=True)),
        rounds=rates,
    )
