"""What serving costs: throughput, latency, time to ready and memory of the server, beside the bare decode + inference.

    python benchmarks/serving.py --model models/ensemble.onnx --output results/serving

Both run in turns in one run, so that what else the machine does falls on both, and ratios and differences are those of
a round's pair. The load comes from a process on the same cores; figures "without load" leave out the processor time
that this process took. `--soak MINUTES` does instead what `benchmarks.serving_soak` describes.
"""

import itertools
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks.http_load import Load, LoadReport, in_folder, run_answered_load, run_load
from benchmarks.in_process import InProcess
from benchmarks.machine import OtherLoad, cores_of_others, describe_machine
from benchmarks.picture import choose_pictures
from benchmarks.predictors import OnnxModel
from benchmarks.report import show
from benchmarks.served import Served, serve
from benchmarks.serving_report import markdown, soak_markdown
from benchmarks.serving_soak import run_soak
from tailstack.errors import UserError
from tailstack.files import make_folder, sha256, write_json, write_text
from tailstack.progress import track

WARM_UP = 64


@dataclass
class ServingSettings:
    """Measure the server: requests per second and milliseconds beside the bare decode + inference, start, memory."""

    model: Path = Path("models/ensemble.onnx")
    """The file to serve."""
    image: Path | None = None
    """The picture to send; the default is a JPEG of 500x375, made on the spot."""
    datastore: Path | None = None
    """Folder whose test photos are sent instead, in turn: what a cascade costs depends on the photo."""
    output: Path | None = None
    """Folder for serving.json and serving.md, or for soak.json, soak.md and soak.png."""
    threads: int = 0
    """Threads of one inference; 0 takes one a core."""
    concurrency: int = 16
    """Requests under way at a time where throughput is measured."""
    rounds: int = 5
    """Turns of each system."""
    seconds: float = 10.0
    """Length of a turn."""
    requests: int = 10_000
    """Requests after which memory is read."""
    starts: int = 3
    """Starts whose time is taken."""
    soak: float = 0.0
    """Minutes of a soak, which takes the place of the other measurements; 0 makes none."""


@dataclass(frozen=True)
class Turn:
    """One system's turn of one round."""

    in_process: LoadReport
    http: LoadReport


def measure_serving(settings: ServingSettings, output: Path | None) -> dict[str, Any]:
    """Measure, and return the report.

    Args:
        settings: of the measurement.
        output: folder for a soak's figure; None draws none.

    Raises:
        UserError: the model can't be served or answers nothing, the picture can't be read, or a setting makes no sense.
    """
    if min(settings.rounds, settings.starts, settings.concurrency) < 1:
        raise UserError("--rounds, --starts and --concurrency have to be 1 or more")
    if settings.seconds <= 0 or settings.threads < 0:
        raise UserError("--seconds has to be above 0, and --threads 0 or more")
    if settings.image and settings.datastore:
        raise UserError("--image and --datastore: choose one")
    if settings.image and not settings.image.is_file():
        raise UserError(f"--image {settings.image} doesn't exist")
    cores = len(os.sched_getaffinity(0))
    threads = settings.threads or cores
    model = OnnxModel.load(settings.model, threads)
    pictures = [settings.image.read_bytes()] if settings.image else choose_pictures(settings.datastore, model.artifact)
    with in_folder(pictures) as folder:
        if settings.soak:
            figure = output / "soak.png" if output else None
            closed = Load(0, folder, seconds=settings.seconds, concurrency=settings.concurrency)
            busy = cores_of_others()
            report = run_soak(settings.model, threads, closed, settings.soak, figure) | {"cores_of_others": busy}
        else:
            reference = InProcess(model, itertools.cycle(pictures))
            ready = [_time_start(settings.model, threads) for _ in range(settings.starts - 1)]
            with serve(settings.model, threads) as served:
                report = _measure(served, reference, folder, settings, cores)
                report["ready_s"] = [*ready, served.ready_s]
    return {
        **report,
        "images": len(pictures),
        "image_bytes": round(statistics.mean(map(len, pictures))),
        "model": {"file": str(settings.model), "sha256": sha256(settings.model)},
        "machine": {**describe_machine(model.provider, threads), "cores_of_others": report.pop("cores_of_others")},
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
    }


def _measure(
    served: Served, reference: InProcess, images: str, settings: ServingSettings, cores: int
) -> dict[str, Any]:
    sent = run_answered_load(Load(served.port, images, requests=WARM_UP, concurrency=settings.concurrency))
    others, start, cpu = OtherLoad(), time.perf_counter(), served.cpu_seconds()
    turns: dict[int, list[Turn]] = {settings.concurrency: [], 1: []}
    for _ in track(range(settings.rounds), "Rounds", settings.rounds):
        for concurrency, done in turns.items():
            bare = reference.run(settings.seconds, concurrency)
            load = Load(served.port, images, seconds=settings.seconds, concurrency=concurrency)
            done.append(Turn(bare, run_answered_load(load)))
    loads = [turn.http for done in turns.values() for turn in done]
    cpu = served.cpu_seconds() - cpu
    known = (cpu + sum(load.cpu_seconds for load in loads)) / (time.perf_counter() - start)
    loads.append(sent)
    answered = sum(len(load.answers) for load in loads)
    if answered < settings.requests:
        left = Load(served.port, images, requests=settings.requests - answered, concurrency=settings.concurrency)
        loads.append(run_load(left))
    return {
        "throughput": _throughput(turns[settings.concurrency], settings.concurrency, cores),
        "latency_ms": _latency(turns[1]),
        "server_cpu_ms": 1e3 * cpu / sum(len(turn.http.answers) for done in turns.values() for turn in done),
        "memory_mib": {
            "requests": sum(len(load.answers) for load in loads),
            "workers": list(served.memory_mib().values()),
        },
        "failures": sum(len(load.failures) for load in loads),
        "cores_of_others": round(max(0.0, others.cores() - known), 2),
    }


def _throughput(turns: list[Turn], concurrency: int, cores: int) -> dict[str, Any]:
    bare = [turn.in_process.rate for turn in turns]
    http = [turn.http.rate for turn in turns]
    without = [turn.http.rate_without_load(cores) for turn in turns]
    return {
        "concurrency": concurrency,
        "in_process": statistics.median(bare),
        "http": statistics.median(http),
        "http_without_load": statistics.median(without),
        "ratio": statistics.median(ours / base for ours, base in zip(http, bare, strict=True)),
        "ratio_without_load": statistics.median(ours / base for ours, base in zip(without, bare, strict=True)),
        "load_cpu_ms": statistics.median(1e3 * turn.http.cpu_seconds / len(turn.http.answers) for turn in turns),
        "rounds": {"in_process": bare, "http": http, "http_without_load": without},
    }


def _latency(turns: list[Turn]) -> dict[str, Any]:
    bare = [turn.in_process.median_ms() for turn in turns]
    http = [turn.http.median_ms() for turn in turns]
    p99 = float(np.percentile(np.concatenate([turn.http.milliseconds() for turn in turns]), 99))
    return {
        "in_process": statistics.median(bare),
        "http": statistics.median(http),
        "above": statistics.median(ours - base for ours, base in zip(http, bare, strict=True)),
        "http_p99": p99,
        "rounds": {"in_process": bare, "http": http},
    }


def _time_start(model: Path, threads: int) -> float:
    with serve(model, threads) as served:
        return served.ready_s


def main() -> None:
    """Parse the command line, measure, write the report, and print it."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False, prog="python benchmarks/serving.py", description=ServingSettings.__doc__
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")
    parser.add_class_arguments(ServingSettings)
    values = parser.parse_args().as_dict()
    values.pop("config")
    settings = ServingSettings(**values)
    # A folder that can't be written is found before minutes of measuring.
    output = make_folder(settings.output) if settings.output else None
    report = measure_serving(settings, output)
    name, text = ("soak", soak_markdown(report)) if settings.soak else ("serving", markdown(report))
    if output:
        write_json(output / f"{name}.json", report)
        write_text(output / f"{name}.md", text)
    show(text)
