"""What images lose where a cascade stops, as a curve over how sure its answer is.

Thresholds are chosen among many, by the images that validate: luck favours those under which just these images lose
nothing, and others would. So each stage's loss is a curve, fitted to all images that validate, also to those that don't
stop there: whoever is barely sure enough is expected to lose what others as sure lose. docs/export.md has what that
is worth.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import PoissonRegressor

from export.cascade import Counts, Votes
from export.gate import DEVIATIONS, Floats, Judge

_SUREST = 1e-4
"""Doubt, of the confidence, below which the curve is level."""
_RIDGE = 1e-6
"""Keeps a curve solvable where few images lose anything, or all are as sure."""
_TOLERANCE = 1e-7
_STEPS = 1000


@dataclass(frozen=True)
class Curve:
    """The loss exp(a + b log(1 - confidence)) of one stage."""

    terms: Floats
    """1 and log(1 - confidence), `[images, 2]`."""
    lost: Floats
    """By the curve, `[images]`."""
    covariance: Floats
    """Of a and b, `[2, 2]`."""

    @classmethod
    def fit(cls, confidence: Floats, lost: Floats) -> "Curve":
        """Fit by Poisson's quasi-likelihood, with a covariance that doesn't trust its variance (the sandwich's).

        Args:
            confidence: highest probability of each image, `[images]`.
            lost: what each image loses, `[images]`.
        """
        terms = np.stack([np.ones(len(lost)), np.log(np.clip(1 - confidence, _SUREST, 1))], axis=1)
        if not lost.any():
            return cls(terms, np.zeros(len(lost)), np.zeros((2, 2)))
        regressor = PoissonRegressor(alpha=_RIDGE, max_iter=_STEPS, tol=_TOLERANCE)
        curve: Floats = regressor.fit(terms[:, 1:], lost).predict(terms[:, 1:])
        inverse = np.linalg.inv(_information(terms, curve))
        return cls(terms, curve, inverse @ _information(terms, (lost - curve) ** 2) @ inverse)


@dataclass(frozen=True)
class StopRisk:
    """The curves of all stages, and who judges what they say."""

    curves: tuple[Curve, ...]
    judge: Judge

    @classmethod
    def fit(cls, means: Votes, judge: Judge) -> "StopRisk":
        """Fit a curve to the answers at each stage, `[images, stages, classes]` as `partial_means` returns them."""
        stages = means.shape[1]
        curves = (Curve.fit(means[:, stage].max(axis=1), judge.lost(means[:, stage])) for stage in range(stages))
        return cls(tuple(curves), judge)

    def expected(self, used: Counts) -> float:
        """Return the points that are expected to be lost; `used` learners see each image, `[images]`."""
        return max(mean for mean, _ in self._estimates(used))

    def bound(self, used: Counts) -> float:
        """Return the points that are lost at most, with 90% confidence."""
        return max(mean + DEVIATIONS * error for mean, error in self._estimates(used))

    def is_allowed(self, used: Counts) -> bool:
        """Return whether what is lost stays within the judge's limits; of few-shot classes, what is expected to be."""
        few, _ = self._estimate(used, self.judge.by_few_shot_class)
        return self.bound(used) <= self.judge.max_drop and few <= self.judge.max_few_shot_drop

    def _estimates(self, used: Counts) -> list[tuple[float, float]]:
        return [self._estimate(used, weights) for weights in self.judge.mixes]

    def _estimate(self, used: Counts, weights: Floats) -> tuple[float, float]:
        """Return the weighted mean, and its standard error by what is unsure about the curves, in points."""
        mean = variance = 0.0
        for stage, curve in enumerate(self.curves, 1):
            lost = weights * curve.lost * (used == stage)
            slope = lost @ curve.terms
            mean += lost.sum()
            variance += slope @ curve.covariance @ slope
        return 100 * mean, 100 * variance**0.5


def _information(terms: Floats, weights: Floats) -> Floats:
    """Return the terms' weighted products, `[2, 2]`."""
    return np.asarray(terms.T @ (terms * weights[:, None]) + _RIDGE * np.eye(2))
