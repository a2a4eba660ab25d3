"""What a trained run is worth: each learner, the average learner and the ensemble, on the test split."""

import csv
import platform
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from rich.table import Table

import tailstack
from tailstack.datastore import Datastore
from tailstack.images import Size
from tailstack.metrics import evaluate
from tailstack.network import Learner, architecture_config, load_learner
from tailstack.run import LearnerRecord, RunRecord, learner_folder
from training.dataset import PixelSource, ordered_keys
from training.learner import METRICS
from training.settings import FitSettings
from training.techniques import LearnerPlan

BATCH = 128
HEADLINES = ("top1", "many", "medium", "few")


def evaluate_run(
    plans: list[LearnerPlan], store: Datastore, image_size: Size, test_pixels: PixelSource, settings: FitSettings
) -> RunRecord:
    """Measure the trained learners of a run and their average on the test split, and describe the run."""
    run = settings.output
    counts = store.train.counts(len(store.classes))
    records = [_describe(plan, len(store.classes), settings) for plan in plans]
    votes = []
    for record in records:
        learner = load_learner(run, record, len(store.classes))
        votes.append(predict(learner, test_pixels, len(store.test)))
        record.results = _figures(votes[-1], store, counts)
    return RunRecord(
        technique=settings.technique,
        classes=store.classes,
        class_counts=counts.tolist(),
        image_size=image_size,
        learners=records,
        weights=[1 / len(records)] * len(records),
        temperature=1.0,
        results=_figures(np.mean(votes, axis=0), store, counts),
        average_learner={name: _mean([record.results[name] for record in records]) for name in HEADLINES},
        datastore={"path": str(settings.datastore), **store.digests()},
        config=settings.to_dict(),
        versions={
            "tailstack": tailstack.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        seconds=sum(_seconds(learner_folder(run, plan.name)) for plan in plans),
    )


def predict(learner: Learner, pixels: PixelSource, count: int) -> npt.NDArray[np.float32]:
    """Return the softmax outputs of `learner` for images 0 to `count`, float32 `[count, classes]`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = learner.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    with torch.inference_mode():
        outputs = [
            torch.softmax(learner(torch.from_numpy(pixels[key.indices]).to(device)), dim=1).cpu()
            for key in ordered_keys(count, BATCH)
        ]
    return torch.cat(outputs).numpy()


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


def _describe(plan: LearnerPlan, num_classes: int, settings: FitSettings) -> LearnerRecord:
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
        loss=plan.loss,
        train_images=len(plan.samples),
        results={},
    )


def _figures(probabilities: npt.NDArray[np.float32], store: Datastore, counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    figures: dict[str, Any] = dict(evaluate(probabilities, store.test.labels, store.classes, counts))
    del figures["per_class"]
    return figures


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _seconds(folder: Path) -> float:
    with (folder / METRICS).open(encoding="utf-8", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])
