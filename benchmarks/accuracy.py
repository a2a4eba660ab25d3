"""Accuracy on a test split, by whatever answers for its images; and whether that split is the model's at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.predictors import Predict, Probabilities
from serving.protocol import ModelDescription
from tailstack.artifact import Artifact
from tailstack.datastore import Datastore
from tailstack.errors import UserError
from tailstack.images import peek_size
from tailstack.metrics import (
    CONFUSED,
    Accuracy,
    ClassFigures,
    Labels,
    SetFigures,
    confusion,
    evaluate,
    reliability,
    set_figures,
)
from tailstack.progress import track

BATCH = 32
Card = Artifact | ModelDescription
"""What a model says about itself: in its file, or over HTTP."""


@dataclass(frozen=True)
class Answers:
    """What one system answered for the test split."""

    probabilities: Probabilities
    accuracy: Accuracy


def check_match(card: Card, store: Datastore) -> None:
    """Refuse a datastore that the model wasn't made for: its figures would mean nothing.

    Raises:
        UserError: its classes are others, or its images have another size than the one that the model was trained at.
    """
    if store.classes != card.classes:
        difference = _first_difference(store.classes, card.classes)
        raise UserError(f"datastore {store.path} has other classes than the model: {difference}")
    size = card.image_size
    resolution = max(learner.resolution for learner in card.learners)
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


def classify(predict: Predict, name: str, card: Card, store: Datastore) -> Answers:
    """Classify the test split with what answers for pixels."""
    count = len(store.test)
    batches = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    answered = track(
        (predict(store.test.decode_batch(indices, card.image_size)) for indices in batches),
        f"Accuracy, {name}",
        len(batches),
    )
    return judge(np.concatenate(list(answered)), card, store)


def judge(probabilities: Probabilities, card: Card, store: Datastore) -> Answers:
    """Compute the figures of answers; classes are many, medium or few by the model's own counts."""
    counts = np.array(card.class_counts, dtype=np.int64)
    return Answers(probabilities, evaluate(probabilities, store.test.labels, store.classes, counts))


def accuracy_figures(answers: Answers, labels: Labels) -> dict[str, Any]:
    """Return a report's parts on accuracy: the figures, the class of the lowest, the confusion matrix, reliability."""
    classes = answers.probabilities.shape[1]
    return {
        "accuracy": answers.accuracy,
        "worst_class": worst_classes(answers.accuracy)[0],
        "confusion": confusion(answers.probabilities, labels).tolist() if classes <= CONFUSED else None,
        "reliability": reliability(answers.probabilities, labels),
    }


def worst_classes(accuracy: Accuracy) -> list[ClassFigures]:
    """Return the classes that have test images, the lowest accuracy first."""
    tested = [(entry["accuracy"], entry) for entry in accuracy["per_class"] if entry["accuracy"] is not None]
    return [entry for _, entry in sorted(tested, key=lambda pair: pair[0])]


def judge_sets(
    members: Mapping[str, npt.NDArray[np.bool_]], labels: Labels, class_counts: list[int]
) -> dict[str, SetFigures]:
    """Return the figures of prediction sets, each bool `[images, classes]`, by the coverage that they state."""
    counts = np.array(class_counts)
    return {coverage: set_figures(inside, labels, counts) for coverage, inside in members.items()}


def _first_difference(found: list[str], expected: list[str]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} instead of {len(expected)}"
    index = next(i for i, names in enumerate(zip(found, expected, strict=True)) if names[0] != names[1])
    return f"class {index} is {found[index]!r} instead of {expected[index]!r}"
