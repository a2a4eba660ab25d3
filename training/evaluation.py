"""What a trained run is worth: each learner, the average learner and the ensemble, on the test split."""

import platform
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from rich.table import Table

import tailstack
from tailstack.datastore import Datastore
from tailstack.errors import UserError
from tailstack.images import Size
from tailstack.metrics import CONFUSED, Accuracy, Labels, Probabilities, confusion, evaluate, reliability
from tailstack.network import Learner, architecture_config, load_learner
from tailstack.remote import spelled
from tailstack.run import LearnerRecord, RunRecord, learner_folder, weights_digest
from training.blending import fit_blend, plain_average
from training.dataset import PixelSource, TrainingData, ordered_keys
from training.learner import seconds_trained
from training.settings import FitSettings
from training.task import learner_counts, learner_loss
from training.techniques import LearnerPlan

BATCH = 128
HEADLINES = ("top1", "many", "medium", "few")


def evaluate_run(
    plans: list[LearnerPlan],
    store: Datastore,
    image_size: Size,
    data: TrainingData,
    test_pixels: PixelSource,
    settings: FitSettings,
) -> RunRecord:
    """Measure the trained learners of a run and their ensemble on both held-out splits, and describe the run.

    Raises:
        UserError: the training of a learner diverged, or an image can't be read any more.
    """
    run = settings.run
    counts = store.train.counts(len(store.classes))
    records = [_describe(plan, data, store.classes, settings) for plan in plans]
    teacher = RunRecord.load(settings.teacher) if settings.teacher else None
    if teacher:
        student = next(record for record in records if record.architecture == settings.architectures[0])
        # Most of its loss is what the teacher answers.
        student.prior = teacher.prior
    votes, val_votes = (
        np.empty((images, len(records), len(store.classes)), np.float32)
        for images in (len(store.test), len(data.val_labels))
    )
    for k, record in enumerate(records):
        learner = load_learner(run, record, len(store.classes))
        votes[:, k] = predict(learner, test_pixels, len(store.test))
        val_votes[:, k] = predict(learner, data.val_pixels, len(data.val_labels))
        if not (np.isfinite(votes[:, k]).all() and np.isfinite(val_votes[:, k]).all()):
            raise UserError(
                f"the training of {learner_folder(run, record.name)} diverged, and its answers are no numbers: "
                f"lower --lr, which is {settings.lr:g}, and choose another --output"
            )
        record.results = _figures(votes[:, k], store.test.labels, store.classes, counts)
        record.validation = _figures(val_votes[:, k], data.val_labels, store.classes, counts)
    blend = fit_blend(val_votes, data.val_labels) if settings.blend else plain_average(len(records))
    probabilities = blend.apply(votes)
    results = evaluate(probabilities, store.test.labels, store.classes, counts)
    return RunRecord(
        technique=settings.technique,
        classes=store.classes,
        class_counts=counts.tolist(),
        image_size=image_size,
        learners=records,
        weights=list(blend.weights),
        temperature=blend.temperature,
        results=_without_classes(results),
        validation=_figures(blend.apply(val_votes), data.val_labels, store.classes, counts),
        validation_counts=np.bincount(data.val_labels, minlength=len(store.classes)).tolist(),
        per_class=[dict(figures) for figures in results["per_class"]],
        confusion=confusion(probabilities, store.test.labels).tolist() if len(store.classes) <= CONFUSED else None,
        reliability=[dict(item) for item in reliability(probabilities, store.test.labels)],
        average_learner={name: _mean([record.results[name] for record in records]) for name in HEADLINES},
        datastore={"path": spelled(settings.datastore), **store.digests()},
        config=settings.to_dict(),
        versions={
            "tailstack": tailstack.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        teacher_sha256=weights_digest(settings.teacher, teacher) if settings.teacher and teacher else None,
        seconds=sum(seconds_trained(learner_folder(run, plan.name)) for plan in plans),
    )


def predict(learner: Learner, pixels: PixelSource, count: int) -> npt.NDArray[np.float32]:
    """Return the softmax outputs of `learner` for images 0 to `count`, float32 `[count, classes]`.

    Raises:
        UserError: an image can't be read any more.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = learner.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch types device and memory_format apart
    # There may be no image at all: none validates where every class is small.
    outputs = [np.empty((0, learner.backbone.num_classes), np.float32)]
    with torch.inference_mode():
        for key in ordered_keys(count, BATCH):
            logits = learner(torch.from_numpy(pixels[key.indices]).to(device))
            outputs.append(torch.softmax(logits, dim=1).cpu().numpy())
    return np.concatenate(outputs)


def results_table(record: RunRecord) -> Table:
    """Return the table that `fit` ends with."""
    table = Table(title=f"{record.technique} on the test split of {record.datastore['path']}")
    table.add_column("")
    for title in ("top-1", "many", "medium", "few", "parameters"):
        table.add_column(title, justify="right")
    rows = [(learner.name, learner.results, learner.parameters) for learner in record.learners]
    total = sum(learner.parameters for learner in record.learners)
    rows += [("average learner", record.average_learner, total // len(rows)), ("ensemble", record.results, total)]
    for name, results, parameters in rows:
        figures = ["-" if results[key] is None else f"{results[key]:.4f}" for key in HEADLINES]
        table.add_row(name, *figures, f"{parameters / 1e6:.1f} M", style="bold" if name == "ensemble" else None)
    return table


def _describe(plan: LearnerPlan, data: TrainingData, classes: list[str], settings: FitSettings) -> LearnerRecord:
    num_classes = len(classes)
    prior = learner_loss(plan, data, classes, settings).prior(learner_counts(plan, data, num_classes))
    config = architecture_config(plan.architecture)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Learner(plan.architecture, num_classes, settings.resolution).parameters())
    return LearnerRecord(
        name=plan.name,
        architecture=plan.architecture,
        resolution=settings.resolution,
        mean=list(config["mean"]),
        std=list(config["std"]),
        parameters=parameters,
        head=plan.head,
        loss=plan.recipe.loss,
        train_images=len(plan.samples),
        prior=prior.tolist(),
        results={},
    )


def _figures(probabilities: Probabilities, labels: Labels, classes: list[str], counts: Labels) -> dict[str, Any]:
    if not len(labels):
        return {}
    return _without_classes(evaluate(probabilities, labels, classes, counts))


def _without_classes(accuracy: Accuracy) -> dict[str, Any]:
    return {name: value for name, value in accuracy.items() if name != "per_class"}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
