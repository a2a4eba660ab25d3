"""What requests under way and workers cost over HTTP: a closed loop by wrk, one number of workers after the other."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

import tailstack
from benchmarks.comparison_http import in_turns
from benchmarks.comparison_rows import HTTP, relative
from benchmarks.comparison_servers import OURS, Contestant, serve_ours
from benchmarks.comparison_turns import Turn, closed_turn, failed_share, pooled
from benchmarks.growth_rows import CONCURRENCY, Row
from benchmarks.http_load import form
from benchmarks.wrk import Closed
from tailstack.errors import UserError
from tailstack.progress import track

CONCURRENCIES = (1, 4, 16, 64, 256)
WORKERS = (1, 2)
_QUEUE = 1024
"""Images that a worker lets wait: with the server's own limit, the highest concurrencies would measure refusals."""
_TIMEOUT_S = 600
"""In which the server has to answer: with its own limit, those of slow models would be refused too."""


def measure_concurrency(
    model: Path, picture: bytes, concurrencies: Sequence[int], rounds: int, seconds: float
) -> list[Row]:
    """Measure our server at each concurrency, with one worker and with two.

    A turn in which the server fails is one without an answer; the others count.

    Args:
        model: the file that it serves.
        picture: a JPEG.
        concurrencies: requests under way at a time.
        rounds: turns of each number of workers.
        seconds: length of a turn at one concurrency; longer where the server is slow.
    """
    turns: dict[tuple[int, int], list[Turn]] = {(workers, value): [] for workers in WORKERS for value in concurrencies}
    for _, workers in track(in_turns(WORKERS, rounds), "Over HTTP, workers in turns", rounds * len(WORKERS)):
        for value, turn in _round(_contestant(model, picture, workers), concurrencies, seconds).items():
            turns[workers, value].append(turn)
    return [
        _row(value, workers, turns[workers, value], turns[workers, concurrencies[0]])
        for workers in WORKERS
        for value in concurrencies
    ]


def _contestant(model: Path, picture: bytes, workers: int) -> Contestant:
    serving = partial(serve_ours, model, 0, workers, TAILSTACK_MAX_QUEUE=str(_QUEUE), TAILSTACK_TIMEOUT=str(_TIMEOUT_S))
    return Contestant(f"{OURS}, {workers} worker(s)", tailstack.__version__, serving, "/classify", [form(picture)])


def _round(server: Contestant, concurrencies: Sequence[int], seconds: float) -> dict[int, Turn]:
    """Return a turn for each concurrency, in one start of the server."""
    turns = {value: Turn(Closed(0.0, np.array([]), value, seconds, 0.0), 0.0) for value in concurrencies}
    try:
        with server.serve() as running:
            for value in concurrencies:
                turns[value] = closed_turn(running, server, value, seconds)
    except UserError as error:
        print(f"{server.name}: {error}", flush=True)
    return turns


def _row(concurrency: int, workers: int, own: Sequence[Turn], first: Sequence[Turn]) -> Row:
    rates, taken = [turn.closed.images_per_second for turn in own], pooled(own)
    # Where the server failed, there was no work to be measured.
    cost = [turn for turn in own if turn.closed.images_per_second] or own
    return Row(
        where=HTTP,
        axis=CONCURRENCY,
        value=concurrency,
        batch=1,
        workers=workers,
        images_per_second=statistics.median(rates),
        p50_ms=taken["p50"] if taken else None,
        p99_ms=taken["p99"] if taken else None,
        server_cpu_ms_per_request=statistics.median(turn.server_cpu_ms for turn in cost),
        refused=failed_share(own),
        load_cores=statistics.median(turn.closed.load_cores for turn in cost),
        relative_to_first=relative(rates, [turn.closed.images_per_second for turn in first]),
    )
