"""The cascade: cheap learners answer alone where they are sure, and ask the next one where they are not.

The idea of Wang et al., "Wisdom of Committees" (ICLR 2022), with a threshold on the averaged probability. This is the
reference that the graph's answers are checked against.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tailstack.blend import Blend

Votes = npt.NDArray[np.float32]
"""The learners' probabilities, float32 `[images, learners, classes]`."""
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cascade:
    """Which learner is asked when.

    Args:
        order: the learners, cheapest first.
        thresholds: one fewer: the next learner sees the images whose highest averaged probability is below.
    """

    order: tuple[int, ...]
    thresholds: tuple[float, ...]

    def run(self, votes: Votes, blend: Blend) -> tuple[npt.NDArray[np.float32], Votes, Counts]:
        """Return what the graph's three outputs are for these votes.

        Returns:
            The answers, `[images, classes]`; the votes, with zeros where a learner didn't see an image; and how many
            learners did, int64 `[images]`.
        """
        means = partial_means(votes, blend.weights, self.order)
        used = self.used(means)
        seen = np.argsort(self.order)[None, :] < used[:, None]
        answers = means[np.arange(len(votes)), used - 1]
        return blend.tempered(answers), votes * seen[:, :, None], used

    def used(self, means: Votes) -> Counts:
        """Return how many learners see each image, int64 `[images]`, from `partial_means`."""
        return self.used_by(means.max(axis=2))

    def used_by(self, confidences: npt.NDArray[np.float32]) -> Counts:
        """Return the same from the highest of the means, `[images, learners]`."""
        sure = confidences[:, :-1] >= np.array(self.thresholds, np.float32)
        # Whoever is last answers, sure or not.
        return np.asarray(np.pad(sure, ((0, 0), (0, 1)), constant_values=True).argmax(axis=1) + 1, np.int64)

    def cost(self, used: Counts, costs: Sequence[float]) -> float:
        """Return the mean cost of an image, from `used` and each learner's cost, in any unit."""
        return float(np.cumsum(np.array(costs)[list(self.order)])[used - 1].mean())


def partial_means(votes: Votes, weights: Sequence[float], order: Sequence[int]) -> Votes:
    """Return the weighted mean of the first, the first two, … learners of `order`: `[images, learners, classes]`."""
    shares = np.array(weights, np.float32)[list(order)]
    sums = np.cumsum(votes[:, list(order)] * shares[:, None], axis=1)
    return np.asarray(sums / np.cumsum(shares)[:, None], np.float32)


def shares_seen(weights: Sequence[float], order: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the share of all weight that the first, the first two, … learners of `order` have: `[learners]`."""
    ordered = np.array(weights)[list(order)]
    return np.asarray(np.cumsum(ordered) / ordered.sum())
