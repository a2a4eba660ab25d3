"""What the real server does with so many requests under way, and the queueing model made of that beside the server.

The model is checked with loads that come at random, at shares of what the server manages. Processor time is that of the
server's processes, and what of it is inference that of full batches on one thread, outside the server.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http_load import Load, LoadReport, in_folder, run_answered_load
from benchmarks.latency import cycling, time_in_turns
from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.picture import choose_pictures
from benchmarks.predictors import OnnxModel
from benchmarks.queueing import Replica
from benchmarks.served import Served, serve
from serving.runtime import check_model
from serving.settings import ServerSettings
from tailstack.files import sha256
from tailstack.images import decode
from tailstack.progress import track
from tailstack.session import CPU

INSIDE = (1, 2, 4, 8, 16)
"""Requests that are kept under way."""
USES = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Loads, as shares of the largest."""
ROUNDS = 3
"""Each measures the server anew before it loads it: on a shared machine its speed changes by the minute."""
_WARM_UP = 64


@dataclass(frozen=True)
class _Round:
    """What one round saw."""

    closed: dict[int, LoadReport]
    """By requests under way."""
    server_ms: dict[int, float]
    """Processor time of the server for an image, likewise."""
    inference_ms: float
    """What an image takes without the server: in full batches, on one thread."""
    open: dict[float, LoadReport]
    """By load, as a share of the largest."""

    @property
    def replica(self) -> Replica:
        """The queue that the closed loops make."""
        return Replica.measured({inside: report.rate for inside, report in self.closed.items()})


def check_server(model: Path, datastore: Path | None, seconds: float) -> dict[str, Any]:
    """Measure one server on the CPU: rate and cost by requests under way, and delay by load, beside the model's.

    Args:
        model: the file to serve.
        datastore: folder whose test photos are sent in turn; None sends one picture, made on the spot.
        seconds: length of each load that comes at random; the others take a third of it.

    Raises:
        UserError: the file can't be served or answers nothing under a load, or it is a cascade and there is no
            datastore.
    """
    check_model(model)
    cores, bare = len(os.sched_getaffinity(0)), OnnxModel.load(model, threads=1)
    pictures = choose_pictures(datastore, bare.artifact)
    infer = partial(_inference_ms, bare, pictures)
    with in_folder(pictures) as images, serve(model, cores) as served:
        run_answered_load(Load(served.port, images, requests=_WARM_UP, concurrency=max(INSIDE)))
        others, start, busy = OtherLoad(), time.perf_counter(), served.cpu_seconds()
        rounds = [_measure(served, infer, images, seconds, number) for number in track(range(ROUNDS), "Rounds", ROUNDS)]
        loads = [report for done in rounds for report in (*done.closed.values(), *done.open.values())]
        known = served.cpu_seconds() - busy + sum(report.cpu_seconds for report in loads)
        elsewhere = others.cores() - known / (time.perf_counter() - start)
    return {
        "inside": [_inside(rounds, inside, cores) for inside in INSIDE],
        "inference_ms": statistics.median(done.inference_ms for done in rounds),
        "loads": [_beside_the_model(rounds, use) for use in USES],
        "model": {"file": str(model), "sha256": sha256(model)},
        "machine": {**describe_machine(CPU, cores), "cores_of_others": round(max(0.0, elsewhere), 2)},
    }


def _measure(served: Served, infer: Callable[[float], float], images: str, seconds: float, number: int) -> _Round:
    closed, server_ms = {}, {}
    for inside in INSIDE:
        busy = served.cpu_seconds()
        closed[inside] = run_answered_load(Load(served.port, images, seconds=seconds / 3, concurrency=inside))
        server_ms[inside] = 1e3 * (served.cpu_seconds() - busy) / len(closed[inside].answers)
    done = _Round(closed, server_ms, infer(seconds / 3), {})
    for use in USES:
        rate = use * done.replica.rate
        done.open[use] = run_answered_load(Load(served.port, images, seconds=seconds, rate=rate, seed=number))
    return done


def _inside(rounds: Sequence[_Round], inside: int, cores: int) -> dict[str, float]:
    return {
        "images": inside,
        "rate": statistics.median(done.closed[inside].rate for done in rounds),
        "rate_without_load": statistics.median(done.closed[inside].rate_without_load(cores) for done in rounds),
        "server_ms": statistics.median(done.server_ms[inside] for done in rounds),
    }


def _inference_ms(model: OnnxModel, pictures: Sequence[bytes], seconds: float) -> float:
    batch = ServerSettings().max_batch
    sent = itertools.islice(itertools.cycle(pictures), max(batch, len(pictures)))
    pixels = np.stack([decode(picture, model.artifact.image_size) for picture in sent])
    calls = {"": cycling(model.predict, pixels, batch)}
    [timings] = time_in_turns(calls, pixels[:batch], rounds=1, seconds=seconds)
    return 1e3 / timings[""].images_per_second()


def _beside_the_model(rounds: Sequence[_Round], use: float) -> dict[str, float]:
    """Return medians over the rounds; `mean_ratio` and `p99_ratio` are those of each round's own ratio."""
    taken = [done.open[use].milliseconds() for done in rounds]
    figures = {
        "mean": (
            [float(delays.mean()) for delays in taken],
            [1e3 * done.replica.mean(use * done.replica.rate) for done in rounds],
        ),
        "p99": (
            [float(np.percentile(delays, 99)) for delays in taken],
            [1e3 * done.replica.quantile(use * done.replica.rate, 0.99) for done in rounds],
        ),
    }
    row: dict[str, float] = {
        "use": use,
        "images": sum(map(len, taken)),
        "failures": sum(len(done.open[use].failures) for done in rounds),
    }
    for name, (found, modelled) in figures.items():
        row[f"{name}_ms"] = statistics.median(found)
        row[f"{name}_ms_model"] = statistics.median(modelled)
        row[f"{name}_ratio"] = statistics.median(one / other for one, other in zip(found, modelled, strict=True))
    return row
