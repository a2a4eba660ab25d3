"""The blend of a run's learners: their plain average, or weights and a temperature fitted on validation."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import softmax

from tailstack.blend import Blend
from tailstack.metrics import Labels, Probabilities, class_balanced
from tailstack.prior import TINY

_FOLDS = 5
_MOST = 30_000_000
"""Probabilities that are looked at: they say all about a few numbers, and with thousands of classes more take GB."""
_WEIGHT_RANGE = (-3.0, 3.0)
"""Of the logarithm of a weight, before they are made to sum to 1."""
_LOG_RANGE = (-1.5, 1.5)
"""Of the logarithm of the temperature."""


def plain_average(learners: int) -> Blend:
    """Return equal shares."""
    return Blend((1 / learners,) * learners)


def fit_blend(votes: Probabilities, labels: Labels) -> Blend:
    """Fit a temperature, and weights besides, and return what helps on images that it was not fitted on.

    Each class counts the same, however many images of it validate: that is what the learners are trained for. Help is
    a lower negative log-likelihood and an accuracy that is not lower, over `_FOLDS` folds.

    Args:
        votes: the learners' probabilities, `[images, learners, classes]`.
        labels: `[images]`.
    """
    best = plain_average(votes.shape[1])
    if len(labels) < 2 * _FOLDS:
        return best
    if votes.size > _MOST:
        kept = np.random.default_rng(0).permutation(len(labels))[: max(_MOST * len(labels) // votes.size, 2 * _FOLDS)]
        votes, labels = votes[kept], labels[kept]
    votes = votes.astype(np.float64)  # the optimizer's small steps would vanish in float32
    importance = class_balanced(labels)
    plain = best.apply(votes)
    lowest, accuracy = _loss(plain, labels, importance), _accuracy(plain, labels, importance)
    for free_weights in (False, True):
        blended = _cross_fitted(votes, labels, free_weights=free_weights)
        loss = _loss(blended, labels, importance)
        if loss < lowest and _accuracy(blended, labels, importance) >= accuracy:
            lowest, best = loss, _fit(votes, labels, free_weights=free_weights)
    return best


def _cross_fitted(votes: Probabilities, labels: Labels, *, free_weights: bool) -> Probabilities:
    """Blend each fold's images by what was fitted on the others."""
    fold = np.random.default_rng(0).permutation(len(labels)) % _FOLDS
    blended = np.empty((len(labels), votes.shape[2]), dtype=votes.dtype)
    for k in range(_FOLDS):
        fitted = _fit(votes[fold != k], labels[fold != k], free_weights=free_weights)
        blended[fold == k] = fitted.apply(votes[fold == k])
    return blended


def _fit(votes: Probabilities, labels: Labels, *, free_weights: bool) -> Blend:
    learners = votes.shape[1]
    importance = class_balanced(labels)

    def objective(values: npt.NDArray[np.float64]) -> float:
        return _loss(_blend(values).apply(votes), labels, importance)

    limit = _WEIGHT_RANGE if free_weights else (0.0, 0.0)
    found = minimize(objective, np.zeros(learners + 1), method="L-BFGS-B", bounds=[limit] * learners + [_LOG_RANGE])
    return _blend(found.x)


def _blend(values: npt.NDArray[np.float64]) -> Blend:
    return Blend(tuple(softmax(values[:-1]).tolist()), float(np.exp(values[-1])))


def _loss(probabilities: Probabilities, labels: Labels, importance: npt.NDArray[np.float64]) -> float:
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-(importance * np.log(np.maximum(true, TINY))).sum())


def _accuracy(probabilities: Probabilities, labels: Labels, importance: npt.NDArray[np.float64]) -> float:
    return float(importance[probabilities.argmax(axis=1) == labels].sum())
