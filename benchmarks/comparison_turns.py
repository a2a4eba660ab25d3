"""One turn of one server: a closed loop by wrk, or an open loop, after a warm-up, and with nothing left under way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.comparison_servers import Contestant
from benchmarks.http_load import Load, LoadReport, in_folder, run_load
from benchmarks.latency import Percentiles, percentiles
from benchmarks.peer_server import Running
from benchmarks.wrk import Closed, run_wrk, turn_seconds
from tailstack.errors import UserError

WARM_UP_S, LONG_WARM_UP_S = 1.0, 10.0
"""The second one is for a server that answers nothing in the first."""
WARM_UP_CONCURRENCY = 8
"""At most: of more, a second has too few answers to tell from them how fast the server is."""
DRAIN = 1.5
"""How long a server is left alone after a load, as a multiple of the time in which it answers as many requests as that
left under way. They would take time from what is measured next. And one that is stopped in the middle of them takes
itself for slow: BentoML's dispatcher then refused half of what came next."""
LONGEST_DRAIN_S = 30.0


@dataclass(frozen=True)
class Turn:
    """What one server did in one turn of the closed loop."""

    closed: Closed
    server_cpu_ms: float
    """A request, those included that it answered when the load had gone."""


@dataclass(frozen=True)
class OpenTurn:
    """What one server did in one turn of the open loop."""

    report: LoadReport
    server_cpu_s: float


def closed_turn(
    running: Running,
    server: Contestant,
    concurrency: int,
    seconds: float,
    share: float = 0.0,
    pace: float | None = None,
) -> Turn:
    """Keep `concurrency` requests under way for some seconds, longer where the server is slow, after a warm-up.

    Args:
        running: the server.
        server: how it is asked.
        concurrency: requests under way at a time.
        seconds: how long, at least.
        share: of the bodies, after which the first is sent.
        pace: requests a second that it has just answered, in a turn that spares it the warm-up; None warms it up.

    Raises:
        UserError: it can't be reached, or answers nothing in the warm-up, nor in a longer one.
    """
    url, bodies = f"http://127.0.0.1:{running.port}{server.path}", server.bodies_from(share)
    pace = pace or _warm_up(partial(run_wrk, url, bodies), min(concurrency, WARM_UP_CONCURRENCY))
    before = running.cpu_seconds()
    closed = run_wrk(url, bodies, concurrency, turn_seconds(seconds, concurrency, pace))
    _drain(concurrency, closed)
    cpu = running.cpu_seconds() - before
    if closed.failures:
        print(f"{server.name}: {closed.failures} requests failed at concurrency {concurrency}", flush=True)
    # What was under way when the load went is answered too.
    return Turn(closed, 1e3 * cpu / (closed.ended + concurrency))


def open_turn(
    running: Running, server: Contestant, rate: float, seconds: float, seed: int, share: float = 0.0
) -> OpenTurn:
    """Send `rate` requests a second at random for some seconds, after a warm-up.

    Args:
        running: the server.
        server: how it is asked.
        rate: requests a second.
        seconds: how long.
        seed: decides when each is sent.
        share: of the bodies, after which the first is sent.

    Raises:
        UserError: it answers nothing in the warm-up.
    """
    bodies = server.bodies_from(share)
    with in_folder([body.content for body in bodies]) as folder:
        kind = bodies[0].content_type
        load = partial(Load, running.port, folder, rate=rate, seed=seed, path=server.path, content_type=kind)
        # Two requests at least.
        warm = run_load(load(seconds=max(WARM_UP_S, 2 / rate)))
        if not warm.answers:
            raise UserError(f"it answered none of {rate:g} requests a second: {warm.failed()}")
        before = running.cpu_seconds()
        report = run_load(load(seconds=seconds))
        return OpenTurn(report, running.cpu_seconds() - before)


def pooled(turns: Sequence[Turn]) -> Percentiles | None:
    """Return percentiles of the answers of all turns, in milliseconds; None where there is none."""
    taken = np.concatenate([turn.closed.milliseconds for turn in turns])
    return percentiles(taken) if len(taken) else None


def failed_share(turns: Sequence[Turn]) -> float:
    """Return the share of the requests of all turns that failed."""
    ended = sum(turn.closed.ended for turn in turns)
    return sum(turn.closed.failures for turn in turns) / ended if ended else 1.0


def _warm_up(load: Callable[[int, float], Closed], concurrency: int) -> float:
    """Return how many requests a second a server ends."""
    for seconds in (WARM_UP_S, LONG_WARM_UP_S):
        warm = load(concurrency, seconds)
        _drain(concurrency, warm)
        if warm.images_per_second:
            return warm.pace
    raise UserError(f"it answered no request in {LONG_WARM_UP_S:g} s, with {concurrency} under way")


def _drain(concurrency: int, load: Closed) -> None:
    """Let a server answer what a load left under way."""
    time.sleep(min(LONGEST_DRAIN_S, DRAIN * concurrency / load.pace))
