"""How busy `python -m serving score` keeps the processor: its images per second beside those of bare inference.

    python benchmarks/scoring.py --source cifar50.zip --model models/ensemble.onnx

Bare inference is the same model on batches that are decoded and in memory, on as many threads. It takes its turn before
and after each pass over the source, and a pass is compared with the mean of its two neighbours.
"""

import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.report import machine_line, show, table
from serving.runtime import Model
from serving.score import ScoreSettings, Summary, score
from serving.score_source import open_source
from serving.scorer import cores
from tailstack.errors import UserError
from tailstack.files import make_folder, sha256, write_json, write_text
from tailstack.images import ImageError, Pixels, decode


@dataclass
class ScoringSettings:
    """Measure `python -m serving score` beside bare inference."""

    source: str
    """What to score; every kind of source."""
    model: Path = Path("models/ensemble.onnx")
    """The file to score with."""
    batch_size: int = ScoreSettings.batch_size
    """Images of one inference."""
    rounds: int = 2
    """Passes over the source."""
    seconds: float = 15.0
    """Length of a turn of bare inference."""
    output: Path = Path("benchmarks/results")
    """Folder for scoring.json and scoring.md."""


@dataclass(frozen=True)
class Pass:
    """One pass over the source."""

    summary: Summary
    seconds: float
    """With listing the source and loading the model."""
    cores: float
    """Cores that this process kept busy while it scored."""


def measure_scoring(settings: ScoringSettings) -> dict[str, Any]:
    """Measure, and return the report.

    Raises:
        UserError: the source or the model can't be used, or a setting makes no sense.
    """
    if settings.rounds < 1 or settings.seconds <= 0:
        raise UserError("--rounds has to be 1 or more, and --seconds above 0")
    model = Model.load(settings.model, "auto", cores(), settings.batch_size)
    pixels = _first_batch(settings.source, model, settings.batch_size)
    others = OtherLoad()
    bare, passes = [_bare_rate(model, pixels, settings.seconds)], []
    for _ in range(settings.rounds):
        passes.append(_score(settings))
        bare.append(_bare_rate(model, pixels, settings.seconds))
    neighbours = [statistics.mean(pair) for pair in pairwise(bare)]
    return {
        "images": passes[0].summary.images,
        "errors": passes[0].summary.errors,
        "bare": statistics.median(bare),
        "score": statistics.median(one.summary.rate for one in passes),
        "ratio": statistics.median(one.summary.rate / base for one, base in zip(passes, neighbours, strict=True)),
        "ratio_with_start": statistics.median(
            one.summary.images / one.seconds / base for one, base in zip(passes, neighbours, strict=True)
        ),
        "cores_busy": statistics.median(one.cores for one in passes),
        "rounds": {"bare": bare, "score": [one.summary.rate for one in passes]},
        "model": {"file": str(settings.model), "sha256": sha256(settings.model)},
        "machine": {**describe_machine(model.engine.provider, 1), "cores_of_others": round(others.cores(), 2)},
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the page."""
    rows = [
        ["images, and those with an error", f"{report['images']}, {report['errors']}"],
        ["bare inference, images/s", f"{report['bare']:.1f}"],
        ["`score`, images/s", f"{report['score']:.1f}"],
        ["share of bare inference", f"{report['ratio']:.3f}"],
        ["the same, with listing the source and loading the model", f"{report['ratio_with_start']:.3f}"],
        ["cores busy while scoring", f"{report['cores_busy']:.2f}"],
    ]
    return "\n\n".join(["# Scoring", table(("", "figure"), rows, "Speed"), machine_line(report)]) + "\n"


def _first_batch(source: str, model: Model, size: int) -> Pixels:
    images = []
    for item in open_source(source).items(0, 4 * size):
        try:
            images.append(decode(item.read(), model.artifact.image_size))
        except ImageError:
            continue
    if not images:
        raise UserError(f"{source} doesn't begin with images")
    return np.stack([images[number % len(images)] for number in range(size)])


def _bare_rate(model: Model, pixels: Pixels, seconds: float) -> float:
    """Return images per second of the same batch again and again, in as many threads as the model has slots."""
    begin = time.perf_counter()

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() - begin < seconds:
            model.classify(pixels, alone=False)
            done += len(pixels)
        return done

    with ThreadPoolExecutor(model.slots) as pool:
        images = sum(pool.map(work, range(model.slots)))
    return images / (time.perf_counter() - begin)


def _score(settings: ScoringSettings) -> Pass:
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), _cpu_seconds()
        summary = score(ScoreSettings(settings.source, folder, settings.model, batch_size=settings.batch_size))
        seconds = time.perf_counter() - start
        return Pass(summary, seconds, (_cpu_seconds() - cpu) / seconds)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def main() -> None:
    """Parse the command line, measure, write the report, and print it."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False, prog="python benchmarks/scoring.py", description=ScoringSettings.__doc__
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")
    parser.add_class_arguments(ScoringSettings)
    values = parser.parse_args().as_dict()
    values.pop("config")
    settings = ScoringSettings(**values)
    # A folder that can't be written is found before minutes of measuring.
    output = make_folder(settings.output)
    report = measure_scoring(settings)
    text = markdown(report)
    write_json(output / "scoring.json", report)
    write_text(output / "scoring.md", text)
    show(text)
