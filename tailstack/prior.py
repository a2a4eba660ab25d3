"""A user's own class mix: probabilities that were right for one are made right for another (label shift).

With other shares of the classes, but the same pictures in each, the posterior changes by the ratio of the shares:
Saerens, Latinne & Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities", 2002.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

TINY = np.finfo(np.float32).tiny
"""What a probability counts at least: one that is 0 could never come back."""


def reweighted(
    probabilities: npt.NDArray[np.float32], prior: npt.NDArray[np.floating[Any]], own: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Return what the graph answers for `class_prior`.

    Args:
        probabilities: its answers by default, `[…, classes]`.
        prior: share of each class where the answers are used, `[classes]`, in any unit; one or more above 0.
        own: that for which `probabilities` are right, `[classes]`, each above 0.
    """
    shares = np.maximum(probabilities, TINY) * (prior / own)
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True), np.float32)
