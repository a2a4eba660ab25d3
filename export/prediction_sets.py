"""Prediction sets: the classes among which the true one is, as often as stated (split conformal prediction).

A class is in an image's set if its probability reaches the class's threshold: the score of Sadinle et al. ("Least
Ambiguous Set-Valued Classifiers", 2019), which gives the smallest sets. Rare classes get lower probabilities than
frequent ones, so one threshold for all would cover them too seldom; and they have too few images for one each. So
classes with many, medium and few training images have a threshold a group, as the clusters of Ding et al. (NeurIPS
2023) have, in which each class counts the same, however many of its images validate: a balanced test split asks for it.
"""

import numpy as np
import numpy.typing as npt

from tailstack.artifact import PredictionSetCard
from tailstack.metrics import Labels, Probabilities, groups

COVERAGES = (0.9, 0.95, 0.99)
_ROUNDING = 1e-9


def calibrate(probabilities: Probabilities, labels: Labels, class_counts: Labels) -> PredictionSetCard:
    """Choose each group's thresholds on images that were not trained on.

    Args:
        probabilities: what the file answers, `[images, classes]`.
        labels: `[images]`.
        class_counts: training images of each class.
    """
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    group = groups(class_counts)
    thresholds = {}
    for coverage in COVERAGES:
        by_class = np.zeros(len(class_counts))
        for number in np.unique(group):
            inside = group[labels] == number
            by_class[group == number] = (
                _threshold(true[inside], labels[inside], coverage)
                if inside.sum() * (1 - coverage) >= 1 - _ROUNDING
                # Too few images to tell: no more than all images allow, and than the group's own least probable one.
                else min([_threshold(true, labels, coverage), *true[inside]])
            )
        thresholds[f"{coverage:g}"] = by_class.tolist()
    return PredictionSetCard(thresholds=thresholds, images=len(labels))


def _threshold(true: npt.NDArray[np.float64], labels: Labels, coverage: float) -> float:
    """Return the largest probability that a share of `coverage` of the true classes reach; 0 if there is none.

    Each class has the same weight, shared by its images; one more image of the mean weight, which is taken to reach
    nothing, stands for the one to come (weighted conformal prediction: Tibshirani et al., NeurIPS 2019).
    """
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.mean()
    order = np.argsort(-true, kind="stable")
    share = np.cumsum(weights[order]) / (weights.sum() + 1)
    reached = np.flatnonzero(share >= coverage - _ROUNDING)
    return float(true[order[reached[0]]]) if len(reached) else 0.0
