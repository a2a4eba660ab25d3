"""One definition of each figure that training, export and benchmarks report.

Every function takes float probabilities `[images, classes]` and int64 labels `[images]`. A figure that the data can't
give (a group of classes that is empty) is None, never 0.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from tailstack.prior import TINY

Probabilities = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

MANY_OVER = 100
FEW_UNDER = 20
MANY, MEDIUM, FEW = 0, 1, 2
CALIBRATION_BINS = 15
CONFUSED = 1000
"""Classes of which a run or a report keeps the confusion matrix, at most."""
_CHUNK = 1024
"""Images whose classes are sorted at a time: all of them at once took four times the memory of the probabilities."""


class ClassFigures(TypedDict):
    """Figures of one class; `accuracy` is its recall."""

    label: str
    train_images: int
    test_images: int
    accuracy: float | None
    precision: float | None


class Accuracy(TypedDict):
    """The accuracy part of a report; all but `nll` lie between 0 and 1."""

    top1: float
    top5: float
    balanced: float
    macro_f1: float
    many: float | None
    medium: float | None
    few: float | None
    ece: float
    nll: float
    per_class: list[ClassFigures]


class SetFigures(TypedDict):
    """How often prediction sets have the true class, and how many classes they have."""

    coverage: float
    size: float
    """Mean number of classes."""
    many: float | None
    medium: float | None
    few: float | None
    """Mean coverage of the group's classes."""


class ReliabilityBin(TypedDict):
    """One bin of a reliability diagram: how many images, their mean confidence, and how often it was right."""

    images: int
    confidence: float
    accuracy: float


def evaluate(probabilities: Probabilities, labels: Labels, classes: list[str], class_counts: Labels) -> Accuracy:
    """Compute every accuracy figure of a report.

    Args:
        probabilities: `[images, classes]`, each row a distribution.
        labels: true labels, `[images]`.
        classes: class names in label order.
        class_counts: training images of each class, `[classes]`, which sort classes into many, medium and few.
    """
    predicted = probabilities.argmax(axis=1)
    hits, tested, answered = (
        np.bincount(of, minlength=len(classes)) for of in (labels[predicted == labels], labels, predicted)
    )
    recall, precision, f1 = _class_rates(hits, tested, answered)
    present = tested > 0
    counts = np.asarray(class_counts)
    group = groups(counts)
    return Accuracy(
        top1=top_k(probabilities, labels, 1),
        top5=top_k(probabilities, labels, 5),
        balanced=float(recall[present].mean()),
        macro_f1=float(f1[present | (answered > 0)].mean()),
        many=_mean(recall, present & (group == MANY)),
        medium=_mean(recall, present & (group == MEDIUM)),
        few=_mean(recall, present & (group == FEW)),
        ece=expected_calibration_error(probabilities, labels),
        nll=negative_log_likelihood(probabilities, labels),
        per_class=[
            ClassFigures(
                label=name,
                train_images=int(counts[i]),
                test_images=int(tested[i]),
                accuracy=float(recall[i]) if present[i] else None,
                precision=float(precision[i]) if answered[i] else None,
            )
            for i, name in enumerate(classes)
        ],
    )


def set_figures(members: npt.NDArray[np.bool_], labels: Labels, class_counts: Labels) -> SetFigures:
    """Compute the figures of prediction sets.

    Args:
        members: which classes are in each image's set, `[images, classes]`.
        labels: true labels, `[images]`.
        class_counts: training images of each class, `[classes]`.
    """
    covered = members[np.arange(len(labels)), labels]
    images = np.bincount(labels, minlength=members.shape[1])
    by_class = np.bincount(labels, weights=covered, minlength=members.shape[1]) / np.maximum(images, 1)
    group = groups(class_counts)
    many, medium, few = (_mean(by_class, (images > 0) & (group == number)) for number in (MANY, MEDIUM, FEW))
    return SetFigures(
        coverage=float(covered.mean()), size=float(members.sum(axis=1).mean()), many=many, medium=medium, few=few
    )


def groups(class_counts: Labels) -> Labels:
    """Return each class's group by its training images: `MANY`, `MEDIUM` or `FEW`."""
    counts = np.asarray(class_counts)
    return np.where(counts > MANY_OVER, MANY, np.where(counts < FEW_UNDER, FEW, MEDIUM))


def confusion(probabilities: Probabilities, labels: Labels) -> Labels:
    """Return int64 `[classes, classes]`: images by true class (row) and most probable class (column).

    For as many classes as a page shows: for 8,142 it would take 530 MB.
    """
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def top_k(probabilities: Probabilities, labels: Labels, k: int) -> float:
    """Return the share of images whose true class is among the `k` most probable (all classes, if fewer)."""
    if k == 1:
        return float((probabilities.argmax(axis=1) == labels).mean())
    if k >= probabilities.shape[1]:
        return 1.0
    hits = 0
    for start in range(0, len(labels), _CHUNK):
        part = slice(start, start + _CHUNK)
        best = np.argpartition(-probabilities[part], k - 1, axis=1)[:, :k]
        hits += int((best == labels[part, None]).any(axis=1).sum())
    return hits / len(labels)


def expected_calibration_error(
    probabilities: Probabilities, labels: Labels, bins: int = CALIBRATION_BINS, weights: Weights | None = None
) -> float:
    """Return the mean gap between confidence and accuracy over equal-width bins (Guo et al., ICML 2017; l1 norm).

    Args:
        probabilities: `[images, classes]`.
        labels: `[images]`.
        bins: how many.
        weights: of the images, `[images]`; None counts each the same.
    """
    confidence, correct, index = _binned(probabilities, labels, bins)
    weights = np.ones(len(labels)) if weights is None else weights
    gaps = np.bincount(index, weights * (correct - confidence), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())


def reliability(
    probabilities: Probabilities, labels: Labels, bins: int = CALIBRATION_BINS, weights: Weights | None = None
) -> list[ReliabilityBin]:
    """Return the bins of a reliability diagram that have images: equal widths of confidence, open on the left.

    Arguments are those of `expected_calibration_error`.
    """
    confidence, correct, index = _binned(probabilities, labels, bins)
    weights = np.ones(len(labels)) if weights is None else weights
    images = np.bincount(index, minlength=bins)
    total, *sums = [np.bincount(index, weights * values, minlength=bins) for values in (1, confidence, correct)]
    return [
        ReliabilityBin(
            images=int(images[i]), confidence=float(sums[0][i] / total[i]), accuracy=float(sums[1][i] / total[i])
        )
        for i in np.flatnonzero(images)
    ]


def class_balanced(labels: Labels, mix: Sequence[float] | None = None) -> Weights:
    """Return weights of images by which each class counts the same, `[images]`, with sum 1.

    Args:
        labels: `[images]`.
        mix: what each class counts instead, `[classes]`, each above 0, in any unit.
    """
    weights = 1 / np.bincount(labels)[labels]
    if mix is not None:
        weights = weights * np.asarray(mix)[labels]
    return np.asarray(weights / weights.sum())


def negative_log_likelihood(probabilities: Probabilities, labels: Labels) -> float:
    """Return the mean of -log(probability of the true class), in nats."""
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(true, TINY)).mean())


def _binned(
    probabilities: Probabilities, labels: Labels, bins: int
) -> tuple[Weights, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return each image's confidence, whether it is right, and its bin."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    return confidence, correct, np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _class_rates(hits: Labels, tested: Labels, answered: Labels) -> tuple[npt.NDArray[np.float64], ...]:
    """Return recall, precision and F1 of each class, each float64 `[classes]` and 0 where undefined.

    Args:
        hits: images that were given their class, `[classes]`.
        tested: images of the class.
        answered: images that were given the class.
    """
    return hits / np.maximum(tested, 1), hits / np.maximum(answered, 1), 2 * hits / np.maximum(tested + answered, 1)


def _mean(values: npt.NDArray[np.float64], members: npt.NDArray[np.bool_]) -> float | None:
    return float(values[members].mean()) if members.any() else None
