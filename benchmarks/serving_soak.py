"""The soak: minutes of load at 80% of what two workers can do, while the model is replaced and a worker is killed.

The load doesn't wait for answers, so that a stall shows as latency instead of as less load. The model file is replaced
`RELOADS` times in the first two thirds; then one of the two workers gets a SIGKILL.
"""

import bisect
import contextlib
import http.client
import math
import re
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure

from benchmarks.http_load import Load, LoadReport, finish_load, run_load, start_load
from benchmarks.latency import percentiles
from benchmarks.served import Served, serve
from tailstack.errors import UserError
from tailstack.files import whole_file

SHARE = 0.8
"""Of the capacity."""
RELOADS = 10
WORKERS = 2
AFTERMATH_S = 2.0
"""Failures in this time after the kill are put down to it."""
_SAMPLES = 300
_BINS = 90
_RELOADS_UNTIL, _KILL_AT = 0.67, 0.75
# An ONNX file is a protobuf message, and a field that follows it counts as part of it: field 6, the model's doc_string.
_DOC_STRING = b"\x32\x01"


@dataclass
class Watch:
    """What was seen and done during the soak; times are seconds since its begin."""

    begun: float = field(default_factory=time.perf_counter)
    memory: list[tuple[float, dict[int, float]]] = field(default_factory=list)
    """Samples of each worker's MiB by process id."""
    reloads: list[float] = field(default_factory=list)
    kill: float | None = None
    """None where no worker lived to be killed."""

    def shift(self, seconds: float) -> None:
        """Count all times from `seconds` before the begin."""
        self.begun -= seconds
        self.memory = [(at + seconds, sizes) for at, sizes in self.memory]
        self.reloads = [at + seconds for at in self.reloads]
        self.kill = None if self.kill is None else self.kill + seconds


def run_soak(model: Path, threads: int, closed: Load, minutes: float, figure: Path | None) -> dict[str, Any]:
    """Soak a server of two workers, and return the report.

    Args:
        model: the file, which is copied before it is replaced.
        threads: threads of one inference, to be shared by the workers.
        closed: the load whose rate is the capacity; its port doesn't count.
        minutes: how long.
        figure: PNG to draw; None draws none.

    Raises:
        UserError: the server answers nothing before anything is done to it.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / model.name
        shutil.copy(model, copy)
        with serve(copy, max(1, threads // WORKERS), WORKERS) as served:
            capacity = run_load(replace(closed, port=served.port)).rate
            if not capacity:
                raise UserError("the server answers nothing: there is no load to soak it with")
            rate = SHARE * capacity
            load = start_load(Load(served.port, closed.image, seconds=60 * minutes, rate=rate))
            watch = _watch(served, copy, 60 * minutes)
            answered = finish_load(load)
            watch.shift(watch.begun - answered.begun)
            loaded = _reloads_loaded(served)
    if figure:
        _draw(answered, watch, figure)
    return _summary(answered, watch) | {"minutes": minutes, "capacity": capacity, "rate": rate, "models_loaded": loaded}


def _watch(served: Served, model: Path, seconds: float) -> Watch:
    """Sample memory until the end, and do what is due."""
    watch, content = Watch(), model.read_bytes()
    due = [seconds * _RELOADS_UNTIL * (number + 1) / RELOADS for number in range(RELOADS)]
    while (now := time.perf_counter() - watch.begun) < seconds:
        watch.memory.append((now, served.memory_mib()))
        if len(watch.reloads) < RELOADS and now >= due[len(watch.reloads)]:
            with whole_file(model) as part:
                part.write_bytes(content + _DOC_STRING + b"%d" % (len(watch.reloads) % 10))
            watch.reloads.append(now)
        if watch.kill is None and now >= seconds * _KILL_AT and (workers := served.workers()):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                workers[0].kill()
                watch.kill = now
        time.sleep(seconds / _SAMPLES)
    return watch


def _summary(answered: LoadReport, watch: Watch) -> dict[str, Any]:
    kill = math.inf if watch.kill is None else watch.kill
    by_kill = [at for at, _ in answered.failures if kill <= at <= kill + AFTERMATH_S]
    taken = percentiles(answered.milliseconds()) if answered.answers else None
    last = set(watch.memory[-1][1])
    survivors = set(watch.memory[0][1]) & last
    course = [sizes[pid] for _, sizes in watch.memory for pid in survivors if pid in sizes]
    tenth = max(1, len(course) // 10)
    return {
        "requests": len(answered.answers) + len(answered.failures),
        "failures": answered.failed(),
        "failures_by_kill": len(by_kill),
        "failures_else": len(answered.failures) - len(by_kill),
        "latency_ms": {"p50": taken["p50"] if taken else None, "p99": taken["p99"] if taken else None},
        "reloads": len(watch.reloads),
        # None where no worker lived to be killed.
        "killed_at_s": watch.kill,
        "workers_at_the_end": len(last),
        # None where no worker lived from the beginning to the end.
        "memory_mib": {
            "first_tenth": median(course[:tenth]) if course else None,
            "last_tenth": median(course[-tenth:]) if course else None,
            "most": max(course, default=None),
        },
        "memory_course": [[round(at, 1), list(sizes.values())] for at, sizes in watch.memory],
    }


def _reloads_loaded(served: Served) -> int | None:
    """Return how many times a worker took a new model, from /metrics; None where nobody tells."""
    try:
        metrics = served.metrics()
    except (OSError, http.client.HTTPException):
        return None
    found = re.findall(r'^tailstack_reloads_total\{outcome="loaded"\} (\S+)', metrics, re.MULTILINE)
    return round(sum(map(float, found)))


def _draw(answered: LoadReport, watch: Watch, path: Path) -> None:
    figure = Figure(figsize=(9, 7), layout="constrained")
    memory, latency, failures = figure.subplots(3, 1, sharex=True)
    for number, pid in enumerate(dict.fromkeys(pid for _, sizes in watch.memory for pid in sizes)):
        course = [(at / 60, sizes[pid]) for at, sizes in watch.memory if pid in sizes]
        memory.plot(*zip(*course, strict=True), label=f"worker {number + 1}")
    memory.set(ylabel="memory, MiB (PSS)", ylim=(0, None))
    if memory.lines:
        memory.legend(loc="lower right")
    minutes, bins = _in_bins(answered)
    for share, name in ((50, "median"), (99, "99 %")):
        latency.plot(minutes, [np.percentile(taken, share) if taken else np.nan for taken in bins], label=name)
    latency.set(ylabel="ms", yscale="log")
    latency.legend(loc="upper right")
    failures.hist(
        [at / 60 for at, _ in answered.failures], bins=_BINS, range=(0, answered.seconds / 60), color="tab:red"
    )
    failures.set(ylabel="failed requests", xlabel="minutes", ylim=(0, None))
    for axes in (memory, latency, failures):
        for at in watch.reloads:
            axes.axvline(at / 60, color="grey", linewidth=0.6, linestyle=":")
        if watch.kill is not None:
            axes.axvline(watch.kill / 60, color="tab:red", linewidth=0.8)
    figure.suptitle("Dotted: the model is replaced. Red: a worker is killed.")
    figure.savefig(path, dpi=120)


def _in_bins(answered: LoadReport) -> tuple[list[float], list[list[float]]]:
    """Return the bins' begins in minutes, and the milliseconds of the requests that began in each."""
    edges = [answered.seconds * number / _BINS for number in range(_BINS)]
    bins: list[list[float]] = [[] for _ in edges]
    for at, taken in answered.answers:
        bins[bisect.bisect_right(edges, at) - 1].append(1e3 * taken)
    return [edge / 60 for edge in edges], bins
