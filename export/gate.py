"""The release gate: what an export may change, and what it did change, on the images that validate."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.disputes import sharpened
from tailstack.artifact import INPUT
from tailstack.images import Pixels
from tailstack.metrics import (
    FEW,
    Labels,
    Probabilities,
    class_balanced,
    evaluate,
    expected_calibration_error,
    groups,
)

if TYPE_CHECKING:
    import onnxruntime

Floats = npt.NDArray[np.float64]
Predict = Callable[[Pixels], object]
"""Answers uint8 `[batch, height, width, 3]`."""

FIGURES = ("top1", "balanced", "many", "medium", "few", "ece", "nll")
FEW_SHOT_POINTS = 1.0
ECE_RISE = 0.02
ROUNDS = 5
DEVIATIONS = 1.2816
"""Standard errors from an estimate to what 9 of 10 true values lie below (or above, on its other side), if normal."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Judge:
    """Compares answers with those of the plain ensemble in fp32.

    Args:
        plain: the plain ensemble's answers, `[images, classes]`.
        votes: its learners' probabilities, `[images, learners, classes]`.
        labels: `[images]`.
        classes: class names.
        class_counts: training images of each class.
        max_drop: points of accuracy that may be lost, of all images and of classes that count the same each.
    """

    plain: Probabilities
    votes: Probabilities
    labels: Labels
    classes: list[str]
    class_counts: Labels
    max_drop: float

    @property
    def max_few_shot_drop(self) -> float:
        """Points that few-shot classes may lose."""
        return max(FEW_SHOT_POINTS, self.max_drop)

    def figures(self, answers: Probabilities) -> dict[str, float | None]:
        """Return the headline figures of `answers`."""
        return headline(answers, self.labels, self.classes, self.class_counts)

    def expected_drop(self, answers: Probabilities) -> float:
        """Return what the plain ensemble expects to lose by these answers, in points; never negative.

        It is the mean of `lost`; images count the same, or classes do, whichever loses more. On few images it is
        steadier than counting labels, which luck can hide a loss in.
        """
        return max(mean for mean, _ in self._expected(answers))

    def expected_drop_bound(self, answers: Probabilities) -> float:
        """Return what `expected_drop` is at most, with 90% confidence, for images like those that validate."""
        return max(mean + DEVIATIONS * error for mean, error in self._expected(answers))

    def _expected(self, answers: Probabilities) -> list[tuple[float, float]]:
        lost = self.lost(answers)
        return [_estimate(lost, weights) for weights in self.mixes]

    def lost(self, answers: Probabilities) -> Floats:
        """Return what each image is expected to lose by these answers, `[images]`.

        It is the difference of the ensemble's own probabilities of its class and of that of `answers`, as sure as
        `export.disputes` finds them to be.
        """
        taken = self._sharpened[np.arange(len(self.labels)), answers.argmax(axis=1)]
        return np.asarray(self._sharpened.max(axis=1) - taken)

    @functools.cached_property
    def one_more(self) -> float:
        """What an image loses that is given the ensemble's second class: the mean, of images by how unsure it is."""
        second, first = np.partition(self._sharpened, -2, axis=1)[:, -2:].T
        gaps = first - second
        doubts = 1 - gaps
        return float(gaps @ doubts / max(doubts.sum(), _ROUNDING))

    def objections(self, answers: Probabilities, *, stops_judged: bool = False) -> list[str]:
        """Return what of `answers` is past its limit, in words; empty if nothing is.

        Labels object where they are 90% sure that images like these lose more than the limit: of a class with five
        images that validate, one more or less is 20 points.

        Args:
            answers: of the images that validate, `[images, classes]`.
            stops_judged: whether `export.risk` answers for what is expected to be lost, by a curve through all images;
                then the mean over these is enough.
        """
        few = self.max_few_shot_drop
        expected = self.expected_drop(answers) if stops_judged else self.expected_drop_bound(answers)
        hits = self._plain_hits - self._hits(answers)
        changes = [
            ("top-1 (90% sure)", _at_least(hits, self._by_image), self.max_drop),
            ("balanced accuracy (90% sure)", _at_least(hits, self._by_class), self.max_drop),
            ("few-shot accuracy (90% sure)", _at_least(hits, self.by_few_shot_class), few),
            ("the accuracy that the ensemble expects" + " (90% sure)" * (not stops_judged), expected, self.max_drop),
            (
                "the few-shot accuracy that the ensemble expects",
                _estimate(self.lost(answers), self.by_few_shot_class)[0],
                few,
            ),
        ]
        found = [
            f"{name} falls by {lost:.2f} points (limit {limit:g})"
            for name, lost, limit in changes
            if lost > limit + _ROUNDING
        ]
        # Probabilities are right for one class mix at most: only what is worse in both is no fault of the mix.
        rise = min(after - before for after, before in zip(self._errors(answers), self._plain_errors, strict=True))
        if rise > ECE_RISE:
            found.append(f"the calibration error (ECE) grows by {rise:.3f} (limit {ECE_RISE:g})")
        return found

    def _errors(self, answers: Probabilities) -> list[float]:
        """Return the calibration error where images count the same, and where classes do."""
        return [expected_calibration_error(answers, self.labels, weights=weights) for weights in self.mixes]

    def _hits(self, answers: Probabilities) -> Floats:
        """Return 1 where `answers` are right and 0 where not, `[images]`."""
        return np.asarray(answers.argmax(axis=1) == self.labels, dtype=np.float64)

    # A search asks for these thousands of times.

    @functools.cached_property
    def _sharpened(self) -> Floats:
        return sharpened(self.plain, self.votes, self.labels)

    @functools.cached_property
    def _plain_hits(self) -> Floats:
        return self._hits(self.plain)

    @functools.cached_property
    def _plain_errors(self) -> list[float]:
        return self._errors(self.plain)

    @property
    def mixes(self) -> tuple[Floats, Floats]:
        """Weights by which each image counts the same, and by which each class does."""
        return self._by_image, self._by_class

    @functools.cached_property
    def _by_image(self) -> Floats:
        """Weights by which each image counts the same."""
        return np.full(len(self.labels), 1 / len(self.labels))

    @functools.cached_property
    def _by_class(self) -> Floats:
        """Weights by which each class counts the same."""
        return class_balanced(self.labels)

    @functools.cached_property
    def by_few_shot_class(self) -> Floats:
        """Weights by which each few-shot class counts the same and the others don't; all 0 if there is none."""
        weights: Floats = self._by_class * (groups(self.class_counts) == FEW)[self.labels]
        return np.asarray(weights / weights.sum()) if weights.any() else weights


def _estimate(lost: Floats, weights: Floats) -> tuple[float, float]:
    """Return the weighted mean of what each image loses, and its standard error, in points."""
    mean = float(weights @ lost)
    return 100 * mean, 100 * float(np.linalg.norm(weights * (lost - mean)))


def _at_least(lost: Floats, weights: Floats) -> float:
    """Return the points that are lost at least, with 90% confidence, for images like these."""
    mean, error = _estimate(lost, weights)
    return mean - DEVIATIONS * error


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
