"""Cells of a comparison as training would leave them, from simulated answers: for the report, which reads cells only.

Classes come in families of look-alikes and differ in difficulty. A learner knows a class better the more images it has
seen, leans towards the classes with many, and a technique takes part of that leaning away.
"""

from typing import Any

import numpy as np

from tailstack.metrics import confusion, evaluate, reliability
from tailstack.run import LearnerRecord, RunRecord
from training.cells import Cell
from training.longtail import exponential_profile

CORRECTED = {
    "baseline": (0.0, 1),
    "balanced": (0.4, 1),
    "weighted": (0.35, 1),
    "bagging": (0.3, 3),
    "stacking": (0.0, 3),
    "stacking-wl": (0.5, 3),
    "tailstack": (0.9, 3),
}
"""Technique -> how much of the leaning it takes away, and how many learners it has."""
FAMILY = 5


def cells(
    classes: int = 50,
    ratios: tuple[float, ...] = (1, 0.1, 0.02, 0.005),
    techniques: tuple[str, ...] = tuple(CORRECTED),
    seeds: tuple[int, ...] = (0, 1),
    test_images: int = 100,
    **config: Any,
) -> list[Cell]:
    """Return a cell for each ratio, technique and seed; at ratio 1 for the baseline alone."""
    wanted = [(r, t, s) for r in ratios for t in techniques for s in seeds if r != 1 or t == techniques[0]]
    return [cell(classes, ratio, technique, seed, test_images, **config) for ratio, technique, seed in wanted]


def cell(
    classes: int, ratio: float, technique: str, seed: int, test_images: int = 20, epochs: int = 5, **config: Any
) -> Cell:
    """Return one cell."""
    corrected, learners = CORRECTED[technique]
    counts = exponential_profile(500, classes, ratio)
    names = [f"{'shy_' if c % 3 else ''}animal_{c}" for c in range(classes)]
    rng = np.random.default_rng([seed, classes, int(1e4 * ratio), len(technique)])
    labels = np.repeat(np.arange(classes), test_images)
    shared = rng.normal(0, 1.0, (test_images * classes, classes))
    votes = np.stack([_answers(labels, counts, corrected, rng, shared) for _ in range(learners)], axis=1)
    val_labels = np.repeat(np.arange(classes), np.maximum(counts // 5, 1))
    val_shared = rng.normal(0, 1.0, (len(val_labels), classes))
    val_votes = [_answers(val_labels, counts, corrected, rng, val_shared) for _ in range(learners)]
    figures = [_figures(votes[:, k], labels, names, counts) for k in range(learners)]
    probabilities = votes.mean(axis=1)
    results = evaluate(probabilities, labels, names, counts)
    records = [_learner(k, int(counts.sum() * 0.8), figures[k]) for k in range(learners)]
    suffix = "" if ratio == 1 else f"-imbalance-{ratio:g}"
    run = RunRecord(
        technique=technique,
        classes=names,
        class_counts=counts.tolist(),
        image_size=(32, 32),
        learners=records,
        weights=[1 / learners] * learners,
        temperature=1.0,
        results={name: value for name, value in results.items() if name != "per_class"},
        validation=_figures(np.mean(val_votes, axis=0), val_labels, names, counts),
        per_class=[dict(item) for item in results["per_class"]],
        confusion=confusion(probabilities, labels).tolist(),
        reliability=[dict(item) for item in reliability(probabilities, labels)],
        average_learner={
            name: None if figures[0][name] is None else float(np.mean([item[name] for item in figures]))
            for name in ("top1", "many", "medium", "few")
        },
        datastore={"path": f"data/photos{suffix}", "train": "0" * 64, "test": "1" * 64},
        config={
            **{"epochs": epochs, "resolution": 96, "pretrained": True, "val_fraction": 0.1},
            **{"seed": seed, "technique": technique},
            **config,
        },
        versions={"torch": "2.14.1"},
        seconds=100.0 * learners + seed,
    )
    return Cell(
        datastore=f"photos{suffix}",
        ratio=round(float(counts.min() / counts.max()), 4),
        technique=technique,
        seed=seed,
        curves={record.name: _curve(record.results["top1"], epochs, rng) for record in records},
        run=run,
    )


def _answers(labels: Any, counts: Any, corrected: float, rng: np.random.Generator, shared: Any) -> Any:
    """Return one learner's probabilities; `shared` is what makes images hard for all learners alike."""
    classes = len(counts)
    difficulty = np.random.default_rng(1).normal(0, 0.6, classes)
    knowledge = 1.1 + 0.35 * np.log(counts) - difficulty
    family = np.arange(classes) // FAMILY
    logits = shared + rng.normal(0, 0.7, shared.shape) + 0.9 * (family[labels][:, None] == family)
    logits[np.arange(len(labels)), labels] += knowledge[labels]
    logits += 0.35 * (1 - corrected) * np.log(counts / counts.mean())
    exponentials = np.exp(2.0 * logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _figures(probabilities: Any, labels: Any, names: list[str], counts: Any) -> dict[str, Any]:
    figures = evaluate(probabilities, labels, names, counts)
    return {name: value for name, value in figures.items() if name != "per_class"}


def _learner(k: int, images: int, results: dict[str, Any]) -> LearnerRecord:
    return LearnerRecord(
        name=f"{k}-tf_efficientnet_lite{k}",
        architecture=f"tf_efficientnet_lite{k}",
        resolution=96,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        parameters=(3_400_000, 4_200_000, 4_900_000)[k],
        loss="none",
        train_images=images,
        results=results,
    )


def _curve(end: float, epochs: int, rng: np.random.Generator) -> list[dict[str, float]]:
    rows = []
    for epoch in range(1, epochs + 1):
        done = 1 - np.exp(-3 * epoch / epochs)
        top1 = end * done + rng.normal(0, 0.005)
        row = {"train_loss": 3.9 * (1 - done) + 0.3, "val_loss": 3.9 * (1 - done) + 0.9, "val_top1": top1}
        rows.append({"epoch": epoch, **{name: float(value) for name, value in row.items()}, "seconds": 9.0 * epoch})
    return rows
