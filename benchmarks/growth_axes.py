"""How cost grows: with learners, the batch, classes, pixels, requests under way and workers.

    python benchmarks/growth.py --model models/ensemble.onnx

Learners, classes and pixels are those of untrained files, made on the spot, with one thing changed at a time; the batch
size and HTTP are measured with your own file. Writes growth.json, growth.md and growth.png, anew after each part.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks.growth_files import Plan, build_files
from benchmarks.growth_http import CONCURRENCIES, measure_concurrency
from benchmarks.growth_process import BATCH_VALUES, measure_batches, measure_files
from benchmarks.growth_report import draw, markdown
from benchmarks.growth_rows import Row
from benchmarks.machine import cores_of_others, describe_machine
from benchmarks.picture import synthetic_picture
from benchmarks.predictors import OnnxModel
from benchmarks.report import show
from benchmarks.wrk import check_wrk
from tailstack.errors import UserError
from tailstack.files import make_folder, write_json, write_text


@dataclass
class GrowthSettings:
    """Measure how cost grows with learners, the batch, classes, pixels, requests under way and workers."""

    model: Path = Path("models/ensemble.onnx")
    """The file whose batch sizes are measured, and that is served. A cascade sees noise, which costs it the most; over
    HTTP, one picture again and again."""
    architecture: str = "tf_efficientnet_lite0"
    """The learner whose number, classes and pixels grow."""
    http: bool = True
    """Whether to measure over HTTP too, which needs wrk."""
    output: Path = Path("benchmarks/results")
    """Folder for growth.json, growth.md and growth.png."""
    rounds: int = 3
    """Turns of each value."""
    seconds: float = 5.0
    """Length of a turn over HTTP, longer where the server is slow; in process it is a fifth."""


def run_growth(
    settings: GrowthSettings,
    plan: Plan | None = None,
    batches: tuple[int, ...] = BATCH_VALUES,
    concurrencies: tuple[int, ...] = CONCURRENCIES,
) -> tuple[list[Row], dict[str, Any]]:
    """Measure, write what is measured after each part, and return the rows and the machine.

    Args:
        settings: of the measurement.
        plan: values of learners, classes and pixels; None takes the default ones of the architecture.
        batches: batch sizes.
        concurrencies: requests under way over HTTP.

    Raises:
        UserError: the model is missing, the architecture doesn't exist, or wrk isn't installed.
    """
    if settings.rounds < 1 or settings.seconds <= 0:
        raise UserError("--rounds has to be 1 or more, and --seconds above 0")
    if settings.http:
        check_wrk()
    # A folder that can't be written is found before minutes of measuring.
    make_folder(settings.output)
    cores = len(os.sched_getaffinity(0))
    model = OnnxModel.load(settings.model, cores)
    machine = {**describe_machine(model.provider, cores), "cores_of_others": cores_of_others()}
    seconds = settings.seconds / 5
    with tempfile.TemporaryDirectory() as folder:
        files = build_files(plan or Plan(settings.architecture), Path(folder))
        rows = measure_files(files, cores, settings.rounds, seconds)
    rows += measure_batches(model, batches, settings.rounds, seconds)
    _write(settings, rows, machine)
    if settings.http:
        rows += measure_concurrency(model.path, synthetic_picture(), concurrencies, settings.rounds, settings.seconds)
        _write(settings, rows, machine)
    return rows, machine


def _write(settings: GrowthSettings, rows: Sequence[Row], machine: Mapping[str, Any]) -> None:
    write_json(settings.output / "growth.json", rows)
    write_text(settings.output / "growth.md", markdown(rows, settings.architecture, machine))
    draw(rows, settings.output / "growth.png")


def main() -> None:
    """Parse the command line, measure, write the report, and print it."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, prog="python benchmarks/growth.py", description=GrowthSettings.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")
    parser.add_class_arguments(GrowthSettings)
    values = parser.parse_args().as_dict()
    values.pop("config")
    settings = GrowthSettings(**values)
    rows, machine = run_growth(settings)
    show(markdown(rows, settings.architecture, machine))
