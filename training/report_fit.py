"""What more images would buy: accuracy of a class as a function of its training images."""

from dataclasses import dataclass

import numpy as np

from training.report_data import Floats, Group, Series

MIN_CLASSES = 8
MIN_RANGE = 2.0
"""Doublings between the smallest and the largest class below which nothing is fitted."""
_Z = 1.96
_ROUNDS = 50
_SMALL = 1e-10


@dataclass(frozen=True)
class CountFit:
    """log(p / (1 - p)) = a + b log2(images), over classes: least deviance, with the spread that the classes show."""

    coefficients: Floats
    """a and b."""
    covariance: Floats
    smallest: int
    largest: int
    """Counts that the fit rests on."""

    @property
    def supported(self) -> bool:
        """Whether accuracy rises with the count: b is above 0 with 97.5% confidence."""
        return bool(self.coefficients[1] > _Z * np.sqrt(self.covariance[1, 1]))

    def curve(self, counts: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the expected accuracy at `counts` and its 95% interval (low, high), each of the same shape."""
        design = _design(counts)
        middle = design @ self.coefficients
        error = _Z * np.sqrt(np.einsum("ij,jk,ik->i", design, self.covariance, design))
        return _logistic(middle), _logistic(middle - error), _logistic(middle + error)

    def doubling(self, count: int) -> tuple[float, float, float]:
        """Return what doubling `count` images adds to the accuracy, and its 95% interval."""
        design = _design(np.array([count, 2 * count], dtype=np.float64))
        rates = _logistic(design @ self.coefficients)
        slopes = (rates * (1 - rates))[:, None] * design
        gradient = slopes[1] - slopes[0]
        gain = float(rates[1] - rates[0])
        error = float(_Z * np.sqrt(gradient @ self.covariance @ gradient))
        return gain, gain - error, gain + error


def fit_counts(group: Group, series: Series) -> CountFit | None:
    """Fit the test accuracy of classes, mean over seeds, against their training images.

    None if there are too few classes, or their counts are too much alike.
    """
    counts, recall = group.counts.astype(np.float64), series.recall
    if recall.shape != counts.shape:
        return None
    images = np.array([item["test_images"] for item in group.cell.run.per_class], dtype=np.float64)
    known = (counts > 0) & (images > 0)
    counts, recall, images = counts[known], recall[known], images[known]
    if len(counts) < MIN_CLASSES or np.log2(counts.max() / counts.min()) < MIN_RANGE:
        return None
    # Half a hit and half a miss more keep the fit finite where every image is right.
    hits = (recall * images + 0.5) / (images + 1)
    coefficients, covariance = _logistic_regression(_design(counts), hits, images + 1)
    return CountFit(coefficients, covariance, int(counts.min()), int(counts.max()))


def _logistic_regression(design: Floats, rates: Floats, trials: Floats) -> tuple[Floats, Floats]:
    """Fit by iteratively re-weighted least squares; the covariance has the dispersion of Pearson's residuals."""
    coefficients = np.zeros(design.shape[1])
    for _ in range(_ROUNDS):
        expected, information = _at(coefficients, design, trials)
        step = np.linalg.solve(information, design.T @ (trials * (rates - expected)))
        # A whole step may overshoot, and would then lead further and further away.
        while _deviance(coefficients + step, design, rates, trials) > _deviance(coefficients, design, rates, trials):
            step = step / 2
        coefficients = coefficients + step
        if np.abs(step).max() < _SMALL:
            break
    expected, information = _at(coefficients, design, trials)
    residuals = trials * (rates - expected) ** 2 / (expected * (1 - expected))
    dispersion = max(1.0, float(residuals.sum()) / (len(rates) - design.shape[1]))
    return coefficients, np.linalg.inv(information) * dispersion


def _at(coefficients: Floats, design: Floats, trials: Floats) -> tuple[Floats, Floats]:
    """Return the expected rates and Fisher's information."""
    expected = np.clip(_logistic(design @ coefficients), 1e-6, 1 - 1e-6)
    weights = trials * expected * (1 - expected)
    return expected, design.T @ (weights[:, None] * design)


def _deviance(coefficients: Floats, design: Floats, rates: Floats, trials: Floats) -> float:
    """Return the deviance, but for a constant."""
    values = design @ coefficients
    return float(2 * (trials * (np.logaddexp(0, values) - rates * values)).sum())


def _design(counts: Floats) -> Floats:
    return np.stack([np.ones_like(counts), np.log2(counts)], axis=1)


def _logistic(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values)))
