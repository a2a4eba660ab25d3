"""What one exported file is worth, beside the same learners or the same file in other runtimes."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import (
    accuracy_figures,
    check_match,
    classify,
    judge_sets,
    worst_classes,
)
from benchmarks.evaluation_contract import MODEL, EvalSettings, Evaluation
from benchmarks.latency import Timing, cycling, time_in_turns
from benchmarks.machine import OtherLoad, describe_machine
from benchmarks.picture import PHOTOS
from benchmarks.predictors import OnnxModel, Predict, Probabilities, openvino_predictor, torch_predictor
from benchmarks.robustness import measure_corruptions
from tailstack import datastore as datastores
from tailstack.artifact import Artifact
from tailstack.datastore import Datastore, Split
from tailstack.files import sha256
from tailstack.metrics import SetFigures
from tailstack.progress import track

BATCHES = (1, 8, 32)
PEERS: dict[str, Callable[[OnnxModel, Path | None, int], Predict]] = {
    "torch": torch_predictor,
    "openvino": lambda model, _run, threads: openvino_predictor(model.path, threads),
}
"""What the file can be measured against."""
OWN = "onnx"


def evaluate_file(settings: EvalSettings) -> Evaluation:
    """Measure a file.

    Raises:
        UserError: the file, the datastore or torch's weights are missing, damaged, or don't fit together.
    """
    threads = settings.threads or len(os.sched_getaffinity(0))
    store = datastores.load(settings.datastore)
    model = OnnxModel.load(settings.model or MODEL, threads)
    check_match(model.artifact, store)
    systems: dict[str, Predict] = {OWN: model.predict}
    for name in settings.against:
        systems[name] = PEERS[name](model, settings.run, threads)
    answers = {name: classify(predict, name, model.artifact, store) for name, predict in systems.items()}
    narrower = _narrower(model, threads)
    others = OtherLoad()
    measured = {**systems, **{_with_threads(number): predict for number, predict in narrower.items()}}
    timings = {batch: measure(measured, batch, model.artifact, store.test, settings) for batch in BATCHES}
    own = {batch: timing[OWN] for batch, timing in timings.items()}
    report: dict[str, Any] = {
        **accuracy_figures(answers[OWN], store.test.labels),
        "prediction_sets": _set_figures(model.artifact, answers[OWN].probabilities, store.test),
        **timing_figures(own),
        "by_threads": {
            str(number): timing_figures({batch: timing[_with_threads(number)] for batch, timing in timings.items()})
            for number in narrower
        }
        | {str(threads): timing_figures(own)},
        "against": {
            name: {
                "accuracy": {key: value for key, value in answers[name].accuracy.items() if key != "per_class"},
                "worst_class": worst_classes(answers[name].accuracy)[0],
                **timing_figures({batch: timing[name] for batch, timing in timings.items()}),
                "same_label": _same_label(answers[OWN].probabilities, answers[name].probabilities),
                "speed_of_onnx": {str(batch): own[batch].speed_over(timing[name]) for batch, timing in timings.items()},
            }
            for name in settings.against
        },
        "model": describe_model(model, store),
        "machine": {**describe_machine(model.provider, threads), "cores_of_others": round(others.cores(), 2)},
    }
    if settings.corruptions:
        size = model.artifact.image_size
        report["corruptions"] = measure_corruptions(model.predict, store.test, size, settings.corruptions)
    latencies = {f"batch {batch}": np.concatenate(timing.rounds) * 1e3 for batch, timing in own.items()}
    return Evaluation(report, answers[OWN].probabilities, store.test.labels, latencies)


def measure(
    systems: Mapping[str, Predict], batch: int, artifact: Artifact, test: Split, settings: EvalSettings
) -> dict[str, Timing]:
    """Time batches of real images in every system, in turns."""
    images = test.decode_batch(test.spread(PHOTOS), artifact.image_size)
    calls = {name: cycling(predict, images, batch) for name, predict in systems.items()}
    turns = time_in_turns(calls, images[:batch], settings.rounds, settings.seconds)
    *_, timings = track(turns, f"Latency at batch {batch}", settings.rounds)
    return timings


def _narrower(model: OnnxModel, threads: int) -> dict[int, Predict]:
    """Return the file on fewer threads, 1, 2, 4 and so on, where threads are what runs it."""
    numbers = [2**power for power in range(threads.bit_length()) if 2**power < threads]
    return {number: OnnxModel.load(model.path, number).predict for number in numbers if model.engine.on_cpu}


def _with_threads(number: int) -> str:
    return f"{OWN}, {number} thread(s)"


def timing_figures(timings: Mapping[int, Timing]) -> dict[str, dict[str, Any]]:
    """Return `latency_ms`, `throughput` (images per second) and `calls`, each by batch size."""
    return {
        "latency_ms": {str(batch): timing.percentiles() for batch, timing in timings.items()},
        "throughput": {str(batch): timing.images_per_second() for batch, timing in timings.items()},
        "calls": {str(batch): timing.calls for batch, timing in timings.items()},
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


def _set_figures(artifact: Artifact, probabilities: Probabilities, test: Split) -> dict[str, SetFigures]:
    """Return the figures of the file's prediction sets by the coverage that they state."""
    card = artifact.prediction_sets
    members = {coverage: card.members(coverage, probabilities) for coverage in card.thresholds} if card else {}
    return judge_sets(members, test.labels, artifact.class_counts)


def _same_label(ours: Probabilities, theirs: Probabilities) -> float:
    return float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
