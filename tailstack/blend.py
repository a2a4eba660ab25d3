"""How the learners' votes become one answer: their average, by weights and a temperature."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from tailstack.prior import TINY

Float = TypeVar("Float", bound=np.floating[Any])
"""All is reckoned in the precision that is given: float64 where a blend is fitted, else float32."""


@dataclass(frozen=True)
class Blend:
    """Shares of the learners, which sum to 1, and the temperature of their average."""

    weights: tuple[float, ...]
    temperature: float = 1.0

    def apply(self, votes: npt.NDArray[Float]) -> npt.NDArray[Float]:
        """Map `[images, learners, classes]` to `[images, classes]`, as `tailstack.network.Ensemble` does."""
        return self.tempered(np.einsum("ilc,l->ic", votes, np.asarray(self.weights, votes.dtype)))

    def tempered(self, mean: npt.NDArray[Float]) -> npt.NDArray[Float]:
        """Sharpen or flatten `[images, classes]`, and make each row a distribution again."""
        return mean if self.temperature == 1 else tempered(mean, np.array([self.temperature]))


def tempered(probabilities: npt.NDArray[Float], temperatures: npt.NDArray[np.floating[Any]]) -> npt.NDArray[Float]:
    """Divide the logarithms of `[images, classes]` by `[images]` or `[1]`, and make each row a distribution again."""
    logarithms = np.log(np.maximum(probabilities, TINY))
    divided = logarithms / temperatures.astype(probabilities.dtype)[:, None]
    return np.asarray(softmax(divided, axis=1), probabilities.dtype)
