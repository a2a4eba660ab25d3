"""What learners, classes, pixels and the batch size cost, in this process, the values of an axis in turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.comparison_rows import IN_PROCESS, relative
from benchmarks.growth_files import Built
from benchmarks.growth_rows import BATCH, Row
from benchmarks.latency import Timing, time_in_turns
from benchmarks.predictors import OnnxModel, Predict, engine_predictor
from tailstack.engine import open_engine
from tailstack.images import Pixels, Size
from tailstack.progress import track

BATCHES = (1, 8)
"""Batch sizes at which learners, classes and pixels are measured: the delay of one image, and the throughput."""
BATCH_VALUES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class _Case:
    value: int
    predict: Predict
    images: Pixels


def measure_files(files: Mapping[tuple[str, int], Built], threads: int, rounds: int, seconds: float) -> list[Row]:
    """Measure the files of each axis.

    Args:
        files: by axis and value, as `benchmarks.growth_files.build_files` returns them.
        threads: threads of one inference.
        rounds: turns of each value.
        seconds: length of a turn.
    """
    rows = []
    for axis in dict.fromkeys(axis for axis, _ in files):
        part = {value: built for (name, value), built in files.items() if name == axis}
        predictors = {
            value: engine_predictor(open_engine(built.path, threads=threads)) for value, built in part.items()
        }
        for batch in BATCHES:
            cases = [
                _Case(value, predict, _noise(batch, (part[value].pixels, part[value].pixels)))
                for value, predict in predictors.items()
            ]
            rows += _measure(axis, cases, rounds, seconds)
    return rows


def measure_batches(model: OnnxModel, values: Sequence[int], rounds: int, seconds: float) -> list[Row]:
    """Measure a model at each batch size."""
    cases = [_Case(value, model.predict, _noise(value, model.artifact.image_size)) for value in values]
    return _measure(BATCH, cases, rounds, seconds)


def _measure(axis: str, cases: Sequence[_Case], rounds: int, seconds: float) -> list[Row]:
    calls = {str(case.value): _call(case) for case in cases}
    title = f"In process, {axis}" + ("" if axis == BATCH else f" at batch {len(cases[0].images)}")
    *_, timings = track(time_in_turns(calls, cases[0].images, rounds, seconds), title, rounds)
    own = [Timing(len(case.images), timings[str(case.value)].rounds) for case in cases]
    return [_row(axis, case.value, timing, own[0]) for case, timing in zip(cases, own, strict=True)]


def _call(case: _Case) -> Predict:
    """Return what answers the case's own images, whatever it is given: sizes differ along an axis."""
    return lambda _: case.predict(case.images)


def _noise(batch: int, size: Size) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def _row(axis: str, value: int, timing: Timing, first: Timing) -> Row:
    percentiles = timing.percentiles()
    return Row(
        where=IN_PROCESS,
        axis=axis,
        value=value,
        batch=timing.batch,
        workers=1,
        images_per_second=timing.images_per_second(),
        p50_ms=percentiles["p50"],
        p99_ms=percentiles["p99"],
        server_cpu_ms_per_request=None,
        refused=None,
        load_cores=None,
        relative_to_first=relative(timing.rates(), first.rates()),
    )
