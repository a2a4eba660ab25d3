"""What a data set of iNaturalist's shape takes: seconds and memory.

    python benchmarks/scale.py

Makes a datastore of 1,000,000 small images and 8,142 classes, and measures, each in a process of its own: opening it,
an imbalanced variant of it, workers that read from it, and the figures of its test split. Memory is the most that the
process ever held, what it imports included; of workers, what each holds alone.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from jsonargparse import ArgumentParser

from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.report import machine_line, table
from benchmarks.scale_data import TESTED, make_datastore
from tailstack import datastore as datastores
from tailstack.files import make_folder, write_json, write_text
from tailstack.metrics import evaluate

RATIO = 0.0005
WORKERS = 2
READ = 50_000
"""Images that the workers read, from all over the training split."""
BATCH = 250
RESOLUTION = 96
Figures = dict[str, Any]
LIMITS = {"open": {"seconds": 10, "peak_gb": 1}, "variant": {"seconds": 60}}
"""What we want to keep to."""


def open_datastore(folder: Path) -> Figures:
    """Open and check the datastore."""
    start = time.perf_counter()
    store = datastores.load(folder)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "images": sum(len(split) for _, split in store.splits()), "classes": len(store.classes)}


def make_variant(folder: Path) -> Figures:
    """Write an imbalanced variant of the datastore."""
    from training.prepare import prepare  # noqa: PLC0415 (what it imports is its own, not the other steps')
    from training.settings import PrepareSettings  # noqa: PLC0415 (the same)

    start = time.perf_counter()
    prepare(PrepareSettings(source=str(folder), output=folder, imbalance=[RATIO]))
    return {"seconds": time.perf_counter() - start}


def read_in_workers(folder: Path) -> Figures:
    """Decode images of the training split in worker processes, as `fit` does when pixels don't fit into memory."""
    from training.dataset import Batches, BatchKey, StreamedPixels, batch_loader  # noqa: PLC0415 (as above: torch)

    # As `fit` has it by default; here the way in which this very process was started would be taken over.
    multiprocessing.set_start_method("fork", force=True)
    train = datastores.load(folder).train
    drawn = np.random.default_rng(0).permutation(len(train))[:READ]
    keys = [BatchKey(drawn[start : start + BATCH], 0) for start in range(0, len(drawn), BATCH)]
    batches = Batches(StreamedPixels(train, (RESOLUTION, RESOLUTION)), train.labels)
    start = time.perf_counter()
    loader = iter(batch_loader(batches, keys, WORKERS))
    next(loader)
    first = _own_memory()
    read = BATCH + sum(len(labels) for _, labels in loader)
    return {
        "seconds": time.perf_counter() - start,
        "images": read,
        "workers": len(first),
        "own_mb_at_first": max(first) / 1e6,
        "own_mb_at_last": max(_own_memory()) / 1e6,
        "pixels_gb_if_kept": len(train) * RESOLUTION**2 * 3 / 1e9,
    }


def compute_figures(num_classes: int) -> Figures:
    """Compute every figure of a test split's probabilities."""
    labels = np.repeat(np.arange(num_classes), TESTED)
    probabilities = np.random.default_rng(0).random((len(labels), num_classes), dtype=np.float32)
    probabilities[np.arange(len(labels)), labels] += np.linspace(0, 1, len(labels), dtype=np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    start = time.perf_counter()
    evaluate(probabilities, labels, [str(c) for c in range(num_classes)], np.full(num_classes, 10))
    return {"seconds": time.perf_counter() - start, "probabilities_gb": probabilities.nbytes / 1e9}


def measure(images: int, num_classes: int) -> dict[str, Figures]:
    """Make the data set, and return the figures of each step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "datastore"
        print(f"Making {images} files …", flush=True)
        make_datastore(folder, images, num_classes)
        steps: dict[str, Callable[[], Figures]] = {
            "open": lambda: in_own_process(open_datastore, folder),
            "variant": lambda: in_own_process(make_variant, folder),
            "workers": lambda: in_own_process(read_in_workers, folder),
            "metrics": lambda: in_own_process(compute_figures, num_classes),
        }
        figures = {}
        for step, run in steps.items():
            figures[step] = run()
            print(step, {key: round(value, 3) for key, value in figures[step].items()}, flush=True)
        return figures


def in_own_process(function: Callable[..., Figures], *arguments: Any) -> Figures:
    """Run `function` in a fresh process, and add the most memory that this one held: `peak_gb`."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, *arguments).result()


def markdown(report: Mapping[str, Any]) -> str:
    """Return the page."""
    steps = report["steps"]
    workers = steps["workers"]
    rows = [
        ["open and check the datastore", *_cells(steps["open"], "open")],
        [f"a variant of ratio {RATIO:g}", *_cells(steps["variant"], "variant")],
        [f"{workers['workers']} workers decode {workers['images']} images", *_cells(workers, "workers")],
        [f"figures of {steps['metrics']['probabilities_gb']:.2f} GB of probabilities", *_cells(steps["metrics"], "")],
    ]
    title = f"{steps['open']['images']:,} images, {steps['open']['classes']:,} classes"
    text = (
        f"A worker held {workers['own_mb_at_first']:.0f} MB of its own after its first batch and "
        f"{workers['own_mb_at_last']:.0f} MB after its last: it doesn't copy the datastore. All pixels at "
        f"{RESOLUTION}x{RESOLUTION} would take {workers['pixels_gb_if_kept']:.0f} GB; each batch decodes its own."
    )
    header = ("", "seconds", "at most", "peak memory, GB", "at most")
    return "\n\n".join(["# Large data", table(header, rows, title), text, machine_line(report)]) + "\n"


def main() -> None:
    """Parse the command line, measure, print, and write the report."""
    parser = ArgumentParser(exit_on_error=False, prog="python benchmarks/scale.py", description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=8142)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder for scale.json and .md")
    arguments = parser.parse_args()
    output = make_folder(arguments.output)
    others = OtherLoad()
    steps = measure(arguments.images, arguments.classes)
    machine = {**describe_machine("no model", 1), "cores_of_others": round(others.cores(), 2)}
    report = {"steps": steps, "limits": LIMITS, "machine": machine}
    write_json(output / "scale.json", report)
    write_text(output / "scale.md", markdown(report))
    print(markdown(report))


def _with_peak(function: Callable[..., Figures], *arguments: Any) -> Figures:
    figures = function(*arguments)
    # Unlike the peak that getrusage tells, this one doesn't have the parent's in it.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return {**figures, "peak_gb": kilobytes * 1024 / 1e9}


def _own_memory() -> list[int]:
    """Return the bytes that each child of this process shares with no other."""
    return [child.memory_full_info().uss for child in psutil.Process().children()]


def _cells(figures: Figures, step: str) -> list[str]:
    limits = LIMITS.get(step, {})
    return [
        f"{figures['seconds']:.1f}",
        str(limits.get("seconds", "")),
        f"{figures['peak_gb']:.2f}",
        str(limits.get("peak_gb", "")),
    ]
