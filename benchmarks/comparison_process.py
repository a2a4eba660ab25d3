"""The exported file beside what runs the same learners otherwise, in this process, in turns."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import tailstack
from benchmarks.comparison_rows import IN_PROCESS, Row, relative
from benchmarks.latency import Timing, cycling, time_in_turns
from benchmarks.predictors import OnnxModel, Predict, openvino_predictor, torch_predictor
from export.graph import build_learner_graph
from export.validation import Voters
from tailstack.artifact import Artifact
from tailstack.blend import Blend
from tailstack.errors import UserError
from tailstack.images import Pixels
from tailstack.network import load_learner
from tailstack.progress import track
from tailstack.run import RunRecord
from tailstack.session import runtime_version

PLAIN, CHEAPER = "tailstack, plain", "tailstack, cheaper file"
BATCHES = (1, 8)


def check_cheaper(plain: Artifact, cheaper: Artifact) -> None:
    """Refuse a cheaper file that isn't of the plain one's run: it would do other work.

    Its learners are those of the plain file, some of them or all. A student, of which training knows the teacher, is
    another learner, beside some of them or alone.

    Raises:
        UserError: its classes, its image size or its learners' weights are others.
    """
    for what in ("classes", "image_size"):
        if getattr(plain, what) != getattr(cheaper, what):
            raise UserError(f"--cheaper has another {what} than --model: export both from the same run")
    own, theirs = (set(artifact.provenance["weights"].values()) for artifact in (cheaper, plain))
    teacher = cheaper.provenance["config"].get("teacher")
    taught_here = teacher is not None and (own & theirs or Path(teacher).name == Path(plain.provenance["run"]).name)
    if len(own - theirs) > bool(taught_here):
        raise UserError("--cheaper has learners with other weights than --model: export both from the same run")


def systems(model: OnnxModel, cheaper: OnnxModel | None, run: Path | None, threads: int) -> dict[str, Predict]:
    """Return what is measured, by name, ours first.

    Args:
        model: the plain file.
        cheaper: a cheaper file of the same run, such as an int8 cascade.
        run: the folder of its run; None takes the one that the file names.
        threads: threads of one inference, in all of them.

    Raises:
        UserError: the run is missing, or its weights are not the file's.
    """
    found: dict[str, Predict] = {PLAIN: model.predict}
    if cheaper:
        found[CHEAPER] = cheaper.predict
    eager = torch_predictor(model, run, threads)
    return {
        **found,
        "onnxruntime, a session a learner": _sessions(model.artifact, run, threads),
        "torch, eager": eager,
        "torch, compiled": torch_predictor(model, run, threads, compiled=True),
        "openvino, f32": openvino_predictor(model.path, threads, "f32"),
        **_in_bf16(model.path, threads),
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


def _in_bf16(path: Path, threads: int) -> dict[str, Predict]:
    """Return the file in OpenVINO in bf16, and nothing on a processor without it."""
    try:
        return {"openvino, bf16": openvino_predictor(path, threads, "bf16")}
    except UserError as error:
        print(f"openvino, bf16 is left out: {error}", flush=True)
        return {}


def _sessions(artifact: Artifact, run: Path | None, threads: int) -> Predict:
    run = run or Path(artifact.provenance["run"])
    record = RunRecord.load(run)
    blend = Blend(tuple(record.weights), artifact.temperature)
    count = len(record.classes)
    learners = [load_learner(run, learner, count) for learner in record.learners]
    voters = Voters([build_learner_graph(learner, record.image_size) for learner in learners], threads)
    return lambda images: blend.apply(voters.vote(images))


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
        relative_to_ours=relative(timing.rates(), ours.rates()),
        rounds=timing.rates(),
        failed=0.0,
        load_cores=None,
    )


def _version(name: str) -> str:
    package = name.partition(",")[0]
    if package == "tailstack":
        return tailstack.__version__
    return runtime_version().split()[-1] if package == "onnxruntime" else importlib.metadata.version(package)
