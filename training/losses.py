"""Class weights, by the number of training images of each class."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Weighting = Literal["none", "ins", "isns", "ens"]


def class_weights(weighting: Weighting, counts: npt.NDArray[np.int64], beta: float) -> npt.NDArray[np.float32] | None:
    """Return the weight of each class in the cross-entropy, with mean 1.

    Args:
        weighting: `ins` is 1/n, `isns` 1/sqrt(n), `ens` (1-beta)/(1-beta^n): the inverse effective number of samples of
            Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
        counts: training images of each class, `[classes]`, each 1 or more.
        beta: for `ens`, from 0 (no weights) to just under 1 (1/n).

    Returns:
        float32 `[classes]`, or None for `none`.
    """
    if weighting == "none":
        return None
    n = counts.astype(np.float64)
    formulas = {
        "ins": lambda: 1 / n,
        "isns": lambda: 1 / np.sqrt(n),
        "ens": lambda: (1 - beta) / (1 - beta**n),
    }
    weights: npt.NDArray[np.float64] = formulas[weighting]()
    return np.asarray(weights / weights.mean(), dtype=np.float32)
