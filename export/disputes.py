"""How sure the ensemble may be where a learner disagrees with it: a temperature, fitted on the images that validate.

An average of probabilities is less sure than it could be, above all where its learners disagree (Ranjan & Gneiting,
"Combining probability forecasts", 2010): there it is right more often beside them than it says.
"""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from tailstack.blend import tempered
from tailstack.metrics import Labels, Probabilities
from tailstack.prior import TINY

Floats = npt.NDArray[np.float64]
_SHARPEST = -1.5
"""Logarithm of the lowest temperature."""


def sharpened(plain: Probabilities, votes: Probabilities, labels: Labels) -> Floats:
    """Return the ensemble's probabilities with `dispute_temperature`, float64 `[images, classes]`.

    Args: as of `dispute_temperature`.
    """
    temperature = dispute_temperature(plain, votes, labels)
    return tempered(np.asarray(plain, np.float32), np.array([temperature])).astype(np.float64)


def dispute_temperature(plain: Probabilities, votes: Probabilities, labels: Labels) -> float:
    """Return the temperature by which the ensemble is as sure of its class beside a learner's as it is right.

    It is the likeliest one where a learner's class is another than the ensemble's and one of both is right; at most 1,
    for doubts that seem too large are no reason to allow more.

    Args:
        plain: the ensemble's probabilities, `[images, classes]`.
        votes: its learners', `[images, learners, classes]`.
        labels: `[images]`.
    """
    log_odds, won = _disputes(plain, votes, labels)
    if not len(won):
        return 1.0
    # Of winning by odds o the likelihood is o / (1 + o), of losing 1 / (1 + o).
    signed = np.where(won, -log_odds, log_odds)
    found = minimize_scalar(
        lambda value: np.logaddexp(0, signed / np.exp(value)).sum(), bounds=(_SHARPEST, 0), method="bounded"
    )
    return float(np.exp(found.x))


def _disputes(plain: Probabilities, votes: Probabilities, labels: Labels) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return of each dispute the logarithm of the ensemble's odds, and whether the ensemble is right."""
    own, theirs = plain.argmax(axis=1)[:, None], votes.argmax(axis=2)
    truth = labels[:, None]
    image, learner = np.nonzero((own != theirs) & ((own == truth) | (theirs == truth)))
    chosen = own[image, 0]
    mine, other = (
        np.log(np.maximum(plain[image, classes].astype(np.float64), TINY))
        for classes in (chosen, theirs[image, learner])
    )
    return mine - other, chosen == labels[image]
