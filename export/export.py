"""The command: read the run, build the graph, describe it, check it, and only then let the file appear."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

import tailstack
from export import DEFAULT_OUTPUT
from export.calibration import NONE, Calibration
from export.card import beside, write_card
from export.cheaper import CheaperGraph, Wanted, build_cheaper
from export.graph import build_graph
from export.measured import Measured, measure
from export.parity import TOLERANCE, Reference, check_graph, sample_images, verify_parity
from export.prior import accept_prior
from export.run_forms import RunForms
from tailstack.artifact import FORMAT, Artifact, LearnerCard
from tailstack.errors import UserError
from tailstack.files import make_folder, sha256, whole_file, write_text
from tailstack.images import Pixels
from tailstack.machine import machine
from tailstack.network import Ensemble
from tailstack.remote import local, push, spelled
from tailstack.run import WEIGHTS_FILE, RunRecord, learner_folder
from tailstack.session import runtime_version
from tailstack.signature import check_private_key, sign, signature_file

PLAIN = Wanted()
PREPROCESSING = (
    "decode to RGB, apply the EXIF orientation, scale to cover image_size and crop to its centre; the graph resizes "
    "to each learner's resolution and normalises"
)


def export(
    run: Path, output: Path, wanted: Wanted = PLAIN, private_key: Path | None = None, forms: RunForms | None = None
) -> Artifact:
    """Write the ensemble of `run` as one ONNX file, and its SHA-256 and its model card beside it.

    Args:
        run: folder of a finished run; it and the file may lie in an object store.
        output: the file.
        wanted: how it is to be cheaper; the default is the plain graph, in which every learner sees every image.
        private_key: file of a key to sign the file with; None doesn't sign it.
        forms: the run's, where more than one file is made of them; None makes what this one needs.

    Raises:
        UserError: the run isn't finished, its data set is gone, `output` can't be written, the key can't be used, or
            the file fails a check; then no file appears.
    """
    if private_key:
        check_private_key(private_key)
    forms = forms or RunForms.load(run)
    place, output = output, local(output)
    make_folder(output.parent)
    if output.is_dir():
        raise UserError(f"output {output} is a folder; it has to be a file, such as {output / 'ensemble.onnx'}")
    # Before what takes minutes: a photo may be gone.
    images = sample_images(forms.store.test, forms.record.image_size)
    print(f"Fusing {len(forms.record.learners)} learner(s) of {spelled(run)} into one graph …", flush=True)
    cheaper = build_cheaper(forms, wanted) if not wanted.plain else None
    with whole_file(output) as part:
        artifact, measured = _make(part, run, output.stem, forms, cheaper, images)
        # Those of the file that was here before: a server takes a model without them, but none with wrong ones.
        for former in (beside(output, "sha256"), signature_file(output)):
            former.unlink(missing_ok=True)
    write_text(beside(output, "sha256"), f"{sha256(output)}  {output.name}\n")
    signatures = [sign(output, private_key)] if private_key else []
    per_class, pictures = measured.drawn(output) if measured else ((), ())
    card = write_card(output, artifact, per_class, pictures)
    for path in (output, beside(output, "sha256"), *signatures, card, *pictures):
        push(place.with_name(path.name))
    _tell(place, output, artifact, cheaper, [card, *signatures])
    return artifact


def _make(
    part: Path, run: Path, name: str, forms: RunForms, cheaper: CheaperGraph | None, images: Pixels
) -> tuple[Artifact, Measured | None]:
    """Write the whole model to `part`; return its metadata, and its answers where images validate.

    `images` are those on which it has to answer as its origin does, uint8 `[images, height, width, 3]`.

    Raises:
        UserError: it fails a check.
    """
    record = cheaper.record if cheaper else forms.record
    model = cheaper.model if cheaper else build_graph(forms.ensemble, record.image_size)
    # ONNX Runtime tells how to read a file by its content; the suffix doesn't matter.
    onnx.save(model, part)
    check_graph(part)
    measured = measure(part, run, record, forms.store, cheaper)
    if measured:
        measured.calibration.append_to(model)
    if record.prior is not None:
        accept_prior(model, record.prior)
    onnx.save(model, part)
    print(f"Checking the graph, and its answers against those of {_origin(cheaper)} …", flush=True)
    parity = _parity(part, forms.ensemble, cheaper, measured.calibration if measured else NONE, images)
    artifact = describe(run, record, name, parity)
    artifact.prior = record.prior
    if measured:
        artifact = artifact.model_copy(update=measured.metadata(part, cheaper))
    onnx.helper.set_model_props(model, artifact.to_properties())
    onnx.save(model, part)
    check_graph(part)
    return artifact, measured


def _origin(cheaper: CheaperGraph | None) -> str:
    return cheaper.reference_name if cheaper else "torch"


def _tell(
    place: Path, output: Path, artifact: Artifact, cheaper: CheaperGraph | None, companions: Sequence[Path]
) -> None:
    """Print what was made, and what to do with it; `companions` are its card and its signatures."""
    figure = "top-1" if cheaper is None else "the plain ensemble's top-1"
    print(
        f"{spelled(place)}: {output.stat().st_size / 1e6:.1f} MB, {len(artifact.classes)} classes, "
        f"{len(artifact.learners)} learner(s), largest difference from {_origin(cheaper)} "
        f"{max(artifact.parity.values()):.1e} (limit {TOLERANCE:g}), "
        f"{figure} {artifact.accuracy['top1']:.4f} on test"
    )
    if artifact.evidence:
        print(evidence_line(artifact.evidence))
    for title, path in zip(("card", "signature"), companions, strict=False):
        print(f"Its {title}: {spelled(place.with_name(path.name))}")
    print(
        "Next: bentoml serve" if output == DEFAULT_OUTPUT else f"Next: TAILSTACK_MODEL={spelled(place)} bentoml serve"
    )


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
    path: Path, ensemble: Ensemble, cheaper: CheaperGraph | None, calibration: Calibration, images: Pixels
) -> dict[str, float]:
    exact: Reference = cheaper.reference if cheaper else ensemble

    def reference(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answers, votes, *others = exact(images)
        return torch.from_numpy(calibration.apply(answers.numpy(), votes.numpy())), votes, *others

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
            "machine": machine(),
            "versions": {
                **record.versions,
                "exporter": tailstack.__version__,
                "torch_export": torch.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": runtime_version(),
            },
        },
    )
