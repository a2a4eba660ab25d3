"""The command: read the run, build the graph, describe it, check it, and only then let the file appear."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

import tailstack
from export import DEFAULT_OUTPUT
from export.calibration import Calibration, fit_calibration
from export.cascade import Votes
from export.cheaper import CheaperGraph, Wanted, build_cheaper
from export.gate import headline
from export.graph import build_graph
from export.prediction_sets import calibrate
from export.validation import file_answers, held_out, run_splits
from export.verify import TOLERANCE, Reference, check_graph, sample_images, verify_parity
from tailstack import datastore as datastores
from tailstack.artifact import FORMAT, Artifact, CalibrationCard, LearnerCard, ValidationCard
from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.files import make_folder, sha256, whole_file, write_text
from tailstack.images import Pixels
from tailstack.metrics import expected_calibration_error
from tailstack.network import Ensemble, load_ensemble
from tailstack.remote import local, push, spelled
from tailstack.run import WEIGHTS_FILE, RunRecord, learner_folder
from tailstack.session import runtime_version

PLAIN = Wanted()
PREPROCESSING = (
    "decode to RGB, apply the EXIF orientation, scale to cover image_size and crop to its centre; the graph resizes "
    "to each learner's resolution and normalises"
)


def export(run: Path, output: Path, wanted: Wanted = PLAIN) -> Artifact:
    """Write the ensemble of `run` as one ONNX file, and its SHA-256 beside it.

    Args:
        run: folder of a finished run; it and the file may lie in an object store.
        output: the file.
        wanted: how it is to be cheaper; the default is the plain graph, in which every learner sees every image.

    Raises:
        UserError: the run isn't finished, its data set is gone, `output` can't be written, or the file fails a check;
            then no file appears.
    """
    record = RunRecord.load(run)
    place, output = output, local(output)
    make_folder(output.parent)
    if output.is_dir():
        raise UserError(f"output {output} is a folder; it has to be a file, such as {output / 'ensemble.onnx'}")
    ensemble = load_ensemble(run, record)
    store = _datastore(record)
    images = sample_images(store.test, record.image_size)
    print(f"Fusing {len(record.learners)} learner(s) of {spelled(run)} into one graph …", flush=True)
    cheaper = build_cheaper(run, record, store, ensemble, wanted) if not wanted.plain else None
    model = cheaper.model if cheaper else build_graph(ensemble, record.image_size)
    record = cheaper.record if cheaper else record
    with whole_file(output) as part:
        # ONNX Runtime tells how to read a file by its content; the suffix doesn't matter.
        onnx.save(model, part)
        check_graph(part)
        measured = _measure(part, run, record, store, cheaper)
        if measured:
            measured.calibration.append_to(model)
            onnx.save(model, part)
        source = cheaper.reference_name if cheaper else "torch"
        print(f"Checking the graph, and its answers against those of {source} …", flush=True)
        parity = _parity(part, ensemble, cheaper, measured, images)
        artifact = describe(run, record, output.stem, parity)
        if measured:
            artifact = artifact.model_copy(update=_by_validation(part, run, record, store, cheaper, measured))
        onnx.helper.set_model_props(model, artifact.to_properties())
        onnx.save(model, part)
        check_graph(part)
    write_text(output.with_name(f"{output.name}.sha256"), f"{sha256(output)}  {output.name}\n")
    push(place)
    push(place.with_name(f"{place.name}.sha256"))
    print(
        f"{spelled(place)}: {output.stat().st_size / 1e6:.1f} MB, {len(record.classes)} classes, "
        f"{len(record.learners)} learner(s), largest difference from {source} {max(parity.values()):.1e} "
        f"(limit {TOLERANCE:g}), top-1 {record.results['top1']:.4f} on test"
    )
    if artifact.evidence:
        print(evidence_line(artifact.evidence))
    print(
        "Next: bentoml serve" if output == DEFAULT_OUTPUT else f"Next: TAILSTACK_MODEL={spelled(place)} bentoml serve"
    )
    return artifact


@dataclass(frozen=True)
class _Measured:
    """What a graph answers on the images that validate, before its calibration, and that calibration."""

    validation: Split
    answers: npt.NDArray[np.float32]
    votes: Votes
    calibration: Calibration

    @property
    def calibrated(self) -> npt.NDArray[np.float32]:
        """What the finished file answers."""
        return self.calibration.apply(self.answers, self.votes)


def _measure(
    path: Path, run: Path, record: RunRecord, store: Datastore, cheaper: CheaperGraph | None
) -> _Measured | None:
    """Ask a graph for what validates, and fit its calibration; None where nothing validates a plain graph."""
    try:
        _, validation = run_splits(run, store)
    except UserError as error:
        if cheaper:
            raise
        print(f"Without calibration and prediction sets: {error}", flush=True)
        return None
    print("Measuring the graph on the images that validate …", flush=True)
    answers, votes = file_answers(path, validation, record.image_size, "Validation")
    stages = len(record.learners) if cheaper and cheaper.cascade else 1
    return _Measured(validation, answers, votes, fit_calibration(answers, votes, validation.labels, stages))


def _by_validation(
    path: Path, run: Path, record: RunRecord, store: Datastore, cheaper: CheaperGraph | None, measured: _Measured
) -> dict[str, Any]:
    """Return the metadata that the images that validate decide."""
    answers, votes, labels = measured.calibrated, measured.votes, measured.validation.labels
    temperatures = [record.temperature * factor for factor in measured.calibration.temperatures]
    found = cheaper.metadata(path, answers, votes) if cheaper else {}
    if found.get("cascade"):
        found["cascade"] = found["cascade"].model_copy(update={"temperatures": temperatures})
    counts = np.array(record.class_counts)
    average = votes.sum(axis=1) / votes.any(axis=2).sum(axis=1, keepdims=True)
    before, after = (expected_calibration_error(values, labels) for values in (average, answers))
    return {
        **found,
        "temperature": temperatures[-1],
        "validation": ValidationCard(
            split="train" if store.val is None else "val",
            indices=held_out(run, store),
            figures=headline(answers, labels, record.classes, counts),
        ),
        "calibration": CalibrationCard(ece_before=before, ece_after=after),
        "prediction_sets": calibrate(answers, labels, counts),
    }


def evidence_line(evidence: dict[str, Any]) -> str:
    """Put what the release gate measured into a line."""
    plain, this = evidence["plain"], evidence["this"]
    costs = [f"{cost['relative']:.2f}x at batch {batch}" for batch, cost in evidence["cost"].items()]
    cost = f"cost {', '.join(costs)} (one thread)" if costs else "cost not measured: fp16 is for GPUs"
    return (
        f"Beside the plain ensemble on {evidence['images']} validation images: top-1 {this['top1']:.4f} instead of "
        f"{plain['top1']:.4f}, {evidence['learners_used']:.2f} learners per image, {cost}"
    )


def _parity(
    path: Path, ensemble: Ensemble, cheaper: CheaperGraph | None, measured: _Measured | None, images: Pixels
) -> dict[str, float]:
    exact: Reference = cheaper.reference if cheaper else ensemble

    def reference(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answers, votes, *others = exact(images)
        if measured:
            answers = torch.from_numpy(measured.calibration.apply(answers.numpy(), votes.numpy()))
        return answers, votes, *others

    if cheaper is None:
        return verify_parity(path, reference, images)
    return verify_parity(path, reference, images, cheaper.outputs, cheaper.reference_name)


def describe(run: Path, record: RunRecord, name: str, parity: dict[str, float]) -> Artifact:
    """Collect the metadata that the file carries."""
    return Artifact(
        format=FORMAT,
        name=name,
        technique=record.technique,
        classes=record.classes,
        class_counts=record.class_counts,
        image_size=record.image_size,
        preprocessing=PREPROCESSING,
        learners=[
            LearnerCard(
                name=learner.name,
                architecture=learner.architecture,
                resolution=learner.resolution,
                parameters=learner.parameters,
                weight=weight,
                top1=learner.results["top1"],
            )
            for learner, weight in zip(record.learners, record.weights, strict=True)
        ],
        temperature=record.temperature,
        accuracy=record.results,
        parity=parity,
        provenance={
            "run": spelled(run),
            "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "config": record.config,
            "datastore": record.datastore,
            "weights": {
                learner.name: sha256(learner_folder(run, learner.name) / WEIGHTS_FILE) for learner in record.learners
            },
            "versions": {
                **record.versions,
                "exporter": tailstack.__version__,
                "torch_export": torch.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": runtime_version(),
            },
        },
    )


def _datastore(record: RunRecord) -> Datastore:
    store = datastores.load(Path(record.datastore["path"]))
    if store.classes != record.classes:
        raise UserError(f"datastore {store.path} has other classes than the run was trained on")
    return store
