"""What one exported file is worth: accuracy on a test split, latency and throughput, beside the same learners in torch.

python benchmarks/eval.py --model models/ensemble.onnx --datastore data/photos --against torch --output results
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jsonargparse import ArgumentParser, set_parsing_settings
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.latency import Timing, time_in_turns
from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.predictors import OnnxModel, Predict, Probabilities, openvino_predictor, torch_predictor
from benchmarks.report import markdown, timing_figures
from tailstack import datastore as datastores
from tailstack.artifact import Artifact
from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.files import make_folder, sha256, write_json, write_text
from tailstack.images import Pixels, peek_size
from tailstack.metrics import Accuracy, Labels, SetFigures, evaluate, set_figures
from tailstack.progress import track

BATCHES = (1, 8, 32)
ACCURACY_BATCH = 32
PEERS: dict[str, Callable[[OnnxModel, Path | None, int], Predict]] = {
    "torch": torch_predictor,
    "openvino": lambda model, _run, threads: openvino_predictor(model.path, threads),
}
"""What the file can be measured against."""


@dataclass
class EvalSettings:
    """Measure an exported file: accuracy on the test split, latency and images per second at batch 1, 8 and 32."""

    datastore: Path
    """Folder whose test split is classified."""
    model: Path = Path("models/ensemble.onnx")
    """The file that `python -m export` wrote."""
    against: list[str] = field(default_factory=list)
    """Names in `PEERS`."""
    run: Path | None = None
    """Folder of the run with torch's weights; the default is the one that the file names."""
    output: Path | None = None
    """Folder for eval.json and eval.md."""
    threads: int = 0
    """Threads of one inference; 0 takes one a core."""
    rounds: int = 5
    """Turns of each system at each batch size."""
    seconds: float = 1.0
    """Length of a turn."""


@dataclass(frozen=True)
class Answers:
    """What one system answered for the test split."""

    probabilities: Probabilities
    accuracy: Accuracy


def run_evaluation(settings: EvalSettings) -> dict[str, Any]:
    """Measure, and return the report.

    Raises:
        UserError: the file, the datastore or torch's weights are missing, damaged, or don't fit together.
    """
    threads = settings.threads or os.cpu_count() or 1
    store = datastores.load(settings.datastore)
    model = OnnxModel.load(settings.model, threads)
    check_match(model.artifact, store)
    systems: dict[str, Predict] = {"onnx": model.predict}
    for name in settings.against:
        systems[name] = PEERS[name](model, settings.run, threads)
    answers = {name: classify(predict, name, model.artifact, store) for name, predict in systems.items()}
    others = OtherLoad()
    timings = {batch: measure(systems, batch, model.artifact, store.test, settings) for batch in BATCHES}
    own = {batch: timing["onnx"] for batch, timing in timings.items()}
    return {
        "accuracy": answers["onnx"].accuracy,
        "prediction_sets": _set_figures(model.artifact, answers["onnx"].probabilities, store.test.labels),
        **timing_figures(own),
        "against": {
            name: {
                "accuracy": {key: value for key, value in answers[name].accuracy.items() if key != "per_class"},
                **timing_figures({batch: timing[name] for batch, timing in timings.items()}),
                "same_label": _same_label(answers["onnx"].probabilities, answers[name].probabilities),
                "speed_of_onnx": {str(batch): own[batch].speed_over(timing[name]) for batch, timing in timings.items()},
            }
            for name in settings.against
        },
        "model": describe_model(model, store),
        "machine": {**describe_machine(model.provider, threads), "cores_of_others": round(others.cores(), 2)},
        "settings": {"rounds": settings.rounds, "seconds": settings.seconds, "datastore": str(settings.datastore)},
    }


def check_match(artifact: Artifact, store: Datastore) -> None:
    """Refuse a datastore that the model wasn't made for: its figures would mean nothing.

    Raises:
        UserError: its classes are others, or its images have another size than the one that the model was trained at.
    """
    if store.classes != artifact.classes:
        difference = _first_difference(store.classes, artifact.classes)
        raise UserError(f"datastore {store.path} has other classes than the model: {difference}")
    size = artifact.image_size
    resolution = max(learner.resolution for learner in artifact.learners)
    # Images of any size are scaled to the largest learner's resolution; else the size is the training images' own.
    if size == (resolution, resolution):
        return
    for index in range(len(store.test)):
        found = peek_size(store.test.read(index))
        if found != size:
            raise UserError(
                f"the model is for images of {size[0]}x{size[1]} pixels, and test.json annotation {index} "
                f"({store.test.images[index]}) has {found[0]}x{found[1]}: use the datastore that the run was trained on"
            )


def classify(predict: Predict, name: str, artifact: Artifact, store: Datastore) -> Answers:
    """Classify the test split and compute its figures; classes are many, medium or few by the model's own counts."""
    count = len(store.test)
    batches = [np.arange(start, min(start + ACCURACY_BATCH, count)) for start in range(0, count, ACCURACY_BATCH)]
    answered = track(
        (predict(_pixels(store.test, indices, artifact)) for indices in batches), f"Accuracy, {name}", len(batches)
    )
    probabilities = np.concatenate(list(answered))
    counts = np.array(artifact.class_counts, dtype=np.int64)
    return Answers(probabilities, evaluate(probabilities, store.test.labels, store.classes, counts))


def measure(
    systems: Mapping[str, Predict], batch: int, artifact: Artifact, test: Split, settings: EvalSettings
) -> dict[str, Timing]:
    """Time one batch of real images in every system, in turns."""
    images = _pixels(test, np.arange(batch) % len(test), artifact)
    turns = time_in_turns(systems, images, settings.rounds, settings.seconds)
    *_, timings = track(turns, f"Latency at batch {batch}", settings.rounds)
    return timings


def _set_figures(artifact: Artifact, probabilities: Probabilities, labels: Labels) -> dict[str, SetFigures]:
    """Return the figures of the file's prediction sets by the coverage that they state."""
    card, counts = artifact.prediction_sets, np.array(artifact.class_counts)
    if card is None:
        return {}
    return {
        coverage: set_figures(card.members(coverage, probabilities), labels, counts) for coverage in card.thresholds
    }


def describe_model(model: OnnxModel, store: Datastore) -> dict[str, Any]:
    """Return what identifies the file, and what `fit` measured for it."""
    artifact = model.artifact
    trained_on = artifact.provenance["datastore"]
    return {
        "name": artifact.name,
        "file": str(model.path),
        "sha256": sha256(model.path),
        "megabytes": round(model.path.stat().st_size / 1e6, 1),
        "technique": artifact.technique,
        "learners": [learner.model_dump() for learner in artifact.learners],
        "classes": len(artifact.classes),
        "image_size": list(artifact.image_size),
        "top1_in_fit": artifact.accuracy["top1"],
        "same_test_split": store.digests()["test"] == trained_on["test"],
    }


def main() -> None:
    """Parse the command line, measure, print, and write the report."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, prog="python benchmarks/eval.py", description=EvalSettings.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")
    parser.add_class_arguments(EvalSettings, skip={"against"})
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        choices=list(PEERS),
        help="torch: the same learners in PyTorch (eager, channels_last); openvino: the same file in OpenVINO; "
        "in turns with the file in ONNX Runtime",
    )
    values = parser.parse_args().as_dict()
    values.pop("config")
    settings = EvalSettings(**values)
    # A folder that can't be written is found before minutes of measuring.
    output = make_folder(settings.output) if settings.output else None
    report = run_evaluation(settings)
    text = markdown(report)
    Console().print(Markdown(text))
    if output:
        write_json(output / "eval.json", report)
        write_text(output / "eval.md", text)


def _pixels(split: Split, indices: npt.NDArray[np.int64], artifact: Artifact) -> Pixels:
    return np.stack([split.decode(int(index), artifact.image_size) for index in indices])


def _same_label(ours: Probabilities, theirs: Probabilities) -> float:
    return float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())


def _first_difference(found: list[str], expected: list[str]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} instead of {len(expected)}"
    index = next(i for i, names in enumerate(zip(found, expected, strict=True)) if names[0] != names[1])
    return f"class {index} is {found[index]!r} instead of {expected[index]!r}"
