"""The release gate: what an export may change, and what it did change, on the images that validate."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tailstack.artifact import INPUT
from tailstack.images import Pixels
from tailstack.metrics import Labels, Probabilities, evaluate

if TYPE_CHECKING:
    import onnxruntime

Predict = Callable[[Pixels], object]
"""Answers uint8 `[batch, height, width, 3]`."""

FIGURES = ("top1", "balanced", "many", "medium", "few", "ece", "nll")
FEW_SHOT_POINTS = 1.0
ECE_RISE = 0.02
ROUNDS = 5
DEVIATIONS = 1.2816
"""Standard errors above an estimate that 9 of 10 true values lie below (normal distribution, one side)."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Judge:
    """Compares answers with those of the plain ensemble in fp32.

    Args:
        plain: the plain ensemble's answers, `[images, classes]`.
        labels: `[images]`.
        classes: class names.
        class_counts: training images of each class.
        max_drop: points of accuracy that may be lost, of all images and of classes that count the same each.
    """

    plain: Probabilities
    labels: Labels
    classes: list[str]
    class_counts: Labels
    max_drop: float

    def figures(self, answers: Probabilities) -> dict[str, float | None]:
        """Return the headline figures of `answers`."""
        return headline(answers, self.labels, self.classes, self.class_counts)

    @functools.cached_property
    def plain_figures(self) -> dict[str, float | None]:
        """The headline figures of the plain ensemble: a search asks for them thousands of times."""
        return self.figures(self.plain)

    def expected_drop(self, answers: Probabilities) -> float:
        """Return what the plain ensemble expects to lose by these answers, in points; never negative.

        For an image, it is the difference of the ensemble's own probabilities of its class and of that of `answers`;
        classes count the same each. On few images it is steadier than counting labels, which luck can hide a loss in.
        """
        return self._expected(answers)[0]

    def expected_drop_bound(self, answers: Probabilities) -> float:
        """Return what `expected_drop` is at most, with 90% confidence, for images like those that validate."""
        drop, error = self._expected(answers)
        return drop + DEVIATIONS * error

    def _expected(self, answers: Probabilities) -> tuple[float, float]:
        """Return the mean of the losses that the plain ensemble expects, and its standard error, in points."""
        rows = np.arange(len(self.labels))
        lost = (self.plain.max(axis=1) - self.plain[rows, answers.argmax(axis=1)]).astype(np.float64)
        weights = 1 / np.bincount(self.labels)[self.labels]
        weights /= weights.sum()
        mean = float(weights @ lost)
        return 100 * mean, 100 * float(np.linalg.norm(weights * (lost - mean)))

    def objections(self, answers: Probabilities) -> list[str]:
        """Return what of `answers` is past its limit, in words; empty if nothing is."""
        plain, made = self.plain_figures, self.figures(answers)
        few = max(FEW_SHOT_POINTS, self.max_drop)
        changes = [
            ("top-1", _points_lost(plain["top1"], made["top1"]), self.max_drop),
            ("balanced accuracy", _points_lost(plain["balanced"], made["balanced"]), self.max_drop),
            ("the accuracy that the ensemble expects (90% sure)", self.expected_drop_bound(answers), self.max_drop),
            ("few-shot accuracy", _points_lost(plain["few"], made["few"]), few),
        ]
        found = [
            f"{name} falls by {lost:.2f} points (limit {limit:g})"
            for name, lost, limit in changes
            if lost > limit + _ROUNDING
        ]
        rise = -_points_lost(plain["ece"], made["ece"]) / 100
        if rise > ECE_RISE:
            found.append(f"the calibration error (ECE) grows by {rise:.3f} (limit {ECE_RISE:g})")
        return found


def headline(
    answers: Probabilities, labels: Labels, classes: list[str], class_counts: Labels
) -> dict[str, float | None]:
    """Return `FIGURES` of answers `[images, classes]`."""
    accuracy: dict[str, Any] = dict(evaluate(answers, labels, classes, class_counts))
    return {name: accuracy[name] for name in FIGURES}


def relative_cost(plain: Predict, made: Predict, images: Pixels, batch: int) -> dict[str, float]:
    """Time both on the same images, in turns, and return milliseconds per image and their ratio.

    Args:
        plain, made: answer uint8 `[batch, height, width, 3]`.
        images: what is answered in each turn, in batches of `batch`.

    Returns:
        `plain_ms` and `ms` per image, medians over rounds, and `relative`: the median of the rounds' ratios.
    """
    seconds = [(_seconds(plain, images, batch), _seconds(made, images, batch)) for _ in range(ROUNDS + 1)][1:]
    scale = 1e3 / len(images)
    return {
        "plain_ms": statistics.median(a for a, _ in seconds) * scale,
        "ms": statistics.median(b for _, b in seconds) * scale,
        "relative": statistics.median(b / a for a, b in seconds),
    }


def relative_costs(systems: Sequence[Predict], images: Pixels, batch: int) -> list[float]:
    """Time all on the same images, in turns, and return each one's time as a multiple of the first one's.

    Args:
        systems: answer uint8 `[batch, height, width, 3]`.
        images: what is answered in each turn, in batches of `batch`.

    Returns:
        Medians of the rounds' ratios.
    """
    rounds = [[_seconds(system, images, batch) for system in systems] for _ in range(ROUNDS + 1)][1:]
    return [statistics.median(times[place] / times[0] for times in rounds) for place in range(len(systems))]


def predictor(session: "onnxruntime.InferenceSession") -> Predict:
    """Return the function that runs all of a session's outputs."""
    return lambda images: session.run(None, {INPUT: images})


def _seconds(predict: Predict, images: Pixels, batch: int) -> float:
    start = time.perf_counter()
    for first in range(0, len(images), batch):
        predict(images[first : first + batch])
    return time.perf_counter() - start


def _points_lost(plain: float | None, made: float | None) -> float:
    """Return the fall from `plain` to `made` in points; 0 where there is no such class."""
    return 0.0 if plain is None or made is None else 100 * (plain - made)
