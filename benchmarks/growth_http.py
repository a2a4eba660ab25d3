"""What requests under way and workers cost over HTTP: a closed loop by wrk, one number of workers after the other."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tailstack
from benchmarks.comparison_http import OURS, Contestant, Turn, closed_turn, in_turns, pooled, serve_ours
from benchmarks.comparison_rows import HTTP
from benchmarks.growth_rows import CONCURRENCY, Row, relative
from benchmarks.http_load import form
from tailstack.errors import UserError
from tailstack.progress import track

CONCURRENCIES = (1, 4, 16, 64, 256)
WORKERS = (1, 2)
_QUEUE = 1024
"""Images that a worker lets wait: with the server's own limit, the highest concurrencies would measure refusals."""


def measure_concurrency(
    model: Path, picture: bytes, concurrencies: Sequence[int], rounds: int, seconds: float
) -> list[Row]:
    """Measure our server at each concurrency, with one worker and with two.

    Args:
        model: the file that it serves.
        picture: a JPEG.
        concurrencies: requests under way at a time.
        rounds: turns of each number of workers.
        seconds: length of a turn at one concurrency; longer where the server is slow.

    Raises:
        UserError: the server doesn't get ready, or wrk isn't installed.
    """
    servers = {
        workers: Contestant(
            f"{OURS}, {workers} worker(s)",
            tailstack.__version__,
            partial(serve_ours, model, 0, workers, TAILSTACK_MAX_QUEUE=str(_QUEUE)),
            "/classify",
            [form(picture)],
        )
        for workers in WORKERS
    }
    turns: dict[tuple[int, int], list[Turn]] = {(workers, value): [] for workers in WORKERS for value in concurrencies}
    for workers in track(in_turns(WORKERS, rounds), "Over HTTP, workers in turns", rounds * len(WORKERS)):
        with servers[workers].serve() as running:
            for value in concurrencies:
                turns[workers, value].append(closed_turn(running, servers[workers], value, seconds))
    return [
        _row(value, workers, turns[workers, value], turns[workers, concurrencies[0]])
        for workers in WORKERS
        for value in concurrencies
    ]


def _row(concurrency: int, workers: int, own: Sequence[Turn], first: Sequence[Turn]) -> Row:
    rates = [turn.closed.images_per_second for turn in own]
    if not all(rates):
        raise UserError(f"in a whole turn at concurrency {concurrency} no request was answered: give it more --seconds")
    taken = pooled(own)
    return Row(
        where=HTTP,
        axis=CONCURRENCY,
        value=concurrency,
        batch=1,
        workers=workers,
        images_per_second=statistics.median(rates),
        p50_ms=taken["p50"],
        p99_ms=taken["p99"],
        server_cpu_ms_per_request=statistics.median(turn.server_cpu_ms for turn in own),
        refused=statistics.mean(_refused(turn) for turn in own),
        relative_to_first=relative(rates, [turn.closed.images_per_second for turn in first]),
    )


def _refused(turn: Turn) -> float:
    answered = turn.closed.images_per_second * turn.closed.seconds
    return turn.closed.failures / max(1.0, answered + turn.closed.failures)
