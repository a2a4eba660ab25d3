"""What an image costs in each form of one run's ensemble, and what it is worth: accuracy against time.

    python benchmarks/cost.py runs/photos

Each learner alone, all of them (plain), the cascade, 8-bit integers and both, also with a drop of 0.1 points at most,
and the student if there is one, in fp32 and int8, in ONNX Runtime and in OpenVINO, and the plain ensemble in PyTorch:
in turns, on the same test photos, at batch 1 and 8, on one thread and on two. What counts is the median over rounds of
the ratio to the cheapest learner alone. Writes cost.json, cost.md and cost.png.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnx
from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks.cost_report import draw, markdown
from benchmarks.latency import Timing, time_in_turns
from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.predictors import OnnxModel, Predict, Probabilities, engine_predictor, torch_predictor
from benchmarks.report import show
from export.cheaper import Wanted
from export.export import export
from export.fusion import fuse
from export.graph import build_learner_graph
from export.run_forms import RunForms
from export.validation import count_batches, pixel_batches, spread
from tailstack import datastore as datastores
from tailstack.artifact import LEARNER_PROBABILITIES, PROBABILITIES
from tailstack.blend import Blend
from tailstack.datastore import Split
from tailstack.engine import Runtime, open_engine
from tailstack.errors import UserError
from tailstack.files import make_folder, write_json, write_text
from tailstack.images import Pixels
from tailstack.metrics import evaluate
from tailstack.network import load_learner
from tailstack.progress import track
from tailstack.remote import fetch
from tailstack.run import ENSEMBLE_FILE, RunRecord, student_folder

BATCHES = (1, 8)
THREADS = (1, 2)
PHOTOS = 64
"""Test photos of one turn. A cascade takes longer for some than for others: its mean over so many is unsure by 5%."""
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
ONNX, TORCH = RUNTIMES[0], "torch"
STRICT_DROP = 0.1
"""Points that an int8 cascade may cost on validation, besides one of the drop that is asked for."""


class Row(TypedDict):
    """One variant, measured one way."""

    variant: str
    runtime: str
    threads: int
    batch: int
    ms_per_image: float
    relative_to_lite0_fp32: float
    """Cost as a multiple of the cheapest learner alone, in fp32 and ONNX Runtime."""
    top1: float
    few: float | None
    ece: float
    learners_used: float


@dataclass
class CostSettings:
    """Measure what an image costs, and what it is worth, in each form of one run's ensemble."""

    run: Path
    """Folder that `python -m training fit` wrote."""
    output: Path = Path("benchmarks/results")
    """Folder for cost.json, cost.md and cost.png."""
    max_accuracy_drop: float = 0.3
    """Points that the cascade and int8 may cost on validation."""
    images: int = 0
    """Test images, spread over the split, that accuracy is measured on; 0 takes all."""
    rounds: int = 5
    """Turns of each variant."""
    seconds: float = 1.0
    """Length of a turn, at least."""


@dataclass(frozen=True)
class Worth:
    """Accuracy of one variant on the test photos."""

    top1: float
    few: float | None
    ece: float
    learners_used: float


Answer = Callable[[Pixels], tuple[Probabilities, float]]
"""Probabilities of a batch, and the mean number of learners that saw an image of it."""


def run_costs(settings: CostSettings, folder: Path) -> list[Row]:
    """Make every variant's file in `folder`, and measure them all.

    Raises:
        UserError: the run isn't finished, its data set is gone, or a setting makes no sense.
    """
    if settings.rounds < 1 or settings.seconds < 0 or settings.images < 0:
        raise UserError("--rounds has to be 1 or more, and --seconds and --images 0 or more")
    record = RunRecord.load(settings.run)
    test = datastores.load(Path(record.datastore["path"])).test
    files = build_variants(settings.run, record, folder, settings.max_accuracy_drop)
    answers: dict[tuple[str, str], Answer] = {
        (name, runtime): _answer(path, runtime) for runtime in RUNTIMES for name, path in files.items()
    }
    answers["plain", TORCH] = _torch_answer(files["plain"], settings.run, len(record.learners))
    worths = measure_worth(answers, spread(test, settings.images or len(test)), record)
    photos = np.concatenate(list(pixel_batches(spread(test, PHOTOS), record.image_size)))
    rows = []
    for threads in THREADS:
        systems: dict[tuple[str, str], Predict] = {
            (name, runtime): engine_predictor(open_engine(path, runtime, "cpu", threads))
            for runtime in RUNTIMES
            for name, path in files.items()
        }
        systems["plain", TORCH] = torch_predictor(OnnxModel.load(files["plain"], threads), settings.run, threads)
        for batch in BATCHES:
            timings = _time(systems, photos, batch, settings)
            rows += _rows(timings, worths, threads, batch, [learner.name for learner in record.learners])
    return rows


def ensemble_forms(max_accuracy_drop: float) -> dict[str, Wanted]:
    """Return the forms of the whole ensemble by name."""
    drop = max_accuracy_drop
    forms = {
        "plain": Wanted(),
        "cascade": Wanted(cascade=True, max_accuracy_drop=drop),
        "int8": Wanted(precision="int8", max_accuracy_drop=drop),
        "int8 cascade": Wanted(cascade=True, precision="int8", max_accuracy_drop=drop),
    }
    if drop > STRICT_DROP:
        strict = Wanted(cascade=True, precision="int8", max_accuracy_drop=STRICT_DROP)
        forms[f"int8 cascade {STRICT_DROP:g}"] = strict
    return forms


def build_variants(run: Path, record: RunRecord, folder: Path, max_accuracy_drop: float) -> dict[str, Path]:
    """Write the file of each learner alone, of each form of the ensemble but what the gate refuses, and of a student.

    RUN-student and RUN-taught are taken where they are there: `python -m export RUN --student ARCHITECTURE` makes them,
    the latter with --cascade.

    Raises:
        UserError: a run isn't finished or its data set is gone, a form without loss of accuracy can't be made, or a
            store can't be read.
    """
    files = {}
    for learner in record.learners:
        graph = build_learner_graph(load_learner(run, learner, len(record.classes)), record.image_size)
        alone = fuse([graph], Blend((1.0,), 1.0), None, record.image_size, len(record.classes))
        files[learner.name] = folder / f"{learner.name}.onnx"
        onnx.save(alone, files[learner.name])
    forms = {name: (run, wanted) for name, wanted in ensemble_forms(max_accuracy_drop).items()}
    student, taught = (student_folder(run, keep_others=keep) for keep in (False, True))
    if _is_finished(student):
        forms["student"] = (student, Wanted())
        forms["int8 student"] = (student, forms["int8"][1])
    if _is_finished(taught):
        cascades = [name for name in forms if name.startswith("int8 cascade")]
        forms |= {f"{name}, student first": (taught, forms[name][1]) for name in cascades}
    made = {source: RunForms.load(source) for source in dict.fromkeys(source for source, _ in forms.values())}
    for name, (source, wanted) in forms.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        try:
            export(source, path, wanted, forms=made[source])
        except UserError as error:
            if wanted.plain:
                raise
            print(f"without {name}: {error}", flush=True)
            continue
        files[name] = path
    return files


def _is_finished(run: Path) -> bool:
    return (fetch(run, missing_ok=True) / ENSEMBLE_FILE).exists()


def measure_worth(
    answers: Mapping[tuple[str, str], Answer], test: Split, record: RunRecord
) -> dict[tuple[str, str], Worth]:
    """Classify the same test photos with every variant."""
    found: dict[tuple[str, str], list[tuple[Probabilities, float]]] = {key: [] for key in answers}
    for images in track(pixel_batches(test, record.image_size), "Accuracy", count_batches(test)):
        for key, answer in answers.items():
            found[key].append(answer(images))
    counts = np.array(record.class_counts)
    worths = {}
    for key, parts in found.items():
        accuracy = evaluate(np.concatenate([part for part, _ in parts]), test.labels, record.classes, counts)
        used = np.average([count for _, count in parts], weights=[len(part) for part, _ in parts])
        worths[key] = Worth(accuracy["top1"], accuracy["few"], accuracy["ece"], float(used))
    return worths


def main() -> None:
    """Parse the command line, measure, write the report, and print it."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="python benchmarks/cost.py", description=CostSettings.__doc__)
    parser.add_argument("run", type=Path, help="folder that `python -m training fit` wrote")
    parser.add_class_arguments(CostSettings, skip={"run"})
    settings = CostSettings(**parser.parse_args().as_dict())
    output = make_folder(settings.output)
    others = OtherLoad()
    with tempfile.TemporaryDirectory() as folder:
        rows = run_costs(settings, Path(folder))
    machine = {**describe_machine("CPUExecutionProvider", max(THREADS)), "cores_of_others": round(others.cores(), 2)}
    text = markdown(rows, machine)
    write_json(output / "cost.json", rows)
    write_text(output / "cost.md", text)
    draw(rows, output / "cost.png")
    show(text)


def _answer(path: Path, runtime: Runtime) -> Answer:
    engine = open_engine(path, runtime, "cpu")

    def answer(images: Pixels) -> tuple[Probabilities, float]:
        probabilities, votes = engine.run(images, (PROBABILITIES, LEARNER_PROBABILITIES))
        return probabilities, float(votes.any(axis=2).sum(axis=1).mean())

    return answer


def _torch_answer(path: Path, run: Path, learners: int) -> Answer:
    predict = torch_predictor(OnnxModel.load(path, max(THREADS)), run, max(THREADS))
    return lambda images: (predict(images), float(learners))


def _time(
    systems: Mapping[tuple[str, str], Predict], photos: Pixels, batch: int, settings: CostSettings
) -> dict[tuple[str, str], Timing]:
    """Time all photos, in batches, in every system, in turns."""
    keys = {" in ".join(key): key for key in systems}
    whole = {name: _in_batches(systems[key], batch) for name, key in keys.items()}
    *_, timings = track(
        time_in_turns(whole, photos, settings.rounds, settings.seconds), f"Cost at batch {batch}", settings.rounds
    )
    return {key: timings[name] for name, key in keys.items()}


def _in_batches(predict: Predict, batch: int) -> Predict:
    return lambda images: np.concatenate(
        [predict(images[start : start + batch]) for start in range(0, len(images), batch)]
    )


def _rows(
    timings: Mapping[tuple[str, str], Timing],
    worths: Mapping[tuple[str, str], Worth],
    threads: int,
    batch: int,
    learners: list[str],
) -> list[Row]:
    medians = {key: statistics.median(np.concatenate(timing.rounds)) for key, timing in timings.items()}
    base = timings[min(((name, ONNX) for name in learners), key=lambda key: medians[key])]
    return [
        Row(
            variant=variant,
            runtime=runtime,
            threads=threads,
            batch=batch,
            ms_per_image=float(medians[variant, runtime] * 1e3 / timing.batch),
            relative_to_lite0_fp32=base.speed_over(timing),
            top1=worth.top1,
            few=worth.few,
            ece=worth.ece,
            learners_used=worth.learners_used,
        )
        for (variant, runtime), timing in timings.items()
        for worth in [worths[variant, runtime]]
    ]
