"""The queueing model beside the real server: loads that come at random, at shares of what the server manages."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http_load import Load, run_load
from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.picture import make_picture
from benchmarks.queueing import Replica
from benchmarks.served import serve
from serving.runtime import check_model
from tailstack.files import sha256
from tailstack.progress import track
from tailstack.session import CPU

USES = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Loads, as shares of the largest."""
_CONCURRENCY = 16
_WARM_UP = 64


def check_server(model: Path, seconds: float) -> dict[str, Any]:
    """Measure the delay of one server on the CPU at several loads, beside what the model says.

    Args:
        model: the file to serve.
        seconds: length of each load.

    Raises:
        UserError: the file can't be served.
    """
    check_model(model)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, serve(model, cores) as served:
        image = str(make_picture(Path(folder)))
        run_load(Load(served.port, image, requests=_WARM_UP, concurrency=_CONCURRENCY))
        others = OtherLoad()
        before = served.cpu_seconds()
        alone = run_load(Load(served.port, image, seconds=seconds))
        most = run_load(Load(served.port, image, seconds=seconds, concurrency=_CONCURRENCY))
        replica = Replica(most.rate, cores, alone.median_ms() / 1e3)
        rows, known = [], alone.cpu_seconds + most.cpu_seconds
        total = alone.seconds + most.seconds
        for number, use in enumerate(track(USES, "Loads", len(USES))):
            report = run_load(Load(served.port, image, seconds=seconds, rate=use * replica.rate, seed=number))
            known += report.cpu_seconds
            total += report.seconds
            rows.append(_row(replica, use, report.milliseconds(), len(report.failures)))
        known += served.cpu_seconds() - before
    return {
        "rate": replica.rate,
        "latency_ms": 1e3 * replica.latency,
        "loads": rows,
        "model": {"file": str(model), "sha256": sha256(model)},
        "machine": {
            **describe_machine(CPU, cores),
            "cores_of_others": round(max(0.0, others.cores() - known / total), 2),
        },
    }


def _row(
    replica: Replica, use: float, taken: "np.ndarray[Any, np.dtype[np.float64]]", failures: int
) -> dict[str, float]:
    load = use * replica.rate
    return {
        "use": use,
        "images": len(taken),
        "failures": failures,
        "mean_ms": float(taken.mean()),
        "mean_ms_model": 1e3 * (replica.latency + replica.wait(load)),
        "p99_ms": float(np.percentile(taken, 99)),
        "p99_ms_model": 1e3 * replica.quantile(load, 0.99),
    }
