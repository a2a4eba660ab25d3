"""The exported file beside what runs the same learners otherwise, in this process, in turns."""

import importlib.metadata
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import tailstack
from benchmarks.comparison_rows import IN_PROCESS, Row
from benchmarks.latency import Timing, cycling, time_in_turns
from benchmarks.predictors import OnnxModel, Predict, openvino_predictor, torch_predictor
from export.cascade import Blend
from export.graph import build_learner_graph
from export.validation import Voters
from tailstack.artifact import Artifact
from tailstack.images import Pixels
from tailstack.network import load_learner
from tailstack.progress import track
from tailstack.run import RunRecord
from tailstack.session import runtime_version

PLAIN, CHEAPER = "tailstack, plain", "tailstack, cheaper file"
BATCHES = (1, 8)


def systems(model: OnnxModel, cheaper: Path | None, run: Path | None, threads: int) -> dict[str, Predict]:
    """Return what is measured, by name, ours first.

    Args:
        model: the plain file.
        cheaper: a cheaper file of the same run, such as an int8 cascade.
        run: the folder of its run; None takes the one that the file names.
        threads: threads of one inference, in all of them.

    Raises:
        UserError: a file or the run is missing, or the run's weights are not the file's.
    """
    found: dict[str, Predict] = {PLAIN: model.predict}
    if cheaper:
        found[CHEAPER] = OnnxModel.load(cheaper, threads).predict
    eager = torch_predictor(model, run, threads)
    return {
        **found,
        "onnxruntime, a session a learner": _sessions(model.artifact, run, threads),
        "torch, eager": eager,
        "torch, compiled": torch_predictor(model, run, threads, compiled=True),
        "openvino, f32": openvino_predictor(model.path, threads, "f32"),
        "openvino, bf16": openvino_predictor(model.path, threads, "bf16"),
    }


def agreement(found: Mapping[str, Predict], photos: Pixels) -> list[str]:
    """Return a line that says how often each system gives the plain file's label, and how far probabilities differ."""
    ours = found[PLAIN](photos)
    parts = []
    for name, predict in found.items():
        theirs = predict(photos)
        same = (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
        parts.append(f"{name} {same:.1%} ({np.abs(ours - theirs).max():.0e})")
    return [
        f"Of {len(photos)} photos, the plain file's label (largest difference of a probability): {', '.join(parts)}."
    ]


def measure(found: Mapping[str, Predict], photos: Pixels, rounds: int, seconds: float) -> list[Row]:
    """Time every system at each batch size, in turns, one batch of the photos after the other."""
    rows = []
    for batch in BATCHES:
        calls = {name: cycling(predict, photos, batch) for name, predict in found.items()}
        turns = time_in_turns(calls, photos[:batch], rounds, seconds)
        *_, timings = track(turns, f"In process, batch {batch}", rounds)
        rows += [_row(name, batch, timing, timings[PLAIN]) for name, timing in timings.items()]
    return rows


def _sessions(artifact: Artifact, run: Path | None, threads: int) -> Predict:
    run = run or Path(artifact.provenance["run"])
    record = RunRecord.load(run)
    blend = Blend(tuple(record.weights), artifact.temperature)
    count = len(record.classes)
    learners = [load_learner(run, learner, count) for learner in record.learners]
    voters = Voters([build_learner_graph(learner, record.image_size) for learner in learners], threads)
    return lambda images: blend.plain(voters.vote(images))


def _row(name: str, batch: int, timing: Timing, ours: Timing) -> Row:
    percentiles = timing.percentiles()
    return Row(
        where=IN_PROCESS,
        system=name,
        version=_version(name),
        batch_or_concurrency=batch,
        images_per_second=timing.images_per_second(),
        p50_ms=percentiles["p50"],
        p99_ms=percentiles["p99"],
        server_cpu_ms_per_request=None,
        relative_to_ours=statistics.median(a / b for a, b in zip(timing.rates(), ours.rates(), strict=True)),
        rounds=timing.rates(),
    )


def _version(name: str) -> str:
    package = name.partition(",")[0]
    if package == "tailstack":
        return tailstack.__version__
    return runtime_version().split()[-1] if package == "onnxruntime" else importlib.metadata.version(package)
